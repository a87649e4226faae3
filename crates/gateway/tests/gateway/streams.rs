//! Event streams: kept alive while they are quiet, ended where they are silent for too long, and the legacy transport's
//! first event.

use http::Response;
use http_body_util::BodyExt as _;
use sortie_runtime::TaskSet;

use crate::support::*;

/// An upstream whose one answer is an event stream that the test feeds.
async fn streaming(tasks: &TaskSet) -> (tokio::sync::mpsc::Sender<std::io::Result<&'static str>>, Upstream) {
    let (send, body) = piped();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::serve(tasks, move |_| {
        let body = body.lock().expect("lock").take().expect("one call");
        async { Response::builder().header("content-type", "text/event-stream").body(body).expect("response") }
    })
    .await;
    (send, upstream)
}

async fn next(response: &mut Response<hyper::body::Incoming>) -> String {
    let frame = soon(response.frame()).await.expect("frame").expect("data").into_data().expect("data");
    String::from_utf8(frame.to_vec()).expect("text")
}

#[tokio::test]
async fn a_quiet_stream_is_kept_alive_until_the_upstream_is_silent_for_too_long() {
    let tasks = TaskSet::new();
    let (send, upstream) = streaming(&tasks).await;
    let settings = "keepalive = \"1s\"\nidle_timeout = \"2500ms\"\n[upstream]";
    let world = World::start(&tasks, &upstream.config().replace("[upstream]", settings)).await;
    let mut response = world.call(world.request("POST", "/mcp").body(full("{}")).expect("request")).await;
    assert_eq!(next(&mut response).await, ": keepalive\n\n", "before the first event");
    send.send(Ok("data: 1\n\n")).await.expect("sent");
    assert_eq!(next(&mut response).await, "data: 1\n\n");
    assert_eq!(next(&mut response).await, ": keepalive\n\n");
    send.send(Ok("data: 2\n")).await.expect("sent");
    assert_eq!(next(&mut response).await, "data: 2\n");
    let broken = soon(response.frame()).await.expect("an end that is told");
    assert!(broken.is_err(), "a broken stream never looks complete: {broken:?}");
    soon(send.closed()).await;
}

#[tokio::test]
async fn the_endpoint_of_the_legacy_transport_is_a_public_one() {
    let tasks = TaskSet::new();
    for (prefix, path) in
        [(None, "/message?sessionId=1"), (Some("/t/abcd1234/docs"), "/t/abcd1234/docs/message?sessionId=1")]
    {
        let (send, upstream) = streaming(&tasks).await;
        let world = World::start(&tasks, &upstream.config()).await;
        let request = world.request("GET", "/sse").header("accept", "text/event-stream");
        let request = prefix.into_iter().fold(request, |request, prefix| request.header("sortie-path-prefix", prefix));
        let mut response = world.call(request.body(full("")).expect("request")).await;
        let own = format!("event: endpoint\ndata: http://{}/message?sessionId=1\n\n", upstream.addr);
        send.send(Ok(own.leak())).await.expect("sent");
        assert_eq!(next(&mut response).await, format!("event: endpoint\ndata: {path}\n\n"));
        send.send(Ok("event: endpoint\ndata: /other\n\n")).await.expect("sent");
        assert_eq!(next(&mut response).await, "event: endpoint\ndata: /other\n\n", "only the first");
        let seen = upstream.seen.lock().expect("lock")[0].headers.clone();
        assert!(!seen.contains_key("sortie-path-prefix"), "it is between hub and gateway");
    }
}
