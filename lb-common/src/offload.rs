//! Checksums that senders leave to others: a sender with checksum offload writes the sum of the pseudo-header alone where
//! the checksum belongs, for its network card to go on from there.
//!
//! A veth is no network card, and so such packets come in by it as they are. The stack knows, from beside the packet; XDP
//! sees the packet alone.

use crate::checksum::{Sum, udp};
use crate::packet::{FRAGMENT_BITS, IPV4, IPV6};
use crate::protocol::Protocol;

/// A TCP segment or a UDP datagram, told by the IP header before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Bytes of the IP header.
    pub header: u16,
    /// Bytes of the segment.
    pub length: u16,
    /// Where its checksum stands in it.
    pub place: u16,
    pseudo: Sum,
}

impl Segment {
    /// Told by an IPv4 header without its options; nothing if it is of something else, or of a fragment.
    #[inline(always)]
    pub fn of_ipv4(header: &[u8; IPV4]) -> Option<Self> {
        let [first, _, high, low, _, _, fragment, offset, _, protocol, _, _, addresses @ ..] = *header;
        let bytes = u16::from(first & 15) * 4;
        if first >> 4 != 4 || u16::from_be_bytes([fragment, offset]) & FRAGMENT_BITS != 0 {
            return None;
        }
        let length = u16::from_be_bytes([high, low]).checked_sub(bytes)?;
        Self::new(bytes, length, protocol, Sum::ZERO.with(&addresses))
    }

    /// Told by an IPv6 header; nothing if what follows is something else, an extension header among them.
    #[inline(always)]
    pub fn of_ipv6(header: &[u8; IPV6]) -> Option<Self> {
        let [first, _, _, _, high, low, protocol, _, addresses @ ..] = header;
        if first >> 4 != 6 {
            return None;
        }
        let length = u16::from_be_bytes([*high, *low]);
        Self::new(IPV6 as u16, length, *protocol, Sum::ZERO.with(addresses))
    }

    /// Told by the length of the IP header with all that belongs to it, that of the segment, its protocol, and the sum of both
    /// addresses.
    #[inline(always)]
    pub fn new(header: u16, length: u16, protocol: u8, addresses: Sum) -> Option<Self> {
        let (place, least) = match Protocol::from_number(protocol)? {
            Protocol::Tcp => (16, 20),
            Protocol::Udp => (6, 8),
            _ => return None,
        };
        if length < least {
            return None;
        }
        let [high, low] = length.to_be_bytes();
        Some(Self { header, length, place, pseudo: addresses.with(&[0, protocol, high, low]) })
    }

    /// What stands where the checksum belongs while it is left to others.
    #[inline(always)]
    pub const fn left(self) -> [u8; 2] {
        let [high, low] = self.pseudo.finish();
        [!high, !low]
    }

    /// The sum of all of the segment once its checksum is right, whatever it contains: with that of the pseudo-header it is zero.
    #[inline(always)]
    pub fn summed(self) -> Sum {
        Sum::ZERO.with(&self.pseudo.finish())
    }

    /// The checksum, if it was left to others: from the sum of all of the segment, [`left`](Self::left) in its place. Nothing
    /// if the checksum is there, and happens to look like that.
    #[inline(always)]
    pub fn checksum(self, sum: Sum) -> Option<[u8; 2]> {
        if self.pseudo.and(sum).finish() == [0, 0] {
            return None;
        }
        // To TCP zero and 0xffff are the same.
        Some(udp(sum.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: [u8; 21] = [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0, 7];

    fn header(length: u16, fragment: u16, protocol: u8) -> [u8; IPV4] {
        let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 11, 192, 168, 1, 10];
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header
    }

    /// The checksum as RFC 9293 computes it.
    fn expected(segment: Segment, addresses: &[u8], protocol: u8, bytes: &[u8]) -> [u8; 2] {
        let pseudo = Sum::ZERO.with(addresses).with(&[0, protocol]).with(&segment.length.to_be_bytes());
        pseudo.and(Sum::ZERO.with(bytes)).finish()
    }

    #[test]
    fn what_was_left_is_done() {
        let header = header(41, 0x4000, 6);
        let segment = Segment::of_ipv4(&header).unwrap();
        assert_eq!((segment.header, segment.length, segment.place), (20, 21, 16));
        let wanted = expected(segment, &header[12..], 6, &SEGMENT);
        let mut bytes = SEGMENT;
        bytes[16..18].copy_from_slice(&segment.left());
        assert_eq!(segment.checksum(Sum::ZERO.with(&bytes)), Some(wanted));
        bytes[16..18].copy_from_slice(&wanted);
        assert_eq!(segment.summed().finish(), Sum::ZERO.with(&bytes).finish());

        let mut header = [0; IPV6];
        (header[0], header[5], header[6]) = (0x60, 21, 6);
        header[8..].copy_from_slice(&[9; 32]);
        let segment = Segment::of_ipv6(&header).unwrap();
        assert_eq!((segment.header, segment.length, segment.place), (40, 21, 16));
        let wanted = expected(segment, &header[8..], 6, &SEGMENT);
        bytes[16..18].copy_from_slice(&segment.left());
        assert_eq!(segment.checksum(Sum::ZERO.with(&bytes)), Some(wanted));
    }

    #[test]
    fn a_checksum_that_looks_as_if_it_was_left_stays() {
        let header = header(41, 0, 6);
        let segment = Segment::of_ipv4(&header).unwrap();
        let mut bytes = SEGMENT;
        bytes[16..18].copy_from_slice(&segment.left());
        // A payload that makes it right.
        let [high, low] = expected(segment, &header[12..], 6, &bytes);
        let sum = Sum::ZERO.with(&bytes).and(Sum::ZERO.with(&[high, low]));
        assert_eq!(segment.checksum(sum), None);
    }

    #[test]
    fn only_whole_segments_of_tcp_and_udp_have_one() {
        assert!(Segment::of_ipv4(&header(28, 0, 17)).is_some_and(|segment| segment.place == 6));
        for (length, fragment, protocol) in
            [(27, 0, 17), (39, 0, 6), (19, 0, 6), (41, 0x2000, 6), (41, 1, 6), (41, 0, 1), (41, 0, 132)]
        {
            assert_eq!(Segment::of_ipv4(&header(length, fragment, protocol)), None);
        }
        assert_eq!(Segment::of_ipv4(&[0x65; IPV4]), None);
        let mut ipv6 = [0; IPV6];
        (ipv6[0], ipv6[5], ipv6[6]) = (0x60, 8, 17);
        assert!(Segment::of_ipv6(&ipv6).is_some());
        ipv6[6] = 44;
        assert_eq!(Segment::of_ipv6(&ipv6), None);
    }
}
