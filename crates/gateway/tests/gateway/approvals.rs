//! Calls that wait for a person: what the person sees and decides at the admin socket, and what the caller gets.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sortie_gateway::AdminAddress;
use sortie_link::protos::Kind;
use sortie_runtime::TaskSet;

use crate::support::*;

const POLICY: &str = r#"
@id("all")
permit (principal, action, resource in Route::"docs") unless { resource == Tool::"docs/pay" };
@id("careful") @ask("somebody pays")
permit (principal, action == Action::"tools/call", resource == Tool::"docs/pay");
"#;

/// A setting of the route `docs`.
const KEEPALIVE: &str = "keepalive = \"1s\"\n[upstream]";

/// A gateway that asks for calls of `pay`, with these further settings at the top of its file.
pub(crate) async fn asking(tasks: &TaskSet, dir: &Path, upstream: &Upstream, settings: &str) -> World {
    std::fs::write(dir.join("policy.cedar"), POLICY).expect("write");
    let policy = format!("policy = \"enforce\"\npolicy_file = \"{}/policy.cedar\"\n", dir.display());
    let (routes, settings) = match settings {
        KEEPALIVE => (upstream.config().replace("[upstream]", KEEPALIVE), ""),
        _ => (upstream.config(), settings),
    };
    let (top, tables) = settings.split_at(settings.find('[').unwrap_or(settings.len()));
    World::start(tasks, &format!("{top}{policy}{routes}{tables}")).await
}

/// Status and JSON of an answer of the admin socket.
pub(crate) async fn admin(world: &World, method: &str, path: &str, body: Value) -> (u16, Value) {
    let address = AdminAddress::of(world.path()).expect("address");
    let stream = tokio::net::UnixStream::connect(address.path()).await.expect("the socket");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    world.tasks.spawn("test-admin", async move { drop(connection.await) });
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = http::Request::builder().method(method).uri(path).header("host", "gateway").body(full(body));
    let response = soon(sender.send_request(request.expect("request"))).await.expect("answer");
    let status = response.status().as_u16();
    let body = soon(response.into_body().collect()).await.expect("body").to_bytes();
    (status, serde_json::from_slice(&body).expect("json"))
}

async fn waiting(world: &World) -> Vec<Value> {
    let (status, list) = admin(world, "GET", "/v1/approvals", Value::Null).await;
    assert_eq!(status, 200, "{list}");
    list.get("data").and_then(Value::as_array).expect("list").clone()
}

/// The one approval that waits, once it does.
pub(crate) async fn one(world: &World) -> Value {
    soon(async {
        loop {
            match waiting(world).await.as_slice() {
                [] => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                [one] => return one.clone(),
                more => panic!("{more:?}"),
            }
        }
    })
    .await
}

pub(crate) async fn gone(world: &World) {
    soon(async {
        while !waiting(world).await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) fn pay(amount: u32) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
           "params": {"name": "pay", "arguments": {"amount": amount, "to": "secret\u{202e}name"}}})
}

/// A call that runs by itself.
pub(crate) fn calling(
    world: &World,
    body: &Value,
    accept: &str,
) -> tokio::sync::oneshot::Receiver<hyper::Result<Response<Incoming>>> {
    let request = world.request("POST", "/mcp").header("content-type", "application/json").header("accept", accept);
    let request = request.body(full(body.to_string())).expect("request");
    let (told, answer) = tokio::sync::oneshot::channel();
    let (edge, caller) = (world.edge.link_number(1), world.caller.clone());
    let edge = futures_util::FutureExt::now_or_never(edge).expect("the link is up");
    world.tasks.spawn("test-call", async move {
        let mut told = told;
        let calling = async {
            let stream = caller.tls(&edge, Kind::Hub, HOST, b"http/1.1").await.expect("inner TLS");
            caller.send(stream, request).await
        };
        let answered = tokio::select! {
            answered = calling => answered,
            () = told.closed() => return,
        };
        let _ = told.send(answered);
    });
    answer
}

pub(crate) async fn answered(
    answer: tokio::sync::oneshot::Receiver<hyper::Result<Response<Incoming>>>,
) -> Response<Incoming> {
    soon(answer).await.expect("told").expect("answer")
}

pub(crate) async fn decide(world: &World, approval: &Value, decision: Value) -> (u16, Value) {
    let path = format!("/v1/approvals/{}", approval["id"].as_str().expect("id"));
    admin(world, "POST", &path, decision).await
}

