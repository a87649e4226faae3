//! Certificates by caller: a server that demands them says whose it saw, and no connection serves two of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sortie_gateway::{Gateway, GatewayConfig, GatewayOptions, Setup};
use sortie_runtime::TaskSet;
use sortie_tls::{Authority, CertificateDer, ReloadingIdentity, ServerIdentity, TlsAcceptor, Versions, server_config};
use tokio::net::TcpListener;

use crate::credentials::{call_as, private, setup_path};
use crate::support::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A server for `wiki.corp` that takes clients of one CA only, and answers with whose certificate it saw.
struct Demanding {
    server_ca: Authority,
    client_ca: Authority,
    addr: std::net::SocketAddr,
    issued: Issued,
    /// How many connections showed an acceptable certificate.
    connections: Arc<AtomicUsize>,
}

/// The certificates that were issued, by whose they are.
type Issued = Arc<Mutex<Vec<(CertificateDer<'static>, String)>>>;

impl Demanding {
    async fn start(tasks: &TaskSet) -> Self {
        let server_ca = Authority::generate("Upstream CA", 30).expect("authority");
        let client_ca = Authority::generate("Client CA", 30).expect("authority");
        let identity = server_ca.issue_server(&["wiki.corp".to_owned()], DAY).expect("certificate");
        let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
        let pem = Some(client_ca.cert_pem());
        let tls = server_config(Arc::new(identity), Versions::Legacy, &[b"http/1.1"], pem).expect("config");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let addr = listener.local_addr().expect("address");
        let (issued, connections): (Issued, Arc<AtomicUsize>) = Default::default();
        let (known, count, inside) = (issued.clone(), connections.clone(), tasks.clone());
        tasks.spawn("test-upstream", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (known, count, tls) = (known.clone(), count.clone(), tls.clone());
                inside.spawn("test-upstream-connection", async move {
                    let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
                    count.fetch_add(1, Ordering::SeqCst);
                    let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
                    let whose = whose_is(&known, leaf.as_ref());
                    let service = service_fn(move |request: Request<Incoming>| answer(request, whose.clone()));
                    let builder = hyper::server::conn::http1::Builder::new();
                    drop(builder.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { server_ca, client_ca, addr, issued, connections }
    }

    /// A certificate of the CA that the server knows.
    fn issue(&self, whose: &str, lifetime: Duration) -> ServerIdentity {
        self.issue_by(&self.client_ca, whose, lifetime)
    }

    fn issue_by(&self, ca: &Authority, whose: &str, lifetime: Duration) -> ServerIdentity {
        let issued = ca.issue_client(whose, lifetime).expect("certificate");
        let read = ReloadingIdentity::from_pem(&issued.cert_pem, issued.key_pem.expose()).expect("identity");
        self.issued.lock().expect("lock").push((read.leaf().expect("a certificate"), whose.to_owned()));
        issued
    }

    /// Settings of one route with a certificate for ann and one for ben.
    fn config(&self) -> String {
        let one = |name: &str| {
            format!(
                "[[routes.docs.credentials]]\nname = \"{name}-cert\"\ncallers = [\"user:{name}\"]\n\
                 kind = \"client-certificate\"\nsecret.file = \"{name}.pem\"\n"
            )
        };
        format!(
            "[routes.docs]\nupstream = \"https://{}\"\ntls = {{ ca_file = \"up.pem\", server_name = \"wiki.corp\" }}\n\
             {}{}[upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n",
            self.addr,
            one("ann"),
            one("ben")
        )
    }

    async fn world(&self, tasks: &TaskSet, ann: &ServerIdentity, ben: &ServerIdentity) -> World {
        World::start_with(tasks, &self.config(), HashMap::new(), |dir| {
            let dir = setup_path(dir);
            std::fs::write(dir.join("up.pem"), self.server_ca.cert_pem()).expect("write");
            put(&dir, "ann", ann);
            put(&dir, "ben", ben);
        })
        .await
    }
}

fn whose_is(issued: &Issued, leaf: Option<&CertificateDer<'static>>) -> String {
    let issued = issued.lock().expect("lock");
    let known = issued.iter().find(|(known, _)| Some(known) == leaf);
    known.map_or("nobody".to_owned(), |(_, whose)| whose.clone())
}

async fn answer(request: Request<Incoming>, whose: String) -> Result<Response<TestBody>, hyper::Error> {
    // One that is asked to go on tells whose it is when its body has ended.
    if request.method() == "POST" {
        request.into_body().collect().await?;
    }
    Ok(Response::new(full(whose)))
}

/// Certificate and key in one text, in place at once.
fn put(dir: &Path, name: &str, identity: &ServerIdentity) {
    let text = format!("{}{}", identity.cert_pem, identity.key_pem.expose());
    private(dir, &format!("{name}.new"), &text);
    std::fs::rename(dir.join(format!("{name}.new")), dir.join(format!("{name}.pem"))).expect("rename");
}

async fn whose(world: &World, caller: &str) -> String {
    let response = call_as(world, &format!("user:{caller}"), &[]).await;
    let status = response.status();
    let said = text(response).await;
    assert_eq!(status, StatusCode::OK, "{said}");
    said
}

async fn others_are_served_and_the_next_certificate_is_taken(upstream: &Demanding, world: &World) {
    assert_eq!(whose(world, "ben").await, "ben");
    put(world.path(), "ann", &upstream.issue("ann", DAY));
    soon(async { while call_as(world, "user:ann", &[]).await.status() != StatusCode::OK {} }).await;
    assert_eq!(whose(world, "ann").await, "ann");
}

#[tokio::test]
async fn two_callers_at_once_show_their_own_certificates_and_share_no_connection() {
    let tasks = TaskSet::new();
    let upstream = Demanding::start(&tasks).await;
    let world = upstream.world(&tasks, &upstream.issue("ann", DAY), &upstream.issue("ben", DAY)).await;
    // One after the other, so that each finds the connection that the other has just given back.
    for _ in 0..5 {
        assert_eq!(whose(&world, "ann").await, "ann");
        assert_eq!(whose(&world, "ben").await, "ben");
    }
    assert_eq!(upstream.connections.load(Ordering::SeqCst), 2, "each goes on over its own");
    let callers = ["ann", "ben", "ben", "ann"].repeat(10);
    let answers = join_all(callers.iter().map(|caller| whose(&world, caller))).await;
    assert_eq!(answers, callers);
    // Who has no certificate is not let ride on that of another.
    let (status, hop, body) = refusal(call_as(&world, "user:eve", &[]).await).await;
    assert_eq!((status, hop.as_str()), (403, "policy"), "{body}");
}

#[tokio::test]
async fn a_rotated_certificate_is_shown_by_new_connections_while_calls_go_on() {
    let tasks = TaskSet::new();
    let upstream = Demanding::start(&tasks).await;
    let world = upstream.world(&tasks, &upstream.issue("old", DAY), &upstream.issue("ben", DAY)).await;
    assert_eq!(whose(&world, "ann").await, "old");
    // One that has begun before goes on to its end with what it began with.
    let (send, body) = piped();
    let token = world.caller.hub.sign(&world.caller.claims(HOST, "user:ann"));
    let lasting = Request::builder().method("POST").uri("/mcp").header("host", HOST).header("sortie-identity", token);
    let lasting = world.try_call(lasting.body(body).expect("request"));
    let begun = async {
        send.send(Ok("begun")).await.expect("sent");
        until(|| upstream.connections.load(Ordering::SeqCst) >= 1).await;
        put(world.path(), "ann", &upstream.issue("new", DAY));
        let mut seen = Vec::new();
        let rotated = async {
            // Many at a time, until all of a round have the new one.
            loop {
                let round = join_all((0..8).map(|_| whose(&world, "ann"))).await;
                let done = round.iter().all(|whose| whose == "new");
                seen.extend(round);
                if done {
                    break;
                }
            }
        };
        soon(rotated).await;
        assert!(seen.iter().all(|whose| whose == "old" || whose == "new"), "{seen:?}");
        for _ in 0..10 {
            assert_eq!(whose(&world, "ann").await, "new", "no old connection is used again");
        }
        assert_eq!(whose(&world, "ben").await, "ben");
        drop(send);
    };
    let (response, ()) = tokio::join!(lasting, begun);
    assert_eq!(text(response.expect("an answer")).await, "old");
    assert_eq!(whose(&world, "ann").await, "new", "nor is the one that has just ended");
}

#[tokio::test]
async fn a_certificate_that_has_expired_refuses_calls_by_name() {
    let tasks = TaskSet::new();
    let upstream = Demanding::start(&tasks).await;
    let short = upstream.issue("ann", Duration::from_secs(4));
    let world = upstream.world(&tasks, &short, &upstream.issue("ben", DAY)).await;
    assert_eq!(whose(&world, "ann").await, "ann");
    let expired = async {
        loop {
            let response = call_as(&world, "user:ann", &[]).await;
            if response.status() != StatusCode::OK {
                break refusal(response).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (status, hop, body) = soon(expired).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"), "{body}");
    let said = "credential `ann-cert` cannot be used: it has expired and cannot be renewed";
    assert_eq!(body["error"]["details"]["reason"], said);
    others_are_served_and_the_next_certificate_is_taken(&upstream, &world).await;
}

#[tokio::test]
async fn a_certificate_that_the_server_does_not_accept_is_named_and_looked_at_again() {
    let tasks = TaskSet::new();
    let upstream = Demanding::start(&tasks).await;
    let stranger = Authority::generate("Other CA", 30).expect("authority");
    let unknown = upstream.issue_by(&stranger, "ann", DAY);
    let world = upstream.world(&tasks, &unknown, &upstream.issue("ben", DAY)).await;
    let (status, hop, body) = refusal(call_as(&world, "user:ann", &[]).await).await;
    assert_eq!((status, hop.as_str()), (502, "upstream-connect"), "{body}");
    let said = "the upstream of route `docs` does not accept the client certificate of credential `ann-cert`";
    assert_eq!(body["error"]["details"]["reason"], said);
    others_are_served_and_the_next_certificate_is_taken(&upstream, &world).await;
}

#[tokio::test]
async fn a_pair_that_does_not_fit_keeps_the_gateway_from_starting_and_never_replaces_one_that_does() {
    let tasks = TaskSet::new();
    let upstream = Demanding::start(&tasks).await;
    let (ann, ben) = (upstream.issue("ann", DAY), upstream.issue("ben", DAY));
    let world = upstream.world(&tasks, &ann, &ben).await;
    assert_eq!(whose(&world, "ann").await, "ann");

    let mixed = format!("{}{}", ben.cert_pem, ann.key_pem.expose());
    private(world.path(), "ann.pem", &mixed);
    let config = GatewayConfig::parse(&upstream.config(), &world.path().join("gateway.toml")).expect("config");
    let said = "routes.docs.credentials.0.secret: the private key does not belong to the certificate";
    let found = config.check_files();
    assert!(found.iter().any(|problem| problem.contains(said)), "{found:?}");
    let setup = Setup::load(world.path()).expect("setup");
    let other = tasks.child();
    let started = Gateway::start(config, setup, GatewayOptions::default(), other.clone()).await;
    let error = started.expect_err("refused").to_string();
    assert!(error.contains(said) && error.contains("gateway.toml:") && !error.contains("PRIVATE"), "{error}");
    other.abort();

    // Looked at every two seconds; what is in force stays.
    let until = tokio::time::Instant::now() + Duration::from_secs(3);
    while tokio::time::Instant::now() < until {
        assert_eq!(whose(&world, "ann").await, "ann");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    put(world.path(), "ann", &upstream.issue("mended", DAY));
    soon(async { while whose(&world, "ann").await != "mended" {} }).await;
}

#[tokio::test]
async fn the_certificate_may_be_in_a_file_of_its_own() {
    let tasks = TaskSet::new();
    let upstream = Demanding::start(&tasks).await;
    let ann = upstream.issue("ann", DAY);
    let config = upstream
        .config()
        .replace("secret.file = \"ann.pem\"", "secret.file = \"ann.key\"\ncertificate_file = \"ann.crt\"");
    let world = World::start_with(&tasks, &config, HashMap::new(), |dir| {
        let dir = setup_path(dir);
        std::fs::write(dir.join("up.pem"), upstream.server_ca.cert_pem()).expect("write");
        std::fs::write(dir.join("ann.crt"), &ann.cert_pem).expect("write");
        private(&dir, "ann.key", ann.key_pem.expose());
        put(&dir, "ben", &upstream.issue("ben", DAY));
    })
    .await;
    assert_eq!(whose(&world, "ann").await, "ann");
    let next = upstream.issue("next", DAY);
    // For a while the two do not fit together, and the last pair stays.
    std::fs::write(world.path().join("ann.crt"), &next.cert_pem).expect("write");
    assert_eq!(whose(&world, "ann").await, "ann");
    private(world.path(), "ann.key", next.key_pem.expose());
    soon(async { while whose(&world, "ann").await != "next" {} }).await;
}
