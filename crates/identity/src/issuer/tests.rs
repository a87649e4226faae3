use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::json;

use super::*;
use crate::claimed_issuer;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://idp.test";
const URL: &str = "https://docs.abcd.test/mcp";

/// An identity provider with a key of each kind.
struct Provider {
    rsa: aws_lc_rs::rsa::KeyPair,
    ec: EncodingKey,
    ed: EncodingKey,
    keys: Value,
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Provider {
    fn new() -> Self {
        let rsa = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).expect("rsa");
        let (n, e) = (rsa.public_key().modulus(), rsa.public_key().exponent());
        let (n, e) = (b64(n.big_endian_without_leading_zero()), b64(e.big_endian_without_leading_zero()));
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("ec");
        let point = ec.public_key().as_ref().to_vec();
        let ed = Ed25519KeyPair::generate().expect("ed");
        let keys = json!([
            {"kty": "RSA", "kid": "rsa", "n": n, "e": e},
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": b64(&point[1..33]), "y": b64(&point[33..])},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(ed.public_key().as_ref())},
        ]);
        let ec = EncodingKey::from_ec_der(ec.to_pkcs8v1().expect("pkcs8").as_ref());
        let ed = EncodingKey::from_ed_der(ed.to_pkcs8v1().expect("pkcs8").as_ref());
        Self { rsa, ec, ed, keys }
    }

    fn keys(&self) -> KeySet {
        KeySet::parse(&json!({"keys": self.keys}).to_string()).expect("keys")
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string().as_bytes()), b64(claims.to_string().as_bytes()));
        let signature = match header["alg"].as_str() {
            Some("RS256") => {
                let mut signature = vec![0; self.rsa.public_modulus_len()];
                let random = aws_lc_rs::rand::SystemRandom::new();
                let padding = &aws_lc_rs::signature::RSA_PKCS1_SHA256;
                self.rsa.sign(padding, &random, message.as_bytes(), &mut signature).expect("signed");
                b64(&signature)
            }
            Some("ES256") => library(&self.ec, jsonwebtoken::Algorithm::ES256, &message),
            Some("EdDSA") => library(&self.ed, jsonwebtoken::Algorithm::EdDSA, &message),
            // The old trick: a MAC with the public key as its secret.
            Some("HS256") => {
                let public = self.rsa.public_key().as_der().expect("der");
                let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, public.as_ref());
                b64(aws_lc_rs::hmac::sign(&key, message.as_bytes()).as_ref())
            }
            _ => String::new(),
        };
        format!("{message}.{signature}")
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "RS256", "kid": "rsa", "typ": "JWT"}), claims)
    }
}

fn library(key: &EncodingKey, algorithm: jsonwebtoken::Algorithm, message: &str) -> String {
    jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).expect("signed")
}

fn rules() -> IssuerRules {
    IssuerRules {
        issuer: ISSUER.to_owned(),
        algorithms: Algorithm::ALL.to_vec(),
        required: BTreeMap::new(),
        subject: "{sub}".parse().expect("template"),
        subject_prefix: String::new(),
        callers: Vec::new(),
        fields: BTreeMap::new(),
        claims: BTreeMap::new(),
        leeway: 30,
        max_lifetime: 3600,
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "ada", "aud": [URL, "other"], "iat": NOW, "nbf": NOW, "exp": NOW + 600, "jti": "j1",
           "email": "ada@corp.test", "groups": ["dev", "ops"], "role": "session_worker", "agent": {"id": "a1"},
           "act": {"sub": "runner:1", "act": {"sub": "pool:1"}}})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn judge(rules: &IssuerRules, provider: &Provider, token: &str, now: i64) -> Result<Caller, Unknown> {
    let verified = rules.verify(token.as_bytes(), &provider.keys(), now)?;
    verified.check(|audience| audience == URL, now)?;
    Ok(verified.caller.as_ref().clone())
}

