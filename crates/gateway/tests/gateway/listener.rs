//! The listener for the hosted service's own traffic, seen from its connector: a WebSocket with inner TLS in it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sortie_runtime::TaskSet;
use sortie_tls::{Authority, ClientStream, ServerName, TlsConnector, inner_client_config};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::*;

const LISTENER: &str = "[listener]\nlisten_addr = \"127.0.0.1:0\"\n[listener.caller]\nsubject = \"hosted\"\n\
                        workspace = \"wrkspc_9\"\nagent = \"assistant\"\nagent_version = \"3\"\nuser = \"ann\"\n";

fn config(upstream: &Upstream) -> String {
    format!("{}{LISTENER}", upstream.config())
}

async fn tcp(world: &World) -> TcpStream {
    TcpStream::connect(world.gateway.listen_addr().expect("listener")).await.expect("connected")
}

async fn websocket(world: &World) -> WebSocketStream<TcpStream> {
    let stream = tcp(world).await;
    soon(tokio_tungstenite::client_async("ws://any.example/any/path?and=query", stream)).await.expect("websocket").0
}

/// A WebSocket as bytes, as the hosted service has it.
fn carried(world: &World, mut socket: WebSocketStream<TcpStream>) -> DuplexStream {
    let (here, mut there) = tokio::io::duplex(64 * 1024);
    world.tasks.spawn("test-connector", async move {
        let mut buffer = vec![0; 20_000];
        loop {
            tokio::select! {
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => if there.write_all(&bytes).await.is_err() { return },
                    Some(Ok(message)) => assert!(!message.is_text()),
                    Some(Err(_)) | None => return,
                },
                read = there.read(&mut buffer) => match read {
                    Ok(length @ 1..) => {
                        let message = Message::Binary(Bytes::copy_from_slice(buffer.get(..length).expect("what was read")));
                        if socket.send(message).await.is_err() { return }
                    }
                    _ => return drop(socket.close(None).await),
                },
            }
        }
    });
    here
}

async fn tls(world: &World, host: &str, alpn: &[u8]) -> ClientStream<DuplexStream> {
    let stream = carried(world, websocket(world).await);
    let config = inner_client_config(std::slice::from_ref(&world.caller.ca), &[alpn]);
    let name = ServerName::try_from(host.to_owned()).expect("name");
    soon(TlsConnector::from(config).connect(name, stream)).await.expect("inner TLS")
}

type Sender = hyper::client::conn::http1::SendRequest<TestBody>;

async fn sender(world: &World) -> Sender {
    let stream = tls(world, HOST, b"http/1.1").await;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
    world.tasks.spawn("test-hosted", async move { drop(connection.await) });
    sender
}

fn call(tool: &str) -> Request<TestBody> {
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": {}}});
    let request = Request::post("/mcp").header("host", HOST).header("content-type", "application/json");
    request.body(full(body.to_string())).expect("request")
}

async fn send(sender: &mut Sender, request: Request<TestBody>) -> Response<Incoming> {
    soon(sender.ready()).await.expect("ready");
    soon(sender.send_request(request)).await.expect("response")
}

/// The claims of the token in which the upstream was told who is calling.
fn told(upstream: &Upstream) -> Value {
    let seen = upstream.seen.lock().expect("lock");
    let token = seen
        .last()
        .and_then(|head| head.headers.get("sortie-identity"))
        .expect("a token")
        .to_str()
        .expect("text")
        .to_owned();
    let claims = token.split('.').nth(1).expect("claims");
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).expect("base64");
    serde_json::from_slice(&claims).expect("json")
}

#[tokio::test]
async fn every_call_is_the_configured_caller_whatever_it_says() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let signed = config(&upstream).replace("[upstream]", "identity = \"signed\"\n[upstream]");
    let world = World::start(&tasks, &signed).await;
    let mut sender = sender(&world).await;

    let mut forged = call("search");
    let word = world.caller.token(HOST);
    forged.headers_mut().insert("sortie-identity", word.parse().expect("value"));
    forged.headers_mut().insert("sortie-request-id", "req_forged".parse().expect("value"));
    let mut broken = call("search");
    broken.headers_mut().insert("sortie-identity", "no token".parse().expect("value"));
    let mut probe = call("search");
    probe.headers_mut().insert("sortie-probe", "1".parse().expect("value"));
    for request in [call("search"), forged, broken, probe] {
        assert_eq!(text(send(&mut sender, request).await).await, "ok");
        let claims = told(&upstream);
        assert_eq!(claims["sub"], "hosted", "{claims}");
        assert_eq!(claims["assurance"], "asserted");
        assert_eq!(claims["sub_id"]["iss"], "gateway");
        assert_eq!((&claims["workspace"], &claims["user"]), (&json!("wrkspc_9"), &json!("ann")));
        assert_eq!(claims["agent"], json!({"id": "assistant", "version": "3"}));
        let seen = upstream.seen.lock().expect("lock").last().expect("request").headers.clone();
        assert_ne!(seen["sortie-request-id"], "req_forged");
        assert!(!seen.contains_key("sortie-probe"));
    }
    let decided = crate::audit::decided(&world);
    assert_eq!(decided.len(), 4);
    for record in &decided {
        assert_eq!((&record["caller"]["issuer"], &record["caller"]["subject"]), (&json!("gateway"), &json!("hosted")));
        assert_ne!(record["id"], "req_forged");
    }
    // What is forged there counts by the link no more than before.
    let request = Request::post("/mcp").header("host", HOST).body(full("{}")).expect("request");
    assert_eq!(refusal(world.call(request).await).await.0, 401);
}

