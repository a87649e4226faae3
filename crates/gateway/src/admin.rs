//! The gateway's own API, for those who run it: HTTP/1.1 over the Unix socket `admin.sock` in the data directory.
//!
//! Whoever may open the socket (mode 0600) and is the gateway's own user, or root, may ask for everything; there are no
//! keys. Everything is bounded: connections, the time of each request, the body of a request. A part of the gateway that
//! has something to say here adds its rows to [`operations`].
//!
//! Errors have the public API's form. The socket is there from the start until the last call has ended, so that what
//! waits for a person can still be decided while the gateway drains.

mod operations;
mod socket;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sortie_api::ApiError;
use sortie_ids::RequestId;
use sortie_runtime::http::{HEAD_DEADLINE, MAX_HEADERS};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;

use crate::body::{CallBody, whole};
use crate::gateway::Shared;

pub use socket::AdminAddress;
pub(crate) use socket::{AdminSocket, Person};

/// Connections at once; more wait in the socket's queue.
const MAX_CONNECTIONS: usize = 32;
/// Longest body of a request, in bytes; a longer one is answered 413.
const MAX_BODY: usize = 64 * 1024;
/// Longest time for a request, its body included; then 503.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long the listener rests when a connection could not be accepted.
const REST: Duration = Duration::from_millis(100);
/// The name under which the public API tells the id of a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// One operation: what is asked for, and what answers it.
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// Segments in braces take any text: `/v1/approvals/{id}`. It is found by its place in [`AdminRequest::at`].
    pub(crate) path: &'static str,
    pub(crate) answer: fn(Arc<Shared>, AdminRequest) -> BoxFuture<'static, Result<Answer, ApiError>>,
}

/// A request as its operation sees it.
pub(crate) struct AdminRequest {
    /// What stands where the path has braces, in order, percent-decoded.
    segments: Vec<String>,
    #[allow(dead_code, reason = "for the operations of other parts")]
    query: Vec<(String, String)>,
    body: Bytes,
    /// Who asks.
    pub(crate) person: Person,
}

impl AdminRequest {
    /// The text at a place in braces, from 0; empty where the path has no such place.
    pub(crate) fn at(&self, place: usize) -> &str {
        self.segments.get(place).map_or("", String::as_str)
    }

    /// A parameter of the query.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; an empty one counts as `{}`.
    ///
    /// # Errors
    /// 400 when it is not what is expected.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(|error| ApiError::invalid_request(format!("the body: {error}")))
    }
}

/// An answer, in JSON.
pub(crate) struct Answer(Vec<u8>);

impl Answer {
    /// The JSON of a value.
    ///
    /// # Errors
    /// 500 when the value has no JSON, which none of ours lacks.
    pub(crate) fn json<T: Serialize>(value: &T) -> Result<Self, ApiError> {
        serde_json::to_vec(value).map(Self).map_err(|_| ApiError::internal())
    }
}

/// Serves the socket; its drop, when the gateway has drained, removes it.
pub(crate) async fn serve(shared: Arc<Shared>, socket: AdminSocket) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accept = async {
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let stream = match socket.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the admin socket could not be accepted");
                    tokio::time::sleep(REST).await;
                    continue;
                }
            };
            let here = shared.clone();
            shared.tasks.spawn("admin", async move {
                let _permit = permit;
                connection(here, stream).await;
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = ended(&shared) => {}
    }
}

/// Completes when nothing is left to ask for. While the gateway drains, there is.
async fn ended(shared: &Shared) {
    shared.tasks.stopping().await;
    if shared.draining.load(Ordering::Acquire) {
        shared.tasks.aborted().await;
    }
}

async fn connection(shared: Arc<Shared>, stream: UnixStream) {
    let person = socket::person(&stream);
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, person) = (shared.clone(), person.clone());
        async move { Ok::<_, Infallible>(respond(shared, person, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(16 * 1024)
        .max_headers(MAX_HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = ended(&shared) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the admin socket ended");
    }
}

async fn respond(shared: Arc<Shared>, person: Option<Person>, request: Request<Incoming>) -> Response<CallBody> {
    let id = RequestId::random();
    let head_only = request.method() == Method::HEAD;
    let answered = tokio::time::timeout(DEADLINE, answer(shared, person, request)).await;
    let (status, body, allow) = match answered {
        Ok(Ok(Answer(body))) => (StatusCode::OK, body, None),
        Ok(Err(Refused { error, allow })) => (error.status, error.body(id.as_str()), allow),
        Err(_) => {
            let error = ApiError::overloaded(format!("this took longer than {} s", DEADLINE.as_secs()));
            (error.status, error.body(id.as_str()), None)
        }
    };
    let mut response = Response::new(whole(if head_only { Vec::new() } else { body }));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(id.as_str()) {
        headers.insert(REQUEST_ID, id);
    }
    if let Some(allow) = allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
        headers.insert(ALLOW, allow);
    }
    response
}

/// An error, and the methods that there are where only the method was wrong.
struct Refused {
    error: ApiError,
    allow: Option<String>,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self { error, allow: None }
    }
}

