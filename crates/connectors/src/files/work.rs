//! One tool call's share of the machine: how long it may run, how many names it may look at, and whether anybody
//! still waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// The bounds of one call, spent as it goes.
#[derive(Debug)]
pub(crate) struct Work {
    started: Instant,
    time: Duration,
    stopped: Arc<AtomicBool>,
    names_left: u64,
}

impl Work {
    /// A call that begins now, ends after `time` or soon after `stopped` is set, and looks at no more than `names`
    /// names.
    pub(crate) fn new(time: Duration, stopped: Arc<AtomicBool>, names: u64) -> Self {
        Self { started: Instant::now(), time, stopped, names_left: names }
    }

    /// Whether the time is over. What was found until then is the answer.
    ///
    /// # Errors
    /// The caller has gone: nobody needs an answer.
    pub(crate) fn over(&self) -> Result<bool, Refusal> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Refusal::Cancelled);
        }
        Ok(self.started.elapsed() >= self.time)
    }

    /// How many more names may be looked at.
    pub(crate) fn names_left(&self) -> u64 {
        self.names_left
    }

    /// Counts names that were looked at.
    pub(crate) fn spend_names(&mut self, names: usize) {
        self.names_left = self.names_left.saturating_sub(u64::try_from(names).unwrap_or(u64::MAX));
    }
}

/// Sets the flag when the call's future is dropped, so that the thread that works for it ends soon.
#[derive(Debug)]
pub(crate) struct StopOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
