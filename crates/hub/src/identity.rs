//! The caller's identity: short-lived tokens that the hub signs and that gateways check.
//!
//! The audience is the hostname of one route, so that a token is worth nothing on any other. The signing keys stay in the
//! store, sealed. A change of keys is announced to gateways by the word of the key before it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::HeaderValue;
use serde_json::{Value, json};
use sortie_identity::{Assurance, Caller, Claims, KeyRing, RingError, RotateError, Rotation};
use sortie_ids::RequestId;
use sortie_store::{KnownKey, Store, StoreError};

/// How long a token is good for.
const LIFETIME: Duration = Duration::from_secs(120);
/// How long a token is handed out again for the same caller and route: what is left of its life is enough for the way.
const REUSE: Duration = Duration::from_secs(60);
/// Tokens kept for reuse; when it is full, all are forgotten.
const KEPT: usize = 4096;
/// How long an old key verifies after the new one has begun to sign: the life of its last token, reused, and a minute.
const OVERLAP: Duration = Duration::from_secs(LIFETIME.as_secs() + 60);
/// Where the sealed keys are kept.
const KEYS_NAME: &str = "identity.keys";
/// Where earlier versions kept their only one.
const KEY_NAME: &str = "identity.ed25519";
/// Where the issuer's name is kept.
const ISSUER_NAME: &str = "identity.issuer";

/// Why there is no signer.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The store failed.
    #[error("the identity keys cannot be read from the store, or not be written to it")]
    Store(#[from] StoreError),
    /// The stored keys are none.
    #[error("the stored identity keys: {0}: restore the data directory from a backup, or start with a new one")]
    Keys(#[from] RingError),
    /// Another name was asked for than gateways know.
    #[error(
        "this hub signs as `{known}`, which its gateways have pinned: leave --issuer out, or start with a new data \
         directory"
    )]
    Issuer {
        /// The name in force.
        known: String,
    },
}

