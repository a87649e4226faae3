//! The listeners: what comes in, and who answers it.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::future::BoxFuture;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sortie_api::{Hop, HopError};
use sortie_edge::{ClientConnection, Terminator};
use sortie_ids::{BaseDomain, RequestId, RouteName, TunnelId, TunnelLabel};
use sortie_link::EdgeLink;
use sortie_link::protos::{CheckpointVerdict, ProbeFailure, PublishedNote};
use sortie_runtime::http::{
    CONNECTION_WINDOW, HEAD_DEADLINE, InTasks, MAX_FRAME, MAX_HEAD, MAX_HEAD_U32, MAX_MISTAKES, MAX_SEND_BUFFER,
    MAX_STREAMS, MAX_UNSEEN_RESETS, STREAM_WINDOW,
};
use sortie_runtime::{Metrics, Places, TaskSet, close_gently, notice_absence};
use sortie_tls::{ServerConfig, ServerStream, TlsAcceptor};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;

use crate::api::{Own, authenticate, own};
use crate::audit::PeerAddress;
use crate::body::{Answering, ResponseBody};
use crate::call::{Calls, Refusal, Target, own_response};
use crate::hosts::Hosts;
use crate::idle::Requests;
use crate::published::Published;
use crate::request;

/// Connections held at once on the health listener: the operator's own machinery needs few.
const MAX_HEALTH_CONNECTIONS: usize = 64;
/// How long a client may keep a connection, HTTP/2 above all, without any request on it.
const IDLE: Duration = Duration::from_secs(90);
/// How long a client that never sent a request may take to close its end.
const GOODBYE: Duration = Duration::from_secs(1);
/// How long to wait for more of a beginning that came in pieces.
const PEEK_AGAIN: Duration = Duration::from_millis(20);

/// Answers requests on every listener of the hub.
pub(crate) struct Front {
    pub(crate) calls: Arc<Calls>,
    pub(crate) api: Router,
    pub(crate) published: Published,
    pub(crate) base: BaseDomain,
    pub(crate) api_hosts: Hosts,
    pub(crate) edge_hosts: Hosts,
    pub(crate) metrics: Metrics,
    pub(crate) tasks: TaskSet,
}

impl Front {
    /// Accepts connections on the API's listener until the set is stopped.
    pub(crate) async fn serve_api(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        places: Places,
    ) {
        self.accept(listener, tls, Place::Api, places).await;
    }

