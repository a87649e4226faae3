//! The server over HTTP/1.1: the endpoint `/mcp` in both eras, and three plain paths.

use std::convert::Infallible;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderName, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::events::{Event, Events};
use super::session::Sessions;
use super::tools::{Caller, Server, waits};
use super::wire::{
    Era, HEADER_MISMATCH, INVALID_REQUEST, LEGACY_VERSIONS, METHOD_NOT_FOUND, Message, PARSE_ERROR, Reply,
};
use super::{MODERN_VERSION, SMALL_BODY};

/// The largest request body that is read, in bytes.
const LARGEST_BODY: usize = 4 * 1024 * 1024;
/// The size of the chunks that `/bytes` streams.
const CHUNK: usize = 64 * 1024;
/// Messages that wait for the reader of one stream.
const STREAM_QUEUE: usize = 16;

const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
const VERSION_HEADER: HeaderName = HeaderName::from_static("mcp-protocol-version");
const METHOD_HEADER: HeaderName = HeaderName::from_static("mcp-method");
const NAME_HEADER: HeaderName = HeaderName::from_static("mcp-name");

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Accepts connections until the task is dropped, and drops them with it.
pub(super) async fn serve(listener: TcpListener, events: Arc<Events>) {
    let server = Arc::new(Server { events, sessions: Sessions::default() });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connections.spawn(connection(stream, Arc::clone(&server)));
            }
            Some(_ended) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(stream: TcpStream, server: Arc<Server>) {
    let _unset = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(answer(&server, request).await) }
    });
    // How a connection ends is the client's affair.
    let _ended = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(server: &Arc<Server>, request: Request<Incoming>) -> Answer {
    if !local(request.headers()) {
        return refuse(StatusCode::FORBIDDEN, "Host and Origin have to be loopback names");
    }
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/mcp") => post(server, request).await,
        (&Method::GET, "/mcp") => get(server, request.headers()),
        (&Method::DELETE, "/mcp") => delete(server, request.headers()),
        (_, "/mcp") => not_allowed("GET, POST, DELETE"),
        (&Method::GET, "/small") => text(StatusCode::OK, SMALL_BODY.to_owned()),
        (&Method::GET, "/log") => text(StatusCode::OK, json!(server.events.all()).to_string()),
        (&Method::GET, "/bytes") => bytes(request.uri().query()),
        _ => refuse(StatusCode::NOT_FOUND, "no such path; MCP is at /mcp"),
    }
}

async fn post(server: &Arc<Server>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let headers = head.headers;
    if !accepts(&headers, "application/json") || !accepts(&headers, "text/event-stream") {
        return refuse(StatusCode::NOT_ACCEPTABLE, "Accept has to list application/json and text/event-stream");
    }
    if !headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json")) {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type has to be application/json");
    }
    let body = match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return refuse(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 4 MiB, or broke off"),
    };
    let message: Message = match serde_json::from_slice(&body) {
        Ok(message) => message,
        Err(error) => {
            let reply = Reply::error(PARSE_ERROR, format!("Parse error: {error}"));
            return rpc(StatusCode::BAD_REQUEST, reply, &Value::Null);
        }
    };
    if message.jsonrpc != "2.0" || message.id.as_ref().is_some_and(Value::is_null) {
        return rpc(StatusCode::BAD_REQUEST, Reply::error(INVALID_REQUEST, "Invalid request"), &Value::Null);
    }
    if header(&headers, &VERSION_HEADER) == Some(MODERN_VERSION) || message.meta_version().is_some() {
        modern(server, &headers, message)
    } else {
        legacy(server, &headers, message)
    }
}

