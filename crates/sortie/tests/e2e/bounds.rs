//! What a caller, or a crowd of them, can make us hold: memory stays bounded and others are served.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use reqwest::Method;
use sortie_testkit::EchoServer;
use sortie_testkit::usage::rss_kb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::common::{GatewayProcess, SOON, Tunnel, World, echo_route, send, until};

const GIB: usize = 1 << 30;
/// How much a process may grow over idle, in KiB.
const GROWTH_KB: u64 = 60 * 1024;

/// As `serving`, for tests that are about how much of everything there is.
struct Crowd {
    world: World,
    tunnel: Tunnel,
    gateway: GatewayProcess,
    _echo: EchoServer,
}

impl Crowd {
    async fn start(more: &str) -> Self {
        let world = World::start().await;
        let tunnel = world.tunnel("setup").await;
        let echo = EchoServer::start().await.expect("echo");
        let config = more.to_owned() + &echo_route(&echo);
        let gateway = world.gateway(&tunnel.dir, &config, &[]).await;
        let crowd = Self { world, tunnel, gateway, _echo: echo };
        // Idle means after the first calls: allocators and pools are warm then.
        for _ in 0..20 {
            crowd.world.serves(&crowd.tunnel, "echo").await;
        }
        crowd
    }

    fn memory_kb(&self) -> [u64; 2] {
        [rss_kb(&[self.world.hub.id()]), rss_kb(&[self.gateway.process.id()])]
    }

    fn grew(&self, idle: [u64; 2]) -> [u64; 2] {
        let now = self.memory_kb();
        [now[0].saturating_sub(idle[0]), now[1].saturating_sub(idle[1])]
    }

    fn bounded(&self, idle: [u64; 2]) {
        let grew = self.grew(idle);
        assert!(grew.iter().all(|kb| *kb < GROWTH_KB), "hub and gateway grew by {grew:?} KiB");
    }

    fn api(&self) -> SocketAddr {
        self.world.api_url.trim_start_matches("http://").parse().expect("address")
    }

    fn path(&self) -> String {
        format!("/t/{}/echo", self.tunnel.label)
    }

