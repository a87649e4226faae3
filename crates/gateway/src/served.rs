//! What is served by one file of settings: made whole, then put in force at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::join_all;
use http::HeaderValue;
use sortie_credentials::Vault;
use sortie_identity::Caller;
use sortie_ids::{Digest, RouteName, TunnelDomain};
use sortie_policy::{Engine, PolicyError};
use sortie_runtime::TaskSet;
use sortie_tls::{ReloadingIdentity, ServerConfig, Versions, covers, server_config};

use crate::audit::{self, Payloads, Shown};
use crate::config::{
    Authorization, GatewayConfig, IssuerConfig, KeysAt, Pinning, PolicyMode, Protocol, RouteConfig, Server,
    TellUpstream, Trust, Upstream,
};
use crate::control::Control;
use crate::credentials::{RouteCredentials, start_vaults};
use crate::gateway::GatewayError;
use crate::inner;
use crate::issuers::{Dialling, Issuer, Issuers};
use crate::limits::Limits;
use crate::pins::PinBoard;
use crate::routes::{Route, RouteTable, Target};
use crate::setup::Setup;
use crate::upstream::{OpenLocal, Servers, Spec};
use crate::upstream_identity::{CallerTokens, Signer, UpstreamIdentity};

/// Largest file of settings, and largest one that they name, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Largest policy file, in bytes: ten thousand rules take more than the settings of any gateway.
pub(crate) const MAX_POLICY: u64 = 32 * 1024 * 1024;

/// Everything that a change of the settings replaces.
pub(crate) struct Served {
    pub(crate) routes: RouteTable,
    /// The gateway's certificate, and the end of inner TLS that shows it to the hub.
    pub(crate) identity: Arc<ReloadingIdentity>,
    pub(crate) hub_tls: Arc<ServerConfig>,
    /// Whose tokens prove a caller.
    pub(crate) issuers: Issuers,
    pub(crate) limits: Limits,
    pub(crate) control: Control,
    /// What records show of arguments.
    pub(crate) shown: Shown,
    /// What they hold whole, sealed.
    pub(crate) payloads: Option<Arc<Payloads>>,
    /// Who calls by the gateway's own listener.
    pub(crate) asserted: Option<Arc<Caller>>,
    /// Servers that secrets are read from, by name.
    pub(crate) vaults: BTreeMap<String, Arc<Vault>>,
    /// The settings as they were read.
    pub(crate) config: GatewayConfig,
}

impl Served {
    /// Gives back what the credentials of all routes have borrowed, and waits for that: at most some seconds. Nothing can
    /// be called with them then.
    pub(crate) async fn give_back(&self) {
        join_all(self.routes.iter().map(|route| route.credentials.close())).await;
        join_all(self.vaults.values().map(|vault| vault.close())).await;
    }

    /// One line for each route, and for what is different from what the settings ask for.
    pub(crate) fn log(&self) {
        self.log_notes();
        self.routes.iter().for_each(|route| route.log());
    }

    fn log_notes(&self) {
        self.config.notes.iter().for_each(|note| tracing::info!("{note}"));
        if self.config.upstream.allowed_ips.iter().any(|range| range.prefix_len() == 0) {
            tracing::warn!("upstream.allowed_ips holds every address: a route's name may lead anywhere");
        }
    }

    /// One line for each route that is not as it was `before`, and for what has to wait.
    pub(crate) fn log_changes(&self, before: &Served) {
        for route in self.routes.iter() {
            if before.routes.by_name(route.name.as_str()).is_none_or(|old| !old.same(route)) {
                route.log();
            }
        }
        let names = |served: &Served| served.routes.iter().map(|route| route.name.clone()).collect::<BTreeSet<_>>();
        for name in names(before).difference(&names(self)) {
            tracing::info!(route = %name, "route removed");
        }
        if self.config.notes != before.config.notes || self.config.upstream != before.config.upstream {
            self.log_notes();
        }
        if self.config.link != before.config.link {
            tracing::info!("the new settings under [link] are used when the edge is dialled next");
        }
        self.log_listener(before);
        audit::log_changes(&self.config.audit, &before.config.audit);
        if self.config.log != before.config.log {
            tracing::warn!("the new log level is used from the next start on");
        }
    }

