//! Waiting between tries.

use std::time::Duration;

/// Exponential backoff with full jitter. The caller brings the random number, so that tests can drive it.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    /// Waits grow from `base` by doubling up to `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, tries: 0 }
    }

    /// The next wait: uniform between zero and the current bound; `random` is uniform in 0..=u32::MAX.
    pub fn next(&mut self, random: u32) -> Duration {
        let bound = self.base.saturating_mul(1u32.checked_shl(self.tries).unwrap_or(u32::MAX)).min(self.cap);
        self.tries = (self.tries + 1).min(31);
        bound.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Starts over: to be called after a stable period, not on the mere success of a try.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (0..6).map(|_| backoff.next(u32::MAX).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.next(0), Duration::ZERO);
        for _ in 0..100 {
            assert!(backoff.next(u32::MAX) <= Duration::from_secs(1));
        }
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX), Duration::from_millis(100));
    }
}
