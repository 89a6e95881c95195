//! Locality-based least connections with replication: as `lblc`, but an address has a set of destinations,
//! which grows under load and shrinks with time.
//!
//! The cache from destination address to set is the caller's; this picks from the set, and says whether
//! the choice is to be added and which member is to go. IPVS counterpart: `ip_vs_lblcr.c`.

use super::lblc::{is_hot, is_idle};
use super::search::Champion;
use super::{Candidate, Cursor, Search};

/// Seconds without change after which a set of more than one loses a member, and seconds without use
/// after which it goes.
#[doc(alias = "lblcr_expiration")]
pub const DEFAULT_EXPIRATION: u32 = 86_400;

/// The member of the set whose connections cost least for its weight, unless it is hot while another
/// destination is idle; else as `wlc`.
///
/// `R` tells the rank of a position in the set, `None` if it is not a member. New members come in at rank
/// 0, before the others, and ties go to the lower rank.
#[doc(alias = "ip_vs_lblcr_schedule")]
#[derive(Debug, Clone, Copy)]
pub struct LocalityLeastConnectionsReplicated<R> {
    rank: R,
    least: Option<Member>,
    most: Option<Member>,
    other_idle: bool,
    all: Champion,
}

/// A member of the set.
#[derive(Debug, Clone, Copy)]
struct Member {
    position: u32,
    rank: u32,
    cost: u32,
    weight: u32,
    hot: bool,
}

impl Member {
    /// What its cost comes to beside another's, each over its own weight.
    #[inline(always)]
    const fn weighed_against(&self, other: &Self) -> u64 {
        self.cost as u64 * other.weight as u64
    }

    /// Whether it is less loaded than another, or as much and of lower rank.
    #[inline(always)]
    const fn is_below(&self, other: &Self) -> bool {
        let (own, others) = (self.weighed_against(other), other.weighed_against(self));
        own < others || own == others && self.rank < other.rank
    }

    /// Whether it is more loaded than another, or as much and of lower rank.
    #[inline(always)]
    const fn is_above(&self, other: &Self) -> bool {
        let (own, others) = (self.weighed_against(other), other.weighed_against(self));
        own > others || own == others && self.rank < other.rank
    }
}

impl<R: Fn(u32) -> Option<u32> + Copy> LocalityLeastConnectionsReplicated<R> {
    /// A search for an address with this set.
    #[inline(always)]
    pub const fn new(rank: R) -> Self {
        Self { rank, least: None, most: None, other_idle: false, all: Champion::NONE }
    }

    /// The member to remove if the set has more than one and has not changed for the expiration time. The
    /// choice of this search holds even if it is that one. For use after the pass.
    #[doc(alias = "ip_vs_dest_set_max")]
    #[inline(always)]
    pub fn most_loaded_member(&self) -> Option<u32> {
        self.most.map(|member| member.position)
    }

    /// Whether the choice is not the set's own and is to be added to it, unless it is in it already.
    #[inline(always)]
    pub fn grows(&self) -> bool {
        self.own_choice().is_none() && self.all.position().is_some()
    }

    #[inline(always)]
    fn own_choice(&self) -> Option<u32> {
        match self.least {
            Some(member) if !(member.hot && self.other_idle) => Some(member.position),
            _ => None,
        }
    }
}

impl<R: Fn(u32) -> Option<u32> + Copy> Search for LocalityLeastConnectionsReplicated<R> {
    #[inline(always)]
    fn consider(&mut self, position: u32, candidate: &Candidate) -> bool {
        let (cost, weight) = (candidate.cost(), candidate.weight);
        self.other_idle |= is_idle(candidate);
        if candidate.usable() {
            self.all.challenge(position, cost, weight);
        }
        let Some(rank) = (self.rank)(position) else { return false };
        let member = Member { position, rank, cost, weight, hot: is_hot(candidate) };
        if candidate.usable() && self.least.is_none_or(|least| member.is_below(&least)) {
            self.least = Some(member);
        }
        if weight > 0 && self.most.is_none_or(|most| member.is_above(&most)) {
            self.most = Some(member);
        }
        false
    }

    #[inline(always)]
    fn finish(&self) -> (Option<u32>, Cursor) {
        (self.own_choice().or(self.all.position()), Cursor::START)
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::List;
    use super::*;

    /// Choice, whether the set grows, and the member that may go, by name; the set newest member first.
    fn pick(list: &List, set: &[u32]) -> (u32, bool, u32) {
        let rank =
            |position| set.iter().position(|name| *name == list.name(position)).map(|rank| rank as u32);
        let mut search = LocalityLeastConnectionsReplicated::new(&rank);
        for (position, candidate) in (0..).zip(&list.candidates) {
            assert!(!search.consider(position, candidate));
        }
        assert!(!search.again());
        let name = |position: Option<u32>| position.map_or(0, |position| list.name(position));
        (name(search.finish().0), search.grows(), name(search.most_loaded_member()))
    }

    #[test]
    fn an_empty_set_begins_with_wlc() {
        let list = List::with_weights(&[3, 1, 2]);
        assert_eq!(pick(&list, &[]), (3, true, 0));
    }

    #[test]
    fn the_least_loaded_member_serves() {
        let mut list = List::with_weights(&[3, 1, 2]);
        list.candidate(1).total = 6;
        list.candidate(2).total = 1;
        assert_eq!(pick(&list, &[1, 2]), (2, false, 1));
        list.candidate(2).overloaded = true;
        assert_eq!(pick(&list, &[1, 2]), (1, false, 1));
    }

    #[test]
    fn ties_go_to_the_newest_member() {
        let list = List::with_weights(&[1, 1, 1]);
        assert_eq!(pick(&list, &[1, 2]), (1, false, 1));
        assert_eq!(pick(&list, &[2, 1]), (2, false, 2));
    }

    #[test]
    fn a_hot_set_grows_by_an_idle_destination() {
        let mut list = List::with_weights(&[1, 1]);
        (list.candidate(1).active, list.candidate(1).total) = (2, 2);
        assert_eq!(pick(&list, &[1]), (2, true, 1));
        (list.candidate(2).active, list.candidate(2).total) = (1, 1);
        assert_eq!(pick(&list, &[1]), (1, false, 1));
    }

    #[test]
    fn nobody_is_left() {
        let mut list = List::with_weights(&[0, 1]);
        list.candidate(2).overloaded = true;
        // A member without weight is never the one to go, an overloaded one may be.
        assert_eq!(pick(&list, &[1]), (0, false, 0));
        assert_eq!(pick(&list, &[1, 2]), (0, false, 2));
    }
}
