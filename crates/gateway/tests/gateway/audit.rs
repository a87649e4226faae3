//! What is recorded of calls, and that it is recorded before they go on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::Response;
use serde_json::{Value, json};
use sortie_ids::Digest;
use sortie_link::protos::Kind;
use sortie_runtime::TaskSet;
use sortie_tls::{Authority, SetupFile};

use crate::support::*;

/// All records of a log, in order.
pub(crate) fn records(dir: &Path) -> Vec<Value> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir.join("log")).expect("log").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).expect("file")).collect();
    let records: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for (number, record) in records.iter().enumerate() {
        assert_eq!(record["seq"], number, "each is one line: {record}");
    }
    records
}

pub(crate) fn of(world: &World, event: &str) -> Vec<Value> {
    let all = records(world.gateway.audit_dir().expect("audit"));
    all.into_iter().filter(|record| record["event"] == event).collect()
}

pub(crate) fn decided(world: &World) -> Vec<Value> {
    of(world, "call_decided")
}

/// The records of so many ended calls, once they are there.
pub(crate) async fn done(world: &World, count: usize) -> Vec<Value> {
    until(|| of(world, "call_done").len() >= count).await;
    of(world, "call_done")
}

pub(crate) fn tool(name: &str, arguments: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": name, "arguments": arguments}})
}

pub(crate) async fn post(world: &World, body: &Value) -> Response<hyper::body::Incoming> {
    let request = world.request("POST", "/mcp").header("content-type", "application/json");
    world.call(request.body(full(body.to_string())).expect("request")).await
}

/// Puts settings before the first table.
pub(crate) fn top(settings: &str, config: String) -> String {
    format!("{settings}\n{config}")
}

#[tokio::test]
async fn a_call_is_on_record_before_the_server_sees_it() {
    let tasks = TaskSet::new();
    let dir: Arc<OnceLock<PathBuf>> = Arc::default();
    let there = dir.clone();
    // The server answers with what the log says at the moment of the call.
    let upstream = Upstream::serve(&tasks, move |_| {
        let records = records(there.get().expect("directory"));
        let last = records.last().expect("a record").to_string();
        async move { Response::new(full(last)) }
    })
    .await;
    let config = top("region = \"eu-1\"", upstream.config());
    let world = World::start(&tasks, &config).await;
    dir.set(world.gateway.audit_dir().expect("audit").to_owned()).expect("once");
    let call = tool("search", json!({"query": "a secret\u{202e}"}));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = world
        .request("POST", "/mcp?secret=1")
        .header("content-type", "application/json")
        .header("sortie-request-id", "req_0123456789ABCDEFGHJKMNPQRS")
        .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"));
    let answer = text(world.call(request.body(full(call.to_string())).expect("request")).await).await;
    let seen: Value = serde_json::from_str(&answer).expect("what the server saw");
    let arguments = call["params"]["arguments"].to_string();
    assert_eq!((&seen["event"], &seen["code"]), (&json!("call_decided"), &json!("G1001I")));
    assert_eq!(
        (&seen["route"], &seen["method"], &seen["tool"]),
        (&json!("docs"), &json!("tools/call"), &json!("search"))
    );
    assert_eq!((&seen["caller"]["subject"], &seen["caller"]["workspace"]), (&json!("user:1"), &json!("wrkspc_1")));
    assert_eq!(
        (&seen["outcome"], &seen["region"], &seen["trace"]),
        (&json!("forwarded"), &json!("eu-1"), &json!(trace))
    );
    let digest = Digest::of(arguments.as_bytes()).to_string();
    assert_eq!(seen["arguments"], json!({"sha256": digest, "bytes": arguments.len()}));
    assert!(!answer.contains("secret"), "{answer}");

    let done = done(&world, 1).await.remove(0);
    assert_eq!((&done["code"], &done["id"], &done["decided"]), (&json!("G1010I"), &seen["id"], &seen["seq"]));
    assert_eq!((&done["status"], &done["end"]), (&json!(200), &json!("complete")));
    assert_eq!(done["request_bytes"], call.to_string().len());
    assert_eq!(done["response_bytes"], answer.len());
    assert_eq!(done["result_sha256"], Digest::of(answer.as_bytes()).to_string());
    assert!(done["duration_us"].as_u64().is_some_and(|us| us > 0), "{done}");
}

