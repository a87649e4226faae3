//! One session that is awake.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use jiff::Timestamp;
use serde_json::Value;
use sortie_api::{Event, EventBody, Metadata, Session, SessionStatus};
use sortie_ids::{EventId, KeyId, OrganizationId, SessionId, WorkspaceId};
use sortie_store::{SessionRecord, StoreError, Transition};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, mpsc, oneshot};

use super::{Change, Inner, Refusal, given, known};
use crate::live::Frame;
use crate::machine::{Effect, Fate, Input, Machine, Step, Update};
use crate::mcp::{McpContext, McpFailure, McpTool};
use crate::model::ModelAnswer;
use crate::prompt::Toolbox;
use crate::transcript::Entry;

/// How long to wait before a session at work is read again, when the store failed.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// What a session takes in memory beside its transcript, in bytes, about.
const CORE_BYTES: usize = 8 * 1024;
/// Pairs of metadata.
const MAX_METADATA: usize = 16;

/// What a session is asked.
pub(super) enum Command {
    /// To go on, if it was at work.
    Wake,
    Post(WorkspaceId, Vec<EventBody>, oneshot::Sender<Result<Vec<Event>, Refusal>>),
    Update(WorkspaceId, Change, oneshot::Sender<Result<Session, Refusal>>),
    Archive(WorkspaceId, oneshot::Sender<Result<Session, Refusal>>),
    Delete(WorkspaceId, oneshot::Sender<Result<(), Refusal>>),
}

impl Command {
    fn refuse(self, why: Refusal) {
        // Whoever asked may have left.
        let _left = match self {
            Self::Wake => return,
            Self::Post(_, _, answer) => answer.send(Err(why)).is_err(),
            Self::Update(_, _, answer) => answer.send(Err(why)).is_err(),
            Self::Archive(_, answer) => answer.send(Err(why)).is_err(),
            Self::Delete(_, answer) => answer.send(Err(why)).is_err(),
        };
    }
}

/// What is in memory of a session, at rest or awake.
pub(super) struct Core {
    workspace: WorkspaceId,
    organization: OrganizationId,
    key: KeyId,
    revision: i64,
    pub(super) machine: Machine,
    /// All of it, once it was needed.
    pub(super) transcript: Option<Vec<Entry>>,
    pub(super) transcript_bytes: usize,
    agent_bytes: usize,
    tool_bytes: usize,
    /// What its MCP servers have told of their tools.
    pub(super) tools: BTreeMap<String, Arc<[McpTool]>>,
    /// The same as the model is told it.
    pub(super) toolbox: Option<Arc<Toolbox>>,
}

impl Core {
    pub(super) fn new(record: SessionRecord, machine: Machine, transcript: Option<Vec<Entry>>) -> Self {
        let SessionRecord { workspace, organization, key, revision, .. } = record;
        let agent_bytes = length(&machine.session().agent);
        Self {
            workspace,
            organization,
            key,
            revision,
            machine,
            transcript,
            transcript_bytes: 0,
            agent_bytes,
            tool_bytes: 0,
            tools: BTreeMap::new(),
            toolbox: None,
        }
    }

    pub(super) fn id(&self) -> &SessionId {
        &self.machine.session().id
    }

    /// In memory, about.
    pub(super) fn bytes(&self) -> usize {
        let texts = [self.agent_bytes, self.transcript_bytes, self.tool_bytes, self.tool_bytes];
        // A JSON value takes some times the room of its text.
        texts.iter().fold(CORE_BYTES, |sum, bytes| sum.saturating_add(bytes.saturating_mul(3)))
    }

    /// Keeps what a server has told of its tools.
    fn keep_tools(&mut self, server: &str, tools: Arc<[McpTool]>) {
        if self.tools.get(server) == Some(&tools) {
            return;
        }
        self.tools.insert(server.to_owned(), tools);
        self.toolbox = None;
        let all = self.tools.values().flat_map(|tools| tools.iter());
        self.tool_bytes = all.map(|tool| length(&tool.input_schema).saturating_add(length(&tool.description))).sum();
    }

    pub(super) fn context(&self) -> McpContext {
        let session = self.machine.session();
        McpContext {
            organization: self.organization.clone(),
            workspace: self.workspace.clone(),
            key: self.key.clone(),
            agent: session.agent.id.clone(),
            agent_name: session.agent.name.clone(),
            agent_version: session.agent.version,
            session: session.id.clone(),
            vaults: session.vault_ids.clone(),
        }
    }
}

