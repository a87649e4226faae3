//! An MCP server as careless as servers are: it believes every call, reads JSON as most readers do (the last of two equal
//! keys counts), and knows every tool. It writes down what it ran.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use crate::recorder::{Recorder, Request};

/// The server.
pub(crate) struct Server {
    pub(crate) recorder: Recorder,
    tools: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    /// One that lists the tools `read`, `delete` and `pay`.
    pub(crate) async fn start() -> Self {
        let tools = ["read", "delete", "pay"].map(|name| tool(name, &format!("The tool {name}.")));
        let tools = Arc::new(Mutex::new(tools.to_vec()));
        let (listed, sessions) = (tools.clone(), AtomicUsize::new(0));
        let answers = move |request: &Request| {
            let tools = listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            answer(request, &tools, &sessions)
        };
        Self { recorder: Recorder::answering(Arc::new(answers)).await, tools }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.recorder.addr)
    }

    /// What it lists from now on.
    pub(crate) fn lists(&self, tools: &[Value]) {
        *self.tools.lock().unwrap_or_else(PoisonError::into_inner) = tools.to_vec();
    }

    /// All messages that came, in order, elements of batches one by one.
    pub(crate) fn heard(&self) -> Vec<Value> {
        let bodies =
            self.recorder.requests().into_iter().filter_map(|request| serde_json::from_slice(&request.body).ok());
        bodies.flat_map(elements).collect()
    }

    /// The names of the tools that it was called with, in order.
    pub(crate) fn ran(&self) -> Vec<String> {
        let calls = self.heard().into_iter().filter(|message| message["method"] == "tools/call");
        calls.map(|call| call["params"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// A tool as a list has it.
pub(crate) fn tool(name: &str, description: &str) -> Value {
    json!({ "name": name, "description": description, "inputSchema": { "type": "object" } })
}

fn elements(body: Value) -> Vec<Value> {
    match body {
        Value::Array(messages) => messages.into_iter().flat_map(elements).collect(),
        message => vec![message],
    }
}

fn answer(request: &Request, tools: &[Value], sessions: &AtomicUsize) -> Vec<u8> {
    if !request.line.starts_with("POST ") {
        return said("405 Method Not Allowed", "", "");
    }
    let Ok(body) = serde_json::from_slice::<Value>(&request.body) else { return said("400 Bad Request", "", "") };
    let opens = body["method"] == "initialize";
    let batch = body.is_array();
    let mut answers: Vec<Value> = elements(body).iter().filter_map(|message| result(message, tools)).collect();
    if answers.is_empty() {
        return said("202 Accepted", "", "");
    }
    let text = if batch { Value::Array(answers).to_string() } else { answers.remove(0).to_string() };
    let session = if opens {
        format!("mcp-session-id: session-{}\r\n", sessions.fetch_add(1, Ordering::SeqCst))
    } else {
        String::new()
    };
    said("200 OK", &session, &text)
}

fn result(message: &Value, tools: &[Value]) -> Option<Value> {
    let id = message.get("id")?;
    let result = match message["method"].as_str()? {
        "initialize" => {
            json!({ "protocolVersion": message["params"]["protocolVersion"], "capabilities": { "tools": {} },
            "serverInfo": { "name": "careless", "version": "1" } })
        }
        "server/discover" => json!({ "supportedVersions": ["2026-07-28"], "capabilities": { "tools": {} },
            "serverInfo": { "name": "careless", "version": "1" }, "resultType": "complete" }),
        "tools/list" => json!({ "tools": tools, "resultType": "complete" }),
        "tools/call" => {
            let text = format!("ran {}", message["params"]["name"]);
            json!({ "content": [{ "type": "text", "text": text }], "isError": false, "resultType": "complete" })
        }
        _ => json!({ "resultType": "complete" }),
    };
    Some(json!({ "jsonrpc": "2.0", "id": id, "result": result }))
}

fn said(status: &str, more: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}content-length: {length}\r\n\r\n{body}")
        .into()
}
