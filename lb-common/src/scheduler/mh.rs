//! Maglev hashing: as `sh`, but a change of the set moves few clients.
//!
//! User space fills a large table when the set changes (also on an edit): each destination has its own
//! pseudo-random order of the entries and takes its next free one in turn, more at a time the heavier it
//! is. A packet hashes its source address into the table. Weight 0 does not disturb the table, which goes
//! by the last weight that was not 0. IPVS counterpart: `ip_vs_mh.c`.

/// Table sizes that the kernel can be built with, all prime, by `CONFIG_IP_VS_MH_TAB_INDEX` from 8 on.
#[doc(alias = "primes")]
pub const SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071];

/// The default table size, of index 12.
pub const DEFAULT_SIZE: u32 = 4093;

/// Entry without destination: no destination has weight.
pub const EMPTY: u32 = u32::MAX;

/// Key of the first hash: a client's entry, and where a destination's order begins.
const KEY_OFFSET: u64 = 2_654_435_761;
/// Key of the second hash: a destination's step.
const KEY_SKIP: u64 = 2_654_446_892;

/// A table that cannot be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PopulateError {
    /// The table's length is none of [`SIZES`].
    Size,
    /// There are more destinations than entries.
    TooManyDestinations,
}

/// The entry of a client in a table of `size` (one of [`SIZES`], not 0): `address_key` from
/// [`address`](super::address), `port` in host order with `mh-port`, else 0.
#[doc(alias = "ip_vs_mh_get")]
#[inline(always)]
pub const fn bucket(address_key: u32, port: u16, size: u32) -> u32 {
    remainder(hash(0, address_key, port, KEY_OFFSET), size)
}

/// The entry to try as number `offset` (0 to `size` - 1) with `mh-fallback`, after a client's own one,
/// `bucket`, led to an unusable destination.
#[doc(alias = "ip_vs_mh_get_fallback")]
#[inline(always)]
pub const fn probe(bucket: u32, offset: u32, address_key: u32, port: u16, size: u32) -> u32 {
    let offset = remainder(offset.wrapping_add(bucket), size);
    remainder(hash(offset, address_key, port, KEY_OFFSET), size)
}

/// The destination of a client, by the position that its entry holds: the host's driver.
pub fn pick(
    table: &[u32],
    address_key: u32,
    port: u16,
    fallback: bool,
    usable: impl Fn(u32) -> bool,
) -> Option<u32> {
    let size = table.len() as u32;
    let own = bucket(address_key, port, size);
    let probes = if fallback { size } else { 0 };
    core::iter::once(own)
        .chain((0..probes).map(|offset| probe(own, offset, address_key, port, size)))
        .map_while(|bucket| table.get(bucket as usize).copied().filter(|position| *position != EMPTY))
        .find(|position| usable(*position))
}

/// A destination's order of the table's entries, and how many it takes at a time.
#[doc(alias = "ip_vs_mh_dest_setup")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permutation {
    next: u32,
    skip: u32,
    turns: u32,
}

impl Permutation {
    /// The order of a destination by its own address and port (in host order), in a table of `size`.
    #[doc(alias = "ip_vs_mh_permutate")]
    pub const fn new(address_key: u32, port: u16, turns: u32, size: u32) -> Self {
        Self {
            next: remainder(hash(0, address_key, port, KEY_OFFSET), size),
            skip: remainder(hash(0, address_key, port, KEY_SKIP), size.wrapping_sub(1)) + 1,
            turns,
        }
    }

    /// The entry it likes best of those that it did not ask for yet.
    const fn ask(&mut self, size: u32) -> u32 {
        let entry = self.next;
        self.next = remainder(entry.wrapping_add(self.skip), size);
        entry
    }
}

/// How many entries a destination takes at a time, by its last weight that was not 0 and those of all:
/// the weights over their common divisor, shifted so that they fit half the digits of the table's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    divisor: u32,
    shift: u32,
}

impl Turns {
    /// The rule for these last weights and a table of `size`, one of [`SIZES`].
    #[doc(alias = "ip_vs_mh_shift_weight")]
    pub fn new(last_weights: impl IntoIterator<Item = u32>, size: u32) -> Self {
        let (divisor, heaviest) = last_weights.into_iter().fold((0, 0), |(divisor, heaviest), weight| {
            (super::wrr::gcd(divisor, weight), weight.max(heaviest))
        });
        let divisor = divisor.max(1);
        // The index of the size in the kernel's configuration is its binary digits.
        let digits = (u32::BITS - size.leading_zeros()) / 2;
        let shift = (u32::BITS - (heaviest / divisor).leading_zeros()).saturating_sub(digits);
        Self { divisor, shift }
    }

