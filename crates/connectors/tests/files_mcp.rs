//! The `files` connector as an MCP server: both protocol eras on one path, without a socket.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{call, message, post, refusal, serve};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use sortie_connectors::files::{FilesBody, FilesConfig, FilesLimits, FilesService, files, service_info};

fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("docs")).expect("mkdir");
    std::fs::write(dir.path().join("docs/a.md"), "# Title\nfirst needle\nsecond Needle\n").expect("write");
    std::fs::write(dir.path().join("b.txt"), "needle\r\n").expect("write");
    std::fs::write(dir.path().join(".gitignore"), "*").expect("write");
    dir
}

async fn legacy(service: &FilesService, session: Option<&str>, body: Value) -> Response<FilesBody> {
    let mut request = Request::post("/mcp")
        .header("host", "files.sortie.example")
        .header("origin", "https://agent.example")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    if let Some(session) = session {
        request = request.header("mcp-session-id", session).header("mcp-protocol-version", "2025-11-25");
    }
    service.call(request.body(Full::new(Bytes::from(body.to_string()))).expect("a request")).await
}

fn initialize() -> Value {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}})
}

/// The first message of a session's stream, which may stay open.
async fn first_message(answer: Response<FilesBody>) -> Value {
    assert_eq!(answer.status(), StatusCode::OK);
    let (mut body, mut text) = (answer.into_body(), String::new());
    loop {
        let frame = body.frame().await.expect("a message before the end").expect("infallible");
        text.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("UTF-8"));
        let data = text.lines().filter_map(|line| line.strip_prefix("data:")).find(|data| data.contains("jsonrpc"));
        if let Some(data) = data {
            return serde_json::from_str(data).expect("JSON");
        }
    }
}

#[tokio::test]
async fn stateless_requests_need_no_session() {
    let dir = directory();
    let service = serve(dir.path());
    let discovered = message(post(&service, "server/discover", None, json!({})).await).await;
    assert!(discovered["result"]["supportedVersions"].to_string().contains("2026-07-28"), "{discovered}");
    assert_eq!(discovered["id"], 7);

    let answer = post(&service, "tools/list", None, json!({})).await;
    assert!(!answer.headers().contains_key("mcp-session-id"));
    let listed = message(answer).await;
    let tools = listed["result"]["tools"].as_array().expect("tools").clone();
    let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().expect("name")).collect();
    assert_eq!(names, service_info().1);
    for tool in &tools {
        assert_eq!(tool["annotations"]["readOnlyHint"], true);
        assert_eq!(tool["annotations"]["destructiveHint"], false);
        assert_eq!(tool["inputSchema"]["type"], "object");
        assert_eq!(tool["inputSchema"]["additionalProperties"], false);
        assert_eq!(tool["outputSchema"]["type"], "object");
        assert!(tool["description"].as_str().expect("text").len() > 60);
    }
    assert_eq!(listed["result"]["cacheScope"], "public");
}

