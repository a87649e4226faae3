//! A gateway under test, an edge that it dials, and upstreams that it calls.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use http::{Request, Response, StatusCode, request};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, LocalUpstream, OpenLocal, Setup};
use sortie_ids::{LinkId, TunnelToken};
use sortie_link::protos::{EdgeHello, FromEdge, FromGateway, Kind, ProbeFailure, VERSION};
use sortie_link::{EdgeLink, LinkStream, Welcome};
use sortie_runtime::TaskSet;
use sortie_tls::{
    Authority, ClientConfig, ClientStream, EdgeIdentity, RegisteredCa, ServerConfig, ServerIdentity, ServerName,
    SetupDir, SetupFile, TlsAcceptor, TlsConnector, Versions, client_config_with_identity, inner_client_config,
    server_config,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::fixtures::Hub;

pub(crate) const DOMAIN: &str = "abcd1234.sortie.localhost";
pub(crate) const HOST: &str = "docs.abcd1234.sortie.localhost";
const BASE: &str = "sortie.localhost";

pub(crate) type TestBody = BoxBody<Bytes, std::io::Error>;

/// What must happen soon.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), what).await.expect("it happens within ten seconds")
}

/// Waits until something is so.
pub(crate) async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) fn full(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// A body whose pieces the test sends one by one; an error breaks it off.
pub(crate) fn piped() -> (mpsc::Sender<std::io::Result<&'static str>>, TestBody) {
    let (send, receive) = mpsc::channel(1);
    let pieces =
        futures_util::stream::unfold(receive, |mut receive: mpsc::Receiver<std::io::Result<&'static str>>| async {
            let piece = receive.recv().await?;
            Some((piece.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))), receive))
        });
    (send, streamed(pieces))
}

/// A body of frames.
pub(crate) fn streamed<S>(frames: S) -> TestBody
where
    S: futures_util::Stream<Item = std::io::Result<Frame<Bytes>>> + Send + 'static,
{
    http_body_util::BodyExt::boxed(StreamBody::new(Shared(Mutex::new(frames.boxed()))))
}

/// A stream that threads may share, as bodies have to be.
struct Shared<S>(Mutex<S>);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for Shared<S> {
    type Item = S::Item;

    fn poll_next(self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<S::Item>> {
        self.get_mut().0.get_mut().expect("lock").poll_next_unpin(cx)
    }
}

pub(crate) type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<TestBody>> + Send + Sync>;

/// An MCP server, as far as a proxy can tell.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    /// The heads of the requests that arrived.
    pub(crate) seen: Arc<Mutex<Vec<request::Parts>>>,
}

