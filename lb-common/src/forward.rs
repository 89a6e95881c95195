//! How a packet gets from the director to a destination.
//!
//! IPVS counterpart: `ip_vs_xmit.c`, and the `IP_VS_CONN_F_FWD_MASK` values of its interface.

use core::fmt;

use crate::checksum::Delta;

/// A forwarding method, numbered as in IPVS's interface.
#[doc(alias = "IP_VS_CONN_F_FWD_MASK")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ForwardingMethod {
    /// Network address translation in both directions (`-m`).
    #[doc(alias = "IP_VS_CONN_F_MASQ")]
    Masquerade = 0,
    /// The destination is the director itself; IPVS sets this by itself.
    #[doc(alias = "IP_VS_CONN_F_LOCALNODE")]
    LocalNode = 1,
    /// Encapsulation towards the destination (`-i`).
    #[doc(alias = "IP_VS_CONN_F_TUNNEL")]
    Tunnel = 2,
    /// Direct routing: the packet as it is, to the destination's link address (`-g`).
    #[doc(alias = "IP_VS_CONN_F_DROUTE")]
    DirectRoute = 3,
    /// To where the packet was going anyway (`cache_bypass`).
    #[doc(alias = "IP_VS_CONN_F_BYPASS")]
    Bypass = 4,
}

impl ForwardingMethod {
    /// The number in IPVS's interface, 0 to 4.
    #[inline]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The method with this number in IPVS's interface.
    #[inline]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Masquerade),
            1 => Some(Self::LocalNode),
            2 => Some(Self::Tunnel),
            3 => Some(Self::DirectRoute),
            4 => Some(Self::Bypass),
            _ => None,
        }
    }

    /// The name in listings' `Forward` column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "Masq",
            Self::LocalNode => "Local",
            Self::Tunnel => "Tunnel",
            Self::DirectRoute => "Route",
            Self::Bypass => "Bypass",
        }
    }
}

impl fmt::Display for ForwardingMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The encapsulation of a [`ForwardingMethod::Tunnel`] destination, numbered as in IPVS's interface.
#[doc(alias = "IP_VS_CONN_F_TUNNEL_TYPE")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TunnelType {
    /// IP in IP, protocol 4 or 41.
    #[default]
    Ipip = 0,
    /// Generic UDP encapsulation.
    Gue = 1,
    /// Generic routing encapsulation, protocol 47.
    Gre = 2,
}

impl TunnelType {
    /// The type with this number in IPVS's interface.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Ipip),
            1 => Some(Self::Gue),
            2 => Some(Self::Gre),
            _ => None,
        }
    }

    /// The name as `--tun-type` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Gre => "gre",
        }
    }
}

/// The checksum choice of a GUE or GRE tunnel, numbered as in IPVS's interface.
#[doc(alias = "IP_VS_TUNNEL_ENCAP_FLAG_NOCSUM")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum TunnelChecksum {
    /// None (`--tun-nocsum`).
    #[default]
    None = 0,
    /// In the tunnel header (`--tun-csum`).
    Full = 1,
    /// Remote checksum offload (`--tun-remcsum`), GUE only.
    Remote = 2,
}

impl TunnelChecksum {
    /// The choice with this number in IPVS's interface.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Full),
            2 => Some(Self::Remote),
            _ => None,
        }
    }
}

/// Bytes of a TCP header that translation touches: up to its checksum.
pub const TCP_PART: usize = 18;

/// Which end of a packet a translation replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The source: answers of a destination.
    Source,
    /// The destination: packets of a client.
    Destination,
}

/// Takes one from the time to live of an IPv4 header and mends the checksum. The time to live is not 0.
#[doc(alias = "decrement_ttl")]
#[inline(always)]
pub fn take_hop(header: &mut [u8; 20]) {
    header[8] = header[8].wrapping_sub(1);
    // The time to live is the upper half of a word, which of its values it has does not matter: the sum has one less of it,
    // and its complement one more. What carries out comes in again, and of the two zeroes it becomes the one that RFC
    // 1624 wants.
    let checksum = u32::from(u16::from_ne_bytes([header[10], header[11]])) + const { word([1, 0]) };
    let checksum = if checksum >= 0xffff { checksum + 1 } else { checksum };
    [header[10], header[11]] = (checksum as u16).to_ne_bytes();
}

