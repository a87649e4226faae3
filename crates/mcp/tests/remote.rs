//! The client that goes on using a server, against servers of all eras and against those that do not keep to them.

#![allow(clippy::indexing_slicing, reason = "a missing part of a message is a failure")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use serde_json::{Map, Value, json};
use sortie_conformance_server::ConformanceServer;
use sortie_mcp::remote::{Answer, Carrier, Failure, MAX_ANSWER, Remote, RemoteTool};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use common::{Body, Listener, answer, connector};

const SOON: Duration = Duration::from_secs(20);

/// Straight to the server. It counts what was sent, and can hide the stateless era.
struct Direct {
    http: reqwest::Client,
    legacy: bool,
    behind: Mutex<JoinSet<()>>,
}

fn carrier(legacy: bool) -> Arc<dyn Carrier> {
    let tls = sortie_tls::api_client_config(None, false).expect("TLS");
    let http = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy();
    let http = http.redirect(reqwest::redirect::Policy::none()).retry(reqwest::retry::never()).build().expect("client");
    Arc::new(Direct { http, legacy, behind: Mutex::default() })
}

impl Carrier for Direct {
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Answer>, Failure>> {
        Box::pin(async move {
            if self.legacy && request.headers().get("mcp-method").is_some_and(|method| method == "server/discover") {
                let body = futures_util::stream::empty().boxed();
                return Ok(Response::builder().status(400).body(body).expect("an answer"));
            }
            let request = reqwest::Request::try_from(request).expect("a request");
            let answer = self.http.execute(request).await.map_err(|error| match error.is_connect() {
                true => Failure::Unreachable(error.to_string()),
                false => Failure::Broken,
            })?;
            let answer: Response<reqwest::Body> = answer.into();
            Ok(answer.map(|body| body.into_data_stream().map_err(Into::into).boxed()))
        })
    }

    fn behind(&self, task: BoxFuture<'static, ()>) {
        self.behind.lock().expect("no panic").spawn(task);
    }
}

/// A call that ends in time, whatever it ends with.
async fn call(remote: &Remote, carrier: &Arc<dyn Carrier>, tool: &RemoteTool, input: &Value) -> Result<Value, Failure> {
    let input = arguments(input);
    tokio::time::timeout(SOON, remote.call(carrier, tool, &input)).await.expect("an end in time")
}

async fn open(carrier: &Arc<dyn Carrier>, url: String) -> Result<Remote, Failure> {
    let opened = tokio::time::timeout(SOON, Remote::open(carrier, url.parse().expect("a URL"))).await;
    opened.expect("an end in time")
}

async fn tools(remote: &Remote, carrier: &Arc<dyn Carrier>) -> Vec<RemoteTool> {
    tokio::time::timeout(SOON, remote.tools(carrier)).await.expect("in time").expect("tools").tools
}

fn named<'a>(tools: &'a [RemoteTool], name: &str) -> &'a RemoteTool {
    tools.iter().find(|tool| tool.name == name).expect(name)
}

