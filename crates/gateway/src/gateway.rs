//! Putting the parts together, starting and stopping them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use sortie_audit::Faults;
use sortie_identity::KeysError;
use sortie_ids::{RouteName, TunnelDomain};
use sortie_link::protos::RouteMode;
use sortie_policy::PolicyError;
use sortie_runtime::{Metrics, TaskSet};
use sortie_tls::{IdentityError, TlsError, Versions, covers};
use tokio::sync::{Notify, Semaphore, watch};

use crate::admin::{self, AdminSocket};
use crate::approvals::Approvals;
use crate::audit::{Audit, NotOpened};
use crate::client_certificates;
use crate::config::{GatewayConfig, Places, Upstream};
use crate::connector::Connector;
use crate::health::{self, Readiness};
use crate::identity::IdentityKeys;
use crate::inner;
use crate::limits::Counting;
use crate::link_state::LinkBoard;
use crate::listener::{self, Listener};
use crate::memory::Memory;
use crate::pins::PinBoard;
use crate::probe::{ProbeReport, Prober};
use crate::publish::{self, Publishing};
use crate::reload::{ConfigReport, Watcher};
use crate::served::{Builder, Served};
use crate::sessions::Sessions;
use crate::setup::{EdgeAddr, Setup};
use crate::upstream::OpenLocal;
use crate::upstream_identity::{IdentityKeysError, Signer};

