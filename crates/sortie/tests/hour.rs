//! An hour of silence: nothing of ours ends a stream that says nothing, or a call that is not answered yet.
//!
//! Hub, edge, link and gateway run in this process, so that the clock is the test's own: real while the streams open,
//! then stopped, so that an hour passes as fast as the timers of all four can fire. Which timers there are, and why
//! none may end what is open here:
//!
//! | Timer | Where | In this hour |
//! |---|---|---|
//! | no request on a connection, 10 s and 90 s | `hub/src/front.rs`, `idle.rs` | every stream here is an open request |
//! | head of a request, 10 s | `hub/src/front.rs` | all heads are whole; one body takes the hour |
//! | unused inner connections, 90 s, looked over each 30 s | `hub/src/inner.rs`, `start.rs` | all are in use |
//! | shared inner connections, 90 s | `hub/src/inner/shared.rs` | in use as long as one call is |
//! | TLS and ClientHello, 5 s and 10 s | `hub`, `edge`, `gateway` | over before the hour, of a sealed route, too |
//! | link: ping each second, dead after 3.5 s of silence | `link/src/liveness.rs` | 3,600 pings both ways |
//! | link: hello, welcome, room for a stream, 1 s to 10 s | `link` | over before the hour |
//! | unused upstream connections, 3 s | `gateway/src/upstream.rs` | those in use are not in the pool |
//! | connecting to the upstream, 10 s | `gateway/src/upstream.rs` | over before the hour |
//! | a comment into a quiet stream, each 20 s; `idle_timeout` | `gateway/src/quiet.rs` | 180 comments; not set |
//! | a body of MCP, read whole, 60 s | `gateway/src/body.rs` | the upload that pauses is none, and streams |
//! | a route's `deadline` | `gateway/src/forward.rs` | ends the one route that has one: so the hour is one |
//! | looking at the set-up directory, each 5 s | `gateway/src/gateway.rs` | nothing has changed |
//!
//! TCP's own keep-alive (60 s, `gateway/src/upstream.rs`) is the kernel's, and ends only what a peer left unsaid. The
//! stop of a process (30 s) is tested in `e2e/link.rs`.

#![allow(clippy::indexing_slicing, reason = "a missing field of an answer is a failure")]

mod interop;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use reqwest::Response;
use serde_json::json;
use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
use sortie_hub::{AuditConfig, Hub, HubConfig};
use sortie_runtime::TaskSet;
use sortie_testkit::TempHome;
use sortie_tls::{Authority, Versions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use interop::{LATE, sortie, succeeds};

const HOUR: Duration = Duration::from_secs(3600);

/// A server that opens a stream where one is asked for, is silent until told, then says the rest and closes.
struct Silent {
    addr: SocketAddr,
    go: watch::Sender<bool>,
    /// Requests that have come, and connections that ended before they were answered.
    seen: watch::Receiver<(usize, usize)>,
    _tasks: JoinSet<()>,
}

impl Silent {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let (go, told) = watch::channel(false);
        let (count, seen) = watch::channel((0, 0));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, told.clone(), count.clone()));
            }
        });
        Self { addr, go, seen, _tasks: tasks }
    }
}

async fn serve(mut stream: TcpStream, mut told: watch::Receiver<bool>, count: watch::Sender<(usize, usize)>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let streams = text.starts_with("GET ") || text.starts_with("POST /mcp?listen ");
    let (kind, first) = ("text/event-stream", ": open\n\n");
    let opening = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{first}");
    if streams {
        stream.write_all(opening.as_bytes()).await.expect("opening");
    }
    count.send_modify(|(requests, _)| *requests += 1);
    // What is uploaded is read on, so that the end of the connection shows.
    let mut rest = [0; 4096];
    let mut body = text;
    loop {
        tokio::select! {
            go = told.wait_for(|go| *go) => {
                go.expect("the test runs");
                break;
            }
            read = stream.read(&mut rest) => match read {
                Ok(bytes @ 1..) => body.push_str(&String::from_utf8_lossy(&rest[..bytes])),
                _ => return count.send_modify(|(_, ended)| *ended += 1),
            }
        }
    }
    while body.starts_with("POST /upload") && !body.ends_with("the other half\r\n0\r\n\r\n") {
        let bytes = stream.read(&mut rest).await.expect("the rest of the upload");
        assert!(bytes > 0, "the upload broke off: {body}");
        body.push_str(&String::from_utf8_lossy(&rest[..bytes]));
    }
    let last = if streams { "data: {\"last\":true}\n\n".to_owned() } else { opening + "data: {\"last\":true}\n\n" };
    stream.write_all(last.as_bytes()).await.expect("the last event");
}

