//! Each way a call can fail before or behind the gateway: its status, its hop, its reason, in the caller's own form.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, free_port};
use tokio::net::TcpStream;

use crate::common::{
    AT_ONCE, Answer, SOON, Serving, Tunnel, Upstream, World, modern, raw, routes, send, serving, sortie, tls_to,
};

/// A call with this key in `x-api-key`, or with none.
async fn call(world: &World, url: &str, key: Option<&str>, id: &Value) -> Answer {
    let mut request = world.http.post(url);
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    send(modern(request, id, "echo", &json!({ "text": "hello" }))).await
}

async fn get(world: &World, tunnel: &Tunnel, route: &str) -> Answer {
    send(world.request(Method::GET, tunnel, route, "/mcp")).await
}

/// A world whose gateway has one route `up` to this upstream, with these further lines for the route.
async fn behind(upstream: &str, more: &str) -> Serving {
    let echo = EchoServer::start().await.expect("echo");
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let config = format!(
        "[routes.up]\nupstream = \"{upstream}\"\n{more}\n[routes.echo]\nupstream = \"http://{}\"\n\
         [upstream]\nallowed_ips = [\"127.0.0.0/8\"]\nconnect_timeout = \"2s\"\n",
        echo.addr()
    );
    let gateway = world.gateway(&tunnel.dir, &config, &[]).await;
    Serving { world, tunnel, gateway, echo }
}

#[tokio::test]
async fn who_may_not_call_is_told_so_and_nothing_else() {
    let Serving { world, tunnel, gateway: _gateway, echo } = serving().await;
    let url = world.url(&tunnel, "echo", "/mcp");
    let other = world.tunnel("other").await;
    let (_, foreign) = world.use_key(&[&other.id]).await;
    let (_, elsewhere) = world.use_key(&[&format!("{}/docs", tunnel.id)]).await;
    let (_, good) = world.use_key(&[&format!("{}/echo", tunnel.id)]).await;
    let id = json!("call-7");

    let none = call(&world, &url, None, &id).await;
    none.rpc_refused(401, "identity", "", &id);
    assert!(none.header("www-authenticate").expect("challenge").starts_with("Bearer"));
    let wrong = format!("{}x", &good[..good.len() - 1]);
    for key in [wrong.as_str(), "nonsense", ""] {
        call(&world, &url, Some(key), &id).await.rpc_refused(401, "identity", "", &id);
    }
    for key in [&foreign, &elsewhere] {
        call(&world, &url, Some(key), &id).await.rpc_refused(403, "policy", "may not call", &id);
    }
    // A stranger learns nothing about which tunnels there are.
    let nowhere = url.replace(&tunnel.label, "zzzzzzzz");
    call(&world, &nowhere, None, &id).await.rpc_refused(401, "identity", "", &id);
    call(&world, &nowhere, Some(&good), &id).await.rpc_refused(502, "route", "No route configured for host", &id);
    // Not JSON-RPC: the public error object.
    let plain = send(world.http.get(&url)).await;
    plain.refused(401, "identity", "");
    assert_eq!(text_of(&plain, "/error/type"), "authentication_error");

    assert!(echo.events().is_empty(), "{:?}", echo.events());
    assert_eq!(call(&world, &url, Some(&good), &id).await.status, 200);
    let bearer = world.http.post(&url).bearer_auth(&good);
    assert_eq!(send(modern(bearer, &id, "echo", &json!({ "text": "x" }))).await.status, 200);
}

fn text_of(answer: &Answer, pointer: &str) -> String {
    crate::common::text(&answer.json(), pointer).to_owned()
}

#[tokio::test]
async fn an_unknown_route_is_a_gateway_error_and_never_404() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let id = json!(9_007_199_254_740_993_u64);
    let answer = call(&world, &world.url(&tunnel, "nothing", "/mcp"), Some(&world.api_key), &id).await;
    answer.rpc_refused(502, "route", "No route configured for host", &id);
    for path in ["/t/", "/t/x", "/t/UPPER/echo/mcp", "/t//echo/mcp", "/t//t/"] {
        let answer = send(world.api(Method::GET, path)).await;
        answer.refused(502, "route", "No route configured for host");
    }
    // A batch has no one id, and a notification none at all.
    for body in ["[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"}]", "{\"jsonrpc\":\"2.0\",\"method\":\"a\"}", "{", ""]
    {
        let post = world.request(Method::POST, &tunnel, "nothing", "/mcp").header("content-type", "application/json");
        send(post.body(body)).await.refused(502, "route", "No route configured for host");
    }
}

#[tokio::test]
async fn without_a_gateway_calls_fail_at_once_and_say_when_to_come_back() {
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let id = json!("a");
    let began = Instant::now();
    let answer = call(&world, &world.url(&tunnel, "echo", "/mcp"), Some(&world.api_key), &id).await;
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    answer.rpc_refused(503, "link", "no gateway", &id);
    get(&world, &tunnel, "echo").await.refused(503, "link", "no gateway");
}

