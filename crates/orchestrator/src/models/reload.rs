//! Puts changed settings of models in force while everything runs on.
//!
//! The content is what counts, not its time: of the file itself and of the files that it names. Something broken changes
//! nothing but what is logged and counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sortie_ids::Digest;
use sortie_runtime::TaskSet;

use super::Catalog;
use super::config::{MAX_FILE, ModelsConfig, read};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a new content must stay the same, so that a file is not read while it is being written.
const SETTLE: Duration = Duration::from_millis(200);

/// Watches one file of settings.
pub(super) struct Watcher {
    file: PathBuf,
    /// What the files held when the settings in force were read.
    seen: Digest,
}

impl Watcher {
    /// Remembers what the files hold now. Blocks.
    pub(super) fn new(file: PathBuf) -> Self {
        let seen = content(&file);
        Self { file, seen }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// Runs until the hub is asked to stop.
    pub(super) async fn run(mut self, catalog: Arc<Catalog>, tasks: TaskSet) {
        loop {
            tokio::select! {
                next = self.changed() => self.seen = next,
                () = tasks.stopping() => return,
            }
            let (reading, file) = (catalog.clone(), self.file.clone());
            match tokio::task::spawn_blocking(move || reading.read(&file)).await {
                Ok(Ok(served)) => {
                    catalog.put_in_force(served);
                    tracing::info!(path = %self.file.display(), "settings of models reloaded");
                    metrics::counter!("sortie_models_reloads_total", "result" => "ok").increment(1);
                }
                Ok(Err(error)) => {
                    tracing::error!("the old settings of models stay in force: {error}");
                    metrics::counter!("sortie_models_reloads_total", "result" => "failed").increment(1);
                }
                // The program is ending.
                Err(_) => return,
            }
        }
    }

    /// Waits for a content that is not the one that was seen, and that stays.
    async fn changed(&self) -> Digest {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(next) = self.look().await.filter(|next| *next != self.seen) else { continue };
            tokio::time::sleep(SETTLE).await;
            if self.look().await.as_ref() == Some(&next) {
                return next;
            }
        }
    }

    async fn look(&self) -> Option<Digest> {
        let file = self.file.clone();
        tokio::task::spawn_blocking(move || content(&file)).await.ok()
    }
}

/// Of the file and of the files that it names. Blocks.
fn content(file: &Path) -> Digest {
    let of = |path: &Path| match read(path, MAX_FILE) {
        Ok(text) => Digest::of(text.as_bytes()),
        Err(why) => Digest::of(format!("unreadable: {why}").as_bytes()),
    };
    let mut all = of(file).as_bytes().to_vec();
    for path in ModelsConfig::load(file).map(|config| config.files()).unwrap_or_default() {
        all.extend_from_slice(of(&path).as_bytes());
    }
    Digest::of(&all)
}