    /// The turns of a destination with this last weight; 0 only if that is 0.
    pub const fn of(self, last_weight: u32) -> u32 {
        match (last_weight / self.divisor) >> self.shift {
            0 if last_weight > 0 => 1,
            turns => turns,
        }
    }
}

/// Fills a table with positions in the list. `permutations` holds a destination each, in list order, and
/// is used up.
///
/// # Errors
///
/// [`PopulateError`] if the table's length is none of [`SIZES`] or there are too many destinations; the
/// table is left as it was.
#[doc(alias = "ip_vs_mh_populate")]
pub fn populate(permutations: &mut [Permutation], table: &mut [u32]) -> Result<(), PopulateError> {
    let Some(size) = SIZES.into_iter().find(|size| *size as usize == table.len()) else {
        return Err(PopulateError::Size);
    };
    if permutations.len() > table.len() {
        return Err(PopulateError::TooManyDestinations);
    }
    table.fill(EMPTY);
    let mut free = if permutations.iter().all(|permutation| permutation.turns == 0) { 0 } else { size };
    while free > 0 {
        for (permutation, position) in permutations.iter_mut().zip(0u32..) {
            for _ in 0..permutation.turns.min(free) {
                // The size is prime, so that each order comes by every entry.
                loop {
                    match table.get_mut(permutation.ask(size) as usize) {
                        Some(entry) if *entry == EMPTY => {
                            *entry = position;
                            break;
                        }
                        _ => {}
                    }
                }
                free -= 1;
            }
        }
    }
    Ok(())
}

/// The kernel's hash: the low half of SipHash-1-3 over the sum as four bytes, with both key halves alike.
/// The kernel takes the sum in native order; where it is big-endian, it reads it back alike.
#[doc(alias = "ip_vs_mh_hashkey")]
#[inline(always)]
const fn hash(offset: u32, address_key: u32, port: u16, key: u64) -> u32 {
    siphash_1_3(offset.wrapping_add(port as u32).wrapping_add(address_key), key, key) as u32
}

/// SipHash with one round for each word and three at the end, over a number as its four bytes, least
/// significant first. Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012.
#[inline(always)]
const fn siphash_1_3(value: u32, key_0: u64, key_1: u64) -> u64 {
    // Four bytes make one word: the bytes, and their count on top.
    let word = 4 << 56 | value as u64;
    let state = [
        key_0 ^ 0x736f_6d65_7073_6575,
        key_1 ^ 0x646f_7261_6e64_6f6d,
        key_0 ^ 0x6c79_6765_6e65_7261,
        key_1 ^ 0x7465_6462_7974_6573 ^ word,
    ];
    let [a, b, c, d] = sip_round(state);
    let [a, b, c, d] = sip_round(sip_round(sip_round([a ^ word, b, c ^ 0xff, d])));
    a ^ b ^ c ^ d
}

