//! The checkpoints that gateways publish of their audit logs: checked, held against those that came before, and kept.
//!
//! A gateway that was broken into can write a new log, or cut its old one; it cannot take back what it has published here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use sortie_audit::{Checkpoint, Hash, VerifyingKey, is_consistent, kinds};
use sortie_ids::{Digest, TunnelId};
use sortie_link::protos::{CheckpointVerdict, ContinuityProof, PublishedNote};
use sortie_store::{NewCheckpoint, PublishedLog, Store, StoreError};

use crate::audit::{Audit, visible};

/// Logs of one tunnel of which checkpoints are kept: one for each gateway that ever served it.
const MAX_LOGS: usize = 16;
/// Longest note, in bytes: a checkpoint with a signature or two has a few hundred.
const MAX_NOTE: usize = 4096;
/// Longest key, in bytes.
const MAX_KEY: usize = 512;
/// Most hashes of a proof: two for each level of the tallest tree.
const MAX_PROOF: usize = 128;
/// How long after a refusal of a tunnel's checkpoints the same refusal is not recorded again.
const QUIET: Duration = Duration::from_secs(3600);
/// Tunnels of which it is remembered that a refusal was recorded; when it is full, all are forgotten.
const REMEMBERED: usize = 4096;
/// Longest reason in records, in characters.
const MAX_REASON: usize = 300;

/// Judges and keeps published checkpoints.
pub(crate) struct Published {
    store: Store,
    audit: Audit,
    /// One at a time: each is judged by what was kept before it.
    turn: tokio::sync::Mutex<()>,
    recorded: Mutex<HashMap<(TunnelId, String), Instant>>,
}

/// What is wrong with a checkpoint: a word for programs, and a sentence.
struct Wrong(&'static str, String);

/// What is to be done with a checkpoint.
enum Judged {
    /// It is new, and was proven to continue what came before it, or is the first.
    New { proven: bool },
    /// It was kept before.
    Known,
    /// The proof is to come that it continues this many records.
    Unproven { from: u64 },
}

impl Published {
    pub(crate) fn new(store: Store, audit: Audit) -> Self {
        Self { store, audit, turn: tokio::sync::Mutex::default(), recorded: Mutex::default() }
    }

    /// Takes a checkpoint of a gateway of this tunnel; `certified` when the link has shown a certificate of it.
    pub(crate) async fn take(
        &self,
        tunnel: &TunnelId,
        certified: bool,
        published: &PublishedNote,
    ) -> CheckpointVerdict {
        let _turn = self.turn.lock().await;
        let (verdict, result) = match self.judge_and_keep(tunnel, certified, published).await {
            Ok(Ok(Judged::New { .. })) => (CheckpointVerdict::Kept, "kept"),
            Ok(Ok(Judged::Known)) => (CheckpointVerdict::Kept, "known"),
            Ok(Ok(Judged::Unproven { from })) => (CheckpointVerdict::Prove { from }, "unproven"),
            Ok(Err(Wrong(code, reason))) => {
                self.refused(tunnel, code, &reason, published).await;
                (CheckpointVerdict::Refused { reason }, "refused")
            }
            Err(error) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "a checkpoint could not be kept");
                (CheckpointVerdict::Later, "failed")
            }
        };
        metrics::counter!("sortie_hub_checkpoints_total", "result" => result).increment(1);
        verdict
    }

    async fn judge_and_keep(
        &self,
        tunnel: &TunnelId,
        certified: bool,
        published: &PublishedNote,
    ) -> Result<Result<Judged, Wrong>, StoreError> {
        let checkpoint = match open(published) {
            Ok(checkpoint) => checkpoint,
            Err(wrong) => return Ok(Err(wrong)),
        };
        let logs = self.store.published_logs(tunnel).await?;
        let log = logs.iter().find(|log| log.origin == checkpoint.origin);
        let root = Digest::from(*checkpoint.root.as_bytes());
        let judged = match log {
            Some(log) => {
                let earlier = match checkpoint.size < log.size {
                    true => self.store.published_root(tunnel, &log.origin, checkpoint.size).await?,
                    false => None,
                };
                judge(log, earlier, &checkpoint, published)
            }
            None => self.make_room(tunnel, certified, &logs, &checkpoint.origin).await?,
        };
        let (proven, refused) = match &judged {
            Ok(Judged::New { proven }) => (*proven, None),
            Err(Wrong(_, reason)) if log.is_some() => (false, Some(reason.clone())),
            Ok(Judged::Known | Judged::Unproven { .. }) | Err(_) => return Ok(judged),
        };
        // The same contradiction may come again and again; the proof of it is there once.
        if refused.is_some() && !self.is_fresh(tunnel, format!("kept {}", checkpoint.origin)) {
            return Ok(judged);
        }
        let (origin, key) = (checkpoint.origin.clone(), published.key.trim().to_owned());
        let (size, note) = (checkpoint.size, published.note.clone());
        let new = NewCheckpoint { origin, key, size, root, note, proven, certified, refused };
        self.store.keep_checkpoint(tunnel, new).await?;
        if log.is_none() && !logs.is_empty() {
            let others: Vec<_> = logs.iter().map(|log| log.origin.as_str()).collect();
            let fields = json!({
                "tunnel_id": tunnel,
                "origin": checkpoint.origin,
                "key": published.key.trim(),
                "certified": certified,
                "other_logs": others,
            });
            tracing::warn!(tunnel = %tunnel, origin = checkpoint.origin, "a gateway publishes checkpoints of another log");
            self.audit.own(kinds::AUDIT_KEY_CHANGED, fields).await;
        }
        Ok(judged)
    }

    /// Makes room for the first checkpoint of a log. One that only a token stands for, which may be stolen, pushes out
    /// none whose gateway has shown a certificate.
    async fn make_room(
        &self,
        tunnel: &TunnelId,
        certified: bool,
        logs: &[PublishedLog],
        origin: &str,
    ) -> Result<Result<Judged, Wrong>, StoreError> {
        if logs.len() >= MAX_LOGS {
            let oldest = logs.iter().find(|log| !log.certified).or_else(|| logs.first().filter(|_| certified));
            let Some(oldest) = oldest else {
                let reason = format!("the tunnel has checkpoints of {MAX_LOGS} logs already");
                return Ok(Err(Wrong("too_many_logs", reason)));
            };
            self.store.forget_checkpoints(tunnel, &oldest.origin).await?;
            // What was published stays provable by the hub's own log.
            let fields = json!({
                "tunnel_id": tunnel,
                "origin": oldest.origin,
                "key": oldest.key,
                "size": oldest.size,
                "note": oldest.note,
                "in_favour_of": origin,
            });
            self.audit.own(kinds::CHECKPOINTS_FORGOTTEN, fields).await;
        }
        Ok(Ok(Judged::New { proven: true }))
    }

    async fn refused(&self, tunnel: &TunnelId, code: &'static str, reason: &str, published: &PublishedNote) {
        tracing::warn!(tunnel = %tunnel, reason, "a published checkpoint was refused");
        // Of each of the tunnel's logs apart; what names no log of it is one.
        let known = matches!(code, "other_key" | "other_root" | "smaller" | "not_a_continuation");
        let origin = Checkpoint::peek(&published.note).ok().filter(|_| known).map(|checkpoint| checkpoint.origin);
        let origin = origin.unwrap_or_default();
        if !self.is_fresh(tunnel, format!("{code} {origin}")) {
            return;
        }
        let fields = json!({
            "tunnel_id": tunnel,
            "origin": origin,
            "why": code,
            "reason": visible(reason, MAX_REASON),
            "key": visible(&published.key, MAX_KEY),
            // Lines stay lines: JSON keeps them apart from those of the log.
            "note": published.note.get(..MAX_NOTE.min(published.note.len())).unwrap_or_default(),
        });
        self.audit.own(kinds::CHECKPOINT_REFUSED, fields).await;
    }

    /// Whether this was not said of the tunnel for a while.
    fn is_fresh(&self, tunnel: &TunnelId, what: String) -> bool {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let last = recorded.get(&(tunnel.clone(), what.clone()));
        if last.is_some_and(|last| now.duration_since(*last) < QUIET) {
            return false;
        }
        if recorded.len() >= REMEMBERED {
            recorded.clear();
        }
        recorded.insert((tunnel.clone(), what), now);
        true
    }
}

