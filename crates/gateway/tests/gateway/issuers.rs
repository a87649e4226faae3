//! Callers whom an issuer proves, and upstreams that are told who is calling.

use std::time::Duration;

use serde_json::{Value, json};
use sortie_gateway::rotate_identity_keys;
use sortie_identity::{Algorithm, IssuerRules, KeySet, Pinned, Verified};
use sortie_runtime::TaskSet;

use crate::fixtures::Hub;
use crate::health::get;
use crate::support::*;

const OTHER: &str = "wiki.abcd1234.sortie.localhost";

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Two routes to one server, both telling it who calls, and an issuer that counts on the first.
fn settings(addr: &str, provider: &str) -> String {
    format!(
        "[identity]\nissuer = \"https://gw.test\"\n\
         [routes.docs]\nupstream = \"http://{addr}\"\nidentity = \"signed\"\n\
         [routes.wiki]\nupstream = \"http://{addr}\"\nidentity = \"signed\"\n\
         [upstream]\nallowed_ips = [\"127.0.0.0/8\"]\n\
         [[issuers]]\nissuer = \"{}\"\n{provider}\nheader = \"x-agent-token\"\nroutes = [\"docs\"]\n\
         subject_prefix = \"ada\"\nclaims = {{ teams = \"groups\" }}\n",
        Hub::ISSUER
    )
}

fn claims(audience: &str) -> Value {
    json!({"iss": Hub::ISSUER, "aud": audience, "sub": "ada", "iat": now(), "exp": now() + 300, "groups": ["ops"]})
}

/// What an upstream makes of the token in a request that it has seen.
fn told(upstream: &Upstream, keys: &Value) -> Verified {
    let seen = upstream.seen.lock().expect("lock");
    let head = seen.last().expect("a request");
    let values: Vec<_> = head.headers.get_all("sortie-identity").iter().collect();
    let [token] = values.as_slice() else { panic!("one token, not {}", values.len()) };
    let rules = IssuerRules {
        issuer: "https://gw.test".to_owned(),
        algorithms: vec![Algorithm::EdDsa],
        required: [].into(),
        subject: "{assurance}|{sub_id.iss}|{sub}".parse().expect("template"),
        subject_prefix: String::new(),
        callers: Vec::new(),
        fields: [].into(),
        claims: [("teams".to_owned(), "claims.teams".to_owned()), ("workspace".to_owned(), "workspace".to_owned())]
            .into(),
        leeway: 5,
        max_lifetime: 300,
    };
    rules.verify(token.as_bytes(), &KeySet::parse(&keys.to_string()).expect("keys"), now()).expect("proven")
}

async fn published(world: &World) -> Value {
    let (status, body) = get(world, "/.well-known/jwks.json").await;
    assert_eq!(status, 200);
    serde_json::from_str(&body).expect("json")
}

#[tokio::test]
async fn a_token_of_an_issuer_attests_the_caller_and_ends_at_the_gateway() {
    let tasks = TaskSet::new();
    let (upstream, idp) = (Upstream::ok(&tasks).await, Hub::new());
    let jwks = idp.jwks();
    let provider = Upstream::serve(&tasks, move |request| {
        let host = request.headers()["host"].to_str().expect("text").to_owned();
        let jwks = jwks.clone();
        async move {
            let discovery = json!({"issuer": Hub::ISSUER, "jwks_uri": format!("http://{host}/jwks")}).to_string();
            http::Response::new(full(if request.uri().path() == "/jwks" { jwks } else { discovery }))
        }
    })
    .await;
    let keys_at = format!("discovery_url = \"http://{}/.well-known/openid-configuration\"", provider.addr);
    let world = World::start(&tasks, &settings(&upstream.addr.to_string(), &keys_at)).await;

    // Asserted only.
    let plain = world.request("GET", "/").header("sortie-identity-x", "forged").body(full("")).expect("request");
    assert_eq!(world.call(plain).await.status(), 200);
    let keys = published(&world).await;
    let first = told(&upstream, &keys);
    assert_eq!(first.caller.subject, format!("asserted|{}|user:1", Hub::ISSUER));

    // Attested: what the hub says is the nearest actor, and its workspace stays.
    for audience in [HOST.to_owned(), format!("https://{HOST}/mcp"), format!("https://{HOST}:443")] {
        let token = idp.sign(&claims(&audience));
        let request = world.request("GET", "/").header("x-agent-token", format!("Bearer {token}"));
        assert_eq!(world.call(request.body(full("")).expect("request")).await.status(), 200, "{audience}");
        let said = told(&upstream, &keys);
        assert_eq!(said.caller.subject, format!("attested|{}|ada", Hub::ISSUER));
        assert_eq!(said.caller.actors, ["user:1"]);
        assert_eq!(said.caller.claims["teams"], ["ops"]);
        assert_eq!(said.caller.claims["workspace"], ["wrkspc_1"]);
        let audience = format!("http://{}", upstream.addr);
        assert_eq!(said.check(|one| one == audience, now()), Ok(()));
        let seen = upstream.seen.lock().expect("lock");
        assert!(!seen.last().expect("request").headers.contains_key("x-agent-token"));
    }
    assert_eq!(provider.count(), 2, "discovery and keys, once");

    // What is wrong with it is told, and nothing is forwarded.
    let before = upstream.count();
    let mut twice = claims(HOST);
    twice["sub"] = json!("bob");
    let other = Hub::new();
    for (tokens, reason) in [
        (vec![idp.sign(&claims(OTHER))], "for another route"),
        (vec![other.sign(&claims(HOST))], "wrongly signed"),
        (vec![idp.hmac(&claims(HOST))], "algorithm"),
        (vec![idp.sign(&twice)], "may not speak for"),
        (vec![idp.sign(&claims(HOST)), idp.sign(&claims(HOST))], "more than once"),
        (vec!["opaque".to_owned()], "malformed"),
        (vec![idp.sign(&json!({"iss": "https://evil.test"}))], "another issuer"),
    ] {
        let mut request = world.request("GET", "/");
        for token in tokens {
            request = request.header("x-agent-token", format!("Bearer {token}"));
        }
        let (status, hop, body) = refusal(world.call(request.body(full("")).expect("request")).await).await;
        assert_eq!((status, hop.as_str()), (401, "identity"), "{reason}");
        assert!(body.to_string().contains(reason), "{reason}: {body}");
    }
    assert_eq!(upstream.count(), before);
}