fn modern(server: &Arc<Server>, headers: &HeaderMap, message: Message) -> Answer {
    let id = message.id.clone().unwrap_or_default();
    let Some(method) = message.method.as_deref() else {
        let reply = Reply::error(INVALID_REQUEST, "a client sends requests and notifications only");
        return rpc(StatusCode::BAD_REQUEST, reply, &id);
    };
    let mismatch = |name: &str| {
        let reply = Reply::error(HEADER_MISMATCH, format!("{name} has to be there once and equal the body"));
        rpc(StatusCode::BAD_REQUEST, reply, &id)
    };
    let version = header(headers, &VERSION_HEADER);
    if message.id.is_some() {
        if version.is_none() || version != message.meta_version() {
            return mismatch("MCP-Protocol-Version");
        }
        if header(headers, &METHOD_HEADER) != Some(method) {
            return mismatch("Mcp-Method");
        }
        if method == "tools/call" && header(headers, &NAME_HEADER).and_then(decoded).as_deref() != Some(message.tool())
        {
            return mismatch("Mcp-Name");
        }
    }
    if let Some(version) = version.filter(|version| *version != MODERN_VERSION) {
        return rpc(StatusCode::BAD_REQUEST, Reply::unsupported(version), &id);
    }
    if message.id.is_none() {
        return empty(StatusCode::ACCEPTED);
    }
    let caller = Caller { era: Era::Modern, session: None, headers: as_json(headers) };
    respond(server, message, caller)
}

fn legacy(server: &Arc<Server>, headers: &HeaderMap, message: Message) -> Answer {
    let method = message.method.as_deref().unwrap_or_default();
    if method == "initialize" && message.id.is_some() {
        let Some(session) = server.sessions.start() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "too many sessions");
        };
        server.events.add(Event::new("session-started").session(Some(&session)));
        let value = HeaderValue::from_str(&session);
        let caller = Caller { era: Era::Legacy, session: Some(session), headers: as_json(headers) };
        let mut answer = respond(server, message, caller);
        if let Ok(value) = value {
            answer.headers_mut().insert(SESSION_HEADER, value);
        }
        return answer;
    }
    let session = match session(server, headers) {
        Ok(session) => session,
        Err((status, reason)) => return refuse(status, reason),
    };
    if message.method.is_none() || message.id.is_none() {
        if method == "notifications/cancelled" {
            server.sessions.cancel(&session, message.params.get("requestId").unwrap_or(&Value::Null));
        }
        return empty(StatusCode::ACCEPTED);
    }
    // The headers as text cost more than an echo, so only the tool that shows them pays.
    let shown = if message.tool() == "headers" { as_json(headers) } else { Value::Null };
    respond(server, message, Caller { era: Era::Legacy, session: Some(session), headers: shown })
}

/// Answers a request whose headers are in order.
fn respond(server: &Arc<Server>, message: Message, caller: Caller) -> Answer {
    let id = message.id.clone().unwrap_or_default();
    if !waits(&message) {
        let reply = server.answer(&message, &caller);
        let unknown = matches!(reply, Reply::Error { code: METHOD_NOT_FOUND, .. }) && caller.era == Era::Modern;
        return rpc(if unknown { StatusCode::NOT_FOUND } else { StatusCode::OK }, reply, &id);
    }
    let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
    let cancel = server.begin(&message, &caller);
    let server = Arc::clone(server);
    let mut running = JoinSet::new();
    running.spawn(async move {
        if let Some(reply) = server.wait(&message, &caller, cancel, sender.clone()).await {
            let _gone = sender.send(reply.response(&id)).await;
        }
    });
    event_stream(receiver, running)
}

fn get(server: &Arc<Server>, headers: &HeaderMap) -> Answer {
    if header(headers, &VERSION_HEADER) == Some(MODERN_VERSION) {
        return not_allowed("POST");
    }
    if !accepts(headers, "text/event-stream") {
        return refuse(StatusCode::NOT_ACCEPTABLE, "Accept has to list text/event-stream");
    }
    let session = match session(server, headers) {
        Ok(session) => session,
        Err((status, reason)) => return refuse(status, reason),
    };
    let Ok(receiver) = server.sessions.stream(&session) else {
        return refuse(StatusCode::CONFLICT, "this session has a stream already");
    };
    server.events.add(Event::new("stream-opened").session(Some(&session)));
    event_stream(receiver, StreamNote { events: Arc::clone(&server.events), session })
}