    /// Accepts connections on the health listener until the set is stopped.
    pub(crate) async fn serve_health(self: Arc<Self>, listener: TcpListener) {
        self.accept(listener, None, |_| Place::Health, Places::new(MAX_HEALTH_CONNECTIONS, 100)).await;
    }

    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        place: fn(IpAddr) -> Place,
        places: Places,
    ) {
        let tls = tls.map(TlsAcceptor::from);
        loop {
            let accepted = tokio::select! {
                () = self.tasks.stopping() => return,
                accepted = async {
                    places.free().await;
                    listener.accept().await
                } => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let held = match places.take(peer.ip()) {
                Ok(held) => held,
                Err(why) => {
                    metrics::counter!("sortie_hub_connections_refused_total", "reason" => why.as_str()).increment(1);
                    tracing::debug!(%peer, "closed: {why}");
                    continue;
                }
            };
            notice_absence(&stream);
            let (front, tls, place) = (self.clone(), tls.clone(), place(peer.ip()));
            self.tasks.spawn("api-connection", async move {
                let _held = held;
                // On the heap, here and below: a connection would keep the room of its handshake for ever.
                match tls {
                    None => match Box::pin(tokio::time::timeout(HEAD_DEADLINE, begins_as_http2(&stream))).await {
                        Ok(Ok(true)) => Box::pin(front.serve_http2(stream, place)).await,
                        Ok(Ok(false)) => front.serve_http1(stream, place).await,
                        Ok(Err(_)) | Err(_) => tracing::debug!("no request came on a connection"),
                    },
                    Some(tls) => match Box::pin(tokio::time::timeout(HEAD_DEADLINE, tls.accept(stream))).await {
                        Ok(Ok(stream)) => front.serve_tls(stream, place).await,
                        Ok(Err(error)) => tracing::debug!(reason = sortie_tls::explain_io(&error), "no TLS on the API"),
                        Err(_) => tracing::debug!("no TLS handshake in time on the API"),
                    },
                }
            });
        }
    }

    /// What TLS negotiated is what is spoken.
    async fn serve_tls<S>(self: Arc<Self>, stream: ServerStream<S>, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Box::pin(self.serve_http2(stream, place)).await,
            _ => Box::pin(self.serve_http1(stream, place)).await,
        }
    }

    async fn serve_http1<S>(self: Arc<Self>, mut stream: S, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests::default();
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
        // How many header lines there may be is left to hyper, which makes room for each head anew where it is told, and to
        // `request::check`.
        builder.max_buf_size(MAX_HEAD);
        {
            let connection = builder.serve_connection(TokioIo::new(&mut stream), self.service(place, &requests));
            let mut connection = std::pin::pin!(connection);
            self.until_idle(&requests, connection.as_mut(), http1::Connection::graceful_shutdown).await;
        }
        close_gently(&mut stream).await;
    }

    async fn serve_http2<S>(self: Arc<Self>, stream: S, place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let requests = Requests::default();
        let mut builder = http2::Builder::new(InTasks::new(self.tasks.clone(), "api-http2"));
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEAD_U32)
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .max_pending_accept_reset_streams(MAX_UNSEEN_RESETS)
            .max_local_error_reset_streams(MAX_MISTAKES)
            .keep_alive_interval(None);
        let connection = builder.serve_connection(TokioIo::new(stream), self.service(place, &requests));
        let mut connection = std::pin::pin!(connection);
        self.until_idle(&requests, connection.as_mut(), http2::Connection::graceful_shutdown).await;
    }

    fn service(
        self: &Arc<Self>,
        place: Place,
        requests: &Requests,
    ) -> impl HttpService<Incoming, ResBody = Answering, Error = Infallible, Future: Send + 'static> + use<> {
        let (front, place, requests) = (self.clone(), Arc::new(place), requests.clone());
        service_fn(move |request| {
            let (front, place, open) = (front.clone(), place.clone(), requests.begin());
            // On the heap, and gone with the head of the answer: a connection keeps the room of its future for ever.
            Box::pin(async move {
                let head_only = request.method() == http::Method::HEAD;
                let answer = front.answer(request, &place).await;
                Ok::<_, Infallible>(answer.map(|body| Answering::new(body, head_only, open)))
            })
        })
    }

    /// Drives a connection to its end; `goodbye` lets it finish what it has begun, and no more.
    async fn until_idle<C>(&self, requests: &Requests, mut connection: Pin<&mut C>, goodbye: fn(Pin<&mut C>))
    where
        C: Future<Output = hyper::Result<()>>,
    {
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.tasks.stopping() => {
                goodbye(connection.as_mut());
                connection.await
            }
            () = requests.too_many_given_up() => {
                metrics::counter!("sortie_hub_connections_refused_total", "reason" => "resets").increment(1);
                tracing::debug!("a client gave up too many requests: its connection is closed");
                return;
            }
            // Whoever opens connections and says nothing would otherwise take the places of all others. The deadlines
            // of HTTP know no idle HTTP/2.
            () = requests.none_for(HEAD_DEADLINE, IDLE) => {
                goodbye(connection.as_mut());
                // What was on its way is answered; a peer that does not answer the goodbye is not waited for.
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = requests.none_for(GOODBYE, HEAD_DEADLINE) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended");
        }
    }

    async fn answer(&self, mut request: Request<Incoming>, place: &Place) -> Response<ResponseBody> {
        if let Place::Api(peer) | Place::Edge(_, peer) = place {
            request.extensions_mut().insert(PeerAddress(*peer));
        }
        let target = match place {
            Place::Api(_) => match self.api_request(&request) {
                Err(error) => Err(error),
                Ok(()) if request.uri().path().starts_with("/t/") => path_target(request.uri().path_and_query()),
                Ok(()) => return Box::pin(self.own(request)).await,
            },
            Place::Edge(sni, _) => self.edge_target(&request, sni),
            Place::Health => return Box::pin(self.health(request.uri().path())).await,
        };
        match target {
            Ok(target) => self.calls.call(request, target).await,
            Err(error) => Box::pin(Refusal { error, request: Some(request) }.into_response(&RequestId::random())).await,
        }
    }

    /// Whether the API's listener answers a request at all.
    fn api_request(&self, request: &Request<Incoming>) -> Result<(), HopError> {
        request::check(request)?;
        self.api_hosts.check(&request::host(request)?, request.headers())
    }

    /// The route that a request on the edge's port names, by the same name in TLS and in HTTP.
    fn edge_target(&self, request: &Request<Incoming>, sni: &str) -> Result<Target, HopError> {
        request::check(request)?;
        let host = request::host(request)?;
        if host != sni {
            let reason = "the Host differs from the name that this connection was opened for";
            return Err(HopError::new(Hop::Edge, reason).with_status(StatusCode::MISDIRECTED_REQUEST));
        }
        self.edge_hosts.check_origin(Some(sni), request.headers())?;
        let name = self.base.parse_host(&host).ok_or_else(HopError::no_route)?;
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Target { label: name.label, route: name.route, path, on_api_origin: false })
    }

    /// What the health listener answers, to whoever asks.
    async fn health(&self, path: &str) -> Response<ResponseBody> {
        match path {
            "/healthz" => plain(StatusCode::OK, "text/plain", "ok\n".into()),
            "/readyz" => self.ready().await,
            "/metrics" => self.metrics(),
            _ => plain(StatusCode::NOT_FOUND, "text/plain", "paths: /healthz, /readyz, /metrics\n".into()),
        }
    }

    /// What the hub answers itself.
    async fn own(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        match own(request.uri().path()) {
            Some(Own::Health) => plain(StatusCode::OK, "text/plain", "ok\n".into()),
            Some(Own::Ready) => self.ready().await,
            Some(Own::Metrics) => match authenticate(&self.calls.store, request.headers()).await {
                Ok(caller) if caller.key.kind == sortie_api::KeyKind::Manage => self.metrics(),
                Ok(_) => refuse(&HopError::new(Hop::Policy, "metrics need a manage key")),
                Err(error) => refuse(&HopError::new(Hop::Identity, error.message.clone()).with_status(error.status)),
            },
            Some(Own::Call) | None => {
                let answered = self.api.clone().oneshot(request.map(Body::new)).await;
                let answered = answered.unwrap_or_else(|never| match never {});
                answered.map(ResponseBody::Own)
            }
        }
    }

    fn metrics(&self) -> Response<ResponseBody> {
        plain(StatusCode::OK, Metrics::CONTENT_TYPE, self.metrics.render())
    }

    async fn ready(&self) -> Response<ResponseBody> {
        let store = self.calls.store.get_meta("ready").await;
        let published = self.calls.audit.published();
        // Why one fails is in the log: who may look here need not know where records go.
        let sinks = self.calls.audit.sinks().into_iter().map(|sink| {
            serde_json::json!({
                "name": sink.name,
                "state": sink.state,
                "lag_records": sink.lag_records,
                "lag_bytes": sink.lag_bytes,
                "denies": sink.denies,
                "dropped": sink.dropped,
            })
        });
        let sinks: Vec<_> = sinks.collect();
        // Calls go on without it: what they leave is recorded at the gateway.
        let audit = match self.calls.audit.trouble() {
            None => serde_json::json!({"ok": true}),
            Some(reason) => serde_json::json!({"ok": false, "reason": reason}),
        };
        let (status, body) = match store {
            Ok(_) => (
                StatusCode::OK,
                serde_json::json!({"ready": true, "store": {"ok": true}, "audit": audit, "published": published, "sinks": sinks}),
            ),
            Err(error) => {
                let reason = error.to_string();
                let body =
                    serde_json::json!({"ready": false, "store": {"ok": false, "reason": reason}, "audit": audit});
                (StatusCode::SERVICE_UNAVAILABLE, body)
            }
        };
        plain(status, "application/json", format!("{body}\n"))
    }
}

