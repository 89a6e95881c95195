//! Round robin: each usable destination in turn, whatever its weight.
//!
//! User space moves the cursor when the list changes: [`Cursor::after_insertion`],
//! [`Cursor::after_removal`]. IPVS counterpart: `ip_vs_rr.c`.

use super::{Candidate, Cursor, Search};

/// The next usable destination after the cursor, once around.
#[doc(alias = "ip_vs_rr_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct RoundRobin {
    cursor: Cursor,
    choice: Option<u32>,
}

impl RoundRobin {
    /// A search that goes on from where the last one stopped.
    #[inline(always)]
    pub const fn new(cursor: Cursor) -> Self {
        Self { cursor, choice: None }
    }
}

impl Search for RoundRobin {
    const ROTATES: bool = true;

    #[inline(always)]
    fn first(&self) -> u32 {
        self.cursor.next()
    }

    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if candidate.usable() {
            self.choice = Some(position);
        }
        self.choice.is_some()
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        match self.choice {
            Some(position) => (self.choice, Cursor { position, ..self.cursor }),
            None => (None, self.cursor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    #[test]
    fn newest_first_in_turn() {
        let mut list = List::with_weights(&[1, 1, 1]);
        assert_eq!(list.connect(8, RoundRobin::new), [3, 2, 1, 3, 2, 1, 3, 2]);
    }

    #[test]
    fn weight_counts_only_as_zero_or_not() {
        let mut list = List::with_weights(&[5, 0, 1]);
        assert_eq!(list.connect(4, RoundRobin::new), [3, 1, 3, 1]);
    }

    #[test]
    fn overloaded_destinations_are_passed_over() {
        let mut list = List::with_weights(&[1, 1, 1]);
        list.candidate(2).overloaded = true;
        assert_eq!(list.connect(4, RoundRobin::new), [3, 1, 3, 1]);
        list.candidate(1).overloaded = true;
        list.candidate(3).overloaded = true;
        let stands = list.cursor;
        assert_eq!(list.connect(2, RoundRobin::new), [0, 0]);
        assert_eq!(list.cursor, stands);
    }

    #[test]
    fn new_destination_is_met_after_the_wrap() {
        let mut list = List::with_weights(&[1, 1, 1]);
        assert_eq!(list.connect(2, RoundRobin::new), [3, 2]);
        list.add(1);
        list.cursor = list.cursor.after_insertion();
        assert_eq!(list.connect(5, RoundRobin::new), [1, 4, 3, 2, 1]);
    }

    #[test]
    fn removing_the_last_choice_steps_back() {
        let mut list = List::with_weights(&[1, 1, 1, 1]);
        assert_eq!(list.connect(2, RoundRobin::new), [4, 3]);
        let position = list.remove(3);
        list.cursor = list.cursor.after_removal(position);
        assert_eq!(list.connect(4, RoundRobin::new), [2, 1, 4, 2]);
        let position = list.remove(4);
        list.cursor = list.cursor.after_removal(position);
        assert_eq!(list.connect(3, RoundRobin::new), [1, 2, 1]);
    }
}
