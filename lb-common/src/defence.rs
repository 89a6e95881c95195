//! The defences against floods: when they act, and how hard.
//!
//! IPVS judges once a second by the memory that is free. Tables of a fixed size do not run out of memory but of places, so
//! here the free places of the connection table are judged, in pages of memory too. What is done then is not decided
//! here, but by whoever makes, advances and sweeps connections.
//! IPVS counterpart: `update_defense_level` in `ip_vs_ctl.c`.

use crate::connection::{Set, WAYS};

/// Places for entries that a page of memory (4,096 bytes) of the connection table has.
const PER_PAGE: u32 = 4096 / size_of::<Set>() as u32 * WAYS as u32;

/// At most this part of the table counts as a reserve, however many pages are asked for: one in so many places.
const RESERVE: u32 = 8;

/// The defence is off.
pub const OFF: u32 = 0;
/// The defence acts while places are scarce, and they are not.
pub const IDLE: u32 = 1;
/// The defence acts while places are scarce, and they are.
pub const ACTIVE: u32 = 2;
/// The defence acts.
pub const ALWAYS: u32 = 3;

/// How full the connection table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Places that have an entry.
    pub occupied: u32,
    /// Sets of [`WAYS`] places.
    pub sets: u32,
}

impl Fill {
    /// Places in the table.
    const fn places(self) -> u32 {
        self.sets.wrapping_mul(WAYS as u32)
    }

    /// Places that are free.
    const fn free(self) -> u32 {
        self.places().saturating_sub(self.occupied)
    }

    /// With fewer free places than this they are scarce; `pages` is the sysctl `amemthresh`.
    const fn threshold(self, pages: u32) -> u32 {
        let (asked, reserve) = (pages.saturating_mul(PER_PAGE), self.places() / RESERVE);
        if asked < reserve { asked } else { reserve }
    }

    /// Whether places are scarce.
    #[inline(always)]
    pub const fn is_scarce(self, pages: u32) -> bool {
        self.free() < self.threshold(pages)
    }

    /// One of how many new connections is refused by itself: of the fewer the fewer places are free, and 0, which
    /// is none, while they are not scarce.
    #[inline(always)]
    pub const fn drop_rate(self, pages: u32) -> u32 {
        let (threshold, free) = (self.threshold(pages), self.free());
        if free < threshold { threshold / (threshold - free) } else { 0 }
    }
}

/// Whether a defence in this mode acts.
#[inline(always)]
pub const fn acts(mode: u32, scarce: bool) -> bool {
    match mode {
        OFF => false,
        IDLE | ACTIVE => scarce,
        _ => true,
    }
}

/// The mode as the sysctl shows it: of [`IDLE`] and [`ACTIVE`], whichever was set, that which is so now.
pub const fn shown(mode: u32, scarce: bool) -> u32 {
    match mode {
        IDLE | ACTIVE if scarce => ACTIVE,
        IDLE | ACTIVE => IDLE,
        other => other,
    }
}

/// One of how many new connections `drop_packet` refuses; 0 is none. `always` is the sysctl `am_droprate`.
#[inline(always)]
pub const fn drop_rate(mode: u32, always: u32, fill: Fill, pages: u32) -> u32 {
    match mode {
        OFF => 0,
        IDLE | ACTIVE => fill.drop_rate(pages),
        _ if always == 0 => 1,
        _ => always,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table that a director has unless told otherwise, with so many of its 458,752 places free.
    const fn usual(free: u32) -> Fill {
        Fill { occupied: (1 << 16) * 7 - free, sets: 1 << 16 }
    }

    #[test]
    fn pages_are_places() {
        // 1,024 pages, IPVS's default, are 4 MiB: of the usual table an eighth.
        assert!(!usual(57_344).is_scarce(1024) && usual(57_343).is_scarce(1024));
        assert!(!usual(560).is_scarce(10) && usual(559).is_scarce(10));
        assert!(!usual(0).is_scarce(0));
    }

    #[test]
    fn a_small_table_keeps_an_eighth() {
        let fill = |occupied| Fill { occupied, sets: 64 };
        assert!(!fill(392).is_scarce(1024) && fill(393).is_scarce(1024));
        assert!(!fill(392).is_scarce(u32::MAX) && fill(393).is_scarce(u32::MAX));
        // More than there are, counted while entries moved.
        assert!(fill(500).is_scarce(1024));
    }

    #[test]
    fn the_fewer_places_the_more_is_refused() {
        // amemthresh / (amemthresh - free), as IPVS has it of memory.
        let rates = [57_344, 57_343, 50_000, 40_000, 28_672, 100, 0].map(|free| usual(free).drop_rate(1024));
        assert_eq!(rates, [0, 57_344, 7, 3, 2, 1, 1]);
    }

    #[test]
    fn modes() {
        let of = |mode| [false, true].map(|scarce| (acts(mode, scarce), shown(mode, scarce)));
        assert_eq!(of(OFF), [(false, 0), (false, 0)]);
        assert_eq!(of(IDLE), [(false, 1), (true, 2)]);
        assert_eq!(of(ACTIVE), [(false, 1), (true, 2)]);
        assert_eq!(of(ALWAYS), [(true, 3), (true, 3)]);
    }

    #[test]
    fn drop_packet_goes_by_its_mode() {
        let rate = |mode, always, free| drop_rate(mode, always, usual(free), 1024);
        assert_eq!([rate(0, 10, 0), rate(1, 10, 0), rate(2, 10, 28_672), rate(3, 10, 0)], [0, 1, 2, 10]);
        assert_eq!([rate(1, 10, 60_000), rate(2, 10, 60_000), rate(3, 0, 60_000)], [0, 0, 1]);
    }
}