impl Upstream {
    pub(crate) async fn serve<F, R>(tasks: &TaskSet, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<TestBody>> + Send + 'static,
    {
        Self::serve_over(tasks, None, handler).await
    }

    /// The same over TLS, where a configuration is given.
    pub(crate) async fn serve_over<F, R>(tasks: &TaskSet, tls: Option<Arc<ServerConfig>>, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<TestBody>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| handler(request).boxed());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let seen: Arc<Mutex<Vec<request::Parts>>> = Arc::default();
        let (tasks_here, seen_here) = (tasks.clone(), seen.clone());
        tasks.spawn("test-upstream", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (handler, seen, tls) = (handler.clone(), seen_here.clone(), tls.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (head, body) = request.into_parts();
                    seen.lock().expect("lock").push(head.clone());
                    let answer = handler(Request::from_parts(head, body));
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                tasks_here.spawn("test-upstream-connection", async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
                            drop(builder.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Self { addr, seen }
    }

    /// Answers everything with `ok`.
    pub(crate) async fn ok(tasks: &TaskSet) -> Self {
        Self::serve(tasks, |_| async { Response::new(full("ok")) }).await
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.lock().expect("lock").len()
    }

    /// Settings with one route, `docs`, to this server.
    pub(crate) fn config(&self) -> String {
        config(&self.addr.to_string())
    }
}

pub(crate) fn config(addr: &str) -> String {
    format!(
        "shutdown_timeout = \"5s\"\nmax_request_body = 1000\n[routes.docs]\nupstream = \"http://{addr}\"\n\
         [upstream]\nallowed_ips = [\"127.0.0.0/8\"]\nconnect_timeout = \"2s\"\n"
    )
}

/// An edge with one hub behind it.
pub(crate) struct Edge {
    pub(crate) addr: SocketAddr,
    links: watch::Receiver<Vec<EdgeLink>>,
    /// The only token that is let in.
    pub(crate) token: Arc<Mutex<String>>,
}

/// What the hub side needs to make calls.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) hub: Arc<Hub>,
    pub(crate) ca: RegisteredCa,
    pub(crate) tasks: TaskSet,
}

impl Caller {
    pub(crate) fn claims(&self, host: &str, sub: &str) -> Value {
        let now = jiff::Timestamp::now().as_second();
        json!({"iss": Hub::ISSUER, "aud": host, "sub": sub, "iat": now, "exp": now + 60, "jti": "j", "org": "org_1",
               "workspace": "wrkspc_1", "via": "key:key_1"})
    }

    pub(crate) fn token(&self, host: &str) -> String {
        self.hub.sign(&self.claims(host, "user:1"))
    }

    /// TLS through a stream of the link, as the hub does it.
    pub(crate) async fn tls(
        &self,
        link: &EdgeLink,
        kind: Kind,
        host: &str,
        alpn: &[u8],
    ) -> std::io::Result<ClientStream<LinkStream>> {
        self.tls_with(inner_client_config(std::slice::from_ref(&self.ca), &[alpn]), link, kind, host).await
    }

    pub(crate) async fn tls_with(
        &self,
        config: Arc<ClientConfig>,
        link: &EdgeLink,
        kind: Kind,
        host: &str,
    ) -> std::io::Result<ClientStream<LinkStream>> {
        let stream = link.open(kind, host).await.expect("stream");
        TlsConnector::from(config).connect(ServerName::try_from(host.to_owned()).expect("name"), stream).await
    }

    /// TLS as a client of a sealed route.
    pub(crate) fn sealed_config(&self, identity: &ServerIdentity) -> Arc<ClientConfig> {
        let pem = pem_of(&self.ca);
        client_config_with_identity(&pem, false, Versions::Tls13, &[b"http/1.1"], identity).expect("client")
    }

    /// One request over HTTP/1.1 on a connection of its own.
    pub(crate) async fn send(
        &self,
        stream: ClientStream<LinkStream>,
        request: Request<TestBody>,
    ) -> hyper::Result<Response<Incoming>> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn("test-caller", async move {
            let _ = connection.await;
        });
        sender.send_request(request).await
    }
}

fn pem_of(ca: &RegisteredCa) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(ca.der());
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("text")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

impl Edge {
    async fn start(tasks: &TaskSet, authority: Authority, token: String, caller: Caller) -> Self {
        let identity = EdgeIdentity::new(authority, BASE, &["127.0.0.1".to_owned()]).expect("identity");
        let config = server_config(Arc::new(identity), Versions::Tls13, &[sortie_link::ALPN], None).expect("config");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let (links, receiver) = watch::channel(Vec::new());
        let (links, token) = (Arc::new(links), Arc::new(Mutex::new(token)));
        let (tasks_here, wanted) = (tasks.clone(), token.clone());
        tasks.spawn("test-edge", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tasks, links, caller) = (tasks_here.clone(), links.clone(), caller.clone());
                let (config, wanted) = (config.clone(), wanted.lock().expect("lock").clone());
                tasks_here.spawn("test-edge-link", async move {
                    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
                    let hello = EdgeHello {
                        version: VERSION,
                        features: vec![],
                        edge_instance: "edge".into(),
                        link_id: LinkId::random(),
                    };
                    let admit = |hello: sortie_link::protos::GatewayHello| async move {
                        if hello.token == wanted {
                            Ok(Welcome { domain: DOMAIN.to_owned(), identity_keys: Vec::new() })
                        } else {
                            Err(("the token was rotated".to_owned(), false))
                        }
                    };
                    let Ok((link, mut said)) = sortie_link::accept(stream, &hello, &tasks, admit).await else { return };
                    links.send_modify(|links| links.push(link.clone()));
                    while let Some(message) = said.recv().await {
                        if let FromGateway::Probe { id, route } = message {
                            let host = format!("{route}.{DOMAIN}");
                            let (link, caller) = (link.clone(), caller.clone());
                            tasks.spawn("test-probe", async move {
                                let failure = probe(&caller, &link, &host).await;
                                link.tell(FromEdge::ProbeResult { id, failure });
                            });
                        }
                    }
                });
            }
        });
        Self { addr, links: receiver, token }
    }

    /// The newest link, once this many were made.
    pub(crate) async fn link_number(&self, number: usize) -> EdgeLink {
        let mut links = self.links.clone();
        let links = soon(links.wait_for(|links| links.len() >= number)).await.expect("edge");
        links.get(number - 1).expect("link").clone()
    }

    pub(crate) fn links(&self) -> usize {
        self.links.borrow().len()
    }
}

async fn probe(caller: &Caller, link: &EdgeLink, host: &str) -> Option<ProbeFailure> {
    let failed = |hop: &str, reason: String| Some(ProbeFailure { hop: hop.to_owned(), reason });
    let stream = match caller.tls(link, Kind::Hub, host, b"http/1.1").await {
        Ok(stream) => stream,
        Err(error) => return failed("inner-tls", sortie_tls::explain_io(&error)),
    };
    let identity = caller.hub.sign(&caller.claims(host, "hub:probe"));
    let request = Request::builder()
        .uri("/")
        .header("host", host)
        .header("sortie-probe", "1")
        .header("sortie-identity", identity)
        .body(full(""))
        .expect("request");
    match caller.send(stream, request).await {
        Ok(response) if response.status() == StatusCode::NO_CONTENT => None,
        Ok(response) => failed("upstream", format!("the probe was answered {}", response.status())),
        Err(error) => failed("inner-tls", error.to_string()),
    }
}

