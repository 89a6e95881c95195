//! The headers around a packet that goes to its destination through a tunnel.
//!
//! An outer IP header of either family around a packet of either family, and between them nothing (IPIP), a GRE
//! header, or a UDP and a GUE header. Written into the packet's own bytes; unwrapped is only what an ICMP error quotes.
//! IPVS counterpart: `ip_vs_tunnel_xmit`, `ipvs_gre_encap` and `ipvs_gue_encap`. Sources: RFC 2003, RFC 2784, the
//! draft of GUE (draft-ietf-intarea-gue), and what IPVS sends.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::checksum::{self, Sum};
use crate::forward::{TunnelChecksum, TunnelType};
use crate::icmp::{self, Received};
use crate::packet::{Family, Frame, IPV4, IPV6, MAX_TRANSPORT, UDP};
use crate::reason::Reason;
use crate::tuple::Tuple;

/// Bytes of a GRE header without a checksum.
const GRE: usize = 4;
/// Bytes of one with a checksum, and the zeroes behind it.
const GRE_CHECKED: usize = 8;
/// Bytes of a UDP and a GUE header.
const GUE: usize = UDP + 4;

/// Most bytes that lie between the outer and the inner IP header.
pub const MAX_ENCAPSULATION: usize = GUE;

/// The smallest packet that a tunnel must take to be used, over IPv4 (RFC 791) and over IPv6 (RFC 8200).
const LEAST_MTU: (u16, u16) = (68, 1280);

/// Source ports of GUE: the default of `ip_local_port_range`.
const SOURCE_PORTS: (u16, u16) = (32768, 60999);

/// What an outer header takes over from the packet inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Its family.
    pub family: Family,
    /// Its length, header included, in bytes.
    pub length: u16,
    /// Its type of service or traffic class.
    pub service_type: u8,
    /// Its time to live or hop limit, one already taken off.
    pub time_to_live: u8,
    /// It must not be fragmented, and neither must what is around it. Never set for IPv6.
    pub dont_fragment: bool,
}

impl Inner {
    /// Whether the stack may cut up what is larger than its tunnel over a network of this family takes.
    ///
    /// # Errors
    ///
    /// Why it goes no further, if not.
    #[inline(always)]
    pub fn may_be_cut(self, outer: Family) -> Result<(), Reason> {
        if self.family == Family::V6 || self.dont_fragment {
            Err(Reason::TooBig)
        } else if outer == Family::V6 {
            // The stack would have to forward it, and cuts no packet of IPv6 that it forwards.
            Err(Reason::NotFragmented)
        } else {
            Ok(())
        }
    }
}

/// A destination's tunnel, as its record has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Number of a [`TunnelType`]; others are as IPIP.
    pub kind: u8,
    /// Number of a [`TunnelChecksum`].
    pub checksum: u8,
    /// UDP port of GUE.
    pub port: u16,
}

impl Tunnel {
    /// Whether a GRE header lies between.
    #[inline(always)]
    pub const fn is_gre(self) -> bool {
        self.kind == TunnelType::Gre as u8
    }

    /// Whether a UDP and a GUE header lie between.
    #[inline(always)]
    pub const fn is_gue(self) -> bool {
        self.kind == TunnelType::Gue as u8
    }

    /// Whether the whole packet has to be summed.
    ///
    /// Remote checksum offload is for packets whose own checksum is still to be computed, which none is that comes
    /// from a wire: others get the outer UDP checksum.
    #[inline(always)]
    pub const fn has_checksum(self) -> bool {
        (self.is_gre() || self.is_gue()) && self.checksum != TunnelChecksum::None as u8
    }

    /// Bytes between the outer and the inner IP header.
    #[inline(always)]
    pub const fn encapsulation(self) -> usize {
        if self.is_gue() {
            GUE
        } else if !self.is_gre() {
            0
        } else if self.has_checksum() {
            GRE_CHECKED
        } else {
            GRE
        }
    }

    /// Bytes of all headers around the packet, those of an outer IP header of a family included.
    #[inline(always)]
    pub const fn room(self, outer: Family) -> usize {
        self.encapsulation()
            + match outer {
                Family::V4 => IPV4,
                Family::V6 => IPV6,
            }
    }

