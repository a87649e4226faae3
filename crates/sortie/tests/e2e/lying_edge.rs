//! An edge that lies: it has a certificate that the gateway trusts and takes the link, but is no part of any hub. It
//! can open streams and speak inner TLS, and must reach no upstream.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sortie_ids::{LinkId, TunnelToken};
use sortie_link::Welcome;
use sortie_link::protos::{EdgeHello, FromEdge, FromGateway, Kind, VERSION};
use sortie_link::{EdgeLink, LinkStream};
use sortie_runtime::TaskSet;
use sortie_testkit::{Process, TempHome};
use sortie_tls::{
    Authority, ClientStream, ReloadingIdentity, ServerName, SetupDir, SetupFile, TlsAcceptor, TlsConnector, Versions,
    inner_client_config, server_config,
};
use tokio::net::TcpListener;

use crate::common::{SOON, Upstream, raw, routes, sortie};

const DAY: Duration = Duration::from_secs(86_400);
const DOMAIN: &str = "abcd1234.sortie.localhost";
const HOST: &str = "up.abcd1234.sortie.localhost";
const ISSUER: &str = "urn:sortie:hub:test";

/// A hub's key for callers' identities.
struct Signer(Ed25519KeyPair);

impl Signer {
    fn new() -> Self {
        Self(Ed25519KeyPair::generate().expect("key"))
    }

    fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        json!({ "issuer": ISSUER, "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": x }] }).to_string()
    }

    fn sign(&self, alg: &str, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let body = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": alg, "kid": "k1" })), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(body.as_bytes()).as_ref());
        format!("{body}.{signature}")
    }
}

fn claims(name: &str, value: Value) -> Value {
    let now = jiff::Timestamp::now().as_second();
    let mut claims = json!({ "iss": ISSUER, "aud": HOST, "sub": "key:1", "iat": now - 5, "exp": now + 60, "jti": "j" });
    if let Some(fields) = claims.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
    claims
}

/// The gateway with its link to us.
struct Caught {
    link: EdgeLink,
    ca: Authority,
    signer: Signer,
    upstream: Upstream,
    gateway: Process,
    home: TempHome,
    _tasks: TaskSet,
}

async fn caught() -> Caught {
    let home = TempHome::new().expect("home");
    let (signer, edge_ca) = (Signer::new(), Authority::generate("Edge", 10).expect("edge CA"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let dir = SetupDir::open(home.join("setup")).expect("directory");
    let ca = dir.ensure_authority().expect("CA");
    dir.issue_server_cert(DOMAIN, DAY).expect("certificate");
    for (file, text) in [
        (SetupFile::TunnelDomain, DOMAIN.to_owned()),
        (SetupFile::TunnelToken, TunnelToken::random("org_1", "tnl_1").expose().to_owned()),
        (SetupFile::EdgeAddr, listener.local_addr().expect("address").to_string()),
        (SetupFile::EdgeCa, edge_ca.cert_pem().to_owned()),
        (SetupFile::HubIdentity, signer.jwks()),
    ] {
        dir.write(file, &text).expect("write");
    }
    let upstream = Upstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nreached").await;
    let config = home.write("gateway.toml", routes(&[("up", &upstream.url()), ("other", &upstream.url())]));
    let gateway = sortie(&home)
        .args(["gateway", "--config"])
        .arg(config.expect("config"))
        .arg("--data-dir")
        .arg(home.join("data"))
        .arg("--setup-dir")
        .arg(home.join("setup"))
        .arg("--ready-file")
        .arg(home.join("ready"))
        .spawn()
        .expect("gateway");

    let shown = edge_ca.issue_server(&["127.0.0.1".to_owned()], DAY).expect("certificate");
    let shown = ReloadingIdentity::from_pem(&shown.cert_pem, shown.key_pem.expose()).expect("identity");
    let tls = server_config(Arc::new(shown), Versions::Tls13, &[sortie_link::ALPN], None).expect("TLS");
    let (tcp, _) = tokio::time::timeout(SOON, listener.accept()).await.expect("in time").expect("a dial");
    let stream = TlsAcceptor::from(tls).accept(tcp).await.expect("outer TLS");
    let tasks = TaskSet::new();
    let hello =
        EdgeHello { version: VERSION, features: Vec::new(), edge_instance: "liar".into(), link_id: LinkId::random() };
    let admit = async |_| Ok(Welcome { domain: DOMAIN.to_owned(), identity_keys: Vec::new() });
    let (link, mut said) = sortie_link::accept(stream, &hello, &tasks, admit).await.expect("link");
    // A liar says that all is well.
    let teller = link.clone();
    tasks.spawn("liar", async move {
        while let Some(message) = said.recv().await {
            if let FromGateway::Probe { id, .. } = message {
                teller.tell(FromEdge::ProbeResult { id, failure: None });
            }
        }
    });
    Caught { link, ca, signer, upstream, gateway, home, _tasks: tasks }
}

impl Caught {
    /// Inner TLS as the hub would speak it.
    async fn inner(&self, kind: Kind, host: &str) -> std::io::Result<ClientStream<LinkStream>> {
        let stream = self.link.open(kind, host).await.expect("stream");
        let tls = inner_client_config(&[self.ca.certificate().clone()], &[b"http/1.1"]);
        let name = ServerName::try_from(host.to_owned()).expect("name");
        tokio::time::timeout(SOON, TlsConnector::from(tls).connect(name, stream)).await.expect("in time")
    }

    async fn call(&self, identities: &[String], host: &str) -> crate::common::Answer {
        let stream = self.inner(Kind::Hub, HOST).await.expect("inner TLS");
        let head: String = identities.iter().map(|token| format!("sortie-identity: {token}\r\n")).collect();
        raw(stream, &format!("GET /mcp HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{head}\r\n")).await
    }
}

#[tokio::test]
async fn without_the_hubs_word_no_request_reaches_an_upstream() {
    let mut world = caught().await;
    let now = jiff::Timestamp::now().as_second();
    let (good, other) = (&world.signer, Signer::new());
    let valid = good.sign("EdDSA", &claims("sub", json!("key:1")));
    let (head, _) = valid.rsplit_once('.').expect("signature");
    for (identities, reason) in [
        (vec![], "missing"),
        (vec![String::new()], "malformed"),
        (vec![head.to_owned() + "."], "signed"),
        (vec![valid.clone(), valid.clone()], "more than once"),
        (vec![other.sign("EdDSA", &claims("sub", json!("key:1")))], "wrongly signed"),
        (vec![good.sign("none", &claims("sub", json!("key:1")))], "an algorithm that is not accepted"),
        (vec![good.sign("EdDSA", &claims("aud", json!("other.abcd1234.sortie.localhost")))], "another route"),
        (vec![good.sign("EdDSA", &claims("exp", json!(now - 1)))], "expired"),
        (vec![good.sign("EdDSA", &claims("exp", json!(now + 86_400)))], "longer than is accepted"),
        (vec![good.sign("EdDSA", &claims("iss", json!("urn:sortie:hub:other")))], "issuer"),
        (vec![good.sign("EdDSA", &claims("sub", json!("hub:probe")))], "probe"),
    ] {
        world.call(&identities, HOST).await.refused(401, "identity", reason);
    }
    // A word for one route opens no other, on the same connection or by another name of it.
    world.call(std::slice::from_ref(&valid), "other.abcd1234.sortie.localhost").await.refused(
        401,
        "identity",
        "another route",
    );
    world.call(std::slice::from_ref(&valid), "up.zzzz9999.sortie.localhost").await.refused(502, "route", "No route");
    assert!(world.upstream.seen().is_empty(), "{:?}", world.upstream.seen());

    let answer = world.call(&[valid], HOST).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "reached"));
    let seen = world.upstream.only();
    assert!(seen.header("sortie-identity").is_empty(), "{}", seen.head);
    // A lie about readiness is believed, since nothing rides on it; a token never lands in the log.
    world.gateway.ready_file(&world.home.join("ready"), SOON).await.expect("ready");
    let token = std::fs::read_to_string(world.home.join("setup/tunnel-token")).expect("token");
    assert!(!world.gateway.output().contains(token.trim()));
}