#[test]
fn each_algorithm_names_the_caller_and_only_those_that_are_listed_do() {
    let provider = Provider::new();
    for (alg, kid) in [("RS256", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")] {
        let token = provider.sign(&json!({"alg": alg, "kid": kid}), &claims());
        let caller = judge(&rules(), &provider, &token, NOW).expect(alg);
        assert_eq!((caller.issuer.as_str(), caller.subject.as_str()), (ISSUER, "ada"));
        assert_eq!(caller.assurance, Assurance::Attested);
        assert_eq!(caller.actors, ["runner:1", "pool:1"]);
        let others = Algorithm::ALL.into_iter().filter(|one| one.as_str() != alg).collect();
        let fewer = IssuerRules { algorithms: others, ..rules() };
        assert_eq!(judge(&fewer, &provider, &token, NOW), Err(Unknown::Algorithm), "{alg}");
    }
}

#[test]
fn claims_become_what_is_known_of_the_caller() {
    let provider = Provider::new();
    let rules = IssuerRules {
        subject: "user:{email}".parse().expect("template"),
        fields: [(Field::Agent, "agent.id".to_owned()), (Field::Session, "absent".to_owned())].into(),
        claims: [("teams".to_owned(), "groups".to_owned()), ("none".to_owned(), "absent".to_owned())].into(),
        required: [("role".to_owned(), vec!["session_worker".to_owned()]), ("jti".to_owned(), vec![])].into(),
        ..rules()
    };
    let caller = judge(&rules, &provider, &provider.token(&claims()), NOW).expect("known");
    assert_eq!(caller.subject, "user:ada@corp.test");
    assert_eq!((caller.agent.as_deref(), caller.session), (Some("a1"), None));
    assert_eq!(caller.claims, [("teams".to_owned(), vec!["dev".to_owned(), "ops".to_owned()])].into());
    assert_eq!(caller.token_id.as_deref(), Some("j1"));
    for (name, value) in [("role", json!("other")), ("jti", Value::Null), ("email", Value::Null), ("email", json!(""))]
    {
        let token = provider.token(&with(name, value));
        assert_eq!(judge(&rules, &provider, &token, NOW), Err(Unknown::Claim(name.to_owned())));
    }
    let many = provider.token(&with("groups", json!(vec!["g"; MAX_VALUES + 1])));
    assert_eq!(judge(&rules, &provider, &many, NOW), Err(Unknown::Claim("groups".to_owned())));
}

#[test]
fn forgeries_are_refused() {
    let (provider, other) = (Provider::new(), Provider::new());
    let good = provider.token(&claims());
    let header = |extra: Value| {
        let mut header = json!({"alg": "RS256", "kid": "rsa"});
        header.as_object_mut().expect("object").extend(extra.as_object().expect("object").clone());
        provider.sign(&header, &claims())
    };
    let own_key = json!({"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}});
    for (token, reason) in [
        (provider.sign(&json!({"alg": "none"}), &claims()), Unknown::Algorithm),
        (provider.sign(&json!({"alg": "HS256", "kid": "rsa"}), &claims()), Unknown::Algorithm),
        (provider.sign(&json!({"alg": "ES256", "kid": "rsa"}), &claims()), Unknown::Key),
        (provider.sign(&json!({"alg": "RS256", "kid": "x"}), &claims()), Unknown::Key),
        (other.token(&claims()), Unknown::Signature),
        (header(json!({"jku": "https://evil.test"})), Unknown::Header("jku")),
        (header(json!({"x5u": "https://evil.test"})), Unknown::Header("x5u")),
        (header(json!({"x5c": ["AAAA"]})), Unknown::Header("x5c")),
        (header(json!({"crit": ["exp"]})), Unknown::Header("crit")),
        (header(json!({"typ": "logout+jwt"})), Unknown::Header("typ")),
        (header(own_key), Unknown::Header("jwk")),
        (provider.token(&with("iss", json!("https://other.test"))), Unknown::Issuer),
        (provider.token(&with("aud", json!("https://elsewhere.test"))), Unknown::Audience),
        (provider.token(&with("aud", Value::Null)), Unknown::Malformed),
        (provider.token(&with("exp", Value::Null)), Unknown::Malformed),
        (provider.token(&with("sub", json!("a\u{0}b"))), Unknown::Claim("sub".to_owned())),
        (provider.token(&with("act", json!("x"))), Unknown::Claim("act".to_owned())),
        (format!("{good}x"), Unknown::Signature),
        (good.replacen('.', "", 1), Unknown::Malformed),
        ("a.b.c".to_owned(), Unknown::Malformed),
    ] {
        let refused = judge(&rules(), &provider, &token, NOW).expect_err(&token);
        assert!(refused == reason || token.ends_with('x') && refused == Unknown::Malformed, "{refused:?} {reason:?}");
    }
    assert!(judge(&rules(), &provider, &good, NOW).is_ok());
}

#[test]
fn a_clock_that_jumps_changes_the_answer_and_nothing_else() {
    let provider = Provider::new();
    let token = provider.token(&claims());
    let verified = rules().verify(token.as_bytes(), &provider.keys(), NOW).expect("verified");
    let at = |now| verified.check(|audience| audience == URL, now);
    for (now, answer) in [
        (NOW, Ok(())),
        (NOW + 629, Ok(())),
        (NOW + 630, Err(Unknown::Expired)),
        (NOW - 31, Err(Unknown::NotYet)),
        (NOW - 30, Ok(())),
        (i64::MAX, Err(Unknown::Expired)),
        (i64::MIN, Err(Unknown::NotYet)),
        (NOW, Ok(())),
    ] {
        assert_eq!(at(now), answer, "{now}");
    }
    let long = provider.token(&with("exp", json!(NOW + 3601)));
    assert_eq!(judge(&rules(), &provider, &long, NOW), Err(Unknown::TooLong));
    let mut undated = with("exp", json!(NOW + 4000));
    undated.as_object_mut().expect("object").retain(|name, _| name != "iat" && name != "nbf");
    assert_eq!(judge(&rules(), &provider, &provider.token(&undated), NOW), Err(Unknown::TooLong));
}

#[test]
fn an_issuer_speaks_only_for_its_own_callers() {
    let provider = Provider::new();
    let bound = IssuerRules { subject_prefix: "bot-".to_owned(), ..rules() };
    let listed = IssuerRules { callers: vec!["bot-1".to_owned()], ..rules() };
    for (subject, by_prefix, by_list) in [("ada", false, false), ("bot-1", true, true), ("bot-2", true, false)] {
        let token = provider.token(&with("sub", json!(subject)));
        let judged = |rules| judge(rules, &provider, &token, NOW).map(|_| ());
        let expected = |may| if may { Ok(()) } else { Err(Unknown::Caller) };
        assert_eq!((judged(&bound), judged(&listed)), (expected(by_prefix), expected(by_list)), "{subject}");
    }
    // The same name from two issuers is two principals.
    let one = judge(&rules(), &provider, &provider.token(&claims()), NOW).expect("known");
    let elsewhere = IssuerRules { issuer: "https://other.test".to_owned(), ..rules() };
    let token = provider.token(&with("iss", json!("https://other.test")));
    let two = judge(&elsewhere, &provider, &token, NOW).expect("known");
    assert_eq!(one.subject, two.subject);
    assert_ne!(one.digest(), two.digest());
}

#[test]
fn templates_need_a_claim() {
    for good in ["{sub}", "user:{email}", "{a.b}/{c}x"] {
        assert_eq!(good.parse::<Template>().map(|template| template.to_string()).as_deref(), Ok(good));
    }
    for bad in ["", "user", "{}", "{a", "a}", "{{a}}", "a}{b}"] {
        assert!(bad.parse::<Template>().is_err(), "{bad}");
    }
}

#[test]
fn the_issuer_is_read_without_being_believed() {
    let provider = Provider::new();
    assert_eq!(claimed_issuer(provider.token(&claims()).as_bytes()).as_deref(), Some(ISSUER));
    for bad in ["", "opaque", "a.b", "a.b.c", "a.e30.c", "a.e30.c.d"] {
        assert_eq!(claimed_issuer(bad.as_bytes()), None, "{bad}");
    }
}