/// All of it in this process.
struct World {
    hub: Hub,
    gateway: Gateway,
    use_key: String,
    domain: String,
    tasks: [TaskSet; 2],
    home: TempHome,
}

impl World {
    /// `clients` is the CA of sealed routes' clients.
    async fn start(config: &str, clients: &Authority) -> Self {
        let home = TempHome::new().expect("home");
        home.write("clients.crt", clients.cert_pem()).expect("written");
        let tasks = [TaskSet::new(), TaskSet::new()];
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let hub = HubConfig {
            data_dir: home.join("hub"),
            database: None,
            api: free,
            edge: free,
            health: None,
            base_domain: "sortie.localhost".parse().expect("domain"),
            names: Vec::new(),
            advertised_edge: None,
            allowed_origins: Vec::new(),
            insecure_http: false,
            address_share: 100,
            issuer: None,
            region: None,
            limits: sortie_api::Limits::default(),
            audit: AuditConfig::default(),
            mcp: sortie_hub::McpConfig::default(),
            models: None,
        };
        let hub = Hub::start(hub, &tasks[0]).await.expect("hub");
        let dir = home.join("setup");
        let key = hub.api_key.expose().to_owned();
        let init = sortie(&home).env("API_TOKEN", &key).args(["setup", "init", "--api-url", &hub.api_url]);
        succeeds(init.args(["--output".to_owned(), format!("dir:{}", dir.display())])).await;
        let config = GatewayConfig::parse(config, &home.join("gateway.toml")).expect("settings");
        let setup = Setup::load(&dir).expect("set-up");
        let gateway = Gateway::start(config, setup, GatewayOptions::default(), tasks[1].clone());
        let gateway = gateway.await.expect("gateway");
        tokio::time::timeout(LATE, gateway.ready()).await.expect("the way through opens");
        let domain = std::fs::read_to_string(dir.join("tunnel-domain")).expect("domain").trim().to_owned();
        Self { hub, gateway, use_key: key, domain, tasks, home }
    }

    fn path_url(&self, path: &str) -> String {
        let label = self.domain.split('.').next().expect("label");
        format!("{}/t/{label}{path}", self.hub.api_url)
    }

    /// A client of a sealed route, whose TLS passes the edge unread.
    fn sealed(&self, host: &str, clients: &Authority) -> reqwest::Client {
        let ca = std::fs::read_to_string(self.home.join("setup/ca.crt")).expect("CA");
        let own = clients.issue_client("agent-7", HOUR).expect("client certificate");
        let tls = sortie_tls::client_config_with_identity(&ca, false, Versions::Tls13, &[b"http/1.1"], &own);
        let builder = reqwest::Client::builder().tls_backend_preconfigured((*tls.expect("TLS")).clone());
        builder.no_proxy().resolve(host, self.hub.edge_listener).build().expect("client")
    }

    /// A client that knows the route's hostname, and speaks HTTP/2 with it; by path it speaks HTTP/1.1.
    fn client(&self, host: &str) -> reqwest::Client {
        let ca = std::fs::read_to_string(&self.hub.edge_ca_file).expect("CA");
        let tls = sortie_tls::client_config(&ca, false, Versions::Legacy, &[b"h2", b"http/1.1"]);
        let builder = reqwest::Client::builder().tls_backend_preconfigured((*tls.expect("TLS")).clone());
        builder.no_proxy().resolve(host, self.hub.edge_listener).build().expect("client")
    }
}

/// Reads until the stream has said this.
async fn said(response: &mut Response, part: &str) {
    let mut all = String::new();
    while !all.contains(part) {
        let chunk = response.chunk().await.unwrap_or_else(|error| panic!("{error}, after {all:?}"));
        let chunk = chunk.unwrap_or_else(|| panic!("the stream ended after {all:?}"));
        all.push_str(&String::from_utf8_lossy(&chunk));
    }
}

