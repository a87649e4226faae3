//! What it takes to be believed, and how fast belief ends: stolen tokens, withdrawn CAs, tunnels and keys.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::eventually;
use sortie_tls::{SetupDir, SetupFile};

use crate::common::{
    AT_ONCE, SOON, Serving, Tunnel, Upstream, World, echo_route, modern, routes, run, send, serving, text,
};

const DAY: Duration = Duration::from_secs(86_400);

/// A call whose answer streams for a minute, when its first event is here.
async fn streaming(world: &World, tunnel: &Tunnel) -> reqwest::Response {
    let post = world.request(Method::POST, tunnel, "echo", "/mcp");
    let long = json!({ "count": 600, "interval_ms": 100 });
    let mut response = modern(post, &json!(1), "progress", &long).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.chunk().await.expect("an event").is_some());
    response
}

/// Reads a stream until it breaks; a polite end is as wrong as no end.
async fn breaks(mut response: reqwest::Response) {
    let read = async {
        while response.chunk().await.map_err(drop)?.is_some() {}
        Ok::<(), ()>(())
    };
    let ended = tokio::time::timeout(Duration::from_secs(5), read).await.expect("the stream was not cut");
    assert!(ended.is_err(), "a stream that is cut must not look finished");
}

/// The one CA that is registered on a tunnel.
async fn ca_of(world: &World, tunnel: &Tunnel) -> String {
    let list = run(world.operator(&["certs", "list", &tunnel.id, "--output", "json"])).await.json();
    assert_eq!(list.pointer("/data").and_then(Value::as_array).map(Vec::len), Some(1), "{list}");
    text(&list, "/data/0/id").to_owned()
}

