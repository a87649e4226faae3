//! Requests that say they are MCP, and are or are not.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sortie_link::protos::Kind;
use sortie_runtime::TaskSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::*;

/// A body with its trailers.
type Whole = (Bytes, Option<HeaderMap>);

/// An upstream that remembers the bodies it got.
struct Bodies(Arc<Mutex<Vec<Whole>>>);

impl Bodies {
    async fn serve(tasks: &TaskSet) -> (Self, Upstream) {
        let bodies: Arc<Mutex<Vec<_>>> = Arc::default();
        let seen = bodies.clone();
        let upstream = Upstream::serve(tasks, move |request| {
            let seen = seen.clone();
            async move {
                let Ok(body) = request.into_body().collect().await else { return Response::new(full("broken")) };
                let trailers = body.trailers().cloned();
                seen.lock().expect("lock").push((body.to_bytes(), trailers));
                Response::new(full("done"))
            }
        })
        .await;
        (Self(bodies), upstream)
    }

    fn take(&self) -> Vec<(Bytes, Option<HeaderMap>)> {
        std::mem::take(&mut self.0.lock().expect("lock"))
    }
}

fn with(upstream: &Upstream, protocol: &str) -> String {
    upstream.config().replace("[upstream]", &format!("protocol = \"{protocol}\"\n[upstream]"))
}