#[tokio::test]
async fn a_person_sees_a_call_and_lets_it_go_on() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    world.link().await;
    let answer = calling(&world, &pay(5), "application/json");
    let approval = one(&world).await;
    assert_eq!(upstream.count(), 0, "nothing runs before the approval");
    assert_eq!(
        (&approval["route"], &approval["target"], &approval["status"]),
        (&json!("docs"), &json!("pay"), &json!("waiting"))
    );
    assert_eq!(
        (&approval["caller"]["subject"], &approval["caller"]["workspace"]),
        (&json!("user:1"), &json!("wrkspc_1"))
    );
    assert_eq!((&approval["policies"], &approval["reason"]), (&json!(["careful"]), &json!("somebody pays")));
    let arguments = pay(5)["params"]["arguments"].to_string();
    assert_eq!(approval["arguments"]["sha256"], sortie_ids::Digest::of(arguments.as_bytes()).to_string());
    assert_eq!(approval["arguments"]["members"], json!({"amount": "number", "to": "string, 13 bytes"}));
    assert!(!approval.to_string().contains("secret"), "values are not shown: {approval}");

    let (status, decided) = decide(&world, &approval, json!({"decision": "approve", "reason": "fine"})).await;
    assert_eq!(
        (status, &decided["status"], &decided["decision"]["by"]["from"]),
        (200, &json!("approved"), &json!("local"))
    );
    let answer = answered(answer).await;
    assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (200, "ok"));
    assert_eq!(upstream.count(), 1);
    // The second is told; and the approval was for that call alone.
    let (status, late) = decide(&world, &approval, json!({"decision": "deny"})).await;
    assert_eq!((status, &late["error"]["type"]), (409, &json!("conflict_error")));
    let again = calling(&world, &pay(5), "application/json");
    let second = one(&world).await;
    assert_ne!(second["id"], approval["id"]);
    decide(&world, &second, json!({"decision": "deny", "reason": "not twice"})).await;
    let (status, hop, body) = refusal(answered(again).await).await;
    assert_eq!((status, hop.as_str(), &body["id"]), (403, "policy", &json!(7)));
    let reason = body["error"]["data"]["reason"].as_str().expect("reason");
    assert!(reason.contains("not twice") && reason.contains(second["id"].as_str().expect("id")), "{reason}");
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn an_approval_may_last_for_the_same_arguments() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "[approvals]\nshow_arguments = true\n").await;
    world.link().await;
    let first = calling(&world, &pay(5), "application/json");
    let approval = one(&world).await;
    assert_eq!(approval["arguments"]["members"], json!({"amount": "5", "to": "\"secret\\u{202e}name\""}));
    decide(&world, &approval, json!({"decision": "approve", "for_s": 600})).await;
    assert_eq!(answered(first).await.status(), 200);
    assert_eq!(answered(calling(&world, &pay(5), "application/json")).await.status(), 200);
    let other = calling(&world, &pay(6), "application/json");
    one(&world).await;
    drop(other);
    gone(&world).await;
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn who_gives_up_or_cancels_waits_no_longer() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    world.link().await;
    let answer = calling(&world, &pay(5), "application/json");
    let approval = one(&world).await;
    drop(answer);
    gone(&world).await;
    let (status, late) = decide(&world, &approval, json!({"decision": "approve"})).await;
    assert_eq!(status, 409, "{late}");

    let answer = calling(&world, &pay(5), "application/json");
    one(&world).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}});
    assert_eq!(answered(calling(&world, &cancel, "application/json")).await.status(), 200);
    assert_eq!(refusal(answered(answer).await).await.0, 503);
    assert_eq!(upstream.count(), 1, "the notification alone");
}

