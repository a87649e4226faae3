//! The Model Context Protocol as Sortie needs it: a client for the command line, and the few looks that the proxy
//! takes at what it forwards.
//!
//! [`envelope`] is pure: bytes in, values out, safe on hostile input. [`client`] dials one MCP endpoint, lists or
//! calls its tools and closes. Neither changes a message that is only passing through, and a tool call that may have
//! run is never sent again.

pub mod client;
pub mod envelope;
pub mod message;
