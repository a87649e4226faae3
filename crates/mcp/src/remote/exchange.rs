//! One request and its answer, in every era.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::{Map, Value, json};
use sortie_api::{HOP_HEADER, Hop};
use url::Url;

use super::events::Channel;
use super::sse::Events;
use super::{Answer, Carrier, Failure, MAX_ANSWER, Remote, failure, mirrored};
use crate::mirror::{METHOD_HEADER, NAME_HEADER, VERSION_HEADER};

/// The version of the stateless era.
pub(super) const MODERN: &str = "2026-07-28";
/// The newest version that begins with a handshake.
pub(super) const NEWEST_WITH_HANDSHAKE: &str = "2025-11-25";
/// All of them, which differ in nothing that is used here.
pub(super) const WITH_HANDSHAKE: [&str; 4] = [NEWEST_WITH_HANDSHAKE, "2025-06-18", "2025-03-26", "2024-11-05"];
pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");
const LAST_EVENT_HEADER: HeaderName = HeaderName::from_static("last-event-id");
const ACCEPTED_TYPES: &str = "application/json, text/event-stream";
/// Largest body of an error that is read, in bytes.
const MAX_ERROR: usize = 64 * 1024;
/// How often in a row an answer's stream that the server paused without a word is asked for again.
const RESUMPTIONS: u32 = 10;
/// How long a server may have its clients wait before they ask again; and where it does not say.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const USUAL_PAUSE: Duration = Duration::from_secs(1);

/// How a server is spoken to.
pub(super) enum Era {
    /// 2026-07-28: each request stands alone.
    Modern,
    /// A handshake, and perhaps a session.
    Session { version: Option<HeaderValue>, id: Option<HeaderValue> },
    /// 2024-11-05: answers come on one stream.
    Events(Channel),
}

impl Era {
    /// What every request of this era says in its head.
    pub(super) fn put(&self, headers: &mut HeaderMap) {
        match self {
            Self::Modern => {
                headers.insert(VERSION_HEADER, HeaderValue::from_static(MODERN));
            }
            Self::Session { version, id } => {
                for (name, value) in [(VERSION_HEADER, version), (SESSION_HEADER, id)] {
                    if let Some(value) = value {
                        headers.insert(name, value.clone());
                    }
                }
            }
            Self::Events(_) => {}
        }
    }
}

/// A request.
pub(super) struct Asked<'a> {
    pub(super) method: &'static str,
    pub(super) params: Map<String, Value>,
    pub(super) headers: HeaderMap,
    pub(super) name: Option<&'a str>,
}

impl Asked<'_> {
    pub(super) fn new(method: &'static str) -> Self {
        Self { method, params: Map::new(), headers: HeaderMap::new(), name: None }
    }
}

/// An answer: its `result`, and the session that begins with it.
pub(super) struct Answered {
    pub(super) result: Value,
    pub(super) session: Option<HeaderValue>,
}

/// Who asks.
pub(super) fn me() -> Value {
    json!({"name": "sortie", "version": env!("CARGO_PKG_VERSION")})
}

/// A request without what its era adds.
pub(super) fn request(method: Method, url: &Url, body: Bytes) -> Request<Bytes> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    if let Ok(uri) = url.as_str().parse() {
        *request.uri_mut() = uri;
    }
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED_TYPES));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sortie/", env!("CARGO_PKG_VERSION"))));
    request
}

