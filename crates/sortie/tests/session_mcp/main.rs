//! What sessions reach of MCP servers: a hub in this process, asked as sessions ask it; gateways and servers are programs.

#![allow(clippy::indexing_slicing, reason = "a missing part of an answer is a failure")]

#[path = "../interop/mod.rs"]
mod interop;

mod credentials;
mod elsewhere;
mod sessions;
mod tunnels;
mod world;
