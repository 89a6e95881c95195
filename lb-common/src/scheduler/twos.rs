//! Power of two choices: of two destinations drawn by weight, the one whose connections cost less for
//! its weight.
//!
//! Randomness is a parameter. The first pass adds up the weights, the second finds the two that were
//! drawn; over a large set the sums are kept, and a draw of one that is overloaded is made again.
//! IPVS counterpart: `ip_vs_twos.c`.

use super::{Candidate, Cursor, Search};

/// The better of two candidates drawn at random, each with a chance proportional to its weight.
#[doc(alias = "ip_vs_twos_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct TwoChoices {
    random: [u32; 2],
    total: u32,
    drawing: bool,
    first: Draw,
    second: Draw,
}

/// One of the two draws: what of it is left to go, and where it ended.
#[derive(Debug, Clone, Copy)]
struct Draw {
    left: u32,
    choice: Option<u32>,
    cost: u32,
    weight: u32,
}

/// A number from 0 to `total`, both included, as evenly as 32 random bits allow.
#[inline(always)]
pub const fn number(random: u32, total: u32) -> u32 {
    ((random as u64 * (total as u64 + 1)) >> 32) as u32
}

/// Whether the second of two that were drawn wins over the first.
#[inline(always)]
pub const fn second_wins(first: (u32, u32), second: (u32, u32)) -> bool {
    let ((cost, weight), (second_cost, second_weight)) = (first, second);
    // The kernel multiplies ints here, which wrap.
    second_weight.wrapping_mul(cost) as i32 > weight.wrapping_mul(second_cost) as i32
}

/// The sums of the weights up to each destination of a list; nothing if they grow too large. The destination that a number
/// draws, other than 0, is the first whose sum is not less. 0 draws the first that is usable.
///
/// Over all destinations and not only the usable ones: a draw that ends at one that is not usable says nothing, and the
/// next has the same chances as if there were no others.
pub fn fill_sums(weights: impl Iterator<Item = u32>, sums: &mut [u32]) -> Option<()> {
    let mut total = 0u32;
    for (sum, weight) in sums.iter_mut().zip(weights) {
        total = total.checked_add(weight)?;
        *sum = total;
    }
    Some(())
}

/// A search for the first sum of a list that is not less than a number.
#[derive(Debug, Clone, Copy)]
pub struct Bisection {
    low: u32,
    high: u32,
}

impl Bisection {
    /// Steps after which any search among [`crate::service::MAX_DESTINATIONS`] is over.
    pub const STEPS: u32 = crate::service::MAX_DESTINATIONS.ilog2() + 1;

    /// A search among so many.
    #[inline(always)]
    pub const fn new(length: u32) -> Self {
        Self { low: 0, high: length }
    }

    /// The position to compare next; that of the result after [`Bisection::STEPS`] steps.
    #[inline(always)]
    pub const fn position(&self) -> u32 {
        (self.low + self.high) / 2
    }

    /// Goes on, by whether the sum at the position is less than the number.
    #[inline(always)]
    pub const fn step(&mut self, is_less: bool) {
        let position = self.position();
        if self.low >= self.high {
        } else if is_less {
            self.low = position + 1;
        } else {
            self.high = position;
        }
    }
}

impl Draw {
    /// A draw that has so far to go. (No constant for one that has not begun: in a BPF program that would be memory.)
    #[inline(always)]
    const fn from(left: u32) -> Self {
        Self { left, choice: None, cost: 0, weight: 0 }
    }

    /// A draw of a number from 0 to `total`.
    #[inline(always)]
    const fn new(random: u32, total: u32) -> Self {
        Self::from(number(random, total))
    }

    /// Passes a usable candidate, or ends there.
    #[inline(always)]
    fn advance(&mut self, position: u32, candidate: &Candidate) {
        if self.choice.is_some() {
            return;
        }
        if self.left <= candidate.weight {
            self.choice = Some(position);
            self.cost = candidate.cost();
            self.weight = candidate.weight;
        } else {
            self.left -= candidate.weight;
        }
    }
}

impl TwoChoices {
    /// A search with two random numbers, each anywhere in 32 bits.
    #[inline(always)]
    pub const fn new(random: [u32; 2]) -> Self {
        Self { random, total: 0, drawing: false, first: Draw::from(0), second: Draw::from(0) }
    }
}

