//! Shortest expected delay: the usable destination that would have the fewest active connections for
//! its weight after taking one more.
//!
//! UDP connections are never active, so that for them the heaviest destination always wins.
//! IPVS counterpart: `ip_vs_sed.c`.

use super::Candidate;
use super::search::{Best, Rule};

/// The search of this scheduler.
#[doc(alias = "ip_vs_sed_schedule")]
pub type ShortestExpectedDelay = Best<Delay>;

/// The smallest number of active connections, plus one, divided by weight.
#[derive(Debug, Clone, Copy)]
pub enum Delay {}

/// What an active connection more would cost.
#[doc(alias = "ip_vs_sed_dest_overhead")]
#[inline(always)]
pub(super) const fn cost(candidate: &Candidate) -> u32 {
    candidate.active.saturating_add(1)
}

impl Rule for Delay {
    #[inline(always)]
    fn rate(candidate: &Candidate) -> Option<(u32, u32)> {
        candidate.usable().then(|| (cost(candidate), candidate.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    #[test]
    fn kernel_sequence_with_fresh_tcp_connections() {
        let mut list = List::with_weights(&[3, 1, 2]);
        let sequence = list.connect(8, |_| ShortestExpectedDelay::new());
        assert_eq!(sequence, [1, 3, 1, 3, 2, 1, 1, 3]);
    }

    #[test]
    fn udp_always_goes_to_the_heaviest() {
        let mut list = List::with_weights(&[3, 1, 2]);
        assert_eq!(list.connect_inactive(3, |_| ShortestExpectedDelay::new()), [1, 1, 1]);
        let mut list = List::with_weights(&[3, 3, 2]);
        assert_eq!(list.connect_inactive(3, |_| ShortestExpectedDelay::new()), [2, 2, 2]);
    }

    #[test]
    fn draining_and_overloaded_destinations_are_passed_over() {
        let mut list = List::with_weights(&[0, 1, 5]);
        list.candidate(3).overloaded = true;
        assert_eq!(list.connect(2, |_| ShortestExpectedDelay::new()), [2, 2]);
    }
}
