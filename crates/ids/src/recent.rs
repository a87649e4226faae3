//! What was used lately, within bounds.

use std::collections::HashMap;
use std::hash::Hash;

/// A map in two generations: what is used goes to the young one, and when that is full or old, the other is forgotten. So
/// it forgets what was not used for longest. The time is an argument, in seconds; where only the number counts, it is 0.
#[derive(Debug)]
pub struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Most entries of one generation.
    generation: usize,
    /// How long an entry is kept without use, at least; at most twice that.
    idle: i64,
    /// When the young generation began.
    began: i64,
}

impl<K: Clone + Eq + Hash, V: Clone> Recent<K, V> {
    /// At most `most` entries, each for `idle` to twice `idle` seconds without use.
    pub fn new(most: usize, idle: i64) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), generation: most / 2, idle, began: 0 }
    }

    /// The value under a key, which counts as a use of it.
    pub fn get(&mut self, key: &K, now: i64) -> Option<V> {
        self.age(now);
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let value = self.old.remove(key)?;
        self.young.insert(key.clone(), value.clone());
        Some(value)
    }

    /// Puts a value in, in the place of an older one.
    pub fn put(&mut self, key: K, value: V, now: i64) {
        self.age(now);
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    /// Forgets a value.
    pub fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.young.len().saturating_add(self.old.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same entries with other values, without those that have none any more.
    #[must_use]
    pub fn map(&self, value: impl Fn(V) -> Option<V>) -> Self {
        let each = |map: &HashMap<K, V>| {
            map.iter().filter_map(|(key, old)| Some((key.clone(), value(old.clone())?))).collect()
        };
        Self { young: each(&self.young), old: each(&self.old), ..*self }
    }

    fn age(&mut self, now: i64) {
        let age = now.saturating_sub(self.began);
        if age >= self.idle.saturating_mul(2) {
            self.young.clear();
        }
        if age >= self.idle || self.young.len() >= self.generation {
            self.old = std::mem::take(&mut self.young);
            self.began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    const MOST: usize = 10_000;
    const IDLE: i64 = 12 * 3600;

    fn key(number: usize) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let mut recent = Recent::new(MOST, IDLE);
        let now = 1_800_000_000;
        recent.put(key(0), 1, now);
        recent.put(key(2), 3, now);
        for hours in 1..100 {
            let now = now + hours * 3600;
            assert_eq!(recent.get(&key(0), now), Some(1), "{hours}");
        }
        assert_eq!(recent.get(&key(2), now + 100 * 3600), None);
        // Nothing outlives a long silence.
        assert_eq!(recent.get(&key(0), now + 124 * 3600), None);
    }

    #[test]
    fn it_is_bounded_and_keeps_the_newest() {
        let mut recent = Recent::new(MOST, IDLE);
        recent.put(key(0), 1, 0);
        for number in 1..5 * MOST {
            recent.put(key(number), number, 0);
            assert_eq!(recent.get(&key(0), 0), Some(1), "in use after {number}");
            assert!(recent.young.len() + recent.old.len() <= MOST);
        }
        assert_eq!(recent.get(&key(5 * MOST - 1), 0), Some(5 * MOST - 1));
        assert_eq!(recent.get(&key(1), 0), None);
    }

    #[test]
    fn values_may_change_or_go() {
        let mut recent = Recent::new(MOST, IDLE);
        recent.put(key(1), 0, 0);
        recent.put(key(2), 1, 0);
        let mut moved = recent.map(|value| (value == 1).then_some(5));
        assert_eq!((moved.get(&key(1), 0), moved.get(&key(2), 0)), (None, Some(5)));
    }
}
