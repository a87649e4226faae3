//! Puts a changed file of settings in force while everything runs on.
//!
//! The content is what counts, not its time: of the file itself and of the files that it names. Something broken changes
//! nothing but what health says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sortie_ids::Digest;

use crate::config::{ConfigError, GatewayConfig};
use crate::gateway::{GatewayError, Shared};
use crate::served::{Builder, Served, read_bounded};

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
                Some(Ok(served)) => self.put_in_force(&before, served),
                Some(Err(error)) => self.failed(&error),
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

    fn put_in_force(&self, before: &Served, served: Served) {
        metrics::counter!("sortie_gateway_config_reloads_total", "result" => "ok").increment(1);
        tracing::info!(path = %self.path.display(), "configuration reloaded");
        served.log_changes(before);
        self.shared.put_in_force(served);
    }

    fn failed(&self, error: &ReloadError) {
        metrics::counter!("sortie_gateway_config_reloads_total", "result" => "failed").increment(1);
        let reason = error.to_string();
        tracing::error!("the old configuration stays in force: {reason}");
        self.shared.reload_failed(reason);
    }
}

/// What the files held at one time.
#[derive(Clone)]
struct Seen {
    file: Digest,
    /// What the file names, as far as it can be read.
    named: Vec<PathBuf>,
    /// Of the file and of all that it names.
    content: Digest,
}

impl Seen {
    /// Reads the files. What `seen` knows of the same file is not found out again. Blocks.
    fn look(path: &Path, seen: Option<Self>) -> Self {
        let file = content(path);
        let named = match seen {
            Some(seen) if seen.file == file => seen.named,
            _ => GatewayConfig::load(path).map(|config| config.files()).unwrap_or_default(),
        };
        let mut all = file.as_bytes().to_vec();
        for path in &named {
            all.extend_from_slice(content(path).as_bytes());
        }
        Self { file, named, content: Digest::of(&all) }
    }
}

/// Of a file's content, or of the reason why it cannot be read.
fn content(path: &Path) -> Digest {
    match read_bounded(path) {
        Ok(bytes) => Digest::of(&bytes),
        Err(error) => Digest::of(format!("unreadable: {error}").as_bytes()),
    }
}
