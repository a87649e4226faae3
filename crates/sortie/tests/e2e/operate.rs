//! What an operator has to go by: one id for a call in every log, health, readiness and metrics of both processes.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use sortie_testkit::{EchoServer, eventually};

use crate::common::{World, echo_route, send};

const AT_LAST: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_call_has_one_id_in_the_answer_and_in_both_logs() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("server");
    let gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &["--log-format", "json"]).await;
    let answer = send(world.request(Method::GET, &tunnel, "echo", "/small")).await;
    let id = answer.header("sortie-request-id").expect("id").to_owned();

    let line = eventually(AT_LAST, || {
        let lines: Vec<Value> =
            gateway.process.output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        lines.into_iter().find(|line| line["request_id"] == id.as_str())
    });
    let line = line.await.expect("the gateway's line, in JSON");
    assert_eq!(
        (&line["route"], &line["status"], &line["method"]),
        (&"echo".into(), &200.into(), &"GET".into()),
        "{line}"
    );
    let there = || world.hub.output().lines().any(|line| line.contains(&id)).then_some(());
    eventually(AT_LAST, there).await.expect("the hub's line");
    for log in [world.hub.output(), gateway.process.output()] {
        assert!(!log.contains('\u{1b}'), "no colours where nobody looks");
        assert!(!log.contains(&world.api_key), "no key in a log");
    }
}

#[tokio::test]
async fn both_processes_tell_how_they_are() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("server");
    let gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    world.serves(&tunnel, "echo").await;

    for base in [&world.api_url, &gateway.health] {
        assert_eq!(send(world.http.get(format!("{base}/healthz"))).await.status, 200);
        let ready = send(world.http.get(format!("{base}/readyz"))).await;
        assert_eq!((ready.status, &ready.json()["ready"]), (200, &true.into()), "{}", ready.text());
    }
    let by_route = send(world.http.get(format!("{}/readyz?route=echo", gateway.health))).await;
    assert_eq!((by_route.status, &by_route.json()["upstream"]["ok"]), (200, &true.into()), "{}", by_route.text());
    drop(echo);
    let dead = async || send(world.http.get(format!("{}/readyz?route=echo", gateway.health))).await.status == 503;
    crate::common::until("the dead server is seen", AT_LAST, dead).await;

    // The API's listener is where callers come, so that metrics need a key there.
    assert_eq!(send(world.http.get(format!("{}/metrics", world.api_url))).await.status, 401);
    let (_, use_key) = world.use_key(&[&tunnel.id]).await;
    let with_use = world.http.get(format!("{}/metrics", world.api_url)).header("x-api-key", use_key);
    assert_eq!(send(with_use).await.status, 403);
    let hub = send(world.api(Method::GET, "/metrics")).await.text();
    let inside = send(world.http.get(format!("{}/metrics", gateway.health))).await.text();
    for (text, series) in [
        (&hub, "sortie_hub_calls_total"),
        (&hub, "sortie_edge_links 1"),
        (&hub, "sortie_hub_inner_handshakes_total"),
        (&inside, "sortie_gateway_inner_handshakes_total"),
        (&inside, "route=\"echo\""),
    ] {
        assert!(text.contains(series), "{series} is not in:\n{text}");
    }
    assert!(!hub.contains(&tunnel.label), "labels come from closed sets");
}
