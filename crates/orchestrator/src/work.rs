//! The queues of environments as their workers use them.
//!
//! A poll that finds nothing waits without asking the database: it is woken when an item is announced, and at the moment
//! when a lease ends or an item that was handed out may be handed out again. However many workers wait, one of them looks,
//! and wakes the next one when it found something. As announcements are of this process only, a queue that is polled is
//! looked at every few seconds all the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use sortie_api::{Metadata, PageRequest, Work, WorkQueueStats};
use sortie_ids::{ApiKey, EnvironmentId, KeyId, WorkId, WorkspaceId};
use sortie_runtime::TaskSet;
use sortie_store::{Change, Claim, Horizon, Page, Store, StoreError, WorkItem};
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;

use crate::queue::{self, AlreadyStopped, Beat, Hand, LeaseLost, NotWaiting, Stop, Terms};

/// How long an item that was handed out waits for its acknowledgement, in milliseconds, when the worker does not say.
pub const RECLAIM_MILLIS: u32 = 5000;
/// How long a look into a queue is believed.
const BELIEVED: Duration = Duration::from_secs(5);
/// How long a worker counts as polling after it asked.
const POLLING: Duration = Duration::from_secs(30);
/// Workers of one environment that are counted; what comes beyond them is served and not counted.
const COUNTED: usize = 10_000;
/// Environments that are remembered; those that nobody polls are forgotten when there are more.
const REMEMBERED: usize = 10_000;
/// How long workers have to answer a health check.
const HEALTHCHECK: SignedDuration = SignedDuration::from_secs(60);
/// Health checks of an environment that wait at one time.
const HEALTHCHECKS: u32 = 16;

/// The queues of all environments. Clones share them.
#[derive(Clone)]
pub struct Queues(Arc<Inner>);

struct Inner {
    store: Store,
    terms: Terms,
    known: Mutex<HashMap<EnvironmentId, Arc<Queue>>>,
}

/// What is known of one queue.
#[derive(Default)]
struct Queue {
    /// One waiting poll for each thing that may be there.
    wake: Notify,
    state: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// When it was looked into last, and found empty; none when there may be something.
    empty: Option<(Instant, Horizon)>,
    /// Whether somebody looks.
    looking: bool,
    /// Counts what was announced, so that nothing is missed that comes while somebody looks.
    announced: u64,
    /// Workers by their names, and when they asked last.
    workers: HashMap<String, Instant>,
}

/// A worker's question for work.
#[derive(Clone, Debug)]
pub struct Poll {
    /// The workspace of its key.
    pub workspace: WorkspaceId,
    /// Its environment.
    pub environment: EnvironmentId,
    /// Its key.
    pub key: KeyId,
    /// What it calls itself.
    pub worker: Option<String>,
    /// How long it waits; zero for not at all.
    pub wait: Duration,
    /// From when on an item that was handed out and not acknowledged is handed out again.
    pub reclaim: Duration,
}

/// What a worker gets: an item, and the token that it acts for its session with.
#[derive(Debug)]
pub struct Handed {
    /// The item.
    pub item: WorkItem,
    /// The token.
    pub token: ApiKey,
}

impl Queues {
    /// The queues of a store.
    pub fn new(store: Store, terms: Terms) -> Self {
        Self(Arc::new(Inner { store, terms, known: Mutex::default() }))
    }

    /// The same, with the task that hears of new work. No lease ends because the hub was away.
    ///
    /// # Errors
    /// Database errors.
    pub async fn start(store: Store, terms: Terms, tasks: &TaskSet) -> Result<Self, StoreError> {
        let lease = SignedDuration::from_secs(i64::from(terms.lease_seconds));
        store.extend_leases(store.exact_now().saturating_add(lease).unwrap_or(Timestamp::MAX)).await?;
        let queues = Self::new(store, terms);
        let (following, stop) = (queues.clone(), tasks.clone());
        tasks.spawn("work", async move {
            tokio::select! {
                () = following.follow() => {}
                () = stop.stopping() => {}
            }
        });
        Ok(queues)
    }

