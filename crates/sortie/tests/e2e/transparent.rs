//! What goes through unchanged, what never does, and that a caller who leaves is missed at the far end.

use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde_json::json;
use sortie_testkit::{EchoServer, eventually};

use crate::common::{SOON, Seen, Serving, Tunnel, Upstream, World, modern, raw, routes, send, serving, text, tls_to};

/// How soon the far end knows that a caller left.
const MISSED: Duration = Duration::from_secs(2);

/// Reads on until the stream has said `part`.
async fn said(response: &mut Response, part: &str) -> Instant {
    let mut all = String::new();
    let read = async {
        while let Some(chunk) = response.chunk().await.expect("stream") {
            all.push_str(&String::from_utf8_lossy(&chunk));
            if all.contains(part) {
                return Instant::now();
            }
        }
        panic!("the stream ended before `{part}`");
    };
    tokio::time::timeout(SOON, read).await.expect("in time")
}

async fn noted(echo: &EchoServer, event: &str) {
    let found = eventually(MISSED, || echo.events().iter().any(|one| one.event == event).then_some(())).await;
    assert!(found.is_some(), "no `{event}` within {MISSED:?}: {:?}", echo.events());
}

/// A session of the older protocol.
async fn session(world: &World, tunnel: &Tunnel) -> String {
    let params =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let answer = send(legacy(
        world,
        tunnel,
        None,
        json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params }),
    ));
    answer.await.header("mcp-session-id").expect("session").to_owned()
}

fn legacy(world: &World, tunnel: &Tunnel, session: Option<&str>, body: serde_json::Value) -> reqwest::RequestBuilder {
    let post = world
        .request(Method::POST, tunnel, "echo", "/mcp")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(body.to_string());
    match session {
        Some(session) => post.header("mcp-session-id", session),
        None => post,
    }
}

fn tool(id: u32, name: &str, arguments: serde_json::Value) -> serde_json::Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": name, "arguments": arguments } })
}

/// One route `up` to a server that answers so; a gateway that lives as long as the third value.
async fn behind(answer: &str, more: &str) -> (World, Tunnel, crate::common::GatewayProcess, Upstream) {
    let upstream = Upstream::saying(answer).await;
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let config = routes(&[("up", &upstream.url())]).replace("[upstream]", &format!("{more}\n[upstream]"));
    let gateway = world.gateway(&tunnel.dir, &config, &[]).await;
    (world, tunnel, gateway, upstream)
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let post = world.request(Method::POST, &tunnel, "echo", "/mcp");
    let mut response =
        modern(post, &json!(1), "progress", &json!({ "count": 5, "interval_ms": 200 })).send().await.expect("answer");
    assert_eq!(response.headers().get("content-type").expect("type"), "text/event-stream");
    let mut times = Vec::new();
    for step in 1..=5 {
        times.push(said(&mut response, &format!("\"progress\":{step}")).await);
    }
    said(&mut response, "progress done").await;
    for pair in times.windows(2) {
        let gap = pair[1].duration_since(pair[0]);
        assert!(gap > Duration::from_millis(100), "events came together: {gap:?}");
    }
}

#[tokio::test]
async fn the_stream_of_a_session_delivers_what_another_call_announces() {
    let Serving { world, tunnel, gateway: _gateway, echo } = serving().await;
    let session = session(&world, &tunnel).await;
    let get = world.request(Method::GET, &tunnel, "echo", "/mcp").header("accept", "text/event-stream");
    let mut stream = get.header("mcp-session-id", &session).send().await.expect("stream");
    said(&mut stream, ": open").await;
    let call = legacy(&world, &tunnel, Some(&session), tool(5, "announce", json!({ "text": "heard" })));
    assert_eq!(send(call).await.status, 200);
    said(&mut stream, "heard").await;
    drop(stream);
    noted(&echo, "stream-closed").await;

    let delete = world.request(Method::DELETE, &tunnel, "echo", "/mcp").header("mcp-session-id", &session);
    assert_eq!(send(delete).await.status, 200);
    noted(&echo, "session-ended").await;
    // The server's own 404 for a session that is over is the caller's to see.
    let gone = send(legacy(&world, &tunnel, Some(&session), tool(6, "echo", json!({ "text": "x" })))).await;
    assert_eq!((gone.status, gone.header("sortie-hop")), (404, None));
}

