//! What happened to the calls, for tests to look at.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Events that are kept; older ones are dropped.
const KEPT: usize = 1000;

/// One thing that happened. `echo` calls are not written down, for they are what benchmarks call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `started`, `finished`, `cancelled` (by `notifications/cancelled`, or in the modern era by the client closing
    /// the stream), `disconnected` (a legacy client closed the stream, which is no cancel), `session-started`,
    /// `session-ended`, `stream-opened`, `stream-closed` (the GET stream).
    pub event: String,
    /// The tool, where it is about a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The JSON-RPC id, where it is about a call.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub id: Value,
    /// The session, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

impl Event {
    /// An event without any detail.
    pub(super) fn new(event: &str) -> Self {
        Self { event: event.to_owned(), tool: None, id: Value::Null, session: None }
    }

    /// With the session that it is about.
    pub(super) fn session(mut self, session: Option<&str>) -> Self {
        self.session = session.map(str::to_owned);
        self
    }
}

/// The bounded list of events, and the file that they are appended to.
#[derive(Debug, Default)]
pub(super) struct Events {
    kept: Mutex<VecDeque<Event>>,
    file: Option<Mutex<File>>,
}

impl Events {
    pub(super) fn open(file: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().create(true).append(true).open(path).map(Mutex::new);
        Ok(Self { kept: Mutex::default(), file: file.map(open).transpose()? })
    }

    pub(super) fn add(&self, event: Event) {
        if let (Some(file), Ok(mut line)) = (&self.file, serde_json::to_vec(&event)) {
            line.push(b'\n');
            // A test that waits for this line fails by itself when the disk is full.
            let _lost = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line);
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
    }

    pub(super) fn all(&self) -> Vec<Event> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
