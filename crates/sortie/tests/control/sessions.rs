//! What was allowed once is decided anew: sessions, streams and keys do not carry a decision from one call to the next.

use reqwest::Method;
use serde_json::json;
use sortie_testkit::EchoServer;

use crate::common::{SOON, modern, run, send, until};
use crate::support::{Point, grant};

const LEGACY: &str = "2025-11-25";

fn call(tool: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": { "name": tool, "arguments": {} } })
        .to_string()
}

#[tokio::test]
async fn a_session_that_began_well_is_no_way_in() {
    let point = Point::start(|keys| {
        grant(&keys[0], "up", &["read"])
            + &grant(&keys[0], "twin", &["delete"])
            + &grant(&keys[1], "up", &["read", "delete"])
    })
    .await;
    let [reader, other] = [&point.keys[0], &point.keys[1]];
    let session = point.session(reader, "up").await;
    let answer = point.say(reader, Some(&session), LEGACY, &call("read")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Used for what the caller may not do.
    let answer = point.say(reader, Some(&session), LEGACY, &call("delete")).await;
    answer.rpc_refused(403, "policy", "", &json!(7));
    // Used by a caller who may do it, but whose session it is not.
    let answer = point.say(other, Some(&session), LEGACY, &call("delete")).await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (404, Some("route")), "{}", answer.text());
    // Used on another route to the same server, where the caller may do it.
    let post = point.post(reader, "twin").header("content-type", "application/json").header("mcp-session-id", &session);
    let answer = send(post.header("mcp-protocol-version", LEGACY).body(call("delete"))).await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (404, Some("route")), "{}", answer.text());
    // Guessed, on the right route.
    let answer = point.say(reader, Some("session-999"), LEGACY, &call("delete")).await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!(point.server.ran(), ["read"]);
}

#[tokio::test]
async fn a_grant_that_is_taken_back_bites_on_the_next_request() {
    let echo = EchoServer::start().await.expect("echo");
    let route = format!("\n[routes.echo]\nupstream = \"http://{}\"\n", echo.addr());
    let all = |keys: &[crate::support::Key]| grant(&keys[0], "up", &["read"]) + &grant(&keys[0], "echo", &["progress"]);
    let point = Point::with("", &route, all).await;
    let reader = &point.keys[0];
    let session = point.session(reader, "up").await;
    assert_eq!(point.say(reader, Some(&session), LEGACY, &call("read")).await.status, 200);
    let long = json!({ "count": 600, "interval_ms": 100 });
    let mut stream = modern(point.post(reader, "echo"), &json!(1), "progress", &long).send().await.expect("an answer");
    assert_eq!(stream.status(), 200);
    assert!(stream.chunk().await.expect("an event").is_some());

    std::fs::write(&point.policy_file, grant(&point.keys[1], "up", &["read"])).expect("policies");
    let denied = async || point.say(reader, Some(&session), LEGACY, &call("read")).await.status == 403;
    until("what is taken back bites", SOON, denied).await;
    for (what, request) in [
        ("its stream", point.request(Method::GET, reader, "up").header("accept", "text/event-stream")),
        ("its end", point.request(Method::DELETE, reader, "up")),
    ] {
        let request = request.header("mcp-session-id", &session).header("mcp-protocol-version", LEGACY);
        let answer = send(request).await;
        assert_eq!((answer.status, answer.header("sortie-hop")), (403, Some("policy")), "{what}: {}", answer.text());
    }
    // What had begun goes on: a call that was allowed is carried to its end, and no decision is taken twice.
    for _ in 0..5 {
        assert!(stream.chunk().await.expect("the stream goes on").is_some());
    }
    let ran = point.server.ran().len();
    let others = point.session(&point.keys[1], "up").await;
    assert_eq!(point.say(&point.keys[1], Some(&others), LEGACY, &call("read")).await.status, 200);
    assert_eq!(point.server.ran().len(), ran + 1, "the new grant is in force");
}

#[tokio::test]
async fn an_archived_key_is_refused_whatever_policies_say() {
    let point = Point::start(|keys| grant(&keys[0], "up", &["read"])).await;
    let reader = &point.keys[0];
    assert_eq!(point.call(reader, "up", "read", &json!({})).await.status, 200);
    run(point.world.operator(&["keys", "archive", &reader.id])).await.ok();
    let answer = point.call(reader, "up", "read", &json!({})).await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (401, Some("identity")), "{}", answer.text());
    assert_eq!(point.server.ran(), ["read"]);
}