#[tokio::test]
async fn a_caller_who_leaves_is_missed_in_both_eras() {
    let Serving { world, tunnel, gateway: _gateway, echo } = serving().await;
    let slow = json!({ "ms": 60_000 });
    let post = world.request(Method::POST, &tunnel, "echo", "/mcp");
    let mut modern = modern(post, &json!(1), "slow", &slow).send().await.expect("answer");
    said(&mut modern, ": open").await;
    drop(modern);
    noted(&echo, "cancelled").await;

    let session = session(&world, &tunnel).await;
    let mut left = legacy(&world, &tunnel, Some(&session), tool(7, "slow", slow.clone())).send().await.expect("answer");
    said(&mut left, ": open").await;
    drop(left);
    noted(&echo, "disconnected").await;

    let mut told = legacy(&world, &tunnel, Some(&session), tool(8, "slow", slow)).send().await.expect("answer");
    said(&mut told, ": open").await;
    let params = json!({ "requestId": 8, "reason": "enough" });
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": params });
    let cancel = send(legacy(&world, &tunnel, Some(&session), cancel)).await;
    assert_eq!((cancel.status, cancel.body.len()), (202, 0));
    let cancelled =
        || echo.events().iter().any(|event| event.event == "cancelled" && event.id == json!(8)).then_some(());
    eventually(MISSED, cancelled).await.expect("cancelled");
    let rest = tokio::time::timeout(SOON, told.bytes()).await.expect("the stream ends").expect("politely");
    assert!(!String::from_utf8_lossy(&rest).contains("result"));
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_answer_began_is_missed_too() {
    let silent = Upstream::silent().await;
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let mut gateway = world.gateway(&tunnel.dir, &routes(&[("up", &silent.url())]), &[]).await;
    let call = world.request(Method::GET, &tunnel, "up", "/").timeout(Duration::from_millis(300)).send().await;
    assert!(call.expect_err("no answer").is_timeout());
    assert_eq!(silent.seen().len(), 1);
    gateway.process.ready_output("caller left", MISSED).await.expect("missed");
}

#[tokio::test]
async fn headers_go_through_except_those_that_are_not_the_callers_to_send() {
    let (world, tunnel, _gateway, upstream) = behind("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "").await;
    let path = "/a%2Fb//c;d/%C3%A9?x=1&y=%20&x=2";
    let request = world
        .request(Method::POST, &tunnel, "up", path)
        .header("last-event-id", "41")
        .header("mcp-session-id", "s-1")
        .header("mcp-protocol-version", "2026-07-28")
        .header("mcp-param-region", "=?base64?eA==?=")
        .header("accept", "text/event-stream, application/json;q=0.5")
        .header("origin", "http://localhost:6274")
        .header("user-agent", "agent/1")
        .header("x-unknown", "one")
        .header("x-unknown", "two")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .header("authorization", "Bearer of-the-caller")
        .header("cookie", "a=b")
        .header("sortie-identity", "forged")
        .header("sortie-request-id", "req_forged")
        .header("sortie-probe", "1")
        .header("sortie-later", "x")
        .header("x-forwarded-for", "1.2.3.4")
        .header("forwarded", "for=1.2.3.4")
        .header("proxy-authorization", "Basic x")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "1")
        .body("x");
    let answer = send(request).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = upstream.only();
    assert_eq!(seen.head.lines().next(), Some(format!("POST {path} HTTP/1.1").as_str()));
    for (name, values) in [
        ("last-event-id", vec!["41"]),
        ("mcp-session-id", vec!["s-1"]),
        ("mcp-protocol-version", vec!["2026-07-28"]),
        ("mcp-param-region", vec!["=?base64?eA==?="]),
        ("accept", vec!["text/event-stream, application/json;q=0.5"]),
        ("origin", vec!["http://localhost:6274"]),
        ("user-agent", vec!["agent/1"]),
        ("x-unknown", vec!["one", "two"]),
        ("traceparent", vec!["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"]),
        ("host", vec![upstream.addr.to_string().as_str()]),
        ("content-length", vec!["1"]),
    ] {
        assert_eq!(seen.header(name), values, "{name}");
    }
    let never = [
        "authorization",
        "cookie",
        "x-api-key",
        "sortie-identity",
        "sortie-probe",
        "sortie-later",
        "forwarded",
        "x-forwarded-for",
        "proxy-authorization",
        "x-hop",
    ];
    for name in never {
        assert!(seen.header(name).is_empty(), "{name}: {}", seen.head);
    }
    // One id for a call, ours, in every process.
    let id = answer.header("sortie-request-id").expect("id");
    assert_eq!(seen.header("sortie-request-id"), [id]);
    assert!(!seen.head.contains("forged") && !seen.head.contains(&world.api_key), "{}", seen.head);
}

#[tokio::test]
async fn whichever_header_carried_the_key_ends_here() {
    let more = "authorization = \"forward\"";
    let (world, tunnel, _gateway, upstream) = behind("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", more).await;
    let url = world.url(&tunnel, "up", "/");
    let last = |seen: Vec<Seen>| seen.into_iter().next_back().expect("a request");
    let get = || world.http.get(&url);
    assert_eq!(send(get().bearer_auth(&world.api_key)).await.status, 200);
    assert!(!last(upstream.seen()).head.contains(&world.api_key));
    assert_eq!(send(get().header("x-api-key", &world.api_key).bearer_auth("theirs")).await.status, 200);
    let seen = last(upstream.seen());
    assert_eq!(seen.header("authorization"), ["Bearer theirs"], "this route forwards it");
    assert!(!seen.head.contains(&world.api_key), "{}", seen.head);
    // The key in both places, or twice in one, must not slip through in the second.
    for request in [
        get().header("x-api-key", &world.api_key).bearer_auth(&world.api_key),
        get().header("x-api-key", &world.api_key).header("x-api-key", &world.api_key),
    ] {
        let before = upstream.seen().len();
        let answer = send(request).await;
        let after = upstream.seen();
        assert!(after.len() == before || !last(after).head.contains(&world.api_key), "{}", answer.text());
    }
}

#[tokio::test]
async fn an_answer_on_the_apis_origin_can_do_nothing_there() {
    let said = "HTTP/1.1 200 OK\r\nset-cookie: a=b\r\nset-cookie: c=d\r\ncontent-type: text/html\r\n\
                content-security-policy: default-src *\r\nsortie-hop: policy\r\nsortie-x: y\r\nx-theirs: 1\r\n\
                www-authenticate: Basic\r\nservice-worker-allowed: /\r\nclear-site-data: \"*\"\r\n\
                strict-transport-security: max-age=9\r\nalt-svc: h3=\":1\"\r\ncontent-length: 4\r\n\r\n<b/>";
    let (world, tunnel, _gateway, _upstream) = behind(said, "").await;
    let answer = send(world.request(Method::GET, &tunnel, "up", "/")).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "<b/>"));
    assert_eq!(answer.headers.get_all("content-security-policy").iter().collect::<Vec<_>>(), ["sandbox"]);
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    let origin_wide = ["clear-site-data", "strict-transport-security", "alt-svc", "service-worker-allowed"];
    for name in ["set-cookie", "sortie-hop", "sortie-x"].into_iter().chain(origin_wide) {
        assert_eq!(answer.header(name), None, "{name}");
    }
    assert_eq!((answer.header("x-theirs"), answer.header("content-type")), (Some("1"), Some("text/html")));

    // Under a name of its own it may do as it likes, except to speak as we do.
    let host = format!("up.{}", tunnel.domain);
    let stream = tls_to(&world.edge_addr, &world.edge_ca, &host).await;
    let request = format!(
        "GET / HTTP/1.1\r\nhost: {host}\r\nx-api-key: {}\r\ncookie: e=f\r\nconnection: close\r\n\r\n",
        world.api_key
    );
    let answer = raw(stream, &request).await;
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(answer.header("content-security-policy"), Some("default-src *"));
    assert!(origin_wide.iter().all(|name| answer.header(name).is_some()));
    assert_eq!((answer.header("sortie-hop"), answer.header("sortie-x")), (None, None));
    let seen = _upstream.seen();
    assert_eq!(seen.last().expect("request").header("cookie"), ["e=f"]);
}

