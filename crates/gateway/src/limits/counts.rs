//! How often a caller did something lately, for policies that ask.
//!
//! Times are cut into pieces, of which those are counted that lie in the last minute, hour or day at least in part: a
//! count may be too high by one piece (5 s, 5 min, 1 h), never too low.
//!
//! Bounded: [`MOST`] targets over all callers, [`OF_CALLER`] of one; further ones of a caller are counted together, which
//! makes their counts too high, never too low. What nobody did for a day is forgotten when room is wanted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sortie_ids::Digest;
use sortie_policy::Counts;
use tokio::time::Instant;

/// Targets that are counted each for itself, over all callers and of one.
const MOST: usize = 50_000;
const OF_CALLER: usize = 256;
/// How often a full table is looked through at most, in seconds.
const SWEEP_EVERY: u64 = 60;

/// Seconds of a piece, and how many are kept: those of the time, and one that is not over.
const MINUTE: (u64, usize) = (5, 13);
const HOUR: (u64, usize) = (300, 13);
const DAY: (u64, usize) = (3600, 25);

/// All counts.
#[derive(Clone)]
pub(crate) struct Counting {
    state: Arc<Mutex<State>>,
    began: Instant,
}

#[derive(Default)]
struct State {
    callers: HashMap<Digest, Targets>,
    targets: usize,
    /// Of all callers for whom there is no room.
    others: Windows,
    /// Seconds since the beginning.
    swept: u64,
}

#[derive(Default)]
struct Targets {
    known: HashMap<Box<str>, Windows>,
    others: Windows,
}

/// What one target got.
#[derive(Clone, Default)]
struct Windows {
    minute: Ring<{ MINUTE.1 }>,
    hour: Ring<{ HOUR.1 }>,
    day: Ring<{ DAY.1 }>,
}

/// Counts of the last pieces, each at its number modulo `N`.
#[derive(Clone)]
struct Ring<const N: usize> {
    counts: [u32; N],
    /// The number of the newest piece.
    newest: u64,
}

/// A call that is counted. Its drop takes it back, unless it was kept.
pub(crate) struct Counted {
    counting: Counting,
    caller: Digest,
    target: Box<str>,
    /// Seconds since the beginning.
    at: u64,
    kept: bool,
}

impl Counting {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), began: Instant::now() }
    }

    /// How often this caller did this before, and that it does it once more: who asks in the meantime sees it counted.
    pub(crate) fn count(&self, caller: Digest, target: &str) -> (Counts, Counted) {
        let at = self.began.elapsed().as_secs();
        let mut state = self.lock();
        let windows = state.windows(caller, target, at);
        let before = windows.at(at);
        windows.add(at);
        drop(state);
        (before, Counted { counting: self.clone(), caller, target: target.into(), at, kept: false })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// The call goes on: it stays counted.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if !self.kept {
            let mut state = self.counting.lock();
            state.windows(self.caller, &self.target, self.at).take_back(self.at);
        }
    }
}

impl State {
    fn windows(&mut self, caller: Digest, target: &str, now: u64) -> &mut Windows {
        if self.targets >= MOST && now.saturating_sub(self.swept) >= SWEEP_EVERY {
            self.swept = now;
            self.forget(now);
        }
        let room = self.targets < MOST;
        if !room && !self.callers.contains_key(&caller) {
            return &mut self.others;
        }
        let targets = self.callers.entry(caller).or_default();
        if !targets.known.contains_key(target) {
            if !room || targets.known.len() >= OF_CALLER {
                return &mut targets.others;
            }
            self.targets += 1;
        }
        targets.known.entry(target.into()).or_default()
    }

    fn forget(&mut self, now: u64) {
        let idle = |windows: &Windows| windows.at(now).day == 0;
        for targets in self.callers.values_mut() {
            targets.known.retain(|_, windows| !idle(windows));
        }
        self.callers.retain(|_, targets| !targets.known.is_empty() || !idle(&targets.others));
        self.targets = self.callers.values().map(|targets| targets.known.len()).sum();
    }
}

impl Windows {
    fn at(&self, now: u64) -> Counts {
        Counts {
            minute: self.minute.sum(now / MINUTE.0),
            hour: self.hour.sum(now / HOUR.0),
            day: self.day.sum(now / DAY.0),
        }
    }

    fn add(&mut self, now: u64) {
        self.minute.add(now / MINUTE.0);
        self.hour.add(now / HOUR.0);
        self.day.add(now / DAY.0);
    }

    fn take_back(&mut self, at: u64) {
        self.minute.take_back(at / MINUTE.0);
        self.hour.take_back(at / HOUR.0);
        self.day.take_back(at / DAY.0);
    }
}

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self { counts: [0; N], newest: 0 }
    }
}

impl<const N: usize> Ring<N> {
    /// The pieces that are kept when `piece` is the newest, those before the oldest one left out.
    fn kept(&self, piece: u64) -> impl Iterator<Item = u64> + use<N> {
        let newest = self.newest;
        (0..N as u64)
            .filter_map(move |back| piece.checked_sub(back))
            .filter(move |kept| newest < N as u64 + kept && *kept <= newest)
    }

