//! Which server of several a session lives on.

use std::collections::HashMap;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

/// Sessions in one generation. With the one before it, a route remembers at most twice as many; beyond them, those not
/// used for longest are forgotten, and their next call goes to the first server that can be connected.
const GENERATION: usize = 10_000;

/// What a session is known by: not the id itself, which lets its holder act in the session, and may be long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey([u8; 32]);

impl SessionKey {
    /// By the value of `Mcp-Session-Id`.
    pub(crate) fn of_id(id: &[u8]) -> Self {
        Self::digest(b"id", id)
    }

    /// By the path and query that the legacy transport told the client to POST to.
    pub(crate) fn of_endpoint(path_and_query: &str) -> Self {
        Self::digest(b"endpoint", path_and_query.as_bytes())
    }

    fn digest(kind: &[u8], value: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(kind);
        context.update(&[0]);
        context.update(value);
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

/// Where sessions live, by the server's number.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<SessionKey, usize>,
    old: HashMap<SessionKey, usize>,
}

impl Sessions {
    /// The server of a session.
    pub(crate) fn find(&self, key: SessionKey) -> Option<usize> {
        let mut generations = self.lock();
        if let Some(server) = generations.young.get(&key) {
            return Some(*server);
        }
        let server = generations.old.remove(&key)?;
        generations.keep(key, server);
        Some(server)
    }

    /// Remembers a session.
    pub(crate) fn keep(&self, key: SessionKey, server: usize) {
        self.lock().keep(key, server);
    }

    /// The same sessions where servers have new numbers; those of servers that are gone are left out.
    pub(crate) fn renumbered(&self, number: impl Fn(usize) -> Option<usize>) -> Self {
        let generations = self.lock();
        let renumber = |map: &HashMap<SessionKey, usize>| {
            map.iter().filter_map(|(key, server)| Some((*key, number(*server)?))).collect()
        };
        let (young, old) = (renumber(&generations.young), renumber(&generations.old));
        Self(Mutex::new(Generations { young, old }))
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn keep(&mut self, key: SessionKey, server: usize) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> SessionKey {
        SessionKey::of_id(number.to_string().as_bytes())
    }

    #[test]
    fn sessions_in_use_are_remembered_and_the_table_is_bounded() {
        let sessions = Sessions::default();
        sessions.keep(key(0), 7);
        for number in 1..5 * GENERATION {
            sessions.keep(key(number), number % 3);
            assert_eq!(sessions.find(key(0)), Some(7), "used all the time");
        }
        assert_eq!(sessions.find(key(1)), None, "unused for longest");
        assert_eq!(sessions.find(key(5 * GENERATION - 1)), Some((5 * GENERATION - 1) % 3));
        let generations = sessions.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn servers_may_get_new_numbers() {
        let sessions = Sessions::default();
        sessions.keep(key(1), 0);
        sessions.keep(key(2), 1);
        let moved = sessions.renumbered(|server| (server == 1).then_some(5));
        assert_eq!((moved.find(key(1)), moved.find(key(2))), (None, Some(5)));
    }

    #[test]
    fn an_id_is_not_an_endpoint() {
        assert_ne!(SessionKey::of_id(b"/m"), SessionKey::of_endpoint("/m"));
    }
}
