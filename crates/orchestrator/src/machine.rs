//! What may happen next in a session. Knows no clock, no network, no store and no chance: times, ids and random numbers are
//! given to it.
//!
//! An [`Input`] makes one [`Step`]: events in their order, entries of the transcript, and [`Effect`]s. The shell stores the
//! step with [`Machine::state`] in one transaction, shows its events, and only then sets its effects going; what comes of
//! them is the next input. So the stored state says of everything that runs outside that it may have begun:
//! after a crash [`Input::Recovered`] begins anew what may be repeated, and ends the rest with a word about it.
//!
//! The rules of a turn:
//!
//! - The model is asked when there is something that it was not told: messages, or the answers to all its uses of tools.
//!   Whatever waits is taken into the transcript just before that.
//! - A use of a tool is answered once: by the client, by a server, by a person's refusal, or by an interrupt.
//! - The session is idle exactly when nothing runs and it is not about to try again; uses that wait for a client are named
//!   then.

mod answer;
mod run;
mod uses;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sortie_api::{Event, EventBody, McpServer, Metadata, Session, SessionAgent, SessionStatus};
use sortie_ids::{EventId, ThreadId};

use crate::mcp::{McpAnswer, McpFailure};
use crate::model::{ModelAnswer, ModelError};
use crate::prompt::Tool as Offered;
use crate::transcript::Entry;

pub(crate) use uses::is_closing;

/// The bounds of a session's turns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Rounds of tool uses in one turn; then it ends with `tool_use_limit_reached_error`.
    pub rounds: u32,
    /// Requests in a row that may fail before the turn ends with `retries_exhausted`.
    pub tries: u32,
    /// MCP calls of a session at once; others wait for their turn.
    pub calls: usize,
    /// The first wait before a request is made again; it doubles, with jitter.
    pub wait: Duration,
    /// The longest wait, also where the upstream asks for one: a longer one ends the turn.
    pub longest_wait: Duration,
    /// Answers in a row that end at their greatest length and are asked to go on.
    pub continuations: u32,
    /// Tokens that the model takes in at most.
    pub window: u64,
    /// How full of it, in percent, the conversation may become before it is summarised.
    pub full: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rounds: 1000,
            tries: 8,
            calls: 8,
            wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(300),
            continuations: 3,
            window: 200_000,
            full: 80,
        }
    }
}

/// How often in a row a conversation is summarised without becoming short enough.
const COMPACTIONS: u32 = 2;

/// What a step is given from outside.
pub struct Given<'g> {
    /// The time.
    pub now: Timestamp,
    /// A number at random, uniform in 0..=`u32::MAX`.
    pub random: u32,
    /// Makes a new id.
    pub id: &'g mut dyn FnMut() -> EventId,
}

/// What happened outside.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one at a time is looked at, and none is kept")]
pub enum Input {
    /// Clients sent events, in this order. Each has passed [`Machine::check`] together with those before it.
    Posted(Vec<EventBody>),
    /// The model answered. The tools that it names, as far as there are such.
    Answered(ModelAnswer, BTreeMap<String, Offered>),
    /// The model did not answer.
    Unanswered(ModelError),
    /// A server told its tools, or failed to.
    Listed {
        /// The agent's name for it.
        server: String,
        /// Why not.
        failure: Option<McpFailure>,
    },
    /// A call ended.
    Called {
        /// The tool use.
        tool_use: EventId,
        /// What came of it.
        result: Result<McpAnswer, McpFailure>,
    },
    /// The wait is over.
    Due,
    /// The session was read from the store, and what ran when its state was stored does not run any more.
    Recovered,
    /// The process is about to end: what can be repeated is ended, calls may finish, nothing new is begun.
    Stopping,
    /// The owner changes it.
    Update(Update),
    /// The owner ends it.
    Archive,
}

/// A change of a session by its owner, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Update {
    /// A new title, or none.
    pub title: Option<Option<String>>,
    /// The new metadata, all of it.
    pub metadata: Option<Metadata>,
    /// The new agent.
    pub agent: Option<SessionAgent>,
}

/// What is to be done outside, once the step is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask the model.
    Ask(Ask),
    /// Ask these servers for their tools.
    List(Vec<McpServer>),
    /// Call the MCP tool that this use names, once.
    Call(Calling),
    /// Drop whatever runs, and the wait.
    Cancel,
    /// Say so when this time has come.
    Wait(Timestamp),
}

/// A request to the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// What for.
    pub what: Asked,
    /// The id that the message in the answer will have.
    pub message: EventId,
    /// The id that its thinking will have.
    pub thinking: EventId,
}

