//! Firewall marks: rules of our own, because XDP sees packets before netfilter, which marks them for IPVS.
//!
//! A packet has the mark of the last rule that it matches, as with iptables' `MARK` target, which goes on after a match;
//! 0 if it matches none. IPVS counterpart: `skb->mark`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::connection::Addresses;
use crate::tuple::Tuple;

/// Most rules.
pub const MAX_RULES: u32 = 256;

/// A rule: what a packet must have to get a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct Rule {
    /// Source address; an IPv4 address in the first four bytes. Network order.
    pub source: [u8; 16],
    /// Destination address, likewise.
    pub destination: [u8; 16],
    /// Lowest and highest source port, native order.
    pub source_ports: [u16; 2],
    /// Lowest and highest destination port, native order.
    pub destination_ports: [u16; 2],
    /// The mark, not 0.
    pub mark: u32,
    /// Number of the interface that the packet comes in on; 0 is any.
    pub interface: u32,
    /// Bits of the source address that count.
    pub source_prefix: u8,
    /// Bits of the destination address that count.
    pub destination_prefix: u8,
    /// IP protocol number; 0 is any.
    pub protocol: u8,
    /// 4 or 6; 0 is either, without addresses that count.
    pub family: u8,
    /// Fills the line.
    pub reserved: [u32; 3],
}

const _: () = assert!(size_of::<Rule>() == 64);

impl Rule {
    /// Whether a packet that comes in on an interface gets the mark. A packet of IPv6 has its `addresses` beside it.
    #[inline(always)]
    pub fn matches(&self, packet: &Tuple, addresses: &Addresses, interface: u32) -> bool {
        let ipv6 = packet.is_ipv6();
        let (source, destination) = if ipv6 {
            (addresses.source.map(u64::from_be), addresses.destination.map(u64::from_be))
        } else {
            (leading(packet.raw_source()), leading(packet.raw_destination()))
        };
        (self.family == 0 || (self.family == 6) == ipv6)
            && (self.protocol == 0 || self.protocol == packet.transport())
            && (self.interface == 0 || self.interface == interface)
            && has_prefix(source, &self.source, self.source_prefix)
            && has_prefix(destination, &self.destination, self.destination_prefix)
            && is_between(u16::from_be(packet.raw_source_port()), self.source_ports)
            && is_between(u16::from_be(packet.raw_destination_port()), self.destination_ports)
    }
}

/// An IPv4 address (loaded natively) as the highest bits of one of IPv6.
#[inline(always)]
const fn leading(address: u32) -> [u64; 2] {
    [(u32::from_be(address) as u64) << 32, 0]
}

/// Whether an address (in native order) agrees with another in so many bits.
#[inline(always)]
fn has_prefix(address: [u64; 2], other: &[u8; 16], bits: u8) -> bool {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *other;
    let bits = u32::from(bits);
    agrees(address[0] ^ u64::from_be_bytes([a, b, c, d, e, f, g, h]), bits)
        && agrees(address[1] ^ u64::from_be_bytes(rest), bits.saturating_sub(64))
}

/// Whether a difference leaves so many leading bits out; all of them if they are 64 or more.
#[inline(always)]
const fn agrees(difference: u64, bits: u32) -> bool {
    if bits >= 64 { difference == 0 } else { bits == 0 || difference >> (64 - bits) == 0 }
}

#[inline(always)]
fn is_between(port: u16, [low, high]: [u16; 2]) -> bool {
    low <= port && port <= high
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use zerocopy::FromZeros;

    use super::*;
    use crate::tuple::{self, handle};

    fn rule(mark: u32) -> Rule {
        Rule { mark, source_ports: [0, u16::MAX], destination_ports: [0, u16::MAX], ..Rule::new_zeroed() }
    }

    fn address(address: [u8; 4]) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&address);
        bytes
    }

    #[test]
    fn each_part_of_a_rule_counts() {
        let none = &Addresses::default();
        let packet =
            Tuple::new(6, (Ipv4Addr::new(198, 51, 100, 7), 40_000), (Ipv4Addr::new(192, 0, 2, 1), 80));
        let all = Rule {
            source: address([198, 51, 100, 0]),
            source_prefix: 24,
            destination: address([192, 0, 2, 1]),
            destination_prefix: 32,
            source_ports: [1024, 65_535],
            destination_ports: [80, 80],
            protocol: 6,
            interface: 3,
            family: 4,
            ..rule(7)
        };
        assert!(all.matches(&packet, none, 3) && rule(7).matches(&packet, none, 3));
        for wrong in [
            Rule { source: address([198, 51, 101, 0]), ..all },
            Rule { source_prefix: 32, ..all },
            Rule { destination: address([192, 0, 2, 2]), ..all },
            Rule { source_ports: [0, 1023], ..all },
            Rule { destination_ports: [81, 90], ..all },
            Rule { protocol: 17, ..all },
            Rule { interface: 4, ..all },
            Rule { family: 6, ..rule(7) },
        ] {
            assert!(!wrong.matches(&packet, none, 3), "{wrong:?}");
        }
    }

    #[test]
    fn a_prefix_of_ipv6_ends_anywhere() {
        let words = |address: Ipv6Addr| -> [u64; 2] { zerocopy::transmute!(address.octets()) };
        let client: Ipv6Addr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        let addresses = Addresses { source: words(client), ..Addresses::default() };
        let source = (handle(addresses.source, 1), 0);
        let packet = Tuple::from_raw(17 | tuple::IPV6, source, (handle([0; 2], 1), 0));
        let from = |text: &str, bits| Rule {
            source: text.parse::<Ipv6Addr>().unwrap().octets(),
            source_prefix: bits,
            family: 6,
            protocol: 17,
            ..rule(7)
        };
        for (text, bits, expected) in [
            ("::", 0, true),
            ("2001:db8::", 32, true),
            ("2001:db8:1:3::", 63, true),
            ("2001:db8:1:3::", 64, false),
            ("2001:db8:1:2:2::", 79, true),
            ("2001:db8:1:2:2::", 80, false),
            ("2001:db8:1:2:3:4:5:6", 128, true),
            ("2001:db8:1:2:3:4:5:7", 128, false),
        ] {
            assert_eq!(from(text, bits).matches(&packet, &addresses, 1), expected, "{text}/{bits}");
        }
        assert!(rule(1).matches(&packet, &addresses, 1));
        assert!(!Rule { family: 4, ..rule(1) }.matches(&packet, &addresses, 1));
    }
}
