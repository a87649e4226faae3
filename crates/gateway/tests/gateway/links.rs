//! Links that end, drain, or are refused.

use std::time::Duration;

use sortie_ids::TunnelToken;
use sortie_link::protos::{FromEdge, Kind};
use sortie_runtime::TaskSet;
use sortie_tls::{SetupDir, SetupFile};

use crate::support::*;

#[tokio::test]
async fn a_link_that_was_cut_is_dialled_again() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    for number in 1..=3 {
        let link = world.edge.link_number(number).await;
        let stream = world.caller.tls(&link, Kind::Hub, HOST, b"http/1.1").await.expect("tls");
        let request = world.request("GET", "/").body(full("")).expect("request");
        assert_eq!(text(world.caller.send(stream, request).await.expect("response")).await, "ok");
        link.close();
    }
    world.edge.link_number(4).await;
}

#[tokio::test]
async fn a_draining_edge_is_left_while_its_calls_run_on() {
    let tasks = TaskSet::new();
    let (send, body) = piped();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::serve(&tasks, move |_| {
        let body = body.lock().expect("lock").take().expect("one call");
        async { http::Response::new(body) }
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let link = world.link().await;
    let response = world.call(world.request("GET", "/").body(full("")).expect("request")).await;
    assert!(link.tell(FromEdge::Draining));
    world.edge.link_number(2).await;
    assert!(!link.is_closed());
    send.send(Ok("still here")).await.expect("sent");
    drop(send);
    assert_eq!(text(response).await, "still here");
    soon(world.gateway.ready()).await;
    // The end of the old link does not touch the new one.
    link.close();
    soon(link.closed()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(world.gateway.readiness().link.connected);
    assert_eq!(world.edge.links(), 2);
}

#[tokio::test]
async fn a_rotated_token_is_picked_up_from_its_file() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let new = TunnelToken::random("org", "tnl").expose().to_owned();
    let world = World::start_with(&tasks, &upstream.config(), Default::default(), |dir| {
        dir.write(SetupFile::TunnelToken, TunnelToken::random("org", "old").expose()).expect("write");
    })
    .await;
    until(|| {
        let reason = world.gateway.readiness().reason.unwrap_or_default();
        reason.contains("the token was rotated") && reason.contains("sortie setup init --token-version")
    })
    .await;
    assert!(!world.gateway.readiness().ready);
    *world.edge.token.lock().expect("lock") = new.clone();
    SetupDir::at(world.path()).write(SetupFile::TunnelToken, &new).expect("write");
    soon(world.gateway.ready()).await;
}

#[tokio::test]
async fn an_edge_with_another_certificate_gets_no_token() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let other = sortie_tls::Authority::generate("Other CA", 30).expect("authority");
    let world = World::start_with(&tasks, &upstream.config(), Default::default(), |dir| {
        dir.write(SetupFile::EdgeCa, other.cert_pem()).expect("write");
    })
    .await;
    until(|| world.gateway.readiness().reason.is_some_and(|reason| reason.contains("unknown certificate authority")))
        .await;
    assert_eq!(world.edge.links(), 0);
}

#[tokio::test]
async fn a_renewed_certificate_is_in_force_without_a_restart() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let days = world.gateway.readiness().inner_tls.days_left;
    let dir = SetupDir::at(world.path());
    let lifetime = Duration::from_secs(86_400 * 9);
    std::fs::write(dir.path(SetupFile::TlsCert), "half of a certificate").expect("write");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(text(world.call(world.request("GET", "/").body(full("")).expect("request")).await).await, "ok");
    dir.issue_server_cert(DOMAIN, lifetime).expect("certificate");
    until(|| world.gateway.readiness().inner_tls.days_left > days + 5).await;
    assert_eq!(text(world.call(world.request("GET", "/").body(full("")).expect("request")).await).await, "ok");
}
