//! The control stream, the same on both ends.

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use serde::Serialize;
use sortie_runtime::TaskSet;
use tokio::sync::mpsc;

use crate::protos::{Lines, line};

/// Why the control stream broke.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// HTTP/2 ended it.
    #[error("HTTP/2 ended it")]
    Http2(#[from] h2::Error),
    /// The peer wrote without bounds.
    #[error("{0}")]
    Line(&'static str),
}

/// Reads lines.
pub(crate) struct ControlReader {
    receive: RecvStream,
    lines: Lines,
}

impl ControlReader {
    pub(crate) fn new(receive: RecvStream) -> Self {
        Self { receive, lines: Lines::default() }
    }

    /// The next line; `None` at the end of the stream. Cancel-safe: a line begun stays in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ControlError> {
        loop {
            if let Some(text) = self.lines.pop() {
                return Ok(Some(text));
            }
            let Some(chunk) = self.receive.data().await else { return Ok(None) };
            let chunk = chunk?;
            let _ = self.receive.flow_control().release_capacity(chunk.len());
            self.lines.push(&chunk).map_err(ControlError::Line)?;
        }
    }
}

/// Writes messages as lines until the queue or the stream ends. Takes the next message only when the peer has made room
/// for the last one: what is given to HTTP/2 without room would wait there, in memory and without bound.
pub(crate) async fn write_control<M: Serialize>(mut send: SendStream<Bytes>, mut outgoing: mpsc::Receiver<M>) {
    while let Some(message) = outgoing.recv().await {
        let mut rest = line(&message);
        while !rest.is_empty() {
            send.reserve_capacity(rest.len());
            let room = send.capacity();
            if room == 0 {
                let Some(Ok(_)) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return };
                continue;
            }
            let piece = rest.split_to(room.min(rest.len()));
            if send.send_data(piece, false).is_err() {
                return;
            }
        }
    }
}

/// Ends a connection whose set-up failed half-way.
pub(crate) struct AbortOnDrop(Option<TaskSet>);

impl AbortOnDrop {
    pub(crate) fn new(tasks: TaskSet) -> Self {
        Self(Some(tasks))
    }

    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(tasks) = &self.0 {
            tasks.abort();
        }
    }
}
