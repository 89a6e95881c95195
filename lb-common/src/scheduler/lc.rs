//! Least connections: the usable destination whose connections cost least, whatever its weight.
//!
//! IPVS counterpart: `ip_vs_lc.c`.

use super::search::Champion;
use super::{Candidate, Cursor, Search};

/// The smallest [`Candidate::cost`]; on a tie the newest destination.
#[doc(alias = "ip_vs_lc_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct LeastConnections(Champion);

impl LeastConnections {
    /// A search; there is no state.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(Champion::nobody())
    }
}

impl Default for LeastConnections {
    fn default() -> Self {
        Self::new()
    }
}

impl Search for LeastConnections {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if candidate.usable() {
            self.0.challenge(position, candidate.cost(), 1);
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