    fn log_listener(&self, before: &Served) {
        let address = |served: &Served| served.config.listener.as_ref().map(|listener| listener.listen_addr);
        match (&self.config.listener, &before.config.listener) {
            (Some(now), Some(then)) if now.caller != then.caller => {
                tracing::info!(subject = now.caller.subject, "another caller is asserted for what the listener takes");
            }
            (None, Some(_)) => {
                tracing::warn!("nobody is asserted any more for what the listener takes: it refuses everything");
            }
            _ => {}
        }
        if address(self) != address(before) {
            tracing::warn!("the new [listener] listen_addr is listened on from the next start on");
        }
    }

    /// Whether settings and files say the same.
    pub(crate) fn same(&self, other: &Served) -> bool {
        self.config == other.config
            && self.control.text == other.control.text
            && self.routes.iter().zip(other.routes.iter()).all(|(one, two)| one.same(two))
    }
}

/// Makes [`Served`] of settings.
pub(crate) struct Builder {
    domain: TunnelDomain,
    identity: Arc<ReloadingIdentity>,
    local: OpenLocal,
    signer: Option<Arc<Signer>>,
    pins: PinBoard,
    tasks: TaskSet,
}

impl Builder {
    pub(crate) fn new(
        setup: &Setup,
        local: OpenLocal,
        pins: PinBoard,
        signer: Option<Arc<Signer>>,
        tasks: TaskSet,
    ) -> Self {
        Self { domain: setup.domain.clone(), identity: setup.identity.clone(), local, signer, pins, tasks }
    }

    /// Reads the files that the settings name, and changes nothing. Blocks.
    ///
    /// What `previous` has by the same settings and files is taken over: pools of connections, built-in upstreams, and
    /// the proofs that clients of sealed routes have given.
    pub(crate) fn build(&self, config: GatewayConfig, previous: Option<&Served>) -> Result<Served, GatewayError> {
        let places = config.places.clone();
        self.make(config, previous).map_err(|error| error.at(&places))
    }

    fn make(&self, config: GatewayConfig, previous: Option<&Served>) -> Result<Served, GatewayError> {
        if let Some(stated) = &config.tunnel_domain
            && *stated != self.domain.to_string()
        {
            return Err(GatewayError::OtherTunnel { stated: stated.clone(), actual: self.domain.to_string() });
        }
        let identity = self.identity(&config, previous)?;
        let same_identity = previous.filter(|previous| Arc::ptr_eq(&previous.identity, &identity));
        let hub_tls = match same_identity {
            Some(previous) => previous.hub_tls.clone(),
            None => server_config(identity.clone(), Versions::Tls13, &inner::ALPN, None)
                .map_err(|cause| GatewayError::Tls { setting: "inner TLS".to_owned(), cause })?,
        };
        let upstream_ca = match &config.upstream.ca_file {
            None => None,
            Some(path) => Some(read_ca("upstream.tls.ca_file", path)?),
        };
        let missing = |(setting, reason)| GatewayError::Credential { setting, reason };
        let vaults = start_vaults(&config.vaults, previous.map(|previous| &previous.vaults), &self.tasks);
        let vaults = vaults.map_err(missing)?;
        let issuers = self.issuers(&config, &upstream_ca, previous)?;
        let leaf = identity.leaf();
        let mut routes = Vec::with_capacity(config.routes.len());
        for (name, settings) in &config.routes {
            let host = self.domain.route_host(name);
            if !leaf.as_ref().is_some_and(|leaf| covers(leaf, &host)) {
                let way_out = match &config.certificate {
                    None => "run sortie setup renew-cert, and check tunnel-domain",
                    Some(_) => "see tls.cert_file",
                };
                return Err(GatewayError::NotCovered { host, way_out });
            }
            let before = previous.and_then(|previous| previous.routes.by_name(name.as_str()));
            let client_ca = match &settings.client_ca_file {
                None => None,
                Some(path) => Some(read_ca(&format!("routes.{name}.client_ca_file"), path)?),
            };
            let kept = before.map(|route| &route.credentials);
            let tokens = |audience: String| self.caller_tokens(&config, audience);
            let credentials = RouteCredentials::start(name, &settings.credentials, &vaults, &tokens, kept, &self.tasks);
            let proved = before.filter(|route| same_identity.is_some() && route.client_ca == client_ca);
            routes.push(Route {
                name: name.clone(),
                host_value: HeaderValue::from_str(&host).unwrap_or_else(|_| HeaderValue::from_static("")),
                session_scope: session_scope(name, settings),
                sealed: match proved {
                    Some(route) => route.sealed.clone(),
                    None => sealed_tls(name, client_ca.as_deref(), &identity)?,
                },
                client_ca,
                credentials: credentials.map_err(missing)?,
                target: self.target(name, settings, &config, &upstream_ca, before.map(AsRef::as_ref))?,
                max_request_body: settings.max_request_body.unwrap_or(config.max_request_body),
                authorization: settings.authorization == Authorization::Forward,
                token_headers: issuers.headers(name),
                identity: self.upstream_identity(name, settings, &config, &host)?,
                deadline: settings.deadline,
                protocol: settings.protocol,
                pins: is_pinned(settings).then(|| self.pins.route(name)),
                label: name.as_str().into(),
                settings: settings.clone(),
                host,
            });
        }

        let limits = Limits::new(&config.limits, previous.map(|previous| &previous.limits));
        let limits = limits.map_err(GatewayError::Limits)?;
        let control = control(&config)?;
        let asserted = config.listener.as_ref().map(|listener| Arc::new(listener.caller.caller()));
        let routes = RouteTable::new(routes);
        let shown = Shown::new(&config.audit.arguments).map_err(GatewayError::Limits)?;
        let payloads = config.audit.payload.as_ref().map(Payloads::open).transpose();
        let payloads = payloads.map_err(|reason| missing(("audit.payload.key_file".to_owned(), reason)))?;
        Ok(Served {
            routes,
            identity,
            hub_tls,
            control,
            shown,
            payloads: payloads.map(Arc::new),
            issuers,
            limits,
            asserted,
            vaults,
            config,
        })
    }

