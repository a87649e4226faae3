//! The hub's records: what was asked of it, by whom, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sortie_audit::{AppendError, Draft, Durability, Kind, Log, OnFailure, OpenError, Options, kinds};
use sortie_credentials::VaultSpec;
use sortie_ids::{KeyId, RequestId};
use sortie_runtime::TaskSet;
use sortie_sinks::publish::{self, PlaceBoard, PlaceSpec, PlaceStatus};
use sortie_sinks::{Behind, OutletError, Outlets, SinkSpec, SinkStatus};
use tokio::time::Instant;

/// How often refused requests of one kind are recorded, counted.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked whether that is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many keys and addresses a record of refused requests names.
const NAMED: usize = 8;
/// How long the checkpoint of the end may take to be published.
const PUBLISHED_LAST: Duration = Duration::from_secs(5);

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
    /// Where its records are delivered.
    pub sinks: Vec<SinkSpec>,
    /// Where the secrets of sinks may be, by name.
    pub vaults: BTreeMap<String, VaultSpec>,
}

impl Default for AuditConfig {
    /// As durable as the changes themselves, which the store syncs to disk.
    fn default() -> Self {
        Self {
            dir: None,
            durability: Durability::Power,
            on_failure: OnFailure::Deny,
            publish: Vec::new(),
            sinks: Vec::new(),
            vaults: BTreeMap::new(),
        }
    }
}

/// Why there is no audit.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The log cannot be opened.
    #[error("the audit log cannot be used: {0}")]
    Log(#[from] OpenError),
    /// A sink of it cannot be used.
    #[error(transparent)]
    Sink(#[from] OutletError),
}

/// The hub's records. Clones share them.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    log: Log,
    outlets: Outlets,
    /// What publishes checkpoints: it outlives all that the log is about, and publishes the checkpoint of its end.
    publishing: TaskSet,
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
    /// When that was.
    recorded: Option<Instant>,
}

impl Tally {
    fn add(&mut self, peer: Option<IpAddr>, key: Option<&KeyId>) {
        self.count = self.count.saturating_add(1);
        self.since.get_or_insert_with(jiff::Timestamp::now);
        if self.keys.len() < NAMED {
            self.keys.extend(key.cloned());
        }
        if self.addresses.len() < NAMED {
            self.addresses.extend(peer);
        }
    }

    fn is_due(&self) -> bool {
        self.recorded.is_none_or(|recorded| recorded.elapsed() >= COUNT_EVERY)
    }

    /// What is to be recorded now, if there is anything.
    fn take(&mut self) -> Option<Self> {
        let rest = Self { recorded: Some(Instant::now()), ..Self::default() };
        (self.count > 0).then(|| std::mem::replace(self, rest))
    }
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

impl Audit {
    /// Opens the log in `dir`, which is signed with the key in `key_file`, and begins to deliver it.
    ///
    /// # Errors
    /// The log cannot be read or made, or is not what its newest checkpoint says; something that a sink needs is not there.
    pub fn open(dir: PathBuf, key_file: PathBuf, config: &AuditConfig) -> Result<Self, AuditError> {
        let origin = "sortie-hub".to_owned();
        let AuditConfig { durability, on_failure, .. } = *config;
        let defaults = Options::default();
        let hold = if config.sinks.is_empty() { defaults.hold } else { 0 };
        let log = Log::open(Options { dir, key_file, origin, durability, on_failure, hold, ..defaults })?;
        let outlets = Outlets::start(&log, &config.sinks, &config.vaults)?;
        Ok(Self(Arc::new(Inner {
            log,
            outlets,
            publishing: TaskSet::new(),
            published: Mutex::default(),
            refused: Mutex::default(),
        })))
    }

    /// Whether something that is recorded may begin.
    ///
    /// # Errors
    /// A sink is too far behind, and is to have operations refused for that.
    pub(crate) fn admits(&self) -> Result<(), Behind> {
        self.0.outlets.sinks().admits()
    }

    /// How it stands with each sink.
    pub(crate) fn sinks(&self) -> Vec<SinkStatus> {
        self.0.outlets.sinks().status()
    }

