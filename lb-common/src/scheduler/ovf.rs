//! Weighted overflow: the heaviest destination until it has as many active connections as it weighs,
//! then the next.
//!
//! The test is "more than", so that a destination gets one connection more than it weighs. UDP
//! connections are never active and never overflow. IPVS counterpart: `ip_vs_ovf.c`.

use super::Candidate;
use super::search::{Best, Rule};

/// The search of this scheduler.
#[doc(alias = "ip_vs_ovf_schedule")]
pub type WeightedOverflow = Best<Spare>;

/// The greatest weight among those whose active connections do not exceed it.
#[derive(Debug, Clone, Copy)]
pub enum Spare {}

impl Rule for Spare {
    #[inline(always)]
    fn rate(candidate: &Candidate) -> Option<(u32, u32)> {
        let has_room = candidate.usable() && candidate.active <= candidate.weight;
        has_room.then_some((1, candidate.weight))
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