#[tokio::test]
async fn every_kind_of_request_is_named_for_what_it_is() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let config =
        format!("{}[routes.raw]\nupstream = \"http://{}\"\nprotocol = \"http\"\n", upstream.config(), upstream.addr);
    let world = World::start(&tasks, &config).await;
    let session = "a-session-of-somebody";
    let get = world.request("GET", "/mcp").header("accept", "text/event-stream");
    world.call(get.body(full("")).expect("request")).await;
    let raw = "raw.abcd1234.sortie.localhost";
    let link = world.link().await;
    let stream = world.caller.tls(&link, Kind::Hub, raw, b"http/1.1").await.expect("inner TLS");
    let request = http::Request::builder().method("PUT").uri("/a/b?token=hidden").header("host", raw);
    let request = request.header("sortie-identity", world.caller.token(raw)).body(full("x")).expect("request");
    assert_eq!(soon(world.caller.send(stream, request)).await.expect("answer").status(), 200);
    let batch = json!([
        tool("one", json!({"a": 1})),
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}},
        {"jsonrpc": "2.0", "id": 8, "method": "prompts/get", "params": {"name": "greet"}},
        {"jsonrpc": "2.0", "id": 9, "method": "resources/read", "params": {"uri": "file:///x"}},
        {"jsonrpc": "2.0", "id": 10, "result": {}},
    ]);
    assert_eq!(post(&world, &batch).await.status(), 200);
    let modern = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "modern", "arguments": {},
        "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}});
    let request = world
        .request("POST", "/mcp")
        .header("content-type", "application/json")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-method", "tools/call")
        .header("mcp-name", "modern");
    let response = world.call(request.body(full(modern.to_string())).expect("request")).await;
    assert_eq!(response.status(), 200);
    let end = world.request("DELETE", "/mcp").header("mcp-session-id", session);
    let ended = world.call(end.body(full("")).expect("request")).await;

    let decided = decided(&world);
    let acts: Vec<_> = decided.iter().map(|record| record["method"].as_str().expect("method")).collect();
    let expected = [
        "stream",
        "http",
        "tools/call",
        "notifications/progress",
        "prompts/get",
        "resources/read",
        "answer",
        "tools/call",
        "session/delete",
    ];
    assert_eq!(acts, expected);
    assert_eq!((&decided[1]["http_method"], &decided[1]["http_path"]), (&json!("PUT"), &json!("/a/b")));
    assert_eq!((&decided[1]["route"], &decided[1]["arguments"]), (&json!("raw"), &Value::Null));
    let (first, batch) = (decided[2]["id"].as_str().expect("id"), &decided[2..7]);
    for (number, record) in batch.iter().enumerate() {
        assert_eq!((record["message"].as_u64(), record["id"].as_str()), (Some(number as u64), Some(first)));
        assert_eq!(record["seq"].as_u64(), decided[2]["seq"].as_u64().map(|seq| seq + number as u64));
    }
    assert_eq!((&decided[4]["prompt"], &decided[5]["resource"]), (&json!("greet"), &json!("file:///x")));
    assert_eq!((&decided[7]["tool"], &decided[7]["message"]), (&json!("modern"), &Value::Null));
    assert_eq!(decided[8]["mcp_session"], Digest::of(session.as_bytes()).to_string());
    // One end for each request, whose number is that of its first message; none for what was refused here.
    let forwarded = if ended.status() == 200 { 5 } else { 4 };
    let done = done(&world, forwarded).await;
    let of_batch: Vec<_> = done.iter().filter(|done| done["id"] == first).collect();
    assert_eq!(of_batch.len(), 1);
    assert_eq!(of_batch[0]["decided"], decided[2]["seq"]);
}

const POLICY: &str = r#"
@id("some")
permit (principal, action, resource in Route::"docs") unless { resource == Tool::"docs/delete" };
"#;

