//! Weighted round robin: rounds at falling levels, each for the destinations that weigh at least that.
//!
//! The kernel walks the list once for each level between the heaviest weight and 1. A packet cannot
//! afford that, so the search finds the next level that any destination meets by arithmetic; choice,
//! cursor and level are the same. What depends on the set alone is a [`Ladder`], which user space
//! computes when the set changes. IPVS counterpart: `ip_vs_wrr.c`.

use super::{Candidate, Cursor, Search};

/// The levels of a set of destinations: `top`, `top - divisor`, ... down to 1.
#[doc(alias = "ip_vs_wrr_mark")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ladder {
    /// Greatest common divisor of all weights above 0; 1 if there are none.
    pub divisor: u32,
    /// The heaviest weight less `divisor - 1`; 0 if no destination has weight.
    pub top: u32,
}

impl Ladder {
    /// The levels of a service without destinations.
    pub const EMPTY: Self = Self { divisor: 1, top: 0 };

    /// The levels for these weights. Overloaded destinations count like the others.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let (divisor, heaviest) = weights
            .into_iter()
            .fold((0, 0), |(divisor, heaviest), weight| (gcd(divisor, weight), weight.max(heaviest)));
        match divisor {
            0 => Self::EMPTY,
            _ => Self { divisor, top: heaviest - (divisor - 1) },
        }
    }

    /// The cursor after any change of the set (adding, removing, and every edit): before the first
    /// destination, at the old level as far as the new ladder has it. As an addition keeps the level,
    /// a set built from nothing begins at level 1.
    #[doc(alias = "ip_vs_wrr_dest_changed")]
    pub const fn relevel(self, old: Cursor) -> Cursor {
        let level = match old.level {
            level if level > self.top || level == 0 => self.top,
            level if self.divisor > 1 => level / self.divisor * self.divisor + 1,
            level => level,
        };
        Cursor { position: Cursor::BEFORE_FIRST, level }
    }

    /// The level after `level`, from the top again after the last.
    #[inline(always)]
    const fn below(self, level: u32) -> u32 {
        if level > self.divisor { level - self.divisor } else { self.top }
    }

    /// The highest level from `level` downwards that a weight meets.
    #[inline(always)]
    fn met_by(self, level: u32, weight: u32) -> u32 {
        // The compiler must see that it never divides by zero: there is no panicking in the kernel.
        let divisor = self.divisor.max(1);
        let missing = level.saturating_sub(weight).div_ceil(divisor);
        level.saturating_sub(missing.saturating_mul(divisor)).max(1)
    }
}

/// Greatest common divisor, where 0 is divided by everything.
pub(super) const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The next destination that meets the level, or else the first one that meets the next level.
#[doc(alias = "ip_vs_wrr_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct WeightedRoundRobin {
    start: Cursor,
    ladder: Ladder,
    level: u32,
    heaviest: u32,
    from_head: bool,
    choice: Option<u32>,
}

impl WeightedRoundRobin {
    /// A search that goes on from where the last one stopped.
    #[inline(always)]
    pub const fn new(cursor: Cursor, ladder: Ladder) -> Self {
        Self { start: cursor, ladder, level: cursor.level, heaviest: 0, from_head: false, choice: None }
    }

    /// Whether the first pass still walks the rest of the list, where the old level holds.
    #[inline(always)]
    const fn in_rest(&self, position: u32) -> bool {
        self.start.position == Cursor::BEFORE_FIRST || position > self.start.position
    }
}

impl Search for WeightedRoundRobin {
    const ROTATES: bool = true;

