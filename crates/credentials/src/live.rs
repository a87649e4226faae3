//! A value that a task keeps fresh: read without waiting on the path of a call.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use sortie_runtime::{Backoff, TaskSet};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::problem::Problem;

/// Least time between two fetches that nobody has asked for.
const SHORTEST: Duration = Duration::from_millis(200);
/// How long a call waits for the first value.
const FIRST: Duration = Duration::from_secs(10);
/// How soon after a failure a source is asked again: at random up to this, doubled each time up to the longest.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Least time between two refusals of an upstream that have a source asked before its time.
const ASKED: Duration = Duration::from_secs(10);
/// How long giving back what was borrowed may take, when a source is closed.
const GIVING_BACK: Duration = Duration::from_secs(5);
const EXPIRED: &str = "it has expired and cannot be renewed";

/// Where values come from.
pub(crate) trait Keep: Send + 'static {
    type Value: Send + Sync + 'static;

    /// The name in logs, and the kind of source in metrics.
    fn names(&self) -> (&str, &'static str);

    /// The newest value; `None` where it is the one that was last given. Dropped when the task is to end.
    fn fetch(&mut self, want: Want) -> impl Future<Output = Result<Fetched<Self::Value>, Problem>> + Send;

    /// Completes when there is reason to fetch before the time; may never do so.
    fn disturbed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Gives back what was borrowed.
    fn give_back(&mut self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// What a fetch is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// There is no value: any will do.
    Value,
    /// There is one; it may be extended.
    Fresh,
    /// There is one that an upstream has refused; extending it is not enough.
    Another,
}

/// The outcome of a fetch.
pub(crate) struct Fetched<T> {
    /// `None`: still the same value.
    pub(crate) value: Option<T>,
    /// How long it may be used; `None`: until another comes.
    pub(crate) until: Option<Duration>,
    /// When to fetch again; `None`: never, unless disturbed.
    pub(crate) again: Option<Duration>,
}

enum State<T> {
    Pending,
    Here { value: Arc<T>, until: Option<Instant> },
    Absent(&'static str),
}

struct Shared<T> {
    state: ArcSwap<State<T>>,
    changed: watch::Sender<()>,
    asked: Notify,
}

/// The value, and the task that keeps it fresh. The task ends when this is closed or dropped.
pub(crate) struct Live<T> {
    shared: Arc<Shared<T>>,
    close: watch::Sender<bool>,
    ended: watch::Receiver<()>,
}

impl<T: Send + Sync + 'static> Live<T> {
    pub(crate) fn start<K: Keep<Value = T>>(keep: K, tasks: &TaskSet) -> Self {
        let changed = watch::Sender::new(());
        let shared = Arc::new(Shared { state: ArcSwap::from_pointee(State::Pending), changed, asked: Notify::new() });
        let (close, closing) = watch::channel(false);
        let (ends, ended) = watch::channel(());
        let task = run(keep, shared.clone(), closing);
        tasks.spawn("credential", async move {
            task.await;
            drop(ends);
        });
        Self { shared, close, ended }
    }

    /// The value now, or why there is none. Waits only for the first one, and not for long.
    pub(crate) async fn get(&self) -> Result<Arc<T>, &'static str> {
        if let Some(known) = self.now() {
            return known;
        }
        let mut changed = self.shared.changed.subscribe();
        let waiting = async {
            loop {
                if let Some(known) = self.now() {
                    return known;
                }
                if changed.changed().await.is_err() {
                    return Err("it is no longer kept");
                }
            }
        };
        tokio::time::timeout(FIRST, waiting).await.unwrap_or(Err("it did not come in time"))
    }

    /// `None` before the first fetch has ended.
    fn now(&self) -> Option<Result<Arc<T>, &'static str>> {
        match &**self.shared.state.load() {
            State::Pending => None,
            State::Here { until: Some(until), .. } if *until <= Instant::now() => Some(Err(EXPIRED)),
            State::Here { value, .. } => Some(Ok(value.clone())),
            State::Absent(reason) => Some(Err(reason)),
        }
    }

    /// Asks for a fetch before its time, since an upstream has refused the value.
    pub(crate) fn ask(&self) {
        self.shared.asked.notify_one();
    }

    /// Ends the task, and waits until it has given back what it had borrowed: at most some seconds.
    pub(crate) async fn close(&self) {
        self.close.send_replace(true);
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

async fn run<K: Keep>(mut keep: K, shared: Arc<Shared<K::Value>>, mut closing: watch::Receiver<bool>) {
    let mut backoff = Backoff::new(AGAIN, LONGEST);
    let mut said: Option<Problem> = None;
    let mut asked_at: Option<Instant> = None;
    let mut refused = false;
    loop {
        let want = match (&**shared.state.load(), std::mem::take(&mut refused)) {
            (State::Here { .. }, false) => Want::Fresh,
            (State::Here { .. }, true) => Want::Another,
            _ => Want::Value,
        };
        let fetched = tokio::select! {
            fetched = keep.fetch(want) => fetched,
            () = closed(&mut closing) => break,
        };
        let (name, kind) = keep.names();
        let again = match fetched {
            Ok(fetched) => {
                backoff.reset();
                if said.take().is_some() {
                    tracing::info!(credential = name, "the secret can be had again");
                }
                put(&shared, name, kind, fetched)
            }
            Err(problem) => {
                metrics::counter!("sortie_credential_fetches_total", "source" => kind, "result" => "failed")
                    .increment(1);
                let goes_on = !problem.withdrawn && matches!(&**shared.state.load(), State::Here { .. });
                if !goes_on {
                    shared.state.store(Arc::new(State::Absent(problem.public)));
                    shared.changed.send_replace(());
                }
                if said.as_ref() != Some(&problem) {
                    let until = if goes_on { "; the last one is used until its end" } else { "" };
                    tracing::error!(credential = name, source = kind, "no secret: {}{until}", problem.private);
                    said = Some(problem);
                }
                Some(backoff.next(random()))
            }
        };
        let sleeping = async {
            match again {
                Some(again) => tokio::time::sleep(again.max(SHORTEST)).await,
                None => std::future::pending().await,
            }
        };
        let asked = async {
            loop {
                shared.asked.notified().await;
                if asked_at.is_none_or(|at| at.elapsed() >= ASKED) {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleeping => {}
            () = asked => {
                asked_at = Some(Instant::now());
                refused = true;
            }
            () = keep.disturbed() => {}
            () = closed(&mut closing) => break,
        }
    }
    shared.state.store(Arc::new(State::Absent("it is no longer kept")));
    shared.changed.send_replace(());
    let (name, _) = keep.names();
    let name = name.to_owned();
    if tokio::time::timeout(GIVING_BACK, keep.give_back()).await.is_err() {
        tracing::warn!(credential = name, "a lease was not given back in time; it ends by itself");
    }
}

/// Puts a value in force; when to fetch again.
fn put<T>(shared: &Shared<T>, name: &str, kind: &'static str, fetched: Fetched<T>) -> Option<Duration> {
    let until = fetched.until.map(|until| Instant::now() + until);
    let value = match (fetched.value, &**shared.state.load()) {
        (Some(value), before) => {
            metrics::counter!("sortie_credential_fetches_total", "source" => kind, "result" => "ok").increment(1);
            if !matches!(before, State::Pending) {
                tracing::info!(credential = name, source = kind, "the secret was replaced");
            }
            Some(Arc::new(value))
        }
        (None, State::Here { value, .. }) => Some(value.clone()),
        (None, _) => None,
    };
    if let Some(value) = value {
        shared.state.store(Arc::new(State::Here { value, until }));
        shared.changed.send_replace(());
    }
    fetched.again
}

async fn closed(closing: &mut watch::Receiver<bool>) {
    let _dropped = closing.wait_for(|closed| *closed).await;
}

pub(crate) fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness everybody waits equally long, which is no harm.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}