/// Everything that a test needs, in one place.
pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) edge: Edge,
    pub(crate) caller: Caller,
    pub(crate) setup: tempfile::TempDir,
    pub(crate) tasks: TaskSet,
}

impl World {
    pub(crate) async fn start(tasks: &TaskSet, config: &str) -> Self {
        Self::start_with(tasks, config, HashMap::new(), |_| {}).await
    }

    /// `prepare` may change the set-up directory before the gateway reads it.
    pub(crate) async fn start_with(
        tasks: &TaskSet,
        config: &str,
        local: HashMap<String, Arc<dyn LocalUpstream>>,
        prepare: impl FnOnce(&SetupDir),
    ) -> Self {
        let local: OpenLocal = Arc::new(move |name, _| local.get(name.as_str()).cloned().ok_or("not here".to_owned()));
        Self::start_as(tasks, config, GatewayOptions { local, ..Default::default() }, prepare).await
    }

    /// With these options, but for its places.
    pub(crate) async fn start_as(
        tasks: &TaskSet,
        config: &str,
        options: GatewayOptions,
        prepare: impl FnOnce(&SetupDir),
    ) -> Self {
        let hub = Arc::new(Hub::new());
        let temp = tempfile::tempdir().expect("dir");
        let dir = SetupDir::open(temp.path()).expect("setup");
        let ca = dir.ensure_authority().expect("authority");
        dir.issue_server_cert(DOMAIN, Duration::from_secs(86_400)).expect("certificate");
        let edge_ca = Authority::generate("Test edge CA", 30).expect("authority");
        let token = TunnelToken::random("org", "tnl").expose().to_owned();
        let edge_ca_pem = edge_ca.cert_pem().to_owned();
        let ca = RegisteredCa::parse_any_time(ca.cert_pem()).expect("ca");
        let caller = Caller { hub: hub.clone(), ca, tasks: tasks.clone() };
        let edge = Edge::start(tasks, edge_ca, token.clone(), caller.clone()).await;
        for (file, text) in [
            (SetupFile::TunnelDomain, DOMAIN.to_owned()),
            (SetupFile::TunnelToken, token),
            (SetupFile::EdgeAddr, edge.addr.to_string()),
            (SetupFile::EdgeCa, edge_ca_pem),
            (SetupFile::HubIdentity, hub.jwks()),
        ] {
            dir.write(file, &text).expect("write");
        }
        prepare(&dir);
        let config = GatewayConfig::parse(config, &temp.path().join("gateway.toml")).expect("config");
        let setup = Setup::load(temp.path()).expect("setup");
        let health = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let options = GatewayOptions { health, data_dir: Some(temp.path().to_owned()), ..options };
        let gateway = Gateway::start(config, setup, options, tasks.clone()).await.expect("gateway");
        Self { gateway, edge, caller, setup: temp, tasks: tasks.clone() }
    }

    pub(crate) async fn link(&self) -> EdgeLink {
        self.edge.link_number(1).await
    }

    pub(crate) fn path(&self) -> &Path {
        self.setup.path()
    }

    /// A request of the hub for the route `docs`, to be completed.
    pub(crate) fn request(&self, method: &str, target: &str) -> request::Builder {
        Request::builder()
            .method(method)
            .uri(target)
            .header("host", HOST)
            .header("sortie-identity", self.caller.token(HOST))
    }

    /// One call of the hub.
    pub(crate) async fn call(&self, request: Request<TestBody>) -> Response<Incoming> {
        soon(self.try_call(request)).await.expect("response")
    }

    pub(crate) async fn try_call(&self, request: Request<TestBody>) -> hyper::Result<Response<Incoming>> {
        let link = self.link().await;
        let stream = self.caller.tls(&link, Kind::Hub, HOST, b"http/1.1").await.expect("inner TLS");
        self.caller.send(stream, request).await
    }
}

/// Status, hop and body of an answer that should be one of the gateway's own.
pub(crate) async fn refusal(response: Response<Incoming>) -> (u16, String, Value) {
    let status = response.status().as_u16();
    let hop = response.headers().get("sortie-hop").map(|hop| hop.to_str().expect("hop").to_owned()).unwrap_or_default();
    assert!(response.headers().contains_key("request-id"));
    let body = response.into_body().collect().await.expect("body").to_bytes();
    (status, hop, serde_json::from_slice(&body).expect("json"))
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    let body = soon(response.into_body().collect()).await.expect("body").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}