#[tokio::test]
async fn sessions_of_the_older_era_work_and_end() {
    let dir = directory();
    let service = serve(dir.path());
    let opened = legacy(&service, None, initialize()).await;
    let session = opened.headers()["mcp-session-id"].to_str().expect("ascii").to_owned();
    let info = first_message(opened).await;
    assert_eq!(info["result"]["protocolVersion"], "2025-11-25");
    assert_eq!(info["result"]["serverInfo"]["name"], service_info().0);

    let accepted =
        legacy(&service, Some(&session), json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await;
    assert_eq!(accepted.status(), StatusCode::ACCEPTED);
    let called = json!({"jsonrpc": "2.0", "id": "x-1", "method": "tools/call",
        "params": {"name": "read", "arguments": {"path": "b.txt"}}});
    let answer = first_message(legacy(&service, Some(&session), called.clone()).await).await;
    assert_eq!(answer["id"], "x-1");
    assert_eq!(answer["result"]["content"][0]["text"], "needle\r\n");

    let end = Request::delete("/mcp").header("host", "files.local").header("mcp-session-id", &session);
    let ended = service.call(end.body(Full::<Bytes>::default()).expect("a request")).await;
    assert_eq!(ended.status(), StatusCode::OK, "official clients report 202 as a failure");
    // 404 is what makes a client of this era start again.
    assert_eq!(legacy(&service, Some(&session), called).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn sessions_are_bounded_and_stateless_requests_go_on() {
    let dir = directory();
    let limits = FilesLimits { sessions: 2, ..FilesLimits::default() };
    let service = files(FilesConfig { root: dir.path().to_owned(), limits }).expect("service");
    for _ in 0..2 {
        assert_eq!(legacy(&service, None, initialize()).await.status(), StatusCode::OK);
    }
    let refused = legacy(&service, None, initialize()).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(!call(&service, "list", json!({})).await.is_error);
}

#[tokio::test]
async fn sessions_end_with_the_service() {
    let dir = directory();
    let service = serve(dir.path());
    let opened = legacy(&service, None, initialize()).await;
    let session = opened.headers()["mcp-session-id"].to_str().expect("ascii").to_owned();
    first_message(opened).await;
    let get = Request::get("/mcp").header("mcp-session-id", session).header("accept", "text/event-stream");
    let stream = service.call(get.body(Full::<Bytes>::default()).expect("a request")).await;
    assert_eq!(stream.status(), StatusCode::OK);
    drop(service);
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.into_body().collect()).await;
    assert!(ended.is_ok(), "the stream outlived the service");
}

#[tokio::test]
async fn other_paths_methods_and_names_are_refused() {
    let dir = directory();
    let service = serve(dir.path());
    for (method, path, status) in
        [("POST", "/", 404), ("GET", "/mcp/", 404), ("PUT", "/mcp", 405), ("POST", "/mcp/../x", 404)]
    {
        let request = Request::builder().method(method).uri(path).body(Full::<Bytes>::default()).expect("a request");
        assert_eq!(service.call(request).await.status().as_u16(), status, "{method} {path}");
    }
    let unknown = post(&service, "tools/call", Some("rm"), json!({"name": "rm", "arguments": {}})).await;
    let body = unknown.into_body().collect().await.expect("infallible").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("-32602"), "{body:?}");
    for body in ["", "{", "[]", "null", "\u{0}", &"[".repeat(10_000)] {
        let request = Request::post("/mcp")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(Full::new(Bytes::from(body.to_owned())))
            .expect("a request");
        assert!(service.call(request).await.status().is_client_error(), "{body:.20}");
    }
    let large =
        post(&service, "tools/call", Some("read"), json!({"name": "read", "arguments": {"path": "x".repeat(100_000)}}))
            .await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn wrong_arguments_are_tool_errors_that_say_what_is_wrong() {
    let dir = directory();
    let service = serve(dir.path());
    for (tool, arguments, says) in [
        ("read", json!({}), "path"),
        ("read", json!({"path": 7}), "string"),
        ("read", json!({"path": "b.txt", "offset": 7}), "unknown field"),
        ("read", json!({"path": "b.txt", "offset_line": 0}), "begin at 1"),
        ("list", json!({"depth": -1}), "-1"),
        ("search", json!({"query": ""}), "empty"),
        ("list", json!({"path": "b.txt"}), "not a directory"),
        ("read", json!({"path": "docs"}), "is a directory"),
    ] {
        let text = refusal(&service, tool, arguments.clone()).await;
        assert!(text.contains(says), "{tool} {arguments}: {text}");
    }
}

#[tokio::test]
async fn tools_answer_in_text_and_in_fields() {
    let dir = directory();
    let service = serve(dir.path());
    let listed = call(&service, "list", json!({"depth": 2})).await;
    let paths: Vec<_> =
        listed.structured["entries"].as_array().expect("entries").iter().map(|e| e["path"].clone()).collect();
    assert_eq!(paths, ["b.txt", "docs", "docs/a.md"]);
    assert_eq!(listed.structured["entries"][0]["size_bytes"], 8);
    assert!(listed.structured["entries"][0]["modified"].as_str().expect("time").ends_with('Z'));
    assert!(listed.text.contains("docs/\n") || listed.text.contains("docs/  "), "{}", listed.text);

    let found = call(&service, "search", json!({"query": "needle"})).await;
    assert_eq!(found.text, "b.txt:1: needle\ndocs/a.md:2: first needle\ndocs/a.md:3: second Needle\n");
    let found = call(&service, "search", json!({"query": "Needle", "case_sensitive": true})).await;
    assert_eq!(found.structured["matches"], json!([{"path": "docs/a.md", "line": 3, "text": "second Needle"}]));
    let found = call(&service, "search", json!({"query": "^(first|second) n", "regex": true, "max_results": 1})).await;
    assert_eq!(found.structured["matches"].as_array().map(Vec::len), Some(1));
    assert_eq!(found.structured["truncated"], true);
    for (glob, files) in
        [("*.md", 1), ("docs/*.md", 1), ("**/*.md", 1), ("*", 2), ("docs/**", 1), ("*.{md,txt}", 2), ("*.rs", 0)]
    {
        let found = call(&service, "search", json!({"query": "e", "glob": glob})).await;
        assert_eq!(found.structured["files_searched"], files, "{glob}");
    }
    let found = call(&service, "search", json!({"query": "needle", "path": "docs"})).await;
    assert_eq!(found.structured["matches"][0]["path"], "docs/a.md");
    let found = call(&service, "search", json!({"query": "absent"})).await;
    assert_eq!(found.text, "(no match in 2 files)\n");
}

#[tokio::test]
async fn a_directory_that_is_missing_is_a_clear_error() {
    let dir = directory();
    for path in ["absent", "b.txt"] {
        let config = FilesConfig { root: dir.path().join(path), limits: FilesLimits::default() };
        let error = files(config).expect_err("not a directory").to_string();
        assert!(error.contains(path) && error.contains("check that it exists"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_frees_its_slot() {
    let dir = directory();
    std::fs::write(dir.path().join("long.txt"), "y\n".repeat(20_000_000)).expect("write");
    let limits = FilesLimits { concurrent_calls: 1, call_time: Duration::from_secs(60), ..FilesLimits::default() };
    let service = files(FilesConfig { root: dir.path().to_owned(), limits }).expect("service");
    let search = call(&service, "search", json!({"query": "x+z", "regex": true}));
    assert!(tokio::time::timeout(Duration::from_millis(200), search).await.is_err(), "the search was not long");
    let listed = tokio::time::timeout(Duration::from_secs(1), call(&service, "list", json!({}))).await;
    assert!(!listed.expect("the slot is free").is_error);
}
