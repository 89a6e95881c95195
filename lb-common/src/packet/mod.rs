//! Reading a frame's headers down to a flow: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension
//! headers, TCP, UDP and SCTP; ESP and AH, which follow the connection of their key exchange (`ip_vs_proto_ah_esp.c`).
//!
//! The frame is reached through [`Frame`], so that the same reader runs on a packet in the kernel and on
//! a slice on the host. Not here: what to do with the packet.

mod ipv4;
mod ipv6;
mod transport;

use crate::reason::Reason;
use crate::tuple::Tuple;

pub(crate) use self::ipv4::ipv4;
pub use self::ipv4::read_ipv4;
pub(crate) use self::ipv6::{ipv6, ipv6_header};
pub use self::ipv6::{ipv6_addresses, read_ipv6};
pub(crate) use self::transport::{ICMP_NUMBER, ICMPV6_NUMBER, KEY_EXCHANGE, is_ipsec};

/// Bytes of an Ethernet header without tags.
pub const ETHERNET: usize = 14;
/// Bytes of a VLAN tag.
pub const VLAN_TAG: usize = 4;
/// Bytes of an IPv4 header without options.
pub const IPV4: usize = 20;
/// What only fragments have in IPv4's fragment field: "more fragments", or an offset; not "don't fragment" and the reserved bit.
pub const FRAGMENT_BITS: u16 = 0x3fff;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6: usize = 40;
/// Bytes of a TCP header without options.
pub const TCP: usize = 20;
/// Bytes of an SCTP header and the first chunk's.
pub const SCTP: usize = 16;
/// Bytes of a UDP header.
pub const UDP: usize = 8;
/// IPv6 extension headers that are looked behind.
pub const MAX_EXTENSIONS: usize = 4;
/// Where a transport header may begin at most, so that all of it can be reached.
pub const MAX_TRANSPORT: usize = 200;
/// VLAN tags that are understood; a frame with more is not ours.
pub const MAX_TAGS: usize = 2;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Bounded access to the bytes of a frame.
pub trait Frame {
    /// The `N` bytes from `offset` on, if the frame has them.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]>;

    /// Bytes in the frame.
    fn length(&self) -> usize;

    /// Whether the frame has so many bytes, which are not more than an IPv4 packet's behind a link header.
    fn reaches(&self, bytes: usize) -> bool {
        bytes <= self.length()
    }

    /// Bytes of a packet whose length field says `length` and leaves `header` bytes out; none if that is more than any has.
    #[inline(always)]
    fn whole(&self, header: usize, length: u16) -> Option<u16> {
        length.checked_add(header as u16)
    }
}

impl Frame for [u8] {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<&[u8; N]> {
        self.get(offset..)?.first_chunk()
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// What a frame's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The flow.
    pub tuple: Tuple,
    /// Where the IP header begins: 14, 18 or 22.
    pub network: u16,
    /// Where the transport header begins, or [`Packet::NO_TRANSPORT`] or [`Packet::NO_PORTS`].
    pub transport: u16,
    /// Bytes from the IP header on.
    pub length: u16,
    /// Bytes that counters count: `length`, but of a fragment what it adds to its datagram.
    pub counted: u16,
    /// The type of service, or traffic class.
    pub service_type: u8,
    /// The flag byte of a TCP header; of SCTP the number of an [`Event`]; else 0.
    pub tcp_flags: u8,
    /// Time to live, or hop limit, as it arrived.
    pub time_to_live: u8,
}

impl Packet {
    /// [`Packet::transport`] of a later fragment, which has no transport header.
    pub const NO_TRANSPORT: u16 = 0;
    /// [`Packet::transport`] of a packet of IPsec, which follows the connection of its key exchange.
    pub const NO_PORTS: u16 = 1;

    /// Whether it is a fragment, and not the first: it has no transport header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.transport == Self::NO_TRANSPORT
    }

    /// Whether there are ports in it.
    #[inline(always)]
    pub const fn has_ports(&self) -> bool {
        self.transport > Self::NO_PORTS
    }
}

#[inline(always)]
fn be16(bytes: &[u8; 2]) -> u16 {
    u16::from_be_bytes(*bytes)
}

