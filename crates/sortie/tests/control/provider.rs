//! Callers who prove themselves by the access tokens of a real OpenID provider: oidc-provider, on Node.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sortie_testkit::{Process, Program, TempHome, tool};

use crate::common::{Answer, SOON, client, modern, send, text};
use crate::support::Point;

/// Where its tokens come; a gateway is to take them out of there.
const HEADER: &str = "x-agent-token";
/// One of its clients, which is the subject of the tokens that it gets for itself.
const CLIENT: &str = "post";
pub(crate) const SECRET: &str = "client-secret";
/// A gateway asks for new keys at most once a minute.
const FOLLOWED: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(500);

pub(crate) struct Provider {
    pub(crate) url: String,
    http: reqwest::Client,
    _process: Process,
    _home: TempHome,
}

impl Provider {
    /// `None` where it is not installed.
    pub(crate) async fn start() -> Option<Self> {
        Self::knowing(None).await
    }

    /// One that checks subject tokens by the key set in this file.
    pub(crate) async fn knowing(jwks: Option<&Path>) -> Option<Self> {
        let modules = tool("SORTIE_TEST_OIDC_MODULES")?;
        let home = TempHome::new().expect("home");
        let ready = home.join("ready.json");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/oidc/authorization_server.mjs");
        let program = Program::new("node").arg(script).arg(&ready).arg(modules).args([SECRET, "300"]);
        let program = jwks.into_iter().fold(program, Program::arg);
        let mut process = program.spawn().expect("start");
        let url = text(&process.ready_file(&ready, SOON).await.expect("it serves"), "/url").to_owned();
        Some(Self { url, http: client(), _process: process, _home: home })
    }

    /// The requests for tokens that it has got.
    pub(crate) async fn seen(&self) -> Vec<Value> {
        let seen = send(self.http.get(format!("{}/seen", self.url))).await.json();
        seen.as_array().expect("a list").clone()
    }

    /// An access token for a resource (RFC 8707).
    async fn token(&self, resource: &str) -> String {
        let form = format!(
            "grant_type=client_credentials&client_id={CLIENT}&client_secret={SECRET}&scope=read&resource={resource}"
        );
        let post = self.http.post(format!("{}/token", self.url)).body(form);
        let answer = send(post.header("content-type", "application/x-www-form-urlencoded")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        text(&answer.json(), "/access_token").to_owned()
    }

    /// Signs with a new key from now on; the last one stays published, what was before it does not.
    async fn rotate(&self) -> String {
        send(self.http.post(format!("{}/rotate", self.url))).await.text()
    }
}

/// The name of the key that has signed a token.
fn kid(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().expect("a header")).expect("base64");
    text(&serde_json::from_slice::<Value>(&header).expect("JSON"), "/kid").to_owned()
}

#[tokio::test]
async fn a_token_of_an_openid_provider_is_proof_and_its_new_keys_are_followed() {
    let Some(provider) = Provider::start().await else { return };
    let caller = format!("principal == Caller::\"{}#{CLIENT}\"", provider.url);
    let policies = ["up", "twin"].map(|route| {
        format!(
            "permit({caller}, action == Action::\"tools/call\", resource == Tool::\"{route}/read\") \
             when {{ principal.assurance == \"attested\" }};\n"
        )
    });
    // All that is told of the provider is its name: where its keys are is found out.
    let issuer = format!("\n[[issuers]]\nissuer = \"{}\"\nheader = \"{HEADER}\"\n", provider.url);
    let point = Point::with("", &issuer, |_| policies.concat()).await;
    let resource = |route: &str| format!("https://{route}.{}/mcp", point.tunnel.domain);
    let call = async |route: &str, token: Option<&str>| -> Answer {
        let post = point.post(&point.keys[0], route);
        let post = token.iter().fold(post, |post, token| post.header(HEADER, format!("Bearer {token}")));
        send(modern(post, &json!(1), "read", &json!({}))).await
    };
    let refused = |answer: &Answer, status: u16, hop: &str, reason: &str| {
        assert_eq!((answer.status, answer.header("sortie-hop")), (status, Some(hop)), "{}", answer.text());
        assert!(answer.text().contains(reason), "`{reason}` is not in {}", answer.text());
    };

    let first = provider.token(&resource("up")).await;
    let answer = call("up", Some(&first)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(point.server.ran(), ["read"]);

    // The hub's word for the same key is not enough, and the token is for one route.
    refused(&call("up", None).await, 403, "policy", "");
    refused(&call("twin", Some(&first)).await, 401, "identity", "for another route");
    let twin = provider.token(&resource("twin")).await;
    refused(&call("up", Some(&twin)).await, 401, "identity", "for another route");
    assert_eq!(call("twin", Some(&twin)).await.status, 200);
    assert_eq!(point.server.ran(), ["read", "read"]);

    // Two changes, so that the first key is withdrawn.
    let (second_kid, third_kid) = (provider.rotate().await, provider.rotate().await);
    let third = provider.token(&resource("up")).await;
    assert_eq!(kid(&third), third_kid);
    assert!(kid(&first) != second_kid && kid(&first) != third_kid);
    let followed = async {
        loop {
            let answer = call("up", Some(&third)).await;
            if answer.status == 200 {
                break;
            }
            refused(&answer, 401, "identity", "unknown key");
            assert_eq!(call("up", Some(&first)).await.status, 200, "what is known serves meanwhile");
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(FOLLOWED, followed).await.expect("the new key is followed");
    refused(&call("up", Some(&first)).await, 401, "identity", "unknown key");

    let told: String = point.server.recorder.requests().iter().map(|request| format!("{request:?}")).collect();
    assert!(!told.contains(HEADER), "the header stays at the gateway");
    for token in [first, twin, third] {
        assert!(!told.contains(&token), "a token has reached the server");
    }
}