#[tokio::test]
async fn http2_is_spoken_there_too() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let stream = tls(&world, HOST, b"h2").await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.expect("http");
    world.tasks.spawn("test-hosted", async move { drop(connection.await) });
    let request = Request::get(format!("https://{HOST}/mcp")).body(full("")).expect("request");
    assert_eq!(text(soon(sender.send_request(request)).await.expect("response")).await, "ok");
}

#[tokio::test]
async fn policy_holds_for_it_as_for_everybody() {
    let tasks = TaskSet::new();
    let dir = tempfile::tempdir().expect("dir");
    let upstream = Upstream::ok(&tasks).await;
    let policy = r#"permit (principal, action == Action::"tools/call", resource == Tool::"docs/search")
                    when { principal.issuer == "gateway" && principal.subject == "hosted" };"#;
    std::fs::write(dir.path().join("policy.cedar"), policy).expect("write");
    let enforced =
        format!("policy = \"enforce\"\npolicy_file = \"{}/policy.cedar\"\n{}", dir.path().display(), config(&upstream));
    let world = World::start(&tasks, &enforced).await;
    let mut sender = sender(&world).await;
    assert_eq!(text(send(&mut sender, call("search")).await).await, "ok");
    let (status, hop, body) = refusal(send(&mut sender, call("delete")).await).await;
    assert_eq!((status, hop.as_str()), (403, "policy"), "{body}");
    // The same policy refuses everybody else.
    let request = world.request("POST", "/mcp").header("content-type", "application/json");
    let body = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "search"}});
    let request = request.body(full(body.to_string())).expect("request");
    assert_eq!(refusal(world.call(request).await).await.0, 403);
}

#[tokio::test]
async fn only_terminated_routes_are_there() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let clients = Authority::generate("Clients", 30).expect("authority");
    let sealed = format!(
        "{}[routes.vault]\nupstream = \"http://{}\"\nmode = \"sealed\"\nclient_ca_file = \"clients.pem\"\n",
        config(&upstream),
        upstream.addr
    );
    let pem = clients.cert_pem().to_owned();
    let world = World::start_with(&tasks, &sealed, Default::default(), |dir| {
        let file = dir.path(sortie_tls::SetupFile::TunnelId).with_file_name("clients.pem");
        std::fs::write(file, pem).expect("write");
    })
    .await;
    let mut sender = sender(&world).await;
    for host in ["vault.abcd1234.sortie.localhost", "other.abcd1234.sortie.localhost", "localhost"] {
        let request = Request::get("/mcp").header("host", host).body(full("")).expect("request");
        let (status, hop, _) = refusal(send(&mut sender, request).await).await;
        assert_eq!((status, hop.as_str()), (502, "route"), "{host}");
    }
    assert_eq!(upstream.count(), 0);
}

/// What a request of plain HTTP is answered.
async fn plain(world: &World, head: &str) -> String {
    let mut stream = tcp(world).await;
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.expect("written");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("answer, and the end");
    answer
}

