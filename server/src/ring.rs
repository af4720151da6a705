//! Who waits, in turns: one of each key, round and round.
//!
//! However many wait of one key, whoever comes first of another waits for one turn of each other key at most.

use std::collections::{BTreeMap, VecDeque};

/// Keys in the order of their turns, and who waits of each. Bounds are for who uses it.
#[derive(Debug)]
pub(crate) struct Ring<K, T> {
    order: VecDeque<K>,
    waiting: BTreeMap<K, VecDeque<T>>,
}

impl<K, T> Default for Ring<K, T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            waiting: BTreeMap::new(),
        }
    }
}

impl<K: Ord + Clone, T> Ring<K, T> {
    pub(crate) fn push(&mut self, key: K, item: T) {
        let of_key = self.waiting.entry(key.clone()).or_default();
        if of_key.is_empty() {
            self.order.push_back(key);
        }
        of_key.push_back(item);
    }

    /// How many wait of a key.
    pub(crate) fn count(&self, key: &K) -> usize {
        self.waiting.get(key).map_or(0, VecDeque::len)
    }

    /// How many wait in all.
    pub(crate) fn len(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Whose turn it is. Its key is the last one then.
    pub(crate) fn next(&mut self) -> Option<T> {
        let key = self.order.pop_front()?;
        let of_key = self.waiting.get_mut(&key)?;
        let next = of_key.pop_front();
        if of_key.is_empty() {
            self.waiting.remove(&key);
        } else {
            self.order.push_back(key);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_turn_however_many_wait_of_another() {
        let mut ring = Ring::default();
        for n in 0..3 {
            ring.push("crowd", n);
        }
        ring.push("one", 10);
        ring.push("other", 20);
        assert_eq!((ring.count(&"crowd"), ring.count(&"nobody")), (3, 0));
        let mut order = Vec::new();
        while let Some(next) = ring.next() {
            order.push(next);
            if next == 0 {
                ring.push("crowd", 3);
            }
        }
        assert_eq!(order, [0, 10, 20, 1, 2, 3]);
        assert!(ring.len() == 0 && ring.order.is_empty());
    }
}
