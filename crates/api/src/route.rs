//! Routes that connected gateways serve.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::{RouteName, TunnelId};

/// A route of a tunnel, as a connected gateway announced it. An item of `GET /v1/sortie/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "route")]
#[schemars(rename = "Route", transform = crate::schema::typed("route"))]
pub struct Route {
    /// The tunnel.
    pub tunnel_id: TunnelId,
    /// The route's name.
    pub name: RouteName,
    /// `terminated`: the hub authenticates callers. `sealed`: the gateway ends the client's own TLS.
    pub mode: String,
    /// Base URL by hostname, without the MCP server's path.
    pub url: String,
    /// Base path on the API's own listener; absent for a sealed route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// How many connected gateways serve it.
    pub gateways: usize,
}
