//! Destination hashing: an address that clients connect to always gets the same destination.
//!
//! User space fills a table of 256 buckets when destinations are added or removed, but not on an edit;
//! a packet hashes its destination address into a bucket. Made for transparent caches, behind a firewall
//! mark. IPVS counterpart: `ip_vs_dh.c`.

use super::address;

/// Buckets in a table.
#[doc(alias = "IP_VS_DH_TAB_SIZE")]
pub const BUCKETS: usize = 256;

/// Entry of a bucket without destination: the set is empty.
pub const EMPTY: u32 = u32::MAX;

/// The bucket of a destination address, 0 to 255; `address_key` from [`address`]. If the destination it
/// leads to is not usable, there is none.
#[doc(alias = "ip_vs_dh_hashkey")]
#[inline(always)]
pub const fn bucket(address_key: u32) -> u32 {
    address::hash(address_key, 8)
}

/// Fills a table with the positions 0 to `destinations` - 1, one bucket each, round after round; weights
/// do not matter.
#[doc(alias = "ip_vs_dh_reassign")]
pub fn fill(destinations: u32, table: &mut [u32; BUCKETS]) {
    table.fill(EMPTY);
    for (entry, position) in table.iter_mut().zip((0..destinations).cycle()) {
        *entry = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_vector() {
        let mut table = [0; BUCKETS];
        fill(3, &mut table);
        let bucket = bucket(address::key_v4([10, 0, 0, 100]));
        assert_eq!(bucket, 248);
        // The third in the list.
        assert_eq!(table[bucket as usize], 2);
    }

    #[test]
    fn one_bucket_each() {
        let mut table = [0; BUCKETS];
        fill(3, &mut table);
        assert_eq!(table[..5], [0, 1, 2, 0, 1]);
        assert_eq!(table[255], 0);
        fill(0, &mut table);
        assert_eq!(table, [EMPTY; BUCKETS]);
    }
}
