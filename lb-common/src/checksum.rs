//! Internet checksums: changing one along with the bytes that it covers, and computing one.
//!
//! The checksum is the complement of the one's complement sum of the 16-bit words that it covers. In such
//! a sum a carry out of the top bit comes in again at the bottom, so that counting is modulo 65535, zero
//! has two forms (0x0000 and 0xffff), and `!x` is `-x`. Hence a word that becomes another adds
//! `!old + new` to the sum, wherever it stands and whatever else is covered: that is a [`Delta`]. Deltas
//! add up, so the one of a connection's addresses and ports is computed when the connection is made, and
//! a packet costs one addition.
//!
//! Rotating all words by a byte rotates the sum by a byte, so the sum does not mind the byte order
//! as long as it is the same for all. Here words are loaded natively from bytes in network order, and
//! the result is stored natively; numbers in host order never come in.
//!
//! IPVS counterpart: `ip_vs_check_diff4` and its relatives in `include/net/ip_vs.h`. Source: RFC 1624.

/// What a change of covered bytes adds to the one's complement sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delta(u32);

impl Delta {
    /// Of no change.
    pub const NONE: Self = Self(0);

    /// Adds the change of `N` bytes in network order (2, 4, 16, ...), which begin at an even offset into
    /// what is covered. `N` must be even. Up to 32,767 words can be added before a [`Delta::pack`].
    #[inline(always)]
    #[must_use]
    pub fn replace<const N: usize>(self, old: [u8; N], new: [u8; N]) -> Self {
        const { assert!(N.is_multiple_of(2)) };
        let (old, _) = old.as_chunks::<2>();
        let (new, _) = new.as_chunks::<2>();
        let words = old.iter().zip(new).map(|(old, new)| u32::from(!word(*old)) + u32::from(word(*new)));
        Self(words.fold(self.0, u32::wrapping_add))
    }

    /// Both changes together.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(fold(self.0) as u32 + fold(other.0) as u32)
    }

    /// The change back: what the reply needs if this is what the request needs.
    #[inline(always)]
    #[must_use]
    pub const fn inverse(self) -> Self {
        Self(!fold(self.0) as u32)
    }

    /// As two bytes, for storing with a connection. In the machine's byte order: of no use elsewhere.
    #[inline(always)]
    pub const fn pack(self) -> u16 {
        fold(self.0)
    }

    /// From what [`Delta::pack`] gave.
    #[inline(always)]
    pub const fn unpack(packed: u16) -> Self {
        Self(packed as u32)
    }

    /// The checksum after the change, as in the packet. For IPv4 headers, TCP, ICMP; for UDP there is
    /// [`Delta::apply_udp`]. A wrong checksum stays wrong.
    #[inline(always)]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        self.apply_to(word(checksum)).to_ne_bytes()
    }

    #[inline(always)]
    const fn apply_to(self, checksum: u16) -> u16 {
        // RFC 1624, equation 3, HC' = ~(~HC + ~m + m'); the older one, HC + m + ~m', can end in the
        // other zero.
        let sum = !checksum as u32 + fold(self.0) as u32;
        // Two words together carry once at most.
        !(sum + (sum >> 16)) as u16
    }

    /// The checksum of a UDP datagram after the change: an absent one (zero) stays absent, a computed
    /// zero is written in its other form.
    #[inline(always)]
    pub const fn apply_udp(self, checksum: [u8; 2]) -> [u8; 2] {
        // As one number to the end, so that it is stored as one.
        let new = match word(checksum) {
            0 => 0,
            there => match self.apply_to(there) {
                0 => 0xffff,
                new => new,
            },
        };
        new.to_ne_bytes()
    }
}

/// A computed checksum as UDP writes it: zero, which would say that there is none, becomes 0xffff.
#[inline(always)]
pub const fn udp(checksum: [u8; 2]) -> [u8; 2] {
    if word(checksum) == 0 { [0xff, 0xff] } else { checksum }
}

/// The one's complement sum of words, for computing a checksum from nothing.
///
/// Bytes come in pieces; all but the last must have even length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sum(u32);

impl Sum {
    /// Of nothing.
    pub const ZERO: Self = Self(0);

    /// Adds bytes in network order, an odd one at the end as if a zero followed. Up to 65,535 bytes
    /// can be added in all.
    #[inline(always)]
    #[must_use]
    pub fn with(self, bytes: &[u8]) -> Self {
        let (words, odd) = bytes.as_chunks::<2>();
        let last = odd.first().map_or(0, |byte| word([*byte, 0]));
        Self(
            words
                .iter()
                .fold(self.0.wrapping_add(last.into()), |sum, pair| sum.wrapping_add(word(*pair).into())),
        )
    }

    /// Both sums together, of pieces that are not more than 65,535 bytes in all; the first had even length.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0.wrapping_add(other.0))
    }

    /// The checksum, as it goes into the packet. A checksum field among the bytes must have been zero;
    /// over bytes with their right checksum the result is zero.
    #[inline(always)]
    pub const fn finish(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }
}

