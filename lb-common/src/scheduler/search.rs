//! The scan that most schedulers are: a fold over a service's destinations in list order.
//!
//! A [`Search`] is fed by a `for` loop on the host ([`run`]) and by `bpf_loop` in the kernel; it is not
//! concerned with where destinations are stored, nor with keeping the [`Cursor`] between connections.
//! List order is IPVS's: the newest destination is at position 0. IPVS counterpart: the
//! `list_for_each_entry_rcu` loop in each `ip_vs_<name>_schedule`, and `svc->sched_data`.

use core::marker::PhantomData;

/// Most passes that any search here asks for; a driver stops after this many.
pub const MAX_PASSES: u32 = 2;

/// A destination as a scheduler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Candidate {
    /// Share of new connections, 0 to 2147483647; 0 takes none.
    pub weight: u32,
    /// Connections in an active state.
    #[doc(alias = "activeconns")]
    pub active: u32,
    /// All connections, active or not, without persistence templates.
    #[doc(alias = "totalconns")]
    pub total: u32,
    /// It has reached its upper threshold and is not yet below the lower one.
    #[doc(alias = "IP_VS_DEST_F_OVERLOAD")]
    pub overloaded: bool,
}

impl Candidate {
    /// Whether new connections may go there at all.
    #[inline(always)]
    pub const fn usable(&self) -> bool {
        !self.overloaded && self.weight > 0
    }

    /// What its connections cost it, by the rule of lc, wlc, lblc, lblcr and twos: 256 for an active
    /// connection and one for each, active or not. Stops at `u32::MAX`, where the kernel's wraps.
    #[doc(alias = "ip_vs_dest_conn_overhead")]
    #[inline(always)]
    pub const fn cost(&self) -> u32 {
        // In 64 bits, where nothing can overflow: one comparison instead of two.
        let cost = self.active as u64 * 256 + self.total as u64;
        if cost > u32::MAX as u64 { u32::MAX } else { cost as u32 }
    }
}

/// Where a stateful scheduler stands in its service's list.
///
/// Packs into one `u64`, so that it can be compared and swapped. Schedulers without state ignore it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Position of the last choice; [`Cursor::BEFORE_FIRST`] for none yet.
    pub position: u32,
    /// The weight that wrr asks for at present; 0 for the others.
    pub level: u32,
}

impl Cursor {
    /// The position before the first destination, the list's head.
    pub const BEFORE_FIRST: u32 = u32::MAX;

    /// Where a service without destinations stands.
    pub const START: Self = Self { position: Self::BEFORE_FIRST, level: 0 };

    /// The position to look at next. May be the list's length, which stands for 0.
    #[inline(always)]
    pub const fn next(self) -> u32 {
        self.position.wrapping_add(1)
    }

    /// Keeps the cursor on its destination when a new one comes in at the list's head (rr).
    pub const fn after_insertion(self) -> Self {
        match self.position {
            Self::BEFORE_FIRST => self,
            position => Self { position: position + 1, ..self },
        }
    }

    /// Keeps the cursor on its destination when the one at `removed` goes, or steps back to the
    /// predecessor if it was that one (rr).
    #[doc(alias = "ip_vs_rr_del_dest")]
    pub const fn after_removal(self, removed: u32) -> Self {
        match self.position {
            Self::BEFORE_FIRST => self,
            position if removed <= position => Self { position: position.wrapping_sub(1), ..self },
            _ => self,
        }
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::START
    }
}

impl From<u64> for Cursor {
    /// Position from the low 32 bits, level from the high ones.
    #[inline(always)]
    fn from(packed: u64) -> Self {
        Self { position: packed as u32, level: (packed >> 32) as u32 }
    }
}

impl From<Cursor> for u64 {
    #[inline(always)]
    fn from(cursor: Cursor) -> Self {
        u64::from(cursor.level) << 32 | u64::from(cursor.position)
    }
}

/// A scan over a service's destinations in list order, newest first.
pub trait Search: Copy {
    /// Whether [`Search::first`] is ever another than 0, which a driver need not ask otherwise.
    const ROTATES: bool = false;

    /// First position of the next pass. The pass visits it and its successors cyclically, exactly as
    /// many positions as the list has; a first position beyond the list stands for 0.
    #[inline(always)]
    fn first(&self) -> u32 {
        0
    }

    /// Looks at one destination; `true` ends the pass.
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool;

    /// Called after each pass; `true` asks for another. No search asks for more than [`MAX_PASSES`].
    #[inline(always)]
    fn again(&mut self) -> bool {
        false
    }

    /// The choice, and the cursor to store. A scheduler without state gives [`Cursor::START`].
    fn finish(&self) -> (Option<u32>, Cursor);
}

