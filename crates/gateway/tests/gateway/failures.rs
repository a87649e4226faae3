//! Calls that do not come through, and what their callers are told.

use std::time::Duration;

use http::Response;
use http_body_util::BodyExt as _;
use sortie_runtime::TaskSet;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::support::*;

fn rpc(world: &World) -> http::Request<TestBody> {
    let request = world.request("POST", "/mcp").header("content-type", "application/json; charset=utf-8");
    request.body(full(r#"{"jsonrpc":"2.0","id":"a-7","method":"tools/call"}"#)).expect("request")
}

#[tokio::test]
async fn a_host_without_a_route_is_said_to_be_one() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    for host in ["wiki.abcd1234.sortie.localhost", "docs.other.sortie.localhost", "example.com", DOMAIN] {
        let request = http::Request::builder()
            .uri("/mcp")
            .header("host", host)
            .header("sortie-identity", world.caller.token(host))
            .body(full(""))
            .expect("request");
        let (status, hop, body) = refusal(world.call(request).await).await;
        assert_eq!((status, hop.as_str()), (502, "route"), "{host}");
        assert_eq!(body["error"]["message"], "No route configured for host");
    }
    // Upper case, a port and a trailing dot name the same host.
    for host in ["DOCS.abcd1234.sortie.localhost", "docs.abcd1234.sortie.localhost.:443"] {
        let request = http::Request::builder()
            .uri("/mcp")
            .header("host", host)
            .header("sortie-identity", world.caller.token(HOST))
            .body(full(""))
            .expect("request");
        assert_eq!(world.call(request).await.status(), 200, "{host}");
    }
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_told_in_the_callers_own_form() {
    let tasks = TaskSet::new();
    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    let world = World::start(&tasks, &config(&free.to_string())).await;
    let (status, hop, body) = refusal(world.call(rpc(&world)).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"));
    assert_eq!(body["id"], "a-7");
    assert_eq!(body["error"]["data"]["hop"], "upstream-connect");
    assert_eq!(body["error"]["data"]["reason"], "the upstream of route `docs`: it refused the connection");
    assert!(!body.to_string().contains(&free.port().to_string()), "{body}");

    let (_, _, body) = refusal(world.call(world.request("GET", "/").body(full("")).expect("request")).await).await;
    assert_eq!(body["error"]["details"]["hop"], "upstream-connect");
}

#[tokio::test]
async fn a_forbidden_address_is_not_dialled() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let config = upstream.config().replace("allowed_ips = [\"127.0.0.0/8\"]", "allowed_ips = [\"0.0.0.0/0\"]");
    let world = World::start(&tasks, &config).await;
    let (status, hop, body) = refusal(world.call(rpc(&world)).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"));
    assert!(!body.to_string().contains("127.0.0.1"), "{body}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_call_that_may_have_run_is_never_sent_again() {
    let tasks = TaskSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let (counted, mut count) = tokio::sync::mpsc::unbounded_channel();
    tasks.spawn("test-upstream", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.unwrap_or(0);
            let _ = counted.send(read);
            // And hangs up without an answer.
        }
    });
    let world = World::start(&tasks, &config(&addr.to_string())).await;
    let (status, hop, body) = refusal(world.call(rpc(&world)).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream"));
    assert_eq!(body["id"], "a-7", "the id is known although the body was sent");
    assert!(count.recv().await.expect("one") > 0);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(count.try_recv().is_err(), "one connection only");
}

#[tokio::test]
async fn a_request_too_large_is_refused_with_and_without_a_length() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |request| async {
        let whole = request.into_body().collect().await;
        Response::new(full(if whole.is_ok() { "whole" } else { "broken" }))
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let request = world.request("POST", "/mcp").body(full(vec![b'x'; 1001])).expect("request");
    let (status, hop, _) = refusal(world.call(request).await).await;
    assert_eq!((status, hop.as_str()), (413, "route"));
    assert_eq!(upstream.count(), 0);

    let (send, body) = piped();
    let feeding = async {
        for _ in 0..11 {
            if send.send(Ok(&LONG[..100])).await.is_err() {
                break;
            }
        }
        drop(send);
    };
    let request = world.request("POST", "/mcp").body(body).expect("request");
    let (response, ()) = tokio::join!(world.call(request), feeding);
    let (status, hop, _) = refusal(response).await;
    assert_eq!((status, hop.as_str()), (413, "route"));

    let request = world.request("POST", "/mcp").body(full(vec![b'x'; 1000])).expect("request");
    assert_eq!(text(world.call(request).await).await, "whole");
}

const LONG: &str =
    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

#[tokio::test]
async fn a_deadline_is_kept_where_the_route_has_one() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |_| async { std::future::pending().await }).await;
    let config = upstream.config().replace("[upstream]", "deadline = \"200ms\"\n[upstream]");
    let world = World::start(&tasks, &config).await;
    let (status, hop, body) = refusal(world.call(rpc(&world)).await).await;
    assert_eq!((status, hop.as_str()), (504, "upstream"));
    assert_eq!(body["id"], "a-7");
}

#[tokio::test]
async fn heads_are_bounded() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    for size in [66, 80, 500] {
        let request = world.request("GET", "/").header("x-large", "x".repeat(size * 1024));
        let answer = soon(world.try_call(request.body(full("")).expect("request"))).await;
        // A head far too large may end the connection before its answer is read.
        assert!(answer.is_err() || answer.is_ok_and(|response| response.status() == 431), "{size}");
    }
    let request = world.request("GET", "/").header("x-large", "x".repeat(30 * 1024)).body(full("")).expect("request");
    assert_eq!(world.call(request).await.status(), 200);
    assert_eq!(upstream.count(), 1);
}
