//! A stand-in for an endpoint of the Messages API, as far as it concerns clients that stream.
//!
//! It answers on `POST /v1/messages` in the form on the wire: server-sent events with their names, pings, usage that grows.
//! Requests are held to what real endpoints hold them to: a key, a version, messages with content, a result behind each use
//! of a tool, at most four marks for the cache, names of tools. What it answers is scripted by the test, in order, with
//! faults down to the byte; when nothing is left it says `Hello.`

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Between the last bytes and the end of a connection that is cut.
const BEFORE_CUT: Duration = Duration::from_millis(100);

/// A running stand-in. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct MessagesServer {
    addr: SocketAddr,
    state: Arc<Mutex<MessagesState>>,
    _tasks: JoinSet<()>,
}

/// How it behaves, and what it was asked; a test may change all of it at any time.
#[derive(Debug, Default)]
pub struct MessagesState {
    /// The key that requests must have, in `x-api-key` or behind `Bearer`; any when none.
    pub key: Option<String>,
    /// What is answered, in order.
    pub replies: VecDeque<Reply>,
    /// Head and body of each request that was understood, in order.
    pub requests: Vec<(HeaderMap, Value)>,
    /// Requests whose caller waits for an answer or reads one now.
    pub running: usize,
    /// Requests whose caller went away before the end.
    pub abandoned: usize,
}

/// One answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Nothing, not even a head.
    Silence,
    /// A head and pieces of a body.
    Answer {
        /// The status.
        status: u16,
        /// Headers.
        headers: Vec<(&'static str, String)>,
        /// The body.
        pieces: Vec<Piece>,
    },
}

/// A piece of an answer's body.
#[derive(Clone, Debug)]
pub enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A pause.
    Wait(Duration),
    /// Nothing more, and no end.
    Hang,
    /// The connection ends.
    Cut,
}

impl Reply {
    /// An error in the form of the Messages API.
    pub fn error(status: u16, kind: &str, message: &str) -> Self {
        let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"});
        let headers = vec![("content-type", "application/json".to_owned())];
        Self::Answer { status, headers, pieces: vec![Piece::Bytes(body.to_string().into_bytes())] }
    }

    /// The same with a further header.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }

    /// A stream of these pieces.
    pub fn pieces(pieces: Vec<Piece>) -> Self {
        let headers = vec![("content-type", "text/event-stream; charset=utf-8".to_owned())];
        Self::Answer { status: 200, headers, pieces }
    }

    /// A stream of these events.
    pub fn events(events: &[Value]) -> Self {
        Self::pieces(events.iter().map(|event| Piece::Bytes(written(event))).collect())
    }

    /// A whole answer with these blocks.
    pub fn blocks(blocks: &[Value], stop_reason: &str) -> Self {
        Self::events(&events(blocks, stop_reason))
    }

    /// A whole answer that says this.
    pub fn says(text: &str) -> Self {
        Self::blocks(&[json!({"type": "text", "text": text})], "end_turn")
    }
}

/// An event as it is on the wire.
pub fn written(event: &Value) -> Vec<u8> {
    let name = event["type"].as_str().unwrap_or_default();
    format!("event: {name}\ndata: {event}\n\n").into_bytes()
}

/// The events of a whole answer with these blocks, each in two deltas.
pub fn events(blocks: &[Value], stop_reason: &str) -> Vec<Value> {
    let usage = json!({"input_tokens": 11, "output_tokens": 1, "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 5, "service_tier": "standard",
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2}});
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage});
    let mut events = vec![json!({"type": "message_start", "message": message}), json!({"type": "ping"})];
    for (index, block) in blocks.iter().enumerate() {
        let (empty, deltas) = begun(block);
        events.push(json!({"type": "content_block_start", "index": index, "content_block": empty}));
        events.extend(
            deltas.into_iter().map(|delta| json!({"type": "content_block_delta", "index": index, "delta": delta})),
        );
        events.push(json!({"type": "content_block_stop", "index": index}));
    }
    let delta = json!({"stop_reason": stop_reason, "stop_sequence": null});
    events.push(json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 23}}));
    events.push(json!({"type": "message_stop"}));
    events
}

/// A block as it begins, and the deltas that make it whole.
fn begun(block: &Value) -> (Value, Vec<Value>) {
    let mut empty = block.clone();
    let mut deltas = Vec::new();
    let mut take = |member: &str, kind: &str, name: &str, nothing: Value| {
        let Some(value) = empty.get_mut(member).filter(|value| !value.is_null()) else { return };
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        *value = nothing;
        let middle = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let (one, other) = text.split_at(middle);
        deltas.extend([one, other].map(|piece| json!({"type": kind, name: piece})));
    };
    match block["type"].as_str() {
        Some("text") => take("text", "text_delta", "text", "".into()),
        Some("thinking") => {
            take("thinking", "thinking_delta", "thinking", "".into());
            let signature = block["signature"].clone();
            empty["signature"] = "".into();
            deltas.push(json!({"type": "signature_delta", "signature": signature}));
        }
        Some("tool_use" | "server_tool_use") => take("input", "input_json_delta", "partial_json", json!({})),
        _ => {}
    }
    (empty, deltas)
}

