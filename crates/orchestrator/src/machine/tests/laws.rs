//! Whatever happens, in whatever order: the rules of [`World`] hold, and the turn comes to an end from everywhere.

use proptest::prelude::*;
use serde_json::Value;
use sortie_api::{EventBody, SessionStatus, StopReason, Verdict};
use std::time::Duration;

use super::world::{World, agent, answer, message, plain_agent, text, uses};
use crate::machine::{Input, Stage, Tool, Update};
use crate::mcp::{McpAnswer, McpFailure};
use crate::model::ModelError;

#[derive(Clone, Debug)]
enum Happens {
    Message,
    MessageAndSystem,
    Interrupt,
    InterruptAndMessage,
    Answer { tools: Vec<u8>, stop: u8, tokens: u64 },
    Fails { kind: u8 },
    Reply { which: usize, deny: bool },
    ReplyAndSystem { which: usize },
    Listed { fails: bool },
    CallEnds { which: usize, how: u8 },
    Due,
    Crash,
    Stop,
    Retitle,
    Refit,
    Archive,
    Pass { seconds: u64 },
}

const TOOLS: [&str; 10] = [
    "bash",
    "write",
    "edit",
    "pick",
    "mcp__files__a",
    "mcp__files__b",
    "mcp__mail__c",
    "mcp__mail__unknown",
    "web_search",
    "",
];
const STOPS: [&str; 7] =
    ["end_turn", "tool_use", "max_tokens", "refusal", "pause_turn", "model_context_window_exceeded", "other"];

fn happens() -> impl Strategy<Value = Happens> {
    let tools = prop::collection::vec(0..10u8, 0..4);
    prop_oneof![
        4 => Just(Happens::Message),
        1 => Just(Happens::MessageAndSystem),
        1 => Just(Happens::Interrupt),
        1 => Just(Happens::InterruptAndMessage),
        8 => (tools, 0..14u8, prop_oneof![9 => Just(10u64), 1 => Just(90_000)])
            .prop_map(|(tools, stop, tokens)| Happens::Answer { tools, stop, tokens }),
        2 => (0..4u8).prop_map(|kind| Happens::Fails { kind }),
        8 => (any::<usize>(), prop::bool::weighted(0.3)).prop_map(|(which, deny)| Happens::Reply { which, deny }),
        1 => any::<usize>().prop_map(|which| Happens::ReplyAndSystem { which }),
        5 => prop::bool::weighted(0.2).prop_map(|fails| Happens::Listed { fails }),
        5 => (any::<usize>(), 0..3u8).prop_map(|(which, how)| Happens::CallEnds { which, how }),
        3 => Just(Happens::Due),
        2 => Just(Happens::Crash),
        1 => Just(Happens::Stop),
        1 => Just(Happens::Retitle),
        1 => Just(Happens::Refit),
        1 => (0..300u64).prop_map(|seconds| Happens::Pass { seconds }),
        1 => prop::bool::weighted(0.1).prop_map(|ends| if ends { Happens::Archive } else { Happens::Due }),
    ]
}

fn failure() -> McpFailure {
    let (kind, message) = ("mcp_connection_failed_error", "the server is gone".to_owned());
    McpFailure { kind, message, hop: Some(sortie_api::Hop::Route), details: serde_json::Map::new() }
}

fn model_failure(kind: u8) -> ModelError {
    match kind {
        0 => ModelError::new("billing_error", "no money"),
        1 => ModelError { too_long: true, ..ModelError::new("model_request_failed_error", "too long") },
        2 => {
            let error = ModelError::passing("model_rate_limited_error", "too many");
            ModelError { retry_after: Some(Duration::from_secs(7)), ..error }
        }
        _ => ModelError::passing("model_overloaded_error", "too many here"),
    }
}

