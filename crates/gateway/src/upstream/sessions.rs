//! Which server of several a session lives on.

use std::sync::{Mutex, MutexGuard, PoisonError};

use sortie_ids::{Digest, Recent};

/// Most sessions of a route that are remembered; beyond them, those not used for longest are forgotten, and their next
/// call goes to the first server that can be connected.
const MOST: usize = 20_000;
/// No time passes here.
const NOW: i64 = 0;

/// What a session is known by: not the id itself, which lets its holder act in the session, and may be long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionKey(Digest);

impl SessionKey {
    /// By the value of `Mcp-Session-Id`.
    pub(crate) fn of_id(id: &[u8]) -> Self {
        Self(Digest::of_parts(&[b"id", id]))
    }

    /// By the path and query that the legacy transport told the client to POST to.
    pub(crate) fn of_endpoint(path_and_query: &str) -> Self {
        Self(Digest::of_parts(&[b"endpoint", path_and_query.as_bytes()]))
    }
}

/// Where sessions live, by the server's number.
pub(crate) struct Sessions(Mutex<Recent<Digest, usize>>);

impl Default for Sessions {
    fn default() -> Self {
        Self(Mutex::new(Recent::new(MOST, i64::MAX)))
    }
}

impl Sessions {
    /// The server of a session.
    pub(crate) fn find(&self, key: SessionKey) -> Option<usize> {
        self.lock().get(&key.0, NOW)
    }

    /// Remembers a session.
    pub(crate) fn keep(&self, key: SessionKey, server: usize) {
        self.lock().put(key.0, server, NOW);
    }

    /// The same sessions where servers have new numbers; those of servers that are gone are left out.
    pub(crate) fn renumbered(&self, number: impl Fn(usize) -> Option<usize>) -> Self {
        Self(Mutex::new(self.lock().map(number)))
    }

    fn lock(&self) -> MutexGuard<'_, Recent<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_may_get_new_numbers() {
        let (one, two) = (SessionKey::of_id(b"1"), SessionKey::of_id(b"2"));
        let sessions = Sessions::default();
        sessions.keep(one, 0);
        sessions.keep(two, 1);
        let moved = sessions.renumbered(|server| (server == 1).then_some(5));
        assert_eq!((moved.find(one), moved.find(two)), (None, Some(5)));
    }

    #[test]
    fn an_id_is_not_an_endpoint() {
        assert_ne!(SessionKey::of_id(b"/m"), SessionKey::of_endpoint("/m"));
    }
}
