//! What is known of a sink while it delivers: for those who ask, for admission, and for metrics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::Behind;
use crate::reader::Mark;
use crate::spec::{OnFull, SinkSpec};

/// How a sink is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkState {
    /// All that was offered was taken.
    Delivering,
    /// The last delivery failed; it is tried again.
    Retrying,
    /// The receiver refuses a record for good, and the settings skip none.
    Stopped,
}

impl SinkState {
    /// The name by which commands call it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivering => "delivering",
            Self::Retrying => "retrying",
            Self::Stopped => "stopped",
        }
    }
}

/// What a sink says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Its name.
    pub name: String,
    /// Its kind, as settings call it.
    pub kind: String,
    /// How it is doing.
    pub state: SinkState,
    /// The number of the first record that is not known to be delivered.
    pub next: u64,
    /// How many records are not.
    pub lag_records: u64,
    /// How many bytes of the log they are, as of the last look.
    pub lag_bytes: u64,
    /// How many bytes may be.
    pub spool_bytes: u64,
    /// Whether calls are refused since more are.
    pub denies: bool,
    /// Records delivered since the start.
    pub delivered: u64,
    /// Records given up since the start.
    pub dropped: u64,
    /// When something was delivered last: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivery: Option<String>,
    /// Why the last delivery that failed did; kept when it works again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When that was: RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<String>,
}

pub(crate) struct Board {
    name: String,
    kind: &'static str,
    spool_bytes: u64,
    on_full: OnFull,
    facts: Mutex<Facts>,
    lag_bytes: AtomicU64,
    denies: AtomicBool,
    overrun: AtomicBool,
    /// Told when it has more behind it than it may, and is to drop some.
    pub(crate) disturbed: Notify,
}

struct Facts {
    state: SinkState,
    mark: Mark,
    delivered: u64,
    dropped: u64,
    last_delivery: Option<Timestamp>,
    last_error: Option<(String, Timestamp)>,
}