/// What comes of an effect.
#[allow(clippy::large_enum_variant, reason = "one at a time is looked at, and none is kept")]
pub(super) enum Done {
    Input(Input),
    Answered(ModelAnswer, Arc<Toolbox>),
    Tools(String, Result<Arc<[McpTool]>, McpFailure>),
    /// It is time to read the session again.
    ReadAgain,
}

/// The task of a session that is awake.
pub(super) struct Actor {
    pub(super) inner: Arc<Inner>,
    pub(super) id: SessionId,
    commands: mpsc::Receiver<Command>,
    pub(super) core: Option<Core>,
    /// What is to be set going as soon as there is a place.
    pending: Vec<Effect>,
    pub(super) running: FuturesUnordered<BoxFuture<'static, Done>>,
    place: Option<OwnedSemaphorePermit>,
    /// The wait for a place: kept, so that it keeps its own place in the queue.
    queueing: Option<BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>>,
    stopped: bool,
}

impl Actor {
    pub(super) fn new(
        inner: Arc<Inner>,
        id: SessionId,
        commands: mpsc::Receiver<Command>,
        begun: Option<(Core, Vec<Effect>)>,
    ) -> Self {
        let (core, pending) = begun.map_or((None, Vec::new()), |(core, effects)| (Some(core), effects));
        let running = FuturesUnordered::new();
        Self { inner, id, commands, core, pending, running, place: None, queueing: None, stopped: false }
    }

    pub(super) async fn run(mut self) {
        let tasks = self.inner.tasks.clone();
        let effects = std::mem::take(&mut self.pending);
        self.set_going(effects);
        while !self.goes_to_rest() {
            self.look_for_place().await;
            tokio::select! {
                biased;
                () = tasks.stopping(), if !self.stopped => self.stop().await,
                Some(command) = self.commands.recv() => self.obey(command).await,
                Some(done) = self.running.next(), if !self.running.is_empty() => self.finish(done).await,
                place = its_turn(&mut self.queueing) => (self.place, self.queueing) = (place, None),
            }
        }
    }

    /// Sets going what waits for a place, or waits for one in the queue.
    async fn look_for_place(&mut self) {
        if self.pending.is_empty() {
            self.queueing = None;
        } else if self.place.is_some() {
            self.begin_pending().await;
        } else if let Ok(place) = Arc::clone(&self.inner.places).try_acquire_owned() {
            self.place = Some(place);
            self.queueing = None;
            self.begin_pending().await;
        } else if self.queueing.is_none() {
            self.queueing = Some(Box::pin(Arc::clone(&self.inner.places).acquire_owned()));
        }
    }

    async fn stop(&mut self) {
        self.stopped = true;
        // Calls are stored as begun.
        self.pending.retain(|effect| matches!(effect, Effect::Call(_)));
        self.take(Input::Stopping).await;
    }

    /// Whether there is nothing to do any more; then the session is not awake from now on.
    fn goes_to_rest(&mut self) -> bool {
        if !self.running.is_empty() || !self.pending.is_empty() {
            return false;
        }
        let mut known = self.inner.known();
        if !self.commands.is_empty() {
            return false;
        }
        known.awake.remove(&self.id);
        if let Some(mut core) = self.core.take().filter(|core| !core.machine.is_at_work()) {
            if core.machine.is_between_turns() {
                core.machine.forget_servers();
            }
            known.kept.put(core);
        }
        drop(known);
        self.inner.servers.rest(&self.id);
        true
    }

    async fn obey(&mut self, command: Command) {
        if let Err(error) = self.read().await {
            if matches!(command, Command::Wake) {
                self.read_again();
            }
            return command.refuse(error.into());
        }
        match command {
            Command::Wake => {}
            Command::Post(workspace, bodies, answer) => {
                let posted = self.post(&workspace, bodies).await;
                let _left = answer.send(posted);
            }
            Command::Update(workspace, change, answer) => {
                let updated = self.update(&workspace, change).await;
                let _left = answer.send(updated);
            }
            Command::Archive(workspace, answer) => {
                let archived = self.archive(&workspace).await;
                let _left = answer.send(archived);
            }
            Command::Delete(workspace, answer) => {
                let deleted = self.delete(&workspace).await;
                let _left = answer.send(deleted);
            }
        }
    }

    /// Reads the session, unless it is in memory; one that was at work goes on.
    async fn read(&mut self) -> Result<(), StoreError> {
        if self.core.is_some() {
            return Ok(());
        }
        let record = self.inner.store.any_session(&self.id).await?;
        let waiting = self.inner.store.waiting(&self.id).await?;
        let limits = self.inner.limits(&record.session.agent);
        let machine = Machine::open(record.session.clone(), record.thread.clone(), &record.state, waiting, limits);
        let machine = machine.map_err(|_| StoreError::Corrupt("state"))?;
        let mut core = Core::new(record, machine, None);
        if self.stopped {
            core.machine.halt();
        }
        let at_work = core.machine.is_at_work();
        self.core = Some(core);
        if at_work {
            self.step(Input::Recovered).await?;
        }
        Ok(())
    }

