//! Calls that come through, and how they end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use sortie_gateway::{CallBody, LocalUpstream};
use sortie_link::protos::Kind;
use sortie_runtime::TaskSet;
use sortie_tls::{Authority, ReloadingIdentity, SetupFile, Versions, server_config};

use crate::support::*;

#[tokio::test]
async fn a_call_comes_through_as_it_is() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |request| async {
        let body = request.into_body().collect().await.expect("body").to_bytes();
        Response::builder()
            .status(201)
            .header("mcp-session-id", "s-1")
            .header("sortie-hop", "identity")
            .header("x-late", "1")
            .body(full(body))
            .expect("response")
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let request = world
        .request("POST", "/mcp/%7Ex?a=1&a=2&b=%20")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("origin", "https://app.example")
        .header("mcp-method", "tools/call")
        .header("authorization", "Bearer secret")
        .header("sortie-request-id", "req_given")
        .header("x-forwarded-for", "1.2.3.4")
        .body(full(r#"{"jsonrpc":"2.0","method":"tools/call", "id": 1.50 }"#))
        .expect("request");
    let response = world.call(request).await;
    assert_eq!(response.status(), 201);
    assert_eq!(response.headers()["mcp-session-id"], "s-1");
    assert_eq!(response.headers()["x-late"], "1");
    assert!(!response.headers().contains_key("sortie-hop"));
    assert_eq!(text(response).await, r#"{"jsonrpc":"2.0","method":"tools/call", "id": 1.50 }"#);

    let seen = upstream.seen.lock().expect("lock").pop().expect("request");
    assert_eq!(seen.uri, "/mcp/%7Ex?a=1&a=2&b=%20");
    let headers = seen.headers;
    assert_eq!(headers["host"], upstream.addr.to_string());
    assert_eq!(headers["x-forwarded-host"], HOST);
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["origin"], "https://app.example");
    assert_eq!(headers["mcp-method"], "tools/call");
    assert_eq!(headers["sortie-request-id"], "req_given");
    assert_eq!(headers["content-length"], "52");
    for absent in ["authorization", "sortie-identity", "x-forwarded-for", "transfer-encoding"] {
        assert!(!headers.contains_key(absent), "{absent}");
    }
}

#[tokio::test]
async fn many_calls_share_a_connection_over_either_http_version() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let link = world.link().await;

    let stream = world.caller.tls(&link, Kind::Hub, HOST, b"http/1.1").await.expect("tls");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
    tasks.spawn("test-caller", async move { drop(connection.await) });
    for _ in 0..3 {
        sender.ready().await.expect("ready");
        let response = soon(sender.send_request(world.request("GET", "/").body(full("")).expect("request"))).await;
        assert_eq!(text(response.expect("response")).await, "ok");
    }

    let stream = world.caller.tls(&link, Kind::Hub, HOST, b"h2").await.expect("tls");
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.expect("http");
    tasks.spawn("test-caller", async move { drop(connection.await) });
    let calls = (0..20).map(|_| {
        let request = Request::builder()
            .uri(format!("https://{HOST}/x"))
            .header("sortie-identity", world.caller.token(HOST))
            .body(full(""))
            .expect("request");
        let mut sender = sender.clone();
        async move { text(sender.send_request(request).await.expect("response")).await }
    });
    assert_eq!(soon(futures_util::future::join_all(calls)).await, vec!["ok"; 20]);
    assert_eq!(upstream.count(), 23);
}

#[tokio::test]
async fn events_arrive_one_by_one_and_a_break_is_a_break() {
    let tasks = TaskSet::new();
    let (send, body) = piped();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::serve(&tasks, move |_| {
        let body = body.lock().expect("lock").take().expect("one call");
        async { Response::builder().header("content-type", "text/event-stream").body(body).expect("response") }
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let mut response = world.call(world.request("GET", "/mcp").body(full("")).expect("request")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    for event in ["id: 1\ndata:\n\n", ": keepalive\n\n", "data: {}\n\n"] {
        // The next event is sent only after this one has arrived.
        send.send(Ok(event)).await.expect("sent");
        let frame = soon(response.frame()).await.expect("frame").expect("data");
        assert_eq!(frame.into_data().expect("data"), event);
    }
    send.send(Err(std::io::Error::other("broken"))).await.expect("sent");
    assert!(soon(response.frame()).await.expect("an end that is told").is_err(), "not a clean end");
}

#[tokio::test]
async fn redirects_are_the_callers_business() {
    let tasks = TaskSet::new();
    let elsewhere = Upstream::ok(&tasks).await;
    let target = format!("http://{}/else", elsewhere.addr);
    let location = target.clone();
    let upstream = Upstream::serve(&tasks, move |_| {
        let response = Response::builder().status(307).header("location", &location).body(full(""));
        async { response.expect("response") }
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let response = world.call(world.request("POST", "/mcp").body(full("{}")).expect("request")).await;
    assert_eq!(
        (response.status().as_u16(), response.headers()["location"].to_str().expect("text")),
        (307, target.as_str())
    );
    assert_eq!((upstream.count(), elsewhere.count()), (1, 0));
}

#[tokio::test]
async fn a_caller_that_leaves_ends_the_call_at_the_upstream() {
    let tasks = TaskSet::new();
    let left = Arc::new(AtomicUsize::new(0));
    let gone = left.clone();
    let upstream = Upstream::serve(&tasks, move |request| {
        let gone = OnDrop(gone.clone());
        let waits = request.uri().path() == "/wait";
        async move {
            if waits {
                std::future::pending::<()>().await;
            }
            let frames = futures_util::stream::unfold((gone, true), |(gone, first)| async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Some((Ok(Frame::data(Bytes::from_static(b"first"))), (gone, false)))
            });
            Response::new(streamed(frames))
        }
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;

    let request = world.request("GET", "/wait").body(full("")).expect("request");
    let waiting = tokio::time::timeout(Duration::from_millis(300), world.try_call(request)).await;
    assert!(waiting.is_err(), "there is no answer");
    assert_eq!(upstream.count(), 1);
    // Dropping the sender ends its connection task, and with it the stream of the link.
    until(|| left.load(Ordering::SeqCst) == 1).await;

    let mut response = world.call(world.request("GET", "/stream").body(full("")).expect("request")).await;
    assert!(soon(response.frame()).await.expect("frame").is_ok());
    drop(response);
    until(|| left.load(Ordering::SeqCst) == 2).await;
}

struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_slow_reader_holds_back_its_own_upstream_only() {
    let tasks = TaskSet::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let upstream = Upstream::serve(&tasks, move |request| {
        let counter = counter.clone();
        let endless = request.uri().path() == "/endless";
        async move {
            if !endless {
                return Response::new(full("ok"));
            }
            let frames = futures_util::stream::repeat_with(move || {
                counter.fetch_add(16 * 1024, Ordering::SeqCst);
                Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))
            });
            Response::new(streamed(frames))
        }
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let response = world.call(world.request("GET", "/endless").body(full("")).expect("request")).await;
    let mut before = 0;
    soon(async {
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = sent.load(Ordering::SeqCst);
            if now == before {
                break;
            }
            before = now;
        }
    })
    .await;
    // Socket buffers of the kernel between gateway and upstream are most of it.
    assert!(before < 16 << 20, "{before} bytes were taken from the upstream for a reader that does not read");
    for _ in 0..5 {
        let other = world.call(world.request("GET", "/").body(full("")).expect("request")).await;
        assert_eq!(text(other).await, "ok");
    }
    drop(response);
}

struct Echo(AtomicBool);

impl LocalUpstream for Echo {
    fn call(&self, request: Request<CallBody>) -> BoxFuture<'static, Response<CallBody>> {
        self.0.store(true, Ordering::SeqCst);
        Box::pin(async {
            assert_eq!(request.uri(), "/mcp?x=1");
            Response::new(request.into_body())
        })
    }
}

#[tokio::test]
async fn a_built_in_upstream_is_called_in_process() {
    let tasks = TaskSet::new();
    let echo = Arc::new(Echo(AtomicBool::new(false)));
    let local: HashMap<String, Arc<dyn LocalUpstream>> =
        [("docs".to_owned(), echo.clone() as Arc<dyn LocalUpstream>)].into();
    let config = "[routes.docs]\nupstream = \"builtin:files\"\nroot = \".\"\n";
    let world = World::start_with(&tasks, config, local, |_| {}).await;
    let response = world.call(world.request("POST", "/mcp?x=1").body(full("hello")).expect("request")).await;
    assert_eq!(text(response).await, "hello");
    assert!(echo.0.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_drain_lets_running_calls_end() {
    let tasks = TaskSet::new();
    let (send, body) = piped();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::serve(&tasks, move |_| {
        let body = body.lock().expect("lock").take().expect("one call");
        async { Response::new(body) }
    })
    .await;
    let world = World::start(&tasks, &upstream.config()).await;
    let link = world.link().await;
    let mut response = world.call(world.request("GET", "/").body(full("")).expect("request")).await;
    send.send(Ok("one")).await.expect("sent");
    assert!(soon(response.frame()).await.is_some());

    let finish = async {
        soon(async {
            while !matches!(link.open(Kind::Hub, HOST).await, Err(sortie_link::OpenError::Ended)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        send.send(Ok("two")).await.expect("sent");
        drop(send);
        text(response).await
    };
    let (rest, ()) = soon(async { tokio::join!(finish, world.gateway.drain()) }).await;
    assert_eq!(rest, "two");
    assert!(!world.gateway.readiness().link.connected);
}

#[tokio::test]
async fn an_idle_gateway_drains_at_once_and_says_goodbye() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    soon(world.gateway.ready()).await;
    assert_eq!(text(world.call(world.request("GET", "/").body(full("")).expect("request")).await).await, "ok");
    let link = world.link().await;
    let drained = tokio::time::timeout(Duration::from_secs(2), world.gateway.drain());
    drained.await.expect("well before the shutdown timeout");
    soon(link.closed()).await;
}

#[tokio::test]
async fn https_upstreams_are_trusted_by_the_configured_ca_only() {
    let tasks = TaskSet::new();
    let (trusted, other) = (
        Authority::generate("Upstream CA", 30).expect("authority"),
        Authority::generate("Other CA", 30).expect("authority"),
    );
    let day = Duration::from_secs(86_400);
    let identity = trusted.issue_server(&["localhost".to_owned()], day).expect("certificate");
    let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
    let tls = server_config(Arc::new(identity), Versions::Legacy, &[b"http/1.1"], None).expect("config");
    let upstream = Upstream::serve_over(&tasks, Some(tls), |_| async { Response::new(full("ok")) }).await;
    let config =
        upstream.config().replace("http://127.0.0.1", "https://localhost") + "[upstream.tls]\nca_file = \"up.pem\"\n";
    for (ca, status) in [(trusted, 200), (other, 502)] {
        let world = World::start_with(&tasks, &config, HashMap::new(), |dir| {
            let file = dir.path(SetupFile::TunnelId).with_file_name("up.pem");
            std::fs::write(file, ca.cert_pem()).expect("write");
        })
        .await;
        let response = world.call(world.request("GET", "/").body(full("")).expect("request")).await;
        assert_eq!(response.status(), status);
        if status == 502 {
            assert_eq!(response.headers()["sortie-hop"], "upstream-connect");
        }
    }
}