    async fn others_are_served(&self) {
        let began = Instant::now();
        for _ in 0..5 {
            self.world.serves(&self.tunnel, "echo").await;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "others waited {:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_readers_of_large_answers_hold_little_and_stop_nobody() {
    let crowd = Crowd::start("").await;
    let idle = crowd.memory_kb();
    let mut readers = Vec::new();
    for _ in 0..20 {
        let request = crowd.world.request(Method::GET, &crowd.tunnel, "echo", &format!("/bytes?n={GIB}"));
        let mut response = request.send().await.expect("answer");
        assert_eq!(response.status(), 200);
        assert!(response.chunk().await.expect("chunk").is_some());
        readers.push(response);
    }
    let end = Instant::now() + Duration::from_secs(4);
    let mut read = 0;
    while Instant::now() < end {
        // A trickle: what is not read has to wait at its source.
        for reader in &mut readers {
            read += reader.chunk().await.expect("chunk").expect("more").len();
        }
        crowd.others_are_served().await;
        crowd.bounded(idle);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(read < GIB, "this is not a trickle");
    drop(readers);
    // A kept 1 GiB would show now, too.
    crowd.others_are_served().await;
    crowd.bounded(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_reader_gets_all_of_a_large_answer() {
    let crowd = Crowd::start("").await;
    let (idle, size) = (crowd.memory_kb(), 128 << 20);
    let mut response = crowd
        .world
        .request(Method::GET, &crowd.tunnel, "echo", &format!("/bytes?n={size}"))
        .send()
        .await
        .expect("answer");
    let mut read = 0;
    while let Some(chunk) = response.chunk().await.expect("chunk") {
        read += chunk.len();
    }
    assert_eq!(read, size);
    crowd.bounded(idle);
}

/// Sends a head and then as much of a body of this size as is taken; what was answered, and how much was taken.
async fn pour(addr: SocketAddr, head: &str, chunked: bool, size: usize) -> (String, usize) {
    let stream = TcpStream::connect(addr).await.expect("connect");
    let (mut read, mut write) = stream.into_split();
    write.write_all(head.as_bytes()).await.expect("head");
    let mut answer = Vec::new();
    let mut poured = 0;
    let filler = vec![b'x'; 64 * 1024];
    let pouring = async {
        while poured < size {
            let framed = if chunked { write.write_all(b"10000\r\n").await } else { Ok(()) };
            if framed.is_err() || write.write_all(&filler).await.is_err() {
                break;
            }
            if chunked && write.write_all(b"\r\n").await.is_err() {
                break;
            }
            poured += filler.len();
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = read.read(&mut chunk).await {
            answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        }
    };
    let both = async {
        tokio::select! {
            () = pouring => {}
            () = reading => {}
        }
    };
    tokio::time::timeout(SOON, both).await.expect("the connection was not closed");
    (String::from_utf8_lossy(&answer).into_owned(), poured)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_huge_request_is_refused_early_and_not_kept() {
    let crowd = Crowd::start("max_request_body = 1048576\n").await;
    let idle = crowd.memory_kb();
    let head = |length: &str| {
        format!(
            "POST {}/mcp HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\n{length}\r\n\r\n",
            crowd.path(),
            crowd.world.api_key
        )
    };
    let (answer, poured) = pour(crowd.api(), &head(&format!("content-length: {GIB}")), false, GIB).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("sortie-hop: route"), "{answer}");
    assert!(poured < 64 << 20, "{poured} bytes were taken");
    crowd.bounded(idle);
    let (answer, poured) = pour(crowd.api(), &head("transfer-encoding: chunked"), true, GIB).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(poured < 64 << 20, "{poured} bytes were taken");
    crowd.bounded(idle);
    crowd.others_are_served().await;
    // Nor does the API itself take it.
    let head = format!(
        "POST /v1/tunnels HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: {GIB}\r\n\r\n",
        crowd.world.api_key
    );
    let (answer, poured) = pour(crowd.api(), &head, false, GIB).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(poured < 64 << 20, "{poured} bytes were taken");
    crowd.bounded(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_are_too_large_are_refused() {
    let crowd = Crowd::start("").await;
    let idle = crowd.memory_kb();
    for (count, size) in [(1, 100_000), (1, 2_000_000), (2000, 100), (20_000, 4)] {
        let mut stream = TcpStream::connect(crowd.api()).await.expect("connect");
        let key = &crowd.world.api_key;
        let mut head = format!("GET {}/small HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n", crowd.path());
        for number in 0..count {
            head.push_str(&format!("x-{number}: {}\r\n", "y".repeat(size)));
        }
        head.push_str("\r\n");
        let _refused_early = stream.write_all(head.as_bytes()).await;
        let mut answer = [0; 12];
        let read = tokio::time::timeout(SOON, stream.read_exact(&mut answer)).await.expect("in time");
        // A reset is a refusal, too, when the rest was still on its way.
        if read.is_ok() {
            let status = String::from_utf8_lossy(&answer).into_owned();
            assert!(["HTTP/1.1 431", "HTTP/1.1 400"].contains(&status.as_str()), "{count} of {size}: {status}");
        }
        crowd.others_are_served().await;
    }
    crowd.bounded(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_finish_speaking_stop_nobody() {
    let crowd = Crowd::start("").await;
    let idle = crowd.memory_kb();
    let edge: SocketAddr = crowd.world.edge_addr.parse().expect("address");
    let key = &crowd.world.api_key;
    let mut held = Vec::new();
    for number in 0..200 {
        let (addr, said) = match number % 5 {
            0 => (crowd.api(), "GET /t/".to_owned()),
            1 => (crowd.api(), format!("GET {}/small HTTP/1.1\r\nhost: loc", crowd.path())),
            // A head that is whole, and a body that never comes.
            2 => (
                crowd.api(),
                format!(
                    "POST {}/mcp HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: 10\r\n\
                     content-type: application/json\r\n\r\n",
                    crowd.path()
                ),
            ),
            // The beginning of a ClientHello.
            3 => (edge, "\u{16}\u{3}\u{1}\u{2}".to_owned()),
            _ => (edge, String::new()),
        };
        let mut stream = TcpStream::connect(addr).await.expect("connect");
        stream.write_all(said.as_bytes()).await.expect("write");
        held.push(stream);
    }
    for _ in 0..3 {
        crowd.others_are_served().await;
    }
    crowd.bounded(idle);
    // Those that never said a whole head, or hello, are let go.
    let mut closed = 0;
    for (number, mut stream) in held.into_iter().enumerate() {
        if number % 5 == 2 {
            continue;
        }
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
        closed += usize::from(ended.is_ok());
    }
    assert_eq!(closed, 160);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_hang_up_leave_nothing_behind() {
    let crowd = Crowd::start("").await;
    let idle = crowd.memory_kb();
    for _ in 0..300 {
        let request = crowd.world.request(Method::GET, &crowd.tunnel, "echo", "/bytes?n=100000000");
        drop(request.send().await.expect("answer"));
    }
    let gauge = async || {
        let metrics = send(crowd.world.http.get(format!("{}/metrics", crowd.gateway.health))).await.text();
        let line = metrics.lines().find(|line| line.starts_with("sortie_gateway_open_streams ")).map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(f64::MAX)
    };
    until("streams of callers who left are gone", SOON, async || gauge().await < 5.0).await;
    crowd.bounded(idle);
    crowd.others_are_served().await;
}
