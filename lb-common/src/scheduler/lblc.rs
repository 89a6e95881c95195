//! Locality-based least connections: an address that clients connect to keeps its destination until that
//! has too much to do.
//!
//! Made for transparent caches, as `dh`. The driver looks into the [`super::cache`] first, and searches only if what it
//! holds does not serve, or is hot. IPVS counterpart: `ip_vs_lblc.c`.

use super::search::Champion;
use super::{Candidate, Cursor, Search};

/// Whether the cached destination, if it is not deleted, serves. An overloaded one keeps its clients.
#[inline(always)]
pub const fn serves(cached: &Candidate) -> bool {
    cached.weight > 0
}

/// Whether a destination has more active connections than it weighs.
#[doc(alias = "is_overloaded")]
#[inline(always)]
pub const fn is_hot(candidate: &Candidate) -> bool {
    candidate.active > candidate.weight
}

/// Whether a destination has less than half the active connections that it weighs, for which a hot one
/// is left.
#[inline(always)]
const fn is_idle(candidate: &Candidate) -> bool {
    candidate.active.saturating_mul(2) < candidate.weight
}

/// A search for another destination than the cached one, of lblc and lblcr: that of `wlc`.
#[doc(alias = "__ip_vs_lblc_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct Relief {
    other_idle: bool,
    others: Champion,
}

impl Relief {
    /// A search; there is no state.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { other_idle: false, others: Champion::nobody() }
    }

    /// Whether it relieves a hot destination, as another is idle; else the hot one goes on. For use after the pass.
    #[inline(always)]
    pub const fn relieves(&self) -> bool {
        self.other_idle
    }
}

impl Default for Relief {
    fn default() -> Self {
        Self::new()
    }
}

impl Search for Relief {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        self.other_idle |= is_idle(candidate);
        if candidate.usable() {
            self.others.challenge(position, candidate.cost(), candidate.weight);
        }
        false
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        (self.others.position(), Cursor::START)
    }
}

/// The choice over a list where an address has a destination of its own at a position, if one of its serves: the host's
/// driver.
pub fn choose(own: Option<u32>, candidates: &[Candidate]) -> Option<u32> {
    let mut relief = Relief::new();
    for (position, candidate) in (0..).zip(candidates) {
        relief.consider(position, candidate);
    }
    match own {
        Some(own) if !(is_hot(&candidates[own as usize]) && relief.relieves()) => Some(own),
        _ => relief.finish().0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    /// The name of the choice where the named destination is cached, 0 for none.
    fn pick(list: &List, cached: u32) -> u32 {
        let cached = (0..list.candidates.len() as u32).find(|position| list.name(*position) == cached);
        let own = cached.filter(|position| serves(&list.candidates[*position as usize]));
        choose(own, &list.candidates).map_or(0, |choice| list.name(choice))
    }

    #[test]
    fn without_a_cached_destination_as_wlc() {
        let mut list = List::with_weights(&[3, 1, 2]);
        assert_eq!(pick(&list, 0), 3);
        list.candidate(3).total = 5;
        assert_eq!(pick(&list, 0), 2);
    }

    #[test]
    fn the_cached_destination_stays() {
        let mut list = List::with_weights(&[3, 1, 2]);
        assert_eq!(pick(&list, 1), 1);
        list.candidate(1).overloaded = true;
        assert_eq!(pick(&list, 1), 1);
        list.candidate(1).weight = 0;
        assert_eq!(pick(&list, 1), 3);
    }

    #[test]
    fn hot_is_left_only_for_idle() {
        let mut list = List::with_weights(&[3, 4]);
        (list.candidate(1).active, list.candidate(1).total) = (3, 3);
        assert_eq!(pick(&list, 1), 1);
        (list.candidate(1).active, list.candidate(1).total) = (4, 4);
        assert_eq!(pick(&list, 1), 2);
        (list.candidate(2).active, list.candidate(2).total) = (2, 2);
        assert_eq!(pick(&list, 1), 1);
    }

    #[test]
    fn nobody_is_left() {
        let mut list = List::with_weights(&[0, 1]);
        list.candidate(2).overloaded = true;
        assert_eq!(pick(&list, 1), 0);
        assert_eq!(pick(&list, 0), 0);
    }
}
