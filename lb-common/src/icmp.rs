//! ICMP: errors about our connections, translated on their way through, and errors that we send ourselves.
//!
//! An error quotes the packet that it is about, from the IP header on. How a flow is found by the quoted header is the
//! program's part. IPVS counterpart: `ip_vs_in_icmp`, `ip_vs_out_icmp`, `ip_vs_nat_icmp`, and those for IPv6.
//! Sources: RFC 792, RFC 1191, RFC 1812 and RFC 4443 for what is quoted and when there is no error about a packet.

use crate::checksum::{Delta, Sum};
use crate::forward::End;
use crate::packet::{
    self, Frame, ICMP_NUMBER, ICMPV6_NUMBER, IPV4, IPV6, KEY_EXCHANGE, MAX_TRANSPORT, field, is_ipsec,
};
use crate::protocol::{Protocol, sctp, tcp};
use crate::reason::Reason;
use crate::tuple::{self, Tuple, handle};

/// Bytes of an ICMP header.
pub const ICMP: usize = 8;
/// Bytes that an error of ours has in front of what it quotes.
pub const ERROR: usize = IPV4 + ICMP;
/// The same of IPv6.
pub const ERROR_IPV6: usize = IPV6 + ICMP;
/// How long an error of ours is at most, as those of the Linux stack.
const LONGEST: u16 = 576;
/// The same of IPv6: the smallest MTU that a link may have.
const LONGEST_IPV6: u16 = 1280;

const UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const TIME_EXCEEDED: u8 = 11;

const UNREACHABLE_IPV6: u8 = 1;
const TOO_BIG_IPV6: u8 = 2;
const TIME_EXCEEDED_IPV6: u8 = 3;
/// From here on ICMPv6 has messages that are no errors.
const FIRST_OTHER_IPV6: u8 = 128;

/// An error message that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Where the IP header begins.
    pub network: u16,
    /// Where the ICMP header begins.
    pub transport: u16,
    /// Where the quoted IP header begins.
    pub quoted: u16,
    /// Where the quoted ports begin, or [`NO_PORTS`].
    pub ports: u16,
    /// Bytes of the message from the IP header on.
    pub length: u16,
    /// Its type-of-service byte, or traffic class.
    pub service_type: u8,
    /// Its time to live, or hop limit.
    pub time_to_live: u8,
    /// The flow of the quoted packet.
    pub tuple: Tuple,
}