/// Runs a search over a list of destinations: the host's driver.
pub fn run<S: Search>(mut search: S, candidates: &[Candidate]) -> (Option<u32>, Cursor) {
    for _ in 0..MAX_PASSES {
        let first = match search.first() as usize {
            first if first < candidates.len() => first,
            _ => 0,
        };
        let (before, from) = candidates.split_at(first);
        for (offset, candidate) in from.iter().chain(before).enumerate() {
            let position = (first + offset) % candidates.len();
            if search.consider(position as u32, candidate) {
                break;
            }
        }
        if !search.again() {
            break;
        }
    }
    search.finish()
}

/// The best candidate so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Champion {
    position: u32,
    cost: u32,
    weight: u32,
}

impl Champion {
    /// Nobody yet: who costs more for its weight than anybody, so that nothing need be asked before a comparison.
    ///
    /// No constant, which the compiler would put into memory and copy from there.
    #[inline(always)]
    pub(super) const fn nobody() -> Self {
        Self { position: 0, cost: 1, weight: 0 }
    }

    /// Takes the candidate, which has a weight, if it is the first, or has less cost for its weight than the champion.
    /// A tie keeps the champion, the newer destination.
    #[inline(always)]
    pub(super) fn challenge(&mut self, position: u32, cost: u32, weight: u32) {
        if u64::from(self.cost) * u64::from(weight) > u64::from(cost) * u64::from(self.weight) {
            *self = Self { position, cost, weight };
        }
    }

    /// The champion's position.
    #[inline(always)]
    pub(super) const fn position(&self) -> Option<u32> {
        if self.weight == 0 { None } else { Some(self.position) }
    }
}

/// What a scheduler goes by that takes the best of all.
pub trait Rule: Copy {
    /// What a candidate costs, and the weight that this is for: the least cost for its weight wins, and on a tie the newest
    /// destination. `None` if it cannot be chosen.
    fn rate(candidate: &Candidate) -> Option<(u32, u32)>;
}

/// The search for the best of all by a rule. It has no state.
#[derive(Debug, Clone, Copy)]
pub struct Best<R> {
    champion: Champion,
    rule: PhantomData<R>,
}

impl<R: Rule> Best<R> {
    /// A search that has seen nobody yet.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { champion: Champion::nobody(), rule: PhantomData }
    }
}

impl<R: Rule> Default for Best<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R: Rule> Search for Best<R> {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        if let Some((cost, weight)) = R::rate(candidate) {
            self.champion.challenge(position, cost, weight);
        }
        false
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        (self.champion.position(), Cursor::START)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_packs_into_a_word() {
        let cursor = Cursor { position: 7, level: 3 };
        assert_eq!(u64::from(cursor), 0x3_0000_0007);
        assert_eq!(Cursor::from(u64::from(cursor)), cursor);
        assert_eq!(Cursor::from(u64::from(Cursor::START)), Cursor::START);
    }

    #[test]
    fn cursor_stays_on_its_destination() {
        let at = |position| Cursor { position, level: 0 };
        assert_eq!(at(2).after_insertion(), at(3));
        assert_eq!(Cursor::START.after_insertion(), Cursor::START);
        assert_eq!(at(2).after_removal(3), at(2));
        assert_eq!(at(2).after_removal(2), at(1));
        assert_eq!(at(2).after_removal(0), at(1));
        assert_eq!(at(0).after_removal(0), Cursor::START);
        assert_eq!(Cursor::START.after_removal(0), Cursor::START);
    }

    #[test]
    fn cost_counts_active_connections_257_times() {
        let cost = |active, total| Candidate { weight: 1, active, total, overloaded: false }.cost();
        // One active connection against 256 inactive ones: the latter is cheaper.
        assert_eq!(cost(1, 1), 257);
        assert_eq!(cost(0, 256), 256);
        assert_eq!(cost(u32::MAX, u32::MAX), u32::MAX);
    }

    /// Notes each position it is shown.
    #[derive(Clone, Copy)]
    struct Recorder {
        first: u32,
        seen: [u32; 8],
        count: usize,
        passes: u32,
    }

    impl Search for Recorder {
        const ROTATES: bool = true;
        fn first(&self) -> u32 {
            self.first
        }
        fn consider(&mut self, position: u32, _: &Candidate) -> bool {
            self.seen[self.count] = position;
            self.count += 1;
            false
        }
        fn again(&mut self) -> bool {
            self.passes += 1;
            true
        }
        fn finish(&self) -> (Option<u32>, Cursor) {
            assert_eq!(self.passes, MAX_PASSES);
            assert_eq!(self.seen, [1, 2, 0, 1, 2, 0, 9, 9]);
            (Some(1), Cursor::START)
        }
    }

    #[test]
    fn run_visits_every_position_once_a_pass() {
        let search = Recorder { first: 1, seen: [9; 8], count: 0, passes: 0 };
        assert_eq!(run(search, &[Candidate::default(); 3]).0, Some(1));
    }
}
