//! Callers that are not known do not reach an upstream.

use serde_json::{Value, json};
use sortie_runtime::TaskSet;

use crate::fixtures::Hub;
use crate::support::*;

#[tokio::test]
async fn only_callers_that_the_hub_vouches_for_reach_the_upstream() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let hub = &world.caller.hub;
    let with = |name: &str, value: Value| {
        let mut claims = world.caller.claims(HOST, "user:1");
        claims[name] = value;
        claims
    };
    let good = hub.sign(&world.caller.claims(HOST, "user:1"));
    let past = jiff::Timestamp::now().as_second() - 120;
    for (tokens, reason) in [
        (vec![], "missing"),
        (vec![good.clone(), good.clone()], "more than once"),
        (vec!["token".to_owned()], "malformed"),
        (vec![hub.sign(&with("aud", json!("wiki.abcd1234.sortie.localhost")))], "for another route"),
        (vec![hub.sign(&with("exp", json!(past)))], "expired"),
        (vec![hub.sign(&with("iss", json!("https://evil.example")))], "issuer"),
        (vec![hub.hmac(&with("sub", json!("user:1")))], "algorithm"),
        (vec![hub.sign_with(&json!({"alg": "EdDSA", "kid": "k2"}), &with("sub", json!("x")))], "unknown key"),
        (vec![Hub::new().sign(&with("sub", json!("x")))], "wrongly signed"),
        (vec![hub.sign(&with("sub", json!("hub:probe")))], "probe"),
    ] {
        let mut request = http::Request::builder()
            .method("POST")
            .uri("/mcp")
            .header("host", HOST)
            .header("content-type", "application/json");
        for token in &tokens {
            request = request.header("sortie-identity", token);
        }
        let request = request.body(full(r#"{"jsonrpc":"2.0","id":9,"method":"x"}"#)).expect("request");
        let (status, hop, body) = refusal(world.call(request).await).await;
        assert_eq!((status, hop.as_str()), (401, "identity"), "{reason}");
        assert_eq!(body["id"], 9);
        let said = body["error"]["data"]["reason"].as_str().expect("reason");
        assert!(said.contains(reason), "{said}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(world.call(world.request("GET", "/").body(full("")).expect("request")).await.status(), 200);
}

#[tokio::test]
async fn probes_are_answered_here_and_by_nobody_else() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    soon(world.gateway.ready()).await;
    let route = "docs".parse().expect("name");
    assert!(world.gateway.probe(&route).await.ok);
    assert_eq!(upstream.count(), 0);
    // A caller that is not the hub's probe cannot make one.
    let request = world.request("GET", "/").header("sortie-probe", "1").body(full("")).expect("request");
    assert_eq!(text(world.call(request).await).await, "ok");
    assert!(!upstream.seen.lock().expect("lock")[0].headers.contains_key("sortie-probe"));
}
