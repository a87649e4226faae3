//! A caller who leaves is missed at the far end, however the caller's connection says so: by its end in HTTP/1.1, or by
//! the reset of one stream in HTTP/2, beside which all others go on.

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, Version};
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, eventually};

use crate::common::{SOON, Serving, modern, send, serving};

/// How soon the far end knows that a caller left.
const MISSED: Duration = Duration::from_secs(2);

/// A client, what it speaks, and the route's URL for it.
struct Way {
    http: Client,
    version: Version,
    url: String,
    key: String,
}

impl Way {
    fn post(&self) -> RequestBuilder {
        self.http.post(&self.url).header("x-api-key", &self.key)
    }

    /// A message of an older session.
    fn legacy(&self, session: Option<&str>, body: &Value) -> RequestBuilder {
        let post = self.post().header("content-type", "application/json");
        let post = post.header("accept", "application/json, text/event-stream").body(body.to_string());
        session.iter().fold(post, |post, session| post.header("mcp-session-id", *session))
    }
}

/// By path and by hostname, over both versions of HTTP; one connection each where HTTP allows it.
fn ways(serving: &Serving) -> Vec<Way> {
    let Serving { world, tunnel, .. } = serving;
    let (host, port) = (format!("echo.{}", tunnel.domain), world.edge_addr.rsplit(':').next().expect("port"));
    let roots = std::fs::read_to_string(&world.edge_ca).expect("CA");
    let by_name = |alpn: &[&[u8]]| {
        let tls = sortie_tls::client_config(&roots, false, sortie_tls::Versions::Legacy, alpn).expect("TLS");
        let builder = Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy();
        builder.resolve(&host, world.edge_addr.parse().expect("address")).build().expect("client")
    };
    let tls = (*sortie_tls::api_client_config(None, false).expect("TLS")).clone();
    let by_path = Client::builder().tls_backend_preconfigured(tls).no_proxy();
    let by_path = by_path.http2_prior_knowledge().build().expect("client");
    let (path, name) = (world.url(tunnel, "echo", "/mcp"), format!("https://{host}:{port}/mcp"));
    let way = |http, version, url: &str| Way { http, version, url: url.to_owned(), key: world.api_key.clone() };
    vec![
        way(world.http.clone(), Version::HTTP_11, &path),
        way(by_path, Version::HTTP_2, &path),
        way(by_name(&[b"http/1.1"]), Version::HTTP_11, &name),
        way(by_name(&[b"h2"]), Version::HTTP_2, &name),
    ]
}

fn slow(id: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": { "name": "slow", "arguments": { "ms": 60_000 } } })
}

/// Sends it, and waits until its stream has begun.
async fn begun(request: RequestBuilder, way: &Way) -> Response {
    let mut response = request.send().await.expect("an answer");
    assert_eq!((response.status().as_u16(), response.version()), (200, way.version));
    let first = tokio::time::timeout(SOON, response.chunk()).await.expect("in time").expect("a stream");
    assert!(first.is_some_and(|chunk| chunk.starts_with(b": open")));
    response
}

async fn noted(echo: &EchoServer, event: &str, id: &Value) {
    let found = || echo.events().iter().any(|one| one.event == event && one.id == *id).then_some(());
    assert!(eventually(MISSED, found).await.is_some(), "no `{event}` of {id}: {:?}", echo.events());
}

#[tokio::test]
async fn in_the_stateless_era_the_end_of_the_stream_cancels_that_call_and_no_other() {
    let serving = serving().await;
    for (number, way) in ways(&serving).into_iter().enumerate() {
        let (left, stays) = (json!(format!("left-{number}")), json!(format!("stays-{number}")));
        let arguments = json!({ "ms": 60_000 });
        let leaving = begun(modern(way.post(), &left, "slow", &arguments), &way).await;
        let staying = begun(modern(way.post(), &stays, "slow", &arguments), &way).await;
        drop(leaving);
        noted(&serving.echo, "cancelled", &left).await;
        let after = send(modern(way.post(), &json!(1), "echo", &json!({ "text": "still here" }))).await;
        assert!(after.text().contains("still here"), "{}", after.text());
        let ended = |event: &sortie_testkit::echo::Event| event.event == "cancelled" && event.id == stays;
        assert!(!serving.echo.events().iter().any(ended), "{:?}", serving.echo.events());
        drop(staying);
        noted(&serving.echo, "cancelled", &stays).await;
    }
}

#[tokio::test]
async fn in_a_session_a_notification_cancels_and_a_caller_who_leaves_ends_the_upstreams_request() {
    let serving = serving().await;
    for (number, way) in ways(&serving).into_iter().enumerate() {
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {},
                             "clientInfo": { "name": "t", "version": "1" } });
        let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let opened = send(way.legacy(None, &initialize)).await;
        let session = opened.header("mcp-session-id").expect("a session").to_owned();

        // Told: the notification is a request of its own, and has to reach the very same server.
        let told = format!("told-{number}");
        let running = begun(way.legacy(Some(&session), &slow(&told)), &way).await;
        let note = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled",
                           "params": { "requestId": told, "reason": "enough" } });
        let noticed = send(way.legacy(Some(&session), &note)).await;
        assert_eq!((noticed.status, noticed.body.len()), (202, 0), "{}", noticed.text());
        noted(&serving.echo, "cancelled", &json!(told)).await;
        let rest = tokio::time::timeout(SOON, running.text()).await.expect("the stream ends").expect("politely");
        assert!(!rest.contains("result"), "{rest}");

        // Left: not a cancel, but the server sees the end of the stream as it would without a tunnel.
        let left = format!("left-{number}");
        drop(begun(way.legacy(Some(&session), &slow(&left)), &way).await);
        noted(&serving.echo, "disconnected", &json!(left)).await;

        let get = way.http.get(&way.url).header("x-api-key", &way.key).header("accept", "text/event-stream");
        let before = serving.echo.events().iter().filter(|one| one.event == "stream-closed").count();
        drop(begun(get.header("mcp-session-id", &session), &way).await);
        let closed = || {
            let now = serving.echo.events().iter().filter(|one| one.event == "stream-closed").count();
            (now > before).then_some(())
        };
        assert!(eventually(MISSED, closed).await.is_some(), "{:?}", serving.echo.events());
    }
}