impl MessagesServer {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// Those of binding a socket.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let state: Arc<Mutex<MessagesState>> = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, state.clone()));
        Ok(Self { addr, state, _tasks: tasks })
    }

    /// The same, with these answers.
    ///
    /// # Errors
    /// Those of binding a socket.
    pub async fn with(replies: impl IntoIterator<Item = Reply>) -> io::Result<Self> {
        let server = Self::start().await?;
        server.state().replies.extend(replies);
        Ok(server)
    }

    /// Its address, as clients are told it.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How it behaves, and what it was asked. Not to be kept over an await.
    pub fn state(&self) -> MutexGuard<'_, MessagesState> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<MessagesState>) -> MutexGuard<'_, MessagesState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<Mutex<MessagesState>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let state = state.clone();
            async move { Ok::<_, Infallible>(answer(state, request).await) }
        });
        connections.spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _closed = connection.await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Counts a request while its caller waits.
struct Running {
    state: Arc<Mutex<MessagesState>>,
    whole: bool,
}

impl Running {
    fn new(state: Arc<Mutex<MessagesState>>) -> Self {
        lock(&state).running += 1;
        Self { state, whole: false }
    }

    fn ends(&mut self) {
        self.whole = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.running -= 1;
        state.abandoned += usize::from(!self.whole);
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn answer(state: Arc<Mutex<MessagesState>>, request: Request<Incoming>) -> Response<Body> {
    let running = Running::new(state.clone());
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let refused = refusal(lock(&state).key.as_deref(), &head, &body);
    let reply = match refused {
        Some(refusal) => refusal,
        None => {
            let mut state = lock(&state);
            state.requests.push((head.headers, serde_json::from_slice(&body).unwrap_or_default()));
            state.replies.pop_front().unwrap_or_else(|| Reply::says("Hello."))
        }
    };
    let Reply::Answer { status, headers, pieces } = reply else { return std::future::pending().await };
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap_or_default());
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(streamed(pieces, running)).unwrap_or_default()
}

fn streamed(pieces: Vec<Piece>, running: Running) -> Body {
    let pieces = stream::unfold((pieces.into_iter(), running), |(mut pieces, mut running)| async move {
        loop {
            match pieces.next() {
                Some(Piece::Bytes(bytes)) => {
                    return Some((Ok(Frame::data(Bytes::from(bytes))), (pieces, running)));
                }
                Some(Piece::Wait(pause)) => tokio::time::sleep(pause).await,
                Some(Piece::Hang) => std::future::pending().await,
                Some(Piece::Cut) => {
                    // What was written before is to arrive.
                    tokio::time::sleep(BEFORE_CUT).await;
                    running.ends();
                    return Some((Err(io::ErrorKind::ConnectionReset.into()), (pieces, running)));
                }
                None => {
                    running.ends();
                    return None;
                }
            }
        }
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// What a real endpoint would refuse, too.
fn refusal(key: Option<&str>, head: &http::request::Parts, body: &[u8]) -> Option<Reply> {
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let bad = |message: String| Some(Reply::error(400, "invalid_request_error", &message));
    if head.uri.path() != "/v1/messages" || head.method != http::Method::POST {
        return Some(Reply::error(404, "not_found_error", "Not Found"));
    }
    if let Some(key) = key
        && header("x-api-key") != key
        && header("authorization") != format!("Bearer {key}")
    {
        let given = header("x-api-key");
        return Some(Reply::error(401, "authentication_error", &format!("invalid x-api-key {given}")));
    }
    if header("anthropic-version").is_empty() {
        return bad("anthropic-version: header is required".to_owned());
    }
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return bad("the body is no JSON".to_owned()) };
    unfit(&body).map(|why| Reply::error(400, "invalid_request_error", &why))
}

fn unfit(body: &Value) -> Option<String> {
    if body["model"].as_str().is_none_or(str::is_empty) || body["max_tokens"].as_u64().is_none_or(|most| most == 0) {
        return Some("model and max_tokens: Field required".to_owned());
    }
    if body.to_string().matches("\"cache_control\":{").count() > 4 {
        return Some("A maximum of 4 blocks with cache_control may be provided".to_owned());
    }
    let mut names = BTreeSet::new();
    for tool in body["tools"].as_array().into_iter().flatten() {
        let name = tool["name"].as_str().unwrap_or_default();
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) || !names.insert(name.to_owned()) {
            return Some(format!("tools: the name {name:?} is not allowed, or there twice"));
        }
        if tool["input_schema"]["type"] != "object" {
            return Some(format!("tools.{name}.input_schema.type: Field required"));
        }
    }
    let Some(messages) = body["messages"].as_array().filter(|messages| !messages.is_empty()) else {
        return Some("messages: at least one message is required".to_owned());
    };
    let mut used: BTreeSet<String> = BTreeSet::new();
    for (number, message) in messages.iter().enumerate() {
        let blocks = message["content"].as_array().cloned().unwrap_or_default();
        let of = |kind: &str, name: &str| -> BTreeSet<String> {
            let blocks = blocks.iter().filter(|block| block["type"] == kind);
            blocks.filter_map(|block| block[name].as_str().map(str::to_owned)).collect()
        };
        if of("tool_result", "tool_use_id") != used {
            return Some(format!(
                "messages.{number}: tool_use ids need tool_result blocks immediately after, and no others"
            ));
        }
        used = of("tool_use", "id");
        let empty = |block: &Value| block["type"] == "text" && block["text"] == "";
        if !message["content"].is_string() && (blocks.is_empty() || blocks.iter().any(empty)) {
            return Some(format!("messages.{number}: text content blocks must be non-empty"));
        }
    }
    (!used.is_empty()).then(|| "messages: tool_use ids without tool_result blocks".to_owned())
}