/// A call of an MCP tool. Its input is in the transcript's newest answer, in the block with this id.
#[derive(Clone, Debug, PartialEq)]
pub struct Calling {
    /// The tool use.
    pub tool_use: EventId,
    /// The `id` of its block.
    pub block: String,
    /// The agent's name for the server.
    pub server: String,
    /// The tool's name there.
    pub tool: String,
}

/// What the model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Asked {
    /// To go on with the conversation.
    Answer,
    /// To summarise it.
    Summary {
        /// The number of entries, from the first, that are summarised.
        upto: u64,
        /// Whether the older half of these is left out, since the whole is too long even for that.
        half: bool,
    },
}

/// One step: what is stored and shown together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Step {
    /// Events of clients as they arrived, before they took effect. Those that are not in `events` wait.
    pub arrived: Vec<Event>,
    /// What took its place, in order.
    pub events: Vec<Event>,
    /// What is added to the transcript.
    pub entries: Vec<Entry>,
    /// What is to be done once all this is stored.
    pub effects: Vec<Effect>,
    /// Whether a worker is needed.
    pub wake: bool,
    /// Whether there is anything to store.
    pub store: bool,
    /// For [`Input::Posted`]: the answer to each event, in order.
    pub echoes: Vec<Event>,
}

/// Where a turn is: what is stored of a machine beside what is shown of its session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct State {
    phase: Phase,
    /// Uses of tools that have no answer yet; all of one answer of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    uses: Vec<Use>,
    /// Whether uses of tools were open when the transcript was added to last.
    #[serde(default)]
    in_round: bool,
    /// Whether there is something that the model was not told.
    #[serde(default)]
    owed: bool,
    /// Whether the conversation is to be summarised before the model is asked again.
    #[serde(default)]
    full: bool,
    #[serde(default)]
    turn: Turn,
    /// Entries in the transcript.
    #[serde(default)]
    entries: u64,
    /// Entries up to the newest that is not a message.
    #[serde(default)]
    told: u64,
    /// Entries up to and with the newest summary.
    #[serde(default)]
    summary: u64,
    /// The time of the newest event, in microseconds.
    #[serde(default)]
    newest: i64,
    /// Up to when the time at work is counted, in microseconds; none while it does not work.
    #[serde(default)]
    counted: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
enum Phase {
    /// Nothing runs: what waits, waits for a client.
    Rest,
    /// Servers are asked for their tools.
    Listing,
    /// The model is asked.
    Asking { span: EventId, message: EventId, thinking: EventId, what: Asked },
    /// MCP calls run, or wait for others to end.
    Acting,
    /// A request failed and is made again at this time, in microseconds.
    Waiting { until: i64 },
    /// At work, with nothing begun: the process was about to end.
    Ready,
    /// For ever.
    Over,
}

/// Counts within a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Turn {
    rounds: u32,
    /// Requests that failed, in a row.
    failed: u32,
    /// Summaries in a row that were not enough.
    compactions: u32,
    /// Answers in a row that were asked to go on.
    continued: u32,
}

/// A use of a tool that has no answer yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Use {
    /// Its event.
    id: EventId,
    /// The `id` of the model's block.
    block: String,
    tool: Tool,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tool {
    Sandbox,
    Custom,
    Mcp { server: String, name: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Stage {
    /// It needs a person's word.
    Ask,
    /// It needs a client's result.
    Open,
    /// It may be called.
    Ready,
    /// It is being called.
    Calling,
}

impl Stage {
    /// Whether a client has to do something.
    fn blocks(self) -> bool {
        matches!(self, Self::Ask | Self::Open)
    }
}

/// What becomes of an event that a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is new.
    New,
    /// It is about a tool use that does not wait for it: perhaps what it says was said before.
    Known(EventId),
}

/// Why an event is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The session is over.
    #[error("the session is terminated and takes no more events")]
    Terminated,
    /// It does not fit.
    #[error("{0}")]
    Invalid(String),
}

/// A session's machine.
#[derive(Clone, Debug)]
pub struct Machine {
    session: Session,
    thread: ThreadId,
    state: State,
    /// Messages that wait, in order.
    waiting: VecDeque<Event>,
    /// Servers whose tools are known since the session woke.
    listed: BTreeSet<String>,
    /// Servers that are being asked.
    listing: BTreeSet<String>,
    /// Servers that failed to tell them since the session began to work.
    failed: BTreeSet<String>,
    /// Whether nothing new is to be begun.
    halted: bool,
    limits: Limits,
}

impl Machine {
    /// A new session, as it is shown: idle, with nothing used.
    pub fn new(session: Session, thread: ThreadId, limits: Limits) -> Self {
        let state = State {
            phase: Phase::Rest,
            uses: Vec::new(),
            in_round: false,
            owed: false,
            full: false,
            turn: Turn::default(),
            entries: 0,
            told: 0,
            summary: 0,
            newest: session.created_at.as_microsecond(),
            counted: None,
        };
        Self::assemble(session, thread, state, VecDeque::new(), limits)
    }

