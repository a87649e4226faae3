//! A session is good for the caller and the route that got it, and for nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use sortie_link::protos::Kind;
use sortie_runtime::TaskSet;
use sortie_tls::Authority;

use crate::support::*;

const OTHER: &str = "wiki.abcd1234.sortie.localhost";
const SEALED: &str = "vault.abcd1234.sortie.localhost";
const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#;
const CALL: &str = r#"{"jsonrpc":"2.0","id":9,"method":"tools/call"}"#;

/// A server with sessions: `initialize` begins one, `DELETE` ends it, those with `x` never were.
async fn server(tasks: &TaskSet) -> Upstream {
    let count = Arc::new(AtomicUsize::new(0));
    Upstream::serve(tasks, move |request: Request<hyper::body::Incoming>| {
        let count = count.clone();
        async move {
            let session = request.headers().get("mcp-session-id").cloned();
            let body = request.into_body().collect().await.expect("body").to_bytes();
            let mut response = Response::new(full("ok"));
            if body == INITIALIZE {
                let session = format!("s-{}", count.fetch_add(1, Ordering::SeqCst));
                response.headers_mut().insert("mcp-session-id", session.parse().expect("value"));
            } else if session.is_none_or(|session| session.as_bytes().starts_with(b"x")) {
                *response.status_mut() = StatusCode::NOT_FOUND;
            }
            response
        }
    })
    .await
}

async fn send(
    world: &World,
    host: &str,
    sub: &str,
    method: &str,
    session: &[&str],
    body: &str,
) -> Response<hyper::body::Incoming> {
    let identity = world.caller.hub.sign(&world.caller.claims(host, sub));
    let mut request =
        Request::builder().method(method).uri("/mcp").header("host", host).header("sortie-identity", identity);
    if !body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    for id in session {
        request = request.header("mcp-session-id", *id);
    }
    world.call(request.body(full(body.to_owned())).expect("request")).await
}

async fn begin(world: &World, sub: &str) -> String {
    let response = send(world, HOST, sub, "POST", &[], INITIALIZE).await;
    response.headers()["mcp-session-id"].to_str().expect("text").to_owned()
}

/// Status of a call, and whether the answer is the gateway's own.
async fn status(world: &World, host: &str, sub: &str, method: &str, session: &str) -> (u16, bool) {
    let body = if method == "POST" { CALL } else { "" };
    let response = send(world, host, sub, method, &[session], body).await;
    (response.status().as_u16(), response.headers().contains_key("sortie-hop"))
}

async fn world(tasks: &TaskSet, upstream: &Upstream) -> World {
    World::start(tasks, &format!("{}[routes.wiki]\nupstream = \"http://{}\"\n", upstream.config(), upstream.addr)).await
}

const OK: (u16, bool) = (200, false);
const REFUSED: (u16, bool) = (404, true);

#[tokio::test]
async fn nobody_else_can_use_a_session_in_any_way() {
    let tasks = TaskSet::new();
    let upstream = server(&tasks).await;
    let world = world(&tasks, &upstream).await;
    let session = begin(&world, "key:1").await;
    let before = upstream.count();
    for method in ["POST", "GET", "DELETE"] {
        assert_eq!(status(&world, HOST, "key:2", method, &session).await, REFUSED, "another key, {method}");
        assert_eq!(status(&world, OTHER, "key:1", method, &session).await, REFUSED, "another route, {method}");
    }
    assert_eq!(upstream.count(), before, "the server hears nothing of it");
    // The answer is in the caller's form, and tells nothing.
    let response = send(&world, HOST, "key:2", "POST", &[&session], CALL).await;
    let (_, hop, body) = refusal(response).await;
    assert_eq!((hop.as_str(), &body["id"]), ("route", &serde_json::json!(9)));
    assert!(!body.to_string().contains(&session));

    for method in ["POST", "GET"] {
        assert_eq!(status(&world, HOST, "key:1", method, &session).await, OK, "{method}");
    }
    // Each of two callers has its own.
    let other = begin(&world, "key:2").await;
    assert_eq!(status(&world, HOST, "key:2", "POST", &other).await, OK);
    assert_eq!(status(&world, HOST, "key:1", "POST", &other).await, REFUSED);

    // With its end it is forgotten, and the next word on it is the server's.
    assert_eq!(status(&world, HOST, "key:1", "DELETE", &session).await, OK);
    assert_eq!(status(&world, HOST, "key:2", "POST", &session).await, OK);
}

