//! Least connections: the usable destination whose connections cost least, whatever its weight.
//!
//! IPVS counterpart: `ip_vs_lc.c`.

use super::Candidate;
use super::search::{Best, Rule};

/// The search of this scheduler.
#[doc(alias = "ip_vs_lc_schedule")]
pub type LeastConnections = Best<Cheapest>;

/// The smallest [`Candidate::cost`], whatever the weight.
#[derive(Debug, Clone, Copy)]
pub enum Cheapest {}

impl Rule for Cheapest {
    #[inline(always)]
    fn rate(candidate: &Candidate) -> Option<(u32, u32)> {
        candidate.usable().then(|| (candidate.cost(), 1))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    fn connect(list: &mut List, count: usize) -> std::vec::Vec<u32> {
        list.connect(count, |_| LeastConnections::new())
    }

    #[test]
    fn ties_go_to_the_newest() {
        assert_eq!(connect(&mut List::with_weights(&[1, 1, 1]), 7), [3, 2, 1, 3, 2, 1, 3]);
    }

    #[test]
    fn weight_counts_only_as_zero_or_not() {
        assert_eq!(connect(&mut List::with_weights(&[9, 0, 1]), 4), [3, 1, 3, 1]);
    }

    #[test]
    fn an_active_connection_outweighs_256_inactive_ones() {
        let mut list = List::with_weights(&[1, 1]);
        (list.candidate(1).active, list.candidate(1).total) = (0, 256);
        (list.candidate(2).active, list.candidate(2).total) = (1, 1);
        assert_eq!(connect(&mut list.clone(), 1), [1]);
        list.candidate(1).total = 257;
        assert_eq!(connect(&mut list, 1), [2]);
    }

    #[test]
    fn overloaded_destinations_are_passed_over() {
        let mut list = List::with_weights(&[1, 1]);
        list.candidate(2).overloaded = true;
        assert_eq!(connect(&mut list, 2), [1, 1]);
        list.candidate(1).overloaded = true;
        assert_eq!(connect(&mut list, 1), [0]);
    }
}
