//! Dialling upstreams: resolve, judge, connect to what was judged. Nothing is retried, no redirect is followed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use sortie_ids::RouteName;
use sortie_runtime::TaskSet;
use sortie_runtime::http::{KEEPALIVE, MAX_HEAD, MAX_HEADERS};
use sortie_tls::{ClientConfig, ClientStream, ServerName, TlsConnector, Versions, explain_io};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::body::CallBody;
use crate::config::{RouteConfig, Server, UpstreamConfig};
use crate::guard::{Guard, Refusal};

/// How long an idle connection is kept: less than the five seconds after which common servers close theirs.
const IDLE: Duration = Duration::from_secs(3);
/// Most idle connections to one upstream.
const MAX_IDLE: usize = 64;
/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// A server within this process that calls of a route go to instead of being dialled out.
pub trait LocalUpstream: Send + Sync {
    /// Answers one request. Every failure is an answer.
    fn call(&self, request: Request<CallBody>) -> BoxFuture<'static, Response<CallBody>>;
}

/// Opens the built-in upstream that a route's settings name. Called where blocking is allowed, at the start and whenever
/// these settings have changed. An error says what is wrong and the way out.
pub type OpenLocal = Arc<dyn Fn(&RouteName, &RouteConfig) -> Result<Arc<dyn LocalUpstream>, String> + Send + Sync>;

/// Why an upstream could not be dialled. For the log: names addresses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("the name `{host}` could not be resolved: {cause}")]
    Resolve { host: String, cause: io::Error },
    #[error("the name `{host}` has no address")]
    NoAddress { host: String },
    #[error("{0}")]
    Refused(Refusal),
    #[error("no connection within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("{address} could not be connected: {cause}")]
    Connect { address: SocketAddr, cause: io::Error },
    #[error("TLS with the upstream failed: {0}")]
    Tls(String),
    #[error("no trust is configured for https upstreams; set ca_file or include_system_cas under [upstream.tls]")]
    NoTrust,
}

impl DialError {
    /// The same for the caller, without addresses.
    pub(crate) fn public(&self) -> &'static str {
        match self {
            DialError::Resolve { .. } | DialError::NoAddress { .. } => "its name could not be resolved",
            DialError::Refused(_) => "its address is not one that the gateway may dial",
            DialError::Timeout(_) => "it did not accept a connection in time",
            DialError::Connect { cause, .. } if cause.kind() == io::ErrorKind::ConnectionRefused => {
                "it refused the connection"
            }
            DialError::Connect { .. } => "it could not be connected",
            DialError::Tls(_) | DialError::NoTrust => "its TLS is not acceptable",
        }
    }

    /// The dial that failed beneath an error of the client.
    pub(crate) fn beneath(error: &Error) -> Option<&DialError> {
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            if let Some(dial) = error.downcast_ref::<DialError>() {
                return Some(dial);
            }
            source = error.source();
        }
        None
    }
}

/// Dials upstreams under the guard.
#[derive(Clone)]
pub(crate) struct Dialer(Arc<Dial>);

struct Dial {
    guard: Guard,
    timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
}

impl Dialer {
    /// `ca_pem` is the text of the configured CA file.
    pub(crate) fn new(config: &UpstreamConfig, ca_pem: Option<&str>) -> Result<Self, sortie_tls::TlsError> {
        let tls = match (ca_pem, config.include_system_cas) {
            (None, false) => None,
            (pem, system) => {
                Some(sortie_tls::client_config(pem.unwrap_or(""), system, Versions::Legacy, &[b"http/1.1"])?)
            }
        };
        let guard = Guard::new(config.allowed_ips.clone());
        Ok(Self(Arc::new(Dial { guard, timeout: config.connect_timeout, tls })))
    }

    /// A fresh connection to a server, TLS included.
    pub(crate) async fn dial(&self, tls: bool, host: &str, port: u16) -> Result<UpstreamStream, DialError> {
        let deadline = Instant::now() + self.0.timeout;
        let timeout = || DialError::Timeout(self.0.timeout);
        let dialling = async {
            let addresses = self.judged(host, port).await?;
            let tcp = connect(&addresses, deadline).await?.ok_or_else(timeout)?;
            // Small JSON messages must not wait for each other.
            let _ = tcp.set_nodelay(true);
            // A call has no time limit of ours, but a machine that went away must not hold it for ever.
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
            let _ = SockRef::from(&tcp).set_tcp_keepalive(&keepalive);
            if !tls {
                return Ok(UpstreamStream::Plain(tcp));
            }
            let config = self.0.tls.clone().ok_or(DialError::NoTrust)?;
            let name = ServerName::try_from(host.to_owned()).map_err(|error| DialError::Tls(error.to_string()))?;
            let stream = TlsConnector::from(config).connect(name, tcp).await;
            Ok(UpstreamStream::Tls(Box::new(stream.map_err(|error| DialError::Tls(explain_io(&error)))?)))
        };
        tokio::time::timeout_at(deadline, dialling).await.map_err(|_| timeout())?
    }

