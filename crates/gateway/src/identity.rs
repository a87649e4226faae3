//! Who is calling: the hub's word, checked against the keys that were pinned at set-up, and beside it the token of an
//! issuer that the settings trust.
//!
//! Nothing that the edge says counts here. It must never accept a key that is not pinned or was not announced by one
//! that is, or a token made for another route. The time is an argument.
//!
//! What was found good is remembered, so that a call costs one digest and one look-up; where and when it is good is asked
//! again each time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use sortie_api::IDENTITY_HEADER;
use sortie_identity::{Assurance, Caller, KeySet, Pinned, Remembered, Unknown, Verified};
use sortie_ids::Digest;
use sortie_tls::{SetupDir, SetupFile};

use crate::issuers::{Issuer, Issuers};
use crate::routes::Route;

/// The subject of the hub's own probes: answered by the gateway, never forwarded.
pub(crate) const PROBE_SUBJECT: &str = "hub:probe";

/// How long a signature counts without being checked again, in seconds: a key that its issuer has withdrawn must not live
/// on in what it has signed.
const CHECKED: i64 = 300;

/// The hub's keys, and the tokens that were verified.
pub(crate) struct IdentityKeys {
    pinned: ArcSwap<Pinned>,
    verified: Remembered<Digest, Known>,
    dir: SetupDir,
}

/// A caller as its tokens say it, and what they were checked against.
#[derive(Clone)]
struct Known {
    caller: Arc<Caller>,
    hub: Arc<Verified>,
    pinned: Arc<Pinned>,
    attested: Option<Attested>,
    checked: i64,
}

/// What an issuer has proven, and by which of its keys it was checked.
#[derive(Clone)]
struct Attested {
    issuer: Arc<Issuer>,
    token: Arc<Verified>,
    keys: Arc<KeySet>,
}

impl std::fmt::Debug for IdentityKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityKeys").field("pinned", &self.pinned.load()).finish_non_exhaustive()
    }
}

impl IdentityKeys {
    /// `dir` is where the keys are pinned.
    pub(crate) fn new(pinned: Pinned, dir: SetupDir) -> Self {
        Self { pinned: ArcSwap::from_pointee(pinned), verified: Remembered::default(), dir }
    }

    /// How many keys are pinned.
    pub(crate) fn len(&self) -> usize {
        self.pinned.load().len()
    }

    /// Who the caller is. `now` is in seconds since 1970. Waits only when the keys of an issuer have to be fetched.
    pub(crate) async fn verify(
        &self,
        issuers: &Issuers,
        headers: &HeaderMap,
        route: &Route,
        now: i64,
    ) -> Result<Arc<Caller>, Unknown> {
        let word = one(headers)?;
        let presented = issuers.presented(headers, route)?;
        let digest = match &presented {
            None => Digest::of(word),
            // No header's value has a line's end.
            Some(presented) => Digest::of(&[word, presented.token].join(&b'\n')),
        };
        if let Some(known) = self.verified.get(&digest) {
            if self.counts(&known, issuers, now) {
                known.check(route, now)?;
                return Ok(known.caller);
            }
            self.verified.forget(&digest);
        }
        let pinned = self.pinned.load_full();
        let hub = Arc::new(pinned.verify(word, now)?);
        let owner = match &presented {
            Some(presented) => issuers.owner(presented, route)?.map(|issuer| (issuer, presented.token)),
            None => None,
        };
        let attested = match owner {
            // What is wrong with the hub's word is told first, and at no expense.
            Some(_) if hub.check(|audience| audience == route.host, now).is_err() => None,
            Some((issuer, token)) => {
                let (verified, keys) = issuer.verify(token, now).await?;
                Some(Attested { issuer: issuer.clone(), token: Arc::new(verified), keys })
            }
            None => None,
        };
        let caller = match &attested {
            None => hub.caller.clone(),
            Some(attested) => Arc::new(together(&hub.caller, &attested.token.caller)),
        };
        let known = Known { caller, hub, pinned, attested, checked: now };
        known.check(route, now)?;
        let caller = known.caller.clone();
        self.verified.put(digest, known);
        Ok(caller)
    }

