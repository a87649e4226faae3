//! Sealing for one reader: whoever seals cannot open. HPKE (RFC 9180), base mode, with DHKEM(X25519, HKDF-SHA256),
//! HKDF-SHA256 and AES-256-GCM.

use std::fmt;
use std::str::FromStr;

use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use zeroize::Zeroizing;

/// What the text of a public key begins with.
const PUBLIC: &str = "sortie-seal-public";
/// What the text of a private key begins with.
const PRIVATE: &str = "sortie-seal-private";
/// Bytes of either key (RFC 7748).
const LENGTH: usize = 32;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The text is not that of a key.
    #[error("it is not a key: one line, `{0}` and 64 hexadecimal digits; `sortie audit keygen` makes one")]
    Key(&'static str),
    /// It cannot be sealed for this key.
    #[error("it cannot be sealed for this key")]
    Seal,
    /// It was sealed for another key, for something else, or was changed.
    #[error("it does not open: it was sealed for another key, or was changed since")]
    Open,
}

/// The key that things are sealed for. Written as `sortie-seal-public` and 64 hexadecimal digits.
#[derive(Clone, Debug)]
pub struct SealingKey(HpkePublicKey);

/// The key that opens them. Its text comes from [`OpeningKey::to_text`] alone.
pub struct OpeningKey(HpkePrivateKey);

/// What was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The encapsulated key (`enc` of RFC 9180), 32 bytes.
    pub enc: Vec<u8>,
    /// The ciphertext with its tag.
    pub ciphertext: Vec<u8>,
}

impl SealingKey {
    /// A short name of the key: the first 16 hexadecimal digits of its SHA-256.
    pub fn id(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.0.0);
        hex::encode(digest.as_ref()).chars().take(16).collect()
    }

    /// Seals a text. `info` says what for, `aad` what it belongs to: it opens with the same ones alone.
    ///
    /// # Errors
    /// The key is no point that anything can be sealed for.
    pub fn seal(&self, info: &[u8], aad: &[u8], plaintext: &[u8]) -> Result<Sealed, SealError> {
        let (enc, ciphertext) = SUITE.seal(info, aad, plaintext, &self.0).map_err(|_| SealError::Seal)?;
        Ok(Sealed { enc: enc.0, ciphertext })
    }
}

impl OpeningKey {
    /// A new pair.
    ///
    /// # Errors
    /// The machine has no randomness.
    pub fn generate() -> Result<(Self, SealingKey), SealError> {
        let (public, private) = SUITE.generate_key_pair().map_err(|_| SealError::Seal)?;
        Ok((Self(private), SealingKey(public)))
    }

    /// Its text, for a file that nobody else may read.
    pub fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.0.secret_bytes()));
        Zeroizing::new(format!("{PRIVATE} {}\n", *digits))
    }

    /// Opens what was sealed with the same `info` and `aad`.
    ///
    /// # Errors
    /// It was not sealed so, or not for this key.
    pub fn open(&self, info: &[u8], aad: &[u8], sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let enc = EncapsulatedSecret(sealed.enc.clone());
        SUITE.open(&enc, info, aad, &sealed.ciphertext, &self.0).map_err(|_| SealError::Open)
    }
}

impl FromStr for SealingKey {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        Ok(Self(HpkePublicKey(key(text, PUBLIC)?.to_vec())))
    }
}

impl FromStr for OpeningKey {
    type Err = SealError;

    fn from_str(text: &str) -> Result<Self, SealError> {
        Ok(Self(HpkePrivateKey::from(key(text, PRIVATE)?.to_vec())))
    }
}

impl fmt::Display for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC} {}", hex::encode(&self.0.0))
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpeningKey(..)")
    }
}

fn key(text: &str, kind: &'static str) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let digits = text.trim().strip_prefix(kind).and_then(|rest| rest.strip_prefix(' ')).ok_or(SealError::Key(kind))?;
    let bytes = Zeroizing::new(hex::decode(digits.trim()).map_err(|_| SealError::Key(kind))?);
    if bytes.len() == LENGTH { Ok(bytes) } else { Err(SealError::Key(kind)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_with_its_key_and_for_its_purpose_alone() {
        let (opening, sealing) = OpeningKey::generate().expect("a pair");
        let sealing: SealingKey = sealing.to_string().parse().expect("its text");
        let opening: OpeningKey = opening.to_text().parse().expect("its text");
        let sealed = sealing.seal(b"info", b"aad", b"text").expect("sealed");
        assert_eq!(opening.open(b"info", b"aad", &sealed).expect("opened"), b"text");
        assert_ne!(sealing.seal(b"info", b"aad", b"text").expect("sealed"), sealed, "never the same twice");
        assert!(opening.open(b"other", b"aad", &sealed).is_err() && opening.open(b"info", b"other", &sealed).is_err());
        let mut changed = sealed.clone();
        changed.ciphertext[0] ^= 1;
        assert!(opening.open(b"info", b"aad", &changed).is_err());
        let (other, _) = OpeningKey::generate().expect("a pair");
        assert!(other.open(b"info", b"aad", &sealed).is_err());
        assert_eq!(sealing.id().len(), 16);
        assert!(!format!("{opening:?}").contains(opening.to_text().trim()));
    }

    #[test]
    fn a_private_key_is_not_taken_for_a_public_one() {
        let (opening, sealing) = OpeningKey::generate().expect("a pair");
        assert!(opening.to_text().parse::<SealingKey>().is_err());
        assert!(sealing.to_string().parse::<OpeningKey>().is_err());
        for text in ["", "sortie-seal-public", "sortie-seal-public 00", "sortie-seal-public zz"] {
            assert!(text.parse::<SealingKey>().is_err(), "{text}");
        }
    }

    /// The numbers of RFC 9180, section 7.
    #[test]
    fn it_is_the_suite_that_it_says() {
        let suite = SUITE.suite();
        assert_eq!(u16::from(suite.kem), 0x0020);
        assert_eq!((u16::from(suite.sym.kdf_id), u16::from(suite.sym.aead_id)), (0x0001, 0x0002));
    }
}
