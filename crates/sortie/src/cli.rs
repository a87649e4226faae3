//! The command line.

mod hub_audit;
mod hub_settings;
mod resources;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use sortie_api::KeyRole;
use sortie_ids::{ApprovalId, BaseDomain, CertificateId, EnvironmentId, KeyId, RouteName, TunnelId, WorkspaceId};

pub(crate) use resources::{AgentsCommand, CredentialsCommand, EnvironmentCommand, From, VaultsCommand};

use crate::audit::AuditCommand;
use crate::database::DatabaseArgs;
use crate::operate::sessions::SessionsCommand;
use crate::policy::PolicyCommand;

pub(crate) use hub_audit::{AuditDestinationArgs, HubAuditArgs};
pub(crate) use hub_settings::{LimitArgs, SessionMcpArgs};

/// Private access for AI agents: everything dials out, nothing gets in.
#[derive(Debug, Parser)]
#[command(name = "sortie", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    /// How results are printed: `table` or `json`; `toml` for `config show`. For `setup`: where the files go, `dir:DIR`.
    #[arg(long, global = true, value_name = "HOW", value_parser = Output::parse)]
    pub(crate) output: Option<Output>,
    /// What is logged on standard error: a level, or a list of target=level.
    #[arg(long, global = true, env = "SORTIE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogStyle::Text)]
    pub(crate) log_format: LogStyle,
    /// Threads of a role that run its tasks: one for each core, or just one where there are no more than two.
    #[arg(long, global = true, env = "SORTIE_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) workers: Option<u16>,
    #[command(flatten)]
    pub(crate) hub: HubAccess,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// One flag for two questions, since the public contract of `setup` uses the name for the second.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// A table, for people.
    Table,
    /// JSON, for programs.
    Json,
    /// A configuration file, for `config show`.
    Toml,
    /// Files in a directory, for `setup`.
    Dir(PathBuf),
}

