//! The hub's identity keys change while calls run: nobody notices, and a gateway that was away follows.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::common::{SOON, Serving, Tunnel, World, echo_route, modern, run, send, serving, text, until};

/// How long the gateways have to learn of a new key before it signs.
const AFTER: &str = "3s";
/// Between two calls of one caller.
const PAUSE: Duration = Duration::from_millis(20);

fn pinned_file(tunnel: &Tunnel) -> PathBuf {
    tunnel.dir.join("hub-identity.jwks")
}

fn pinned(tunnel: &Tunnel) -> Value {
    let text = std::fs::read_to_string(pinned_file(tunnel)).expect("the hub's keys");
    serde_json::from_str(&text).expect("JSON")
}

/// The names of the keys in a set.
fn kids(set: &Value) -> Vec<&str> {
    set.get("keys").and_then(Value::as_array).expect("keys").iter().map(|key| text(key, "/kid")).collect()
}

async fn rotate(world: &World, after: &str) -> Value {
    run(world.operator(&["keys", "rotate-identity", "--after", after, "--output", "json"])).await.json()
}

/// The secret of a key that was never used: the hub has to sign for it anew.
async fn fresh_key(world: &World, tunnel: &Tunnel) -> String {
    let key = json!({ "kind": "use", "name": "fresh", "grants": [{ "tunnel_id": tunnel.id }] });
    let post = world.api(Method::POST, "/v1/sortie/keys").header("content-type", "application/json");
    let made = send(post.body(key.to_string())).await;
    assert_eq!(made.status, 200, "{}", made.text());
    text(&made.json(), "/secret").to_owned()
}

async fn call(world: &World, tunnel: &Tunnel, secret: &str) {
    let post = world.http.post(world.url(tunnel, "echo", "/mcp")).header("x-api-key", secret);
    let answer = send(modern(post, &json!(1), "echo", &json!({ "text": "hello" }))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

async fn call_anew(world: &World, tunnel: &Tunnel) {
    call(world, tunnel, &fresh_key(world, tunnel).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_keys_change_while_calls_run_and_none_fails() {
    let Serving { world, tunnel, gateway, echo } = serving().await;
    let (world, tunnel) = (Arc::new(world), Arc::new(tunnel));
    let (over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for anew in [true, true, false, false] {
        let (world, tunnel, over, calls) = (world.clone(), tunnel.clone(), over.clone(), calls.clone());
        callers.spawn(async move {
            let lasting = fresh_key(&world, &tunnel).await;
            while !over.load(Ordering::SeqCst) {
                if anew {
                    call_anew(&world, &tunnel).await;
                } else {
                    call(&world, &tunnel, &lasting).await;
                }
                calls.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }
    let more = async |what: &str| {
        let goal = calls.load(Ordering::SeqCst) + 20;
        until(what, SOON, async || calls.load(Ordering::SeqCst) >= goal).await;
    };
    more("calls before the change").await;
    let before = pinned(&tunnel);

    let rotation = rotate(&world, AFTER).await;
    let (kid, old_kid) = (text(&rotation, "/kid"), text(&rotation, "/old_kid"));
    assert_eq!(kids(&before), [old_kid]);
    until("the gateway pins the new key", SOON, async || kids(&pinned(&tunnel)) == [old_kid, kid]).await;
    let signs_from: Timestamp = text(&rotation, "/signs_from").parse().expect("a time");
    assert!(Timestamp::now() < signs_from, "the gateway knows the new key before it signs");
    let published = send(world.http.get(format!("{}/.well-known/jwks.json", world.api_url))).await.json();
    assert_eq!(kids(&published), [old_kid, kid]);
    run(world.operator(&["keys", "rotate-identity"])).await.failed(1, &["changed already"]);

    until("the new key signs", SOON, async || signs_from < Timestamp::now()).await;
    more("calls by the new key").await;
    over.store(true, Ordering::SeqCst);
    while let Some(ended) = callers.join_next().await {
        ended.expect("no call has failed");
    }

    // Both begin again, and the gateway with the new key alone: it is the one that signs.
    let mut world = Arc::into_inner(world).expect("the callers are gone");
    drop(gateway);
    world.hub.kill();
    world.restart_hub().await;
    let _gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    call_anew(&world, &tunnel).await;
    drop(_gateway);
    let mut alone = pinned(&tunnel);
    assert_eq!(kids(&alone), [old_kid, kid], "what is pinned has not changed");
    let keys = alone.get_mut("keys").and_then(Value::as_array_mut).expect("keys");
    keys.retain(|key| text(key, "/kid") == kid);
    std::fs::write(pinned_file(&tunnel), alone.to_string()).expect("written");
    let _gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    call_anew(&world, &tunnel).await;
}

#[tokio::test]
async fn a_gateway_that_was_away_follows_when_it_comes_back() {
    let Serving { world, tunnel, gateway, echo } = serving().await;
    drop(gateway);
    let rotation = rotate(&world, "0s").await;
    let (kid, old_kid) = (text(&rotation, "/kid"), text(&rotation, "/old_kid"));
    assert_eq!(kids(&pinned(&tunnel)), [old_kid], "nobody has told it");

    let gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    call_anew(&world, &tunnel).await;
    assert_eq!(kids(&pinned(&tunnel)), [old_kid, kid]);
    assert!(gateway.process.output().contains("by the word of a pinned one"), "{}", gateway.process.output());
}
