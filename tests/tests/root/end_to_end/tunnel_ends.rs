//! The far ends of tunnels on a real server.
//!
//! Where the kernel has tunnel devices, and Debian's has, they are the kernel's. Elsewhere sockets take what a tunnel's packets
//! carry, and hand it to the server by a TUN device; they are as strict as the devices: an end has checksums or has none.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, ipproto};
use tappers::{Interface, Tun};
use tests::lab::Server;
use tests::lab::sockets::Listener;

/// The UDP port of GUE, by IANA.
pub const GUE_PORT: u16 = 6080;

const MODULES: [&str; 7] = ["ipip", "sit", "ip_gre", "ip6_tunnel", "ip6_gre", "fou", "fou6"];
/// Every protocol that carries packets; those of IPv4 and IPv6 are protocols of their own.
const CARRIERS: [Protocol; 4] = [ipproto::IPIP, ipproto::IPV6, ipproto::GRE, ipproto::UDP];
const FAMILIES: [AddressFamily; 2] = [AddressFamily::INET, AddressFamily::INET6];
/// How long to wait before looking whether to end, in milliseconds.
const TICK: u16 = 50;

/// Ends of every kind of tunnel; dropping them ends those that are sockets.
pub struct TunnelEnds {
    sockets: Option<Listener>,
}

impl TunnelEnds {
    /// Opens them, for GRE and GUE with checksums or for those without.
    pub fn open(server: &Server, checksums: bool) -> Result<Self> {
        let has_devices = Command::new("modprobe").arg("--all").args(MODULES).output();
        if has_devices.is_ok_and(|output| output.status.success()) {
            eprintln!("tunnels to {} end in the kernel's devices", server.name);
            add_devices(server, checksums)?;
            return Ok(Self { sockets: None });
        }
        // Packets that were put together to larger ones have no checksums that could be handed on.
        server.namespace.run("ethtool --offload uplink gro off")?;
        let mut ends = server.namespace.enter(|| Sockets::open(checksums))??;
        server.namespace.ip(&["link set tunnel up"])?;
        Ok(Self { sockets: Some(Listener::start(server, move |_| ends.carry())) })
    }

    /// Whether they are the kernel's.
    pub fn are_devices(&self) -> bool {
        self.sockets.is_none()
    }
}

/// Adds the kernel's own tunnel devices.
fn add_devices(server: &Server, checksums: bool) -> Result<()> {
    let (inside, v4, v6) = (&server.namespace, server.address, server.address_ipv6);
    let sum = if checksums { "icsum" } else { "" };
    inside.ip(&[
        // These two come with their modules, and take packets from everywhere.
        "link set tunl0 up",
        "link set sit0 up",
        &format!("link add any6 type ip6tnl mode any local {v6} remote ::"),
        &format!("link add sum type gre local {v4} {sum}"),
        &format!("link add sum6 type ip6gre local {v6} {sum}"),
        "link set any6 up",
        "link set sum up",
        "link set sum6 up",
    ])?;
    inside.run(&format!("ip fou add port {GUE_PORT} gue"))?;
    inside.run(&format!("ip -6 fou add port {GUE_PORT} gue")).map(drop)
}

/// Sockets for every carrier of both families, and the device that what they carry comes in by.
struct Sockets {
    sockets: Vec<(OwnedFd, AddressFamily, Protocol)>,
    device: Tun,
    checksums: bool,
    buffer: Vec<u8>,
    /// Keeps the kernel from answering that nobody listens.
    _port: UdpSocket,
}

impl Sockets {
    fn open(checksums: bool) -> Result<Self> {
        let port = UdpSocket::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), GUE_PORT))?;
        let mut sockets = Vec::new();
        for family in FAMILIES {
            for protocol in CARRIERS {
                let socket = rustix::net::socket_with(
                    family,
                    SocketType::RAW,
                    SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
                    Some(protocol),
                );
                sockets.push((socket?, family, protocol));
            }
        }
        let device = Tun::new_named(Interface::new("tunnel")?).context("/dev/net/tun")?;
        Ok(Self { sockets, device, checksums, buffer: vec![0; 1 << 16], _port: port })
    }

    /// Hands on what comes within a tick.
    fn carry(&mut self) -> io::Result<()> {
        let mut set: Vec<_> =
            self.sockets.iter().map(|(socket, ..)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut set, PollTimeout::from(TICK)) {
            Err(Errno::EINTR) => return Ok(()),
            ready => ready?,
        };
        let ready: Vec<bool> = set.iter().map(|one| one.any().unwrap_or(true)).collect();
        for ((socket, family, protocol), _) in self.sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            loop {
                let length = match rustix::net::recv(socket, &mut self.buffer, RecvFlags::empty()) {
                    Ok((length, _)) => length,
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                };
                let packet = &self.buffer[..length];
                // Sockets of IPv4 get the header before their protocol's, those of IPv6 do not.
                let header =
                    if *family == AddressFamily::INET { usize::from(packet[0] & 0xf) * 4 } else { 0 };
                if let Some(inner) = carried(*protocol, &packet[header..], self.checksums) {
                    self.device.send(inner)?;
                }
            }
        }
        Ok(())
    }
}

/// Returns the packet behind a carrier's headers, unless it is not for this end.
fn carried(carrier: Protocol, packet: &[u8], checksums: bool) -> Option<&[u8]> {
    let number = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    match carrier {
        // RFC 2890: the first bit tells that there is a checksum, four bytes with what goes with it.
        ipproto::GRE if (packet.first()? & 0x80 != 0) == checksums => {
            packet.get(if checksums { 8 } else { 4 }..)
        }
        ipproto::GRE => None,
        // Eight bytes of UDP, four of GUE, and so many words of options as the first of them says.
        ipproto::UDP if number(2)? == GUE_PORT && (number(6)? != 0) == checksums => {
            packet.get(12 + usize::from(packet.get(8)? & 0x1f) * 4..)
        }
        ipproto::UDP => None,
        _ => Some(packet),
    }
}