#[tokio::test]
async fn what_is_refused_is_recorded_with_its_reason() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    std::fs::write(dir.path().join("policy.cedar"), POLICY).expect("write");
    let policy = format!("policy = \"enforce\"\npolicy_file = \"{}/policy.cedar\"", dir.path().display());
    let limit = "[[limits]]\ntools = [\"rare\"]\nrate = \"1/h\"\n";
    let world = World::start(&tasks, &(top(&policy, upstream.config()) + limit)).await;
    assert_eq!(post(&world, &tool("delete", json!({"a": 1}))).await.status(), 403);
    assert_eq!(post(&world, &tool("rare", json!({}))).await.status(), 200);
    assert_eq!(post(&world, &tool("rare", json!({}))).await.status(), 429);
    assert_eq!(post(&world, &json!({"not": "mcp"})).await.status(), 400);
    assert_eq!(post(&world, &tool("big", json!({"a": "x".repeat(1000)}))).await.status(), 413);
    let other = world.request("GET", "/mcp").header("mcp-session-id", "nobody's").header("accept", "text/event-stream");
    let stolen = world.call(other.body(full("")).expect("request")).await;
    assert_eq!(stolen.status(), 200, "a session that nobody has is the server's to refuse");
    let trace = world.request("TRACE", "/mcp").body(full("")).expect("request");
    assert_eq!(world.call(trace).await.status(), 501);

    let decided = decided(&world);
    let told: Vec<_> = decided
        .iter()
        .map(|record| {
            let text = |name: &str| record[name].as_str().unwrap_or("-").to_owned();
            (text("code"), text("outcome"), text("tool"), text("hop"))
        })
        .collect();
    let told: Vec<_> = told.iter().map(|(a, b, c, d)| (a.as_str(), b.as_str(), c.as_str(), d.as_str())).collect();
    assert_eq!(
        told,
        [
            ("G1001W", "refused", "delete", "policy"),
            ("G1001I", "forwarded", "rare", "-"),
            ("G1001W", "refused", "rare", "policy"),
            ("G1001W", "refused", "-", "route"),
            ("G1001W", "refused", "-", "route"),
            ("G1001I", "forwarded", "-", "-"),
            ("G1001W", "refused", "-", "route"),
        ]
    );
    let decision = &decided[0]["decision"];
    assert_eq!((&decision["effect"], &decision["mode"]), (&json!("deny"), &json!("enforce")));
    assert!(decision["policy_sha256"].as_str().is_some_and(|digest| digest.len() == 64), "{decision}");
    assert_eq!(decided[0]["reason"], decision["reason"]);
    assert_eq!(decided[0]["arguments"]["bytes"], 7);
    assert_eq!(decided[1]["decision"]["policies"], json!(["some"]));
    assert_eq!(decided[2]["decision"], Value::Null, "the limit was asked before the policy");
    assert!(decided[2]["reason"].as_str().is_some_and(|reason| reason.contains("1/h")), "{}", decided[2]);
    assert_eq!(done(&world, 2).await.len(), 2, "only what went on has an end");
    let loaded = of(&world, "settings_loaded").remove(0);
    assert_eq!((&loaded["policy"], &loaded["policies"]), (&json!("enforce"), &json!(1)));
    assert_eq!(loaded["policy_sha256"], decision["policy_sha256"]);
    let file = dir.path().join("policy.cedar").display().to_string();
    assert_eq!(loaded["files"][&file], Digest::of(POLICY.as_bytes()).to_string());
}

