//! Sessions as they run: the shell around the [machine](crate::machine).
//!
//! A session that has something to do is awake: one actor, a task, holds its machine, stores each step, shows it, and sets
//! its effects going; all of them end with the actor. At rest it has no task; what was read of it is kept for the next time
//! as far as there is room ([`Settings::kept_bytes`]). Sessions that work at once are bounded ([`Settings::at_work`]): others
//! take events and store them, and wait for a place before they ask anyone anything.
//!
//! When the process is about to end, requests to models are dropped and noted as such, MCP calls may finish, and nothing new
//! begins. What a crash leaves is taken up by [`Sessions::recover`].

mod actor;
mod effects;
mod kept;
mod known;

#[cfg(test)]
mod fault;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use sortie_api::{Event, EventBody, Metadata, Session, SessionAgent, SessionStats, SessionStatus, Usage};
use sortie_ids::{EnvironmentId, EventId, KeyId, OrganizationId, SessionId, ThreadId, VaultId, WorkspaceId};
use sortie_runtime::TaskSet;
use sortie_store::{Object, Store, StoreError};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::live::Live;
use crate::machine::{Given, Limits, Machine, NotTaken, Step};
use crate::mcp::McpServers;
use crate::model::Models;
use actor::{Actor, Command, Core};
use kept::Kept;

/// Requests to one session that may wait at once; more are refused as [`Refusal::Busy`].
const MAX_COMMANDS: usize = 256;

/// Bounds of all sessions together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Sessions at work at once; others wait for a place, in the order in which they came.
    pub at_work: usize,
    /// Bytes of sessions at rest that are kept in memory, about; what does not fit is read again when it is needed.
    pub kept_bytes: usize,
    /// Those of a turn; its `window` is set by the model.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self { at_work: 1000, kept_bytes: 64 * 1024 * 1024, limits: Limits::default() }
    }
}

/// A session that is to be made. What it names was checked.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The workspace that it belongs to.
    pub workspace: WorkspaceId,
    /// The workspace's organisation.
    pub organization: OrganizationId,
    /// The key that it is made with.
    pub key: KeyId,
    /// Its copy of the agent.
    pub agent: SessionAgent,
    /// Where the tools of the sandbox run.
    pub environment: EnvironmentId,
    /// What its owner calls it.
    pub title: Option<String>,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// Where credentials are looked for, in this order.
    pub vault_ids: Vec<VaultId>,
    /// Messages that it begins with.
    pub initial: Vec<EventBody>,
}

/// A change of a session.
#[derive(Default)]
pub struct Change {
    /// A new title, or none.
    pub title: Option<Option<String>>,
    /// Pairs that are set, and those that are removed.
    pub metadata: BTreeMap<String, Option<String>>,
    /// What makes the new agent of the one that there is, or refuses in one sentence. Only while the session is idle.
    #[expect(clippy::type_complexity, reason = "one function")]
    pub agent: Option<Box<dyn FnOnce(&SessionAgent) -> Result<SessionAgent, String> + Send>>,
}

/// Why a session did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The workspace has no such session.
    #[error("the workspace has no session with this id")]
    NotFound,
    /// It does not fit what the session is at.
    #[error("{0}")]
    Invalid(String),
    /// Something else was said before; to repeat the request changes nothing.
    #[error("{0}")]
    Conflict(String),
    /// The session is over.
    #[error("the session is terminated and takes no more events")]
    Terminated,
    /// Too many requests to this session wait already.
    #[error("{MAX_COMMANDS} requests to this session wait already; send it again later")]
    Busy,
    /// The store did not do its part.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(Object::Session) => Self::NotFound,
            other => Self::Store(other),
        }
    }
}

impl From<NotTaken> for Refusal {
    fn from(why: NotTaken) -> Self {
        match why {
            NotTaken::Terminated => Self::Terminated,
            NotTaken::Invalid(why) => Self::Invalid(why),
        }
    }
}

/// All sessions of a hub. Clones are of the same.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

struct Inner {
    store: Store,
    models: Arc<dyn Models>,
    servers: Arc<dyn McpServers>,
    live: Live,
    tasks: TaskSet,
    settings: Settings,
    places: Arc<Semaphore>,
    known: Mutex<Known>,
    #[cfg(test)]
    fault: fault::Fault,
}

/// Which sessions are in memory: each is awake, or kept, or neither.
struct Known {
    awake: HashMap<SessionId, mpsc::Sender<Command>>,
    kept: Kept,
}

impl Sessions {
    /// Sessions of this store, none of them awake; their tasks belong to `tasks`.
    pub fn start(
        store: Store,
        models: Arc<dyn Models>,
        servers: Arc<dyn McpServers>,
        live: Live,
        settings: Settings,
        tasks: TaskSet,
    ) -> Self {
        let places = Arc::new(Semaphore::new(settings.at_work.min(Semaphore::MAX_PERMITS)));
        let known = Mutex::new(Known { awake: HashMap::new(), kept: Kept::new(settings.kept_bytes) });
        Self(Arc::new(Inner {
            store,
            models,
            servers,
            live,
            tasks,
            settings,
            places,
            known,
            #[cfg(test)]
            fault: fault::Fault::default(),
        }))
    }