#[tokio::test]
async fn an_upstream_that_cannot_be_dialled_is_named_without_its_address() {
    let closed = free_port().expect("port");
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } =
        behind(&format!("http://127.0.0.1:{closed}"), "").await;
    let id = json!(0);
    let answer = call(&world, &world.url(&tunnel, "up", "/mcp"), Some(&world.api_key), &id).await;
    answer.rpc_refused(502, "upstream-connect", "refused the connection", &id);
    assert!(!answer.text().contains(&closed.to_string()) && !answer.text().contains("127.0.0.1"), "{}", answer.text());
    get(&world, &tunnel, "up").await.refused(502, "upstream-connect", "route `up`");
    world.serves(&tunnel, "echo").await;
}

#[tokio::test]
async fn addresses_that_are_not_allowed_are_never_dialled() {
    let echo = EchoServer::start().await.expect("echo");
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let mapped = format!("http://[::ffff:127.0.0.1]:{}", echo.addr().port());
    let name = format!("http://localhost:{}", echo.addr().port());
    let list = [
        ("loopback", format!("http://{}", echo.addr())),
        ("named", name),
        ("mapped", mapped),
        ("public", "http://203.0.113.9:80".to_owned()),
        ("metadata", "http://169.254.169.254:80".to_owned()),
        ("metadata6", "http://[::ffff:a9fe:a9fe]:80".to_owned()),
        ("nat64", "http://[64:ff9b::a9fe:a9fe]:80".to_owned()),
    ];
    // Even a list that allows everything does not mean this machine or a metadata service.
    let mut config: String =
        list.iter().map(|(name, upstream)| format!("[routes.{name}]\nupstream = \"{upstream}\"\n")).collect();
    config.push_str("[upstream]\nallowed_ips = [\"10.0.0.0/8\", \"169.254.0.0/16\"]\n");
    let wide = config.replace("[\"10.0.0.0/8\", \"169.254.0.0/16\"]", "[\"0.0.0.0/0\", \"::/0\"]");
    for (config, skip) in [(config, ""), (wide, "public")] {
        let gateway = world.gateway(&tunnel.dir, &config, &[]).await;
        for (route, _) in list.iter().filter(|(route, _)| *route != skip) {
            let began = Instant::now();
            get(&world, &tunnel, route).await.refused(502, "upstream-connect", "not one that the gateway may dial");
            assert!(began.elapsed() < AT_ONCE, "{route}: {:?}", began.elapsed());
        }
        drop(gateway);
    }
    assert!(echo.events().is_empty());
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_not_followed() {
    let target = Upstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let location = format!("{}/secret", target.url());
    let redirect = Upstream::saying(format!("HTTP/1.1 307 Gone\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"));
    let redirect = redirect.await;
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = behind(&redirect.url(), "").await;
    let answer = get(&world, &tunnel, "up").await;
    assert_eq!((answer.status, answer.header("location")), (307, Some(location.as_str())));
    assert_eq!(answer.header("sortie-hop"), None);
    assert!(target.seen().is_empty());
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_told_from_one_that_ends() {
    let id = json!("b");
    let nothing = Upstream::saying("").await;
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = behind(&nothing.url(), "").await;
    let answer = call(&world, &world.url(&tunnel, "up", "/mcp"), Some(&world.api_key), &id).await;
    answer.rpc_refused(502, "upstream", "broke off before it answered", &id);
    assert_eq!(nothing.seen().len(), 1, "a call that may have run is never repeated");

    for half in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let half = Upstream::saying(half).await;
        let Serving { world, tunnel, gateway: _gateway, echo: _echo } = behind(&half.url(), "").await;
        let response = world.request(Method::GET, &tunnel, "up", "/mcp").send().await.expect("a head");
        assert_eq!(response.status(), 200, "{:?} {}", response.text().await, _gateway.process.output());
        let read = tokio::time::timeout(Duration::from_secs(5), response.bytes()).await.expect("in time");
        assert!(read.is_err(), "half an answer must not look whole: {read:?}");
        assert_eq!(half.seen().len(), 1);
        world.serves(&tunnel, "echo").await;
    }
}

#[tokio::test]
async fn garbage_from_an_upstream_stays_there() {
    for said in ["not HTTP at all\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n"] {
        let upstream = Upstream::saying(said).await;
        let Serving { world, tunnel, gateway: _gateway, echo: _echo } = behind(&upstream.url(), "").await;
        get(&world, &tunnel, "up").await.refused(502, "upstream", "");
    }
}

#[tokio::test]
async fn a_route_with_a_deadline_answers_504_in_time() {
    let silent = Upstream::silent().await;
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = behind(&silent.url(), "deadline = \"300ms\"").await;
    let id = json!("late");
    let began = Instant::now();
    let answer = call(&world, &world.url(&tunnel, "up", "/mcp"), Some(&world.api_key), &id).await;
    answer.rpc_refused(504, "upstream", "within its deadline", &id);
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(3));
    assert_eq!(silent.seen().len(), 1);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_answered_413() {
    let upstream = Upstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let config = format!("max_request_body = 1000\n{}", routes(&[("up", &upstream.url())]));
    let _gateway = world.gateway(&tunnel.dir, &config, &[]).await;
    let post = |size: usize| {
        let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"big\",\"method\":\"{}\"}}", "x".repeat(size));
        world.request(Method::POST, &tunnel, "up", "/mcp").header("content-type", "application/json").body(body)
    };
    let answer = send(post(2000)).await;
    // Its id came early enough to be seen.
    answer.rpc_refused(413, "route", "larger than 1000 bytes", &json!("big"));
    assert!(upstream.seen().is_empty(), "nothing of it went on");
    assert_eq!(send(post(100)).await.status, 200);
    // The hub's own API has a limit of its own.
    let answer = send(world.api(Method::POST, "/v1/tunnels").body("x".repeat(1 << 20))).await;
    assert_eq!((answer.status, text_of(&answer, "/error/type").as_str()), (413, "request_too_large"));
}

