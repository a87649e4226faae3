//! Commands of an operator: each is a few calls of the hub's API.

pub(crate) mod agents;
pub(crate) mod approvals;
pub(crate) mod certs;
mod environment;
pub(crate) mod environments;
pub(crate) mod keys;
pub(crate) mod mcp;
pub(crate) mod resources;
pub(crate) mod routes;
pub(crate) mod sessions;
pub(crate) mod tools;
pub(crate) mod tunnels;
pub(crate) mod vaults;
pub(crate) mod workspaces;

use jiff::Timestamp;

/// A time in a table; a dash for none.
fn time(at: Option<Timestamp>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.to_string())
}

/// A text in a table; a dash for none.
fn text(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}
