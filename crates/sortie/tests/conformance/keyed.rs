//! A relay in front of a server for clients that cannot be told a key or a name: it puts the key into each request, and
//! the server's public name in the place of its own in `Host`. Everything else passes byte for byte and at once, in both
//! directions.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use sortie_tls::{ClientConfig, ServerName, TlsConnector};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The most bytes of a request's head, and of one line of it.
const MAX_HEAD: u64 = 64 * 1024;

/// Where the requests go.
pub(crate) struct Target {
    /// Who is dialled.
    pub(crate) addr: SocketAddr,
    /// For a server behind TLS: whom to trust, and its public authority (name and port).
    pub(crate) public: Option<(Arc<ClientConfig>, String)>,
    /// The value of `x-api-key` on each request.
    pub(crate) key: String,
}

/// A running relay. Dropping it ends its connections.
pub(crate) struct Keyed {
    /// Where clients reach it.
    pub(crate) addr: SocketAddr,
    _accept: JoinSet<()>,
}

impl Keyed {
    /// Starts one on a free port of loopback.
    pub(crate) async fn start(target: Target) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let mut accept = JoinSet::new();
        accept.spawn(accept_all(listener, addr.to_string(), Arc::new(target)));
        Ok(Self { addr, _accept: accept })
    }
}

async fn accept_all(listener: TcpListener, own: String, target: Arc<Target>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("a listener on loopback accepts");
        let (own, target) = (own.clone(), Arc::clone(&target));
        connections.spawn(async move {
            // What went wrong is seen by the client, whose connection ends.
            let _ended = connection(client, &own, &target).await;
        });
    }
}

async fn connection(client: TcpStream, own: &str, target: &Target) -> io::Result<()> {
    let server = TcpStream::connect(target.addr).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let Some((config, public)) = &target.public else {
        return carry(client, server, (own, own), &target.key).await;
    };
    let name = public.rsplit_once(':').map_or(public.as_str(), |(name, _)| name).to_owned();
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let server = TlsConnector::from(Arc::clone(config)).connect(name, server).await?;
    carry(client, server, (own, public), &target.key).await
}

/// Until one side ends its half: neither side of a test has more to say then.
async fn carry(
    mut client: TcpStream,
    server: impl AsyncRead + AsyncWrite,
    names: (&str, &str),
    key: &str,
) -> io::Result<()> {
    let (from_client, mut to_client) = client.split();
    let (mut from_server, to_server) = tokio::io::split(server);
    tokio::select! {
        ended = requests(BufReader::new(from_client), to_server, names, key) => ended,
        ended = tokio::io::copy(&mut from_server, &mut to_client) => ended.map(drop),
    }
}

async fn requests(
    mut from: impl AsyncBufRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (own, public): (&str, &str),
    key: &str,
) -> io::Result<()> {
    while let Some(mut body) = head(&mut from, &mut to, (own, public), key).await? {
        while body > 0 {
            let chunk = from.fill_buf().await?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let count = chunk.len().min(usize::try_from(body).unwrap_or(usize::MAX));
            to.write_all(chunk.get(..count).expect("a part of the chunk")).await?;
            to.flush().await?;
            from.consume(count);
            body -= count as u64;
        }
    }
    Ok(())
}

/// Passes one head on; returns the length of the body behind it, or nothing at the end of the connection.
async fn head(
    from: &mut (impl AsyncBufRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    (own, public): (&str, &str),
    key: &str,
) -> io::Result<Option<u64>> {
    let (mut head, mut body) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        let left = MAX_HEAD.saturating_sub(head.len() as u64);
        from.take(left).read_until(b'\n', &mut line).await?;
        let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
        if line.is_empty() && head.is_empty() {
            return Ok(None);
        }
        if line.is_empty() || text.starts_with("transfer-encoding:") {
            return Err(io::Error::other("a request that this relay does not carry"));
        }
        let first = head.is_empty();
        match text.split_once(':') {
            Some(("host", value)) if !first && value.trim() == own => {
                head.extend_from_slice(format!("host: {public}\r\n").as_bytes());
            }
            Some(("content-length", value)) if !first => {
                body = value.trim().parse().map_err(io::Error::other)?;
                head.extend_from_slice(&line);
            }
            _ => head.extend_from_slice(&line),
        }
        if first {
            head.extend_from_slice(format!("x-api-key: {key}\r\n").as_bytes());
        }
        if text == "\r\n" {
            to.write_all(&head).await?;
            to.flush().await?;
            return Ok(Some(body));
        }
    }
}
