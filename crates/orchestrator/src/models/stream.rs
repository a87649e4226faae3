//! An answer of the Messages API, put together from its stream. Pure.

use serde_json::{Map, Value};
use sortie_api::ModelUsage;
use tokio::sync::mpsc::UnboundedSender;

use super::sse::NoEvents;
use crate::model::{Delta, ModelAnswer};

/// Largest answer, in bytes of the data of its events.
pub(super) const MAX_ANSWER: usize = 32 * 1024 * 1024;
/// Most blocks of an answer.
pub(super) const MAX_BLOCKS: usize = 4096;

/// Why a stream gives no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Broken {
    /// It ended before its end.
    #[error("its answer ended in the midst")]
    Cut,
    /// It is not what the Messages API has. Says what is wrong with it, and nothing of what was sent.
    #[error("its answer is no stream of the Messages API: {0}")]
    Garbage(&'static str),
    /// It is no stream of events.
    #[error("its answer is no stream of the Messages API: {0}")]
    NoEvents(#[from] NoEvents),
    /// It is larger than any answer.
    #[error("its answer has more than {MAX_ANSWER} bytes or {MAX_BLOCKS} blocks")]
    Large,
    /// The endpoint says that it failed.
    #[error("it failed in the midst of its answer")]
    Failed {
        /// The kind, as the Messages API has it.
        kind: String,
        /// Its words.
        message: String,
    },
}

/// An answer on its way.
#[derive(Debug, Default)]
pub(super) struct Answer {
    begun: bool,
    blocks: Vec<Map<String, Value>>,
    open: Option<Open>,
    /// Text blocks so far.
    texts: usize,
    /// Blocks whose input is no JSON.
    unfinished: Vec<usize>,
    bytes: usize,
    usage: ModelUsage,
    cached_for_an_hour: u64,
    stop_reason: Option<String>,
    stop_details: Option<Value>,
    ended: bool,
}

/// The block that is being sent.
#[derive(Debug)]
struct Open {
    text: String,
    /// A text block has a number among these.
    text_number: Option<usize>,
    thinking: String,
    signature: String,
    input: String,
}

impl Answer {
    /// Whether anything was said that counts, so that asking again would be asking twice.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether it is whole.
    pub(super) fn is_whole(&self) -> bool {
        self.ended
    }

    /// Takes the data of the next event. What is behind the end is passed over.
    ///
    /// # Errors
    /// See [`Broken`]; the stream is of no more use then.
    pub(super) fn take(&mut self, data: &str, deltas: &UnboundedSender<Delta>) -> Result<(), Broken> {
        if self.ended {
            return Ok(());
        }
        self.bytes += data.len();
        if self.bytes > MAX_ANSWER {
            return Err(Broken::Large);
        }
        let event: Map<String, Value> =
            serde_json::from_str(data).map_err(|_| Broken::Garbage("an event is no JSON object"))?;
        let kind = event.get("type").and_then(Value::as_str).ok_or(Broken::Garbage("an event has no type"))?;
        match kind {
            "error" => return Err(failed(&event)),
            "message_start" if self.begun => return Err(Broken::Garbage("it begins twice")),
            "message_start" => self.begin(&event)?,
            "content_block_start" | "content_block_delta" | "content_block_stop" | "message_delta" | "message_stop"
                if !self.begun =>
            {
                return Err(Broken::Garbage("it does not begin with message_start"));
            }
            "content_block_start" => self.open_block(event, deltas)?,
            "content_block_delta" => self.grow_block(&event, deltas)?,
            "content_block_stop" => self.close_block(&event)?,
            "message_delta" => self.note(&event)?,
            "message_stop" if self.open.is_some() => return Err(Broken::Garbage("it ends within a block")),
            "message_stop" => self.ended = true,
            // `ping`, and what is newer than this.
            _ => {}
        }
        Ok(())
    }

    /// The answer, when the stream has ended.
    ///
    /// # Errors
    /// See [`Broken`].
    pub(super) fn finish(mut self) -> Result<ModelAnswer, Broken> {
        if !self.ended {
            return Err(Broken::Cut);
        }
        let stop_reason = self.stop_reason.take().ok_or(Broken::Garbage("it has no stop_reason"))?;
        if !self.unfinished.is_empty() && stop_reason == "tool_use" {
            return Err(Broken::Garbage("the input of a tool is no JSON object"));
        }
        // The limit has cut the last input: such a use cannot be carried out.
        let unfinished = std::mem::take(&mut self.unfinished);
        let blocks = self.blocks.into_iter().enumerate().filter(|(number, _)| !unfinished.contains(number));
        Ok(ModelAnswer {
            content: blocks.map(|(_, block)| Value::Object(block)).collect(),
            stop_reason,
            stop_details: self.stop_details,
            usage: self.usage,
            cached_for_an_hour: self.cached_for_an_hour,
        })
    }

    fn begin(&mut self, event: &Map<String, Value>) -> Result<(), Broken> {
        let message = event.get("message").and_then(Value::as_object);
        let message = message.ok_or(Broken::Garbage("message_start has no message"))?;
        if message.get("role").and_then(Value::as_str) != Some("assistant") {
            return Err(Broken::Garbage("the message is not the assistant's"));
        }
        self.begun = true;
        self.count(message.get("usage"))
    }

    fn open_block(&mut self, mut event: Map<String, Value>, deltas: &UnboundedSender<Delta>) -> Result<(), Broken> {
        if self.open.is_some() || number(&event)? != self.blocks.len() {
            return Err(Broken::Garbage("blocks do not follow one another"));
        }
        if self.blocks.len() >= MAX_BLOCKS {
            return Err(Broken::Large);
        }
        let Some(Value::Object(block)) = event.remove("content_block") else {
            return Err(Broken::Garbage("a block has no content_block"));
        };
        let text = |name: &str| block.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = text("type");
        let text_number = (kind == "text").then_some(self.texts);
        self.texts += usize::from(text_number.is_some());
        if kind == "thinking" || kind == "redacted_thinking" {
            let _unwatched = deltas.send(Delta::Thinking);
        }
        if kind == "tool_use" && (text("id").is_empty() || text("name").is_empty()) {
            return Err(Broken::Garbage("a use of a tool has no id or name"));
        }
        let open = Open {
            text: text("text"),
            text_number,
            thinking: text("thinking"),
            signature: text("signature"),
            input: String::new(),
        };
        if let (Some(index), false) = (open.text_number, open.text.is_empty()) {
            let _unwatched = deltas.send(Delta::Text { index, text: open.text.clone() });
        }
        self.open = Some(open);
        self.blocks.push(block);
        Ok(())
    }

    fn grow_block(&mut self, event: &Map<String, Value>, deltas: &UnboundedSender<Delta>) -> Result<(), Broken> {
        let (open, block) = self.block(event)?;
        let delta = event.get("delta").and_then(Value::as_object).ok_or(Broken::Garbage("a delta is missing"))?;
        let text = |name: &str| delta.get(name).and_then(Value::as_str).ok_or(Broken::Garbage("a delta has no text"));
        match delta.get("type").and_then(Value::as_str) {
            Some("text_delta") => {
                let text = text("text")?;
                open.text.push_str(text);
                if let (Some(index), false) = (open.text_number, text.is_empty()) {
                    let _unwatched = deltas.send(Delta::Text { index, text: text.to_owned() });
                }
            }
            Some("input_json_delta") => open.input.push_str(text("partial_json")?),
            Some("thinking_delta") => open.thinking.push_str(text("thinking")?),
            Some("signature_delta") => text("signature")?.clone_into(&mut open.signature),
            Some("citations_delta") => {
                let citation = delta.get("citation").cloned().ok_or(Broken::Garbage("a citation is missing"))?;
                match block.get_mut("citations") {
                    Some(Value::Array(citations)) => citations.push(citation),
                    _ => drop(block.insert("citations".to_owned(), Value::Array(vec![citation]))),
                }
            }
            // Newer than this.
            _ => {}
        }
        Ok(())
    }

    fn close_block(&mut self, event: &Map<String, Value>) -> Result<(), Broken> {
        self.block(event)?;
        let (Some(open), Some(block)) = (self.open.take(), self.blocks.last_mut()) else { return Ok(()) };
        let mut put = |name: &str, text: String| {
            if !text.is_empty() || block.contains_key(name) {
                block.insert(name.to_owned(), Value::String(text));
            }
        };
        put("text", open.text);
        put("thinking", open.thinking);
        put("signature", open.signature);
        if !open.input.is_empty() {
            match serde_json::from_str::<Map<String, Value>>(&open.input) {
                Ok(input) => drop(block.insert("input".to_owned(), Value::Object(input))),
                Err(_) => self.unfinished.push(self.blocks.len().saturating_sub(1)),
            }
        } else if block.get("type").is_some_and(|kind| kind == "tool_use")
            && !block.get("input").is_some_and(Value::is_object)
        {
            block.insert("input".to_owned(), Value::Object(Map::new()));
        }
        Ok(())
    }

    /// The block that an event is about.
    fn block(&mut self, event: &Map<String, Value>) -> Result<(&mut Open, &mut Map<String, Value>), Broken> {
        let last = self.blocks.len().checked_sub(1);
        match (self.open.as_mut(), self.blocks.last_mut()) {
            (Some(open), Some(block)) if Some(number(event)?) == last => Ok((open, block)),
            _ => Err(Broken::Garbage("an event is about a block that is not open")),
        }
    }

    fn note(&mut self, event: &Map<String, Value>) -> Result<(), Broken> {
        if let Some(delta) = event.get("delta").and_then(Value::as_object) {
            if let Some(reason) = delta.get("stop_reason").and_then(Value::as_str) {
                self.stop_reason = Some(reason.to_owned());
            }
            if let Some(details) = delta.get("stop_details").filter(|details| !details.is_null()) {
                self.stop_details = Some(details.clone());
            }
        }
        self.count(event.get("usage"))
    }

    /// Figures are sums from the beginning: what comes later replaces what was there.
    fn count(&mut self, usage: Option<&Value>) -> Result<(), Broken> {
        let Some(usage) = usage else { return Ok(()) };
        let for_an_hour = usage.get("cache_creation").and_then(|created| created.get("ephemeral_1h_input_tokens"));
        for (figure, value) in [
            (&mut self.usage.input_tokens, usage.get("input_tokens")),
            (&mut self.usage.output_tokens, usage.get("output_tokens")),
            (&mut self.usage.cache_creation_input_tokens, usage.get("cache_creation_input_tokens")),
            (&mut self.usage.cache_read_input_tokens, usage.get("cache_read_input_tokens")),
            (&mut self.cached_for_an_hour, for_an_hour),
        ] {
            if let Some(value) = value.filter(|value| !value.is_null()) {
                *figure = value.as_u64().ok_or(Broken::Garbage("a figure of usage is no number"))?;
            }
        }
        Ok(())
    }
}

fn number(event: &Map<String, Value>) -> Result<usize, Broken> {
    let index = event.get("index").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
    index.ok_or(Broken::Garbage("an event has no index"))
}

fn failed(event: &Map<String, Value>) -> Broken {
    let said = |name: &str| {
        let error = event.get("error").and_then(|error| error.get(name)).and_then(Value::as_str);
        error.unwrap_or_default().to_owned()
    };
    Broken::Failed { kind: said("type"), message: said("message") }
}

#[cfg(test)]
mod tests;
