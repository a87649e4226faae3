//! What is recorded beside calls: what people decide, and which settings are in force.

use serde_json::{Value, json};
use sortie_ids::Digest;
use sortie_runtime::TaskSet;

use crate::approvals::{admin, answered, asking, calling, decide, gone, one, pay};
use crate::audit::{decided, done, of, post, tool};
use crate::support::*;

/// Events, outcomes and approvals of all calls and approvals, in order.
fn story(world: &World) -> Vec<(String, String)> {
    let all = crate::audit::records(world.gateway.audit_dir().expect("audit"));
    let told = |record: &Value| {
        let how = record["outcome"].as_str().or_else(|| record["status"].as_str()).unwrap_or_default().to_owned();
        (record["event"].as_str().expect("event").to_owned(), how)
    };
    let acts = ["call_decided", "approval_decided"].map(Value::from);
    all.iter().filter(|record| acts.contains(&record["event"])).map(told).collect()
}

fn told(story: &[(String, String)]) -> Vec<(&str, &str)> {
    story.iter().map(|(event, how)| (event.as_str(), how.as_str())).collect()
}

#[tokio::test]
async fn an_approval_is_recorded_with_who_decided_and_for_how_long() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    world.link().await;
    let first = calling(&world, &pay(5), "application/json");
    let approval = one(&world).await;
    assert_eq!(told(&story(&world)), [("call_decided", "waits")], "it is on record that it waits");
    decide(&world, &approval, json!({"decision": "approve", "for_s": 600, "reason": "fine\u{1b}"})).await;
    assert_eq!(answered(first).await.status(), 200);
    assert_eq!(answered(calling(&world, &pay(5), "application/json")).await.status(), 200, "the same once more");
    let other = calling(&world, &pay(6), "application/json");
    let denied = one(&world).await;
    decide(&world, &denied, json!({"decision": "deny"})).await;
    assert_eq!(answered(other).await.status(), 403);
    let left = calling(&world, &pay(7), "application/json");
    one(&world).await;
    drop(left);
    gone(&world).await;
    let expected = [
        ("call_decided", "waits"),
        ("approval_decided", "approved"),
        ("call_decided", "forwarded"),
        ("call_decided", "waits"),
        ("call_decided", "forwarded"),
        ("call_decided", "waits"),
        ("approval_decided", "denied"),
        ("call_decided", "refused"),
        ("call_decided", "waits"),
        ("approval_decided", "withdrawn"),
        ("call_decided", "refused"),
    ];
    until(|| told(&story(&world)) == expected).await;

    let (decided, acts) = (decided(&world), of(&world, "approval_decided"));
    assert_eq!((&decided[1]["approval"], &decided[2]["approval"]), (&approval["id"], &Value::Null));
    assert_eq!(decided[3]["approval"], approval["id"], "what the first approval still covers");
    assert_eq!(decided[1]["decision"]["policies"], json!(["careful"]), "it was asked again");
    assert_eq!((&decided[0]["id"], &acts[0]["id"]), (&decided[1]["id"], &decided[1]["id"]));
    assert_eq!((&acts[0]["lasts_s"], &acts[0]["reason"]), (&json!(600), &json!("fine\\u{1b}")));
    assert!(acts[0]["by"].as_str().is_some_and(|by| by.ends_with(" (local)")), "{}", acts[0]);
    assert_eq!(
        (&acts[1]["code"], &acts[2]["code"], &acts[2]["by"]),
        (&json!("G1101W"), &json!("G1101W"), &Value::Null)
    );
    assert_eq!(decided[5]["hop"], "policy");
    let done = done(&world, 2).await;
    assert_eq!((&done[0]["decided"], &done[1]["decided"]), (&decided[1]["seq"], &decided[3]["seq"]));
}

