//! Weighted overflow: the heaviest destination until it has as many active connections as it weighs,
//! then the next.
//!
//! The test is "more than", so that a destination gets one connection more than it weighs. UDP
//! connections are never active and never overflow. IPVS counterpart: `ip_vs_ovf.c`.

use super::search::Heaviest;
use super::{Candidate, Cursor, Search};

/// The greatest weight among those whose active connections do not exceed it; on a tie the newest
/// destination.
#[doc(alias = "ip_vs_ovf_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct WeightedOverflow(Heaviest);

impl WeightedOverflow {
    /// A search; there is no state.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(Heaviest::nobody())
    }
}

impl Default for WeightedOverflow {
    fn default() -> Self {
        Self::new()
    }
}

impl Search for WeightedOverflow {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if candidate.usable() && candidate.active <= candidate.weight {
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
    fn kernel_sequence_until_nothing_is_left() {
        let mut list = List::with_weights(&[2, 1, 3]);
        let sequence = list.connect(11, |_| WeightedOverflow::new());
        assert_eq!(sequence, [3, 3, 3, 3, 1, 1, 1, 2, 2, 0, 0]);
    }

    #[test]
    fn udp_never_overflows() {
        let mut list = List::with_weights(&[2, 1, 3]);
        assert_eq!(list.connect_inactive(9, |_| WeightedOverflow::new()), [3; 9]);
    }

    #[test]
    fn overloaded_and_draining_destinations_are_passed_over() {
        let mut list = List::with_weights(&[0, 1, 3]);
        list.candidate(3).overloaded = true;
        assert_eq!(list.connect(3, |_| WeightedOverflow::new()), [2, 2, 0]);
    }
}
