//! The Model Context Protocol as Sortie needs it: a client for the command line, and the few looks that the proxy
//! takes at what it forwards.
//!
//! [`message`] reads a request body strictly, [`list`] the lists in an answer, [`mirror`] compares a request with its
//! head, [`envelope`] finds the id to answer with: all pure, bytes in, values out, safe on hostile input. [`client`] dials
//! one MCP endpoint, lists or calls its tools and closes; [`remote`] goes on using one, over whatever carries requests there.
//! A tool call that may have run is never sent again.

pub mod client;
pub mod envelope;
pub mod list;
pub mod message;
pub mod mirror;
pub mod remote;
