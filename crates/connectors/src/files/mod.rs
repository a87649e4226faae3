//! One directory, read-only, as an MCP server: the tools `list`, `read` and `search`.
//!
//! It answers both protocol eras at the path `/mcp`: sessions (2025-11-25 and before) and stateless requests
//! (2026-07-28). It is called in-process: no port is opened, and `Host` and `Origin` have been checked by the gateway,
//! which alone knows the names under which it is reached.
//!
//! It must never write, never leave the directory, never serve a name that begins with a dot, a key file (by name or
//! by content), or anything that is not a regular file, and never tell where the directory lies. Whoever may write
//! into the directory decides what is in it: hard links and mounts count as its content.

mod lines;
mod list;
mod path;
mod read;
mod refusal;
mod root;
mod rules;
mod search;
mod tools;
mod work;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use rmcp::transport::streamable_http_server::session::local::{LocalSessionManager, SessionConfig};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::{CancellationToken, DropGuard};

use root::Root;
use tools::FilesServer;

/// The only path that answers.
pub const PATH: &str = "/mcp";

/// The first protocol version without sessions.
const FIRST_STATELESS: &str = "2026-07-28";
/// The name that requests carry on the last step, whatever they were sent to.
const HOST_NAME: &str = "files.local";
/// Largest request body, in bytes: arguments are a path and a pattern.
const MAX_REQUEST: usize = 64 * 1024;

/// What to serve.
#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// The directory. It is opened once: a directory that takes its place later is not served.
    pub root: PathBuf,
    /// Bounds of calls and sessions.
    pub limits: FilesLimits,
}

/// Bounds of calls and sessions. Where a bound is met the answer says so, and how to see the rest.
#[derive(Clone, Debug)]
pub struct FilesLimits {
    /// Bytes of file text, matches or paths in one answer. Default 256 KiB.
    pub answer_bytes: usize,
    /// Entries in one answer of `list`. Default 1,000.
    pub list_entries: usize,
    /// Names that one `list` or `search` looks at. Default 200,000.
    pub scan_names: u64,
    /// How deep into a file `read` goes, in bytes. Default 64 MiB.
    pub read_bytes: u64,
    /// Files that one `search` opens. Default 20,000.
    pub search_files: u64,
    /// Bytes that one `search` reads. Default 256 MiB.
    pub search_bytes: u64,
    /// How long a call waits for a slot, and how long it then runs. Default 10 s.
    pub call_time: Duration,
    /// Calls that work at once; further ones wait. Default 4.
    pub concurrent_calls: usize,
    /// Sessions of the older protocol era; further ones are refused with 503. Default 1,024.
    pub sessions: usize,
    /// A session ends after so long without a request. Default 30 minutes.
    pub session_idle: Duration,
}

impl Default for FilesLimits {
    fn default() -> Self {
        Self {
            answer_bytes: 256 * 1024,
            list_entries: 1000,
            scan_names: 200_000,
            read_bytes: 64 * 1024 * 1024,
            search_files: 20_000,
            search_bytes: 256 * 1024 * 1024,
            call_time: Duration::from_secs(10),
            concurrent_calls: 4,
            sessions: 1024,
            session_idle: Duration::from_secs(30 * 60),
        }
    }
}

/// A directory that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// It cannot be opened as a directory.
    #[error("cannot open the directory to serve, {}: check that it exists and may be read", root.display())]
    Open {
        /// What was given.
        root: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Bodies of answers: JSON, or a stream of server-sent events.
pub type FilesBody = BoxBody<Bytes, Infallible>;

/// The server. Clones share everything; when the last one is dropped, its sessions and streams end.
#[derive(Clone)]
pub struct FilesService(Arc<Shared>);

struct Shared {
    http: StreamableHttpService<FilesServer, LocalSessionManager>,
    sessions: Arc<LocalSessionManager>,
    max_sessions: usize,
    _running: DropGuard,
}

/// The name under which the server introduces itself, and its tools.
pub fn service_info() -> (&'static str, &'static [&'static str]) {
    (tools::NAME, tools::TOOLS)
}

/// Opens a directory for serving. Needs no runtime; calls need tokio's, with time.
///
/// # Errors
/// The directory does not exist, is not one, or may not be read.
pub fn files(config: FilesConfig) -> Result<FilesService, FilesError> {
    let FilesConfig { root: directory, limits } = config;
    let root = Root::open(&directory).map_err(|source| FilesError::Open { root: directory, source })?;

    let running = CancellationToken::new();
    let mut session = SessionConfig::default();
    session.keep_alive = Some(limits.session_idle);
    let mut sessions = LocalSessionManager::default();
    sessions.session_config = session;
    let sessions = Arc::new(sessions);
    let max_sessions = limits.sessions;

    // Whoever holds this value calls it: there is no port that a browser could be tricked into, and the gateway has
    // checked `Host` and `Origin` by the names under which it is reached. `call` puts a name of ours in their place,
    // and it is the only one accepted here.
    let http_config = StreamableHttpServerConfig::default()
        .with_allowed_hosts([HOST_NAME])
        .enforce_origin_validation()
        .with_max_request_body_bytes(MAX_REQUEST)
        .with_cancellation_token(running.clone());
    let server = FilesServer::new(root, limits);
    let http = StreamableHttpService::new(move || Ok(server.clone()), Arc::clone(&sessions), http_config);
    Ok(FilesService(Arc::new(Shared { http, sessions, max_sessions, _running: running.drop_guard() })))
}

impl FilesService {
    /// Answers one HTTP request. Every failure is an answer; paths other than [`PATH`] are 404.
    ///
    /// Dropping the answer's body ends a request of the stateless era (its tool call is cancelled), and is a mere
    /// disconnect in a session.
    pub async fn call<B>(&self, mut request: Request<B>) -> Response<FilesBody>
    where
        B: Body + Send + 'static,
        B::Error: fmt::Display,
    {
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, "only /mcp is served here");
        }
        if !matches!(*request.method(), Method::GET | Method::POST | Method::DELETE) {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "MCP uses GET, POST and DELETE");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            return answer;
        }
        if may_open_session(request.method(), request.headers())
            && self.0.sessions.sessions.read().await.len() >= self.0.max_sessions
        {
            let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "too many sessions: close one, or try again later");
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("30"));
            return answer;
        }
        *request.uri_mut() = Uri::from_static(PATH);
        request.headers_mut().insert(HOST, HeaderValue::from_static(HOST_NAME));
        request.headers_mut().remove(ORIGIN);
        let ends_session = *request.method() == Method::DELETE;
        let mut answer = self.0.http.handle(request).await;
        if ends_session && answer.status() == StatusCode::ACCEPTED {
            // Official clients take 200 and 204 for the end of a session, and report 202 as a failure.
            *answer.status_mut() = StatusCode::OK;
        }
        answer
    }
}

impl fmt::Debug for FilesService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesService").finish_non_exhaustive()
    }
}

/// Whether a request could be an `initialize`: a POST of the older era without a session. Judged by headers alone.
fn may_open_session(method: &Method, headers: &HeaderMap) -> bool {
    let version = headers.get("mcp-protocol-version").and_then(|version| version.to_str().ok());
    method == Method::POST
        && !headers.contains_key("mcp-session-id")
        && version.is_none_or(|version| version < FIRST_STATELESS)
}

fn plain(status: StatusCode, text: &'static str) -> Response<FilesBody> {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
