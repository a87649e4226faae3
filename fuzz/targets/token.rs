//! Who is calling: whatever a token, a key set or an announcement of keys says, nothing counts that the pinned key has
//! not signed, and what counts says just what an ordinary reader of JSON finds in it. The first byte says what follows:
//!
//! - `i`, `h`, `a`: header and payload, a line each, of a token of the issuer, a token of the hub, or an announcement.
//!   They are signed here, so that what is behind the signature is read, too;
//! - `k`: a document of keys;
//! - anything else: a token as it comes.

#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use sortie_identity::{
    Algorithm, Assurance, Field, IssuerRules, KeySet, MAX_ACTORS, MAX_KEYS, MAX_TOKEN, Pinned, Verified, claimed_issuer,
};

const ISSUER: &str = "https://idp.test";
const KID: &str = "k";
const NOW: i64 = 1_800_000_000;
const LEEWAY: i64 = 30;
const LIFE: i64 = 3600;
/// What the hub's clock and the life of its tokens are held to.
const HUB: (i64, i64, i64) = (30, 0, 300);

/// Made anew for each run: no input can hold its signature.
static SIGNER: LazyLock<Ed25519KeyPair> = LazyLock::new(|| Ed25519KeyPair::generate().expect("a key"));
static RULES: LazyLock<IssuerRules> = LazyLock::new(|| IssuerRules {
    issuer: ISSUER.to_owned(),
    algorithms: Algorithm::ALL.to_vec(),
    required: [("role".to_owned(), vec!["worker".to_owned()])].into(),
    subject: "user:{sub}".parse().expect("template"),
    subject_prefix: "user:a".to_owned(),
    callers: Vec::new(),
    fields: [(Field::User, "email".to_owned()), (Field::Agent, "agent.id".to_owned())].into(),
    claims: [("groups".to_owned(), "groups".to_owned())].into(),
    leeway: LEEWAY,
    max_lifetime: LIFE,
});
static KEYS: LazyLock<KeySet> = LazyLock::new(|| KeySet::parse(&document()).expect("keys"));
static PINNED: LazyLock<Pinned> = LazyLock::new(|| Pinned::parse(&document()).expect("keys"));

fuzz_target!(|input: &[u8]| match input.split_first() {
    Some((b'i', parts)) => issued(parts),
    Some((b'h', parts)) => asserted(parts),
    Some((b'a', parts)) => announced(parts),
    Some((b'k', text)) => key_set(&String::from_utf8_lossy(text)),
    _ => stranger(input),
});

/// A token that nobody has signed whose word counts.
fn stranger(token: &[u8]) {
    let text = String::from_utf8_lossy(token);
    assert!(RULES.verify(token, &KEYS, NOW).is_err());
    assert!(PINNED.verify(token, NOW).is_err());
    assert!(!matches!(PINNED.after([text.as_ref()], NOW), Ok(Some(_))), "keys by a stranger's word");
    if let Some(issuer) = claimed_issuer(token) {
        assert!(token.len() <= MAX_TOKEN);
        let payload = text.split('.').nth(1).expect("three parts");
        let said: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).expect("base64")).expect("JSON");
        // A list is no set of claims, and is refused as such later; here it may be read as one.
        assert!(said["iss"] == issuer.as_str() || said[0] == issuer.as_str());
    }
}

