//! Every kind of upstream, and several for one route.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
use sortie_runtime::TaskSet;
use sortie_tls::{Authority, ReloadingIdentity, ServerIdentity, Versions, server_config};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, UnixListener};

use crate::support::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A server that answers with its name, and opens a session for whoever has none.
async fn named(tasks: &TaskSet, addr: SocketAddr, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(addr).await.expect("bind");
    let addr = listener.local_addr().expect("address");
    let inside = tasks.clone();
    tasks.spawn("test-upstream", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                let session = request.headers().get("mcp-session-id").map_or(name.as_bytes(), |id| id.as_bytes());
                let response = Response::builder().header("mcp-session-id", session).body(full(name));
                response.map_err(std::io::Error::other)
            });
            inside.spawn("test-upstream-connection", async move {
                let _ended =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// An address that refuses connections.
async fn closed() -> SocketAddr {
    TcpListener::bind(anywhere()).await.expect("bind").local_addr().expect("address")
}

/// An address that swallows connections: a listener whose queue is full.
fn deaf() -> (Vec<socket2::Socket>, SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    let listener = socket();
    listener.bind(&anywhere().into()).expect("bind");
    listener.listen(0).expect("listen");
    let address = listener.local_addr().expect("address");
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let filler = socket();
        filler.set_nonblocking(true).expect("nonblocking");
        let _begun = filler.connect(&address);
        sockets.push(filler);
    }
    (sockets, address.as_socket().expect("address"))
}

fn list(addresses: &[SocketAddr]) -> String {
    let servers: Vec<_> = addresses.iter().map(|addr| format!("\"http://{addr}\"")).collect();
    config("unused").replace("\"http://unused\"", &format!("[{}]", servers.join(", ")))
}

fn post(world: &World, session: Option<&str>) -> Request<TestBody> {
    let request = world.request("POST", "/mcp").header("content-type", "application/json");
    let request = session.into_iter().fold(request, |request, id| request.header("mcp-session-id", id));
    request.body(full(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#)).expect("request")
}

#[tokio::test]
async fn a_unix_socket_is_an_upstream() {
    let tasks = TaskSet::new();
    let world = {
        // The socket lies beside the settings, which name it by a relative path.
        let config = config("unused").replace("http://unused", "unix:run/mcp.sock");
        World::start(&tasks, &config).await
    };
    let (status, hop, body) = refusal(world.call(post(&world, None)).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"), "{body}");
    assert!(!body.to_string().contains("mcp.sock"), "{body}");

    std::fs::create_dir(world.path().join("run")).expect("dir");
    let listener = UnixListener::bind(world.path().join("run/mcp.sock")).expect("bind");
    let inside = tasks.clone();
    tasks.spawn("test-upstream", async move {
        while let Ok((stream, _)) = listener.accept().await {
            inside.spawn("test-upstream-connection", async move {
                let service = service_fn(|request: Request<Incoming>| async move {
                    let host = request.headers().get("host").cloned().expect("host");
                    Ok::<_, std::io::Error>(Response::new(full(host.as_bytes().to_vec())))
                });
                let _ended =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    for _ in 0..2 {
        let response = world.call(post(&world, None)).await;
        assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "localhost"));
    }
}

#[tokio::test]
async fn with_dead_servers_in_the_list_no_call_is_lost() {
    let tasks = TaskSet::new();
    let upstream = Upstream::serve(&tasks, |request| async {
        use http_body_util::BodyExt as _;
        Response::new(full(request.into_body().collect().await.expect("body").to_bytes()))
    })
    .await;
    let (_sockets, silent) = deaf();
    let config = list(&[closed().await, silent, upstream.addr]).replace("\"2s\"", "\"500ms\"");
    let world = World::start(&tasks, &config).await;
    let calls = futures_util::future::join_all((0..20).map(|_| world.call(post(&world, None)))).await;
    for response in calls {
        assert_eq!(response.status(), 200);
        assert!(text(response).await.contains("tools/call"), "the body arrived whole");
    }
    assert_eq!(upstream.count(), 20, "each ran once");
    let began = std::time::Instant::now();
    assert_eq!(world.call(post(&world, None)).await.status(), 200);
    assert!(began.elapsed() < Duration::from_millis(450), "the dead are remembered: {:?}", began.elapsed());
    let host = upstream.seen.lock().expect("lock")[0].headers["host"].clone();
    assert_eq!(host, upstream.addr.to_string(), "each server gets its own name");
}

#[tokio::test]
async fn a_session_stays_with_its_server() {
    let tasks = TaskSet::new();
    let first_tasks = tasks.child();
    let first = named(&first_tasks, anywhere(), "first").await;
    let second = named(&tasks, anywhere(), "second").await;
    let world = World::start(&tasks, &list(&[first, second])).await;
    let answered = async |session: Option<&str>| text(world.call(post(&world, session)).await).await;
    assert_eq!(answered(None).await, "first");
    assert_eq!(answered(Some("first")).await, "first");

    first_tasks.abort();
    until(|| std::net::TcpStream::connect(first).is_err()).await;
    assert_eq!(answered(None).await, "second", "a new call goes to who is there");
    assert_eq!(answered(Some("second")).await, "second");
    let (status, hop, _) = refusal(world.call(post(&world, Some("first"))).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"), "no other server knows the session");

    let again = tasks.child();
    named(&again, first, "first").await;
    assert_eq!(answered(Some("first")).await, "first");
    assert_eq!(answered(Some("second")).await, "second");
}

#[tokio::test]
async fn a_server_that_is_back_is_found_without_a_call_that_waits_for_it() {
    let tasks = TaskSet::new();
    let first = closed().await;
    let second = named(&tasks, anywhere(), "second").await;
    let world = World::start(&tasks, &list(&[first, second])).await;
    assert_eq!(text(world.call(post(&world, None)).await).await, "second");
    named(&tasks, first, "first").await;
    let back = async {
        while text(world.call(post(&world, None)).await).await != "first" {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back).await.expect("looked at again after ten seconds");
}

#[tokio::test]
async fn a_call_that_may_have_run_is_not_given_to_another_server() {
    let tasks = TaskSet::new();
    let listener = TcpListener::bind(anywhere()).await.expect("bind");
    let first = listener.local_addr().expect("address");
    tasks.spawn("test-upstream", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _read = stream.read(&mut [0; 4096]).await;
            // And hangs up without an answer.
        }
    });
    let second = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &list(&[first, second.addr])).await;
    let (status, hop, _) = refusal(world.call(post(&world, None)).await).await;
    assert_eq!((status, hop.as_str(), second.count()), (502, "upstream", 0));
}

#[tokio::test]
async fn deadlines_and_limits_are_the_routes_own() {
    let tasks = TaskSet::new();
    let (_sockets, silent) = deaf();
    let config = config(&silent.to_string()).replace("[upstream]", "connect_timeout = \"300ms\"\n[upstream]");
    let world = World::start(&tasks, &config).await;
    let (status, hop, _) = refusal(world.call(post(&world, None)).await).await;
    assert_eq!((status, hop.as_str()), (504, "upstream-connect"));

    let upstream = Upstream::ok(&tasks).await;
    let config = upstream.config().replace("[upstream]", "max_request_body = 2000\n[upstream]");
    let world = World::start(&tasks, &config).await;
    let sized = |bytes| world.request("POST", "/").body(full(vec![b'x'; bytes])).expect("request");
    assert_eq!(world.call(sized(2000)).await.status(), 200, "more than the whole gateway's");
    assert_eq!(world.call(sized(2001)).await.status(), 413);
}

struct Tls {
    server_ca: Authority,
    client_ca: Authority,
    upstream: Upstream,
}

impl Tls {
    /// An upstream for `localhost` and `wiki.corp` that takes clients of one CA only.
    async fn start(tasks: &TaskSet) -> Self {
        let server_ca = Authority::generate("Upstream CA", 30).expect("authority");
        let client_ca = Authority::generate("Client CA", 30).expect("authority");
        let identity = server_ca.issue_server(&["wiki.corp".to_owned()], DAY).expect("certificate");
        let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
        let pem = Some(client_ca.cert_pem());
        let tls = server_config(Arc::new(identity), Versions::Legacy, &[b"http/1.1"], pem).expect("config");
        let upstream = Upstream::serve_over(tasks, Some(tls), |_| async { Response::new(full("ok")) }).await;
        Self { server_ca, client_ca, upstream }
    }

    /// Settings whose route `docs` shows a certificate, and whose route `wiki` shows none.
    fn config(&self) -> String {
        format!(
            "[routes.docs]\nupstream = \"https://{addr}\"\n\
             tls = {{ ca_file = \"up.pem\", server_name = \"wiki.corp\", client_cert_file = \"client.crt\", \
             client_key_file = \"client.key\" }}\n\
             [routes.wiki]\nupstream = \"https://{addr}\"\ntls = {{ ca_file = \"up.pem\", server_name = \"wiki.corp\" }}\n\
             [upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n",
            addr = self.upstream.addr
        )
    }

    fn write(&self, dir: &std::path::Path, client: &ServerIdentity) {
        std::fs::write(dir.join("up.pem"), self.server_ca.cert_pem()).expect("write");
        std::fs::write(dir.join("client.crt"), &client.cert_pem).expect("write");
        std::fs::write(dir.join("client.key"), client.key_pem.expose()).expect("write");
    }

    async fn world(&self, tasks: &TaskSet, client: &ServerIdentity) -> World {
        World::start_with(tasks, &self.config(), HashMap::new(), |dir| {
            let file = dir.path(sortie_tls::SetupFile::TunnelId);
            self.write(file.parent().expect("parent"), client);
        })
        .await
    }
}

#[tokio::test]
async fn a_route_shows_its_own_certificate_and_no_other_route_rides_on_it() {
    let tasks = TaskSet::new();
    let tls = Tls::start(&tasks).await;
    let world = tls.world(&tasks, &tls.client_ca.issue_client("gateway", DAY).expect("certificate")).await;
    assert_eq!(text(world.call(post(&world, None)).await).await, "ok");
    // The connection is kept, to the very same address and name.
    let host = HOST.replace("docs", "wiki");
    let request = Request::builder().method("POST").uri("/mcp").header("host", &host);
    let request = request.header("sortie-identity", world.caller.token(&host)).body(full("")).expect("request");
    assert_eq!(refusal(world.call(request).await).await.0, 502, "without a certificate nobody is let in");
    assert_eq!(text(world.call(post(&world, None)).await).await, "ok");
    assert_eq!(tls.upstream.count(), 2);
}

#[tokio::test]
async fn a_renewed_client_certificate_is_shown_without_a_restart() {
    let tasks = TaskSet::new();
    let tls = Tls::start(&tasks).await;
    let stranger = Authority::generate("Other CA", 30).expect("authority");
    let world = tls.world(&tasks, &stranger.issue_client("gateway", DAY).expect("certificate")).await;
    assert_eq!(refusal(world.call(post(&world, None)).await).await.0, 502);
    tls.write(world.path(), &tls.client_ca.issue_client("gateway", DAY).expect("certificate"));
    let renewed = async {
        while world.call(post(&world, None)).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), renewed).await.expect("looked at every five seconds");
}

#[tokio::test]
async fn client_certificates_that_cannot_be_used_are_named_at_the_start() {
    let tasks = TaskSet::new();
    let tls = Tls::start(&tasks).await;
    let good = tls.client_ca.issue_client("gateway", DAY).expect("certificate");
    let world = tls.world(&tasks, &good).await;
    let started = async || {
        let config = GatewayConfig::parse(&tls.config(), &world.path().join("gateway.toml")).expect("config");
        let setup = Setup::load(world.path()).expect("setup");
        let tasks = tasks.child();
        let started = Gateway::start(config, setup, GatewayOptions::default(), tasks.clone()).await;
        tasks.abort();
        started.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(started().await, Ok(()));
    let other = tls.client_ca.issue_client("gateway", DAY).expect("certificate");
    std::fs::write(world.path().join("client.key"), other.key_pem.expose()).expect("write");
    let said = started().await.expect_err("mismatch");
    assert!(said.contains("routes.docs.tls.client_cert_file, client_key_file: the key in "), "{said}");
    std::fs::write(world.path().join("client.key"), "no key").expect("write");
    assert!(started().await.expect_err("no key").contains("holds no intact private key"));
    std::fs::remove_file(world.path().join("client.key")).expect("remove");
    let said = started().await.expect_err("absent");
    assert!(said.contains("cannot read ") && said.contains("client.key"), "{said}");
}
