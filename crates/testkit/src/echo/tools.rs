//! The tools and the other methods, the same for both eras and both transports.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::events::{Event, Events};
use super::session::Sessions;
use super::wire::{Era, INVALID_PARAMS, LEGACY_VERSIONS, METHOD_NOT_FOUND, Message, Reply};
use super::{LEGACY_VERSION, MODERN_VERSION};

/// The longest wait that a caller can ask a tool for.
const LONGEST: Duration = Duration::from_secs(3600);

/// What all requests share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) events: Arc<Events>,
    pub(super) sessions: Sessions,
}

/// Who asks and how.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) era: Era,
    /// The session; `None` in the modern era.
    pub(super) session: Option<String>,
    /// The request's headers as a JSON object; null on standard input.
    pub(super) headers: Value,
}

impl Server {
    /// Answers a request that is not worth a stream: all but the tools that wait.
    pub(super) fn answer(&self, message: &Message, caller: &Caller) -> Reply {
        let method = message.method.as_deref().unwrap_or_default();
        let result = match (method, caller.era) {
            ("initialize", Era::Legacy) => initialize(message),
            ("ping", Era::Legacy) => json!({}),
            ("logging/setLevel", Era::Legacy) => json!({}),
            ("server/discover", Era::Modern) => discover(),
            ("tools/list", _) => list(),
            ("tools/call", _) => return self.call(message, caller),
            _ => return Reply::error(METHOD_NOT_FOUND, format!("Method not found: {method}")),
        };
        Reply::Result(in_era(result, caller.era))
    }

    /// Writes down a call of a tool that waits, before anything else of its session is read, so that no cancel is missed.
    pub(super) fn begin(&self, message: &Message, caller: &Caller) -> CancellationToken {
        let id = message.id.clone().unwrap_or_default();
        caller.session.as_deref().map(|session| self.sessions.call(session, &id)).unwrap_or_default()
    }

    /// Runs a call that has begun. Notifications go to `out` while it runs. It ends early when the call is cancelled,
    /// then without a reply; an end by drop is a disconnect.
    pub(super) async fn wait(
        &self,
        message: &Message,
        caller: &Caller,
        cancel: CancellationToken,
        out: mpsc::Sender<Value>,
    ) -> Option<Reply> {
        let id = message.id.clone().unwrap_or_default();
        let mut call = Call { server: self, caller, tool: message.tool().to_owned(), id, ending: None };
        call.note("started");
        tokio::select! {
            () = run(message, out) => {
                call.ending = Some("finished");
                let text = format!("{} done", message.tool());
                Some(Reply::Result(in_era(content(&text, false), caller.era)))
            }
            () = cancel.cancelled() => {
                call.ending = Some("cancelled");
                None
            }
        }
    }

    fn call(&self, message: &Message, caller: &Caller) -> Reply {
        let session = caller.session.as_deref();
        let result = match message.tool() {
            "echo" => match message.text("text") {
                Some(text) => content(text, false),
                None => return Reply::error(INVALID_PARAMS, "echo needs the argument `text`"),
            },
            "announce" => {
                let text = message.text("text").unwrap_or_default();
                let params = json!({ "level": "info", "data": text });
                let note = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": params });
                let sent = session.is_some_and(|session| self.sessions.send(session, note));
                content(if sent { "announced" } else { "nobody listens" }, !sent)
            }
            "headers" => content(&caller.headers.to_string(), false),
            "log" => content(&json!(self.events.all()).to_string(), false),
            "fail" => content("this tool always fails", true),
            name => return Reply::error(INVALID_PARAMS, format!("Unknown tool: {name}")),
        };
        Reply::Result(in_era(result, caller.era))
    }
}

/// Whether a request is a call of a tool that waits, and so is answered with a stream.
pub(super) fn waits(message: &Message) -> bool {
    message.method.as_deref() == Some("tools/call") && matches!(message.tool(), "slow" | "progress")
}