/// Why keys are not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// It cannot be done now.
    #[error(transparent)]
    Ring(#[from] RotateError),
    /// The store failed; the keys are as they were.
    #[error("the new key cannot be stored")]
    Store(#[from] StoreError),
}

/// Signs callers' identities. Clones share it.
#[derive(Clone)]
pub struct Signer(Arc<Inner>);

struct Inner {
    ring: RwLock<KeyRing>,
    /// One change of keys at a time.
    rotating: tokio::sync::Mutex<()>,
    region: Option<String>,
    kept: Mutex<HashMap<(String, String), (HeaderValue, i64)>>,
}

impl Signer {
    /// The store's signer, made at first use. `issuer` is its name then, one made at random where there is none.
    /// `region` is said of every caller.
    ///
    /// # Errors
    /// See [`SignerError`].
    pub async fn open(store: &Store, issuer: Option<String>, region: Option<String>) -> Result<Self, SignerError> {
        let name = name(store, issuer).await?;
        let ring = match store.get_secret(KEYS_NAME).await? {
            Some(kept) => KeyRing::from_json(&kept)?,
            None => {
                let ring = match store.get_secret(KEY_NAME).await? {
                    Some(pkcs8) => KeyRing::from_pkcs8(&name, &pkcs8)?,
                    None => KeyRing::generate(&name)?,
                };
                store.put_secret(KEYS_NAME, &ring.to_json()?).await?;
                ring
            }
        };
        let (ring, rotating, kept) = (RwLock::new(ring), tokio::sync::Mutex::default(), Mutex::default());
        Ok(Self(Arc::new(Inner { ring, rotating, region, kept })))
    }

    /// The keys (RFC 7517) that a gateway pins, and the issuer that it expects beside them.
    pub(crate) fn jwks(&self, now: i64) -> Value {
        let ring = self.ring();
        json!({"issuer": ring.issuer(), "sequence": ring.sequence(), "keys": ring.published(now).printed()})
    }

    /// Who signs.
    pub(crate) fn issuer(&self) -> String {
        self.ring().issuer().to_owned()
    }

    /// How the keys have changed, for gateways that have pinned older ones.
    pub(crate) fn announcements(&self) -> Vec<String> {
        self.ring().announcements().to_vec()
    }

    /// Makes a new key, which signs in `after` seconds; the old one verifies until its tokens have ended.
    ///
    /// # Errors
    /// See [`RotationError`]; nothing has changed then.
    pub(crate) async fn rotate(&self, store: &Store, after: i64) -> Result<Rotation, RotationError> {
        let _alone = self.0.rotating.lock().await;
        let kept = self.ring().to_json().map_err(RotateError::Ring)?;
        let mut next = KeyRing::from_json(&kept).map_err(RotateError::Ring)?;
        let rotation = next.rotate(store.now().as_second(), after, seconds(OVERLAP))?;
        let kept = next.to_json().map_err(RotateError::Ring)?;
        store.put_secret(KEYS_NAME, &kept).await?;
        *self.0.ring.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(rotation)
    }

    /// The identity of a key's holder for one route.
    pub(crate) fn caller(&self, key: &KnownKey, audience: &str, now: i64) -> Option<HeaderValue> {
        let place = (key.id.to_string(), audience.to_owned());
        {
            let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
            // One that was made by a clock that has been set back since is not handed out.
            if let Some((token, until)) = kept.get(&place)
                && (0..seconds(REUSE)).contains(&until.saturating_sub(now).saturating_sub(1))
            {
                return Some(token.clone());
            }
        }
        let token = self.sign(&self.holder(key), audience, now)?;
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(place, (token.clone(), now.saturating_add(seconds(REUSE))));
        Some(token)
    }

    /// The identity of a key's holder who decides about calls that wait at the gateway of this host; good for nothing else.
    pub(crate) fn approver(&self, key: &KnownKey, host: &str, now: i64) -> Option<HeaderValue> {
        self.sign(&self.holder(key), &sortie_api::approvals_audience(host), now)
    }

    /// The identity of the hub itself, asking whether the way is free.
    pub(crate) fn probe(&self, audience: &str, now: i64) -> Option<HeaderValue> {
        self.sign(&Caller::new("", "hub:probe", Assurance::Asserted, i64::MAX), audience, now)
    }

    /// What the hub says of a caller: all that is known of it, its agent, session, use of a tool and chain of actors
    /// included. Its issuer, assurance, end and token id are this signer's to say.
    pub(crate) fn sign(&self, caller: &Caller, audience: &str, now: i64) -> Option<HeaderValue> {
        let ring = self.ring();
        let mut claims = Claims::of(caller, ring.issuer(), audience, now, seconds(LIFETIME));
        claims.region = claims.region.or_else(|| self.0.region.clone());
        let mut value = HeaderValue::from_str(&ring.sign(&claims, now).ok()?).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// The caller that a key stands for.
    fn holder(&self, key: &KnownKey) -> Caller {
        Caller {
            organization: Some(key.organization.to_string()),
            workspace: Some(key.workspace.to_string()),
            key: Some(key.id.to_string()),
            agent: key.agent.as_ref().map(ToString::to_string),
            user: key.user.as_ref().map(ToString::to_string),
            ..Caller::new("", format!("key:{}", key.id), Assurance::Asserted, i64::MAX)
        }
    }

    fn ring(&self) -> std::sync::RwLockReadGuard<'_, KeyRing> {
        self.0.ring.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The issuer's name: the stored one; at first use the one that is asked for, else one made at random.
async fn name(store: &Store, asked: Option<String>) -> Result<String, SignerError> {
    match (store.get_meta(ISSUER_NAME).await?, asked) {
        (Some(known), Some(asked)) if known != asked => Err(SignerError::Issuer { known }),
        (Some(known), _) => Ok(known),
        (None, asked) => {
            let id = RequestId::random();
            let made = || format!("urn:sortie:hub:{}", id.as_str().trim_start_matches(RequestId::PREFIX));
            let issuer = asked.unwrap_or_else(made);
            store.put_meta(ISSUER_NAME, &issuer).await?;
            Ok(issuer)
        }
    }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use sortie_identity::{Pinned, Unknown};

    use super::*;

    fn pinned(signer: &Signer, now: i64) -> Pinned {
        Pinned::parse(&signer.jwks(now).to_string()).expect("keys")
    }

    #[tokio::test]
    async fn tokens_verify_against_the_published_keys_and_survive_a_restart() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let now = store.now().as_second();
        let first = Signer::open(&store, None, Some("eu-1".to_owned())).await.expect("signer");
        let again = Signer::open(&store, None, None).await.expect("signer");
        assert_eq!(first.jwks(now), again.jwks(now));

        let token = first.probe("files.abcd.test", now).expect("signed");
        let verified = pinned(&again, now).verify(token.as_bytes(), now).expect("verified");
        assert_eq!((verified.caller.subject.as_str(), verified.caller.region.as_deref()), ("hub:probe", Some("eu-1")));
        assert_eq!(verified.check(|audience| audience == "files.abcd.test", now), Ok(()));
        assert_eq!(verified.check(|audience| audience == "other.abcd.test", now), Err(Unknown::Audience));
    }

    #[tokio::test]
    async fn everything_that_is_known_of_a_caller_is_signed() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let signer = Signer::open(&store, None, None).await.expect("signer");
        let now = store.now().as_second();
        let caller = Caller {
            agent: Some("agent_1".to_owned()),
            agent_version: Some("4".to_owned()),
            session: Some("sesn_1".to_owned()),
            tool_use: Some("toolu_1".to_owned()),
            actors: vec!["user:ada".to_owned()],
            ..Caller::new("", "agent:agent_1", Assurance::Asserted, i64::MAX)
        };
        let token = signer.sign(&caller, "files.abcd.test", now).expect("signed");
        let said = pinned(&signer, now).verify(token.as_bytes(), now).expect("verified").caller;
        let (issuer, expires) = (signer.issuer(), now + 120);
        assert_eq!(*said, Caller { issuer, expires, token_id: said.token_id.clone(), ..caller });
    }

    #[tokio::test]
    async fn a_key_of_an_earlier_version_stays_in_force() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let pair = aws_lc_rs::signature::Ed25519KeyPair::generate().expect("key");
        store.put_secret(KEY_NAME, pair.to_pkcs8v1().expect("pkcs8").as_ref()).await.expect("put");
        store.put_meta(ISSUER_NAME, "urn:sortie:hub:old").await.expect("put");
        let signer = Signer::open(&store, None, None).await.expect("signer");
        let public = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref().to_vec();
        let jwks = signer.jwks(0);
        assert_eq!(jwks["issuer"], "urn:sortie:hub:old");
        let kid: String = sortie_ids::Digest::of(&public).to_string().chars().take(16).collect();
        assert_eq!(jwks["keys"][0]["kid"], kid);
        let other = Signer::open(&store, Some("https://other.test".to_owned()), None).await;
        assert!(matches!(other, Err(SignerError::Issuer { known }) if known == "urn:sortie:hub:old"));
    }

    #[tokio::test]
    async fn keys_rotate_for_good_and_gateways_follow() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let signer = Signer::open(&store, None, None).await.expect("signer");
        let now = store.now().as_second();
        let before = pinned(&signer, now);
        let rotation = signer.rotate(&store, 0).await.expect("rotated");
        assert!(matches!(signer.rotate(&store, 0).await, Err(RotationError::Ring(RotateError::Changing { .. }))));
        let signer = Signer::open(&store, None, None).await.expect("again");
        let token = signer.probe("files.abcd.test", rotation.begins).expect("signed");
        assert_eq!(before.verify(token.as_bytes(), now), Err(Unknown::Key));
        let announcements = signer.announcements();
        let after = before.after(announcements.iter().map(String::as_str), now).expect("proven").expect("new");
        assert!(after.verify(token.as_bytes(), rotation.begins).is_ok());
    }
}
