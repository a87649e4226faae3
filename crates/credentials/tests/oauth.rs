//! Tokens of a real authorization server: oidc-provider, on Node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use sortie_credentials::{
    ClientAuth, Credential, CredentialError, CredentialKind, CredentialSpec, Source, Subject, TokenEndpoint, Trust,
};
use sortie_ids::Digest;
use sortie_runtime::TaskSet;
use sortie_testkit::{Process, Program, tool};

const SOON: Duration = Duration::from_secs(30);
/// Characters that are encoded differently in each place that a secret may stand in.
const SECRET: &str = "s3cr%t +/:x";

struct World {
    url: String,
    _server: Process,
    dir: tempfile::TempDir,
    tasks: TaskSet,
    key: EncodingKey,
}

impl World {
    /// `None` where the server is not installed.
    async fn start(ttl: u32) -> Option<Self> {
        let modules = tool("SORTIE_TEST_OIDC_MODULES")?;
        let dir = tempfile::tempdir().expect("dir");
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("key");
        let public = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("key").public_key().as_ref().to_vec();
        let jwk =
            json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "alg": "EdDSA", "x": URL_SAFE_NO_PAD.encode(public)});
        let (jwks, ready) = (dir.path().join("jwks.json"), dir.path().join("ready.json"));
        std::fs::write(&jwks, json!({"keys": [jwk]}).to_string()).expect("write");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oidc/authorization_server.mjs");
        let program = Program::new("node").arg(script).arg(&ready).arg(modules).args([SECRET, &ttl.to_string()]);
        let mut server = program.arg(&jwks).spawn().expect("start");
        let ready = server.ready_file(&ready, SOON).await.expect("ready");
        let url = ready.get("url").and_then(serde_json::Value::as_str).expect("url").to_owned();
        let key = EncodingKey::from_ed_der(pkcs8.as_ref());
        Some(Self { url, _server: server, dir, tasks: TaskSet::new(), key })
    }

    fn secret_file(&self, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.dir.path().join(format!("secret-{}", text.len()));
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        path
    }

    fn endpoint(&self, client_auth: ClientAuth) -> TokenEndpoint {
        TokenEndpoint {
            url: format!("{}/token", self.url).parse().expect("url"),
            client_id: if client_auth == ClientAuth::Basic { "basic" } else { "post" }.to_owned(),
            client_auth,
            scope: Some("read".to_owned()),
            audience: None,
            resource: Some("https://wiki.example".to_owned()),
            trust: Trust::default(),
        }
    }

    fn start_credential(&self, kind: CredentialKind) -> Credential {
        let spec = CredentialSpec { name: "wiki".to_owned(), kind };
        Credential::start(spec, &BTreeMap::new(), &self.tasks).expect("credential")
    }

    fn client(&self, client_auth: ClientAuth, secret: &str) -> Credential {
        let secret = Source::File(self.secret_file(secret));
        self.start_credential(CredentialKind::ClientCredentials { endpoint: self.endpoint(client_auth), secret })
    }

    fn exchange(&self) -> Credential {
        let secret = Source::File(self.secret_file(SECRET));
        self.start_credential(CredentialKind::TokenExchange { endpoint: self.endpoint(ClientAuth::Basic), secret })
    }

    fn subject_token(&self, sub: &str) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").as_secs();
        let claims = json!({"sub": sub, "iss": "https://gateway.example", "exp": now + 60});
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &self.key).expect("token")
    }

    /// What the server was asked.
    async fn seen(&self) -> Vec<Value> {
        let tls = sortie_tls::api_client_config(None, false).expect("TLS");
        let client = reqwest::Client::builder().tls_backend_preconfigured((*tls).clone()).no_proxy().build();
        let answer = client.expect("client").get(format!("{}/seen", self.url)).send().await.expect("answer");
        serde_json::from_slice(&answer.bytes().await.expect("body")).expect("json")
    }
}

async fn token(credential: &Credential, subject: Option<(&str, &str)>) -> Result<String, CredentialError> {
    let mut headers = HeaderMap::new();
    let subject = subject.map(|(key, token)| Subject { key: Digest::of(key.as_bytes()), token });
    credential.apply(&mut headers, subject).await?;
    let value = headers.get("authorization").expect("a header").to_str().expect("text");
    Ok(value.strip_prefix("Bearer ").expect("bearer").to_owned())
}

fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("a JWT");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("json")
}

