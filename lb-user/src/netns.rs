//! Network namespaces: entering one by its name, and telling them apart.
//!
//! Names are those of `ip netns`. IPVS counterpart: `struct netns_ipvs`; every namespace has its own table.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::getsockopt;
use nix::{getsockopt_impl, sockopt_impl};

/// Where `ip netns` keeps namespaces by name.
const NAMED: &str = "/run/netns";

sockopt_impl!(
    /// A number that the kernel gives a network namespace, and no other until the next boot.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Moves the calling thread into a named namespace; sockets it opens from now on belong there.
///
/// Mounts stay as they are, so that, unlike inside `ip netns exec`, bpffs is where it was.
///
/// # Errors
///
/// `NotFound` when there is no such namespace, else what the kernel says.
pub fn enter(name: &str) -> io::Result<()> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(Path::new(NAMED).join(name))?;
    Ok(setns(&file, CloneFlags::CLONE_NEWNET)?)
}

/// Returns the cookie of the calling thread's namespace, unique until the next boot.
///
/// # Errors
///
/// What the kernel says; Linux before 5.14 knows no cookies.
pub fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_a_path() {
        for name in ["", "..", "../netns", "a/b", "xipvs-no-such-namespace"] {
            assert_eq!(enter(name).unwrap_err().kind(), io::ErrorKind::NotFound, "{name}");
        }
    }
}
