//! The director as an end of flows itself: a client of virtual addresses, or a server.
//!
//! Its programs are raw sockets. One writes whole packets, which take the way of any packet of a program; others get copies of
//! what the stack delivers, after every hook. They are there only where a scenario has use for them, as the stack learns from
//! errors about packets of programs. What the stack would say to packets that no program waits for is kept away:
//! datagrams find a socket bound, and segments that reset what is unknown are dropped, by netfilter.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use lb_common::protocol::Protocol;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt::Ipv6RecvHopLimit,
    sockopt::Ipv6RecvPacketInfo, sockopt::Ipv6RecvTClass,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with,
};

use super::frame::{Frame, ICMPV6};
use super::host::shell;
use super::{packet, pieces};

/// Segments that have no window are those that the stack resets with: those of scenarios have one.
const NO_RESETS: &str = "\
    iptables -t raw -A OUTPUT -p tcp --tcp-flags RST RST -m u32 --u32 '0>>22&0x3c@12&0xffff=0' -j DROP && \
    ip6tables -t raw -A OUTPUT -p tcp --tcp-flags RST RST -m u32 --u32 '52&0xffff=0' -j DROP";

const RESETS: &str = "iptables -t raw -F && ip6tables -t raw -F";

/// What comes by `lo` is handled before the call that sends it returns, if the machine has time for it. It is given this much.
const LOOP: Duration = Duration::from_millis(5);

/// Where frames that came up to programs went on a link.
pub const NO_LINK: packet::Mac = [0; 6];

/// The programs of one director.
pub struct Own {
    /// By family: what writes, and what gets each protocol's packets.
    ipv4: (OwnedFd, Vec<OwnedFd>),
    ipv6: (OwnedFd, Vec<(u8, OwnedFd)>),
    /// Sockets that datagrams come to.
    bound: HashMap<SocketAddr, UdpSocket>,
}

impl Own {
    /// Makes the programs in the namespace that the calling thread is in.
    pub fn new() -> Self {
        shell(NO_RESETS).unwrap();
        let raw = |family, protocol| {
            socket_with(family, SocketType::RAW, SocketFlags::NONBLOCK, Some(protocol)).expect("root")
        };
        let [ipv4, ipv6] = [AddressFamily::INET, AddressFamily::INET6];
        let readers = [ipproto::TCP, ipproto::UDP, ipproto::SCTP, ipproto::ICMP];
        let reader_ipv6 = |protocol| {
            let socket = raw(ipv6, protocol);
            setsockopt(&socket, Ipv6RecvPacketInfo, &true).unwrap();
            setsockopt(&socket, Ipv6RecvHopLimit, &true).unwrap();
            setsockopt(&socket, Ipv6RecvTClass, &true).unwrap();
            (protocol.as_raw().get() as u8, socket)
        };
        let readers_ipv6 = [ipproto::TCP, ipproto::UDP, ipproto::SCTP, ipproto::ICMPV6];
        Self {
            ipv4: (raw(ipv4, ipproto::RAW), readers.map(|protocol| raw(ipv4, protocol)).into()),
            ipv6: (raw(ipv6, ipproto::RAW), readers_ipv6.map(reader_ipv6).into()),
            bound: HashMap::new(),
        }
    }

    /// Has datagrams for an address be waited for.
    pub fn listen(&mut self, at: SocketAddr) {
        let bind = || UdpSocket::bind(at).expect("an address of the director");
        self.bound.entry(at).or_insert_with(bind);
    }

    /// Sends a packet as a program does that waits for an answer.
    pub fn send(&mut self, protocol: Protocol, from: SocketAddr, packet: &[u8]) {
        if protocol == Protocol::Udp {
            self.listen(from);
        }
        let (_, to) = packet::addresses(packet);
        let writer = if to.is_ipv4() { &self.ipv4.0 } else { &self.ipv6.0 };
        match sendto(writer, packet, SendFlags::empty(), &SocketAddr::new(to, 0)) {
            // A packet that is dropped on its way out, or is larger than the stack has learned that its way takes.
            Ok(_) | Err(Errno::PERM | Errno::MSGSIZE) => {}
            Err(why) => panic!("{from} to {to}: {why}"),
        }
        sleep(LOOP);
    }

    /// What programs have got, but for what the stack says to its neighbours.
    pub fn received(&self) -> Vec<Frame> {
        let mut buffer = [0; 2048];
        let mut packets = Vec::new();
        for reader in &self.ipv4.1 {
            while let Ok((length, _)) = recv(reader, &mut buffer, RecvFlags::empty()) {
                packets.push(buffer[..length].to_vec());
            }
        }
        for (protocol, reader) in &self.ipv6.1 {
            while let Some(packet) = read_ipv6(*protocol, reader) {
                packets.push(packet);
            }
        }
        let frames: Vec<_> = packets.iter().map(|packet| packet::frame([NO_LINK, NO_LINK], packet)).collect();
        pieces::read(&frames)
    }
}

impl Drop for Own {
    /// In the namespace that the programs are in, which the calling thread is in.
    fn drop(&mut self) {
        let _ = shell(RESETS);
    }
}

/// A packet of IPv6, whose header the kernel keeps: made anew from what it tells of it.
fn read_ipv6(protocol: u8, reader: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = [0; 2048];
    let mut room = nix::cmsg_space!([u8; 128]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<SockaddrIn6>(reader.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::empty()).ok()?;
    let (mut to, mut hops, mut class) = (None, 0, 0);
    for told in message.cmsgs().unwrap() {
        match told {
            ControlMessageOwned::Ipv6PacketInfo(info) => to = Some(info.ipi6_addr.s6_addr),
            ControlMessageOwned::Ipv6HopLimit(limit) => hops = limit as u8,
            ControlMessageOwned::Ipv6TClass(told) => class = told as u8,
            _ => {}
        }
    }
    let (from, to, length) = (message.address?.ip(), Ipv6Addr::from(to?), message.bytes);
    let mut body = buffer[..length].to_vec();
    if let (ICMPV6, [_, _, checksum @ ..]) = (protocol, &mut body[..]) {
        // The kernel has looked at it, or knows that it is still to be computed: it gives no others away.
        checksum[..2].fill(0);
        let sum = packet::pseudo_header((from.into(), to.into()), protocol, length).with(&body).finish();
        body[2..4].copy_from_slice(&sum);
    }
    let [above, below] = (length as u16).to_be_bytes();
    let header = [0x60 | class >> 4, class << 4, 0, 0, above, below, protocol, hops];
    Some([&header[..], &from.octets(), &to.octets(), &body].concat())
}