    /// Begins to publish checkpoints. Blocks: reads files.
    ///
    /// # Errors
    /// Something that a place needs is not there.
    pub(crate) fn publish(&self, places: Vec<PlaceSpec>) -> Result<(), String> {
        let boards = publish::start(&self.0.log, places, &BTreeMap::new(), &self.0.publishing)?;
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

    /// Counts a request that was refused. The first one of its kind is recorded before it is answered; a flood of them costs
    /// one record every ten seconds from then on.
    pub(crate) async fn count(&self, surface: Surface, refused: Refused, peer: Option<IpAddr>, key: Option<&KeyId>) {
        let due = {
            let mut all = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let tally = all.entry((surface, refused)).or_default();
            tally.add(peer, key);
            if tally.is_due() { tally.take() } else { None }
        };
        if let Some(tally) = due {
            self.record_count(surface, refused, &tally).await;
        }
    }

    /// Why records cannot be kept at the moment, or operations are refused for a sink; `None` when all is well.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.0.log.status().failing.or_else(|| self.admits().err().map(|behind| behind.to_string()))
    }

    /// Records counted refusals until the set is stopped.
    pub(crate) async fn count_until_stopped(self, tasks: TaskSet) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = tick.tick() => self.record_counts(Tally::is_due).await,
                () = tasks.stopping() => return,
            }
        }
    }

    async fn record_counts(&self, which: impl Fn(&Tally) -> bool) {
        let counted: Vec<_> = {
            let mut all = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
            let due = all.iter_mut().filter(|(_, tally)| which(tally));
            due.filter_map(|(kind, tally)| Some((*kind, tally.take()?))).collect()
        };
        for ((surface, refused), tally) in counted {
            self.record_count(surface, refused, &tally).await;
        }
    }

    async fn record_count(&self, surface: Surface, refused: Refused, tally: &Tally) {
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

    /// Ends the log with a checkpoint; to be called when every task has ended.
    pub(crate) async fn close(&self) {
        self.record_counts(|_| true).await;
        let log = self.0.log.clone();
        let closed = tokio::task::spawn_blocking(move || log.close()).await;
        if let Ok(Err(error)) = closed {
            tracing::error!(%error, "the audit log could not be closed");
        }
        if !self.0.publishing.shutdown(PUBLISHED_LAST).await {
            tracing::warn!("the checkpoint of the end could not be published in time");
        }
        self.0.outlets.close().await;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(dir: &std::path::Path) -> Vec<Value> {
        let file = dir.join("audit/log/00000000000000000000.jsonl");
        let text = std::fs::read_to_string(file).expect("log");
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("json"));
        all.filter(|record| record["event"] == "requests_refused").collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_refusal_of_a_kind_is_on_record_at_once_and_a_flood_every_ten_seconds() {
        let home = tempfile::tempdir().expect("home");
        let config = AuditConfig { durability: Durability::Process, ..AuditConfig::default() };
        let audit = Audit::open(home.path().join("audit"), home.path().join("key"), &config).expect("opens");
        let peer = Some(IpAddr::from([192, 0, 2, 1]));
        let tasks = TaskSet::new();
        tasks.spawn("counts", audit.clone().count_until_stopped(tasks.clone()));
        for _ in 0..1000 {
            audit.count(Surface::Api, Refused::Unauthenticated, peer, None).await;
        }
        audit.count(Surface::Calls, Refused::NotPermitted, peer, None).await;
        // Whoever is killed now has lost how many there were, and not that there were some.
        let told = refused(home.path());
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|record| record["count"] == 1 && record["addresses"][0] == "192.0.2.1"), "{told:?}");
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(refused(home.path()).len(), 2, "a flood is not recorded one by one");
        tokio::time::sleep(Duration::from_secs(3)).await;
        let told = refused(home.path());
        assert_eq!((told.len(), &told[2]["count"], &told[2]["surface"]), (3, &json!(999), &json!("api")), "{told:?}");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(refused(home.path()).len(), 3, "nothing happened since");
        audit.count(Surface::Api, Refused::Unauthenticated, peer, None).await;
        assert_eq!(refused(home.path()).len(), 4, "at once again");
        audit.count(Surface::Api, Refused::Unauthenticated, peer, None).await;
        tasks.shutdown(Duration::from_secs(1)).await;
        audit.close().await;
        assert_eq!(refused(home.path()).len(), 5, "what is left is told of at the end");
    }
}