#[tokio::test]
async fn the_end_of_a_call_says_how_it_ended() {
    let tasks = TaskSet::new();
    let (held, gone) = piped();
    let gone = Arc::new(std::sync::Mutex::new(Some(gone)));
    let inside = tasks.clone();
    let upstream = Upstream::serve(&tasks, move |request| {
        let (gone, inside) = (gone.clone(), inside.clone());
        async move {
            match request.uri().path() {
                "/slow" => std::future::pending().await,
                "/held" => Response::new(gone.lock().expect("lock").take().expect("once")),
                "/breaks" => {
                    let (send, body) = piped();
                    inside.spawn("test-breaks", async move {
                        drop(send.send(Ok("part")).await);
                        drop(send.send(Err(std::io::Error::other("broke"))).await);
                    });
                    Response::new(body)
                }
                _ => Response::new(full("ok")),
            }
        }
    })
    .await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let nowhere = closed.local_addr().expect("address");
    drop(closed);
    let config = upstream
        .config()
        .replace("[upstream]", "deadline = \"1s\"\n[routes.down]\nupstream = \"http://NOWHERE\"\n[upstream]");
    let world = World::start(&tasks, &config.replace("NOWHERE", &nowhere.to_string())).await;
    let get = |path: &str| world.request("GET", path).body(full("")).expect("request");
    assert_eq!(world.call(get("/slow")).await.status(), 504);
    let ends = done(&world, 1).await;
    assert_eq!(
        (&ends[0]["code"], &ends[0]["status"], &ends[0]["hop"]),
        (&json!("G1010E"), &json!(504), &json!("upstream"))
    );

    let leaving = world.call(get("/held")).await;
    held.send(Ok("first")).await.expect("sent");
    drop(leaving);
    let ends = done(&world, 2).await;
    assert_eq!((&ends[1]["code"], &ends[1]["end"]), (&json!("G1010W"), &json!("caller left")));
    assert_eq!((&ends[1]["hop"], &ends[1]["result_sha256"]), (&Value::Null, &Value::Null));

    let broken = world.call(get("/breaks")).await;
    assert!(soon(http_body_util::BodyExt::collect(broken.into_body())).await.is_err());
    let ends = done(&world, 3).await;
    assert_eq!((&ends[2]["code"], &ends[2]["end"]), (&json!("G1010E"), &json!("upstream broke off")));
    assert_eq!((&ends[2]["response_bytes"], &ends[2]["result_sha256"]), (&json!(4), &Value::Null));

    let host = "down.abcd1234.sortie.localhost";
    let link = world.link().await;
    let stream = world.caller.tls(&link, Kind::Hub, host, b"http/1.1").await.expect("inner TLS");
    let request =
        http::Request::builder().uri("/").header("host", host).header("sortie-identity", world.caller.token(host));
    let refused = soon(world.caller.send(stream, request.body(full("")).expect("request"))).await.expect("answer");
    assert_eq!(refused.status(), 502);
    let ends = done(&world, 4).await;
    assert_eq!((&ends[3]["code"], &ends[3]["hop"]), (&json!("G1010E"), &json!("upstream-connect")));
}

#[tokio::test]
async fn callers_are_recorded_by_what_proves_them() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let clients = Authority::generate("Clients", 30).expect("authority");
    let sealed = "vault.abcd1234.sortie.localhost";
    let config = format!(
        "{}[routes.vault]\nupstream = \"http://{}\"\nmode = \"sealed\"\nclient_ca_file = \"clients.pem\"\n",
        upstream.config(),
        upstream.addr
    );
    let pem = clients.cert_pem().to_owned();
    let world = World::start_with(&tasks, &config, Default::default(), |dir| {
        std::fs::write(dir.path(SetupFile::TunnelId).with_file_name("clients.pem"), pem).expect("write");
    })
    .await;
    let link = world.link().await;
    let client = clients.issue_client("agent-1", Duration::from_secs(86_400)).expect("client");
    let known = world.caller.sealed_config(&client);
    for (host, status) in [(sealed, 200), (HOST, 421)] {
        let stream = world.caller.tls_with(known.clone(), &link, Kind::Sealed, sealed).await.expect("tls");
        let request = http::Request::builder().uri("/mcp").header("host", host).body(full("")).expect("request");
        assert_eq!(soon(world.caller.send(stream, request)).await.expect("answer").status(), status);
    }
    let decided = decided(&world);
    for (record, outcome) in decided.iter().zip(["forwarded", "refused"]) {
        assert_eq!((&record["route"], &record["outcome"]), (&json!("vault"), &json!(outcome)));
        assert_eq!((&record["caller"]["issuer"], &record["caller"]["assurance"]), (&json!("tls"), &json!("attested")));
        assert!(record["caller"]["subject"].as_str().is_some_and(|subject| subject.starts_with("sha256:")), "{record}");
    }
    assert_eq!(decided.len(), 2);
}

