//! Connections to upstreams: kept for the next call, closed when nobody uses them, and moved also while nobody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sortie_runtime::TaskSet;
use tokio::net::TcpListener;

use crate::support::*;

#[tokio::test]
async fn a_connection_serves_call_after_call_and_is_closed_when_there_are_none() {
    let tasks = TaskSet::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let (opened, closed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, opened_here, closed_here) = (tasks.clone(), opened.clone(), closed.clone());
    tasks.spawn("test-upstream", async move {
        while let Ok((stream, _)) = listener.accept().await {
            opened_here.fetch_add(1, Ordering::Relaxed);
            let closed = closed_here.clone();
            inside.spawn("test-upstream-connection", async move {
                let service = service_fn(async |request: Request<Incoming>| {
                    let whole = request.into_body().collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(Response::new(full(whole)))
                });
                drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                closed.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    let world = World::start(&tasks, &config(&addr.to_string())).await;
    for number in 0..5 {
        let request = world.request("PUT", "/x").body(full(number.to_string())).expect("request");
        assert_eq!(text(world.call(request).await).await, number.to_string());
    }
    // Without a body, and with only a head for an answer.
    let request = world.request("HEAD", "/x").body(full("")).expect("request");
    assert_eq!(world.call(request).await.status(), 200);
    assert_eq!((opened.load(Ordering::Relaxed), closed.load(Ordering::Relaxed)), (1, 0));
    until(|| closed.load(Ordering::Relaxed) == 1).await;
    let request = world.request("PUT", "/x").body(full("again")).expect("request");
    assert_eq!(text(world.call(request).await).await, "again");
    assert_eq!(opened.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn an_upload_goes_on_while_nobody_reads_the_early_answer() {
    const PIECE: Bytes = Bytes::from_static(&[b'x'; 64 * 1024]);
    const PIECES: usize = 200;
    let tasks = TaskSet::new();
    let (arrived, reading) = (Arc::new(AtomicUsize::new(0)), tasks.clone());
    let arrived_here = arrived.clone();
    let upstream = Upstream::serve(&tasks, move |request| {
        let arrived = arrived_here.clone();
        reading.spawn("test-upstream-reading", async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                arrived.fetch_add(frame.data_ref().map_or(0, Bytes::len), Ordering::Relaxed);
            }
        });
        let endless = futures_util::stream::repeat_with(|| Ok(Frame::data(PIECE)));
        async { Response::new(streamed(endless)) }
    })
    .await;
    let world =
        World::start(&tasks, &upstream.config().replace("max_request_body = 1000", "max_request_body = 20000000"))
            .await;
    let upload = futures_util::stream::repeat_with(|| Ok(Frame::data(PIECE))).take(PIECES);
    let request = world.request("PUT", "/x").body(streamed(upload)).expect("request");
    let unread = world.call(request).await;
    assert_eq!(unread.status(), 200);
    until(|| arrived.load(Ordering::Relaxed) == PIECES * PIECE.len()).await;
    drop(unread);
}