#[tokio::test]
async fn what_is_no_websocket_of_a_connector_is_told_so() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let upgrade = "GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n";
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let version = "sec-websocket-version: 13";
    for (head, status, sentence) in [
        ("GET /mcp HTTP/1.1\r\nhost: x".to_owned(), 426, "takes WebSockets of the hosted service's connector only"),
        (format!("{upgrade}{key}\r\n{version}\r\norigin: https://evil.example"), 403, "browser"),
        (format!("{upgrade}{key}\r\nsec-websocket-version: 8"), 426, "is 13"),
        (format!("{upgrade}{version}"), 400, "Sec-WebSocket-Key"),
        (format!("{upgrade}{key}\r\n{version}\r\nsec-websocket-protocol: a b"), 400, "sub-protocols"),
        (format!("{upgrade}{key}\r\n{version}").replace("GET", "POST"), 400, "begins with GET"),
        (format!("{upgrade}{key}\r\n{version}\r\ncontent-length: 5"), 400, "without a body"),
    ] {
        let answer = plain(&world, &head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(sentence), "{head}: {answer}");
    }
    assert!(plain(&world, "GET /mcp HTTP/1.1\r\nhost: x").await.contains("upgrade: websocket"));
    // A token that would do over the link is worth nothing outside inner TLS.
    let identity = world.caller.token(HOST);
    let answer = plain(&world, &format!("GET /mcp HTTP/1.1\r\nhost: {HOST}\r\nsortie-identity: {identity}")).await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn the_first_sub_protocol_that_is_offered_is_taken() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let mut request = "ws://localhost/".into_client_request().expect("request");
    request.headers_mut().insert("sec-websocket-protocol", "tunnel.v1, other".parse().expect("value"));
    let (_, response) = soon(tokio_tungstenite::client_async(request, tcp(&world).await)).await.expect("websocket");
    assert_eq!(response.headers()["sec-websocket-protocol"], "tunnel.v1");
    let (_, response) =
        soon(tokio_tungstenite::client_async("ws://localhost/", tcp(&world).await)).await.expect("websocket");
    assert!(!response.headers().contains_key("sec-websocket-protocol"));
    assert!(!response.headers().contains_key("sec-websocket-extensions"));
}

/// How the gateway closed a WebSocket.
async fn closed(socket: &mut WebSocketStream<TcpStream>) -> Option<CloseCode> {
    soon(async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                Some(Err(Error::Io(_) | Error::Protocol(_))) | None => return None,
                Some(Err(error)) => panic!("{error}"),
            }
        }
    })
    .await
}

#[tokio::test]
async fn what_carries_no_bytes_of_tls_closes_the_connection() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;

    let mut socket = websocket(&world).await;
    socket.send(Message::text("hello")).await.expect("sent");
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Unsupported));

    // Bits that mean nothing without an extension.
    let mut socket = websocket(&world).await;
    socket.get_mut().write_all(&[0xf2, 0x80, 0, 0, 0, 0]).await.expect("written");
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Protocol));

    // The head of a frame that is one byte too large.
    let mut socket = websocket(&world).await;
    socket.get_mut().write_all(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0]).await.expect("written");
    assert_eq!(closed(&mut socket).await, Some(CloseCode::Size));

    // A message that its frames make too large; each frame is small enough.
    let mut socket = websocket(&world).await;
    let mut frame = vec![0x02, 0xff, 0, 0, 0, 0, 0, 0x0c, 0, 0, 0, 0, 0, 0];
    frame.resize(frame.len() + 0x0c_0000, 0);
    let stream = socket.get_mut();
    stream.write_all(&frame).await.expect("written");
    *frame.first_mut().expect("a head") = 0x80;
    let _broken_off = stream.write_all(&frame).await;
    assert!(matches!(closed(&mut socket).await, Some(CloseCode::Size) | None));

    // Binary, but no TLS.
    let mut socket = websocket(&world).await;
    socket.send(Message::binary(&b"GET / HTTP/1.1\r\n\r\n"[..])).await.expect("sent");
    closed(&mut socket).await;
    until(|| world.gateway.readiness().listener.expect("listener").connections == 0).await;
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_large_body_comes_in_messages_of_any_size() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |request| async move {
        let body = http_body_util::BodyExt::collect(request.into_body()).await.expect("body").to_bytes();
        Response::new(full(body))
    })
    .await;
    let large = config(&upstream).replace("max_request_body = 1000", "max_request_body = 2000000");
    let world = World::start(&tasks, &large).await;
    let mut sender = sender(&world).await;
    let body: String = (0..1_500_000_u32).map(|i| char::from(b'a' + u8::try_from(i % 23).expect("small"))).collect();
    let request = Request::post("/x").header("host", HOST).body(full(body.clone())).expect("request");
    assert!(text(send(&mut sender, request).await).await == body);
}

#[tokio::test]
async fn who_is_slow_to_begin_is_hung_up_on() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let head = async {
        let mut stream = tcp(&world).await;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.expect("written");
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
    };
    let hello = async {
        let mut socket = websocket(&world).await;
        while let Some(Ok(_)) = socket.next().await {}
    };
    let both = async { tokio::join!(head, hello) };
    tokio::time::timeout(Duration::from_secs(25), both).await.expect("both are ended");
    until(|| world.gateway.readiness().listener.expect("listener").connections == 0).await;
}

