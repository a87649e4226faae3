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
    Io(io::Error),
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
        let read = (&mut stream).take(room.min(CHUNK) as u64).read_buf(&mut seen).await.map_err(HelloError::Io)?;
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
        if acceptor.read_tls(&mut bytes).map_err(HelloError::Io)? == 0 {
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

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::fixtures::*;
    use crate::inner_client_config;

    /// The first flight of a real client.
    fn client_hello(host: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let name = ServerName::try_from(host.to_owned()).expect("name");
        let mut connection = rustls::ClientConnection::new(inner_client_config(&[], alpn), name).expect("client");
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).expect("hello");
        bytes
    }

    async fn read_all(bytes: &[u8], max: usize) -> Result<(Hello, Prefixed<DuplexStream>), HelloError> {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(bytes).await.expect("write");
        drop(near);
        read_hello(far, max).await
    }

    #[tokio::test]
    async fn a_post_quantum_hello_in_single_bytes_is_read_and_replayed() {
        let bytes = client_hello("Files.abcd1234.sortie.localhost", &[b"sortie-link/1", b"h2"]);
        assert!(bytes.len() > 1200, "a post-quantum key share is in it, {} bytes", bytes.len());
        let (mut near, far) = duplex(1);
        let write = async {
            for byte in &bytes {
                near.write_all(&[*byte]).await.expect("write");
            }
            near.write_all(b"and what follows").await.expect("write");
            drop(near);
        };
        let read = async {
            let (hello, mut stream) = read_hello(far, MAX_HELLO).await.expect("hello");
            let mut replayed = Vec::new();
            stream.read_to_end(&mut replayed).await.expect("read");
            (hello, replayed)
        };
        let ((), (hello, replayed)) = tokio::join!(write, read);
        assert_eq!(hello.sni.as_deref(), Some(HOST));
        assert!(hello.offers(b"sortie-link/1") && hello.offers(b"h2") && !hello.offers(b"http/1.1"));
        assert_eq!(replayed, [&bytes[..], b"and what follows"].concat());
    }

    #[tokio::test]
    async fn a_hello_without_a_name_or_protocols_is_fine() {
        let (hello, _) = read_all(&client_hello("127.0.0.1", &[]), MAX_HELLO).await.expect("hello");
        assert_eq!(hello, Hello::default());
    }

    #[tokio::test]
    async fn other_protocols_and_silence_are_told_apart() {
        let error = read_all(b"GET / HTTP/1.1\r\n\r\n", MAX_HELLO).await.expect_err("http");
        assert!(matches!(error, HelloError::NotTls));
        assert!(matches!(read_all(b"", MAX_HELLO).await.expect_err("silence"), HelloError::Closed));
        let hello = client_hello(HOST, &[]);
        assert!(matches!(read_all(&hello[..500], MAX_HELLO).await.expect_err("half"), HelloError::Closed));
    }

    #[tokio::test]
    async fn garbage_is_malformed_and_never_panics() {
        for garbage in [&[22u8, 3, 1, 0, 4, 2, 0, 0, 0][..], &[22; 600], &[22, 3, 1, 0xff, 0xff, 1, 2, 3]] {
            let error = read_all(garbage, MAX_HELLO).await.expect_err("garbage");
            assert!(matches!(error, HelloError::Malformed(_)), "{error}");
        }
        let hello = client_hello(HOST, &[b"h2"]);
        for at in 0..hello.len() {
            let mut damaged = hello.clone();
            damaged[at] ^= 0xff;
            let _ = read_all(&damaged, MAX_HELLO).await;
        }
    }

    #[tokio::test]
    async fn a_hello_over_the_limit_is_refused() {
        let hello = client_hello(HOST, &[]);
        assert!(read_all(&hello, hello.len()).await.is_ok());
        let error = read_all(&hello, hello.len() - 1).await.expect_err("limit");
        assert!(matches!(error, HelloError::TooLarge(_)), "{error}");

        // A handshake message that claims 60000 bytes and keeps sending them.
        let mut endless = Vec::new();
        for record in 0..8 {
            endless.extend([22, 3, 1, 0x10, 0]);
            endless.extend(if record == 0 { vec![1, 0, 0xea, 0x60] } else { vec![0; 4] });
            endless.extend(vec![0; 0x1000 - 4]);
        }
        let error = read_all(&endless, MAX_HELLO).await.expect_err("endless");
        assert!(matches!(error, HelloError::TooLarge(MAX_HELLO)), "{error}");
    }

    #[tokio::test]
    async fn the_handshake_goes_on_over_the_replayed_bytes() {
        let ca = authority();
        let server = serve(&ca.issue_server(&names(&[HOST]), DAY).expect("certificate"), &[]);
        let client = inner_client_config(&[ca.certificate().clone()], &[]);
        let (near, far) = duplex(700);
        let name = ServerName::try_from(HOST).expect("name");
        let server = async {
            let (_, stream) = read_hello(far, MAX_HELLO).await.expect("hello");
            let mut stream = TlsAcceptor::from(server).accept(stream).await.expect("accept");
            stream.write_all(&[7; 20_000]).await.expect("write");
            stream.shutdown().await.expect("shutdown");
        };
        let client = async {
            let mut stream = TlsConnector::from(client).connect(name, near).await.expect("connect");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.expect("read");
            got.len()
        };
        assert_eq!(tokio::join!(server, client), ((), 20_000));
    }

    #[tokio::test]
    async fn a_prefix_is_read_in_parts_and_its_memory_is_given_back() {
        let (mut near, far) = duplex(64);
        near.write_all(b"world").await.expect("write");
        let mut stream = Prefixed::new(b"hello ".to_vec(), far);
        let mut part = [0; 4];
        stream.read_exact(&mut part).await.expect("read");
        assert_eq!(&part, b"hell");
        let (rest, far) = stream.into_parts();
        assert_eq!(rest, b"o ");
        let mut stream = Prefixed::new(rest, far);
        let mut text = [0; 7];
        stream.read_exact(&mut text).await.expect("read");
        assert_eq!(&text, b"o world");
        assert_eq!(stream.prefix.capacity(), 0);
        assert!(stream.is_write_vectored() == stream.get_ref().is_write_vectored());
        let written = stream.write_vectored(&[IoSlice::new(b"a"), IoSlice::new(b"b")]).await.expect("write");
        drop(stream);
        let mut back = Vec::new();
        near.read_to_end(&mut back).await.expect("read");
        assert_eq!(back, &b"ab"[..written]);
    }
}
