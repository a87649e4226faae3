//! The client against the `files` connector and against answers that Sortie or others give instead of it.

mod common;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde_json::{Map, Value, json};
use sortie_api::{Hop, HopError};
use sortie_ids::ApiKey;
use sortie_mcp::client::{ClientError, Endpoint, call_tool, list_tools};
use sortie_mcp::envelope::request_id;
use sortie_tls::{Authority, ReloadingIdentity, TlsAcceptor, Versions, server_config};
use tokio::net::TcpListener;

use common::{Body, Listener, answer, connector};

/// Where the client is to call.
fn endpoint(listener: &Listener) -> Endpoint {
    Endpoint { url: format!("http://{}/mcp", listener.address), key: key(), ca_pem: None }
}

fn key() -> ApiKey {
    ApiKey::parse("sortie-use-test").expect("a key")
}

fn arguments(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

/// What the client makes of one fixed answer to everything.
async fn outcome_of(fixed: impl Fn(&Request<Bytes>) -> Response<Body> + Clone + Send + Sync + 'static) -> ClientError {
    let listener = Listener::new(None, move |request| {
        let response = fixed(&request);
        async move { response }
    })
    .await;
    let called = tokio::time::timeout(Duration::from_secs(20), list_tools(&endpoint(&listener))).await;
    called.expect("an answer in time").expect_err("no tools")
}

#[tokio::test]
async fn tools_are_listed_and_called_in_the_stateless_era() {
    let (_dir, service) = connector();
    let listener = Listener::new(None, move |request| {
        let service = service.clone();
        async move { service.call(request.map(Full::new)).await }
    })
    .await;
    let endpoint = endpoint(&listener);
    let tools = list_tools(&endpoint).await.expect("tools");
    assert_eq!(tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["list", "read", "search"]);
    assert!(tools.iter().all(|tool| tool.read_only && tool.description.is_some() && tool.output_schema.is_some()));

    let read = call_tool(&endpoint, "read", arguments(json!({"path": "a.txt"}))).await.expect("an outcome");
    assert!(!read.is_error);
    assert_eq!(read.text(), "hello\n");
    assert_eq!(read.structured.as_ref().and_then(|fields| fields.get("lines")), Some(&json!(1)));
    let refused = call_tool(&endpoint, "read", arguments(json!({"path": ".."}))).await.expect("an outcome");
    assert!(refused.is_error && refused.text().contains("upwards"));
    let unknown = call_tool(&endpoint, "rm", Map::new()).await.expect_err("no such tool");
    assert!(matches!(&unknown, ClientError::Server { code: -32602, .. }), "{unknown}");

    for request in listener.seen() {
        assert_eq!(request.headers.get("x-api-key").expect("the key"), "sortie-use-test");
        assert_eq!(request.headers.get("mcp-protocol-version").expect("a version"), "2026-07-28");
        assert_eq!(request.method, "POST");
        assert!(!request.headers.contains_key("authorization"));
    }
}

#[tokio::test]
async fn servers_of_the_older_era_are_met_by_falling_back() {
    let (_dir, service) = connector();
    let listener = Listener::new(None, move |request| {
        let service = service.clone();
        async move {
            // What servers of that era say to a version that they do not know.
            if request.headers().get("mcp-protocol-version").is_some_and(|version| version == "2026-07-28") {
                return answer(400, "text/plain", "Bad Request: Unsupported protocol version");
            }
            service.call(request.map(Full::new)).await
        }
    })
    .await;
    let read = call_tool(&endpoint(&listener), "read", arguments(json!({"path": "a.txt"}))).await.expect("an outcome");
    assert_eq!(read.text(), "hello\n");
    let seen = listener.seen();
    assert!(seen.iter().any(|request| request.headers.contains_key("mcp-session-id")));
    assert!(seen.iter().any(|request| request.method == "DELETE"), "the session was not ended");
}

#[tokio::test]
async fn failures_of_sortie_name_the_hop_and_the_next_step() {
    for (hop, step) in [
        (Hop::Edge, "is the edge running"),
        (Hop::Link, "is the gateway running?"),
        (Hop::InnerTls, "CA registered"),
        (Hop::Identity, "check the key"),
        (Hop::Route, "route's name"),
        (Hop::Policy, "does not allow"),
        (Hop::UpstreamConnect, "MCP server behind the route running"),
        (Hop::Upstream, "logs of the MCP server"),
    ] {
        for spoken in [true, false] {
            let error = outcome_of(move |request| {
                let failure = HopError::new(hop, "because\u{1b}[31m");
                let id = request_id(request.body()).filter(|_| spoken);
                let mut response =
                    answer(failure.status.as_u16(), "application/json", failure.body("req_1", id.as_deref()));
                response.headers_mut().insert("sortie-hop", http::HeaderValue::from_static(hop.as_str()));
                response
            })
            .await;
            let text = error.to_string();
            assert!(matches!(&error, ClientError::Hop { hop: at, .. } if *at == hop), "{error:?}");
            assert!(text.contains(&format!("`{}`: because", hop.as_str())) && text.contains(step), "{text}");
            assert!(!text.contains('\u{1b}') && text.lines().count() == 1, "{text}");
        }
    }
}

#[tokio::test]
async fn a_failure_inside_an_answer_names_its_hop() {
    let (_dir, service) = connector();
    let listener = Listener::new(None, move |request| {
        let service = service.clone();
        async move {
            if request.headers().get("mcp-method").is_some_and(|method| method == "tools/call") {
                let failure = HopError::new(Hop::Upstream, "the server broke off");
                let body = failure.body("req_1", request_id(request.body()).as_deref());
                let event = format!("data: {}\n\n", String::from_utf8(body).expect("UTF-8"));
                return answer(200, "text/event-stream", event);
            }
            service.call(request.map(Full::new)).await
        }
    })
    .await;
    let error = call_tool(&endpoint(&listener), "read", Map::new()).await.expect_err("a failure");
    assert!(matches!(&error, ClientError::Hop { hop: Hop::Upstream, reason, .. } if reason == "the server broke off"));
}

#[tokio::test]
async fn a_deadline_and_a_bare_hop_header_are_understood() {
    let error = outcome_of(|request| {
        let failure = HopError::new(Hop::Upstream, "no answer in 30 s").with_status(StatusCode::GATEWAY_TIMEOUT);
        answer(504, "application/json", failure.body("req_1", request_id(request.body()).as_deref()))
    })
    .await;
    assert!(error.to_string().contains("deadline passed"), "{error}");
    let error = outcome_of(|_| {
        let mut response = answer(503, "text/html", "<h1>down</h1>");
        response.headers_mut().insert("sortie-hop", http::HeaderValue::from_static("link"));
        response
    })
    .await;
    assert!(matches!(&error, ClientError::Hop { hop: Hop::Link, status: 503, .. }), "{error:?}");
}

#[tokio::test]
async fn answers_that_are_no_mcp_are_named() {
    for (status, says) in [(401, "check the key"), (403, "check the key"), (404, "no MCP endpoint"), (500, "its logs")]
    {
        let error = outcome_of(move |_| answer(status, "text/html", "<h1>no</h1>")).await;
        assert!(matches!(&error, ClientError::Status { status: at, .. } if *at == status), "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = outcome_of(|_| answer(200, "text/html", "<h1>hello</h1>")).await;
    assert!(matches!(&error, ClientError::Protocol { .. }), "{error:?}");
    let error = outcome_of(|_| answer(200, "application/json", "{\"hello\": 1}")).await;
    assert!(matches!(&error, ClientError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = Listener::new(None, |_| async { answer(200, "text/plain", "") }).await;
    let target = format!("http://{}/mcp", elsewhere.address);
    for status in [301, 302, 307, 308] {
        let target = target.clone();
        let error = outcome_of(move |_| {
            let mut response = answer(status, "text/plain", "");
            response.headers_mut().insert("location", target.parse().expect("a header"));
            response
        })
        .await;
        assert!(matches!(&error, ClientError::Redirect { status: at, .. } if *at == status), "{error:?}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn a_closed_port_asks_for_the_hub() {
    let address = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{address}/mcp");
        let endpoint = Endpoint { url: url.clone(), key: key(), ca_pem: (scheme == "https").then(|| own_ca().0) };
        let error = list_tools(&endpoint).await.expect_err("nothing there");
        assert_eq!(error.to_string(), format!("nothing listens at {url}: is the hub running? (`sortie up`)"));
    }
}

#[tokio::test]
async fn keys_are_not_sent_where_they_could_be_read() {
    for (url, says) in [
        ("http://192.0.2.1/mcp", "plain http"),
        ("http://hub.example/mcp", "plain http"),
        ("http://localhost.example/mcp", "plain http"),
        ("ftp://127.0.0.1/mcp", "not an http"),
        ("127.0.0.1:4180/mcp", "not an http"),
        ("", "not an http"),
        ("http://user:secret@127.0.0.1/mcp", "password"),
    ] {
        let endpoint = Endpoint { url: url.to_owned(), key: key(), ca_pem: None };
        let error = list_tools(&endpoint).await.expect_err("refused").to_string();
        assert!(error.contains(says), "{url}: {error}");
    }
    let endpoint = Endpoint { url: "http://127.0.0.1:1/mcp".to_owned(), key: key(), ca_pem: Some("no PEM".to_owned()) };
    assert!(matches!(list_tools(&endpoint).await, Err(ClientError::Tls(_))));
    assert!(!format!("{endpoint:?}").contains("sortie-use-test"));
}

/// A CA of its own, and a server with its certificate for `localhost` and 127.0.0.1.
fn own_ca() -> (String, TlsAcceptor) {
    let authority = Authority::generate("Test", 1).expect("a CA");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = authority.issue_server(&names, Duration::from_secs(3600)).expect("a certificate");
    let identity = ReloadingIdentity::from_pem(&made.cert_pem, made.key_pem.expose()).expect("an identity");
    let config = server_config(Arc::new(identity), Versions::Tls13, &[], None).expect("a configuration");
    (authority.cert_pem().to_owned(), TlsAcceptor::from(config))
}

#[tokio::test]
async fn tls_trusts_the_given_ca_and_no_other() {
    let (_dir, service) = connector();
    let (ca, acceptor) = own_ca();
    let listener = Listener::new(Some(acceptor), move |request| {
        let service = service.clone();
        async move { service.call(request.map(Full::new)).await }
    })
    .await;
    let url = format!("https://localhost:{}/mcp", listener.address.port());
    let trusted = Endpoint { url: url.clone(), key: key(), ca_pem: Some(ca) };
    assert_eq!(list_tools(&trusted).await.expect("tools").len(), 3);
    let other = Endpoint { url, key: key(), ca_pem: Some(own_ca().0) };
    let error = list_tools(&other).await.expect_err("not trusted");
    assert!(matches!(&error, ClientError::Untrusted { .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_whose_answer_breaks_off_is_not_repeated() {
    let (_dir, service) = connector();
    let listener = Listener::new(None, move |request| {
        let service = service.clone();
        async move {
            if request.headers().get("mcp-method").is_some_and(|method| method == "tools/call") {
                return answer(200, "text/event-stream", ": nothing follows\n\n");
            }
            service.call(request.map(Full::new)).await
        }
    })
    .await;
    let endpoint = endpoint(&listener);
    let called = tokio::time::timeout(Duration::from_secs(30), call_tool(&endpoint, "read", Map::new())).await;
    let error = called.expect("an answer in time").expect_err("no answer");
    assert!(matches!(&error, ClientError::Broken { .. }), "{error:?}");
    let calls = listener
        .seen()
        .into_iter()
        .filter(|request| request.headers.get("mcp-method").is_some_and(|method| method == "tools/call"));
    assert_eq!(calls.count(), 1);
}
