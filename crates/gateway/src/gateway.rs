//! Putting the parts together, starting and stopping them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use sortie_ids::RouteName;
use sortie_link::protos::RouteMode;
use sortie_runtime::{Metrics, TaskSet};
use sortie_tls::{ReloadingIdentity, ServerConfig, TlsError, Versions, covers, server_config};
use tokio::sync::Semaphore;

use crate::config::{Authorization, GatewayConfig, RouteConfig, Upstream};
use crate::connector::Connector;
use crate::health::{self, Readiness};
use crate::identity::IdentityKeys;
use crate::inner;
use crate::link_state::LinkBoard;
use crate::memory::Memory;
use crate::probe::{ProbeReport, Prober};
use crate::routes::{Route, RouteTable, Target};
use crate::sessions::Sessions;
use crate::setup::{EdgeAddr, Setup};
use crate::upstream::{Dialer, LocalUpstream, UpstreamClient, client};

/// How often the certificate's files are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// How long `ready` waits after a probe that did not come through; doubled each time up to the longest.
const PROBE_AGAIN: Duration = Duration::from_millis(250);
const LONGEST_PROBE_WAIT: Duration = Duration::from_secs(4);
/// Largest CA file, in bytes.
const MAX_CA_FILE: u64 = 1024 * 1024;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address of an edge cannot be used.
    #[error("{0}")]
    Edge(String),
    /// The edge's CA cannot be used.
    #[error("{path}: {cause}; run sortie setup init with this directory as its output")]
    EdgeCa {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: TlsError,
    },
    /// A CA file that the settings name cannot be read.
    #[error("{setting}: cannot read {path}: {cause}", path = path.display())]
    CaFile {
        /// The setting.
        setting: String,
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A TLS setting cannot be used.
    #[error("{setting}: {cause}")]
    Tls {
        /// The setting.
        setting: String,
        /// Why.
        cause: TlsError,
    },
    /// The certificate is for other hosts.
    #[error("the gateway's certificate does not cover `{host}`; run sortie setup renew-cert, and check tunnel-domain")]
    NotCovered {
        /// The host of a route.
        host: String,
    },
    /// A built-in upstream was not given.
    #[error("routes.{route}.upstream: the built-in upstream `{upstream}` is not part of this program")]
    NoLocal {
        /// The route.
        route: RouteName,
        /// The upstream.
        upstream: Upstream,
    },
    /// The health address cannot be listened on.
    #[error("cannot listen on {address} for health: {cause}; name another address with --health")]
    Health {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
}

/// What every part of a running gateway needs.
pub(crate) struct Shared {
    pub(crate) routes: RouteTable,
    pub(crate) keys: IdentityKeys,
    pub(crate) identity: Arc<ReloadingIdentity>,
    pub(crate) hub_tls: Arc<ServerConfig>,
    pub(crate) client: UpstreamClient,
    pub(crate) dialer: Dialer,
    /// In bytes.
    pub(crate) max_request_body: u64,
    pub(crate) memory: Memory,
    pub(crate) sessions: Sessions,
    pub(crate) inner_connections: Arc<Semaphore>,
    pub(crate) link: LinkBoard,
    pub(crate) prober: Prober,
    /// Seconds since 1970.
    pub(crate) clock: fn() -> i64,
    pub(crate) tasks: TaskSet,
}

/// A running gateway. It stops with [`Gateway::drain`], or with the task set that it was started in; dropping this
/// value alone does not stop it.
pub struct Gateway {
    shared: Arc<Shared>,
    health: Option<SocketAddr>,
    shutdown_timeout: Duration,
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("health", &self.health).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Starts a gateway: from here on it dials, serves, and dials again, until it is stopped. Does not wait for the
    /// link; [`Gateway::ready`] does.
    ///
    /// `edges` (`host:port`), if there are any, are dialled instead of those of the set-up. `health` is where health
    /// and metrics are answered, in plain HTTP. `local` holds the built-in upstreams by the name of their route.
    ///
    /// # Errors
    /// A setting, a file that it names, or the health address cannot be used: see [`GatewayError`].
    pub async fn start(
        config: GatewayConfig,
        setup: Setup,
        edges: Vec<String>,
        health: Option<SocketAddr>,
        local: HashMap<String, Arc<dyn LocalUpstream>>,
        tasks: TaskSet,
    ) -> Result<Self, GatewayError> {
        let metrics = Metrics::install();
        let tasks = tasks.child();
        let edges = match edges.as_slice() {
            [] => setup.edges.clone(),
            given => given
                .iter()
                .map(|text| EdgeAddr::parse(text).map_err(GatewayError::Edge))
                .collect::<Result<Vec<_>, _>>()?,
        };
        let tls = sortie_tls::client_config(&setup.edge_ca, false, Versions::Tls13, &[sortie_link::ALPN])
            .map_err(|cause| GatewayError::EdgeCa { path: setup.edge_ca_path.clone(), cause })?;
        let token = setup.token_source();

        let hub_tls = server_config(setup.identity.clone(), Versions::Tls13, &inner::ALPN, None)
            .map_err(|cause| GatewayError::Tls { setting: "inner TLS".to_owned(), cause })?;
        let routes = routes(&config, &setup, &local).await?;
        let ca = match &config.upstream.ca_file {
            None => None,
            Some(path) => Some(read_ca("upstream.tls.ca_file", path).await?),
        };
        let dialer = Dialer::new(&config.upstream, ca.as_deref())
            .map_err(|cause| GatewayError::Tls { setting: "upstream.tls".to_owned(), cause })?;
        let listener = match health {
            None => None,
            Some(address) => {
                Some(health::bind(address).await.map_err(|cause| GatewayError::Health { address, cause })?)
            }
        };

        let shared = Arc::new(Shared {
            routes: RouteTable::new(routes),
            keys: setup.keys,
            identity: setup.identity,
            hub_tls,
            client: client(dialer.clone(), tasks.clone()),
            dialer,
            max_request_body: config.max_request_body,
            memory: Memory::default(),
            sessions: Sessions::default(),
            inner_connections: Arc::new(Semaphore::new(inner::MAX_CONNECTIONS)),
            link: LinkBoard::new(),
            prober: Prober::default(),
            clock: unix_now,
            tasks: tasks.clone(),
        });
        for route in shared.routes.iter() {
            let upstream = config.routes.get(&route.name).map(|config| config.upstream.to_string()).unwrap_or_default();
            tracing::info!(route = %route.name, host = route.host, upstream, mode = ?route.mode(), "route configured");
        }
        let health = match listener {
            None => None,
            Some((listener, address)) => {
                tasks.spawn("health", health::serve(shared.clone(), listener, metrics));
                Some(address)
            }
        };
        tasks.spawn("certificate", watch_certificate(shared.clone()));
        let instance = sortie_ids::RequestId::random().as_str().replacen("req_", "gw_", 1);
        let link = config.link.clone();
        let connector = Connector { shared: shared.clone(), edges, link, tls, token, instance, tasks: tasks.clone() };
        tasks.spawn("connector", connector.run());
        Ok(Self { shared, health, shutdown_timeout: config.shutdown_timeout })
    }

    /// Where health is answered.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health
    }

    /// Completes when the whole path works: a link is up, and a probe over the first terminated route came back. Where
    /// every route is sealed, the link is enough.
    pub async fn ready(&self) {
        let terminated = self.shared.routes.iter().find(|route| route.mode() == RouteMode::Terminated);
        let Some(route) = terminated else {
            self.shared.link.wait_up().await;
            return;
        };
        let mut said = None;
        let mut wait = PROBE_AGAIN;
        loop {
            self.shared.link.wait_up().await;
            let report = self.shared.prober.noted(&self.shared.link, &route.name).await;
            if report.ok {
                return;
            }
            if said.as_ref() != Some(&report) {
                tracing::warn!(
                    route = %route.name,
                    hop = report.hop.as_deref().unwrap_or_default(),
                    "not ready: {}",
                    report.reason.as_deref().unwrap_or_default()
                );
                said = Some(report);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_PROBE_WAIT);
        }
    }

    /// What is known now, without a new probe.
    pub fn readiness(&self) -> Readiness {
        self.shared.readiness()
    }

    /// Asks for a probe by a route and waits for it, at most five seconds.
    pub async fn probe(&self, route: &RouteName) -> ProbeReport {
        self.shared.prober.probe(&self.shared.link, route).await
    }

    /// Stops: no new stream begins, running calls may end until `shutdown_timeout`, then all is dropped. To be called
    /// before the shutdown of the task set, which otherwise waits for the pool of upstream connections.
    pub async fn drain(&self) {
        self.shared.tasks.stop();
        let all = u32::try_from(inner::MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let ending = async {
            // The link says goodbye and goes with its last stream; an older one may still have some, too.
            self.shared.link.wait_down().await;
            drop(self.shared.inner_connections.acquire_many(all).await);
        };
        if tokio::time::timeout(self.shutdown_timeout, ending).await.is_err() {
            tracing::warn!(timeout_s = self.shutdown_timeout.as_secs_f64(), "calls were still running and are dropped");
        }
        self.shared.tasks.abort();
    }
}

/// The routes as they are served, with the files that they name read.
async fn routes(
    config: &GatewayConfig,
    setup: &Setup,
    local: &HashMap<String, Arc<dyn LocalUpstream>>,
) -> Result<Vec<Route>, GatewayError> {
    let leaf = setup.identity.leaf();
    let mut routes = Vec::with_capacity(config.routes.len());
    for (name, route) in &config.routes {
        let host = setup.domain.route_host(name);
        if !leaf.as_ref().is_some_and(|leaf| covers(leaf, &host)) {
            return Err(GatewayError::NotCovered { host });
        }
        let target = match &route.upstream {
            Upstream::Server(server) => Target::Server(server.clone()),
            upstream => Target::Local(
                local
                    .get(name.as_str())
                    .cloned()
                    .ok_or_else(|| GatewayError::NoLocal { route: name.clone(), upstream: upstream.clone() })?,
            ),
        };
        routes.push(Route {
            upstream_host: upstream_host(route, &host),
            sealed: sealed_tls(name, route, setup).await?,
            label: name.as_str().into(),
            name: name.clone(),
            host,
            target,
            authorization: route.authorization == Authorization::Forward,
            deadline: route.deadline,
            protocol: route.protocol,
        });
    }
    Ok(routes)
}

/// The `Host` that an upstream sees: what the settings say, or its own authority; a built-in one sees the public host.
fn upstream_host(route: &RouteConfig, host: &str) -> HeaderValue {
    let text = match &route.upstream {
        Upstream::Server(server) => server.authority.as_str(),
        Upstream::Files => host,
    };
    let own = HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""));
    route.host.clone().unwrap_or(own)
}

