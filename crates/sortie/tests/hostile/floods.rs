//! Floods and slowness: whoever sends too much, or too little, is let go, and stops nobody.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::common::SOON;
use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, Frame, HEADERS, Http2,
    Outcome, PING, PRIORITY, PROTOCOL_ERROR, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, headers,
};
use crate::support::{Field, Wire, hear, say};

/// How long a flood lasts if nobody ends it.
const FLOOD: Duration = Duration::from_millis(1500);
/// How long a connection may be kept that never says a whole head: ten seconds, over HTTP/2 ten more for an answer to the
/// goodbye, and what a loaded machine adds.
const LET_GO: Duration = Duration::from_secs(30);
/// REFUSED_STREAM (RFC 9113, section 7).
const REFUSED_STREAM: u32 = 7;

fn request<'a>(field: &'a Field, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "localhost"),
        (":path", path),
        ("x-api-key", field.world.api_key.as_str()),
    ]
}

/// Sends `begin` and then `again` over and over, reading nothing; others are served meanwhile. What came of it.
async fn flood(field: &Field, name: &str, begin: &[u8], again: &[u8]) -> Outcome {
    let mut http2 = Http2::begin(field.api().await, &[]).await;
    let flooding = async {
        let end = Instant::now() + FLOOD;
        let mut going = http2.send(begin).await;
        while going && Instant::now() < end {
            // A peer that does not read any more has stopped the flood, too.
            going = tokio::time::timeout(FLOOD, http2.send(again)).await.unwrap_or(false);
        }
    };
    tokio::join!(flooding, field.others_are_served(name));
    field.bounded(name);
    http2.outcome_within(1, Duration::from_secs(2)).await
}

#[tokio::test]
async fn floods_of_frames_are_ended_or_cost_nothing() {
    let field = Field::start().await;
    let path = format!("/t/{}/up/flood", field.tunnel.label);
    let open = headers(1, 0, &request(&field, &path));
    let unfinished = frame(HEADERS, END_STREAM, 1, &block(&request(&field, &path)));
    let many = |one: Vec<u8>| one.repeat(1000);
    // With the code that is to end it; none where the peer may send as much as it likes, at its own cost.
    for (name, begin, again, code) in [
        ("SETTINGS", vec![], many(frame(SETTINGS, 0, 0, &[])), None),
        ("SETTINGS with values", vec![], many(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])), None),
        ("SETTINGS that nobody asked to acknowledge", vec![], many(frame(SETTINGS, ACK, 0, &[])), None),
        ("PING", vec![], many(frame(PING, 0, 0, &[7; 8])), None),
        ("PRIORITY", vec![], many(frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 9])), None),
        ("WINDOW_UPDATE", vec![], many(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])), None),
        ("WINDOW_UPDATE beyond numbers", vec![], frame(WINDOW_UPDATE, 0, 0, &[0x7f; 4]), Some(FLOW_CONTROL_ERROR)),
        ("WINDOW_UPDATE of nothing", vec![], frame(WINDOW_UPDATE, 0, 0, &[0; 4]), Some(PROTOCOL_ERROR)),
        ("unknown frames", vec![], many(frame(0x42, 0, 0, &[1; 64])), None),
        ("empty DATA", open.clone(), many(frame(DATA, 0, 1, &[])), Some(ENHANCE_YOUR_CALM)),
        ("padding alone", open, many(frame(DATA, 8, 1, &[3, 0, 0, 0])), Some(ENHANCE_YOUR_CALM)),
        ("empty CONTINUATION", unfinished.clone(), many(frame(CONTINUATION, 0, 1, &[])), Some(ENHANCE_YOUR_CALM)),
        (
            "CONTINUATION",
            unfinished,
            many(frame(CONTINUATION, 0, 1, &block(&[("x-more", &"y".repeat(200))]))),
            Some(ENHANCE_YOUR_CALM),
        ),
    ] {
        let outcome = flood(&field, name, &begin, &again).await;
        match code {
            Some(code) => assert!(
                [Outcome::GoneAway(code), Outcome::Closed, Outcome::Reset(code)].contains(&outcome),
                "{name}: {outcome:?}"
            ),
            None => assert!(!matches!(outcome, Outcome::Answered(..)), "{name}: {outcome:?}"),
        }
    }
    assert!(field.recorder.bytes() < 64 * 1024, "{} bytes reached the upstream", field.recorder.bytes());
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let field = Field::start().await;
    let path = format!("/t/{}/up/reset", field.tunnel.label);
    for key in [field.world.api_key.as_str(), "wrong"] {
        let mut http2 = Http2::begin(field.api().await, &[]).await;
        let mut fields = request(&field, &path);
        fields.pop();
        fields.push(("x-api-key", key));
        let flooding = async {
            let end = Instant::now() + SOON;
            let mut stream = 1;
            while Instant::now() < end {
                let mut bytes = Vec::new();
                for _ in 0..20 {
                    bytes.extend(headers(stream, END_STREAM, &fields));
                    bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                    stream += 2;
                }
                if !http2.send(&bytes).await {
                    return stream / 2;
                }
            }
            panic!("{} requests were reset and the connection is still there", stream / 2);
        };
        let (resets, ()) = tokio::join!(flooding, field.others_are_served("rapid resets"));
        assert!(resets < 200_000, "{resets} resets were taken");
        field.bounded("rapid resets");
    }
    field.others_are_served("behind rapid resets").await;
    let seen = field.recorder.requests().len();
    assert!(seen <= 600, "{seen} requests that nobody waited for reached the upstream");
}

