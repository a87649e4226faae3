//! Places for connections: nobody takes those of others.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reqwest::Method;
use sortie_testkit::TempHome;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::common::{SOON, World, client, send, sortie, text, until};
use crate::support::{Field, connect_from, say};

const ATTACKER: [u8; 4] = [127, 0, 0, 2];
const NEIGHBOUR: [u8; 4] = [127, 0, 0, 3];

/// A hub where one address may hold one percent of the places.
async fn strict() -> World {
    let home = TempHome::new().expect("home");
    let ready_file = home.join("hub.ready");
    let mut hub = sortie(&home)
        .args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--address-share", "1", "--data-dir"])
        .arg(home.join("hub"))
        .arg("--ready-file")
        .arg(&ready_file)
        .spawn()
        .expect("hub");
    let ready = hub.ready_file(&ready_file, SOON).await.expect("hub serves");
    World {
        api_url: text(&ready, "/api_url").to_owned(),
        api_key: text(&ready, "/api_key").to_owned(),
        edge_addr: text(&ready, "/edge_addr").to_owned(),
        edge_ca: text(&ready, "/edge_ca_file").into(),
        http: client(),
        hub,
        home,
        env: Vec::new(),
    }
}

/// Whether a connection is closed within a moment.
async fn is_closed(wire: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_millis(100), wire.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Opens connections until one is closed again at once; the others, which are held.
async fn take_all(to: SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        let mut wire = connect_from(ATTACKER, to).await.expect("connect");
        if held.len() % 8 == 7 && is_closed(&mut wire).await {
            return held;
        }
        held.push(wire);
    }
    panic!("{} connections are held and none was closed", held.len());
}

#[tokio::test]
async fn one_address_gets_no_more_than_its_share_and_others_get_theirs() {
    let field = Field::of(strict().await, &[]).await;
    for (name, addr) in [("API", field.api_addr()), ("edge", field.edge_addr())] {
        let mut held = take_all(addr).await;
        assert!(held.len() <= 160, "{name}: one address holds {}", held.len());
        field.others_are_served(name).await;
        // Another address comes in at both ports while they are held, and so does a gateway.
        let mut api = connect_from(NEIGHBOUR, field.api_addr()).await.expect("API");
        let said = say(&mut api, b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        assert_eq!(said.statuses(), [200], "{name}");
        let tcp = connect_from(NEIGHBOUR, field.edge_addr()).await.expect("edge");
        let mut edge = field.tls(tcp, &field.host("up"), b"http/1.1").await.expect("handshake");
        let request = format!(
            "GET /x HTTP/1.1\r\nhost: {}\r\nx-api-key: {}\r\nconnection: close\r\n\r\n",
            field.host("up"),
            field.world.api_key
        );
        assert_eq!(say(&mut edge, request.as_bytes()).await.statuses(), [200], "{name}");
        let tunnel = field.world.tunnel(&format!("another-{name}")).await;
        let config = crate::common::routes(&[("up", &format!("http://{}", field.recorder.addr))]);
        let gateway = field.world.gateway(&tunnel.dir, &config, &[]).await;
        drop(gateway);
        // What is given back is there for the same address again.
        held.clear();
        until("the share is free again", SOON, async || {
            let mut wire = connect_from(ATTACKER, addr).await.expect("connect");
            !is_closed(&mut wire).await
        })
        .await;
    }
    let metrics = send(field.world.api(Method::GET, "/metrics")).await.text();
    for series in [
        "sortie_hub_connections_refused_total{reason=\"share\"}",
        "sortie_edge_connections_refused_total{reason=\"share\"}",
    ] {
        assert!(metrics.contains(series), "{series} is not in {metrics}");
    }
    field.bounded("places");
}
