//! Bytes on a connection, for what no well-behaved client would send.

use std::path::Path;

use sortie_tls::{ClientStream, ServerName, TlsConnector, Versions, client_config};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Answer, SOON};

/// Opens TLS with the edge for this hostname.
pub(crate) async fn tls_to(edge: &str, ca: &Path, sni: &str) -> ClientStream<TcpStream> {
    let roots = std::fs::read_to_string(ca).expect("CA");
    let config = client_config(&roots, false, Versions::Legacy, &[b"http/1.1"]).expect("TLS");
    let tcp = TcpStream::connect(edge).await.expect("edge");
    let name = ServerName::try_from(sni.to_owned()).expect("name");
    TlsConnector::from(config).connect(name, tcp).await.expect("handshake")
}

/// Writes a request and reads one answer to the end of the connection, which the request has to ask for.
pub(crate) async fn raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Answer {
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut bytes = Vec::new();
    // A peer that closes without saying so in TLS has still said all that counts.
    let _end = tokio::time::timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("in time");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text}"));
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let mut headers = reqwest::header::HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let name: reqwest::header::HeaderName = name.trim().parse().expect("name");
        headers.append(name, value.trim().parse().expect("value"));
    }
    Answer { status: status.expect("status"), headers, body: body.as_bytes().to_vec() }
}
