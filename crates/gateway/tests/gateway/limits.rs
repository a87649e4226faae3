//! Limits, seen from callers.

use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use sortie_runtime::TaskSet;

use crate::support::*;

async fn limited(tasks: &TaskSet, upstream: &Upstream, limits: &str) -> World {
    World::start(tasks, &format!("{}{limits}", upstream.config())).await
}

fn call(tool: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": {}}})
}

/// A call of this caller, in a session of this name.
async fn post(world: &World, sub: &str, session: &str, body: &Value) -> Response<Incoming> {
    let token = world.caller.hub.sign(&world.caller.claims(HOST, sub));
    let request = http::Request::builder().method("POST").uri("/mcp").header("host", HOST);
    let request = request.header("sortie-identity", token).header("content-type", "application/json");
    let request = request.header("mcp-session-id", session);
    world.call(request.body(full(body.to_string())).expect("request")).await
}

#[tokio::test]
async fn a_rate_is_the_callers_in_whatever_way_it_calls() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = limited(&tasks, &upstream, "[[limits]]\ntools = [\"search\"]\nrate = \"3/h\"\n").await;
    assert_eq!(post(&world, "key:a", "s1", &json!([call("search"), call("other")])).await.status(), 200);
    assert_eq!(post(&world, "key:a", "s2", &call("SEARCH")).await.status(), 200);
    assert_eq!(post(&world, "key:a", "s3", &json!([call("search"), call("search")])).await.status(), 429);
    assert_eq!(post(&world, "key:a", "s3", &call("Search")).await.status(), 200);
    let refused = post(&world, "key:a", "s4", &call("search")).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (429, &"1200".parse().expect("value")));
    let (_, hop, body) = refusal(refused).await;
    assert_eq!((hop.as_str(), &body["id"]), ("policy", &json!(7)));
    assert_eq!(post(&world, "key:a", "s4", &call("other")).await.status(), 200);
    assert_eq!(post(&world, "key:b", "s5", &call("search")).await.status(), 200);
}

#[tokio::test]
async fn a_place_is_held_until_the_answer_has_ended() {
    let tasks = TaskSet::new();
    let (send, body) = piped();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::serve(&tasks, move |_| {
        let body = body.lock().expect("lock").take().unwrap_or_else(|| full("ok"));
        async { Response::builder().header("content-type", "text/event-stream").body(body).expect("response") }
    })
    .await;
    let world = limited(&tasks, &upstream, "[[limits]]\nconcurrency = 1\n").await;
    let stream = post(&world, "key:a", "s1", &call("x")).await;
    assert_eq!(stream.status(), 200);
    assert_eq!(post(&world, "key:a", "s2", &call("x")).await.status(), 429);
    assert_eq!(post(&world, "key:b", "s3", &call("x")).await.status(), 200);
    drop(send);
    assert_eq!(text(stream).await, "");
    soon(async { while post(&world, "key:a", "s1", &call("x")).await.status() != 200 {} }).await;
}

#[tokio::test]
async fn sizes_and_times_are_bounded_both_ways() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |request: http::Request<Incoming>| async move {
        let told = request.headers().get("x-told").is_some();
        let path = request.uri().path().to_owned();
        drop(request.into_body().collect().await);
        match path.as_str() {
            "/large" if told => Response::new(full("x".repeat(100))),
            "/large" => Response::new(streamed(futures_util::stream::iter(
                (0..10).map(|_| Ok(http_body::Frame::data(bytes::Bytes::from_static(b"xxxxxxxxxx")))),
            ))),
            "/slow" => std::future::pending().await,
            "/stream" => Response::new(streamed(futures_util::stream::pending())),
            _ => Response::new(full("ok")),
        }
    })
    .await;
    let limits = "[[limits]]\nmax_request_body = 20\n[[limits]]\nmax_response_body = 50\ntime = \"500ms\"\n";
    let world = limited(&tasks, &upstream, limits).await;
    let ask = async |path: &str, header: &str, body: &str| {
        let request = world.request("POST", path).header(header, "1").header("content-type", "text/plain");
        world.call(request.body(full(body.to_owned())).expect("request")).await
    };
    assert_eq!(ask("/", "x", &"y".repeat(20)).await.status(), 200);
    assert_eq!(refusal(ask("/", "x", &"y".repeat(21)).await).await.0, 413);
    let (status, hop, _) = refusal(ask("/large", "x-told", "").await).await;
    assert_eq!((status, hop.as_str()), (502, "policy"));
    let cut = ask("/large", "x", "").await;
    assert_eq!(cut.status(), 200);
    assert!(soon(cut.into_body().collect()).await.is_err(), "a cut answer never looks complete");
    let (status, hop, _) = refusal(ask("/slow", "x", "").await).await;
    assert_eq!((status, hop.as_str()), (504, "policy"));
    let cut = ask("/stream", "x", "").await;
    assert!(soon(cut.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn policies_count_what_went_on() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let policy = r#"permit (principal, action, resource) when { context.counts.hour < 2 };"#;
    std::fs::write(dir.path().join("policy.cedar"), policy).expect("write");
    let policy = format!("policy = \"enforce\"\npolicy_file = \"{}/policy.cedar\"\n", dir.path().display());
    let world = World::start(&tasks, &format!("{policy}{}", upstream.config())).await;
    for expected in [200, 200, 403, 403] {
        assert_eq!(post(&world, "key:a", "s", &call("search")).await.status(), expected);
    }
    assert_eq!(post(&world, "key:a", "s", &call("other")).await.status(), 200);
    assert_eq!(post(&world, "key:b", "t", &call("search")).await.status(), 200);
    // In one batch, too.
    assert_eq!(post(&world, "key:c", "u", &json!([call("a"), call("a"), call("a")])).await.status(), 403);
    assert_eq!(post(&world, "key:c", "u", &json!([call("a"), call("a")])).await.status(), 200);
}
