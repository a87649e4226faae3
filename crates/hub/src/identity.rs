//! The caller's identity: short-lived tokens that the hub signs and that only a gateway consumes.
//!
//! Ed25519 signatures (RFC 8037) over JSON Web Tokens (RFC 7519). The audience is the hostname of one route, so that a
//! token is worth nothing on any other. The signing key stays in the store, sealed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use sortie_ids::{Digest, RequestId};
use sortie_store::{KnownKey, Store, StoreError};

/// How long a token is good for.
const LIFETIME: Duration = Duration::from_secs(120);
/// How long a token is handed out again for the same caller and route: what is left of its life is enough for the way.
const REUSE: Duration = Duration::from_secs(60);
/// Tokens kept for reuse; when it is full, all are forgotten.
const KEPT: usize = 4096;
/// Where the sealed key is kept.
const KEY_NAME: &str = "identity.ed25519";
/// Where the issuer's name is kept.
const ISSUER_NAME: &str = "identity.issuer";

/// Why there is no signer.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The store failed.
    #[error("the identity key cannot be read from the store")]
    Store(#[from] StoreError),
    /// The stored key is no key.
    #[error("the stored identity key is damaged: restore the data directory from a backup, or start with a new one")]
    Key,
}

/// Signs callers' identities.
pub(crate) struct Signer {
    key: EncodingKey,
    public: Vec<u8>,
    kid: String,
    issuer: String,
    kept: Mutex<HashMap<(String, String), (HeaderValue, i64)>>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a str,
    sub: &'a str,
    iat: i64,
    exp: i64,
    jti: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    org: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<&'a str>,
}

impl Signer {
    /// The store's signer, made at first use.
    pub(crate) async fn open(store: &Store) -> Result<Self, SignerError> {
        let pkcs8 = match store.get_secret(KEY_NAME).await? {
            Some(pkcs8) => pkcs8.to_vec(),
            None => {
                let pair = Ed25519KeyPair::generate().map_err(|_| SignerError::Key)?;
                let pkcs8 = pair.to_pkcs8v1().map_err(|_| SignerError::Key)?.as_ref().to_vec();
                store.put_secret(KEY_NAME, &pkcs8).await?;
                pkcs8
            }
        };
        let issuer = match store.get_meta(ISSUER_NAME).await? {
            Some(issuer) => issuer,
            None => {
                let id = RequestId::random();
                let issuer = format!("urn:sortie:hub:{}", id.as_str().trim_start_matches(RequestId::PREFIX));
                store.put_meta(ISSUER_NAME, &issuer).await?;
                issuer
            }
        };
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| SignerError::Key)?;
        let public = pair.public_key().as_ref().to_vec();
        let kid = Digest::of(&public).to_string().chars().take(16).collect();
        Ok(Self { key: EncodingKey::from_ed_der(&pkcs8), public, kid, issuer, kept: Mutex::default() })
    }

    /// The keys (RFC 7517) that a gateway pins, and the issuer that it expects beside them.
    pub(crate) fn jwks(&self) -> serde_json::Value {
        serde_json::json!({
            "issuer": self.issuer,
            "keys": [{
                "kty": "OKP",
                "crv": "Ed25519",
                "alg": "EdDSA",
                "use": "sig",
                "kid": self.kid,
                "x": URL_SAFE_NO_PAD.encode(&self.public),
            }],
        })
    }

    /// The identity of a key's holder for one route.
    pub(crate) fn caller(&self, key: &KnownKey, audience: &str, now: i64) -> Option<HeaderValue> {
        let place = (key.id.to_string(), audience.to_owned());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((token, until)) = kept.get(&place)
            && now < *until
        {
            return Some(token.clone());
        }
        let subject = format!("key:{}", key.id);
        let scope = Some((key.organization.as_str(), key.workspace.as_str()));
        let token = self.sign(&subject, audience, scope, now)?;
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(place, (token.clone(), now.saturating_add(seconds(REUSE))));
        Some(token)
    }

    /// The identity of a key's holder who decides about calls that wait at the gateway of this host; good for nothing else.
    pub(crate) fn approver(&self, key: &KnownKey, host: &str, now: i64) -> Option<HeaderValue> {
        let scope = Some((key.organization.as_str(), key.workspace.as_str()));
        self.sign(&format!("key:{}", key.id), &sortie_api::approvals_audience(host), scope, now)
    }

    /// The identity of the hub itself, asking whether the way is free.
    pub(crate) fn probe(&self, audience: &str, now: i64) -> Option<HeaderValue> {
        self.sign("hub:probe", audience, None, now)
    }

    fn sign(&self, sub: &str, aud: &str, scope: Option<(&str, &str)>, now: i64) -> Option<HeaderValue> {
        let claims = Claims {
            iss: &self.issuer,
            aud,
            sub,
            iat: now,
            exp: now.saturating_add(seconds(LIFETIME)),
            jti: RequestId::random().as_str().trim_start_matches(RequestId::PREFIX).to_owned(),
            org: scope.map(|(org, _)| org),
            workspace: scope.map(|(_, workspace)| workspace),
        };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).ok()?;
        let mut value = HeaderValue::from_str(&token).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    #[tokio::test]
    async fn tokens_verify_against_the_published_keys_and_survive_a_restart() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let first = Signer::open(&store).await.expect("signer");
        let again = Signer::open(&store).await.expect("signer");
        assert_eq!(first.jwks(), again.jwks());

        let now = store.now().as_second();
        let token = first.probe("files.abcd.test", now).expect("signed");
        let keys = again.jwks();
        let key = DecodingKey::from_ed_components(keys["keys"][0]["x"].as_str().expect("x")).expect("key");
        let mut rules = Validation::new(Algorithm::EdDSA);
        rules.set_audience(&["files.abcd.test"]);
        rules.set_issuer(&[keys["issuer"].as_str().expect("issuer")]);
        let claims: jsonwebtoken::TokenData<serde_json::Value> =
            jsonwebtoken::decode(token.to_str().expect("text"), &key, &rules).expect("verified");
        assert_eq!(claims.claims["sub"], "hub:probe");
        assert_eq!(claims.header.kid.as_deref(), keys["keys"][0]["kid"].as_str());
        rules.set_audience(&["other.abcd.test"]);
        let other: Result<jsonwebtoken::TokenData<serde_json::Value>, _> =
            jsonwebtoken::decode(token.to_str().expect("text"), &key, &rules);
        assert!(other.is_err());
    }
}
