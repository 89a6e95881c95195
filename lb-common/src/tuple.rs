//! A flow's addresses and ports as seen on the wire, and their hash.
//!
//! The bytes stay in network order, loaded natively: nothing converts on the packet path, and getters
//! return native types. A flow of IPv6 has handles in the place of addresses, so that all that handles tuples is the same for
//! both families. IPVS counterpart: `ip_vs_conn_param` and `ip_vs_conn_hashkey`.

use core::net::Ipv4Addr;

/// Bit of [`Tuple::protocol`]: the flow is one of IPv6, and its addresses are handles. No protocol that is
/// balanced has it in its number.
pub const IPV6: u8 = 0x40;

/// What stands for an IPv6 address in a tuple: a hash under a secret seed.
///
/// Two addresses may have the same handle, once in four thousand million pairs, and nobody outside can tell which. Whoever finds
/// an entry by its tuple compares the addresses that lie beside it.
#[inline(always)]
pub const fn handle(address: [u64; 2], seed: u64) -> u32 {
    let mut state = (address[0] ^ seed).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^= state >> 32;
    state = (state ^ address[1] ^ seed.rotate_left(29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((state ^ state >> 29) >> 16) as u32
}

/// A flow in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tuple {
    /// Source and destination address, the eight bytes that follow each other in the header, loaded natively; of IPv6
    /// their handles.
    pub addresses: u64,
    /// Source and destination port, the four bytes that follow each other in the header, loaded natively.
    pub ports: u32,
    /// IP protocol number, with [`IPV6`] in it for a flow of that family.
    pub protocol: u8,
}

impl Tuple {
    /// IP protocol number.
    #[inline(always)]
    pub const fn transport(self) -> u8 {
        self.protocol & !IPV6
    }

    /// Whether the addresses are handles.
    #[inline(always)]
    pub const fn is_ipv6(self) -> bool {
        self.protocol & IPV6 != 0
    }

    /// A tuple from host values.
    pub fn new(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (source.0.octets(), destination.0.octets());
        let ([i, j], [k, l]) = (source.1.to_be_bytes(), destination.1.to_be_bytes());
        Self {
            addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            ports: u32::from_ne_bytes([i, j, k, l]),
            protocol,
        }
    }

    /// A tuple from raw halves, each loaded natively from network order.
    #[inline(always)]
    pub fn from_raw(protocol: u8, source: (u32, u16), destination: (u32, u16)) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (source.0.to_ne_bytes(), destination.0.to_ne_bytes());
        let ([i, j], [k, l]) = (source.1.to_ne_bytes(), destination.1.to_ne_bytes());
        Self {
            addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            ports: u32::from_ne_bytes([i, j, k, l]),
            protocol,
        }
    }

    /// The same flow seen from the other end.
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self {
            addresses: self.addresses.rotate_left(32),
            ports: self.ports.rotate_left(16),
            protocol: self.protocol,
        }
    }

    /// Source address, loaded natively.
    #[inline(always)]
    pub const fn raw_source(self) -> u32 {
        let [a, b, c, d, ..] = self.addresses.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Destination address, loaded natively.
    #[inline(always)]
    pub const fn raw_destination(self) -> u32 {
        let [.., a, b, c, d] = self.addresses.to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Source port, loaded natively.
    #[inline(always)]
    pub const fn raw_source_port(self) -> u16 {
        let [a, b, ..] = self.ports.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }

    /// Destination port, loaded natively.
    #[inline(always)]
    pub const fn raw_destination_port(self) -> u16 {
        let [.., a, b] = self.ports.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }

    /// Source address.
    pub fn source(self) -> Ipv4Addr {
        Ipv4Addr::from(self.raw_source().to_ne_bytes())
    }

    /// Destination address.
    pub fn destination(self) -> Ipv4Addr {
        Ipv4Addr::from(self.raw_destination().to_ne_bytes())
    }

    /// Source port.
    #[inline(always)]
    pub const fn source_port(self) -> u16 {
        u16::from_be(self.raw_source_port())
    }

    /// Destination port.
    #[inline(always)]
    pub const fn destination_port(self) -> u16 {
        u16::from_be(self.raw_destination_port())
    }

    /// What follows the addresses, as one number: as it lies in memory, on the little-endian machines that the packet program
    /// is for.
    #[inline(always)]
    pub const fn end(self) -> u64 {
        self.ports as u64 | (self.protocol as u64) << 32
    }

    /// A 64-bit hash of the tuple under a secret seed, so that nobody outside can aim at one set.
    ///
    /// Two rounds of multiply and xor-shift, each a bijection of the running state (the constants are those
    /// of Stafford's thirteenth variant of the SplitMix64 finaliser). The seed is in what the ports are mixed with, so that
    /// it hides what they do too.
    #[inline(always)]
    pub const fn hash(self, seed: u64) -> u64 {
        let mut state = (self.addresses ^ seed).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state ^= state >> 32;
        state = (state ^ self.end()).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ state >> 29
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOW: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 40_000);
    const VIP: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 168, 1, 100), 80);

    #[test]
    fn getters_return_what_was_given() {
        let tuple = Tuple::new(6, FLOW, VIP);
        assert_eq!((tuple.source(), tuple.source_port()), FLOW);
        assert_eq!((tuple.destination(), tuple.destination_port()), VIP);
        assert_eq!(tuple.reversed(), Tuple::new(6, VIP, FLOW));
        let raw = |(address, port): (Ipv4Addr, u16)| (u32::from_ne_bytes(address.octets()), port.to_be());
        assert_eq!(Tuple::from_raw(6, raw(FLOW), raw(VIP)), tuple);
    }

    #[test]
    fn hash_spreads_neighbouring_ports_evenly_over_sets() {
        const SETS: usize = 1024;
        let mut load = [0u32; SETS];
        for port in 0..=u16::MAX {
            let tuple = Tuple::new(6, (FLOW.0, port), VIP);
            load[tuple.hash(0x1234_5678_9abc_def0) as usize % SETS] += 1;
        }
        // 64 expected a set, standard deviation 8: beyond 7 deviations the hash is at fault, not chance.
        let (low, high) = (load.iter().min(), load.iter().max());
        assert!(load.iter().all(|load| (8..=120).contains(load)), "{low:?} to {high:?}");
    }

    #[test]
    fn handles_differ_by_both_halves_and_the_seed() {
        let mut seen = std::collections::HashSet::new();
        for first in 0..50 {
            for second in 0..50 {
                assert!(seen.insert(handle([first, second], 1)), "{first} {second}");
                assert_ne!(handle([first, second], 1), handle([first, second], 2));
            }
        }
    }

    #[test]
    fn seed_and_protocol_matter() {
        let tuple = Tuple::new(6, FLOW, VIP);
        assert_ne!(tuple.hash(1), tuple.hash(2));
        assert_ne!(tuple.hash(1), Tuple { protocol: 17, ..tuple }.hash(1));
    }
}