/// A token of the issuer.
fn issued(parts: &[u8]) {
    let (token, header, said) = signed(parts);
    let Ok(verified) = RULES.verify(token.as_bytes(), &KEYS, NOW) else { return };
    sound(&token, &header, &["", "jwt", "at+jwt", "application/at+jwt"]);
    let caller = &verified.caller;
    assert_eq!((said["iss"].as_str(), caller.issuer.as_str()), (Some(ISSUER), ISSUER));
    assert_eq!(caller.assurance, Assurance::Attested);
    assert_eq!(caller.subject, format!("user:{}", scalar(&said["sub"])));
    assert!(caller.subject.starts_with("user:a"));
    let worker = |value: &Value| value == "worker";
    assert!(worker(&said["role"]) || said["role"].as_array().is_some_and(|roles| roles.iter().any(worker)));
    assert_eq!(caller.user.clone(), present(&said["email"]).map(scalar));
    if let Some(agent) = &caller.agent {
        assert!(scalar(&said["agent"]["id"]) == *agent || scalar(&said["agent.id"]) == *agent);
    }
    let groups = present(&said["groups"]).map(|groups| match groups {
        Value::Array(all) => all.iter().map(scalar).collect(),
        one => vec![scalar(one)],
    });
    assert_eq!(caller.claims.get("groups"), groups.as_ref());
    assert!(caller.organization.is_none() && caller.workspace.is_none() && caller.key.is_none(), "the hub's to say");
    assert!(caller.actors.len() <= MAX_ACTORS);
    if let Some(issued) = seconds(&said["iat"]) {
        assert!(caller.expires.saturating_sub(issued) <= LIFE);
    }
    in_time(&verified, &said, (LEEWAY, LEEWAY, LIFE));
}

/// A token of the hub.
fn asserted(parts: &[u8]) {
    let (token, header, said) = signed(parts);
    let Ok(verified) = PINNED.verify(token.as_bytes(), NOW) else { return };
    sound(&token, &header, &["", "jwt"]);
    assert_eq!(header["kid"], KID);
    let caller = &verified.caller;
    assert_eq!((said["iss"].as_str(), caller.issuer.as_str()), (Some(ISSUER), ISSUER));
    assert_eq!(caller.assurance, Assurance::Asserted, "whatever it says of itself");
    assert!(!caller.subject.is_empty());
    let text = |name: &str| said[name].as_str();
    for (found, name) in [
        (Some(&caller.subject), "sub"),
        (caller.organization.as_ref(), "org"),
        (caller.workspace.as_ref(), "workspace"),
        (caller.key.as_ref(), "key"),
        (caller.user.as_ref(), "user"),
        (caller.session.as_ref(), "session"),
    ] {
        assert_eq!(found.map(String::as_str), text(name), "{name}");
    }
    assert_eq!(caller.agent.as_deref(), said["agent"]["id"].as_str().or(said["agent"][0].as_str()));
    assert!(caller.actors.len() <= MAX_ACTORS);
    in_time(&verified, &said, HUB);
}

/// A change of the hub's keys.
fn announced(parts: &[u8]) {
    let (token, header, said) = signed(parts);
    assert!(RULES.verify(token.as_bytes(), &KEYS, NOW).is_err() || header["typ"] != "sortie-keys+jwt");
    let Ok(Some(next)) = PINNED.after([token.as_str()], NOW) else { return };
    sound(&token, &header, &["sortie-keys+jwt"]);
    assert_eq!((&said["iss"], next.issuer()), (&json!(ISSUER), ISSUER));
    let document = next.document();
    assert_eq!(document["sequence"], said["seq"]);
    assert!(document["sequence"].as_u64() > PINNED.document()["sequence"].as_u64(), "the number only grows");
    let (kept, listed) = (document["keys"].as_array().expect("keys"), said["keys"].as_array().expect("keys"));
    assert!((1..=MAX_KEYS).contains(&kept.len()));
    for key in kept {
        assert!(listed.iter().any(|other| other["kid"] == key["kid"] && other["x"] == key["x"]), "{key}");
        assert!(key["exp"].as_i64().is_none_or(|end| NOW < end));
    }
    assert!(kept.iter().any(|key| key["exp"].is_null()), "one stays");
    let again = Pinned::parse(&document.to_string()).expect("what is pinned can be read at the next start");
    assert_eq!(again.document(), document);
    assert!(matches!(again.after([token.as_str()], NOW), Ok(None)), "told twice, it is not news");
}