#[tokio::test]
async fn a_gateway_that_starts_with_a_file_follows_it_and_rotates_its_own_key() {
    let tasks = TaskSet::new();
    let (upstream, idp) = (Upstream::ok(&tasks).await, Hub::new());
    let text = settings(&upstream.addr.to_string(), "jwks_file = \"idp.jwks\"");
    let jwks = idp.jwks();
    let world = World::start_with(&tasks, &text, Default::default(), |dir| {
        let beside = dir.path(sortie_tls::SetupFile::HubIdentity).with_file_name("idp.jwks");
        std::fs::write(beside, jwks).expect("written");
    })
    .await;
    let call = async || {
        let token = format!("Bearer {}", idp.sign(&claims(HOST)));
        let request = world.request("GET", "/").header("x-agent-token", token).body(full("")).expect("request");
        assert_eq!(world.call(request).await.status(), 200);
    };
    call().await;
    let old = published(&world).await;
    assert_eq!(told(&upstream, &old).caller.claims["teams"], ["ops"]);
    let rotation = rotate_identity_keys(world.setup.path(), Duration::ZERO, now()).expect("rotated");
    soon(async {
        while published(&world).await["keys"].as_array().map(Vec::len) != Some(2) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    call().await;
    let new = published(&world).await;
    assert_eq!(told(&upstream, &new).caller.claims["teams"], ["ops"]);
    let kids: Vec<_> = new["keys"].as_array().expect("keys").iter().map(|key| key["kid"].clone()).collect();
    assert!(kids.contains(&json!(rotation.kid)) && kids.contains(&json!(rotation.old_kid)));
}

#[tokio::test]
async fn the_hub_s_keys_change_only_by_the_word_of_a_pinned_one() {
    let tasks = TaskSet::new();
    let upstream = Upstream::ok(&tasks).await;
    let mut ring = sortie_identity::KeyRing::generate(Hub::ISSUER).expect("ring");
    let mut liar = sortie_identity::KeyRing::generate(Hub::ISSUER).expect("ring");
    let pinned = json!({"issuer": Hub::ISSUER, "keys": ring.published(now()).printed()}).to_string();
    let world = World::start_with(&tasks, &upstream.config(), Default::default(), |dir| {
        dir.write(sortie_tls::SetupFile::HubIdentity, &pinned).expect("written");
    })
    .await;
    let status = async |ring: &sortie_identity::KeyRing| {
        let caller = sortie_identity::Caller::new("", "key:1", sortie_identity::Assurance::Asserted, i64::MAX);
        let said = sortie_identity::Claims::of(&caller, Hub::ISSUER, HOST, now(), 60);
        let token = ring.sign(&said, now()).expect("signed");
        let request = http::Request::get("/").header("host", HOST).header("sortie-identity", token);
        world.call(request.body(full("")).expect("request")).await.status().as_u16()
    };
    assert_eq!(status(&ring).await, 200);
    let file = world.setup.path().join("hub-identity.jwks");

    // Whoever runs the edge cannot add a key.
    liar.rotate(now(), 0, 60).expect("rotated");
    let link = world.link().await;
    let tell = |ring: &sortie_identity::KeyRing| {
        let announcements = ring.announcements().to_vec();
        assert!(link.tell(sortie_link::protos::FromEdge::IdentityKeys { announcements }));
    };
    tell(&liar);
    assert_eq!(status(&liar).await, 401);

    ring.rotate(now(), 0, 60).expect("rotated");
    assert_eq!(status(&ring).await, 401, "not before the gateway was told");
    tell(&ring);
    soon(async {
        while status(&ring).await != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(status(&liar).await, 401);
    let kept = Pinned::parse(&std::fs::read_to_string(&file).expect("file")).expect("keys");
    assert_eq!(kept.len(), 2, "pinned for the next start");
}
