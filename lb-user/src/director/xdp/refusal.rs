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
    /// Which commands it is for.
    pub of: Subject,
}

/// What a refusal looks at.
#[derive(Debug, Clone, Copy)]
pub enum Subject {
    /// A service that is added or edited.
    Service(fn(&Service) -> bool),
    /// Every sync daemon.
    Daemon,
}

/// Every refusal; of several that fit the first is said.
pub const REFUSALS: &[Refusal] = &[
    service("persistence engines (--pe)", |service| service.engine.is_some()),
    Refusal { what: "sync daemons (--start-daemon)", of: Subject::Daemon },
];

const fn service(what: &'static str, fits: fn(&Service) -> bool) -> Refusal {
    Refusal { what, of: Subject::Service(fits) }
}

/// The refusal of a service.
pub fn of_service(service: &Service) -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| matches!(refusal.of, Subject::Service(fits) if fits(service)))
}

/// The refusal of a sync daemon.
pub fn of_daemon() -> Option<&'static Refusal> {
    REFUSALS.iter().find(|refusal| matches!(refusal.of, Subject::Daemon))
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
