//! Everything around a machine, as simple as can be: what is stored, what runs, and the rules that hold after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use sortie_api::{
    Event, EventBody, ModelUsage, Session, SessionAgent, SessionStats, SessionStatus, StopReason, Usage, Verdict,
};
use sortie_ids::{EnvironmentId, EventId, SessionId, ThreadId};

use crate::machine::{Asked, Effect, Given, Input, Limits, Machine, NotTaken, Step};
use crate::mcp::{McpAnswer, McpTool};
use crate::model::ModelAnswer;
use crate::prompt::{self, Toolbox};
use crate::transcript::Entry;

pub(super) const LIMITS: Limits = Limits {
    rounds: 12,
    tries: 3,
    calls: 2,
    wait: Duration::from_secs(1),
    longest_wait: Duration::from_secs(60),
    continuations: 2,
    window: 100_000,
    full: 80,
};

/// What runs outside.
#[derive(Clone, Debug, Default)]
pub(super) struct Outside {
    pub(super) asked: Option<Asked>,
    pub(super) calls: BTreeSet<EventId>,
    pub(super) listing: BTreeSet<String>,
    pub(super) due: Option<Timestamp>,
}

impl Outside {
    pub(super) fn is_quiet(&self) -> bool {
        self.asked.is_none() && self.calls.is_empty() && self.listing.is_empty() && self.due.is_none()
    }
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) machine: Machine,
    pub(super) events: Vec<Event>,
    pub(super) waiting: Vec<Event>,
    pub(super) entries: Vec<Entry>,
    pub(super) outside: Outside,
    pub(super) halted: bool,
    /// Calls that were set going, ever.
    pub(super) begun: Vec<EventId>,
    pub(super) wakes: usize,
    /// What the model was told it has used.
    used: Usage,
    /// Clients' events in the order in which they came.
    sent: Vec<EventId>,
    /// Whether the model has paused, to be asked to speak again.
    paused: bool,
    now: i64,
    next: u64,
}

pub(super) fn agent() -> SessionAgent {
    let allow = json!({"type": "always_allow"});
    let ask = json!({"type": "always_ask"});
    let agent = json!({
        "type": "agent", "id": "agent_1", "version": 3, "name": "tester", "description": null, "system": "Be brief.",
        "model": {"id": "scripted"}, "skills": [], "multiagent": null,
        "mcp_servers": [
            {"type": "url", "name": "files", "url": "https://files.example/mcp"},
            {"type": "url", "name": "mail", "url": "https://mail.example/mcp"},
        ],
        "tools": [
            {"type": "agent_toolset_20260401", "default_config": {"enabled": true, "permission_policy": allow},
             "configs": [{"name": "write", "enabled": true, "permission_policy": ask},
                         {"name": "edit", "enabled": false, "permission_policy": allow}]},
            {"type": "mcp_toolset", "mcp_server_name": "files",
             "default_config": {"enabled": true, "permission_policy": allow}, "configs": []},
            {"type": "mcp_toolset", "mcp_server_name": "mail",
             "default_config": {"enabled": true, "permission_policy": ask}, "configs": []},
            {"type": "custom", "name": "pick", "description": "Pick one.", "input_schema": {"type": "object"}},
        ],
    });
    serde_json::from_value(agent).expect("agent")
}

/// An agent with nothing but a custom tool.
pub(super) fn plain_agent() -> SessionAgent {
    let mut plain = agent();
    plain.mcp_servers.clear();
    plain.tools.retain(|tool| matches!(tool, sortie_api::AgentTool::Custom { .. }));
    plain
}

pub(super) fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

pub(super) fn uses(name: &str) -> Value {
    json!({"type": "tool_use", "id": "toolu_1", "name": name, "input": {"of": name}})
}

pub(super) fn message(words: &str) -> EventBody {
    EventBody::UserMessage { content: vec![text(words)] }
}

pub(super) fn answer(content: Vec<Value>, stop_reason: &str) -> ModelAnswer {
    let usage =
        ModelUsage { input_tokens: 11, output_tokens: 7, cache_creation_input_tokens: 5, cache_read_input_tokens: 3 };
    let (stop_reason, stop_details) = (stop_reason.to_owned(), None);
    ModelAnswer { content, stop_reason, stop_details, usage, cached_for_an_hour: 2 }
}

