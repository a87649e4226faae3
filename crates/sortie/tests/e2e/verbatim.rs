//! What servers say that clients act on, word for word: statuses, challenges, sessions' ends, streams to be resumed,
//! batches. Neither a status nor a body of a server is ever changed, and none is answered in its place.

use reqwest::{Method, RequestBuilder};
use serde_json::json;
use sortie_testkit::EchoServer;

use crate::common::{Answer, GatewayProcess, Tunnel, Upstream, World, echo_route, raw, routes, send, tls_to};

/// One route `up` to a server that always says this, with more settings of the route.
struct Behind {
    world: World,
    tunnel: Tunnel,
    _gateway: GatewayProcess,
    upstream: Upstream,
}

async fn behind(answer: impl Into<Vec<u8>>, more: &str) -> Behind {
    let upstream = Upstream::saying(answer).await;
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let config = routes(&[("up", &upstream.url())]).replace("[upstream]", &format!("{more}\n[upstream]"));
    let gateway = world.gateway(&tunnel.dir, &config, &[]).await;
    Behind { world, tunnel, _gateway: gateway, upstream }
}

impl Behind {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.world.request(method, &self.tunnel, "up", path)
    }

    /// The same by hostname, on a connection of its own.
    async fn by_hostname(&self, method: &str, path: &str, headers: &str) -> Answer {
        let host = format!("up.{}", self.tunnel.domain);
        let stream = tls_to(&self.world.edge_addr, &self.world.edge_ca, &host).await;
        let key = &self.world.api_key;
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\n{headers}");
        raw(stream, &format!("{head}connection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn every_status_and_its_body_pass_as_they_are() {
    let error = r#"{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"No"}}"#;
    let unknown = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"Method not found"}}"#;
    let said = [
        ("200 OK", "application/json", "[]"),
        ("202 Accepted", "", ""),
        ("204 No Content", "", ""),
        ("400 Bad Request", "application/json", error),
        ("403 Forbidden", "text/plain", "Invalid Origin header"),
        ("404 Not Found", "application/json", unknown),
        ("405 Method Not Allowed", "application/json", error),
        ("406 Not Acceptable", "application/json", error),
        ("409 Conflict", "application/json", error),
        ("413 Content Too Large", "text/plain", "too much"),
        ("415 Unsupported Media Type", "text/plain", "Unsupported Media Type"),
        ("421 Misdirected Request", "text/plain", "Invalid Host header"),
        ("429 Too Many Requests", "text/plain", "slow down"),
        ("500 Internal Server Error", "text/html", "<h1>oops</h1>"),
        ("502 Bad Gateway", "text/html", "<h1>theirs</h1>"),
        ("503 Service Unavailable", "application/json", error),
    ];
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let mut upstreams = Vec::new();
    for (status, kind, body) in said {
        // RFC 9110, 8.6: no length where there can be no body.
        let length =
            if status.starts_with("204") { String::new() } else { format!("content-length: {}\r\n", body.len()) };
        let kind = if kind.is_empty() { String::new() } else { format!("content-type: {kind}\r\n") };
        let answer = format!("HTTP/1.1 {status}\r\nallow: GET, POST\r\nretry-after: 17\r\n{kind}{length}\r\n{body}");
        upstreams.push(Upstream::saying(answer).await);
    }
    let names: Vec<String> = (0..said.len()).map(|number| format!("r{number}")).collect();
    let urls: Vec<String> = upstreams.iter().map(Upstream::url).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(String::as_str).zip(urls.iter().map(String::as_str)).collect();
    let _gateway = world.gateway(&tunnel.dir, &routes(&pairs), &[]).await;
    for ((status, kind, body), name) in said.iter().zip(&names) {
        for method in [Method::POST, Method::GET, Method::DELETE] {
            let request = world.request(method.clone(), &tunnel, name, "/mcp");
            let answer = send(request.header("content-type", "application/json").body("{}")).await;
            let who = format!("{method}, {status}");
            assert_eq!(answer.status.to_string(), status[..3], "{who}");
            assert_eq!(answer.text(), *body, "{who}");
            assert_eq!(answer.header("content-type"), (!kind.is_empty()).then_some(*kind), "{who}");
            assert_eq!(
                (answer.header("allow"), answer.header("retry-after")),
                (Some("GET, POST"), Some("17")),
                "{who}"
            );
            assert_eq!(answer.header("sortie-hop"), None, "{who}: it is the server's, not ours");
        }
    }
}

