//! Sessions' events at the level of bytes, on a running hub: frames of SSE, readers that stall, bad input.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::access::Stage;

const SOON: Duration = Duration::from_secs(30);

/// A stream of events over a connection of its own; what came with a length before each piece.
struct Sse {
    connection: BufReader<TcpStream>,
    text: String,
}

impl Sse {
    async fn open(stage: &Stage, session: &str, query: &str, key: Option<&str>) -> Self {
        let mut connection = BufReader::new(TcpStream::connect(&stage.api).await.expect("connect"));
        let key = key.expect("key");
        let request = format!(
            "GET /v1/sessions/{session}/events/stream{query} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n\
             accept: application/json\r\n\r\n"
        );
        connection.write_all(request.as_bytes()).await.expect("written");
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(connection.read_line(&mut head).await.expect("line"), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        for line in ["content-type: text/event-stream", "transfer-encoding: chunked", "request-id: req_"] {
            assert!(head.to_ascii_lowercase().contains(line), "{line}: {head}");
        }
        Self { connection, text: String::new() }
    }

    /// The name and the data of the next frame; none at the end of the stream.
    async fn next(&mut self) -> Option<(String, Value)> {
        tokio::time::timeout(SOON, self.frame()).await.expect("a frame in time")
    }

    async fn frame(&mut self) -> Option<(String, Value)> {
        while !self.text.contains("\n\n") {
            let mut size = String::new();
            self.connection.read_line(&mut size).await.expect("a size");
            let size = usize::from_str_radix(size.trim(), 16).expect("a size");
            if size == 0 {
                assert_eq!(self.text, "");
                return None;
            }
            let mut piece = vec![0; size + 2];
            self.connection.read_exact(&mut piece).await.expect("a piece");
            piece.truncate(size);
            self.text.push_str(std::str::from_utf8(&piece).expect("text"));
        }
        let (frame, rest) = self.text.split_once("\n\n").expect("a frame");
        let (name, data) = frame.split_once('\n').expect("two lines");
        let data = serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("one line of JSON");
        let frame = (name.strip_prefix("event: ").expect("a name").to_owned(), data);
        self.text = rest.to_owned();
        Some(frame)
    }

    /// All frames up to one with this name.
    async fn until(&mut self, last: &str) -> Vec<(String, Value)> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended before {last}: {frames:?}"));
            let ends = frame.0 == last;
            frames.push(frame);
            if ends {
                return frames;
            }
        }
    }
}

fn says(text: &str) -> Value {
    json!({"type": "user.message", "content": [{"type": "text", "text": text}]})
}

fn plays(steps: &Value) -> Value {
    says(&json!({"script": steps}).to_string())
}

async fn post(stage: &Stage, session: &str, events: Value) -> Value {
    stage.asked("POST", &format!("/v1/sessions/{session}/events"), json!({"events": events})).await
}

async fn close(stage: Stage) {
    assert!(stage.tasks.shutdown(Duration::from_secs(5)).await, "streams end with the hub");
    stage.hub.close().await;
}

#[tokio::test]
async fn every_frame_has_a_name_and_one_line_of_data_and_streams_end_with_the_hub() {
    let stage = Stage::set().await;
    let session = stage.create_session().await;
    let key = stage.middle_key();
    let mut plain = Sse::open(&stage, &session, "", key).await;
    let query = "?event_deltas%5B%5D=agent.message&event_deltas[]=agent.thinking";
    let mut watching = Sse::open(&stage, &session, query, key).await;
    post(&stage, &session, json!([plays(&json!([{"thinking": "Hm.", "text": ["One\n", "two."]}]))])).await;
    let frames = plain.until("session.status_idle").await;
    for (name, data) in &frames {
        let kind = data["type"].as_str().expect("type");
        let expected = if kind == "session.usage" { "message" } else { kind };
        assert_eq!(name, expected);
    }
    let listed = stage.asked("GET", &format!("/v1/sessions/{session}/events"), Value::Null).await;
    let streamed: Vec<&Value> = frames.iter().skip(1).map(|(_, data)| data).collect();
    assert_eq!(listed["data"].as_array().expect("list").iter().collect::<Vec<_>>(), streamed);
    assert_eq!(frames[0].1["processed_at"], Value::Null);

    let frames = watching.until("session.status_idle").await;
    let names: Vec<&str> = frames.iter().map(|(name, _)| name.as_str()).collect();
    let at = |name| names.iter().position(|known| *known == name).unwrap_or_else(|| panic!("{name}: {names:?}"));
    assert!(at("span.model_request_start") < at("event_start"), "{names:?}");
    assert!(at("event_delta") < at("agent.message"), "{names:?}");
    assert!(at("agent.message") < at("span.model_request_end"), "{names:?}");
    let deltas = frames.iter().filter(|(name, _)| name == "event_delta");
    let text: String = deltas.filter_map(|(_, data)| data["delta"]["content"]["text"].as_str()).collect();
    assert_eq!(text, "One\ntwo.");
    close(stage).await;
    assert_eq!(plain.next().await, None);
}

