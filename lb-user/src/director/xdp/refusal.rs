//! What the XDP director refuses by name, because the packet program cannot do it: one row each.
//!
//! `COMPATIBILITY.md` has the same rows with their reasons, which a test here holds to; that nothing else of the
//! recorded commands is refused, and these always, is the test of those on this director. Not here: what kernel IPVS
//! refuses too, which is looked at first.

use crate::director::{Error, Result};
use crate::table::Service;

/// A row of [`REFUSALS`].
#[derive(Debug)]
pub struct Refusal {
    /// What the director does not have, with the option that asks for it.
    pub what: &'static str,
    /// Whether a service that is added or edited asks for it.
    fits: fn(&Service) -> bool,
}

/// Every refusal; of several that fit the first is said.
pub const REFUSALS: &[Refusal] =
    &[Refusal { what: "persistence engines (--pe)", fits: |service| service.engine.is_some() }];

/// The refusal of a service.
pub fn of_service(service: &Service) -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| (refusal.fits)(service))
}

/// Refuses, if there is a refusal.
pub(super) fn refuse(refusal: Option<&Refusal>) -> Result<()> {
    match refusal {
        Some(Refusal { what, .. }) => {
            Err(Error::Unsupported(format!("The XDP director does not have {what} yet")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_what_is_refused_and_nothing_else() {
        let document = include_str!("../../../../COMPATIBILITY.md");
        let (_, from) = document.split_once("\n## Refused\n").unwrap();
        let (section, _) = from.split_once("\n## ").unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        let listed: Vec<String> =
            rows.map(|row| row.split('|').nth(1).unwrap().trim().replace('`', "")).collect();
        let refused: Vec<&str> = REFUSALS.iter().map(|refusal| refusal.what).collect();
        assert_eq!(listed, refused);
    }
}
