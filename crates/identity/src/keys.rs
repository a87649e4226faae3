//! Key sets (RFC 7517): read, and printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Most keys in one document.
pub const MAX_KEYS: usize = 64;
/// Bytes of an RSA modulus: 2048 to 8192 bits.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The algorithms that are understood. There is none with a shared secret, and not the absence of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 section 3.3).
    #[serde(rename = "RS256")]
    Rs256,
    /// ECDSA on P-256 with SHA-256 (RFC 7518 section 3.4).
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519 (RFC 8037).
    #[serde(rename = "EdDSA")]
    EdDsa,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rs256, Self::Es256, Self::EdDsa];

    /// The name in headers, key sets and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    pub(crate) fn of(algorithm: jsonwebtoken::Algorithm) -> Option<Self> {
        match algorithm {
            jsonwebtoken::Algorithm::RS256 => Some(Self::Rs256),
            jsonwebtoken::Algorithm::ES256 => Some(Self::Es256),
            jsonwebtoken::Algorithm::EdDSA => Some(Self::EdDsa),
            _ => None,
        }
    }

    pub(crate) fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// Why a document of keys cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeysError {
    /// It is not a key set.
    #[error("it is not a JSON Web Key Set{also}: {reason}")]
    Malformed {
        /// What else it has to be.
        also: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// No key in it can be used.
    #[error("it holds no key that can be used: {0}")]
    NoKey(&'static str),
    /// Two keys have one name, or there are more than any issuer has.
    #[error("it holds a kid twice, or more than {MAX_KEYS} keys")]
    Ambiguous,
}

/// Public keys by name. Each is good for one algorithm only.
#[derive(Clone)]
pub struct KeySet(Vec<PublicKey>);

/// What a reader of the keys starts from (OpenID Connect Discovery 1.0, section 3). There is no login: only tokens that
/// name callers.
pub fn discovery(issuer: &str, jwks_uri: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "id_token_signing_alg_values_supported": ["EdDSA"],
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
        "claims_supported": [
            "iss", "sub", "aud", "iat", "nbf", "exp", "jti", "org", "workspace", "key", "user", "agent", "session",
            "tool_use", "region", "act", "assurance", "sub_id", "claims",
        ],
    })
}

/// One public key.
#[derive(Clone)]
pub(crate) struct PublicKey {
    pub(crate) kid: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
    /// From when on it is good for nothing, in seconds since 1970.
    pub(crate) expires: Option<i64>,
    /// The members by which it is printed.
    printed: Value,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    exp: Option<i64>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl KeySet {
    /// Reads a key set. Keys of other kinds, sizes and uses are passed over.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let document: Document =
            serde_json::from_str(text).map_err(|error| KeysError::Malformed { also: "", reason: error.to_string() })?;
        Self::of(document.keys)
    }

    pub(crate) fn of(keys: Vec<Value>) -> Result<Self, KeysError> {
        if keys.len() > MAX_KEYS {
            return Err(KeysError::Ambiguous);
        }
        let mut usable: Vec<PublicKey> = Vec::new();
        for key in keys {
            let Some(key) = serde_json::from_value::<Jwk>(key).ok().and_then(Jwk::key) else { continue };
            let same = |other: &PublicKey| other.kid == key.kid && other.algorithm == key.algorithm;
            if key.kid.is_some() && usable.iter().any(same) {
                return Err(KeysError::Ambiguous);
            }
            usable.push(key);
        }
        if usable.is_empty() {
            return Err(KeysError::NoKey("one of RSA (2048 bits or more), P-256 or Ed25519, to verify signatures"));
        }
        Ok(Self(usable))
    }

    /// An Ed25519 key of ours.
    pub(crate) fn ed25519(keys: impl IntoIterator<Item = (String, Vec<u8>, Option<i64>)>) -> Self {
        let keys = keys.into_iter().filter_map(|(kid, public, expires)| {
            let mut jwk = json!({
                "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid,
                "x": URL_SAFE_NO_PAD.encode(public),
            });
            if let (Some(expires), Some(members)) = (expires, jwk.as_object_mut()) {
                members.insert("exp".to_owned(), expires.into());
            }
            serde_json::from_value::<Jwk>(jwk).ok()?.key()
        });
        Self(keys.collect())
    }

    /// The keys as the member `keys` of a document. `exp`, where a key has it, is when it is good for nothing any more,
    /// in seconds since 1970.
    pub fn printed(&self) -> Value {
        Value::Array(self.0.iter().map(|key| key.printed.clone()).collect())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every one has a name and is Ed25519: what is asked of our own.
    pub(crate) fn is_ours(&self) -> bool {
        self.0.iter().all(|key| key.algorithm == Algorithm::EdDsa && key.kid.is_some())
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&PublicKey) -> bool) {
        self.0.retain(|key| keep(key));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }

    /// The key for a token: the one of that name, or, without a name, the only one for the algorithm.
    pub(crate) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Option<&PublicKey> {
        let mut fitting = self
            .0
            .iter()
            .filter(|key| key.algorithm == algorithm && kid.is_none_or(|kid| key.kid.as_deref() == Some(kid)));
        let found = fitting.next()?;
        (fitting.next().is_none() || kid.is_some()).then_some(found)
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|key| key.kid.as_deref().unwrap_or(""))).finish()
    }
}