impl World {
    pub(super) fn new(agent: SessionAgent) -> Self {
        let created_at = Timestamp::from_second(1_800_000_000).expect("time");
        let session = Session {
            id: "sesn_1".parse::<SessionId>().expect("id"),
            status: SessionStatus::Idle,
            agent,
            environment_id: "env_1".parse::<EnvironmentId>().expect("id"),
            title: None,
            metadata: BTreeMap::new(),
            resources: Vec::new(),
            vault_ids: Vec::new(),
            budget: None,
            usage: Usage::default(),
            stats: SessionStats::default(),
            outcome_evaluations: Vec::new(),
            deployment_id: None,
            created_at,
            updated_at: created_at,
            archived_at: None,
        };
        Self {
            machine: Machine::new(session, "sthr_1".parse::<ThreadId>().expect("id"), LIMITS),
            events: Vec::new(),
            waiting: Vec::new(),
            entries: Vec::new(),
            outside: Outside::default(),
            halted: false,
            begun: Vec::new(),
            wakes: 0,
            used: Usage::default(),
            sent: Vec::new(),
            paused: false,
            now: created_at.as_microsecond(),
            next: 0,
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += i64::try_from(time.as_micros()).expect("time");
    }

    /// What a client sends; the answers to it.
    pub(super) fn post(&mut self, bodies: Vec<EventBody>) -> Result<Vec<Event>, NotTaken> {
        let fates = self.machine.check(&bodies)?;
        assert!(fates.iter().all(|fate| *fate == crate::machine::Fate::New), "{fates:?}");
        let step = self.step(Input::Posted(bodies));
        Ok(step.echoes)
    }

    pub(super) fn say(&mut self, words: &str) {
        self.post(vec![message(words)]).expect("taken");
    }

    pub(super) fn interrupt(&mut self) {
        self.post(vec![EventBody::UserInterrupt { session_thread_id: None }]).expect("taken");
    }

    pub(super) fn result(&mut self, id: &EventId, words: &str) {
        let (content, is_error) = (Some(vec![text(words)]), None);
        let is_custom = self
            .events
            .iter()
            .any(|event| event.id == *id && matches!(event.body, EventBody::AgentCustomToolUse { .. }));
        let body = match is_custom {
            true => EventBody::UserCustomToolResult { custom_tool_use_id: id.clone(), content, is_error },
            false => EventBody::UserToolResult { tool_use_id: id.clone(), content, is_error },
        };
        self.post(vec![body]).expect("taken");
    }

    pub(super) fn confirm(&mut self, id: &EventId, result: Verdict) {
        let deny_message = (result == Verdict::Deny).then(|| "not today".to_owned());
        let body = EventBody::UserToolConfirmation { tool_use_id: id.clone(), result, deny_message };
        self.post(vec![body]).expect("taken");
    }

    /// The model answers.
    pub(super) fn answers(&mut self, content: Vec<Value>, stop_reason: &str) {
        self.answer(answer(content, stop_reason));
    }

    pub(super) fn answer(&mut self, answer: ModelAnswer) {
        assert!(self.outside.asked.take().is_some(), "the model was asked");
        self.paused = answer.stop_reason == "pause_turn";
        let usage = &answer.usage;
        self.used.input_tokens += usage.input_tokens;
        self.used.output_tokens += usage.output_tokens;
        self.used.cache_read_input_tokens += usage.cache_read_input_tokens;
        self.used.cache_creation.ephemeral_1h_input_tokens += answer.cached_for_an_hour;
        self.used.cache_creation.ephemeral_5m_input_tokens +=
            usage.cache_creation_input_tokens - answer.cached_for_an_hour;
        let toolbox = self.toolbox();
        let names = answer.content.iter().filter_map(|block| block["name"].as_str());
        let known = names.filter_map(|name| Some((name.to_owned(), toolbox.find(name)?.clone()))).collect();
        self.step(Input::Answered(answer, known));
    }

    /// Each server has the tools `a`, `b` and `c`.
    fn toolbox(&self) -> Toolbox {
        let tool = |name: &str| McpTool { name: name.to_owned(), description: None, input_schema: Map::new() };
        let tools: std::sync::Arc<[McpTool]> = ["a", "b", "c"].map(tool).into();
        let servers = self.machine.session().agent.mcp_servers.iter();
        Toolbox::new(
            &self.machine.session().agent,
            &servers.map(|server| (server.name.clone(), tools.clone())).collect(),
        )
    }

    pub(super) fn call_ends(&mut self, id: &EventId) {
        assert!(self.outside.calls.remove(id), "it was called");
        let result = Ok(McpAnswer { content: vec![text("done")], is_error: false });
        self.step(Input::Called { tool_use: id.clone(), result });
    }

    pub(super) fn listed(&mut self) {
        while let Some(server) = self.outside.listing.pop_first() {
            self.step(Input::Listed { server, failure: None });
        }
    }

    pub(super) fn due(&mut self) {
        let due = self.outside.due.take().expect("a wait");
        self.now = self.now.max(due.as_microsecond());
        self.step(Input::Due);
    }

    /// The process is killed, and another one takes up what is stored.
    pub(super) fn crash(&mut self) {
        let machine = &self.machine;
        self.machine = Machine::open(
            machine.session().clone(),
            "sthr_1".parse().expect("id"),
            &machine.state(),
            self.waiting.clone(),
            LIMITS,
        )
        .expect("what is stored can be read");
        self.outside = Outside::default();
        self.halted = false;
        if self.machine.is_at_work() {
            self.step(Input::Recovered);
        }
    }

    pub(super) fn step(&mut self, input: Input) -> Step {
        self.now += 1000;
        let (before, next) = (self.machine.clone(), &mut self.next);
        self.halted |= matches!(input, Input::Stopping);
        let mut id = || {
            *next += 1;
            format!("sevt_{:06}", *next).parse::<EventId>().expect("id")
        };
        let now = Timestamp::from_microsecond(self.now).expect("time");
        let step = self.machine.step(input, Given { now, random: 0, id: &mut id });
        self.keep(&before, &step);
        self.set_going(&step);
        self.hold();
        step
    }

    fn keep(&mut self, before: &Machine, step: &Step) {
        if !step.store {
            assert!(step.arrived.is_empty() && step.events.is_empty() && step.entries.is_empty(), "{step:?}");
            assert!(!step.wake, "a worker is woken by what is stored");
            let began = step.effects.iter().any(|effect| matches!(effect, Effect::Ask(_) | Effect::Call(_)));
            assert!(!began, "what is begun is stored before: {step:?} after {before:?}");
        }
        self.wakes += usize::from(step.wake);
        for event in &step.arrived {
            assert_eq!(event.processed_at, None);
            self.sent.push(event.id.clone());
            self.waiting.push(event.clone());
        }
        for event in &step.events {
            self.waiting.retain(|waiting| waiting.id != event.id);
            assert!(event.processed_at.is_some(), "{event:?}");
            assert!(self.events.iter().all(|other| other.id != event.id), "{event:?} twice");
            if let Some(last) = self.events.last() {
                assert!(last.processed_at < event.processed_at, "{last:?} then {event:?}");
            }
            self.events.push(event.clone());
        }
        self.entries.extend(step.entries.iter().cloned());
        assert_eq!(self.machine.entries(), self.entries.len() as u64);
    }

    fn set_going(&mut self, step: &Step) {
        for effect in &step.effects {
            match effect {
                Effect::Cancel => self.outside = Outside::default(),
                Effect::Ask(ask) => {
                    assert!(self.outside.is_quiet(), "the model is asked alone: {:?}", self.outside);
                    let told = match ask.what {
                        Asked::Answer => &self.entries[..],
                        Asked::Summary { upto, .. } => &self.entries[..usize::try_from(upto).expect("count")],
                    };
                    let messages = prompt::messages(told).expect("every use of a tool is answered");
                    let last = messages.last().expect("something is told");
                    let speaks_again = last["role"] == "assistant" && ask.what == Asked::Answer;
                    assert!(!speaks_again || self.paused, "{messages:?}");
                    self.outside.asked = Some(ask.what);
                }
                Effect::List(servers) => {
                    self.outside.listing = servers.iter().map(|server| server.name.clone()).collect();
                }
                Effect::Call(call) => {
                    assert!(!self.begun.contains(&call.tool_use), "{call:?} is made twice");
                    self.begun.push(call.tool_use.clone());
                    self.outside.calls.insert(call.tool_use.clone());
                }
                Effect::Wait(until) => self.outside.due = Some(*until),
            }
        }
        assert!(!(self.halted && (self.outside.asked.is_some() || self.outside.due.is_some())), "begun while stopping");
        assert!(self.outside.calls.len() <= LIMITS.calls);
    }

    /// Tool uses that have no answer, in order.
    pub(super) fn open(&self) -> Vec<EventId> {
        let answered = |id: &EventId| self.events.iter().filter(|event| is_end(&event.body, id)).count();
        let mut open = Vec::new();
        for event in &self.events {
            let body = &event.body;
            let used = matches!(
                body,
                EventBody::AgentToolUse { .. }
                    | EventBody::AgentMcpToolUse { .. }
                    | EventBody::AgentCustomToolUse { .. }
            );
            if used {
                match answered(&event.id) {
                    0 => open.push(event.id.clone()),
                    1 => {}
                    more => panic!("{event:?} has {more} answers"),
                }
            }
        }
        open
    }

    pub(super) fn reason(&self) -> Option<&StopReason> {
        self.events.iter().rev().find_map(|event| match &event.body {
            EventBody::SessionStatusIdle { stop_reason, .. } => Some(stop_reason),
            _ => None,
        })
    }

    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.events.iter().map(|event| event.body.kind()).collect()
    }