async fn sealed_tls(
    name: &RouteName,
    route: &RouteConfig,
    setup: &Setup,
) -> Result<Option<Arc<ServerConfig>>, GatewayError> {
    let Some(path) = &route.client_ca_file else { return Ok(None) };
    let setting = format!("routes.{name}.client_ca_file");
    let pem = read_ca(&setting, path).await?;
    let config = server_config(setup.identity.clone(), Versions::Tls13, &inner::ALPN, Some(&pem));
    config.map(Some).map_err(|cause| GatewayError::Tls { setting, cause })
}

async fn read_ca(setting: &str, path: &Path) -> Result<String, GatewayError> {
    let reading = async {
        if tokio::fs::metadata(path).await?.len() > MAX_CA_FILE {
            return Err(std::io::Error::other("it is larger than 1 MiB"));
        }
        tokio::fs::read_to_string(path).await
    };
    reading.await.map_err(|cause| GatewayError::CaFile { setting: setting.to_owned(), path: path.to_owned(), cause })
}

/// Puts renewed certificates in force. A broken one is told of once, and the old one stays.
async fn watch_certificate(shared: Arc<Shared>) {
    let mut said = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RELOAD_EVERY) => {}
            () = shared.tasks.stopping() => return,
        }
        let identity = shared.identity.clone();
        let Ok(reloaded) = tokio::task::spawn_blocking(move || identity.reload()).await else { continue };
        match reloaded {
            Ok(false) => said.clear(),
            Ok(true) => {
                said.clear();
                metrics::counter!("sortie_gateway_certificate_reloads_total", "result" => "ok").increment(1);
                tracing::info!(days_left = shared.identity.days_left((shared.clock)()), "certificate renewed");
                let leaf = shared.identity.leaf();
                for route in shared.routes.iter() {
                    if !leaf.as_ref().is_some_and(|leaf| covers(leaf, &route.host)) {
                        tracing::error!(host = route.host, "the new certificate does not cover this host");
                    }
                }
            }
            Err(error) => {
                let text = error.to_string();
                if text != said {
                    metrics::counter!("sortie_gateway_certificate_reloads_total", "result" => "failed").increment(1);
                    tracing::error!("the old certificate stays in force: {text}");
                    said = text;
                }
            }
        }
    }
}

fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}
