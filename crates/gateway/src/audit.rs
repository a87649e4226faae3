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
use sortie_audit::{
    AppendError, Appending, Draft, DraftError, Durability, Faults, Kind, Log, OpenError, Options, Status, kinds,
};
use sortie_runtime::TaskSet;
use sortie_sinks::Outlets;

use crate::config::{AuditConfig, AuditDurability, GatewayConfig, OnFailure};

pub(crate) use decided::{Deciding, Ending};
pub(crate) use delivery::OPERATIONS;
pub(crate) use payload::Payloads;
pub(crate) use shown::Shown;

use unidentified::Unidentified;

/// The file of the key that signs checkpoints, in the data directory.
const KEY_FILE: &str = "audit.key";
/// The directory of the log in the data directory, unless the settings name another.
const DIR: &str = "audit";
/// What the name of a new key begins with.
const ORIGIN: &str = "sortie-gateway";
/// How often it is looked whether requests of unknown callers are to be told of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
    outlets: Outlets,
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
    pub(crate) fn open(settings: &GatewayConfig, data_dir: Option<&Path>, faults: Faults) -> Result<Self, NotOpened> {
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
            faults,
            ..defaults
        };
        let log = Log::open(options).map_err(|error| NotOpened::Log(dir.clone(), error))?;
        tracing::info!(dir = %dir.display(), durability = ?config.durability, "audit log opened");
        let outlets = delivery::start(&log, settings)?;
        let unidentified = Unidentified::default();
        Ok(Self(Some(Arc::new(Open { log, dir, denies, unidentified, outlets }))))
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

    /// Appends records that something waits for, all of them or none.
    ///
    /// # Errors
    /// They are not kept, and the settings do not let that be counted only: 503.
    async fn append(&self, drafts: Result<Vec<Draft>, DraftError>) -> Result<(), HopError> {
        match self.begin(drafts)? {
            Some(appending) => appending.kept().await.map(drop).map_err(unrecorded),
            None => Ok(()),
        }
    }

    /// Begins with that; nothing is waited for where nothing is recorded.
    ///
    /// # Errors
    /// As of [`Audit::append`].
    fn begin(&self, drafts: Result<Vec<Draft>, DraftError>) -> Result<Option<Appending>, HopError> {
        let Some(open) = &self.0 else { return Ok(None) };
        match drafts {
            Ok(drafts) => open.log.begin(&drafts).map(Some).map_err(unrecorded),
            Err(_) if !open.denies => Ok(None),
            Err(error) => {
                tracing::error!("a call cannot be recorded: {error}");
                Err(HopError::new(Hop::Audit, "the call is too large to be recorded, so it is not forwarded"))
            }
        }
    }

    /// The same from where nothing can be waited for; what is not kept is counted.
    fn append_drafts_now(&self, drafts: Result<Vec<Draft>, DraftError>) {
        if let Ok(Some(appending)) = self.begin(drafts) {
            let _counted = appending.kept_now().inspect_err(failed);
        }
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

    /// Counts a request that did not prove who was calling. The first one of a route is recorded at once; a flood of them
    /// costs one record every ten seconds from then on.
    pub(crate) fn unidentified(&self, route: Option<&str>, error: &HopError) {
        if let Some(told) = self.0.as_ref().and_then(|open| open.unidentified.count(route, error)) {
            self.note(kinds::CALLS_UNIDENTIFIED, &told);
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
        failing.or_else(|| open.outlets.sinks().admits().err().map(|behind| behind.to_string()))
    }

    /// Tells of unknown callers until the gateway is asked to stop.
    pub(crate) async fn keep(self, tasks: TaskSet) {
        let mut tell = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = tell.tick() => self.tell_unidentified(false),
                () = tasks.stopping() => return,
            }
        }
    }

    fn tell_unidentified(&self, everything: bool) {
        let Some(open) = &self.0 else { return };
        for counted in open.unidentified.take(everything) {
            self.note(kinds::CALLS_UNIDENTIFIED, &counted);
        }
    }

    /// Ends the log. Nothing is recorded any more. Blocks.
    pub(crate) fn close(&self) {
        let Some(open) = &self.0 else { return };
        self.tell_unidentified(true);
        if let Err(error) = open.log.close() {
            tracing::error!("the audit log was not closed as it should be: {error}");
        }
    }
}

/// What is answered for records that the log did not take.
#[expect(clippy::needless_pass_by_value, reason = "it is mapped")]
fn unrecorded(error: AppendError) -> HopError {
    failed(&error);
    HopError::new(Hop::Audit, "the call cannot be recorded, so it is not forwarded; see the gateway's log")
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
