//! A client for the command line: one endpoint, one question, one answer.
//!
//! It tries the stateless era of the protocol first (2026-07-28) and falls back to sessions (2025-11-25), follows no
//! redirect, since the key would follow, and sends nothing twice that may have run. It applies no deadline to a call:
//! dropping the future ends it. Its background task ends with the function that started it.

mod error;
mod http;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ClientCapabilities, ClientConfig, ErrorData, Implementation,
    ProtocolVersion,
};
use rmcp::service::{ClientInitializeError, RunningService, ServiceError};
use rmcp::transport::common::client_side_sse::FixedInterval;
use rmcp::transport::streamable_http_client::{StreamableHttpClientTransport, StreamableHttpClientTransportConfig};
use rmcp::{ClientLifecycleMode, ClientServiceExt as _, RoleClient};
use serde::Serialize;
use serde_json::{Map, Value};
use sortie_ids::ApiKey;
use url::{Host, Url};

pub(crate) use self::error::{clean, next_step};
use self::http::{EndpointHttp, Failure, HopDetails};

pub use self::error::ClientError;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the endpoint may take to agree on a version, and to list its tools. Calls have no such bound.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a quiet connection is probed, so that a dead one is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often an answer's stream that the server paused is asked for again.
const RESUMPTIONS: usize = 5;
/// The code for a request whose headers do not repeat what its body says (revision 2026-07-28).
const HEADER_MISMATCH: i32 = -32020;

/// Where to call and with which key.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The endpoint: https, or http to this machine.
    pub url: String,
    /// Sent in `x-api-key`.
    pub key: ApiKey,
    /// The CA to trust, in PEM form, and no other; left out: what this machine trusts.
    pub ca_pem: Option<String>,
}

/// A tool that the endpoint offers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tool {
    /// Its name, to be called by.
    pub name: String,
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it does, in the server's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON Schema of its arguments.
    pub input_schema: Map<String, Value>,
    /// The JSON Schema of its structured answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Map<String, Value>>,
    /// Whether the server says that it changes nothing.
    pub read_only: bool,
}

/// What a tool answered.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallOutcome {
    /// Whether the tool says that it failed.
    pub is_error: bool,
    /// The content blocks, as the protocol has them (`{"type": "text", "text": ...}` and others).
    pub content: Vec<Value>,
    /// The structured answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured: Option<Value>,
}

impl CallOutcome {
    /// The text blocks, one after the other on lines of their own. It comes from the server as it is.
    pub fn text(&self) -> String {
        let texts = self.content.iter().filter_map(|block| block.get("text").and_then(Value::as_str));
        texts.collect::<Vec<_>>().join("\n")
    }
}

/// Lists the tools of an endpoint, all pages of them.
///
/// # Errors
/// The endpoint cannot be reached or trusted, refuses the caller, or is no MCP server.
pub async fn list_tools(endpoint: &Endpoint) -> Result<Vec<Tool>, ClientError> {
    let session = Session::open(endpoint).await?;
    let listed = within(&endpoint.url, session.service.list_all_tools()).await;
    let listed = listed.and_then(|listed| listed.map_err(|error| session.explain(error)));
    session.close().await;
    Ok(listed?.into_iter().map(tool).collect())
}

/// Calls one tool. A tool that failed is an outcome, not an error.
///
/// # Errors
/// As for [`list_tools`]; also where the tool wants to ask something, or the connection broke while it ran.
pub async fn call_tool(
    endpoint: &Endpoint,
    name: &str,
    arguments: Map<String, Value>,
) -> Result<CallOutcome, ClientError> {
    let session = Session::open(endpoint).await?;
    let params = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments);
    let mut called = session.service.call_tool_once(params.clone()).await;
    if matches!(&called, Err(ServiceError::McpError(error)) if error.code.0 == HEADER_MISMATCH) {
        // The tool wants arguments repeated in headers, as only its listing tells; the refused call has not run.
        called = match session.service.list_all_tools().await {
            Ok(_) => session.service.call_tool_once(params).await,
            Err(error) => Err(error),
        };
    }
    let called = called.map_err(|error| session.explain(error));
    let url = session.url.clone();
    session.close().await;
    match called? {
        CallToolResponse::Complete(result) => {
            let content = serde_json::to_value(&result.content)
                .map_err(|error| ClientError::Protocol { url, reason: clean(&error.to_string()) })?;
            Ok(CallOutcome {
                is_error: result.is_error.unwrap_or(false),
                content: content.as_array().cloned().unwrap_or_default(),
                structured: result.structured_content,
            })
        }
        _ => Err(ClientError::Interactive { tool: clean(name) }),
    }
}

/// A client that has agreed on a protocol version with the endpoint.
struct Session {
    url: String,
    http: EndpointHttp,
    service: RunningService<RoleClient, ClientConfig>,
}