    /// The largest packet that goes in where the way takes packets of `mtu` bytes; none if the way takes too little for
    /// a tunnel at all.
    #[inline(always)]
    pub fn mtu(self, outer: Family, mtu: u16) -> Option<u16> {
        let least = match outer {
            Family::V4 => LEAST_MTU.0,
            Family::V6 => LEAST_MTU.1,
        };
        mtu.checked_sub(self.room(outer) as u16).filter(|mtu| *mtu >= least)
    }

    /// Whether an outer IPv4 header of this protocol, and of UDP with this destination port, is this tunnel's.
    #[inline(always)]
    pub const fn is_of(self, protocol: u8, port: u16) -> bool {
        protocol == self.protocol(Family::V4) && (!self.is_gue() || port == self.port)
    }

    /// The IP protocol number in the outer header.
    #[inline(always)]
    pub const fn protocol(self, inner: Family) -> u8 {
        if self.is_gue() {
            17
        } else if self.is_gre() {
            47
        } else {
            inner.protocol()
        }
    }
}

/// What an ICMP error quotes of a packet inside the outer one of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inside {
    /// Where its IP header begins.
    pub network: u16,
    /// Bytes that are quoted of it.
    pub quoted: u16,
    /// Its type of service.
    pub service_type: u8,
    /// It must not be fragmented.
    pub dont_fragment: bool,
    /// Its flow.
    pub tuple: Tuple,
}

/// Reads the packet inside the one that an error quotes, both of IPv4, which is all that IPVS looks into; nothing if that is
/// no tunnel's, or too little is quoted.
#[doc(alias = "ipvs_udp_decap")]
#[doc(alias = "ipvs_gre_decap")]
#[inline(always)]
pub fn read_inside(frame: &(impl Frame + ?Sized), error: &Received) -> Option<Inside> {
    // Bounded at once: Linux 6.1 learns nothing of a value that was put aside from what it is compared with later.
    let behind = usize::from(error.ports & 0xff);
    let between = match error.tuple.transport() {
        4 => 0,
        47 => {
            let [flags, version, a, b]: [u8; 4] = *frame.bytes(behind)?;
            // Nothing but a checksum: neither key nor sequence number.
            if flags & 0x7f != 0 || version != 0 || [a, b] != Family::V4.ethertype() {
                return None;
            }
            if flags & 0x80 != 0 { GRE_CHECKED } else { GRE }
        }
        17 => {
            let [first, protocol, ..]: [u8; 4] = *frame.bytes(behind + UDP)?;
            // Version 0, no control message; the low bits are the words of options.
            if first & 0xe0 != 0 || protocol != Family::V4.protocol() {
                return None;
            }
            GUE + usize::from(first & 0x1f) * 4
        }
        _ => return None,
    };
    let network = behind + between;
    let end = usize::from(error.network) + usize::from(error.length);
    if network + IPV4 > MAX_TRANSPORT {
        return None;
    }
    let header: &[u8; IPV4] = frame.bytes(network)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let ports = network + header_length;
    // A later fragment has no ports.
    if header[0] >> 4 != 4 || header_length < IPV4 || fragment & 0x1fff != 0 || ports + 8 > end {
        return None;
    }
    Some(Inside {
        network: network as u16,
        quoted: (end - network) as u16,
        service_type: header[1],
        dont_fragment: fragment & 0x4000 != 0,
        tuple: icmp::flow(header, *frame.bytes(ports)?),
    })
}

/// Seconds that the MTU of a path is remembered: the Linux stack's `ip_rt_mtu_expires`.
pub const PATH_REMEMBERED: u32 = 600;

/// The least that is believed of a path: the Linux stack's `ip_rt_min_pmtu`, 512 bytes and two headers.
const LEAST_PATH: u16 = 552;

/// The MTU of a path that was believed to take so much, after a router said that it takes less.
#[inline(always)]
pub const fn path_mtu(believed: u16, told: u16) -> u16 {
    let told = if told < LEAST_PATH { LEAST_PATH } else { told };
    if told < believed { told } else { believed }
}

/// What is known of the path to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Path {
    /// The largest packet that it takes.
    pub mtu: u32,
    /// The tick until which that is believed.
    pub until: u32,
}