impl PublicKey {
    pub(crate) fn is_live(&self, now: i64) -> bool {
        self.expires.is_none_or(|end| now < end)
    }
}

impl Jwk {
    /// The key, if it is one to verify signatures with that is understood.
    fn key(self) -> Option<PublicKey> {
        let verifies = self.r#use.as_deref().is_none_or(|usage| usage == "sig")
            && self.key_ops.as_ref().is_none_or(|all| all.iter().any(|one| one == "verify"));
        if !verifies {
            return None;
        }
        let alg = |names: &[&str]| self.alg.as_deref().is_none_or(|alg| names.contains(&alg));
        let (algorithm, key, mut printed) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("OKP", Some("Ed25519")) if alg(&["EdDSA", "Ed25519"]) => {
                let x = self.x?;
                if bytes(&x)? != 32 {
                    return None;
                }
                let printed = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x});
                (Algorithm::EdDsa, DecodingKey::from_ed_components(&x).ok()?, printed)
            }
            ("EC", Some("P-256")) if alg(&["ES256"]) => {
                let (x, y) = (self.x?, self.y?);
                if (bytes(&x)?, bytes(&y)?) != (32, 32) {
                    return None;
                }
                let printed = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y});
                (Algorithm::Es256, DecodingKey::from_ec_components(&x, &y).ok()?, printed)
            }
            ("RSA", _) if alg(&["RS256"]) => {
                let (n, e) = (self.n?, self.e?);
                if !RSA_BYTES.contains(&bytes(&n)?) {
                    return None;
                }
                let printed = json!({"kty": "RSA", "alg": "RS256", "n": n, "e": e});
                (Algorithm::Rs256, DecodingKey::from_rsa_components(&n, &e).ok()?, printed)
            }
            _ => return None,
        };
        let members = printed.as_object_mut()?;
        members.insert("use".to_owned(), "sig".into());
        if let Some(kid) = &self.kid {
            members.insert("kid".to_owned(), kid.as_str().into());
        }
        if let Some(exp) = self.exp {
            members.insert("exp".to_owned(), exp.into());
        }
        Some(PublicKey { kid: self.kid, algorithm, key, expires: self.exp, printed })
    }
}

/// How many bytes a number in base64url has.
fn bytes(text: &str) -> Option<usize> {
    URL_SAFE_NO_PAD.decode(text).ok().map(|bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ed(kid: &str) -> Value {
        json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": URL_SAFE_NO_PAD.encode([7; 32])})
    }

    fn rsa(bytes: usize) -> Value {
        json!({"kty": "RSA", "kid": "r", "n": URL_SAFE_NO_PAD.encode(vec![0xc1; bytes]), "e": "AQAB"})
    }

    #[test]
    fn only_keys_that_verify_are_taken() {
        let with = |name: &str, value: Value| {
            let mut key = ed("k");
            key[name] = value;
            key
        };
        let text = |key: &Value| json!({"keys": [key]}).to_string();
        for good in [
            ed("k"),
            with("use", json!("sig")),
            with("alg", json!("EdDSA")),
            with("key_ops", json!(["verify"])),
            rsa(256),
        ] {
            assert_eq!(KeySet::parse(&text(&good)).expect("keys").len(), 1, "{good}");
        }
        for bad in [
            with("use", json!("enc")),
            with("alg", json!("HS256")),
            with("key_ops", json!(["sign"])),
            with("x", json!("AAAA")),
            with("crv", json!("X25519")),
            rsa(128),
            json!({"kty": "oct", "kid": "s", "k": "c2VjcmV0"}),
            json!("no key"),
        ] {
            assert!(matches!(KeySet::parse(&text(&bad)), Err(KeysError::NoKey(_))), "{bad}");
        }
        let twice = json!({"keys": [ed("k"), ed("k")]}).to_string();
        assert_eq!(KeySet::parse(&twice).err(), Some(KeysError::Ambiguous));
        let many = json!({"keys": vec![ed("k"); MAX_KEYS + 1]}).to_string();
        assert_eq!(KeySet::parse(&many).err(), Some(KeysError::Ambiguous));
        assert!(matches!(KeySet::parse("[]"), Err(KeysError::Malformed { .. })));
    }

    #[test]
    fn what_is_printed_is_read_as_the_same_and_holds_no_more() {
        let mut key = ed("k");
        key["exp"] = json!(5);
        key["d"] = json!("private");
        let set = KeySet::parse(&json!({"keys": [key, rsa(256)]}).to_string()).expect("keys");
        let printed = set.printed();
        assert!(!printed.to_string().contains("private"));
        let again = KeySet::parse(&json!({"keys": printed}).to_string()).expect("keys");
        assert_eq!(again.printed(), set.printed());
        let key = again.find(Some("k"), Algorithm::EdDsa).expect("key");
        assert!(key.is_live(4) && !key.is_live(5));
    }

    #[test]
    fn a_token_without_a_name_of_its_key_fits_only_a_single_one() {
        let set = |keys: Value| KeySet::parse(&json!({"keys": keys}).to_string()).expect("keys");
        let one = set(json!([ed("k"), rsa(256)]));
        assert!(one.find(None, Algorithm::EdDsa).is_some());
        assert!(one.find(Some("k"), Algorithm::Rs256).is_none(), "each key has one algorithm");
        assert!(set(json!([ed("k"), ed("l")])).find(None, Algorithm::EdDsa).is_none());
    }
}
