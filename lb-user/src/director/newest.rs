//! A table that keeps its entries newest first, as IPVS keeps destinations.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// Entries by key, newest first; every operation is logarithmic or better.
#[derive(Debug, Clone)]
pub(super) struct Newest<K, V> {
    places: HashMap<K, u64>,
    entries: BTreeMap<u64, V>,
    next: u64,
}

impl<K, V> Default for Newest<K, V> {
    fn default() -> Self {
        Self { places: HashMap::new(), entries: BTreeMap::new(), next: 0 }
    }
}

impl<K: Hash + Eq, V> Newest<K, V> {
    pub(super) fn has(&self, key: &K) -> bool {
        self.places.contains_key(key)
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(self.places.get(key)?)
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(self.places.get(key)?)
    }

    /// Puts an entry at the head; the key must be new.
    pub(super) fn add(&mut self, key: K, value: V) {
        self.places.insert(key, self.next);
        self.entries.insert(self.next, value);
        self.next += 1;
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(&self.places.remove(key)?)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values().rev()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().rev()
    }
}