/// Reads a published checkpoint whose signature is that of its key.
fn open(published: &PublishedNote) -> Result<Checkpoint, Wrong> {
    let wrong = |reason: String| Wrong("malformed", reason);
    if published.note.len() > MAX_NOTE || published.key.len() > MAX_KEY {
        return Err(wrong(format!("the note is larger than {MAX_NOTE} bytes, or its key than {MAX_KEY}")));
    }
    let key: VerifyingKey = published.key.trim().parse().map_err(|error| wrong(format!("its key: {error}")))?;
    let checkpoint = Checkpoint::open(&published.note, &key).map_err(|error| Wrong("not_signed", error.to_string()))?;
    if i64::try_from(checkpoint.size).is_err() {
        return Err(wrong("it stands for more records than a log can have".to_owned()));
    }
    Ok(checkpoint)
}

/// Holds a checkpoint against the newest of the same log, and against an earlier one of the same size.
fn judge(
    log: &PublishedLog,
    earlier: Option<Digest>,
    new: &Checkpoint,
    published: &PublishedNote,
) -> Result<Judged, Wrong> {
    let root = Digest::from(*new.root.as_bytes());
    if published.key.trim() != log.key {
        return Err(Wrong("other_key", format!("the log {} is signed with another key", log.origin)));
    }
    if new.size == log.size && root == log.root || earlier.is_some_and(|earlier| earlier == root) {
        return Ok(Judged::Known);
    }
    if new.size == log.size || earlier.is_some() {
        let reason = format!("another tree of {} records was published before: records were changed", new.size);
        return Err(Wrong("other_root", reason));
    }
    if new.size < log.size {
        let reason = format!(
            "it stands for {} records, and {} were published before: the log was cut, or set back to an earlier state",
            new.size, log.size
        );
        return Err(Wrong("smaller", reason));
    }
    match &published.proof {
        Some(ContinuityProof { from, hashes: Some(hashes) }) if *from == log.size => {
            let hashes: Option<Vec<Hash>> = hashes.iter().take(MAX_PROOF).map(|hash| hash.parse().ok()).collect();
            let old = Hash::from(*log.root.as_bytes());
            let proven = hashes.is_some_and(|hashes| is_consistent(log.size, old, new.size, new.root, &hashes));
            match proven {
                true => Ok(Judged::New { proven }),
                false => {
                    let reason = format!(
                        "its {} records do not continue the {} that were published before: records were changed",
                        new.size, log.size
                    );
                    Err(Wrong("not_a_continuation", reason))
                }
            }
        }
        Some(ContinuityProof { from, hashes: None }) if *from == log.size => Ok(Judged::New { proven: false }),
        _ => Ok(Judged::Unproven { from: log.size }),
    }
}