/// The outer type of service: the inner one, but that "congestion experienced" becomes ECT(0), as what is experienced
/// on the way through the tunnel is yet to be seen.
#[doc(alias = "INET_ECN_encapsulate")]
#[inline(always)]
pub const fn outer_service_type(inner: u8) -> u8 {
    if inner & 3 == 3 { inner & !3 | 2 } else { inner }
}

/// Writes an outer IPv4 header. `identification` is used where the packet may be fragmented. Addresses in network order.
#[inline(always)]
pub fn write_ipv4(
    header: &mut [u8; IPV4],
    tunnel: Tunnel,
    inner: Inner,
    source: [u8; 4],
    destination: [u8; 4],
    identification: u16,
) {
    let length = (inner.length as usize + tunnel.encapsulation() + IPV4) as u16;
    let (identification, fragments) =
        if inner.dont_fragment { ([0, 0], [0x40, 0]) } else { (identification.to_be_bytes(), [0, 0]) };
    header[0] = 0x45;
    header[1] = outer_service_type(inner.service_type);
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[4..6].copy_from_slice(&identification);
    header[6..8].copy_from_slice(&fragments);
    header[8] = inner.time_to_live;
    header[9] = tunnel.protocol(inner.family);
    header[10..12].copy_from_slice(&[0, 0]);
    header[12..16].copy_from_slice(&source);
    header[16..20].copy_from_slice(&destination);
    let checksum = Sum::ZERO.with(header).finish();
    header[10..12].copy_from_slice(&checksum);
}

/// Writes an outer IPv6 header. Addresses in network order.
#[inline(always)]
pub fn write_ipv6(
    header: &mut [u8; IPV6],
    tunnel: Tunnel,
    inner: Inner,
    source: [u8; 16],
    destination: [u8; 16],
) {
    let length = (inner.length as usize + tunnel.encapsulation()) as u16;
    let class = outer_service_type(inner.service_type);
    header[0] = 0x60 | class >> 4;
    header[1] = class << 4;
    header[2..4].copy_from_slice(&[0, 0]);
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = tunnel.protocol(inner.family);
    header[7] = inner.time_to_live;
    header[8..24].copy_from_slice(&source);
    header[24..40].copy_from_slice(&destination);
}

/// Writes a GRE header without a checksum.
#[inline(always)]
pub fn write_gre(header: &mut [u8; 4], inner: Family) {
    let [high, low] = inner.ethertype();
    *header = [0, 0, high, low];
}

/// Writes a GRE header with the checksum of what is inside, `payload` being the sum over that.
#[inline(always)]
pub fn write_gre_checked(header: &mut [u8; 8], inner: Family, payload: Sum) {
    let [high, low] = inner.ethertype();
    let [one, two] = payload.with(&[0x80, 0, high, low]).finish();
    *header = [0x80, 0, high, low, one, two, 0, 0];
}

/// Writes a UDP header and a GUE header, without a checksum. `hash` is the flow's.
#[inline(always)]
pub fn write_gue(header: &mut [u8; GUE], tunnel: Tunnel, inner: Inner, hash: u32) {
    let length = (inner.length as usize + GUE) as u16;
    header[0..2].copy_from_slice(&source_port(hash).to_be_bytes());
    header[2..4].copy_from_slice(&tunnel.port.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6..8].copy_from_slice(&[0, 0]);
    // Version 0, no control message, no options; the protocol inside; no flags.
    header[8..12].copy_from_slice(&[0, inner.family.protocol(), 0, 0]);
}

/// Puts the UDP checksum into what [`write_gue`] wrote; `rest` is the sum over the pseudo-header and what is inside.
#[inline(always)]
pub fn write_gue_checksum(header: &mut [u8; GUE], rest: Sum) {
    let checksum = checksum::udp(rest.with(header).finish());
    header[6..8].copy_from_slice(&checksum);
}

