//! The hub's keys as a gateway pins them, and how they change: only by the word of a key that is pinned already.
//!
//! A change is announced as a signed token of a type of its own (RFC 8725 section 3.11), so that neither can be taken for
//! the other. It holds all keys from then on, and a number that only grows, so that nobody who carries it can bring old
//! keys back. Keys that go have an end, `exp`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::claims::Claims;
use crate::keys::{Algorithm, KeySet, KeysError};
use crate::token::{Rules, Unknown, Verified, claimed, open, with_issuer};

/// The type of an announcement.
pub(crate) const TYPE: &str = "sortie-keys+jwt";
/// Longest life that a token of the hub may have left, in seconds.
const MAX_LIFE: i64 = 300;
/// How far the hub's clock may be ahead of ours, in seconds.
const LEEWAY: i64 = 30;

/// Why an announcement changes nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AnnouncementError {
    /// No pinned key has signed it.
    #[error("the announcement of the hub's new keys is {0}")]
    Unproven(Unknown),
    /// The keys in it cannot be used.
    #[error("the announcement of the hub's new keys: {0}")]
    Keys(#[from] KeysError),
    /// None of its keys would be left.
    #[error("the announcement of the hub's new keys names none that stays")]
    NoneLeft,
}

/// What an announcement says.
#[derive(Serialize, Deserialize)]
pub(crate) struct Announcement {
    pub(crate) iss: String,
    pub(crate) seq: u64,
    pub(crate) keys: Value,
}

/// The hub that a gateway believes: its name and its keys.
#[derive(Clone, Debug)]
pub struct Pinned {
    issuer: String,
    keys: KeySet,
    sequence: u64,
}

#[derive(Deserialize)]
struct Document {
    issuer: String,
    keys: Vec<Value>,
    #[serde(default)]
    sequence: u64,
}

