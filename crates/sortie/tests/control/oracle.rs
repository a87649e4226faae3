//! A refusal tells nothing: a tool that exists and is denied looks like one that does not exist.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::Answer;
use crate::server::tool;
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

/// Tools with names of one length, of which the first caller may know none but `paying`.
const RULES: &str = r#"
[[allow]]
id = "small payments"
routes = "up"
tools = "paying"
where = [{ pointer = "/amount", min = 1, max = 100 }]

[[allow]]
id = "others"
routes = "up"
tools = "others"
agents = "another-agent"

[[deny]]
id = "the vault is closed"
routes = "up"
tools = ["banned", "absent"]
"#;
/// Unknown, without a rule, for others only, forbidden by name, and forbidden by name without being there.
const HIDDEN: [&str; 5] = ["nosuch", "plain1", "others", "banned", "absent"];

async fn with_rules() -> Point {
    let point = Point::of("policy.toml", "", "", |_| RULES.to_owned()).await;
    point.server.lists(&["paying", "plain1", "others", "banned"].map(|name| tool(name, "A tool.")));
    point
}

#[tokio::test]
async fn all_that_a_caller_may_not_see_is_refused_byte_for_byte_alike() {
    let point = with_rules().await;
    let refused = async |name: &str, arguments: Value| {
        let answer = point.call(&point.keys[0], "up", name, &arguments).await;
        assert_eq!((answer.status, answer.header("sortie-hop")), (403, Some("policy")), "{}", answer.text());
        assert!(!answer.text().contains("canary"), "{}", answer.text());
        shape(&answer, name)
    };
    let first = refused(HIDDEN[0], json!({})).await;
    for name in HIDDEN {
        for arguments in [json!({}), json!({ "amount": 7 }), json!({ "canary": "4711", "deep": { "canary": [1] } })] {
            assert_eq!(refused(name, arguments).await, first, "{name}");
        }
    }
    // Of a tool that it may see it is told which rule its arguments do not fit, and not by how much.
    let large = refused("paying", json!({ "amount": 101 })).await;
    assert_eq!(refused("paying", json!({ "amount": 999, "canary": "4711" })).await, large);
    assert!(point.server.recorder.requests().is_empty(), "{:?}", point.server.heard());
    assert_eq!(point.call(&point.keys[0], "up", "paying", &json!({ "amount": 7 })).await.status, 200);
    // Who runs the gateway is told what the caller is not.
    assert!(point.gateway.process.output().contains("the vault is closed"));
}

#[tokio::test]
async fn no_refusal_takes_notably_longer_than_another() {
    const ROUNDS: usize = 60;
    /// How often the fastest goes into the slowest, by their medians: wide, since this machine does other things, too.
    const WITHIN: u32 = 5;
    let point = with_rules().await;
    let cases: Vec<(&str, Value)> = HIDDEN.iter().map(|name| (*name, json!({ "amount": 999 }))).collect();
    let cases = [cases, vec![("paying", json!({ "amount": 999 }))]].concat();
    let mut took = vec![Vec::with_capacity(ROUNDS); cases.len()];
    for round in 0..ROUNDS {
        // In turns, each beginning with another, so that what disturbs one disturbs all.
        for step in 0..cases.len() {
            let at = (round + step) % cases.len();
            let (name, arguments) = &cases[at];
            let began = Instant::now();
            let answer = point.call(&point.keys[0], "up", name, arguments).await;
            took[at].push(began.elapsed());
            assert_eq!(answer.status, 403, "{}", answer.text());
        }
    }
    let medians: Vec<Duration> = took
        .iter_mut()
        .map(|took| {
            took.sort_unstable();
            took[ROUNDS / 2]
        })
        .collect();
    let (fastest, slowest) = (medians.iter().min().expect("one"), medians.iter().max().expect("one"));
    assert!(*slowest < *fastest * WITHIN, "{:?}", cases.iter().map(|(name, _)| name).zip(&medians).collect::<Vec<_>>());
}
