//! Publishing signed checkpoints: to places where whoever writes the log cannot take them back.
//!
//! Only the newest checkpoint matters, since it stands for all records before it. What cannot be published is tried again
//! until it can, or a newer one has taken its place; no call waits for it.

mod file;
mod url;
mod witness;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::url::Url;
use http::Method;
use serde::Serialize;
use sortie_audit::{Checkpoint, Log};
use sortie_credentials::{CredentialSpec, Vault};
use sortie_runtime::{Backoff, TaskSet};
use tokio::sync::watch;

use crate::spec::Tls;

pub use witness::{CosignatureError, WitnessKey};

/// How often a checkpoint is published at most.
pub const PUBLISH_EVERY: Duration = Duration::from_secs(10);
/// How long a checkpoint may be unpublished before the place counts as behind.
const BEHIND_AFTER: Duration = Duration::from_secs(300);
/// The waits between tries, with jitter.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long one step may take.
const STEP: Duration = Duration::from_secs(10);

/// A place where checkpoints are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceSpec {
    /// The name by which metrics and errors call it.
    pub name: String,
    /// Where it is.
    pub kind: PlaceKind,
}

impl PlaceSpec {
    /// A directory.
    pub fn dir(name: &str, dir: &Path) -> Self {
        Self { name: name.to_owned(), kind: PlaceKind::File(dir.to_owned()) }
    }
}

/// Where checkpoints are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// A directory: a new file for each checkpoint, and none is ever written twice.
    File(PathBuf),
    /// A URL: an object store, or any HTTP endpoint. What is answered with 200 to 299 is published.
    Url {
        /// `PUT` or `POST`.
        method: Method,
        /// With `{origin}` and `{size}`, where they are to stand; the `/` of an origin becomes `-`.
        template: String,
        /// What is shown to it.
        credential: Option<Box<CredentialSpec>>,
        /// Whom to trust behind `https`.
        tls: Tls,
    },
    /// A witness (C2SP tlog-witness), which signs that the log only grows; what it signed is kept in `witnessed/` of the
    /// audit directory.
    Witness {
        /// Its submission prefix, without `/add-checkpoint`.
        url: Url,
        /// What its signatures are verified with.
        key: WitnessKey,
        /// Whom to trust behind `https`.
        tls: Tls,
    },
}

/// Something that publishes.
pub trait Place: Send + 'static {
    /// Publishes the checkpoint of so many records, a signed note.
    fn publish(&mut self, note: &str, size: u64) -> impl Future<Output = Result<(), Unpublished>> + Send;

    /// Gives back what it has borrowed.
    fn close(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// A checkpoint that was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unpublished {
    /// Why. Says no secret.
    pub why: String,
    /// Whether the place has contradicted it: the log is not what was published before.
    pub contradicted: bool,
    /// How long the place wants to be left alone.
    pub after: Option<Duration>,
}

impl Unpublished {
    /// One that may be published later.
    pub fn later(why: impl Into<String>) -> Self {
        Self { why: why.into(), contradicted: false, after: None }
    }

    /// One that contradicts what was published before.
    pub fn contradicted(why: impl Into<String>) -> Self {
        Self { why: why.into(), contradicted: true, after: None }
    }
}

/// How it stands with one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlaceStatus {
    /// Its name.
    pub place: String,
    /// False when a checkpoint is unpublished for five minutes, or was contradicted.
    pub ok: bool,
    /// How many records the newest published checkpoint stands for; absent before the first since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// When that was published (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Why the newest is not published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is known of a place. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct PlaceBoard(Arc<(String, Mutex<Known>)>);

#[derive(Debug, Default)]
struct Known {
    published: Option<(u64, jiff::Timestamp)>,
    /// Since when and why not, and whether it was contradicted.
    failing: Option<(tokio::time::Instant, Unpublished)>,
}

