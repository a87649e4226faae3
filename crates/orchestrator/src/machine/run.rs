//! The course of a turn.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use sortie_api::{Event, EventBody, ModelUsage, RetryStatus, SessionFailure, SessionStatus, StopReason};
use sortie_ids::EventId;

use super::{Ask, Asked, COMPACTIONS, Calling, Effect, Given, Machine, Phase, Stage, Step, Tool, Turn, Update, uses};
use crate::mcp::McpFailure;
use crate::model::ModelError;
use crate::transcript::Entry;

/// What a model request that a restart has cut is told of.
const CUT: &str = "the hub was stopped while the model answered; what it had said is lost, and it is asked again";

/// One step in the making.
pub(super) struct Run<'m, 'g> {
    pub(super) machine: &'m mut Machine,
    pub(super) given: Given<'g>,
    pub(super) step: Step,
    /// Whether a use of a tool has got an answer or a word.
    pub(super) touched: bool,
}

impl<'m, 'g> Run<'m, 'g> {
    pub(super) fn begin(machine: &'m mut Machine, given: Given<'g>) -> Self {
        let mut run = Self { machine, given, step: Step::default(), touched: false };
        run.count_time();
        run
    }

    pub(super) fn end(mut self) -> Step {
        let Machine { session, state, .. } = &mut *self.machine;
        let step = &mut self.step;
        step.store |= !(step.arrived.is_empty() && step.events.is_empty() && step.entries.is_empty());
        if step.store {
            session.updated_at = self.given.now;
        }
        session.stats.duration_seconds = seconds(state.newest.saturating_sub(session.created_at.as_microsecond()));
        self.step
    }

    pub(super) fn posted(&mut self, bodies: Vec<EventBody>) {
        let mut interrupts = Vec::new();
        for body in bodies {
            let id = (self.given.id)();
            let waits = matches!(
                body,
                EventBody::UserMessage { .. } | EventBody::SystemMessage { .. } | EventBody::UserInterrupt { .. }
            );
            let processed_at = if waits { None } else { Some(self.tick()) };
            let event = Event { id, processed_at, body };
            self.step.echoes.push(event.clone());
            if !waits {
                self.step.events.push(event.clone());
                self.take_answer(event);
            } else if matches!(event.body, EventBody::UserInterrupt { .. }) {
                self.step.arrived.push(event.clone());
                interrupts.push(event);
            } else {
                self.step.arrived.push(event.clone());
                self.machine.waiting.push_back(event);
            }
        }
        if !interrupts.is_empty() {
            self.interrupt(interrupts);
        }
        self.go_on();
    }

    /// Ends the turn, whatever it is at.
    fn interrupt(&mut self, interrupts: Vec<Event>) {
        for mut event in interrupts {
            event.processed_at = Some(self.tick());
            self.step.events.push(event);
        }
        let was_at_work = self.machine.is_at_work();
        if let Phase::Asking { span, .. } = self.machine.state.phase.clone() {
            self.end_request(span, true, ModelUsage::default());
        }
        if was_at_work {
            self.step.effects.push(Effect::Cancel);
        }
        self.machine.listing.clear();
        let was_blocked = !self.machine.state.uses.is_empty();
        self.close_all(uses::INTERRUPTED);
        self.machine.state.in_round = false;
        self.machine.state.owed = false;
        // A worker that died may be what it waited for.
        self.step.wake |= was_blocked;
        if was_at_work || was_blocked {
            self.rest(StopReason::EndTurn, None);
        }
    }

    pub(super) fn due(&mut self) {
        if matches!(self.machine.state.phase, Phase::Waiting { .. }) && !self.machine.halted {
            self.machine.state.phase = Phase::Ready;
            self.go_on();
        }
    }

    pub(super) fn recovered(&mut self) {
        match self.machine.state.phase.clone() {
            Phase::Over => {}
            Phase::Asking { span, .. } => self.cut(span),
            Phase::Waiting { until } => self.step.effects.push(Effect::Wait(time(until))),
            Phase::Listing => {
                self.machine.state.phase = Phase::Ready;
                self.go_on();
            }
            Phase::Rest | Phase::Ready => self.go_on(),
            Phase::Acting => {
                let begun = self.machine.state.uses.iter().filter(|open| open.stage == Stage::Calling);
                for id in begun.map(|open| open.id.clone()).collect::<Vec<_>>() {
                    self.close(&id, uses::MAY_HAVE_RUN);
                }
                self.go_on();
            }
        }
    }

