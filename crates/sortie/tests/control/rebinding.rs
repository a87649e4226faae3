//! Names that change their minds: an upstream's name that leads elsewhere than when it was judged, and names by which a web
//! page in somebody's browser could reach a listener of this machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use reqwest::Method;
use serde_json::json;
use sortie_testkit::skip_host;
use tokio::net::TcpListener;

use crate::common::{SOON, World, modern, routes, send, text};
use crate::recorder::Recorder;

/// Runs a program in a mount namespace of its own, where another file is the hosts file.
const WITH_HOSTS: &str = r#"mount --bind "$0" /etc/hosts && exec "$@""#;

fn can_mount(hosts: &Path) -> bool {
    let mut tried = Command::new("unshare");
    tried.args(["--mount", "sh", "-c", WITH_HOSTS]).arg(hosts).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    tried.status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn an_upstream_whose_name_moves_to_a_forbidden_address_is_not_dialled() {
    let world = World::start().await;
    let hosts = world.home.write("hosts", "127.0.0.1 moving.test\n").expect("hosts");
    if !can_mount(&hosts) {
        skip_host("no mount namespaces: they need root");
        return;
    }
    let closing = |_: &_| b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_vec();
    let allowed = Recorder::answering(Arc::new(closing)).await;
    let port = allowed.addr.port();
    // Whoever dials the other address meets this one.
    let forbidden = TcpListener::bind(("127.0.0.2", port)).await.expect("the same port of another address");
    let tunnel = world.tunnel("setup").await;
    let settings = routes(&[("up", &format!("http://moving.test:{port}"))]).replace("127.0.0.0/8", "127.0.0.1");
    let (settings, ready_file) =
        (world.home.write("moving.toml", settings).expect("settings"), world.home.join("moving.ready"));
    let program = world.home.apply(sortie_testkit::Program::new("unshare")).args(["--mount", "sh", "-c", WITH_HOSTS]);
    let program = program.arg(&hosts).arg(env!("CARGO_BIN_EXE_sortie")).args(["gateway", "--config"]).arg(settings);
    let program = program.arg("--data-dir").arg(world.home.join("moving.data")).arg("--setup-dir").arg(&tunnel.dir);
    let mut gateway = program.arg("--ready-file").arg(&ready_file).spawn().expect("gateway");
    gateway.ready_file(&ready_file, SOON).await.expect("gateway serves");

    let call = async || {
        let request = world.request(Method::GET, &tunnel, "up", "/x");
        send(request).await
    };
    assert_eq!(call().await.status, 200);
    for (hosts_now, status) in [
        ("127.0.0.2 moving.test\n", 502),
        ("::ffff:127.0.0.2 moving.test\n", 502),
        ("0.0.0.0 moving.test\n", 502),
        ("127.0.0.2 moving.test\n127.0.0.1 moving.test\n", 200),
        ("127.0.0.1 moving.test\n127.0.0.2 moving.test\n", 200),
        ("127.0.0.2 moving.test\n", 502),
        ("127.0.0.1 moving.test\n", 200),
    ] {
        std::fs::write(&hosts, hosts_now).expect("hosts");
        for _ in 0..5 {
            let answer = call().await;
            assert_eq!(answer.status, status, "{hosts_now}: {}", answer.text());
            if status == 502 {
                answer.refused(502, "upstream-connect", "");
                assert!(!answer.text().contains("127.0.0."), "addresses inside stay inside: {}", answer.text());
            }
        }
    }
    let dialled = tokio::time::timeout(std::time::Duration::from_millis(50), forbidden.accept()).await;
    assert!(dialled.is_err(), "the forbidden address was dialled");
}

#[tokio::test]
async fn a_web_page_gets_nothing_from_the_listeners_of_this_machine() {
    let serving = crate::common::serving().await;
    let world = &serving.world;
    let call = |host: &str, origin: Option<&str>| {
        let post = world.request(Method::POST, &serving.tunnel, "echo", "/mcp").header("host", host);
        let post = origin.iter().fold(post, |post, origin| post.header("origin", *origin));
        send(modern(post, &json!(1), "echo", &json!({ "text": "hello" })))
    };
    let own = world.api_url.trim_start_matches("http://").to_owned();
    let answer = call(&own, None).await;
    assert_eq!(text(&answer.json(), "/result/content/0/text"), "hello");
    for (host, origin) in [
        ("evil.example", None),
        ("evil.example:80", Some("http://evil.example")),
        (own.as_str(), Some("http://evil.example")),
        (own.as_str(), Some("null")),
    ] {
        let answer = call(host, origin).await;
        assert!(matches!(answer.status, 400 | 403 | 421), "{host}, {origin:?}: {} {}", answer.status, answer.text());
    }
    for path in ["/readyz", "/metrics", "/.well-known/jwks.json"] {
        let url = format!("{}{path}", serving.gateway.health);
        let answer =
            send(world.http.get(&url).header("host", "evil.example").header("origin", "http://evil.example")).await;
        assert!(answer.header("access-control-allow-origin").is_none(), "{path}");
    }
}
