//! Never queue: an idle destination if there is one, whatever its weight, else as `sed`.
//!
//! UDP connections are never active, so that for them the newest destination always wins.
//! IPVS counterpart: `ip_vs_nq.c`.

use super::search::Champion;
use super::{Candidate, Cursor, Search, sed};

/// The newest usable destination without active connections; else the shortest expected delay.
#[doc(alias = "ip_vs_nq_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct NeverQueue {
    idle: Option<u32>,
    delay: Champion,
}

impl NeverQueue {
    /// A search; there is no state.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { idle: None, delay: Champion::nobody() }
    }
}

impl Default for NeverQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl Search for NeverQueue {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if !candidate.usable() {
            return false;
        }
        if candidate.active == 0 {
            self.idle = Some(position);
            return true;
        }
        self.delay.challenge(position, sed::cost(candidate), candidate.weight);
        false
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        (self.idle.or(self.delay.position()), Cursor::START)
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    #[test]
    fn idle_destinations_come_first() {
        let mut list = List::with_weights(&[3, 1, 2]);
        // Each once, newest first; from then on sed with counts 1, 1, 1: 2/3 against 2/1 and 2/2.
        assert_eq!(list.connect(5, |_| NeverQueue::new()), [3, 2, 1, 1, 3]);
    }

    #[test]
    fn udp_always_goes_to_the_head_of_the_list() {
        let mut list = List::with_weights(&[3, 1, 2]);
        assert_eq!(list.connect_inactive(3, |_| NeverQueue::new()), [3, 3, 3]);
    }

    #[test]
    fn idle_is_not_enough() {
        let mut list = List::with_weights(&[1, 0, 2]);
        list.candidate(1).active = 5;
        list.candidate(3).overloaded = true;
        assert_eq!(list.connect(1, |_| NeverQueue::new()), [1]);
        list.candidate(1).overloaded = true;
        assert_eq!(list.connect(1, |_| NeverQueue::new()), [0]);
    }
}
