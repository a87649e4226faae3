//! Values by key, a bounded number of them: what was verified once need not be verified again.
//!
//! Two generations: what is used stays, and when the younger one is full, the older one is forgotten. Only what was
//! found good belongs in here, and under a digest of the whole token, so that a look-up tells nobody anything that the
//! token in its hand does not.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

/// Most values; beyond it the least recently used are forgotten.
pub const MAX_REMEMBERED: usize = 16 * 1024;

/// Values by key.
pub struct Remembered<K, V>(Mutex<Generations<K, V>>);

struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Generations { young: HashMap::new(), old: HashMap::new() }))
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Remembered<K, V> {
    /// The value under this key.
    pub fn get(&self, key: &K) -> Option<V> {
        let mut both = self.lock();
        if let Some(value) = both.young.get(key) {
            return Some(value.clone());
        }
        let value = both.old.remove(key)?;
        both.put(*key, value.clone());
        Some(value)
    }

    /// Puts a value in.
    pub fn put(&self, key: K, value: V) {
        self.lock().put(key, value);
    }

    /// Forgets a value.
    pub fn forget(&self, key: &K) {
        let mut both = self.lock();
        both.young.remove(key);
        both.old.remove(key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        let mut both = self.lock();
        both.young.clear();
        both.old.clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let both = self.lock();
        both.young.len().saturating_add(both.old.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Generations<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V> Generations<K, V> {
    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= MAX_REMEMBERED / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use sortie_ids::Digest;

    use super::*;

    #[test]
    fn what_is_used_stays_and_the_number_is_bounded() {
        let remembered = Remembered::default();
        let digest = |number: usize| Digest::of(&number.to_be_bytes());
        remembered.put(digest(0), 0);
        for number in 1..3 * MAX_REMEMBERED {
            remembered.put(digest(number), number);
            if number % 1000 == 0 {
                assert_eq!(remembered.get(&digest(0)), Some(0), "{number}");
            }
        }
        assert!(remembered.len() <= MAX_REMEMBERED);
        assert_eq!(remembered.get(&digest(1)), None);
        remembered.forget(&digest(0));
        assert_eq!(remembered.get(&digest(0)), None);
    }
}
