//! Weighted fail-over: everything to the heaviest usable destination.
//!
//! IPVS counterpart: `ip_vs_fo.c`.

use super::search::Heaviest;
use super::{Candidate, Cursor, Search};

/// The greatest weight; on a tie the newest destination.
#[doc(alias = "ip_vs_fo_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct WeightedFailOver(Heaviest);

impl WeightedFailOver {
    /// A search; there is no state.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(Heaviest::nobody())
    }
}

impl Default for WeightedFailOver {
    fn default() -> Self {
        Self::new()
    }
}

impl Search for WeightedFailOver {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if candidate.usable() {
            self.0.challenge(position, candidate.weight);
        }
        false
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        (self.0.position(), Cursor::START)
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
