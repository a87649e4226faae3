//! A small, honest MCP server for tests and benchmarks. It serves both protocol eras at one URL: the handshake with
//! sessions of 2025-11-25 and before, and the stateless requests of 2026-07-28; over HTTP or over standard input and
//! output. It checks what a strict server checks (headers against body, sessions, versions, loopback `Host` and
//! `Origin`), and writes down what happened to each call, so that a test can see a cancel arrive.
//!
//! What it leaves out: prompts, resources, sampling, resumption (a stream that breaks is gone), batches.
//!
//! | Tool | Arguments | What it does |
//! |---|---|---|
//! | `echo` | `text` | answers with the text |
//! | `slow` | `ms` | answers after so many milliseconds |
//! | `progress` | `count`, `interval_ms` | streams so many `notifications/progress`, then answers |
//! | `announce` | `text` | sends `notifications/message` on the GET stream of the session, then answers |
//! | `headers` | | answers with the request's HTTP headers as a JSON object |
//! | `log` | | answers with the events so far, a JSON array |
//! | `fail` | | answers with `isError: true` |
//!
//! Outside MCP: `GET /small` (a JSON body of 113 bytes), `GET /bytes?n=` (so many bytes, streamed in chunks of 64 KiB),
//! `GET /log` (the events). MCP answers at `/mcp`.

mod endpoint;
mod events;

mod session;
mod stdio;
mod tools;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use events::Event;
pub use stdio::serve_stdio;

use events::Events;

/// The newest protocol version with a handshake that the server speaks.
pub const LEGACY_VERSION: &str = "2025-11-25";
/// The stateless protocol version that the server speaks.
pub const MODERN_VERSION: &str = "2026-07-28";
/// What `GET /small` answers with: 113 bytes of JSON, as the benchmark's nginx does.
pub const SMALL_BODY: &str = concat!(
    r#"{"jsonrpc":"2.0","id":1,"result":{"content":[{"type":"text","text":"#,
    r#""hi from the private side"}],"isError":false}}"#
);

/// The server over HTTP within the test's own process, on a free loopback port. Dropping it ends it and its
/// connections.
#[derive(Debug)]
pub struct EchoServer {
    addr: SocketAddr,
    events: Arc<Events>,
    _tasks: JoinSet<()>,
}

impl EchoServer {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// Those of binding a socket.
    pub async fn start() -> io::Result<Self> {
        Self::bind((Ipv4Addr::LOCALHOST, 0).into(), None).await
    }

    /// Starts it on this address; with `log`, each event is also appended to that file, one JSON object per line.
    ///
    /// # Errors
    /// Those of binding a socket and of opening the file.
    pub async fn bind(addr: SocketAddr, log: Option<&Path>) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let events = Arc::new(Events::open(log)?);
        let mut tasks = JoinSet::new();
        tasks.spawn(endpoint::serve(listener, Arc::clone(&events)));
        Ok(Self { addr, events, _tasks: tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The URL of its MCP endpoint.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.addr)
    }

    /// What happened so far (the newest 1,000 events), oldest first.
    pub fn events(&self) -> Vec<Event> {
        self.events.all()
    }

    /// The object that the program writes to its ready file.
    pub fn ready(&self) -> Value {
        serde_json::json!({ "url": self.url(), "addr": self.addr.to_string(), "pid": std::process::id() })
    }
}

#[cfg(test)]
mod tests;
