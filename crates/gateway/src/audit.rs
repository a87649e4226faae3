//! The audit: what is called, by whom, who allowed it and on what ground, in a log that cannot be changed quietly.
//!
//! A call is recorded before it goes on, and again when its answer has ended. What cannot be recorded does not happen,
//! unless the settings say otherwise; then it is counted. What is recorded of arguments and answers is their digest, and
//! of arguments what the settings let be shown; whole they are only where they are sealed for a key of the customer's.

mod decided;
mod delivery;
mod payload;
mod settings;
mod shown;
mod unidentified;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sortie_api::{Hop, HopError};
use sortie_audit::{AppendError, DROPPED, Draft, DraftError, Durability, Kind, Log, OpenError, Options, Status, kinds};
use sortie_runtime::TaskSet;

use crate::config::{AuditConfig, AuditDurability, GatewayConfig, OnFailure};

pub(crate) use decided::{Deciding, Ending};
pub(crate) use delivery::OPERATIONS;
pub(crate) use payload::Payloads;
pub(crate) use shown::Shown;

use delivery::Delivery;
use unidentified::Unidentified;

/// The file of the key that signs checkpoints, in the data directory.
const KEY_FILE: &str = "audit.key";
/// The directory of the log in the data directory, unless the settings name another.
const DIR: &str = "audit";
/// What the name of a new key begins with.
const ORIGIN: &str = "sortie-gateway";
/// How often requests of unknown callers are told of.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Longest reason that is recorded, in characters.
const MAX_REASON: usize = 1024;

/// The audit of this gateway. Clones share it.
#[derive(Clone)]
pub(crate) struct Audit(Option<Arc<Open>>);

struct Open {
    log: Log,
    dir: PathBuf,
    /// Whether what cannot be recorded does not happen. Otherwise the log itself counts what it could not take.
    denies: bool,
    unidentified: Unidentified,
    /// Where its records are delivered.
    delivery: Delivery,
}

/// Whether what happens is recorded.
#[derive(Clone, Debug, Serialize)]
pub struct AuditReport {
    /// Whether the log has taken the newest record.
    pub ok: bool,
    /// The directory of the log.
    pub dir: PathBuf,
    /// Why it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How many records were lost since the process began.
    #[serde(skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Why there is no audit.
pub(crate) enum NotOpened {
    /// The log in this directory cannot be opened.
    Log(PathBuf, OpenError),
    /// What a setting of the sinks needs is not there: the setting, and what.
    Sink(String, String),
}

impl Audit {
    /// No audit.
    pub(crate) fn off() -> Self {
        Self(None)
    }

    /// Opens the log as the settings say; none without a data directory. Blocks.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(crate) fn open(settings: &GatewayConfig, data_dir: Option<&Path>) -> Result<Self, NotOpened> {
        let Some(data_dir) = data_dir else { return Ok(Self::off()) };
        let config = &settings.audit.log;
        if !config.enabled {
            tracing::warn!("[audit] enabled = false: nothing of what is called here is recorded");
            return Ok(Self::off());
        }
        let dir = config.dir.clone().unwrap_or_else(|| data_dir.join(DIR));
        let defaults = Options::default();
        let denies = config.on_failure == OnFailure::Deny;
        let options = Options {
            dir: dir.clone(),
            key_file: data_dir.join(KEY_FILE),
            origin: ORIGIN.to_owned(),
            durability: match config.durability {
                AuditDurability::Process => Durability::Process,
                AuditDurability::Power => Durability::Power,
            },
            on_failure: if denies { sortie_audit::OnFailure::Deny } else { sortie_audit::OnFailure::DropAndCount },
            max_file_bytes: config.max_file_bytes.unwrap_or(defaults.max_file_bytes),
            keep_bytes: config.keep_bytes,
            keep_days: config.keep_days,
            hold: if settings.audit.sinks.is_empty() { defaults.hold } else { 0 },
            checkpoint_records: config.checkpoint_records.unwrap_or(defaults.checkpoint_records),
            checkpoint_every: config.checkpoint_every.unwrap_or(defaults.checkpoint_every),
            ..defaults
        };
        let log = Log::open(options).map_err(|error| NotOpened::Log(dir.clone(), error))?;
        tracing::info!(dir = %dir.display(), durability = ?config.durability, "audit log opened");
        let delivery = delivery::start(&log, settings)?;
        let unidentified = Unidentified::default();
        Ok(Self(Some(Arc::new(Open { log, dir, denies, unidentified, delivery }))))
    }