impl Board {
    pub(crate) fn new(spec: &SinkSpec, mark: Mark) -> Self {
        let facts = Facts {
            state: SinkState::Delivering,
            mark,
            delivered: 0,
            dropped: 0,
            last_delivery: None,
            last_error: None,
        };
        let board = Self {
            name: spec.name.clone(),
            kind: spec.kind.name(),
            spool_bytes: spec.spool_bytes,
            on_full: spec.on_full,
            facts: Mutex::new(facts),
            lag_bytes: AtomicU64::new(0),
            denies: AtomicBool::new(false),
            overrun: AtomicBool::new(false),
            disturbed: Notify::new(),
        };
        board.gauge_up(true);
        board
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn mark(&self) -> Mark {
        self.facts().mark.clone()
    }

    pub(crate) fn denies(&self) -> bool {
        self.denies.load(Ordering::Relaxed)
    }

    pub(crate) fn lag_bytes(&self) -> u64 {
        self.lag_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn overrun(&self) -> bool {
        self.overrun.load(Ordering::Relaxed)
    }

    pub(crate) fn overrun_handled(&self) {
        self.overrun.store(false, Ordering::Relaxed);
    }

    /// Records up to here are delivered.
    pub(crate) fn delivered(&self, mark: Mark) {
        let mut facts = self.facts();
        let records = mark.next.saturating_sub(facts.mark.next);
        if facts.state != SinkState::Delivering {
            tracing::info!(sink = self.name, record = facts.mark.next, "the sink takes records again");
        }
        facts.state = SinkState::Delivering;
        facts.delivered = facts.delivered.saturating_add(records);
        facts.last_delivery = Some(Timestamp::now());
        facts.mark = mark;
        drop(facts);
        self.gauge_up(true);
        metrics::counter!("sortie_audit_sink_delivered_total", "sink" => self.name.clone()).increment(records);
    }

    /// Records up to here will not be.
    pub(crate) fn dropped(&self, mark: Mark, records: u64, why: &'static str) {
        let mut facts = self.facts();
        facts.dropped = facts.dropped.saturating_add(records);
        facts.mark = mark;
        drop(facts);
        let labels = [("sink", self.name.clone()), ("why", why.to_owned())];
        metrics::counter!("sortie_audit_sink_dropped_total", &labels).increment(records);
    }

    /// A delivery has failed. The same reason is logged once.
    pub(crate) fn failed(&self, state: SinkState, why: String) {
        let mut facts = self.facts();
        let known = facts.state == state && facts.last_error.as_ref().is_some_and(|(last, _)| *last == why);
        if !known {
            tracing::error!(sink = self.name, record = facts.mark.next, "records are not delivered: {why}");
        }
        facts.state = state;
        facts.last_error = Some((why, Timestamp::now()));
        drop(facts);
        self.gauge_up(false);
        metrics::counter!("sortie_audit_sink_failures_total", "sink" => self.name.clone()).increment(1);
    }

    /// A delivery has failed; where it is known to be refused for good, that says more.
    pub(crate) fn failed_unless_stopped(&self, why: String) {
        if self.facts().state != SinkState::Stopped {
            self.failed(SinkState::Retrying, why);
        }
    }

    /// That it is too far behind.
    pub(crate) fn behind(&self) -> Behind {
        Behind { sink: self.name.clone(), behind: self.lag_bytes(), spool_bytes: self.spool_bytes }
    }

    /// Takes note of how many bytes are behind it, and of what follows from that.
    pub(crate) fn measured(&self, bytes: u64, size: u64) {
        self.lag_bytes.store(bytes, Ordering::Relaxed);
        let full = bytes > self.spool_bytes;
        match self.on_full {
            // Once full, it has to have delivered half, so that it is not both by turns.
            OnFull::Deny if full || bytes <= self.spool_bytes / 2 => {
                if self.denies.swap(full, Ordering::Relaxed) != full {
                    self.tell_admission(full, bytes);
                }
            }
            OnFull::Deny => {}
            OnFull::DropAndCount => {
                self.overrun.store(full, Ordering::Relaxed);
                if full {
                    self.disturbed.notify_one();
                }
            }
        }
        let labels = [("sink", self.name.clone())];
        #[expect(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
        {
            metrics::gauge!("sortie_audit_sink_lag_bytes", &labels).set(bytes as f64);
            let records = size.saturating_sub(self.facts().mark.next);
            metrics::gauge!("sortie_audit_sink_lag_records", &labels).set(records as f64);
            metrics::gauge!("sortie_audit_sink_denies", &labels).set(f64::from(u8::from(self.denies())));
        }
    }

    pub(crate) fn status(&self, size: u64) -> SinkStatus {
        let facts = self.facts();
        let lag_records = size.saturating_sub(facts.mark.next);
        SinkStatus {
            name: self.name.clone(),
            kind: self.kind.to_owned(),
            state: facts.state,
            next: facts.mark.next,
            lag_records,
            lag_bytes: if lag_records == 0 { 0 } else { self.lag_bytes() },
            spool_bytes: self.spool_bytes,
            denies: self.denies(),
            delivered: facts.delivered,
            dropped: facts.dropped,
            last_delivery: facts.last_delivery.map(|at| at.to_string()),
            last_error: facts.last_error.as_ref().map(|(why, _)| why.clone()),
            last_error_at: facts.last_error.as_ref().map(|(_, at)| at.to_string()),
        }
    }

    fn tell_admission(&self, full: bool, bytes: u64) {
        let Self { name, spool_bytes, .. } = self;
        match full {
            true => tracing::error!(sink = name, bytes, spool_bytes, "calls are refused until the sink has caught up"),
            false => tracing::info!(sink = name, bytes, "the sink has caught up; calls are no longer refused for it"),
        }
    }

    fn gauge_up(&self, up: bool) {
        metrics::gauge!("sortie_audit_sink_up", "sink" => self.name.clone()).set(f64::from(u8::from(up)));
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