#[tokio::test]
async fn a_stolen_token_with_another_ca_reads_nothing_and_calls_nothing() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let stolen = world.home.join("stolen");
    let dir = SetupDir::open(&stolen).expect("directory");
    let public = [SetupFile::TunnelDomain, SetupFile::EdgeAddr, SetupFile::EdgeCa, SetupFile::HubIdentity];
    for file in public.into_iter().chain([SetupFile::TunnelToken]) {
        dir.write(file, SetupDir::at(&tunnel.dir).require(file).expect("read").expose()).expect("write");
    }
    dir.ensure_authority().expect("authority");
    dir.issue_server_cert(&tunnel.domain, DAY).expect("certificate");
    let theirs = Upstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen").await;
    let (mut thief, ready) = world.spawn_gateway(&stolen, &routes(&[("echo", &theirs.url())]), &[]);
    thief.ready_output("link up", SOON).await.expect("the token opens a link");

    let id = json!("secret-call");
    let post = world.request(Method::POST, &tunnel, "echo", "/mcp");
    let answer = send(modern(post, &id, "echo", &json!({ "text": "secret" }))).await;
    answer.rpc_refused(502, "inner-tls", "unknown certificate authority", &id);
    assert!(theirs.seen().is_empty(), "nothing of the call was read");
    thief.ready_output("tls handshake failed", SOON).await.expect("it was refused there");
    assert!(!ready.exists(), "it never says that it serves");

    // Nor is the token a credential for calls or for the API.
    let token = std::fs::read_to_string(stolen.join("tunnel-token")).expect("token");
    for path in [format!("/t/{}/echo/mcp", tunnel.label), "/v1/tunnels".to_owned()] {
        let request = world.http.get(format!("{}{path}", world.api_url)).header("x-api-key", token.trim());
        assert_eq!(send(request).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn a_thief_with_the_token_cannot_stand_in_the_way() {
    let Serving { world, tunnel, mut gateway, echo } = serving().await;
    let stolen = world.home.join("stolen");
    let dir = SetupDir::open(&stolen).expect("directory");
    let all = [SetupFile::TunnelDomain, SetupFile::EdgeAddr, SetupFile::EdgeCa, SetupFile::HubIdentity];
    for file in all.into_iter().chain([SetupFile::TunnelToken]) {
        dir.write(file, SetupDir::at(&tunnel.dir).require(file).expect("read").expose()).expect("write");
    }
    dir.ensure_authority().expect("authority");
    dir.issue_server_cert(&tunnel.domain, DAY).expect("certificate");
    let theirs = Upstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen").await;
    let (mut thief, _) = world.spawn_gateway(&stolen, &routes(&[("echo", &theirs.url())]), &[]);
    thief.ready_output("link up", SOON).await.expect("the token opens a link");
    for _ in 0..20 {
        world.serves(&tunnel, "echo").await;
    }
    // Nor by being there first when the right gateway comes back.
    gateway.process.kill();
    let _again = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    for _ in 0..20 {
        world.serves(&tunnel, "echo").await;
    }
    assert!(theirs.seen().is_empty());
}

#[tokio::test]
async fn an_archived_ca_bites_at_once_and_can_be_registered_again() {
    let Serving { world, tunnel, gateway: _gateway, echo } = serving().await;
    let stream = streaming(&world, &tunnel).await;
    let ca = ca_of(&world, &tunnel).await;
    run(world.operator(&["certs", "archive", &tunnel.id, &ca])).await.ok();
    let answer = send(world.request(Method::GET, &tunnel, "echo", "/small")).await;
    answer.refused(502, "inner-tls", "no CA certificate is registered");
    breaks(stream).await;
    let left = || echo.events().iter().any(|event| event.event == "cancelled").then_some(());
    eventually(Duration::from_secs(2), left).await.expect("the server saw the caller leave");

    // Another CA is not good enough; the gateway's own is.
    let other = world.tunnel("other").await;
    let register = async |file: &std::path::Path| {
        let file = file.to_str().expect("path").to_owned();
        run(world.operator(&["certs", "add", &tunnel.id, &file])).await.ok();
    };
    register(&other.dir.join("ca.crt")).await;
    let answer = send(world.request(Method::GET, &tunnel, "echo", "/small")).await;
    answer.refused(502, "inner-tls", "unknown certificate authority");
    register(&tunnel.dir.join("ca.crt")).await;
    world.serves(&tunnel, "echo").await;
}

#[tokio::test]
async fn with_two_cas_only_what_the_archived_one_vouched_for_is_cut() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let other = world.tunnel("other").await;
    let file = other.dir.join("ca.crt");
    let added = run(world.operator(&["certs", "add", &tunnel.id, file.to_str().expect("path"), "--output", "json"]));
    let added = text(&added.await.json(), "/id").to_owned();
    let mut stream = streaming(&world, &tunnel).await;
    run(world.operator(&["certs", "archive", &tunnel.id, &added])).await.ok();
    world.serves(&tunnel, "echo").await;
    for _ in 0..5 {
        assert!(stream.chunk().await.expect("the stream goes on").is_some());
    }
}

#[tokio::test]
async fn a_rotated_token_spares_the_link_and_refuses_the_next_until_the_file_is_new() {
    let Serving { world, tunnel, mut gateway, echo } = serving().await;
    let made = run(world.operator(&["tunnels", "rotate-token", &tunnel.id, "--output", "json"])).await.json();
    let token = text(&made, "/tunnel_token").to_owned();
    world.serves(&tunnel, "echo").await;
    gateway.process.kill();

    let (mut again, ready) = world.spawn_gateway(&tunnel.dir, &echo_route(&echo), &[]);
    again.ready_output("refused the tunnel token", SOON).await.expect("a clear sentence");
    assert!(again.output().contains("setup init"), "and the way out: {}", again.output());
    let answer = send(world.request(Method::GET, &tunnel, "echo", "/small")).await;
    answer.refused(503, "link", "no gateway");
    assert!(!ready.exists());
    std::fs::write(tunnel.dir.join("tunnel-token"), format!("{token}\n")).expect("token");
    again.ready_file(&ready, SOON).await.expect("it comes back by itself");
    world.serves(&tunnel, "echo").await;
}

#[tokio::test]
async fn an_archived_tunnel_is_cut_and_gone() {
    let Serving { world, tunnel, mut gateway, echo: _echo } = serving().await;
    let stream = streaming(&world, &tunnel).await;
    run(world.operator(&["tunnels", "archive", &tunnel.id])).await.ok();
    let answer = send(world.request(Method::GET, &tunnel, "echo", "/small")).await;
    answer.refused(502, "route", "No route configured for host");
    breaks(stream).await;
    gateway.process.ready_output("refused the tunnel token", SOON).await.expect("it is told why");
    let readyz = send(world.http.get(format!("{}/readyz", gateway.health))).await;
    assert_eq!(readyz.status, 503, "{}", readyz.text());
    assert!(text(&readyz.json(), "/reason").contains("link: "), "{}", readyz.text());
    // Nothing of it can be used again.
    run(world.init(&tunnel.dir)).await.failed(1, &["was archived"]);
    let reveal = world.operator(&["tunnels", "reveal-token", &tunnel.id]);
    assert_ne!(run(reveal).await.code, 0);
}

#[tokio::test]
async fn an_archived_key_bites_at_once() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let (id, secret) = world.use_key(&[&tunnel.id]).await;
    let call = async || {
        let post = world.http.post(world.url(&tunnel, "echo", "/mcp")).header("x-api-key", &secret);
        send(modern(post, &json!(1), "echo", &json!({ "text": "x" }))).await
    };
    assert_eq!(call().await.status, 200);
    run(world.operator(&["keys", "archive", &id])).await.ok();
    call().await.rpc_refused(401, "identity", "", &json!(1));
    world.serves(&tunnel, "echo").await;
    // An expired one is no better.
    let soon = (std::time::SystemTime::now() + AT_ONCE * 2).duration_since(std::time::UNIX_EPOCH).expect("now");
    let expires = jiff::Timestamp::from_second(i64::try_from(soon.as_secs()).expect("seconds")).expect("time");
    let args =
        ["keys", "create", "brief", "--grant", &tunnel.id, "--expires-at", &expires.to_string(), "--output", "json"];
    let brief = text(&run(world.operator(&args)).await.json(), "/secret").to_owned();
    let refused = async || send(world.http.get(world.url(&tunnel, "echo", "/small")).header("x-api-key", &brief)).await;
    crate::common::until("the key expires", SOON, async || refused().await.status == 401).await;
}