#[tokio::test]
async fn names_that_are_not_ours_are_misdirected_and_foreign_pages_forbidden() {
    let Serving { world, tunnel, gateway: _gateway, echo } = serving().await;
    let api = world.api_url.trim_start_matches("http://").to_owned();
    let ask = async |host: &str, more: &str| {
        let stream = TcpStream::connect(&api).await.expect("API");
        let path = format!("/t/{}/echo/mcp", tunnel.label);
        let key = &world.api_key;
        raw(
            stream,
            &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\nconnection: close\r\n{more}\r\n"),
        )
        .await
    };
    for host in ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "169.254.169.254"] {
        ask(host, "").await.refused(421, "edge", "Host");
    }
    for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
        ask("localhost", &format!("origin: {origin}\r\n")).await.refused(403, "edge", "Origin");
    }
    // Two origins are as good as none.
    let two = "origin: http://localhost\r\norigin: https://evil.example\r\n";
    ask("localhost", two).await.refused(403, "edge", "Origin");
    assert!(echo.events().is_empty());
    for host in ["localhost", "[::1]:99", "anything.localhost:1"] {
        // The server behind wants a session, which is its own answer.
        assert_eq!(ask(host, "origin: http://localhost:6274\r\n").await.header("sortie-hop"), None, "{host}");
    }
}

#[tokio::test]
async fn on_the_edge_port_the_host_is_the_name_that_tls_was_opened_for() {
    let Serving { world, tunnel, gateway: _gateway, echo: _echo } = serving().await;
    let (sni, key) = (format!("echo.{}", tunnel.domain), &world.api_key);
    let ask = async |host: &str, more: &str| {
        let stream = tls_to(&world.edge_addr, &world.edge_ca, &sni).await;
        let request =
            format!("GET /small HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\nconnection: close\r\n{more}\r\n");
        raw(stream, &request).await
    };
    let good = ask(&sni, "").await;
    assert_eq!(good.status, 200, "{}", good.text());
    assert_eq!(ask(&format!("{}:443", sni.to_uppercase()), "").await.status, 200);
    let other = format!("files.{}", tunnel.domain);
    for host in [other.as_str(), "localhost", "evil.example", ""] {
        ask(host, "").await.refused(421, "edge", "differs");
    }
    ask(&sni, "origin: https://evil.example\r\n").await.refused(403, "edge", "Origin");
    ask(&sni, &format!("origin: https://{sni}\r\n")).await;
    // Neither the API nor health is served under a tunnel's name.
    let stream = tls_to(&world.edge_addr, &world.edge_ca, &sni).await;
    let path = "GET /v1/tunnels HTTP/1.1";
    let answer = raw(stream, &format!("{path}\r\nhost: {sni}\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n")).await;
    assert!(!answer.text().contains("tnl_"), "{}", answer.text());
    // No key, no call; and a name under the base domain that is no tunnel.
    let stream = tls_to(&world.edge_addr, &world.edge_ca, &sni).await;
    raw(stream, &format!("GET /small HTTP/1.1\r\nhost: {sni}\r\nconnection: close\r\n\r\n"))
        .await
        .refused(401, "identity", "");
    let nowhere = "echo.zzzzzzzz.sortie.localhost";
    let stream = tls_to(&world.edge_addr, &world.edge_ca, nowhere).await;
    raw(stream, &format!("GET / HTTP/1.1\r\nhost: {nowhere}\r\nx-api-key: {key}\r\nconnection: close\r\n\r\n"))
        .await
        .refused(502, "route", "No route configured for host");
}

#[tokio::test]
async fn a_second_start_leaves_the_ready_file_of_the_first() {
    let home = sortie_testkit::TempHome::new().expect("home");
    let ready = home.join("ready");
    let start = || {
        let hub = sortie(&home).args(["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"]);
        hub.arg(home.join("hub")).arg("--ready-file").arg(&ready).spawn().expect("spawned")
    };
    let mut first = start();
    first.ready_file(&ready, SOON).await.expect("serves");
    let mut second = start();
    assert_eq!(second.exit(SOON).await.expect("exit").code(), Some(1), "{}", second.output());
    assert!(ready.exists(), "the first one still serves");
    first.stop(SOON).await.expect("stopped");
    assert!(!ready.exists());
}
