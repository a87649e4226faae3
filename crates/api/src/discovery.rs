//! What a program needs to find the rest of an installation, once it can reach the API.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The answer of `GET /v1/sortie/discovery`. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "discovery")]
#[schemars(rename = "Discovery", transform = crate::schema::typed("discovery"))]
pub struct Discovery {
    /// The domain that tunnel domains end with.
    pub base_domain: String,
    /// Where gateways open links, `host:port`.
    pub edge_addr: String,
    /// The CA certificate (PEM) that the edge's own certificate is signed by; empty when it is publicly trusted.
    pub edge_ca_pem: String,
    /// The keys (RFC 7517, section 5) that callers' identities are signed with; a gateway pins them.
    pub identity_jwks: serde_json::Value,
    /// The version of this API that the hub speaks.
    pub api_version: String,
}
