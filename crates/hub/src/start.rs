//! Starting a hub: opening what it keeps, binding its ports, wiring its parts.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sortie_api::{CreateKey, Discovery, KeyKind};
use sortie_audit::kinds;
use sortie_edge::{Edge, EdgeConfig, EdgeError, Links};
use sortie_ids::{ApiKey, TunnelId};
use sortie_orchestrator::live::Live;
use sortie_orchestrator::mcp::McpServers;
use sortie_orchestrator::models::{Catalog, ModelsConfigError};
use sortie_orchestrator::queue::Terms;
use sortie_orchestrator::sessions::{Sessions, Settings};
use sortie_orchestrator::work::Queues;
use sortie_runtime::{Metrics, Places, TaskSet, raise_open_files};
use sortie_store::{Change, Options, Store, StoreError};
use sortie_tls::{EdgeIdentity, IssueError, RegisteredCa, SetupDir, SetupError, TlsError, Versions};
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;

use crate::HubConfig;
use crate::api::{API_VERSIONS, ApiState, CheckedCa, of_key};
use crate::audit::{Audit, AuditError};
use crate::call::Calls;
use crate::front::Front;
use crate::gateways::Gateways;
use crate::hosts::Hosts;
use crate::identity::{Signer, SignerError};
use crate::inner::Pool;
use crate::mcp::{Home, Servers, Validator};
use crate::published::Published;
use crate::tunnels::Tunnels;