#[tokio::test]
async fn who_does_not_say_who_calls_is_only_counted() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    for number in 0..30 {
        let host = if number % 3 == 0 { "nowhere.example" } else { HOST };
        let mut request = http::Request::builder().uri("/mcp").header("host", host);
        if number % 3 == 1 {
            request = request.header("sortie-identity", format!("token\u{7f}{number}").replace('\u{7f}', "-"));
        }
        world.call(request.body(full("")).expect("request")).await;
    }
    assert!(decided(&world).is_empty());
    world.gateway.drain().await;
    world.gateway.close().await;
    let counted = of(&world, "calls_unidentified");
    let of_route = |route: Value| {
        let all = counted.iter().filter(|record| record["route"] == route);
        all.map(|record| record["count"].as_u64().expect("count")).sum::<u64>()
    };
    assert_eq!((of_route(Value::Null), of_route(json!("docs"))), (10, 20), "{counted:?}");
    let reasons: Vec<_> =
        counted.iter().flat_map(|record| record["reasons"].as_object().expect("reasons").keys()).collect();
    assert!(reasons.iter().all(|reason| !reason.contains("token-")), "{reasons:?}");
    assert_eq!(of(&world, "log_closed").len(), 1);
}

#[tokio::test]
async fn what_is_shown_of_arguments_is_what_the_settings_say() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let rules = "[audit]\nresult_digest = false\n[[audit.arguments]]\nroute = \"docs\"\ntool = \"read*\"\nshow = [\"/path\", \"/options\"]\n\
                 hide = [\"/options/password\"]\n";
    let world = World::start(&tasks, &(upstream.config() + rules)).await;
    let arguments =
        json!({"path": "/etc\n\u{1b}[2Jx", "token": "hidden", "options": {"password": "hidden", "deep": [1]}});
    for name in ["read_file", "write_file"] {
        assert_eq!(post(&world, &tool(name, arguments.clone())).await.status(), 200);
    }
    let decided = decided(&world);
    let shown = json!({"/path": "/etc\\u{a}\\u{1b}[2Jx", "/options/deep/0": "1"});
    assert_eq!(decided[0]["arguments"]["shown"], shown);
    assert_eq!(decided[1]["arguments"]["shown"], Value::Null);
    assert_eq!(done(&world, 2).await[0]["result_sha256"], Value::Null);
}

/// Whatever a caller sends, it is one record, whole and readable.
#[tokio::test]
async fn nobody_writes_records_of_their_own() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config().replace("1000", "1000000")).await;
    let forged = "x\"}\n{\"seq\":0,\"event\":\"call_done\"}\r\u{2028}\u{0}";
    let names = [forged.to_owned(), "n".repeat(400_000), "\u{202e}gnp.exe".to_owned()];
    for name in &names {
        assert_eq!(post(&world, &tool(name, json!({}))).await.status(), 200);
    }
    let request = world.request("GET", "/%0a%7B%22seq%22:0%7D").header("traceparent", "00-\"}{-x-01");
    assert_eq!(world.call(request.body(full("")).expect("request")).await.status(), 200);
    let decided = decided(&world);
    assert_eq!((&decided[0]["tool"], &decided[2]["tool"]), (&json!(names[0]), &json!(names[2])));
    let cut = decided[1]["tool"].as_str().expect("name");
    assert!(cut.contains(&Digest::of(names[1].as_bytes()).to_string()), "{cut}");
    assert_eq!((&decided[3]["http_path"], &decided[3]["trace"]), (&json!("/%0a%7B%22seq%22:0%7D"), &Value::Null));
}

#[tokio::test]
async fn without_an_audit_the_gateway_says_so() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &(upstream.config() + "[audit]\nenabled = false\n")).await;
    assert_eq!(post(&world, &tool("search", json!({}))).await.status(), 200);
    assert_eq!(world.gateway.audit_dir(), None);
    assert!(world.gateway.readiness().audit.is_none() && !world.path().join("audit").exists());
}