/// A request with a message.
pub(super) fn post(url: &Url, message: &Value) -> Request<Bytes> {
    let mut request = request(Method::POST, url, Bytes::from(message.to_string()));
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

impl Remote {
    /// Asks, and waits for the answer. Dropped, it tells the server that nobody waits any more.
    pub(super) async fn ask(&self, carrier: &Arc<dyn Carrier>, mut asked: Asked<'_>) -> Result<Answered, Failure> {
        let id = self.new_id();
        if matches!(self.era, Era::Modern) {
            let meta = json!({
                "io.modelcontextprotocol/protocolVersion": MODERN,
                "io.modelcontextprotocol/clientInfo": me(),
                "io.modelcontextprotocol/clientCapabilities": {},
            });
            asked.params.insert("_meta".to_owned(), meta);
        }
        let message = json!({"jsonrpc": "2.0", "id": id, "method": asked.method, "params": asked.params});
        let cancel = Cancel::of(self, carrier, id, asked.method);
        let answered = self.exchange(carrier, id, asked, &message).await;
        cancel.disarm();
        answered
    }

    async fn exchange(
        &self,
        carrier: &Arc<dyn Carrier>,
        id: i64,
        asked: Asked<'_>,
        message: &Value,
    ) -> Result<Answered, Failure> {
        if let Era::Events(channel) = &self.era {
            return channel.ask(carrier, id, message).await;
        }
        let mut request = post(&self.endpoint, message);
        let headers = request.headers_mut();
        headers.extend(asked.headers);
        self.era.put(headers);
        if matches!(self.era, Era::Modern) {
            headers.insert(METHOD_HEADER, HeaderValue::from_static(asked.method));
            if let Some(name) = asked.name.and_then(mirrored::value) {
                headers.insert(NAME_HEADER, name);
            }
        }
        let answer = carrier.send(request).await?;
        self.answer(carrier, id, answer).await
    }

    /// Sends a message that has no answer.
    pub(super) async fn tell(&self, carrier: &Arc<dyn Carrier>, message: Value) -> Result<(), Failure> {
        let answer = carrier.send(self.message(&message)).await?;
        if answer.status().is_success() { Ok(()) } else { Err(self.refused(answer).await) }
    }

    fn message(&self, message: &Value) -> Request<Bytes> {
        let url = match &self.era {
            Era::Events(channel) => channel.url(),
            _ => &self.endpoint,
        };
        let mut request = post(url, message);
        self.era.put(request.headers_mut());
        request
    }

    async fn refused(&self, answer: Response<Answer>) -> Failure {
        let in_session = matches!(&self.era, Era::Session { id: Some(_), .. });
        refused(answer, in_session).await
    }

    /// Reads the answer with this id, as JSON or out of a stream.
    async fn answer(&self, carrier: &Arc<dyn Carrier>, id: i64, answer: Response<Answer>) -> Result<Answered, Failure> {
        if !answer.status().is_success() {
            return Err(self.refused(answer).await);
        }
        let session = answer.headers().get(SESSION_HEADER).cloned();
        let result = match content_type(answer.headers()) {
            "application/json" => {
                let body = read(answer.into_body(), MAX_ANSWER).await?;
                let message = serde_json::from_slice(&body);
                let message = message.map_err(|_| Failure::protocol("its answer is no JSON"))?;
                let answer = answer_to(id, message);
                answer.unwrap_or_else(|_| Err(Failure::protocol("its answer answers something else")))?
            }
            "text/event-stream" => self.streamed(carrier, id, Events::new(answer.into_body())).await?,
            _ => return Err(Failure::protocol("its answer is neither JSON nor a stream of events")),
        };
        Ok(Answered { result, session })
    }

    /// The answer out of a stream, which a server of the older era may pause (2025-11-25, "Sending Messages to the
    /// Server").
    async fn streamed(&self, carrier: &Arc<dyn Carrier>, id: i64, mut events: Events) -> Result<Value, Failure> {
        let mut in_a_row = 0;
        loop {
            let broke = loop {
                match events.next().await {
                    Ok(Some(event)) if event.data.is_empty() => {}
                    Ok(Some(event)) => {
                        in_a_row = 0;
                        let message = serde_json::from_str(&event.data);
                        let message = message.map_err(|_| Failure::protocol("an event of its answer is no JSON"))?;
                        match answer_to(id, message) {
                            Ok(result) => return result,
                            Err(message) => self.heard(carrier, &message).await,
                        }
                    }
                    Ok(None) | Err(Failure::Broken) => break true,
                    Err(failure) => return Err(failure),
                }
            };
            let resumable = broke && matches!(self.era, Era::Session { .. }) && in_a_row < RESUMPTIONS;
            let Some(last) = events.last_id().filter(|_| resumable) else { return Err(Failure::Broken) };
            let Ok(last) = HeaderValue::from_str(last) else { return Err(Failure::Broken) };
            in_a_row += 1;
            let pause = events.retry().map_or(USUAL_PAUSE, Duration::from_millis);
            tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
            let mut request = request(Method::GET, &self.endpoint, Bytes::new());
            self.era.put(request.headers_mut());
            request.headers_mut().insert(LAST_EVENT_HEADER, last);
            let answer = carrier.send(request).await.map_err(|_| Failure::Broken)?;
            if !answer.status().is_success() || content_type(answer.headers()) != "text/event-stream" {
                return Err(Failure::Broken);
            }
            events = Events::new(answer.into_body());
        }
    }

    /// What a server says beside the answer: its requests are refused, all else is not for us.
    async fn heard(&self, carrier: &Arc<dyn Carrier>, message: &Value) {
        if let (Some(reply), false) = (reply(message), matches!(self.era, Era::Modern))
            && let Err(error) = self.tell(carrier, reply).await
        {
            tracing::debug!(%error, "a server's request was not answered");
        }
    }
}

/// Our answer to a request of the server's own: that we are there, and that we do nothing else.
pub(super) fn reply(message: &Value) -> Option<Value> {
    let (id, method) = (message.get("id")?, message.get("method")?);
    Some(match method.as_str() {
        Some("ping") => json!({"jsonrpc": "2.0", "id": id, "result": {}}),
        _ => json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "not offered here"}}),
    })
}

