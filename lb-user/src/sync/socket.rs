//! The sockets that sync messages go through, and the sending of records in messages.
//!
//! IPVS counterpart: `make_send_sock`, `make_receive_sock`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

use lb_common::sync::{Record, Writer};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use nix::{setsockopt_impl, sockopt_impl};
use rtnetlink::packet_route::link::LinkAttribute;
use rustix::net::sockopt::{
    set_ip_add_membership_with_ifindex, set_ip_multicast_loop, set_ip_multicast_ttl, set_ipv6_add_membership,
    set_ipv6_multicast_hops, set_ipv6_multicast_loop, set_socket_recv_buffer_size_force,
    set_socket_reuseaddr,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use crate::director::xdp::routing::Routing;
use crate::director::{Error, Result};
use crate::table::SyncDaemon;

/// Messages that are sent without a pause; a socket's usual buffer holds about ninety.
const BURST: u64 = 32;
/// The pause after them.
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes that wait for a daemon which is busy: some thousand messages.
const BUFFER: usize = 8 << 20;

sockopt_impl!(
    /// Whether packets may be fragmented on their way; 0 is yes.
    DontFragment,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

/// An interface that sync messages go over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its largest packet in bytes.
    pub mtu: u32,
}

impl Interface {
    /// The interface of this name.
    ///
    /// # Errors
    ///
    /// ENODEV when there is none.
    pub fn find(name: &str) -> Result<Self> {
        let links = Routing::open()?.links();
        let links = links.map_err(|error| Error::Unavailable(format!("cannot list interfaces: {error}")))?;
        let named = links.into_iter().find(|link| {
            link.attributes.iter().any(|part| matches!(part, LinkAttribute::IfName(its) if its == name))
        });
        let link = named.ok_or(Error::Errno(libc::ENODEV))?;
        let mtu = link.attributes.iter().find_map(|part| match part {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        Ok(Self { name: name.into(), index: link.header.index, mtu: mtu.unwrap_or(1500) })
    }
}

/// The group and port that a daemon's messages go to, on its interface.
pub fn group(daemon: &SyncDaemon, interface: &Interface) -> SocketAddr {
    match daemon.group.unwrap_or(lb_common::sync::GROUP.into()) {
        IpAddr::V4(group) => SocketAddr::new(group.into(), daemon.port),
        IpAddr::V6(group) => SocketAddrV6::new(group, daemon.port, 0, interface.index).into(),
    }
}

/// A UDP socket for addresses of this family that is bound to an interface and, before that, to nothing.
fn unbound(of: &SocketAddr, interface: &str) -> io::Result<UdpSocket> {
    let family = if of.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket: UdpSocket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?.into();
    setsockopt(&socket, BindToDevice, &interface.into())?;
    Ok(socket)
}

/// A socket that sends to the group, or to anybody on the interface; what comes back to it can be received. With `loops`
/// who listens on this machine gets it, too.
///
/// # Errors
///
/// What the kernel says.
pub fn sender(group: &SocketAddr, interface: &str, ttl: u8, loops: bool) -> io::Result<UdpSocket> {
    let socket = unbound(group, interface)?;
    if group.is_ipv4() {
        bind(&socket, &SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0))?;
        set_ip_multicast_loop(&socket, loops)?;
        set_ip_multicast_ttl(&socket, ttl.into())?;
        setsockopt(&socket, DontFragment, &0)?;
    } else {
        bind(&socket, &SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0))?;
        set_ipv6_multicast_loop(&socket, loops)?;
        set_ipv6_multicast_hops(&socket, ttl.into())?;
    }
    set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    Ok(socket)
}

/// A socket that receives, without waiting, what is sent to the group over the interface.
///
/// # Errors
///
/// What the kernel says.
pub fn receiver(group: &SocketAddr, interface: &Interface) -> io::Result<UdpSocket> {
    let socket = unbound(group, &interface.name)?;
    // Master and backup may both listen.
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, group)?;
    match group {
        SocketAddr::V4(group) => {
            let any = Ipv4Addr::UNSPECIFIED;
            set_ip_add_membership_with_ifindex(&socket, group.ip(), &any, interface.index)?;
        }
        SocketAddr::V6(group) => set_ipv6_add_membership(&socket, group.ip(), interface.index)?,
    }
    set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// An error of a socket as the director's.
pub fn refused(error: &io::Error) -> Error {
    error.raw_os_error().map_or_else(|| Error::Unavailable(error.to_string()), Error::Errno)
}

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Messages.
    pub messages: u64,
    /// Records in them.
    pub records: u64,
    /// Records that are longer than a message may be.
    pub too_long: u64,
}

/// Where messages go, and how.
#[derive(Debug)]
pub struct Line<'a> {
    /// What they go through.
    pub socket: &'a UdpSocket,
    /// To whom.
    pub to: SocketAddr,
    /// From the master with this number.
    pub sync_id: u8,
    /// Bytes of the longest.
    pub max_length: usize,
}

impl Line<'_> {
    /// Sends records in as few messages as they fit, a burst at a time.
    ///
    /// # Errors
    ///
    /// What the kernel says; the records up to those in `sent` are sent then.
    pub fn send<'r>(
        &self,
        records: impl IntoIterator<Item = &'r Record<'r>>,
        sent: &mut Sent,
    ) -> io::Result<()> {
        let mut room = vec![0; self.max_length];
        let mut rest = records.into_iter().peekable();
        while rest.peek().is_some() {
            let Some(mut message) = Writer::new(&mut room) else {
                sent.too_long += rest.by_ref().count() as u64;
                break;
            };
            while rest.next_if(|record| message.push(record)).is_some() {}
            match u64::from(message.count()) {
                // It does not even fit alone.
                0 => {
                    rest.next();
                    sent.too_long += 1;
                }
                count => {
                    self.socket.send_to(message.finish(self.sync_id), self.to)?;
                    sent.messages += 1;
                    sent.records += count;
                    if sent.messages.is_multiple_of(BURST) {
                        sleep(PAUSE);
                    }
                }
            }
        }
        Ok(())
    }
}
