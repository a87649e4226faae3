//! Secrets that are shown to their owner once or on request, and kept elsewhere only as a digest.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Text that is not a secret of the expected kind. The text itself is not repeated.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not {0}")]
pub struct SecretError(&'static str);

/// Fills a buffer from the operating system's random source.
pub(crate) fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the operating system gives random bytes");
}

/// A SHA-256 digest, compared in constant time, printed as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
        Self(out)
    }

    /// The digest of several texts in this order, told apart by their lengths.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        Self::of_each(parts.iter().map(|part| Some(*part)))
    }

    /// The same of texts that may be absent: an empty one is not an absent one.
    pub fn of_optional(parts: &[Option<&str>]) -> Self {
        Self::of_each(parts.iter().map(|part| part.map(str::as_bytes)))
    }

    fn of_each<'a>(parts: impl Iterator<Item = Option<&'a [u8]>>) -> Self {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        for part in parts {
            // No text is as long as what stands for an absent one.
            let length = part.and_then(|part| u64::try_from(part.len()).ok());
            context.update(&length.unwrap_or(u64::MAX).to_be_bytes());
            context.update(part.unwrap_or_default());
        }
        let mut out = [0; 32];
        out.copy_from_slice(context.finish().as_ref());
        Self(out)
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let mut out = [0; 32];
        hex::decode_to_slice(text, &mut out).map_err(|_| SecretError("a SHA-256 digest in hexadecimal"))?;
        Ok(Self(out))
    }
}

macro_rules! secret {
    ($name:ident) => {
        impl $name {
            /// The secret itself: only for the one place that sends or shows it.
            pub fn expose(&self) -> &str {
                &self.0
            }

            /// What is kept and compared instead of the secret.
            pub fn digest(&self) -> Digest {
                Digest::of(self.0.as_bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

/// An API key: 256 random bits after a readable prefix. `Clone`, since a client keeps one per connection.
#[derive(Clone)]
pub struct ApiKey(Zeroizing<String>);

secret!(ApiKey);

impl ApiKey {
    /// A fresh key whose text says what it is for, so that a leaked one is recognised: `sortie-<kind>-...`.
    pub fn random(kind: &str) -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        fill(bytes.as_mut());
        Self(Zeroizing::new(format!("sortie-{kind}-{}", URL_SAFE_NO_PAD.encode(bytes.as_ref()))))
    }

    /// Takes what a caller sent. Any visible ASCII of at most 512 bytes; whether it is a known key is another question.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let visible = !text.is_empty() && text.len() <= 512 && text.bytes().all(|b| b.is_ascii_graphic());
        if visible { Ok(Self(Zeroizing::new(text.to_owned()))) } else { Err(SecretError("an API key")) }
    }
}

/// The secret with which a gateway opens links for its tunnel. Its text has the public form of a connector token:
/// base64 of `{"a": account, "t": tunnel, "s": secret}`. `Clone`, since every reconnection presents it.
#[derive(Clone)]
pub struct TunnelToken(Zeroizing<String>);

secret!(TunnelToken);

impl TunnelToken {
    /// A fresh token of 256 random bits; `account` and `tunnel` are readable in it and prove nothing.
    pub fn random(account: &str, tunnel: &str) -> Self {
        let mut bytes = Zeroizing::new([0u8; 32]);
        fill(bytes.as_mut());
        let secret = Zeroizing::new(STANDARD.encode(bytes.as_ref()));
        let json = Zeroizing::new(serde_json::json!({"a": account, "t": tunnel, "s": secret.as_str()}).to_string());
        Self(Zeroizing::new(STANDARD.encode(json.as_bytes())))
    }

    /// Takes a token from a file or from the wire: base64 text of at most 1 KiB that begins as every token does.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let plain = text.starts_with("eyJ")
            && text.len() <= 1024
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_'));
        if plain { Ok(Self(Zeroizing::new(text.to_owned()))) } else { Err(SecretError("a tunnel token (eyJ...)")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let key = ApiKey::random("use");
        let token = TunnelToken::random("org", "tnl");
        assert_eq!(format!("{key:?} {token:?}"), "ApiKey(redacted) TunnelToken(redacted)");
        assert!(key.expose().starts_with("sortie-use-"));
        assert!(token.expose().starts_with("eyJ"));
    }

    #[test]
    fn tokens_round_trip_with_a_trailing_newline() {
        let token = TunnelToken::random("org", "tnl");
        let again = TunnelToken::parse(&format!("{}\n", token.expose())).expect("token");
        assert_eq!(again.digest(), token.digest());
        assert!(TunnelToken::parse("not a token").is_err());
    }

    #[test]
    fn parts_are_told_apart() {
        let digests = [&[b"a" as &[u8], b"bc"] as &[&[u8]], &[b"ab", b"c"], &[b"abc"], &[b"abc", b""], &[]];
        let digests = digests.map(|parts| Digest::of_parts(parts).to_string());
        let different: std::collections::BTreeSet<_> = digests.iter().collect();
        assert_eq!(different.len(), digests.len());
    }

    #[test]
    fn digests_round_trip() {
        let digest = Digest::of(b"sortie");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("00".parse::<Digest>().is_err());
    }
}