impl Pinned {
    /// Reads a key set (RFC 7517, keys as in RFC 8037) with the further member `issuer`. Keys of other kinds are passed
    /// over.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let document: Document = serde_json::from_str(text).map_err(with_issuer)?;
        if document.issuer.is_empty() {
            return Err(with_issuer("issuer is empty"));
        }
        let no_key = KeysError::NoKey("an Ed25519 key with a kid");
        let mut keys = KeySet::of(document.keys).map_err(|error| match error {
            KeysError::NoKey(_) => KeysError::NoKey("an Ed25519 key with a kid"),
            other => other,
        })?;
        keys.retain(|key| key.kid.is_some() && key.algorithm == Algorithm::EdDsa);
        if keys.is_empty() {
            return Err(no_key);
        }
        Ok(Self { issuer: document.issuer, keys, sequence: document.sequence })
    }

    /// The document that [`Pinned::parse`] reads.
    pub fn document(&self) -> Value {
        json!({"issuer": self.issuer, "sequence": self.sequence, "keys": self.keys.printed()})
    }

    /// How many keys are pinned.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is pinned: never, since such a document is refused.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The hub's name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Who a token of the hub is about. Where and when it is good is asked of the result.
    ///
    /// # Errors
    /// See [`Unknown`].
    pub fn verify(&self, token: &[u8], now: i64) -> Result<Verified, Unknown> {
        let rules = Rules { algorithms: &[Algorithm::EdDsa], types: &["jwt", ""], named_key: true };
        let claims: Claims = open(token, &self.keys, &rules, now)?;
        if claims.iss != self.issuer {
            return Err(Unknown::Issuer);
        }
        if claims.sub.is_empty() {
            return Err(Unknown::Malformed);
        }
        let begins = claims.nbf.map_or(claims.iat, |begins| begins.max(claims.iat));
        let audiences = vec![claims.aud.clone()];
        let caller = Arc::new(claims.asserted().ok_or(Unknown::Malformed)?);
        Ok(Verified { caller, audiences, begins, ahead: LEEWAY, behind: 0, max_life: MAX_LIFE })
    }

    /// The keys after these announcements, oldest first; `None` when nothing in them is new.
    ///
    /// # Errors
    /// One that is new, but that no key in force has signed, or whose keys cannot be used: nothing changes then.
    pub fn after<'a>(
        &self,
        announcements: impl IntoIterator<Item = &'a str>,
        now: i64,
    ) -> Result<Option<Self>, AnnouncementError> {
        let mut pinned = self.clone();
        let mut failed = None;
        for token in announcements {
            match pinned.next(token, now) {
                Ok(Some(next)) => {
                    pinned = next;
                    failed = None;
                }
                Ok(None) => {}
                // An old one, signed by a key that is long gone, is no reason to stop before a newer one.
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) if pinned.sequence == self.sequence => Err(error),
            _ => Ok((pinned.sequence != self.sequence).then_some(pinned)),
        }
    }

    fn next(&self, token: &str, now: i64) -> Result<Option<Self>, AnnouncementError> {
        // What does not even claim to be new needs no proof, and has none left when its signer has ended.
        if claimed(token.as_bytes()).is_some_and(|said: Announcement| said.seq <= self.sequence) {
            return Ok(None);
        }
        let rules = Rules { algorithms: &[Algorithm::EdDsa], types: &[TYPE], named_key: true };
        let said: Announcement =
            open(token.as_bytes(), &self.keys, &rules, now).map_err(AnnouncementError::Unproven)?;
        if said.iss != self.issuer {
            return Err(AnnouncementError::Unproven(Unknown::Issuer));
        }
        let listed = said.keys.as_array().cloned().unwrap_or_default();
        let mut keys = KeySet::of(listed)?;
        keys.retain(|key| key.is_live(now));
        if !keys.is_ours() || !keys.iter().any(|key| key.expires.is_none()) {
            return Err(AnnouncementError::NoneLeft);
        }
        Ok(Some(Self { issuer: self.issuer.clone(), keys, sequence: said.seq }))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::MAX_TOKEN;

    const HOST: &str = "docs.abcd1234.sortie.localhost";
    const ISSUER: &str = "https://hub.test";
    const NOW: i64 = 1_800_000_000;

    struct Hub(Ed25519KeyPair);

    impl Hub {
        fn new() -> Self {
            Self(Ed25519KeyPair::generate().expect("key"))
        }

        fn jwk(&self) -> Value {
            let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
            json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k1", "x": x})
        }

        fn pinned(&self) -> Pinned {
            Pinned::parse(&json!({"issuer": ISSUER, "keys": [self.jwk()]}).to_string()).expect("keys")
        }

        fn sign_with(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let body = format!("{}.{}", part(header), part(claims));
            format!("{body}.{}", URL_SAFE_NO_PAD.encode(self.0.sign(body.as_bytes()).as_ref()))
        }

        fn sign(&self, claims: &Value) -> String {
            self.sign_with(&json!({"typ": "JWT", "alg": "EdDSA", "kid": "k1"}), claims)
        }

        /// The old trick: HS256 with the public key as the secret.
        fn hmac(&self, claims: &Value) -> String {
            let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
            let body = format!("{}.{}", part(&json!({"alg": "HS256", "kid": "k1"})), part(claims));
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, self.0.public_key().as_ref());
            format!("{body}.{}", URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, body.as_bytes()).as_ref()))
        }
    }

    fn claims() -> Value {
        json!({"iss": ISSUER, "aud": HOST, "sub": "user:1", "iat": NOW, "exp": NOW + 60, "org": "org_1",
               "workspace": "wrkspc_1", "jti": "j", "later": {"x": 1}, "assurance": "attested"})
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

    fn list_of_claims() -> Value {
        let mut list = vec![json!(ISSUER), json!("user:1"), json!(HOST), json!(NOW), json!(NOW), json!(NOW + 60)];
        list.resize(18, Value::Null);
        list.push(json!({}));
        Value::Array(list)
    }

    fn judge(pinned: &Pinned, token: &str, now: i64) -> Result<String, Unknown> {
        let verified = pinned.verify(token.as_bytes(), now)?;
        verified.check(|audience| audience == HOST, now)?;
        assert_eq!(verified.caller.assurance, crate::Assurance::Asserted, "the hub attests nobody");
        Ok(verified.caller.subject.clone())
    }

    #[test]
    fn wrong_claims_are_named() {
        let hub = Hub::new();
        let pinned = hub.pinned();
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
            // Read by place instead of by name, it would have all claims.
            (list_of_claims(), Unknown::Malformed),
        ] {
            assert_eq!(judge(&pinned, &hub.sign(&claims), NOW), Err(reason), "{claims}");
        }
        for good in [with("iat", json!(NOW + 29)), with("nbf", json!(NOW + 29)), with("exp", json!(NOW + 300))] {
            assert_eq!(judge(&pinned, &hub.sign(&good), NOW).as_deref(), Ok("user:1"), "{good}");
        }
    }

    #[test]
    fn forgeries_are_refused() {
        let (hub, other) = (Hub::new(), Hub::new());
        let pinned = hub.pinned();
        let good = hub.sign(&claims());
        let (body, signature) = good.rsplit_once('.').expect("parts");
        let header = |header: Value| hub.sign_with(&header, &claims());
        for (token, reason) in [
            (header(json!({"alg": "none", "kid": "k1"})), Unknown::Algorithm),
            (hub.hmac(&claims()), Unknown::Algorithm),
            (other.sign(&claims()), Unknown::Signature),
            (header(json!({"alg": "EdDSA", "kid": "k9"})), Unknown::Key),
            (header(json!({"alg": "EdDSA"})), Unknown::Key),
            (header(json!({"alg": "EdDSA", "kid": "k1", "crit": ["b64"]})), Unknown::Header("crit")),
            (header(json!({"alg": "EdDSA", "kid": "k1", "jwk": other.jwk()})), Unknown::Header("jwk")),
            (header(json!({"alg": "EdDSA", "kid": "k1", "typ": TYPE})), Unknown::Header("typ")),
            (String::new(), Unknown::Malformed),
            ("x.y".to_owned(), Unknown::Malformed),
            ("a".repeat(MAX_TOKEN + 1), Unknown::Malformed),
        ] {
            assert_eq!(judge(&pinned, &token, NOW), Err(reason), "{token}");
        }
        assert!(judge(&pinned, &format!("{body}.{}", &signature[..10]), NOW).is_err());
        assert!(judge(&pinned, &good, NOW).is_ok());
    }

    #[test]
    fn key_documents_are_read_strictly() {
        let key = Hub::new().jwk();
        let parse = |keys: Value| Pinned::parse(&json!({"issuer": ISSUER, "keys": keys}).to_string());
        let foreign = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "r"});
        assert_eq!(parse(json!([key, foreign])).expect("keys").len(), 1);
        let mut short = key.clone();
        short["x"] = json!("AAAA");
        let mut anonymous = key.clone();
        anonymous.as_object_mut().expect("object").remove("kid");
        for none in [json!([]), json!([short]), json!([anonymous])] {
            assert!(matches!(parse(none.clone()), Err(KeysError::NoKey(_))), "{none}");
        }
        assert_eq!(parse(json!([key, key])).err(), Some(KeysError::Ambiguous));
        for bad in ["", "{}", r#"{"keys": []}"#, r#"{"issuer": "", "keys": []}"#] {
            assert!(matches!(Pinned::parse(bad), Err(KeysError::Malformed { .. })), "{bad}");
        }
    }
}
