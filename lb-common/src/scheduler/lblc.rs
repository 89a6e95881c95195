//! Locality-based least connections: an address that clients connect to keeps its destination until that
//! has too much to do.
//!
//! Made for transparent caches, as `dh`. The cache from destination address to destination, its expiry and
//! its limits are the caller's; this decides whether what the cache holds still serves, and what does
//! otherwise. IPVS counterpart: `ip_vs_lblc.c`.

use super::search::Champion;
use super::{Candidate, Cursor, Search};

/// Seconds without use after which a cached choice goes.
#[doc(alias = "lblc_expiration")]
pub const DEFAULT_EXPIRATION: u32 = 86_400;

/// The cached destination, unless it has no weight or is hot while another is idle; else as `wlc`.
///
/// The caller stores the choice under the address and refreshes its last use.
#[doc(alias = "ip_vs_lblc_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct LocalityLeastConnections {
    cached: Option<u32>,
    serves: bool,
    hot: bool,
    other_idle: bool,
    others: Champion,
}

impl LocalityLeastConnections {
    /// A search for an address whose cached destination, if it is still in the list, has this position.
    #[inline(always)]
    pub const fn new(cached: Option<u32>) -> Self {
        Self { cached, serves: false, hot: false, other_idle: false, others: Champion::NONE }
    }
}

/// Whether a destination has more active connections than it weighs.
#[inline(always)]
pub(super) const fn is_hot(candidate: &Candidate) -> bool {
    candidate.active > candidate.weight
}

/// Whether a destination has less than half the active connections that it weighs, for which a hot one
/// is left.
#[inline(always)]
pub(super) const fn is_idle(candidate: &Candidate) -> bool {
    candidate.active.saturating_mul(2) < candidate.weight
}

impl Search for LocalityLeastConnections {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if self.cached == Some(position) {
            // An overloaded one keeps its clients.
            self.serves = candidate.weight > 0;
            self.hot = is_hot(candidate);
        }
        self.other_idle |= is_idle(candidate);
        if candidate.usable() {
            self.others.challenge(position, candidate.cost(), candidate.weight);
        }
        false
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        let stays = self.serves && !(self.hot && self.other_idle);
        (if stays { self.cached } else { self.others.position() }, Cursor::START)
    }
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::super::simulation::List;
    use super::*;

    /// The name of the choice where the named destination is cached, 0 for none.
    fn pick(list: &List, cached: u32) -> u32 {
        let cached = (0..list.candidates.len() as u32).find(|position| list.name(*position) == cached);
        run(LocalityLeastConnections::new(cached), &list.candidates).0.map_or(0, |choice| list.name(choice))
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
