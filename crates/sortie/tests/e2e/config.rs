//! The gateway's configuration: the hosted proxy's file as it is, changes while it runs, and `sortie config`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;
use sortie_testkit::{EchoServer, Process, TempHome};
use sortie_tls::{Authority, SetupDir};

use crate::common::{SOON, Tunnel, Upstream, World, echo_route, routes, run, send, sortie, text, until};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

/// A gateway on a file of this name and content.
async fn gateway(world: &World, tunnel: &Tunnel, name: &str, config: &str) -> (Process, Value, PathBuf) {
    let file = world.home.write(name, config).expect("config");
    let ready_file = world.home.join("gateway.ready");
    let program = sortie(&world.home)
        .args(["gateway", "--health", "127.0.0.1:0", "--config"])
        .arg(&file)
        .arg("--data-dir")
        .arg(world.home.join("data"))
        .arg("--setup-dir")
        .arg(&tunnel.dir)
        .arg("--ready-file")
        .arg(&ready_file);
    let mut process = program.spawn().expect("gateway");
    let ready = process.ready_file(&ready_file, SOON).await.expect("gateway serves");
    (process, ready, file)
}

async fn status(world: &World, tunnel: &Tunnel, route: &str) -> u16 {
    send(world.request(Method::GET, tunnel, route, "/")).await.status
}

#[tokio::test]
async fn the_hosted_proxys_file_serves_and_its_log_says_what_people_look_for() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    // The certificate that the file names is the one that counts: the one beside it would not be believed.
    for name in ["tls.crt", "tls.key"] {
        fs::rename(tunnel.dir.join(name), world.home.join(name)).expect("move");
    }
    let stranger = Authority::generate("Somebody else", 30).expect("authority");
    let other = stranger.issue_server(&[format!("*.{}", tunnel.domain)], Duration::from_secs(86_400)).expect("issue");
    fs::write(tunnel.dir.join("tls.crt"), &other.cert_pem).expect("write");
    sortie_tls::write_private(tunnel.dir.join("tls.key"), other.key_pem.expose().as_bytes()).expect("write");

    let upstream = Upstream::saying(OK).await;
    let config = format!(
        "listen_addr: \":8080\"\nlog_level: info\nshutdown_timeout: 1m30s\ntunnel_domain: {domain}\n\
         tls:\n  cert_file: tls.crt\n  key_file: tls.key\n\
         routes:\n  docs: {url}\n  blocked: http://127.0.0.2:9\n  exact.{domain}: {url}\n\
         upstream:\n  allowed_ips:\n    - 127.0.0.1\n",
        domain = tunnel.domain,
        url = upstream.url(),
    );
    let (mut process, ready, file) = gateway(&world, &tunnel, "proxy.yaml", &config).await;
    assert_eq!(ready["routes"], serde_json::json!(["blocked", "docs", "exact"]));

    // Servers do their own OAuth there: what the caller sends reaches them.
    let request = world.request(Method::GET, &tunnel, "docs", "/mcp?x=1").header("authorization", "Bearer theirs");
    assert_eq!(send(request).await.text(), "ok");
    let seen = upstream.only();
    assert_eq!(seen.header("authorization"), ["Bearer theirs"]);
    assert!(seen.head.starts_with("GET /mcp?x=1 "), "{}", seen.head);
    assert_eq!(status(&world, &tunnel, "exact").await, 200);
    assert_eq!(status(&world, &tunnel, "blocked").await, 502);
    let answer = send(world.request(Method::GET, &tunnel, "nowhere", "/")).await;
    answer.refused(502, "route", "No route configured for host");
    for phrase in [
        "listen_addr `:8080` is not needed",
        "route configured",
        "request started",
        "no route for host",
        "IP validation failed: 127.0.0.2 is not a private address",
    ] {
        process.ready_output(phrase, SOON).await.expect(phrase);
    }

    // A signal has the file read, even one that has not changed.
    assert!(!process.output().contains("configuration reloaded"));
    process.signal(Signal::HUP);
    process.ready_output("configuration reloaded", SOON).await.expect("read");

    // A changed file is found by itself.
    fs::write(&file, config.replace("blocked: http://127.0.0.2:9", &format!("more: {}", upstream.url())))
        .expect("write");
    until("the new route serves", SOON, async || status(&world, &tunnel, "more").await == 200).await;
    process.ready_output("route removed", SOON).await.expect("told");
    assert_eq!(status(&world, &tunnel, "blocked").await, 502);

    // A broken one: the old one serves, and health says why.
    fs::write(&file, config.replace("  docs: ", "  - docs: ")).expect("write");
    let broken = format!("{}:9: routes: cannot unmarshal !!seq into map[string]string", file.display());
    process.ready_output(&format!("the old configuration stays in force: {broken}"), SOON).await.expect("told");
    assert_eq!(status(&world, &tunnel, "more").await, 200);
    let health = text(&ready, "/health_url").to_owned();
    let body = send(world.http.get(format!("{health}/readyz"))).await.json();
    assert!(text(&body, "/config/reason").starts_with(&broken), "{body}");
    assert_eq!((&body["config"]["ok"], &body["ready"]), (&false.into(), &true.into()), "{body}");
    let metrics = send(world.http.get(format!("{health}/metrics"))).await.text();
    for line in ["{result=\"ok\"} 2", "{result=\"failed\"} 1"] {
        assert!(metrics.contains(&format!("sortie_gateway_config_reloads_total{line}")), "{metrics}");
    }
    assert_eq!(process.stop(SOON).await.expect("stop").code(), Some(0));
}

