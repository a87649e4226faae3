//! Links that die, processes that are killed, and stops that wait for what runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use sortie_testkit::{EchoServer, Relay, eventually};

use crate::common::{
    AT_ONCE, GatewayProcess, SOON, Serving, Tunnel, Upstream, World, echo_route, modern, routes, run, send, serving,
    text, tunnel_in,
};

/// The time in which a dead link has to be noticed.
const NOTICED: Duration = Duration::from_secs(5);

/// A serving world whose link passes a relay.
async fn relayed() -> (Serving, Relay) {
    let echo = EchoServer::start().await.expect("echo");
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let relay = Relay::start(world.edge_addr.parse().expect("address")).await.expect("relay");
    let edge = relay.addr().to_string();
    let gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &["--edge", &edge]).await;
    (Serving { world, tunnel, gateway, echo }, relay)
}

/// A call fails at once, at hop `link`.
async fn refused_at_once(world: &World, tunnel: &Tunnel) {
    let began = Instant::now();
    let answer = world.echo(tunnel, "echo", "x").await;
    answer.rpc_refused(503, "link", "", &json!(1));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

async fn link_state(world: &World, gateway: &GatewayProcess) -> serde_json::Value {
    send(world.http.get(format!("{}/readyz", gateway.health))).await.json()
}

/// A call of the tool `slow`, in the background, that the server has begun.
async fn slow(world: &World, tunnel: &Tunnel, echo: &EchoServer, ms: u64) -> Running {
    let begun = |echo: &EchoServer| echo.events().iter().filter(|event| event.event == "started").count();
    let before = begun(echo);
    let post = world.request(Method::POST, tunnel, "echo", "/mcp");
    let request = modern(post, &json!(1), "slow", &json!({ "ms": ms }));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let response = request.send().await?;
        response.error_for_status()?.text().await
    });
    eventually(SOON, || (begun(echo) > before).then_some(())).await.expect("the call runs");
    Running(tasks)
}

struct Running(tokio::task::JoinSet<reqwest::Result<String>>);

impl Running {
    async fn end(mut self) -> reqwest::Result<String> {
        let ended = tokio::time::timeout(SOON, self.0.join_next()).await.expect("in time");
        ended.expect("a task").expect("no panic")
    }
}

#[tokio::test]
async fn a_frozen_link_is_noticed_on_both_sides_and_comes_back() {
    let (Serving { world, tunnel, mut gateway, echo: _echo }, relay) = relayed().await;
    world.serves(&tunnel, "echo").await;
    relay.freeze();
    let began = Instant::now();
    // A call that was under way when the network went ends, too.
    let answer = world.echo(&tunnel, "echo", "lost").await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (503, Some("link")), "{}", answer.text());
    assert!(began.elapsed() < NOTICED, "the hub took {:?}", began.elapsed());
    refused_at_once(&world, &tunnel).await;
    let left = NOTICED.saturating_sub(began.elapsed()).max(Duration::from_millis(1));
    gateway.process.ready_output("link is dead", left).await.expect("the gateway noticed in time");
    crate::common::until("the gateway says so", AT_ONCE, async || {
        let state = link_state(&world, &gateway).await;
        assert!(text(&state, "/reason").starts_with("link: "), "{state}");
        state.pointer("/link/connected") == Some(&json!(false))
    })
    .await;
    let list = run(world.operator(&["routes", "list", "--output", "json"])).await.json();
    assert_eq!(list.pointer("/data"), Some(&json!([])), "no gateway, no routes");

    relay.resume();
    world.serves_again(&tunnel, "echo").await;
    crate::common::until("the gateway says so", SOON, async || {
        link_state(&world, &gateway).await.pointer("/ready") == Some(&json!(true))
    })
    .await;
}