/// Reads an ICMP message that may be about a connection, from an IPv4 header on that begins at `network`.
///
/// # Errors
///
/// [`Reason::Icmp`] for a message that is about no flow, or of a type that IPVS leaves alone.
#[inline(always)]
pub fn read(frame: &(impl Frame + ?Sized), network: usize) -> Result<Received, Reason> {
    let header: &[u8; IPV4] = frame.bytes(network).ok_or(Reason::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let length = u16::from_be_bytes([header[2], header[3]]);
    let (service_type, time_to_live) = (header[1], header[8]);
    if header[0] >> 4 != 4 || header_length < IPV4 || header[9] != ICMP_NUMBER {
        return Err(Reason::Malformed);
    }
    let transport = network + header_length;
    let quoted = transport + ICMP;
    if usize::from(length) < header_length + ICMP + IPV4 + 8 || network + usize::from(length) > frame.length()
    {
        return Err(Reason::Icmp);
    }
    let [kind, ..]: [u8; ICMP] = *frame.bytes(transport).ok_or(Reason::Malformed)?;
    if kind != UNREACHABLE && kind != SOURCE_QUENCH && kind != TIME_EXCEEDED {
        return Err(Reason::Icmp);
    }
    let header: &[u8; IPV4] = frame.bytes(quoted).ok_or(Reason::Icmp)?;
    // A later fragment has no ports.
    if header[0] >> 4 != 4 || header[0] & 0x0f < 5 || u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0
    {
        return Err(Reason::Icmp);
    }
    let ports = quoted + usize::from(header[0] & 0x0f) * 4;
    let follows = is_ipsec(header[9]);
    let tuple = flow(header, *frame.bytes(ports).ok_or(Reason::Icmp)?);
    Ok(Received {
        network: network as u16,
        transport: transport as u16,
        quoted: quoted as u16,
        ports: if follows { NO_PORTS } else { ports as u16 },
        length,
        service_type,
        time_to_live,
        tuple,
    })
}

/// [`Received::ports`] of a packet of IPsec.
pub const NO_PORTS: u16 = 0;

/// The flow of a quoted IPv4 header, and the beginning of what is behind it; of IPsec that of its key exchange.
#[inline(always)]
pub(crate) fn flow(header: &[u8; IPV4], behind: [u8; 8]) -> Tuple {
    let follows = is_ipsec(header[9]);
    let ports = if follows { KEY_EXCHANGE } else { field(&behind, 0) };
    Tuple {
        addresses: u64::from_ne_bytes(field(header, 12)),
        ports: u32::from_ne_bytes(ports),
        protocol: if follows { Protocol::Udp.number() } else { header[9] },
    }
}

/// As [`read`], of ICMPv6; `seed` is that of the addresses' handles.
///
/// # Errors
///
/// As there.
#[inline(always)]
pub fn read_ipv6(frame: &(impl Frame + ?Sized), network: usize, seed: u64) -> Result<Received, Reason> {
    let outer = packet::ipv6_header::<false>(frame, network)?;
    let transport = outer.transport;
    let quoted = transport + ICMP;
    if outer.protocol != ICMPV6_NUMBER || quoted + IPV6 + 8 > outer.end || outer.end > frame.length() {
        return Err(Reason::Icmp);
    }
    let [kind, ..]: [u8; ICMP] = *frame.bytes(transport).ok_or(Reason::Malformed)?;
    if kind >= FIRST_OTHER_IPV6 {
        return Err(Reason::Icmp);
    }
    if quoted + IPV6 > MAX_TRANSPORT {
        return Err(Reason::ExtensionHeaders);
    }
    let inner = packet::ipv6_header::<false>(frame, quoted).map_err(|_| Reason::Icmp)?;
    let ports = inner.transport;
    let behind: [u8; 8] = *frame.bytes(ports).ok_or(Reason::Icmp)?;
    let follows = is_ipsec(inner.protocol);
    let (source, destination) = packet::ipv6_addresses(frame, quoted).ok_or(Reason::Icmp)?;
    let protocol = if follows { Protocol::Udp.number() } else { inner.protocol } | tuple::IPV6;
    let flow_ports = if follows { KEY_EXCHANGE } else { field(&behind, 0) };
    let tuple = Tuple::from_raw(protocol, (handle(source, seed), 0), (handle(destination, seed), 0));
    Ok(Received {
        network: network as u16,
        transport: transport as u16,
        quoted: quoted as u16,
        ports: if follows { NO_PORTS } else { ports as u16 },
        length: (outer.end - network) as u16,
        service_type: outer.service_type,
        time_to_live: outer.time_to_live,
        tuple: Tuple { ports: u32::from_ne_bytes(flow_ports), ..tuple },
    })
}

/// Replaces an address of an IPv4 header, whatever it was, and mends the header's checksum.
#[inline(always)]
pub fn replace_address(header: &mut [u8; IPV4], end: End, address: [u8; 4]) {
    let at = if end == End::Source { 12 } else { 16 };
    let old = [header[at], header[at + 1], header[at + 2], header[at + 3]];
    crate::forward::translate_network(header, end, address, Delta::NONE.replace(old, address));
}

/// Replaces a quoted port. Returns what that makes of the ICMP checksum; the quoted addresses make nothing of it, as
/// the quoted header's own checksum takes that back. The quoted transport checksum stays as it was, as in IPVS.
#[inline(always)]
pub fn replace_port(ports: &mut [u8; 4], end: End, port: [u8; 2]) -> Delta {
    let at = if end == End::Source { 0 } else { 2 };
    let old = [ports[at], ports[at + 1]];
    ports[at] = port[0];
    ports[at + 1] = port[1];
    Delta::NONE.replace(old, port)
}

/// Mends the checksum of an ICMP header.
#[inline(always)]
pub fn mend(header: &mut [u8; ICMP], delta: Delta) {
    let checksum = delta.apply([header[2], header[3]]);
    header[2] = checksum[0];
    header[3] = checksum[1];
}

/// What the addresses and the port that are replaced in a message of ICMPv6 make of its checksum, which covers the address
/// around it as well as what it quotes. Addresses loaded natively as two words.
#[inline(always)]
pub fn delta_ipv6(outside: ([u64; 2], [u64; 2]), inside: ([u64; 2], [u64; 2]), port: Delta) -> Delta {
    [outside, inside].into_iter().fold(port, |delta, ([a, b], [c, d])| {
        let delta = delta.replace(a.to_ne_bytes(), c.to_ne_bytes());
        delta.replace(b.to_ne_bytes(), d.to_ne_bytes())
    })
}

/// The sum of what the checksum of an ICMPv6 message of this length covers besides it.
#[inline(always)]
pub fn pseudo_header(source: [u64; 2], destination: [u64; 2], length: u16) -> Sum {
    let [a, b, c, d] = [source[0], source[1], destination[0], destination[1]].map(u64::to_ne_bytes);
    let addresses = Sum::ZERO.with(&a).with(&b).with(&c).with(&d);
    addresses.with(&length.to_be_bytes()).with(&[0, ICMPV6_NUMBER])
}

/// Whether the sender of a packet that belongs to nothing may be told so: what aborts a connection is not answered.
/// `flags` are those of [`packet::Packet::tcp_flags`].
#[inline(always)]
pub const fn may_be_refused(protocol: u8, flags: u8) -> bool {
    if protocol == Protocol::Tcp.number() {
        flags & tcp::RST == 0
    } else {
        protocol != Protocol::Sctp.number() || flags != sctp::Event::Abort as u8
    }
}

/// Type and code of the error that tells a client why its packet was not forwarded, if one does.
#[inline(always)]
pub const fn error_for(reason: Reason, ipv6: bool) -> Option<(u8, u8)> {
    match reason {
        // IPVS says "port unreachable" for TCP too.
        Reason::NoDestination | Reason::ReplyRefused if ipv6 => Some((UNREACHABLE_IPV6, 4)),
        Reason::NoDestination | Reason::ReplyRefused => Some((UNREACHABLE, 3)),
        // "Address unreachable", as from IPVS.
        Reason::NoRoute if ipv6 => Some((UNREACHABLE_IPV6, 3)),
        Reason::NoRoute => Some((UNREACHABLE, 1)),
        Reason::TooBig if ipv6 => Some((TOO_BIG_IPV6, 0)),
        Reason::TooBig => Some((UNREACHABLE, 4)),
        Reason::TimeExceeded if ipv6 => Some((TIME_EXCEEDED_IPV6, 0)),
        Reason::TimeExceeded => Some((TIME_EXCEEDED, 0)),
        _ => None,
    }
}

/// Whether an ICMP error says that a packet is too large for the next link.
#[inline(always)]
pub const fn is_too_big(kind: u8, code: u8) -> bool {
    kind == UNREACHABLE && code == 4
}

/// Whether there may be an error about a packet from this address: one that is a single host's.
#[inline(always)]
pub const fn may_be_told(source: [u8; 4]) -> bool {
    source[0] != 0 && source[0] != 127 && source[0] < 224
}

/// As [`may_be_told`], of IPv6, loaded natively as two words.
#[inline(always)]
pub const fn may_be_told_ipv6(source: [u64; 2]) -> bool {
    // Neither multicast, nor nobody's, nor the sender's own.
    source[0].to_ne_bytes()[0] != 0xff && (source[0] != 0 || u64::from_be(source[1]) > 1)
}

/// How many bytes of a packet of this length an error of ours quotes.
#[inline(always)]
pub const fn quoted(length: u16, ipv6: bool) -> u16 {
    let most = if ipv6 { LONGEST_IPV6 - ERROR_IPV6 as u16 } else { LONGEST - ERROR as u16 };
    if length < most { length } else { most }
}

/// What an error of ours says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The MTU of the next link where the packet was too large for that, else 0.
    pub mtu: u16,
    /// Bytes that are quoted.
    pub quoted: u16,
    /// The type-of-service byte of the packet that it is about.
    pub service_type: u8,
}

