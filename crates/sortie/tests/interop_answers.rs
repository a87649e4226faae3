//! What real servers answer to requests that are odd, wrong or at their edge: clients act on every word of it, so that
//! statuses, bodies and the headers that count have to be the same with a tunnel between as without.

#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failure")]

mod interop;

use std::collections::BTreeMap;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::json;
use sortie_testkit::{EchoServer, TempHome, tool};

use interop::walk::{everything, node_server, route, server};
use interop::{Hub, LATE, Tunnel, python};

const BOTH: &str = "application/json, text/event-stream";
const MODERN: &str = "2026-07-28";
/// The headers of an answer that clients act on.
const COUNT: [&str; 8] = [
    "content-type",
    "allow",
    "www-authenticate",
    "cache-control",
    "x-accel-buffering",
    "retry-after",
    "mcp-protocol-version",
    "vary",
];

/// One request, as it is described and made.
struct Asked {
    what: &'static str,
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: String,
}

fn asked(what: &'static str, method: Method, headers: &[(&'static str, &str)], body: &str) -> Asked {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Asked { what, method, path: "/mcp", headers, body: body.to_owned() }
}

fn post(what: &'static str, more: &[(&'static str, &str)], body: &str) -> Asked {
    let mut asked = asked(what, Method::POST, &[("accept", BOTH), ("content-type", "application/json")], body);
    for (name, value) in more {
        asked.headers.retain(|(known, _)| known != name);
        if !value.is_empty() {
            asked.headers.push((name, (*value).to_owned()));
        }
    }
    asked
}

fn initialize(version: &str) -> String {
    let params =
        json!({ "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params }).to_string()
}

fn modern(method: &str, version: &str) -> String {
    let meta = json!({ "io.modelcontextprotocol/protocolVersion": version,
                       "io.modelcontextprotocol/clientCapabilities": {},
                       "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" } });
    json!({ "jsonrpc": "2.0", "id": "m", "method": method, "params": { "_meta": meta } }).to_string()
}

/// What every server is asked without a session.
fn odd_requests() -> Vec<Asked> {
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" }).to_string();
    let batch = format!("[{list}]");
    let note = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string();
    let answer = json!({ "jsonrpc": "2.0", "id": 5, "result": {} }).to_string();
    let gone = ("mcp-session-id", "0f0e0d0c0b0a09080706050403020100");
    let now = |method| [("mcp-protocol-version", MODERN), ("mcp-method", method)];
    let later = [("mcp-protocol-version", "2099-01-01"), ("mcp-method", "tools/list")];
    let mut all = vec![
        post("no Accept for streams", &[("accept", "application/json")], &initialize("2025-11-25")),
        post("no Accept for JSON", &[("accept", "text/event-stream")], &initialize("2025-11-25")),
        post("another Content-Type", &[("content-type", "text/plain")], &initialize("2025-11-25")),
        post("no session", &[], &list),
        post("a session that is gone", &[gone], &list),
        post("an unsupported version", &[("mcp-protocol-version", "1999-01-01")], &list),
        post("a batch", &[("mcp-protocol-version", "2025-03-26")], &batch),
        post("a notification without a session", &[], &note),
        post("an answer without a session", &[], &answer),
        post("nothing at all", &[], ""),
        post("stateless discovery", &now("server/discover"), &modern("server/discover", MODERN)),
        post("an unknown stateless method", &now("no/such"), &modern("no/such", MODERN)),
        post("a stateless version of the future", &later, &modern("tools/list", "2099-01-01")),
        asked("a stream without a session", Method::GET, &[("accept", "text/event-stream")], ""),
        asked("a stream of a session that is gone", Method::GET, &[("accept", "text/event-stream"), gone], ""),
        asked("a GET that wants no stream", Method::GET, &[("accept", "text/html")], ""),
        asked("a stateless GET", Method::GET, &[("accept", BOTH), ("mcp-protocol-version", MODERN)], ""),
        asked("the end of a session that is gone", Method::DELETE, &[gone], ""),
        asked("the end of no session", Method::DELETE, &[], ""),
        asked("a PUT", Method::PUT, &[], "x"),
        asked("OPTIONS", Method::OPTIONS, &[], ""),
    ];
    for path in ["/no-such", "/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
        all.push(Asked { path, ..asked("a path beside", Method::GET, &[], "") });
    }
    all
}

/// A way to a server: its URL without the path, and what carries our key there.
struct Base {
    name: &'static str,
    http: Client,
    url: String,
    key: Option<String>,
}

impl Base {
    fn request(&self, asked: &Asked) -> RequestBuilder {
        let mut request = self.http.request(asked.method.clone(), format!("{}{}", self.url, asked.path));
        for (name, value) in &asked.headers {
            request = request.header(*name, value);
        }
        let request = self.key.iter().fold(request, |request, key| request.header("x-api-key", key));
        if asked.body.is_empty() { request } else { request.body(asked.body.clone()) }
    }

    /// Status, the headers that count, and the body; ids that differ from call to call replaced.
    async fn answer(&self, asked: &Asked) -> (u16, BTreeMap<&'static str, Vec<String>>, String) {
        let answer = self.request(asked).timeout(LATE).send().await.expect("an answer");
        assert!(!answer.headers().contains_key("sortie-hop"), "{}, {}: answered by us", self.name, asked.what);
        let headers = COUNT.map(|name| {
            let values = answer.headers().get_all(name).iter();
            (name, values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect())
        });
        let (status, body) = (answer.status().as_u16(), answer.text().await.expect("a body"));
        (status, headers.into_iter().collect(), hide_ids(&body))
    }

    /// Opens a session and ends it: the status of both, and of a call after the end.
    async fn session(&self) -> Option<[u16; 3]> {
        let open = self.request(&post("", &[], &initialize("2025-11-25"))).timeout(LATE).send().await.expect("answer");
        let id = open.headers().get("mcp-session-id")?.to_str().expect("text").to_owned();
        let opened = open.status().as_u16();
        let _read = open.bytes().await;
        let mut delete = asked("", Method::DELETE, &[("mcp-protocol-version", "2025-11-25")], "");
        delete.headers.push(("mcp-session-id", id.clone()));
        let ended = self.answer(&delete).await.0;
        let ping = post("", &[("mcp-session-id", &id)], r#"{"jsonrpc":"2.0","id":3,"method":"ping"}"#);
        Some([opened, ended, self.answer(&ping).await.0])
    }
}

/// Replaces what looks like the id of an event, a session or a request.
fn hide_ids(body: &str) -> String {
    let mut shown = String::new();
    for word in body.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        let (id, end) = word.split_at(word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '-').len());
        let random = id.len() >= 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        shown.push_str(if random { "<id>" } else { id });
        shown.push_str(end);
    }
    shown
}

