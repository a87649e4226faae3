//! Models: the scripted one that is built in, and those of upstreams, as a file of settings names them.

mod body;
mod config;
mod reload;
mod script;
mod scripted;
mod sse;
mod stream;
mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use sortie_api::Model;
use sortie_runtime::TaskSet;
use tokio::sync::mpsc::UnboundedSender;

use crate::model::{Delta, ModelAnswer, ModelError, ModelLimits, ModelRequest, Models, OVERLOADED, REQUEST_FAILED};
use scripted::{Faults, Scripted};
use upstream::{Failure, Upstream};

pub use config::{ModelsConfig, ModelsConfigError, Timeouts, Upstream as UpstreamConfig};

/// The name in the settings of the script that `scripted` plays where a conversation has none.
const DEFAULT_SCRIPT: &str = "default";
/// How long a request waits for a place when every upstream of its model has as many as it may.
const QUEUED: Duration = Duration::from_secs(60);

/// The models that there are. Each upstream is asked at most once for a request: in the order of the settings, those that
/// have failed lately after the others. The next one is asked where the one before has provably given no answer.
pub struct Catalog {
    served: ArcSwap<Served>,
    faults: Faults,
    /// Those that keep keys fresh. They serve as long as anything asks, and end with this.
    tasks: TaskSet,
}

/// What one reading of the settings came to.
#[derive(Default)]
struct Served {
    upstreams: Vec<Arc<Upstream>>,
    scripted: Scripted,
}

impl Catalog {
    /// With the scripted model alone.
    pub fn scripted() -> Self {
        Self { served: ArcSwap::default(), faults: Faults::default(), tasks: TaskSet::new() }
    }

    /// With what a file of settings names, from now on and when it changes. Blocks to read the files; to be called within a
    /// runtime.
    ///
    /// # Errors
    /// The file cannot be used, or what it names is not there.
    pub fn open(file: PathBuf, tasks: &TaskSet) -> Result<Arc<Self>, ModelsConfigError> {
        let watcher = reload::Watcher::new(file);
        let catalog = Self::scripted();
        catalog.put_in_force(catalog.read(watcher.file())?);
        let catalog = Arc::new(catalog);
        tasks.spawn("models-reload", watcher.run(catalog.clone(), tasks.clone()));
        Ok(catalog)
    }

    /// Reads the settings; upstreams that stay as they are stay in use. Blocks.
    fn read(&self, file: &std::path::Path) -> Result<Served, ModelsConfigError> {
        let config = ModelsConfig::load(file)?;
        let wrong = |reason: String| ModelsConfigError { path: file.to_owned(), reason };
        if let Some(missing) = config.check().into_iter().next() {
            return Err(wrong(missing));
        }
        let mut scripts = BTreeMap::new();
        for (name, path) in &config.scripts {
            let text = config::read(path, config::MAX_FILE).map_err(wrong)?;
            let name = if name == DEFAULT_SCRIPT { "" } else { name };
            scripts.insert(name.to_owned(), Arc::from(text));
        }
        let before = self.served.load();
        let mut upstreams = Vec::with_capacity(config.upstreams.len());
        for settings in config.upstreams {
            let same = before.upstreams.iter().find(|upstream| upstream.is_as(&settings)).cloned();
            let place = format!("upstream `{}`", settings.name);
            let new = || Upstream::new(settings, &self.tasks).map_err(|why| wrong(format!("{place}: {why}")));
            upstreams.push(same.map_or_else(|| new().map(Arc::new), Ok)?);
        }
        Ok(Served { upstreams, scripted: Scripted::new(scripts) })
    }

    /// Puts settings in force for requests from now on. What they leave out ends with its last request.
    fn put_in_force(&self, served: Served) {
        self.served.store(Arc::new(served));
    }

    async fn ask_upstreams(
        &self,
        served: &Served,
        request: &ModelRequest,
        deltas: &UnboundedSender<Delta>,
    ) -> Result<ModelAnswer, ModelError> {
        let mut serving: Vec<_> = served.upstreams.iter().filter(|one| one.serves(&request.model.id)).collect();
        serving.sort_by_key(|upstream| upstream.is_unwell());
        let mut failed: Option<ModelError> = None;
        for upstream in &serving {
            let Some(_place) = upstream.place() else { continue };
            match upstream.ask(request, deltas).await {
                Ok(answer) => return Ok(answer),
                Err(Failure { error, elsewhere }) => {
                    let error = together(failed.take(), error);
                    if !elsewhere {
                        return Err(error);
                    }
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let Some(first) = serving.first() else { return Err(unknown(served, &request.model.id)) };
        // All of them have as many requests as they may.
        match tokio::time::timeout(QUEUED, first.next_place()).await {
            Ok(Some(_place)) => first.ask(request, deltas).await.map_err(|failure| failure.error),
            _ => {
                let name = &first.settings.name;
                let why = format!("model upstream `{name}` has as many requests as its max_in_flight allows");
                Err(ModelError::passing(OVERLOADED, why))
            }
        }
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self::scripted()
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let served = self.served.load();
        let names: Vec<_> = served.upstreams.iter().map(|upstream| &upstream.settings.name).collect();
        f.debug_struct("Catalog").field("upstreams", &names).finish_non_exhaustive()
    }
}

impl Models for Catalog {
    fn ask<'a>(
        &'a self,
        request: &'a ModelRequest,
        deltas: UnboundedSender<Delta>,
    ) -> BoxFuture<'a, Result<ModelAnswer, ModelError>> {
        async move {
            let served = self.served.load_full();
            if served.scripted.plays(&request.model.id) {
                return served.scripted.ask(&self.faults, request, &deltas).await;
            }
            self.ask_upstreams(&served, request, &deltas).await
        }
        .boxed()
    }

    fn check(&self, model: &Model) -> Result<(), String> {
        let served = self.served.load();
        match served.scripted.plays(&model.id) || served.upstreams.iter().any(|upstream| upstream.serves(&model.id)) {
            true => Ok(()),
            false => Err(unknown(&served, &model.id).message),
        }
    }

    fn limits(&self, model: &Model) -> ModelLimits {
        let served = self.served.load();
        // Any of them may be asked: what all of them take.
        let limits =
            served.upstreams.iter().filter(|upstream| upstream.serves(&model.id)).map(|one| one.settings.limits);
        let least = limits.reduce(|one, other| ModelLimits {
            context_window: one.context_window.min(other.context_window),
            max_tokens: one.max_tokens.min(other.max_tokens),
        });
        least.unwrap_or_default()
    }
}

fn unknown(served: &Served, model: &str) -> ModelError {
    let way_out = match served.upstreams.is_empty() {
        true => "the hub was started without --models, so there is `scripted` only",
        false => "add its name to `match` of an upstream in the settings of models, or use another",
    };
    ModelError::new(REQUEST_FAILED, format!("no upstream serves the model `{model}`: {way_out}"))
}

/// What is said when several were asked: the last one's failure, with the words of all.
fn together(before: Option<ModelError>, last: ModelError) -> ModelError {
    let Some(before) = before else { return last };
    let message = format!("{}; {}", before.message, last.message);
    let retry_after = match (before.retry_after, last.retry_after) {
        (Some(one), Some(other)) => Some(one.min(other)),
        _ => None,
    };
    ModelError { message, retry_after, ..last }
}

#[cfg(test)]
mod tests;
