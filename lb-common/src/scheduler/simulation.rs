//! A service's list for tests: destinations numbered in the order of addition, newest first.

use std::vec::Vec;

use super::{Candidate, Cursor, Search, run};

/// A list of destinations and a cursor over it.
#[derive(Debug, Clone, Default)]
pub(super) struct List {
    names: Vec<u32>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) cursor: Cursor,
    added: u32,
}

impl List {
    /// A list to which destinations 1, 2, 3... with these weights were added in order.
    pub(super) fn with_weights(weights: &[u32]) -> Self {
        let mut list = Self::default();
        weights.iter().for_each(|weight| list.add(*weight));
        list
    }

    /// Adds the next destination at the head.
    pub(super) fn add(&mut self, weight: u32) {
        self.added += 1;
        self.names.insert(0, self.added);
        self.candidates.insert(0, Candidate { weight, ..Candidate::default() });
    }

    /// Removes a destination and tells the position that it had.
    pub(super) fn remove(&mut self, name: u32) -> u32 {
        let position = self.position(name);
        self.names.remove(position);
        self.candidates.remove(position);
        position as u32
    }

    /// The destination that was added as number `name`.
    pub(super) fn candidate(&mut self, name: u32) -> &mut Candidate {
        let position = self.position(name);
        &mut self.candidates[position]
    }

    /// The name of the destination at a position.
    pub(super) fn name(&self, position: u32) -> u32 {
        self.names[position as usize]
    }

    /// Weights in list order.
    pub(super) fn weights(&self) -> Vec<u32> {
        self.candidates.iter().map(|candidate| candidate.weight).collect()
    }

    /// Makes connections that stay active (as TCP ones, from their SYN on) and tells where each
    /// went, 0 for nowhere.
    pub(super) fn connect<S: Search>(&mut self, count: usize, scheduler: impl Fn(Cursor) -> S) -> Vec<u32> {
        self.connect_with(count, 1, scheduler)
    }

    /// Makes connections that never are active, as UDP ones.
    pub(super) fn connect_inactive<S: Search>(
        &mut self,
        count: usize,
        scheduler: impl Fn(Cursor) -> S,
    ) -> Vec<u32> {
        self.connect_with(count, 0, scheduler)
    }

    fn connect_with<S: Search>(
        &mut self,
        count: usize,
        active: u32,
        scheduler: impl Fn(Cursor) -> S,
    ) -> Vec<u32> {
        let once = |_| {
            let (choice, cursor) = run(scheduler(self.cursor), &self.candidates);
            self.cursor = cursor;
            let Some(position) = choice else { return 0 };
            let candidate = &mut self.candidates[position as usize];
            candidate.active += active;
            candidate.total += 1;
            self.names[position as usize]
        };
        (0..count).map(once).collect()
    }

    fn position(&self, name: u32) -> usize {
        self.names.iter().position(|known| *known == name).unwrap()
    }
}