/// One round of SipHash.
#[inline(always)]
const fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// The remainder of a division that the compiler can see is not by zero.
#[inline(always)]
const fn remainder(number: u32, divisor: u32) -> u32 {
    if divisor == 0 { 0 } else { number % divisor }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::super::address::key_v4;
    use super::*;

    /// Table of destinations with these addresses, port 80 and last weights, in list order.
    fn table(destinations: &[([u8; 4], u32)]) -> Vec<u32> {
        let turns = Turns::new(destinations.iter().map(|(_, weight)| *weight), DEFAULT_SIZE);
        let mut permutations: Vec<_> = destinations
            .iter()
            .map(|(address, weight)| Permutation::new(key_v4(*address), 80, turns.of(*weight), DEFAULT_SIZE))
            .collect();
        let mut table = vec![7; DEFAULT_SIZE as usize];
        populate(&mut permutations, &mut table).unwrap();
        table
    }

    fn share(table: &[u32], position: u32) -> usize {
        table.iter().filter(|entry| **entry == position).count()
    }

    #[test]
    fn kernel_hash_vectors() {
        let destination = key_v4([10, 1, 1, 2]);
        assert_eq!(hash(0, destination, 80, KEY_OFFSET), 1_706_830_006);
        let order = Permutation::new(destination, 80, 1, DEFAULT_SIZE);
        assert_eq!(order, Permutation { next: 3983, skip: 739, turns: 1 });
        assert_eq!(hash(0, key_v4([10, 0, 0, 2]), 0, KEY_OFFSET), 1_104_141_843);
        assert_eq!(bucket(key_v4([10, 0, 0, 2]), 0, DEFAULT_SIZE), 1884);
        assert_eq!(hash(0, key_v4([192, 168, 1, 10]), 40000, KEY_OFFSET), 406_010_850);
        assert_eq!(bucket(key_v4([192, 168, 1, 10]), 40000, DEFAULT_SIZE), 1622);
    }

    #[test]
    fn kernel_table() {
        // 10.1.1.2, 10.1.2.2 and 10.1.3.2 with weights 3, 1, 2 were added in order.
        let table = table(&[([10, 1, 3, 2], 2), ([10, 1, 2, 2], 1), ([10, 1, 1, 2], 3)]);
        assert_eq!((share(&table, 2), share(&table, 1), share(&table, 0)), (2046, 682, 1365));
        // Destinations 1 1 1 1 3 3 2 3.
        assert_eq!(table[..8], [2, 2, 2, 2, 0, 0, 1, 0]);
    }

    #[test]
    fn turns_fit_half_the_digits() {
        let turns = |weights: &[u32]| -> Vec<u32> {
            let rule = Turns::new(weights.iter().copied(), DEFAULT_SIZE);
            weights.iter().map(|weight| rule.of(*weight)).collect()
        };
        assert_eq!(turns(&[3, 1, 2]), [3, 1, 2]);
        assert_eq!(turns(&[300, 100, 0]), [3, 1, 0]);
        assert_eq!(turns(&[63, 1]), [63, 1]);
        // 64 has seven digits, one too many.
        assert_eq!(turns(&[64, 3, 1]), [32, 1, 1]);
        assert_eq!(turns(&[i32::MAX as u32, 1]), [63, 1]);
        assert_eq!(turns(&[0, 0]), [0, 0]);
        assert_eq!(
            SIZES.map(|size| u32::BITS - size.leading_zeros()),
            [8, 9, 10, 11, 12, 13, 14, 15, 16, 17]
        );
    }

    #[test]
    fn without_weight_the_table_is_empty() {
        assert_eq!(table(&[]), [EMPTY; 4093]);
        assert_eq!(table(&[([10, 1, 1, 2], 0)]), [EMPTY; 4093]);
        let table = table(&[([10, 1, 1, 2], 0), ([10, 1, 2, 2], 5)]);
        assert_eq!(table, [1; 4093]);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let one = Permutation::new(1, 80, 1, DEFAULT_SIZE);
        assert_eq!(populate(&mut [one], &mut [0; 4096]), Err(PopulateError::Size));
        assert_eq!(populate(&mut [one; 252], &mut [0; 251]), Err(PopulateError::TooManyDestinations));
        let mut table = [EMPTY; 251];
        let mut each: Vec<_> = (0..251).map(|address| Permutation::new(address, 80, 1, 251)).collect();
        populate(&mut each, &mut table).unwrap();
        table.sort_unstable();
        assert!(table.iter().zip(0..).all(|(entry, position)| *entry == position));
    }

    #[test]
    fn removing_a_destination_moves_few_clients() {
        let three = [([10, 1, 3, 2], 1), ([10, 1, 2, 2], 1), ([10, 1, 1, 2], 1)];
        let (before, after) = (table(&three), table(&three[..2]));
        let moved =
            before.iter().zip(&after).filter(|(before, after)| **before != 2 && before != after).count();
        assert!(moved < DEFAULT_SIZE as usize / 10, "{moved} entries moved");
    }

    #[test]
    fn pick_goes_by_the_table() {
        let client = key_v4([10, 0, 0, 2]);
        let table = table(&[([10, 1, 3, 2], 1), ([10, 1, 2, 2], 1)]);
        let own = table[bucket(client, 0, DEFAULT_SIZE) as usize];
        assert_eq!(pick(&table, client, 0, false, |_| true), Some(own));
        assert_eq!(pick(&table, client, 0, false, |position| position != own), None);
        assert_eq!(pick(&table, client, 0, true, |position| position != own), Some(1 - own));
        assert_eq!(pick(&table, client, 0, true, |_| false), None);
        assert_eq!(pick(&[], client, 0, true, |_| true), None);
    }

    #[test]
    fn fallback_hashes_on_from_the_entry() {
        let client = key_v4([10, 0, 0, 2]);
        let own = bucket(client, 0, DEFAULT_SIZE);
        assert_eq!(probe(own, 0, client, 0, DEFAULT_SIZE), hash(own, client, 0, KEY_OFFSET) % DEFAULT_SIZE);
        // The offset goes round: as many again as lead back to the plain hash.
        assert_eq!(probe(own, DEFAULT_SIZE - own, client, 0, DEFAULT_SIZE), own);
    }
}