/// Two bytes as one number, loaded natively.
const fn word(bytes: [u8; 2]) -> u32 {
    u16::from_ne_bytes(bytes) as u32
}

/// Replaces an address of an IPv4 header; `delta` is what the new address makes of the checksum.
#[inline(always)]
pub fn translate_network(header: &mut [u8; 20], end: End, address: [u8; 4], delta: Delta) {
    let at = if end == End::Source { 12 } else { 16 };
    header[at] = address[0];
    header[at + 1] = address[1];
    header[at + 2] = address[2];
    header[at + 3] = address[3];
    let checksum = delta.apply([header[10], header[11]]);
    header[10] = checksum[0];
    header[11] = checksum[1];
}

/// Takes one from the hop limit of an IPv6 header, of which these are the first bytes. It is not 0.
#[inline(always)]
pub fn take_hop_ipv6(header: &mut [u8; 8]) {
    header[7] = header[7].wrapping_sub(1);
}

/// Replaces an address of an IPv6 header, loaded natively as two words.
#[inline(always)]
pub fn translate_network_ipv6(header: &mut [u8; 40], end: End, address: [u64; 2]) {
    let (_, addresses) = header.split_at_mut(8);
    let (words, _) = addresses.as_chunks_mut::<8>();
    let [first, second] = address.map(u64::to_ne_bytes);
    if end == End::Source {
        (words[0], words[1]) = (first, second);
    } else {
        (words[2], words[3]) = (first, second);
    }
}

/// Replaces a port of a transport header, in one piece.
#[inline(always)]
fn replace_port(header: &mut [u8], end: End, port: [u8; 2]) {
    if let ([source, destination, ..], _) = header.as_chunks_mut::<2>() {
        *(if end == End::Source { source } else { destination }) = port;
    }
}

/// Replaces a port of a TCP header; `delta` is what the new address and port make of the checksum.
#[doc(alias = "tcp_dnat_handler")]
#[inline(always)]
pub fn translate_tcp(header: &mut [u8; TCP_PART], end: End, port: [u8; 2], delta: Delta) {
    replace_port(header, end, port);
    let checksum = delta.apply([header[16], header[17]]);
    header[16] = checksum[0];
    header[17] = checksum[1];
}

/// Replaces a port of a UDP header; a checksum that is absent stays absent.
#[doc(alias = "udp_dnat_handler")]
#[inline(always)]
pub fn translate_udp(header: &mut [u8; 8], end: End, port: [u8; 2], delta: Delta) {
    replace_port(header, end, port);
    let checksum = delta.apply_udp([header[6], header[7]]);
    header[6] = checksum[0];
    header[7] = checksum[1];
}

/// The bytes of an SCTP header.
pub const SCTP_PART: usize = 12;

/// Replaces a port of an SCTP header; returns what that changes of the first word, for [`Mending`](crate::crc32c::Mending). Addresses are not
/// part of the checksum.
#[inline(always)]
pub fn replace_sctp_port(header: &mut [u8; SCTP_PART], end: End, port: [u8; 2]) -> u32 {
    let [a, b, c, d, ..] = *header;
    let at = if end == End::Source { 0 } else { 2 };
    header[at] = port[0];
    header[at + 1] = port[1];
    let [e, f, g, h, ..] = *header;
    u32::from_ne_bytes([a, b, c, d]) ^ u32::from_ne_bytes([e, f, g, h])
}