fn arguments(value: &Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

/// A listener that answers what `script` says to a message and how often it came, as one value.
async fn scripted<F>(script: F) -> (Listener, Arc<AtomicUsize>)
where
    F: Fn(&Request<Bytes>, &Value) -> Response<Body> + Clone + Send + Sync + 'static,
{
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let listener = Listener::new(None, move |request: Request<Bytes>| {
        let message: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        if message.get("method").is_some_and(|method| method == "tools/call") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        let answer = script(&request, &message);
        async move { answer }
    })
    .await;
    (listener, calls)
}

fn url(listener: &Listener) -> String {
    format!("http://{}/mcp", listener.address)
}

fn result(message: &Value, result: &Value) -> Response<Body> {
    let body = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
    answer(200, "application/json", body.to_string())
}

/// What an ordinary server of the stateless era says to everything but calls.
fn modern(message: &Value) -> Response<Body> {
    match message["method"].as_str() {
        Some("server/discover") => result(message, &json!({"supportedVersions": ["2026-07-28"], "capabilities": {}})),
        Some("tools/list") => result(message, &json!({"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})),
        _ => answer(400, "application/json", "{}"),
    }
}

/// The same of the era of sessions.
fn legacy(message: &Value) -> Response<Body> {
    match message["method"].as_str() {
        Some("initialize") => {
            let mut said = result(message, &json!({"protocolVersion": "2025-11-25", "capabilities": {}}));
            said.headers_mut().insert("mcp-session-id", "s1".parse().expect("id"));
            said
        }
        Some("tools/list") => modern(message),
        _ if message.get("id").is_none() => answer(202, "text/plain", ""),
        _ => answer(400, "application/json", "{}"),
    }
}

#[tokio::test]
async fn the_stateless_era_is_spoken_where_the_server_does() {
    let (_dir, service) = connector();
    let listener = Listener::new(None, move |request: Request<Bytes>| {
        let service = service.clone();
        async move { service.call(request.map(Full::new)).await }
    })
    .await;
    let carrier = carrier(false);
    let remote = open(&carrier, url(&listener)).await.expect("opened");
    let tools = tools(&remote, &carrier).await;
    assert_eq!(tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["list", "read", "search"]);
    let path = arguments(&json!({"path": "a.txt"}));
    let read = remote.call(&carrier, named(&tools, "read"), &path).await.expect("an answer");
    assert_eq!(read["content"][0]["text"], "hello\n");
    remote.close(&carrier).await;
    let seen = listener.seen();
    let methods: Vec<_> = seen.iter().map(|head| head.headers["mcp-method"].to_str().expect("text")).collect();
    assert_eq!(methods, ["server/discover", "tools/list", "tools/call"]);
    assert_eq!(seen[2].headers["mcp-name"], "read");
    assert!(seen.iter().all(|head| head.headers["mcp-protocol-version"] == "2026-07-28"));
}

#[tokio::test]
async fn a_complete_server_answers_alike_in_both_eras() {
    let server = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a server");
    let mut both = Vec::new();
    for legacy in [false, true] {
        let carrier = carrier(legacy);
        let remote = open(&carrier, server.url()).await.expect("opened");
        assert_eq!(remote.is_kept(), legacy);
        let tools = tools(&remote, &carrier).await;
        let mut said = Vec::new();
        for (tool, input) in [
            ("test_simple_text", json!({})),
            ("test_image_content", json!({})),
            ("test_multiple_content_types", json!({})),
            ("test_error_handling", json!({})),
            ("test_tool_with_progress", json!({})),
            ("test_mirrored_header", json!({"region": "Köln"})),
        ] {
            let mut result = call(&remote, &carrier, named(&tools, tool), &input).await.expect(tool);
            let result = result.as_object_mut().expect("an object");
            result.retain(|name, _| name == "content" || name == "isError");
            said.push(json!(result));
        }
        // The client can answer no question, and nobody hangs over it.
        let asked = call(&remote, &carrier, named(&tools, "test_elicitation"), &json!({"message": "?"})).await;
        assert!(!matches!(&asked, Err(Failure::Broken)), "{asked:?}");
        remote.close(&carrier).await;
        if legacy {
            let gone = remote.call(&carrier, named(&tools, "test_simple_text"), &Map::new()).await;
            assert_eq!(gone, Err(Failure::SessionLost), "an ended session");
        }
        both.push(said);
    }
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn a_stream_that_the_server_pauses_is_gone_on_with() {
    let server = ConformanceServer::bind(([127, 0, 0, 1], 0).into()).await.expect("a server");
    let carrier = carrier(true);
    let remote = open(&carrier, server.url()).await.expect("opened");
    let tools = tools(&remote, &carrier).await;
    let said = call(&remote, &carrier, named(&tools, "test_reconnection"), &json!({})).await.expect("an answer");
    assert!(said["content"][0]["text"].is_string(), "{said}");
}

#[tokio::test]
async fn the_transport_of_two_urls_is_met_by_falling_back() {
    let (events, _) = watch::channel(None::<mpsc::UnboundedSender<String>>);
    let stream = events.clone();
    let listener = Listener::new(None, move |request: Request<Bytes>| {
        let events = stream.clone();
        async move {
            if request.method() == "GET" && request.uri().path() == "/mcp" {
                let (sender, receiver) = mpsc::unbounded_channel();
                sender.send("event: endpoint\ndata: /messages?s=1\n\n".to_owned()).expect("open");
                events.send_replace(Some(sender));
                let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
                    receiver.recv().await.map(|text| (Ok(Frame::data(Bytes::from(text))), receiver))
                });
                let body = BodyExt::boxed(StreamBody::new(pieces));
                return Response::builder().header("content-type", "text/event-stream").body(body).expect("stream");
            }
            if request.uri().path() != "/messages" {
                return answer(405, "text/plain", "");
            }
            let message: Value = serde_json::from_slice(request.body()).expect("JSON");
            let text = match message["method"].as_str() {
                Some("initialize") => json!({"protocolVersion": "2024-11-05"}),
                Some("tools/list") => json!({"tools": [{"name": "t"}]}),
                Some("tools/call") => json!({"content": [{"type": "text", "text": "here"}]}),
                _ => return answer(202, "text/plain", ""),
            };
            let said = json!({"jsonrpc": "2.0", "id": message["id"], "result": text});
            let sender = events.borrow().clone().expect("a stream");
            sender.send(format!(": a comment\n\nevent: message\ndata: {said}\n\n")).expect("open");
            answer(202, "text/plain", "")
        }
    })
    .await;
    let carrier = carrier(false);
    let remote = open(&carrier, url(&listener)).await.expect("opened");
    let tools = tools(&remote, &carrier).await;
    let said = remote.call(&carrier, &tools[0], &Map::new()).await.expect("an answer");
    assert_eq!(said["content"][0]["text"], "here");
    // The stream ends: what is asked now has not run, and is told so.
    events.send_replace(None);
    let lost = async {
        while remote.call(&carrier, &tools[0], &Map::new()).await != Err(Failure::SessionLost) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, lost).await.expect("in time");
}

#[tokio::test]
async fn a_place_to_post_at_another_origin_is_not_used() {
    let listener = Listener::new(None, |request: Request<Bytes>| async move {
        match request.method().as_str() {
            "GET" => answer(200, "text/event-stream", "event: endpoint\ndata: https://evil.test/take\n\n"),
            _ => answer(405, "text/plain", ""),
        }
    })
    .await;
    let refused = open(&carrier(false), url(&listener)).await.err();
    assert!(matches!(&refused, Some(Failure::Protocol(reason)) if reason.contains("another origin")), "{refused:?}");
}

#[tokio::test]
async fn a_call_that_may_have_run_is_not_made_again() {
    for kind in ["application/json", "text/event-stream"] {
        let (listener, calls) = scripted(move |_, message| match message["method"].as_str() {
            Some("tools/call") => {
                let pieces = [Ok(Frame::data(Bytes::from("data: {\"jsonrpc\"")))].into_iter();
                // It says that there is more to come, and ends.
                let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(pieces)));
                Response::builder().header("content-type", kind).header("content-length", "999").body(body).expect("it")
            }
            _ => modern(message),
        })
        .await;
        let carrier = carrier(false);
        let remote = open(&carrier, url(&listener)).await.expect("opened");
        let tools = tools(&remote, &carrier).await;
        let broke = remote.call(&carrier, &tools[0], &Map::new()).await;
        assert_eq!(broke, Err(Failure::Broken), "{kind}");
        assert_eq!(calls.load(Ordering::SeqCst), 1, "{kind}");
    }
}

#[tokio::test]
async fn answers_are_read_up_to_a_bound() {
    for kind in ["application/json", "text/event-stream"] {
        let (listener, _) = scripted(move |_, message| match message["method"].as_str() {
            Some("tools/call") => answer(200, kind, format!("data: \"{}\"", "x".repeat(MAX_ANSWER + 1000))),
            _ => modern(message),
        })
        .await;
        let carrier = carrier(false);
        let remote = open(&carrier, url(&listener)).await.expect("opened");
        let tools = tools(&remote, &carrier).await;
        let large = remote.call(&carrier, &tools[0], &Map::new()).await;
        assert_eq!(large, Err(Failure::TooLarge { most: MAX_ANSWER }), "{kind}");
    }
}

#[tokio::test]
async fn a_listing_is_bounded_and_each_name_is_there_once() {
    let (listener, _) = scripted(|_, message| match message["method"].as_str() {
        Some("tools/list") => {
            let page: usize = message["params"]["cursor"].as_str().map_or(0, |page| page.parse().expect("a page"));
            let tool = |at: usize| json!({"name": format!("t{at}"), "inputSchema": {}});
            let mut tools: Vec<_> = (page * 300..page * 300 + 300).map(tool).collect();
            tools.extend([tool(0), json!({"name": ""}), json!(7)]);
            result(message, &json!({"tools": tools, "nextCursor": (page + 1).to_string()}))
        }
        _ => modern(message),
    })
    .await;
    let carrier = carrier(false);
    let remote = open(&carrier, url(&listener)).await.expect("opened");
    let listing = remote.tools(&carrier).await.expect("tools");
    assert_eq!(listing.tools.len(), 1000);
    let names: std::collections::HashSet<_> = listing.tools.iter().map(|tool| &tool.name).collect();
    assert_eq!(names.len(), 1000);
    assert!(listing.left_out.last().expect("some").contains("behind the first"), "{:?}", listing.left_out);
}

#[tokio::test]
async fn who_stops_waiting_cancels_at_the_server() {
    for era in [modern as fn(&Value) -> Response<Body>, legacy] {
        let (told, mut cancelled) = watch::channel(None);
        let (left, mut gone) = watch::channel(false);
        let left = Arc::new(left);
        let listener = Listener::new(None, move |request: Request<Bytes>| {
            let (told, left) = (told.clone(), left.clone());
            async move {
                let message: Value = serde_json::from_slice(request.body()).unwrap_or_default();
                match message["method"].as_str() {
                    Some("tools/call") => {
                        told.send_replace(Some(message["id"].clone()));
                        let _left = Left(left);
                        std::future::pending().await
                    }
                    Some("notifications/cancelled") => {
                        assert_eq!(told.borrow().as_ref(), Some(&message["params"]["requestId"]));
                        told.send_replace(Some(json!("cancelled")));
                        answer(202, "text/plain", "")
                    }
                    _ => era(&message),
                }
            }
        })
        .await;
        let carrier = carrier(false);
        let remote = open(&carrier, url(&listener)).await.expect("opened");
        let tools = tools(&remote, &carrier).await;
        let nothing = Map::new();
        tokio::select! {
            said = remote.call(&carrier, &tools[0], &nothing) => panic!("{said:?}"),
            begun = cancelled.wait_for(Option::is_some) => drop(begun.expect("the server runs")),
        }
        // The connection is closed; where that says nothing, it is also said.
        tokio::time::timeout(SOON, gone.wait_for(|gone| *gone)).await.expect("in time").expect("told");
        if remote.is_kept() {
            let said = cancelled.wait_for(|said| said.as_ref().is_some_and(|said| said == "cancelled"));
            tokio::time::timeout(SOON, said).await.expect("in time").expect("told");
        }
    }
}

/// Tells when it is dropped.
struct Left(Arc<watch::Sender<bool>>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, expected) in [
        (401, Failure::Unauthorized { status: 401 }),
        (403, Failure::Unauthorized { status: 403 }),
        (302, Failure::Redirect(302)),
        (500, Failure::Status(500)),
    ] {
        let (listener, _) = scripted(move |_, _| {
            let mut said = answer(status, "text/plain", "no");
            said.headers_mut().insert("location", "https://evil.test/".parse().expect("URL"));
            said
        })
        .await;
        assert_eq!(open(&carrier(false), url(&listener)).await.err(), Some(expected), "{status}");
    }
    let closed = open(&carrier(false), "http://127.0.0.1:1/mcp".to_owned()).await.err();
    assert!(matches!(closed, Some(Failure::Unreachable(_))), "{closed:?}");
    let (listener, _) = scripted(|_, message| match message["method"].as_str() {
        Some("tools/call") => answer(StatusCode::NOT_FOUND.as_u16(), "text/plain", ""),
        _ => legacy(message),
    })
    .await;
    let carrier = carrier(false);
    let remote = open(&carrier, url(&listener)).await.expect("opened");
    let tools = tools(&remote, &carrier).await;
    assert_eq!(remote.call(&carrier, &tools[0], &Map::new()).await, Err(Failure::SessionLost));
}
