//! Puts a changed file of settings in force while everything runs on.
//!
//! The content is what counts, not its time: of the file itself and of the files that it names. Something broken changes
//! nothing but what health says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sortie_ids::Digest;
use sortie_policy::Engine;

use crate::config::{ConfigError, GatewayConfig};
use crate::gateway::{GatewayError, Shared};
use crate::served::{Builder, MAX_POLICY, Served, read_policy, read_up_to};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a new content must stay the same, so that a file is not read while it is being written.
const SETTLE: Duration = Duration::from_millis(200);

/// The settings in force, and whether they are the newest.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigReport {
    /// Whether the newest content of the file is in force.
    pub ok: bool,
    /// Since when these settings are in force (RFC 3339).
    pub since: String,
    /// Why the newest content is not in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl ConfigReport {
    pub(crate) fn now(unix: i64) -> Self {
        let since = jiff::Timestamp::from_second(unix).unwrap_or_default().to_string();
        Self { ok: true, since, reason: None }
    }
}

/// Why a new content is not put in force.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Gateway(#[from] GatewayError),
}

/// Watches one file.
pub(crate) struct Watcher {
    pub(crate) shared: Arc<Shared>,
    pub(crate) builder: Arc<Builder>,
    pub(crate) path: PathBuf,
}

impl Watcher {
    /// Runs until the gateway is asked to stop.
    pub(crate) async fn run(self) {
        // The first look is at what the gateway was started with, unless it has changed since.
        let mut seen: Option<Seen> = None;
        loop {
            let (asked, next) = tokio::select! {
                next = self.settled(&seen) => (false, next),
                () = self.shared.reload_asked() => (true, self.look(seen.clone()).await),
                () = self.shared.tasks.stopping() => return,
            };
            let Some(next) = next else { continue };
            let first = seen.is_none();
            seen = Some(next);
            let before = self.shared.served();
            match self.read(before.clone()).await {
                Some(Ok(served)) if first && !asked && served.same(&before) => {}
                Some(Ok(served)) => self.put_in_force(&before, served).await,
                Some(Err(error)) => self.failed(&before, &error).await,
                None => {}
            }
        }
    }

    /// Waits for a content that is not the one that was seen, and that stays.
    async fn settled(&self, seen: &Option<Seen>) -> Option<Seen> {
        loop {
            let new = |next: &Seen| seen.as_ref().is_none_or(|seen| seen.content != next.content);
            if let Some(next) = self.look(seen.clone()).await.filter(new) {
                tokio::time::sleep(SETTLE).await;
                let again = self.look(Some(next.clone())).await;
                if again.is_some_and(|again| again.content == next.content) {
                    return Some(next);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// `None` when the program is ending, here and below.
    async fn look(&self, seen: Option<Seen>) -> Option<Seen> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || Seen::look(&path, seen)).await.ok()
    }

    async fn read(&self, before: Arc<Served>) -> Option<Result<Served, ReloadError>> {
        let (path, builder) = (self.path.clone(), self.builder.clone());
        let read = move || Ok(builder.build(GatewayConfig::load(&path)?, Some(&before))?);
        tokio::task::spawn_blocking(read).await.ok()
    }

    async fn put_in_force(&self, before: &Served, served: Served) {
        metrics::counter!("sortie_gateway_config_reloads_total", "result" => "ok").increment(1);
        tracing::info!(path = %self.path.display(), "configuration reloaded");
        served.log_changes(before);
        self.shared.put_in_force(served);
        let (audit, served) = (self.shared.audit.clone(), self.shared.served());
        let _told = tokio::task::spawn_blocking(move || audit.settings_loaded(&served)).await;
    }

    async fn failed(&self, before: &Arc<Served>, error: &ReloadError) {
        metrics::counter!("sortie_gateway_config_reloads_total", "result" => "failed").increment(1);
        let reason = error.to_string();
        tracing::error!("the old configuration stays in force: {reason}");
        self.shared.reload_failed(reason.clone());
        let (audit, before) = (self.shared.audit.clone(), before.clone());
        let _told = tokio::task::spawn_blocking(move || audit.settings_refused(&before.config, &reason)).await;
    }
}

/// What the files held at one time.
#[derive(Clone)]
struct Seen {
    file: Digest,
    /// Of the policy file, which names files, too.
    policy: Option<(PathBuf, Digest)>,
    /// What both name, as far as it can be read.
    named: BTreeSet<PathBuf>,
    /// Of all of it.
    content: Digest,
}

impl Seen {
    /// Reads the files. What `seen` knows of the same files is not found out again. Blocks.
    fn look(path: &Path, seen: Option<Self>) -> Self {
        let file = content(path);
        let same = |seen: &Self| {
            seen.file == file && seen.policy.as_ref().is_none_or(|(path, before)| content(path) == *before)
        };
        let (policy, named) = match seen {
            Some(seen) if same(&seen) => (seen.policy, seen.named),
            seen => named(path, seen),
        };
        let mut all = file.as_bytes().to_vec();
        for path in &named {
            all.extend_from_slice(content(path).as_bytes());
        }
        Self { file, policy, named, content: Digest::of(&all) }
    }
}

/// The policy file and all files that settings name. Where the policies cannot be read, what they named before counts: the
/// file that is to be repaired may be one of these.
fn named(path: &Path, seen: Option<Seen>) -> (Option<(PathBuf, Digest)>, BTreeSet<PathBuf>) {
    let Ok(config) = GatewayConfig::load(path) else { return (None, BTreeSet::new()) };
    let mut named: BTreeSet<PathBuf> = config.files().into_iter().collect();
    let Some(policy) = config.control.policy_file else { return (None, named) };
    match Engine::load(&policy, read_policy) {
        Ok(engine) => named.extend(engine.files().iter().cloned()),
        Err(_) => named.extend(seen.into_iter().flat_map(|seen| seen.named)),
    }
    let digest = content(&policy);
    (Some((policy, digest)), named)
}

/// Of a file's content, or of the reason why it cannot be read.
fn content(path: &Path) -> Digest {
    match read_up_to(MAX_POLICY, path) {
        Ok(bytes) => Digest::of(&bytes),
        Err(error) => Digest::of(format!("unreadable: {error}").as_bytes()),
    }
}
