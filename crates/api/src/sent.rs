//! What clients send to sessions, and what of it is refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sortie_ids::EventId;

use crate::{ApiError, Event, EventBody, Verdict};

/// Events sent in one request at most.
const MAX_EVENTS: usize = 1000;
/// Events that a session begins with at most.
const MAX_INITIAL: usize = 50;
/// Blocks of content in one event at most.
const MAX_BLOCKS: usize = 1000;
/// Longest message beside a denial, in characters.
const MAX_DENY: usize = 10_000;

/// The body of a request that sends events.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct SendEvents {
    /// At least one and at most 1000 of `user.message`, `user.interrupt`, `user.tool_confirmation`, `user.tool_result`,
    /// `user.custom_tool_result`, `system.message`.
    pub events: Vec<Value>,
}

/// What was sent, as it was taken.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SentEvents {
    /// Each event with its id, and with the time at which it took effect, if it has.
    pub data: Vec<Event>,
}

impl SendEvents {
    /// The events, checked.
    ///
    /// # Errors
    /// 400, naming the event and its member.
    pub fn check(self) -> Result<Vec<EventBody>, ApiError> {
        if self.events.is_empty() || self.events.len() > MAX_EVENTS {
            return Err(ApiError::invalid_request(format!("events: must hold 1 to {MAX_EVENTS} events")));
        }
        let events = checked("events", self.events)?;
        accompanied(&events)?;
        Ok(events)
    }
}

/// The events that a session begins with, checked.
///
/// # Errors
/// 400, naming the event and its member.
pub fn initial_events(events: Vec<Value>) -> Result<Vec<EventBody>, ApiError> {
    if events.len() > MAX_INITIAL {
        return Err(ApiError::invalid_request(format!("initial_events: at most {MAX_INITIAL} events")));
    }
    let events = checked("initial_events", events)?;
    match events.iter().position(|event| !matches!(event, EventBody::UserMessage { .. })) {
        None => Ok(events),
        Some(at) => Err(ApiError::invalid_request(format!(
            "initial_events[{at}].type: a session begins with events of the type `user.message` only"
        ))),
    }
}

fn checked(member: &str, events: Vec<Value>) -> Result<Vec<EventBody>, ApiError> {
    let checked = events.into_iter().enumerate().map(|(at, event)| {
        event_of(event).map_err(|reason| {
            let dot = if reason.starts_with(':') { "" } else { "." };
            ApiError::invalid_request(format!("{member}[{at}]{dot}{reason}"))
        })
    });
    checked.collect()
}

/// A `system.message` goes with what stands before it, and nothing follows it.
fn accompanied(events: &[EventBody]) -> Result<(), ApiError> {
    let Some(at) = events.iter().position(|event| matches!(event, EventBody::SystemMessage { .. })) else {
        return Ok(());
    };
    let before = at.checked_sub(1).and_then(|before| events.get(before));
    let goes_with = matches!(
        before,
        Some(EventBody::UserMessage { .. } | EventBody::UserToolResult { .. } | EventBody::UserCustomToolResult { .. })
    );
    if goes_with && at.saturating_add(1) == events.len() {
        return Ok(());
    }
    Err(ApiError::invalid_request(format!(
        "events[{at}]: a `system.message` comes once, as the last event of a request, directly behind the \
         `user.message`, `user.tool_result` or `user.custom_tool_result` that it accompanies"
    )))
}

/// Members beside the type, as they are checked.
#[derive(Deserialize)]
struct Confirmation {
    tool_use_id: EventId,
    result: Verdict,
    #[serde(default)]
    deny_message: Option<String>,
}

type Refused = String;

fn event_of(event: Value) -> Result<EventBody, Refused> {
    let Value::Object(mut event) = event else { return Err(": must be an object".to_owned()) };
    let kind = match event.remove("type") {
        Some(Value::String(kind)) => kind,
        Some(_) => return Err("type: must be a string".to_owned()),
        None => return Err("type: is missing".to_owned()),
    };
    match kind.as_str() {
        "user.message" => {
            let content = content(&mut event, &["text", "image", "document"])?;
            Ok(EventBody::UserMessage { content: content.ok_or("content: is missing")? })
        }
        "system.message" => {
            let content = content(&mut event, &["text"])?;
            Ok(EventBody::SystemMessage { content: content.ok_or("content: is missing")? })
        }
        "user.interrupt" => Ok(EventBody::UserInterrupt { session_thread_id: id(&mut event, "session_thread_id")? }),
        "user.tool_confirmation" => {
            let Confirmation { tool_use_id, result, deny_message } =
                serde_json::from_value(Value::Object(event)).map_err(|error| format!(": {error}"))?;
            if deny_message.is_some() && result == Verdict::Allow {
                return Err("deny_message: goes with the result `deny` only".to_owned());
            }
            if deny_message.as_ref().is_some_and(|text| text.chars().count() > MAX_DENY) {
                return Err(format!("deny_message: at most {MAX_DENY} characters"));
            }
            Ok(EventBody::UserToolConfirmation { tool_use_id, result, deny_message })
        }
        "user.tool_result" => {
            let tool_use_id = id(&mut event, "tool_use_id")?.ok_or("tool_use_id: is missing")?;
            let (content, is_error) = result_of(&mut event)?;
            Ok(EventBody::UserToolResult { tool_use_id, content, is_error })
        }
        "user.custom_tool_result" => {
            let custom_tool_use_id = id(&mut event, "custom_tool_use_id")?.ok_or("custom_tool_use_id: is missing")?;
            let (content, is_error) = result_of(&mut event)?;
            Ok(EventBody::UserCustomToolResult { custom_tool_use_id, content, is_error })
        }
        "user.define_outcome" => {
            Err("type: `user.define_outcome` is not supported; say what is to be done in a `user.message`".to_owned())
        }
        other => Err(format!(
            "type: `{}` is not a type of event that clients send",
            other.chars().take(60).collect::<String>()
        )),
    }
}

