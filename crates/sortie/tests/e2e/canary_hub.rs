//! The hub's own secrets (keys, tunnels' tokens, answers that are kept for a repetition, what a sink shows) are nowhere but
//! where they belong: not in its log at the finest level, its metrics, its records, their sinks, its database, its errors.

use std::path::PathBuf;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sortie_testkit::{EchoServer, TempHome};

use crate::canary::{files, holds, logged, private, whole};
use crate::common::{Answer, SOON, Tunnel, Upstream, World, client, echo_route, run, send, text, tunnel_in, until};

/// What the hub shows to the receiver of its records.
const SHOWN: &str = "canary-of-sink/+%6a1f09";
/// What clients put where no secret belongs.
const MISPLACED: &str = "canary-of-query.2f7c18";

/// Answers, by what was asked; and the secrets in those that are meant to hold one.
#[derive(Default)]
struct Said {
    all: Vec<(String, Vec<u8>)>,
    secrets: Vec<String>,
}

impl Said {
    /// An answer that may hold no secret.
    async fn plain(&mut self, what: &str, request: RequestBuilder) -> Answer {
        let answer = send(request).await;
        self.all.push((what.to_owned(), whole(&answer)));
        answer
    }

    /// An answer that shows a secret, and nothing of the others; the same again where it is asked once more.
    async fn secret(&mut self, field: &str, request: impl Fn() -> RequestBuilder) -> Value {
        let (first, again) = (send(request()).await, send(request()).await);
        assert_eq!((first.status, again.status), (200, 200), "{}", first.text());
        let secret = text(&first.json(), field).to_owned();
        assert_eq!(text(&again.json(), field), secret, "the repetition gets what was kept");
        assert!(!self.secrets.contains(&secret));
        for (what, answer) in [("an answer", &first), ("a repetition", &again)] {
            let rest = answer.text().replace(&secret, "");
            self.all.push((format!("the rest of {what} with {field}"), rest.into_bytes()));
        }
        self.secrets.push(secret);
        first.json()
    }
}

async fn traced_hub(home: TempHome, audit: &str) -> World {
    let path = |name: &str| home.join(name).display().to_string();
    let flags = ["hub", "--api", "127.0.0.1:0", "--edge", "127.0.0.1:0", "--data-dir"].map(str::to_owned);
    let files = [path("hub"), "--ready-file".into(), path("hub.ready"), "--audit-config".into(), audit.to_owned()];
    let args: Vec<String> = flags.into_iter().chain(files).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut hub = logged(&home, &home.join("hub.log"), &args);
    let ready = hub.ready_file(&home.join("hub.ready"), SOON).await.expect("hub serves");
    World {
        api_url: text(&ready, "/api_url").to_owned(),
        api_key: text(&ready, "/api_key").to_owned(),
        edge_addr: text(&ready, "/edge_addr").to_owned(),
        edge_ca: text(&ready, "/edge_ca_file").into(),
        http: client(),
        hub,
        home,
        env: Vec::new(),
    }
}