fn delete(server: &Arc<Server>, headers: &HeaderMap) -> Answer {
    if header(headers, &VERSION_HEADER) == Some(MODERN_VERSION) {
        return not_allowed("POST");
    }
    match session(server, headers) {
        Ok(session) => {
            server.sessions.end(&session);
            server.events.add(Event::new("session-ended").session(Some(&session)));
            empty(StatusCode::OK)
        }
        Err((status, reason)) => refuse(status, reason),
    }
}

/// The session that a legacy request names, or why not: 400 without one, 404 for one that does not exist.
fn session(server: &Server, headers: &HeaderMap) -> Result<String, (StatusCode, &'static str)> {
    if let Some(version) = header(headers, &VERSION_HEADER)
        && !LEGACY_VERSIONS.contains(&version)
    {
        return Err((StatusCode::BAD_REQUEST, "this MCP-Protocol-Version is not spoken here"));
    }
    let Some(session) = header(headers, &SESSION_HEADER) else {
        return Err((StatusCode::BAD_REQUEST, "Mcp-Session-Id is missing"));
    };
    if server.sessions.exists(session) {
        Ok(session.to_owned())
    } else {
        Err((StatusCode::NOT_FOUND, "this session does not exist or is over"))
    }
}

/// A stream of server-sent events that owns `life`: when the client goes away, it is dropped.
fn event_stream(receiver: mpsc::Receiver<Value>, life: impl Send + 'static) -> Answer {
    let opening = stream::once(async { Ok(Frame::data(Bytes::from_static(b": open\n\n"))) });
    let events = stream::unfold((receiver, life), |(mut receiver, life)| async move {
        let message = receiver.recv().await?;
        let event = format!("event: message\ndata: {message}\n\n");
        Some((Ok(Frame::data(Bytes::from(event))), (receiver, life)))
    });
    let mut answer = Response::new(StreamBody::new(opening.chain(events)).boxed_unsync());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// So many bytes `x`, made as they are read.
fn bytes(query: Option<&str>) -> Answer {
    let count = query.and_then(|query| query.strip_prefix("n=")).and_then(|count| count.parse::<usize>().ok());
    let Some(count) = count else { return refuse(StatusCode::BAD_REQUEST, "ask for /bytes?n=COUNT") };
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let chunks = stream::unfold((count, chunk), |(left, chunk)| async move {
        let now = left.min(CHUNK);
        (now > 0).then(|| (Ok(Frame::data(chunk.slice(..now))), (left - now, chunk)))
    });
    let mut answer = Response::new(StreamBody::new(chunks).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer
}

fn rpc(status: StatusCode, reply: Reply, id: &Value) -> Answer {
    text(status, reply.response(id).to_string())
}

fn refuse(status: StatusCode, reason: &str) -> Answer {
    text(status, json!({ "error": reason }).to_string())
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "this method is not allowed here");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn text(status: StatusCode, json: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(json)).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// A header that is there exactly once and is text.
fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    let mut values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.contains(kind) || value.contains("*/*"))
}

/// Whether Host and, where there is one, Origin are loopback names with any port.
fn local(headers: &HeaderMap) -> bool {
    let loopback = |authority: &str| {
        let bare = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        matches!(bare.map_or(authority, |(host, _)| host), "127.0.0.1" | "localhost" | "[::1]")
    };
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).is_some_and(loopback);
    let origin = match headers.get(ORIGIN).map(HeaderValue::to_str) {
        None => true,
        Some(Ok(origin)) => origin.split_once("://").is_some_and(|(_, authority)| loopback(authority)),
        Some(Err(_)) => false,
    };
    host && origin
}

/// The value of a mirrored header: `=?base64?...?=` is decoded, anything else is itself.
fn decoded(value: &str) -> Option<String> {
    match value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok(),
        None => Some(value.to_owned()),
    }
}

fn as_json(headers: &HeaderMap) -> Value {
    let fields = headers.keys().map(|name| {
        let values: Vec<_> =
            headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        (name.to_string(), Value::from(values.join(", ")))
    });
    Value::Object(fields.collect())
}

/// Notes the end of a GET stream.
struct StreamNote {
    events: Arc<Events>,
    session: String,
}

impl Drop for StreamNote {
    fn drop(&mut self) {
        self.events.add(Event::new("stream-closed").session(Some(&self.session)));
    }
}