impl PlaceBoard {
    /// Of the place with this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new((name.into(), Mutex::default())))
    }

    /// How it stands.
    pub fn status(&self) -> PlaceStatus {
        let (name, known) = &*self.0;
        let known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = known.failing.as_ref();
        PlaceStatus {
            place: name.clone(),
            ok: failing.is_none_or(|(since, why)| !why.contradicted && since.elapsed() < BEHIND_AFTER),
            size: known.published.map(|(size, _)| size),
            at: known.published.map(|(_, at)| format!("{at:.0}")),
            reason: failing.map(|(_, why)| why.why.clone()),
        }
    }

    fn published(&self, size: u64) {
        let (name, known) = &*self.0;
        let now = jiff::Timestamp::now();
        let label = || name.clone();
        metrics::counter!("sortie_audit_checkpoints_published_total", "place" => label()).increment(1);
        #[expect(clippy::cast_precision_loss, reason = "a gauge; exact up to 2^53 seconds")]
        let seconds = now.as_second() as f64;
        metrics::gauge!("sortie_audit_published_timestamp_seconds", "place" => label()).set(seconds);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.failing.take().is_some() {
            tracing::info!(place = name, size, "checkpoints of the audit log are published again");
        }
        known.published = Some((size, now));
    }

    fn failed(&self, why: Unpublished) {
        let (name, known) = &*self.0;
        metrics::counter!("sortie_audit_publish_failures_total", "place" => name.clone()).increment(1);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.failing.as_ref();
        if before.is_none_or(|(_, before)| before.why != why.why) {
            match why.contradicted {
                true => tracing::error!(place = name, "the audit log contradicts what was published of it: {why}"),
                false => tracing::warn!(place = name, "a checkpoint of the audit log is not published yet: {why}"),
            }
        }
        let since = before.map_or_else(tokio::time::Instant::now, |(since, _)| *since);
        known.failing = Some((since, why));
    }
}

/// Begins to publish the checkpoints of a log. Blocks: reads files.
///
/// # Errors
/// Something that a place needs is not there; the text names the place.
pub fn start(
    log: &Log,
    places: Vec<PlaceSpec>,
    vaults: &BTreeMap<String, Arc<Vault>>,
    tasks: &TaskSet,
) -> Result<Vec<PlaceBoard>, String> {
    let mut boards = Vec::with_capacity(places.len());
    for PlaceSpec { name, kind } in places {
        let board = PlaceBoard::new(&name);
        let wrong = |reason: String| format!("audit.publish `{name}`: {reason}");
        match kind {
            PlaceKind::File(dir) => {
                let place = file::Files::new(&dir, log.verifying_key().name()).map_err(wrong)?;
                spawn(place, &board, log, tasks);
            }
            PlaceKind::Url { method, template, credential, tls } => {
                let place = url::Put::new(method, template, credential.as_deref(), &tls, log, vaults, tasks);
                spawn(place.map_err(wrong)?, &board, log, tasks);
            }
            PlaceKind::Witness { url, key, tls } => {
                let place = witness::Witness::new(url, key, &tls, log, tasks);
                spawn(place.map_err(wrong)?, &board, log, tasks);
            }
        }
        boards.push(board);
    }
    Ok(boards)
}

fn spawn(place: impl Place, board: &PlaceBoard, log: &Log, tasks: &TaskSet) {
    tasks.spawn("audit-publish", run(place, board.clone(), log.checkpoints(), tasks.clone()));
}

/// Publishes the newest checkpoint each time that there is a newer one, until the set is stopped; what there is then is
/// tried once more.
pub async fn run(
    mut place: impl Place,
    board: PlaceBoard,
    mut notes: watch::Receiver<Option<Arc<str>>>,
    tasks: TaskSet,
) {
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut done = None;
    loop {
        let newest = notes.borrow_and_update().clone();
        let size = newest.as_deref().and_then(|note| Checkpoint::peek(note).ok()).map(|checkpoint| checkpoint.size);
        let stopping = tasks.is_stopping();
        let wait = match newest.zip(size).filter(|(_, size)| done != Some(*size)) {
            None if stopping => break,
            None => {
                tokio::select! {
                    changed = notes.changed() => if changed.is_err() { break },
                    () = tasks.stopping() => {}
                }
                continue;
            }
            Some((note, size)) => match place.publish(&note, size).await {
                Ok(()) => {
                    backoff.reset();
                    done = Some(size);
                    board.published(size);
                    PUBLISH_EVERY
                }
                Err(why) => {
                    let wait = backoff.next(random()).max(why.after.unwrap_or_default());
                    // Each try may be recorded where it is refused.
                    let wait = if why.contradicted { LONGEST_WAIT } else { wait };
                    board.failed(why);
                    wait
                }
            },
        };
        if stopping {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = tasks.stopping() => {}
        }
    }
    place.close().await;
}

/// A random number; the highest one when there is no randomness, which only waits longest.
fn random() -> u32 {
    let mut bytes = [0xff; 4];
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

/// The name of a log as part of a path.
fn plain(origin: &str) -> String {
    origin.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}