#[tokio::test]
async fn no_secret_of_the_hub_is_anywhere_but_where_it_belongs() {
    let home = TempHome::new().expect("home");
    let receiver = Upstream::saying("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let refusing = Upstream::saying(format!("HTTP/1.1 401 {SHOWN}\r\ncontent-length: 0\r\n\r\n")).await;
    private(&home, "sink-secret", SHOWN);
    std::fs::create_dir(home.join("published")).expect("directory");
    let sink = |name: &str, url: String| {
        format!(
            "[[sinks]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"{url}/in\"\nbatch_wait = \"10ms\"\n\
             credential.secret = {{ file = \"sink-secret\" }}\n"
        )
    };
    let config = sink("siem", receiver.url()) + &sink("refusing", refusing.url());
    let config = config + "[[publish]]\nname = \"worm\"\nfile = \"published\"\n";
    let audit = home.write("hub-audit.toml", &config).expect("file").display().to_string();
    let mut world = traced_hub(home, &audit).await;
    let echo = EchoServer::start().await.expect("echo");
    let dir = world.home.join("setup");
    run(world.init(&dir)).await.ok();
    let tunnel: Tunnel = tunnel_in(&dir);
    let mut gateway = world.gateway(&tunnel.dir, &echo_route(&echo), &[]).await;
    world.serves_again(&tunnel, "echo").await;

    let mut said = Said::default();
    let once = |method: Method, path: &str, id: &str, body: Value| {
        world.api(method, path).header("idempotency-key", id).json(&body)
    };
    // Keys of both kinds, and tokens, each asked for twice.
    let (post, grants) = (Method::POST, json!([{"tunnel_id": tunnel.id}]));
    let manage = json!({"kind": "manage", "name": "another"});
    let manage = said.secret("/secret", || once(post.clone(), "/v1/sortie/keys", "k1", manage.clone())).await;
    let usual = json!({"kind": "use", "name": "agent", "grants": grants});
    let usual = said.secret("/secret", || once(post.clone(), "/v1/sortie/keys", "k2", usual.clone())).await;
    let of_tunnel = |what: &str| format!("/v1/tunnels/{}/{what}", tunnel.id);
    let token = said.secret("/tunnel_token", || world.api(Method::POST, &of_tunnel("reveal_token"))).await;
    let rotate = || once(post.clone(), &of_tunnel("rotate_token"), "r1", json!({"reason": "canary"}));
    let rotated = send(rotate()).await.json();
    said.secrets.push(text(&rotated, "/tunnel_token").to_owned());
    said.secrets.sort();
    said.secrets.dedup();
    assert_eq!(said.secrets.len(), 4, "two keys, two tokens");
    let (manage_key, use_key) = (text(&manage, "/secret").to_owned(), text(&usual, "/secret").to_owned());

    // The keys in use, and in all the places where they do not belong.
    let url = |path: &str| format!("{}{path}", world.api_url);
    for key in [&manage_key, &use_key, &format!("{use_key}x"), &use_key.replace("key", "kex")] {
        let get = |path: &str| world.http.request(Method::GET, url(path));
        for path in ["/v1/tunnels", "/v1/sortie/keys", "/v1/sortie/routes", &of_tunnel("certificates"), "/v1/nothing"] {
            said.plain(path, get(path).header("x-api-key", key)).await;
            said.plain(path, get(path).bearer_auth(key)).await;
        }
        for path in ["/v1/tunnels", "/v1/sortie/keys"] {
            for body in ["{", "[]", "{\"kind\": 7}", "{\"name\": \"\"}"] {
                let asked = world.http.request(Method::POST, url(path)).header("x-api-key", key);
                said.plain(path, asked.header("content-type", "application/json").body(body)).await;
            }
        }
        let call = world.http.request(Method::POST, world.url(&tunnel, "echo", "/mcp")).header("x-api-key", key);
        said.plain("a call", call.header("content-type", "application/json").body("{\"jsonrpc\": 7}")).await;
        let wrong = world.http.request(Method::GET, world.url(&tunnel, "nowhere", "/mcp")).header("x-api-key", key);
        said.plain("a call to nowhere", wrong.header("anthropic-beta", "no-such-beta")).await;
    }
    let misplaced = |path: String| world.api(Method::GET, &path).header("x-unknown", MISPLACED);
    said.plain("a query", misplaced(format!("/v1/tunnels?token={MISPLACED}"))).await;
    let other = once(post.clone(), "/v1/sortie/keys", "k2", json!({"kind": "manage", "name": "conflict"}));
    assert_eq!(said.plain("a conflict", other).await.status, 409);
    said.plain("an archived key", world.api(post.clone(), &format!("/v1/sortie/keys/{}/archive", text(&usual, "/id"))))
        .await;
    let gone = world.http.request(Method::GET, url("/v1/sortie/routes")).header("x-api-key", &use_key);
    assert_eq!(said.plain("who shows it", gone).await.status, 401);
    for path in ["/healthz", "/readyz", "/metrics", "/v1/sortie/keys", "/v1/tunnels", "/v1/sortie/discovery"] {
        assert_eq!(said.plain(path, world.api(Method::GET, path)).await.status, 200, "{path}");
    }
    until("its records are delivered", SOON, async || {
        receiver.seen().iter().any(|seen| String::from_utf8_lossy(&seen.body).contains("tunnel_token_revoked"))
    })
    .await;
    assert!(receiver.seen().iter().all(|seen| holds(seen.head.as_bytes(), SHOWN)), "the sink shows its secret");
    until("the other sink fails", SOON, async || !refusing.seen().is_empty()).await;

    // What was kept for a repetition survives a kill, and is not in clear on the disk.
    world.hub.kill();
    let log = world.home.join("hub.log");
    std::fs::copy(&log, world.home.join("first.log")).expect("copied");
    world.env = vec![("SORTIE_AUDIT_CONFIG", audit.clone())];
    world.restart_hub().await;
    let repeated = world.api(Method::POST, "/v1/sortie/keys").header("idempotency-key", "k1");
    let repeated = send(repeated.json(&json!({"kind": "manage", "name": "another"}))).await;
    assert_eq!(text(&repeated.json(), "/secret"), manage_key);
    assert_eq!(repeated.header("idempotent-replayed"), Some("true"));
    assert!(world.hub.stop(SOON).await.expect("it stops").success());
    assert!(gateway.process.stop(SOON).await.expect("it stops").success());
    said.all.push(("the second hub's output".to_owned(), world.hub.output().into_bytes()));
    said.all.push(("the gateway's output".to_owned(), gateway.process.output().into_bytes()));
    let received = receiver.seen().into_iter().map(|seen| seen.body);
    said.all.extend(received.map(|body| ("what the sink took".to_owned(), body)));

    let mut below: Vec<PathBuf> = Vec::new();
    files(world.home.path(), &mut below);
    for path in below {
        said.all.push((path.display().to_string(), std::fs::read(&path).expect("read")));
    }
    let length =
        |name: &str| said.all.iter().find(|(place, _)| place.ends_with(name)).map_or(0, |(_, text)| text.len());
    assert!(length("/first.log") > 20_000 && length("/hub/store.db") > 20_000, "there is something to look through");
    let records = said.all.iter().filter(|(place, _)| place.contains("/hub/audit/log/"));
    let records: usize = records.map(|(_, text)| text.iter().filter(|byte| **byte == b'\n').count()).sum();
    assert!(records > 15, "{records} records were looked through");

    let (old, own) = (text(&token, "/tunnel_token").to_owned(), &world.api_key);
    for (place, text) in &said.all {
        for secret in &said.secrets {
            // The tunnel's token was set up at the gateway.
            let meant = *secret == old && place.ends_with("/setup/tunnel-token");
            assert!(meant || !holds(text, secret), "{secret} is in {place}: {}", String::from_utf8_lossy(text));
        }
        assert!(place.ends_with("/sink-secret") || !holds(text, SHOWN), "the sink's secret is in {place}");
        assert!(!holds(text, MISPLACED), "a query is in {place}");
        let meant = place.ends_with("/hub.ready") || place.ends_with("/hub/api-key");
        assert!(meant || !holds(text, own), "the hub's key is in {place}: {}", String::from_utf8_lossy(text));
    }
}