    fn core(&mut self, workspace: &WorkspaceId) -> Result<&mut Core, Refusal> {
        let core = self.core.as_mut().ok_or(Refusal::Store(StoreError::Interrupted))?;
        if core.workspace == *workspace { Ok(core) } else { Err(Refusal::NotFound) }
    }

    async fn post(&mut self, workspace: &WorkspaceId, bodies: Vec<EventBody>) -> Result<Vec<Event>, Refusal> {
        let fates = self.core(workspace)?.machine.check(&bodies)?;
        let mut echoes: Vec<Option<Event>> = Vec::with_capacity(bodies.len());
        let mut new = Vec::with_capacity(bodies.len());
        for (body, fate) in bodies.into_iter().zip(fates) {
            match fate {
                Fate::New => {
                    echoes.push(None);
                    new.push(body);
                }
                Fate::Known(tool_use) => {
                    let before = self.inner.store.answers(&self.id, &tool_use).await?;
                    echoes.push(Some(known::echo(&body, &tool_use, &before)?));
                }
            }
        }
        let taken = match new.is_empty() {
            true => Vec::new(),
            false => self.step(Input::Posted(new)).await?,
        };
        let mut taken = taken.into_iter();
        Ok(echoes.into_iter().filter_map(|echo| echo.or_else(|| taken.next())).collect())
    }

    async fn update(&mut self, workspace: &WorkspaceId, change: Change) -> Result<Session, Refusal> {
        let machine = &self.core(workspace)?.machine;
        let Change { title, metadata, agent } = change;
        let session = machine.session();
        if session.archived_at.is_some() {
            return Err(Refusal::Terminated);
        }
        let metadata = if metadata.is_empty() { None } else { Some(patched(&session.metadata, metadata)?) };
        let agent = match agent {
            Some(agent) => {
                machine.check_rest()?;
                Some(agent(&session.agent).map_err(Refusal::Invalid)?)
            }
            None => None,
        };
        let changed = agent.is_some();
        self.step(Input::Update(Update { title, metadata, agent })).await?;
        if changed && let Some(core) = &mut self.core {
            core.tools.clear();
            core.toolbox = None;
        }
        Ok(self.core(workspace)?.machine.session().clone())
    }

    async fn archive(&mut self, workspace: &WorkspaceId) -> Result<Session, Refusal> {
        let machine = &self.core(workspace)?.machine;
        if machine.session().archived_at.is_none() {
            machine.check_rest()?;
            self.step(Input::Archive).await?;
        }
        Ok(self.core(workspace)?.machine.session().clone())
    }

    async fn delete(&mut self, workspace: &WorkspaceId) -> Result<(), Refusal> {
        let machine = &self.core(workspace)?.machine;
        if machine.session().archived_at.is_none() {
            machine.check_rest()?;
        }
        self.inner.store.delete_session(workspace, &self.id).await?;
        self.core = None;
        self.inner.live.publish(&self.id, Frame::Deleted);
        Ok(())
    }

    /// Something that ran has ended.
    async fn finish(&mut self, done: Done) {
        let input = match done {
            Done::Input(input) => input,
            Done::Answered(answer, toolbox) => {
                let names = answer.content.iter().filter_map(|block| block.get("name").and_then(Value::as_str));
                let known = names.filter_map(|name| Some((name.to_owned(), toolbox.find(name)?.clone()))).collect();
                Input::Answered(answer, known)
            }
            Done::Tools(server, listed) => Input::Listed { failure: self.keep_tools(&server, listed), server },
            Done::ReadAgain => {
                if let Err(error) = self.read().await
                    && !matches!(error, StoreError::NotFound(_))
                {
                    self.read_again();
                }
                return;
            }
        };
        self.take(input).await;
    }

    fn keep_tools(&mut self, server: &str, listed: Result<Arc<[McpTool]>, McpFailure>) -> Option<McpFailure> {
        let core = self.core.as_mut()?;
        match listed {
            Ok(tools) => {
                core.keep_tools(server, tools);
                None
            }
            Err(failure) => {
                if core.tools.remove(server).is_some() {
                    core.toolbox = None;
                }
                Some(failure)
            }
        }
    }

    /// Makes a step that nobody waits for.
    async fn take(&mut self, input: Input) {
        if let Err(error) = self.step(input).await {
            tracing::error!(session = %self.id, %error, "a step of a session could not be stored; it is read again");
        }
    }