/// A word as this module counts it.
#[inline(always)]
const fn word(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}

/// The sum in 16 bits: carries come in again at the bottom.
#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rfc_1624_example() {
        // A field of an IP header goes from 0x5555 to 0x3285, where the old checksum is 0xdd2f.
        let delta = Delta::NONE.replace([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.apply([0xdd, 0x2f]), [0x00, 0x00]);
    }

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::ZERO.with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.finish(), [!0xdd, !0xf2]);
    }

    #[test]
    fn two_zeroes_of_udp() {
        let delta = Delta::NONE.replace([0x55, 0x55], [0x32, 0x85]);
        assert_eq!(delta.apply_udp([0x00, 0x00]), [0x00, 0x00]);
        assert_eq!(delta.apply_udp([0xdd, 0x2f]), [0xff, 0xff]);
        // A zero in its other form is a checksum like any other.
        assert_eq!(delta.inverse().apply_udp([0xff, 0xff]), [0xdd, 0x2f]);
        assert_eq!(Delta::NONE.apply_udp([0xff, 0xff]), [0xff, 0xff]);
        assert_eq!(udp([0, 0]), [0xff, 0xff]);
        assert_eq!(udp([0, 1]), [0, 1]);
    }

    #[test]
    fn ipv4_header() {
        let mut header = [
            0x45, 0x00, 0x00, 0x3c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0x00, 0x00, 0xac, 0x10, 0x0a, 0x63,
            0xac, 0x10, 0x0a, 0x0c,
        ];
        let checksum = Sum::ZERO.with(&header).finish();
        assert_eq!(checksum, [0xb1, 0xe6]);
        header[10..12].copy_from_slice(&checksum);
        assert_eq!(Sum::ZERO.with(&header).finish(), [0, 0]);
        // One hop further: 0x4006 becomes 0x3f06.
        header[8] -= 1;
        header[10..12].copy_from_slice(&Delta::NONE.replace([0x40, 0x06], [0x3f, 0x06]).apply(checksum));
        assert_eq!(Sum::ZERO.with(&header).finish(), [0, 0]);
    }

    /// What TCP covers: pseudo header and ports of an IPv6 segment, then a payload that is never all zero.
    fn covered() -> impl Strategy<Value = (std::vec::Vec<u8>, [u8; 16], [u8; 2])> {
        let payload = prop::collection::vec(any::<u8>(), 0..80);
        let bytes = payload.prop_map(|payload| [&[0x11, 0x06][..], &[0; 18], &payload].concat());
        (bytes, any::<[u8; 16]>(), any::<[u8; 2]>())
    }

    proptest! {
        #[test]
        fn update_equals_recomputation(
            (mut bytes, address, port) in covered(),
            before in any::<[u8; 18]>(),
        ) {
            bytes[2..20].copy_from_slice(&before);
            let checksum = Sum::ZERO.with(&bytes).finish();
            let old_address: [u8; 16] = bytes[2..18].try_into().unwrap();
            let old_port: [u8; 2] = bytes[18..20].try_into().unwrap();
            bytes[2..18].copy_from_slice(&address);
            bytes[18..20].copy_from_slice(&port);
            let expected = Sum::ZERO.with(&bytes).finish();

            let of_address = Delta::NONE.replace(old_address, address);
            let of_port = Delta::NONE.replace(old_port, port);
            let delta = of_address.replace(old_port, port);
            prop_assert_eq!(delta.apply(checksum), expected);
            prop_assert_eq!(of_address.and(of_port).apply(checksum), expected);
            prop_assert_eq!(Delta::unpack(delta.pack()).apply(checksum), expected);
            prop_assert_eq!(delta.inverse().apply(expected), checksum);
            prop_assert_eq!(delta.apply_udp(udp(checksum)), udp(expected));
        }

        #[test]
        fn sum_may_be_added_in_pieces(bytes in prop::collection::vec(any::<u8>(), 0..99), at in 0usize..49) {
            let (first, rest) = bytes.split_at((at * 2).min(bytes.len() & !1));
            prop_assert_eq!(Sum::ZERO.with(first).with(rest), Sum::ZERO.with(&bytes));
        }

        #[test]
        fn wrong_stays_wrong(checksum in any::<u16>(), error in 1u16..0xffff, old in any::<[u8; 4]>(), new in any::<[u8; 4]>()) {
            let delta = Delta::NONE.replace(old, new);
            let right = delta.apply(checksum.to_ne_bytes());
            let wrong = delta.apply((checksum ^ error).to_ne_bytes());
            // 0x0000 and 0xffff are the same number.
            prop_assume!(checksum.wrapping_add(1) > 1 || (checksum ^ error).wrapping_add(1) > 1);
            prop_assert_ne!(right, wrong);
        }
    }
}
