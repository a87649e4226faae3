//! Checkpoints of gateways' audit logs, as they were published.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A signed checkpoint of a gateway's audit log, as the gateway published it. An item of
/// `GET /v1/sortie/tunnels/{tunnel_id}/checkpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "checkpoint")]
#[schemars(rename = "Checkpoint", transform = crate::schema::typed("checkpoint"))]
pub struct PublishedCheckpoint {
    /// The name of the log.
    pub origin: String,
    /// The key that signed it: NAME+HASH+KEY, as C2SP signed-note writes it.
    pub key: String,
    /// How many records it stands for.
    pub size: u64,
    /// The root of their tree (RFC 6962), 64 hexadecimal digits.
    pub root: String,
    /// The signed note (C2SP tlog-checkpoint).
    pub note: String,
    /// Whether the gateway proved that it continues the one before it; the first of a log continues none.
    pub proven: bool,
    /// Why the hub refused it, if it did: it contradicts an earlier one of the same log.
    #[serde(default)]
    pub refused: Option<String>,
    /// When it came, in whole seconds.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub received_at: Timestamp,
}