fn client(ca: Option<&str>, resolved: Option<(&str, &str)>) -> Client {
    let roots = ca.map(|file| std::fs::read_to_string(file).expect("CA"));
    let tls = match &roots {
        Some(roots) => sortie_tls::client_config(roots, false, sortie_tls::Versions::Legacy, &[b"h2", b"http/1.1"]),
        None => sortie_tls::api_client_config(None, false),
    };
    let builder = Client::builder().tls_backend_preconfigured((*tls.expect("TLS")).clone()).no_proxy();
    let builder = builder.redirect(reqwest::redirect::Policy::none());
    let builder =
        resolved.iter().fold(builder, |builder, (host, addr)| builder.resolve(host, addr.parse().expect("address")));
    builder.build().expect("client")
}

/// Without a tunnel, by path and by hostname.
fn bases(hub: &Hub, tunnel: &Tunnel, name: &str, port: u16) -> [Base; 3] {
    let (path, host) = (tunnel.path_url(hub, name), tunnel.host_url(hub, name));
    let key = Some(tunnel.use_key.clone());
    let base = |url: &str| url.trim_end_matches("/mcp").to_owned();
    let named =
        client(Some(hub.text("edge_ca_file")), Some((&format!("{name}.{}", tunnel.domain), hub.text("edge_addr"))));
    [
        Base { name: "direct", http: client(None, None), url: format!("http://127.0.0.1:{port}"), key: None },
        Base { name: "path", http: client(None, None), url: base(&path), key: key.clone() },
        Base { name: "host", http: named, url: base(&host), key },
    ]
}

