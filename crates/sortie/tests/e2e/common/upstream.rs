//! A server that says what a test wants it to say, byte for byte, and keeps what it was sent.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Largest request that is kept.
const KEPT: usize = 8 * 1024 * 1024;

/// A request as it came over the wire.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The values of a header, in order.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }
}

/// The server: one request a connection, then the given bytes, then the end.
pub(crate) struct Upstream {
    pub(crate) addr: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    /// Answers every request with these bytes and closes.
    pub(crate) async fn saying(answer: impl Into<Vec<u8>>) -> Self {
        Self::start(Some(answer.into()), 0).await
    }

    /// The same at a port of loopback that is known before.
    pub(crate) async fn saying_at(port: u16, answer: impl Into<Vec<u8>>) -> Self {
        Self::start(Some(answer.into()), port).await
    }

    /// Takes requests and never answers.
    pub(crate) async fn silent() -> Self {
        Self::start(None, 0).await
    }

    async fn start(answer: Option<Vec<u8>>, port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&seen), Arc::new(answer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, Arc::clone(&answer), Arc::clone(&kept)));
            }
        });
        Self { addr, seen, _tasks: tasks }
    }

    /// What came so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The only request that came.
    pub(crate) fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.into_iter().next().unwrap_or_default()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<Option<Vec<u8>>>, kept: Arc<Mutex<Vec<Seen>>>) {
    let Some(seen) = read(&mut stream).await else { return };
    kept.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    match answer.as_ref() {
        Some(answer) => {
            let _gone = stream.write_all(answer).await;
            let _gone = stream.shutdown().await;
        }
        None => std::future::pending().await,
    }
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let (head, body) = bytes.split_at_checked(end + 4)?;
            let seen = Seen { head: String::from_utf8_lossy(head).into_owned(), body: body.to_vec() };
            let length: usize = seen.header("content-length").first().and_then(|text| text.parse().ok()).unwrap_or(0);
            let chunked = !seen.header("transfer-encoding").is_empty();
            if (!chunked && body.len() >= length) || (chunked && body.ends_with(b"0\r\n\r\n")) || bytes.len() > KEPT {
                return Some(seen);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
