//! The server on standard input and output: one message per line, requests answered as they finish, end of input is
//! the end. A request with a protocol version in its `_meta` is modern, any other legacy.

use std::io;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::MODERN_VERSION;
use super::events::Events;
use super::session::Sessions;
use super::tools::{Caller, Server, waits};
use super::wire::{Era, INVALID_REQUEST, Message, PARSE_ERROR, Reply};

/// Messages that wait for a slow reader before requests wait, too.
const QUEUE: usize = 256;
/// The one session of a process on standard input and output.
const SESSION: &str = "";

/// Serves until the end of the input; with `log`, events are appended to that file as JSON lines.
///
/// # Errors
/// Those of reading, writing and opening the file.
pub async fn serve_stdio(
    input: impl AsyncBufRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
    log: Option<&std::path::Path>,
) -> io::Result<()> {
    let server = Arc::new(Server { events: Arc::new(Events::open(log)?), sessions: Sessions::default() });
    server.sessions.open(SESSION);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut writing = JoinSet::new();
    writing.spawn(write_all(output, receiver));
    let mut calls = JoinSet::new();
    let mut lines = input.lines();
    while let Some(line) = lines.next_line().await? {
        if line.trim().is_empty() {
            continue;
        }
        while calls.try_join_next().is_some() {}
        let message = match serde_json::from_str::<Message>(&line) {
            Ok(message) => message,
            Err(error) => {
                let reply = Reply::error(PARSE_ERROR, format!("Parse error: {error}"));
                let _ended = sender.send(reply.response(&Value::Null)).await;
                continue;
            }
        };
        if let Some(reply) = take(&server, message, &sender, &mut calls)
            && sender.send(reply).await.is_err()
        {
            break;
        }
    }
    calls.shutdown().await;
    drop(sender);
    match writing.join_next().await {
        Some(Ok(written)) => written,
        _ => Err(io::Error::other("the writer ended early")),
    }
}

/// The reply to a message, when it has one now; a call that waits is spawned and answers later.
fn take(server: &Arc<Server>, message: Message, out: &mpsc::Sender<Value>, calls: &mut JoinSet<()>) -> Option<Value> {
    let method = message.method.clone()?;
    let Some(id) = message.id.clone() else {
        if method == "notifications/cancelled" {
            let request = message.params.get("requestId").unwrap_or(&Value::Null);
            server.sessions.cancel(SESSION, request);
        }
        return None;
    };
    if message.jsonrpc != "2.0" || id.is_null() {
        return Some(Reply::error(INVALID_REQUEST, "Invalid request").response(&id));
    }
    let era = if message.meta_version().is_some() { Era::Modern } else { Era::Legacy };
    if let Some(version) = message.meta_version().filter(|version| *version != MODERN_VERSION) {
        return Some(Reply::unsupported(version).response(&id));
    }
    let caller = Caller { era, session: Some(SESSION.to_owned()), headers: Value::Null };
    if !waits(&message) {
        return Some(server.answer(&message, &caller).response(&id));
    }
    let cancel = server.begin(&message, &caller);
    let (server, out) = (Arc::clone(server), out.clone());
    calls.spawn(async move {
        if let Some(reply) = server.wait(&message, &caller, cancel, out.clone()).await {
            let _ended = out.send(reply.response(&id)).await;
        }
    });
    None
}

async fn write_all(mut output: impl AsyncWrite + Unpin, mut messages: mpsc::Receiver<Value>) -> io::Result<()> {
    while let Some(message) = messages.recv().await {
        let mut line = message.to_string();
        line.push('\n');
        output.write_all(line.as_bytes()).await?;
        output.flush().await?;
    }
    Ok(())
}