/// Writes what lies between the outer header and the packet inside, into as many of these bytes as [`Tunnel::encapsulation`]
/// says. `hash` is the flow's; a checksum is written if there are `sums`: that over the packet inside, and that over the
/// pseudo-header of UDP.
#[inline(always)]
pub fn write_between(
    bytes: &mut [u8; MAX_ENCAPSULATION],
    tunnel: Tunnel,
    inner: Inner,
    hash: u32,
    sums: Option<(Sum, Sum)>,
) {
    match (tunnel.encapsulation(), sums) {
        (GRE, _) => {
            if let Some(header) = bytes.first_chunk_mut() {
                write_gre(header, inner.family);
            }
        }
        (GRE_CHECKED, Some((payload, _))) => {
            if let Some(header) = bytes.first_chunk_mut() {
                write_gre_checked(header, inner.family, payload);
            }
        }
        (GUE, sums) => {
            write_gue(bytes, tunnel, inner, hash);
            if let Some((payload, pseudo)) = sums {
                write_gue_checksum(bytes, pseudo.and(payload));
            }
        }
        _ => {}
    }
}

/// The sum over the pseudo-header of an outer UDP header, IPv4.
#[inline(always)]
pub fn pseudo_ipv4(source: [u8; 4], destination: [u8; 4], inner_length: u16) -> Sum {
    let length = (inner_length as usize + GUE) as u16;
    Sum::ZERO.with(&source).with(&destination).with(&[0, 17]).with(&length.to_be_bytes())
}

/// The same, IPv6.
#[inline(always)]
pub fn pseudo_ipv6(source: [u8; 16], destination: [u8; 16], inner_length: u16) -> Sum {
    let length = (inner_length as usize + GUE) as u16;
    Sum::ZERO.with(&source).with(&destination).with(&[0, 17]).with(&length.to_be_bytes())
}

