//! Weighted fail-over: everything to the heaviest usable destination.
//!
//! IPVS counterpart: `ip_vs_fo.c`.

use super::Candidate;
use super::search::{Best, Rule};

/// The search of this scheduler.
#[doc(alias = "ip_vs_fo_schedule")]
pub type WeightedFailOver = Best<Weight>;

/// The greatest weight.
#[derive(Debug, Clone, Copy)]
pub enum Weight {}

impl Rule for Weight {
    #[inline(always)]
    fn rate(candidate: &Candidate) -> Option<(u32, u32)> {
        candidate.usable().then_some((1, candidate.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    #[test]
    fn the_heaviest_until_it_fails() {
        let mut list = List::with_weights(&[2, 9, 9, 0]);
        assert_eq!(list.connect(2, |_| WeightedFailOver::new()), [3, 3]);
        list.candidate(3).weight = 0;
        assert_eq!(list.connect(2, |_| WeightedFailOver::new()), [2, 2]);
        list.candidate(2).overloaded = true;
        assert_eq!(list.connect(2, |_| WeightedFailOver::new()), [1, 1]);
        list.candidate(1).weight = 0;
        assert_eq!(list.connect(1, |_| WeightedFailOver::new()), [0]);
    }
}
