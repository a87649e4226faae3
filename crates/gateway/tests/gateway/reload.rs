//! Settings that change while calls run.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sortie_link::EdgeLink;
use sortie_link::protos::Kind;
use sortie_runtime::{Metrics, TaskSet};
use sortie_tls::{Authority, ReloadingIdentity, SetupDir, SetupFile, Versions, server_config};

use crate::support::*;

const WIKI: &str = "wiki.abcd1234.sortie.localhost";
const SEALED: &str = "vault.abcd1234.sortie.localhost";

/// The file that a gateway is started with and watches.
struct File(PathBuf);

impl File {
    async fn watched(world: &World, config: &str) -> Self {
        let file = Self(world.path().join("gateway.toml"));
        file.write(config);
        world.gateway.watch(file.0.clone());
        file
    }

    fn write(&self, config: &str) {
        std::fs::write(&self.0, config).expect("write");
    }
}

async fn get(world: &World, link: &EdgeLink, host: &str) -> Response<Incoming> {
    let request = Request::builder().uri("/").header("host", host);
    let request = request.header("sortie-identity", world.caller.token(host)).body(full("")).expect("request");
    let stream = world.caller.tls(link, Kind::Hub, host, b"http/1.1").await.expect("tls");
    soon(world.caller.send(stream, request)).await.expect("response")
}

fn announced(link: &EdgeLink) -> Vec<String> {
    link.routes().iter().map(|route| route.name.to_string()).collect()
}

