//! A client without a socket: one stateless tool call (protocol 2026-07-28) as an HTTP request to the service.

#![allow(dead_code, unreachable_pub, clippy::indexing_slicing)]

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use sortie_connectors::files::{FilesBody, FilesConfig, FilesLimits, FilesService, files};

/// The service over a directory, with the default limits.
pub fn serve(root: &std::path::Path) -> FilesService {
    files(FilesConfig { root: root.to_owned(), limits: FilesLimits::default() }).expect("the directory is there")
}

/// What a tool call came to.
#[derive(Debug)]
pub struct Outcome {
    pub is_error: bool,
    pub text: String,
    pub structured: Value,
}

/// Calls a tool.
pub async fn call(service: &FilesService, tool: &str, arguments: Value) -> Outcome {
    let answer =
        message(post(service, "tools/call", Some(tool), json!({"name": tool, "arguments": arguments})).await).await;
    let result = &answer["result"];
    assert!(result.is_object(), "no result: {answer}");
    let texts = result["content"].as_array().expect("content");
    Outcome {
        is_error: result["isError"].as_bool().unwrap_or(false),
        text: texts.iter().map(|c| c["text"].as_str().expect("text")).collect::<Vec<_>>().join("\n"),
        structured: result["structuredContent"].clone(),
    }
}

/// Calls a tool that must refuse, and gives the reason.
pub async fn refusal(service: &FilesService, tool: &str, arguments: Value) -> String {
    let outcome = call(service, tool, arguments.clone()).await;
    assert!(outcome.is_error, "{tool} {arguments} was not refused: {}", outcome.text);
    assert!(outcome.structured.is_null());
    outcome.text
}

/// Sends one request of the stateless era.
pub async fn post(service: &FilesService, method: &str, name: Option<&str>, mut params: Value) -> Response<FilesBody> {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    });
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}).to_string();
    let mut request = Request::post("/mcp")
        .header("host", "files.local")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", method);
    if let Some(name) = name {
        request = request.header("mcp-name", name);
    }
    service.call(request.body(Full::new(Bytes::from(body))).expect("a request")).await
}

/// The JSON-RPC message in an answer, be it JSON or a stream.
pub async fn message(answer: Response<FilesBody>) -> Value {
    assert_eq!(answer.status(), StatusCode::OK);
    let stream = answer.headers()["content-type"].to_str().expect("ascii").starts_with("text/event-stream");
    let body = answer.into_body().collect().await.expect("infallible").to_bytes();
    let text = std::str::from_utf8(&body).expect("UTF-8");
    if !stream {
        return serde_json::from_str(text).expect("JSON");
    }
    let data = text.lines().filter_map(|line| line.strip_prefix("data:")).find(|data| data.contains("jsonrpc"));
    serde_json::from_str(data.expect("a message in the stream")).expect("JSON")
}