#[tokio::test]
async fn a_cut_link_ends_what_ran_on_it_and_is_dialled_again() {
    let (Serving { world, tunnel, gateway: _gateway, echo }, relay) = relayed().await;
    let running = slow(&world, &tunnel, &echo, 60_000).await;
    relay.cut();
    running.end().await.expect_err("half an answer must not look whole");
    let cancelled = || echo.events().iter().any(|event| event.event == "cancelled").then_some(());
    eventually(SOON, cancelled).await.expect("the server saw it end");
    for _ in 0..3 {
        refused_at_once(&world, &tunnel).await;
    }
    relay.resume();
    world.serves_again(&tunnel, "echo").await;
    assert!(relay.accepted() >= 2);
}

#[tokio::test]
async fn a_call_that_may_have_run_is_not_repeated() {
    let silent = Upstream::silent().await;
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let relay = Relay::start(world.edge_addr.parse().expect("address")).await.expect("relay");
    let edge = relay.addr().to_string();
    let _gateway = world.gateway(&tunnel.dir, &routes(&[("up", &silent.url())]), &["--edge", &edge]).await;
    let post = world.request(Method::POST, &tunnel, "up", "/mcp");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(send(modern(post, &json!(1), "pay", &json!({}))));
    eventually(SOON, || (silent.seen().len() == 1).then_some(())).await.expect("it arrived");
    relay.cut();
    let answer = tasks.join_next().await.expect("a task").expect("an answer");
    answer.refused(503, "link", "it may have run");
    relay.resume();
    crate::common::until("the link is back", SOON, async || {
        let routes = send(world.api(Method::GET, "/v1/sortie/routes")).await.json();
        routes.pointer("/data/0").is_some()
    })
    .await;
    assert_eq!(silent.seen().len(), 1);
}

