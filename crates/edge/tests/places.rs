//! Places for connections by kind: neither silence nor a crowd of clients keeps a gateway out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sortie_edge::{Admitted, ClientConnection, Directory, Edge, EdgeConfig, Links, NotAdmitted, Terminator};
use sortie_ids::{Digest, RouteName, TunnelId, TunnelLabel, TunnelToken};
use sortie_link::protos::{CheckpointVerdict, GatewayHello, ProbeFailure, PublishedNote, VERSION};
use sortie_link::{EdgeLink, EstablishError, GatewayLink};
use sortie_runtime::TaskSet;
use sortie_tls::{Authority, ClientStream, EdgeIdentity, ServerName, TlsConnector, Versions, client_config};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

/// Long enough for anything on a loaded machine, and shorter than the edge waits for a hello or a handshake.
const SOON: Duration = Duration::from_secs(4);

/// Knows one tunnel, and keeps every client for ever.
struct Hub {
    label: TunnelLabel,
}

impl Directory for Hub {
    fn admit<'a>(&'a self, _: &'a Digest) -> BoxFuture<'a, Result<Admitted, NotAdmitted>> {
        Box::pin(async {
            Ok(Admitted { tunnel: TunnelId::random(), label: self.label.clone(), identity_keys: Vec::new() })
        })
    }
}

impl Terminator for Hub {
    fn checkpoint<'a>(
        &'a self,
        _: &'a TunnelId,
        _: &'a EdgeLink,
        _: PublishedNote,
    ) -> BoxFuture<'a, CheckpointVerdict> {
        Box::pin(async { CheckpointVerdict::Later })
    }

    fn serve(self: Arc<Self>, connection: ClientConnection, _: String, _: SocketAddr) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let mut connection = connection;
            let mut byte = [0];
            let _until_it_leaves = connection.read(&mut byte).await;
        })
    }

    fn retire(&self, _: &TunnelLabel) {}

    fn probe<'a>(
        &'a self,
        _: &'a TunnelLabel,
        _: &'a EdgeLink,
        _: &'a RouteName,
    ) -> BoxFuture<'a, Option<ProbeFailure>> {
        Box::pin(async { None })
    }
}

struct World {
    addr: SocketAddr,
    roots: String,
    tasks: TaskSet,
}

impl World {
    /// 20 places: two for newcomers, four for links, 14 for clients.
    async fn start(address_share: u8) -> Self {
        let authority = Authority::generate("Edge", 10).expect("CA");
        let roots = authority.cert_pem().to_owned();
        let identity = EdgeIdentity::new(authority, "sortie.test", &["127.0.0.1".to_owned()]).expect("identity");
        let config = EdgeConfig {
            identity: Arc::new(identity),
            base_domain: "sortie.test".parse().expect("domain"),
            max_connections: 20,
            address_share,
        };
        let hub = Arc::new(Hub { label: TunnelLabel::random() });
        let edge = Edge::new(config, Links::default(), hub.clone(), hub).expect("edge");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let (addr, tasks) = (listener.local_addr().expect("address"), TaskSet::new());
        let inside = tasks.clone();
        tasks.spawn("edge", async move { edge.serve(listener, inside).await });
        Self { addr, roots, tasks }
    }

    async fn tls(&self, alpn: &[u8]) -> std::io::Result<ClientStream<TcpStream>> {
        let config = client_config(&self.roots, false, Versions::Legacy, &[alpn]).expect("TLS");
        let tcp = TcpStream::connect(self.addr).await?;
        let name = ServerName::try_from("127.0.0.1").expect("name");
        let tls = TlsConnector::from(config).connect(name, tcp);
        tokio::time::timeout(SOON, tls).await.map_err(|_| std::io::ErrorKind::TimedOut)?
    }

    async fn link(&self) -> Result<GatewayLink, EstablishError> {
        let stream = self.tls(sortie_link::ALPN).await.expect("outer TLS");
        let hello = GatewayHello {
            version: VERSION,
            features: Vec::new(),
            token: TunnelToken::random("org_1", "tnl_1").expose().to_owned(),
            gateway_instance: "g".into(),
            software: String::new(),
            routes: Vec::new(),
        };
        sortie_link::establish(stream, &hello, &self.tasks).await
    }
}

#[tokio::test]
async fn clients_fill_their_places_and_gateways_still_come_in() {
    let world = World::start(100).await;
    let mut clients = Vec::new();
    for _ in 0..14 {
        clients.push(world.tls(b"http/1.1").await.expect("a place"));
    }
    assert!(world.tls(b"http/1.1").await.is_err(), "the places for clients are taken");
    let mut links = Vec::new();
    for _ in 0..4 {
        links.push(world.link().await.expect("links have places of their own"));
    }
    let refused = world.link().await.expect_err("those are taken, too");
    assert!(matches!(refused, EstablishError::Refused { retry: true, .. }), "{refused}");
    // Who leaves makes room.
    clients.pop();
    let until = tokio::time::Instant::now() + SOON;
    while world.tls(b"http/1.1").await.is_err() {
        assert!(tokio::time::Instant::now() < until, "the place is not free again");
    }
    world.tasks.abort();
}

#[tokio::test]
async fn who_has_no_token_takes_no_place_of_a_link() {
    let world = World::start(100).await;
    // Two at a time may be unknown: others wait in the backlog, and are served when these are let go.
    let silent = [world.tls(sortie_link::ALPN).await.expect("TLS"), world.tls(sortie_link::ALPN).await.expect("TLS")];
    let waiting = tokio::time::timeout(Duration::from_millis(500), world.tls(sortie_link::ALPN)).await;
    assert!(waiting.is_err(), "it waits for a place among the newcomers");
    drop(silent);
    for _ in 0..4 {
        world.link().await.expect("none of the links' places was taken");
    }
    world.tasks.abort();
}

#[tokio::test]
async fn one_address_has_its_share_of_each_kind() {
    let world = World::start(50).await;
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(world.tls(b"http/1.1").await.expect("a place"));
    }
    assert!(world.tls(b"http/1.1").await.is_err(), "half of the clients' places");
    let links = [world.link().await.expect("link"), world.link().await.expect("link")];
    assert!(world.link().await.is_err(), "half of the links' places");
    drop(links);
    world.tasks.abort();
}