    /// Takes up every session that was at work when the process before this one ended. Returns how many; they go on by
    /// themselves.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn recover(&self) -> Result<usize, StoreError> {
        let ids = self.0.store.sessions_at_work().await?;
        for id in &ids {
            // A session that is awake has been taken up already.
            let _awake = self.0.send(id, Command::Wake);
        }
        Ok(ids.len())
    }

    /// Makes a session; with messages it works when this returns.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for what the initial events may not hold; [`Refusal::Store`].
    pub async fn create(&self, new: NewSession) -> Result<Session, Refusal> {
        let now = Timestamp::now();
        let thread = ThreadId::random();
        let mut machine = Machine::new(shown(&new, now), thread.clone(), self.0.limits(&new.agent));
        machine.check(&new.initial)?;
        let step = match new.initial.is_empty() {
            true => Step::default(),
            false => machine.step(crate::machine::Input::Posted(new.initial), given(&mut EventId::random)),
        };
        let record = sortie_store::NewSession {
            workspace: new.workspace,
            key: new.key,
            thread,
            shown: machine.session().clone(),
            state: machine.state(),
            arrived: actor::waiting(&step),
            events: step.events,
            entries: actor::written(&step.entries)?,
            wake: step.wake,
        };
        let record = self.0.store.create_session(record).await?;
        let session = record.session.clone();
        let core = Core::new(record, machine, Some(step.entries));
        let mut known = self.0.known();
        match step.effects.is_empty() {
            true => known.kept.put(core),
            false => drop(self.0.wake(&mut known, session.id.clone(), Some((core, step.effects)))),
        }
        Ok(session)
    }

    /// Sends events to a session of this workspace. They are stored when this returns, and are answered one by one.
    ///
    /// # Errors
    /// See [`Refusal`]; none of the events is taken then.
    pub async fn post(
        &self,
        workspace: &WorkspaceId,
        id: &SessionId,
        bodies: Vec<EventBody>,
    ) -> Result<Vec<Event>, Refusal> {
        self.ask(id, |answer| Command::Post(workspace.clone(), bodies, answer)).await
    }

    /// Changes a session of this workspace.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn update(&self, workspace: &WorkspaceId, id: &SessionId, change: Change) -> Result<Session, Refusal> {
        self.ask(id, |answer| Command::Update(workspace.clone(), change, answer)).await
    }

    /// Ends a session of this workspace for ever; one that is archived stays so.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] while it works; others see [`Refusal`].
    pub async fn archive(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<Session, Refusal> {
        self.ask(id, |answer| Command::Archive(workspace.clone(), answer)).await
    }

    /// Removes a session of this workspace with everything that is known of it.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] while it works; others see [`Refusal`].
    pub async fn delete(&self, workspace: &WorkspaceId, id: &SessionId) -> Result<(), Refusal> {
        self.ask(id, |answer| Command::Delete(workspace.clone(), answer)).await
    }

    /// How many sessions are awake.
    pub fn awake(&self) -> usize {
        self.0.known().awake.len()
    }

    async fn ask<T>(
        &self,
        id: &SessionId,
        command: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Command,
    ) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.0.send(id, command(answer))?;
        // An actor that was dropped in the midst of it may have stored what it was asked.
        answered.await.unwrap_or(Err(Refusal::Store(StoreError::Interrupted)))
    }
}

impl Inner {
    /// Hands a command to the session's actor, which is made if there is none.
    fn send(self: &Arc<Self>, id: &SessionId, command: Command) -> Result<(), Refusal> {
        // Under the lock, so that no actor goes to rest with a command in its queue.
        let mut known = self.known();
        let sender = match known.awake.get(id) {
            Some(sender) if !sender.is_closed() => sender.clone(),
            _ => self.wake(&mut known, id.clone(), None),
        };
        sender.try_send(command).map_err(|_| Refusal::Busy)
    }

    /// Makes an actor, out of what is given or kept of the session.
    fn wake(
        self: &Arc<Self>,
        known: &mut Known,
        id: SessionId,
        begun: Option<(Core, Vec<crate::machine::Effect>)>,
    ) -> mpsc::Sender<Command> {
        let (sender, commands) = mpsc::channel(MAX_COMMANDS);
        known.awake.insert(id.clone(), sender.clone());
        let begun = begun.or_else(|| known.kept.take(&id).map(|core| (core, Vec::new())));
        let actor = Actor::new(Arc::clone(self), id, commands, begun);
        self.tasks.spawn("session", actor.run());
        sender
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self, agent: &SessionAgent) -> Limits {
        let window = self.models.limits(&agent.model).context_window;
        Limits { window, ..self.settings.limits }
    }
}

fn shown(new: &NewSession, now: Timestamp) -> Session {
    Session {
        id: SessionId::random(),
        status: SessionStatus::Idle,
        agent: new.agent.clone(),
        environment_id: new.environment.clone(),
        title: new.title.clone(),
        metadata: new.metadata.clone(),
        resources: Vec::new(),
        vault_ids: new.vault_ids.clone(),
        budget: None,
        usage: Usage::default(),
        stats: SessionStats::default(),
        outcome_evaluations: Vec::new(),
        deployment_id: None,
        created_at: now,
        updated_at: now,
        archived_at: None,
    }
}

/// The time and chance of now.
fn given(id: &mut dyn FnMut() -> EventId) -> Given<'_> {
    let mut bytes = [0; 4];
    // Without randomness everybody waits equally long, which is no harm.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    Given { now: Timestamp::now(), random: u32::from_ne_bytes(bytes), id }
}