    /// Its directory, if there is an audit.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.0.as_ref().map(|open| open.dir.as_path())
    }

    /// The log, if there is an audit.
    pub(crate) fn log(&self) -> Option<&Log> {
        self.0.as_ref().map(|open| &open.log)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Appends records that something waits for, all of them or none, and returns the number of the first one; none where
    /// they were dropped, as the settings let it be.
    ///
    /// # Errors
    /// They are not kept: 503.
    async fn append(&self, drafts: Result<Vec<Draft>, DraftError>) -> Result<Option<u64>, HopError> {
        let Some(open) = &self.0 else { return Ok(None) };
        let appended = match &drafts {
            Ok(drafts) => match drafts.as_slice() {
                [draft] => open.log.append(draft).await,
                drafts => open.log.append_all(drafts).await,
            },
            Err(_) if !open.denies => return Ok(None),
            Err(error) => {
                tracing::error!("a call cannot be recorded: {error}");
                return Err(HopError::new(Hop::Audit, "the call is too large to be recorded, so it is not forwarded"));
            }
        };
        let number = appended.inspect_err(failed).map_err(|_| {
            HopError::new(Hop::Audit, "the call cannot be recorded, so it is not forwarded; see the gateway's log")
        })?;
        Ok(Some(number).filter(|number| *number != DROPPED))
    }

    /// Appends a record without waiting for a disk.
    ///
    /// # Errors
    /// It is not kept, which is counted, and told of in the log of the gateway.
    pub(crate) fn append_now<T: Serialize>(&self, kind: Kind, fields: &T) -> Result<(), AppendError> {
        let Some(open) = &self.0 else { return Ok(()) };
        let draft = Draft::new(kind, fields).map_err(AppendError::from);
        draft.and_then(|draft| open.log.append_now(&draft)).inspect_err(failed).map(drop)
    }

    /// The same before something is done that must not be done unrecorded.
    ///
    /// # Errors
    /// It is not kept, and the settings do not let that be counted only.
    pub(crate) fn before<T: Serialize>(&self, kind: Kind, fields: &T) -> Result<(), AppendError> {
        let denies = self.0.as_ref().is_some_and(|open| open.denies);
        self.append_now(kind, fields).or_else(|error| if denies { Err(error) } else { Ok(()) })
    }

    /// The same after something that has happened anyway.
    pub(crate) fn note<T: Serialize>(&self, kind: Kind, fields: &T) {
        // It is counted already.
        let _noted = self.append_now(kind, fields);
    }

    /// Counts a request that did not prove who was calling.
    pub(crate) fn unidentified(&self, route: Option<&str>, error: &HopError) {
        if let Some(open) = &self.0 {
            open.unidentified.count(route, error);
        }
    }

    /// What is known of it; `None` without an audit.
    pub(crate) fn report(&self) -> Option<AuditReport> {
        let open = self.0.as_ref()?;
        let Status { failing, dropped, .. } = open.log.status();
        Some(AuditReport { ok: failing.is_none(), dir: open.dir.clone(), reason: failing, dropped })
    }

    /// Why calls are refused, if they are.
    pub(crate) fn refuses(&self) -> Option<String> {
        let open = self.0.as_ref()?;
        let failing = open.log.status().failing.filter(|_| open.denies);
        failing.or_else(|| open.delivery.behind().map(|behind| behind.to_string()))
    }

    /// Tells of unknown callers until the gateway is asked to stop.
    pub(crate) async fn keep(self, tasks: TaskSet) {
        let mut tell = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! {
                _ = tell.tick() => self.tell_unidentified(),
                () = tasks.stopping() => return,
            }
        }
    }

    fn tell_unidentified(&self) {
        let Some(open) = &self.0 else { return };
        for counted in open.unidentified.take() {
            self.note(kinds::CALLS_UNIDENTIFIED, &counted);
        }
    }

    /// Ends the log. Nothing is recorded any more. Blocks.
    pub(crate) fn close(&self) {
        let Some(open) = &self.0 else { return };
        self.tell_unidentified();
        if let Err(error) = open.log.close() {
            tracing::error!("the audit log was not closed as it should be: {error}");
        }
    }
}

/// Counts a record that the log did not take. Why it takes none, the log itself has told.
fn failed(error: &AppendError) {
    metrics::counter!("sortie_gateway_audit_failures_total").increment(1);
    if matches!(error, AppendError::Draft(_)) {
        tracing::error!("a record cannot be made: {error}");
    }
}

/// Warns of what a change of the settings does not change.
pub(crate) fn log_changes(now: &AuditConfig, before: &AuditConfig) {
    if now.log != before.log || now.publish != before.publish || now.sinks != before.sinks {
        tracing::warn!(
            "the new settings of the audit log, its sinks and places ([audit]) are used from the next start on"
        );
    }
}

/// Text for a record, cut where it is long.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_REASON) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}\u{2026}", text.get(..at).unwrap_or_default()),
    }
}