/// How often the certificate's files are looked at.
pub(crate) const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// How long `ready` waits after a probe that did not come through; doubled each time up to the longest.
const PROBE_AGAIN: Duration = Duration::from_millis(250);
const LONGEST_PROBE_WAIT: Duration = Duration::from_secs(4);
/// How long calls that waited for a person may take to end when there is no more time for that.
const LAST_WORDS: Duration = Duration::from_millis(500);

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
    /// The certificate that a route shows to its upstream cannot be used.
    #[error("routes.{route}.tls.client_cert_file, client_key_file: {cause}")]
    ClientCertificate {
        /// The route.
        route: RouteName,
        /// Why.
        cause: IdentityError,
    },
    /// The certificate is for other hosts.
    #[error("the gateway's certificate does not cover `{host}`; {way_out}")]
    NotCovered {
        /// The host of a route.
        host: String,
        /// What helps.
        way_out: &'static str,
    },
    /// The settings are for another tunnel.
    #[error(
        "tunnel_domain: `{stated}` is not the domain of the set-up directory, `{actual}`; correct it, or give the \
         set-up directory of `{stated}` with --setup-dir"
    )]
    OtherTunnel {
        /// What the settings say.
        stated: String,
        /// What the set-up directory says.
        actual: String,
    },
    /// The certificate that the settings name cannot be used.
    #[error("{setting}: {cause}")]
    Certificate {
        /// Which of the two files it is about.
        setting: &'static str,
        /// What is wrong.
        cause: IdentityError,
    },
    /// A built-in upstream cannot be opened.
    #[error("routes.{route}.upstream: {upstream}: {reason}")]
    Local {
        /// The route.
        route: RouteName,
        /// The upstream.
        upstream: Upstream,
        /// Why.
        reason: String,
    },
    /// Something that a credential needs is not there.
    #[error("{setting}: {reason}")]
    Credential {
        /// The setting.
        setting: String,
        /// What is missing.
        reason: String,
    },
    /// The keys of an issuer cannot be used.
    #[error("issuers.jwks_file: the keys of `{issuer}`: {cause}")]
    Issuer {
        /// The issuer.
        issuer: String,
        /// What is wrong.
        cause: KeysError,
    },
    /// There is nowhere to keep the key that tells upstreams who is calling.
    #[error("routes.{route}.identity: signed needs a data directory for the gateway's key; name one with --data-dir")]
    NoSigner {
        /// The route.
        route: RouteName,
    },
    /// The gateway's own signing keys cannot be used.
    #[error(transparent)]
    IdentityKeys(#[from] IdentityKeysError),
    /// The policy cannot be used.
    #[error("policy_file: {cause}")]
    Policy {
        /// What is wrong, and where.
        cause: PolicyError,
    },
    /// One of the others, with the place of the setting that it is about.
    #[error("{place}: {cause}")]
    At {
        /// `file:line`.
        place: String,
        /// What is wrong.
        cause: Box<GatewayError>,
    },
    /// Reading files was cut short, since the program is ending.
    #[error("the gateway is stopping")]
    Interrupted,
    /// The health address cannot be listened on.
    #[error("cannot listen on {address} for health: {cause}; name another address with --health")]
    Health {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The address for the hosted service's own traffic cannot be listened on.
    #[error("cannot listen on {address}: {cause}; name another address in listen_addr under [listener]")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// The patterns of limits are too large together.
    #[error("limits: {0}; use fewer or shorter patterns")]
    Limits(globset::Error),
    /// A place where checkpoints of the audit are to be published cannot be used.
    #[error("{0}")]
    Publish(String),
    /// Something that a sink of the audit log needs is not there.
    #[error("{reason}")]
    AuditSink {
        /// The setting.
        setting: String,
        /// What.
        reason: String,
    },
    /// The audit log cannot be opened.
    #[error("audit: {dir}: {cause}", dir = dir.display())]
    Audit {
        /// The directory of the log.
        dir: PathBuf,
        /// Why, and the way out.
        cause: sortie_audit::OpenError,
    },
    /// The admin socket cannot be opened.
    #[error("cannot open the admin socket in {dir}: {cause}; give a data directory that this user may write to", dir = dir.display())]
    Admin {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
}

impl GatewayError {
    /// The same with the place of the setting that it is about, if it is about one.
    pub(crate) fn at(self, places: &Places) -> Self {
        let setting = match &self {
            Self::CaFile { setting, .. }
            | Self::Tls { setting, .. }
            | Self::Credential { setting, .. }
            | Self::AuditSink { setting, .. } => setting.clone(),
            Self::Local { route, .. } => format!("routes.{route}.upstream"),
            Self::NotCovered { host, .. } => format!("routes.{}", host.split('.').next().unwrap_or_default()),
            Self::OtherTunnel { .. } => "tunnel_domain".to_owned(),
            Self::ClientCertificate { route, .. } => format!("routes.{route}.tls.client_cert_file"),
            Self::Certificate { setting, .. } => (*setting).to_owned(),
            Self::Issuer { .. } => "issuers".to_owned(),
            Self::NoSigner { route } => format!("routes.{route}.identity"),
            _ => return self,
        };
        Self::At { place: places.of(&setting), cause: Box::new(self) }
    }
}

/// What every part of a running gateway needs.
pub(crate) struct Shared {
    served: ArcSwap<Served>,
    config: Mutex<ConfigReport>,
    /// Marked whenever other settings are in force.
    pub(crate) changes: watch::Sender<()>,
    reload: Notify,
    pub(crate) keys: IdentityKeys,
    /// The keys with which upstreams are told who is calling.
    pub(crate) signer: Option<Arc<Signer>>,
    pub(crate) domain: TunnelDomain,
    pub(crate) memory: Memory,
    pub(crate) sessions: Sessions,
    pub(crate) approvals: Approvals,
    pub(crate) audit: Audit,
    pub(crate) publishing: Publishing,
    pub(crate) counting: Counting,
    pub(crate) inner_connections: Arc<Semaphore>,
    pub(crate) listener: Option<Listener>,
    pub(crate) link: LinkBoard,
    pub(crate) prober: Prober,
    /// Seconds since 1970.
    pub(crate) clock: fn() -> i64,
    /// Whether a stop waits for calls to end.
    pub(crate) draining: AtomicBool,
    pub(crate) tasks: TaskSet,
}

impl Shared {
    /// What is served now. Whoever begins something (a call, a handshake, a dial) takes it once and keeps it to the
    /// end, so that nothing sees half of a change.
    pub(crate) fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    pub(crate) fn put_in_force(&self, served: Served) {
        self.served.store(Arc::new(served));
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = ConfigReport::now((self.clock)());
        self.changes.send_replace(());
    }

    /// Notes that the newest settings are not in force.
    pub(crate) fn reload_failed(&self, reason: String) {
        let mut report = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        report.ok = false;
        report.reason = Some(reason);
    }

    pub(crate) fn config_report(&self) -> ConfigReport {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Completes when somebody has asked for the settings to be read again.
    pub(crate) async fn reload_asked(&self) {
        self.reload.notified().await;
    }
}

/// What a gateway is given beside its settings and its set-up.
#[derive(Clone)]
pub struct GatewayOptions {
    /// The edges to dial (`host:port`), if there are any, instead of those of the set-up.
    pub edges: Vec<String>,
    /// Where health and metrics are answered, in plain HTTP. Default: nowhere.
    pub health: Option<SocketAddr>,
    /// Opens the built-in upstreams that routes name. Default: there are none.
    pub local: OpenLocal,
    /// Where the gateway keeps what it must remember, and its admin socket. Whoever starts it holds a lock on the
    /// directory. Default: nothing outlives the process, and nobody can ask it anything.
    pub data_dir: Option<PathBuf>,
    /// The time, in seconds since 1970, by which identities, policies and sessions are judged. Default: the machine's.
    pub clock: fn() -> i64,
    /// For tests: what goes wrong with the disk of the audit log. Default: nothing.
    pub audit_faults: Faults,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        let local: OpenLocal = Arc::new(|_, _| Err("it is not part of this program".to_owned()));
        Self {
            edges: Vec::new(),
            health: None,
            local,
            data_dir: None,
            clock: unix_now,
            audit_faults: Faults::default(),
        }
    }
}

impl std::fmt::Debug for GatewayOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { edges, health, local: _, data_dir, clock: _, audit_faults: _ } = self;
        let mut debug = f.debug_struct("GatewayOptions");
        debug.field("edges", edges).field("health", health).field("data_dir", data_dir).finish_non_exhaustive()
    }
}

