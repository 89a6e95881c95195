//! IPv6 headers, with extension headers.

use super::transport::{AUTHENTICATION, Behind, ICMPV6_NUMBER};
use super::{Frame, IPV6, MAX_EXTENSIONS, MAX_TRANSPORT, Packet, be16};
use crate::reason::Reason;
use crate::tuple::{self, Tuple, handle};

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
    if protocol == ICMPV6_NUMBER {
        return Err(Reason::Icmp);
    }
    let length = (end - network) as u16;
    let later = FRAGMENTS && fragment.is_some_and(|fragment| fragment.is_later);
    let behind = Behind::read::<FRAGMENTS>(frame, protocol, transport, end, later)?;
    let (source, destination) = ipv6_addresses(frame, network).ok_or(Reason::Malformed)?;
    let tuple = Tuple::from_raw(
        behind.protocol | tuple::IPV6,
        (handle(source, seed), 0),
        (handle(destination, seed), 0),
    );
    let packet = Packet {
        tuple: Tuple { ports: behind.ports, ..tuple },
        network: network as u16,
        transport: behind.transport,
        length,
        counted: match fragment {
            _ if later => (end - transport) as u16,
            // The whole datagram has no fragment header.
            Some(_) if FRAGMENTS => length - FRAGMENT_HEADER as u16,
            _ => length,
        },
        service_type,
        tcp_flags: behind.tcp_flags,
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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::{Family, network};
    use super::*;

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
