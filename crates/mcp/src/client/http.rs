//! The HTTP side of the client: one POST per message, and what each answer means.
//!
//! The protocol library brings an HTTP client of its own, which forgets the headers and bodies by which Sortie tells
//! where a call ended. This one keeps the last failure for [`super::ClientError`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, StatusCode};
use reqwest::Response;
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, ErrorData, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    SseError, StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse,
};
use serde::Deserialize;
use sortie_api::{HOP_HEADER, Hop};
use sse_stream::{Sse, SseStream};

/// Largest answer, in bytes, be it one message or a stream of them.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Largest body of an error, in bytes.
const MAX_ERROR: usize = 64 * 1024;

const ACCEPTED_TYPES: &str = "application/json, text/event-stream";
const SESSION_HEADER: &str = "mcp-session-id";

/// Why the last exchange failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// There was no answer.
    Send(reqwest::Error),
    /// Sortie said where the call ended.
    Hop { hop: Hop, status: u16, reason: String },
    /// A redirect.
    Redirect(u16),
    /// Another status.
    Status(u16),
    /// The answer broke off.
    Broken,
    /// The answer is not MCP.
    Protocol(&'static str),
}

/// Tells the protocol library that an exchange failed; [`Failure`] says why.
#[derive(Debug, thiserror::Error)]
#[error("the exchange failed")]
pub(super) struct Failed;

type Outcome<T> = Result<T, StreamableHttpError<Failed>>;

/// The HTTP client of one endpoint.
#[derive(Clone, Debug)]
pub(super) struct EndpointHttp {
    http: reqwest::Client,
    last: Arc<Mutex<Option<Failure>>>,
}

/// `error.details` of our error object, `error.data` of our JSON-RPC errors.
#[derive(Deserialize)]
pub(super) struct HopDetails {
    pub(super) hop: Hop,
    pub(super) reason: String,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ErrorObject,
}

#[derive(Deserialize)]
struct ErrorObject {
    details: Option<HopDetails>,
    data: Option<HopDetails>,
}

impl EndpointHttp {
    pub(super) fn new(http: reqwest::Client) -> Self {
        Self { http, last: Arc::default() }
    }

