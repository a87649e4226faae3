//! What an operator's machinery sees.

use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sortie_runtime::TaskSet;
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

pub(crate) async fn get(world: &World, path: &str) -> (StatusCode, String) {
    get_as(world, "localhost", path).await
}

async fn get_as(world: &World, host: &str, path: &str) -> (StatusCode, String) {
    let address = world.gateway.health_addr().expect("health");
    let stream = TcpStream::connect(address).await.expect("connected");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("http");
    world.tasks.spawn("test-health", async move { drop(connection.await) });
    let request = http::Request::builder().uri(path).header("host", host).body(full("")).expect("request");
    let response = soon(sender.send_request(request)).await.expect("response");
    let status = response.status();
    let body = response.into_body().collect().await.expect("body").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn health_tells_each_part_of_the_path() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("bind").local_addr().expect("address");
    let config = format!("{}[routes.down]\nupstream = \"http://{free}\"\n", upstream.config());
    let world = World::start(&tasks, &config).await;
    soon(world.gateway.ready()).await;
    assert_eq!(get(&world, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));

    let (status, body) = get(&world, "/readyz").await;
    let ready: Value = serde_json::from_str(&body).expect("json");
    assert_eq!((status, &ready["ready"]), (StatusCode::OK, &Value::Bool(true)), "{body}");
    assert_eq!(ready["link"]["edge"], world.edge.addr.to_string());
    assert_eq!(ready["identity"]["keys"], 1);
    assert_eq!(ready["probe"]["ok"], true);
    assert!(ready["inner_tls"]["days_left"].as_i64().is_some());
    assert!(ready["link"]["since"].as_str().is_some_and(|since| since.ends_with('Z')));

    let (status, body) = get(&world, "/readyz?route=docs").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let (status, body) = get(&world, "/readyz?route=down").await;
    let down: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(down["upstream"]["hop"], "upstream-connect");
    assert_eq!(get(&world, "/readyz?route=other").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&world, "/else").await.0, StatusCode::NOT_FOUND);

    // A page in somebody's browser comes under a name of its own.
    for (host, status) in
        [("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:7", 200), ("evil.example", 421), ("", 421)]
    {
        assert_eq!(get_as(&world, host, "/metrics").await.0.as_u16(), status, "{host}");
    }

    let response = world.call(world.request("GET", "/").body(full("")).expect("request")).await;
    assert_eq!(text(response).await, "ok");
    soon(async {
        loop {
            let (_, metrics) = get(&world, "/metrics").await;
            let calls = r#"sortie_gateway_calls_total{route="docs",status="2xx",hop="none"}"#;
            let wanted =
                [calls, "sortie_gateway_link_up ", "sortie_gateway_inner_handshakes_total", "duration_seconds"];
            if wanted.iter().all(|name| metrics.contains(name)) {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_invalid_certificate_shows_in_readyz_before_it_shows_to_callers() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let world = World::start_with(&tasks, &upstream.config(), Default::default(), |dir| {
        // Another CA than the registered one, as after a set-up that was run twice.
        dir.replace_authority().expect("authority");
        dir.issue_server_cert(DOMAIN, std::time::Duration::from_secs(86_400)).expect("certificate");
    })
    .await;
    world.link().await;
    until(|| world.gateway.readiness().link.connected).await;
    let (status, body) = get(&world, "/readyz").await;
    let ready: Value = serde_json::from_str(&body).expect("json");
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!((&ready["ready"], &ready["probe"]["hop"]), (&Value::Bool(false), &Value::from("inner-tls")), "{body}");
    assert!(ready["reason"].as_str().is_some_and(|reason| reason.contains("unknown certificate authority")), "{body}");
}