    /// Makes a step: stores it, shows it, sets its effects going. When it cannot be stored, nothing of it is true: what runs
    /// is dropped, and the session is read again, as after a crash.
    async fn step(&mut self, input: Input) -> Result<Vec<Event>, StoreError> {
        let Some(core) = &mut self.core else { return Ok(Vec::new()) };
        let step = core.machine.step(input, given(&mut EventId::random));
        match self.store(step).await {
            Ok((effects, echoes)) => {
                if !self.is_running() {
                    self.place = None;
                }
                self.set_going(effects);
                Ok(echoes)
            }
            Err(error) => {
                self.start_over();
                Err(error)
            }
        }
    }

    fn is_running(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.machine.session().status == SessionStatus::Running)
    }

    /// Forgets the session and what runs for it; it is read again soon.
    pub(super) fn start_over(&mut self) {
        self.core = None;
        self.place = None;
        self.pending.clear();
        self.running = FuturesUnordered::new();
        self.read_again();
    }

    fn read_again(&mut self) {
        if self.stopped {
            return;
        }
        self.running.push(Box::pin(async {
            tokio::time::sleep(READ_AGAIN).await;
            Done::ReadAgain
        }));
    }

    async fn store(&mut self, step: Step) -> Result<(Vec<Effect>, Vec<Event>), StoreError> {
        let Some(core) = &mut self.core else { return Ok((Vec::new(), Vec::new())) };
        let waits = waiting(&step);
        let Step { arrived, events, entries, effects, wake, store, echoes } = step;
        if !store {
            return Ok((effects, echoes));
        }
        let lines = written(&entries)?;
        let more: usize = lines.iter().map(String::len).sum();
        let transition = Transition {
            id: self.id.clone(),
            revision: core.revision,
            shown: core.machine.session().clone(),
            state: core.machine.state(),
            arrived: waits,
            events: events.clone(),
            entries: lines,
            wake,
        };
        #[cfg(test)]
        self.inner.fault.before_commit().await;
        self.inner.store.commit(transition).await?;
        #[cfg(test)]
        self.inner.fault.after_commit().await;
        core.revision += 1;
        if let Some(transcript) = &mut core.transcript {
            transcript.extend(entries);
            core.transcript_bytes = core.transcript_bytes.saturating_add(more);
        }
        for event in arrived.into_iter().chain(events) {
            self.inner.live.publish(&self.id, Frame::Event(Arc::new(event)));
        }
        Ok((effects, echoes))
    }

    fn set_going(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Cancel => {
                    self.running = FuturesUnordered::new();
                    self.pending.clear();
                }
                Effect::Wait(until) => {
                    let wait = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                    self.running.push(Box::pin(async move {
                        tokio::time::sleep(wait).await;
                        Done::Input(Input::Due)
                    }));
                }
                other => self.pending.push(other),
            }
        }
    }

    async fn begin_pending(&mut self) {
        for effect in std::mem::take(&mut self.pending) {
            if let Err(error) = self.begin(effect).await {
                tracing::error!(session = %self.id, %error, "the transcript of a session could not be read");
                return self.start_over();
            }
        }
    }
}

/// Waits in the queue for a place; for ever where there is no queue.
async fn its_turn(
    queueing: &mut Option<BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>>,
) -> Option<OwnedSemaphorePermit> {
    match queueing {
        Some(queueing) => queueing.await.ok(),
        None => std::future::pending().await,
    }
}

/// Those events of a step that wait from now on: not those that it has processed at once.
pub(super) fn waiting(step: &Step) -> Vec<Event> {
    let processed = |event: &Event| step.events.iter().any(|other| other.id == event.id);
    step.arrived.iter().filter(|event| !processed(event)).cloned().collect()
}

/// Entries as the store keeps them.
pub(super) fn written(entries: &[Entry]) -> Result<Vec<String>, StoreError> {
    entries.iter().map(|entry| serde_json::to_string(entry).map_err(|_| StoreError::Corrupt("entry"))).collect()
}

/// In JSON, in bytes.
fn length(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |text| text.len())
}

fn patched(metadata: &Metadata, patch: BTreeMap<String, Option<String>>) -> Result<Metadata, Refusal> {
    let mut patched = metadata.clone();
    for (key, value) in patch {
        match value {
            Some(value) => drop(patched.insert(key, value)),
            None => drop(patched.remove(&key)),
        }
    }
    match patched.len() {
        0..=MAX_METADATA => Ok(patched),
        more => Err(Refusal::Invalid(format!("metadata would have {more} pairs; {MAX_METADATA} are the most"))),
    }
}
