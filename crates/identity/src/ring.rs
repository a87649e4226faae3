//! Our own signing keys: one that signs, and while they change, one before or after it.
//!
//! A new key is published first and signs later, when whoever verifies has had time to learn of it. The old one verifies
//! until what it has signed has ended. So there are never more than two.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{EncodingKey, Header};
use serde::{Deserialize, Serialize};
use sortie_ids::Digest;
use zeroize::{Zeroize as _, Zeroizing};

use crate::announcement::{Announcement, TYPE};
use crate::claims::Claims;
use crate::keys::KeySet;

/// Announcements that are kept for gateways that were away: who missed more has to be set up again.
const MAX_ANNOUNCEMENTS: usize = 16;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The system gave none.
    #[error("no signing key can be made")]
    Made,
    /// What was kept is no set of keys.
    #[error("the kept signing keys are damaged")]
    Damaged,
    /// A token cannot be written.
    #[error("a token cannot be signed")]
    Sign,
}

/// Why keys are not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The last change is not over.
    #[error("the keys are being changed already; the old one is in use until {until} (seconds since 1970)")]
    Changing {
        /// When the next change may begin, in seconds since 1970.
        until: i64,
    },
    /// A key cannot be made or used.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A change of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// The name of the new key.
    pub kid: String,
    /// From when on it signs, in seconds since 1970.
    pub begins: i64,
    /// The name of the old key.
    pub old_kid: String,
    /// Until when the old one verifies, in seconds since 1970.
    pub old_ends: i64,
}

/// Our signing keys. Ed25519 all of them.
pub struct KeyRing {
    issuer: String,
    /// Oldest first; never empty.
    keys: Vec<SigningKey>,
    sequence: u64,
    announcements: Vec<String>,
}

struct SigningKey {
    pkcs8: Zeroizing<Vec<u8>>,
    encoding: EncodingKey,
    public: Vec<u8>,
    kid: String,
    begins: i64,
    ends: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    issuer: String,
    keys: Vec<KeptKey>,
    #[serde(default)]
    sequence: u64,
    #[serde(default)]
    announcements: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct KeptKey {
    pkcs8: String,
    begins: i64,
    ends: Option<i64>,
}

impl Drop for KeptKey {
    fn drop(&mut self) {
        self.pkcs8.zeroize();
    }
}

impl KeyRing {
    /// A fresh key for this issuer.
    ///
    /// # Errors
    /// [`RingError::Made`].
    pub fn generate(issuer: &str) -> Result<Self, RingError> {
        Ok(Self::of(issuer, SigningKey::generate(0)?))
    }

    /// A key that was kept alone, in PKCS #8.
    ///
    /// # Errors
    /// [`RingError::Damaged`].
    pub fn from_pkcs8(issuer: &str, pkcs8: &[u8]) -> Result<Self, RingError> {
        Ok(Self::of(issuer, SigningKey::open(pkcs8, 0, None)?))
    }

    fn of(issuer: &str, key: SigningKey) -> Self {
        Self { issuer: issuer.to_owned(), keys: vec![key], sequence: 0, announcements: Vec::new() }
    }

    /// Reads what [`KeyRing::to_json`] wrote.
    ///
    /// # Errors
    /// [`RingError::Damaged`].
    pub fn from_json(text: &[u8]) -> Result<Self, RingError> {
        let kept: Kept = serde_json::from_slice(text).map_err(|_| RingError::Damaged)?;
        let mut keys = Vec::with_capacity(kept.keys.len());
        for key in kept.keys {
            let pkcs8 = Zeroizing::new(STANDARD.decode(&key.pkcs8).map_err(|_| RingError::Damaged)?);
            keys.push(SigningKey::open(&pkcs8, key.begins, key.ends)?);
        }
        if keys.is_empty() {
            return Err(RingError::Damaged);
        }
        Ok(Self { issuer: kept.issuer, keys, sequence: kept.sequence, announcements: kept.announcements })
    }

    /// Everything, private keys included: for a sealed or private place.
    ///
    /// # Errors
    /// [`RingError::Damaged`], which does not happen.
    pub fn to_json(&self) -> Result<Zeroizing<Vec<u8>>, RingError> {
        let key = |key: &SigningKey| KeptKey {
            pkcs8: STANDARD.encode(key.pkcs8.as_slice()),
            begins: key.begins,
            ends: key.ends,
        };
        let kept = Kept {
            issuer: self.issuer.clone(),
            keys: self.keys.iter().map(key).collect(),
            sequence: self.sequence,
            announcements: self.announcements.clone(),
        };
        serde_json::to_vec(&kept).map(Zeroizing::new).map_err(|_| RingError::Damaged)
    }

    /// Who signs.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The keys that verify what is or will be signed.
    pub fn published(&self, now: i64) -> KeySet {
        let live = self.keys.iter().filter(|key| key.is_live(now));
        KeySet::ed25519(live.map(|key| (key.kid.clone(), key.public.clone(), key.ends)))
    }

