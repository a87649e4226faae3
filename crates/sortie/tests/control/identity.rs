//! Callers who prove themselves to the gateway by a token of their issuer, and what is tried with such tokens.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sortie_testkit::TempHome;

use crate::common::{Answer, modern, send};
use crate::support::{Key, Point};

const HEADER: &str = "x-agent-token";

/// An issuer of tokens.
struct Issuer {
    name: &'static str,
    pair: Ed25519KeyPair,
}

impl Issuer {
    fn new(name: &'static str) -> Self {
        Self { name, pair: Ed25519KeyPair::generate().expect("a key") }
    }

    fn jwks(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key().as_ref());
        json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "one", "x": x }] })
    }

    /// The settings that trust it.
    fn settings(&self, home: &TempHome) -> String {
        let file = home.write(format!("{}.jwks", self.name.replace('/', "-")), self.jwks().to_string()).expect("keys");
        format!(
            "\n[[issuers]]\nissuer = \"{}\"\njwks_file = \"{}\"\nheader = \"{HEADER}\"\nprefix = \"\"\n\
             algorithms = [\"EdDSA\"]\nleeway = \"1s\"\n",
            self.name,
            file.display()
        )
    }

    /// What it says of `subject` to this audience, for so many seconds from now.
    fn claims(&self, subject: &str, audience: &str, seconds: i64) -> Value {
        let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs()).expect("seconds");
        let begun = now - 600;
        json!({ "iss": self.name, "sub": subject, "aud": audience, "iat": begun, "exp": now + seconds })
    }

    fn token(&self, claims: &Value) -> String {
        self.with_header(&json!({ "alg": "EdDSA", "typ": "JWT", "kid": "one" }), claims)
    }

    fn with_header(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = URL_SAFE_NO_PAD.encode(self.pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

const ANN: &str = "https://idp.test";

/// Both routes allow `read` to ann of the one issuer, if the gateway itself has proof of it.
fn policy(_: &[Key]) -> String {
    let ann = format!("principal == Caller::\"{ANN}#ann\"");
    let attested = "when { principal.assurance == \"attested\" }";
    ["up", "twin"]
        .map(|route| {
            format!("permit({ann}, action == Action::\"tools/call\", resource == Tool::\"{route}/read\") {attested};\n")
        })
        .concat()
}

struct Field {
    point: Point,
    ours: Issuer,
    others: Issuer,
    _home: TempHome,
}

impl Field {
    async fn start() -> Self {
        let home = TempHome::new().expect("home");
        let (ours, others) = (Issuer::new(ANN), Issuer::new("https://other.test"));
        let issuers = ours.settings(&home) + &others.settings(&home);
        let point = Point::with("", &issuers, policy).await;
        Self { point, ours, others, _home: home }
    }

    fn host(&self, route: &str) -> String {
        format!("{route}.{}", self.point.tunnel.domain)
    }

    /// Claims of ann for the route `up`, good for a minute.
    fn ann(&self) -> Value {
        self.ours.claims("ann", &self.host("up"), 60)
    }

    async fn call(&self, route: &str, tokens: &[&str]) -> Answer {
        let post = self.point.post(&self.point.keys[0], route);
        let post = tokens.iter().fold(post, |post, token| post.header(HEADER, *token));
        send(modern(post, &json!(1), "read", &json!({}))).await
    }

    async fn unknown(&self, what: &str, route: &str, token: &str) {
        let before = self.point.server.ran().len();
        let answer = self.call(route, &[token]).await;
        assert_eq!((answer.status, answer.header("sortie-hop")), (401, Some("identity")), "{what}: {}", answer.text());
        assert!(!answer.text().contains(token), "{what}: the token is repeated");
        assert_eq!(self.point.server.ran().len(), before, "{what}");
    }
}

#[tokio::test]
async fn a_token_is_good_for_one_route_and_for_its_time() {
    let field = Field::start().await;
    let good = field.ours.token(&field.ann());
    let answer = field.call("up", &[&good]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // Without it the hub's word alone is not enough for this policy.
    let answer = field.call("up", &[]).await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (403, Some("policy")), "{}", answer.text());
    field.unknown("on another route", "twin", &good).await;
    let elsewhere = field.ours.claims("ann", "up.otherlabel.sortie.localhost", 60);
    field.unknown("of another tunnel", "up", &field.ours.token(&elsewhere)).await;
    let ended = field.ours.claims("ann", &field.host("up"), -5);
    field.unknown("after its end", "up", &field.ours.token(&ended)).await;
    let mut early = field.ann();
    early["nbf"] = json!(early["exp"].as_i64().expect("end") - 30);
    field.unknown("before it begins", "up", &field.ours.token(&early)).await;
    let long = field.ours.claims("ann", &field.host("up"), 30 * 86_400);
    field.unknown("for a month", "up", &field.ours.token(&long)).await;
    let twice = field.call("up", &[&good, &good]).await;
    assert_eq!((twice.status, twice.header("sortie-hop")), (401, Some("identity")), "{}", twice.text());
    assert_eq!(field.call("up", &[&good]).await.status, 200, "what was refused has not spoilt what is good");
    assert_eq!(field.point.server.ran(), ["read", "read"]);
    let told = format!("{:?}", field.point.server.recorder.requests());
    assert!(!told.contains(&good), "the server never gets the token: {told}");
}

#[tokio::test]
async fn an_issuer_signs_for_its_own_callers_only() {
    let field = Field::start().await;
    // It takes the other's name.
    let claims = field.ann();
    field.unknown("signed by another issuer", "up", &field.others.token(&claims)).await;
    // It has an `ann` of its own, who is another caller.
    let claims = field.others.claims("ann", &field.host("up"), 60);
    let answer = field.call("up", &[&field.others.token(&claims)]).await;
    assert_eq!((answer.status, answer.header("sortie-hop")), (403, Some("policy")), "{}", answer.text());
    // A name that would read like the other's once put together.
    let claims = field.others.claims(&format!("x#{ANN}#ann"), &field.host("up"), 60);
    let answer = field.call("up", &[&field.others.token(&claims)]).await;
    assert!(matches!(answer.status, 401 | 403), "{}", answer.text());
    // Nobody knows this one.
    let stranger = Issuer::new("https://nobody.test");
    let claims = stranger.claims("ann", &field.host("up"), 60);
    field.unknown("of an issuer that nobody trusts", "up", &stranger.token(&claims)).await;
    assert!(field.point.server.ran().is_empty());
}

#[tokio::test]
async fn a_token_does_not_choose_how_it_is_checked() {
    let field = Field::start().await;
    let claims = field.ann();
    let thief = Issuer::new(ANN);
    let public = field.ours.pair.public_key().as_ref().to_vec();
    let hmac = |key: &[u8]| {
        let signed = unsigned(&json!({ "alg": "HS256", "typ": "JWT", "kid": "one" }), &claims);
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    };
    let header = |more: Value| {
        let mut header = json!({ "alg": "EdDSA", "typ": "JWT", "kid": "one" });
        header.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        header
    };
    let own_key = thief.jwks()["keys"][0].clone();
    let good = field.ours.token(&claims);
    let (body, signature) = good.rsplit_once('.').expect("three parts");
    let mut other = claims.clone();
    other["sub"] = json!("root");
    for (what, token) in [
        ("not signed", format!("{}.", unsigned(&json!({ "alg": "none", "typ": "JWT" }), &claims))),
        ("not signed, in capitals", format!("{}.", unsigned(&json!({ "alg": "NONE", "kid": "one" }), &claims))),
        ("signature left out", format!("{body}.")),
        ("two parts", body.to_owned()),
        ("five parts", format!("{good}.a.b")),
        ("signed with the public key", hmac(&public)),
        ("signed with its text", hmac(URL_SAFE_NO_PAD.encode(&public).as_bytes())),
        ("called RS256", field.ours.with_header(&header(json!({ "alg": "RS256" })), &claims)),
        ("called ES256", field.ours.with_header(&header(json!({ "alg": "ES256" })), &claims)),
        ("its own key in its head", thief.with_header(&header(json!({ "jwk": own_key })), &claims)),
        ("its own keys by URL", thief.with_header(&header(json!({ "jku": "http://127.0.0.1:1/keys" })), &claims)),
        ("its own certificate", thief.with_header(&header(json!({ "x5c": ["MIIB"] })), &claims)),
        ("another key's name", field.ours.with_header(&header(json!({ "kid": "two" })), &claims)),
        ("critical, whatever that is", field.ours.with_header(&header(json!({ "crit": ["x"], "x": 1 })), &claims)),
        ("signed by a thief", thief.token(&claims)),
        ("claims exchanged", format!("{}.{signature}", unsigned(&header(json!({})), &other))),
        ("no end", field.ours.token(&json!({ "iss": ANN, "sub": "ann", "aud": field.host("up") }))),
        ("no text", "x".to_owned()),
        ("much text", "x".repeat(20_000)),
    ] {
        let answer = field.call("up", &[&token]).await;
        let refused = (answer.status, answer.header("sortie-hop"));
        assert!(matches!(refused, (401, Some("identity")) | (431, _)), "{what}: {refused:?} {}", answer.text());
    }
    assert!(field.point.server.ran().is_empty());
    assert_eq!(field.call("up", &[&good]).await.status, 200);
}

#[tokio::test]
async fn what_a_caller_says_of_itself_in_our_headers_counts_for_nothing() {
    let field = Field::start().await;
    let good = field.ours.token(&field.ann());
    let claims = json!({ "iss": ANN, "sub": "ann" }).to_string();
    for name in ["sortie-identity", "sortie_identity", "Sortie-Identity", "x-forwarded-user", "sortie-caller"] {
        let post = field.point.post(&field.point.keys[0], "up").header(name, &claims).header("connection", "close");
        let answer = send(modern(post, &json!(1), "read", &json!({}))).await;
        assert_eq!(answer.status, 403, "{name}: {}", answer.text());
    }
    assert!(field.point.server.ran().is_empty());
    let post = field.point.post(&field.point.keys[0], "up").header("sortie-identity", &claims).header(HEADER, &good);
    assert_eq!(send(modern(post, &json!(1), "read", &json!({}))).await.status, 200);
    let request = field.point.server.recorder.requests().pop().expect("a request");
    assert!(request.headers.iter().all(|(name, _)| !name.contains("identity")), "{request:?}");
}