    /// The certificate that the settings name, or else that of the set-up directory.
    fn identity(
        &self,
        config: &GatewayConfig,
        previous: Option<&Served>,
    ) -> Result<Arc<ReloadingIdentity>, GatewayError> {
        let Some(files) = &config.certificate else { return Ok(self.identity.clone()) };
        match previous.filter(|previous| previous.config.certificate.as_ref() == Some(files)) {
            Some(previous) => Ok(previous.identity.clone()),
            None => ReloadingIdentity::from_files(&files.cert_file, &files.key_file)
                .map(Arc::new)
                .map_err(|cause| GatewayError::Certificate { setting: files.blamed(&cause), cause }),
        }
    }

    /// The issuers of the settings; those until now, with the keys that they have fetched, where nothing has changed.
    fn issuers(
        &self,
        config: &GatewayConfig,
        upstream_ca: &Option<String>,
        previous: Option<&Served>,
    ) -> Result<Issuers, GatewayError> {
        let known = previous.map(|previous| previous.issuers.0.as_slice()).unwrap_or_default();
        let mut issuers = Vec::with_capacity(config.issuers.len());
        for settings in &config.issuers {
            let file = match &settings.keys {
                KeysAt::File(path) => Some(read_text(path).map_err(|cause| GatewayError::CaFile {
                    setting: "issuers.jwks_file".to_owned(),
                    path: path.clone(),
                    cause,
                })?),
                KeysAt::Jwks(_) | KeysAt::Discovery(_) => None,
            };
            let dialling = match file {
                Some(_) => None,
                None => Some(dialling(settings, config, upstream_ca)?),
            };
            if let Some(same) = known.iter().find(|one| one.same(settings, file.as_deref(), dialling.as_ref())) {
                issuers.push(same.clone());
                continue;
            }
            let (url, discovery) = match &settings.keys {
                KeysAt::Jwks(url) => (Some(url), false),
                KeysAt::Discovery(url) => (Some(url), true),
                KeysAt::File(_) => (None, false),
            };
            let issuer = match (file, dialling, url) {
                (None, Some(dialling), Some(url)) => {
                    Issuer::fetched(settings.clone(), url.clone(), discovery, dialling, self.tasks.clone())
                        .map_err(|cause| GatewayError::Tls { setting: "issuers.ca_file".to_owned(), cause })?
                }
                (file, ..) => Issuer::from_file(settings.clone(), file.unwrap_or_default())
                    .map_err(|cause| GatewayError::Issuer { issuer: settings.rules.issuer.clone(), cause })?,
            };
            issuers.push(Arc::new(issuer));
        }
        Ok(Issuers(issuers))
    }

