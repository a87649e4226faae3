//! Values by key, a bounded number of them: what was verified once need not be verified again.
//!
//! Only what was found good belongs in here, and under a digest of the whole token, so that a look-up tells nobody anything
//! that the token in its hand does not.

use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sortie_ids::Recent;

/// Most values; beyond it the least recently used are forgotten.
pub const MAX_REMEMBERED: usize = 16 * 1024;
/// No time passes here: what ends by itself says so in its value.
const NOW: i64 = 0;

/// Values by key.
pub struct Remembered<K, V>(Mutex<Recent<K, V>>);

impl<K: Copy + Eq + Hash, V: Clone> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MAX_REMEMBERED, i64::MAX)))
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Remembered<K, V> {
    /// The value under this key.
    pub fn get(&self, key: &K) -> Option<V> {
        self.lock().get(key, NOW)
    }

    /// Puts a value in.
    pub fn put(&self, key: K, value: V) {
        self.lock().put(key, value, NOW);
    }

    /// Forgets a value.
    pub fn forget(&self, key: &K) {
        self.lock().remove(key);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Recent<K, V>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