/// Asks a server everything, on every way. Returns the statuses, by what was asked.
async fn the_same(name: &'static str, bases: &[Base; 3], all: &[Asked]) -> BTreeMap<&'static str, u16> {
    let [direct, tunnelled @ ..] = bases;
    let mut statuses = BTreeMap::new();
    for asked in all {
        let expected = direct.answer(asked).await;
        for base in tunnelled {
            let found = base.answer(asked).await;
            assert_eq!(
                found, expected,
                "{name}, {}, {} {} {:?} (left)",
                base.name, asked.method, asked.path, asked.what
            );
        }
        statuses.insert(asked.what, expected.0);
    }
    let expected = direct.session().await;
    for base in tunnelled {
        assert_eq!(base.session().await, expected, "{name}, {}: a session", base.name);
    }
    if let Some([opened, ended, after]) = expected {
        statuses.extend([("opened", opened), ("ended", ended), ("after the end", after)]);
    }
    statuses
}

async fn compared(home: &TempHome, name: &'static str, port: u16) -> BTreeMap<&'static str, u16> {
    let hub = Hub::start(home).await;
    let tunnel = Tunnel::open(home, &hub, &route(name, port)).await;
    the_same(name, &bases(&hub, &tunnel, name, port), &odd_requests()).await
}

#[tokio::test]
async fn the_reference_servers_answers() {
    let Some(script) = tool("SORTIE_TEST_SERVER_EVERYTHING") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = everything(&home, &script).await;
    let seen = compared(&home, "everything", port).await;
    assert_eq!((seen["a session that is gone"], seen["ended"]), (400, 200), "{seen:?}");
}

#[tokio::test]
async fn the_answers_of_fastmcp() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_FASTMCP") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &interpreter, "mcp_server.py", None).await;
    let seen = compared(&home, "fast", port).await;
    assert_eq!((seen["a batch"], seen["a session that is gone"], seen["after the end"]), (400, 404, 404), "{seen:?}");
    assert_eq!((seen["an unknown stateless method"], seen["stateless discovery"]), (404, 200), "{seen:?}");
}

#[tokio::test]
async fn the_answers_of_the_python_sdk() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = server(&home, &interpreter, "mcp_listen_server.py", None).await;
    let seen = compared(&home, "sdk", port).await;
    assert_eq!((seen["another Content-Type"], seen["no Accept for streams"]), (400, 406), "{seen:?}");
}

#[tokio::test]
async fn the_answers_of_the_typescript_sdk() {
    let Some(modules) = tool("SORTIE_TEST_NODE_MODULES") else { return };
    let home = TempHome::new().expect("home");
    let (_server, port) = node_server(&home, &modules, "polling_server.mjs").await;
    let seen = compared(&home, "sdk", port).await;
    assert_eq!((seen["another Content-Type"], seen["no Accept for streams"]), (415, 406), "{seen:?}");
}

#[tokio::test]
async fn the_answers_of_our_own_test_server() {
    let echo = EchoServer::start().await.expect("echo");
    let home = TempHome::new().expect("home");
    let seen = compared(&home, "echo", echo.addr().port()).await;
    assert_eq!((seen["a stateless GET"], seen["a session that is gone"]), (405, 404), "{seen:?}");
}

/// The upstream is the resource server: who has our key, but not its token, is sent where the upstream says.
#[tokio::test]
async fn a_protected_server_tells_clients_itself_where_its_tokens_are() {
    let Some(interpreter) = tool("SORTIE_TEST_PYTHON_MCP2") else { return };
    let home = TempHome::new().expect("home");
    let ready_file = home.join("server.json");
    let public = "https://vault.example.test/mcp";
    let program = python(&home, &interpreter, "mcp_auth_server.py").arg(&ready_file).arg(public);
    let mut server = program.spawn().expect("python");
    let ready = server.ready_file(&ready_file, LATE).await.expect("server");
    server.ready_output("startup complete", LATE).await.expect("server");
    let port = ready["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("port");
    let hub = Hub::start(&home).await;
    let tunnel = Tunnel::open(&home, &hub, &(route("vault", port) + "authorization = \"forward\"\n")).await;
    let bases = bases(&hub, &tunnel, "vault", port);
    let open = initialize("2025-11-25");
    let with = |what, token: &str| post(what, &[("authorization", token)], &open);
    let mut all = odd_requests();
    all.push(with("no token", ""));
    all.push(with("a wrong token", "Bearer other"));
    all.push(with("a token for less", "Bearer narrow"));
    let seen = the_same("vault", &bases, &all).await;
    assert_eq!((seen["no token"], seen["a wrong token"], seen["a token for less"]), (401, 401, 403), "{seen:?}");
    assert_eq!(seen["a path beside"], 200, "the metadata is at its own path: {seen:?}");
    for base in &bases {
        let answer = base.answer(&with("", "")).await;
        let challenge = answer.1["www-authenticate"].concat();
        let metadata = "https://vault.example.test/.well-known/oauth-protected-resource/mcp";
        assert!(challenge.contains(&format!("resource_metadata=\"{metadata}\"")), "{challenge}");
        let opened = base.request(&with("", "Bearer theirs")).send().await.expect("an answer");
        assert_eq!(opened.status(), 200, "{}: its token passes", base.name);
    }
}
