//! What the model answers.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sortie_api::{EventBody, StopReason};
use sortie_ids::EventId;

use super::run::Run;
use super::uses::Wish;
use super::{Asked, Phase, text_block};
use crate::model::ModelAnswer;
use crate::prompt::Tool as Offered;
use crate::transcript::Entry;

/// What the model is told when an answer has ended at its greatest length.
const GO_ON: &str = "Your answer ended at its greatest length. Go on exactly where it ended.";
/// The answer to a tool use that may have been cut.
const CUT_OFF: &str = "The answer ended at its greatest length within this tool use, so it was not carried out. Use the tool \
                       again, in smaller steps if need be.";
const NO_OBJECT: &str = "The input of this tool use is no JSON object, so it was not carried out.";

impl Run<'_, '_> {
    pub(super) fn answered(&mut self, answer: ModelAnswer, names: &BTreeMap<String, Offered>) {
        let Phase::Asking { span, message, thinking, what } = self.machine.state.phase.clone() else { return };
        self.machine.state.phase = Phase::Ready;
        self.machine.state.turn.failed = 0;
        self.count_usage(&answer);
        match what {
            Asked::Summary { upto, .. } => self.summarised(span, upto, &answer),
            Asked::Answer => self.heard(span, message, thinking, answer, names),
        }
    }

    fn heard(
        &mut self,
        span: EventId,
        message: EventId,
        thinking: EventId,
        answer: ModelAnswer,
        names: &BTreeMap<String, Offered>,
    ) {
        let ModelAnswer { content, stop_reason, stop_details, usage, .. } = answer;
        self.measure(
            usage.input_tokens
                + usage.cache_read_input_tokens
                + usage.cache_creation_input_tokens
                + usage.output_tokens,
        );
        if content.iter().any(|block| matches!(kind(block), "thinking" | "redacted_thinking")) {
            self.emit_as(thinking, EventBody::AgentThinking {});
        }
        let said: Vec<_> = content.iter().filter_map(text).map(text_block).collect();
        if !said.is_empty() {
            self.emit_as(message, EventBody::AgentMessage { content: said });
        }
        self.machine.state.owed = false;
        if stop_reason == "refusal" {
            // What was said belongs to no conversation that could go on.
            self.end_request(span, false, usage);
            self.rest(StopReason::Refusal, Some(refusal(stop_details)));
            return self.go_on();
        }
        let cut = matches!(stop_reason.as_str(), "max_tokens" | "model_context_window_exceeded");
        let (content, uses, wishes) = self.named(content, cut);
        let refused: Vec<_> = wishes.into_iter().filter_map(|(id, wish)| self.wish(id, wish, names)).collect();
        let (used, silent) = (!uses.is_empty(), content.is_empty());
        self.end_request(span, false, usage);
        if !silent {
            self.tell(Entry::Assistant { content, uses });
        }
        for refused in refused {
            self.refuse(refused);
        }
        let limits = self.machine.limits;
        let state = &mut self.machine.state;
        state.full |= stop_reason == "model_context_window_exceeded";
        state.in_round = used || stop_reason == "pause_turn";
        if cut && !used && !silent && state.turn.continued < limits.continuations {
            state.turn.continued += 1;
            state.owed = true;
            self.tell(Entry::User { content: vec![text_block(GO_ON)] });
        } else if !cut {
            state.turn.continued = 0;
        }
        self.go_on();
    }

    /// The blocks that are kept, with an id for each use of a tool, which is unique whatever the model says.
    #[expect(clippy::type_complexity, reason = "three lists of one pass")]
    fn named(
        &mut self,
        content: Vec<Value>,
        cut: bool,
    ) -> (Vec<Value>, BTreeMap<String, EventId>, Vec<(EventId, Wish)>) {
        let last = content.len().saturating_sub(1);
        let (mut uses, mut wishes) = (BTreeMap::new(), Vec::new());
        let mut kept = Vec::with_capacity(content.len());
        for (at, mut block) in content.into_iter().enumerate() {
            if kind(&block) == "text" && text(&block).is_none() {
                continue;
            }
            if kind(&block) == "tool_use" {
                let id = (self.given.id)();
                let name = format!("toolu_{}", id.as_str().trim_start_matches(EventId::PREFIX));
                let wish = wish(&mut block, &name, cut && at == last);
                uses.insert(name, id.clone());
                wishes.push((id, wish));
            }
            kept.push(block);
        }
        (kept, uses, wishes)
    }

    fn summarised(&mut self, span: EventId, upto: u64, answer: &ModelAnswer) {
        self.end_request(span, false, answer.usage.clone());
        self.machine.state.turn.compactions += 1;
        let summary: Vec<_> = answer.content.iter().filter_map(text).collect();
        if !summary.is_empty() && answer.stop_reason != "refusal" {
            self.tell(Entry::Summary { text: summary.join("\n\n"), upto });
            self.machine.state.summary = self.machine.state.entries;
            self.machine.state.full = false;
            self.emit(EventBody::AgentThreadContextCompacted {});
        }
        self.go_on();
    }

    /// Looks how full the model's window is.
    fn measure(&mut self, tokens: u64) {
        let limits = self.machine.limits;
        let state = &mut self.machine.state;
        state.full = tokens.saturating_mul(100) >= limits.window.saturating_mul(limits.full.into());
        if !state.full {
            state.turn.compactions = 0;
        }
    }

    fn count_usage(&mut self, answer: &ModelAnswer) {
        let (usage, total) = (&answer.usage, &mut self.machine.session.usage);
        let hour = answer.cached_for_an_hour.min(usage.cache_creation_input_tokens);
        total.input_tokens += usage.input_tokens;
        total.output_tokens += usage.output_tokens;
        total.cache_read_input_tokens += usage.cache_read_input_tokens;
        total.cache_creation.ephemeral_1h_input_tokens += hour;
        total.cache_creation.ephemeral_5m_input_tokens += usage.cache_creation_input_tokens - hour;
    }
}

fn kind(block: &Value) -> &str {
    block.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The text of a block of text, if there is any.
fn text(block: &Value) -> Option<&str> {
    if kind(block) != "text" {
        return None;
    }
    block.get("text").and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn wish(block: &mut Value, id: &str, cut: bool) -> Wish {
    let input = block.get("input").and_then(Value::as_object).cloned();
    let broken = match &input {
        _ if cut => Some(CUT_OFF),
        None => Some(NO_OBJECT),
        Some(_) => None,
    };
    let input = input.unwrap_or_default();
    let name = block.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(block) = block.as_object_mut() {
        block.insert("id".to_owned(), id.into());
        block.insert("name".to_owned(), name.as_str().into());
        block.insert("input".to_owned(), input.clone().into());
    }
    Wish { block: id.to_owned(), name, input, broken }
}

/// The details of a refusal, in the contract's form.
fn refusal(details: Option<Value>) -> Value {
    let part = |name: &str| details.as_ref().and_then(|details| details.get(name)).cloned().unwrap_or(Value::Null);
    json!({"type": "refusal", "category": part("category"), "explanation": part("explanation")})
}