/// A call under way; says on drop how it ended.
struct Call<'a> {
    server: &'a Server,
    caller: &'a Caller,
    tool: String,
    id: Value,
    ending: Option<&'static str>,
}

impl Call<'_> {
    fn note(&self, event: &str) {
        let session = self.caller.session.clone().filter(|session| !session.is_empty());
        let (tool, id) = (Some(self.tool.clone()), self.id.clone());
        self.server.events.add(Event { event: event.to_owned(), tool, id, session });
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(session) = &self.caller.session {
            self.server.sessions.done(session, &self.id);
        }
        // In the modern era the end of the stream is the cancel; in the legacy era it is not.
        let left = if self.caller.era == Era::Modern { "cancelled" } else { "disconnected" };
        self.note(self.ending.unwrap_or(left));
    }
}

async fn run(message: &Message, out: mpsc::Sender<Value>) {
    if message.tool() == "slow" {
        tokio::time::sleep(Duration::from_millis(message.number("ms").unwrap_or(1000)).min(LONGEST)).await;
        return;
    }
    let count = message.number("count").unwrap_or(4);
    let pause = Duration::from_millis(message.number("interval_ms").unwrap_or(100)).min(LONGEST);
    for step in 1..=count {
        tokio::time::sleep(pause).await;
        if let Some(token) = message.progress_token() {
            let params = json!({ "progressToken": token, "progress": step, "total": count });
            let note = json!({ "jsonrpc": "2.0", "method": "notifications/progress", "params": params });
            if out.send(note).await.is_err() {
                // The reader is gone and this future is about to be dropped with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

fn initialize(message: &Message) -> Value {
    let asked = message.params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let version = LEGACY_VERSIONS.iter().find(|version| **version == asked).unwrap_or(&LEGACY_VERSION);
    json!({ "protocolVersion": version, "capabilities": capabilities(), "serverInfo": server_info() })
}

fn discover() -> Value {
    json!({
        "supportedVersions": [MODERN_VERSION],
        "capabilities": { "tools": {} },
        "serverInfo": server_info(),
        "ttlMs": 60_000,
        "cacheScope": "public",
    })
}

fn list() -> Value {
    let number = json!({ "type": "integer", "minimum": 0 });
    let text = json!({ "type": "string" });
    let tool = |name: &str, description: &str, properties: Value, required: &[&str]| {
        let schema = json!({ "type": "object", "properties": properties, "required": required });
        json!({ "name": name, "description": description, "inputSchema": schema })
    };
    let tools = [
        tool("echo", "Answers with the text.", json!({ "text": text }), &["text"]),
        tool("slow", "Answers after so many milliseconds.", json!({ "ms": number }), &[]),
        tool("progress", "Reports progress, then answers.", json!({ "count": number, "interval_ms": number }), &[]),
        tool("announce", "Sends a message on the session's stream.", json!({ "text": text }), &[]),
        tool("headers", "Answers with the request's HTTP headers.", json!({}), &[]),
        tool("log", "Answers with what happened to the calls so far.", json!({}), &[]),
        tool("fail", "Always fails.", json!({}), &[]),
    ];
    json!({ "tools": tools, "ttlMs": 60_000, "cacheScope": "public" })
}

fn capabilities() -> Value {
    json!({ "tools": { "listChanged": false }, "logging": {} })
}

fn server_info() -> Value {
    json!({ "name": "mcp-echo", "version": env!("CARGO_PKG_VERSION") })
}

fn content(text: &str, is_error: bool) -> Value {
    json!({ "content": [{ "type": "text", "text": text }], "isError": is_error })
}

/// Modern results say that they are whole; legacy ones do not carry the caching hints.
fn in_era(mut result: Value, era: Era) -> Value {
    if let Some(fields) = result.as_object_mut() {
        match era {
            Era::Modern => {
                fields.insert("resultType".into(), json!("complete"));
            }
            Era::Legacy => {
                fields.remove("ttlMs");
                fields.remove("cacheScope");
            }
        }
    }
    result
}
