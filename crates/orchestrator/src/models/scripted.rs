//! The model that is built in and plays scripts: for trying everything out, and for tests, with no key and no network.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use sortie_api::ModelUsage;
use sortie_ids::{Digest, SessionId};
use tokio::sync::mpsc::UnboundedSender;

use super::script::{Fault, Script, Step, Text, Use, within};
use crate::model::{BILLING, Delta, ModelAnswer, ModelError, ModelRequest, OVERLOADED, RATE_LIMITED, REQUEST_FAILED};
use crate::prompt;

/// Its name; scripts of the settings make `scripted-NAME` models of it.
pub(super) const NAME: &str = "scripted";
/// What it says where there is no script.
pub(super) const NO_SCRIPT: &str = "This is the scripted model that is built into Sortie. It plays scripts, and found \
                                    none in this conversation. See docs/scripted-model.md.";
/// What it says when its script has ended.
pub(super) const AT_THE_END: &str = "This is the scripted model that is built into Sortie. Its script is at its end.";
/// Sessions whose faults are remembered; when there are more, all are forgotten, and their faults are played again.
const REMEMBERED: usize = 10_000;
/// Bytes that count as a token where a script does not say what was used.
const BYTES_PER_TOKEN: usize = 4;

/// Plays scripts.
#[derive(Debug, Default)]
pub(super) struct Scripted {
    /// Scripts of the settings, by their names; the one for conversations without a script has none.
    scripts: BTreeMap<String, Arc<str>>,
}

/// Which faults were played in which sessions.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<HashMap<SessionId, Played>>);

/// Faults that were played at one place of a session's script: the conversation does not show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Played {
    script: Digest,
    answered: u64,
    faults: u64,
}

impl Scripted {
    /// With these scripts of the settings.
    pub(super) fn new(scripts: BTreeMap<String, Arc<str>>) -> Self {
        Self { scripts }
    }

    /// Whether a model of this name is played here.
    pub(super) fn plays(&self, model: &str) -> bool {
        variant(model).is_some_and(|name| name.is_empty() || self.scripts.contains_key(name))
    }

    /// What an upstream would answer.
    pub(super) async fn ask(
        &self,
        faults: &Faults,
        request: &ModelRequest,
        deltas: &UnboundedSender<Delta>,
    ) -> Result<ModelAnswer, ModelError> {
        let scene = Scene::of(request);
        let Some((text, answered)) = self.script(request) else {
            return Ok(scene.plain(NO_SCRIPT, deltas));
        };
        let script = Script::parse(text).map_err(|why| {
            ModelError::new(REQUEST_FAILED, format!("the scripted model cannot read its script: {why}"))
        })?;
        let Some(step) = faults.step(&script, text, answered, &request.source.session) else {
            return Ok(scene.plain(AT_THE_END, deltas));
        };
        scene.play(step, deltas).await
    }

    /// The script of a conversation, and how many requests were answered since it was given: the newest one that somebody
    /// said, else that of the prompt, else that of the settings.
    fn script<'a>(&'a self, request: &'a ModelRequest) -> Option<(&'a str, u64)> {
        let mut answered = 0;
        for message in request.messages.iter().rev() {
            if message["role"] == "assistant" {
                answered += 1;
            } else if let Some(script) = texts(message).find_map(within) {
                return Some((script, answered));
            }
        }
        let own = variant(&request.model.id).and_then(|name| self.scripts.get(name)).map(|text| &**text);
        let script = request.system.as_deref().and_then(within).or(own)?;
        Some((script, answered))
    }
}

impl Faults {
    /// The step that is next, noted if it is one that the conversation will not show.
    fn step<'a>(&self, script: &'a Script, text: &str, answered: u64, session: &SessionId) -> Option<&'a Step> {
        let digest = Digest::of(text.as_bytes());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = |played: &&Played| played.script == digest && played.answered == answered;
        let faults = all.get(session).filter(here).map_or(0, |played| played.faults);
        let step = script.step(answered, faults)?;
        if Script::is_fault(step) {
            if all.len() >= REMEMBERED && !all.contains_key(session) {
                all.clear();
            }
            all.insert(session.clone(), Played { script: digest, answered, faults: faults + 1 });
        }
        Some(step)
    }
}

