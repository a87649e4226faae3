//! What a hub is set to: the way of sessions to MCP servers, and bounds on what callers may ask for.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use sortie_api::{CreateCertificate, DisplayName, Limits};
use sortie_hub::{McpConfig, PrivateHost};

/// How sessions reach MCP servers. Those behind tunnels, and public ones over https, need nothing here.
#[derive(Args, Debug)]
#[command(next_help_heading = "MCP servers of sessions")]
pub(crate) struct SessionMcpArgs {
    /// A host that sessions may reach although it is not public, also in plain http; may be repeated.
    #[arg(long, value_name = "HOST[:PORT]")]
    allow_private_mcp: Vec<PrivateHost>,
    /// CAs to trust for MCP servers and token endpoints, beside this machine's own.
    #[arg(long, value_name = "FILE")]
    mcp_ca: Option<PathBuf>,
    /// How long one call of a tool may take, in seconds; it is cancelled then.
    #[arg(long, value_name = "SECONDS", default_value_t = McpConfig::default().call_timeout.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    mcp_call_timeout: u64,
}

impl SessionMcpArgs {
    /// The settings as the hub takes them.
    pub(crate) fn config(self) -> McpConfig {
        McpConfig {
            allow_private: self.allow_private_mcp,
            ca_file: self.mcp_ca,
            call_timeout: Duration::from_secs(self.mcp_call_timeout),
        }
    }
}

/// Bounds on what callers of the API may create and ask for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits")]
pub(crate) struct LimitArgs {
    /// Active tunnels, over all workspaces.
    #[arg(long, env = "SORTIE_MAX_TUNNELS", value_name = "COUNT",
        default_value_t = Limits::default().tunnels_per_organization)]
    max_tunnels: u32,
    /// Active CA certificates of one tunnel; replacing one needs two.
    #[arg(long, env = "SORTIE_MAX_CERTIFICATES", value_name = "COUNT",
        default_value_t = Limits::default().certificates_per_tunnel)]
    max_certificates: u32,
    /// Active keys of one workspace.
    #[arg(long, env = "SORTIE_MAX_KEYS", value_name = "COUNT", default_value_t = Limits::default().keys_per_workspace)]
    max_keys: u32,
    /// Workspaces, the default one counted.
    #[arg(long, env = "SORTIE_MAX_WORKSPACES", value_name = "COUNT",
        default_value_t = Limits::default().workspaces_per_organization)]
    max_workspaces: u32,
    /// Bytes of a CA certificate in PEM form.
    #[arg(long, env = "SORTIE_MAX_PEM_BYTES", value_name = "BYTES", default_value_t = Limits::default().pem_bytes,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(CreateCertificate::MAX_PEM_BYTES)))]
    max_pem_bytes: u32,
    /// Characters of the name of a tunnel, key or workspace.
    #[arg(long, env = "SORTIE_MAX_NAME", value_name = "COUNT", default_value_t = Limits::default().name_characters,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(DisplayName::MAX_CHARACTERS)))]
    max_name: u32,
    /// Seconds that a worker's lease on its work lasts without a heartbeat, when the worker does not say.
    #[arg(long, env = "SORTIE_WORK_LEASE", value_name = "SECONDS", default_value_t = Limits::default().work_lease_seconds,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    work_lease: u32,
    /// Seconds from when a worker takes work until its first heartbeat, at most.
    #[arg(long, env = "SORTIE_WORK_START", value_name = "SECONDS", default_value_t = Limits::default().work_start_seconds,
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    work_start: u32,
    /// Objects on a page of a list when the caller does not say; never more than --max-page-size.
    #[arg(long, env = "SORTIE_PAGE_SIZE", value_name = "COUNT", default_value_t = Limits::default().default_page,
        value_parser = clap::value_parser!(u32).range(1..))]
    page_size: u32,
    /// Objects on a page at most.
    #[arg(long, env = "SORTIE_MAX_PAGE_SIZE", value_name = "COUNT", default_value_t = Limits::default().largest_page,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::default().largest_page)))]
    max_page_size: u32,
}

impl LimitArgs {
    /// The bounds as the hub takes them.
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            tunnels_per_organization: self.max_tunnels,
            certificates_per_tunnel: self.max_certificates,
            keys_per_workspace: self.max_keys,
            workspaces_per_organization: self.max_workspaces,
            pem_bytes: self.max_pem_bytes,
            name_characters: self.max_name,
            work_lease_seconds: self.work_lease,
            work_start_seconds: self.work_start,
            default_page: self.page_size.min(self.max_page_size),
            largest_page: self.max_page_size,
            ..Limits::default()
        }
    }
}