#[tokio::test]
async fn after_a_killed_hub_old_keys_tunnels_and_links_come_back() {
    let Serving { mut world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let (_, key) = world.use_key(&[&tunnel.id]).await;
    world.hub.kill();
    world.restart_hub().await;
    world.serves_again(&tunnel, "echo").await;
    let small = world.http.get(world.url(&tunnel, "echo", "/small")).header("x-api-key", &key);
    assert_eq!(send(small).await.status, 200);
    let list = run(world.operator(&["tunnels", "list", "--output", "json"])).await.json();
    assert_eq!(text(&list, "/data/0/id"), tunnel.id);
}

#[tokio::test]
async fn a_killed_gateway_is_missed_at_once_and_can_be_started_again() {
    let Serving { world, tunnel, mut gateway, echo } = serving().await;
    gateway.process.kill();
    crate::common::until("the hub misses it", AT_ONCE, async || {
        world.echo(&tunnel, "echo", "x").await.header("sortie-hop") == Some("link")
    })
    .await;
    refused_at_once(&world, &tunnel).await;
    let _again = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    world.serves(&tunnel, "echo").await;
}

#[tokio::test]
async fn setup_killed_at_any_moment_can_be_run_again() {
    let world = World::start().await;
    let dir = world.home.join("setup");
    let kills = 10;
    for turn in 0..kills {
        let mut init = world.init(&dir).spawn().expect("start");
        tokio::time::sleep(Duration::from_millis(turn * 8)).await;
        init.kill();
    }
    let report = run(world.init(&dir)).await;
    report.ok();
    let tunnel = tunnel_in(&dir);
    let list = run(world.operator(&["tunnels", "list", "--output", "json"])).await.json();
    let made = list.pointer("/data").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    // One, unless a run was killed between the hub's answer and the file.
    assert!((1..=1 + usize::try_from(kills).expect("small")).contains(&made), "{list}");
    let registered = run(world.operator(&["certs", "list", &tunnel.id, "--output", "json"])).await.json();
    assert_eq!(registered.pointer("/data").and_then(serde_json::Value::as_array).map(Vec::len), Some(1));
    // What is there fits together.
    let echo = EchoServer::start().await.expect("echo");
    let _gateway = world.gateway(&dir, &echo_route(&echo), &[]).await;
    world.serves(&tunnel, "echo").await;
    run(world.init(&dir)).await.ok();
    assert_eq!(tunnel_in(&dir).id, tunnel.id);
}

#[tokio::test]
async fn a_stopped_gateway_lets_its_calls_end_and_takes_no_more() {
    let Serving { world, tunnel, mut gateway, echo } = serving().await;
    let running = slow(&world, &tunnel, &echo, 1500).await;
    gateway.process.signal(Signal::TERM);
    let gone = || (!gateway.ready_file.exists()).then_some(());
    eventually(SOON, gone).await.expect("it no longer says that it serves");
    crate::common::until("new calls are refused", AT_ONCE, async || {
        world.echo(&tunnel, "echo", "x").await.header("sortie-hop") == Some("link")
    })
    .await;
    let said = running.end().await.expect("the call ran to its end");
    assert!(said.contains("slow done"), "{said}");
    assert_eq!(gateway.process.exit(SOON).await.expect("end").code(), Some(0));
}

#[tokio::test]
async fn a_stopped_hub_lets_its_calls_end() {
    let Serving { mut world, tunnel, gateway: _gateway, echo } = serving().await;
    let running = slow(&world, &tunnel, &echo, 1500).await;
    world.hub.signal(Signal::TERM);
    let file = world.home.join("hub.ready");
    eventually(SOON, || (!file.exists()).then_some(())).await.expect("it no longer says that it serves");
    let said = running.end().await.expect("the call ran to its end");
    assert!(said.contains("slow done"), "{said}");
    assert_eq!(world.hub.exit(SOON).await.expect("end").code(), Some(0));
    // And everything is as it was.
    world.restart_hub().await;
    world.serves_again(&tunnel, "echo").await;
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let Serving { mut world, tunnel, mut gateway, echo } = serving().await;
    let mut _running = slow(&world, &tunnel, &echo, 60_000).await;
    for role in ["hub", "gateway"] {
        let process = if role == "hub" { &mut world.hub } else { &mut gateway.process };
        process.signal(Signal::TERM);
        let still = process.exit(Duration::from_millis(300)).await;
        assert!(still.is_err(), "{role}: a call still runs: {still:?}");
        process.signal(Signal::TERM);
        let ended = process.exit(AT_ONCE).await.expect("at once");
        assert_eq!(ended.code(), Some(1), "{role}");
        if role == "hub" {
            // The gateway gets a call of its own to wait for.
            world.restart_hub().await;
            world.serves_again(&tunnel, "echo").await;
            _running = slow(&world, &tunnel, &echo, 60_000).await;
        }
    }
}

#[tokio::test]
async fn while_one_gateway_is_replaced_by_another_no_new_call_fails() {
    let Serving { world, tunnel, mut gateway, echo } = serving().await;
    let post = world.request(Method::POST, &tunnel, "echo", "/mcp");
    let request = modern(post, &json!(1), "echo", &json!({ "text": "x" })).build().expect("request");
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (http, stop, calls) = (world.http.clone(), Arc::clone(&stop), Arc::clone(&calls));
        let request = request.try_clone().expect("clone");
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = http.execute(request.try_clone().expect("clone")).await.expect("answer");
                let status = answer.status();
                let body = answer.text().await.expect("body");
                assert_eq!(status, 200, "{body}");
                calls.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let copy = world.home.join("copy");
    std::fs::create_dir(&copy).expect("directory");
    for entry in std::fs::read_dir(&tunnel.dir).expect("read") {
        let entry = entry.expect("entry");
        std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("copy");
    }
    let _second = world.gateway(&copy, &echo_route(&echo), &[]).await;
    let list = send(world.api(Method::GET, "/v1/sortie/routes")).await.json();
    assert_eq!(list.pointer("/data/0/gateways"), Some(&json!(2)), "{list}");
    assert_eq!(gateway.process.stop(SOON).await.expect("end").code(), Some(0));
    let before = calls.load(Ordering::Relaxed);
    eventually(SOON, || (calls.load(Ordering::Relaxed) > before + 50).then_some(())).await.expect("calls go on");
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no call failed");
    }
}
