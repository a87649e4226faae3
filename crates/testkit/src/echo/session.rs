//! Sessions of the legacy era: which exist, their GET stream, and the calls under way in them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Sessions that may exist at once; more are refused.
const SESSIONS: usize = 20_000;
/// Messages that wait for the reader of a GET stream; more are dropped.
const STREAM_QUEUE: usize = 64;

/// All sessions of a server. Standard input and output is one session, named by the empty string.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: Mutex<HashMap<String, Session>>,
}

#[derive(Debug, Default)]
struct Session {
    stream: Option<mpsc::Sender<Value>>,
    calls: HashMap<String, CancellationToken>,
}

/// The session has a GET stream already.
#[derive(Debug)]
pub(super) struct StreamTaken;

impl Sessions {
    /// A new session; `None` when there are too many.
    pub(super) fn start(&self) -> Option<String> {
        let id = uuid::Uuid::now_v7().simple().to_string();
        self.open(&id).then_some(id)
    }

    /// Opens a session under a given name.
    pub(super) fn open(&self, id: &str) -> bool {
        let mut open = self.lock();
        if open.len() >= SESSIONS {
            return false;
        }
        open.insert(id.to_owned(), Session::default());
        true
    }

    pub(super) fn exists(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// Ends a session and cancels its calls. `false` when there is none.
    pub(super) fn end(&self, id: &str) -> bool {
        match self.lock().remove(id) {
            Some(session) => {
                session.calls.values().for_each(CancellationToken::cancel);
                true
            }
            None => false,
        }
    }

    /// Opens the GET stream of a session that exists: what is sent to the session arrives there.
    pub(super) fn stream(&self, id: &str) -> Result<mpsc::Receiver<Value>, StreamTaken> {
        let (sender, receiver) = mpsc::channel(STREAM_QUEUE);
        let mut open = self.lock();
        let session = open.get_mut(id).ok_or(StreamTaken)?;
        if session.stream.as_ref().is_some_and(|stream| !stream.is_closed()) {
            return Err(StreamTaken);
        }
        session.stream = Some(sender);
        Ok(receiver)
    }

    /// Sends a message on the session's GET stream. `false` when there is none or its reader is slow.
    pub(super) fn send(&self, id: &str, message: Value) -> bool {
        let open = self.lock();
        let stream = open.get(id).and_then(|session| session.stream.as_ref());
        stream.is_some_and(|stream| stream.try_send(message).is_ok())
    }

    /// Writes down a call, so that it can be cancelled.
    pub(super) fn call(&self, id: &str, request: &Value) -> CancellationToken {
        let token = CancellationToken::new();
        if let Some(session) = self.lock().get_mut(id) {
            session.calls.insert(request.to_string(), token.clone());
        }
        token
    }

    /// Forgets a call that is over.
    pub(super) fn done(&self, id: &str, request: &Value) {
        if let Some(session) = self.lock().get_mut(id) {
            session.calls.remove(&request.to_string());
        }
    }

    /// Cancels a call of this session; one that is over or of another session is left alone.
    pub(super) fn cancel(&self, id: &str, request: &Value) {
        if let Some(call) = self.lock().get(id).and_then(|session| session.calls.get(&request.to_string())) {
            call.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Session>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
