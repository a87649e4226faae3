//! Dialling one server: resolve, judge, connect to what was judged. No redirect is followed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use sortie_credentials::Certificate;
use sortie_runtime::notice_absence;
use sortie_tls::{ClientConfig, ServerName, TlsConnector, explain_io, is_client_refusal};
use tokio::net::{TcpStream, UnixStream};

use super::stream::UpstreamStream;
use crate::config::Server;
use crate::guard::{Guard, Refusal};

/// Most addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long one address may take before the next is tried beside it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

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
    #[error("the socket {path} could not be connected: {cause}", path = path.display())]
    Socket { path: PathBuf, cause: io::Error },
    #[error("TLS with the upstream failed: {0}")]
    Tls(String),
    #[error("it does not accept the client certificate, or that there is none: {0}")]
    ClientCertificate(String),
    #[error("no trust is configured for https upstreams; set ca_file or include_system_cas under [upstream.tls]")]
    NoTrust,
}

impl DialError {
    /// The same for the caller, without addresses and paths.
    pub(crate) fn public(&self) -> &'static str {
        match self {
            DialError::Resolve { .. } | DialError::NoAddress { .. } => "its name could not be resolved",
            DialError::Refused(_) => "its address is not one that the gateway may dial",
            DialError::Timeout(_) => "it did not accept a connection in time",
            DialError::Connect { cause, .. } | DialError::Socket { cause, .. }
                if cause.kind() == io::ErrorKind::ConnectionRefused =>
            {
                "it refused the connection"
            }
            DialError::Socket { cause, .. } if cause.kind() == io::ErrorKind::NotFound => "its socket does not exist",
            DialError::Connect { .. } | DialError::Socket { .. } => "it could not be connected",
            DialError::ClientCertificate(_) => "it does not accept the client certificate, or that there is none",
            DialError::Tls(_) | DialError::NoTrust => "its TLS is not acceptable",
        }
    }
}

/// Dials one server.
#[derive(Clone)]
pub(crate) struct Dialer(Arc<Dial>);

struct Dial {
    server: Server,
    guard: Guard,
    timeout: Duration,
    tls: Option<Arc<ClientConfig>>,
    /// Who the server's certificate has to be for, where that is not its host.
    server_name: Option<String>,
}

impl Dialer {
    pub(crate) fn new(
        server: Server,
        guard: Guard,
        timeout: Duration,
        tls: Option<Arc<ClientConfig>>,
        server_name: Option<String>,
    ) -> Self {
        Self(Arc::new(Dial { server, guard, timeout, tls, server_name }))
    }

    /// The same, showing this certificate.
    pub(crate) fn showing(&self, certificate: &Certificate) -> Self {
        let Dial { server, guard, timeout, tls, server_name } = &*self.0;
        let tls = tls.as_ref().map(|config| certificate.shown_by(config));
        Self::new(server.clone(), guard.clone(), *timeout, tls, server_name.clone())
    }

    /// A fresh connection, TLS included.
    pub(crate) async fn dial(&self) -> Result<UpstreamStream, DialError> {
        let timeout = self.0.timeout;
        let dialling = async {
            match &self.0.server {
                Server::Unix(path) => dial_socket(path).await,
                Server::Tcp { tls, host, port, .. } => self.0.dial_tcp(*tls, host, *port).await,
            }
        };
        tokio::time::timeout(timeout, dialling).await.map_err(|_| DialError::Timeout(timeout))?
    }
}

async fn dial_socket(path: &Path) -> Result<UpstreamStream, DialError> {
    let stream = UnixStream::connect(path).await;
    stream.map(UpstreamStream::Unix).map_err(|cause| DialError::Socket { path: path.to_owned(), cause })
}

impl Dial {
    async fn dial_tcp(&self, tls: bool, host: &str, port: u16) -> Result<UpstreamStream, DialError> {
        let tcp = race(host, judged(&self.guard, host, port).await?).await?;
        // A call has no time limit of ours, but a machine that went away must not hold it for ever.
        notice_absence(&tcp);
        if !tls {
            return Ok(UpstreamStream::Plain(tcp));
        }
        let config = self.tls.clone().ok_or(DialError::NoTrust)?;
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| DialError::Tls(error.to_string()))?;
        let stream = TlsConnector::from(config).connect(name, tcp).await;
        let stream = stream.map_err(|error| match is_client_refusal(&error) {
            true => DialError::ClientCertificate(explain_io(&error)),
            false => DialError::Tls(explain_io(&error)),
        });
        Ok(UpstreamStream::Tls(Box::new(stream?)))
    }
}

/// The addresses of a name that may be dialled, in the order to try them; all are judged before any is dialled.
pub(crate) async fn judged(guard: &Guard, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
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
        match guard.judge(address.ip()) {
            Ok(()) => allowed.push(address),
            Err(refusal) => {
                tracing::warn!(host, "{refusal}");
                refused.get_or_insert(refusal);
            }
        }
    }
    let mut allowed = interleaved(allowed);
    allowed.truncate(MAX_ADDRESSES);
    match (allowed.is_empty(), refused) {
        (false, _) => Ok(allowed),
        (true, Some(refusal)) => Err(DialError::Refused(refusal)),
        (true, None) => Err(DialError::NoAddress { host: host.to_owned() }),
    }
}

/// The families in turn, beginning with that of the first address (RFC 8305, section 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let shorter = one.len().min(other.len());
    let rest: Vec<_> = one.split_off(shorter).into_iter().chain(other.split_off(shorter)).collect();
    one.into_iter().zip(other).flat_map(|(one, other)| [one, other]).chain(rest).collect()
}

