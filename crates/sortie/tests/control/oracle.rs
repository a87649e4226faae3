//! A refusal tells nothing: a tool that exists and is denied looks like one that does not exist.

use serde_json::{Value, json};

use crate::common::Answer;
use crate::support::{Point, grant};

/// An answer without what differs between any two calls.
fn shape(answer: &Answer, tool: &str) -> (u16, Vec<(String, String)>, Value) {
    let varies = ["date", "request-id", "sortie-request-id"];
    let mut headers: Vec<(String, String)> = answer
        .headers
        .iter()
        .map(|(name, value)| {
            let value = if varies.contains(&name.as_str()) { "" } else { value.to_str().expect("text") };
            // The names have one length, so that this does not differ for their sake.
            (name.to_string(), value.to_owned())
        })
        .collect();
    headers.sort();
    let id = answer.header("request-id").expect("an id");
    let body = answer.text().replace(id, "ID").replace(tool, "TOOL");
    (answer.status, headers, serde_json::from_str(&body).expect("JSON"))
}

#[tokio::test]
async fn a_tool_that_is_denied_and_one_that_does_not_exist_are_refused_alike() {
    let point = Point::start(|keys| grant(&keys[0], "up", &["read"])).await;
    let [reader, stranger] = [&point.keys[0], &point.keys[1]];
    for caller in [reader, stranger] {
        let mut shapes = Vec::new();
        // `delete` exists, the others do not.
        for tool in ["delete", "nosuch", "qwerty"] {
            let answer = point.call(caller, "up", tool, &json!({ "path": "/etc" })).await;
            assert_eq!((answer.status, answer.header("sortie-hop")), (403, Some("policy")), "{}", answer.text());
            shapes.push(shape(&answer, tool));
        }
        assert_eq!(shapes[0], shapes[1]);
        assert_eq!(shapes[1], shapes[2]);
    }
    // Who may do nothing learns nothing by other methods either.
    for method in ["initialize", "tools/list", "prompts/list", "resources/list", "no/such", "tools/call"] {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": {} });
        let answer = point.say(stranger, None, "2025-11-25", &body.to_string()).await;
        assert_eq!((answer.status, answer.header("sortie-hop")), (403, Some("policy")), "{method}: {}", answer.text());
    }
    // Not by the time that it takes, either: the server is never asked, so that its time is in no refusal.
    assert!(point.server.recorder.requests().is_empty(), "{:?}", point.server.heard());
    assert_eq!(point.call(reader, "up", "read", &json!({})).await.status, 200);
    assert_eq!(point.server.ran(), ["read"]);
}

#[tokio::test]
async fn a_refusal_repeats_no_arguments() {
    let point = Point::start(|keys| grant(&keys[0], "up", &["read"])).await;
    let answer = point.call(&point.keys[0], "up", "delete", &json!({ "secret": "canary-4711" })).await;
    assert_eq!(answer.status, 403);
    assert!(!answer.text().contains("canary-4711"), "{}", answer.text());
    let logged = point.gateway.process.output();
    assert!(!logged.contains("canary-4711"), "{logged}");
}
