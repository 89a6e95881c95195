//! What lblc and lblcr remember: an address that clients connect to, and the destinations that it has.
//!
//! An entry lies in a map that drops those that are unused for longest when it is full. It outlives changes of the
//! service's destinations, and is found no more when the service goes or gets another scheduler: then the number in its
//! key is nobody's. IPVS counterpart: `ip_vs_lblc_table`, `ip_vs_dest_set`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::destination::DestinationId;

/// Additions to an address's set of which the destinations are known; a power of two. The kernel knows them all.
pub const ADDITIONS: usize = 32;

/// No destination.
const NOBODY: DestinationId = u32::MAX;

/// Seconds after which what was not used in the expiration time is looked for and dropped, over and over.
#[doc(alias = "COUNT_FOR_FULL_EXPIRATION")]
pub const CHECKED: u32 = 30 * 60;

/// What is known of which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CacheKey {
    /// The address that clients connect to, loaded natively as two words; an IPv4 address in the first, as
    /// [`super::address::key_v4`] makes it.
    pub address: [u64; 2],
    /// [`crate::service::Service::cache`].
    pub cache: u64,
}

/// The destinations of an address: one for lblc, a set for lblcr.
#[doc(alias = "ip_vs_dest_set")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Cached {
    /// The tick of the last use, by the second.
    #[doc(alias = "lastuse")]
    pub used: u32,
    /// The tick of the last change of the set.
    #[doc(alias = "lastmod")]
    pub changed: u32,
    /// Destinations in the set.
    pub length: u32,
    /// Destinations that were ever added.
    pub added: u32,
    /// The destination of each addition, the next after the last over the oldest; none that is there if it was removed since.
    additions: [DestinationId; ADDITIONS],
}

impl Cached {
    /// Nothing.
    pub const EMPTY: Self = Self { used: 0, changed: 0, length: 0, added: 0, additions: [NOBODY; ADDITIONS] };

    /// Becomes [`Cached::EMPTY`], where it lies.
    #[inline(always)]
    pub fn clear(&mut self) {
        (self.used, self.changed, self.length, self.added) = (0, 0, 0, 0);
        self.additions = [NOBODY; ADDITIONS];
    }

    /// The member of a rank below [`Cached::ranks`]: the newest has 0. No destination for one that is gone.
    #[inline(always)]
    pub const fn member(&self, rank: u32) -> DestinationId {
        self.additions[self.place(rank)]
    }

    /// Ranks that may have a member.
    #[inline(always)]
    pub const fn ranks(&self) -> u32 {
        if self.added < ADDITIONS as u32 { self.added } else { ADDITIONS as u32 }
    }

    #[inline(always)]
    const fn place(&self, rank: u32) -> usize {
        self.added.wrapping_sub(1).wrapping_sub(rank) as usize & (ADDITIONS - 1)
    }

    /// Has this destination alone, if it never had more.
    #[inline(always)]
    pub const fn replace(&mut self, id: DestinationId, now: u32) {
        self.additions[0] = id;
        (self.length, self.added, self.changed) = (1, 1, now);
    }

    /// Takes a destination in as the newest, unless it is in.
    #[doc(alias = "ip_vs_dest_set_insert")]
    #[inline(always)]
    pub fn insert(&mut self, id: DestinationId, now: u32) {
        let mut is_in = false;
        for known in &self.additions {
            is_in |= *known == id;
        }
        if is_in {
            return;
        }
        let place = self.added as usize & (ADDITIONS - 1);
        if self.additions[place] == NOBODY {
            self.length = self.length.wrapping_add(1);
        }
        self.additions[place] = id;
        self.added = self.added.wrapping_add(1);
        self.changed = now;
    }

    /// Removes the member of a rank.
    #[doc(alias = "ip_vs_dest_set_erase")]
    #[inline(always)]
    pub const fn remove(&mut self, rank: u32, now: u32) {
        self.additions[self.place(rank)] = NOBODY;
        self.length = self.length.wrapping_sub(1);
        self.changed = now;
    }

    /// Whether it was dropped by now: at the last check it had not been used for the expiration time. Both times in
    /// ticks.
    #[doc(alias = "ip_vs_lblc_full_check")]
    #[inline(always)]
    pub const fn is_dropped(&self, expiration: u32, checked: u32, now: u32) -> bool {
        let since_check = if checked == 0 { 0 } else { now % checked };
        let unused = age(self.used, now);
        unused > since_check && unused - since_check > expiration
    }

    /// Whether the set has more than one and has not changed for the expiration time, in ticks: then one goes.
    #[inline(always)]
    pub const fn shrinks(&self, expiration: u32, now: u32) -> bool {
        self.length > 1 && age(self.changed, now) > expiration
    }
}

/// The ticks since another one; none if the clock was set back since.
#[inline(always)]
const fn age(since: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(since);
    if age as i32 > 0 { age } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn members(cached: &Cached) -> Vec<u32> {
        let all: Vec<u32> = (0..cached.ranks()).map(|rank| cached.member(rank)).collect();
        let members: Vec<u32> = all.into_iter().filter(|id| *id != NOBODY).collect();
        assert_eq!(members.len(), cached.length as usize);
        members
    }

    #[test]
    fn the_newest_comes_first_and_the_oldest_goes() {
        let mut cached = Cached::EMPTY;
        for id in 1..=3 {
            cached.insert(id, id);
        }
        cached.insert(2, 9);
        assert_eq!((members(&cached), cached.changed), ([3, 2, 1].to_vec(), 3));
        cached.remove(1, 9);
        assert_eq!((members(&cached), cached.changed), ([3, 1].to_vec(), 9));
        cached.insert(2, 10);
        assert_eq!(members(&cached), [2, 3, 1]);
        for id in 100..200 {
            cached.insert(id, 0);
        }
        assert_eq!(members(&cached), (168..200).rev().collect::<Vec<_>>());
        cached.remove(31, 0);
        assert_eq!(members(&cached), (169..200).rev().collect::<Vec<_>>());
        cached.insert(1, 0);
        assert_eq!((cached.length, cached.member(0)), (32, 1));
        cached.clear();
        assert_eq!(cached, Cached::EMPTY);
        cached.replace(7, 10);
        assert_eq!((members(&cached), cached.changed), ([7].to_vec(), 10));
    }

    #[test]
    fn what_is_unused_goes_at_the_next_check() {
        let cached = Cached { used: 1000, ..Cached::EMPTY };
        let dropped = |now| cached.is_dropped(100, 500, now);
        // A check at 1000, unused for none, and one at 1500.
        assert_eq!(
            [1000, 1099, 1101, 1499, 1500, 1501].map(dropped),
            [false, false, false, false, true, true]
        );
        // Just used at the check.
        assert!(!Cached { used: 1450, ..cached }.is_dropped(100, 500, 1700));
        assert!(!Cached { used: 1700, ..cached }.is_dropped(100, 500, 1600));
        // Over the end of the clock.
        assert!(Cached { used: u32::MAX - 10, ..cached }.is_dropped(100, 500, 600));
        assert!(!cached.is_dropped(u32::MAX, 500, 999));
    }

    #[test]
    fn a_set_that_rests_shrinks_to_one() {
        let mut cached = Cached::EMPTY;
        cached.replace(1, 0);
        assert!(!cached.shrinks(10, 1000));
        cached.insert(2, 100);
        assert_eq!([110, 111].map(|now| cached.shrinks(10, now)), [false, true]);
    }
}
