//! Reading a frame's headers down to a flow: Ethernet, up to two VLAN tags, IPv4 with options, IPv6 with extension
//! headers, TCP, UDP and SCTP; ESP and AH, which follow the connection of their key exchange (`ip_vs_proto_ah_esp.c`).
//!
//! The frame is reached through [`Frame`], so that the same reader runs on a packet in the kernel and on
//! a slice on the host. Not here: what to do with the packet.

use crate::icmp;
use crate::protocol::Protocol;
use crate::protocol::sctp::Event;
use crate::reason::Reason;
use crate::tuple::{self, Tuple, handle};

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

/// The type of a chunk.
const COOKIE_ACK: u8 = 11;

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

/// Reads the headers from an IPv4 header on that begins at `network`.
///
/// # Errors
///
/// The reason why the frame has no flow that could be balanced. Fragments have none, even the first.
#[inline(always)]
pub fn read_ipv4(frame: &(impl Frame + ?Sized), network: usize) -> Result<Packet, Reason> {
    ipv4::<false>(frame, network)
}

/// As [`read_ipv4`], of what has no ports too: fragments and IPsec.
#[inline(always)]
pub(crate) fn ipv4<const FRAGMENTS: bool>(
    frame: &(impl Frame + ?Sized),
    network: usize,
) -> Result<Packet, Reason> {
    let header: &[u8; IPV4] = frame.bytes(network).ok_or(Reason::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = frame.whole(0, u16::from_be_bytes([header[2], header[3]])).ok_or(Reason::Malformed)?;
    if header[0] >> 4 != 4 || header_length < IPV4 {
        return Err(Reason::Malformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT_BITS;
    if !FRAGMENTS && fragment != 0 {
        return Err(Reason::Fragment);
    }
    let later = FRAGMENTS && fragment & 0x1fff != 0;
    let protocol = header[9];
    if protocol == icmp::PROTOCOL {
        return Err(Reason::Icmp);
    }
    let transport = network + header_length;
    let follows = FRAGMENTS && is_ipsec(protocol);
    let behind = if follows { 0 } else { transport_length(protocol)? };
    if usize::from(length) < header_length + if later { 0 } else { behind }
        || network + usize::from(length) > frame.length()
    {
        return Err(Reason::Malformed);
    }
    let (ports, tcp_flags) = if follows {
        (KEY_EXCHANGE, 0)
    } else if later {
        ([0; 4], 0)
    } else {
        read_transport(frame, protocol, transport)?
    };
    Ok(Packet {
        tuple: Tuple {
            addresses: u64::from_ne_bytes(field(header, 12)),
            ports: u32::from_ne_bytes(ports),
            protocol: if follows { Protocol::Udp.number() } else { protocol },
        },
        network: network as u16,
        transport: place(transport, later, follows),
        length,
        counted: if later { length - header_length as u16 } else { length },
        service_type: header[1],
        tcp_flags,
        time_to_live: header[8],
    })
}

/// Reads the headers from an IPv6 header on that begins at `network`, behind extension headers too. `seed` is that of the
/// addresses' handles.
///
/// # Errors
///
/// As for [`read_ipv4`]. A fragment header that says the packet is whole (an atomic fragment) makes none.
#[inline(always)]
pub fn read_ipv6(frame: &(impl Frame + ?Sized), network: usize, seed: u64) -> Result<Packet, Reason> {
    ipv6::<false>(frame, network, seed).map(|(packet, _)| packet)
}

/// As [`read_ipv6`], of what has no ports too; and of a fragment its identification, in network order, loaded natively.
#[inline(always)]
pub(crate) fn ipv6<const FRAGMENTS: bool>(
    frame: &(impl Frame + ?Sized),
    network: usize,
    seed: u64,
) -> Result<(Packet, u32), Reason> {
    let Ipv6Header { protocol, transport, end, service_type, time_to_live, fragment } =
        ipv6_header::<FRAGMENTS>(frame, network)?;
    if protocol == icmp::PROTOCOL_IPV6 {
        return Err(Reason::Icmp);
    }
    let length = (end - network) as u16;
    let later = FRAGMENTS && fragment.is_some_and(|fragment| fragment.is_later);
    let follows = FRAGMENTS && is_ipsec(protocol);
    let behind = if follows { 0 } else { transport_length(protocol)? };
    if transport + if later { 0 } else { behind } > end || end > frame.length() {
        return Err(Reason::Malformed);
    }
    let (source, destination) = ipv6_addresses(frame, network).ok_or(Reason::Malformed)?;
    let (ports, tcp_flags) = if follows {
        (KEY_EXCHANGE, 0)
    } else if later {
        ([0; 4], 0)
    } else {
        read_transport(frame, protocol, transport)?
    };
    let protocol = if follows { Protocol::Udp.number() } else { protocol };
    let tuple =
        Tuple::from_raw(protocol | tuple::IPV6, (handle(source, seed), 0), (handle(destination, seed), 0));
    let packet = Packet {
        tuple: Tuple { ports: u32::from_ne_bytes(ports), ..tuple },
        network: network as u16,
        transport: place(transport, later, follows),
        length,
        counted: match fragment {
            _ if later => (end - transport) as u16,
            // The whole datagram has no fragment header.
            Some(_) if FRAGMENTS => length - FRAGMENT_HEADER as u16,
            _ => length,
        },
        service_type,
        tcp_flags,
        time_to_live,
    };
    Ok((packet, fragment.map_or(0, |fragment| fragment.identification)))
}

/// What an IPv6 header and its extension headers say.
pub(crate) struct Ipv6Header {
    pub protocol: u8,
    /// Where begins what is behind them.
    pub transport: usize,
    /// Where the packet ends, which the frame need not have.
    pub end: usize,
    pub service_type: u8,
    pub time_to_live: u8,
    fragment: Option<FragmentHeader>,
}

/// Reads an IPv6 header that begins at `network`, and its extension headers.
#[inline(always)]
pub(crate) fn ipv6_header<const FRAGMENTS: bool>(
    frame: &(impl Frame + ?Sized),
    network: usize,
) -> Result<Ipv6Header, Reason> {
    let header: &[u8; 8] = frame.bytes(network).ok_or(Reason::Malformed)?;
    let [a, b, _, _, e, f, protocol, time_to_live] = *header;
    if a >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    // A packet of more than 65,535 bytes would say so in an option, and have a length of 0.
    let length = frame.whole(IPV6, be16(&[e, f])).ok_or(Reason::Malformed)?;
    let (protocol, transport, fragment) = skip_extensions::<FRAGMENTS>(frame, protocol, network + IPV6)?;
    let end = network + usize::from(length);
    Ok(Ipv6Header { protocol, transport, end, service_type: a << 4 | b >> 4, time_to_live, fragment })
}

/// Source and destination address of an IPv6 header, each loaded natively as two words.
#[inline(always)]
pub fn ipv6_addresses(frame: &(impl Frame + ?Sized), network: usize) -> Option<([u64; 2], [u64; 2])> {
    let bytes: &[u8; 32] = frame.bytes(network + 8)?;
    let (words, _) = bytes.as_chunks::<8>();
    let [a, b, c, d] = [words[0], words[1], words[2], words[3]].map(u64::from_ne_bytes);
    Some(([a, b], [c, d]))
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ENCRYPTION: u8 = 50;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Bytes of an IPv6 fragment header.
const FRAGMENT_HEADER: usize = 8;

/// What a fragment header says.
#[derive(Clone, Copy)]
struct FragmentHeader {
    /// Behind it is no header but contents.
    is_later: bool,
    identification: u32,
}

/// The protocol behind extension headers, where it begins, and what a fragment header among them said.
#[inline(always)]
fn skip_extensions<const FRAGMENTS: bool>(
    frame: &(impl Frame + ?Sized),
    mut protocol: u8,
    mut offset: usize,
) -> Result<(u8, usize, Option<FragmentHeader>), Reason> {
    let mut fragment = None;
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(protocol, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) {
            return Ok((protocol, offset, fragment));
        }
        let [next, length, c, d]: [u8; 4] = *frame.bytes(offset).ok_or(Reason::Malformed)?;
        let place = be16(&[c, d]);
        let length = match protocol {
            // An offset, or more to come.
            FRAGMENT if place & 0xfff9 != 0 => {
                if !FRAGMENTS {
                    return Err(Reason::Fragment);
                }
                let identification = frame.bytes(offset + 4).ok_or(Reason::Malformed)?;
                let identification = u32::from_ne_bytes(*identification);
                if place & 0xfff8 != 0 {
                    let fragment = Some(FragmentHeader { is_later: true, identification });
                    return Ok((next, offset + FRAGMENT_HEADER, fragment));
                }
                fragment = Some(FragmentHeader { is_later: false, identification });
                FRAGMENT_HEADER
            }
            FRAGMENT => FRAGMENT_HEADER,
            AUTHENTICATION => usize::from(length) * 4 + 8,
            _ => usize::from(length) * 8 + 8,
        };
        offset += length;
        protocol = next;
        if offset > MAX_TRANSPORT {
            return Err(Reason::ExtensionHeaders);
        }
    }
    match protocol {
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => {
            Err(Reason::ExtensionHeaders)
        }
        _ => Ok((protocol, offset, fragment)),
    }
}

/// [`Packet::transport`] of a packet, a later fragment or not, that follows another's connection or not.
#[inline(always)]
const fn place(transport: usize, later: bool, follows: bool) -> u16 {
    if later {
        Packet::NO_TRANSPORT
    } else if follows {
        Packet::NO_PORTS
    } else {
        transport as u16
    }
}

/// The ports of the key exchange of IPsec, 500 both, whose connection packets of ESP and AH follow.
#[doc(alias = "PORT_ISAKMP")]
pub(crate) const KEY_EXCHANGE: [u8; 4] = [0x01, 0xf4, 0x01, 0xf4];

/// Whether a protocol is one of IPsec. Of IPv6, AH is an extension header, as to IPVS.
#[inline(always)]
pub(crate) const fn is_ipsec(protocol: u8) -> bool {
    protocol == ENCRYPTION || protocol == AUTHENTICATION
}

/// Bytes that the header of a transport protocol has at least.
#[inline(always)]
fn transport_length(protocol: u8) -> Result<usize, Reason> {
    match protocol {
        6 => Ok(TCP),
        17 => Ok(UDP),
        132 => Ok(SCTP),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The ports and the TCP flags of a transport header.
#[inline(always)]
fn read_transport(
    frame: &(impl Frame + ?Sized),
    protocol: u8,
    offset: usize,
) -> Result<([u8; 4], u8), Reason> {
    if protocol == Protocol::Tcp.number() {
        let tcp: &[u8; TCP] = frame.bytes(offset).ok_or(Reason::Malformed)?;
        Ok(([tcp[0], tcp[1], tcp[2], tcp[3]], tcp[13]))
    } else if protocol == Protocol::Sctp.number() {
        let sctp: &[u8; SCTP] = frame.bytes(offset).ok_or(Reason::Malformed)?;
        // The chunk behind a COOKIE ACK, which has nothing in it, may abort. That behind a COOKIE ECHO is not looked for.
        let next = match frame.bytes::<{ SCTP + 1 }>(offset) {
            Some(more) if sctp[12] == COOKIE_ACK => Some(more[SCTP]),
            _ => None,
        };
        Ok(([sctp[0], sctp[1], sctp[2], sctp[3]], Event::of(sctp[12], next) as u8))
    } else {
        let udp: &[u8; UDP] = frame.bytes(offset).ok_or(Reason::Malformed)?;
        Ok(([udp[0], udp[1], udp[2], udp[3]], 0))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

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

    /// An IPv6 packet of UDP port 1 to 2, behind these headers: kind and content from the third byte on.
    fn behind(headers: &[(u8, &[u8])]) -> Vec<u8> {
        let mut chain = Vec::new();
        let mut kinds = headers.iter().map(|(kind, _)| *kind).chain([17]);
        let first = kinds.next().unwrap_or(17);
        for ((kind, content), next) in headers.iter().zip(kinds) {
            let length = content.len() + 2;
            let units = match *kind {
                FRAGMENT => 0,
                AUTHENTICATION => length / 4 - 2,
                _ => length / 8 - 1,
            };
            chain.extend([next, units as u8]);
            chain.extend(*content);
        }
        chain.extend([0, 1, 0, 2, 0, 8, 0, 0]);
        let mut frame = std::vec![0; 12];
        frame.extend([0x86, 0xdd, 0x6a, 0xb0, 0, 0]);
        frame.extend((chain.len() as u16).to_be_bytes());
        frame.extend([first, 64]);
        frame.extend([0xfd; 16]);
        frame.extend([0xfe; 16]);
        frame.extend(chain);
        frame
    }

    fn read(frame: &[u8]) -> Result<Packet, Reason> {
        let (family, at) = network(frame)?;
        assert_eq!((family, at), (Family::V6, 14));
        read_ipv6(frame, at, 99)
    }

    #[test]
    fn an_ipv6_header_is_read() {
        let packet = read(&behind(&[])).unwrap();
        let ports = (packet.tuple.source_port(), packet.tuple.destination_port());
        assert_eq!((packet.tuple.transport(), packet.tuple.is_ipv6(), ports), (17, true, (1, 2)));
        assert_eq!((packet.length, packet.service_type, packet.time_to_live), (48, 0xab, 64));
        assert_eq!((packet.network, packet.transport), (14, 54));
        assert_eq!(packet.tuple.raw_source(), handle([u64::from_ne_bytes([0xfd; 8]); 2], 99));
        assert_eq!(packet.tuple.raw_destination(), handle([u64::from_ne_bytes([0xfe; 8]); 2], 99));
    }

    #[test]
    fn extension_headers_are_skipped_and_fragments_refused() {
        let (short, long): (&[u8], &[u8]) = (&[0; 6], &[0; 38]);
        let at = |headers: &[(u8, &[u8])]| {
            read(&behind(headers)).map(|packet| (packet.tuple.ports, packet.transport))
        };
        let ports = u32::from_ne_bytes([0, 1, 0, 2]);
        assert_eq!(at(&[(HOP_BY_HOP, short)]), Ok((ports, 62)));
        assert_eq!(
            at(&[(HOP_BY_HOP, short), (ROUTING, long), (DESTINATION_OPTIONS, short)]),
            Ok((ports, 110))
        );
        assert_eq!(at(&[(AUTHENTICATION, &[0; 22])]), Ok((ports, 78)));
        assert_eq!(at(&[(FRAGMENT, &[0, 0, 1, 2, 3, 4])]), Ok((ports, 62)));
        assert_eq!(at(&[(FRAGMENT, &[0, 1, 1, 2, 3, 4])]), Err(Reason::Fragment));
        assert_eq!(at(&[(FRAGMENT, &[0, 8, 1, 2, 3, 4])]), Err(Reason::Fragment));
        assert_eq!(at(&[(ROUTING, &[0; 254])]), Err(Reason::ExtensionHeaders));
        assert_eq!(at(&[(DESTINATION_OPTIONS, short); 5]), Err(Reason::ExtensionHeaders));
    }

    #[test]
    fn a_truncated_ipv6_packet_is_malformed() {
        let whole = behind(&[(HOP_BY_HOP, &[0; 6])]);
        for length in 14..whole.len() {
            assert_eq!(read(&whole[..length]), Err(Reason::Malformed), "{length} bytes");
        }
    }
}
