//! Calls at once.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::rates::Key;

/// How many calls of each key run. Bounded by the calls that run: a key without any is forgotten.
pub(super) struct Calls {
    most: u32,
    running: Mutex<HashMap<Key, u32>>,
}

/// Room for calls, until its drop.
pub(crate) struct Permit {
    calls: Arc<Calls>,
    key: Key,
    count: u32,
}

impl Calls {
    pub(super) fn new(most: NonZeroU32) -> Self {
        Self { most: most.get(), running: Mutex::default() }
    }

    /// Room for so many calls of a key; `None` when there is not enough.
    pub(super) fn take(calls: &Arc<Self>, key: Key, count: NonZeroU32) -> Option<Permit> {
        let mut running = calls.lock();
        let held = running.get(&key).copied().unwrap_or_default();
        let now = held.checked_add(count.get()).filter(|now| *now <= calls.most)?;
        running.insert(key.clone(), now);
        drop(running);
        Some(Permit { calls: calls.clone(), key, count: count.get() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, u32>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut running = self.calls.lock();
        if let Some(held) = running.get_mut(&self.key) {
            *held = held.saturating_sub(self.count);
            if *held == 0 {
                running.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_makes_room_and_is_forgotten() {
        let calls = Arc::new(Calls::new(NonZeroU32::new(3).expect("three")));
        let key = |tool: &str| Key { caller: None, route: None, tool: Some(tool.into()) };
        let take = |tool: &str, count| Calls::take(&calls, key(tool), NonZeroU32::new(count).expect("count"));
        let first = take("a", 2).expect("room");
        assert!(take("a", 2).is_none());
        let second = take("a", 1).expect("room");
        assert!(take("a", 1).is_none());
        let other = take("b", 3).expect("another key");
        drop((first, second, other));
        assert!(calls.lock().is_empty());
        assert!(take("a", 4).is_none(), "more than ever fits");
    }
}
