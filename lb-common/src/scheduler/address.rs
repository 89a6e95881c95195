//! Addresses as the hashing schedulers take them, and the hash of sh, dh, lblc and lblcr.
//!
//! IPVS counterpart: the `ip_vs_<name>_hashkey` functions.

/// The key of an IPv4 address in network order: the address as a number.
#[inline(always)]
pub const fn key_v4(address: [u8; 4]) -> u32 {
    u32::from_be_bytes(address)
}

/// The key of an IPv6 address in network order: its four 32-bit words, combined by exclusive or.
#[inline(always)]
pub fn key_v6(address: [u8; 16]) -> u32 {
    let (words, _) = address.as_chunks::<4>();
    words.iter().fold(0, |key, word| key ^ u32::from_be_bytes(*word))
}

/// [`key_v6`] of an address that was loaded natively as two words.
#[inline(always)]
pub const fn key_v6_words(address: [u64; 2]) -> u32 {
    let both = u64::from_be(address[0] ^ address[1]);
    (both >> 32) as u32 ^ both as u32
}

/// Multiplicative hashing: the upper `bits` (1 to 32) of the key times 2^32 over the golden ratio.
#[doc(alias = "hash_32")]
#[inline(always)]
pub const fn hash(key: u32, bits: u32) -> u32 {
    /// 2^32 * (1 - 1/phi), Knuth's multiplier as Linux has it.
    #[doc(alias = "GOLDEN_RATIO_32")]
    const MULTIPLIER: u32 = 0x61c8_8647;
    key.wrapping_mul(MULTIPLIER).wrapping_shr(32u32.wrapping_sub(bits))
}
