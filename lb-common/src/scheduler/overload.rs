//! Thresholds: a destination takes no new connections from the upper one on until it is below the lower one.
//!
//! Connections of any state count, templates do not. Overload only keeps schedulers away: existing
//! connections and valid templates go on. IPVS counterpart: `__ip_vs_dest_update_overload`.

/// A destination's thresholds, in connections, as configured: `lower` is not above `upper`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Thresholds {
    /// No new connections from this many on; 0 is no limit.
    #[doc(alias = "u_threshold")]
    pub upper: u32,
    /// New connections again below this many; 0 is three quarters of the upper one.
    #[doc(alias = "l_threshold")]
    pub lower: u32,
}

impl Thresholds {
    /// The lower threshold in force: three quarters of the upper one, rounded up, where none is configured.
    #[inline(always)]
    pub const fn effective_lower(self) -> u32 {
        if self.lower == 0 { self.upper - self.upper / 4 } else { self.lower }
    }

    /// Whether the destination is overloaded after a connection came; `total` counts it already.
    #[inline(always)]
    pub const fn overloaded_after_bind(self, total: u32, overloaded: bool) -> bool {
        overloaded || self.upper != 0 && total == self.upper
    }

    /// Whether the destination is overloaded after a connection went; `total` does not count it any more.
    #[inline(always)]
    pub const fn overloaded_after_unbind(self, total: u32, overloaded: bool) -> bool {
        overloaded && total.wrapping_add(1) != self.effective_lower()
    }

    /// Whether the destination is overloaded after these thresholds were set.
    #[inline(always)]
    pub const fn overloaded_after_edit(self, total: u32, overloaded: bool) -> bool {
        if self.upper == 0 || total < self.effective_lower() {
            false
        } else {
            overloaded || total >= self.upper
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// Overload after each of `totals`, coming from the one before.
    fn follow(thresholds: Thresholds, totals: &[u32]) -> Vec<bool> {
        let step = |(before, overloaded): &mut (u32, bool), total: &u32| {
            *overloaded = if total > before {
                thresholds.overloaded_after_bind(*total, *overloaded)
            } else {
                thresholds.overloaded_after_unbind(*total, *overloaded)
            };
            *before = *total;
            Some(*overloaded)
        };
        totals.iter().scan((0, false), step).collect()
    }

    #[test]
    fn two_admit_two() {
        let thresholds = Thresholds { upper: 2, lower: 0 };
        assert_eq!(thresholds.effective_lower(), 2);
        assert_eq!(follow(thresholds, &[1, 2, 1, 2, 1, 0]), [false, true, false, true, false, false]);
    }

    #[test]
    fn the_lower_threshold_is_left_behind() {
        let thresholds = Thresholds { upper: 4, lower: 2 };
        let totals = [1, 2, 3, 4, 3, 2, 1, 2, 3, 4];
        let expected = [false, false, false, true, true, true, false, false, false, true];
        assert_eq!(follow(thresholds, &totals), expected);
    }

    #[test]
    fn three_quarters_round_up() {
        let lower = |upper| Thresholds { upper, lower: 0 }.effective_lower();
        assert_eq!([0, 1, 2, 3, 4, 5, 7, 8, 100].map(lower), [0, 1, 2, 3, 3, 4, 6, 6, 75]);
        assert_eq!(Thresholds { upper: 9, lower: 1 }.effective_lower(), 1);
    }

    #[test]
    fn without_thresholds_there_is_no_overload() {
        let none = Thresholds::default();
        assert!(!none.overloaded_after_bind(0, false));
        assert!(!none.overloaded_after_bind(u32::MAX, false));
        assert!(!none.overloaded_after_edit(u32::MAX, true));
    }

    #[test]
    fn an_edit_decides_anew_outside_the_thresholds() {
        let thresholds = Thresholds { upper: 8, lower: 4 };
        assert!(thresholds.overloaded_after_edit(8, false));
        assert!(thresholds.overloaded_after_edit(9, false));
        assert!(!thresholds.overloaded_after_edit(3, true));
        for unchanged in [true, false] {
            assert_eq!(thresholds.overloaded_after_edit(4, unchanged), unchanged);
            assert_eq!(thresholds.overloaded_after_edit(7, unchanged), unchanged);
        }
    }

    #[test]
    fn more_than_the_threshold_is_set_by_an_edit_and_cleared_on_the_way_down() {
        let thresholds = Thresholds { upper: 2, lower: 0 };
        assert!(thresholds.overloaded_after_edit(5, false));
        assert!(thresholds.overloaded_after_unbind(4, true));
        assert!(thresholds.overloaded_after_unbind(2, true));
        assert!(!thresholds.overloaded_after_unbind(1, true));
    }
}