#[tokio::test]
async fn the_ready_file_tells_where_the_hosted_services_traffic_is_taken() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let upstream = Upstream::saying(OK).await;
    let config = format!(
        "[routes.docs]\nupstream = \"{}\"\n[upstream]\nallowed_ips = [\"127.0.0.1\"]\n[listener]\n\
         listen_addr = \"127.0.0.1:0\"\ncaller = {{ subject = \"hosted\" }}\n",
        upstream.url()
    );
    let (mut process, ready, _) = gateway(&world, &tunnel, "gateway.toml", &config).await;
    process.ready_output("listening for the hosted service's own traffic", SOON).await.expect("told");
    let answer = send(world.http.get(format!("{}/mcp", text(&ready, "/listen_url")))).await;
    assert_eq!(answer.status, 426, "{}", answer.text());
    let body = send(world.http.get(format!("{}/readyz", text(&ready, "/health_url")))).await.json();
    assert_eq!(text(&ready, "/listen_url"), format!("http://{}", text(&body, "/listener/address")));
    assert_eq!(body["listener"]["caller"], "hosted", "{body}");
}

#[tokio::test]
async fn a_file_for_another_tunnel_is_refused_at_the_start() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let config = "listen_addr: \":8080\"\ntunnel_domain: other.tunnel.example\n\
                  tls: {cert_file: setup/tls.crt, key_file: setup/tls.key}\nroutes: {docs: \"http://10.0.0.5:80\"}\n";
    let file = world.home.write("proxy.yml", config).expect("config");
    let start = |more: &str| {
        let program = sortie(&world.home).args(["gateway", "--config"]).arg(&file).arg("--setup-dir").arg(&tunnel.dir);
        program.arg("--data-dir").arg(world.home.join(more))
    };
    let said = format!(
        "proxy.yml:2: tunnel_domain: `other.tunnel.example` is not the domain of the set-up directory, `{}`",
        tunnel.domain
    );
    run(start("data")).await.failed(2, &[&said, "--setup-dir"]);
    fs::write(
        &file,
        config.replace("other.tunnel.example", &tunnel.domain).replace("setup/tls.key", "setup/absent.key"),
    )
    .expect("write");
    run(start("data")).await.failed(2, &["proxy.yml:3: tls.key_file: cannot read", "absent.key"]);
}

#[tokio::test]
async fn a_running_stream_survives_a_reload_end_to_end() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let echo = EchoServer::start().await.expect("echo");
    let (process, _, file) = gateway(&world, &tunnel, "gateway.toml", &echo_route(&echo)).await;
    let long = serde_json::json!({ "count": 8, "interval_ms": 100 });
    let post = world.request(Method::POST, &tunnel, "echo", "/mcp");
    let mut response =
        crate::common::modern(post, &serde_json::json!(1), "progress", &long).send().await.expect("answer");
    assert!(response.chunk().await.expect("an event").is_some());

    fs::write(&file, routes(&[("other", &format!("http://{}", echo.addr()))])).expect("write");
    process.signal(Signal::HUP);
    until("the route goes", SOON, async || status(&world, &tunnel, "echo").await == 502).await;
    world.serves(&tunnel, "other").await;
    let listed = run(world.operator(&["routes", "list", "--output", "json"])).await.json();
    assert_eq!(
        (text(&listed, "/data/0/name"), listed["data"].as_array().map(Vec::len)),
        ("other", Some(1)),
        "{listed}"
    );
    let mut rest = Vec::new();
    while let Some(chunk) = response.chunk().await.expect("the stream goes on") {
        rest.extend_from_slice(&chunk);
    }
    assert!(String::from_utf8_lossy(&rest).contains("\"result\""), "the stream came to its end");
}

