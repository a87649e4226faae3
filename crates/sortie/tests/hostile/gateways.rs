//! Hostile gateways: one of another tenant with a certificate that is good, one with a stolen token, one with neither.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sortie_link::protos::{FromGateway, GatewayHello, Kind, Route, RouteMode, VERSION};
use sortie_link::{Event, GatewayLink};
use sortie_runtime::TaskSet;
use sortie_tls::{ClientStream, ReloadingIdentity, TlsAcceptor, Versions, server_config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::common::{SOON, Tunnel, until};
use crate::frames::{DATA, END_HEADERS, HEADERS, PING, SETTINGS, WINDOW_UPDATE, frame};
use crate::recorder::find;
use crate::support::{Field, Said, hear, say};

/// How long whoever offers the link's ALPN may take to show a token, and what a loaded machine adds.
const HELLO: Duration = Duration::from_secs(12);

fn hello(tunnel: &Tunnel) -> GatewayHello {
    let token = std::fs::read_to_string(tunnel.dir.join("tunnel-token")).expect("token");
    GatewayHello {
        version: VERSION,
        features: Vec::new(),
        token: token.trim().to_owned(),
        gateway_instance: "hostile".into(),
        software: "hostile/1".into(),
        routes: vec![Route { name: "up".parse().expect("name"), mode: RouteMode::Terminated }],
    }
}

/// Outer TLS with the edge, as a gateway begins it.
async fn dial(field: &Field) -> ClientStream<TcpStream> {
    field.edge("127.0.0.1", sortie_link::ALPN).await
}

/// A gateway whose certificate is good, and whose every answer is this, and then perhaps this again and again.
async fn serve(mut link: GatewayLink, tunnel: Tunnel, answer: String, again: String) {
    let pem = |name: &str| std::fs::read_to_string(tunnel.dir.join(name)).expect("PEM");
    let identity = ReloadingIdentity::from_pem(&pem("tls.crt"), &pem("tls.key")).expect("identity");
    let tls = TlsAcceptor::from(server_config(Arc::new(identity), Versions::Tls13, &[b"http/1.1"], None).expect("TLS"));
    let mut calls = JoinSet::new();
    while let Some(event) = link.next().await {
        let Event::Call(call) = event else { continue };
        assert_eq!(call.kind, Kind::Hub);
        let (tls, answer, again) = (tls.clone(), answer.clone(), again.clone());
        calls.spawn(async move {
            let Ok(mut stream) = tls.accept(call.stream).await else { return };
            let mut bytes = Vec::new();
            loop {
                while find(&bytes, b"\r\n\r\n").is_none() {
                    let Ok(1..) = stream.read_buf(&mut bytes).await else { return };
                }
                bytes.clear();
                let mut gone = stream.write_all(answer.as_bytes()).await.is_err() || stream.flush().await.is_err();
                while !again.is_empty() && !gone {
                    gone = stream.write_all(again.as_bytes()).await.is_err();
                }
                if gone {
                    return;
                }
            }
        });
    }
}

async fn call(field: &Field, tunnel: &Tunnel) -> Said {
    let key = &field.world.api_key;
    let request = format!(
        "GET /t/{}/up/x HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n",
        tunnel.label
    );
    say(&mut field.api().await, request.as_bytes()).await
}

#[tokio::test]
async fn what_another_tenants_gateway_answers_harms_only_its_own_callers() {
    let field = Field::start().await;
    let evil = field.world.tunnel("evil").await;
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(200);
    let large = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1_000_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x: y\r\n".repeat(1000));
    let poison = format!("{ok}HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison");
    let bad: &[u16] = &[502, 503];
    for (name, answer, again, want) in [
        ("as it should be", ok, "", &[200][..]),
        (
            "CL and TE",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "",
            bad,
        ),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\nok", "", bad),
        ("odd coding", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "", bad),
        ("a flood of interim answers", "", interim.as_str(), bad),
        ("a head that is too long", large.as_str(), "", bad),
        ("a head with too many lines", many.as_str(), "", bad),
        ("a head without end", "HTTP/1.1 200 OK\r\n", "x: y\r\n", bad),
        ("an answer too many", poison.as_str(), "", &[200]),
    ] {
        let tasks = TaskSet::new();
        let link = sortie_link::establish(dial(&field).await, &hello(&evil), &tasks).await.expect(name);
        tasks.spawn("evil", serve(link, evil.clone(), answer.to_owned(), again.to_owned()));
        for _ in 0..5 {
            let said = call(&field, &evil).await;
            assert!(want.contains(&said.statuses()[0]), "{name}: {}", said.text());
            assert_eq!(said.statuses().len(), 1, "{name}: {}", said.text());
            assert!(!said.text().contains("poison"), "{name}: {}", said.text());
        }
        field.others_are_served(name).await;
        field.bounded(name);
        tasks.abort();
        until("its link is gone", SOON, async || call(&field, &evil).await.text().contains("no gateway")).await;
    }
}

/// The gateway's end of a link by hand, to the point where the edge has let it in.
async fn let_in(field: &Field, tunnel: &Tunnel) -> ClientStream<TcpStream> {
    let mut wire = dial(field).await;
    let line = serde_json::to_string(&hello(tunnel)).expect("JSON") + "\n";
    // 0x88 is `:status: 200`.
    let bytes = [
        frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0x10, 0]),
        frame(SETTINGS, 1, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, &[0x88]),
        frame(DATA, 0, 1, line.as_bytes()),
    ];
    // The edge's request has to come first.
    let mut said = Vec::new();
    while find(&said, b"edge_instance").is_none() {
        assert!(wire.read_buf(&mut said).await.expect("read") > 0);
    }
    wire.write_all(&bytes.concat()).await.expect("written");
    while find(&said, b"welcome").is_none() {
        let read = tokio::time::timeout(SOON, wire.read_buf(&mut said)).await.expect("in time").expect("read");
        assert!(read > 0, "not let in: {}", String::from_utf8_lossy(&said));
    }
    wire
}

