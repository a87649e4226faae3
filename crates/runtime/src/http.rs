//! The bounds of HTTP that every server and client of ours sets, with their reasons, in one place. A library's default
//! is not a decision, and may change with its next version. And what hub and gateway share of making HTTP move: how hyper
//! spawns, and connections that their caller drives.
//!
//! What is absent on purpose: PINGs of HTTP/2 that end a connection without an answer. A client that is paused is not
//! dead, and its call has no time limit; machines that went away are found by TCP ([`crate::notice_absence`]).

mod driven;
mod executor;

use std::time::Duration;

pub use driven::{Carrier, Driven, DrivenBody, Outgoing, Sending, Wire};
pub use executor::InTasks;

/// Names and values of the headers of one message, in bytes. HTTP/1 reads up to this much before it gives up on a head.
pub const MAX_HEAD: usize = 64 * 1024;
/// The same, for settings of HTTP/2.
pub const MAX_HEAD_U32: u32 = 64 * 1024;
/// Header lines of one message that comes from outside. MCP needs a dozen.
pub const MAX_HEADERS: usize = 100;
/// Header lines of one message between hub and gateway, and towards upstreams: those from outside and ours.
pub const MAX_INNER_HEADERS: usize = MAX_HEADERS + 28;
/// The largest head of an answer that a gateway passes on, in bytes.
pub const MAX_ANSWER_HEAD: usize = 128 * 1024;
/// The same, for settings of HTTP/2.
pub const MAX_ANSWER_HEAD_U32: u32 = 128 * 1024;
/// How long a client may take for its TLS handshake, and for the head of each request over HTTP/1.
pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Concurrent requests on one HTTP/2 connection; further ones are refused by HTTP/2, unprocessed.
pub const MAX_STREAMS: u32 = 256;
/// Bytes of one HTTP/2 request that may wait here to be read: what one upload that nobody takes can make us hold.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for all requests of a connection together: so large that uploads that nobody takes never stop the others.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS;
/// Bytes of one HTTP/2 answer that may wait here for a slow reader, or for one that opens no window at all.
pub const MAX_SEND_BUFFER: usize = 64 * 1024;
/// Largest HTTP/2 frame that is read: the smallest that may be offered (RFC 9113, section 6.5.2), since each is read
/// whole.
pub const MAX_FRAME: u32 = 16 * 1024;
/// Streams that a client has opened and reset again before they were looked at (CVE-2023-44487); beyond it the
/// connection ends with ENHANCE_YOUR_CALM.
pub const MAX_UNSEEN_RESETS: usize = 32;
/// Streams that had to be reset here for a client's mistakes; beyond it the connection ends likewise.
pub const MAX_MISTAKES: usize = 128;
/// Requests on one connection that were given up by their client within [`GIVEN_UP_WITHIN`]. Each costs a call that was
/// for nothing; beyond it the connection is closed.
pub const MAX_GIVEN_UP: usize = 512;
/// See [`MAX_GIVEN_UP`].
pub const GIVEN_UP_WITHIN: Duration = Duration::from_secs(10);

/// Interim answers (1xx) to one request. They are read and dropped, which nobody's slowness holds back, so that a server
/// could make us do nothing else.
pub const MAX_INTERIM: usize = 64;