#[tokio::test]
async fn routes_come_go_and_change_while_a_stream_runs_on() {
    let tasks = TaskSet::new();
    let (send, body) = piped();
    let body = Mutex::new(Some(body));
    let old = Upstream::serve(&tasks, move |_| {
        let body = body.lock().expect("lock").take().expect("one call");
        async { Response::new(body) }
    })
    .await;
    let new = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &old.config()).await;
    let file = File::watched(&world, &old.config()).await;
    let link = world.link().await;
    let stream = get(&world, &link, HOST).await;

    // Another upstream, another limit, and one route more: seen without being asked to look.
    let wiki = format!("[routes.wiki]\nupstream = \"http://{}\"\n", new.addr);
    file.write(&(new.config().replace("max_request_body = 1000", "max_request_body = 3") + &wiki));
    until(|| announced(&link) == ["docs", "wiki"]).await;
    assert_eq!(text(get(&world, &link, WIKI).await).await, "ok");
    assert_eq!(text(get(&world, &link, HOST).await).await, "ok");
    let request = world.request("POST", "/").body(full("four")).expect("request");
    assert_eq!(refusal(world.call(request).await).await.0, 413);

    // The route goes; what runs on it does not.
    file.write(&new.config().replace("routes.docs", "routes.wiki"));
    world.gateway.reload();
    until(|| announced(&link) == ["wiki"]).await;
    let (status, hop, body) = refusal(get(&world, &link, HOST).await).await;
    assert_eq!((status, hop.as_str()), (502, "route"));
    assert_eq!(body["error"]["message"], "No route configured for host");
    send.send(Ok("still ")).await.expect("sent");
    send.send(Ok("here")).await.expect("sent");
    drop(send);
    assert_eq!(text(stream).await, "still here");
    assert_eq!((old.count(), world.edge.links()), (1, 1), "the stream was not begun again, and the link is the first");

    // A link that is dialled now announces what is so now.
    link.close();
    assert_eq!(announced(&world.edge.link_number(2).await), ["wiki"]);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told_of_once() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let file = File::watched(&world, &upstream.config()).await;
    let link = world.link().await;
    let failures = || {
        let text = Metrics::install().render();
        let line = text.lines().find(|line| line.starts_with("sortie_gateway_config_reloads_total{result=\"failed\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    assert!(world.gateway.readiness().config.ok);

    for (broken, said) in [
        ("[routes.docs]\nupstream = \"http://a\"\n".to_owned(), "gateway.toml:2: routes.docs.upstream: `http://a`"),
        (
            upstream.config() + "[upstream.tls]\nca_file = \"absent.pem\"\n",
            "gateway.toml:9: upstream.tls.ca_file: cannot read",
        ),
    ] {
        let before = failures();
        file.write(&broken);
        until(|| world.gateway.readiness().config.reason.is_some_and(|reason| reason.contains(said))).await;
        let report = world.gateway.readiness();
        assert!(!report.config.ok && report.link.connected);
        assert_eq!(text(get(&world, &link, HOST).await).await, "ok");
        // Longer than it takes to look again.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(failures(), before + 1, "{said}");
    }

    // A file that the settings name is part of them: when it is there, they are in force.
    let ca = Authority::generate("Upstream CA", 30).expect("authority");
    std::fs::write(world.path().join("absent.pem"), ca.cert_pem()).expect("write");
    until(|| world.gateway.readiness().config.ok).await;
    assert_eq!(world.gateway.readiness().config.reason, None);
    file.write(&upstream.config());
    world.gateway.reload();
    assert_eq!(text(get(&world, &link, HOST).await).await, "ok");
    std::fs::remove_file(&file.0).expect("remove");
    until(|| world.gateway.readiness().config.reason.is_some_and(|reason| reason.contains("cannot read"))).await;
    assert_eq!(text(get(&world, &link, HOST).await).await, "ok");
}

#[tokio::test]
async fn a_ca_file_with_another_content_is_in_force_without_a_change_of_the_settings() {
    let tasks = TaskSet::new();
    let (old, new) =
        (Authority::generate("Old CA", 30).expect("authority"), Authority::generate("New CA", 30).expect("authority"));
    let identity = new.issue_server(&["localhost".to_owned()], Duration::from_secs(86_400)).expect("certificate");
    let identity = ReloadingIdentity::from_pem(&identity.cert_pem, identity.key_pem.expose()).expect("identity");
    let tls = server_config(Arc::new(identity), Versions::Legacy, &[b"http/1.1"], None).expect("config");
    let upstream = Upstream::serve_over(&tasks, Some(tls), |_| async { Response::new(full("ok")) }).await;
    let config =
        upstream.config().replace("http://127.0.0.1", "https://localhost") + "[upstream.tls]\nca_file = \"up.pem\"\n";
    let world = World::start_with(&tasks, &config, Default::default(), |dir| {
        let file = dir.path(SetupFile::TunnelId).with_file_name("up.pem");
        std::fs::write(file, old.cert_pem()).expect("write");
    })
    .await;
    let _file = File::watched(&world, &config).await;
    let link = world.link().await;
    assert_eq!(get(&world, &link, HOST).await.status(), 502);
    std::fs::write(world.path().join("up.pem"), new.cert_pem()).expect("write");
    soon(async { while get(&world, &link, HOST).await.status() != 200 {} }).await;
}

#[tokio::test]
async fn another_certificate_is_shown_from_the_next_handshake_on() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start(&tasks, &upstream.config()).await;
    let file = File::watched(&world, &upstream.config()).await;
    let link = world.link().await;
    let days = || world.gateway.readiness().inner_tls.days_left;
    let before = days();
    // A later one of the same CA, under names of its own.
    let dir = SetupDir::at(world.path());
    dir.issue_server_cert(DOMAIN, Duration::from_secs(86_400 * 30)).expect("certificate");
    for (from, to) in [(SetupFile::TlsCert, "own.crt"), (SetupFile::TlsKey, "own.key")] {
        std::fs::rename(dir.path(from), world.path().join(to)).expect("rename");
    }
    file.write(&(upstream.config() + "[tls]\ncert_file = \"own.crt\"\nkey_file = \"own.key\"\n"));
    world.gateway.reload();
    until(|| days() > before + 20).await;
    assert_eq!(text(get(&world, &link, HOST).await).await, "ok");

    // One for other hosts changes nothing.
    dir.issue_server_cert("other999.sortie.localhost", Duration::from_secs(86_400 * 60)).expect("certificate");
    file.write(&(upstream.config() + "[tls]\ncert_file = \"tls.crt\"\nkey_file = \"tls.key\"\n"));
    world.gateway.reload();
    let said = "gateway.toml:3: the gateway's certificate does not cover `docs.abcd1234.sortie.localhost`";
    until(|| world.gateway.readiness().config.reason.is_some_and(|reason| reason.contains(said))).await;
    assert_eq!(text(get(&world, &link, HOST).await).await, "ok");
}

#[tokio::test]
async fn a_sealed_client_proves_itself_anew_when_and_only_when_the_proof_has_changed() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let clients = Authority::generate("Clients", 30).expect("authority");
    let others = Authority::generate("Others", 30).expect("authority");
    let config = format!(
        "{}[routes.vault]\nupstream = \"http://{}\"\nmode = \"sealed\"\nclient_ca_file = \"clients.pem\"\n",
        upstream.config(),
        upstream.addr
    );
    let pem = clients.cert_pem().to_owned();
    let world = World::start_with(&tasks, &config, Default::default(), |dir| {
        std::fs::write(dir.path(SetupFile::TunnelId).with_file_name("clients.pem"), pem).expect("write");
    })
    .await;
    let file = File::watched(&world, &config).await;
    let link = world.link().await;
    let client = clients.issue_client("agent-1", Duration::from_secs(86_400)).expect("client");
    let client = world.caller.sealed_config(&client);
    let stream = world.caller.tls_with(client.clone(), &link, Kind::Sealed, SEALED).await.expect("tls");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
    tasks.spawn("test-caller", async move { drop(connection.await) });
    let mut send = async || {
        soon(sender.ready()).await.expect("ready");
        let request = Request::builder().uri("/").header("host", SEALED).body(full("")).expect("request");
        let response = soon(sender.send_request(request)).await.expect("response");
        let status = response.status().as_u16();
        drop(text(response).await);
        status
    };
    assert_eq!(send().await, 200);

    // What the route does has changed, not whom it trusts.
    file.write(&(config.clone() + "host = \"vault.internal\"\n"));
    world.gateway.reload();
    soon(async {
        loop {
            assert_eq!(send().await, 200);
            let seen = upstream.seen.lock().expect("lock");
            if seen.last().is_some_and(|head| head.headers["host"] == "vault.internal") {
                break;
            }
        }
    })
    .await;

    // Now it trusts somebody else: a connection that was open gives nobody more than a new one would.
    std::fs::write(world.path().join("clients.pem"), others.cert_pem()).expect("write");
    world.gateway.reload();
    soon(async { while send().await != 421 {} }).await;
    if let Ok(stream) = world.caller.tls_with(client, &link, Kind::Sealed, SEALED).await {
        let request = Request::builder().uri("/").header("host", SEALED).body(full("")).expect("request");
        assert!(soon(world.caller.send(stream, request)).await.is_err());
    }
}