    /// How the keys have changed, oldest first, each signed by a key from before it.
    pub fn announcements(&self) -> &[String] {
        &self.announcements
    }

    /// The number of the last change; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes a new key. It is published now, signs in `after` seconds, and the old one verifies for another `overlap`
    /// seconds, which are to cover the life of what it has signed.
    ///
    /// # Errors
    /// [`RotateError::Changing`] while there are two.
    pub fn rotate(&mut self, now: i64, after: i64, overlap: i64) -> Result<Rotation, RotateError> {
        if let Some(until) = self.keys.iter().filter_map(|key| key.ends).filter(|end| now < *end).max() {
            return Err(RotateError::Changing { until });
        }
        let new = SigningKey::generate(now.saturating_add(after))?;
        let mut keys: Vec<SigningKey> = std::mem::take(&mut self.keys);
        // Whatever has ended is gone; the last one never has.
        let mut old = keys.pop().ok_or(RingError::Damaged)?;
        old.ends = Some(new.begins.saturating_add(overlap));
        let rotation = Rotation {
            kid: new.kid.clone(),
            begins: new.begins,
            old_kid: old.kid.clone(),
            old_ends: new.begins.saturating_add(overlap),
        };
        self.keys = vec![old, new];
        self.sequence = self.sequence.saturating_add(1);
        let announcement =
            Announcement { iss: self.issuer.clone(), seq: self.sequence, keys: self.published(now).printed() };
        let signer = self.keys.first().ok_or(RingError::Damaged)?;
        let signed = signer.sign(TYPE, &announcement)?;
        self.announcements.push(signed);
        let beyond = self.announcements.len().saturating_sub(MAX_ANNOUNCEMENTS);
        self.announcements.drain(..beyond);
        Ok(rotation)
    }