#[tokio::test]
async fn a_stolen_token_floods_only_its_own_link() {
    let field = Field::start().await;
    let stolen = field.world.tunnel("stolen").await;
    let probe = FromGateway::Probe { id: 1, route: "up".parse().expect("name") };
    let probe = serde_json::to_string(&probe).expect("JSON") + "\n";
    // With whether the edge is to end the link for it.
    for (name, again, ends) in [
        ("PING", frame(PING, 0, 0, &[7; 8]).repeat(1000), false),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[]).repeat(1000), false),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).repeat(1000), false),
        ("probes", frame(DATA, 0, 1, probe.repeat(100).as_bytes()), false),
        ("a line without end", frame(DATA, 0, 1, &[b'x'; 16_000]), true),
        ("lines that say nothing", frame(DATA, 0, 1, &b"{}\n".repeat(1000)), true),
        ("streams that nobody opened", frame(HEADERS, END_HEADERS, 2, &[0x88]), true),
        ("answers to nothing", frame(DATA, 0, 77, b"x"), true),
        ("promises", frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x88]), true),
        (
            "headers without end",
            [frame(HEADERS, 0, 3, &[0x88]), frame(9, 0, 3, &[0; 16_000]).repeat(50)].concat(),
            true,
        ),
    ] {
        let mut wire = let_in(&field, &stolen).await;
        let (mut ended, end) = (false, Instant::now() + Duration::from_millis(1500));
        let flooding = async {
            while !ended && Instant::now() < end {
                // Held back by the edge is as good as ended.
                let sent = tokio::time::timeout(Duration::from_secs(2), wire.write_all(&again)).await;
                ended = !matches!(sent, Ok(Ok(())));
            }
        };
        tokio::join!(flooding, field.others_are_served(name));
        field.bounded(name);
        if ends {
            let said = hear(&mut wire).await;
            assert!(ended || said.closed, "{name}: the link is still there");
        }
    }
    field.others_are_served("stolen token").await;
}

#[tokio::test]
async fn without_a_token_nobody_stays() {
    let field = Field::start().await;
    let mut held = Vec::new();
    for number in 0..60 {
        let mut wire = dial(&field).await;
        let said = match number % 3 {
            0 => Vec::new(),
            1 => frame(SETTINGS, 0, 0, &[]),
            _ => [frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, &[0x88])].concat(),
        };
        let _gone = wire.write_all(&said).await;
        held.push(wire);
    }
    let mut wrong = hello(&field.tunnel);
    wrong.token = "tunnel_wrong".into();
    let tasks = TaskSet::new();
    let refused = sortie_link::establish(dial(&field).await, &wrong, &tasks).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("unknown")), "a token that is none");
    field.others_are_served("links without a token").await;
    field.bounded("links without a token");
    let began = Instant::now();
    for mut wire in held {
        let mut rest = Vec::new();
        let left = HELLO.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
        // PINGs of theirs would not change that: the wait is for the hello.
        let _gone = wire.write_all(&frame(PING, 0, 0, &[1; 8])).await;
        assert!(tokio::time::timeout(left, wire.read_to_end(&mut rest)).await.is_ok(), "kept");
    }
    tasks.abort();
}
