//! What is decided on is what the server reads: messages, names and numbers that two readers could take for two things.

use serde_json::{Value, json};

use crate::common::{Answer, MODERN};
use crate::support::{Point, grant};

const LEGACY: &str = "2025-11-25";
const BATCHES: &str = "2025-03-26";

/// That a call ended at the gateway, for this reason or that.
fn stopped(answer: &Answer, statuses: &[u16], what: &str) {
    assert!(statuses.contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
    assert!(answer.header("sortie-hop").is_some(), "{what}: the server answered: {}", answer.text());
}

async fn reader() -> Point {
    Point::start(|keys| grant(&keys[0], "up", &["read"])).await
}

/// A message of `tools/call` with these members in `params`, as text.
fn call(params: &str) -> String {
    format!(r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{{params}}}}}"#)
}

#[tokio::test]
async fn keys_that_come_twice_or_in_another_case_hide_no_call() {
    let point = reader().await;
    let reader = &point.keys[0];
    let session = point.session(reader, "up").await;
    let messages = [
        call(r#""name":"read","name":"delete","arguments":{}"#),
        call(r#""name":"delete","name":"read","arguments":{}"#),
        call(r#""name":"read","n\u0061me":"delete","arguments":{}"#),
        call(r#""name":"read","Name":"delete","arguments":{}"#),
        call(r#""name":"read","NAME":"delete","arguments":{}"#),
        call(r#""name":"read","arguments":{"a":1,"a":2}"#),
        call(r#""name":"read","arguments":{},"arguments":{"x":1}"#),
        r#"{"jsonrpc":"2.0","id":7,"method":"ping","method":"tools/call","params":{"name":"delete"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":7,"method":"ping","Method":"tools/call","params":{"name":"delete"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read"},"params":{"name":"delete"}}"#
            .to_owned(),
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"read"},"Params":{"name":"delete"}}"#
            .to_owned(),
        call(r#""name":"read""#) + &call(r#""name":"delete""#),
        format!("\u{feff}{}", call(r#""name":"delete""#)),
    ];
    for message in &messages {
        stopped(&point.say(reader, Some(&session), LEGACY, message).await, &[400], message);
        stopped(&point.say_modern(reader, "read", message).await, &[400], message);
    }
    assert!(point.server.ran().is_empty(), "{:?}", point.server.ran());
    let good = point.say(reader, Some(&session), LEGACY, &call(r#""name":"read","arguments":{"a":1}"#)).await;
    assert_eq!(good.status, 200, "{}", good.text());
    assert_eq!(point.server.ran(), ["read"]);
}

#[tokio::test]
async fn names_are_what_they_decode_to_and_nothing_that_looks_like_it() {
    let point = reader().await;
    let reader = &point.keys[0];
    let session = point.session(reader, "up").await;
    // The same name, written with escapes: denied as itself.
    for name in [r"\u0064elete", r"d\u0065let\u0065", "delete"] {
        let message = call(&format!(r#""name":"{name}","arguments":{{}}"#));
        stopped(&point.say(reader, Some(&session), LEGACY, &message).await, &[403], name);
    }
    // Other names, however much they look like the one that is allowed.
    for name in [
        "READ",
        "Read",
        "read ",
        " read",
        r"read\u0000",
        r"read\t",
        r"\uff52\uff45\uff41\uff44",
        r"re\u200bad",
        r"r\u0435ad",
        r"\ufeffread",
        r"read\u202e",
        r"re\u00adad",
        r"read\ud83d\ude00",
        "up/read",
        "../up/read",
        "read/../delete",
        "*",
        "",
        r"read\udb40\udc41",
    ] {
        let message = call(&format!(r#""name":"{name}","arguments":{{}}"#));
        stopped(&point.say(reader, Some(&session), LEGACY, &message).await, &[403, 400], name);
    }
    // Names that are no text, and no name.
    for params in [r#""name":["read"]"#, r#""name":{"a":"read"}"#, r#""name":null"#, r#""name":7"#, r#""nome":"read""#]
    {
        stopped(&point.say(reader, Some(&session), LEGACY, &call(params)).await, &[403, 400], params);
    }
    assert!(point.server.ran().is_empty(), "{:?}", point.server.ran());
    let message = call(r#""name":"\u0072ead","arguments":{}"#);
    assert_eq!(
        point.say(reader, Some(&session), LEGACY, &message).await.status,
        200,
        "an escape is only a way to write"
    );
    assert_eq!(point.server.ran(), ["read"]);
    let body = point.server.recorder.requests().pop().expect("a request").body;
    assert_eq!(String::from_utf8_lossy(&body), message, "and goes on as it was written");
}

#[tokio::test]
async fn a_head_that_says_something_else_than_the_body_decides_nothing() {
    let point = reader().await;
    let reader = &point.keys[0];
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": MODERN });
    let of = |tool: &str| {
        let params = json!({ "name": tool, "arguments": {}, "_meta": meta });
        json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params }).to_string()
    };
    stopped(&point.say_modern(reader, "read", &of("delete")).await, &[400], "read in the head");
    stopped(&point.say_modern(reader, "delete", &of("read")).await, &[400], "delete in the head");
    // Before the stateless era the head says nothing that a server reads; the body decides.
    let post =
        point.post(reader, "up").header("content-type", "application/json").header("mcp-protocol-version", LEGACY);
    let post = post.header("mcp-method", "ping").header("mcp-name", "read").body(call(r#""name":"delete""#));
    stopped(&crate::common::send(post).await, &[403], "an old head");
    assert!(point.server.ran().is_empty(), "{:?}", point.server.ran());
}

#[tokio::test]
async fn a_batch_is_as_good_as_its_worst_message() {
    let point = reader().await;
    let reader = &point.keys[0];
    let message = |id: i32, method: &str, tool: &str| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": { "name": tool, "arguments": {} } });
    let (read, delete) = (message(1, "tools/call", "read"), message(2, "tools/call", "delete"));
    let silent = json!({ "jsonrpc": "2.0", "method": "tools/call", "params": { "name": "delete", "arguments": {} } });
    for (what, batch) in [
        ("denied last", json!([read, delete])),
        ("denied first", json!([delete, read])),
        ("denied alone", json!([delete])),
        ("denied as a notification", json!([read, silent])),
        ("nested", json!([read, [delete]])),
        ("nested twice", json!([[[delete]]])),
        (
            "in an answer",
            json!([read, { "jsonrpc": "2.0", "id": 3, "result": {}, "method": "tools/call",
            "params": { "name": "delete" } }]),
        ),
    ] {
        let answer = point.say(reader, None, BATCHES, &batch.to_string()).await;
        stopped(&answer, &[400, 403], what);
    }
    stopped(&point.say(reader, None, LEGACY, &silent.to_string()).await, &[403], "a notification");
    assert!(point.server.ran().is_empty(), "{:?}", point.server.ran());
    let answer = point.say(reader, None, BATCHES, &json!([read, message(3, "ping", "x")]).to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(point.server.ran(), ["read"]);
}

#[tokio::test]
async fn what_cannot_be_read_is_not_passed_over() {
    let point = reader().await;
    let reader = &point.keys[0];
    let delete = call(r#""name":"delete","arguments":{}"#);
    let bodies: [(&str, &[(&str, &str)]); 9] = [
        ("text", &[("content-type", "text/plain")]),
        ("no type", &[]),
        ("two types", &[("content-type", "text/plain"), ("content-type", "application/json")]),
        ("a form", &[("content-type", "application/x-www-form-urlencoded")]),
        ("JSON of a kind", &[("content-type", "application/vnd.api+json")]),
        ("another charset", &[("content-type", "application/json; charset=utf-7")]),
        ("packed, it says", &[("content-type", "application/json"), ("content-encoding", "gzip")]),
        ("packed as nothing", &[("content-type", "application/json"), ("content-encoding", "identity, br")]),
        ("as another method", &[("content-type", "application/json"), ("x-http-method-override", "GET")]),
    ];
    for (what, headers) in bodies {
        for method in [reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::PATCH] {
            let request = point.request(method.clone(), reader, "up").body(delete.clone());
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let answer = crate::common::send(request).await;
            stopped(&answer, &[400, 403, 405, 415, 501], &format!("{method}, {what}"));
        }
    }
    // A body where none belongs.
    for method in [reqwest::Method::GET, reqwest::Method::DELETE] {
        let request = point.request(method.clone(), reader, "up").header("content-type", "application/json");
        let _whatever = crate::common::send(request.body(delete.clone())).await;
    }
    assert!(point.server.ran().is_empty(), "{:?}", point.server.ran());
}

#[tokio::test]
async fn a_tool_that_is_forbidden_is_not_called_by_what_is_no_message() {
    // Everything is allowed but one tool: what is not read could be a call of it.
    let all = r#"permit(principal, action, resource in Route::"up");"#;
    let but = r#"forbid(principal, action, resource == Tool::"up/delete");"#;
    let point = Point::start(|_| format!("{all}\n{but}\n")).await;
    let delete = call(r#""name":"delete","arguments":{}"#);
    for headers in [
        &[("content-type", "text/plain")][..],
        &[],
        &[("content-type", "application/json"), ("content-encoding", "gzip")],
        &[("content-type", "application/json"), ("content-encoding", "x-unknown")],
        &[("content-type", "application/json"), ("content-type", "text/plain")],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "application/json")],
    ] {
        let post = point.post(&point.keys[0], "up").body(delete.clone());
        let post = headers.iter().fold(post, |post, (name, value)| post.header(*name, *value));
        stopped(&crate::common::send(post).await, &[400, 403, 415], &format!("{headers:?}"));
    }
    assert!(point.server.ran().is_empty(), "{:?}", point.server.ran());
    assert_eq!(point.call(&point.keys[0], "up", "pay", &json!({})).await.status, 200);
}

/// Arguments that policies decide on: an amount of at most 100.
const AMOUNT: &str = r#"
[[allow]]
routes = ["up"]
tools = ["pay"]
where = [{ pointer = "/amount", max = 100 }]
"#;

#[tokio::test]
async fn numbers_that_two_readers_take_for_two_are_denied() {
    let point = Point::of("policy.toml", "", "", |_| AMOUNT.to_owned()).await;
    let payer = &point.keys[0];
    let session = point.session(payer, "up").await;
    let pay = async |arguments: &str| {
        let message = call(&format!(r#""name":"pay","arguments":{arguments}"#));
        point.say(payer, Some(&session), LEGACY, &message).await
    };
    for amount in [
        "101",
        "1e400",
        "1e3",
        "100.00000000001",
        "9223372036854775808",
        "18446744073709551617",
        "-9223372036854775809",
        "1E+400",
        "\"100\"",
        "\"1\"",
        "[1]",
        "{\"amount\":1}",
        "null",
        "true",
        "100.5",
        "1e-400",
        "99999999999999999999e-20",
    ] {
        stopped(&pay(&format!(r#"{{"amount":{amount}}}"#)).await, &[403], amount);
    }
    for arguments in [
        "{}",
        r#"{"Amount":1}"#,
        r#"{"amount ":1}"#,
        "[]",
        "null",
        r#"{"a/mount":1}"#,
        r#"{"nested":{"amount":1}}"#,
        r#"{"amount":1,"amount":1000}"#,
        r#"{"amount":1,"\u0061mount":1000}"#,
        r#"{"amount":01}"#,
        r#"{"amount":+1}"#,
        r#"{"amount":NaN}"#,
        r#"{"amount":0x10}"#,
        r#"{"amount":1_0}"#,
    ] {
        stopped(&pay(arguments).await, &[400, 403], arguments);
    }
    assert!(point.server.ran().is_empty(), "{:?}", point.server.heard());
    for amount in ["0", "100", "7", "-5"] {
        let answer = pay(&format!(r#"{{"amount":{amount}}}"#)).await;
        assert_eq!(answer.status, 200, "{amount}: {}", answer.text());
    }
    let paid: Vec<Value> =
        point.server.heard().iter().filter_map(|call| call.pointer("/params/arguments/amount").cloned()).collect();
    assert_eq!(paid, [json!(0), json!(100), json!(7), json!(-5)]);
}