    fn sum(&self, piece: u64) -> u32 {
        self.kept(piece)
            .fold(0, |sum, kept| sum.saturating_add(self.counts.get(place::<N>(kept)).copied().unwrap_or(0)))
    }

    fn add(&mut self, piece: u64) {
        let skipped = piece.saturating_sub(self.newest).min(N as u64);
        for back in 0..skipped {
            if let Some(count) = self.counts.get_mut(place::<N>(piece - back)) {
                *count = 0;
            }
        }
        self.newest = self.newest.max(piece);
        if let Some(count) = self.counts.get_mut(place::<N>(piece)) {
            *count = count.saturating_add(1);
        }
    }

    /// One less in a piece that is still kept.
    fn take_back(&mut self, piece: u64) {
        if self.newest < piece.saturating_add(N as u64)
            && let Some(count) = self.counts.get_mut(place::<N>(piece))
        {
            *count = count.saturating_sub(1);
        }
    }
}

fn place<const N: usize>(piece: u64) -> usize {
    usize::try_from(piece % N as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn caller(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn done(counting: &Counting, who: &str, target: &str) -> (u32, u32, u32) {
        let (counts, counted) = counting.count(caller(who), target);
        counted.keep();
        (counts.minute, counts.hour, counts.day)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_counted_for_as_long_as_they_are_recent() {
        let counting = Counting::new();
        assert_eq!(done(&counting, "a", "pay"), (0, 0, 0));
        assert_eq!(done(&counting, "a", "pay"), (1, 1, 1));
        assert_eq!(done(&counting, "a", "read"), (0, 0, 0), "another target");
        assert_eq!(done(&counting, "b", "pay"), (0, 0, 0), "another caller");
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(done(&counting, "a", "pay"), (2, 2, 2));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(done(&counting, "a", "pay"), (1, 3, 3));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(done(&counting, "a", "pay").2, 4);
        tokio::time::advance(Duration::from_secs(2 * 86_400)).await;
        assert_eq!(done(&counting, "a", "pay"), (0, 0, 0));
        tokio::time::advance(Duration::from_secs(7 * 86_400)).await;
        assert_eq!(done(&counting, "a", "pay"), (0, 0, 0));
    }

    /// Compared with a list of every call: never too low, and too high by at most what one piece holds.
    #[tokio::test(start_paused = true)]
    async fn counts_are_never_too_low() {
        let counting = Counting::new();
        let mut calls: Vec<u64> = Vec::new();
        let mut now = 0;
        for step in 0..3000_u64 {
            let pause = [0, 1, 3, 7, 61, 299, 1][usize::try_from(step * step % 7).expect("small")];
            tokio::time::advance(Duration::from_secs(pause)).await;
            now += pause;
            let within = |span: u64| calls.iter().filter(|at| now - **at < span).count();
            let (minute, hour, day) = done(&counting, "a", "pay");
            for (count, span, piece) in [(minute, 60, 5), (hour, 3600, 300), (day, 86_400, 3600)] {
                let count = usize::try_from(count).expect("count");
                assert!((within(span)..=within(span + piece)).contains(&count), "{count} in {span} s at {now}");
            }
            calls.push(now);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_did_not_go_on_is_taken_back() {
        let counting = Counting::new();
        let (_, denied) = counting.count(caller("a"), "pay");
        // While it is undecided, others see it.
        assert_eq!(done(&counting, "a", "pay"), (1, 1, 1));
        drop(denied);
        assert_eq!(done(&counting, "a", "pay"), (1, 1, 1));
        let (_, late) = counting.count(caller("a"), "pay");
        tokio::time::advance(Duration::from_secs(200)).await;
        assert_eq!(done(&counting, "a", "pay"), (0, 3, 3));
        drop(late);
        assert_eq!(done(&counting, "a", "pay"), (1, 3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_targets_are_counted_together_and_displace_nobody() {
        let counting = Counting::new();
        assert_eq!(done(&counting, "b", "pay").0, 0);
        for number in 0..OF_CALLER {
            assert_eq!(done(&counting, "a", &format!("t{number}")).0, 0);
        }
        assert_eq!(done(&counting, "a", "one more").0, 0);
        assert_eq!(done(&counting, "a", "and another").0, 1);
        assert_eq!(done(&counting, "b", "pay").0, 1);
        assert_eq!(counting.lock().targets, OF_CALLER + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded() {
        let counting = Counting::new();
        for number in 0..MOST + 1000 {
            let _count = done(&counting, &format!("caller {number}"), "pay");
        }
        assert_eq!(counting.lock().targets, MOST);
        assert_eq!(done(&counting, "caller 7", "pay").0, 1, "who was there keeps its counts");
        assert!(done(&counting, "somebody new", "pay").0 >= 1000);
        tokio::time::advance(Duration::from_secs(2 * 86_400)).await;
        assert_eq!(done(&counting, "somebody new", "pay").0, 0);
        assert_eq!(counting.lock().targets, 1);
    }
}
