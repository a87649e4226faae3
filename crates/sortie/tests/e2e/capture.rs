//! Everything between gateway and edge, recorded: what must not be in it.

use reqwest::Method;
use serde_json::json;
use sortie_testkit::{EchoServer, Relay, relay::Direction};

use crate::common::{World, echo_route, modern, send, text};

#[tokio::test]
async fn nothing_of_a_call_and_no_credential_is_on_the_wire() {
    let echo = EchoServer::start().await.expect("echo");
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let relay = Relay::start(world.edge_addr.parse().expect("address")).await.expect("relay");
    let relayed = relay.addr().to_string();
    let _gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &["--edge", &relayed]).await;
    let (_, key) = world.use_key(&[&tunnel.id]).await;

    let canary = "canary-7f3a9c51e2d84b60";
    let body = canary.repeat(10_000);
    for _ in 0..3 {
        let post = world.http.post(world.url(&tunnel, "echo", "/mcp")).header("x-api-key", &key);
        let post = post.header("x-secret", canary).header("authorization", format!("Basic {canary}"));
        let answer = send(modern(post, &json!(canary), "echo", &json!({ "text": body }))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(text(&answer.json(), "/result/content/0/text"), body);
    }
    let path = format!("/{canary}?{canary}");
    assert_eq!(send(world.request(Method::GET, &tunnel, "echo", &path)).await.status, 404);

    assert_eq!(relay.accepted(), 1, "one link carries everything");
    let token = std::fs::read_to_string(tunnel.dir.join("tunnel-token")).expect("token");
    let upper = canary.to_uppercase();
    // Each is so long that it does not come up by chance in megabytes of ciphertext.
    let never: [(&str, &str); 12] = [
        ("the canary", canary),
        ("a piece of it", &canary[7..23]),
        ("the canary in capitals", &upper),
        ("the use key", &key),
        ("the manage key", &world.api_key),
        ("the tunnel token", token.trim()),
        ("the token's secret part", &token.trim()[token.trim().len() - 20..]),
        ("the message", "jsonrpc"),
        ("a header of ours", "sortie-identity"),
        ("an identity", "eyJhbGciOi"),
        ("an identity that begins otherwise", "eyJ0eXAiOi"),
        ("the hostname", &tunnel.domain),
    ];
    for direction in [Direction::FromDialler, Direction::FromTarget] {
        assert!(relay.carried(direction) > 3 * 230_000, "the recording is of something else");
        for (what, bytes) in never {
            assert!(!relay.saw(direction, bytes.as_bytes()), "{what} is on the wire, {direction:?}");
        }
    }
}