/// The outcome of the request with this id, if the message tells it; else the message.
pub(super) fn answer_to(id: i64, message: Value) -> Result<Result<Value, Failure>, Value> {
    let mut message = match message {
        // The one version with batches may answer with one.
        Value::Array(messages) => match messages.into_iter().find(|one| is_answer(one, id)) {
            Some(message) => message,
            None => return Err(Value::Null),
        },
        message => message,
    };
    if !is_answer(&message, id) {
        return Err(message);
    }
    if let Some(error) = message.get("error") {
        return Ok(Err(failure::of_error(error)));
    }
    match message.get_mut("result").map(Value::take) {
        Some(result @ Value::Object(_)) => Ok(Ok(result)),
        _ => Ok(Err(Failure::protocol("its answer has neither a result nor an error"))),
    }
}

fn is_answer(message: &Value, id: i64) -> bool {
    let named = message.get("id");
    let ours = named.and_then(Value::as_i64) == Some(id);
    let of_nobody = named.is_none_or(Value::is_null) && message.get("error").is_some();
    message.get("method").is_none() && (ours || of_nobody)
}

/// What an answer other than 2xx means.
pub(super) async fn refused(answer: Response<Answer>, in_session: bool) -> Failure {
    let status = answer.status();
    let hop = answer.headers().get(HOP_HEADER).and_then(|value| value.to_str().ok());
    let hop = hop.and_then(|name| serde_json::from_value::<Hop>(name.into()).ok());
    let body = match status.is_redirection() {
        true => Vec::new(),
        false => read(answer.into_body(), MAX_ERROR).await.unwrap_or_default(),
    };
    failure::of_status(status, hop, in_session, &body)
}

/// The media type, without its parameters.
pub(super) fn content_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// A whole body of at most `most` bytes.
async fn read(mut body: Answer, most: usize) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|_| Failure::Broken)?;
        if whole.len() + piece.len() > most {
            return Err(Failure::TooLarge { most });
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

/// Tells a server of the older eras, where nobody waits for its answer any more: there, a closed connection says nothing.
struct Cancel(Option<(Arc<dyn Carrier>, Request<Bytes>)>);

impl Cancel {
    fn of(remote: &Remote, carrier: &Arc<dyn Carrier>, id: i64, method: &str) -> Self {
        let told = !matches!(remote.era, Era::Modern) && method != "initialize";
        let message = || {
            remote.message(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
                                   "params": {"requestId": id, "reason": "nobody waits for it any more"}}))
        };
        Self(told.then(|| (carrier.clone(), message())))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        let Some((carrier, request)) = self.0.take() else { return };
        let sender = carrier.clone();
        carrier.behind(Box::pin(async move {
            match sender.send(request).await {
                Ok(answer) if answer.status() == StatusCode::ACCEPTED => {}
                Ok(answer) => tracing::debug!(status = %answer.status(), "a cancellation was answered"),
                Err(error) => tracing::debug!(%error, "a cancellation was not sent"),
            }
        }));
    }
}
