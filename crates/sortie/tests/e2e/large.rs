//! Much of everything: requests at the limit, long answers, long streams, one huge event, readers that are slow.
//! What comes through is byte for byte the same, and neither hub nor gateway holds it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Method, Response};
use serde_json::json;
use sortie_testkit::EchoServer;
use sortie_testkit::usage::peak_rss_kb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::common::{GatewayProcess, SOON, Tunnel, Upstream, World, routes, send, tls_to, until};

const MIB: usize = 1 << 20;
/// How much a process may grow by what passes through it, in KiB: less than the smallest thing here that could be kept.
const GROWTH_KB: u64 = 12 * 1024;

/// A hub and a gateway with these settings, warm.
struct Through {
    world: World,
    tunnel: Tunnel,
    gateway: GatewayProcess,
    _echo: EchoServer,
    idle: [u64; 2],
}

impl Through {
    /// A route `up` to this address, beside one to an echo server.
    async fn start(up: SocketAddr, more: &str) -> Self {
        let echo = EchoServer::start().await.expect("echo");
        let world = World::start().await;
        let tunnel = world.tunnel("setup").await;
        let both = routes(&[("up", &format!("http://{up}")), ("echo", &format!("http://{}", echo.addr()))]);
        let gateway = world.gateway(&tunnel.dir, &(more.to_owned() + &both), &[]).await;
        let mut through = Self { world, tunnel, gateway, _echo: echo, idle: [0; 2] };
        for _ in 0..20 {
            through.world.serves(&through.tunnel, "echo").await;
        }
        // The first large answer fills buffers that every later one uses again.
        through.drain(&format!("/bytes?n={}", 8 * MIB)).await;
        through.idle = through.memory_kb();
        through
    }

    /// The most that hub and gateway have held so far.
    fn memory_kb(&self) -> [u64; 2] {
        [peak_rss_kb(&[self.world.hub.id()]), peak_rss_kb(&[self.gateway.process.id()])]
    }

    fn bounded(&self, what: &str) {
        let now = self.memory_kb();
        let grew = [now[0].saturating_sub(self.idle[0]), now[1].saturating_sub(self.idle[1])];
        assert!(grew.iter().all(|kb| *kb < GROWTH_KB), "{what}: hub and gateway grew by {grew:?} KiB");
    }

    async fn get(&self, route: &str, path: &str) -> Response {
        let response = self.world.request(Method::GET, &self.tunnel, route, path).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        response
    }

    /// Opens a session with its stream, lets the server say something there, and waits until it is heard.
    async fn announced(&self, note: &str) {
        let request = |method| self.world.request(method, &self.tunnel, "echo", "/mcp");
        let post = |session: &str, method: &str, params: serde_json::Value| {
            let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
            let post = request(Method::POST).header("accept", "application/json, text/event-stream");
            let post = post.header("content-type", "application/json").body(body.to_string());
            if session.is_empty() { post } else { post.header("mcp-session-id", session) }
        };
        let opened = send(post("", "initialize", json!({ "protocolVersion": "2025-11-25" }))).await;
        let session = opened.header("mcp-session-id").expect("a session");
        let get = request(Method::GET).header("accept", "text/event-stream").header("mcp-session-id", session);
        let mut stream = get.send().await.expect("a stream");
        let call = json!({ "name": "announce", "arguments": { "text": note } });
        assert_eq!(send(post(session, "tools/call", call)).await.status, 200);
        let mut heard = String::new();
        while !heard.contains(note) {
            let chunk = stream.chunk().await.expect("a stream").expect("it goes on");
            heard.push_str(&String::from_utf8_lossy(&chunk));
        }
    }

    async fn drain(&self, path: &str) -> usize {
        let mut response = self.get("echo", path).await;
        let mut read = 0;
        while let Some(chunk) = response.chunk().await.expect("more") {
            read += chunk.len();
        }
        read
    }
}