    /// Whom the hub says is asking, for something that is no call of a route.
    pub(crate) fn word(&self, headers: &HeaderMap, audience: &str, now: i64) -> Result<Arc<Caller>, Unknown> {
        let hub = self.pinned.load().verify(one(headers)?, now)?;
        hub.check(|one| one == audience, now)?;
        Ok(hub.caller)
    }

    /// Whether what was checked once was checked against what is in force, and not long ago. A clock that was set back
    /// makes the age negative.
    fn counts(&self, known: &Known, issuers: &Issuers, now: i64) -> bool {
        let recent = (0..CHECKED).contains(&now.saturating_sub(known.checked));
        let pinned = Arc::ptr_eq(&known.pinned, &self.pinned.load());
        let listed = |issuer: &Arc<Issuer>| issuers.0.iter().any(|one| Arc::ptr_eq(one, issuer));
        let proven = known.attested.as_ref();
        recent && pinned && proven.is_none_or(|by| listed(&by.issuer) && by.issuer.holds(&by.keys))
    }

    /// Puts new keys of the hub in force, if a pinned one has signed them, and pins them. Blocks.
    pub(crate) fn adopt(&self, announcements: &[String], now: i64) {
        let pinned = self.pinned.load_full();
        match pinned.after(announcements.iter().map(String::as_str), now) {
            Ok(None) => {}
            Ok(Some(next)) => {
                let written = self.dir.write(SetupFile::HubIdentity, &format!("{}\n", next.document()));
                tracing::info!(keys = next.len(), "the hub's keys have changed, by the word of a pinned one");
                if let Err(error) = written {
                    tracing::warn!(
                        %error,
                        "the new keys are in force, but cannot be pinned: after a restart the hub has to tell them again"
                    );
                }
                self.pinned.store(Arc::new(next));
                metrics::counter!("sortie_gateway_identity_keys_total", "result" => "changed").increment(1);
            }
            Err(error) => {
                metrics::counter!("sortie_gateway_identity_keys_total", "result" => "refused").increment(1);
                tracing::error!(
                    "{error}; the pinned keys stay in force. If the hub was set up anew, run sortie setup init again and \
                     restart the gateway"
                );
            }
        }
    }
}

impl Known {
    /// What changes between two uses: the route and the time.
    fn check(&self, route: &Route, now: i64) -> Result<(), Unknown> {
        self.hub.check(|audience| audience == route.host, now)?;
        match &self.attested {
            None => Ok(()),
            Some(by) if !by.issuer.config.covers(&route.name) => Err(Unknown::Issuer),
            Some(by) => by.token.check(|audience| by.issuer.fits(audience, route), now),
        }
    }
}

/// The hub's word, which is given once.
fn one(headers: &HeaderMap) -> Result<&[u8], Unknown> {
    let mut values = headers.get_all(IDENTITY_HEADER).iter();
    let word = values.next().ok_or(Unknown::Missing)?;
    if values.next().is_some() {
        return Err(Unknown::Repeated);
    }
    Ok(word.as_bytes())
}

/// A caller that an issuer has proven, by the way of one that the hub has seen. Whose workspace it is and by which key is
/// the hub's to say; who calls is the issuer's.
fn together(hub: &Caller, attested: &Caller) -> Caller {
    let mut caller = Caller { assurance: Assurance::Attested, ..attested.clone() };
    caller.actors.insert(0, hub.subject.clone());
    caller.organization = hub.organization.clone();
    caller.workspace = hub.workspace.clone();
    caller.key = hub.key.clone();
    caller.session = caller.session.or_else(|| hub.session.clone());
    caller.tool_use = caller.tool_use.or_else(|| hub.tool_use.clone());
    caller.region = caller.region.or_else(|| hub.region.clone());
    caller.expires = caller.expires.min(hub.expires);
    caller
}
