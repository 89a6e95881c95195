//! Weighted least connections: the usable destination whose connections cost least for its weight.
//!
//! IPVS counterpart: `ip_vs_wlc.c`.

use super::Candidate;
use super::search::{Best, Rule};

/// The search of this scheduler.
#[doc(alias = "ip_vs_wlc_schedule")]
pub type WeightedLeastConnections = Best<CheapestByWeight>;

/// The smallest [`Candidate::cost`] divided by weight.
#[derive(Debug, Clone, Copy)]
pub enum CheapestByWeight {}

impl Rule for CheapestByWeight {
    #[inline(always)]
    fn rate(candidate: &Candidate) -> Option<(u32, u32)> {
        candidate.usable().then(|| (candidate.cost(), candidate.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    fn connect(list: &mut List, count: usize) -> std::vec::Vec<u32> {
        list.connect(count, |_| WeightedLeastConnections::new())
    }

    #[test]
    fn kernel_sequence_with_fresh_tcp_connections() {
        let mut list = List::with_weights(&[3, 1, 2]);
        assert_eq!(connect(&mut list, 12), [3, 2, 1, 1, 3, 1, 3, 2, 1, 1, 3, 1]);
    }

    #[test]
    fn udp_is_spread_alike() {
        let mut list = List::with_weights(&[3, 1, 2]);
        let sequence = list.connect_inactive(6, |_| WeightedLeastConnections::new());
        assert_eq!(sequence, [3, 2, 1, 1, 3, 1]);
    }

    #[test]
    fn inactive_connections_count_as_one() {
        let mut list = List::with_weights(&[1, 1]);
        (list.candidate(2).active, list.candidate(2).total) = (1, 1);
        list.candidate(1).total = 256;
        assert_eq!(connect(&mut list, 2), [1, 2]);
    }

    #[test]
    fn draining_and_overloaded_destinations_are_passed_over() {
        let mut list = List::with_weights(&[0, 1, 5]);
        list.candidate(3).overloaded = true;
        assert_eq!(connect(&mut list, 2), [2, 2]);
    }

    #[test]
    fn largest_weights_and_counts_do_not_overflow() {
        let mut list = List::with_weights(&[i32::MAX as u32, i32::MAX as u32 - 1]);
        for name in [1, 2] {
            (list.candidate(name).active, list.candidate(name).total) = (u32::MAX - 1, u32::MAX - 1);
        }
        assert_eq!(connect(&mut list, 1), [1]);
    }
}
