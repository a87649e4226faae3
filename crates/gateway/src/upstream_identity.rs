//! Telling upstreams who is calling: in a token that this gateway signs.
//!
//! The key is the gateway's own, in its data directory, and never leaves it. A token is made once for a caller on a route
//! and handed out again for half of its life.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use sortie_identity::{Caller, Claims, KeyRing, Remembered, RingError, RotateError, Rotation};

/// The file with the keys, in the data directory; mode 0600.
const FILE: &str = "identity-keys.json";
/// How long an old key verifies beyond the longest life of a token, in seconds.
const MARGIN: i64 = 60;
/// Longest life of a token, in seconds.
const MAX_LIFETIME: i64 = 300;

/// Why the gateway's signing keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityKeysError {
    /// The file cannot be read or written.
    #[error("{path}: {cause}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// It holds no keys.
    #[error("{path}: {cause}; restore it, or remove it to begin with a new key", path = path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: RingError,
    },
    /// They are being changed.
    #[error(transparent)]
    Rotate(#[from] RotateError),
}

/// Changes the key in a gateway's data directory. A running gateway follows within seconds: the new key is published at
/// once, signs in `after`, and the old one is published until what it has signed has ended. `now` is in seconds since
/// 1970. Blocks.
///
/// # Errors
/// See [`IdentityKeysError`]; nothing has changed then.
pub fn rotate_identity_keys(data_dir: &Path, after: Duration, now: i64) -> Result<Rotation, IdentityKeysError> {
    let path = data_dir.join(FILE);
    let mut ring = open(&path)?;
    let after = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
    let rotation = ring.rotate(now, after, MAX_LIFETIME + MARGIN)?;
    write(&path, &ring)?;
    Ok(rotation)
}

/// The keys in force.
pub(crate) struct Signer {
    path: PathBuf,
    ring: ArcSwap<KeyRing>,
}

impl Signer {
    /// The keys of a data directory, made at first use. Blocks.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, IdentityKeysError> {
        let path = data_dir.join(FILE);
        let ring = ArcSwap::from_pointee(open(&path)?);
        Ok(Self { path, ring })
    }

    /// Reads the keys again. Blocks.
    pub(crate) fn reload(&self) -> Result<(), IdentityKeysError> {
        let ring = read(&self.path)?;
        // Each change has a number of its own; without one, what was signed stays good to hand out.
        if ring.sequence() != self.ring.load().sequence() {
            tracing::info!("the key that upstreams are told with has changed");
            self.ring.store(Arc::new(ring));
        }
        Ok(())
    }

    /// The keys that verify what this gateway signs.
    pub(crate) fn jwks(&self, now: i64) -> Value {
        json!({"keys": self.ring.load().published(now).printed()})
    }
}