fn id<T: std::str::FromStr>(event: &mut Map<String, Value>, member: &str) -> Result<Option<T>, Refused>
where
    T::Err: std::fmt::Display,
{
    match event.remove(member) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => text.parse().map(Some).map_err(|error| format!("{member}: {error}")),
        Some(_) => Err(format!("{member}: must be a string")),
    }
}

type ToolResult = (Option<Vec<Value>>, Option<bool>);

fn result_of(event: &mut Map<String, Value>) -> Result<ToolResult, Refused> {
    let is_error = match event.remove("is_error") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(is_error)) => Some(is_error),
        Some(_) => return Err("is_error: must be true or false".to_owned()),
    };
    Ok((content(event, &["text", "image", "document", "search_result"])?, is_error))
}

/// The blocks, each of one of these types.
fn content(event: &mut Map<String, Value>, kinds: &[&str]) -> Result<Option<Vec<Value>>, Refused> {
    let blocks = match event.remove("content") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(blocks)) => blocks,
        Some(_) => return Err("content: must be an array of content blocks".to_owned()),
    };
    // A tool may have nothing to say; whoever speaks has.
    let empty = blocks.is_empty() && !kinds.contains(&"search_result");
    if empty || blocks.len() > MAX_BLOCKS {
        return Err(format!("content: must hold 1 to {MAX_BLOCKS} content blocks"));
    }
    for (at, block) in blocks.iter().enumerate() {
        check_block(block, kinds).map_err(|reason| format!("content[{at}]{reason}"))?;
    }
    Ok(Some(blocks))
}

fn check_block(block: &Value, kinds: &[&str]) -> Result<(), Refused> {
    let kind = text_at(block, "type").ok_or(".type: is missing")?;
    if kind == "redacted" {
        return Err(": `redacted` blocks come from the server only; leave it out".to_owned());
    }
    if !kinds.contains(&kind) {
        let kind: String = kind.chars().take(60).collect();
        return Err(format!(".type: `{kind}` is not one of `{}` here", kinds.join("`, `")));
    }
    match kind {
        "text" => check_text(block),
        "image" => check_source(block, false),
        "document" => check_source(block, true),
        _ => check_search_result(block),
    }
}

fn check_text(block: &Value) -> Result<(), Refused> {
    match text_at(block, "text") {
        None => Err(".text: must be a string".to_owned()),
        Some("") => Err(".text: is empty; a text block has at least one character, so leave it out, or say \
                         something such as `(no output)`"
            .to_owned()),
        Some(_) => Ok(()),
    }
}

fn check_source(block: &Value, document: bool) -> Result<(), Refused> {
    let source = block.get("source").ok_or(".source: is missing")?;
    let needs = |members: &[&str]| match members.iter().find(|member| text_at(source, member).is_none_or(str::is_empty))
    {
        None => Ok(()),
        Some(member) => Err(format!(".source.{member}: must be a string that is not empty")),
    };
    match text_at(source, "type") {
        Some("base64") => needs(&["media_type", "data"]),
        Some("url") => needs(&["url"]),
        Some("text") if document => needs(&["media_type", "data"]),
        Some("file") => {
            Err(".source.type: there are no files here; send the content as `base64`, or a `url`".to_owned())
        }
        _ => Err(format!(".source.type: must be `base64`{} or `url`", if document { ", `text`" } else { "" })),
    }
}

