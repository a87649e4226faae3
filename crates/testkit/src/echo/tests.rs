use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::*;
use crate::eventually;

const SOON: Duration = Duration::from_secs(10);

struct Peer {
    server: EchoServer,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl Peer {
    async fn new() -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { server: EchoServer::start().await.expect("server"), client }
    }

    async fn send(&self, method: &str, headers: &[(&str, &str)], body: Value) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(self.server.url())
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.client.request(request.body(Full::from(body)).expect("request")).await.expect("answer")
    }

    async fn session(&self) -> String {
        let params = json!({ "protocolVersion": LEGACY_VERSION, "capabilities": {}, "clientInfo": {} });
        let answer = self.send("POST", &[], request(1, "initialize", params)).await;
        let session = answer.headers()["mcp-session-id"].to_str().expect("text").to_owned();
        assert_eq!(json_of(answer).await["result"]["protocolVersion"], LEGACY_VERSION);
        session
    }

    async fn saw(&self, event: &str, id: i64) -> bool {
        let seen = |seen: &Event| seen.event == event && seen.id == id;
        eventually(SOON, || self.server.events().iter().any(seen).then_some(())).await.is_some()
    }
}

fn request(id: i64, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

fn modern(id: i64, tool: &str, arguments: Value) -> Value {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
        "io.modelcontextprotocol/clientCapabilities": {},
        "progressToken": "p",
    });
    request(id, "tools/call", json!({ "name": tool, "arguments": arguments, "_meta": meta }))
}

fn modern_headers(tool: &str) -> [(&str, &str); 3] {
    [("mcp-protocol-version", MODERN_VERSION), ("mcp-method", "tools/call"), ("mcp-name", tool)]
}

async fn json_of(answer: Response<Incoming>) -> Value {
    let body = answer.into_body().collect().await.expect("body").to_bytes();
    serde_json::from_slice(&body).expect("JSON")
}

#[test]
fn the_small_body_is_113_bytes_of_json() {
    assert_eq!(SMALL_BODY.len(), 113);
    serde_json::from_str::<Value>(SMALL_BODY).expect("JSON");
}

#[tokio::test]
async fn a_legacy_session_lives_until_it_is_deleted() {
    let peer = Peer::new().await;
    let session = peer.session().await;
    let headers = [("mcp-session-id", session.as_str()), ("mcp-protocol-version", LEGACY_VERSION)];
    let call = request(2, "tools/call", json!({ "name": "echo", "arguments": { "text": "hi" } }));
    let answer = json_of(peer.send("POST", &headers, call.clone()).await).await;
    assert_eq!(answer["result"]["content"][0]["text"], "hi");
    assert_eq!(answer["result"].get("resultType"), None);
    assert_eq!(peer.send("POST", &[], call.clone()).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(peer.send("DELETE", &headers, Value::Null).await.status(), StatusCode::OK);
    assert_eq!(peer.send("POST", &headers, call).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(peer.server.events().last().map(|event| event.event.clone()).as_deref(), Some("session-ended"));
}

#[tokio::test]
async fn a_legacy_call_is_cancelled_by_a_notification_of_its_own_session_only() {
    let peer = Peer::new().await;
    let (mine, other) = (peer.session().await, peer.session().await);
    let slow = request(7, "tools/call", json!({ "name": "slow", "arguments": { "ms": 60_000 } }));
    let running = peer.send("POST", &[("mcp-session-id", &mine)], slow).await;
    assert!(peer.saw("started", 7).await);
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 7 } });
    let foreign = peer.send("POST", &[("mcp-session-id", &other)], cancel.clone()).await;
    assert_eq!(foreign.status(), StatusCode::ACCEPTED);
    assert!(!peer.server.events().iter().any(|event| event.event == "cancelled"));
    peer.send("POST", &[("mcp-session-id", &mine)], cancel).await;
    assert!(peer.saw("cancelled", 7).await);
    let body = running.into_body().collect().await.expect("stream ends").to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("result"), "no reply after a cancel");
}

#[tokio::test]
async fn a_closed_stream_cancels_in_the_modern_era_only() {
    let peer = Peer::new().await;
    let answer = peer.send("POST", &modern_headers("slow"), modern(1, "slow", json!({ "ms": 60_000 }))).await;
    assert!(peer.saw("started", 1).await);
    drop(answer);
    assert!(peer.saw("cancelled", 1).await);

    let session = peer.session().await;
    let slow = request(2, "tools/call", json!({ "name": "slow", "arguments": { "ms": 60_000 } }));
    let answer = peer.send("POST", &[("mcp-session-id", &session)], slow).await;
    assert!(peer.saw("started", 2).await);
    drop(answer);
    assert!(peer.saw("disconnected", 2).await);
}

