//! How a hub is set up.

use std::net::SocketAddr;
use std::path::PathBuf;

use sortie_api::Limits;
use sortie_ids::BaseDomain;
use sortie_store::DatabaseUrl;

use crate::audit::AuditConfig;
use crate::mcp::McpConfig;

/// How a hub is set up.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Where everything is kept: database, sealed keys, the edge's CA.
    pub data_dir: PathBuf,
    /// A PostgreSQL database instead of a file in the data directory.
    pub database: Option<DatabaseUrl>,
    /// Where the API listens; port 0 picks a free one. TLS unless loopback.
    pub api: SocketAddr,
    /// Where the edge listens; port 0 picks a free one. Always TLS.
    pub edge: SocketAddr,
    /// Where health and metrics are served without a key, in plain HTTP.
    pub health: Option<SocketAddr>,
    /// The domain of tunnels' domains.
    pub base_domain: BaseDomain,
    /// Names and addresses that clients and gateways reach this hub under, beside those that it listens on.
    pub names: Vec<String>,
    /// What gateways dial, `host:port`; the edge's listener when absent.
    pub advertised_edge: Option<String>,
    /// Origins of web pages that may call, beside the listeners' own.
    pub allowed_origins: Vec<String>,
    /// Serve the API without TLS also beyond loopback.
    pub insecure_http: bool,
    /// How many percent of the places for connections one source address may hold, on the API's listener and of each
    /// kind on the edge's port, 1 to 100.
    pub address_share: u8,
    /// The name under which callers' identities are signed; taken at the first start of a data directory. One made at
    /// random when absent.
    pub issuer: Option<String>,
    /// Where this hub is, which gateways are told with every caller.
    pub region: Option<String>,
    /// Bounds on what callers may create and ask for.
    pub limits: Limits,
    /// How records are kept.
    pub audit: AuditConfig,
    /// The file that names the upstreams of models; without one there is the scripted model only.
    pub models: Option<PathBuf>,
    /// How sessions reach MCP servers.
    pub mcp: McpConfig,
}