    /// The rules.
    fn hold(&self) {
        let session = self.machine.session();
        let open = self.open();
        // Idle exactly when nothing runs.
        match session.status {
            SessionStatus::Idle | SessionStatus::Terminated => assert!(self.outside.is_quiet(), "{:?}", self.outside),
            SessionStatus::Running => assert!(self.halted || !self.outside.is_quiet(), "{:?}", self.kinds()),
            SessionStatus::Rescheduling => assert!(self.halted || self.outside.due.is_some()),
        }
        // What it waits for is named.
        if session.status == SessionStatus::Idle {
            match self.reason() {
                Some(StopReason::RequiresAction { event_ids }) => assert_eq!(*event_ids, open, "{:?}", self.kinds()),
                _ => assert_eq!(open, [], "{:?}", self.kinds()),
            }
            if open.is_empty() {
                assert_eq!(self.waiting, [], "messages wait for nothing");
            }
        }
        if session.status == SessionStatus::Terminated {
            assert!(open.is_empty() && self.waiting.is_empty());
        }
        self.hold_order(session.status);
        assert_eq!(session.usage, self.used);
        // Messages take their places in the order in which they came.
        let placed: Vec<_> = self.events.iter().map(|event| &event.id).filter(|id| self.is_message(id)).collect();
        assert!(placed.is_sorted_by_key(|id| self.sent.iter().position(|sent| sent == *id)), "{placed:?}");
        // What is stored is all there is.
        let read = Machine::open(
            session.clone(),
            "sthr_1".parse().expect("id"),
            &self.machine.state(),
            self.waiting.clone(),
            LIMITS,
        );
        assert_eq!(read.expect("it can be read").state(), self.machine.state());
    }