/// Where a request came in, and the address that it came from.
#[derive(Clone, Debug)]
enum Place {
    Api(IpAddr),
    /// With the hostname of the connection's SNI.
    Edge(String, IpAddr),
    Health,
}

impl Terminator for Front {
    fn serve(self: Arc<Self>, connection: ClientConnection, host: String, peer: SocketAddr) -> BoxFuture<'static, ()> {
        Box::pin(self.serve_tls(connection, Place::Edge(host, peer.ip())))
    }

    fn retire(&self, label: &TunnelLabel) {
        self.calls.pool.retire(label);
    }

    fn checkpoint<'a>(
        &'a self,
        tunnel: &'a TunnelId,
        link: &'a EdgeLink,
        published: PublishedNote,
    ) -> BoxFuture<'a, CheckpointVerdict> {
        Box::pin(async move { self.published.take(tunnel, link.is_proved(), &published).await })
    }

    fn probe<'a>(
        &'a self,
        label: &'a TunnelLabel,
        link: &'a EdgeLink,
        route: &'a RouteName,
    ) -> BoxFuture<'a, Option<ProbeFailure>> {
        Box::pin(self.calls.probe(label, link, route))
    }
}

/// Whether the client begins with the preface of HTTP/2 (RFC 9113, 3.4), which no request of HTTP/1.1 begins with. Takes
/// nothing from the connection.
async fn begins_as_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut beginning = [0; 3];
    loop {
        let seen = stream.peek(&mut beginning).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let seen = beginning.get(..seen).unwrap_or_default();
        if !b"PRI".starts_with(seen) {
            return Ok(false);
        }
        if seen.len() == beginning.len() {
            return Ok(true);
        }
        // Only a peer that sends byte by byte comes here.
        tokio::time::sleep(PEEK_AGAIN).await;
    }
}

