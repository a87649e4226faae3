//! Who is calling: a short-lived token signed by the hub, checked against the keys that were pinned at set-up.
//!
//! Nothing that the edge says counts here. It must never accept an algorithm other than EdDSA, a key that is not
//! pinned, or a token made for another route. The time is an argument.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use sortie_api::IDENTITY_HEADER;
use sortie_ids::Digest;

/// The subject of the hub's own probes: answered by the gateway, never forwarded.
pub(crate) const PROBE_SUBJECT: &str = "hub:probe";

/// Longest life that a token may have left, in seconds.
const MAX_LIFE: i64 = 300;
/// How far the hub's clock may be ahead of ours, in seconds.
const LEEWAY: i64 = 30;
/// Longest token, in bytes.
const MAX_TOKEN: usize = 8 * 1024;
/// Most verified tokens that are remembered; beyond it those that ended are forgotten, or else all.
const MAX_VERIFIED: usize = 4096;
/// Most keys in one document.
const MAX_KEYS: usize = 32;

/// What the hub says of a caller. Unknown claims are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Claims {
    /// The hub.
    pub iss: String,
    /// The hostname of the route that the token is for.
    pub aud: String,
    /// The caller.
    pub sub: String,
    /// When it was issued, in seconds since 1970.
    pub iat: i64,
    /// When it ends, in seconds since 1970.
    pub exp: i64,
    /// When it begins, in seconds since 1970.
    pub nbf: Option<i64>,
    /// The token's own id.
    pub jti: Option<String>,
    /// The caller's organisation.
    pub org: Option<String>,
    /// The caller's workspace.
    pub workspace: Option<String>,
    /// How the caller proved itself to the hub, such as `key:...`.
    pub via: Option<String>,
}

/// Why a caller is not known. Safe to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("missing: the call carries no identity of the hub")]
    Missing,
    #[error("given more than once")]
    Repeated,
    #[error("malformed: it is not a signed token with the claims iss, aud, sub, iat and exp")]
    Malformed,
    #[error("signed with another algorithm than EdDSA")]
    Algorithm,
    #[error(
        "signed by an unknown key; if the hub's keys were changed, run sortie setup init again and restart the gateway"
    )]
    Key,
    #[error("wrongly signed")]
    Signature,
    #[error("from another issuer")]
    Issuer,
    #[error("for another route")]
    Audience,
    #[error("expired")]
    Expired,
    #[error("valid for more than five minutes")]
    TooLong,
    #[error("not valid yet; check the clocks of hub and gateway")]
    NotYet,
}

/// Why a document of keys cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeysError {
    /// It is not a key set.
    #[error("it is not a JSON Web Key Set with a member `issuer`: {0}")]
    Malformed(String),
    /// No key in it can be used.
    #[error("it holds no Ed25519 key with a kid")]
    NoKey,
    /// Two keys have one name, or there are more than any hub has.
    #[error("it holds a kid twice, or more than {MAX_KEYS} keys")]
    Ambiguous,
}

/// The hub's keys, and the tokens that they have verified.
pub struct IdentityKeys {
    issuer: String,
    keys: HashMap<String, DecodingKey>,
    validation: Validation,
    verified: Mutex<HashMap<Digest, Arc<Claims>>>,
}

impl std::fmt::Debug for IdentityKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityKeys")
            .field("issuer", &self.issuer)
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    keys: Vec<Key>,
}

#[derive(Deserialize)]
struct Key {
    kty: String,
    crv: Option<String>,
    kid: Option<String>,
    x: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
}