    /// The addresses of a name that may be dialled; all are judged before any is.
    pub(crate) async fn judged(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let found: Vec<SocketAddr> = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, port)],
            Err(_) => tokio::net::lookup_host((host, port))
                .await
                .map_err(|cause| DialError::Resolve { host: host.to_owned(), cause })?
                .collect(),
        };
        let mut allowed = Vec::new();
        let mut refused = None;
        for address in found {
            match self.0.guard.judge(address.ip()) {
                Ok(()) => allowed.push(address),
                Err(refusal) => {
                    tracing::warn!(host, "{refusal}");
                    refused.get_or_insert(refusal);
                }
            }
        }
        allowed.truncate(MAX_ADDRESSES);
        match (allowed.is_empty(), refused) {
            (false, _) => Ok(allowed),
            (true, Some(refusal)) => Err(DialError::Refused(refusal)),
            (true, None) => Err(DialError::NoAddress { host: host.to_owned() }),
        }
    }
}

/// The first address that answers; each gets its share of the time that is left. `None` when the time ran out.
async fn connect(addresses: &[SocketAddr], deadline: Instant) -> Result<Option<TcpStream>, DialError> {
    let mut failure = None;
    for (tried, address) in addresses.iter().enumerate() {
        let waiting = u32::try_from(addresses.len() - tried).unwrap_or(1).max(1);
        let share = deadline.saturating_duration_since(Instant::now()) / waiting;
        match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(Some(stream)),
            Ok(Err(cause)) => failure = Some(DialError::Connect { address: *address, cause }),
            Err(_) => {}
        }
    }
    failure.map_or(Ok(None), Err)
}

/// The pool of connections to all upstreams of this gateway.
pub(crate) type UpstreamClient = Client<Dialer, CallBody>;

/// A pool that dials with `dialer` and runs its connections in `tasks`.
pub(crate) fn client(dialer: Dialer, tasks: TaskSet) -> UpstreamClient {
    Client::builder(InTasks::new(tasks, "upstream"))
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MAX_IDLE)
        // Concerns only requests that were handed back unsent, because the server had closed a kept connection: they
        // cannot have run. What was written, even in part, is never sent again.
        .retry_canceled_requests(true)
        .set_host(false)
        .http1_max_buf_size(MAX_HEAD)
        .http1_max_headers(MAX_HEADERS)
        .build(dialer)
}

/// The URI by which the pool knows a server, with the path and query of the call, byte for byte.
pub(crate) fn uri_for(server: &Server, call: &Uri) -> Result<Uri, http::Error> {
    let path = call.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let scheme = if server.tls { "https" } else { "http" };
    Uri::builder().scheme(scheme).authority(server.authority.clone()).path_and_query(path).build()
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<UpstreamStream>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let tls = uri.scheme_str() == Some("https");
            // Never absent: the configuration demands a port.
            let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
            dialer.dial(tls, host, port).await.map(TokioIo::new)
        })
    }
}

/// A connection to an upstream.
pub(crate) enum UpstreamStream {
    Plain(TcpStream),
    Tls(Box<ClientStream<TcpStream>>),
}

impl Connection for UpstreamStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            UpstreamStream::Plain(stream) => stream.is_write_vectored(),
            UpstreamStream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            UpstreamStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            UpstreamStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Lets hyper spawn through a task set.
#[derive(Clone)]
pub(crate) struct InTasks {
    tasks: TaskSet,
    name: &'static str,
}

impl InTasks {
    pub(crate) fn new(tasks: TaskSet, name: &'static str) -> Self {
        Self { tasks, name }
    }
}

impl<F> hyper::rt::Executor<F> for InTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(self.name, future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Upstream;

    fn dialer(allowed: &[&str], timeout: Duration) -> Dialer {
        let allowed_ips = allowed.iter().map(|text| text.parse().expect(text)).collect();
        let config = UpstreamConfig { allowed_ips, connect_timeout: timeout, ca_file: None, include_system_cas: false };
        Dialer::new(&config, None).expect("dialer")
    }

    #[tokio::test]
    async fn names_are_judged_by_where_they_lead() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let second = Duration::from_secs(5);
        let private = dialer(&["10.0.0.0/8"], second);
        for host in ["127.0.0.1", "localhost", "0.0.0.0"] {
            let Err(error) = private.dial(false, host, port).await else { panic!("{host} was dialled") };
            assert!(matches!(error, DialError::Refused(_)), "{host}: {error}");
            assert!(!error.public().contains("127.0.0.1"));
        }
        // Of the addresses of `localhost`, only those that are allowed are dialled.
        let v4_only = dialer(&["127.0.0.0/8"], second);
        assert!(v4_only.dial(false, "localhost", port).await.is_ok());
    }

    #[tokio::test]
    async fn failures_to_dial_are_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let loopback = dialer(&["127.0.0.0/8"], Duration::from_millis(300));
        let refusal = async |tls, host, port| match loopback.dial(tls, host, port).await {
            Ok(_) => panic!("{host} was dialled"),
            Err(error) => error,
        };
        assert!(matches!(refusal(true, "127.0.0.1", port).await, DialError::NoTrust));
        assert!(matches!(
            refusal(false, "nowhere.invalid", port).await,
            DialError::Resolve { .. } | DialError::Timeout(_)
        ));
        drop(listener);
        assert_eq!(refusal(false, "127.0.0.1", port).await.public(), "it refused the connection");
    }

    #[test]
    fn path_and_query_stay_as_they_are() {
        let Ok(Upstream::Server(server)) = "http://10.0.0.5:8080".parse() else { panic!("server") };
        for path in ["/", "/mcp", "/a//b/../c;d=e/%2e%2E/%7euser?x=1&x=2&y=%20+", "/?", "*"] {
            let uri = uri_for(&server, &path.parse().expect(path)).expect(path);
            assert_eq!(uri.path_and_query().expect("path").as_str(), path);
        }
    }
}