/// Writes IPv4 and ICMP header of an error. `quote` is the sum over what is quoted. Addresses in network order.
#[inline(always)]
pub fn write_error(
    header: &mut [u8; ERROR],
    source: [u8; 4],
    destination: [u8; 4],
    identification: u16,
    message: Message,
    quote: Sum,
) {
    let length = ERROR as u16 + message.quoted;
    header[0] = 0x45;
    // Internetwork control, and what the packet itself asked for.
    header[1] = message.service_type & 0x1e | 0xc0;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].copy_from_slice(&[0, 0]);
    header[8] = 64;
    header[9] = ICMP_NUMBER;
    header[10..12].copy_from_slice(&[0, 0]);
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    let checksum = Sum::ZERO.with(&header[..IPV4]).finish();
    header[10..12].copy_from_slice(&checksum);
    header[20] = message.kind;
    header[21] = message.code;
    header[22..26].copy_from_slice(&[0, 0, 0, 0]);
    header[26..28].copy_from_slice(&message.mtu.to_be_bytes());
    let checksum = quote.with(&header[IPV4..]).finish();
    header[22..24].copy_from_slice(&checksum);
}

/// Writes IPv6 and ICMPv6 header of an error, as [`write_error`]. Addresses loaded natively as two words.
#[inline(always)]
pub fn write_error_ipv6(
    header: &mut [u8; ERROR_IPV6],
    source: [u64; 2],
    destination: [u64; 2],
    message: Message,
    quote: Sum,
) {
    let length = ICMP as u16 + message.quoted;
    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = ICMPV6_NUMBER;
    header[7] = 64;
    let words = [source[0], source[1], destination[0], destination[1]];
    for (place, word) in header[8..].as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_ne_bytes();
    }
    header[40] = message.kind;
    header[41] = message.code;
    header[42..46].copy_from_slice(&[0, 0, 0, 0]);
    header[46..48].copy_from_slice(&message.mtu.to_be_bytes());
    let sum = quote.and(pseudo_header(source, destination, length));
    let checksum = sum.with(&header[IPV6..]).finish();
    header[42..44].copy_from_slice(&checksum);
}

