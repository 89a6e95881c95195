//! Locality-based least connections with replication: as `lblc`, but an address has a set of destinations,
//! which grows under load and shrinks with time.
//!
//! The set is in the [`super::cache`]. The driver looks for its least loaded member first, and searches the service's
//! destinations only if there is none or it is hot. IPVS counterpart: `ip_vs_lblcr.c`.

use super::Candidate;
use super::lblc::is_hot;

/// A pass over an address's set, newest member first.
#[derive(Debug, Clone, Copy)]
pub struct Members {
    least: Member,
    most: Member,
}

/// A member of the set.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// Its place among the members, from 1 on; 0 for nobody.
    number: u32,
    cost: u32,
    weight: u32,
    hot: bool,
}

impl Member {
    // No constant: in a BPF program that would be memory.
    #[inline(always)]
    const fn nobody() -> Self {
        Self { number: 0, cost: 0, weight: 0, hot: false }
    }

    /// What its cost comes to beside another's, each over its own weight.
    #[inline(always)]
    const fn weighed_against(&self, other: &Self) -> u64 {
        self.cost as u64 * other.weight as u64
    }

    #[inline(always)]
    const fn rank(&self) -> Option<u32> {
        self.number.checked_sub(1)
    }
}

impl Members {
    /// Nobody yet.
    #[inline(always)]
    pub const fn new() -> Self {
        Self { least: Member::nobody(), most: Member::nobody() }
    }

    /// Looks at the member of a rank; of equal ones the first stays. A deleted destination serves nobody.
    #[inline(always)]
    pub fn consider(&mut self, rank: u32, candidate: &Candidate, deleted: bool) {
        let (cost, weight) = (candidate.cost(), candidate.weight);
        let member = Member { number: rank + 1, cost, weight, hot: is_hot(candidate) };
        let less = member.weighed_against(&self.least) < self.least.weighed_against(&member);
        if candidate.usable() && !deleted && (self.least.number == 0 || less) {
            self.least = member;
        }
        let more = member.weighed_against(&self.most) > self.most.weighed_against(&member);
        if weight > 0 && (self.most.number == 0 || more) {
            self.most = member;
        }
    }

    /// The member whose connections cost least for its weight, and whether it is hot.
    #[doc(alias = "ip_vs_dest_set_min")]
    #[inline(always)]
    pub const fn least(&self) -> Option<(u32, bool)> {
        match self.least.rank() {
            Some(rank) => Some((rank, self.least.hot)),
            None => None,
        }
    }

    /// The member to remove if the set is to shrink. The choice holds even if it is that one.
    #[doc(alias = "ip_vs_dest_set_max")]
    #[inline(always)]
    pub const fn most(&self) -> Option<u32> {
        self.most.rank()
    }
}

impl Default for Members {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::lblc::choose;
    use super::super::simulation::List;
    use super::*;

    /// Choice, whether the set grows, and the member that may go, by name; the set newest member first.
    fn pick(list: &List, set: &[u32]) -> (u32, bool, u32) {
        let position = |name: &u32| (0..).find(|position| list.name(*position) == *name).unwrap();
        let positions: Vec<u32> = set.iter().map(position).collect();
        let mut members = Members::new();
        for (rank, position) in (0..).zip(&positions) {
            members.consider(rank, &list.candidates[*position as usize], false);
        }
        let own = members.least().map(|(rank, _)| positions[rank as usize]);
        let choice = choose(own, &list.candidates).map_or(0, |position| list.name(position));
        let most = members.most().map_or(0, |rank| set[rank as usize]);
        (choice, choice != 0 && !set.contains(&choice), most)
    }

    #[test]
    fn a_deleted_member_serves_nobody_and_may_go() {
        let busy = Candidate { weight: 1, active: 1, total: 1, overloaded: false };
        let mut members = Members::new();
        members.consider(0, &busy, true);
        assert_eq!((members.least(), members.most()), (None, Some(0)));
        members.consider(1, &Candidate { active: 9, ..busy }, false);
        assert_eq!((members.least(), members.most()), (Some((1, true)), Some(1)));
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