/// The name behind `scripted-`, empty for `scripted` itself; none for other models.
fn variant(model: &str) -> Option<&str> {
    match model.strip_prefix(NAME)? {
        "" => Some(""),
        rest => rest.strip_prefix('-').filter(|name| !name.is_empty()),
    }
}

/// The texts of a message that somebody said, or of one block of it.
fn texts(message: &Value) -> impl Iterator<Item = &str> {
    let whole = message["content"].as_str();
    let blocks = message["content"].as_array().into_iter().flatten();
    whole.into_iter().chain(blocks.filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str()))
}

/// What a step may refer to.
struct Scene<'a> {
    request: &'a ModelRequest,
}

impl<'a> Scene<'a> {
    fn of(request: &'a ModelRequest) -> Self {
        Self { request }
    }

    fn plain(&self, text: &str, deltas: &UnboundedSender<Delta>) -> ModelAnswer {
        let _unwatched = deltas.send(Delta::Text { index: 0, text: text.to_owned() });
        self.answer(&Step::default(), vec![json!({"type": "text", "text": text})])
    }

    async fn play(&self, step: &Step, deltas: &UnboundedSender<Delta>) -> Result<ModelAnswer, ModelError> {
        pause(step.wait_ms).await;
        let content = match &step.content {
            Some(blocks) => self.blocks(blocks, deltas),
            None => self.parts(step, deltas).await,
        };
        if let Some(fault) = step.error {
            return Err(failure(fault, step));
        }
        if step.cut {
            return Err(ModelError::passing(REQUEST_FAILED, "the scripted model ended the connection in its answer"));
        }
        if step.hang {
            std::future::pending::<()>().await;
        }
        Ok(self.answer(step, content))
    }

    /// The blocks of the answer as they are given.
    fn blocks(&self, blocks: &[Map<String, Value>], deltas: &UnboundedSender<Delta>) -> Vec<Value> {
        let content: Vec<Value> = blocks.iter().map(|block| self.filled_in(&Value::Object(block.clone()))).collect();
        let said = content.iter().filter_map(|block| block["text"].as_str());
        for (index, text) in said.enumerate() {
            let _unwatched = deltas.send(Delta::Text { index, text: text.to_owned() });
        }
        content
    }

    /// Thinking, text and uses of tools.
    async fn parts(&self, step: &Step, deltas: &UnboundedSender<Delta>) -> Vec<Value> {
        let mut content = Vec::new();
        if let Some(thinking) = &step.thinking {
            let _unwatched = deltas.send(Delta::Thinking);
            content.push(json!({"type": "thinking", "thinking": self.filled(thinking), "signature": "scripted"}));
            pause(step.pace_ms).await;
        }
        let mut whole = String::new();
        for (number, piece) in step.text.iter().flat_map(Text::pieces).enumerate() {
            if number > 0 {
                pause(step.pace_ms).await;
            }
            let text = self.filled(piece);
            whole.push_str(&text);
            let _unwatched = deltas.send(Delta::Text { index: 0, text });
        }
        if !whole.is_empty() {
            content.push(json!({"type": "text", "text": whole}));
        }
        content.extend(step.tools.iter().enumerate().map(|(number, tool)| self.tool_use(number, tool)));
        content
    }

    fn tool_use(&self, number: usize, tool: &Use) -> Value {
        let name = match &tool.server {
            Some(server) => prompt::mcp_name(server, &tool.name),
            None => tool.name.clone(),
        };
        let id = tool.id.clone().unwrap_or_else(|| self.made_up_id(number));
        let input = self.filled_in(&Value::Object(tool.input.clone()));
        json!({"type": "tool_use", "id": id, "name": name, "input": input})
    }

    /// The same for the same place of a conversation, another for each other place.
    fn made_up_id(&self, number: usize) -> String {
        let ModelRequest { messages, source, .. } = self.request;
        let last = messages.last().map(Value::to_string).unwrap_or_default();
        let place = format!("{}\n{}\n{number}\n{last}", source.session, messages.len());
        let digest: String = Digest::of(place.as_bytes()).to_string().chars().take(24).collect();
        format!("toolu_{digest}")
    }