    fn is_message(&self, id: &EventId) -> bool {
        let message =
            |event: &Event| matches!(event.body, EventBody::UserMessage { .. } | EventBody::SystemMessage { .. });
        self.events.iter().any(|event| event.id == *id && message(event))
    }

    fn hold_order(&self, now: SessionStatus) {
        let mut status = SessionStatus::Idle;
        let mut thread = SessionStatus::Idle;
        let mut span = None;
        let mut usage = ModelUsage::default();
        for (at, event) in self.events.iter().enumerate() {
            match &event.body {
                EventBody::SessionStatusRunning {} => {
                    assert_ne!(status, SessionStatus::Running, "{:?}", self.kinds());
                    status = SessionStatus::Running;
                }
                EventBody::ThreadStatusRunning { .. } => thread = SessionStatus::Running,
                EventBody::ThreadStatusIdle { .. } => thread = SessionStatus::Idle,
                EventBody::SessionStatusIdle { .. } => {
                    status = SessionStatus::Idle;
                    assert_eq!(thread, status);
                    assert!(matches!(self.events[at - 1].body, EventBody::SessionUsage { .. }), "usage comes before");
                    assert_eq!(span, None, "no request is open");
                }
                EventBody::SessionStatusRescheduled {} => {
                    assert_eq!(status, SessionStatus::Running);
                    status = SessionStatus::Rescheduling;
                }
                EventBody::SessionStatusTerminated {} => status = SessionStatus::Terminated,
                EventBody::ModelRequestStart {} => {
                    assert_eq!((status, span.replace(&event.id)), (SessionStatus::Running, None));
                }
                EventBody::ModelRequestEnd { model_request_start_id, model_usage, .. } => {
                    assert_eq!(span.take(), Some(model_request_start_id));
                    usage.input_tokens += model_usage.input_tokens;
                    usage.output_tokens += model_usage.output_tokens;
                }
                _ => {}
            }
        }
        assert_eq!(status, now, "what is shown is what was said");
        assert_eq!((usage.input_tokens, usage.output_tokens), (self.used.input_tokens, self.used.output_tokens));
    }
}

/// Whether this is the one answer to the tool use.
fn is_end(body: &EventBody, id: &EventId) -> bool {
    let is_word = matches!(body, EventBody::UserToolConfirmation { result: Verdict::Allow, .. });
    !is_word && body.answers() == Some(id)
}