#[tokio::test]
async fn a_client_gets_one_token_for_many_calls() {
    let Some(world) = World::start(60).await else { return };
    for (client_auth, basic) in [(ClientAuth::Basic, true), (ClientAuth::Post, false)] {
        let credential = Arc::new(world.client(client_auth, SECRET));
        let before = world.seen().await.len();
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let credential = credential.clone();
            calls.spawn(async move { token(&credential, None).await.expect("token") });
        }
        let tokens = calls.join_all().await;
        assert!(tokens.iter().all(|other| *other == tokens[0]), "one token for all");
        let claims = claims(&tokens[0]);
        assert_eq!((&claims["aud"], &claims["scope"]), (&json!("https://wiki.example"), &json!("read")));
        let seen = world.seen().await;
        assert_eq!(seen.len(), before + 1, "asked once: {seen:?}");
        assert_eq!(
            (&seen[before]["basic"], &seen[before]["grant_type"]),
            (&json!(basic), &json!("client_credentials"))
        );
    }
}

#[tokio::test]
async fn a_token_is_replaced_before_it_ends_and_after_it_was_refused() {
    let Some(world) = World::start(2).await else { return };
    let credential = world.client(ClientAuth::Basic, SECRET);
    let first = token(&credential, None).await.expect("token");
    let renewed = async {
        loop {
            let now = token(&credential, None).await.expect("token");
            if now != first {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let second = tokio::time::timeout(SOON, renewed).await.expect("another");
    // In whole seconds.
    assert!(claims(&second)["iat"].as_i64() <= claims(&first)["exp"].as_i64(), "before the first has ended");

    let Some(world) = World::start(600).await else { return };
    let credential = world.client(ClientAuth::Basic, SECRET);
    let mut headers = HeaderMap::new();
    let applied = credential.apply(&mut headers, None).await.expect("applied");
    let first = token(&credential, None).await.expect("token");
    applied.refused();
    let second = token(&credential, None).await.expect("token");
    assert_ne!(first, second, "a refused token is not used again");
    // What the answer to an earlier call says is not about the new token; and a server that refuses everything does not
    // have a token fetched for each call.
    applied.refused();
    credential.apply(&mut headers, None).await.expect("applied").refused();
    assert_eq!(token(&credential, None).await.expect("token"), second);
    assert_eq!(world.seen().await.len(), 2);
}

#[tokio::test]
async fn a_wrong_secret_is_told_without_it_and_asked_for_sparingly() {
    let Some(world) = World::start(60).await else { return };
    let credential = Arc::new(world.client(ClientAuth::Post, "not-the-secret"));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let credential = credential.clone();
        calls.spawn(async move { token(&credential, None).await.expect_err("refused").to_string() });
    }
    for told in calls.join_all().await {
        assert_eq!(told, "credential `wiki` cannot be used: the token endpoint gives no token");
    }
    assert!(world.seen().await.len() <= 2, "{:?}", world.seen().await);
}

#[tokio::test]
async fn each_caller_gets_a_token_of_its_own() {
    let Some(world) = World::start(60).await else { return };
    let credential = world.exchange();
    let (ann, ben) = (world.subject_token("user:ann"), world.subject_token("user:ben"));
    let one = token(&credential, Some(("ann", &ann))).await.expect("token");
    let other = token(&credential, Some(("ben", &ben))).await.expect("token");
    assert_ne!(one, other);
    assert_eq!(token(&credential, Some(("ann", &ann))).await.as_ref(), Ok(&one), "kept");
    let seen = world.seen().await;
    let subjects: Vec<_> = seen.iter().map(|request| request["sub"].as_str().unwrap_or_default()).collect();
    assert_eq!(subjects, ["user:ann", "user:ben"]);
    assert_eq!(seen[0]["subject_token_type"], "urn:ietf:params:oauth:token-type:jwt");
    assert_eq!(seen[0]["resource"], "https://wiki.example");

    // Without a token of the caller, and with one that the server does not accept, there is none.
    let told = token(&credential, None).await.expect_err("none").to_string();
    assert!(told.contains("brings no token"), "{told}");
    // The first sextet of the signature: in the last one only two bits count.
    let (signed, signature) = ann.rsplit_once('.').expect("three parts");
    let forged = format!("{signed}.{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]);
    assert!(token(&credential, Some(("eve", &forged))).await.is_err());
}

#[tokio::test]
async fn an_endpoint_that_is_not_there_is_told_as_such() {
    let world_url = format!("http://127.0.0.1:{}", sortie_testkit::free_port().expect("port"));
    let dir = tempfile::tempdir().expect("dir");
    let key = EncodingKey::from_ed_der(&[]);
    let tasks = TaskSet::new();
    let server = Program::new("true").spawn().expect("start");
    let world = World { url: world_url, _server: server, dir, tasks, key };
    let told = token(&world.client(ClientAuth::Basic, SECRET), None).await.expect_err("nobody").to_string();
    assert_eq!(told, "credential `wiki` cannot be used: the token endpoint cannot be reached");
}