    fn answer(&self, step: &Step, content: Vec<Value>) -> ModelAnswer {
        let uses = content.iter().any(|block| block["type"] == "tool_use");
        let by_default = if uses { "tool_use" } else { "end_turn" };
        let stop_reason = step.stop_reason.clone().unwrap_or_else(|| by_default.to_owned());
        let usage = step.usage.clone().unwrap_or_else(|| {
            let read: usize = self.request.messages.iter().map(bytes).sum();
            let read = read + self.request.system.as_ref().map_or(0, String::len);
            let written: usize = content.iter().map(bytes).sum();
            ModelUsage { input_tokens: tokens(read), output_tokens: tokens(written), ..ModelUsage::default() }
        });
        ModelAnswer { content, stop_reason, stop_details: step.stop_details.clone(), usage, cached_for_an_hour: 0 }
    }

    /// The same with every text filled in.
    fn filled_in(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.filled(text)),
            Value::Array(all) => all.iter().map(|value| self.filled_in(value)).collect(),
            Value::Object(all) => {
                Value::Object(all.iter().map(|(name, value)| (name.clone(), self.filled_in(value))).collect())
            }
            _ => value.clone(),
        }
    }

    /// A text with what `{{NAME}}` stands for. What stands for nothing stays.
    fn filled(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("{{") {
            let meant = behind.split_once("}}").and_then(|(name, after)| Some((self.meant(name.trim())?, after)));
            filled.push_str(before);
            match meant {
                Some((value, after)) => {
                    filled.push_str(&value);
                    rest = after;
                }
                None => {
                    filled.push_str("{{");
                    rest = behind;
                }
            }
        }
        filled + rest
    }

    fn meant(&self, name: &str) -> Option<String> {
        let results = || self.request.messages.last().map(results).unwrap_or_default();
        match name.split_once('.') {
            None if name == "result" => Some(results().join("\n")),
            Some(("result", number)) => results().into_iter().nth(number.parse().ok()?),
            None if name == "message" => Some(self.newest_message()),
            None if name == "tools" => {
                let names = self.request.tools.iter().filter_map(|tool| tool["name"].as_str());
                Some(names.collect::<Vec<_>>().join(" "))
            }
            _ => None,
        }
    }

    /// What was said last, scripts aside.
    fn newest_message(&self) -> String {
        let said = self.request.messages.iter().rev().filter(|message| message["role"] == "user");
        let mut said = said.map(|message| texts(message).filter(|text| within(text).is_none()).collect::<Vec<_>>());
        said.find(|texts| !texts.is_empty()).unwrap_or_default().join("\n")
    }
}

/// The texts of the results of tools in this message, one for each.
fn results(message: &Value) -> Vec<String> {
    let blocks = message["content"].as_array().into_iter().flatten();
    let results = blocks.filter(|block| block["type"] == "tool_result");
    results.map(|result| texts(result).collect::<Vec<_>>().join("\n")).collect()
}

fn failure(fault: Fault, step: &Step) -> ModelError {
    let (kind, retryable, said) = match fault {
        Fault::Overloaded => (OVERLOADED, true, "the scripted model plays to be overloaded"),
        Fault::RateLimited => (RATE_LIMITED, true, "the scripted model plays that its rate limit is reached"),
        Fault::RequestFailed => (REQUEST_FAILED, true, "the scripted model plays that the request failed"),
        Fault::Billing => (BILLING, false, "the scripted model plays that it wants to be paid"),
        Fault::TooLong => (REQUEST_FAILED, false, "the scripted model plays that the conversation is too long for it"),
    };
    ModelError {
        retryable: step.retryable.unwrap_or(retryable),
        retry_after: step.retry_after.map(Duration::from_secs_f64),
        too_long: fault == Fault::TooLong,
        ..ModelError::new(kind, step.message.as_deref().unwrap_or(said))
    }
}

async fn pause(milliseconds: u64) {
    if milliseconds > 0 {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
}

/// About the size of a value, without writing it.
fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(all) => all.iter().map(bytes).sum(),
        Value::Object(all) => all.iter().map(|(name, value)| name.len() + bytes(value)).sum(),
        _ => 1,
    }
}

fn tokens(bytes: usize) -> u64 {
    u64::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