/// A limit on errors: so many a second, and a twentieth of that at once. (The Linux stack's own limit is 1,000 a second
/// and 50 at once, `icmp_msgs_per_sec` and `icmp_msgs_burst`.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Limit {
    /// What may still be sent, in parts of an error: as many as there are ticks in a second.
    credit: u32,
    /// The tick of the last look.
    looked: u32,
}

impl Limit {
    /// Takes leave for one error at this tick.
    #[inline(always)]
    pub fn take(&mut self, now: u32, rate: u32, ticks_per_second: u32) -> bool {
        let elapsed = now.wrapping_sub(self.looked);
        // The clock may seem to step back by a tick, which must not look like all of time.
        let elapsed = if elapsed.wrapping_neg() <= ticks_per_second { 0 } else { elapsed };
        let most = (rate as u64 * ticks_per_second as u64).div_ceil(20).max(ticks_per_second as u64);
        let credit =
            (self.credit as u64 + elapsed as u64 * rate as u64).min(most).min(u32::MAX as u64) as u32;
        self.looked = now;
        let granted = rate != 0 && credit >= ticks_per_second;
        self.credit = if granted { credit - ticks_per_second } else { credit };
        granted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_second_has_so_many_errors_and_a_moment_a_twentieth() {
        let mut limit = Limit::default();
        let at_once = (0..1000).filter(|_| limit.take(7_000_000, 1000, 250)).count();
        assert_eq!(at_once, 50);
        let in_a_second =
            (1..=250).map(|tick| (0..100).filter(|_| limit.take(7_000_000 + tick, 1000, 250)).count());
        assert_eq!(in_a_second.sum::<usize>(), 1000);
        assert!(!limit.take(7_000_249, 1000, 250), "a step back gives nothing");
        assert!(!limit.take(9_000_000, 0, 250));
        // However few a second, one at least.
        assert!(limit.take(10_000_000, 1, 250) && !limit.take(10_000_001, 1, 250));
        assert!(limit.take(10_000_251, 1, 250));
    }

    #[test]
    fn what_ends_a_connection_is_not_refused() {
        let refused = |protocol, flags: [u8; 4]| flags.map(|flags| may_be_refused(protocol, flags));
        assert_eq!(
            refused(6, [tcp::ACK, tcp::SYN | tcp::ACK, tcp::RST, tcp::RST | tcp::ACK]),
            [true, true, false, false]
        );
        let [abort, data] = [sctp::Event::Abort, sctp::Event::Data].map(|event| event as u8);
        assert_eq!(refused(132, [abort, data, abort, data]), [false, true, false, true]);
        assert!(may_be_refused(17, 0));
    }

    #[test]
    fn who_is_told() {
        let told = |address: &str| {
            let address = address.parse::<core::net::Ipv6Addr>().unwrap().octets();
            may_be_told_ipv6(zerocopy::transmute!(address))
        };
        assert!(told("fd00::1") && told("::2") && told("fe80::1") && told("0:0:0:1::"));
        assert!(["::", "::1", "ff02::1"].iter().all(|nobody| !told(nobody)));
        assert!(may_be_told([10, 0, 0, 1]) && may_be_told([223, 1, 1, 1]));
        assert!(
            [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255; 4]]
                .iter()
                .all(|source| !may_be_told(*source))
        );
    }