#[tokio::test]
async fn files_are_checked_shown_and_translated_without_a_hub() {
    let home = TempHome::new().expect("home");
    let config = |args: &[&str]| sortie(&home).arg("config").args(args);
    let dir = SetupDir::open(home.join("certs")).expect("dir");
    dir.ensure_authority().expect("authority");
    dir.issue_server_cert("abcd1234.tunnel.example", Duration::from_secs(86_400)).expect("certificate");
    let yaml = "listen_addr: \":8080\"\ntunnel_domain: abcd1234.tunnel.example\n\
                tls:\n  cert_file: certs/tls.crt\n  key_file: certs/tls.key\n\
                routes:\n  docs: http://localhost:8080\n  wiki: http://nowhere.invalid:80\n";
    let file = home.write("proxy.yaml", yaml).expect("write");
    let path = file.to_str().expect("path");

    let good = run(config(&["check", path])).await.ok();
    assert!(good.contains("proxy.yaml: good, 2 routes") && good.contains("note: listen_addr"), "{good}");
    run(config(&["check", path, "--online"])).await.failed(
        2,
        &[
            "proxy.yaml:7: routes.docs.upstream: IP validation failed: ",
            "is not a private address",
            "proxy.yaml:8: routes.wiki.upstream: the name `nowhere.invalid`",
        ],
    );

    // What the file names is part of it.
    let pem = |name: &str| home.write(name, "not PEM").expect("write");
    pem("bad.pem");
    let toml = "[routes.docs]\nupstream = \"https://a:443\"\n[routes.raw]\nupstream = \"http://a:80\"\n\
                mode = \"sealed\"\nclient_ca_file = \"bad.pem\"\n[routes.files]\nupstream = \"builtin:files\"\n\
                root = \"absent\"\n[upstream.tls]\nca_file = \"absent.pem\"\n[link]\n\
                proxy_authorization_file = \"nowhere\"\n[tls]\ncert_file = \"certs/tls.crt\"\nkey_file = \"bad.pem\"\n";
    let broken = home.write("broken.toml", toml).expect("write");
    let said = [
        "broken.toml:6: routes.raw.client_ca_file: ",
        "broken.toml:9: routes.files.root: the directory ",
        "broken.toml:11: upstream.tls.ca_file: cannot read ",
        "broken.toml:13: link.proxy_authorization_file: cannot read ",
        "broken.toml:16: tls.key_file: ",
    ];
    run(config(&["check", broken.to_str().expect("path")])).await.failed(2, &said);
    let report = run(config(&["check", path, "--output", "json"])).await.json();
    assert_eq!((&report["ok"], &report["routes"]), (&true.into(), &2.into()), "{report}");
    let wrong = home.write("wrong.toml", "[routes.docs]\ncolour = 1\n").expect("write");
    run(config(&["check", wrong.to_str().expect("path")])).await.failed(2, &["wrong.toml:2: unknown field `colour`"]);

    // Shown to people and programs, and as the file to go on with.
    let table = run(config(&["show", path])).await.ok();
    for row in
        ["routes.docs.authorization", "forward", "upstream.allowed_ips", "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"]
    {
        assert!(table.contains(row), "{table}");
    }
    let json = run(config(&["show", path, "--output", "json"])).await.json();
    assert_eq!(text(&json, "/shutdown_timeout"), "30s");
    let toml = run(config(&["show", path, "--output", "toml"])).await.ok();
    let moved = home.write("moved/gateway.toml", &toml).expect("write");
    assert_eq!(run(config(&["show", moved.to_str().expect("path"), "--output", "json"])).await.json(), json);
    run(config(&["schema", "--output", "dir:x"])).await.ok();
    run(sortie(&home).args(["keys", "list", "--output", "toml"]))
        .await
        .failed(2, &["--output toml is for config show"]);
}
