//! Connectors that Sortie brings along: each puts one kind of private resource behind an MCP server that lives inside
//! the gateway's process.
//!
//! A connector is a value with one async function from an HTTP request to an HTTP response. It opens no port, knows
//! no route, no caller and no policy (the gateway decides about those before it calls), and it must never reach beyond
//! the resource that it was given. Its tasks end when its last clone is dropped.

pub mod files;
