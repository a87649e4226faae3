//! The tools that answer in one round.

use std::sync::LazyLock;
use std::time::Duration;

use rmcp::model::{
    CallToolResult, ClientCapabilities, ContentBlock, CreateMessageRequestParams, ElicitRequestParams, JsonObject,
    LoggingLevel, LoggingMessageNotificationParam, ProgressNotificationParam, SamplingMessage, Tool,
};
use rmcp::service::{RequestContext, ServiceError};
use rmcp::{ErrorData, RoleServer};
use serde_json::{Value, json};

use crate::content::{IMAGE, SOUND, meant};
use crate::handler::{Change, Handler};
use crate::tasks::{text, word};

/// All of them, in the order in which they are listed.
pub(crate) static TOOLS: LazyLock<Vec<Tool>> =
    LazyLock::new(|| serde_json::from_str(include_str!("tools.json")).expect("the list of tools is well-formed"));

/// Between two notifications of one call, in the suite's words.
const PAUSE: Duration = Duration::from_millis(50);
/// The most calls of one session whose streams are closed at once.
const STREAMS: u64 = 64;
/// When a client should come back for an answer whose stream was closed.
const RETRY: Duration = Duration::from_millis(500);
/// After this long a client does not come back any more.
const GONE: Duration = Duration::from_secs(60);

type Called = Result<CallToolResult, ErrorData>;

impl Handler {
    /// Calls one; a name that is no tool is an error.
    pub(crate) async fn one_round(
        &self,
        name: &str,
        arguments: &JsonObject,
        context: &RequestContext<RoleServer>,
    ) -> Called {
        match name {
            "test_simple_text" => Ok(text("This is a simple text response for testing.")),
            "test_image_content" => Ok(content(json!([image()]))),
            "test_audio_content" => Ok(content(json!([{ "type": "audio", "data": SOUND, "mimeType": "audio/wav" }]))),
            "test_embedded_resource" => {
                let text = "This is an embedded resource content.";
                Ok(content(json!([embedded("test://embedded-resource", "text/plain", text)])))
            }
            "test_multiple_content_types" => {
                let words = json!({ "type": "text", "text": "Multiple content types test:" });
                let data = r#"{"test":"data","value":123}"#;
                let resource = embedded("test://mixed-content-resource", "application/json", data);
                Ok(content(json!([words, image(), resource])))
            }
            "test_error_handling" => Ok(CallToolResult::error(vec![ContentBlock::text(
                "This tool intentionally returns an error for testing",
            )])),
            "json_schema_2020_12_tool" => Ok(text(Value::Object(arguments.clone()).to_string())),
            "test_mirrored_header" => Ok(text(word(arguments, "region"))),
            "test_tool_with_logging" | "test_logging_tool" => self.logs(context).await,
            "test_tool_with_progress" => progress(context).await,
            "test_sampling" => sampling(word(arguments, "prompt"), context).await,
            "test_elicitation" => elicit(two_fields(word(arguments, "message")), context).await,
            "test_elicitation_sep1034_defaults" => elicit(defaults(), context).await,
            "test_elicitation_sep1330_enums" => elicit(enumerations(), context).await,
            "test_reconnection" => self.closes_its_stream(context).await,
            "test_missing_capability" => needs_sampling(context),
            "test_trigger_tool_change" => Ok(self.announces(Change::Tools)),
            "test_trigger_prompt_change" => Ok(self.announces(Change::Prompts)),
            _ => Err(ErrorData::invalid_params(format!("there is no tool {name}"), None)),
        }
    }

    async fn logs(&self, context: &RequestContext<RoleServer>) -> Called {
        for line in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
            if self.wants_logs(context, LoggingLevel::Info) {
                let line = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(line));
                context.peer.notify_logging_message(line).await.map_err(|error| gone(&error))?;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(text("logged"))
    }

    /// Ends the streams of the session's calls, this one's among them, and answers when the client has come back for
    /// the rest: an answer that was there before it would be lost.
    async fn closes_its_stream(&self, context: &RequestContext<RoleServer>) -> Called {
        let Some((session, returns)) = self.session(context).await else { return Ok(text("there is no session")) };
        for stream in 0..STREAMS {
            // Most of them are no streams, or have ended.
            let _none = session.close_sse_stream(stream, Some(RETRY)).await;
        }
        let came_back = tokio::time::timeout(GONE, returns.of_this_session()).await;
        came_back.map_err(|_late| ErrorData::internal_error("the client did not come back", None))?;
        Ok(text("the client came back"))
    }