    /// Takes the last failure, if the last exchange was one.
    pub(super) fn take_failure(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn keep(&self, failure: Option<Failure>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    fn fail<T>(&self, failure: Failure) -> Outcome<T> {
        self.keep(Some(failure));
        Err(StreamableHttpError::Client(Failed))
    }

    async fn post(
        &self,
        uri: &str,
        message: &ClientJsonRpcMessage,
        session: Option<&str>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<StreamableHttpPostResponse> {
        let mut request = self.http.post(uri).header(ACCEPT, ACCEPTED_TYPES).headers(headers.into_iter().collect());
        if let Some(session) = session {
            request = request.header(SESSION_HEADER, session);
        }
        let answer = match request.json(message).send().await {
            Ok(answer) => answer,
            Err(error) => return self.fail(Failure::Send(error)),
        };
        let status = answer.status();
        if !status.is_success() {
            return self.refused(message, session, answer).await;
        }
        self.keep(None);
        let given = answer.headers().get(SESSION_HEADER).and_then(|id| id.to_str().ok()).map(str::to_owned);
        match content_type(&answer) {
            _ if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) => {
                Ok(StreamableHttpPostResponse::Accepted)
            }
            "text/event-stream" => Ok(StreamableHttpPostResponse::Sse(events(answer), given)),
            _ if !matches!(message, ClientJsonRpcMessage::Request(_)) => Ok(StreamableHttpPostResponse::Accepted),
            "application/json" => {
                let Some(body) = read(answer, MAX_ANSWER).await else { return self.fail(Failure::Broken) };
                match serde_json::from_slice(&body) {
                    Ok(message) => Ok(StreamableHttpPostResponse::Json(message, given)),
                    Err(_) => self.fail(Failure::Protocol("its answer is not a JSON-RPC message")),
                }
            }
            _ => self.fail(Failure::Protocol("its answer is neither JSON nor a stream of events")),
        }
    }

    /// What an answer other than 2xx means.
    async fn refused(
        &self,
        message: &ClientJsonRpcMessage,
        session: Option<&str>,
        answer: Response,
    ) -> Outcome<StreamableHttpPostResponse> {
        let status = answer.status();
        if status.is_redirection() {
            return self.fail(Failure::Redirect(status.as_u16()));
        }
        if status == StatusCode::NOT_FOUND && session.is_some() {
            self.keep(Some(Failure::Status(status.as_u16())));
            return Err(StreamableHttpError::SessionExpired);
        }
        let hop = named_hop(&answer);
        let body = read(answer, MAX_ERROR).await.unwrap_or_default();
        let details =
            serde_json::from_slice::<ErrorBody>(&body).ok().and_then(|body| body.error.details.or(body.error.data));
        if let Some(hop) = hop.or(details.as_ref().map(|details| details.hop)) {
            let reason = details.map_or_else(|| format!("HTTP {}", status.as_u16()), |details| details.reason);
            return self.fail(Failure::Hop { hop, status: status.as_u16(), reason });
        }
        if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let discover = match message {
                ClientJsonRpcMessage::Request(request) => {
                    matches!(request.request, ClientRequest::DiscoverRequest(_)).then(|| request.id.clone())
                }
                _ => None,
            };
            let spoken = serde_json::from_slice::<ServerJsonRpcMessage>(&body);
            match (spoken, discover) {
                // A server of the older era refuses the probe in ways of its own: whatever it says, with the probe's
                // id, lets the library go on with `initialize`.
                (Ok(ServerJsonRpcMessage::Error(error)), Some(id)) => {
                    let error = ServerJsonRpcMessage::error(error.error, Some(id));
                    return Ok(StreamableHttpPostResponse::Json(error, None));
                }
                (Ok(error @ ServerJsonRpcMessage::Error(_)), None) => {
                    return Ok(StreamableHttpPostResponse::Json(error, None));
                }
                (_, Some(id)) if status.is_client_error() => {
                    self.keep(Some(Failure::Status(status.as_u16())));
                    let error = ErrorData::invalid_request(format!("HTTP {}", status.as_u16()), None);
                    return Ok(StreamableHttpPostResponse::Json(ServerJsonRpcMessage::error(error, Some(id)), None));
                }
                _ => {}
            }
        }
        self.fail(Failure::Status(status.as_u16()))
    }

    async fn delete(&self, uri: &str, session: &str, headers: HashMap<HeaderName, HeaderValue>) {
        let request = self.http.delete(uri).header(SESSION_HEADER, session).headers(headers.into_iter().collect());
        // A session that is not ended ends by itself.
        if let Err(error) = request.send().await {
            tracing::debug!(%error, "the session was not ended");
        }
    }

    /// Goes on with an answer's stream that the server paused; streams that belong to no request are not opened, since
    /// nothing here waits for them.
    async fn resume(
        &self,
        uri: &str,
        session: Option<&str>,
        last_event: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<BoxStream<'static, Result<Sse, SseError>>> {
        let Some(last_event) = last_event else { return Err(StreamableHttpError::ServerDoesNotSupportSse) };
        let mut request = self.http.get(uri).header(ACCEPT, ACCEPTED_TYPES).headers(headers.into_iter().collect());
        if let Some(session) = session {
            request = request.header(SESSION_HEADER, session);
        }
        match request.header("last-event-id", last_event).send().await {
            Ok(answer) if answer.status().is_success() && content_type(&answer) == "text/event-stream" => {
                Ok(events(answer))
            }
            Ok(_) => self.fail(Failure::Broken),
            Err(error) => self.fail(Failure::Send(error)),
        }
    }
}

impl StreamableHttpClient for EndpointHttp {
    type Error = Failed;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<StreamableHttpPostResponse> {
        self.post(&uri, &message, session_id.as_deref(), custom_headers).await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<()> {
        self.delete(&uri, &session_id, custom_headers).await;
        Ok(())
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Outcome<BoxStream<'static, Result<Sse, SseError>>> {
        self.resume(&uri, session_id.as_deref(), last_event_id, custom_headers).await
    }
}

/// The media type, without its parameters.
fn content_type(answer: &Response) -> &str {
    let text = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim()
}

/// The hop that an answer names in its header.
fn named_hop(answer: &Response) -> Option<Hop> {
    let name = answer.headers().get(HOP_HEADER)?.to_str().ok()?;
    serde_json::from_value(name.into()).ok()
}

/// A whole body of at most `most` bytes; `None` where it is larger or breaks off.
async fn read(mut answer: Response, most: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > most {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// The events of an answer, which may be `MAX_ANSWER` bytes in all.
fn events(answer: Response) -> BoxStream<'static, Result<Sse, SseError>> {
    let mut left = MAX_ANSWER;
    let bounded = answer.bytes_stream().map_err(std::io::Error::other).map(move |chunk: std::io::Result<Bytes>| {
        let chunk = chunk?;
        left = left.checked_sub(chunk.len()).ok_or_else(|| std::io::Error::other("the answer is too large"))?;
        Ok::<_, std::io::Error>(chunk)
    });
    SseStream::from_bytes_stream(bounded).boxed()
}