#[tokio::test]
async fn bodies_are_the_same_bytes_in_both_directions() {
    let odd = "{ \"jsonrpc\" : \"2.0\",\"id\":1,\"id\":1.0,\"method\":\"x\",\n\t\"p\":1e400,\"p\":\"\\ud800\u{7f}\"}  ";
    let said =
        format!("HTTP/1.1 418 Odd\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{odd}", odd.len());
    let (world, tunnel, _gateway, upstream) = behind(&said, "").await;
    let post = || world.request(Method::POST, &tunnel, "up", "/mcp").header("content-type", "application/json");
    // A request may be odd, but not ambiguous: a key twice is refused.
    let refused = send(post().body(odd)).await;
    assert_eq!((refused.status, refused.header("sortie-hop")), (400, Some("route")));
    let asked = odd.replacen("\"id\":1,", "", 1).replacen("\"p\"", "\"q\"", 1);
    let answer = send(post().body(asked.clone())).await;
    assert_eq!((answer.status, answer.text().as_str(), answer.header("sortie-hop")), (418, odd, None));
    let seen = upstream.only();
    assert_eq!(seen.body, asked.as_bytes());
    assert_eq!(seen.header("content-length"), [asked.len().to_string()]);
    for method in ["PUT", "PATCH", "OPTIONS", "PROPFIND", "HEAD"] {
        let method: Method = method.parse().expect("method");
        let answer = send(world.request(method.clone(), &tunnel, "up", "/")).await;
        assert_eq!(answer.status, 418, "{method}");
        let seen = upstream.seen();
        assert!(seen.last().expect("request").head.starts_with(method.as_str()), "{method}");
    }
}

#[tokio::test]
async fn a_tool_that_shows_its_headers_sees_none_of_ours_but_the_id() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let post = world.request(Method::POST, &tunnel, "echo", "/mcp").header("sortie-identity", "forged");
    let answer = send(modern(post, &json!(1), "headers", &json!({}))).await.json();
    let headers = text(&answer, "/result/content/0/text");
    let headers: serde_json::Map<String, serde_json::Value> = serde_json::from_str(headers).expect("headers");
    let ours: Vec<_> = headers.keys().filter(|name| name.starts_with("sortie-")).collect();
    assert_eq!(ours, ["sortie-request-id"]);
    assert!(!headers.contains_key("x-api-key"));
}
