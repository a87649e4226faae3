//! Routing a connection by its ClientHello, without consuming a byte of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Enough for any ClientHello in use: post-quantum ones take about 2 KiB, with tickets and many extensions 4 KiB.
pub const MAX_HELLO: usize = 16 * 1024;

/// First byte of every TLS connection: a record of type handshake (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Bytes asked for at a time: a post-quantum hello with one read.
const CHUNK: usize = 4096;

/// What a client asks for before any encryption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The host that the client wants (RFC 6066 section 3), in lower case. `None` when it named none, or an address.
    pub sni: Option<String>,
    /// The protocols that the client offers (RFC 7301), most wanted first.
    pub alpn: Vec<Vec<u8>>,
}

impl Hello {
    /// Whether the client offers this protocol.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.alpn.iter().any(|offered| offered == protocol)
    }
}

/// Why a connection could not be routed; it is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The peer went away before it had said what it wants.
    #[error("the connection closed inside its TLS hello")]
    Closed,
    /// Some other protocol, such as plain HTTP.
    #[error("the connection does not speak TLS; use https://")]
    NotTls,
    /// More bytes than the limit without a whole hello.
    #[error("the TLS hello is longer than {0} bytes")]
    TooLarge(usize),
    /// TLS whose hello breaks a rule.
    #[error("the TLS hello is malformed: {0}")]
    Malformed(String),
    /// The connection failed.
    #[error("reading the TLS hello failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads until the ClientHello is whole, at most `max_bytes` ([`MAX_HELLO`] is a good choice), and gives the
/// connection back with all bytes still to be read. The caller applies a deadline around it.
pub async fn read_hello<S: AsyncRead + Unpin>(
    mut stream: S,
    max_bytes: usize,
) -> Result<(Hello, Prefixed<S>), HelloError> {
    let mut seen = Vec::with_capacity(CHUNK.min(max_bytes));
    let mut acceptor = Acceptor::default();
    loop {
        let fed = seen.len();
        let room = max_bytes.saturating_sub(fed);
        if room == 0 {
            return Err(HelloError::TooLarge(max_bytes));
        }
        let read = (&mut stream).take(room.min(CHUNK) as u64).read_buf(&mut seen).await?;
        if read == 0 {
            return Err(HelloError::Closed);
        }
        if seen.first() != Some(&HANDSHAKE_RECORD) {
            return Err(HelloError::NotTls);
        }
        if let Some(hello) = feed(&mut acceptor, seen.get(fed..).unwrap_or_default())? {
            return Ok((hello, Prefixed::new(seen, stream)));
        }
    }
}

/// Gives the acceptor some more bytes; `Some` when the hello is whole. What follows the hello is ignored here.
fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes)? == 0 {
            return Err(HelloError::Malformed("its records do not fit together".to_owned()));
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Ok(Some(Hello {
                    sni: hello.server_name().map(str::to_ascii_lowercase),
                    alpn: hello.alpn().map(|offers| offers.map(<[u8]>::to_vec).collect()).unwrap_or_default(),
                }));
            }
            Err((error, _)) => return Err(HelloError::Malformed(error.to_string())),
        }
    }
    Ok(None)
}

/// A connection some of whose bytes were read already: they are read again first, then it passes through.
#[derive(Debug)]
pub struct Prefixed<S> {
    /// Empty, without memory, once it has been read.
    prefix: Vec<u8>,
    at: usize,
    stream: S,
}

impl<S> Prefixed<S> {
    /// A connection that yields `prefix` before its own bytes.
    pub fn new(prefix: Vec<u8>, stream: S) -> Self {
        Self { prefix, at: 0, stream }
    }

    /// The connection itself, for its addresses and options.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// The bytes that are still to be replayed, and the connection.
    pub fn into_parts(mut self) -> (Vec<u8>, S) {
        self.prefix.drain(..self.at);
        (self.prefix, self.stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let this = &mut *self;
        let rest = this.prefix.get(this.at..).unwrap_or_default();
        let taken = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..taken).unwrap_or_default());
        this.at += taken;
        if this.at >= this.prefix.len() {
            this.prefix = Vec::new();
            this.at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