    /// How the upstream of a route is told who is calling.
    fn upstream_identity(
        &self,
        name: &RouteName,
        settings: &RouteConfig,
        config: &GatewayConfig,
        host: &str,
    ) -> Result<Option<UpstreamIdentity>, GatewayError> {
        if settings.identity == TellUpstream::None {
            return Ok(None);
        }
        let audience = match &settings.upstream {
            Upstream::Servers(servers) => servers.first().map(Server::url).unwrap_or_default(),
            Upstream::Files => format!("https://{host}"),
        };
        let no_signer = || GatewayError::NoSigner { route: name.clone() };
        let tokens = self.caller_tokens(config, audience).ok_or_else(no_signer)?;
        Ok(Some(UpstreamIdentity::new(config.identity.header.clone(), tokens)))
    }

    /// What is signed about callers for this audience; `None` without a key to sign with.
    fn caller_tokens(&self, config: &GatewayConfig, audience: String) -> Option<CallerTokens> {
        let issuer = issuer_name(config, &self.domain);
        Some(CallerTokens::new(self.signer.clone()?, issuer, audience, config.identity.lifetime))
    }

    fn target(
        &self,
        name: &RouteName,
        settings: &RouteConfig,
        config: &GatewayConfig,
        upstream_ca: &Option<String>,
        before: Option<&Route>,
    ) -> Result<Target, GatewayError> {
        if let Upstream::Servers(servers) = &settings.upstream {
            let spec = spec(name, settings, servers, config, upstream_ca)?;
            let own_trust = settings.tls.trust.is_some();
            return self.servers(name, spec, own_trust, before).map(Target::Servers);
        }
        if let Some(Route { target: Target::Local(local), settings: old, .. }) = before
            && old.upstream == settings.upstream
            && old.root == settings.root
        {
            return Ok(Target::Local(local.clone()));
        }
        (self.local)(name, settings).map(Target::Local).map_err(|reason| GatewayError::Local {
            route: name.clone(),
            upstream: settings.upstream.clone(),
            reason,
        })
    }

    /// The servers of a route; those until now, with their connections, where nothing about them has changed.
    /// `own_trust`: whom to trust is what the route itself says.
    fn servers(
        &self,
        name: &RouteName,
        spec: Spec,
        own_trust: bool,
        before: Option<&Route>,
    ) -> Result<Arc<Servers>, GatewayError> {
        let previous = match before {
            Some(Route { target: Target::Servers(servers), .. }) => Some(servers),
            _ => None,
        };
        if let Some(same) = previous.filter(|previous| previous.serves(&spec)) {
            return Ok(same.clone());
        }
        let identity = match &spec.client_files {
            None => None,
            Some((cert, key)) => {
                let opened = ReloadingIdentity::client_from_files(cert, key);
                Some(Arc::new(opened.map_err(|cause| GatewayError::ClientCertificate { route: name.clone(), cause })?))
            }
        };
        let tls = if spec.https() {
            let (ca, system) = (spec.trust.0.as_deref().unwrap_or(""), spec.trust.1);
            let made = sortie_tls::upstream_client_config(ca, system, &[b"http/1.1"], identity.clone());
            let setting = if own_trust { format!("routes.{name}.tls") } else { "upstream.tls".to_owned() };
            Some(made.map_err(|cause| GatewayError::Tls { setting, cause })?)
        } else {
            None
        };
        let previous = previous.map(AsRef::as_ref);
        Ok(Arc::new(Servers::new(spec, tls, identity, previous, self.tasks.clone())))
    }
}

/// The name under which this gateway tells upstreams who is calling.
pub(crate) fn issuer_name(config: &GatewayConfig, domain: &TunnelDomain) -> String {
    config.identity.issuer.clone().unwrap_or_else(|| format!("urn:sortie:gateway:{domain}"))
}

/// How the keys of an issuer are fetched.
fn dialling(
    settings: &IssuerConfig,
    config: &GatewayConfig,
    upstream_ca: &Option<String>,
) -> Result<Dialling, GatewayError> {
    let (ca, system) = match &settings.trust {
        None => (upstream_ca.clone(), config.upstream.include_system_cas),
        Some(Trust { ca_file, include_system_cas }) => {
            let read = ca_file.as_deref().map(|path| read_ca("issuers.ca_file", path)).transpose()?;
            (read, *include_system_cas)
        }
    };
    let allowed_ips = settings.allowed_ips.clone().unwrap_or_else(|| config.upstream.allowed_ips.clone());
    Ok(Dialling { ca, system, allowed_ips, connect_timeout: config.upstream.connect_timeout })
}