impl Output {
    fn parse(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("dir:")) {
            ("table", _) => Ok(Self::Table),
            ("json", _) => Ok(Self::Json),
            ("toml", _) => Ok(Self::Toml),
            (_, Some(dir)) if !dir.is_empty() => Ok(Self::Dir(dir.into())),
            _ => Err("write table, json, for config show toml, or for setup dir:DIR".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogStyle {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Where operator commands find the hub; else in the profile that `sortie up` writes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct HubAccess {
    /// Base URL of the hub's API.
    #[arg(long, global = true, env = "SORTIE_API_URL", value_name = "URL", help_heading = "Hub")]
    pub(crate) api_url: Option<String>,
    /// CA file of the hub's API, when its certificate is not publicly trusted.
    #[arg(long, global = true, env = "SORTIE_API_CA", value_name = "FILE", help_heading = "Hub")]
    pub(crate) api_ca: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run hub and gateway on this machine, loopback only, and serve a directory to agents.
    Up(UpArgs),
    /// Run the hub: API, edge and callers' identities.
    Hub(HubArgs),
    /// Run the gateway inside a private network.
    Gateway(GatewayArgs),
    /// Create a tunnel's keys and certificates, or renew them.
    #[command(subcommand)]
    Setup(SetupCommand),
    /// Tunnels.
    #[command(subcommand)]
    Tunnels(TunnelsCommand),
    /// CA certificates registered on a tunnel.
    #[command(subcommand)]
    Certs(CertsCommand),
    /// API keys.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Sessions: agents at work.
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// Agents: models with prompts, tools and MCP servers, in versions.
    #[command(subcommand)]
    Agents(AgentsCommand),
    /// Environments: where the tools of sessions run.
    #[command(subcommand)]
    Environments(EnvironmentsCommand),
    /// Vaults: credentials that sessions use.
    #[command(subcommand)]
    Vaults(VaultsCommand),
    /// Print the active agents, environments and vaults (without secrets) as JSON.
    Export,
    /// Workspaces: what tunnels and keys belong to.
    #[command(subcommand)]
    Workspaces(WorkspacesCommand),
    /// Calls that wait for a person to approve them, at a gateway on this machine, or through the hub.
    #[command(subcommand)]
    Approvals(ApprovalsCommand),
    /// Routes that connected gateways serve.
    #[command(subcommand)]
    Routes(RoutesCommand),
    /// Call the tools of private MCP servers.
    #[command(subcommand)]
    Mcp(McpCommand),
    /// What the gateway on this machine has pinned of its servers' tools. Needs no hub.
    #[command(subcommand)]
    Tools(ToolsCommand),
    /// The gateway's configuration files. Needs no hub.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Policy files: who may do what. Needs no hub and no gateway.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What was called, by whom, and the proof of it. Needs no hub and no gateway.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// The directory that the built-in MCP server `files` serves, read-only.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) files: PathBuf,
    /// A further MCP server, NAME=http://HOST:PORT; may be repeated.
    #[arg(long, value_name = "NAME=URL")]
    pub(crate) route: Vec<String>,
    /// The gateway's settings, in place of --files and --route; watched for changes.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["files", "route"])]
    pub(crate) config: Option<PathBuf>,
    /// Where everything is kept [default: $XDG_DATA_HOME/sortie].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the API listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4180")]
    pub(crate) api: SocketAddr,
    /// Where the edge listens.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4443")]
    pub(crate) edge: SocketAddr,
    /// Written, mode 0600, when everything serves.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// The upstreams of models, in TOML; watched for changes. Without it sessions have the scripted model only.
    #[arg(long, env = "SORTIE_MODELS", value_name = "FILE")]
    pub(crate) models: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) mcp: SessionMcpArgs,
    #[command(flatten)]
    pub(crate) audit: AuditDestinationArgs,
}

#[derive(Args, Debug)]
pub(crate) struct HubArgs {
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) database: DatabaseArgs,
    /// Where the API listens; TLS unless loopback.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4180")]
    pub(crate) api: SocketAddr,
    /// Where gateways dial in and clients call.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:4443")]
    pub(crate) edge: SocketAddr,
    /// Where health and metrics are served without a key, in plain HTTP.
    #[arg(long, value_name = "ADDR")]
    pub(crate) health: Option<SocketAddr>,
    /// The domain of tunnels' hostnames.
    #[arg(long, value_name = "DOMAIN", default_value = "sortie.localhost")]
    pub(crate) base_domain: BaseDomain,
    /// A name or address that clients and gateways use for this hub; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub(crate) name: Vec<String>,
    /// What gateways dial, HOST:PORT, when it is not the edge's own address.
    #[arg(long, value_name = "ADDR")]
    pub(crate) advertise_edge: Option<String>,
    /// A web page's origin that may call; may be repeated.
    #[arg(long, value_name = "ORIGIN")]
    pub(crate) allow_origin: Vec<String>,
    /// Serve the API without TLS also beyond loopback.
    #[arg(long)]
    pub(crate) insecure_http: bool,
    /// How much of the places for connections one source address may hold, in percent; raise it where many clients or
    /// gateways come from one address.
    #[arg(long, value_name = "PERCENT", default_value_t = sortie_runtime::DEFAULT_SHARE,
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) address_share: u8,
    /// Written, mode 0600, when the hub serves.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// How long calls that run may take to end after SIGTERM, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) shutdown_timeout: u64,
    /// The name under which callers' identities are signed, https://HOST; taken at the first start. Default: a random one.
    #[arg(long, env = "SORTIE_ISSUER", value_name = "URL", value_parser = issuer)]
    pub(crate) issuer: Option<String>,
    /// Where this hub is; gateways are told with every caller.
    #[arg(long, env = "SORTIE_REGION", value_name = "NAME", value_parser = region)]
    pub(crate) region: Option<String>,
    /// The upstreams of models, in TOML; watched for changes. Without it sessions have the scripted model only.
    #[arg(long, env = "SORTIE_MODELS", value_name = "FILE")]
    pub(crate) models: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) audit: HubAuditArgs,
    #[command(flatten)]
    pub(crate) mcp: SessionMcpArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

#[derive(Args, Debug)]
pub(crate) struct GatewayArgs {
    /// Routes and limits.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Where the gateway keeps what it must remember.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// What `sortie setup init` wrote.
    #[arg(long, value_name = "DIR")]
    pub(crate) setup_dir: PathBuf,
    /// The edge to dial, HOST:PORT, instead of the one in the setup directory; may be repeated.
    #[arg(long, value_name = "ADDR")]
    pub(crate) edge: Vec<String>,
    /// Where health and metrics are served, in plain HTTP.
    #[arg(long, value_name = "ADDR")]
    pub(crate) health: Option<SocketAddr>,
    /// Written, mode 0600, when a call could come all the way.
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetupCommand {
    /// Create or attach to a tunnel, make its CA and certificate, register the CA, fetch the token. Repeatable.
    /// The credential is taken from API_TOKEN, the directory from --output dir:DIR.
    Init(InitArgs),
    /// Make a new server certificate from the CA in the directory of --output dir:DIR. Needs no network.
    RenewCert(RenewArgs),
    /// Write the published keys of the hub's identities, or of a gateway's, as files for a static web server: the layout of
    /// `.well-known` below the directory of --output dir:DIR.
    ExportIssuer(ExportArgs),
    /// Change the key with which a gateway tells its upstreams who is calling. A running gateway follows by itself.
    RotateIdentity(RotateArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The health address of a gateway, http://HOST:PORT, to export its keys instead of the hub's.
    #[arg(long, value_name = "URL")]
    pub(crate) gateway: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RotateArgs {
    /// The gateway's data directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// When the new key begins to sign: time for upstreams to learn of it.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = hours)]
    pub(crate) after: std::time::Duration,
}

#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// Attach to this tunnel instead of creating one.
    #[arg(long, env = "TUNNEL_ID", value_name = "ID")]
    pub(crate) tunnel_id: Option<TunnelId>,
    /// What to call a tunnel that is created.
    #[arg(long, value_name = "NAME")]
    pub(crate) display_name: Option<String>,
    /// Life of the server certificate, like 2160h.
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = hours)]
    pub(crate) cert_duration: std::time::Duration,
    /// Rotate the token when this differs from the last value given.
    #[arg(long, value_name = "VERSION")]
    pub(crate) token_version: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct RenewArgs {
    /// Life of the new certificate, like 2160h.
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = hours)]
    pub(crate) cert_duration: std::time::Duration,
    /// Only when less than this is left, like 720h; 0 means always.
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = hours)]
    pub(crate) renew_before: std::time::Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TunnelsCommand {
    /// List tunnels, newest first.
    List {
        /// Archived ones, too.
        #[arg(long)]
        include_archived: bool,
    },
    /// Create a tunnel. It takes no calls until a CA certificate is registered on it.
    Create {
        /// What to call it.
        #[arg(long, value_name = "NAME")]
        display_name: Option<String>,
    },
    /// Show one.
    Get {
        /// The tunnel.
        tunnel: TunnelId,
    },
    /// Retire a tunnel for ever, with its hostname, token and certificates.
    Archive {
        /// The tunnel.
        tunnel: TunnelId,
    },
    /// Show the token that a gateway connects with.
    RevealToken {
        /// The tunnel.
        tunnel: TunnelId,
    },
    /// Make a new token; the old one opens no new links from now on.
    RotateToken {
        /// The tunnel.
        tunnel: TunnelId,
        /// Why, for the audit.
        #[arg(long)]
        reason: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// List a tunnel's CA certificates, newest first.
    List {
        /// The tunnel.
        tunnel: TunnelId,
        /// Archived ones, too.
        #[arg(long)]
        include_archived: bool,
    },
    /// Register a CA certificate.
    Add {
        /// The tunnel.
        tunnel: TunnelId,
        /// One certificate in PEM form.
        file: PathBuf,
    },
    /// Show one.
    Get {
        /// The tunnel.
        tunnel: TunnelId,
        /// The certificate.
        certificate: CertificateId,
    },
    /// Trust a CA certificate no more; what it vouches for is cut at once.
    Archive {
        /// The tunnel.
        tunnel: TunnelId,
        /// The certificate.
        certificate: CertificateId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// List keys, newest first.
    List,
    /// Create a key; its secret is shown once.
    Create {
        /// What to call it.
        name: String,
        /// For managing everything in the workspace, instead of calling named routes.
        #[arg(long, conflicts_with = "grant")]
        manage: bool,
        /// How much a key for managing may do: viewer reads what shows no secret, developer works on agents, environments,
        /// sessions and vaults, admin does everything [default: admin].
        #[arg(long, value_name = "ROLE", requires = "manage", value_parser = role)]
        role: Option<KeyRole>,
        /// What a key may call: TUNNEL_ID or TUNNEL_ID/ROUTE; may be repeated.
        #[arg(long, value_name = "TUNNEL[/ROUTE]", required_unless_present = "manage")]
        grant: Vec<String>,
        /// From when on it is refused, like 2027-01-31T00:00:00Z.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<jiff::Timestamp>,
        /// Make it in this workspace instead of the own one; from the default workspace, with --manage.
        #[arg(long, value_name = "ID", conflicts_with = "grant")]
        workspace: Option<WorkspaceId>,
        /// The agent that calls with it; gateways are told.
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
        /// The person that it is used for; gateways are told.
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Change the key that the hub signs callers' identities with; gateways follow by themselves. Needs a manage key of
    /// the default workspace.
    RotateIdentity {
        /// When the new key begins to sign: time for gateways and readers of the published keys to learn of it.
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = hours)]
        after: std::time::Duration,
    },
    /// Withdraw a key at once.
    Archive {
        /// The key.
        key: KeyId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvironmentsCommand {
    #[command(flatten)]
    Of(EnvironmentCommand),
    /// Keys that the workers of an environment ask for work with.
    #[command(subcommand)]
    Keys(EnvironmentKeysCommand),
    /// Ask the workers of an environment for an answer. Exit code 1 when none comes within a minute.
    Check {
        /// The environment.
        environment: EnvironmentId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EnvironmentKeysCommand {
    /// List keys, newest first.
    List {
        /// The environment.
        environment: EnvironmentId,
    },
    /// Create a key; its secret is shown once. An environment may have several.
    Create {
        /// The environment.
        environment: EnvironmentId,
        /// What to call it.
        name: String,
        /// From when on it is refused, like 2027-01-31T00:00:00Z.
        #[arg(long, value_name = "TIME")]
        expires_at: Option<jiff::Timestamp>,
    },
    /// Withdraw a key at once, with the tokens of the sessions that its workers serve.
    Archive {
        /// The environment.
        environment: EnvironmentId,
        /// The key.
        key: KeyId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkspacesCommand {
    /// List workspaces, newest first. Needs a manage key of the default workspace.
    List,
    /// Create a workspace. `sortie keys create --manage --workspace` makes the first key of it.
    Create {
        /// What to call it.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ApprovalsCommand {
    /// List the calls that wait, the oldest first.
    List {
        /// Go on, and show each new one when it comes.
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        at: ApprovalsAt,
    },
    /// Show one.
    Show {
        /// The approval.
        approval: ApprovalId,
        #[command(flatten)]
        at: ApprovalsAt,
    },
    /// Let a call go on: this one, and no other.
    Approve {
        /// The approval.
        approval: ApprovalId,
        /// Why, for the record.
        #[arg(long)]
        reason: Option<String>,
        /// Let the same caller repeat the same call with the very same arguments for this long, like 10m; at most 24h.
        #[arg(long = "for", value_name = "DURATION", value_parser = hours)]
        for_: Option<std::time::Duration>,
        #[command(flatten)]
        at: ApprovalsAt,
    },
    /// Refuse a call.
    Deny {
        /// The approval.
        approval: ApprovalId,
        /// Why; the caller is told.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        at: ApprovalsAt,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ApprovalsAt {
    /// The data directory of a gateway on this machine [default: that of `sortie up`; where there is none, the hub].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Ask the hub for this tunnel's gateways.
    #[arg(long, value_name = "ID", conflicts_with = "data_dir")]
    pub(crate) tunnel: Option<TunnelId>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RoutesCommand {
    /// List the routes that the key may call, with their URLs.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum McpCommand {
    /// List the tools of one route, or of all.
    List {
        /// The route.
        route: Option<RouteName>,
        #[command(flatten)]
        at: McpAt,
    },
    /// Call a tool and print its result.
    Call {
        /// The route.
        route: RouteName,
        /// The tool.
        tool: String,
        /// Its arguments, a JSON object.
        #[arg(default_value = "{}")]
        arguments: String,
        #[command(flatten)]
        at: McpAt,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ToolsCommand {
    /// List the tools that the gateway has seen, and what is pinned or held back of them.
    List {
        /// Only those of this route.
        route: Option<RouteName>,
        #[command(flatten)]
        at: ToolsAt,
    },
    /// Show what is held back, and how it differs from what was approved.
    Diff {
        /// Only those of this route.
        route: Option<RouteName>,
        /// Only this tool, or the instructions of this method.
        tool: Option<String>,
        #[command(flatten)]
        at: ToolsAt,
    },
    /// Approve what is held back: from now on it is what agents may see and call, in place of what was approved before.
    Approve {
        #[command(flatten)]
        choice: ToolsChoice,
        /// Which definition, by the beginning of its digest, when several are held; an approved one is confirmed thereby.
        #[arg(long, value_name = "DIGEST", conflicts_with = "all")]
        digest: Option<String>,
        /// Beside what was approved before: for servers that show callers different definitions.
        #[arg(long)]
        also: bool,
    },
    /// Forget what was pinned and held: what comes next is as new.
    Forget {
        #[command(flatten)]
        choice: ToolsChoice,
    },
}

impl ToolsCommand {
    pub(crate) fn data_dir(&self) -> Option<&std::path::Path> {
        let at = match self {
            Self::List { at, .. } | Self::Diff { at, .. } => at,
            Self::Approve { choice, .. } | Self::Forget { choice } => &choice.at,
        };
        at.data_dir.as_deref()
    }
}

/// Which gateway.
#[derive(Args, Debug)]
pub(crate) struct ToolsAt {
    /// The data directory of the running gateway [default: that of `sortie up`].
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// What is decided on.
#[derive(Args, Debug)]
pub(crate) struct ToolsChoice {
    /// The route.
    pub(crate) route: RouteName,
    /// The tool.
    #[arg(required_unless_present_any = ["instructions", "all"], conflicts_with_all = ["instructions", "all"])]
    pub(crate) tool: Option<String>,
    /// The server's instructions that come with this method.
    #[arg(long, value_name = "METHOD", value_parser = ["initialize", "server/discover"], conflicts_with = "all")]
    pub(crate) instructions: Option<String>,
    /// Everything that is held, or known.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) at: ToolsAt,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong with a file, and with the files that it names. Exit code 2 if anything is.
    Check {
        /// TOML, or the hosted proxy's YAML.
        file: PathBuf,
        /// Resolve the hosts of upstreams, too, and judge their addresses. Nothing is dialled.
        #[arg(long)]
        online: bool,
        /// The file is a hub's settings of models.
        #[arg(long, conflicts_with = "online")]
        models: bool,
    },
    /// Show the settings in force, defaults included; --output toml writes a file that says the same.
    Show {
        /// TOML, or the hosted proxy's YAML.
        file: PathBuf,
    },
    /// Print the JSON Schema of the TOML file.
    Schema,
}

#[derive(Args, Debug)]
pub(crate) struct McpAt {
    /// The tunnel, when several have a route of this name.
    #[arg(long, value_name = "ID")]
    pub(crate) tunnel: Option<TunnelId>,
    /// The server's path.
    #[arg(long, value_name = "PATH", default_value = "/mcp")]
    pub(crate) path: String,
}

/// Reads the name of an issuer: https, no path, no slash at the end.
fn issuer(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").filter(|host| !host.is_empty());
    match host.filter(|host| !host.contains(['/', '?', '#', '@', ' '])) {
        Some(_) => Ok(text.to_owned()),
        None => Err("an issuer is https://HOST, without a path".to_owned()),
    }
}

fn role(name: &str) -> Result<KeyRole, &'static str> {
    KeyRole::from_name(name).ok_or("it is viewer, developer or admin")
}

/// Reads the name of a region.
fn region(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=64).contains(&text.len()) && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err("a region is 1 to 64 letters, digits, `-`, `_` and `.`, such as eu-1".to_owned())
}

/// Reads `720h`, `90m`, `30s`, `10d` or `0`.
pub(crate) fn hours(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("`{text}` is not a duration like 2160h, 90m, 30s or 10d");
    if text == "0" {
        return Ok(std::time::Duration::ZERO);
    }
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(bad)
}

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "sortie", &mut std::io::stdout());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(hours("2160h").map(|d| d.as_secs()), Ok(7_776_000));
        assert_eq!(hours("0").map(|d| d.as_secs()), Ok(0));
        for bad in ["", "h", "5", "1x", "-1h", "99999999999999999999h", "é"] {
            assert!(hours(bad).is_err(), "{bad}");
        }
    }
}
