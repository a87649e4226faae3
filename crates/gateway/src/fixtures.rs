//! What the tests of several modules need.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// A hub's signing key.
pub(crate) struct Hub(Ed25519KeyPair);

impl Hub {
    pub(crate) const ISSUER: &'static str = "https://hub.test";
    pub(crate) const KID: &'static str = "k1";

    pub(crate) fn new() -> Self {
        Self(Ed25519KeyPair::generate().expect("key"))
    }

    /// The document that set-up pins.
    pub(crate) fn jwks(&self) -> String {
        let x = URL_SAFE_NO_PAD.encode(self.0.public_key().as_ref());
        let key = json!({"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": Self::KID, "x": x});
        json!({"issuer": Self::ISSUER, "keys": [key]}).to_string()
    }

    pub(crate) fn part(&self, value: &Value) -> String {
        URL_SAFE_NO_PAD.encode(value.to_string())
    }

    pub(crate) fn sign_with(&self, header: &Value, claims: &Value) -> String {
        let body = format!("{}.{}", self.part(header), self.part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.0.sign(body.as_bytes()).as_ref());
        format!("{body}.{signature}")
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(&json!({"typ": "JWT", "alg": "EdDSA", "kid": Self::KID}), claims)
    }

    /// The old trick: HS256 with the public key as the secret.
    pub(crate) fn hmac(&self, claims: &Value) -> String {
        let body = format!("{}.{}", self.part(&json!({"alg": "HS256", "kid": Self::KID})), self.part(claims));
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, self.0.public_key().as_ref());
        let tag = URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, body.as_bytes()).as_ref());
        format!("{body}.{tag}")
    }
}
