//! Whose an MCP session is. A session id is a bearer secret of its server; here it is good only for the caller and the
//! route that got it.
//!
//! A session belongs to whom the upstream gave it. One that was never seen (this process is younger than it) belongs to
//! whoever uses it first. For anybody else it does not exist, which is what 404 says to a client of MCP: it then begins a
//! session of its own. Only digests are kept. The time is an argument.
//!
//! Bounded: at most [`MOST`] sessions that were given, and as many that were only seen, so that made-up ids displace no
//! real ones. Beyond that, and after 12 to 24 hours without use, the least recently used are forgotten, and belong to
//! their next user.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, HeaderName, Method, StatusCode};
use sortie_api::{Hop, HopError};
use sortie_ids::{Digest, Recent};

use crate::routes::Route;

/// The header with the id of a session (MCP 2025-03-26 to 2025-11-25, transports, section "Session Management").
pub(crate) const SESSION_HEADER: HeaderName = HeaderName::from_static("mcp-session-id");

/// Most sessions of either kind.
const MOST: usize = 100_000;
/// How long a session is kept without use, at least, in seconds; at most twice that.
const IDLE: i64 = 12 * 3600;

/// Who is calling, as far as sessions are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caller(Digest);

impl Caller {
    /// What tells this caller from others.
    pub(crate) fn digest(self) -> Digest {
        self.0
    }
}

impl From<&sortie_identity::Caller> for Caller {
    fn from(caller: &sortie_identity::Caller) -> Self {
        Self(caller.digest())
    }
}

/// The session that a request names.
#[derive(Clone, Copy)]
pub(crate) struct Named {
    session: Digest,
    owner: Digest,
    /// It was not known before.
    new: bool,
}

/// All sessions of this gateway.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<Both>);

/// The owners of sessions.
struct Both {
    given: Recent<Digest, Digest>,
    seen: Recent<Digest, Digest>,
}

impl Default for Both {
    fn default() -> Self {
        Self { given: Recent::new(MOST, IDLE), seen: Recent::new(MOST, IDLE) }
    }
}

impl Sessions {
    /// The session that a request names, if the caller may use it.
    ///
    /// # Errors
    /// 400 if it names more than one; 404 if the session is somebody else's, or another route's.
    pub(crate) fn admit(
        &self,
        route: &Route,
        caller: Caller,
        headers: &HeaderMap,
        now: i64,
    ) -> Result<Option<Named>, HopError> {
        let mut ids = headers.get_all(SESSION_HEADER).iter();
        let Some(id) = ids.next() else { return Ok(None) };
        if ids.next().is_some() {
            let error = HopError::new(Hop::Route, "Mcp-Session-Id is given more than once");
            return Err(error.with_status(StatusCode::BAD_REQUEST));
        }
        let session = session(route, id.as_bytes());
        let owner = owner(route, caller);
        let mut both = self.lock();
        let known = both.given.get(&session, now).or_else(|| both.seen.get(&session, now));
        match known {
            Some(known) if known == owner => Ok(Some(Named { session, owner, new: false })),
            Some(_) => {
                let error = HopError::new(Hop::Route, "this caller has no such session on this route; begin a new one");
                Err(error.with_status(StatusCode::NOT_FOUND))
            }
            None => {
                both.seen.put(session, owner, now);
                Ok(Some(Named { session, owner, new: true }))
            }
        }
    }

    /// Learns from an upstream's answer: a session was given, has ended, or never was.
    pub(crate) fn answered<B>(
        &self,
        route: &Route,
        caller: Caller,
        named: Option<Named>,
        method: &Method,
        answer: &http::Response<B>,
        now: i64,
    ) {
        let status = answer.status();
        if let Some(named) = named {
            let ended = method == Method::DELETE && (status.is_success() || status == StatusCode::NOT_FOUND);
            if ended || named.new && status.is_client_error() {
                self.lock().forget(named.session);
                return;
            }
        }
        if status.is_success() {
            let owner = || named.map_or_else(|| owner(route, caller), |named| named.owner);
            for id in answer.headers().get_all(SESSION_HEADER) {
                // Whoever gets it now has it: a server that begins to count anew gives old ids to new callers.
                let mut both = self.lock();
                let session = session(route, id.as_bytes());
                both.seen.remove(&session);
                both.given.put(session, owner(), now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Both> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Both {
    fn forget(&mut self, session: Digest) {
        self.given.remove(&session);
        self.seen.remove(&session);
    }
}

/// A session is its upstream's: two routes to one server see one session, two servers may give one id.
fn session(route: &Route, id: &[u8]) -> Digest {
    Digest::of_parts(&[route.session_scope.as_bytes(), id])
}

fn owner(route: &Route, caller: Caller) -> Digest {
    Digest::of_parts(&[route.name.as_str().as_bytes(), caller.0.as_bytes()])
}