/// The first address that answers. Each is begun when the one before it has failed, or has had its head start.
async fn race(host: &str, addresses: Vec<SocketAddr>) -> Result<TcpStream, DialError> {
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut failure = None;
    loop {
        if let Some(address) = waiting.next() {
            running.push(async move {
                TcpStream::connect(address).await.map_err(|cause| DialError::Connect { address, cause })
            });
        }
        tokio::select! {
            ended = running.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => {
                    failure.get_or_insert(error);
                }
                None => return Err(failure.unwrap_or_else(|| DialError::NoAddress { host: host.to_owned() })),
            },
            () = tokio::time::sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, UnixListener};
    use tokio::time::Instant;

    use super::*;
    use crate::config::Upstream;

    fn dialer(server: &str, allowed: &[&str], timeout: Duration) -> Dialer {
        let Ok(Upstream::Servers(servers)) = server.parse() else { panic!("{server}") };
        let guard = Guard::new(allowed.iter().map(|text| text.parse().expect(text)).collect());
        Dialer::new(servers[0].clone(), guard, timeout, None, None)
    }

    async fn refusal(dialer: Dialer) -> DialError {
        match dialer.dial().await {
            Ok(_) => panic!("it was dialled"),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn names_are_judged_by_where_they_lead() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let second = Duration::from_secs(5);
        for host in ["127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"] {
            let error = refusal(dialer(&format!("http://{host}:{port}"), &["10.0.0.0/8"], second)).await;
            assert!(matches!(error, DialError::Refused(_)), "{host}: {error}");
            assert!(!error.public().contains("127.0.0.1"));
        }
        // Of the addresses of `localhost`, only those that are allowed are dialled.
        let v4_only = dialer(&format!("http://localhost:{port}"), &["127.0.0.0/8"], second);
        assert!(v4_only.dial().await.is_ok());
    }

    #[tokio::test]
    async fn failures_to_dial_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let dialer = |server: String| dialer(&server, &["127.0.0.0/8"], Duration::from_millis(300));
        let here = format!("127.0.0.1:{port}");
        assert!(matches!(refusal(dialer(format!("https://{here}"))).await, DialError::NoTrust));
        assert!(matches!(
            refusal(dialer("http://nowhere.invalid:80".into())).await,
            DialError::Resolve { .. } | DialError::Timeout(_)
        ));
        drop(listener);
        assert_eq!(refusal(dialer(format!("http://{here}"))).await.public(), "it refused the connection");
    }

    #[tokio::test]
    async fn sockets_are_dialled_whatever_addresses_are_allowed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("mcp.sock");
        let dialer = || dialer(&format!("unix:{}", path.display()), &[], Duration::from_secs(5));
        assert_eq!(refusal(dialer()).await.public(), "its socket does not exist");
        let listener = UnixListener::bind(&path).expect("bind");
        assert!(matches!(dialer().dial().await, Ok(UpstreamStream::Unix(_))));
        drop(listener);
        assert_eq!(refusal(dialer()).await.public(), "it refused the connection");
    }

    #[tokio::test]
    async fn literal_ipv6_is_dialled() {
        let Ok(listener) = TcpListener::bind("[::1]:0").await else {
            println!("skipped: host: no IPv6 loopback");
            return;
        };
        let port = listener.local_addr().expect("address").port();
        let dialer = dialer(&format!("http://[::1]:{port}"), &["::1/128"], Duration::from_secs(5));
        assert!(dialer.dial().await.is_ok());
    }

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        let order = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| SocketAddr::new(text.parse().expect(text), 1)).collect();
            interleaved(addresses).iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(&["::1", "::2", "::3", "1.0.0.0", "2.0.0.0"]), "::1 1.0.0.0 ::2 2.0.0.0 ::3");
        assert_eq!(order(&["1.0.0.0", "2.0.0.0", "::1"]), "1.0.0.0 ::1 2.0.0.0");
        assert_eq!(order(&["1.0.0.0"]), "1.0.0.0");
        assert_eq!(order(&[]), "");
    }

    /// A listener whose queue is full: what dials it hangs, as with an address that swallows packets.
    fn deaf() -> (socket2::Socket, Vec<socket2::Socket>, SocketAddr) {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        socket.listen(0).expect("listen");
        let address = socket.local_addr().expect("address");
        let fill = |_| {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
            filler.set_nonblocking(true).expect("nonblocking");
            let _begun = filler.connect(&address);
            filler
        };
        let fillers = (0..4).map(fill).collect();
        (socket, fillers, address.as_socket().expect("address"))
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_holds_nobody_up() {
        let (_socket, _fillers, silent) = deaf();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let good = listener.local_addr().expect("address");
        let free = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");

        let began = Instant::now();
        let stream = race("x", vec![silent, free, good]).await.expect("connected");
        assert_eq!(stream.peer_addr().expect("peer"), good);
        let took = began.elapsed();
        assert!(took >= HEAD_START, "the first address has a head start: {took:?}");
        assert!(took < Duration::from_secs(10), "it is not waited for to its end: {took:?}");
        let began = Instant::now();
        race("x", vec![free, good]).await.expect("connected");
        assert!(began.elapsed() < HEAD_START, "a failure is not waited for: {:?}", began.elapsed());
        assert!(matches!(race("x", vec![free]).await, Err(DialError::Connect { .. })));
    }
}
