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