/// A running gateway. It stops with [`Gateway::drain`], or with the task set that it was started in; dropping this
/// value alone does not stop it.
pub struct Gateway {
    shared: Arc<Shared>,
    builder: Arc<Builder>,
    health: Option<SocketAddr>,
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
    /// # Errors
    /// A setting, a file that it names, the health address or the data directory cannot be used: see [`GatewayError`].
    pub async fn start(
        config: GatewayConfig,
        setup: Setup,
        options: GatewayOptions,
        tasks: TaskSet,
    ) -> Result<Self, GatewayError> {
        let GatewayOptions { edges, health, local, data_dir, clock, audit_faults } = options;
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

        let signer = match data_dir.clone() {
            None => None,
            Some(dir) => {
                let opened = tokio::task::spawn_blocking(move || Signer::open(&dir)).await;
                Some(Arc::new(opened.map_err(|_| GatewayError::Interrupted)??))
            }
        };
        let pins = PinBoard::new(data_dir.clone());
        let builder = Arc::new(Builder::new(&setup, local, pins, signer.clone(), tasks.clone()));
        let building = builder.clone();
        let served = tokio::task::spawn_blocking(move || building.build(config, None)).await;
        let served = served.map_err(|_| GatewayError::Interrupted)??;
        let (settings, kept_in) = (served.config.clone(), data_dir.clone());
        let opened =
            tokio::task::spawn_blocking(move || Audit::open(&settings, kept_in.as_deref(), audit_faults)).await;
        let opened = opened.map_err(|_| GatewayError::Interrupted)?;
        let audit = opened.map_err(|error| match error {
            NotOpened::Log(dir, cause) => GatewayError::Audit { dir, cause },
            NotOpened::Sink(setting, reason) => GatewayError::AuditSink { setting, reason }.at(&served.config.places),
        })?;
        let health = match health {
            None => None,
            Some(address) => {
                Some(health::bind(address).await.map_err(|cause| GatewayError::Health { address, cause })?)
            }
        };
        let (listener, accepting) = match served.config.listener.as_ref().map(|listener| listener.listen_addr) {
            None => (None, None),
            Some(address) => {
                let bound = Listener::bind(address).await;
                let (listener, accepting) = bound.map_err(|cause| GatewayError::Listen { address, cause })?;
                (Some(listener), Some(accepting))
            }
        };
        let admin = match data_dir {
            None => None,
            Some(dir) => Some(AdminSocket::open(&dir).map_err(|cause| GatewayError::Admin { dir, cause })?),
        };

        let shared = Arc::new(Shared {
            served: ArcSwap::from_pointee(served),
            config: Mutex::new(ConfigReport::now(unix_now())),
            changes: watch::Sender::new(()),
            reload: Notify::new(),
            keys: setup.keys,
            signer,
            domain: setup.domain,
            memory: Memory::default(),
            sessions: Sessions::default(),
            approvals: Approvals::new(unix_now, audit.clone()),
            audit: audit.clone(),
            publishing: Publishing::default(),
            counting: Counting::new(),
            inner_connections: Arc::new(Semaphore::new(inner::MAX_CONNECTIONS)),
            listener,
            link: LinkBoard::new(),
            prober: Prober::default(),
            clock,
            draining: AtomicBool::new(false),
            tasks: tasks.clone(),
        });
        let served = shared.served();
        served.log();
        let told = audit.clone();
        let _told = tokio::task::spawn_blocking(move || told.settings_loaded(&served)).await;
        if let Some(log) = audit.log() {
            let (publishing, log) = (shared.clone(), log.clone());
            let started = tokio::task::spawn_blocking(move || publish::start(&publishing, &log)).await;
            started.map_err(|_| GatewayError::Interrupted)?.map_err(GatewayError::Publish)?;
        }
        tasks.spawn("audit", audit.keep(tasks.clone()));
        let health = match health {
            None => None,
            Some((listener, address)) => {
                tasks.spawn("health", health::serve(shared.clone(), listener, metrics));
                Some(address)
            }
        };
        if let Some((listener, accepting)) = shared.listener.as_ref().zip(accepting) {
            let caller = shared.served().asserted.as_ref().map(|caller| caller.subject.clone()).unwrap_or_default();
            tracing::info!(address = %listener.address, caller, "listening for the hosted service's own traffic");
            tasks.spawn("listener", listener::serve(shared.clone(), accepting));
        }
        if let Some(socket) = admin {
            tasks.spawn("admin", admin::serve(shared.clone(), socket));
        }
        tasks.spawn("certificate", watch_certificate(shared.clone()));
        tasks.spawn("client-certificates", client_certificates::watch(shared.clone()));
        let instance = sortie_ids::RequestId::random().as_str().replacen("req_", "gw_", 1);
        let connector = Connector { shared: shared.clone(), edges, tls, token, instance, tasks: tasks.clone() };
        tasks.spawn("connector", connector.run());
        Ok(Self { shared, builder, health })
    }

