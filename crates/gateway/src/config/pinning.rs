//! `pinning`: whose word counts for what a server says of its tools.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens to definitions of tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pinning {
    /// They pass as they come.
    Off,
    /// The first one that is seen counts; another one is held back until a person approves it.
    #[default]
    FirstUse,
    /// Each is held back until a person approves it.
    Approve,
}