async fn post(world: &World, headers: &[(&'static str, &str)], body: impl Into<Bytes>) -> (u16, String, Value) {
    let mut request = world.request("POST", "/mcp");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = world.call(request.body(full(body)).expect("request")).await;
    if response.headers().contains_key("sortie-hop") {
        return refusal(response).await;
    }
    (response.status().as_u16(), String::new(), Value::String(text(response).await))
}

const JSON: (&str, &str) = ("content-type", "application/json");
const PING: &str = r#"{"jsonrpc":"2.0","id":7,"method":"ping"}"#;

#[tokio::test]
async fn a_route_of_mcp_takes_messages_and_nothing_else() {
    let tasks = TaskSet::new();
    let (bodies, upstream) = Bodies::serve(&tasks).await;
    let world = World::start(&tasks, &with(&upstream, "mcp")).await;

    let utf16: Vec<u8> = PING.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (headers, body, status, code, id) in [
        (vec![JSON], b"{\"jsonrpc\":\"2.0\",".to_vec(), 400, -32700, json!(null)),
        (vec![JSON], b"".to_vec(), 400, -32700, json!(null)),
        (vec![JSON], br#"{"jsonrpc":"2.0","id":"a","method":"x","method":"y"}"#.to_vec(), 400, -32600, json!("a")),
        (vec![JSON], br#"{"jsonrpc":"2.0","id":5,"Method":"x"}"#.to_vec(), 400, -32600, json!(5)),
        (vec![JSON], br#"{"hello":"world"}"#.to_vec(), 400, -32600, json!(null)),
        (vec![JSON], format!("{PING} {PING}").into_bytes(), 400, -32700, json!(7)),
        (vec![JSON], b"[]".to_vec(), 400, -32600, json!(null)),
        (vec![JSON], format!("[{}]", vec!["{}"; 400].join(",")).into_bytes(), 413, 0, json!(null)),
        (vec![JSON, ("mcp-protocol-version", "2025-06-18")], format!("[{PING}]").into(), 400, -32600, json!(null)),
        (vec![JSON], utf16, 400, -32700, json!(null)),
        (vec![], PING.into(), 415, 0, json!(null)),
        (vec![("content-type", "text/plain")], PING.into(), 415, 0, json!(null)),
        (vec![("content-type", "application/json; charset=utf-16")], PING.into(), 415, 0, json!(null)),
        (vec![JSON, ("content-type", "text/plain")], PING.into(), 415, 0, json!(null)),
        (vec![JSON, ("content-encoding", "gzip")], PING.into(), 415, 0, json!(null)),
    ] {
        let shown = format!("{headers:?} {}", String::from_utf8_lossy(&body));
        let large = status == 413;
        let body = if large { Bytes::from([&body[..], &[b' '; 1000]].concat()) } else { Bytes::from(body) };
        let (got, hop, said) = post(&world, &headers, body).await;
        assert_eq!((got, hop.as_str()), (status, "route"), "{shown}: {said}");
        if code != 0 {
            assert_eq!((&said["error"]["code"], &said["id"]), (&json!(code), &id), "{shown}");
            assert_eq!(said["jsonrpc"], "2.0");
            assert_eq!(said["error"]["data"]["hop"], "route");
        } else if !large {
            assert!(said["error"]["details"]["reason"].is_string() || said["id"] == 7, "{shown}: {said}");
        }
    }
    let request = world.request("PUT", "/mcp").body(full(PING)).expect("request");
    assert_eq!(refusal(world.call(request).await).await.0, 405);
    assert_eq!((upstream.count(), bodies.take().len()), (0, 0));

    for body in [
        PING.to_owned(),
        format!(" [ {PING},{} ]\n", r#"{"jsonrpc":"2.0","id":7,"result":{}}"#),
        r#"{"id":1.50, "jsonrpc":"2\u002e0","method":"tools/call","params":{"arguments":{"x":[1e400]},"later":{}}}"#
            .into(),
    ] {
        let utf8 = ("content-type", "application/json; charset=UTF-8");
        let headers = [utf8, ("content-encoding", "identity"), ("mcp-param-x", "1"), ("mcp-method", "odd")];
        assert_eq!(post(&world, &headers, body.clone()).await.0, 200, "{body}");
        assert_eq!(bodies.take(), [(Bytes::from(body), None)], "not a byte is changed");
    }
    for method in ["GET", "DELETE", "OPTIONS"] {
        let request = world.request(method, "/mcp").body(full("")).expect("request");
        assert_eq!(world.call(request).await.status(), 200, "{method}");
    }
}

#[tokio::test]
async fn by_default_what_speaks_json_rpc_is_held_to_the_rules_and_the_rest_is_not() {
    let tasks = TaskSet::new();
    let (bodies, upstream) = Bodies::serve(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let version = ("mcp-protocol-version", "2025-11-25");
    for (headers, body, status) in [
        (vec![JSON], r#"{"JsonRPC":"2.0","id":1,"method":"x"}"#, 400),
        (vec![JSON], r#"{"a":1,"a":2,"\u006asonrpc":"2.0","id":1,"method":"x"}"#, 400),
        (vec![JSON], r#"[{"jsonrpc":"2.0","id":1}]"#, 400),
        (vec![JSON], r#"{"jsonrpc":"2.0""#, 400),
        (vec![JSON, version], r#"{"a":1}"#, 400),
        (vec![JSON, version], r#"["#, 400),
        (vec![JSON, version], &format!("[{PING}]"), 400),
        (vec![JSON, version, ("content-encoding", "gzip")], "x", 415),
        (vec![("content-type", "application/json;charset=utf-7")], PING, 415),
    ] {
        let (got, hop, said) = post(&world, &headers, body.to_owned()).await;
        assert_eq!((got, hop.as_str()), (status, "route"), "{headers:?} {body}: {said}");
    }
    assert_eq!(upstream.count(), 0);
    for (headers, body) in [
        (vec![JSON], r#"{"a":1,"a":2,"A":3}"#),
        (vec![JSON], r#"{"page":{"jsonrpc":"2.0"}}"#),
        (vec![JSON], "{"),
        (vec![JSON], ""),
        (vec![JSON, ("content-encoding", "gzip")], "\u{1f}\u{8b}"),
        (vec![("content-type", "application/json; charset=utf-16")], "{}"),
        (vec![("content-type", "text/plain")], "{\"jsonrpc\""),
        (vec![version], "x"),
        (vec![JSON, version], PING),
        (vec![JSON], "[{\"jsonrpc\":\"2.0\",\"method\":\"x\"}]"),
    ] {
        let (got, _, said) = post(&world, &headers, body.to_owned()).await;
        assert_eq!(got, 200, "{headers:?} {body}: {said}");
        assert_eq!(bodies.take()[0].0, body);
    }
    let request = world.request("PUT", "/x").header("content-type", "application/json").body(full("{\"jsonrpc\""));
    assert_eq!(world.call(request.expect("request")).await.status(), 200);

    let world = World::start(&tasks, &with(&upstream, "http")).await;
    let (got, ..) = post(&world, &[JSON, version], r#"{"jsonrpc":"2.0","jsonrpc":1"#).await;
    assert_eq!(got, 200);
}

#[tokio::test]
async fn the_modern_era_repeats_its_body_in_its_head() {
    let tasks = TaskSet::new();
    let (_, upstream) = Bodies::serve(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let body = |version: &str| {
        let meta = json!({"io.modelcontextprotocol/protocolVersion": version});
        json!({"jsonrpc": "2.0", "id": "q", "method": "tools/call", "params": {"name": "a\u{e9}", "_meta": meta}})
            .to_string()
    };
    let head =
        |version, method, name| [JSON, ("mcp-protocol-version", version), ("mcp-method", method), ("mcp-name", name)];
    let name = "=?base64?YcOp?=";
    for headers in [
        head("2026-07-28", "tools/list", name).to_vec(),
        head("2026-07-28", "tools/call", "a").to_vec(),
        head("2025-11-25", "tools/call", name).to_vec(),
        head("2026-07-28", "tools/call", name)[..3].to_vec(),
        vec![JSON],
        [&head("2026-07-28", "tools/call", name)[..], &[("mcp-method", "tools/call")]].concat(),
    ] {
        let (status, hop, said) = post(&world, &headers, body("2026-07-28")).await;
        assert_eq!((status, hop.as_str()), (400, "route"), "{headers:?}");
        assert_eq!((&said["error"]["code"], &said["id"]), (&json!(-32020), &json!("q")), "{headers:?}");
    }
    assert_eq!(upstream.count(), 0);
    for version in ["2026-07-28", "2099-01-01"] {
        assert_eq!(post(&world, &head(version, "tools/call", name), body(version)).await.0, 200, "{version}");
    }
}

#[tokio::test]
async fn a_message_too_large_is_answered_with_its_id_where_that_came_early() {
    let tasks = TaskSet::new();
    let (_, upstream) = Bodies::serve(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let large = format!(r#"{{"jsonrpc":"2.0","id":"early","method":"x","params":{{"x":"{}"}}}}"#, "x".repeat(1500));
    let (status, hop, said) = post(&world, &[JSON], large.clone()).await;
    assert_eq!((status, hop.as_str(), &said["id"]), (413, "route", &json!("early")), "announced");

    let pieces = [large[..900].to_owned(), large[900..].to_owned()].map(|piece| Ok(Frame::data(Bytes::from(piece))));
    let request = world.request("POST", "/mcp").header(JSON.0, JSON.1);
    let request = request.body(streamed(futures_util::stream::iter(pieces))).expect("request");
    let (status, hop, said) = refusal(world.call(request).await).await;
    assert_eq!((status, hop.as_str(), &said["id"]), (413, "route", &json!("early")), "in pieces");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_message_in_pieces_with_trailers_arrives_as_it_was_sent() {
    let tasks = TaskSet::new();
    let (bodies, upstream) = Bodies::serve(&tasks).await;
    let world = World::start(&tasks, &with(&upstream, "mcp")).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("value"));
    trailers.insert("sortie-x", "1".parse().expect("value"));
    let frames = [Frame::data(Bytes::from_static(&PING.as_bytes()[..9])), Frame::data(PING[9..].into())];
    let frames = frames.into_iter().chain([Frame::trailers(trailers)]).map(Ok);
    let request = world.request("POST", "/mcp").header(JSON.0, JSON.1).header("trailer", "x-sum");
    let request = request.body(streamed(futures_util::stream::iter(frames))).expect("request");
    assert_eq!(world.call(request).await.status(), 200);
    let (body, trailers) = bodies.take().pop().expect("a body");
    assert_eq!(body, PING);
    let trailers = trailers.expect("trailers");
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &http::HeaderValue::from_static("1")));
}

#[tokio::test]
async fn a_caller_that_asks_first_is_told_to_go_on() {
    let tasks = TaskSet::new();
    let (bodies, upstream) = Bodies::serve(&tasks).await;
    let world = World::start(&tasks, &with(&upstream, "mcp")).await;
    let link = world.link().await;
    let mut stream = world.caller.tls(&link, Kind::Hub, HOST, b"http/1.1").await.expect("tls");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {HOST}\r\nsortie-identity: {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nexpect: 100-continue\r\n\r\n",
        world.caller.token(HOST),
        PING.len()
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut said = [0; 12];
    soon(stream.read_exact(&mut said)).await.expect("read");
    assert_eq!(&said, b"HTTP/1.1 100");
    assert_eq!(upstream.count(), 0, "nothing went on before it was judged");
    stream.write_all(PING.as_bytes()).await.expect("written");
    let mut rest = Vec::new();
    soon(async {
        while !rest.ends_with(b"done") {
            assert!(stream.read_buf(&mut rest).await.expect("read") > 0);
        }
    })
    .await;
    assert!(String::from_utf8_lossy(&rest).contains("HTTP/1.1 200"));
    assert_eq!(bodies.take()[0].0, PING);
}