/// A version of IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The IP protocol number of a packet of this family inside another.
    #[inline(always)]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 41,
        }
    }

    /// The Ethernet protocol number.
    #[inline(always)]
    pub const fn ethertype(self) -> [u8; 2] {
        match self {
            Self::V4 => [0x08, 0x00],
            Self::V6 => [0x86, 0xdd],
        }
    }
}

/// What is behind a frame's Ethernet header and its tags, and where that begins: 14, 18 or 22.
///
/// # Errors
///
/// A reason, if it is nothing that could be balanced.
#[inline(always)]
pub fn network(frame: &(impl Frame + ?Sized)) -> Result<(Family, usize), Reason> {
    let mut offset = ETHERNET;
    let mut kind = be16(frame.bytes(offset - 2).ok_or(Reason::Malformed)?);
    for _ in 0..MAX_TAGS {
        if kind != ETHERTYPE_VLAN && kind != ETHERTYPE_QINQ {
            break;
        }
        offset += VLAN_TAG;
        kind = be16(frame.bytes(offset - 2).ok_or(Reason::Malformed)?);
    }
    match kind {
        ETHERTYPE_IPV4 => Ok((Family::V4, offset)),
        ETHERTYPE_IPV6 => Ok((Family::V6, offset)),
        _ => Err(Reason::NotIp),
    }
}

/// Reads a frame of the plainest and commonest shape: no tag, no IPv4 options, TCP or UDP, whole, and as long as a TCP header
/// wants. The same as [`network`] and [`read_ipv4`] say of it; of any other frame nothing.
#[inline(always)]
pub fn read_plain(frame: &(impl Frame + ?Sized)) -> Option<Packet> {
    const TRANSPORT: usize = ETHERNET + IPV4;
    let header: &[u8; TRANSPORT + TCP] = frame.bytes(0)?;
    let half = |at| u16::from_ne_bytes(field(header, at));
    // The link's protocol number, and behind it version and header length.
    const KIND: u32 = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
    let kind = u32::from_ne_bytes(field(header, 12)) & u32::from_ne_bytes([0xff, 0xff, 0xff, 0]);
    if kind != KIND || half(20) & FRAGMENT_BITS.to_be() != 0 {
        return None;
    }
    let length = u16::from_be(half(16));
    let (protocol, least, tcp_flags) = match header[23] {
        6 => (6, IPV4 + TCP, header[TRANSPORT + 13]),
        17 => (17, IPV4 + UDP, 0),
        _ => return None,
    };
    if usize::from(length) < least || !frame.reaches(ETHERNET + usize::from(length)) {
        return None;
    }
    Some(Packet {
        tuple: Tuple {
            addresses: u64::from_ne_bytes(field(header, 26)),
            ports: u32::from_ne_bytes(field(header, TRANSPORT)),
            protocol,
        },
        network: ETHERNET as u16,
        transport: TRANSPORT as u16,
        length,
        counted: length,
        service_type: header[15],
        tcp_flags,
        time_to_live: header[22],
    })
}

/// Bytes of a header in one piece, so that they are loaded by one instruction; zeros where it ends before.
#[inline(always)]
pub(crate) fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_plain_packet_is_read_as_any_other(
            mut frame in proptest::collection::vec(any::<u8>(), 20..80),
            protocol in prop_oneof![Just(6u8), Just(17), any::<u8>()],
            length in 0u16..80,
            odd in 0u8..8,
        ) {
            frame[12..18].copy_from_slice(&[8, 0, 0x45, 0, 0, length as u8]);
            // Some are tagged, have options, are fragments: all that makes a packet not plain.
            match odd {
                0 => frame[12] = 0x81,
                1 => frame[14] = 0x46,
                2 => {}
                _ => frame.resize(frame.len().max(60), 0),
            }
            if odd > 1 && frame.len() > 23 {
                frame[20] &= 0xc0;
                frame[21] = 0;
                frame[23] = protocol;
            }
            let any = network(&frame[..]).and_then(|(_, network)| read_ipv4(&frame[..], network));
            let plain = read_plain(&frame[..]);
            prop_assert!(plain.is_none() || plain == any.ok());
            let of_a_shape = any.is_ok_and(|packet| {
                packet.network == 14 && packet.transport == 34 && frame.len() >= 54 && packet.tuple.protocol != 132
            });
            prop_assert_eq!(plain.is_some(), of_a_shape);
        }
    }
}