impl IdentityKeys {
    /// Reads a key set (RFC 7517, keys as in RFC 8037) with the further member `issuer`. Keys of other kinds are
    /// passed over.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let document: Document = serde_json::from_str(text).map_err(|error| KeysError::Malformed(error.to_string()))?;
        if document.issuer.is_empty() {
            return Err(KeysError::Malformed("issuer is empty".to_owned()));
        }
        if document.keys.len() > MAX_KEYS {
            return Err(KeysError::Ambiguous);
        }
        let mut keys = HashMap::new();
        for key in document.keys {
            let fits = key.kty == "OKP"
                && key.crv.as_deref() == Some("Ed25519")
                && key.alg.as_deref().is_none_or(|alg| alg == "EdDSA" || alg == "Ed25519")
                && key.r#use.as_deref().is_none_or(|usage| usage == "sig");
            let (true, Some(kid), Some(x)) = (fits, key.kid, key.x) else { continue };
            let Ok(key) = DecodingKey::from_ed_components(&x) else { continue };
            if key.try_get_as_bytes().map(<[u8]>::len) != Ok(32) {
                continue;
            }
            if keys.insert(kid, key).is_some() {
                return Err(KeysError::Ambiguous);
            }
        }
        if keys.is_empty() {
            return Err(KeysError::NoKey);
        }
        // Only the signature is left to the library: the claims are judged here, by the clock that is given.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        Ok(Self { issuer: document.issuer, keys, validation, verified: Mutex::default() })
    }

    /// How many keys are pinned.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is pinned: never, since such a document is refused.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Who the caller is. `audience` is the route's hostname, `now` is in seconds since 1970.
    pub(crate) fn verify(&self, headers: &HeaderMap, audience: &str, now: i64) -> Result<Arc<Claims>, Unknown> {
        let mut values = headers.get_all(IDENTITY_HEADER).iter();
        let token = values.next().ok_or(Unknown::Missing)?;
        if values.next().is_some() {
            return Err(Unknown::Repeated);
        }
        let token = token.as_bytes();
        if token.len() > MAX_TOKEN {
            return Err(Unknown::Malformed);
        }
        let digest = Digest::of(token);
        let known = self.verified().get(&digest).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.open(token)?);
                claims.check(audience, now)?;
                self.remember(digest, claims.clone(), now);
                return Ok(claims);
            }
        };
        claims.check(audience, now)?;
        Ok(claims)
    }

    /// Checks the signature and who issued it.
    fn open(&self, token: &[u8]) -> Result<Claims, Unknown> {
        let header = match jsonwebtoken::decode_header(token) {
            Ok(header) => header,
            // `none` and other names that the library does not know.
            Err(error) if matches!(error.kind(), jsonwebtoken::errors::ErrorKind::Json(_)) => {
                return Err(Unknown::Algorithm);
            }
            Err(_) => return Err(Unknown::Malformed),
        };
        if header.alg != Algorithm::EdDSA {
            return Err(Unknown::Algorithm);
        }
        // Extensions that must be understood are not (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(Unknown::Malformed);
        }
        let key = header.kid.and_then(|kid| self.keys.get(&kid)).ok_or(Unknown::Key)?;
        let claims = match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
            Ok(token) => token.claims,
            Err(error) if matches!(error.kind(), jsonwebtoken::errors::ErrorKind::InvalidSignature) => {
                return Err(Unknown::Signature);
            }
            Err(_) => return Err(Unknown::Malformed),
        };
        if claims.iss != self.issuer {
            return Err(Unknown::Issuer);
        }
        if claims.sub.is_empty() {
            return Err(Unknown::Malformed);
        }
        Ok(claims)
    }

    fn remember(&self, digest: Digest, claims: Arc<Claims>, now: i64) {
        let mut verified = self.verified();
        if verified.len() >= MAX_VERIFIED {
            verified.retain(|_, claims| claims.exp > now);
            if verified.len() >= MAX_VERIFIED {
                verified.clear();
            }
        }
        verified.insert(digest, claims);
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Claims>>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claims {
    /// What changes between two uses of one token: the route and the time.
    fn check(&self, audience: &str, now: i64) -> Result<(), Unknown> {
        if self.aud != audience {
            return Err(Unknown::Audience);
        }
        if self.exp <= now {
            return Err(Unknown::Expired);
        }
        let latest = now.saturating_add(LEEWAY);
        if self.exp > latest.saturating_add(MAX_LIFE) {
            return Err(Unknown::TooLong);
        }
        if self.iat > latest || self.nbf.is_some_and(|begins| begins > latest) {
            return Err(Unknown::NotYet);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixtures::Hub;

    const HOST: &str = "docs.abcd1234.sortie.localhost";
    const NOW: i64 = 1_800_000_000;

    fn headers(tokens: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for token in tokens {
            headers.append(IDENTITY_HEADER, token.parse().expect("header"));
        }
        headers
    }

    fn claims() -> Value {
        json!({"iss": Hub::ISSUER, "aud": HOST, "sub": "user:1", "iat": NOW, "exp": NOW + 60, "org": "org_1",
               "workspace": "wrkspc_1", "via": "key:key_1", "jti": "j", "later": {"x": 1}})
    }

    fn with(name: &str, value: Value) -> Value {
        let mut claims = claims();
        if value.is_null() {
            claims.as_object_mut().expect("object").remove(name);
        } else {
            claims[name] = value;
        }
        claims
    }

    #[test]
    fn a_good_token_names_the_caller_every_time() {
        let hub = Hub::new();
        let keys = IdentityKeys::parse(&hub.jwks()).expect("keys");
        let headers = headers(&[&hub.sign(&claims())]);
        for _ in 0..3 {
            let caller = keys.verify(&headers, HOST, NOW).expect("known");
            assert_eq!((caller.sub.as_str(), caller.via.as_deref()), ("user:1", Some("key:key_1")));
        }
        assert_eq!(keys.verified().len(), 1);
        // What was verified once is still judged by time and route.
        assert_eq!(keys.verify(&headers, HOST, NOW + 60), Err(Unknown::Expired));
        assert_eq!(keys.verify(&headers, "other.abcd1234.sortie.localhost", NOW), Err(Unknown::Audience));
    }

    #[test]
    fn wrong_claims_are_named() {
        let hub = Hub::new();
        let keys = IdentityKeys::parse(&hub.jwks()).expect("keys");
        for (claims, reason) in [
            (with("aud", json!("other.abcd1234.sortie.localhost")), Unknown::Audience),
            (with("aud", json!([HOST])), Unknown::Malformed),
            (with("iss", json!("https://evil.example")), Unknown::Issuer),
            (with("exp", json!(NOW)), Unknown::Expired),
            (with("exp", json!(NOW + 331)), Unknown::TooLong),
            (with("exp", json!(i64::MAX)), Unknown::TooLong),
            (with("exp", Value::Null), Unknown::Malformed),
            (with("iat", json!(NOW + 31)), Unknown::NotYet),
            (with("iat", Value::Null), Unknown::Malformed),
            (with("nbf", json!(NOW + 31)), Unknown::NotYet),
            (with("sub", Value::Null), Unknown::Malformed),
            (with("sub", json!("")), Unknown::Malformed),
            (with("aud", Value::Null), Unknown::Malformed),
        ] {
            let token = hub.sign(&claims);
            assert_eq!(keys.verify(&headers(&[&token]), HOST, NOW), Err(reason), "{claims}");
        }
        for good in [with("iat", json!(NOW + 29)), with("nbf", json!(NOW + 29)), with("exp", json!(NOW + 300))] {
            assert!(keys.verify(&headers(&[&hub.sign(&good)]), HOST, NOW).is_ok(), "{good}");
        }
    }

    #[test]
    fn forgeries_are_refused() {
        let (hub, other) = (Hub::new(), Hub::new());
        let keys = IdentityKeys::parse(&hub.jwks()).expect("keys");
        let good = hub.sign(&claims());
        let (body, signature) = good.rsplit_once('.').expect("parts");
        let (_, payload) = body.split_once('.').expect("parts");
        let none = format!("{}.{payload}.", hub.part(&json!({"alg": "none", "kid": Hub::KID})));
        let crit = hub.sign_with(&json!({"alg": "EdDSA", "kid": Hub::KID, "crit": ["b64"]}), &claims());
        let no_kid = hub.sign_with(&json!({"alg": "EdDSA"}), &claims());
        let unknown = hub.sign_with(&json!({"alg": "EdDSA", "kid": "k9"}), &claims());
        let cut = format!("{body}.{}", &signature[..10]);
        let huge = "a".repeat(MAX_TOKEN + 1);
        for (tokens, reason) in [
            (vec![], Unknown::Missing),
            (vec![good.as_str(), good.as_str()], Unknown::Repeated),
            (vec![none.as_str()], Unknown::Algorithm),
            (vec![&hub.hmac(&claims())], Unknown::Algorithm),
            (vec![&other.sign(&claims())], Unknown::Signature),
            (vec![unknown.as_str()], Unknown::Key),
            (vec![no_kid.as_str()], Unknown::Key),
            (vec![crit.as_str()], Unknown::Malformed),
            (vec![""], Unknown::Malformed),
            (vec!["x.y"], Unknown::Malformed),
            (vec![huge.as_str()], Unknown::Malformed),
        ] {
            assert_eq!(keys.verify(&headers(&tokens), HOST, NOW), Err(reason), "{tokens:?}");
        }
        assert!(keys.verify(&headers(&[&cut]), HOST, NOW).is_err());
        assert!(keys.verified().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let hub = Hub::new();
        let keys = IdentityKeys::parse(&hub.jwks()).expect("keys");
        let claims: Arc<Claims> = Arc::new(serde_json::from_value(claims()).expect("claims"));
        for index in 0..MAX_VERIFIED + 10 {
            keys.remember(Digest::of(&index.to_be_bytes()), claims.clone(), NOW);
        }
        assert!(keys.verified().len() <= MAX_VERIFIED);
    }

    #[test]
    fn key_documents_are_read_strictly() {
        let hub = Hub::new();
        let good: Value = serde_json::from_str(&hub.jwks()).expect("json");
        let key = good["keys"][0].clone();
        let mut foreign = good.clone();
        foreign["keys"].as_array_mut().expect("keys").push(json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "r"}));
        assert_eq!(IdentityKeys::parse(&foreign.to_string()).expect("keys").len(), 1);

        let doc = |keys: Value| json!({"issuer": Hub::ISSUER, "keys": keys}).to_string();
        assert_eq!(IdentityKeys::parse(&doc(json!([]))).err(), Some(KeysError::NoKey));
        assert_eq!(IdentityKeys::parse(&doc(json!([key, key]))).err(), Some(KeysError::Ambiguous));
        let mut short = key.clone();
        short["x"] = json!("AAAA");
        assert_eq!(IdentityKeys::parse(&doc(json!([short]))).err(), Some(KeysError::NoKey));
        let mut anonymous = key;
        anonymous.as_object_mut().expect("object").remove("kid");
        assert_eq!(IdentityKeys::parse(&doc(json!([anonymous]))).err(), Some(KeysError::NoKey));
        for bad in ["", "{}", r#"{"keys": []}"#] {
            assert!(matches!(IdentityKeys::parse(bad), Err(KeysError::Malformed(_))), "{bad}");
        }
    }
}
