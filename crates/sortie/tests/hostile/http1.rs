//! Requests over HTTP/1.1 that two readers could understand in two ways.

use crate::recorder::Request;
use crate::support::{Field, Said, say};

/// What is to come of a shape.
enum Want {
    /// Refused with this status, the connection closed or not; nothing reaches the upstream.
    Refused(u16),
    /// No answer of the upstream, and no whole request there: the body was wrong when its head had already gone on.
    Broken,
    /// Served as this one request, or these: methods, and bodies.
    Served(&'static [(&'static str, &'static str)]),
}
use Want::{Broken, Refused, Served};

/// A shape: its name and its bytes, in which `@` stands for the target's beginning, `#` for Host and key, and `SMUGGLED`
/// for a whole request that must never be one.
type Shape = (&'static str, &'static str, Want);

fn framing() -> Vec<Shape> {
    vec![
        (
            "CL.TE",
            "POST @/x HTTP/1.1\r\n#content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED",
            Served(&[("POST", "")]),
        ),
        (
            "TE.CL",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n1\r\na\r\n0\r\n\r\nSMUGGLED",
            Served(&[("POST", "a")]),
        ),
        (
            "chunked, identity",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "identity, chunked",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
            Refused(501),
        ),
        ("gzip, chunked", "POST @/x HTTP/1.1\r\n#transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
        ("chunked twice", "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", Refused(501)),
        (
            "two lines, chunked",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            Refused(501),
        ),
        (
            "two lines, identity",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        ("xchunked", "POST @/x HTTP/1.1\r\n#transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("empty coding", "POST @/x HTTP/1.1\r\n#transfer-encoding:\r\n\r\n0\r\n\r\n", Refused(400)),
        (
            "coding with parameter",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
            Refused(400),
        ),
        (
            "space and tab around it",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: \t chunked \t\r\n\r\n0\r\n\r\n",
            Served(&[("POST", "")]),
        ),
        ("vertical tab", "POST @/x HTTP/1.1\r\n#transfer-encoding: \u{b}chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("folded", "POST @/x HTTP/1.1\r\n#transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("space before the colon", "POST @/x HTTP/1.1\r\n#transfer-encoding : chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        (
            "underscore",
            "POST @/x HTTP/1.1\r\n#transfer_encoding: chunked\r\ncontent_length: 9\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
            Served(&[("POST", "0\r\n\r\n")]),
        ),
        ("chunked in HTTP/1.0", "POST @/x HTTP/1.0\r\n#transfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
        ("two lengths", "POST @/x HTTP/1.1\r\n#content-length: 5\r\ncontent-length: 6\r\n\r\nhello!", Refused(400)),
        (
            "one length twice",
            "POST @/x HTTP/1.1\r\n#content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            Served(&[("POST", "hello")]),
        ),
        ("list of lengths", "POST @/x HTTP/1.1\r\n#content-length: 5, 5\r\n\r\nhello", Refused(400)),
        ("negative length", "POST @/x HTTP/1.1\r\n#content-length: -5\r\n\r\nhello", Refused(400)),
        ("signed length", "POST @/x HTTP/1.1\r\n#content-length: +5\r\n\r\nhello", Refused(400)),
        ("hexadecimal length", "POST @/x HTTP/1.1\r\n#content-length: 0x5\r\n\r\nhello", Refused(400)),
        ("empty length", "POST @/x HTTP/1.1\r\n#content-length:\r\n\r\nhello", Refused(400)),
        (
            "length beyond numbers",
            "POST @/x HTTP/1.1\r\n#content-length: 99999999999999999999\r\n\r\nhello",
            Refused(400),
        ),
        ("length beyond the bound", "POST @/x HTTP/1.1\r\n#content-length: 9999999999999\r\n\r\nhello", Refused(413)),
        (
            "length named hop-by-hop",
            "POST @/x HTTP/1.1\r\n#connection: content-length\r\ncontent-length: 5\r\n\r\nhello",
            Served(&[("POST", "hello")]),
        ),
        (
            "framing and host named hop-by-hop",
            "POST @/x HTTP/1.1\r\n#connection: transfer-encoding, host, x-api-key\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Served(&[("POST", "hello")]),
        ),
        ("GET with a length", "GET @/x HTTP/1.1\r\n#content-length: 5\r\n\r\nhello", Served(&[("GET", "hello")])),
        (
            "GET in chunks",
            "GET @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            Served(&[("GET", "hello")]),
        ),
        (
            "chunk extensions",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n5;a=b;c\r\nhello\r\n0;x\r\n\r\n",
            Served(&[("POST", "hello")]),
        ),
        (
            "chunk size overflow",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            Broken,
        ),
        ("negative chunk", "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", Broken),
        (
            "chunk size with 0x",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
            Broken,
        ),
        (
            "chunk size ends in LF",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
            Broken,
        ),
        ("chunk ends in LF", "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n", Broken),
        (
            "chunk longer than it says",
            "POST @/x HTTP/1.1\r\n#transfer-encoding: chunked\r\n\r\n5\r\nhello!!0\r\n\r\n",
            Broken,
        ),
    ]
}

fn lines() -> Vec<Shape> {
    vec![
        // RFC 9112, section 2.2, lets us take these; what goes on is CR LF.
        ("bare LF", "POST @/x HTTP/1.1\n#content-length: 2\n\nhi", Served(&[("POST", "hi")])),
        ("bare CR in a value", "GET @/x HTTP/1.1\r\n#x: a\rb\r\n\r\n", Refused(400)),
        ("bare CR ends a line", "GET @/x HTTP/1.1\r#\r\n", Refused(400)),
        ("NUL", "GET @/x HTTP/1.1\r\n#x: a\0b\r\n\r\n", Refused(400)),
        ("DEL", "GET @/x HTTP/1.1\r\n#x: a\u{7f}b\r\n\r\n", Refused(400)),
        ("control byte", "GET @/x HTTP/1.1\r\n#x: a\u{1}b\r\n\r\n", Refused(400)),
        ("folded", "GET @/x HTTP/1.1\r\n#x: a\r\n\tb: c\r\n\r\n", Refused(400)),
        ("folded first", "GET @/x HTTP/1.1\r\n x: a\r\n#\r\n", Refused(400)),
        ("space in a name", "GET @/x HTTP/1.1\r\n#x y: 1\r\n\r\n", Refused(400)),
        ("NUL in a name", "GET @/x HTTP/1.1\r\n#x\0: 1\r\n\r\n", Refused(400)),
        ("parenthesis in a name", "GET @/x HTTP/1.1\r\n#x(: 1\r\n\r\n", Refused(400)),
        ("non-ASCII in a name", "GET @/x HTTP/1.1\r\n#x\u{e9}: 1\r\n\r\n", Refused(400)),
        ("no name", "GET @/x HTTP/1.1\r\n#: 1\r\n\r\n", Refused(400)),
        ("no colon", "GET @/x HTTP/1.1\r\n#x\r\n\r\n", Refused(400)),
        ("two spaces", "GET  @/x HTTP/1.1\r\n#\r\n", Refused(400)),
        ("tab", "GET\t@/x\tHTTP/1.1\r\n#\r\n", Refused(400)),
        ("space in the target", "GET @/x y HTTP/1.1\r\n#\r\n", Refused(400)),
        ("no version", "GET @/x\r\n#\r\n", Refused(400)),
        ("HTTP/1.2", "GET @/x HTTP/1.2\r\n#\r\n", Refused(400)),
        ("HTTP/2.0", "GET @/x HTTP/2.0\r\n#\r\n", Refused(400)),
        ("HTTP/0.9", "GET @/x HTTP/0.9\r\n#\r\n", Refused(400)),
        ("lower-case version", "GET @/x http/1.1\r\n#\r\n", Refused(400)),
        ("odd method", "G@T /x HTTP/1.1\r\n#\r\n", Refused(400)),
        ("method is case-sensitive", "get @/x HTTP/1.1\r\n#\r\n", Served(&[("get", "")])),
        ("lines before the first", "\r\n\r\nGET @/x HTTP/1.1\r\n#\r\n", Served(&[("GET", "")])),
        ("TRACE", "TRACE @/x HTTP/1.1\r\n#\r\n", Refused(501)),
        ("CONNECT", "CONNECT localhost:443 HTTP/1.1\r\n#\r\n", Refused(501)),
        ("asterisk for GET", "GET * HTTP/1.1\r\n#\r\n", Refused(400)),
        ("target without slash", "GET x HTTP/1.1\r\n#\r\n", Refused(400)),
        (
            "h2c",
            "GET @/x HTTP/1.1\r\n#connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
            Served(&[("GET", "")]),
        ),
        (
            "websocket",
            "GET @/x HTTP/1.1\r\n#connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            Served(&[("GET", "")]),
        ),
        (
            "pipelined",
            "POST @/x HTTP/1.1\r\n#content-length: 1\r\n\r\naGET @/x HTTP/1.1\r\n#\r\nPUT @/x HTTP/1.1\r\n#content-length: 0\r\n\r\n",
            Served(&[("POST", "a"), ("GET", ""), ("PUT", "")]),
        ),
        ("HTTP/1.0", "GET @/x HTTP/1.0\r\n#\r\n", Served(&[("GET", "")])),
    ]
}

/// Runs every shape on connections of its own, at the API's port and at the edge's.
async fn run(field: &Field, shapes: Vec<Shape>) {
    let host = field.host("up");
    for (number, (name, shape, want)) in shapes.iter().enumerate() {
        for at_edge in [false, true] {
            let (start, host) = match at_edge {
                false => (format!("/t/{}/up", field.tunnel.label), "localhost"),
                true => (String::new(), host.as_str()),
            };
            let mark = format!("/{number}-{at_edge}");
            let ours = format!("host: {host}\r\nx-api-key: {}\r\n", field.world.api_key);
            let text = shape.replace("SMUGGLED", "GET @/smuggled HTTP/1.1\r\n#\r\n");
            let text = text.replace("@/x", &format!("@{mark}")).replace("@/", &format!("{start}/")).replace('#', &ours);
            // The other ASCII and one Latin letter, each as one byte.
            let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).expect("one byte")).collect();
            let said = match at_edge {
                false => say(&mut field.api().await, &bytes).await,
                true => say(&mut field.edge(host, b"http/1.1").await, &bytes).await,
            };
            let place = format!("{name} ({})", if at_edge { "edge" } else { "API" });
            judge(&place, want, &said, &field.recorder.requests(), &mark);
        }
    }
    field.others_are_served("shapes").await;
    field.bounded("shapes");
}

fn judge(place: &str, want: &Want, said: &Said, seen: &[Request], mark: &str) {
    assert!(!seen.iter().any(|request| request.path().contains("smuggled")), "{place}: {seen:?}");
    let seen: Vec<_> = seen.iter().filter(|request| request.path() == mark).collect();
    match want {
        Refused(status) => {
            assert_eq!(said.statuses(), [*status], "{place}: {}", said.text());
            assert!(seen.is_empty(), "{place}: {seen:?}");
        }
        Broken => {
            assert!(!said.statuses().contains(&200), "{place}: {}", said.text());
            assert!(said.closed, "{place}: what follows cannot be read as a request");
            assert!(seen.is_empty(), "{place}: {seen:?}");
        }
        Served(requests) => {
            assert_eq!(said.statuses(), vec![200; requests.len()], "{place}: {}", said.text());
            let seen: Vec<_> = seen
                .iter()
                .map(|request| (request.line.split(' ').next().unwrap_or(""), String::from_utf8_lossy(&request.body)))
                .collect();
            let wanted: Vec<_> = requests.iter().map(|(method, body)| (*method, (*body).into())).collect();
            assert_eq!(seen, wanted, "{place}");
        }
    }
}

#[tokio::test]
async fn one_request_stays_one_however_its_length_is_told() {
    let field = Field::start().await;
    run(&field, framing()).await;
    // What is left of the framing and its aliases is ours.
    for request in field.recorder.requests() {
        for name in ["transfer_encoding", "content_length", "connection", "upgrade", "te"] {
            assert!(request.header(name).is_empty(), "{name}: {request:?}");
        }
    }
}

#[tokio::test]
async fn lines_are_lines_and_words_are_words() {
    let field = Field::start().await;
    run(&field, lines()).await;
    for request in field.recorder.requests() {
        for name in ["connection", "upgrade", "http2-settings"] {
            assert!(request.header(name).is_empty(), "{name}: {request:?}");
        }
    }
}

#[tokio::test]
async fn a_request_names_one_host_and_it_is_a_host() {
    let field = Field::start().await;
    let key = &field.world.api_key;
    let path = format!("/t/{}/up", field.tunnel.label);
    let addr = field.api_addr();
    for (number, (target, hosts, want)) in [
        ("", "host: localhost\r\n", 200),
        ("http://localhost", "host: LOCALHOST.:1\r\n", 200),
        ("", "", 400),
        ("", "host: localhost\r\nhost: localhost\r\n", 400),
        ("", "host: localhost\r\nhost: evil.example\r\n", 400),
        ("http://localhost", "host: evil.example\r\n", 400),
        ("http://evil.example", "host: localhost\r\n", 400),
        ("http://evil.example", "host: evil.example\r\n", 421),
        ("http://user@localhost", "host: localhost\r\n", 400),
        ("ftp://localhost", "host: localhost\r\n", 400),
        ("", "host: user@localhost\r\n", 400),
        ("", "host: localhost/x\r\n", 400),
        ("", "host: localhost:80:80\r\n", 400),
        ("", "host: localhost:x\r\n", 400),
        ("", "host: localhost:999999\r\n", 400),
        ("", "host: [::1]evil\r\n", 400),
        ("", "host: local host\r\n", 400),
        ("", "host: localhost, evil.example\r\n", 400),
        ("", "host: localho\u{17f}t\r\n", 400),
        ("", "host: %6cocalhost\r\n", 400),
        ("", "host: xn--lcalhost-w5a\r\n", 421),
        ("", "host: 127.1\r\n", 421),
        ("", "host: 2130706433\r\n", 421),
        ("", "host: 0x7f000001\r\n", 421),
        ("", "host: localhost..\r\n", 421),
        ("", "host: [::ffff:10.0.0.1]\r\n", 421),
        ("", "host:\r\n", 421),
    ]
    .into_iter()
    .enumerate()
    {
        let request =
            format!("GET {target}{path}/{number} HTTP/1.1\r\n{hosts}x-api-key: {key}\r\nconnection: close\r\n\r\n");
        let said = say(&mut tokio::net::TcpStream::connect(addr).await.expect("API"), request.as_bytes()).await;
        assert_eq!(said.statuses(), [want], "{target} {hosts}: {}", said.text());
        assert!(want == 200 || said.text().contains("sortie-hop: edge"), "{hosts}: {}", said.text());
        let served = field.recorder.requests().iter().any(|seen| seen.path() == format!("/{number}"));
        assert_eq!(served, want == 200, "{target} {hosts}");
    }
    field.others_are_served("hosts").await;
}

#[tokio::test]
async fn what_waits_for_leave_gets_it_once_and_trailers_say_little() {
    let field = Field::start().await;
    let start = format!("/t/{}/up", field.tunnel.label);
    let ours = format!("host: localhost\r\nx-api-key: {}\r\n", field.world.api_key);
    let expect = format!("POST {start}/e HTTP/1.1\r\n{ours}expect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    let mut api = field.api().await;
    let said = say(&mut api, expect.as_bytes()).await;
    assert_eq!(said.statuses(), [100], "{}", said.text());
    assert_eq!(say(&mut api, b"hi").await.statuses(), [200]);
    assert_eq!(field.recorder.only("/e").body, b"hi");

    let trailers = "trailer: x-sum, content-length, host, sortie-identity, authorization\r\ntransfer-encoding: chunked\r\n\r\n\
                    2\r\nhi\r\n0\r\nx-sum: 1\r\ncontent-length: 50\r\nhost: evil\r\nsortie-identity: x\r\n\
                    authorization: x\r\nx-unsaid: 1\r\n\r\n";
    let said = say(&mut api, format!("POST {start}/t HTTP/1.1\r\n{ours}{trailers}").as_bytes()).await;
    assert_eq!(said.statuses(), [200], "{}", said.text());
    let seen = field.recorder.only("/t");
    let names: Vec<_> = seen.trailers.iter().map(|(name, _)| name.as_str()).collect();
    assert!(names.iter().all(|name| *name == "x-sum"), "{names:?}");
}
