//! Source hashing: a client always gets the destination that its address points to.
//!
//! User space fills a table of 256 buckets when the set changes (also on an edit); a packet hashes its
//! source address, and its port if the service has `sh-port`, into a bucket. With `sh-fallback` an
//! unusable destination leads to other buckets, else to none. IPVS counterpart: `ip_vs_sh.c`.

use super::address;

/// Buckets in a table.
#[doc(alias = "IP_VS_SH_TAB_SIZE")]
pub const BUCKETS: usize = 256;

/// Entry of a bucket without destination: the set is empty.
pub const EMPTY: u32 = u32::MAX;

/// The bucket of a client, 0 to 255: `address_key` from [`address`], `port` in host order with
/// `sh-port`, else 0.
#[doc(alias = "ip_vs_sh_hashkey")]
#[inline(always)]
pub const fn bucket(address_key: u32, port: u16) -> u32 {
    address::hash(address_key.wrapping_add(port as u32), 8)
}

/// The bucket to try as number `offset` (0 to 255) with `sh-fallback`, after a client's own one led
/// to an unusable destination. The order begins at twice the bucket's number. An empty bucket ends it.
#[doc(alias = "ip_vs_sh_get_fallback")]
#[inline(always)]
pub const fn probe(bucket: u32, offset: u32) -> u32 {
    bucket.wrapping_add(bucket).wrapping_add(offset) & (BUCKETS as u32 - 1)
}

/// The destination of a client, by the position that its bucket holds: the host's driver.
pub fn pick(
    table: &[u32; BUCKETS],
    bucket: u32,
    fallback: bool,
    usable: impl Fn(u32) -> bool,
) -> Option<u32> {
    let probes = if fallback { BUCKETS as u32 } else { 0 };
    core::iter::once(bucket)
        .chain((0..probes).map(|offset| probe(bucket, offset)))
        .map_while(|bucket| table.get(bucket as usize).copied().filter(|position| *position != EMPTY))
        .find(|position| usable(*position))
}

/// Fills a table with positions: each destination in list order takes as many buckets as it weighs,
/// round after round. One that weighs nothing takes a bucket too, and its clients get no service.
#[doc(alias = "ip_vs_sh_reassign")]
pub fn fill(weights: &[u32], table: &mut [u32; BUCKETS]) {
    table.fill(EMPTY);
    let round = weights.iter().zip(0u32..).flat_map(|(weight, position)| {
        // More than a table's worth cannot be seen.
        let share = (*weight).clamp(1, BUCKETS as u32) as usize;
        core::iter::repeat_n(position, share)
    });
    for (entry, position) in table.iter_mut().zip(round.cycle()) {
        *entry = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(weights: &[u32]) -> [u32; BUCKETS] {
        let mut table = [0; BUCKETS];
        fill(weights, &mut table);
        table
    }

    #[test]
    fn kernel_vectors() {
        let at = |address, port| bucket(address::key_v4(address), port);
        assert_eq!(at([10, 0, 0, 2], 0), 137);
        assert_eq!(at([192, 168, 1, 10], 0), 248);
        assert_eq!(at([203, 0, 113, 7], 0), 124);
        assert_eq!(at([0, 0, 0, 0], 0), 0);
        assert_eq!(at([255, 255, 255, 255], 0), 158);
        assert_eq!(at([10, 0, 0, 2], 12345), 232);
        assert_eq!(at([192, 168, 1, 10], 40000), 156);
    }

    #[test]
    fn ipv6_folds_into_the_same_hash() {
        let address: core::net::Ipv6Addr = "1:2:0:30:400::9".parse().unwrap();
        assert_eq!(address::key_v6(address.octets()), 0x0001_0002 ^ 0x0000_0030 ^ 0x0400_0000 ^ 0x0000_0009);
        let words = zerocopy::transmute!(address.octets());
        assert_eq!(address::key_v6_words(words), address::key_v6(address.octets()));
        let mapped: core::net::Ipv6Addr = "::10.0.0.2".parse().unwrap();
        assert_eq!(bucket(address::key_v6(mapped.octets()), 0), 137);
    }

    #[test]
    fn buckets_go_round_by_weight() {
        // Weights 3, 1, 2 were added in order: destinations 3 3 2 1 1 1 and again.
        let table = filled(&[2, 1, 3]);
        let expected = [0, 0, 1, 2, 2, 2];
        for (index, position) in table.iter().enumerate() {
            assert_eq!(*position, expected[index % 6], "bucket {index}");
        }
    }

    #[test]
    fn weight_zero_takes_a_bucket_and_gives_none() {
        let table = filled(&[0, 1]);
        assert_eq!(table[..4], [0, 1, 0, 1]);
        assert_eq!(pick(&table, 2, false, |position| position != 0), None);
        assert_eq!(pick(&table, 3, false, |position| position != 0), Some(1));
    }

    #[test]
    fn huge_weights_and_empty_sets() {
        assert_eq!(filled(&[u32::MAX, 1]), [0; BUCKETS]);
        let empty = filled(&[]);
        assert_eq!(empty, [EMPTY; BUCKETS]);
        assert_eq!(pick(&empty, 0, true, |_| true), None);
    }

    #[test]
    fn fallback_begins_at_twice_the_bucket() {
        assert_eq!((probe(137, 0), probe(137, 1), probe(137, 255)), (18, 19, 17));
        let table: [u32; BUCKETS] = core::array::from_fn(|index| index as u32);
        assert_eq!(pick(&table, 137, true, |_| true), Some(137));
        assert_eq!(pick(&table, 137, true, |position| position != 137), Some(18));
        assert_eq!(pick(&table, 137, true, |position| position == 17), Some(17));
        assert_eq!(pick(&table, 137, true, |_| false), None);
        assert_eq!(pick(&table, 137, false, |position| position != 137), None);
    }
}