    fn announces(&self, change: Change) -> CallToolResult {
        text(format!("{} listeners told", self.announce(change)))
    }
}

async fn progress(context: &RequestContext<RoleServer>) -> Called {
    for done in [0.0, 50.0, 100.0] {
        if let Some(token) = context.meta.get_progress_token() {
            let step = ProgressNotificationParam::new(token, done).with_total(100.0);
            context.peer.notify_progress(step).await.map_err(|error| gone(&error))?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(text("done"))
}

async fn sampling(prompt: &str, context: &RequestContext<RoleServer>) -> Called {
    let request = CreateMessageRequestParams::new(vec![SamplingMessage::user_text(prompt)], 100);
    let thought = context.peer.create_message(request).await;
    Ok(match thought {
        Ok(thought) => text(format!("LLM response: {}", json!(thought.message.content))),
        Err(error) => CallToolResult::error(vec![ContentBlock::text(error.to_string())]),
    })
}

async fn elicit(form: Value, context: &RequestContext<RoleServer>) -> Called {
    let asked = context.peer.create_elicitation(meant::<ElicitRequestParams>(form)).await;
    Ok(match asked {
        Ok(answer) => {
            let (action, content) = (json!(answer.action), json!(answer.content));
            text(format!("Elicitation completed: action={action}, content={content}"))
        }
        Err(error) => CallToolResult::error(vec![ContentBlock::text(error.to_string())]),
    })
}

fn needs_sampling(context: &RequestContext<RoleServer>) -> Called {
    if context.client_capabilities().is_some_and(|capabilities| capabilities.sampling.is_some()) {
        return Ok(text("the client declares sampling"));
    }
    let needed = ClientCapabilities::builder().enable_sampling().build();
    Err(ErrorData::missing_required_client_capability(needed))
}

fn gone(error: &ServiceError) -> ErrorData {
    ErrorData::internal_error(format!("the client is gone: {error}"), None)
}

fn content(content: Value) -> CallToolResult {
    CallToolResult::success(meant(content))
}

fn image() -> Value {
    json!({ "type": "image", "data": IMAGE, "mimeType": "image/png" })
}

fn embedded(uri: &str, kind: &str, text: &str) -> Value {
    json!({ "type": "resource", "resource": { "uri": uri, "mimeType": kind, "text": text } })
}

fn asks(message: &str, properties: Value, required: Value) -> Value {
    let schema = json!({ "type": "object", "properties": properties, "required": required });
    json!({ "mode": "form", "message": message, "requestedSchema": schema })
}

fn two_fields(message: &str) -> Value {
    let properties = json!({
        "username": { "type": "string", "description": "User's response" },
        "email": { "type": "string", "description": "User's email address" },
    });
    asks(message, properties, json!(["username", "email"]))
}

fn defaults() -> Value {
    let properties = json!({
        "name": { "type": "string", "default": "John Doe" },
        "age": { "type": "integer", "default": 30 },
        "score": { "type": "number", "default": 95.5 },
        "status": { "type": "string", "enum": ["active", "inactive", "pending"], "default": "active" },
        "verified": { "type": "boolean", "default": true },
    });
    asks("All of these have defaults", properties, json!([]))
}

fn enumerations() -> Value {
    let titled = json!([
        { "const": "value1", "title": "First" },
        { "const": "value2", "title": "Second" },
        { "const": "value3", "title": "Third" },
    ]);
    let plain = json!(["option1", "option2", "option3"]);
    let properties = json!({
        "untitledSingle": { "type": "string", "enum": plain },
        "titledSingle": { "type": "string", "oneOf": titled },
        "legacyEnum": {
            "type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": { "type": "array", "items": { "type": "string", "enum": plain } },
        "titledMulti": { "type": "array", "items": { "anyOf": titled } },
    });
    asks("Choose", properties, json!([]))
}
