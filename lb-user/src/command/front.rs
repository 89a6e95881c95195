//! Whose table a command works on, and where: the words that may stand before ipvsadm's, and the environment's.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use xipvs::{director, netns};

/// Chooses the director when the command line does not.
const DIRECTOR: &str = "XIPVS_DIRECTOR";

/// Whose table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DirectorName {
    /// The XDP program's.
    Xdp,
    /// The kernel's own IPVS.
    Kernel,
}

impl DirectorName {
    /// The one that the environment chooses.
    pub fn by_environment() -> Result<Self> {
        env::var_os(DIRECTOR).map_or(Ok(Self::Xdp), |name| Self::called(&name, &format!("{DIRECTOR}=")))
    }

    /// The one of this name; an error quotes it behind what stood before it.
    pub fn called(name: &OsStr, before: &str) -> Result<Self> {
        Self::from_str(&name.to_string_lossy(), false)
            .map_err(|_| anyhow!("{before}{}: no such director", name.display()))
    }
}

/// The options that stand before all others.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Front {
    pub netns: Option<OsString>,
    pub director: Option<OsString>,
}

impl Front {
    /// Takes them off the front of a command line.
    pub fn split(mut words: &[OsString]) -> (Self, &[OsString]) {
        let mut front = Self::default();
        while let Some((word, rest)) = words.split_first() {
            let Some(word) = word.to_str() else { break };
            let (name, attached) = match word.split_once('=') {
                Some((name, value)) => (name, Some(OsString::from(value))),
                None => (word, None),
            };
            let place = match name {
                "--netns" => &mut front.netns,
                "--director" => &mut front.director,
                _ => break,
            };
            let detached = attached.is_none();
            *place = attached.or_else(|| rest.first().cloned()).or_else(|| Some(OsString::new()));
            words = rest.get(usize::from(detached)..).unwrap_or_default();
        }
        (front, words)
    }
}

/// Enters a network namespace by its name.
pub fn enter(name: &str) -> Result<()> {
    netns::enter(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("--netns {name}: no such network namespace"),
        io::ErrorKind::PermissionDenied => anyhow!("{}", director::Error::PermissionDenied),
        _ => anyhow!("--netns {name}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn front_options_come_off_and_nothing_else() {
        for (line, netns, director, rest) in [
            ("--netns lb -A -t 1.2.3.4:80", Some("lb"), None, "-A -t 1.2.3.4:80"),
            ("--netns=lb --director kernel -Ln", Some("lb"), Some("kernel"), "-Ln"),
            ("--director=xdp", None, Some("xdp"), ""),
            ("-Ln --netns lb", None, None, "-Ln --netns lb"),
            ("--netns", Some(""), None, ""),
            ("", None, None, ""),
        ] {
            let typed = words(line);
            let (front, left) = Front::split(&typed);
            assert_eq!(front.netns.as_deref(), netns.map(OsStr::new), "{line}");
            assert_eq!(front.director.as_deref(), director.map(OsStr::new), "{line}");
            assert_eq!(left, words(rest), "{line}");
        }
    }
}
