//! A tree of winners over a large set: the choice of lc, wlc, sed, nq, fo and ovf without a look at every destination.
//!
//! Whoever wins over all wins over any part that it is in. So the best of each line of destinations is kept, the best of
//! each line of these, and a choice looks at the last line only. What changes a destination's load marks its line; the
//! next choice renews the marked lines' winners first, so that it is what a scan would choose.

use crate::destination::DestinationId;
use crate::service::LINE;

use super::Scheduler;

/// Most destinations that are scanned each time.
pub const SCANNED: u32 = 64;

/// In the place of a winner: nobody of the line can be chosen.
pub const NOBODY: DestinationId = DestinationId::MAX;

/// Words of marks, a bit for each line of destinations.
pub const WORDS: usize = 4;

/// Whether a set of so many destinations has a tree.
pub const fn has_tree(scheduler: Scheduler, length: u32) -> bool {
    use Scheduler::{
        LeastConnections, NeverQueue, ShortestExpectedDelay, WeightedFailOver, WeightedLeastConnections,
        WeightedOverflow,
    };
    length > SCANNED
        && matches!(
            scheduler,
            LeastConnections
                | WeightedLeastConnections
                | ShortestExpectedDelay
                | NeverQueue
                | WeightedFailOver
                | WeightedOverflow
        )
}

/// Where things lie in the tree of a set: a line of marks, then the lines' winners, then the winners of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Destinations in the set.
    pub length: u32,
}

impl Shape {
    /// How many numbers a level has: destinations, their lines' winners, the winners of these lines.
    #[inline(always)]
    pub const fn numbers(self, level: u32) -> u32 {
        match level {
            0 => self.length,
            1 => self.length.div_ceil(LINE as u32),
            _ => self.length.div_ceil((LINE * LINE) as u32),
        }
    }

    /// Numbers in a line of a level; none in one that it does not have.
    #[inline(always)]
    pub const fn numbers_in(self, level: u32, line: u32) -> u32 {
        let left = self.numbers(level).saturating_sub(line * LINE as u32);
        if left < LINE as u32 { left } else { LINE as u32 }
    }

    /// The first line of winners of a level, counted from that of the marks.
    #[inline(always)]
    pub const fn line(self, level: u32) -> u32 {
        if level == 1 { 1 } else { 1 + self.numbers(2) }
    }

    /// Numbers that the whole tree takes.
    pub const fn size(self) -> u32 {
        (self.line(2) + 1) * LINE as u32
    }

    /// The marks of a tree of which nothing is known yet.
    pub const fn marks(self) -> [u64; WORDS] {
        let mut marks = [0; WORDS];
        let mut line = 0;
        while line < self.numbers(1) {
            marks[line as usize / 64] |= 1 << (line % 64);
            line += 1;
        }
        marks
    }
}

/// The word and the bit that mark the line of a destination's position.
#[inline(always)]
pub const fn mark(position: u32) -> (usize, u64) {
    let line = position / LINE as u32;
    ((line / 64) as usize & (WORDS - 1), 1 << (line & 63))
}

