//! A bounded memory of what was worked out before, shared by threads.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many parts a cache has, each with a lock of its own.
const SHARDS: usize = 16;

/// Values by the hash of what they were made from. Two generations in each part: when the younger one is full, the older
/// one is forgotten. So between half of its bound and the whole of it is kept, what is in use among it.
pub(crate) struct Cache<V> {
    shards: Vec<Mutex<Generations<V>>>,
    /// Most values of one generation of one part.
    bound: usize,
}

struct Generations<V> {
    young: Map<V>,
    old: Map<V>,
}

type Map<V> = HashMap<u64, Arc<V>, BuildHasherDefault<Same>>;

impl<V> Cache<V> {
    /// An empty cache for at most about this many values.
    pub(crate) fn new(most: usize) -> Self {
        let shard = || Mutex::new(Generations { young: Map::default(), old: Map::default() });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), bound: (most / SHARDS / 2).max(1) }
    }

    /// The value with this hash, if it was made from the same: two things may have one hash.
    pub(crate) fn get(&self, hash: u64, is_it: impl Fn(&V) -> bool) -> Option<Arc<V>> {
        let mut shard = self.shard(hash)?;
        if let Some(value) = shard.young.get(&hash) {
            return is_it(value).then(|| Arc::clone(value));
        }
        let value = shard.old.remove(&hash).filter(|value| is_it(value))?;
        self.keep(&mut shard, hash, Arc::clone(&value));
        Some(value)
    }

    /// Remembers a value.
    pub(crate) fn put(&self, hash: u64, value: Arc<V>) {
        if let Some(mut shard) = self.shard(hash) {
            self.keep(&mut shard, hash, value);
        }
    }

    fn keep(&self, shard: &mut Generations<V>, hash: u64, value: Arc<V>) {
        if shard.young.len() >= self.bound {
            shard.old = std::mem::take(&mut shard.young);
        }
        shard.young.insert(hash, value);
    }

    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Generations<V>>> {
        let at = usize::try_from(hash % 16).unwrap_or_default();
        // Nothing that holds the lock can panic halfway through a change.
        self.shards.get(at).map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The hash is already one.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        // The lowest bits have chosen the part.
        self.0 = value.rotate_right(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_is_forgotten() {
        let cache = Cache::new(SHARDS * 8);
        let key = |at: u64| at * 16;
        cache.put(key(0), Arc::new(0));
        for at in 1..100 {
            cache.put(key(at), Arc::new(at));
            assert_eq!(cache.get(key(0), |_| true).as_deref(), Some(&0));
        }
        assert!(cache.get(key(50), |_| true).is_none());
        let kept =
            cache.shards.iter().map(|shard| shard.lock().expect("unpoisoned")).map(|s| s.young.len() + s.old.len());
        assert!(kept.sum::<usize>() <= 8);
    }

    #[test]
    fn a_hash_alone_proves_nothing() {
        let cache = Cache::new(100);
        cache.put(7, Arc::new("a"));
        assert!(cache.get(7, |value| *value == "b").is_none());
        assert!(cache.get(7, |value| *value == "a").is_some());
    }
}
