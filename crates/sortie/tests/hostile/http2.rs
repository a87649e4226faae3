//! Requests over HTTP/2 that two readers could understand in two ways, above all the HTTP/1.1 ones behind.

use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, Outcome, PROTOCOL_ERROR, block, frame, headers,
};
use crate::support::{Field, Wire};

/// What is to come of a shape.
enum Want {
    /// Reset, or the connection ended, for breaking the protocol.
    Malformed,
    /// Refused by us with this status.
    Refused(u16),
    /// Served as a request with this body.
    Served(&'static str),
}
use Want::{Malformed, Refused, Served};

/// A name, the fields beside method, scheme, authority, path and key (or in their place: `-name` leaves one out, and what
/// begins with `!` goes before them), and the body.
type Shape = (&'static str, &'static [(&'static str, &'static str)], Option<&'static str>, Want);

fn shapes() -> Vec<Shape> {
    vec![
        ("as it should be", &[], None, Served("")),
        ("body", &[("content-length", "5")], Some("hello"), Served("hello")),
        ("body of unknown length", &[], Some("hello"), Served("hello")),
        ("GET with a body", &[("-:method", ""), ("!:method", "GET")], Some("hello"), Served("hello")),
        ("length too short", &[("content-length", "3")], Some("hello"), Malformed),
        ("length too long", &[("content-length", "9")], Some("hello"), Malformed),
        ("length without a body", &[("content-length", "5")], None, Malformed),
        ("two lengths", &[("content-length", "5"), ("content-length", "3")], Some("hello"), Malformed),
        ("one length twice", &[("content-length", "5"), ("content-length", "5")], Some("hello"), Served("hello")),
        ("signed length", &[("content-length", "+5")], Some("hello"), Malformed),
        ("list of lengths", &[("content-length", "5, 5")], Some("hello"), Malformed),
        (
            "transfer-encoding",
            &[("transfer-encoding", "chunked")],
            Some("0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
            Malformed,
        ),
        ("connection", &[("connection", "close")], None, Malformed),
        ("keep-alive", &[("keep-alive", "timeout=5")], None, Malformed),
        ("proxy-connection", &[("proxy-connection", "close")], None, Malformed),
        ("upgrade", &[("upgrade", "h2c")], None, Malformed),
        ("te: gzip", &[("te", "gzip")], None, Malformed),
        ("te: trailers", &[("te", "trailers")], None, Served("")),
        ("upper case", &[("X-Upper", "1")], None, Malformed),
        ("space in a name", &[("x y", "1")], None, Malformed),
        ("colon in a name", &[("x:y", "1")], None, Malformed),
        ("line end in a name", &[("x\r\ny", "1")], None, Malformed),
        ("line end in a value", &[("x", "1\r\ntransfer-encoding: chunked")], None, Malformed),
        ("LF in a value", &[("x", "1\nhost: evil")], None, Malformed),
        ("NUL in a value", &[("x", "1\0")], None, Malformed),
        ("empty name", &[("", "1")], None, Malformed),
        (":method twice", &[("!:method", "GET")], None, Malformed),
        (":path twice", &[("!:path", "/other")], None, Malformed),
        (":authority twice", &[("!:authority", "localhost")], None, Malformed),
        ("no :method", &[("-:method", "")], None, Malformed),
        ("no :path", &[("-:path", "")], None, Malformed),
        ("no :scheme", &[("-:scheme", "")], None, Malformed),
        ("no :authority and no Host", &[("-:authority", "")], None, Refused(400)),
        ("unknown pseudo-header", &[("!:x", "1")], None, Malformed),
        (":status", &[("!:status", "200")], None, Malformed),
        (":protocol", &[("!:protocol", "websocket")], None, Malformed),
        ("pseudo-header behind others", &[("x", "1"), (":path", "/later")], None, Malformed),
        ("empty :path", &[("-:path", ""), ("!:path", "")], None, Malformed),
        ("space in :path", &[("-:path", ""), ("!:path", "/a HTTP/1.1\r\nx: y")], None, Malformed),
        (":path without slash", &[("-:path", ""), ("!:path", "evil")], None, Malformed),
        (":path with an authority", &[("-:path", ""), ("!:path", "@evil.example/")], None, Malformed),
        (":path with a scheme", &[("-:path", ""), ("!:path", "http://evil.example/")], None, Malformed),
        ("asterisk", &[("-:path", ""), ("!:path", "*")], None, Refused(400)),
        ("odd :method", &[("-:method", ""), ("!:method", "GET / HTTP/1.1\r\nx:")], None, Malformed),
        ("TRACE", &[("-:method", ""), ("!:method", "TRACE")], None, Refused(501)),
        ("odd :scheme", &[("-:scheme", ""), ("!:scheme", "ftp")], None, Refused(400)),
        (":scheme with more", &[("-:scheme", ""), ("!:scheme", "http://evil/")], None, Malformed),
        ("Host differs", &[("host", "evil.example")], None, Refused(400)),
        ("Host twice", &[("host", "localhost"), ("host", "localhost")], None, Refused(400)),
        ("user in :authority", &[("-:authority", ""), ("!:authority", "user@localhost")], None, Refused(400)),
        ("path in :authority", &[("-:authority", ""), ("!:authority", "localhost/x")], None, Malformed),
        ("another :authority", &[("-:authority", ""), ("!:authority", "evil.example")], None, Refused(421)),
    ]
}

async fn run(wire: impl Wire, field: &Field, authority: &str, path: &str, shape: &Shape) -> Outcome {
    let (_, more, body, _) = shape;
    let own = [(":method", "POST"), (":scheme", "http"), (":authority", authority), (":path", path)].into_iter();
    let own = own.filter(|(name, _)| !more.iter().any(|(left_out, _)| left_out.strip_prefix('-') == Some(name)));
    let before = more.iter().filter_map(|(name, value)| Some((name.strip_prefix('!')?, *value)));
    let behind = more.iter().filter(|(name, _)| !name.starts_with(['!', '-'])).copied();
    let fields: Vec<_> = before.chain(own).chain([("x-api-key", field.world.api_key.as_str())]).chain(behind).collect();
    let mut http2 = Http2::begin(wire, &[]).await;
    let end = if body.is_none() { END_STREAM } else { 0 };
    let mut bytes = headers(1, end, &fields);
    if let Some(body) = body {
        bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
    }
    http2.send(&bytes).await;
    http2.outcome(1).await
}

#[tokio::test]
async fn each_odd_request_is_refused_and_never_becomes_two() {
    let field = Field::start().await;
    for (number, shape) in shapes().iter().enumerate() {
        let (name, _, _, want) = shape;
        for at_edge in [false, true] {
            let (mark, host) = (format!("/{number}-{at_edge}"), field.host("up"));
            let outcome = match at_edge {
                false => {
                    let path = format!("/t/{}/up{mark}", field.tunnel.label);
                    run(field.api().await, &field, "localhost", &path, shape).await
                }
                true => run(field.edge(&host, b"h2").await, &field, &host, &mark, shape).await,
            };
            let place = format!("{name} ({})", if at_edge { "edge" } else { "API" });
            let requests = field.recorder.requests();
            assert!(!requests.iter().any(|request| request.path().contains("smuggled")), "{place}");
            let seen: Vec<_> = requests.iter().filter(|request| request.path() == mark).collect();
            match want {
                Malformed => {
                    let reset = [Outcome::Reset(PROTOCOL_ERROR), Outcome::GoneAway(PROTOCOL_ERROR)];
                    let known = matches!(&outcome, Outcome::Answered(400, body) if body.is_empty());
                    assert!(reset.contains(&outcome) || known, "{place}: {outcome:?}");
                    assert!(seen.is_empty(), "{place}: {seen:?}");
                }
                Refused(status) => {
                    let Outcome::Answered(answered, body) = &outcome else { panic!("{place}: {outcome:?}") };
                    assert_eq!(answered, status, "{place}: {body}");
                    assert!(body.contains("\"hop\":\"edge\""), "{place}: {body}");
                    assert!(seen.is_empty(), "{place}: {seen:?}");
                }
                Served(body) => {
                    assert_eq!(outcome, Outcome::Answered(200, "ok".into()), "{place}");
                    let [seen] = seen[..] else { panic!("{place}: {seen:?}") };
                    assert_eq!(String::from_utf8_lossy(&seen.body), *body, "{place}");
                }
            }
        }
    }
    field.others_are_served("shapes").await;
    field.bounded("shapes");
}

#[tokio::test]
async fn bytes_that_are_no_http2_end_the_connection() {
    let field = Field::start().await;
    let whole = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/healthz")];
    let whole = block(&whole);
    let (first, second) = whole.split_at(10);
    for (name, bytes) in [
        ("DATA on no stream", frame(DATA, 0, 0, b"x")),
        ("DATA on a stream that is not open", frame(DATA, 0, 7, b"x")),
        ("HEADERS on stream 0", frame(HEADERS, END_HEADERS, 0, &whole)),
        ("HEADERS on an even stream", frame(HEADERS, END_HEADERS, 2, &whole)),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, second)),
        (
            "a frame between HEADERS and CONTINUATION",
            [frame(HEADERS, END_STREAM, 1, first), frame(DATA, 0, 1, b"x")].concat(),
        ),
        (
            "CONTINUATION on another stream",
            [frame(HEADERS, END_STREAM, 1, first), frame(CONTINUATION, END_HEADERS, 3, second)].concat(),
        ),
        ("padding longer than the frame", frame(DATA, 8, 1, &[200, 0])),
        ("table index out of bounds", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0x0f])),
        ("a number without end", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 64])),
        ("larger than was offered", frame(DATA, 0, 1, &vec![0; 17 * 1024])),
        ("a window beyond numbers", frame(8, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("SETTINGS of odd size", frame(4, 0, 0, &[0; 5])),
        ("PING of odd size", frame(6, 0, 0, &[0; 7])),
        ("PUSH_PROMISE from a client", frame(5, END_HEADERS, 1, &[0, 0, 0, 2])),
    ] {
        let mut http2 = Http2::begin(field.api().await, &[]).await;
        http2.send(&bytes).await;
        let outcome = http2.outcome(1).await;
        assert!(matches!(outcome, Outcome::GoneAway(1..) | Outcome::Closed), "{name}: {outcome:?}");
    }
    field.others_are_served("frames").await;
    field.bounded("frames");
    assert_eq!(field.recorder.bytes(), 0);
}