fn check_search_result(block: &Value) -> Result<(), Refused> {
    if let Some(member) = ["source", "title"].iter().find(|member| text_at(block, member).is_none()) {
        return Err(format!(".{member}: must be a string"));
    }
    let content = block.get("content").and_then(Value::as_array).ok_or(".content: must be an array of text blocks")?;
    content.iter().enumerate().try_for_each(|(at, part)| {
        if text_at(part, "type") != Some("text") {
            return Err(format!(".content[{at}].type: must be `text`"));
        }
        check_text(part).map_err(|reason| format!(".content[{at}]{reason}"))
    })
}

fn text_at<'v>(value: &'v Value, member: &str) -> Option<&'v str> {
    value.get(member).and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sent(events: Value) -> Result<Vec<EventBody>, String> {
        let request: SendEvents = serde_json::from_value(json!({"events": events})).expect("request");
        request.check().map_err(|error| error.message)
    }

    #[test]
    fn every_type_that_clients_send_is_taken_as_it_is() {
        let image = json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}});
        let page = json!({"type": "document", "source": {"type": "url", "url": "https://example.com/a"}, "title": "A"});
        let plain = json!({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}});
        let found = json!({"type": "search_result", "source": "https://example.com", "title": "A",
            "content": [{"type": "text", "text": "a"}], "citations": {"enabled": true}});
        let text = json!({"type": "text", "text": "Hi."});
        let events = json!([
            {"type": "user.message", "content": [text, image, page, plain]},
            {"type": "user.interrupt"},
            {"type": "user.interrupt", "session_thread_id": "sthr_1"},
            {"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow"},
            {"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "deny", "deny_message": "No."},
            {"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_2"},
            {"type": "user.custom_tool_result", "custom_tool_use_id": "sevt_2", "content": []},
            {"type": "user.tool_result", "tool_use_id": "sevt_3", "is_error": true, "content": [text, found]},
            {"type": "system.message", "content": [text]},
        ]);
        let checked = sent(events.clone()).expect("taken");
        assert_eq!(serde_json::to_value(checked).expect("json"), events);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let text = json!([{"type": "text", "text": "Hi."}]);
        for (event, reason) in [
            (json!("x"), "events[0]: must be an object"),
            (json!({}), "events[0].type: is missing"),
            (json!({"type": "agent.message"}), "`agent.message` is not a type of event that clients send"),
            (json!({"type": "user.define_outcome"}), "`user.define_outcome` is not supported"),
            (json!({"type": "user.message"}), "events[0].content: is missing"),
            (json!({"type": "user.message", "content": "Hi."}), "content: must be an array"),
            (json!({"type": "user.message", "content": []}), "content: must hold 1 to"),
            (json!({"type": "user.message", "content": [{"type": "text", "text": ""}]}), "content[0].text: is empty"),
            (json!({"type": "user.message", "content": [{"type": "redacted"}]}), "`redacted` blocks come from"),
            (json!({"type": "user.message", "content": [{"type": "search_result"}]}), "`search_result` is not one of"),
            (json!({"type": "user.message", "content": [{"type": "image"}]}), "content[0].source: is missing"),
            (
                json!({"type": "user.message", "content": [{"type": "image", "source": {"type": "file"}}]}),
                "there are no files here",
            ),
            (
                json!({"type": "user.message", "content": [{"type": "image", "source": {"type": "url", "url": ""}}]}),
                "content[0].source.url: must be",
            ),
            (json!({"type": "user.tool_result", "content": text}), "tool_use_id: is missing"),
            (
                json!({"type": "user.tool_result", "tool_use_id": "toolu_1"}),
                "tool_use_id: `toolu_1` is not an event id",
            ),
            (
                json!({"type": "user.tool_result", "tool_use_id": "sevt_1", "content": [{"type": "text", "text": ""}]}),
                "(no output)",
            ),
            (json!({"type": "user.tool_result", "tool_use_id": "sevt_1", "is_error": "no"}), "is_error: must be"),
            (json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1"}), "missing field `result`"),
            (
                json!({"type": "user.tool_confirmation", "tool_use_id": "sevt_1", "result": "allow", "deny_message": ""}),
                "deny_message: goes with",
            ),
            (json!({"type": "system.message", "content": text}), "events[0]: a `system.message` comes once"),
        ] {
            let refused = sent(json!([event])).expect_err("refused");
            assert!(refused.starts_with("events[0]") && refused.contains(reason), "{event}: {refused}");
        }
        assert!(sent(json!([])).is_err());
    }

    #[test]
    fn sessions_begin_with_messages() {
        let message = json!({"type": "user.message", "content": [{"type": "text", "text": "Hi."}]});
        assert_eq!(initial_events(vec![message.clone(); 50]).map(|events| events.len()).map_err(drop), Ok(50));
        assert!(initial_events(vec![message; 51]).expect_err("many").message.contains("at most 50"));
        let refused = initial_events(vec![json!({"type": "user.interrupt"})]).expect_err("another type");
        assert!(refused.message.starts_with("initial_events[0].type: "), "{}", refused.message);
    }
}