#[tokio::test]
async fn connections_have_a_bound_of_their_own() {
    const PLACES: usize = 1024;
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let mut held = Vec::with_capacity(PLACES);
    for _ in 0..PLACES {
        held.push(tcp(&world).await);
    }
    let open = || world.gateway.readiness().listener.expect("listener").connections;
    until(|| open() == PLACES).await;
    let mut refused = tcp(&world).await;
    assert!(!matches!(soon(refused.read(&mut [0])).await, Ok(1..)), "nothing is said to it");
    assert_eq!(open(), PLACES, "at once, before the others have taken too long");
    // Those over the link have room all the same.
    let request = world.request("GET", "/").body(full("")).expect("request");
    assert_eq!(text(world.call(request).await).await, "ok");
    drop(held);
    until(|| open() == 0).await;
    assert_eq!(text(send(&mut sender(&world).await, call("search")).await).await, "ok");
}

#[tokio::test]
async fn a_stop_lets_running_calls_end_and_takes_no_more() {
    let tasks = TaskSet::new();
    let (send_piece, body) = piped();
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    let upstream = Upstream::serve(&tasks, move |_| {
        let body = body.lock().expect("lock").take();
        async move { Response::new(body.unwrap_or_else(|| full("ok"))) }
    })
    .await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let mut running = sender(&world).await;
    let response = send(&mut running, call("search")).await;
    // Neither one that has not begun nor one without a call holds up the stop.
    let (half_made, idle) = (tcp(&world).await, sender(&world).await);
    let address = world.gateway.listen_addr().expect("listener");

    let stopping = world.gateway.drain();
    let ending = async {
        until_refused(address).await;
        send_piece.send(Ok("still")).await.expect("sent");
        send_piece.send(Ok(" here")).await.expect("sent");
        drop(send_piece);
        text(response).await
    };
    let (_, ended) = soon(async { tokio::join!(stopping, ending) }).await;
    assert_eq!(ended, "still here");
    drop((half_made, idle));
}

async fn until_refused(address: std::net::SocketAddr) {
    soon(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn another_caller_bites_at_once_and_another_address_at_the_next_start() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let signed = config(&upstream).replace("[upstream]", "identity = \"signed\"\n[upstream]");
    let world = World::start(&tasks, &signed).await;
    let file = world.path().join("gateway.toml");
    std::fs::write(&file, &signed).expect("write");
    world.gateway.watch(file.clone());
    let address = world.gateway.listen_addr();
    // One connection all the time.
    let mut sender = sender(&world).await;
    assert_eq!(text(send(&mut sender, call("search")).await).await, "ok");
    assert_eq!(told(&upstream)["sub"], "hosted");

    std::fs::write(&file, signed.replace("\"hosted\"", "\"other\"").replace("127.0.0.1:0", "127.0.0.1:1"))
        .expect("write");
    soon(async {
        while told(&upstream)["sub"] != "other" {
            assert_eq!(send(&mut sender, call("search")).await.status(), StatusCode::OK);
        }
    })
    .await;
    assert_eq!(world.gateway.listen_addr(), address);
    assert_eq!(world.gateway.readiness().listener.expect("listener").caller.as_deref(), Some("other"));

    std::fs::write(&file, upstream.config()).expect("write");
    soon(async { while send(&mut sender, call("search")).await.status() == StatusCode::OK {} }).await;
    let (status, hop, body) = refusal(send(&mut sender, call("search")).await).await;
    assert_eq!((status, hop.as_str()), (401, "identity"), "{body}");
    assert_eq!(world.gateway.readiness().listener.expect("listener").caller, None);
    let refused = tokio_tungstenite::client_async("ws://localhost/", tcp(&world).await).await.expect_err("refused");
    assert!(matches!(refused, Error::Http(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn health_shows_it_and_without_it_nothing_listens() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    soon(world.gateway.ready()).await;
    let _sender = sender(&world).await;
    let (_, body) = crate::health::get(&world, "/readyz").await;
    let ready: Value = serde_json::from_str(&body).expect("json");
    let address = world.gateway.listen_addr().expect("listener").to_string();
    assert_eq!(ready["listener"], json!({"address": address, "connections": 1, "caller": "hosted"}));
    let without = World::start(&tasks, &upstream.config()).await;
    assert_eq!(without.gateway.listen_addr(), None);
    assert!(without.gateway.readiness().listener.is_none());
}

#[tokio::test]
async fn an_address_that_is_taken_keeps_it_from_starting() {
    use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &config(&upstream)).await;
    let taken = world.gateway.listen_addr().expect("listener").to_string();
    let settings = config(&upstream).replace("127.0.0.1:0", &taken);
    let settings = GatewayConfig::parse(&settings, &world.path().join("gateway.toml")).expect("config");
    let setup = Setup::load(world.path()).expect("setup");
    let refused = Gateway::start(settings, setup, GatewayOptions::default(), tasks.clone()).await.expect_err("taken");
    assert!(refused.to_string().contains("name another address in listen_addr under [listener]"), "{refused}");
}
