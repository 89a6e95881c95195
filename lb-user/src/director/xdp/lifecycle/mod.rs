//! Loading, attaching, detaching: what there is of xipvs in a network namespace, from nothing and back.
//!
//! All of it lies pinned in one directory of bpffs, so that no process has to run: the maps and programs by
//! their names, a link an interface. Every step may be cut short by a kill; the next command completes or
//! replaces what it finds. IPVS counterpart: loading and removing the module.

mod attach;
mod classifiers;
mod features;
mod interface;
mod load;
mod pins;
mod sysctl;

pub use attach::{Attached, Attachment, Fallback, Listed, Manner, attach, attached, detach, detach_all};
pub use classifiers::Unseen;
pub use interface::Mode;
pub use load::load;
pub(super) use pins::records_of;
pub use pins::{Guard, Pins};

use crate::director::{Error, Result};

/// Returns how many CPUs the machine can have, which counters need room for.
///
/// # Errors
///
/// When the kernel does not say.
pub fn possible_cpus() -> Result<u32> {
    let count = aya::util::nr_cpus().map_err(|(file, error)| refused(file, &error))?;
    u32::try_from(count).map_err(|error| failed("too many CPUs", error))
}

/// Says what could not be done and why, in one line.
fn failed(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Error {
    Error::Unavailable(format!("{what}: {why}"))
}

/// Says what the operating system refused.
fn refused(what: impl std::fmt::Display, why: &std::io::Error) -> Error {
    match why.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::PermissionDenied,
        Some(number) => failed(what, crate::director::errno_text(number)),
        None => failed(what, why),
    }
}