    /// A session out of the store: as it is shown, its state, and its events that wait. Something may have run when that was
    /// stored: the next input is to be [`Input::Recovered`] if [`Machine::is_at_work`].
    ///
    /// # Errors
    /// The state is none.
    pub fn open(
        session: Session,
        thread: ThreadId,
        state: &str,
        waiting: Vec<Event>,
        limits: Limits,
    ) -> Result<Self, serde_json::Error> {
        Ok(Self::assemble(session, thread, serde_json::from_str(state)?, waiting.into(), limits))
    }

    fn assemble(session: Session, thread: ThreadId, state: State, waiting: VecDeque<Event>, limits: Limits) -> Self {
        let (listed, listing, failed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Self { session, thread, state, waiting, listed, listing, failed, halted: false, limits }
    }

    /// The session as it is shown.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// What [`Machine::open`] takes.
    pub fn state(&self) -> String {
        serde_json::to_string(&self.state).unwrap_or_default()
    }

    /// Whether something runs, or is to be tried again.
    pub fn is_at_work(&self) -> bool {
        matches!(self.session.status, SessionStatus::Running | SessionStatus::Rescheduling)
    }

    /// Entries in the transcript.
    pub fn entries(&self) -> u64 {
        self.state.entries
    }

    /// Whether no tool use waits for an answer: what comes next is another turn.
    pub fn is_between_turns(&self) -> bool {
        !self.is_at_work() && self.state.uses.is_empty()
    }

    /// Forgets which servers have told their tools: they are asked again before the model is.
    pub fn forget_servers(&mut self) {
        self.listed.clear();
    }

    /// Begins nothing any more: the process is about to end.
    pub fn halt(&mut self) {
        self.halted = true;
    }

    /// Judges events that come together, before they are taken. What it says of each one takes for granted that those
    /// before it are taken.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, bodies: &[EventBody]) -> Result<Vec<Fate>, NotTaken> {
        if matches!(self.state.phase, Phase::Over) {
            return Err(NotTaken::Terminated);
        }
        let mut uses: Vec<_> =
            self.state.uses.iter().map(|open| (open.id.clone(), open.stage, open.tool.clone())).collect();
        let mut fates = Vec::with_capacity(bodies.len());
        let mut last: Option<&EventBody> = None;
        for body in bodies {
            let fate = match body {
                EventBody::UserMessage { .. } => Fate::New,
                EventBody::UserInterrupt { session_thread_id: Some(thread) } if *thread != self.thread => {
                    return Err(NotTaken::Invalid(format!("the session has no thread {thread}")));
                }
                EventBody::UserInterrupt { .. } => Fate::New,
                EventBody::SystemMessage { .. } => {
                    let behind_message = matches!(last, Some(EventBody::UserMessage { .. }));
                    if behind_message && !uses.is_empty() && !self.is_at_work() {
                        let why =
                            "while the session waits for tool results a system.message may only follow one of them";
                        return Err(NotTaken::Invalid(why.to_owned()));
                    }
                    Fate::New
                }
                _ => uses::fate(body, &mut uses)?,
            };
            fates.push(fate);
            last = Some(body);
        }
        Ok(fates)
    }

    /// Whether the owner may change the agent or end the session now.
    ///
    /// # Errors
    /// Why not.
    pub fn check_rest(&self) -> Result<(), NotTaken> {
        match self.session.status {
            SessionStatus::Idle => Ok(()),
            SessionStatus::Terminated => Err(NotTaken::Terminated),
            SessionStatus::Running | SessionStatus::Rescheduling => {
                let why = "the session is running: send it a user.interrupt and wait until it is idle";
                Err(NotTaken::Invalid(why.to_owned()))
            }
        }
    }

    /// Takes what happened, and says what follows.
    pub fn step(&mut self, input: Input, given: Given<'_>) -> Step {
        let mut run = run::Run::begin(self, given);
        match input {
            Input::Posted(bodies) => run.posted(bodies),
            Input::Answered(answer, names) => run.answered(answer, &names),
            Input::Unanswered(error) => run.unanswered(error),
            Input::Listed { server, failure } => run.listed(&server, failure),
            Input::Called { tool_use, result } => run.called(&tool_use, result),
            Input::Due => run.due(),
            Input::Recovered => run.recovered(),
            Input::Stopping => run.stopping(),
            Input::Update(update) => run.update(update),
            Input::Archive => run.archive(),
        }
        run.end()
    }
}

/// A block of text.
fn text_block(text: impl Into<String>) -> Value {
    serde_json::json!({"type": "text", "text": text.into()})
}