#[tokio::test]
async fn a_client_that_gives_up_call_after_call_is_let_go() {
    let field = Field::start().await;
    let path = format!("/t/{}/up/given-up", field.tunnel.label);
    let mut http2 = Http2::begin(field.api().await, &[]).await;
    let fields = request(&field, &path);
    // Each is left open until the next one is begun, so that it was surely looked at.
    let (mut stream, mut given_up) = (1, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        let mut bytes = headers(stream, 0, &fields);
        bytes.extend(frame(PING, 0, 0, &[1; 8]));
        if !http2.send(&bytes).await || !acknowledged(&mut http2).await {
            break;
        }
        if !http2.send(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await {
            break;
        }
        given_up += 1;
        stream += 2;
    }
    assert!((512..1200).contains(&given_up), "{given_up} requests were given up");
    field.others_are_served("requests given up").await;
    field.bounded("requests given up");
}

/// Reads to the answer of a PING; false at the end of the connection.
async fn acknowledged(http2: &mut Http2<impl Wire>) -> bool {
    while let Some(Frame { kind, flags, .. }) = http2.next().await {
        if kind == PING && flags & ACK != 0 {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_those_that_wait_hold_little() {
    let field = Field::start().await;
    let mut http2 = Http2::begin(field.api().await, &[]).await;
    let path = format!("/t/{}/up/wait", field.tunnel.label);
    let bytes: Vec<u8> = (0..400).flat_map(|n| headers(2 * n + 1, 0, &request(&field, &path))).collect();
    http2.send(&bytes).await;
    // The 257th on its own: the others never send their bodies.
    let refused = http2.outcome(2 * 256 + 1).await;
    assert_eq!(refused, Outcome::Reset(REFUSED_STREAM));
    field.others_are_served("streams without bodies").await;
    field.bounded("streams without bodies");
    drop(http2);

    // Answers for which no window is ever opened, or one of a byte.
    for window in [0, 1] {
        let mut http2 = Http2::begin(field.api().await, &[(4, window)]).await;
        let path = format!("/t/{}/echo/bytes?n=1000000000", field.tunnel.label);
        for stream in 0..50 {
            let mut fields = request(&field, &path);
            fields[0] = (":method", "GET");
            http2.send(&headers(2 * stream + 1, END_STREAM, &fields)).await;
        }
        let mut begun = 0;
        while begun < 50 {
            let frame = tokio::time::timeout(SOON, http2.next()).await.expect("in time").expect("a frame");
            begun += u32::from(frame.kind == HEADERS);
            assert!(frame.kind != RST_STREAM, "{frame:?}");
        }
        field.others_are_served("tiny windows").await;
        field.bounded("tiny windows");
    }
}

#[tokio::test]
async fn headers_beyond_the_bounds_are_refused_over_both_versions() {
    let field = Field::start().await;
    let path = format!("/t/{}/up/headers", field.tunnel.label);
    let big = "y".repeat(15_000);
    let large: Vec<_> = (0..6).map(|_| ("x-large", big.as_str())).collect();
    for (name, more) in [("count", vec![("x", "y"); 101]), ("size", large)] {
        let lines: String = more.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let text = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\nconnection: close\r\n{lines}\r\n",
            field.world.api_key
        );
        let said = say(&mut field.api().await, text.as_bytes()).await;
        assert_eq!(said.statuses(), [431], "{name}: {}", said.text());

        let mut http2 = Http2::begin(field.api().await, &[]).await;
        let block = block(&[request(&field, &path), more].concat());
        let pieces: Vec<_> = block.chunks(16_000).collect();
        let last = pieces.len() - 1;
        for (number, piece) in pieces.into_iter().enumerate() {
            let end = if number == last { END_HEADERS } else { 0 };
            let (kind, flags) = if number == 0 { (HEADERS, END_STREAM | end) } else { (CONTINUATION, end) };
            http2.send(&frame(kind, flags, 1, piece)).await;
        }
        let outcome = http2.outcome(1).await;
        assert!(matches!(outcome, Outcome::Answered(431, _)), "{name}: {outcome:?}");
    }
    // A table's entry costs its sender once and its reader each time.
    let mut bomb = block(&request(&field, &path));
    bomb.push(0x40);
    bomb.extend([1, b'x', 127, 0xa1, 0x1e]);
    bomb.extend(vec![b'y'; 127 + 0x21 + (0x1e << 7)]);
    bomb.extend(vec![0x80 | 62; 10_000]);
    let mut http2 = Http2::begin(field.api().await, &[]).await;
    http2.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb)).await;
    let outcome = http2.outcome(1).await;
    assert!(matches!(outcome, Outcome::Answered(431, _) | Outcome::GoneAway(_) | Outcome::Reset(_)), "{outcome:?}");
    assert_eq!(field.recorder.bytes(), 0);
    field.others_are_served("headers").await;
    field.bounded("headers");
}

/// Sends a byte now and then until the connection ends; whether that came in time.
async fn trickle(mut wire: impl Wire, bytes: Vec<u8>) -> bool {
    let (end, mut byte) = (Instant::now() + LET_GO, [0]);
    let mut bytes = bytes.into_iter().cycle();
    while Instant::now() < end {
        let next = [bytes.next().unwrap_or(b'x')];
        if wire.write_all(&next).await.is_err() {
            return true;
        }
        match tokio::time::timeout(Duration::from_millis(300), wire.read(&mut byte)).await {
            Ok(Ok(1..)) | Err(_) => {}
            Ok(_) => return true,
        }
    }
    false
}

#[tokio::test]
async fn slow_heads_are_let_go_and_slow_bodies_stop_nobody() {
    let field = Field::start().await;
    let mut heads = JoinSet::new();
    let slow =
        format!("GET /t/{}/up/slow HTTP/1.1\r\nhost: localhost\r\nx-slow: {}", field.tunnel.label, "y".repeat(500));
    for number in 0..60 {
        let text = slow.clone().into_bytes();
        match number % 3 {
            0 => {
                let api = field.api().await;
                heads.spawn(trickle(api, text));
            }
            1 => {
                let edge = field.edge(&field.host("up"), b"http/1.1").await;
                heads.spawn(trickle(edge, text));
            }
            _ => {
                // Over HTTP/2: HEADERS that never end, kept alive by PINGs.
                let mut http2 = Http2::begin(field.api().await, &[]).await;
                http2.send(&frame(PING, 0, 0, &[1; 8])).await;
                heads.spawn(trickle(http2.wire, frame(PING, 0, 0, &[1; 8])));
            }
        }
    }
    // Bodies come byte by byte for as long as their callers like: a call has no time limit of ours.
    let mut bodies = JoinSet::new();
    for _ in 0..40 {
        let text = format!(
            "POST /t/{}/up/slow HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: 1000\r\n\r\n",
            field.tunnel.label, field.world.api_key
        );
        let mut api = field.api().await;
        api.write_all(text.as_bytes()).await.expect("written");
        bodies.spawn(trickle(api, vec![b'x']));
    }
    for _ in 0..3 {
        field.others_are_served("slowness").await;
        field.bounded("slowness");
    }
    while let Some(let_go) = heads.join_next().await {
        assert!(let_go.expect("joined"), "a head that never ends is kept");
    }
    bodies.shutdown().await;
    assert!(field.recorder.requests().is_empty());
}

#[tokio::test]
async fn what_is_no_tls_is_let_go() {
    let field = Field::start().await;
    let edge = field.edge_addr();
    let is_closed = async |name: &str, mut wire: TcpStream| {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LET_GO, wire.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{name}: kept");
        assert!(!rest.starts_with(b"HTTP"), "{name}: answered in clear");
        rest
    };
    let send = async |bytes: &[u8]| {
        let mut wire = TcpStream::connect(edge).await.expect("edge");
        let _gone = wire.write_all(bytes).await;
        wire
    };
    let hello = client_hello(&field, edge).await;
    // Refused at once.
    let began = Instant::now();
    for (name, bytes) in [
        ("plain HTTP", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_vec()),
        ("plain HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("zeroes", vec![0; 1000]),
        ("an SSL 2.0 hello", vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10]),
        ("application data first", vec![23, 3, 3, 0, 5, 1, 2, 3, 4, 5]),
        ("an alert first", vec![21, 3, 3, 0, 2, 1, 0]),
        ("a record without content", vec![22, 3, 1, 0, 0, 22, 3, 1, 0, 0]),
        ("a hello larger than is read", [vec![22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff], vec![0; 16_380]].concat()),
        ("another handshake message", vec![22, 3, 1, 0, 4, 14, 0, 0, 0]),
        ("two hellos", hello.repeat(2)),
    ] {
        is_closed(name, send(&bytes).await).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // A hello may come in fragments, of a byte each even; and one whose end never comes is let go.
    let mut fragments = Vec::new();
    for byte in &hello[5..] {
        fragments.extend([22, 3, 1, 0, 1, *byte]);
    }
    let mut wire = send(&fragments).await;
    let mut first = [0];
    let answered = tokio::time::timeout(SOON, wire.read_exact(&mut first)).await;
    assert!(answered.is_ok_and(|read| read.is_ok()), "a hello in fragments is a hello");
    assert!([21, 22].contains(&first[0]), "{first:?}");
    let mut held = Vec::new();
    for number in 0..100 {
        let part = &hello[..hello.len() * (number % 10) / 10];
        held.push(send(part).await);
    }
    // A whole hello, and then silence.
    for _ in 0..20 {
        held.push(send(&hello).await);
    }
    field.others_are_served("half handshakes").await;
    field.bounded("half handshakes");
    let closed = held.into_iter().map(|wire| is_closed("half a handshake", wire));
    futures_util::future::join_all(closed).await;

    // Behind a good handshake: bytes that are no HTTP, and no second handshake either.
    for bytes in [b"\x16\x03\x01\x02\x00\x01\x00".to_vec(), vec![0xff; 4096], b"\0".repeat(100)] {
        let mut wire = field.edge(&field.host("up"), b"http/1.1").await;
        let said = say(&mut wire, &bytes).await;
        assert_eq!(said.statuses(), [400], "{}", said.text());
        assert!(said.closed);
    }
    let mut wire = field.edge(&field.host("up"), b"h2").await;
    let _gone = wire.write_all(&[0xff; 4096]).await;
    assert!(hear(&mut wire).await.closed);
    assert_eq!(field.recorder.bytes(), 0);
}

/// The first record that a client of ours would send.
async fn client_hello(field: &Field, edge: SocketAddr) -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind((edge.ip(), 0)).await.expect("bind");
    let to = listener.local_addr().expect("address");
    let host = field.host("up");
    let hello = async {
        let (mut wire, _) = listener.accept().await.expect("accepted");
        let mut head = [0; 5];
        wire.read_exact(&mut head).await.expect("head");
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        wire.read_exact(&mut body).await.expect("body");
        [&head[..], &body].concat()
    };
    let dialling = async {
        let tcp = TcpStream::connect(to).await.expect("connect");
        let _ended = field.tls(tcp, &host, b"http/1.1").await;
    };
    tokio::select! {
        hello = hello => hello,
        () = async { dialling.await; std::future::pending().await } => unreachable!("it waits for ever"),
    }
}