impl Search for TwoChoices {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if !candidate.usable() {
            return false;
        }
        if self.drawing {
            self.first.advance(position, candidate);
            self.second.advance(position, candidate);
        } else {
            self.total = self.total.saturating_add(candidate.weight);
        }
        self.first.choice.is_some() && self.second.choice.is_some()
    }

    #[inline(always)]
    fn again(&mut self) -> bool {
        if self.drawing || self.total == 0 {
            return false;
        }
        let [first, second] = self.random;
        self.drawing = true;
        self.first = Draw::new(first, self.total);
        self.second = Draw::new(second, self.total);
        true
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        let (first, second) = (&self.first, &self.second);
        let wins = second_wins((first.cost, first.weight), (second.cost, second.weight));
        (if second.choice.is_some() && wins { self.second.choice } else { self.first.choice }, Cursor::START)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::run;
    use super::super::simulation::List;
    use super::*;

    /// The random number that draws `number` of 0 to `total`.
    fn drawing(number: u32, total: u32) -> u32 {
        ((u64::from(number) << 32).div_ceil(u64::from(total) + 1)) as u32
    }

    fn pick(list: &List, draws: [u32; 2]) -> u32 {
        let total: u32 =
            list.candidates.iter().filter(|candidate| candidate.usable()).map(|c| c.weight).sum();
        run(TwoChoices::new(draws.map(|draw| drawing(draw, total))), &list.candidates)
            .0
            .map_or(0, |position| list.name(position))
    }

    #[test]
    fn draws_go_by_weight_in_list_order() {
        // In the list: destination 3 of weight 2, 2 of 1, 1 of 3; numbers 0 to 6.
        let list = List::with_weights(&[3, 1, 2]);
        let both = |draw| pick(&list, [draw, draw]);
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(both), [3, 3, 3, 2, 1, 1, 1]);
    }

    #[test]
    fn the_less_loaded_for_its_weight_wins() {
        let mut list = List::with_weights(&[3, 1, 2]);
        // Without connections, a tie: the first draw.
        assert_eq!((pick(&list, [6, 0]), pick(&list, [0, 6])), (1, 3));
        list.candidate(3).total = 2;
        list.candidate(1).total = 2;
        assert_eq!((pick(&list, [6, 0]), pick(&list, [0, 6])), (1, 1));
        list.candidate(1).active = 2;
        assert_eq!((pick(&list, [6, 0]), pick(&list, [0, 6])), (3, 3));
    }

    #[test]
    fn unusable_destinations_are_never_drawn() {
        let mut list = List::with_weights(&[3, 0, 2]);
        list.candidate(3).overloaded = true;
        assert_eq!([0, 1, 2, 3].map(|draw| pick(&list, [draw, draw])), [1; 4]);
        list.candidate(1).weight = 0;
        assert_eq!(run(TwoChoices::new([1, 2]), &list.candidates), (None, Cursor::START));
        assert_eq!(run(TwoChoices::new([1, 2]), &[]), (None, Cursor::START));
    }

    /// Where sums lead to.
    fn by_sums(sums: &[u32], number: u32) -> u32 {
        let mut bisection = Bisection::new(sums.len() as u32);
        for _ in 0..Bisection::STEPS {
            let sum = sums.get(bisection.position() as usize);
            bisection.step(sum.is_some_and(|sum| *sum < number));
        }
        bisection.position()
    }

    proptest! {
        #[test]
        fn sums_lead_where_the_walk_does(weights in prop::collection::vec(0u32..9, 1..300), at in any::<u32>()) {
            let list = List::with_weights(&weights);
            let mut sums = std::vec![0; weights.len()];
            fill_sums(list.weights().into_iter(), &mut sums).unwrap();
            let total = *sums.last().unwrap();
            let number = number(at, total);
            if number != 0 {
                let position = by_sums(&sums, number);
                prop_assert_eq!(list.name(position), pick(&list, [number, number]));
            }
        }

        #[test]
        fn something_usable_is_always_found(
            weights in prop::collection::vec(0u32..1000, 1..9),
            random in any::<[u32; 2]>(),
        ) {
            let list = List::with_weights(&weights);
            let (choice, _) = run(TwoChoices::new(random), &list.candidates);
            match choice {
                Some(position) => prop_assert!(list.candidates[position as usize].usable()),
                None => prop_assert!(weights.iter().all(|weight| *weight == 0)),
            }
        }
    }
}
