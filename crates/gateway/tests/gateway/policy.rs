//! The policy that is in force, seen from a caller.

use std::path::Path;

use serde_json::{Value, json};
use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
use sortie_runtime::TaskSet;

use crate::support::*;

const POLICY: &str = r#"
@id("read-docs")
permit (principal, action in [Action::"base", Action::"list"], resource in Route::"docs");
@id("search")
permit (principal, action == Action::"tools/call", resource == Tool::"docs/search");
"#;

/// Settings with this mode, and a policy file beside them.
fn with(world: &Path, upstream: &Upstream, mode: &str, policy: &str) -> String {
    std::fs::write(world.join("policy.cedar"), policy).expect("write");
    format!("policy = \"{mode}\"\npolicy_file = \"{}/policy.cedar\"\n{}", world.display(), upstream.config())
}

async fn post(world: &World, body: Value) -> (u16, String, Value) {
    let request = world.request("POST", "/mcp").header("content-type", "application/json");
    let response = world.call(request.body(full(body.to_string())).expect("request")).await;
    if response.headers().contains_key("sortie-hop") {
        return refusal(response).await;
    }
    (response.status().as_u16(), String::new(), Value::String(text(response).await))
}

fn call(tool: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": {}}})
}

#[tokio::test]
async fn what_no_policy_allows_ends_here() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &with(dir.path(), &upstream, "enforce", POLICY)).await;

    let (status, hop, _) = post(&world, call("search")).await;
    assert_eq!((status, hop.as_str()), (200, ""));
    for refused in [
        call("delete"),
        call("Search"),
        call("search "),
        json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {}}),
        json!({"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": {"uri": "docs/search"}}),
        json!({"jsonrpc": "2.0", "id": 7, "method": "tools/Call", "params": {"name": "search"}}),
    ] {
        let (status, hop, body) = post(&world, refused.clone()).await;
        assert_eq!((status, hop.as_str()), (403, "policy"), "{refused}");
        assert_eq!(body["id"], 7);
        assert_eq!(body["error"]["data"]["hop"], "policy");
    }
    // One that is refused takes the others with it.
    let (status, ..) = post(&world, json!([call("search"), call("delete")])).await;
    assert_eq!(status, 403);
    // What says nothing to us could be a call all the same.
    let request = world.request("POST", "/mcp").header("content-type", "text/plain").body(full("{}")).expect("request");
    assert_eq!(refusal(world.call(request).await).await.0, 415);
}

#[tokio::test]
async fn a_refusal_can_be_the_calls_own_error_alone() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let settings = with(dir.path(), &upstream, "enforce", POLICY);
    let world = World::start(&tasks, &format!("refusals = \"json-rpc\"\n{settings}")).await;
    let (status, hop, body) = post(&world, call("delete")).await;
    assert_eq!((status, hop.as_str()), (200, "policy"));
    assert_eq!((&body["id"], &body["error"]["data"]["hop"]), (&json!(7), &json!("policy")));
    // What has no id has no error of its own either, and what is not about policy keeps its status.
    let told = json!({"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "delete"}});
    assert_eq!(post(&world, told).await.0, 403);
    assert_eq!(post(&world, json!({"jsonrpc": "2.0", "id": 7})).await.0, 400);
}

#[tokio::test]
async fn a_shadow_refuses_nothing() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &with(dir.path(), &upstream, "shadow", POLICY)).await;
    assert_eq!(post(&world, call("delete")).await.0, 200);
}

#[tokio::test]
async fn a_change_bites_at_once_and_a_broken_one_changes_nothing() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let settings = with(dir.path(), &upstream, "enforce", POLICY);
    let world = World::start(&tasks, &settings).await;
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, &settings).expect("write");
    world.gateway.watch(file);
    assert_eq!(post(&world, call("search")).await.0, 200);

    let policy = dir.path().join("policy.cedar");
    std::fs::write(&policy, POLICY.replace("docs/search", "docs/find")).expect("write");
    let bites = async { while post(&world, call("search")).await.0 == 200 {} };
    soon(bites).await;
    assert_eq!(post(&world, call("find")).await.0, 200);

    std::fs::write(&policy, "permit (principal, action, resource").expect("write");
    until(|| !world.gateway.readiness().config.ok).await;
    let reason = world.gateway.readiness().config.reason.expect("reason");
    assert!(reason.contains("policy.cedar"), "{reason}");
    assert_eq!(post(&world, call("find")).await.0, 200);
    assert_eq!(post(&world, call("search")).await.0, 403);
    std::fs::remove_file(&policy).expect("remove");
    world.gateway.reload();
    assert_eq!(post(&world, call("search")).await.0, 403);
}

#[tokio::test]
async fn without_a_readable_policy_nothing_starts() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    for (mode, policy) in [("enforce", None), ("enforce", Some("permit (")), ("shadow", None)] {
        let settings = with(dir.path(), &upstream, mode, policy.unwrap_or_default());
        if policy.is_none() {
            std::fs::remove_file(dir.path().join("policy.cedar")).expect("remove");
        }
        let config = GatewayConfig::parse(&settings, &dir.path().join("gateway.toml")).expect("config");
        let setup = Setup::load(world.path()).expect("setup");
        let started = Gateway::start(config, setup, GatewayOptions::default(), tasks.clone()).await;
        let refused = started.expect_err("refused");
        assert!(refused.to_string().contains("policy.cedar"), "{refused}");
    }
    let missing = format!("policy = \"enforce\"\n{}", upstream.config());
    let refused = GatewayConfig::parse(&missing, Path::new("gateway.toml")).expect_err("refused");
    assert!(refused.to_string().contains("policy_file"), "{refused}");
}