impl Session {
    async fn open(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let url = endpoint.url.clone();
        let http = EndpointHttp::new(http_client(endpoint)?);
        let mut resumption = FixedInterval::default();
        resumption.max_times = Some(RESUMPTIONS);
        let mut config = StreamableHttpClientTransportConfig::with_uri(url.as_str()).reinit_on_expired_session(false);
        config.retry_config = Arc::new(resumption);
        let transport = StreamableHttpClientTransport::with_client(http.clone(), config);
        let me =
            ClientConfig::new(ClientCapabilities::default(), Implementation::new("sortie", env!("CARGO_PKG_VERSION")));
        let mode = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        };
        match within(&url, me.serve_with_lifecycle(transport, mode)).await? {
            Ok(service) => Ok(Self { url, http, service }),
            Err(error) => Err(explain_opening(&url, &http, &error)),
        }
    }

    /// Ends the session at the server, as far as it has one.
    async fn close(self) {
        if let Err(error) = self.service.cancel().await {
            tracing::debug!(%error, "the client's task ended badly");
        }
    }

    fn explain(&self, error: ServiceError) -> ClientError {
        match (error, self.http.take_failure()) {
            (ServiceError::McpError(error), _) => explain_refusal(&error),
            (_, Some(failure)) => explain_failure(&self.url, failure),
            (ServiceError::TransportSend(_) | ServiceError::TransportClosed | ServiceError::Cancelled { .. }, None) => {
                ClientError::Broken { url: self.url.clone() }
            }
            (other, None) => ClientError::Protocol { url: self.url.clone(), reason: clean(&other.to_string()) },
        }
    }
}

/// Waits for an answer that costs a server nothing to give.
async fn within<T>(url: &str, answer: impl Future<Output = T>) -> Result<T, ClientError> {
    let late = |_| ClientError::Silent { url: clean(url), seconds: ANSWER_TIMEOUT.as_secs() };
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(late)
}

fn http_client(endpoint: &Endpoint) -> Result<reqwest::Client, ClientError> {
    let bad = |reason: &str| ClientError::Url { url: clean(&endpoint.url), reason: reason.to_owned() };
    let url = Url::parse(&endpoint.url).map_err(|error| bad(&error.to_string()))?;
    let https = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(bad("its scheme is another one")),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("it carries a password, which belongs elsewhere"));
    }
    let here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        None => return Err(bad("it has no host")),
    };
    if !https && !here {
        return Err(ClientError::PlainHttp { url: clean(&endpoint.url) });
    }
    let mut key = HeaderValue::from_str(endpoint.key.expose()).map_err(|_| bad("the key cannot be sent"))?;
    key.set_sensitive(true);
    let tls = sortie_tls::api_client_config(endpoint.ca_pem.as_deref(), https);
    let tls = tls.map_err(|error| ClientError::Tls(error.into()))?;
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured((*tls).clone())
        .user_agent(concat!("sortie/", env!("CARGO_PKG_VERSION")))
        .default_headers(HeaderMap::from_iter([(::http::HeaderName::from_static("x-api-key"), key)]))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(KEEP_ALIVE);
    if here {
        // What goes to this machine must not pass a proxy elsewhere.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ClientError::Tls(error.into()))
}

fn tool(tool: rmcp::model::Tool) -> Tool {
    Tool {
        name: tool.name.into_owned(),
        title: tool.title,
        description: tool.description.map(std::borrow::Cow::into_owned),
        input_schema: Arc::unwrap_or_clone(tool.input_schema),
        output_schema: tool.output_schema.map(Arc::unwrap_or_clone),
        read_only: tool.annotations.and_then(|hints| hints.read_only_hint).unwrap_or(false),
    }
}

fn explain_opening(url: &str, http: &EndpointHttp, error: &ClientInitializeError) -> ClientError {
    if let Some(failure) = http.take_failure() {
        return explain_failure(url, failure);
    }
    match error {
        ClientInitializeError::JsonRpcError(error) => explain_refusal(error),
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => explain_opening(url, http, fallback),
        other => ClientError::Protocol { url: clean(url), reason: clean(&other.to_string()) },
    }
}

/// An error in JSON-RPC: one of ours if it names a hop, else the server's.
fn explain_refusal(error: &ErrorData) -> ClientError {
    let details = error.data.clone().and_then(|data| serde_json::from_value::<HopDetails>(data).ok());
    match details {
        Some(HopDetails { hop, reason }) => ClientError::Hop { hop, status: 200, reason: clean(&reason) },
        None => ClientError::Server { code: error.code.0, message: clean(&error.message) },
    }
}

fn explain_failure(url: &str, failure: Failure) -> ClientError {
    let url = clean(url);
    match failure {
        Failure::Hop { hop, status, reason } => ClientError::Hop { hop, status, reason: clean(&reason) },
        Failure::Redirect(status) => ClientError::Redirect { url, status },
        Failure::Status(status) => ClientError::Status { url, status },
        Failure::Broken => ClientError::Broken { url },
        Failure::Protocol(reason) => ClientError::Protocol { url, reason: reason.to_owned() },
        Failure::Send(error) => {
            let error = error.without_url();
            let refused = |error: &(dyn Error + 'static)| {
                error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            };
            if causes(&error).any(refused) {
                ClientError::NothingListens { url }
            } else if sortie_tls::is_certificate_refusal(&error) {
                ClientError::Untrusted { url, source: error.into() }
            } else if error.is_connect() {
                ClientError::Unreachable { url, source: error.into() }
            } else {
                ClientError::Broken { url }
            }
        }
    }
}

/// An error and what lies behind it, also inside I/O errors, which keep theirs apart from `source`.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_endpoint_is_given_up() {
        let error = within("http://127.0.0.1:1/mcp", std::future::pending::<()>()).await.expect_err("no answer");
        assert_eq!(error.to_string(), "http://127.0.0.1:1/mcp did not answer within 60 s: look at the hub's logs");
    }
}
