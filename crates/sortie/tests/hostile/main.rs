//! What an attacker can send: raw bytes on the API's and the edge's port, raw bytes of an MCP server. Each test says what
//! the attack is answered with, that others are served meanwhile, that memory stays bounded, and what the upstream saw.

#![expect(clippy::indexing_slicing, reason = "bytes are taken apart by hand; out of bounds is a failed test")]

#[path = "../e2e/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the harness of all end-to-end tests, of which each binary uses a part")]
mod common;

mod answers;
mod bodies;
mod floods;
mod frames;
mod gateways;
mod http1;
mod http2;
mod names;
mod places;
mod recorder;
mod support;
