//! The keys that the hub signs callers' identities with.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The body of `POST /v1/sortie/identity/rotate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateIdentity {
    /// In how many seconds the new key begins to sign: time for gateways, and for those who read the published keys, to
    /// learn of it. At most 86400; 300 when absent.
    #[serde(default = "default_after")]
    #[schemars(range(max = 86400))]
    pub after_seconds: u32,
}

impl RotateIdentity {
    /// Longest wait before a new key signs, in seconds.
    pub const MAX_AFTER: u32 = 86_400;
}

impl Default for RotateIdentity {
    fn default() -> Self {
        Self { after_seconds: default_after() }
    }
}

fn default_after() -> u32 {
    300
}

/// A change of keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "identity_rotation")]
#[schemars(rename = "IdentityRotation", transform = crate::schema::typed("identity_rotation"))]
pub struct IdentityRotation {
    /// The name of the new key.
    pub kid: String,
    /// From when on it signs.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub signs_from: Timestamp,
    /// The name of the old key.
    pub old_kid: String,
    /// Until when the old one verifies. No other change can begin before.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub old_verifies_until: Timestamp,
}