#[tokio::test]
async fn a_session_older_than_the_gateway_is_its_first_users() {
    let tasks = TaskSet::new();
    let upstream = server(&tasks).await;
    let first = world(&tasks, &upstream).await;
    let session = begin(&first, "key:1").await;
    let second = world(&tasks, &upstream).await;
    assert_eq!(status(&second, HOST, "key:1", "GET", &session).await, OK);
    assert_eq!(status(&second, HOST, "key:2", "GET", &session).await, REFUSED);
    assert_eq!(status(&second, OTHER, "key:1", "DELETE", &session).await, REFUSED);
    // What the server does not know is nobody's, and nothing is remembered of it.
    assert_eq!(status(&second, HOST, "key:1", "POST", "x-1").await, (404, false));
    assert_eq!(status(&second, HOST, "key:2", "POST", "x-1").await, (404, false));
}

#[tokio::test]
async fn two_session_ids_are_none() {
    let tasks = TaskSet::new();
    let upstream = server(&tasks).await;
    let world = world(&tasks, &upstream).await;
    let session = begin(&world, "key:1").await;
    let before = upstream.count();
    for (method, body) in [("POST", CALL), ("GET", ""), ("DELETE", "")] {
        let response = send(&world, HOST, "key:1", method, &[&session, &session], body).await;
        let (status, hop, _) = refusal(response).await;
        assert_eq!((status, hop.as_str()), (400, "route"), "{method}");
    }
    assert_eq!(upstream.count(), before);
}

#[tokio::test]
async fn on_a_sealed_route_the_certificate_is_the_caller() {
    let tasks = TaskSet::new();
    let upstream = server(&tasks).await;
    let clients = Authority::generate("Clients", 30).expect("authority");
    let config = format!(
        "{}[routes.vault]\nupstream = \"http://{}\"\nmode = \"sealed\"\nclient_ca_file = \"clients.pem\"\n",
        upstream.config(),
        upstream.addr
    );
    let pem = clients.cert_pem().to_owned();
    let world = World::start_with(&tasks, &config, Default::default(), |dir| {
        let file = dir.path(sortie_tls::SetupFile::TunnelId).with_file_name("clients.pem");
        std::fs::write(file, pem).expect("write");
    })
    .await;
    let link = world.link().await;
    let day = Duration::from_secs(86_400);
    let [one, two] =
        ["a", "b"].map(|name| world.caller.sealed_config(&clients.issue_client(name, day).expect("client")));
    let call = async |config: &Arc<sortie_tls::ClientConfig>, session: Option<&str>, body: &'static str| {
        let stream = world.caller.tls_with(config.clone(), &link, Kind::Sealed, SEALED).await.expect("tls");
        let mut request = Request::builder().method("POST").uri("/mcp").header("host", SEALED);
        request = request.header("content-type", "application/json");
        if let Some(session) = session {
            request = request.header("mcp-session-id", session);
        }
        soon(world.caller.send(stream, request.body(full(body)).expect("request"))).await.expect("response")
    };
    let begun = call(&one, None, INITIALIZE).await;
    let session = begun.headers()["mcp-session-id"].to_str().expect("text").to_owned();
    assert_eq!(call(&one, Some(&session), CALL).await.status(), 200);
    let (status, hop, _) = refusal(call(&two, Some(&session), CALL).await).await;
    assert_eq!((status, hop.as_str()), (404, "route"));
    // The same server by a terminated route: another caller, another route.
    let response = send(&world, HOST, "key:1", "POST", &[&session], CALL).await;
    assert_eq!(refusal(response).await.0, 404);
}