#[tokio::test]
async fn challenges_and_where_they_lead_are_the_upstreams() {
    let challenges = [
        r#"Bearer realm="mcp", error="invalid_token", error_description="a, \"b\"", resource_metadata="http://10.0.0.5/x""#,
        r#"DPoP algs="ES256 PS256", error="use_dpop_nonce""#,
    ];
    let body = r#"{"error":"invalid_token"}"#;
    let fields: String = challenges.iter().map(|value| format!("www-authenticate: {value}\r\n")).collect();
    let answer = format!(
        "HTTP/1.1 401 Unauthorized\r\n{fields}dpop-nonce: n-1\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let behind = behind(answer, "authorization = \"forward\"").await;
    let paths = [
        "/mcp",
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/oauth-authorization-server",
        "/.well-known/openid-configuration",
    ];
    for path in paths {
        let by_path = send(behind.request(Method::GET, path).bearer_auth("theirs").header("dpop", "proof")).await;
        let headers = "authorization: Bearer theirs\r\ndpop: proof\r\n";
        let by_name = behind.by_hostname("GET", path, headers).await;
        for answer in [by_path, by_name] {
            assert_eq!(
                (answer.status, answer.text().as_str(), answer.header("sortie-hop")),
                (401, body, None),
                "{path}"
            );
            let found: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
            assert_eq!(found, challenges, "{path}");
            assert_eq!(answer.header("dpop-nonce"), Some("n-1"));
        }
        for seen in behind.upstream.seen().iter().rev().take(2) {
            assert_eq!(seen.head.lines().next(), Some(format!("GET {path} HTTP/1.1").as_str()));
            assert_eq!((seen.header("authorization"), seen.header("dpop")), (vec!["Bearer theirs"], vec!["proof"]));
        }
    }
    // Step-up: a 403 with its challenge is the upstream's as much as a 401.
    let scope = r#"Bearer error="insufficient_scope", scope="files:write", resource_metadata="https://x/y""#;
    let answer = format!("HTTP/1.1 403 Forbidden\r\nwww-authenticate: {scope}\r\ncontent-length: 0\r\n\r\n");
    let behind = self::behind(answer, "").await;
    let answer = send(behind.request(Method::POST, "/mcp")).await;
    assert_eq!((answer.status, answer.header("www-authenticate")), (403, Some(scope)));
    // Without a key of ours, the challenge is ours: nothing of the upstream is told to strangers.
    let url = behind.world.url(&behind.tunnel, "up", "/.well-known/oauth-protected-resource");
    let stranger = send(behind.world.http.get(url)).await;
    stranger.refused(401, "identity", "");
    assert_eq!(stranger.header("www-authenticate"), Some("Bearer realm=\"sortie\""));
    assert_eq!(behind.upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_stream_that_polls_and_resumes_is_passed_to_the_byte() {
    // What a server says that closes its stream and lets the client come back (SEP-1699).
    let stream = "id: 1/0\nretry: 250\ndata:\n\n\
                  id: 1/1\nevent: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"n\"}\n\n: closing\n\n";
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nmcp-session-id: s-1\r\n\r\n{stream}");
    let behind = behind(answer, "").await;
    let resume = behind.request(Method::GET, "/mcp").header("accept", "text/event-stream");
    let by_path = send(resume.header("last-event-id", "1/0; odd =?value?=").header("mcp-session-id", "s-1")).await;
    let headers = "accept: text/event-stream\r\nlast-event-id: 1/0; odd =?value?=\r\nmcp-session-id: s-1\r\n";
    let by_name = behind.by_hostname("GET", "/mcp", headers).await;
    assert_eq!((by_path.status, by_path.text().as_str()), (200, stream));
    assert_eq!(by_path.header("mcp-session-id"), Some("s-1"));
    assert!(by_name.text().contains("retry: 250\ndata:\n\n") && by_name.text().contains(": closing\n\n"));
    for seen in behind.upstream.seen() {
        assert_eq!(seen.header("last-event-id"), ["1/0; odd =?value?="]);
        assert_eq!(seen.header("mcp-session-id"), ["s-1"]);
    }
}

#[tokio::test]
async fn a_sessions_end_has_the_servers_own_status() {
    for status in ["200 OK", "202 Accepted", "204 No Content", "404 Not Found", "405 Method Not Allowed"] {
        let length = if status.starts_with("204") { "" } else { "content-length: 0\r\n" };
        let behind = behind(format!("HTTP/1.1 {status}\r\n{length}\r\n"), "").await;
        let delete = behind.request(Method::DELETE, "/mcp").header("mcp-session-id", "s-1");
        let answer = send(delete).await;
        let by_name = behind.by_hostname("DELETE", "/mcp", "mcp-session-id: s-1\r\n").await;
        for answer in [answer, by_name] {
            assert_eq!((answer.status.to_string().as_str(), answer.body.len()), (&status[..3], 0));
            assert_eq!(answer.header("sortie-hop"), None);
        }
        let seen = behind.upstream.seen();
        assert!(seen.iter().all(|seen| seen.head.starts_with("DELETE /mcp ")), "{seen:?}");
        assert!(seen.iter().all(|seen| seen.header("mcp-session-id") == ["s-1"]), "{seen:?}");
    }
}

/// Batches are of 2025-03-26 only; whether a server takes them is the server's to say.
#[tokio::test]
async fn batches_pass_both_ways_as_they_are() {
    let answers = r#"[ {"jsonrpc":"2.0","id":2,"result":{}},{"jsonrpc":"2.0","id":1,"result":{"a":1.0}} ]"#;
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answers.len());
    let behind = behind(head + answers, "").await;
    let batches = [
        r#"[{"jsonrpc":"2.0","id":1,"method":"tools/list"}, {"jsonrpc":"2.0","id":2,"method":"ping"}]"#,
        r#"[{"jsonrpc":"2.0","method":"notifications/initialized"},{"jsonrpc":"2.0","id":9,"result":{}}]"#,
    ];
    for (number, batch) in batches.iter().enumerate() {
        let post = behind.request(Method::POST, "/mcp").header("content-type", "application/json");
        let answer = send(post.header("mcp-protocol-version", "2025-03-26").body(*batch)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, answers), "{batch}");
        assert_eq!(behind.upstream.seen()[number].body, batch.as_bytes());
    }

    // A server that refuses them says so itself.
    let echo = EchoServer::start().await.expect("echo");
    let world = World::start().await;
    let tunnel = world.tunnel("setup").await;
    let _gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    let batch = json!([{ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }]).to_string();
    let with = |request: RequestBuilder| {
        let request = request.header("content-type", "application/json");
        request.header("accept", "application/json, text/event-stream").body(batch.clone())
    };
    let direct = send(with(world.http.post(echo.url()))).await;
    let through = send(with(world.request(Method::POST, &tunnel, "echo", "/mcp"))).await;
    assert_eq!((through.status, through.text()), (direct.status, direct.text()));
    assert_eq!((direct.status, through.header("sortie-hop")), (400, None));
}
