//! CRC32c, SCTP's checksum, mended where a packet's first four bytes are replaced: its ports.
//!
//! A CRC is linear: what it changes by depends on the change and on how many bytes follow, not on what they are. A change of
//! the first word is multiplied by x for each bit of the packet, modulo the polynomial; so nothing is read but the header,
//! and a checksum that was wrong stays wrong. IPVS counterpart: `sctp_nat_csum`, which computes it anew. Source of the
//! polynomial: RFC 9260, appendix A.

/// The polynomial without its highest term, the lowest power in the highest bit, as all numbers here.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The product of two polynomials.
#[inline(always)]
const fn multiply(one: u32, mut other: u32) -> u32 {
    let (mut product, mut bit) = (0, 0);
    while bit < 32 {
        // Without branches: each would be two ways for the verifier.
        product ^= other & 0u32.wrapping_sub(one >> (31 - bit) & 1);
        other = other >> 1 ^ POLYNOMIAL & 0u32.wrapping_sub(other & 1);
        bit += 1;
    }
    product
}

/// x to the eighth: what a number is multiplied by for a byte that follows it.
const BYTE: u32 = 0x0080_0000;

/// Steps that [`Mending`] takes.
pub const STEPS: u32 = 16;

/// What the checksum of a packet changes by, in the making: a step for each bit of its length.
#[derive(Debug, Clone, Copy)]
pub struct Mending {
    /// Bytes of the packet, from the SCTP header on.
    length: u32,
    /// The change so far.
    change: u32,
    /// The power of x that belongs to the next step.
    power: u32,
}

impl Mending {
    /// Begins with what the first word changes by, both loaded natively: old and new differ in it.
    #[inline(always)]
    pub const fn new(word: u32, length: u16) -> Self {
        Self { length: length as u32, change: u32::from_le(word), power: BYTE }
    }

    /// Takes a step.
    #[inline(always)]
    pub const fn step(&mut self) {
        let wanted = 0u32.wrapping_sub(self.length & 1);
        self.change = multiply(self.power, self.change) & wanted | self.change & !wanted;
        self.power = multiply(self.power, self.power);
        self.length >>= 1;
    }

    /// What the checksum changes by, as it stands in the header, loaded natively.
    #[inline(always)]
    pub const fn change(self) -> u32 {
        self.change.to_le()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The CRC of bytes, bit by bit.
    fn crc(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| if crc & 1 != 0 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
    }

    fn mended(word: u32, length: u16) -> u32 {
        let mut mending = Mending::new(word, length);
        (0..STEPS).for_each(|_| mending.step());
        mending.change()
    }

    #[test]
    fn the_reference_is_crc32c() {
        // RFC 3720, appendix B.4: 32 bytes of zeroes, and of ones.
        assert_eq!((crc(&[0; 32]), crc(&[0xff; 32])), (0x8a91_36aa, 0x62a8_ab43));
        assert_eq!(crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_product_is_one_of_polynomials() {
        const ONE: u32 = 0x8000_0000;
        let two_bytes = multiply(BYTE, BYTE);
        assert_eq!((multiply(BYTE, ONE), two_bytes), (BYTE, 0x0000_8000));
        assert_eq!(multiply(two_bytes, two_bytes), POLYNOMIAL);
    }

    proptest! {
        #[test]
        fn a_mended_checksum_is_the_computed_one(
            mut packet in proptest::collection::vec(any::<u8>(), 12..3000),
            ports: [u8; 4],
        ) {
            let before = crc(&packet);
            let old = u32::from_ne_bytes([packet[0], packet[1], packet[2], packet[3]]);
            packet[..4].copy_from_slice(&ports);
            let change = mended(old ^ u32::from_ne_bytes(ports), packet.len() as u16);
            // The checksum stands in the header with its lowest byte first.
            prop_assert_eq!(before.to_le() ^ change, crc(&packet).to_le());
        }
    }
}