    /// A token with these claims.
    ///
    /// # Errors
    /// [`RingError::Sign`], which does not happen with a key that could be read.
    pub fn sign(&self, claims: &Claims, now: i64) -> Result<String, RingError> {
        let begun = self.keys.iter().rev().find(|key| key.begins <= now);
        begun.or(self.keys.first()).ok_or(RingError::Damaged)?.sign("JWT", claims)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kids: Vec<_> = self.keys.iter().map(|key| &key.kid).collect();
        f.debug_struct("KeyRing").field("issuer", &self.issuer).field("kids", &kids).finish_non_exhaustive()
    }
}

impl SigningKey {
    fn generate(begins: i64) -> Result<Self, RingError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| RingError::Made)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| RingError::Made)?;
        Self::open(pkcs8.as_ref(), begins, None)
    }

    fn open(pkcs8: &[u8], begins: i64, ends: Option<i64>) -> Result<Self, RingError> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).map_err(|_| RingError::Damaged)?;
        let public = pair.public_key().as_ref().to_vec();
        let kid = Digest::of(&public).to_string().chars().take(16).collect();
        let (encoding, pkcs8) = (EncodingKey::from_ed_der(pkcs8), Zeroizing::new(pkcs8.to_vec()));
        Ok(Self { pkcs8, encoding, public, kid, begins, ends })
    }

    fn is_live(&self, now: i64) -> bool {
        self.ends.is_none_or(|end| now < end)
    }

    fn sign<T: Serialize>(&self, typ: &str, payload: &T) -> Result<String, RingError> {
        let mut header = Header::new(jsonwebtoken::Algorithm::EdDSA);
        header.typ = Some(typ.to_owned());
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, payload, &self.encoding).map_err(|_| RingError::Sign)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{AnnouncementError, Assurance, Caller, Pinned, Unknown};

    const NOW: i64 = 1_800_000_000;

    fn pinned(ring: &KeyRing, now: i64) -> Pinned {
        let document =
            json!({"issuer": ring.issuer(), "sequence": ring.sequence(), "keys": ring.published(now).printed()});
        Pinned::parse(&document.to_string()).expect("pinned")
    }

    fn token(ring: &KeyRing, now: i64) -> String {
        let caller = Caller::new("x", "key:1", Assurance::Asserted, i64::MAX);
        ring.sign(&Claims::of(&caller, ring.issuer(), "docs.test", now, 120), now).expect("signed")
    }

    fn texts(ring: &KeyRing) -> Vec<&str> {
        ring.announcements().iter().map(String::as_str).collect()
    }

    #[test]
    fn keys_change_with_an_overlap_and_never_more_than_two_are_live() {
        let mut ring = KeyRing::generate("hub").expect("ring");
        let before = pinned(&ring, NOW);
        let old = token(&ring, NOW);
        let rotation = ring.rotate(NOW, 300, 200).expect("rotated");
        assert_eq!((rotation.begins, rotation.old_ends), (NOW + 300, NOW + 500));
        assert!(matches!(ring.rotate(NOW + 499, 300, 200), Err(RotateError::Changing { until }) if until == NOW + 500));
        assert_eq!(ring.published(NOW).len(), 2);
        assert_eq!(ring.published(NOW + 500).len(), 1);

        // Until the new key begins, whoever has not heard of it yet is served.
        assert!(before.verify(token(&ring, NOW + 299).as_bytes(), NOW + 299).is_ok());
        let new = token(&ring, NOW + 300);
        assert_eq!(before.verify(new.as_bytes(), NOW + 300), Err(Unknown::Key));
        let after = before.after(texts(&ring), NOW).expect("proven").expect("new");
        assert!(after.verify(new.as_bytes(), NOW + 300).is_ok());
        assert!(after.verify(old.as_bytes(), NOW + 499).is_ok(), "the old one verifies until its end");
        assert_eq!(after.verify(old.as_bytes(), NOW + 500), Err(Unknown::Key));
        assert!(after.after(texts(&ring), NOW).expect("old news").is_none());
    }

    #[test]
    fn who_was_away_follows_the_chain() {
        let mut ring = KeyRing::generate("hub").expect("ring");
        let first = pinned(&ring, NOW);
        for round in 1..=3 {
            ring.rotate(NOW + round * 1000, 0, 10).expect("rotated");
        }
        let ring = KeyRing::from_json(&ring.to_json().expect("kept")).expect("read");
        let later = NOW + 100_000;
        let caught_up = first.after(texts(&ring), later).expect("proven").expect("new");
        assert!(caught_up.verify(token(&ring, later).as_bytes(), later).is_ok());
        assert_eq!(caught_up.len(), 1);
        // A document that was written and read again knows what is old.
        let again = Pinned::parse(&caught_up.document().to_string()).expect("read");
        assert!(again.after(texts(&ring), later).is_ok_and(|new| new.is_none()));
        for _ in 0..MAX_ANNOUNCEMENTS {
            let mut ring = KeyRing::from_json(&ring.to_json().expect("kept")).expect("read");
            ring.rotate(later, 0, 10).expect("rotated");
            assert!(ring.announcements().len() <= MAX_ANNOUNCEMENTS);
        }
    }

    #[test]
    fn nobody_but_a_pinned_key_adds_a_key() {
        let (ring, mut liar) = (KeyRing::generate("hub").expect("ring"), KeyRing::generate("hub").expect("ring"));
        let pinned = pinned(&ring, NOW);
        liar.rotate(NOW, 0, 10).expect("rotated");
        assert_eq!(pinned.after(texts(&liar), NOW).err(), Some(AnnouncementError::Unproven(Unknown::Key)));
        // A token for a call is no announcement, and an announcement no token.
        let call = token(&ring, NOW);
        let refused = Err(AnnouncementError::Unproven(Unknown::Header("typ")));
        assert_eq!(pinned.after([call.as_str()], NOW).map(|_| ()), refused);
        let mut ring = ring;
        ring.rotate(NOW, 0, 10).expect("rotated");
        let announcement = texts(&ring)[0];
        assert_eq!(pinned.verify(announcement.as_bytes(), NOW), Err(Unknown::Header("typ")));
        // One bit of it changed.
        let mut changed = announcement.to_owned();
        let at = changed.find('.').expect("parts") + 9;
        let other = if changed.as_bytes()[at] == b'A' { "B" } else { "A" };
        changed.replace_range(at..=at, other);
        assert!(pinned.after([changed.as_str()], NOW).is_err());
    }

    #[test]
    fn old_keys_are_not_brought_back() {
        let mut ring = KeyRing::generate("hub").expect("ring");
        let first = pinned(&ring, NOW);
        ring.rotate(NOW, 0, 10).expect("rotated");
        let one = texts(&ring)[0].to_owned();
        ring.rotate(NOW + 100, 0, 10).expect("rotated");
        let newest = first.after(texts(&ring), NOW + 100).expect("proven").expect("new");
        assert!(newest.after([one.as_str()], NOW).is_ok_and(|new| new.is_none()));
        // Not even by claiming to be newer.
        let mut parts: Vec<String> = one.split('.').map(str::to_owned).collect();
        let mut said: serde_json::Value = crate::token::claimed(one.as_bytes()).expect("payload");
        said["seq"] = json!(99);
        parts[1] = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(said.to_string());
        assert!(newest.after([parts.join(".").as_str()], NOW).is_err());
    }

    #[test]
    fn private_keys_are_not_printed() {
        let ring = KeyRing::generate("hub").expect("ring");
        let kept = String::from_utf8(ring.to_json().expect("kept").to_vec()).expect("text");
        let pkcs8 = kept.split("pkcs8\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("key");
        assert!(!format!("{ring:?}").contains(pkcs8) && pkcs8.len() > 40);
    }
}
