//! Associations of SCTP, by a kernel that has it: that of the reference VM.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketType, bind, connect, ipproto, listen, socket};

use super::namespace::{Namespace, PATIENCE};
use super::sockets::Listener;

/// Has the kernel load what it needs for it.
pub fn load() -> Result<()> {
    let modprobe = Command::new("modprobe").arg("sctp").output()?;
    ensure!(modprobe.status.success(), "{}", String::from_utf8_lossy(&modprobe.stderr));
    Ok(())
}

/// Makes a socket that is bound to one address: associations of others tell all addresses of their host, of which NAT
/// knows nothing.
fn bound(to: SocketAddr) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, SocketType::STREAM, Some(ipproto::SCTP)).context("SCTP")?;
    bind(&socket, &to).with_context(|| to.to_string())?;
    Ok(socket)
}

/// Serves on one address in a namespace, as [`Listener`] does.
pub fn serve(namespace: &Namespace, name: &str, on: impl Into<SocketAddr>) -> Result<Listener> {
    let on = on.into();
    let socket = namespace.enter(|| -> Result<OwnedFd> {
        let socket = bound(on)?;
        listen(&socket, 16)?;
        Ok(socket)
    })??;
    // For what is done with it there is no difference to TCP.
    Listener::listening(name, TcpListener::from(socket))
}

/// Associates a client, by one of its addresses.
pub fn associate(client: &Namespace, from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    client.enter(|| -> Result<TcpStream> {
        let socket = TcpStream::from(bound(SocketAddr::new(from, 0))?);
        socket.set_read_timeout(Some(PATIENCE))?;
        // It limits how long connecting takes, too.
        socket.set_write_timeout(Some(PATIENCE))?;
        connect(&socket, &to).with_context(|| format!("associating with {to}"))?;
        Ok(socket)
    })?
}