/// Changes the checksum of an SCTP header.
#[doc(alias = "sctp_nat_csum")]
#[inline(always)]
pub fn mend_sctp(header: &mut [u8; SCTP_PART], change: u32) {
    let [.., a, b, c, d] = *header;
    let [a, b, c, d] = (u32::from_ne_bytes([a, b, c, d]) ^ change).to_ne_bytes();
    (header[8], header[9], header[10], header[11]) = (a, b, c, d);
}

/// What a translation from one address and port to another makes of the checksums: of the IPv4 header, and of
/// the transport header, whose pseudo-header has the address too. All bytes in network order.
#[inline(always)]
pub fn translation(from: ([u8; 4], [u8; 2]), to: ([u8; 4], [u8; 2])) -> (Delta, Delta) {
    let network = Delta::NONE.replace(from.0, to.0);
    (network, network.replace(from.1, to.1))
}

/// As [`translation`], of IPv6, whose header has no checksum; addresses loaded natively as two words.
#[inline(always)]
pub fn translation_ipv6(from: ([u64; 2], [u8; 2]), to: ([u64; 2], [u8; 2])) -> Delta {
    let [a, b] = from.0.map(u64::to_ne_bytes);
    let [c, d] = to.0.map(u64::to_ne_bytes);
    Delta::NONE.replace(a, c).replace(b, d).replace(from.1, to.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checksum::Sum;

    proptest! {
        #[test]
        fn hops_and_translations_keep_the_header_checksum_right(
            bytes: [u8; 20], address: [u8; 4], source: bool
        ) {
            let mut header = bytes;
            header[8] = header[8].max(1);
            (header[10], header[11]) = (0, 0);
            let checksum = Sum::ZERO.with(&header).finish();
            (header[10], header[11]) = (checksum[0], checksum[1]);
            let (end, at) = if source { (End::Source, 12) } else { (End::Destination, 16) };
            let before = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            let (delta, _) = translation((before, [0, 0]), (address, [0, 0]));
            translate_network(&mut header, end, address, Delta::unpack(delta.pack()));
            take_hop(&mut header);
            prop_assert_eq!(Sum::ZERO.with(&header).finish(), [0, 0]);
            prop_assert_eq!(&header[at..at + 4], &address);
        }
    }

    proptest! {
        #[test]
        fn ipv6_translations_keep_the_transport_checksum_right(
            bytes: [u8; 40], datagram: [u8; 8], address: [u64; 2], port: [u8; 2], source: bool
        ) {
            let (mut header, mut datagram) = (bytes, datagram);
            (datagram[6], datagram[7]) = (0, 0);
            let pseudo = |header: &[u8; 40]| Sum::ZERO.with(&header[8..]).with(&[0, 8, 0, 17]);
            let checksum = crate::checksum::udp(pseudo(&header).with(&datagram).finish());
            (datagram[6], datagram[7]) = (checksum[0], checksum[1]);
            let (end, at, port_at) = if source { (End::Source, 8, 0) } else { (End::Destination, 24, 2) };
            let words: &[u8; 16] = header[at..].first_chunk().unwrap();
            let before = zerocopy::transmute!(*words);
            let delta = translation_ipv6((before, [datagram[port_at], datagram[port_at + 1]]), (address, port));
            translate_network_ipv6(&mut header, end, address);
            translate_udp(&mut datagram, end, port, Delta::unpack(delta.pack()));
            prop_assert_eq!(pseudo(&header).with(&datagram).finish(), [0, 0]);
            let written: [u8; 16] = zerocopy::transmute!(address);
            prop_assert_eq!(&header[at..at + 16], &written);
            prop_assert_eq!(&header[..8], &bytes[..8]);
        }
    }

    #[test]
    fn an_absent_udp_checksum_stays_absent() {
        let (_, delta) = translation(([10, 0, 0, 1], [0, 80]), ([10, 0, 0, 2], [31, 144]));
        let mut header = [0x9c, 0x40, 0, 80, 0, 8, 0, 0];
        translate_udp(&mut header, End::Destination, [31, 144], delta);
        assert_eq!(header, [0x9c, 0x40, 31, 144, 0, 8, 0, 0]);
    }
}
