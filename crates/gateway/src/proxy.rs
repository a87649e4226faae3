//! Reaching the edge through an HTTP proxy: CONNECT (RFC 9110, 9.3.6), the only way out of many networks.
//!
//! With a proxy configured nothing is dialled directly. What passes it is the link's own TLS, of which it sees the
//! edge's name and nothing else.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{HeaderValue, Method, Request};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sortie_runtime::TaskSet;
use tokio::net::TcpStream;

use crate::setup::EdgeAddr;

/// `[link]`: how the edge is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkConfig {
    /// `link.proxy`: an HTTP proxy that the link goes through, `http://host:port`. Default none: the edge is dialled
    /// directly.
    pub proxy: Option<ProxyAddr>,
    /// `link.proxy_authorization_file`: holds the value of the header `Proxy-Authorization`, like `Basic ...`. Read at
    /// each dial. Default none.
    pub proxy_authorization_file: Option<PathBuf>,
}

/// Where a proxy listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyAddr {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl std::str::FromStr for ProxyAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not the address of a proxy (http://host:port)");
        let (host, port) = text.strip_prefix("http://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.trim_end_matches('/').parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        if host.is_empty() || host.contains(['@', '/', '?', '#']) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for ProxyAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "http://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "http://{}:{}", self.host, self.port)
        }
    }
}

impl LinkConfig {
    /// A TCP connection to the edge, or one through the proxy that behaves like it.
    pub(crate) async fn connect(&self, edge: &EdgeAddr, tasks: &TaskSet) -> io::Result<TcpStream> {
        let Some(proxy) = &self.proxy else { return TcpStream::connect((edge.host.as_str(), edge.port)).await };
        let named = |what: String| io::Error::other(format!("proxy {}:{}: {what}", proxy.host, proxy.port));
        let tcp = TcpStream::connect((proxy.host.as_str(), proxy.port)).await;
        let tcp = tcp.map_err(|error| named(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(tcp)).await.map_err(|error| named(error.to_string()))?;
        tasks.spawn("proxy-connect", async move {
            // Its errors reach the request.
            let _ = connection.with_upgrades().await;
        });
        let host = if edge.host.contains(':') { format!("[{}]", edge.host) } else { edge.host.clone() };
        let authority = format!("{host}:{}", edge.port);
        let mut request = Request::builder().method(Method::CONNECT).uri(&authority).header(HOST, &authority);
        if let Some(value) = self.authorization().await? {
            request = request.header(PROXY_AUTHORIZATION, value);
        }
        let request = request.body(Empty::new()).map_err(|error| named(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(|error| named(error.to_string()))?;
        if !response.status().is_success() {
            return Err(named(format!("it answered {} to CONNECT {authority}", response.status())));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| named(error.to_string()))?;
        let parts = upgraded.downcast::<TokioIo<TcpStream>>().map_err(|_| named("no tunnel was made".into()))?;
        if !parts.read_buf.is_empty() {
            // TLS servers do not speak first.
            return Err(named("it sent bytes of its own into the tunnel".into()));
        }
        Ok(parts.io.into_inner())
    }

    async fn authorization(&self) -> io::Result<Option<HeaderValue>> {
        let Some(path) = &self.proxy_authorization_file else { return Ok(None) };
        let named =
            |what: String| io::Error::other(format!("link.proxy_authorization_file {}: {what}", path.display()));
        let text = tokio::fs::read_to_string(path).await.map_err(|error| named(error.to_string()))?;
        let mut value = HeaderValue::from_str(text.trim()).map_err(|_| named("it is not a header's value".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A proxy that answers one connection with `answer`, and then echoes; tells what it was asked.
    async fn proxy(tasks: &TaskSet, answer: &'static str) -> (ProxyAddr, tokio::sync::oneshot::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let (asked, was_asked) = tokio::sync::oneshot::channel();
        tasks.spawn("proxy", async move {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("read"));
            }
            let _ = asked.send(String::from_utf8(head).expect("text"));
            stream.write_all(answer.as_bytes()).await.expect("written");
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        (ProxyAddr { host: "127.0.0.1".into(), port }, was_asked)
    }

    #[tokio::test]
    async fn the_edge_is_asked_for_and_bytes_pass() {
        let tasks = TaskSet::new();
        let (addr, asked) = proxy(&tasks, "HTTP/1.1 200 Connection established\r\n\r\n").await;
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("authorization");
        std::fs::write(&file, "Basic dTpw\n").expect("write");
        let config = LinkConfig { proxy: Some(addr), proxy_authorization_file: Some(file) };
        let edge = EdgeAddr::parse("edge.example.test:443").expect("edge");
        let mut stream = config.connect(&edge, &tasks).await.expect("connected");
        let asked = asked.await.expect("asked").to_ascii_lowercase();
        assert!(asked.starts_with("connect edge.example.test:443 http/1.1\r\n"), "{asked}");
        assert!(asked.contains("proxy-authorization: basic dtpw\r\n"), "{asked}");
        stream.write_all(b"through").await.expect("written");
        let mut bytes = [0; 7];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut bytes))
            .await
            .expect("in time")
            .expect("read");
        assert_eq!(&bytes, b"through");
        tasks.abort();
    }

    #[tokio::test]
    async fn a_proxy_that_refuses_is_named() {
        let tasks = TaskSet::new();
        let (addr, _) = proxy(&tasks, "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n").await;
        let named = format!("proxy 127.0.0.1:{}", addr.port);
        let config = LinkConfig { proxy: Some(addr), proxy_authorization_file: None };
        let edge = EdgeAddr::parse("10.1.2.3:443").expect("edge");
        let error = config.connect(&edge, &tasks).await.expect_err("refused").to_string();
        assert!(error.contains(&named) && error.contains("407"), "{error}");
        tasks.abort();
    }

    #[test]
    fn addresses_are_plain() {
        assert_eq!("http://[::1]:3128".parse::<ProxyAddr>().map(|proxy| proxy.host), Ok("::1".into()));
        for bad in ["proxy:3128", "https://proxy:3128", "http://proxy", "http://u:p@proxy:1", "http://:1", "http://a:0"]
        {
            assert!(bad.parse::<ProxyAddr>().is_err(), "{bad}");
        }
    }
}