/// A stream of events with everything that its format allows.
fn stream_of(events: usize, huge: usize) -> Vec<u8> {
    let mut text = b"\xef\xbb\xbfretry: 1500\nid: begin\ndata:\n\n".to_vec();
    for number in 0..events {
        let event = match number % 5 {
            0 => format!(": a comment {number}\n\n"),
            1 => format!("id: {number}\r\nevent: message\r\ndata: {{\"n\":{number}}}\r\n\r\n"),
            2 => format!("data: two\ndata: lines {number}\n\n"),
            3 => format!("id\ndata:{number}\nunknown: field\n\n"),
            _ => format!("event: message\ndata: {{\"text\":\"grüße {number}\"}}\n\n"),
        };
        text.extend_from_slice(event.as_bytes());
    }
    text.extend_from_slice(b"data: ");
    text.extend((0..huge).map(|at| b'a' + u8::try_from(at % 23).expect("a letter")));
    text.extend_from_slice(b"\n\n");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_the_largest_size_passes_and_one_byte_more_does_not() {
    let limit = MIB;
    let said = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let upstream = Upstream::saying(said).await;
    let through = Through::start(upstream.addr, &format!("max_request_body = {limit}\n")).await;
    let (world, tunnel) = (&through.world, &through.tunnel);
    let post = || world.request(Method::POST, tunnel, "up", "/mcp").header("content-type", "application/json");
    let chunked = |size: usize| {
        let pieces =
            (0..size).step_by(10_000).map(move |at| Ok::<_, std::io::Error>(vec![b' '; 10_000.min(size - at)]));
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    };
    for (size, status) in [(limit - 1, 200), (limit, 200), (limit + 1, 413)] {
        let before = upstream.seen().len();
        let announced = send(post().body(vec![b' '; size])).await;
        assert_eq!(announced.status, status, "{size} bytes: {}", announced.text());
        let unannounced = send(post().body(chunked(size))).await;
        assert_eq!(unannounced.status, status, "{size} bytes in chunks: {}", unannounced.text());
        for answer in [announced, unannounced] {
            let hop = answer.header("sortie-hop").map(ToOwned::to_owned);
            assert_eq!(hop.as_deref(), (status == 413).then_some("route"), "{}", answer.text());
            assert!(status == 200 || answer.text().contains(&limit.to_string()), "{}", answer.text());
        }
        let whole = upstream.seen().split_off(before);
        let whole: Vec<usize> =
            whole.iter().map(|seen| seen.body.iter().filter(|byte| **byte == b' ').count()).collect();
        assert_eq!(whole, if status == 200 { vec![size, size] } else { vec![] }, "only whole requests arrive");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_and_one_of_sixteen_mebibytes_pass_as_they_are() {
    let events = stream_of(10_000, 16 * MIB);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\r\n";
    let upstream = Upstream::saying([head.as_bytes(), &events].concat()).await;
    // Where tools are pinned, an event is held until it is known to be no list of them: it comes as it is, too.
    let pinned = Through::start(upstream.addr, "").await;
    let mut whole = pinned.get("up", "/mcp").await;
    let mut came = Vec::new();
    while let Some(chunk) = whole.chunk().await.expect("more") {
        came.extend_from_slice(&chunk);
    }
    assert!(came == events, "{} bytes came", came.len());
    drop(pinned);

    let through = Through::start(upstream.addr, "pinning = \"off\"\n").await;
    for turn in 0..3 {
        let mut response = through.get("up", "/mcp").await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut at = 0;
        while let Some(chunk) = response.chunk().await.expect("more") {
            let wanted = events.get(at..at + chunk.len()).expect("not more than was said");
            assert!(*wanted == chunk[..], "turn {turn}: it differs within {} bytes of {at}", chunk.len());
            at += chunk.len();
        }
        assert_eq!(at, events.len());
        through.bounded("events");
    }
    // By hostname, under TLS.
    let host = format!("up.{}", through.tunnel.domain);
    let mut stream = tls_to(&through.world.edge_addr, &through.world.edge_ca, &host).await;
    let key = &through.world.api_key;
    let request = format!("GET /mcp HTTP/1.0\r\nhost: {host}\r\nx-api-key: {key}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("in time").expect("read");
    assert!(answer.ends_with(&events), "{} bytes came", answer.len());
    through.bounded("events by hostname");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_passes_and_is_not_kept() {
    let through = Through::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), "").await;
    let size = 96 * MIB;
    assert_eq!(through.drain(&format!("/bytes?n={size}")).await, size);
    through.bounded("96 MiB");
}

/// A server that says as much as is taken, and counts what was.
struct Fountain {
    addr: SocketAddr,
    taken: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Fountain {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let taken = Arc::new(AtomicUsize::new(0));
        let count = taken.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = count.clone();
                open.spawn(async move {
                    let mut head = [0; 8192];
                    let _request = stream.read(&mut head).await;
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                    let event = format!("data: {}\n\n", "x".repeat(16 * 1024));
                    let mut said = stream.write_all(head.as_bytes()).await;
                    while said.is_ok() {
                        said = stream.write_all(event.as_bytes()).await;
                        count.fetch_add(event.len(), Ordering::Relaxed);
                    }
                });
            }
        });
        Self { addr, taken, _tasks: tasks }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_hold_back_their_own_source_and_nobody_else() {
    /// What one reader who takes almost nothing may have under way: socket buffers of four connections, which Linux
    /// lets grow to several MiB each, and 256 KiB of the link.
    const UNDER_WAY: usize = 24 * MIB;
    const READERS: usize = 8;
    let fountain = Fountain::start().await;
    let through = Through::start(fountain.addr, "").await;
    let size = 16 * MIB;
    let began = Instant::now();
    assert_eq!(through.drain(&format!("/bytes?n={size}")).await, size);
    let alone = began.elapsed();

    // Each takes one piece a second: what is not taken waits at its source.
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        // What is made to last shares a connection to the gateway with others, what is not has one of its own.
        let accept = if number % 2 == 0 { "text/event-stream" } else { "*/*" };
        let request = through.world.request(Method::GET, &through.tunnel, "up", "/mcp").header("accept", accept);
        let mut response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        readers.spawn(async move {
            loop {
                assert!(response.chunk().await.expect("a stream").is_some());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    until("the source is held back", SOON, async || {
        let before = fountain.taken.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Hardly more than the readers take.
        fountain.taken.load(Ordering::Relaxed) - before < MIB / 2
    })
    .await;
    let taken = fountain.taken.load(Ordering::Relaxed);
    assert!(taken < READERS * UNDER_WAY, "{taken} bytes were taken from the source");
    through.bounded("slow readers");

    // On the same link, others are as fast as before.
    let began = Instant::now();
    assert_eq!(through.drain(&format!("/bytes?n={size}")).await, size);
    let beside = began.elapsed();
    assert!(beside < alone * 4 + Duration::from_secs(2), "{alone:?} alone, {beside:?} beside slow readers");
    let call = send(crate::common::modern(
        through.world.request(Method::POST, &through.tunnel, "echo", "/mcp"),
        &json!(1),
        "echo",
        &json!({ "text": "quick" }),
    ));
    let answer = tokio::time::timeout(Duration::from_secs(3), call).await.expect("at once");
    assert!(answer.text().contains("quick"), "{}", answer.text());
    // Nor does a stream that lasts wait, which shares a connection with those that are full.
    let heard = tokio::time::timeout(Duration::from_secs(3), through.announced("a quick note"));
    heard.await.expect("at once");
    through.bounded("slow readers and a fast one");
}
