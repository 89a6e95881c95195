//! Cutting a packet up that is several still, as a socket hands them to the stack: one header for all, and one piece of payload
//! after the other behind it.
//!
//! A network card does that, or the kernel in its place: what TCP and UDP mean by it is the same (generic segmentation offload).
//! Sources: RFC 9293, RFC 3168 for CWR, RFC 6864 for the identification.

use crate::checksum::Delta;
use crate::packet::{IPV4, IPV6};
use crate::protocol::tcp::{CWR, FIN, PSH};

/// Bytes of a TCP header without its options.
pub const TCP: usize = 20;

/// One of the packets that a packet is still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its place, from 0 on.
    pub number: u32,
    /// Bytes of payload before it.
    pub from: u32,
    /// Bytes of its payload.
    pub length: u32,
    /// Whether none comes behind it.
    pub is_last: bool,
}

impl Piece {
    /// The one at a place, where each has `size` bytes of payload and all together have `payload`; nothing if there are not so
    /// many.
    #[inline(always)]
    pub fn at(number: u32, size: u32, payload: u32) -> Option<Self> {
        let from = number.wrapping_mul(size);
        let left = payload.checked_sub(from).filter(|left| *left != 0 && size != 0)?;
        let is_last = left <= size;
        Some(Self { number, from, length: if is_last { left } else { size }, is_last })
    }

    /// Makes the IPv4 header of all that of this one, which has `length` bytes with it.
    #[inline(always)]
    pub fn cut_ipv4(self, header: &mut [u8; IPV4], length: u16) {
        let [_, _, a, b, c, d, ..] = *header;
        let [e, f] = length.to_be_bytes();
        let [g, h] = u16::from_be_bytes([c, d]).wrapping_add(self.number as u16).to_be_bytes();
        let delta = Delta::NONE.replace([a, b, c, d], [e, f, g, h]);
        header[2..6].copy_from_slice(&[e, f, g, h]);
        let checksum = delta.apply([header[10], header[11]]);
        header[10..12].copy_from_slice(&checksum);
    }

    /// The same of an IPv6 header; `length` counts it.
    #[inline(always)]
    pub fn cut_ipv6(self, header: &mut [u8; IPV6], length: u16) {
        header[4..6].copy_from_slice(&length.wrapping_sub(IPV6 as u16).to_be_bytes());
    }

    /// Makes the TCP header of all that of this one, but for the checksum.
    #[inline(always)]
    pub fn cut_tcp(self, header: &mut [u8; TCP]) {
        let [_, _, _, _, a, b, c, d, ..] = *header;
        let sequence = u32::from_be_bytes([a, b, c, d]).wrapping_add(self.from);
        header[4..8].copy_from_slice(&sequence.to_be_bytes());
        if !self.is_last {
            header[13] &= !(FIN | PSH);
        }
        if self.number != 0 {
            header[13] &= !CWR;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::checksum::Sum;

    proptest! {
        #[test]
        fn pieces_are_all_of_the_payload_one_after_the_other(size in 1u32..2000, payload in 1u32..65_000) {
            let pieces: Vec<_> = (0..).map_while(|number| Piece::at(number, size, payload)).collect();
            prop_assert_eq!(pieces.len() as u32, payload.div_ceil(size));
            let mut next = 0;
            for piece in &pieces {
                prop_assert_eq!(piece.from, next);
                prop_assert!(piece.length <= size && (piece.length == size || piece.is_last));
                next += piece.length;
            }
            prop_assert_eq!(next, payload);
            prop_assert_eq!(pieces.iter().filter(|piece| piece.is_last).count(), 1);
        }

        #[test]
        fn the_checksum_of_an_ipv4_header_stays_right(bytes: [u8; IPV4], number in 0u32..50, length: u16) {
            let mut header = bytes;
            header[10..12].fill(0);
            let checksum = Sum::ZERO.with(&header).finish();
            header[10..12].copy_from_slice(&checksum);
            let piece = Piece { number, from: 0, length: 1, is_last: false };
            piece.cut_ipv4(&mut header, length);
            prop_assert_eq!(Sum::ZERO.with(&header).finish(), [0, 0]);
            prop_assert_eq!(u16::from_be_bytes([header[2], header[3]]), length);
            let identification = |header: &[u8]| u16::from_be_bytes([header[4], header[5]]);
            prop_assert_eq!(identification(&header), identification(&bytes).wrapping_add(number as u16));
        }
    }

    #[test]
    fn nothing_is_a_piece_of_nothing() {
        assert_eq!(Piece::at(0, 0, 10), None);
        assert_eq!(Piece::at(0, 10, 0), None);
        assert_eq!(Piece::at(1, 10, 10), None);
    }

    #[test]
    fn what_is_said_once_is_said_by_the_first_or_by_the_last() {
        let mut header = [0; TCP];
        header[4..8].copy_from_slice(&0xffff_ff00u32.to_be_bytes());
        header[13] = 0x10 | FIN | PSH | CWR;
        let cut = |number| {
            let mut header = header;
            Piece::at(number, 256, 700).unwrap().cut_tcp(&mut header);
            (u32::from_be_bytes([header[4], header[5], header[6], header[7]]), header[13])
        };
        assert_eq!(
            [cut(0), cut(1), cut(2)],
            [(0xffff_ff00, 0x10 | CWR), (0, 0x10), (0x100, 0x10 | FIN | PSH)]
        );
        let mut ipv6 = [0; IPV6];
        Piece::at(0, 256, 700).unwrap().cut_ipv6(&mut ipv6, 316);
        assert_eq!(ipv6[4..6], [1, 20]);
    }
}