/// The policy that the settings name.
fn control(config: &GatewayConfig) -> Result<Control, GatewayError> {
    let settings = &config.control;
    let read = RefCell::new(String::new());
    let reader = |path: &Path| {
        let text = read_policy(path)?;
        read.borrow_mut().push_str(&format!("{}:{}:{text}", path.display(), text.len()));
        Ok(text)
    };
    let engine = match (settings.policy, &settings.policy_file) {
        (PolicyMode::Off, _) | (_, None) => None,
        (mode, Some(path)) => {
            Some(Arc::new(policies(mode, path, reader).map_err(|cause| GatewayError::Policy { cause })?))
        }
    };
    let region = settings.region.as_deref().map(Arc::from);
    Ok(Control { mode: settings.policy, engine, text: Digest::of(read.into_inner().as_bytes()), region })
}

/// Reads policies to be obeyed or watched. A file that is empty is one that somebody has yet to write, or lost.
pub(crate) fn policies(
    mode: PolicyMode,
    path: &Path,
    read: impl Fn(&Path) -> std::io::Result<String>,
) -> Result<Engine, PolicyError> {
    let engine = Engine::load(path, read)?;
    if mode == PolicyMode::Enforce && engine.is_empty() {
        let way_out = "it has no policy: write one; to refuse everything, forbid(principal, action, resource);";
        return Err(PolicyError { problems: vec![format!("{}: {way_out}", path.display())] });
    }
    Ok(engine)
}

/// What decides how the servers of a route are dialled.
fn spec(
    name: &RouteName,
    settings: &RouteConfig,
    servers: &[Server],
    config: &GatewayConfig,
    upstream_ca: &Option<String>,
) -> Result<Spec, GatewayError> {
    let trust = match &settings.tls.trust {
        None => (upstream_ca.clone(), config.upstream.include_system_cas),
        Some(Trust { ca_file: None, include_system_cas }) => (None, *include_system_cas),
        Some(Trust { ca_file: Some(path), include_system_cas }) => {
            (Some(read_ca(&format!("routes.{name}.tls.ca_file"), path)?), *include_system_cas)
        }
    };
    Ok(Spec {
        servers: servers.to_vec(),
        host: settings.host.clone(),
        allowed_ips: config.upstream.allowed_ips.clone(),
        connect_timeout: settings.connect_timeout.unwrap_or(config.upstream.connect_timeout),
        trust,
        client_files: settings.tls.client.clone(),
        server_name: settings.tls.server_name.clone(),
    })
}

/// What is the same for all routes to the same servers, and for no others.
fn session_scope(name: &RouteName, settings: &RouteConfig) -> Digest {
    match &settings.upstream {
        Upstream::Servers(_) => Digest::of(settings.upstream.to_string().as_bytes()),
        Upstream::Files => Digest::of(format!("builtin:{name}").as_bytes()),
    }
}

fn sealed_tls(
    name: &RouteName,
    client_ca: Option<&str>,
    identity: &Arc<ReloadingIdentity>,
) -> Result<Option<Arc<ServerConfig>>, GatewayError> {
    let Some(pem) = client_ca else { return Ok(None) };
    let config = server_config(identity.clone(), Versions::Tls13, &inner::ALPN, Some(pem));
    config.map(Some).map_err(|cause| GatewayError::Tls { setting: format!("routes.{name}.client_ca_file"), cause })
}

/// Whether there is something to pin. Built-in servers are part of this program, and change with it.
fn is_pinned(settings: &RouteConfig) -> bool {
    let foreign = matches!(settings.upstream, Upstream::Servers(_));
    foreign && settings.pinning != Pinning::Off && settings.protocol != Protocol::Http
}

fn read_ca(setting: &str, path: &Path) -> Result<String, GatewayError> {
    read_text(path).map_err(|cause| GatewayError::CaFile { setting: setting.to_owned(), path: path.to_owned(), cause })
}

/// The same for one that has to be text. Blocks.
pub(crate) fn read_text(path: &Path) -> std::io::Result<String> {
    read_bounded(path).and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
}

/// A policy file. Blocks.
pub(crate) fn read_policy(path: &Path) -> std::io::Result<String> {
    read_up_to(MAX_POLICY, path).and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
}

/// A file of settings, or one that they name. Blocks.
pub(crate) fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    read_up_to(MAX_FILE, path)
}

/// Any file up to so many bytes. Blocks.
pub(crate) fn read_up_to(limit: u64, path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= limit => Ok(bytes),
        _ => Err(std::io::Error::other(format!("it is larger than {} MiB", limit >> 20))),
    }
}