#[tokio::test]
async fn progress_is_streamed_as_it_happens() {
    let peer = Peer::new().await;
    let call = modern(1, "progress", json!({ "count": 3, "interval_ms": 30 }));
    let mut body = peer.send("POST", &modern_headers("progress"), call).await.into_body();
    let (mut text, mut frames) = (String::new(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.expect("frame").into_data().expect("data");
        frames += 1;
        text.push_str(&String::from_utf8_lossy(&data));
    }
    assert!(frames >= 4, "{frames} frames: {text}");
    assert_eq!(text.matches("notifications/progress").count(), 3);
    assert!(text.contains(r#""resultType":"complete""#), "{text}");
    assert!(peer.saw("finished", 1).await);
}

#[tokio::test]
async fn modern_headers_have_to_equal_the_body() {
    let peer = Peer::new().await;
    let call = modern(1, "echo", json!({ "text": "hi" }));
    let code = |answer: Value| answer["error"]["code"].as_i64();
    for (headers, expected) in [
        (modern_headers("echo"), None),
        (modern_headers("=?base64?ZWNobw==?="), None),
        (modern_headers("log"), Some(-32020)),
        ([("mcp-protocol-version", MODERN_VERSION), ("mcp-method", "tools/list"), ("mcp-name", "echo")], Some(-32020)),
        ([("mcp-protocol-version", "2099-01-01"), ("mcp-method", "tools/call"), ("mcp-name", "echo")], Some(-32020)),
    ] {
        let answer = peer.send("POST", &headers, call.clone()).await;
        let status = if expected.is_some() { StatusCode::BAD_REQUEST } else { StatusCode::OK };
        assert_eq!(answer.status(), status, "{headers:?}");
        assert_eq!(code(json_of(answer).await), expected, "{headers:?}");
    }
    let mut unknown = call;
    unknown["method"] = json!("prompts/list");
    let headers = [("mcp-protocol-version", MODERN_VERSION), ("mcp-method", "prompts/list")];
    let answer = peer.send("POST", &headers, unknown).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(code(json_of(answer).await), Some(-32601));
}

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused() {
    let peer = Peer::new().await;
    for header in [("host", "evil.example"), ("origin", "https://evil.example"), ("origin", "null")] {
        let answer = peer.send("POST", &[header], request(1, "initialize", json!({}))).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{header:?}");
    }
}

#[tokio::test]
async fn the_get_stream_carries_announcements() {
    let peer = Peer::new().await;
    let session = peer.session().await;
    let headers = [("mcp-session-id", session.as_str())];
    let mut stream = peer.send("GET", &headers, Value::Null).await.into_body();
    assert_eq!(peer.send("GET", &headers, Value::Null).await.status(), StatusCode::CONFLICT);
    let call = request(2, "tools/call", json!({ "name": "announce", "arguments": { "text": "news" } }));
    assert_eq!(json_of(peer.send("POST", &headers, call).await).await["result"]["isError"], false);
    let mut text = String::new();
    while !text.contains("news") {
        let frame = stream.frame().await.expect("open").expect("frame");
        text.push_str(&String::from_utf8_lossy(frame.data_ref().expect("data")));
    }
    drop(stream);
    let closed = |event: &Event| event.event == "stream-closed";
    eventually(SOON, || peer.server.events().iter().any(closed).then_some(())).await.expect("closed");
}

#[tokio::test]
async fn bytes_are_streamed_to_the_last_one() {
    let peer = Peer::new().await;
    let uri = format!("http://{}/bytes?n=200001", peer.server.addr()).parse().expect("uri");
    let answer = peer.client.get(uri).await.expect("answer");
    assert_eq!(answer.into_body().collect().await.expect("body").to_bytes().len(), 200_001);
}

#[tokio::test]
async fn bad_bodies_are_answered_not_fatal() {
    let peer = Peer::new().await;
    for body in [json!([]), json!("x"), json!({ "jsonrpc": "1.0", "id": 1, "method": "ping" }), json!({ "id": null })] {
        assert_eq!(peer.send("POST", &[], body.clone()).await.status(), StatusCode::BAD_REQUEST, "{body}");
    }
}

#[tokio::test]
async fn standard_input_is_served_line_by_line_and_can_cancel() {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (read, write) = tokio::io::split(theirs);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_stdio(BufReader::new(read), write, None));
    let (read, mut write) = tokio::io::split(ours);
    let mut lines = BufReader::new(read).lines();
    let slow = request(1, "tools/call", json!({ "name": "slow", "arguments": { "ms": 60_000 } }));
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1 } });
    let log = request(2, "tools/call", json!({ "name": "log", "arguments": {} }));
    let send = [slow, json!("not a message"), cancel].map(|message| format!("{message}\n")).concat();
    write.write_all(send.as_bytes()).await.expect("write");
    let error = lines.next_line().await.expect("read").expect("line");
    assert!(error.contains("-32700"), "{error}");
    let mut answer = String::new();
    let mut asked = 0;
    while !answer.contains("cancelled") {
        asked += 1;
        assert!(asked < 1000, "{answer}");
        write.write_all(format!("{log}\n").as_bytes()).await.expect("write");
        answer = lines.next_line().await.expect("read").expect("line");
    }
    drop((write, lines));
    assert!(tasks.join_next().await.expect("ended").expect("joined").is_ok());
}