#[tokio::test]
async fn what_nobody_decides_ends_and_too_many_are_refused() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let settings = "approval_timeout = \"300ms\"\n[approvals]\nmax_waiting = 1\n";
    let world = asking(&tasks, dir.path(), &upstream, settings).await;
    world.link().await;
    let (first, second) = (calling(&world, &pay(5), "*/*"), calling(&world, &pay(6), "*/*"));
    let (one, two) = (refusal(answered(first).await).await, refusal(answered(second).await).await);
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!((statuses, one.1.as_str(), two.1.as_str()), ([403, 429], "policy", "policy"));
    // Of a batch each call is asked for, so that this one never fits.
    let batch = json!([pay(1), pay(2)]);
    assert_eq!(refusal(answered(calling(&world, &batch, "*/*")).await).await.0, 429);
    gone(&world).await;
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_client_of_event_streams_hears_that_it_waits() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::serve(&tasks, |_| async {
        let body = full("{\"jsonrpc\":\"2.0\",\n\"id\":7,\"result\":{}}");
        Response::builder().header("content-type", "application/json").body(body).expect("response")
    })
    .await;
    let world = asking(&tasks, dir.path(), &upstream, KEEPALIVE).await;
    world.link().await;
    let mut response = answered(calling(&world, &pay(5), "application/json, text/event-stream")).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &"text/event-stream".parse().expect("value"))
    );
    for _ in 0..2 {
        let frame = soon(response.frame()).await.expect("frame").expect("data").into_data().expect("data");
        assert_eq!(frame, ": keepalive\n\n");
    }
    let approval = one(&world).await;
    assert_eq!(upstream.count(), 0);
    decide(&world, &approval, json!({"decision": "approve"})).await;
    let rest = text(response).await;
    let event = rest.trim_start_matches(": keepalive\n\n");
    assert_eq!(event, "event: message\ndata: {\"jsonrpc\":\"2.0\", \"id\":7,\"result\":{}}\n\n");

    // Its going away cancels the call, also behind the head.
    let response = answered(calling(&world, &pay(5), "text/event-stream")).await;
    one(&world).await;
    drop(response);
    gone(&world).await;
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn a_stop_lets_people_decide_and_approves_nothing_by_itself() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    world.link().await;
    let (approved, left) = (calling(&world, &pay(5), "*/*"), calling(&world, &pay(6), "*/*"));
    let both = soon(async {
        loop {
            match waiting(&world).await {
                both if both.len() == 2 => return both,
                _ => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    let drain = world.gateway.drain();
    let people = async {
        // The socket is there while calls end.
        let five = both.iter().find(|one| one["arguments"]["sha256"] == digest_of(5)).expect("five");
        assert_eq!(decide(&world, five, json!({"decision": "approve"})).await.0, 200);
        assert_eq!(answered(approved).await.status(), 200);
        // Nobody decides on the other one until the time for a stop is over.
        assert_eq!(refusal(answered(left).await).await.0, 503);
    };
    tokio::join!(drain, people);
    assert_eq!(upstream.count(), 1);
    until(|| !world.path().join("admin.sock").exists()).await;
}

fn digest_of(amount: u32) -> String {
    let call = pay(amount);
    let arguments = call.pointer("/params/arguments").expect("arguments").to_string();
    sortie_ids::Digest::of(arguments.as_bytes()).to_string()
}

#[tokio::test]
async fn a_policy_that_changes_meanwhile_has_the_last_word() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    world.link().await;
    let policy = format!("policy = \"enforce\"\npolicy_file = \"{}/policy.cedar\"\n", dir.path().display());
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, format!("{policy}{}", upstream.config())).expect("write");
    world.gateway.watch(file);
    for (changed, expected) in [
        (format!("{POLICY}\n// The same."), 200),
        (format!("{POLICY}\n@id(\"no\") forbid (principal, action, resource == Tool::\"docs/pay\");"), 403),
    ] {
        let answer = calling(&world, &pay(5), "*/*");
        let approval = one(&world).await;
        let since = world.gateway.readiness().config.since;
        // It is told in whole seconds.
        let began: jiff::Timestamp = since.parse().expect("a time");
        until(|| jiff::Timestamp::now().as_second() > began.as_second()).await;
        std::fs::write(dir.path().join("policy.cedar"), &changed).expect("write");
        until(|| world.gateway.readiness().config.since != since).await;
        assert_eq!(decide(&world, &approval, json!({"decision": "approve"})).await.0, 200);
        assert_eq!(answered(answer).await.status().as_u16(), expected, "{changed}");
    }
    assert_eq!(upstream.count(), 1);
}

/// How far the clock of a gateway is ahead, in seconds.
static AHEAD: AtomicI64 = AtomicI64::new(0);

fn ahead() -> i64 {
    jiff::Timestamp::now().as_second() + AHEAD.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_time_that_is_over_when_a_person_approves_is_over() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let end = jiff::Timestamp::from_second(ahead() + 20).expect("a time");
    let policy = format!(
        "@id(\"careful\") @ask(\"somebody pays\") permit (principal, action == Action::\"tools/call\", \
         resource == Tool::\"docs/pay\") when {{ context.time < datetime(\"{end}\") }};"
    );
    std::fs::write(dir.path().join("policy.cedar"), policy).expect("write");
    let config =
        format!("policy = \"enforce\"\npolicy_file = \"{}/policy.cedar\"\n{}", dir.path().display(), upstream.config());
    let options = sortie_gateway::GatewayOptions { clock: ahead, ..Default::default() };
    let world = World::start_as(&tasks, &config, options, |_| {}).await;
    world.link().await;
    // Approved in time, it runs; approved when the time is over, it does not.
    for (passed, expected) in [(5, 200), (30, 403)] {
        AHEAD.store(0, Ordering::SeqCst);
        let answer = calling(&world, &pay(5), "*/*");
        let approval = one(&world).await;
        AHEAD.store(passed, Ordering::SeqCst);
        assert_eq!(decide(&world, &approval, json!({"decision": "approve"})).await.0, 200);
        let answer = answered(answer).await;
        assert_eq!(answer.status().as_u16(), expected, "{passed} s later");
        if expected == 403 {
            let (_, hop, body) = refusal(answer).await;
            assert_eq!(
                (hop.as_str(), body["error"]["data"]["reason"].as_str()),
                ("policy", Some("no policy allows it")),
                "{body}"
            );
        }
    }
    assert_eq!(upstream.count(), 1);
}

/// The hub's question about approvals, with a token for this audience.
async fn through_hub(world: &World, method: &str, path: &str, audience: &str, sub: &str, body: &Value) -> u16 {
    let token = world.caller.hub.sign(&world.caller.claims(audience, sub));
    let request = http::Request::builder().method(method).uri(path).header("host", HOST);
    let request = request.header("sortie-identity", token).header("sortie-approvals", "1");
    world.call(request.body(full(body.to_string())).expect("request")).await.status().as_u16()
}

#[tokio::test]
async fn the_hub_decides_only_where_the_settings_let_it() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let audience = format!("urn:sortie:approvals:{HOST}");
    let approve = json!({"decision": "approve"});
    for (settings, listed) in [("", 403), ("[approvals]\nfrom = [\"hub\"]\n", 200)] {
        let world = asking(&tasks, dir.path(), &upstream, settings).await;
        world.link().await;
        let answer = calling(&world, &pay(5), "*/*");
        let approval = soon(async {
            loop {
                match waiting(&world).await.first() {
                    Some(one) => return one.clone(),
                    None => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            }
        })
        .await;
        let path = format!("/v1/approvals/{}", approval["id"].as_str().expect("id"));
        // A caller's own token, one for another host, one that names no key, one of nobody.
        for (audience, sub) in [
            (HOST, "key:key_1"),
            ("urn:sortie:approvals:other.abcd1234.sortie.localhost", "key:key_1"),
            (audience.as_str(), "user:1"),
            (audience.as_str(), "hub:probe"),
        ] {
            assert_eq!(through_hub(&world, "POST", &path, audience, sub, &approve).await, 401, "{audience} {sub}");
        }
        assert_eq!(through_hub(&world, "GET", "/v1/approvals", &audience, "key:key_1", &Value::Null).await, listed);
        assert_eq!(through_hub(&world, "POST", &path, &audience, "key:key_1", &approve).await, listed);
        if listed == 200 {
            assert_eq!(answered(answer).await.status(), 200);
            let (_, ended) = admin(&world, "GET", &path, Value::Null).await;
            assert_eq!(ended["decision"]["by"], json!({"from": "hub", "key": "key_1"}));
            // Without "local", the socket shows, and decides nothing.
            let second = calling(&world, &pay(6), "*/*");
            let second_approval = one(&world).await;
            assert_eq!(decide(&world, &second_approval, approve.clone()).await.0, 403);
            drop(second);
        } else {
            assert_eq!(upstream.count(), 0);
        }
    }
    // A token for approvals makes no calls.
    let world = asking(&tasks, dir.path(), &upstream, "").await;
    let token = world.caller.hub.sign(&world.caller.claims(&audience, "key:key_1"));
    let request =
        http::Request::builder().method("POST").uri("/mcp").header("host", HOST).header("sortie-identity", token);
    assert_eq!(refusal(world.call(request.body(full("{}")).expect("request")).await).await.0, 401);
}

#[tokio::test]
async fn the_socket_answers_in_the_form_of_the_public_api() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    assert_eq!(admin(&world, "GET", "/v1/readiness", Value::Null).await.0, 200);
    for (method, path, body, status, kind) in [
        ("GET", "/v1/nothing", Value::Null, 404, "not_found_error"),
        ("DELETE", "/v1/approvals", Value::Null, 405, "invalid_request_error"),
        ("GET", "/v1/approvals/tnl_1", Value::Null, 404, "not_found_error"),
        ("POST", "/v1/approvals/apr_1", json!({"decision": "approve"}), 404, "not_found_error"),
        ("POST", "/v1/approvals/apr_1", json!({"decision": "perhaps"}), 400, "invalid_request_error"),
        ("POST", "/v1/approvals/apr_1", Value::String("x".repeat(70_000)), 413, "request_too_large"),
    ] {
        let (given, body) = admin(&world, method, path, body).await;
        assert_eq!((given, body["error"]["type"].as_str()), (status, Some(kind)), "{method} {path}");
    }
}
