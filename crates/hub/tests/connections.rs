//! Connections that say nothing: there are only so many places, so none is kept for long.

use std::time::Duration;

use sortie_api::Limits;
use sortie_hub::{AuditConfig, Hub, HubConfig};
use sortie_runtime::TaskSet;
use sortie_tls::{ServerName, TlsConnector, Versions, client_config};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than a first request may take to begin.
const LET_GO: Duration = Duration::from_secs(15);

async fn is_let_go(mut stream: impl AsyncRead + Unpin) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(LET_GO, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_connection_without_a_request_is_let_go() {
    let dir = tempfile::tempdir().expect("dir");
    let tasks = TaskSet::new();
    let here = ([127, 0, 0, 1], 0).into();
    let config = HubConfig {
        data_dir: dir.path().to_owned(),
        database: None,
        api: here,
        edge: here,
        health: Some(here),
        base_domain: "sortie.localhost".parse().expect("base domain"),
        names: Vec::new(),
        advertised_edge: None,
        allowed_origins: Vec::new(),
        insecure_http: false,
        address_share: 100,
        issuer: None,
        region: None,
        limits: Limits::default(),
        audit: AuditConfig::default(),
        mcp: sortie_hub::McpConfig::default(),
        models: None,
    };
    let hub = Hub::start(config, &tasks).await.expect("started");
    let api = hub.api_url.trim_start_matches("http://").to_owned();

    let silent = TcpStream::connect(&api).await.expect("connect");
    // The beginning of HTTP/2's preface: which version this will be is not decided.
    let mut undecided = TcpStream::connect(&api).await.expect("connect");
    undecided.write_all(b"PRI * HTTP/2").await.expect("written");

    let ca = std::fs::read_to_string(&hub.edge_ca_file).expect("CA");
    let tls = TlsConnector::from(client_config(&ca, false, Versions::Tls13, &[]).expect("TLS"));
    let name = ServerName::try_from("files.abcd1234.sortie.localhost").expect("name");
    let edge = TcpStream::connect(hub.edge_listener).await.expect("connect");
    let sealed = tls.connect(name, edge).await.expect("handshake");

    let health = TcpStream::connect(hub.health_addr.expect("health")).await.expect("connect");

    let gone = tokio::join!(is_let_go(silent), is_let_go(undecided), is_let_go(sealed), is_let_go(health));
    assert_eq!(gone, (true, true, true, true));
    tasks.shutdown(Duration::from_secs(5)).await;
    hub.close().await;
}
