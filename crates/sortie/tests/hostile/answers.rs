//! A hostile MCP server: what its answers may be, and what must not become of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::common::{SOON, until};
use crate::recorder::find;
use crate::support::{Field, Said, say};

/// What it says to a request: bytes, then perhaps others again and again, then nothing or the end.
#[derive(Clone, Default)]
struct Script {
    /// Before the request was read.
    early: Vec<u8>,
    answer: Vec<u8>,
    /// A moment behind the answer.
    late: Vec<u8>,
    again: Vec<u8>,
    close: bool,
}

struct Liar {
    addr: SocketAddr,
    script: Arc<Mutex<Script>>,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
    /// Answers that were written, with what came late.
    done: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Liar {
    async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let (script, open, done) = (Arc::new(Mutex::new(Script::default())), Arc::default(), Arc::default());
        let (read, counted, told): (_, Arc<AtomicUsize>, Arc<AtomicUsize>) = (script.clone(), open, done);
        let (open, done) = (counted.clone(), told.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (read, counted, told) = (read.clone(), counted.clone(), told.clone());
                serving.spawn(async move {
                    counted.fetch_add(1, Ordering::SeqCst);
                    let _gone = serve(stream, &read, &told).await;
                    counted.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { addr, script, open, done, _tasks: tasks }
    }

    fn says(&self, script: Script) {
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
    }
}

async fn serve(mut stream: TcpStream, script: &Mutex<Script>, done: &AtomicUsize) -> std::io::Result<()> {
    let now = || script.lock().unwrap_or_else(PoisonError::into_inner).clone();
    stream.write_all(&now().early).await?;
    let mut bytes = Vec::new();
    loop {
        while find(&bytes, b"\r\n\r\n").is_none() {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
        bytes.clear();
        let script = now();
        stream.write_all(&script.answer).await?;
        if !script.late.is_empty() {
            tokio::time::sleep(Duration::from_millis(30)).await;
            stream.write_all(&script.late).await?;
        }
        done.fetch_add(1, Ordering::SeqCst);
        while !script.again.is_empty() {
            stream.write_all(&script.again).await?;
        }
        if script.close {
            return stream.shutdown().await;
        }
    }
}

fn text(answer: &str) -> Script {
    Script { answer: answer.into(), ..Script::default() }
}

async fn behind() -> (Field, Liar) {
    let liar = Liar::start().await;
    let field = Field::with(&[("liar", &format!("http://{}", liar.addr))]).await;
    (field, liar)
}

async fn call(field: &Field, more: &str) -> Said {
    let request = format!(
        "GET /t/{}/liar/x HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\nconnection: close, te\r\nte: trailers\r\n{more}\r\n",
        field.tunnel.label, field.world.api_key
    );
    say(&mut field.api().await, request.as_bytes()).await
}

#[tokio::test]
async fn an_answer_that_two_readers_could_read_in_two_ways_is_none() {
    let (field, liar) = behind().await;
    let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok", "y".repeat(200_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x: y\r\n".repeat(500));
    for (name, answer) in [
        ("CL and TE", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("TE and CL", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("gzip, chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("identity", "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nok"),
        ("chunked twice", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("chunked in HTTP/1.0", "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!"),
        ("one length twice", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"),
        ("list of lengths", "HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok"),
        ("signed length", "HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok"),
        ("negative length", "HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok"),
        ("folded", "HTTP/1.1 200 OK\r\nx: a\r\n b: c\r\ncontent-length: 2\r\n\r\nok"),
        ("space before the colon", "HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok"),
        ("NUL", "HTTP/1.1 200 OK\r\nx: a\0\r\ncontent-length: 2\r\n\r\nok"),
        ("bare CR", "HTTP/1.1 200 OK\r\nx: a\rb\r\ncontent-length: 2\r\n\r\nok"),
        ("no HTTP", "hello, this is HTTP/0.9"),
        ("HTTP/2 preface", "HTTP/2 200\r\ncontent-length: 2\r\n\r\nok"),
        ("odd status", "HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok"),
        ("status 099", "HTTP/1.1 099 OK\r\ncontent-length: 2\r\n\r\nok"),
        ("101", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\u{1}\u{2}"),
        ("head that is too long", &long),
        ("head with too many lines", &many),
        ("nothing", ""),
    ] {
        liar.says(Script { close: true, ..text(answer) });
        let said = call(&field, "").await;
        assert_eq!(said.statuses(), [502], "{name}: {}", said.text());
        assert!(said.text().contains("sortie-hop: upstream\r\n"), "{name}: {}", said.text());
        assert!(said.closed, "{name}");
    }
    field.others_are_served("answers").await;
    field.bounded("answers");
}

#[tokio::test]
async fn interim_answers_pass_by_and_a_flood_of_them_ends_the_call() {
    let (field, liar) = behind().await;
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    liar.says(text(&format!("{interim}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")));
    let said = call(&field, "").await;
    assert_eq!(said.statuses(), [200], "{}", said.text());

    liar.says(Script { again: interim.repeat(100).into(), ..Script::default() });
    let began = Instant::now();
    let said = call(&field, "").await;
    assert_eq!(said.statuses(), [502], "{}", said.text());
    assert!(said.text().contains("too many interim answers"), "{}", said.text());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    until("the flood is hung up on", SOON, async || liar.open.load(Ordering::SeqCst) == 0).await;
    field.others_are_served("interim answers").await;
    field.bounded("interim answers");
}

#[tokio::test]
async fn what_follows_an_answer_reaches_nobody() {
    let (field, liar) = behind().await;
    let good = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let no_content = "HTTP/1.1 204 No Content\r\n\r\n";
    for (name, script) in [
        ("at once", text(&format!("{good}{poison}"))),
        ("a moment later", Script { late: poison.into(), ..text(good) }),
        ("behind chunks", text(&format!("{chunked}{poison}"))),
        ("behind no content", text(&format!("{no_content}{poison}"))),
        ("body of no content", text("HTTP/1.1 204 No Content\r\ncontent-length: 6\r\n\r\npoison")),
        ("body of not modified", text("HTTP/1.1 304 Not Modified\r\ncontent-length: 6\r\n\r\npoison")),
        ("longer than it says", text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokpoison")),
        (
            "before the request",
            Script { early: "HTTP/1.1 500 Early\r\ncontent-length: 6\r\n\r\npoison".into(), ..text(good) },
        ),
    ] {
        liar.says(script);
        for round in 0..12 {
            let done = liar.done.load(Ordering::SeqCst);
            let said = call(&field, "").await;
            // A server that speaks before it is asked answers nothing by that: the call ends there, or its own answer
            // comes. All else is one answer, and no byte of another.
            let early = name == "before the request";
            // What comes behind the next request is an answer to it, for all that anybody can tell.
            let written = async || early || liar.done.load(Ordering::SeqCst) > done;
            until("all of it is written", SOON, written).await;
            assert!(early || !said.text().contains("poison"), "{name}, {round}: {}", said.text());
            assert_eq!(said.statuses().len(), 1, "{name}, {round}: {}", said.text());
            assert!(early || !said.statuses().contains(&502), "{name}, {round}: {}", said.text());
        }
        // Whatever it left behind, the other routes never see it.
        field.others_are_served(name).await;
    }
    // HEAD has no body, whatever is sent.
    liar.says(text("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"));
    for _ in 0..5 {
        let request = format!(
            "HEAD /t/{}/liar/x HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\nconnection: close\r\n\r\n",
            field.tunnel.label, field.world.api_key
        );
        let said = say(&mut field.api().await, request.as_bytes()).await;
        assert_eq!(said.statuses(), [200], "{}", said.text());
        assert!(!said.text().contains("poison"), "{}", said.text());
    }
    field.bounded("what follows");
}

#[tokio::test]
async fn bodies_that_break_their_word_end_the_callers_connection() {
    let (field, liar) = behind().await;
    let chunks = |rest: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n{rest}");
    for (name, answer) in [
        ("shorter than it says", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok".to_owned()),
        ("no last chunk", chunks("")),
        ("chunk size overflow", chunks("fffffffffffffffff\r\nx\r\n0\r\n\r\n")),
        ("negative chunk", chunks("-1\r\nx\r\n0\r\n\r\n")),
        ("chunk longer than it says", chunks("1\r\nxx\r\n0\r\n\r\n")),
    ] {
        liar.says(Script { close: true, ..text(&answer) });
        let said = call(&field, "").await;
        assert_eq!(said.statuses(), [200], "{name}: {}", said.text());
        assert!(said.closed, "{name}: the caller must see that this is not all");
        assert!(!said.text().ends_with("0\r\n\r\n"), "{name}: {}", said.text());
    }
    // Endless where there should be a little: extensions of a chunk, trailers, a head.
    for (name, answer, again) in [
        ("chunk extensions", chunks("1;"), "x=y;".repeat(1000)),
        ("trailers", chunks("0\r\n"), "x-more: y\r\n".repeat(1000)),
        ("head", "HTTP/1.1 200 OK\r\n".to_owned(), "x-more: y\r\n".repeat(1000)),
    ] {
        liar.says(Script { again: again.into(), ..text(&answer) });
        let said = call(&field, "").await;
        assert!(said.closed, "{name}");
        assert!(said.bytes.len() < 100_000, "{name}: {} bytes", said.bytes.len());
        until("the flood is hung up on", SOON, async || liar.open.load(Ordering::SeqCst) == 0).await;
        field.others_are_served(name).await;
        field.bounded(name);
    }
}

#[tokio::test]
async fn nothing_of_an_answer_speaks_as_we_do_and_what_is_packed_stays_packed() {
    let (field, liar) = behind().await;
    liar.says(text(
        "HTTP/1.1 200 OK\r\nsortie-hop: policy\r\nsortie_hop: policy\r\nconnection: x-private\r\nx-private: 1\r\n\
         keep-alive: timeout=9\r\nproxy-authenticate: Basic\r\nupgrade: h2c\r\ntrailer: x-sum, sortie-hop, content-length, set-cookie\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\nsortie-hop: identity\r\ncontent-length: 9\r\n\
         set-cookie: a=b\r\n\r\n",
    ));
    let said = call(&field, "").await;
    assert_eq!(said.statuses(), [200], "{}", said.text());
    let said = said.text().to_ascii_lowercase();
    for name in [
        "sortie-hop",
        "sortie_hop",
        "x-private",
        "keep-alive",
        "proxy-authenticate",
        "upgrade",
        "content-length:",
        "set-cookie:",
    ] {
        assert!(!said.contains(&format!("\r\n{}", name.trim_end_matches(':'))), "{name}: {said}");
    }

    // A bomb is the caller's to open: a gateway that unpacked it would be the one that bursts.
    let packed: Vec<u8> = (0..200_000_u32).map(|number| u8::try_from(number % 251).expect("byte")).collect();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: gzip, gzip\r\ncontent-length: {}\r\n\r\n", packed.len());
    liar.says(Script { answer: [head.as_bytes(), &packed].concat(), ..Script::default() });
    let said = call(&field, "accept-encoding: gzip\r\n").await;
    assert!(said.bytes.ends_with(&packed), "the bytes are not the same");
    assert!(said.text().contains("content-encoding: gzip, gzip"));
    field.bounded("packed");
}

#[tokio::test]
async fn a_head_that_never_ends_holds_only_its_own_call() {
    let (field, liar) = behind().await;
    liar.says(text("HTTP/1.1 200 OK\r\nx-begun: "));
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let request = format!(
            "GET /t/{}/liar/x HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n\r\n",
            field.tunnel.label, field.world.api_key
        );
        let mut api = field.api().await;
        callers.spawn(async move {
            api.write_all(request.as_bytes()).await.expect("written");
            let mut byte = [0];
            let _never = api.read(&mut byte).await;
        });
    }
    until("all calls wait", SOON, async || liar.open.load(Ordering::SeqCst) == 50).await;
    field.others_are_served("heads without end").await;
    field.bounded("heads without end");
    callers.shutdown().await;
    until("whoever left is missed", SOON, async || liar.open.load(Ordering::SeqCst) == 0).await;
}