/// Keys of an issuer, and of a hub.
fn key_set(text: &str) {
    if let Ok(keys) = KeySet::parse(text) {
        let printed = keys.printed();
        let listed = printed.as_array().expect("a list");
        assert!((1..=MAX_KEYS).contains(&listed.len()) && listed.len() == keys.len());
        for (at, key) in listed.iter().enumerate() {
            let public = ["kty", "crv", "alg", "use", "kid", "exp", "x", "y", "n", "e"];
            assert!(key.as_object().expect("a key").keys().all(|name| public.contains(&name.as_str())), "{key}");
            assert!(Algorithm::ALL.iter().any(|algorithm| key["alg"] == algorithm.as_str()), "{key}");
            let same = |other: &Value| other["kid"] == key["kid"] && other["alg"] == key["alg"];
            assert!(key["kid"].is_null() || !listed[..at].iter().any(same), "a name twice: {key}");
        }
        let again = KeySet::parse(&json!({ "keys": printed }).to_string()).expect("read again");
        assert_eq!(again.printed(), printed);
    }
    if let Ok(pinned) = Pinned::parse(text) {
        assert!(!pinned.issuer().is_empty() && !pinned.is_empty());
        let document = pinned.document();
        let own = |key: &Value| key["alg"] == "EdDSA" && key["kid"].is_string();
        assert!(document["keys"].as_array().expect("keys").iter().all(own));
        let again = Pinned::parse(&document.to_string()).expect("read again");
        assert_eq!(again.document(), document);
    }
}

/// The one key that counts, as an issuer or a hub publishes it.
fn document() -> String {
    let x = URL_SAFE_NO_PAD.encode(SIGNER.public_key().as_ref());
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": KID, "x": x });
    json!({ "issuer": ISSUER, "sequence": 4, "keys": [key] }).to_string()
}

/// A rightly signed token of these two lines, and what an ordinary reader sees in them.
fn signed(parts: &[u8]) -> (String, Value, Value) {
    let at = parts.iter().position(|byte| *byte == b'\n').unwrap_or(parts.len());
    let (header, payload) = (&parts[..at], parts.get(at + 1..).unwrap_or_default());
    let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(SIGNER.sign(body.as_bytes()));
    let read = |part: &[u8]| serde_json::from_slice(part).unwrap_or_default();
    (format!("{body}.{signature}"), read(header), read(payload))
}

/// The head of a token that was taken.
fn sound(token: &str, header: &Value, types: &[&str]) {
    assert!(token.len() <= MAX_TOKEN);
    assert_eq!(header["alg"], "EdDSA");
    assert!(types.contains(&header["typ"].as_str().unwrap_or_default().to_ascii_lowercase().as_str()), "{header}");
    assert!(header["kid"].is_null() || header["kid"] == KID);
    for name in ["crit", "jwk", "jku", "x5u", "x5c", "enc", "zip"] {
        assert!(header[name].is_null(), "{header}");
    }
}

/// Where and when it is good. Of the issuer's clock: how far it may be ahead, and behind; and the longest life.
fn in_time(verified: &Verified, said: &Value, (ahead, behind, life): (i64, i64, i64)) {
    let listed = |audience: &str| match &said["aud"] {
        Value::Array(all) => all.iter().any(|one| one == audience),
        one => one == audience,
    };
    let here = |audience: &str| {
        assert!(listed(audience), "{audience} is not in {said}");
        audience == "here"
    };
    if verified.check(here, NOW).is_ok() {
        assert!(listed("here"));
        let end = seconds(&said["exp"]).expect("an end");
        assert_eq!(end, verified.caller.expires);
        assert!(NOW < end + behind && end <= NOW + ahead + life, "{said}");
        for name in ["iat", "nbf"] {
            assert!(seconds(&said[name]).is_none_or(|begins| begins <= NOW + ahead), "{said}");
        }
    }
}

/// A time, fractions cut.
fn seconds(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64))
}

fn present(value: &Value) -> Option<&Value> {
    (!value.is_null()).then_some(value)
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