#[tokio::test]
async fn an_approval_that_is_denied_by_a_newer_policy_is_recorded_so() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    let policy = dir.path().join("policy.cedar");
    let settings = format!("policy = \"enforce\"\npolicy_file = \"{}\"\n{}", policy.display(), upstream.config());
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, settings).expect("write");
    world.gateway.watch(file.clone());
    world.link().await;
    let waits = calling(&world, &pay(5), "application/json");
    let approval = one(&world).await;
    let before = of(&world, "settings_loaded").len();
    std::fs::write(&policy, "permit (principal, action, resource) unless { resource == Tool::\"docs/pay\" };")
        .expect("write");
    until(|| of(&world, "settings_loaded").len() > before).await;
    decide(&world, &approval, json!({"decision": "approve"})).await;
    assert_eq!(answered(waits).await.status(), 403);
    let decided = decided(&world);
    assert_eq!((&decided[0]["outcome"], &decided[1]["outcome"]), (&json!("waits"), &json!("refused")));
    assert_ne!(decided[0]["decision"]["policy_sha256"], decided[1]["decision"]["policy_sha256"]);
    assert_eq!((&decided[1]["approval"], &decided[1]["decision"]["effect"]), (&approval["id"], &json!("deny")));
    let loaded = of(&world, "settings_loaded").pop().expect("loaded");
    assert_eq!(loaded["policy_sha256"], decided[1]["decision"]["policy_sha256"]);

    std::fs::write(&file, "routes = 7\n").expect("write");
    until(|| !of(&world, "settings_refused").is_empty()).await;
    let refused = of(&world, "settings_refused").remove(0);
    assert_eq!(refused["code"], "G1301E");
    assert_eq!(refused["files"][file.display().to_string()], Digest::of(b"routes = 7\n").to_string());
    assert!(refused["reason"].as_str().is_some_and(|reason| reason.contains("gateway.toml:1")), "{refused}");
}

#[tokio::test]
async fn what_people_pin_is_recorded_before_it_counts() {
    let tasks = TaskSet::new();
    let answer = r#"{"jsonrpc":"2.0","id":7,"result":{"tools":[{"name":"read","description":"reads"}]}}"#;
    let upstream = Upstream::serve(&tasks, move |_| async move {
        http::Response::builder().header("content-type", "application/json").body(full(answer)).expect("answer")
    })
    .await;
    let world = World::start(&tasks, &format!("pinning = \"approve\"\n{}", upstream.config())).await;
    let list = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": {}});
    assert_eq!(post(&world, &list).await.status(), 200);
    assert_eq!(post(&world, &tool("read", json!({}))).await.status(), 403);
    let chosen = json!({"route": "docs", "tool": "read"});
    assert_eq!(admin(&world, "POST", "/v1/tools/approve", chosen.clone()).await.0, 200);
    assert_eq!(admin(&world, "POST", "/v1/tools/approve", chosen.clone()).await.0, 409);
    assert_eq!(post(&world, &tool("read", json!({}))).await.status(), 200);
    assert_eq!(admin(&world, "POST", "/v1/tools/forget", chosen).await.0, 200);
    assert_eq!(admin(&world, "POST", "/v1/tools/forget", json!({"route": "docs", "all": true})).await.0, 200);
    let pins = of(&world, "pin_changed");
    let acts: Vec<_> = pins.iter().map(|pin| pin["action"].as_str().expect("action")).collect();
    assert_eq!(acts, ["approve", "forget", "forget"], "what was refused changed nothing");
    let subjects = pins[0]["subjects"].as_object().expect("subjects");
    assert_eq!(subjects.len(), 1);
    assert!(subjects.values().all(|digest| digest.as_str().is_some_and(|digest| digest.len() == 64)), "{subjects:?}");
    assert!(pins[0]["by"].as_str().is_some_and(|by| !by.is_empty()) && pins[2]["subjects"] == json!({}), "{pins:?}");
    let refused = decided(&world).into_iter().find(|record| record["outcome"] == "refused").expect("refused");
    assert_eq!(
        (&refused["tool"], &refused["hop"], &refused["decision"]),
        (&json!("read"), &json!("policy"), &Value::Null)
    );
}