    /// From here on, what the file at `path` holds is in force soon after it has changed; the same goes for the files
    /// that it names. The one that the gateway was started with is expected there; to be called once.
    ///
    /// A content that cannot be used changes nothing: it is told of once, and shown in [`Gateway::readiness`].
    pub fn watch(&self, path: PathBuf) {
        let watcher = Watcher { shared: self.shared.clone(), builder: self.builder.clone(), path };
        self.shared.tasks.spawn("config", watcher.run());
    }

    /// Has a watched file read at once, whether or not it has changed. Does not wait for it.
    pub fn reload(&self) {
        self.shared.reload.notify_one();
    }

    /// Where health is answered.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health
    }

    /// The directory of the audit log; none where there is no audit.
    pub fn audit_dir(&self) -> Option<&Path> {
        self.shared.audit.dir()
    }

    /// Where the hosted service's own traffic is taken.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.shared.listener.as_ref().map(|listener| listener.address)
    }

    /// Completes when the whole path works: a link is up, and a probe over the first terminated route came back. Where
    /// every route is sealed, the link is enough.
    pub async fn ready(&self) {
        let mut said = None;
        let mut wait = PROBE_AGAIN;
        loop {
            self.shared.link.wait_up().await;
            let served = self.shared.served();
            let terminated = served.routes.iter().find(|route| route.mode() == RouteMode::Terminated);
            let Some(route) = terminated else { return };
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

    /// How long running calls may take to end after a stop was asked for, as the settings in force say.
    pub fn shutdown_timeout(&self) -> Duration {
        self.shared.served().config.shutdown_timeout
    }

    /// Stops: no new stream begins, running calls may end until `shutdown_timeout`, then all is dropped. To be called
    /// before the shutdown of the task set, which otherwise waits for the pool of upstream connections.
    pub async fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.shared.tasks.stop();
        let all = u32::try_from(inner::MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let ending = async {
            // The link says goodbye and goes with its last stream; an older one may still have some, too.
            self.shared.link.wait_down().await;
            drop(self.shared.inner_connections.acquire_many(all).await);
        };
        let timeout = self.shutdown_timeout();
        let mut ending = std::pin::pin!(ending);
        if tokio::time::timeout(timeout, ending.as_mut()).await.is_err() {
            // What waited for a person until now is told that it waited in vain.
            self.shared.approvals.stop();
            if tokio::time::timeout(LAST_WORDS, ending).await.is_err() {
                tracing::warn!(timeout_s = timeout.as_secs_f64(), "calls were still running and are dropped");
            }
        }
        self.shared.served().give_back().await;
        self.shared.tasks.abort();
    }

    /// Ends the audit log with a signed checkpoint, and delivers what is left of it, for some seconds at most. To be called when the task set has shut down: what ends after this is
    /// not recorded.
    pub async fn close(&self) {
        let audit = self.shared.audit.clone();
        let closing = audit.clone();
        let _closed = tokio::task::spawn_blocking(move || closing.close()).await;
        audit.deliver_rest().await;
    }
}

/// Puts renewed certificates in force. A broken one is told of once, and the old one stays.
async fn watch_certificate(shared: Arc<Shared>) {
    let mut said = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(RELOAD_EVERY) => {}
            () = shared.tasks.stopping() => return,
        }
        follow_signer(&shared).await;
        let identity = shared.served().identity.clone();
        let reloading = identity.clone();
        let Ok(reloaded) = tokio::task::spawn_blocking(move || reloading.reload()).await else { continue };
        match reloaded {
            Ok(false) => said.clear(),
            Ok(true) => {
                said.clear();
                metrics::counter!("sortie_gateway_certificate_reloads_total", "result" => "ok").increment(1);
                tracing::info!(days_left = identity.days_left((shared.clock)()), "certificate renewed");
                let leaf = identity.leaf();
                for route in shared.served().routes.iter() {
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

/// Puts the gateway's own keys in force that somebody has changed. Broken ones are told of, and the old ones stay.
async fn follow_signer(shared: &Shared) {
    let Some(signer) = shared.signer.clone() else { return };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || signer.reload()).await {
        tracing::error!("the gateway's signing keys stay as they were: {error}");
    }
}

fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}