#[tokio::test]
async fn an_hour_of_silence_ends_nothing() {
    let silent = Silent::start().await;
    let at = silent.addr;
    let clients = Authority::generate("Clients", 30).expect("CA");
    let config = format!(
        "[upstream]\nallowed_ips = [\"127.0.0.1\"]\n[routes.quiet]\nupstream = \"http://{at}\"\n\
         [routes.bounded]\nupstream = \"http://{at}\"\ndeadline = \"30m\"\n\
         [routes.vault]\nupstream = \"http://{at}\"\nmode = \"sealed\"\nclient_ca_file = \"clients.crt\"\n"
    );
    let world = World::start(&config, &clients).await;
    let host = format!("quiet.{}", world.domain);
    let http = world.client(&host);
    let edge_port = world.hub.edge_listener.port();
    let urls = [world.path_url("/quiet"), format!("https://{host}:{edge_port}")];
    let listen = json!({"jsonrpc": "2.0", "id": "l", "method": "subscriptions/listen", "params": {}}).to_string();
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "think"}}).to_string();
    let post = |url: &str, query: &str, body: &str| {
        let post = http.post(format!("{url}/mcp{query}")).header("x-api-key", &world.use_key);
        let post = post.header("content-type", "application/json");
        // By this the hub knows what is made to last.
        let listens = query == "?listen";
        let post = if listens { post.header("mcp-method", "subscriptions/listen") } else { post };
        post.body(body.to_owned())
    };

    let mut streams = Vec::new();
    let mut calls = JoinSet::new();
    for url in &urls {
        let get = http.get(format!("{url}/mcp")).header("x-api-key", &world.use_key);
        let get = get.header("accept", "text/event-stream");
        for request in [get, post(url, "?listen", &listen)] {
            let mut response = request.send().await.expect("a stream");
            assert_eq!(response.status(), 200);
            said(&mut response, ": open").await;
            streams.push(response);
        }
        calls.spawn(post(url, "", &call).send());
    }
    let vault = format!("vault.{}", world.domain);
    let response = world.sealed(&vault, &clients).get(format!("https://{vault}:{edge_port}/mcp")).send();
    let mut response = response.await.expect("a stream");
    said(&mut response, ": open").await;
    streams.push(response);
    let bounded = world.path_url("/bounded");
    let mut given_up = JoinSet::new();
    given_up.spawn(post(&bounded, "", &call).send());
    // Half an upload: a head that is whole, and a body that pauses.
    let api = world.hub.api_url.trim_start_matches("http://").to_owned();
    let mut upload = TcpStream::connect(&api).await.expect("API");
    let path = world.path_url("/quiet/upload").replace(&world.hub.api_url, "");
    let head = format!("POST {path} HTTP/1.1\r\nhost: {api}\r\nx-api-key: {}\r\n", world.use_key);
    let half = "transfer-encoding: chunked\r\nconnection: close\r\n\r\n8\r\none half\r\n";
    upload.write_all((head + half).as_bytes()).await.expect("half");
    let mut seen = silent.seen.clone();
    let all = seen.wait_for(|(requests, _)| *requests == 9);
    tokio::time::timeout(LATE, all).await.expect("all requests arrive").expect("the server runs");

    tokio::time::pause();
    let (began, really) = (Instant::now(), std::time::Instant::now());
    tokio::time::sleep(HOUR).await;
    assert!(began.elapsed() >= HOUR && really.elapsed() < LATE, "{:?} took {:?}", began.elapsed(), really.elapsed());
    tokio::time::resume();

    // The one route with a deadline shows that the time has passed for the gateway, too.
    let refused = given_up.join_next().await.expect("a call").expect("no panic").expect("an answer");
    assert_eq!((refused.status().as_u16(), refused.headers()["sortie-hop"].as_bytes()), (504, &b"upstream"[..]));
    assert_eq!(silent.seen.borrow().1, 1, "only that one was given up");
    assert!(world.gateway.readiness().ready, "the link has lived through it");

    silent.go.send(true).expect("told");
    upload.write_all(b"e\r\nthe other half\r\n0\r\n\r\n").await.expect("the other half");
    let rest = async {
        for response in &mut streams {
            said(response, "\"last\":true").await;
            while let Some(rest) = response.chunk().await.expect("a polite end") {
                assert!(rest.is_empty(), "{rest:?}");
            }
        }
        while let Some(answer) = calls.join_next().await {
            let mut answer = answer.expect("no panic").expect("an answer after an hour");
            assert_eq!(answer.status(), 200);
            said(&mut answer, "\"last\":true").await;
        }
        let mut answer = String::new();
        upload.read_to_string(&mut answer).await.expect("an answer to the upload");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"last\":true"), "{answer}");
    };
    tokio::time::timeout(LATE, rest).await.expect("in time");
    for tasks in world.tasks.iter().rev() {
        tasks.shutdown(Duration::from_secs(2)).await;
    }
    world.hub.close().await;
    drop(world.home);
}