#[tokio::test]
async fn a_reader_that_stalls_is_closed_and_the_others_miss_nothing() {
    let stage = Stage::set().await;
    let session = stage.create_session().await;
    let mut stalled = Sse::open(&stage, &session, "", stage.middle_key()).await;
    let mut reading = Sse::open(&stage, &session, "", stage.middle_key()).await;
    let large = "x".repeat(1024 * 1024);
    // What the system keeps for a reader that does not read, and then what the hub does.
    let mut seen = 0;
    for _ in 0..12 {
        post(&stage, &session, json!([says(&large)])).await;
        seen += reading.until("session.status_idle").await.len();
    }
    assert!(seen >= 12 * 8, "{seen}");
    let mut last = None;
    let mut behind = 0;
    while let Some(frame) = stalled.next().await {
        behind += 1;
        last = Some(frame);
    }
    let (name, data) = last.expect("a frame");
    assert_eq!((name.as_str(), &data["error"]["type"]), ("error", &json!("overloaded_error")), "{behind} of {seen}");
    assert!(behind < seen);
    post(&stage, &session, json!([says("Still there?")])).await;
    reading.until("session.status_idle").await;
    close(stage).await;
}

#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let stage = Stage::set().await;
    let session = stage.create_session().await;
    let made = stage.asked("POST", "/v1/sortie/keys", json!({"kind": "manage", "name": "watcher"})).await;
    let mut stream = Sse::open(&stage, &session, "", made["secret"].as_str()).await;
    let mut other = Sse::open(&stage, &session, "", stage.middle_key()).await;
    let id = made["id"].as_str().expect("id");
    stage.asked("POST", &format!("/v1/sortie/keys/{id}/archive"), json!({})).await;
    assert_eq!(stream.next().await, None);
    post(&stage, &session, json!([{"type": "user.interrupt"}])).await;
    assert_eq!(other.next().await.map(|(name, _)| name).as_deref(), Some("user.interrupt"));
    close(stage).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let stage = Stage::set().await;
    let session = stage.create_session().await;
    let events = format!("/v1/sessions/{session}/events");
    let stream = format!("{events}/stream");
    let many = "event_deltas[]=agent.message&".repeat(101);
    let sent = |event: &str| format!("{{\"events\":[{event}]}}");
    let text = |text: &str| {
        sent(&format!("{{\"type\":\"user.message\",\"content\":[{{\"type\":\"text\",\"text\":\"{text}\"}}]}}"))
    };
    let huge = text(&"x".repeat(33 * 1024 * 1024));
    for (method, path, body, status, reason) in [
        ("GET", format!("{stream}?event_deltas[]=agent.tool_use"), String::new(), 400, "event_deltas: "),
        ("GET", format!("{stream}?{many}"), String::new(), 400, "event_deltas: at most 100 values"),
        ("GET", format!("{events}?limit=1001"), String::new(), 400, "limit: "),
        ("GET", format!("{events}?order=newest"), String::new(), 400, "order: "),
        ("GET", format!("{events}?page=page_x"), String::new(), 400, "page: "),
        ("GET", format!("{events}?created_at[gt]=now"), String::new(), 400, "created_at[gt]: "),
        ("GET", "/v1/sessions?page=page_AAAA".to_owned(), String::new(), 400, "page: "),
        ("POST", events.clone(), "{".to_owned(), 400, "body: "),
        ("POST", events.clone(), "[]".to_owned(), 400, "The body must be a JSON object."),
        ("POST", events.clone(), "{}".to_owned(), 400, "events"),
        ("POST", events.clone(), text(""), 400, "events[0].content[0].text: is empty"),
        ("POST", events.clone(), text("\\ud800x"), 400, "body: "),
        ("POST", events.clone(), sent("{\"type\":\"agent.message\"}"), 400, "events[0].type: "),
        ("POST", events.clone(), sent("{\"type\":\"user.define_outcome\"}"), 400, "`user.define_outcome`"),
        ("POST", events.clone(), huge, 413, "The body is larger than"),
        ("GET", "/v1/sessions/sesn_nosuch/events/stream".to_owned(), String::new(), 404, "no session"),
        ("GET", "/v1/sessions/other/events".to_owned(), String::new(), 404, "id"),
    ] {
        let (found, answer) = stage.send(method, &path, stage.middle_key(), &body).await;
        let shown: String = answer.chars().take(1000).collect();
        assert!(found == status && answer.contains(reason), "{method} {path}, {reason}: {shown}");
    }
    // A cursor fits the list and the order that it came from.
    for _ in 0..2 {
        post(&stage, &session, json!([says("Hi.")])).await;
    }
    let page = stage.asked("GET", &format!("{events}?limit=1"), Value::Null).await;
    let cursor = page["next_page"].as_str().expect("cursor");
    let other = stage.create_session().await;
    for path in [
        format!("{events}?order=desc&page={cursor}"),
        format!("/v1/sessions/{other}/events?page={cursor}"),
        format!("{events}?created_at[gt]=2090-01-01T00:00:00Z&page={cursor}"),
    ] {
        let (status, answer) = stage.send("GET", &path, stage.middle_key(), "").await;
        assert!(status == 400 && answer.contains("page: "), "{path}: {answer}");
    }
    stage.asked("GET", &format!("{events}?limit=5&page={cursor}"), Value::Null).await;
    close(stage).await;
}