/// The source port of GUE for a flow: always the same one, so that the way of a flow through the network is.
#[doc(alias = "udp_flow_src_port")]
#[inline(always)]
pub const fn source_port(hash: u32) -> u16 {
    let (least, most) = SOURCE_PORTS;
    let hash = hash ^ hash << 16;
    least + ((hash as u64 * (most - least) as u64) >> 32) as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, UdpHeaderSlice};
    use proptest::prelude::*;

    use super::*;

    const IPIP: Tunnel = Tunnel { kind: 0, checksum: 0, port: 0 };

    fn inner(family: Family) -> Inner {
        Inner { family, length: 1480, service_type: 0, time_to_live: 63, dont_fragment: family == Family::V4 }
    }

    /// The wire samples of IPVS: `10.1.1.1 -> 10.1.1.2`, protocol 4, ttl 63, id 0, DF.
    #[test]
    fn ipip_around_ipv4_is_as_ipvs_writes_it() {
        let mut header = [0xff; IPV4];
        write_ipv4(&mut header, IPIP, inner(Family::V4), [10, 1, 1, 1], [10, 1, 1, 2], 77);
        let read = Ipv4HeaderSlice::from_slice(&header).unwrap();
        assert_eq!((read.protocol().0, read.ttl(), read.total_len()), (4, 63, 1500));
        assert_eq!((read.identification(), read.dont_fragment()), (0, true));
        assert_eq!((read.source(), read.destination()), ([10, 1, 1, 1], [10, 1, 1, 2]));
        assert_eq!(read.header_checksum(), read.to_header().calc_header_checksum());
    }

    #[test]
    fn only_ipv4_that_allows_it_is_cut_and_only_over_ipv4() {
        let [whole, six] = [Family::V4, Family::V6].map(inner);
        let cut = Inner { dont_fragment: false, ..whole };
        assert_eq!(cut.may_be_cut(Family::V4), Ok(()));
        assert_eq!(cut.may_be_cut(Family::V6), Err(Reason::NotFragmented));
        for outer in [Family::V4, Family::V6] {
            assert_eq!([whole, six].map(|inner| inner.may_be_cut(outer)), [Err(Reason::TooBig); 2]);
        }
    }

    #[test]
    fn the_four_combinations_of_families() {
        for (family, protocol) in [(Family::V4, 4), (Family::V6, 41)] {
            let mut header = [0xff; IPV4];
            write_ipv4(&mut header, IPIP, inner(family), [10, 1, 1, 1], [10, 1, 1, 2], 77);
            let read = Ipv4HeaderSlice::from_slice(&header).unwrap();
            assert_eq!(read.protocol().0, protocol);
            // What goes around IPv6 may be fragmented, and then has an identification.
            assert_eq!(read.identification(), if family == Family::V4 { 0 } else { 77 });
            let mut header = [0xff; IPV6];
            write_ipv6(&mut header, IPIP, inner(family), [1; 16], [2; 16]);
            let read = Ipv6HeaderSlice::from_slice(&header).unwrap();
            assert_eq!((read.next_header().0, read.hop_limit(), read.payload_length()), (protocol, 63, 1480));
            assert_eq!((read.flow_label().value(), read.traffic_class()), (0, 0));
            assert_eq!((read.source(), read.destination()), ([1; 16], [2; 16]));
        }
    }

    #[test]
    fn congestion_is_not_taken_over() {
        assert_eq!([0, 1, 2, 3, 0xb8, 0xbb].map(outer_service_type), [0, 1, 2, 2, 0xb8, 0xba]);
    }

    #[test]
    fn sizes_and_protocols() {
        let sizes = |kind, checksum| {
            let tunnel = Tunnel { kind, checksum, port: 6080 };
            (tunnel.encapsulation(), tunnel.protocol(Family::V6), tunnel.has_checksum())
        };
        assert_eq!(sizes(0, 0), (0, 41, false));
        assert_eq!(sizes(0, 1), (0, 41, false));
        assert_eq!(sizes(1, 0), (12, 17, false));
        assert_eq!(sizes(1, 1), (12, 17, true));
        assert_eq!(sizes(1, 2), (12, 17, true));
        assert_eq!(sizes(2, 0), (4, 47, false));
        assert_eq!(sizes(2, 1), (8, 47, true));
        assert_eq!(sizes(3, 0), (0, 41, false));
    }

    #[test]
    fn a_tunnel_takes_what_its_headers_leave() {
        let gue = Tunnel { kind: 1, checksum: 0, port: 6080 };
        assert_eq!((IPIP.mtu(Family::V4, 1500), IPIP.mtu(Family::V6, 1500)), (Some(1480), Some(1460)));
        assert_eq!((gue.mtu(Family::V4, 1500), gue.mtu(Family::V6, 1500)), (Some(1468), Some(1448)));
        assert_eq!((IPIP.mtu(Family::V4, 88), IPIP.mtu(Family::V4, 87)), (Some(68), None));
        assert_eq!((IPIP.mtu(Family::V6, 1320), IPIP.mtu(Family::V6, 1319)), (Some(1280), None));
        assert_eq!(IPIP.mtu(Family::V4, 0), None);
    }

    /// A message about `quoted`, as far as [`read_inside`] looks at it: no link header.
    fn about(protocol: u8, quoted: &[u8]) -> (std::vec::Vec<u8>, Received) {
        let bytes = [&[0; 48][..], quoted].concat();
        let tuple = Tuple { protocol, addresses: 0, ports: 0 };
        let length = bytes.len() as u16;
        let (network, transport, quoted, ports) = (0, 20, 28, 48);
        let (service_type, time_to_live) = (0, 64);
        (bytes, Received { network, transport, quoted, ports, length, service_type, time_to_live, tuple })
    }

    #[test]
    fn the_packet_inside_is_found_behind_each_kind_of_header() {
        let mut packet = [0u8; 28];
        packet[..10].copy_from_slice(&[0x45, 0xb8, 0, 28, 0, 0, 0x40, 0, 63, 6]);
        packet[12..20].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        packet[20..24].copy_from_slice(&[0x9c, 0x40, 0, 80]);
        let rows: [(u8, &[u8], bool); 12] = [
            (4, &[], true),
            (47, &[0, 0, 8, 0], true),
            (47, &[0x80, 0, 8, 0, 1, 2, 0, 0], true),
            (47, &[0x20, 0, 8, 0, 1, 2, 3, 4], false),
            (47, &[0, 1, 8, 0], false),
            (47, &[0, 0, 0x86, 0xdd], false),
            (17, &[1, 2, 3, 4, 0, 48, 0, 0, 0, 4, 0, 0], true),
            (17, &[1, 2, 3, 4, 0, 52, 0, 0, 1, 4, 0, 0, 9, 9, 9, 9], true),
            (17, &[1, 2, 3, 4, 0, 48, 0, 0, 0, 41, 0, 0], false),
            (17, &[1, 2, 3, 4, 0, 48, 0, 0, 0x20, 4, 0, 0], false),
            (41, &[], false),
            (6, &[], false),
        ];
        for (protocol, between, found) in rows {
            let (bytes, error) = about(protocol, &[between, &packet].concat());
            let inside = read_inside(&bytes[..], &error);
            let wanted = Inside {
                network: 48 + between.len() as u16,
                quoted: 28,
                service_type: 0xb8,
                dont_fragment: true,
                tuple: Tuple::new(6, ([1, 2, 3, 4].into(), 40000), ([5, 6, 7, 8].into(), 80)),
            };
            assert_eq!(inside, found.then_some(wanted), "{protocol} {between:?}");
        }
        // Too little is quoted, and a later fragment.
        let (bytes, error) = about(4, &packet[..27]);
        assert_eq!(read_inside(&bytes[..], &error), None);
        packet[7] = 1;
        let (bytes, error) = about(4, &packet);
        assert_eq!(read_inside(&bytes[..], &error), None);
    }

    #[test]
    fn a_tunnel_knows_its_outer_headers() {
        let gue = Tunnel { kind: 1, checksum: 0, port: 6080 };
        let gre = Tunnel { kind: 2, checksum: 1, port: 6080 };
        assert!(IPIP.is_of(4, 9) && !IPIP.is_of(47, 9) && !IPIP.is_of(41, 9));
        assert!(gre.is_of(47, 9) && !gre.is_of(4, 9));
        assert!(gue.is_of(17, 6080) && !gue.is_of(17, 6081) && !gue.is_of(4, 6080));
    }

    #[test]
    fn a_path_is_believed_to_take_less_but_never_too_little() {
        assert_eq!(
            [1400, 1500, 9000, 552, 551, 0].map(|told| path_mtu(1500, told)),
            [1400, 1500, 1500, 552, 552, 552]
        );
        assert_eq!(path_mtu(500, 0), 500);
    }

    #[test]
    fn source_ports_stay_in_their_range() {
        assert_eq!(source_port(0), 32768);
        assert!(
            [1, 77, 0x1_0000, u32::MAX].into_iter().all(|hash| (32768..60999).contains(&source_port(hash)))
        );
        assert_ne!(source_port(0x1000), source_port(0x9000));
    }

    proptest! {
        #[test]
        fn checksums_are_right(payload in proptest::collection::vec(any::<u8>(), 20..200), v6: bool, hash: u32) {
            let family = if v6 { Family::V6 } else { Family::V4 };
            let inner = Inner { length: payload.len() as u16, ..inner(family) };
            let (source, destination) = ([10, 1, 1, 1], [10, 1, 1, 2]);

            let mut gre = [0xff; 8];
            write_gre_checked(&mut gre, family, Sum::ZERO.with(&payload));
            prop_assert_eq!(Sum::ZERO.with(&gre).with(&payload).finish(), [0, 0]);
            prop_assert_eq!([gre[0], gre[1]], [0x80, 0]);
            prop_assert_eq!([gre[2], gre[3]], family.ethertype());
            prop_assert_eq!([gre[6], gre[7]], [0, 0]);

            let mut gue = [0xff; 12];
            write_gue(&mut gue, Tunnel { kind: 1, checksum: 1, port: 6080 }, inner, hash);
            prop_assert_eq!(&gue[8..], &[0, family.protocol(), 0, 0]);
            write_gue_checksum(&mut gue, pseudo_ipv4(source, destination, inner.length).with(&payload));
            let read = UdpHeaderSlice::from_slice(&gue).unwrap();
            let carried = [&gue[8..], &payload].concat();
            prop_assert_eq!(
                read.checksum(),
                read.to_header().calc_checksum_ipv4_raw(source, destination, &carried).unwrap()
            );
            prop_assert_eq!((read.destination_port(), usize::from(read.length())), (6080, carried.len() + 8));

            write_gue(&mut gue, Tunnel { kind: 1, checksum: 1, port: 6080 }, inner, hash);
            write_gue_checksum(&mut gue, pseudo_ipv6([1; 16], [2; 16], inner.length).with(&payload));
            let read = UdpHeaderSlice::from_slice(&gue).unwrap();
            prop_assert_eq!(
                read.checksum(),
                read.to_header().calc_checksum_ipv6_raw([1; 16], [2; 16], &carried).unwrap()
            );
        }
    }
}