    pub(super) fn stopping(&mut self) {
        self.machine.halted = true;
        match self.machine.state.phase.clone() {
            Phase::Asking { span, .. } => {
                self.step.effects.push(Effect::Cancel);
                self.cut(span);
            }
            Phase::Listing => {
                self.machine.listing.clear();
                self.machine.state.phase = Phase::Ready;
                self.step.store = true;
                self.step.effects.push(Effect::Cancel);
            }
            Phase::Waiting { .. } => self.step.effects.push(Effect::Cancel),
            Phase::Rest | Phase::Acting | Phase::Ready | Phase::Over => {}
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        let session = &mut self.machine.session;
        let title = update.title.filter(|title| *title != session.title);
        let metadata = update.metadata.filter(|metadata| *metadata != session.metadata);
        let agent = update.agent.filter(|agent| *agent != session.agent).map(Box::new);
        if title.is_none() && metadata.is_none() && agent.is_none() {
            return;
        }
        if let Some(title) = &title {
            session.title.clone_from(title);
        }
        if let Some(metadata) = &metadata {
            session.metadata.clone_from(metadata);
        }
        if let Some(agent) = &agent {
            session.agent.clone_from(agent);
            self.machine.listed.clear();
        }
        self.emit(EventBody::SessionUpdated { title, metadata, agent });
    }

    pub(super) fn archive(&mut self) {
        self.close_all(uses::ARCHIVED);
        self.take_waiting();
        let session_thread_id = self.machine.thread.clone();
        let agent_name = self.machine.session.agent.name.clone();
        self.emit(EventBody::ThreadStatusTerminated { session_thread_id, agent_name });
        self.emit(EventBody::SessionStatusTerminated {});
        self.machine.session.status = SessionStatus::Terminated;
        self.machine.session.archived_at = Some(self.given.now);
        self.machine.state.phase = Phase::Over;
        self.machine.state.counted = None;
    }

    /// Begins what is next, unless something runs that is waited for.
    pub(super) fn go_on(&mut self) {
        if !matches!(self.machine.state.phase, Phase::Rest | Phase::Acting | Phase::Ready) {
            return;
        }
        if !self.machine.state.uses.is_empty() {
            return self.act();
        }
        let limit = self.machine.limits.rounds;
        let state = &mut self.machine.state;
        if std::mem::take(&mut state.in_round) {
            state.turn.rounds += 1;
            state.owed = true;
        }
        if state.turn.rounds > limit {
            let message = format!("the turn has used tools {limit} times, which is the limit; send a message to go on");
            return self.exhausted("tool_use_limit_reached_error", message, Map::new());
        }
        if !self.machine.state.owed && self.machine.waiting.is_empty() {
            if self.machine.is_at_work() {
                self.rest(StopReason::EndTurn, None);
            }
            return;
        }
        self.start();
        if self.machine.halted {
            self.machine.state.phase = Phase::Ready;
            return;
        }
        self.take_waiting();
        let unknown = |name: &String| !self.machine.listed.contains(name) && !self.machine.failed.contains(name);
        let servers = self.machine.session.agent.mcp_servers.iter().filter(|server| unknown(&server.name));
        let servers: Vec<_> = servers.cloned().collect();
        if !servers.is_empty() {
            self.machine.listing = servers.iter().map(|server| server.name.clone()).collect();
            self.machine.state.phase = Phase::Listing;
            self.step.effects.push(Effect::List(servers));
        } else if self.machine.state.full {
            self.compact();
        } else {
            self.ask(Asked::Answer);
        }
    }

    /// Calls what may be called, or waits for clients.
    fn act(&mut self) {
        let Machine { state, limits, halted, .. } = &mut *self.machine;
        let calling = state.uses.iter().filter(|open| open.stage == Stage::Calling).count();
        let free = if *halted { 0 } else { limits.calls.saturating_sub(calling) };
        for open in state.uses.iter_mut().filter(|open| open.stage == Stage::Ready).take(free) {
            let Tool::Mcp { server, name } = &open.tool else { continue };
            open.stage = Stage::Calling;
            let (server, tool) = (server.clone(), name.clone());
            let call = Calling { tool_use: open.id.clone(), block: open.block.clone(), server, tool };
            self.step.effects.push(Effect::Call(call));
            self.step.store = true;
        }
        if state.uses.iter().any(|open| !open.stage.blocks()) {
            self.start();
            self.machine.state.phase = Phase::Acting;
        } else if self.machine.is_at_work() || self.touched {
            let uses = &self.machine.state.uses;
            self.step.wake |= uses.iter().any(|open| matches!(open.tool, Tool::Sandbox | Tool::Custom));
            let event_ids = uses.iter().map(|open| open.id.clone()).collect();
            self.rest(StopReason::RequiresAction { event_ids }, None);
        }
    }

    /// Has the conversation made shorter, or gives up.
    fn compact(&mut self) {
        let state = &self.machine.state;
        if state.turn.compactions >= COMPACTIONS || state.told == 0 {
            let message = "the conversation is too long for the model, and a summary does not make it short enough; \
                           begin a new session, or send shorter messages";
            return self.exhausted("compaction_limit_reached_error", message.to_owned(), Map::new());
        }
        let upto = if state.told > state.summary { state.told } else { state.entries };
        self.ask(Asked::Summary { upto, half: state.turn.compactions > 0 });
    }

    fn ask(&mut self, what: Asked) {
        let span = self.emit(EventBody::ModelRequestStart {});
        let (message, thinking) = ((self.given.id)(), (self.given.id)());
        let ask = Ask { what, message: message.clone(), thinking: thinking.clone() };
        self.step.effects.push(Effect::Ask(ask));
        self.machine.state.phase = Phase::Asking { span, message, thinking, what };
    }

    /// The session works from now on, if it did not.
    fn start(&mut self) {
        if self.machine.session.status == SessionStatus::Running {
            return;
        }
        self.machine.session.status = SessionStatus::Running;
        self.machine.state.counted = Some(self.now());
        self.machine.failed.clear();
        self.step.wake = true;
        self.emit(EventBody::SessionStatusRunning {});
        let session_thread_id = self.machine.thread.clone();
        let agent_name = self.machine.session.agent.name.clone();
        self.emit(EventBody::ThreadStatusRunning { session_thread_id, agent_name });
    }

    /// The session waits for a client from now on.
    pub(super) fn rest(&mut self, stop_reason: StopReason, stop_details: Option<Value>) {
        let Machine { session, state, thread, .. } = &mut *self.machine;
        if !matches!(stop_reason, StopReason::RequiresAction { .. }) {
            state.turn = Turn::default();
        }
        state.phase = Phase::Rest;
        state.counted = None;
        session.status = SessionStatus::Idle;
        let (session_thread_id, agent_name) = (thread.clone(), session.agent.name.clone());
        let usage = session.usage.clone();
        self.emit(EventBody::ThreadStatusIdle {
            session_thread_id,
            agent_name,
            stop_reason: stop_reason.clone(),
            stop_details: stop_details.clone(),
        });
        self.emit(EventBody::SessionUsage { usage, budget: None });
        self.emit(EventBody::SessionStatusIdle { stop_reason, stop_details });
    }

    /// Takes what waits into the transcript.
    fn take_waiting(&mut self) {
        while let Some(mut event) = self.machine.waiting.pop_front() {
            match &event.body {
                EventBody::UserMessage { content } => self.tell(Entry::User { content: content.clone() }),
                EventBody::SystemMessage { content } => self.tell(Entry::System { content: content.clone() }),
                _ => {}
            }
            event.processed_at = Some(self.tick());
            self.step.events.push(event);
            self.machine.state.owed = true;
        }
    }

    /// A request that was made got no answer and will be made again, or the turn ends.
    pub(super) fn unanswered(&mut self, error: ModelError) {
        let Phase::Asking { span, what, .. } = self.machine.state.phase.clone() else { return };
        self.end_request(span, true, ModelUsage::default());
        self.machine.state.phase = Phase::Ready;
        if error.too_long {
            self.machine.state.full = true;
            // A summary that is itself too long was one in vain.
            self.machine.state.turn.compactions += u32::from(what != Asked::Answer);
            return self.go_on();
        }
        let limits = self.machine.limits;
        let failed = self.machine.state.turn.failed;
        let wait = limits.wait.saturating_mul(1u32.checked_shl(failed).unwrap_or(u32::MAX)).min(limits.longest_wait);
        // Half of it by chance, so that sessions that failed together do not try again together.
        let wait = wait.mul_f64(0.5 + 0.5 * f64::from(self.given.random) / f64::from(u32::MAX));
        let wait = wait.max(error.retry_after.unwrap_or_default());
        if error.retryable && wait <= limits.longest_wait {
            self.again(error.kind, error.message, error.details, wait);
        } else {
            self.exhausted(error.kind, error.message, error.details);
        }
    }

    /// The request that this span tells of was cut by the end of the process.
    fn cut(&mut self, span: EventId) {
        self.end_request(span, true, ModelUsage::default());
        self.again("model_request_failed_error", CUT.to_owned(), Map::new(), Duration::ZERO);
    }

    fn again(&mut self, kind: &str, message: String, details: Map<String, Value>, wait: Duration) {
        self.machine.state.turn.failed += 1;
        if self.machine.state.turn.failed >= self.machine.limits.tries {
            return self.exhausted(kind, message, details);
        }
        self.error(kind, message, details, RetryStatus::Retrying);
        let Machine { session, state, thread, .. } = &mut *self.machine;
        session.status = SessionStatus::Rescheduling;
        state.counted = None;
        let (session_thread_id, agent_name) = (thread.clone(), session.agent.name.clone());
        self.emit(EventBody::ThreadStatusRescheduled { session_thread_id, agent_name });
        self.emit(EventBody::SessionStatusRescheduled {});
        let until = self.now().saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX));
        self.machine.state.phase = Phase::Waiting { until };
        if !self.machine.halted {
            self.step.effects.push(Effect::Wait(time(until)));
        }
    }

    /// The turn is dead. What waits is taken into the transcript, for the next turn to see.
    pub(super) fn exhausted(&mut self, kind: &str, message: String, details: Map<String, Value>) {
        self.error(kind, message, details, RetryStatus::Exhausted);
        self.take_waiting();
        self.machine.state.owed = false;
        self.rest(StopReason::RetriesExhausted, None);
    }

    pub(super) fn listed(&mut self, server: &str, failure: Option<McpFailure>) {
        if !self.machine.listing.remove(server) {
            return;
        }
        match failure {
            None => {
                self.machine.listed.insert(server.to_owned());
            }
            Some(failure) => {
                self.machine.failed.insert(server.to_owned());
                self.mcp_error(server, failure);
            }
        }
        if self.machine.listing.is_empty() && matches!(self.machine.state.phase, Phase::Listing) {
            self.machine.state.phase = Phase::Ready;
            self.go_on();
        }
    }

    pub(super) fn mcp_error(&mut self, server: &str, failure: McpFailure) {
        let mut details = failure.details;
        details.insert("mcp_server_name".to_owned(), server.into());
        if let Some(hop) = failure.hop {
            details.insert("hop".to_owned(), hop.as_str().into());
        }
        // It is asked again when the session next begins to work.
        self.error(failure.kind, failure.message, details, RetryStatus::Retrying);
    }

    fn error(&mut self, kind: &str, message: String, details: Map<String, Value>, retry_status: RetryStatus) {
        let error = SessionFailure { kind: kind.to_owned(), message, retry_status, details };
        self.emit(EventBody::SessionError { error });
    }

    pub(super) fn end_request(&mut self, span: EventId, is_error: bool, model_usage: ModelUsage) {
        self.emit(EventBody::ModelRequestEnd { model_request_start_id: span, is_error, model_usage });
    }

    pub(super) fn emit(&mut self, body: EventBody) -> EventId {
        let id = (self.given.id)();
        self.emit_as(id.clone(), body);
        id
    }

    pub(super) fn emit_as(&mut self, id: EventId, body: EventBody) {
        let processed_at = Some(self.tick());
        self.step.events.push(Event { id, processed_at, body });
    }

    /// Adds to the transcript.
    pub(super) fn tell(&mut self, entry: Entry) {
        let state = &mut self.machine.state;
        state.entries += 1;
        if !matches!(entry, Entry::User { .. } | Entry::System { .. }) {
            state.told = state.entries;
        }
        self.step.entries.push(entry);
    }

    /// The time of the next event: later than that of every other.
    fn tick(&mut self) -> Timestamp {
        let next = self.now().max(self.machine.state.newest.saturating_add(1));
        self.machine.state.newest = next;
        time(next)
    }

    fn now(&self) -> i64 {
        self.given.now.as_microsecond()
    }

    fn count_time(&mut self) {
        let now = self.now();
        if let Some(since) = self.machine.state.counted {
            self.machine.session.stats.active_seconds += seconds(now.saturating_sub(since));
            self.machine.state.counted = Some(now);
        }
    }
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or(Timestamp::MAX)
}

/// To the millisecond; no less than none.
#[expect(clippy::cast_precision_loss, reason = "a session lasts less than 2^53 ms")]
fn seconds(micros: i64) -> f64 {
    (micros.max(0) / 1000) as f64 / 1000.0
}