async fn answer(shared: Arc<Shared>, person: Option<Person>, request: Request<Incoming>) -> Result<Answer, Refused> {
    let person = person.ok_or_else(|| {
        ApiError::permission("only the gateway's own user, or root, may ask here; run the command as that user")
    })?;
    let (operation, segments) = find(request.method(), request.uri().path())?;
    let query = url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
    let query = query.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::too_large(format!("the body is larger than {MAX_BODY} bytes"))
        } else {
            ApiError::invalid_request("the body broke off")
        }
    })?;
    let asked = AdminRequest { segments, query, body: body.to_bytes(), person };
    (operation.answer)(shared, asked).await.map_err(Refused::from)
}

fn find(method: &Method, path: &str) -> Result<(&'static Operation, Vec<String>), Refused> {
    let mut allowed = Vec::new();
    for operation in operations::all() {
        let Some(segments) = matched(operation.path, path) else { continue };
        if operation.method == method || (method == Method::HEAD && operation.method == Method::GET) {
            return Ok((operation, segments));
        }
        allowed.push(operation.method.as_str());
    }
    if allowed.is_empty() {
        return Err(ApiError::not_found(format!("there is no `{}` here", crate::probe::printable(path))).into());
    }
    let allow = allowed.join(", ");
    let error = ApiError::method_not_allowed(format!("only {allow} is answered here"));
    Err(Refused { error, allow: Some(allow) })
}

/// What a path has where the pattern has braces; `None` where they do not match.
fn matched(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut segments = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(segments),
            (Some(name), Some(text)) if name.starts_with('{') => segments.push(decoded(text)?),
            (Some(name), Some(text)) if name == text => {}
            _ => return None,
        }
    }
}

/// A segment of a path without its percent-encoding (RFC 3986, section 2.1); `None` when it is empty or no UTF-8.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(rest.next())? << 4 | digit(rest.next())?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// Makes a row of the table from an async function.
pub(crate) fn answering<F>(future: F) -> BoxFuture<'static, Result<Answer, ApiError>>
where
    F: Future<Output = Result<Answer, ApiError>> + Send + 'static,
{
    future.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_segment_by_segment() {
        assert_eq!(matched("/v1/approvals", "/v1/approvals"), Some(vec![]));
        assert_eq!(matched("/v1/approvals/{id}", "/v1/approvals/apr_1"), Some(vec!["apr_1".to_owned()]));
        assert_eq!(matched("/v1/pins/{r}/{t}", "/v1/pins/docs/a%2Fb%20c"), Some(vec!["docs".into(), "a/b c".into()]));
        for (pattern, path) in [
            ("/v1/approvals", "/v1/approvals/"),
            ("/v1/approvals/{id}", "/v1/approvals/"),
            ("/v1/approvals/{id}", "/v1/approvals/x/y"),
            ("/v1/approvals/{id}", "/v1/approvals/%ff"),
            ("/v1/approvals/{id}", "/v1/approvals/%2"),
        ] {
            assert_eq!(matched(pattern, path), None, "{path}");
        }
    }

    #[test]
    fn operations_are_told_apart() {
        let all: Vec<_> = operations::all().map(|one| (one.method.as_str(), one.path)).collect();
        let mut distinct = all.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), all.len());
        let Err(Refused { error, allow }) = find(&Method::DELETE, "/v1/readiness") else { panic!("found") };
        assert_eq!((error.status, allow.as_deref()), (StatusCode::METHOD_NOT_ALLOWED, Some("GET")));
        assert_eq!(find(&Method::GET, "/nowhere").err().expect("refused").error.status, StatusCode::NOT_FOUND);
    }
}