/// The route of a path `/t/<label>/<route>/...`, with what follows it.
pub(crate) fn path_target(path: Option<&PathAndQuery>) -> Result<Target, HopError> {
    let text = path.map_or("", PathAndQuery::as_str);
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    let mut parts = path.strip_prefix("/t/").unwrap_or("").splitn(3, '/');
    let label: Option<TunnelLabel> = parts.next().and_then(|label| label.parse().ok());
    let route: Option<RouteName> = parts.next().and_then(|route| route.parse().ok());
    let (Some(label), Some(route)) = (label, route) else { return Err(HopError::no_route()) };
    let mut rest = format!("/{}", parts.next().unwrap_or(""));
    if let Some(query) = query {
        rest.push('?');
        rest.push_str(query);
    }
    let path = rest.parse().map_err(|_| HopError::no_route())?;
    Ok(Target { label, route, path, on_api_origin: true })
}

fn plain(status: StatusCode, kind: &'static str, body: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Own(Body::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn refuse(error: &HopError) -> Response<ResponseBody> {
    own_response(error, &RequestId::random(), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_behind_the_route_is_kept_byte_for_byte() {
        for (path, rest) in [
            ("/t/abcd1234/files/mcp", "/mcp"),
            ("/t/abcd1234/files", "/"),
            ("/t/abcd1234/files/", "/"),
            ("/t/abcd1234/files/a%2Fb//c?x=1&y=%20", "/a%2Fb//c?x=1&y=%20"),
            ("/t/abcd1234/files?q", "/?q"),
        ] {
            let target = path_target(Some(&path.parse().expect("path"))).expect(path);
            assert_eq!((target.route.as_str(), target.path.as_str()), ("files", rest));
        }
        for path in
            ["/t/", "/t/abcd1234", "/t/abcd1234/", "/t/../files/x", "/t//abcd1234/files", "/t//t/abcd1234/files"]
        {
            assert!(path_target(Some(&path.parse().expect("path"))).is_err(), "{path}");
        }
    }
}