    async fn follow(self) {
        let mut changes = self.0.store.changes();
        loop {
            match changes.recv().await {
                Ok(Change::WorkWaits(environment)) => self.announce(&environment),
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.known().values().for_each(|queue| queue.announce()),
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// There may be something in the queue of this environment.
    pub fn announce(&self, environment: &EnvironmentId) {
        if let Some(queue) = self.known().get(environment) {
            queue.announce();
        }
    }

    /// Waits for an item, as long as the worker does.
    ///
    /// # Errors
    /// The workspace has no such environment, or one without workers; database errors.
    pub async fn poll(&self, poll: &Poll) -> Result<Option<Handed>, StoreError> {
        let queue = self.queue(&poll.environment);
        if let Some(worker) = &poll.worker {
            queue.saw(worker);
        }
        let deadline = Instant::now() + poll.wait;
        loop {
            // Before the look, so that nothing announced after it is missed.
            let woken = queue.wake.notified();
            let now = self.0.store.exact_now();
            if queue.begin_look(now, poll.reclaim) {
                let look = Look { queue: &queue, announced: queue.state().announced };
                let found = self.claim(poll, now).await?;
                match found {
                    Ok(handed) => {
                        look.found();
                        return Ok(Some(handed));
                    }
                    Err(horizon) => look.empty(horizon),
                }
            }
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            let until = queue.next_look(self.0.store.exact_now(), poll.reclaim, deadline.duration_since(now));
            // An error means that the time is over: it is looked again, or given up.
            let _ = tokio::time::timeout(until, woken).await;
        }
    }

    async fn claim(&self, poll: &Poll, now: Timestamp) -> Result<Result<Handed, Horizon>, StoreError> {
        let reclaim = now.saturating_sub(signed(poll.reclaim)).unwrap_or(Timestamp::MIN);
        let token = ApiKey::random("session");
        let hand = Hand { worker: poll.worker.clone(), key: poll.key.clone(), token: token.digest() };
        let claim = move |item: &mut WorkItem, now: Timestamp| queue::hand_out(item, now, hand.clone());
        let store = &self.0.store;
        let found = store.claim_work(&poll.workspace, &poll.environment, reclaim, queue::settle, claim).await?;
        Ok(match found {
            Claim::Item(item) => Ok(Handed { item: *item, token }),
            Claim::Nothing(horizon) => Err(horizon),
        })
    }

    /// Its worker takes an item.
    ///
    /// # Errors
    /// No such item; database errors. Inside: it cannot be taken.
    pub async fn acknowledge(&self, at: &Place) -> Result<Result<WorkItem, NotWaiting>, StoreError> {
        let terms = self.0.terms;
        self.change(at, move |item, now| queue::acknowledge(item, now, terms)).await.map(only)
    }

    /// Its worker is at it. The item, and what its worker is to know.
    ///
    /// # Errors
    /// No such item; database errors.
    pub async fn heartbeat(&self, at: &Place, beat: Beat) -> Result<(WorkItem, Result<(), LeaseLost>), StoreError> {
        let terms = self.0.terms;
        self.change(at, move |item, now| queue::heartbeat(item, now, &beat, terms)).await
    }

    /// Somebody ends an item.
    ///
    /// # Errors
    /// No such item; database errors. Inside: it is over already.
    pub async fn stop(&self, at: &Place, stop: Stop) -> Result<Result<WorkItem, AlreadyStopped>, StoreError> {
        let terms = self.0.terms;
        self.change(at, move |item, now| queue::stop(item, now, stop, terms)).await.map(only)
    }

    /// Sets what is written beside an item.
    ///
    /// # Errors
    /// No such item; database errors. Inside: what `patch` says.
    pub async fn update<E: Send + 'static>(
        &self,
        at: &Place,
        patch: impl Fn(Metadata) -> Result<Metadata, E> + Send + Sync + 'static,
    ) -> Result<Result<WorkItem, E>, StoreError> {
        let change = move |item: &mut WorkItem, _| {
            item.metadata = patch(item.metadata.clone())?;
            Ok(())
        };
        self.change(at, change).await.map(only)
    }

    async fn change<T: Send + 'static>(
        &self,
        at: &Place,
        change: impl Fn(&mut WorkItem, Timestamp) -> T + Send + Sync + 'static,
    ) -> Result<(WorkItem, T), StoreError> {
        self.0.store.change_work(&at.workspace, &at.environment, &at.work, change).await
    }

    /// An item as it is now.
    ///
    /// # Errors
    /// No such item; database errors.
    pub async fn get(&self, at: &Place) -> Result<WorkItem, StoreError> {
        let item = self.0.store.work(&at.workspace, &at.environment, &at.work).await?;
        Ok(self.settled(item))
    }

    /// The items of an environment, newest first.
    ///
    /// # Errors
    /// No such environment; database errors.
    pub async fn list(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        page: PageRequest,
    ) -> Result<Page<WorkItem>, StoreError> {
        let Page { items, next } = self.0.store.list_work(workspace, environment, page).await?;
        Ok(Page { items: items.into_iter().map(|item| self.settled(item)).collect(), next })
    }

    /// How much there is to do, and who asks for it.
    ///
    /// # Errors
    /// No such environment; database errors.
    pub async fn stats(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
    ) -> Result<WorkQueueStats, StoreError> {
        let reclaim = SignedDuration::from_millis(i64::from(RECLAIM_MILLIS));
        let reclaim = self.0.store.exact_now().saturating_sub(reclaim).unwrap_or(Timestamp::MIN);
        let counts = self.0.store.count_work(workspace, environment, reclaim).await?;
        let workers = self.known().get(environment).map_or(0, |queue| queue.workers_polling());
        Ok(WorkQueueStats {
            depth: counts.waiting,
            pending: counts.handed_out,
            oldest_queued_at: counts.oldest,
            workers_polling: Some(u64::try_from(workers).unwrap_or(u64::MAX)),
        })
    }

    /// Makes a check of an environment's workers.
    ///
    /// # Errors
    /// No such environment, or one without workers; too many checks wait; database errors.
    pub async fn healthcheck(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
    ) -> Result<WorkItem, StoreError> {
        let end = self.0.store.exact_now().saturating_add(HEALTHCHECK).unwrap_or(Timestamp::MAX);
        self.0.store.create_healthcheck(workspace, environment, end, HEALTHCHECKS).await
    }

    fn settled(&self, mut item: WorkItem) -> WorkItem {
        queue::settle(&mut item, self.0.store.exact_now());
        item
    }

    fn queue(&self, environment: &EnvironmentId) -> Arc<Queue> {
        let mut known = self.known();
        if known.len() >= REMEMBERED && !known.contains_key(environment) {
            // A queue that a poll waits at is held by it.
            known.retain(|_, queue| Arc::strong_count(queue) > 1);
        }
        Arc::clone(known.entry(environment.clone()).or_default())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<EnvironmentId, Arc<Queue>>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an item is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The workspace of its environment.
    pub workspace: WorkspaceId,
    /// Its environment.
    pub environment: EnvironmentId,
    /// The item.
    pub work: WorkId,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        let mut known = self.state();
        known.empty = None;
        known.announced = known.announced.wrapping_add(1);
        drop(known);
        self.wake.notify_one();
    }

    /// Whether this poll is to look: there may be something, and nobody else looks.
    fn begin_look(&self, now: Timestamp, reclaim: Duration) -> bool {
        let mut known = self.state();
        let looks = !known.looking && known.wait(now, reclaim).is_zero();
        known.looking |= looks;
        looks
    }

    /// How long a poll sleeps that has `left` to go.
    fn next_look(&self, now: Timestamp, reclaim: Duration, left: Duration) -> Duration {
        let known = self.state();
        // Who looks wakes the next one.
        if known.looking { left } else { known.wait(now, reclaim).min(left) }
    }

    fn saw(&self, worker: &str) {
        let (mut known, now) = (self.state(), Instant::now());
        if let Some(at) = known.workers.get_mut(worker) {
            *at = now;
            return;
        }
        if known.workers.len() >= COUNTED {
            known.workers.retain(|_, at| now.duration_since(*at) < POLLING);
        }
        if known.workers.len() < COUNTED {
            known.workers.insert(worker.to_owned(), now);
        }
    }

    fn workers_polling(&self) -> usize {
        let mut known = self.state();
        known.workers.retain(|_, at| at.elapsed() < POLLING);
        known.workers.len()
    }
}

impl Known {
    /// How long nothing can be there.
    fn wait(&self, now: Timestamp, reclaim: Duration) -> Duration {
        let Some((at, horizon)) = self.empty else { return Duration::ZERO };
        let until = |due: Timestamp| Duration::try_from(due.duration_since(now)).unwrap_or_default();
        let again = horizon.handed_out.and_then(|at| at.checked_add(signed(reclaim)).ok());
        let due = [horizon.lease_ends, again].into_iter().flatten().map(until).min();
        BELIEVED.saturating_sub(at.elapsed()).min(due.unwrap_or(BELIEVED))
    }
}

/// A look into a queue that one poll has begun; others wait for its end, however it ends.
struct Look<'q> {
    queue: &'q Queue,
    announced: u64,
}

impl Look<'_> {
    /// Where there was one, there may be more.
    fn found(self) {
        self.queue.state().empty = None;
    }

    fn empty(self, horizon: Horizon) {
        let mut known = self.queue.state();
        if known.announced == self.announced {
            known.empty = Some((Instant::now(), horizon));
        }
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        let mut known = self.queue.state();
        known.looking = false;
        let more = known.empty.is_none();
        drop(known);
        if more {
            self.queue.wake.notify_one();
        }
    }
}

fn only<T, E>((item, outcome): (WorkItem, Result<T, E>)) -> Result<WorkItem, E> {
    outcome.map(|_| item)
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// What is shown of an item; its secret only where it is handed out.
pub fn show(item: WorkItem, secret: Option<String>) -> Work {
    Work {
        data: item.data(),
        id: item.id,
        environment_id: item.environment,
        state: item.state,
        metadata: item.metadata,
        secret,
        created_at: Some(item.created_at),
        acknowledged_at: item.acknowledged_at,
        started_at: item.started_at,
        latest_heartbeat_at: item.latest_heartbeat_at,
        stop_requested_at: item.stop_requested_at,
        stopped_at: item.stopped_at,
    }
}