#[tokio::test]
async fn a_lie_about_the_kind_of_a_stream_gains_nothing() {
    let world = caught().await;
    // As a sealed client, without the certificate that only sealed routes could ask for.
    assert!(world.inner(Kind::Sealed, HOST).await.is_err(), "a terminated route takes no client's TLS");
    let mut plain = world.link.open(Kind::Hub, HOST).await.expect("stream");
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    plain.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.expect("write");
    let mut said = Vec::new();
    let _reset = tokio::time::timeout(SOON, plain.read_to_end(&mut said)).await.expect("in time");
    assert!(!said.starts_with(b"HTTP"), "nothing is answered in clear");
    assert!(world.upstream.seen().is_empty());
}

#[tokio::test]
async fn an_edge_with_another_certificate_gets_not_even_the_token() {
    let home = TempHome::new().expect("home");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let (trusted, other) = (Authority::generate("Edge", 10).expect("CA"), Authority::generate("Edge", 10).expect("CA"));
    let dir = SetupDir::open(home.join("setup")).expect("directory");
    dir.ensure_authority().expect("CA");
    dir.issue_server_cert(DOMAIN, DAY).expect("certificate");
    for (file, text) in [
        (SetupFile::TunnelDomain, DOMAIN.to_owned()),
        (SetupFile::TunnelToken, TunnelToken::random("org_1", "tnl_1").expose().to_owned()),
        (SetupFile::EdgeAddr, listener.local_addr().expect("address").to_string()),
        (SetupFile::EdgeCa, trusted.cert_pem().to_owned()),
        (SetupFile::HubIdentity, Signer::new().jwks()),
    ] {
        dir.write(file, &text).expect("write");
    }
    let config = home.write("gateway.toml", routes(&[("up", "http://127.0.0.1:9")])).expect("config");
    let mut gateway = sortie(&home)
        .args(["gateway", "--config"])
        .arg(config)
        .arg("--data-dir")
        .arg(home.join("data"))
        .arg("--setup-dir")
        .arg(home.join("setup"))
        .spawn()
        .expect("gateway");
    let shown = other.issue_server(&["127.0.0.1".to_owned()], DAY).expect("certificate");
    let shown = ReloadingIdentity::from_pem(&shown.cert_pem, shown.key_pem.expose()).expect("identity");
    let tls = server_config(Arc::new(shown), Versions::Tls13, &[sortie_link::ALPN], None).expect("TLS");
    let (tcp, _) = tokio::time::timeout(SOON, listener.accept()).await.expect("in time").expect("a dial");
    assert!(TlsAcceptor::from(tls).accept(tcp).await.is_err(), "the gateway must not go on");
    gateway.ready_output("unknown certificate authority", SOON).await.expect("a clear sentence");
}