const _: () = assert!(crate::service::MAX_DESTINATIONS as usize <= WORDS * 64 * LINE);
const _: () = assert!(crate::service::MAX_DESTINATIONS as usize <= LINE * LINE * LINE);

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::fo::WeightedFailOver;
    use super::super::lc::LeastConnections;
    use super::super::nq::NeverQueue;
    use super::super::ovf::WeightedOverflow;
    use super::super::sed::ShortestExpectedDelay;
    use super::super::wlc::WeightedLeastConnections;
    use super::super::{Candidate, Search, run};
    use super::*;

    /// The tree as the packet program drives it, over destinations whose numbers are their positions.
    struct Tree {
        shape: Shape,
        marks: [u64; WORDS],
        winners: [Vec<u32>; 3],
    }

    impl Tree {
        fn new(length: u32) -> Self {
            let shape = Shape { length };
            let winners = [0, 1, 2].map(|level| vec![NOBODY; shape.numbers(level) as usize]);
            let mut tree = Self { shape, marks: shape.marks(), winners };
            tree.winners[0] = (0..length).collect();
            tree
        }

        fn mark(&mut self, position: u32) {
            let (word, bit) = mark(position);
            self.marks[word] |= bit;
        }

        fn best<S: Search>(&self, level: u32, line: u32, search: S, all: &[Candidate]) -> u32 {
            let first = line as usize * LINE;
            let numbers = self.shape.numbers_in(level, line) as usize;
            let ids = &self.winners[level as usize][first..first + numbers];
            let nobody = Candidate::default();
            let candidates: Vec<_> = ids.iter().map(|id| *all.get(*id as usize).unwrap_or(&nobody)).collect();
            run(search, &candidates).0.map_or(NOBODY, |position| ids[position as usize])
        }

        fn choose<S: Search>(&mut self, search: S, all: &[Candidate]) -> Option<u32> {
            let mut upper = 0u32;
            for line in 0..self.shape.numbers(1) {
                if self.marks[line as usize / 64] & 1 << (line % 64) != 0 {
                    self.winners[1][line as usize] = self.best(0, line, search, all);
                    upper |= 1 << (line / LINE as u32);
                }
            }
            self.marks = [0; WORDS];
            for line in (0..self.shape.numbers(2)).filter(|line| upper & 1 << line != 0) {
                self.winners[2][line as usize] = self.best(1, line, search, all);
            }
            Some(self.best(2, 0, search, all)).filter(|id| *id != NOBODY)
        }
    }

    fn compare<S: Search>(search: S, mut all: Vec<Candidate>, changes: &[(u32, Candidate)]) {
        let mut tree = Tree::new(all.len() as u32);
        for (position, candidate) in changes {
            let choice = tree.choose(search, &all);
            assert_eq!(choice, run(search, &all).0);
            for position in choice.into_iter().chain([position % all.len() as u32]) {
                let changed = &mut all[position as usize];
                if choice == Some(position) {
                    (changed.active, changed.total) = (changed.active + 1, changed.total + 1);
                } else {
                    *changed = *candidate;
                }
                tree.mark(position);
            }
        }
    }

    fn candidate() -> impl Strategy<Value = Candidate> {
        (0u32..4, 0u32..4, 0u32..4, prop::bool::weighted(0.2)).prop_map(
            |(weight, active, more, overloaded)| Candidate {
                weight,
                active,
                total: active + more,
                overloaded,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_tree_chooses_what_the_scan_does(
            all in prop::collection::vec(candidate(), SCANNED as usize..700),
            changes in prop::collection::vec((any::<u32>(), candidate()), 1..40),
        ) {
            compare(LeastConnections::new(), all.clone(), &changes);
            compare(WeightedLeastConnections::new(), all.clone(), &changes);
            compare(ShortestExpectedDelay::new(), all.clone(), &changes);
            compare(NeverQueue::new(), all.clone(), &changes);
            compare(WeightedFailOver::new(), all.clone(), &changes);
            compare(WeightedOverflow::new(), all, &changes);
        }
    }

    #[test]
    fn the_largest_tree_has_one_last_line() {
        let shape = Shape { length: 4096 };
        assert_eq!([0, 1, 2].map(|level| shape.numbers(level)), [4096, 256, 16]);
        assert_eq!(([1, 2].map(|level| shape.line(level)), shape.size()), ([1, 17], 18 * 16));
        assert_eq!(shape.marks(), [u64::MAX; 4]);
        let shape = Shape { length: 1000 };
        assert_eq!([0, 1, 2].map(|level| shape.numbers(level)), [1000, 63, 4]);
        assert_eq!(
            [(0, 62), (0, 63), (1, 3), (2, 0)].map(|(level, line)| shape.numbers_in(level, line)),
            [8, 0, 15, 4]
        );
        assert_eq!(shape.marks(), [u64::MAX >> 1, 0, 0, 0]);
        assert_eq!([0, 15, 16, 1024, 4095].map(mark), [(0, 1), (0, 1), (0, 2), (1, 1), (3, 1 << 63)]);
    }
}