    #[inline(always)]
    fn first(&self) -> u32 {
        if self.from_head { 0 } else { self.start.next() }
    }

    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if !candidate.usable() {
            return false;
        }
        if candidate.weight > self.heaviest {
            self.heaviest = candidate.weight;
        }
        if candidate.weight >= self.level && (self.from_head || self.in_rest(position)) {
            self.choice = Some(position);
        }
        self.choice.is_some()
    }

    #[inline(always)]
    fn again(&mut self) -> bool {
        if self.from_head || self.choice.is_some() || self.heaviest == 0 {
            return false;
        }
        self.from_head = true;
        self.level = self.ladder.met_by(self.ladder.below(self.level), self.heaviest);
        true
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        let cursor = match self.choice {
            Some(position) => Cursor { position, level: self.level },
            None if self.ladder.top == 0 => self.start,
            // Begun in the midst of the last round, the kernel goes through all rounds and gives up
            // where it began, in the last round again.
            None if self.start.position != Cursor::BEFORE_FIRST
                && self.start.level <= self.ladder.divisor =>
            {
                Cursor { position: self.start.position, level: self.ladder.met_by(self.ladder.top, 1) }
            }
            None => Cursor { position: Cursor::BEFORE_FIRST, level: self.ladder.top },
        };
        (self.choice, cursor)
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::super::run;
    use super::super::simulation::List;
    use super::*;

    /// A service as the kernel keeps it: the ladder follows each change.
    struct Service {
        list: List,
        ladder: Ladder,
    }

    impl Service {
        fn new(weights: &[u32]) -> Self {
            let mut service = Self { list: List::default(), ladder: Ladder::EMPTY };
            for weight in weights {
                service.list.add(*weight);
                service.changed();
            }
            service
        }

        fn changed(&mut self) {
            self.ladder = Ladder::new(self.list.weights());
            self.list.cursor = self.ladder.relevel(self.list.cursor);
        }

        fn connect(&mut self, count: usize) -> Vec<u32> {
            let ladder = self.ladder;
            self.list.connect(count, |cursor| WeightedRoundRobin::new(cursor, ladder))
        }
    }

    #[test]
    fn ladder_ignores_weight_zero() {
        assert_eq!(Ladder::new([]), Ladder::EMPTY);
        assert_eq!(Ladder::new([0, 0]), Ladder::EMPTY);
        assert_eq!(Ladder::new([4, 0, 6]), Ladder { divisor: 2, top: 5 });
        assert_eq!(Ladder::new([300, 300]), Ladder { divisor: 300, top: 1 });
        assert_eq!(Ladder::new([i32::MAX as u32]), Ladder { divisor: i32::MAX as u32, top: 1 });
    }

    #[test]
    fn kernel_sequences() {
        let mut service = Service::new(&[3, 1, 2]);
        assert_eq!(service.connect(12), [3, 2, 1, 1, 3, 1, 3, 2, 1, 1, 3, 1]);
        let mut service = Service::new(&[4, 3, 2]);
        assert_eq!(service.connect(18), [3, 2, 1, 1, 2, 1, 3, 2, 1, 3, 2, 1, 1, 2, 1, 3, 2, 1]);
    }

    #[test]
    fn kernel_sequence_over_an_edit() {
        let mut service = Service::new(&[3, 1, 2]);
        assert_eq!(service.connect(4), [3, 2, 1, 1]);
        service.list.candidate(2).weight = 5;
        service.changed();
        assert_eq!(service.connect(16), [2, 1, 3, 2, 1, 3, 2, 1, 2, 2, 2, 1, 3, 2, 1, 3]);
    }

    #[test]
    fn nothing_to_choose_from() {
        assert_eq!(Service::new(&[]).connect(2), [0, 0]);
        assert_eq!(Service::new(&[0, 0]).connect(2), [0, 0]);
        let mut service = Service::new(&[7]);
        service.list.candidate(1).overloaded = true;
        assert_eq!(service.connect(2), [0, 0]);
        service.list.candidate(1).overloaded = false;
        assert_eq!(service.connect(2), [1, 1]);
    }

    /// The walk as the kernel does it, level by level and destination by destination.
    fn walk(mut cursor: Cursor, ladder: Ladder, candidates: &[Candidate]) -> (Option<u32>, Cursor) {
        if ladder.top == 0 {
            return (None, cursor);
        }
        let began = cursor.position;
        let began_at_head = began == Cursor::BEFORE_FIRST;
        let mut full_lowest_pass = began_at_head && cursor.level <= ladder.divisor;
        let mut wrapped = false;
        loop {
            let lowest = cursor.level <= ladder.divisor;
            while (cursor.next() as usize) < candidates.len() {
                cursor.position = cursor.next();
                let candidate = candidates[cursor.position as usize];
                if !candidate.overloaded && candidate.weight >= cursor.level {
                    return (Some(cursor.position), cursor);
                }
                if wrapped && lowest && cursor.position == began {
                    return (None, cursor);
                }
            }
            cursor.position = Cursor::BEFORE_FIRST;
            if !lowest {
                cursor.level -= ladder.divisor;
            } else {
                cursor.level = ladder.top;
                if full_lowest_pass || began_at_head {
                    return (None, cursor);
                }
                wrapped = true;
            }
            full_lowest_pass = cursor.level <= ladder.divisor;
        }
    }

    /// What happens to a service between and at connections.
    #[derive(Debug, Clone)]
    enum Step {
        Connect,
        Overload(prop::sample::Index, bool),
        Edit(prop::sample::Index, u32),
        Add(u32),
        Remove(prop::sample::Index),
        Jump(prop::sample::Index, prop::sample::Index),
    }

    fn weight() -> impl Strategy<Value = u32> {
        (prop_oneof![Just(1u32), Just(2), Just(10)], 0u32..12).prop_map(|(unit, count)| unit * count)
    }

    fn step() -> impl Strategy<Value = Step> {
        let index = any::<prop::sample::Index>;
        prop_oneof![
            6 => Just(Step::Connect),
            3 => (index(), any::<bool>()).prop_map(|(at, on)| Step::Overload(at, on)),
            1 => (index(), weight()).prop_map(|(at, weight)| Step::Edit(at, weight)),
            1 => weight().prop_map(Step::Add),
            1 => index().prop_map(Step::Remove),
            1 => (index(), index()).prop_map(|(position, level)| Step::Jump(position, level)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn search_equals_the_walk(
            weights in prop::collection::vec(weight(), 0..7),
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let mut service = Service::new(&weights);
            for step in steps {
                let count = service.list.candidates.len();
                let candidates = &mut service.list.candidates;
                match step {
                    Step::Overload(at, on) if count > 0 => candidates[at.index(count)].overloaded = on,
                    Step::Edit(at, weight) if count > 0 => {
                        candidates[at.index(count)].weight = weight;
                        service.changed();
                    }
                    Step::Add(weight) => {
                        service.list.add(weight);
                        service.changed();
                    }
                    Step::Remove(at) if count > 0 => {
                        let name = service.list.name(at.index(count) as u32);
                        service.list.remove(name);
                        service.changed();
                    }
                    // Any position and any level of the ladder, reached or not.
                    Step::Jump(position, level) if service.ladder.top > 0 => {
                        let Ladder { divisor, top } = service.ladder;
                        let levels: Vec<u32> = (1..=top).step_by(divisor as usize).collect();
                        let positions = [vec![Cursor::BEFORE_FIRST], (0..count as u32).collect()].concat();
                        service.list.cursor =
                            Cursor { position: *position.get(&positions), level: *level.get(&levels) };
                    }
                    _ => {
                        let cursor = service.list.cursor;
                        let expected = walk(cursor, service.ladder, candidates);
                        let search = WeightedRoundRobin::new(cursor, service.ladder);
                        prop_assert_eq!(run(search, candidates), expected);
                        service.list.cursor = expected.1;
                    }
                }
            }
        }
    }
}