impl World {
    /// Lets it happen, where it can.
    fn let_happen(&mut self, what: Happens) {
        match what {
            Happens::Message => drop(self.post(vec![message("hello")])),
            Happens::MessageAndSystem => drop(self.post(vec![message("hello"), system()])),
            Happens::Interrupt => drop(self.post(vec![EventBody::UserInterrupt { session_thread_id: None }])),
            Happens::InterruptAndMessage => {
                drop(self.post(vec![EventBody::UserInterrupt { session_thread_id: None }, message("instead")]));
            }
            Happens::Answer { tools, stop, tokens } => {
                if self.outside.asked.is_some() {
                    let mut content = vec![text("so")];
                    content.extend(tools.iter().map(|tool| uses(TOOLS[usize::from(*tool)])));
                    let stop = STOPS.get(usize::from(stop)).copied().unwrap_or("end_turn");
                    let mut answer = answer(content, stop);
                    answer.usage.input_tokens = tokens;
                    self.answer(answer);
                }
            }
            Happens::Fails { kind } => {
                if self.outside.asked.take().is_some() {
                    self.step(Input::Unanswered(model_failure(kind)));
                }
            }
            Happens::Reply { which, deny } => self.reply(which, deny, false),
            Happens::ReplyAndSystem { which } => self.reply(which, false, true),
            Happens::Listed { fails } => {
                if let Some(server) = self.outside.listing.pop_first() {
                    self.step(Input::Listed { server, failure: fails.then(failure) });
                }
            }
            Happens::CallEnds { which, how } => {
                let calls: Vec<_> = self.outside.calls.iter().cloned().collect();
                if let Some(id) = calls.get(which % calls.len().max(1)) {
                    self.outside.calls.remove(id);
                    let content: Vec<Value> = vec![text("done")];
                    let result = if how == 2 { Err(failure()) } else { Ok(McpAnswer { content, is_error: how == 1 }) };
                    self.step(Input::Called { tool_use: id.clone(), result });
                }
            }
            Happens::Due => {
                if self.outside.due.is_some() {
                    self.due();
                }
            }
            Happens::Crash => self.crash(),
            Happens::Stop => {
                if !self.halted {
                    self.step(Input::Stopping);
                }
            }
            Happens::Retitle => {
                let title = Some(Some("another".to_owned()));
                self.step(Input::Update(Update { title, ..Update::default() }));
            }
            Happens::Refit => {
                if self.machine.check_rest().is_ok() {
                    let agent = if self.machine.session().agent == agent() { plain_agent() } else { agent() };
                    self.step(Input::Update(Update { agent: Some(agent), ..Update::default() }));
                }
            }
            Happens::Archive => {
                if self.machine.check_rest().is_ok() {
                    self.step(Input::Archive);
                }
            }
            Happens::Pass { seconds } => self.pass(Duration::from_secs(seconds)),
        }
    }

    /// A client answers one of the uses that wait for it.
    fn reply(&mut self, which: usize, deny: bool, with_system: bool) {
        let waiting: Vec<_> = self.machine.state.uses.iter().filter(|open| open.stage.blocks()).cloned().collect();
        let Some(open) = waiting.get(which % waiting.len().max(1)) else { return };
        let (id, content, is_error) = (open.id.clone(), Some(vec![text("here")]), None);
        let body = match (&open.tool, open.stage) {
            (_, Stage::Ask) => {
                let result = if deny { Verdict::Deny } else { Verdict::Allow };
                EventBody::UserToolConfirmation { tool_use_id: id, result, deny_message: None }
            }
            (Tool::Custom, _) => EventBody::UserCustomToolResult { custom_tool_use_id: id, content, is_error },
            _ => EventBody::UserToolResult { tool_use_id: id, content, is_error },
        };
        let mut bodies = vec![body];
        if with_system {
            bodies.push(system());
        }
        self.post(bodies).expect("taken");
    }

    /// Everything outside does its part from now on, and whoever is asked answers.
    fn play_out(&mut self) {
        for _ in 0..200 {
            if self.outside.asked.is_some() {
                self.answers(vec![text("that is all")], "end_turn");
            } else if !self.outside.listing.is_empty() {
                self.listed();
            } else if let Some(id) = self.outside.calls.first().cloned() {
                self.call_ends(&id);
            } else if self.outside.due.is_some() {
                self.due();
            } else if self.machine.state.uses.is_empty() {
                break;
            } else {
                self.reply(0, false, false);
            }
        }
        let status = self.machine.session().status;
        assert!(matches!(status, SessionStatus::Idle | SessionStatus::Terminated), "{status:?} {:?}", self.kinds());
        assert!(self.open().is_empty() && self.waiting.is_empty() && self.outside.is_quiet());
        let reason = self.reason();
        let waits = status == SessionStatus::Idle && matches!(reason, Some(StopReason::RequiresAction { .. }));
        assert!(!waits, "{reason:?}");
    }
}

fn system() -> EventBody {
    EventBody::SystemMessage { content: vec![text("be quick")] }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_course_is_lawful_and_ends(what in prop::collection::vec(happens(), 1..60), plain in any::<bool>()) {
        let mut world = World::new(if plain { plain_agent() } else { agent() });
        for what in what {
            world.let_happen(what);
            // From here a process that is killed goes on to an end.
            let mut killed = world.clone();
            killed.crash();
            killed.play_out();
        }
        if !world.halted {
            world.play_out();
        }
    }
}
