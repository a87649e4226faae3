//! The outbound link: both ends of the one connection that a gateway holds to an edge.
//!
//! The gateway dials TLS 1.3 with the ALPN [`ALPN`]; then HTTP/2 (RFC 9113) runs over it with the roles reversed: the
//! dialler is the HTTP/2 server, so that the edge opens streams. The first stream is *control*: both hellos, the
//! verdict on the token, then probes and drain notices as lines of JSON ([`protos`]). Every other stream is a CONNECT
//! (RFC 9113, 8.5) that carries **one TLS connection** whose other end the edge cannot read: either the hub's inner TLS
//! or a client's own.
//!
//! This crate never sees a plaintext call, and trusts nothing of its peer: every length, count and wait is bounded. A
//! link over which nothing has been heard for [`DEAD_AFTER`] is dead, on both sides, whatever TCP believes.
//!
//! Both ends are generic over the byte stream beneath. Their tasks end when the link ends; `close`, or aborting the task
//! set that was passed in, ends the link.

mod control;
mod edge;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gateway;
mod liveness;
pub mod protos;
mod stream;

pub use control::ControlError;
pub use edge::{AcceptError, EdgeLink, OpenError, Welcome, accept};
pub use gateway::{Call, EstablishError, Event, GatewayLink, Teller, establish};
pub use liveness::DEAD_AFTER;
pub use stream::LinkStream;

/// The ALPN protocol (RFC 7301) that tells a link from everything else on the edge's port.
pub const ALPN: &[u8] = b"sortie-link/1";

/// Flow-control window of one stream, in bytes: what one slow reader can make the peer hold.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Window of the whole link: so large that only the windows of streams ever hold traffic back, since otherwise a few
/// slow readers would stop all others.
const LINK_WINDOW: u32 = 1 << 30;
/// Frames of this size carry four TLS records each; larger ones would hold up the streams beside.
const MAX_FRAME: u32 = 64 * 1024;
/// Streams open at once on one link: times the window of a stream, 256 KiB, what a link can hold in memory.
pub const MAX_STREAMS: u32 = 4096;
/// Bytes of headers on one stream.
const MAX_HEADERS: u32 = 8 * 1024;
/// Streams that the edge may reset before the gateway has seen them end: callers that hang up in a crowd are normal.
const MAX_RESETS: usize = 1024;