    proptest! {
        #[test]
        fn errors_have_right_checksums(payload in proptest::collection::vec(any::<u8>(), 28..548), mtu: u16) {
            let message = Message { kind: 3, code: 4, mtu, quoted: payload.len() as u16, service_type: 0xbb };
            let mut header = [0xff; ERROR];
            write_error(&mut header, [1, 2, 3, 4], [5, 6, 7, 8], 9, message, Sum::ZERO.with(&payload));
            prop_assert_eq!(Sum::ZERO.with(&header[..IPV4]).finish(), [0, 0]);
            prop_assert_eq!(Sum::ZERO.with(&header[IPV4..]).with(&payload).finish(), [0, 0]);
            prop_assert_eq!((header[1], header[20], header[21]), (0xda, 3, 4));
            prop_assert_eq!([header[26], header[27]], mtu.to_be_bytes());
        }

        #[test]
        fn ipv6_errors_have_right_checksums(
            payload in proptest::collection::vec(any::<u8>(), 48..1232), mtu: u16, addresses: [[u64; 2]; 2]
        ) {
            let message = Message { kind: 2, code: 0, mtu, quoted: payload.len() as u16, service_type: 0xbb };
            let mut header = [0xff; ERROR_IPV6];
            write_error_ipv6(&mut header, addresses[0], addresses[1], message, Sum::ZERO.with(&payload));
            let pseudo = pseudo_header(addresses[0], addresses[1], 8 + payload.len() as u16);
            prop_assert_eq!(pseudo.with(&header[IPV6..]).with(&payload).finish(), [0, 0]);
            prop_assert_eq!(&header[..8], &[0x60, 0, 0, 0, header[4], header[5], 58, 64]);
            prop_assert_eq!([header[46], header[47]], mtu.to_be_bytes());
        }

        #[test]
        fn a_translated_error_keeps_its_checksums_right(
            payload: [u8; 16], addresses: [u8; 8], to: [u8; 4], port: [u8; 2], source: bool
        ) {
            // A quoted packet with a right header checksum.
            let mut quoted = [0u8; 20];
            quoted[0] = 0x45;
            quoted[8] = 64;
            quoted[9] = 6;
            quoted[12..20].copy_from_slice(&addresses);
            let checksum = Sum::ZERO.with(&quoted).finish();
            quoted[10..12].copy_from_slice(&checksum);
            let mut message: Vec<u8> = [&[3, 1, 0, 0, 0, 0, 0, 0][..], &quoted, &payload].concat();
            let checksum = Sum::ZERO.with(&message).finish();
            message[2..4].copy_from_slice(&checksum);

            let end = if source { End::Source } else { End::Destination };
            let header: &mut [u8; 20] = (&mut message[8..28]).try_into().unwrap();
            replace_address(header, end, to);
            prop_assert_eq!(Sum::ZERO.with(&header[..]).finish(), [0, 0]);
            let delta = replace_port((&mut message[28..32]).try_into().unwrap(), end, port);
            mend((&mut message[0..8]).try_into().unwrap(), delta);
            prop_assert_eq!(Sum::ZERO.with(&message).finish(), [0, 0]);
        }
    }
}