/// Validity of the CA of the edge's own certificates, in days.
const EDGE_CA_DAYS: u32 = 3650;
/// Connections of gateways and clients on the edge's port, and half of the files that the process may open at most.
const MAX_EDGE_CONNECTIONS: usize = 20_000;
/// Connections on the API's listener, and a quarter of the files at most.
const MAX_API_CONNECTIONS: usize = 20_000;
/// How often unused inner connections are looked over.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Why a hub does not start.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A port cannot be bound.
    #[error("cannot listen on {addr} ({what}): {source}; choose another with --{what}")]
    Bind {
        /// Which listener.
        what: &'static str,
        /// Its address.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The API would be served in plain HTTP to a network.
    #[error("{0} listens on every address: say with --name how clients reach it, so that its certificate can name it")]
    Nameless(&'static str),
    /// The store cannot be opened.
    #[error("the store cannot be used: {0}")]
    Store(#[from] StoreError),
    /// The CA of the edge cannot be used.
    #[error("the edge's CA cannot be used: {0}")]
    EdgeCa(#[from] SetupError),
    /// A certificate cannot be made.
    #[error("the edge's certificate cannot be made: {0}")]
    Issue(#[from] IssueError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] TlsError),
    /// The edge cannot be set up.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// There is no audit.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A place where checkpoints of the audit are to be published cannot be used.
    #[error("{0}")]
    Publish(String),
    /// The settings of models cannot be used.
    #[error("the settings of models cannot be used: {0}")]
    Models(#[from] ModelsConfigError),
    /// Identities cannot be signed.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A running hub.
pub struct Hub {
    /// Base URL of the API.
    pub api_url: String,
    /// A `manage` key of the default workspace.
    pub api_key: ApiKey,
    /// The CA file that clients of the API need, when it speaks TLS.
    pub api_ca_file: Option<PathBuf>,
    /// What gateways dial.
    pub edge_addr: String,
    /// The CA file that clients of the edge need.
    pub edge_ca_file: PathBuf,
    /// The edge's listener.
    pub edge_listener: SocketAddr,
    /// The health listener.
    pub health_addr: Option<SocketAddr>,
    /// Where its records are.
    pub audit_dir: PathBuf,
    /// The way to MCP servers, as sessions go it.
    pub mcp: Arc<dyn McpServers>,
    store: Store,
    audit: Audit,
}

impl Hub {
    /// Opens the data directory, binds the ports and serves; all tasks belong to `tasks`.
    ///
    /// # Errors
    /// See [`HubError`]; nothing keeps running then.
    pub async fn start(config: HubConfig, tasks: &TaskSet) -> Result<Self, HubError> {
        let data_dir = std::path::absolute(&config.data_dir)
            .map_err(|source| HubError::File { path: config.data_dir.clone(), source })?;
        let config = HubConfig { data_dir, ..config };
        let database = config.database.clone();
        let store = Store::open_with(Options { database, ..Options::new(&config.data_dir) }).await?;
        let audit_dir = config.audit.dir.clone().unwrap_or_else(|| config.data_dir.join("audit"));
        let audit = open_audit(audit_dir.clone(), &config).await?;
        let signer = Signer::open(&store, config.issuer.clone(), config.region.clone()).await?;
        let api = bind("api", config.api).await?;
        let edge = bind("edge", config.edge).await?;
        let (api_addr, edge_addr) = (local(&api, config.api), local(&edge, config.edge));
        let api_tls = !api_addr.ip().is_loopback() && !config.insecure_http;
        for (what, addr) in [("the edge", edge_addr), ("the API", api_addr)] {
            if addr.ip().is_unspecified() && config.names.is_empty() {
                return Err(HubError::Nameless(what));
            }
        }

        let ca_dir = SetupDir::open(config.data_dir.join("edge-ca"))?;
        let authority = ca_dir.ensure_authority_named("Sortie edge CA", EDGE_CA_DAYS)?;
        let ca_file = ca_dir.path(sortie_tls::SetupFile::CaCert);
        let mut names = config.names.clone();
        for addr in [edge_addr, api_addr] {
            if !addr.ip().is_unspecified() {
                names.push(addr.ip().to_string());
            }
        }
        if edge_addr.ip().is_loopback() {
            names.push("localhost".into());
        }
        names.sort();
        names.dedup();
        let identity = Arc::new(EdgeIdentity::new(authority, config.base_domain.as_str(), &names)?);
        let reached = |addr: SocketAddr| match config.names.first() {
            Some(name) if addr.ip().is_unspecified() => format!("{name}:{}", addr.port()),
            _ => addr.to_string(),
        };
        let advertised = config.advertised_edge.clone().unwrap_or_else(|| reached(edge_addr));

        let metrics = Metrics::install();
        let links = Links::default();
        let pool = Pool::new(links.clone(), tasks.clone());
        let tunnels = Arc::new(Tunnels::new(store.clone(), config.base_domain.clone(), signer.clone()));
        let discovery = Discovery {
            base_domain: config.base_domain.to_string(),
            edge_addr: advertised.clone(),
            edge_ca_pem: identity.ca_pem().to_owned(),
            identity_jwks: serde_json::Value::Null,
            api_version: API_VERSIONS[0].to_owned(),
        };
        let scheme = if api_tls { "https" } else { "http" };
        let api_url = format!("{scheme}://{}", reached(api_addr));
        let calls = Arc::new(Calls {
            store: store.clone(),
            tunnels: tunnels.clone(),
            pool: pool.clone(),
            signer: signer.clone(),
            audit: audit.clone(),
        });
        let servers = mcp_servers(&config, api_addr, calls.clone(), tasks).await?;
        let terms =
            Terms { lease_seconds: config.limits.work_lease_seconds, start_seconds: config.limits.work_start_seconds };
        let work = Queues::start(store.clone(), terms, tasks).await?;
        let live = Live::start(tasks);
        let watched = live.clone();
        let models = models(&config, tasks).await?;
        let sessions = Sessions::start(
            store.clone(),
            models.clone(),
            Arc::new(servers.clone()),
            live.clone(),
            Settings::default(),
            tasks.clone(),
        );
        let router = crate::api::router(ApiState {
            sessions: sessions.clone(),
            models,
            live,
            store: store.clone(),
            base_domain: config.base_domain.clone(),
            limits: config.limits,
            check_ca,
            discovery,
            signer,
            api_url: api_url.clone(),
            links: links.clone(),
            gateways: Gateways::new(calls.clone()),
            validator: Validator::new(servers.clone()),
            audit: audit.clone(),
            work,
            edge_port: advertised.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(edge_addr.port()),
        });
        let front = Arc::new(Front {
            calls,
            api: router,
            published: Published::new(store.clone(), audit.clone()),
            base: config.base_domain.clone(),
            api_hosts: Hosts::new(api_addr.ip(), &config.names, &config.allowed_origins),
            edge_hosts: Hosts::new(edge_addr.ip(), &config.names, &config.allowed_origins),
            metrics,
            tasks: tasks.clone(),
        });
        let files = raise_open_files();
        let edge_config = EdgeConfig {
            identity: identity.clone(),
            base_domain: config.base_domain.clone(),
            max_connections: MAX_EDGE_CONNECTIONS.min(files / 2),
            address_share: config.address_share,
        };
        let server = Edge::new(edge_config, links.clone(), tunnels, front.clone())?;
        let tls = match api_tls {
            true => Some(sortie_tls::server_config(identity, Versions::Legacy, &[b"h2", b"http/1.1"], None)?),
            false => None,
        };
        let api_key = admin_key(&store, &audit, &config).await?;
        let health_addr = match config.health {
            Some(addr) => {
                let listener = bind("health", addr).await?;
                let bound = local(&listener, addr);
                tasks.spawn("health", front.clone().serve_health(listener));
                Some(bound)
            }
            None => None,
        };

        let at_work = sessions.recover().await?;
        if at_work > 0 {
            tracing::info!(sessions = at_work, "sessions that were at work go on");
        }
        let following = follow_changes(store.clone(), links.clone(), pool.clone(), watched);
        let stop = tasks.clone();
        tasks.spawn("changes", async move {
            tokio::select! {
                () = following => {}
                () = stop.stopping() => {}
            }
        });
        audit.publish(config.audit.publish.clone()).map_err(HubError::Publish)?;
        tasks.spawn("audit-counts", audit.clone().count_until_stopped(tasks.clone()));
        let inside = tasks.clone();
        tasks.spawn("edge", async move { server.serve(edge, inside).await });
        let places = Places::new(MAX_API_CONNECTIONS.min(files / 4), config.address_share);
        tasks.spawn("api", front.serve_api(api, tls, places));
        let stop = tasks.clone();
        tasks.spawn("sweep", async move {
            let mut tick = tokio::time::interval(SWEEP_EVERY);
            loop {
                tokio::select! {
                    _ = tick.tick() => pool.sweep(),
                    () = stop.stopping() => return pool.close(),
                }
            }
        });
        Ok(Self {
            api_url,
            api_key,
            api_ca_file: api_tls.then(|| ca_file.clone()),
            edge_addr: advertised,
            edge_ca_file: ca_file,
            edge_listener: edge_addr,
            health_addr,
            audit_dir,
            mcp: Arc::new(servers),
            store,
            audit,
        })
    }

    /// Closes the store and the audit log; to be called when every task has ended.
    pub async fn close(&self) {
        self.audit.close().await;
        self.store.close().await;
    }
}

async fn bind(what: &'static str, addr: SocketAddr) -> Result<TcpListener, HubError> {
    TcpListener::bind(addr).await.map_err(|source| HubError::Bind { what, addr, source })
}

fn local(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

/// The models of sessions.
async fn models(config: &HubConfig, tasks: &TaskSet) -> Result<Arc<Catalog>, HubError> {
    let Some(file) = config.models.clone() else { return Ok(Arc::new(Catalog::scripted())) };
    let tasks = tasks.clone();
    let opened = tokio::task::spawn_blocking(move || Catalog::open(file, &tasks)).await;
    Ok(opened.map_err(|_| StoreError::Interrupted)??)
}

/// The MCP servers of sessions.
async fn mcp_servers(
    config: &HubConfig,
    api: SocketAddr,
    calls: Arc<Calls>,
    tasks: &TaskSet,
) -> Result<Servers, HubError> {
    let ca_pem = match &config.mcp.ca_file {
        None => String::new(),
        Some(path) => {
            let read = tokio::fs::read_to_string(path).await;
            read.map_err(|source| HubError::File { path: path.clone(), source })?
        }
    };
    let mut names: Vec<_> = config.names.iter().map(|name| name.to_ascii_lowercase()).collect();
    names.push(api.ip().to_string());
    let home = Home { base: config.base_domain.clone(), names, loopback: api.ip().is_loopback(), port: api.port() };
    Ok(Servers::new(calls, home, config.mcp.clone(), &ca_pem, tasks))
}

fn check_ca(pem: &str) -> Result<CheckedCa, String> {
    let ca = RegisteredCa::parse(pem, Timestamp::now().as_second()).map_err(|error| error.to_string())?;
    let fingerprint = ca.fingerprint().parse().map_err(|_| "the certificate has no fingerprint".to_owned())?;
    let expires_at = Timestamp::from_second(ca.not_after_unix()).map_err(|_| "it expires too late".to_owned())?;
    Ok(CheckedCa { fingerprint, expires_at })
}

/// The key that operators of this machine use: kept in a private file, since the store has only its digest.
async fn admin_key(store: &Store, audit: &Audit, config: &HubConfig) -> Result<ApiKey, HubError> {
    let path = config.data_dir.join("api-key");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            if let Ok(key) = ApiKey::parse(text.trim())
                && store.key_by_digest(&key.digest()).await?.is_some_and(|known| known.is_valid(store.now()))
            {
                return Ok(key);
            }
            tracing::warn!(path = %path.display(), "the key in this file is not valid any more: a new one is made");
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(HubError::File { path, source }),
    }
    let name = "administrator".parse().map_err(|_| StoreError::Corrupt("name"))?;
    let new = CreateKey {
        role: None,
        kind: KeyKind::Manage,
        name,
        expires_at: None,
        grants: Vec::new(),
        agent: None,
        user: None,
        workspace_id: None,
    };
    let workspace = store.default_workspace().clone();
    let made = store.create_key(&workspace, new, &config.limits).await?;
    let text = format!("{}\n", made.secret.expose());
    sortie_tls::write_private(&path, text.as_bytes()).map_err(|source| HubError::File { path, source })?;
    audit.own(kinds::KEY_MINTED, of_key(&made.key)).await;
    Ok(made.secret)
}

/// Reads the end of the log, which may take a while.
async fn open_audit(dir: PathBuf, config: &HubConfig) -> Result<Audit, HubError> {
    let (key_file, settings) = (config.data_dir.join("audit.key"), config.audit.clone());
    let opened = tokio::task::spawn_blocking(move || Audit::open(dir, key_file, &settings)).await;
    opened.map_err(|_| StoreError::Interrupted)?.map_err(HubError::from)
}

/// How long to wait before the store is asked again what is in force, when it could not say.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Makes archived tunnels and certificates bite on what is already running. No change is passed over: while the store
/// cannot be read, the next ones wait; when they came too fast, every tunnel with a link is looked at.
async fn follow_changes(store: Store, links: Links, pool: Arc<Pool>, live: Live) {
    let mut changes = store.changes();
    loop {
        let changed = match changes.recv().await {
            Ok(Change::TunnelArchived(tunnel) | Change::CertificatesChanged(tunnel)) => Some(tunnel),
            Ok(Change::KeyArchived(key)) => {
                live.revoke(key.as_str());
                continue;
            }
            Ok(_) => continue,
            Err(RecvError::Lagged(_)) => {
                // Whose keys were archived is not known: everybody opens streams anew who still may.
                live.end_all();
                None
            }
            Err(RecvError::Closed) => return,
        };
        while let Err(error) = enforce(&store, &links, &pool, changed.as_ref()).await {
            tracing::error!(%error, "a change cannot be followed yet: the store cannot be read");
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// Ends what this tunnel, or every tunnel with a link, does not stand for any more: everything if it is archived, else
/// what only CAs vouch for that are not registered.
async fn enforce(store: &Store, links: &Links, pool: &Pool, changed: Option<&TunnelId>) -> Result<(), StoreError> {
    let labels = match changed {
        Some(tunnel) => store.any_tunnel(tunnel).await?.map(|record| record.label).into_iter().collect(),
        None => links.labels(),
    };
    for label in &labels {
        let Some(tunnel) = store.tunnel_by_label(label).await? else {
            links.cut(label);
            pool.distrust(label, &[]);
            continue;
        };
        let pems = store.active_cas(&tunnel.id).await?;
        let cas = pems.iter().filter_map(|pem| RegisteredCa::parse_any_time(pem).ok());
        let trusted: Vec<_> = cas.map(|ca| ca.fingerprint().to_owned()).collect();
        pool.distrust(label, &trusted);
    }
    Ok(())
}