fn open(path: &Path) -> Result<KeyRing, IdentityKeysError> {
    match read(path) {
        Err(IdentityKeysError::File { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            let ring = KeyRing::generate("gateway");
            let ring = ring.map_err(|cause| IdentityKeysError::Keys { path: path.to_owned(), cause })?;
            write(path, &ring)?;
            Ok(ring)
        }
        read => read,
    }
}

fn read(path: &Path) -> Result<KeyRing, IdentityKeysError> {
    let text = crate::served::read_bounded(path);
    let text = text.map_err(|cause| IdentityKeysError::File { path: path.to_owned(), cause })?;
    KeyRing::from_json(&text).map_err(|cause| IdentityKeysError::Keys { path: path.to_owned(), cause })
}

fn write(path: &Path, ring: &KeyRing) -> Result<(), IdentityKeysError> {
    let text = ring.to_json().map_err(|cause| IdentityKeysError::Keys { path: path.to_owned(), cause })?;
    let written = sortie_tls::write_private(path, &text);
    written.map_err(|cause| IdentityKeysError::File { path: path.to_owned(), cause })
}

/// How one upstream is told.
pub(crate) struct UpstreamIdentity {
    header: HeaderName,
    tokens: CallerTokens,
}

/// What this gateway signs about callers for one audience.
pub(crate) struct CallerTokens {
    signer: Arc<Signer>,
    issuer: String,
    audience: String,
    /// In seconds.
    lifetime: i64,
    /// By the address of a caller, which the entry keeps from being used for another.
    signed: Remembered<usize, Signed>,
}

#[derive(Clone)]
struct Signed {
    caller: Arc<Caller>,
    ring: Arc<KeyRing>,
    made: i64,
    until: i64,
    value: HeaderValue,
}

impl UpstreamIdentity {
    pub(crate) fn new(header: HeaderName, tokens: CallerTokens) -> Self {
        Self { header, tokens }
    }

    /// Puts the caller's identity in place of whatever is under that name.
    pub(crate) fn put(&self, headers: &mut HeaderMap, caller: &Arc<Caller>, now: i64) {
        headers.remove(&self.header);
        if let Some(value) = self.tokens.of(caller, now) {
            headers.insert(self.header.clone(), value);
        }
    }
}

impl CallerTokens {
    /// `audience` is an upstream's URL, or what an authorization server is called.
    pub(crate) fn new(signer: Arc<Signer>, issuer: String, audience: String, lifetime: Duration) -> Self {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(MAX_LIFETIME);
        Self { signer, issuer, audience, lifetime, signed: Remembered::default() }
    }

    /// The token about a caller; made once for half of its life.
    pub(crate) fn of(&self, caller: &Arc<Caller>, now: i64) -> Option<HeaderValue> {
        let place = Arc::as_ptr(caller).addr();
        let ring = self.signer.ring.load_full();
        if let Some(signed) = self.signed.get(&place)
            && Arc::ptr_eq(&signed.caller, caller)
            && Arc::ptr_eq(&signed.ring, &ring)
            && (signed.made..signed.until).contains(&now)
        {
            return Some(signed.value);
        }
        let claims = Claims::of_proven(caller, &self.issuer, &self.audience, now, self.lifetime);
        let until = now.saturating_add(claims.exp.saturating_sub(now) / 2);
        let mut value = HeaderValue::from_str(&ring.sign(&claims, now).ok()?).ok()?;
        value.set_sensitive(true);
        let kept = Signed { caller: caller.clone(), ring, made: now, until, value: value.clone() };
        self.signed.put(place, kept);
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use sortie_identity::{Assurance, IssuerRules, KeySet, Unknown};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const UP: &str = "http://10.0.0.5:8080";

    fn rules() -> IssuerRules {
        IssuerRules {
            issuer: "https://gw.test".to_owned(),
            algorithms: vec![sortie_identity::Algorithm::EdDsa],
            required: [("assurance".to_owned(), vec!["attested".to_owned()])].into(),
            subject: "{sub_id.iss}|{sub_id.sub}".parse().expect("template"),
            subject_prefix: String::new(),
            callers: Vec::new(),
            fields: [].into(),
            claims: [("groups".to_owned(), "claims.groups".to_owned())].into(),
            leeway: 0,
            max_lifetime: 300,
        }
    }

    fn caller() -> Arc<Caller> {
        let mut caller = Caller::new("https://idp.test", "ada", Assurance::Attested, NOW + 1000);
        caller.actors = vec!["key:1".to_owned()];
        caller.claims.insert("groups".to_owned(), vec!["ops".to_owned()]);
        Arc::new(caller)
    }

    fn told(dir: &Path) -> (Arc<Signer>, UpstreamIdentity) {
        let signer = Arc::new(Signer::open(dir).expect("keys"));
        let (issuer, header) = ("https://gw.test".to_owned(), HeaderName::from_static("sortie-identity"));
        let tokens = CallerTokens::new(signer.clone(), issuer, UP.to_owned(), Duration::from_secs(120));
        let identity = UpstreamIdentity::new(header, tokens);
        (signer, identity)
    }

    #[test]
    fn the_published_keys_prove_the_caller_to_its_upstream_only() {
        let dir = tempfile::tempdir().expect("dir");
        let (signer, identity) = told(dir.path());
        let mut headers = HeaderMap::new();
        headers.append("sortie-identity", HeaderValue::from_static("forged"));
        identity.put(&mut headers, &caller(), NOW);
        let values: Vec<_> = headers.get_all("sortie-identity").iter().collect();
        assert_eq!(values.len(), 1);
        let keys = KeySet::parse(&signer.jwks(NOW).to_string()).expect("keys");
        let verified = rules().verify(values[0].as_bytes(), &keys, NOW).expect("proven");
        assert_eq!(verified.caller.subject, "https://idp.test|ada");
        assert_eq!(
            (verified.caller.actors.as_slice(), verified.caller.expires),
            (&["key:1".to_owned()][..], NOW + 120)
        );
        assert_eq!(verified.caller.claims["groups"], ["ops"]);
        assert_eq!(verified.check(|audience| audience == UP, NOW), Ok(()));
        assert_eq!(verified.check(|audience| audience == "http://10.0.0.6:8080", NOW), Err(Unknown::Audience));
        let mode = std::fs::metadata(dir.path().join(FILE)).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_token_is_made_once_for_a_while() {
        let dir = tempfile::tempdir().expect("dir");
        let (_, identity) = told(dir.path());
        let (one, two) = (caller(), caller());
        let first = identity.tokens.of(&one, NOW);
        assert_eq!(identity.tokens.of(&one, NOW + 59), first);
        assert_ne!(identity.tokens.of(&two, NOW), first, "another caller");
        assert_ne!(identity.tokens.of(&one, NOW + 60), first, "half of its life is over");
        assert_ne!(identity.tokens.of(&one, NOW - 1), first, "the clock was set back");
    }

    #[test]
    fn keys_rotate_with_an_overlap_in_the_running_gateway() {
        let dir = tempfile::tempdir().expect("dir");
        let (signer, identity) = told(dir.path());
        let old = identity.tokens.of(&caller(), NOW).expect("signed");
        let rotation = rotate_identity_keys(dir.path(), Duration::ZERO, NOW + 1).expect("rotated");
        assert!(rotate_identity_keys(dir.path(), Duration::ZERO, NOW + 2).is_err(), "one is changing already");
        signer.reload().expect("read");
        let new = identity.tokens.of(&caller(), NOW + 1).expect("signed");
        let keys = |now| KeySet::parse(&signer.jwks(now).to_string()).expect("keys");
        for token in [&old, &new] {
            assert!(rules().verify(token.as_bytes(), &keys(NOW + 1), NOW + 1).is_ok());
        }
        let later = rotation.old_ends;
        assert_eq!(rules().verify(old.as_bytes(), &keys(later), later), Err(Unknown::Key));
        assert!(rules().verify(new.as_bytes(), &keys(later), later).is_ok());
    }
}
