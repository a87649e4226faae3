//! The hub's records: what was asked of it, by whom, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sortie_audit::{AppendError, Draft, Durability, Kind, Log, OnFailure, OpenError, Options, kinds};
use sortie_ids::{KeyId, RequestId};
use sortie_runtime::TaskSet;
use sortie_sinks::publish::{self, PlaceBoard, PlaceSpec, PlaceStatus};

/// How often refused requests are recorded, counted.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// How many keys and addresses a record of refused requests names.
const NAMED: usize = 8;

/// How a hub keeps its records.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// Where; `audit` in the data directory when absent.
    pub dir: Option<PathBuf>,
    /// When a record counts as kept.
    pub durability: Durability,
    /// Whether operations are done whose records cannot be kept.
    pub on_failure: OnFailure,
    /// Where its checkpoints are published.
    pub publish: Vec<PlaceSpec>,
}

impl Default for AuditConfig {
    /// As durable as the changes themselves, which the store syncs to disk.
    fn default() -> Self {
        Self { dir: None, durability: Durability::Power, on_failure: OnFailure::Deny, publish: Vec::new() }
    }
}

/// The hub's records. Clones share them.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    log: Log,
    published: Mutex<Vec<PlaceBoard>>,
    refused: Mutex<BTreeMap<(Surface, Refused), Tally>>,
}

/// The address that a request came from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

/// Where a request came in that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Surface {
    Api,
    Calls,
}

/// Why a request was refused before anything was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refused {
    /// It showed no valid key.
    Unauthenticated,
    /// Its key may not ask for this.
    NotPermitted,
}

/// Refused requests since the last record of them.
#[derive(Default)]
struct Tally {
    count: u64,
    since: Option<jiff::Timestamp>,
    keys: BTreeSet<KeyId>,
    addresses: BTreeSet<IpAddr>,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

impl Audit {
    /// Opens the log in `dir`, which is signed with the key in `key_file`.
    ///
    /// # Errors
    /// The log cannot be read or made, or is not what its newest checkpoint says.
    pub fn open(dir: PathBuf, key_file: PathBuf, config: &AuditConfig) -> Result<Self, OpenError> {
        let origin = "sortie-hub".to_owned();
        let AuditConfig { durability, on_failure, .. } = *config;
        let log = Log::open(Options { dir, key_file, origin, durability, on_failure, ..Options::default() })?;
        Ok(Self(Arc::new(Inner { log, published: Mutex::default(), refused: Mutex::default() })))
    }

    /// Begins to publish checkpoints. Blocks: reads files.
    ///
    /// # Errors
    /// Something that a place needs is not there.
    pub(crate) fn publish(&self, places: Vec<PlaceSpec>, tasks: &TaskSet) -> Result<(), String> {
        let boards = publish::start(&self.0.log, places, &BTreeMap::new(), tasks)?;
        *self.0.published.lock().unwrap_or_else(PoisonError::into_inner) = boards;
        Ok(())
    }

    /// How it stands with each place where checkpoints are published.
    pub(crate) fn published(&self) -> Vec<PlaceStatus> {
        self.0.published.lock().unwrap_or_else(PoisonError::into_inner).iter().map(PlaceBoard::status).collect()
    }

    /// Keeps records; returns when they are kept, or, where the settings say so, counted as missing.
    ///
    /// # Errors
    /// They are not kept, and what they tell of must not be done.
    pub(crate) async fn append(&self, drafts: &[Draft]) -> Result<(), AppendError> {
        let kept = self.0.log.append_all(drafts).await;
        if let Err(error) = &kept {
            let events: Vec<_> = drafts.iter().map(|draft| draft.kind().event).collect();
            tracing::error!(%error, ?events, "records could not be kept");
        }
        kept.map(drop)
    }

    /// Keeps a record of what the hub did on its own, as far as that can be done.
    pub(crate) async fn own(&self, kind: Kind, fields: Value) {
        let mut all = json!({"id": RequestId::random(), "actor": {"type": "hub"}});
        if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
            all.extend(fields);
        }
        self.note(kind, &all).await;
    }

    /// Keeps a record of what the hub noticed, as far as that can be done.
    pub(crate) async fn note(&self, kind: Kind, fields: &Value) {
        tracing::info!(target: "sortie::audit", code = kind.code, event = kind.event, %fields, "{}", kind.about);
        match Draft::new(kind, fields) {
            // An error is logged and counted there, and has nothing to stop here.
            Ok(draft) => drop(self.append(&[draft]).await),
            Err(error) => tracing::error!(%error, "a record could not be written"),
        }
    }

    /// Counts a request that was refused; a flood of them costs one record every ten seconds.
    pub(crate) fn count(&self, surface: Surface, refused: Refused, peer: Option<IpAddr>, key: Option<&KeyId>) {
        let mut all = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = all.entry((surface, refused)).or_default();
        tally.count = tally.count.saturating_add(1);
        tally.since.get_or_insert_with(jiff::Timestamp::now);
        if tally.keys.len() < NAMED {
            tally.keys.extend(key.cloned());
        }
        if tally.addresses.len() < NAMED {
            tally.addresses.extend(peer);
        }
    }

    /// Why records cannot be kept at the moment; `None` when they can.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.0.log.status().failing
    }

    /// Records counted refusals until the set is stopped.
    pub(crate) async fn count_until_stopped(self, tasks: TaskSet) {
        let mut tick = tokio::time::interval(COUNT_EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => self.record_counts().await,
                () = tasks.stopping() => return,
            }
        }
    }

    async fn record_counts(&self) {
        let counted = std::mem::take(&mut *self.0.refused.lock().unwrap_or_else(PoisonError::into_inner));
        for ((surface, refused), tally) in counted {
            let reason = match refused {
                Refused::Unauthenticated => "unauthenticated",
                Refused::NotPermitted => "not_permitted",
            };
            let fields = json!({
                "surface": if surface == Surface::Api { "api" } else { "calls" },
                "reason": reason,
                "count": tally.count,
                "since": tally.since.map(|since| since.to_string()),
                "addresses": tally.addresses,
                "keys": tally.keys,
            });
            self.note(kinds::REQUESTS_REFUSED, &fields).await;
        }
    }

    /// Ends the log with a checkpoint; to be called when every task has ended.
    pub(crate) async fn close(&self) {
        self.record_counts().await;
        let log = self.0.log.clone();
        let closed = tokio::task::spawn_blocking(move || log.close()).await;
        if let Ok(Err(error)) = closed {
            tracing::error!(%error, "the audit log could not be closed");
        }
    }
}

/// Text from outside as records show it: visible ASCII and blanks, at most so many characters.
pub(crate) fn visible(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// The same for each value of an object.
pub(crate) fn visible_values<'a>(values: impl Iterator<Item = (&'a str, &'a str)>, most: usize) -> Map<String, Value> {
    values.map(|(name, value)| (name.to_owned(), visible(value, most).into())).collect()
}
