//! A hub, a gateway, a strict upstream and a friendly one; and an attacker's ways to speak to them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sortie_testkit::EchoServer;
use sortie_testkit::usage::rss_kb;
use sortie_tls::{ClientStream, ServerName, TlsConnector, Versions, client_config};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::common::{GatewayProcess, SOON, Tunnel, World, routes};
use crate::recorder::{Recorder, find};

/// How much a process may grow over idle under any attack here, in KiB.
const GROWTH_KB: u64 = 96 * 1024;
/// How long nothing more may come before an answer counts as all.
const QUIET: Duration = Duration::from_millis(700);
/// How long five calls of others may take together while an attack runs, on a loaded machine.
const SERVED: Duration = Duration::from_secs(8);

/// Both ends, with the routes `up` (strict) and `echo`.
pub(crate) struct Field {
    pub(crate) world: World,
    pub(crate) tunnel: Tunnel,
    pub(crate) gateway: GatewayProcess,
    pub(crate) recorder: Recorder,
    idle_kb: [u64; 2],
    _echo: EchoServer,
}

impl Field {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With further routes by name and URL.
    pub(crate) async fn with(more: &[(&str, &str)]) -> Self {
        Self::of(World::start().await, more).await
    }

    /// Of this hub.
    pub(crate) async fn of(world: World, more: &[(&str, &str)]) -> Self {
        let (recorder, echo) = (Recorder::start().await, EchoServer::start().await.expect("echo"));
        let tunnel = world.tunnel("setup").await;
        let (up, echo_url) = (format!("http://{}", recorder.addr), format!("http://{}", echo.addr()));
        let all = [&[("up", up.as_str()), ("echo", echo_url.as_str())], more].concat();
        let gateway = world.gateway(&tunnel.dir, &routes(&all), &[]).await;
        let mut field = Self { world, tunnel, gateway, recorder, idle_kb: [0; 2], _echo: echo };
        // Idle means after the first calls: allocators and pools are warm then.
        for _ in 0..20 {
            field.world.serves(&field.tunnel, "echo").await;
        }
        field.idle_kb = field.memory_kb();
        field
    }

    fn memory_kb(&self) -> [u64; 2] {
        [rss_kb(&[self.world.hub.id()]), rss_kb(&[self.gateway.process.id()])]
    }

    /// Asserts that neither process holds much more than when idle.
    pub(crate) fn bounded(&self, what: &str) {
        let now = self.memory_kb();
        let grew = [now[0].saturating_sub(self.idle_kb[0]), now[1].saturating_sub(self.idle_kb[1])];
        assert!(grew.iter().all(|kb| *kb < GROWTH_KB), "{what}: hub and gateway grew by {grew:?} KiB");
    }

    /// Asserts that a well-behaved client is served now.
    pub(crate) async fn others_are_served(&self, what: &str) {
        let began = Instant::now();
        for _ in 0..5 {
            self.world.serves(&self.tunnel, "echo").await;
        }
        assert!(began.elapsed() < SERVED, "{what}: others waited {:?}", began.elapsed());
    }

    pub(crate) fn api_addr(&self) -> SocketAddr {
        self.world.api_url.trim_start_matches("http://").parse().expect("address")
    }

    pub(crate) fn edge_addr(&self) -> SocketAddr {
        self.world.edge_addr.parse().expect("address")
    }

    /// The hostname of a route.
    pub(crate) fn host(&self, route: &str) -> String {
        format!("{route}.{}", self.tunnel.domain)
    }

    pub(crate) async fn api(&self) -> TcpStream {
        let stream = TcpStream::connect(self.api_addr()).await.expect("API");
        stream.set_nodelay(true).expect("socket");
        stream
    }

    /// TLS with the edge for this name, speaking this protocol.
    pub(crate) async fn edge(&self, sni: &str, alpn: &[u8]) -> ClientStream<TcpStream> {
        let tcp = TcpStream::connect(self.edge_addr()).await.expect("edge");
        self.tls(tcp, sni, alpn).await.expect("handshake")
    }

    pub(crate) async fn tls(&self, tcp: TcpStream, sni: &str, alpn: &[u8]) -> std::io::Result<ClientStream<TcpStream>> {
        let roots = std::fs::read_to_string(&self.world.edge_ca).expect("CA");
        let config = client_config(&roots, false, Versions::Legacy, &[alpn]).expect("TLS");
        let name = ServerName::try_from(sni.to_owned()).expect("name");
        TlsConnector::from(config).connect(name, tcp).await
    }
}

/// A connection from an address of this machine's choosing: all of 127.0.0.0/8 is ours.
pub(crate) async fn connect_from(source: [u8; 4], to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::from(source), 0).into())?;
    socket.connect(to).await
}

/// Any byte stream.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// What was answered to raw bytes.
#[derive(Debug)]
pub(crate) struct Said {
    /// All of it.
    pub(crate) bytes: Vec<u8>,
    /// Whether the connection was closed at the end.
    pub(crate) closed: bool,
}

impl Said {
    /// The status of each answer, interim ones included.
    pub(crate) fn statuses(&self) -> Vec<u16> {
        let mut rest = &self.bytes[..];
        let mut found = Vec::new();
        while let Some(at) = find(rest, b"HTTP/1.") {
            rest = rest.get(at + 9..).unwrap_or_default();
            found.push(String::from_utf8_lossy(&rest[..rest.len().min(3)]).parse().unwrap_or(0));
        }
        found
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// Writes `bytes` and reads what comes, until the connection ends or nothing more does.
pub(crate) async fn say(wire: &mut (impl Wire + ?Sized), bytes: &[u8]) -> Said {
    // What is refused early may not be read to its end.
    let _refused_early = wire.write_all(bytes).await;
    let _gone = wire.flush().await;
    hear(wire).await
}

/// Reads what comes, until the connection ends or nothing more does.
pub(crate) async fn hear(wire: &mut (impl Wire + ?Sized)) -> Said {
    let mut said = Said { bytes: Vec::new(), closed: false };
    loop {
        let wait = if said.bytes.is_empty() { SOON } else { QUIET };
        match tokio::time::timeout(wait, wire.read_buf(&mut said.bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => {
                said.closed = true;
                return said;
            }
            Err(_) => return said,
        }
    }
}
