//! Rates, by the generic cell rate algorithm: one number for each key, no timers.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use sortie_ids::Digest;
use tokio::time::Instant;

use crate::config::Rate;

/// Keys that are counted each for itself.
const MOST: usize = 100_000;
/// What further keys share.
const SHARED: usize = 1024;
/// How often a full table is looked through at most, in nanoseconds.
const SWEEP_EVERY: u64 = 1_000_000_000;

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) caller: Option<Digest>,
    pub(super) route: Option<Box<str>>,
    pub(super) tool: Option<Box<str>>,
}

/// One rate, for all keys.
pub(super) type Rates = RateLimiter<Key, Cells, Timer, NoOpMiddleware<Nanos>>;

/// A rate that counts from now on.
pub(super) fn rates(rate: Rate, burst: Option<NonZeroU32>) -> Rates {
    let timer = Timer(Instant::now());
    RateLimiter::new(quota(rate, burst), Cells::new(timer), timer)
}

fn quota(rate: Rate, burst: Option<NonZeroU32>) -> Quota {
    // A second is more nanoseconds than any rate has calls.
    let quota =
        Quota::with_period(rate.unit / rate.count.get()).expect("a rate has at most a million calls in a second");
    quota.allow_burst(burst.unwrap_or(rate.count))
}

/// Time since the limit began, by the clock that nobody sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer(Instant);

impl Clock for Timer {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.elapsed())
    }
}

/// When the next call of each key conforms ("theoretical arrival time").
///
/// Bounded: at most [`MOST`] keys. A key whose time has come is as good as unknown, and makes room for another; one whose
/// time has not come is never forgotten, so that making up keys resets no limit. When all are such, further keys share
/// [`SHARED`] cells, by a hash with a random seed: they may be refused too early, never too late.
pub(super) struct Cells {
    cells: Mutex<Table>,
    shared: Mutex<Vec<Option<Nanos>>>,
    most: usize,
    seed: RandomState,
    timer: Timer,
}

#[derive(Default)]
struct Table {
    next: HashMap<Key, Nanos>,
    /// When it was last looked through for keys whose time has come: all of it is a lot of work for one call.
    swept: Nanos,
}

impl Table {
    fn make_room(&mut self, most: usize, now: Nanos) {
        if self.next.len() >= most && now.as_u64().saturating_sub(self.swept.as_u64()) >= SWEEP_EVERY {
            self.swept = now;
            self.next.retain(|_, next| *next > now);
        }
    }
}

impl Cells {
    fn new(timer: Timer) -> Self {
        let shared = Mutex::new(vec![None; SHARED]);
        Self { cells: Mutex::default(), shared, most: MOST, seed: RandomState::new(), timer }
    }
}

impl StateStore for Cells {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut table = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = table.next.get_mut(key) {
            let (outcome, next) = f(Some(*cell))?;
            *cell = next;
            return Ok(outcome);
        }
        table.make_room(self.most, self.timer.now());
        if table.next.len() < self.most {
            let (outcome, next) = f(None)?;
            table.next.insert(key.clone(), next);
            return Ok(outcome);
        }
        drop(table);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u64::try_from(shared.len()).unwrap_or(u64::MAX);
        let place = usize::try_from(self.seed.hash_one(key) % count).unwrap_or_default();
        let known = shared.get(place).copied().flatten();
        let (outcome, next) = f(known)?;
        if let Some(cell) = shared.get_mut(place) {
            *cell = Some(next);
        }
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(number: u32) -> Key {
        Key { caller: Some(Digest::of(&number.to_be_bytes())), route: None, tool: None }
    }

    fn limiter(count: u32, unit: u64, most: usize) -> Rates {
        let rate = Rate { count: NonZeroU32::new(count).expect("count"), unit: Duration::from_secs(unit) };
        let timer = Timer(Instant::now());
        RateLimiter::new(quota(rate, None), Cells { most, ..Cells::new(timer) }, timer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let limiter = limiter(3, 60, MOST);
        for _ in 0..3 {
            assert!(limiter.check_key(&key(1)).is_ok());
        }
        assert!(limiter.check_key(&key(1)).is_err());
        assert!(limiter.check_key(&key(2)).is_ok(), "another key");
        tokio::time::advance(Duration::from_secs(20)).await;
        assert!(limiter.check_key(&key(1)).is_ok());
        assert!(limiter.check_key(&key(1)).is_err());
    }

    /// Whoever makes up keys to have its own forgotten gets nothing for it.
    #[tokio::test(start_paused = true)]
    async fn a_full_table_forgets_no_key_that_is_limited() {
        let limiter = limiter(1, 60, 100);
        assert!(limiter.check_key(&key(0)).is_ok());
        for number in 1..5000 {
            let _may_share_a_full_cell = limiter.check_key(&key(number));
        }
        assert!(limiter.check_key(&key(0)).is_err());
        assert!(limiter.into_state_store().cells.lock().expect("lock").next.len() <= 100);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_makes_room() {
        let limiter = limiter(1, 60, 100);
        for number in 0..100 {
            assert!(limiter.check_key(&key(number)).is_ok());
        }
        tokio::time::advance(Duration::from_secs(61)).await;
        for number in 100..200 {
            assert!(limiter.check_key(&key(number)).is_ok(), "{number}");
            assert!(limiter.check_key(&key(number)).is_err(), "{number} has a cell of its own");
        }
    }
}
