//! The gateway's file of settings, in TOML; also in YAML as the hosted proxy has it. Reads text; dials nothing, and opens no file that the settings name.

mod approvals;
mod audit;
mod check;
mod control;
mod credentials;
mod destinations;
mod dialling;
mod identity;
mod issuers;
mod limits;
mod link;
mod listener;
mod pinning;
mod places;
mod publish;
mod show;
mod sinks;
mod span;
mod upstreams;
mod yaml;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::proxy::LinkConfig;
use crate::served::read_text;
use http::HeaderValue;
use http::uri::Authority;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::RouteName;
use sortie_link::protos::{MAX_ROUTES, Route, RouteMode, fits};
use sortie_tls::IdentityError;
use toml::Spanned;

use approvals::RawApprovals;
use audit::RawAudit;
use credentials::{RawCredential, RawVault};
use dialling::{RawDialling, RawTls, ranges};
use identity::RawIdentity;
use issuers::RawIssuer;
use limits::RawLimit;
use link::RawLink;
use listener::RawListener;
pub(crate) use places::Places;
use sortie_credentials::VaultSpec;
use span::{Span, span_text};
use upstreams::{Keepalive, RawRouteTls, RawUpstream};

pub use approvals::{ApprovalSource, ApprovalSources, ApprovalsConfig};
pub use audit::{AuditConfig, AuditDurability, AuditLogConfig, OnFailure, PayloadConfig, ShownArguments};
pub use control::{ControlConfig, PolicyMode, Refusals};
pub use credentials::{RouteCredential, SubjectToken};
pub use destinations::AuditDestinations;
pub use identity::{IdentityConfig, TellUpstream};
pub(crate) use issuers::fetchable;
pub use issuers::{IssuerConfig, KeysAt};
pub use limits::{LimitConfig, Per, Rate};
pub use listener::{AssertedCaller, ListenerConfig};
pub use pinning::Pinning;
pub use sortie_credentials::Trust;
pub use upstreams::{RouteTls, Server, Upstream};

/// Why a file of settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {cause}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A setting that is unknown, missing or wrong.
    #[error("{path}:{line}: {field}{reason}", path = path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The setting's name, followed by a colon and a space; empty where the reason names it.
        field: String,
        /// What is wrong, and the way out.
        reason: String,
    },
}

/// The settings of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayConfig {
    /// `[routes.NAME]`: what is served, by the first label of the hostname. At least one, at most 1024.
    pub routes: BTreeMap<RouteName, RouteConfig>,
    /// `[upstream]`: how upstreams are dialled.
    pub upstream: UpstreamConfig,
    /// `[link]`: how the edge is reached.
    pub link: LinkConfig,
    /// `[listener]`: where the hosted service's own connector hands its traffic over, and as whom it counts. Default:
    /// nowhere.
    pub listener: Option<ListenerConfig>,
    /// `max_request_body`: largest request body in bytes; a larger one is answered 413. Default 4194304 (4 MiB).
    pub max_request_body: u64,
    /// `log`: a level (`error`, `warn`, `info`, `debug`, `trace`) or a list of `target=level`. Default `info`.
    pub log: String,
    /// `shutdown_timeout`: how long calls that run may take to end after a stop was asked for. Default `30s`.
    pub shutdown_timeout: Duration,
    /// `tunnel_domain`: the tunnel that these routes are for. The set-up directory must agree. Default: whatever that
    /// directory says.
    pub tunnel_domain: Option<String>,
    /// `[tls]`: the certificate of inner TLS, where it is not the one of the set-up directory.
    pub certificate: Option<CertificateFiles>,
    /// `[[issuers]]`: whose tokens prove a caller, beside the hub's word. At most 32. Default none.
    pub issuers: Vec<IssuerConfig>,
    /// `[identity]`: how upstreams are told who is calling.
    pub identity: IdentityConfig,
    /// `approval_timeout`, `[approvals]`: how calls wait for a person.
    pub approvals: ApprovalsConfig,
    /// `[[limits]]`: how much callers may do. At most 256.
    pub limits: Vec<LimitConfig>,
    /// `policy`, `policy_file`, `region`, `refusals`: what callers may do.
    pub control: ControlConfig,
    /// `[audit]`: how what happens is recorded.
    pub audit: AuditConfig,
    /// `log_request_start`: whether the log has a line `request started` for each call when it begins, beside the one
    /// when it has ended. Default false; true for the hosted proxy's file.
    pub log_request_start: bool,
    /// `pinning`: whether tools stay what they were when they were first seen or approved: `first-use` (default), `approve`
    /// or `off`.
    pub pinning: Pinning,
    /// `[vault.NAME]`: servers of Vault or OpenBao that secrets are read from. At most 16.
    pub vaults: BTreeMap<String, VaultSpec>,
    /// What the file asks for and what is different here, one sentence each.
    pub(crate) notes: Vec<String>,
    /// Where each setting stands.
    pub(crate) places: Places,
}

/// A certificate and its key, which are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// `cert_file`: the certificate in PEM, with intermediates after it if there are any.
    pub cert_file: PathBuf,
    /// `key_file`: its private key in PEM.
    pub key_file: PathBuf,
}

impl CertificateFiles {
    /// The setting that an error is about.
    pub(crate) fn blamed(&self, error: &IdentityError) -> &'static str {
        match error {
            IdentityError::Read { path, .. } | IdentityError::TooLarge { path } if *path == self.key_file => {
                "tls.key_file"
            }
            IdentityError::NoKey { .. } => "tls.key_file",
            _ => "tls.cert_file",
        }
    }
}

/// The settings of one route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteConfig {
    /// `upstream`: where calls go, `http://host:port`, `https://host:port`, `unix:PATH`, a list of these, or
    /// `builtin:files`. Required.
    pub upstream: Upstream,
    /// `authorization`: whether the caller's `Authorization` header reaches the upstream, `strip` (default) or `forward`.
    pub authorization: Authorization,
    /// `host`: the `Host` header that the upstream gets. Default: the upstream's authority.
    pub host: Option<HeaderValue>,
    /// `mode`: who ends the client's TLS, `terminated` (the hub, default) or `sealed` (this gateway).
    pub mode: RouteMode,
    /// `client_ca_file`: CA certificates, in PEM, of the clients of a sealed route. Required there, refused elsewhere.
    pub client_ca_file: Option<PathBuf>,
    /// `root`: the directory that `builtin:files` serves. Required there, refused elsewhere.
    pub root: Option<PathBuf>,
    /// `deadline`: longest wait for the head of the upstream's response. Default: none, since calls may take hours.
    pub deadline: Option<Duration>,
    /// `protocol`: what requests are held to, `auto` (default), `mcp` or `http`.
    pub protocol: Protocol,
    /// `connect_timeout`: longest wait for a connection to one server. Default: that of `[upstream]`.
    pub connect_timeout: Option<Duration>,
    /// `idle_timeout`: longest silence of the upstream within the body of an answer, which then breaks off. Default:
    /// none.
    pub idle_timeout: Option<Duration>,
    /// `keepalive`: how long an event stream may be quiet before a comment is put in. Default `20s`; `"0"` for none.
    pub keepalive: Option<Duration>,
    /// `max_request_body`: largest request body in bytes. Default: that of the whole gateway.
    pub max_request_body: Option<u64>,
    /// `identity`: whether the upstream is told who is calling, `none` (default) or `signed`.
    pub identity: TellUpstream,
    /// `tls`: trust and certificates of this route's `https` upstreams. Default: `[upstream.tls]`.
    pub tls: RouteTls,
    /// `pinning`: as that of the whole gateway, which is the default.
    pub pinning: Pinning,
    /// `[[routes.NAME.credentials]]`: with whose secret calls go on; the first one that is for a call. At most 64.
    pub credentials: Vec<RouteCredential>,
}

/// How upstreams are dialled.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamConfig {
    /// `allowed_ips`: address ranges or single addresses that upstreams may have. Replaces the default: RFC 1918 and
    /// fc00::/7.
    pub allowed_ips: Vec<IpNet>,
    /// `connect_timeout`: longest wait for name resolution, TCP and TLS together. Default `10s`.
    pub connect_timeout: Duration,
    /// `tls.ca_file`: CA certificates, in PEM, that `https` upstreams may chain to. Default none.
    pub ca_file: Option<PathBuf>,
    /// `tls.include_system_cas`: whether the machine's own CAs are trusted for `https` upstreams. Default false.
    pub include_system_cas: bool,
}

/// What happens to the caller's `Authorization` header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Authorization {
    /// It ends here.
    #[default]
    Strip,
    /// The upstream gets it.
    Forward,
}

/// What the requests of a route are held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// A POST in JSON that speaks JSON-RPC is held to the rules of MCP; everything else streams through.
    #[default]
    Auto,
    /// Every POST has to be MCP.
    Mcp,
    /// Bodies stream through unseen.
    Http,
}

impl GatewayConfig {
    /// Reads a file. Blocks. Paths in it are relative to the directory that the file is in.
    ///
    /// # Errors
    /// The file cannot be read, or a setting is unknown, missing or wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
        Self::parse(&text, path)
    }

    /// Reads settings from text; `path` is what errors name, and whose directory relative paths start from. One that
    /// ends in `.yaml` or `.yml` has the form of the hosted proxy.
    ///
    /// # Errors
    /// A setting is unknown, missing or wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            return yaml::parse(text, path);
        }
        Self::parse_toml(text, path)
    }

    fn parse_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let source = Source { text, path };
        let raw: Raw = toml::from_str(text).map_err(|error| source.unreadable(&error))?;
        let base = path.parent().unwrap_or(Path::new(""));

        if raw.routes.get_ref().is_empty() {
            let reason = "no route is set; write [routes.NAME] with upstream = \"http://host:port\"";
            return Err(source.wrong(Some(raw.routes.span()), "routes", reason));
        }
        if raw.routes.get_ref().len() > MAX_ROUTES {
            let reason = format!("there are more than {MAX_ROUTES}; split them over several tunnels");
            return Err(source.wrong(Some(raw.routes.span()), "routes", reason));
        }
        let trusts = raw.upstream.tls.ca_file.is_some() || raw.upstream.tls.include_system_cas;
        let at_routes = raw.routes.span();
        let mut routes = BTreeMap::new();
        for (name, route) in raw.routes.into_inner() {
            routes.insert(name.clone(), route.check(&name, &source, base, trusts, &raw.vault, raw.pinning)?);
        }
        let announced = routes.iter().map(|(name, route)| Route { name: name.clone(), mode: route.mode });
        if !fits(&announced.collect::<Vec<_>>()) {
            let reason = "their names are too long to be announced together; shorten them, or split them over several \
                          tunnels";
            return Err(source.wrong(Some(at_routes), "routes", reason));
        }
        let issuers = issuers::check(raw.issuers, &source, base, &routes, trusts)?;
        Ok(Self {
            routes,
            issuers,
            identity: raw.identity.check(&source)?,
            control: control::check(raw.policy, raw.policy_file, raw.region, raw.refusals, &source, base)?,
            audit: raw.audit.check(&source, base, &raw.vault)?,
            vaults: credentials::check_vaults(raw.vault, &source, base)?,
            upstream: raw.upstream.check(&source, base)?,
            link: raw.link.check(&source, base)?,
            listener: raw.listener.map(|listener| RawListener::check(listener, &source)).transpose()?,
            max_request_body: raw.max_request_body,
            log: raw.log,
            shutdown_timeout: raw.shutdown_timeout.0,
            tunnel_domain: raw.tunnel_domain,
            certificate: raw
                .tls
                .map(|tls| CertificateFiles { cert_file: base.join(tls.cert_file), key_file: base.join(tls.key_file) }),
            approvals: raw.approvals.check(raw.approval_timeout, &source)?,
            limits: limits::check(raw.limits, &source)?,
            log_request_start: raw.log_request_start,
            pinning: raw.pinning,
            notes: Vec::new(),
            places: Places::of_toml(text, path),
        })
    }

    /// The files that the settings name and whose content is part of what is served.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let routes = self.routes.values().flat_map(|route| {
            let trusted = route.tls.trust.as_ref().and_then(|trust| trust.ca_file.clone());
            route.client_ca_file.iter().cloned().chain(trusted)
        });
        let issuers = self.issuers.iter().flat_map(|issuer| {
            let trusted = issuer.trust.as_ref().and_then(|trust| trust.ca_file.clone());
            let keys = match &issuer.keys {
                KeysAt::File(path) => Some(path.clone()),
                KeysAt::Jwks(_) | KeysAt::Discovery(_) => None,
            };
            trusted.into_iter().chain(keys)
        });
        let payload = self.audit.payload.as_ref().map(|payload| &payload.key_file);
        let whole = self.upstream.ca_file.iter().chain(&self.control.policy_file).chain(payload).cloned();
        whole.chain(routes).chain(issuers).collect()
    }
}

/// The text that settings came from, for errors that say where.
struct Source<'a> {
    text: &'a str,
    path: &'a Path,
}

impl Source<'_> {
    fn line(&self, span: Option<Range<usize>>) -> (usize, &str) {
        let at = span.map_or(0, |span| span.start.min(self.text.len()));
        let before = self.text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count();
        (line + 1, self.text.lines().nth(line).unwrap_or_default())
    }

    /// An error of the TOML reader. Its message names unknown and missing settings; for a value that is wrong, the
    /// name is taken from the line.
    fn unreadable(&self, error: &toml::de::Error) -> ConfigError {
        let (line, text) = self.line(error.span());
        let name = text.split_once('=').map(|(name, _)| name.trim()).unwrap_or_default();
        let message = error.message().trim();
        let field =
            if name.is_empty() || message.contains(&format!("`{name}`")) { String::new() } else { format!("{name}: ") };
        ConfigError::Setting { path: self.path.to_owned(), line, field, reason: message.replace('\n', "; ") }
    }

    fn wrong(&self, span: Option<Range<usize>>, field: &str, reason: impl Into<String>) -> ConfigError {
        let (line, _) = self.line(span);
        let field = format!("{field}: ");
        ConfigError::Setting { path: self.path.to_owned(), line, field, reason: reason.into() }
    }
}

/// The settings of a gateway, as its TOML file has them.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "sortie gateway")]
struct Raw {
    /// What is served, by the first label of the hostname: 1 to 48 of a-z, 0-9 and single dashes inside. At least one, at
    /// most 1024.
    #[schemars(with = "BTreeMap<String, RawRoute>")]
    routes: Spanned<BTreeMap<RouteName, RawRoute>>,
    /// Issuers whose tokens prove a caller, beside the hub's word; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    issuers: Vec<RawIssuer>,
    /// How upstreams are told who is calling, on routes with identity = "signed".
    #[serde(default)]
    identity: RawIdentity,
    /// Whether calls are held to the policy file: `off` (default), `shadow` (judged and told, nothing refused), `enforce`.
    #[serde(default)]
    policy: PolicyMode,
    /// What is allowed, in Cedar (.cedar) or in the short form (.toml). Required unless policy is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    policy_file: Option<Spanned<PathBuf>>,
    /// Where this gateway is, for policies that ask: 1 to 64 letters, digits, `-`, `_` and `.`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    region: Option<Spanned<String>>,
    /// How a caller that spoke JSON-RPC is told that it may not do something.
    #[serde(default)]
    refusals: Refusals,
    /// How what happens is recorded.
    #[serde(default)]
    audit: RawAudit,
    /// How upstreams are dialled, for all routes.
    #[serde(default)]
    upstream: RawDialling,
    /// How the edge is reached.
    #[serde(default)]
    link: RawLink,
    /// Where the hosted service's own connector hands its traffic over, and as whom it counts. Default: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<RawListener>")]
    listener: Option<Spanned<RawListener>>,
    /// Largest request body, in bytes; a larger one is answered 413.
    #[serde(default = "default_max_request_body")]
    max_request_body: u64,
    /// What is logged: a level (error, warn, info, debug, trace) or a list of target=level. The flag --log comes first.
    #[serde(default = "default_log")]
    log: String,
    /// Whether the log has a line `request started` for each call when it begins, beside the one when it has ended.
    #[serde(default)]
    log_request_start: bool,
    /// How long running calls may take to end after a stop was asked for.
    #[serde(default = "default_shutdown_timeout")]
    shutdown_timeout: Span,
    /// The tunnel that these routes are for; the set-up directory must agree. Default: whatever that directory says.
    #[serde(skip_serializing_if = "Option::is_none")]
    tunnel_domain: Option<String>,
    /// The certificate of inner TLS, where it is not the one of the set-up directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<RawCertificate>,
    /// How long a call that policy asks for waits for a person; then it is refused. Default 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    approval_timeout: Option<Span>,
    /// Who decides about calls that policy asks for, and what they see of them.
    #[serde(default)]
    approvals: RawApprovals,
    /// How much callers may do; every limit that matches a call has to let it pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RawLimit>")]
    limits: Vec<Spanned<RawLimit>>,
    /// Whether tools stay what they were when they were first seen (first-use) or approved (approve).
    #[serde(default)]
    pinning: Pinning,
    /// Servers of HashiCorp Vault or OpenBao that secrets are read from, by a name of your choice. At most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, RawVault>")]
    vault: BTreeMap<String, Spanned<RawVault>>,
}

#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Certificate")]
struct RawCertificate {
    /// The certificate in PEM, with intermediates after it if there are any.
    cert_file: PathBuf,
    /// Its private key in PEM.
    key_file: PathBuf,
}

/// One route.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Route")]
struct RawRoute {
    /// Where calls go: http://host:port, https://host:port, unix:PATH, a list of at most 16 of these, or builtin:files. The
    /// port must be written; no path. Of a list, calls go to the first server that can be connected.
    #[schemars(with = "RawUpstream")]
    upstream: Spanned<RawUpstream>,
    /// Whether the caller's Authorization header reaches the upstream.
    #[serde(default)]
    authorization: Authorization,
    /// The Host header that the upstream gets. Default: the upstream's host:port; for builtin:files the public hostname.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    host: Option<Spanned<String>>,
    /// Who ends the client's TLS: the hub (terminated), or this gateway (sealed).
    #[serde(default)]
    #[schemars(with = "String", extend("enum" = ["terminated", "sealed"], "default" = "terminated"))]
    mode: RouteMode,
    /// CA certificates (PEM) of the clients of a sealed route; required there, refused elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    client_ca_file: Option<Spanned<PathBuf>>,
    /// The directory that builtin:files serves; required there, refused elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    root: Option<Spanned<PathBuf>>,
    /// Longest wait for the head of the answer; then 504. Without it a call may take as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<Span>,
    /// What requests are held to: MCP where they speak it (auto), always (mcp), or to nothing (http).
    #[serde(default)]
    protocol: Protocol,
    /// Longest wait for a connection to one server; then 504. Default: that of upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout: Option<Span>,
    /// Longest silence of the upstream within the body of an answer, which then breaks off. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<Span>,
    /// How long an event stream may be quiet before a comment is put in; "0" puts in none.
    #[serde(default)]
    keepalive: Keepalive,
    /// Largest request body of this route, in bytes. Default: that at the top.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_request_body: Option<u64>,
    /// Whether the upstream is told who is calling: not at all (none), or in a token that this gateway signs (signed).
    #[serde(default)]
    identity: TellUpstream,
    /// For https upstreams: whom to trust, and what is shown to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<RawRouteTls>")]
    tls: Option<Spanned<RawRouteTls>>,
    /// As that at the top, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pinning: Option<Pinning>,
    /// With whose secret calls go on: each call gets the first of these that is for it. Where there are some and none is
    /// for a call, it is refused. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RawCredential>")]
    credentials: Vec<Spanned<RawCredential>>,
}

impl RawRoute {
    fn check(
        self,
        name: &RouteName,
        source: &Source<'_>,
        base: &Path,
        trusts: bool,
        vaults: &BTreeMap<String, Spanned<RawVault>>,
        pinning: Pinning,
    ) -> Result<RouteConfig, ConfigError> {
        let field = |setting: &str| format!("routes.{name}.{setting}");
        let at_upstream = Some(self.upstream.span());
        let checked = self.upstream.get_ref().check(base);
        let upstream = checked.map_err(|reason| source.wrong(at_upstream.clone(), &field("upstream"), reason))?;

        let https = matches!(&upstream, Upstream::Servers(servers) if servers.iter().any(Server::tls));
        let tls = match self.tls {
            None => RouteTls::default(),
            Some(tls) if !https => {
                let reason = "only https upstreams are spoken TLS with; remove it, or dial them by https://host:port";
                return Err(source.wrong(Some(tls.span()), &field("tls"), reason));
            }
            Some(tls) => tls
                .into_inner()
                .check(base)
                .map_err(|(at, setting, reason)| source.wrong(Some(at), &field(&format!("tls.{setting}")), reason))?,
        };
        if https && !tls.trust.as_ref().map_or(trusts, Trust::is_some) {
            let reason = format!(
                "an https upstream needs to know whom to trust; set ca_file or include_system_cas = true under \
                 [upstream.tls] or [routes.{name}.tls]"
            );
            return Err(source.wrong(at_upstream, &field("upstream"), reason));
        }
        match (&upstream, &self.root) {
            (Upstream::Files, None) => {
                let reason = "builtin:files needs the directory that it serves; set root = \"DIR\"";
                return Err(source.wrong(at_upstream, &field("root"), reason));
            }
            (Upstream::Servers(_), Some(root)) => {
                let reason = "only builtin:files serves a directory; remove it, or set upstream = \"builtin:files\"";
                return Err(source.wrong(Some(root.span()), &field("root"), reason));
            }
            _ => {}
        }
        match (self.mode, &self.client_ca_file) {
            (RouteMode::Sealed, None) => {
                let reason = "a sealed route needs the CA of its clients' certificates; set client_ca_file";
                return Err(source.wrong(at_upstream, &field("client_ca_file"), reason));
            }
            (RouteMode::Terminated, Some(file)) => {
                let reason = "only sealed routes ask clients for certificates; remove it, or set mode = \"sealed\"";
                return Err(source.wrong(Some(file.span()), &field("client_ca_file"), reason));
            }
            _ => {}
        }
        let host = match self.host {
            None => None,
            Some(host) => Some(host_value(host.get_ref()).ok_or_else(|| {
                let reason = format!("`{}` is not a host, with or without a port", host.get_ref());
                source.wrong(Some(host.span()), &field("host"), reason)
            })?),
        };
        let deadline = self.deadline.map(|span| span.0);
        if let (Upstream::Files, Some(first)) = (&upstream, self.credentials.first()) {
            let reason = "the built-in server is part of the gateway and asks for no credential; remove it";
            return Err(source.wrong(Some(first.span()), &field("credentials"), reason));
        }
        let credentials = credentials::check_all(self.credentials, self.authorization, (&upstream, &tls), vaults, base);
        let credentials =
            credentials.map_err(|(at, setting, reason)| source.wrong(Some(at), &field(&setting), reason))?;
        Ok(RouteConfig {
            credentials,
            upstream,
            authorization: self.authorization,
            host,
            mode: self.mode,
            client_ca_file: self.client_ca_file.map(|file| base.join(file.get_ref())),
            root: self.root.map(|root| base.join(root.get_ref())),
            deadline,
            protocol: self.protocol,
            connect_timeout: self.connect_timeout.map(|span| span.0),
            idle_timeout: self.idle_timeout.map(|span| span.0),
            keepalive: self.keepalive.0,
            max_request_body: self.max_request_body,
            identity: self.identity,
            tls,
            pinning: self.pinning.unwrap_or(pinning),
        })
    }
}

fn host_value(text: &str) -> Option<HeaderValue> {
    let authority: Authority = text.parse().ok()?;
    if authority.host().is_empty() || authority.as_str().contains('@') {
        return None;
    }
    HeaderValue::from_str(text).ok()
}

fn default_max_request_body() -> u64 {
    4 * 1024 * 1024
}

fn default_log() -> String {
    "info".to_owned()
}

fn default_shutdown_timeout() -> Span {
    Span(Duration::from_secs(30))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GatewayConfig, ConfigError> {
        GatewayConfig::parse(text, Path::new("/etc/sortie/gateway.toml"))
    }

    fn refusal(text: &str) -> String {
        parse(text).expect_err(text).to_string()
    }

    const ROUTE: &str = "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n";

    #[test]
    fn the_documented_example_is_accepted() {
        let page = include_str!("../../../docs/gateway-config.md");
        let example = page.rsplit_once("```toml").and_then(|(_, rest)| rest.split_once("```")).expect("an example").0;
        let config = GatewayConfig::parse(example, Path::new("/etc/sortie/gateway.toml")).expect("accepted");
        assert_eq!(config.routes.len(), 6);
        assert_eq!(config.link.proxy.map(|proxy| proxy.port), Some(3128));
    }

    #[test]
    fn a_short_file_gets_the_defaults() {
        let config = parse(ROUTE).expect("config");
        let route = &config.routes[&"docs".parse::<RouteName>().expect("name")];
        assert_eq!(route.upstream.to_string(), "http://10.0.0.5:8080");
        assert_eq!((route.authorization, route.mode), (Authorization::Strip, RouteMode::Terminated));
        assert_eq!((config.max_request_body, config.log.as_str()), (4 << 20, "info"));
        assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
        assert_eq!(config.upstream.allowed_ips.len(), 4);
        assert_eq!(config.upstream.connect_timeout, Duration::from_secs(10));
    }

    #[test]
    fn every_setting_is_read() {
        let config = parse(
            r#"
            max_request_body = 1000
            log = "debug"
            shutdown_timeout = "5s"
            log_request_start = true
            tunnel_domain = "abcd1234.tunnel.example"
            [tls]
            cert_file = "own.crt"
            key_file = "/run/own.key"
            [routes.docs]
            upstream = "https://wiki.internal:8443"
            authorization = "forward"
            host = "wiki.example.test"
            deadline = "300s"
            protocol = "mcp"
            [routes.files]
            upstream = "builtin:files"
            root = "shared"
            [routes.raw]
            upstream = "http://[fd00::5]:80"
            mode = "sealed"
            client_ca_file = "/etc/clients.pem"
            [upstream]
            allowed_ips = ["100.64.0.0/10", "10.1.2.3"]
            connect_timeout = "500ms"
            [upstream.tls]
            ca_file = "ca.pem"
            include_system_cas = true
            "#,
        )
        .expect("config");
        let route = |name: &str| &config.routes[&name.parse::<RouteName>().expect("name")];
        assert_eq!(route("docs").authorization, Authorization::Forward);
        assert_eq!(route("docs").deadline, Some(Duration::from_secs(300)));
        assert_eq!((route("docs").protocol, route("files").protocol), (Protocol::Mcp, Protocol::Auto));
        assert_eq!(route("files").root.as_deref(), Some(Path::new("/etc/sortie/shared")));
        let Upstream::Servers(servers) = &route("raw").upstream else { panic!("servers") };
        let [Server::Tcp { host, port, .. }] = servers.as_slice() else { panic!("one server") };
        assert_eq!((host.as_str(), *port), ("fd00::5", 80));
        assert_eq!(config.upstream.ca_file.as_deref(), Some(Path::new("/etc/sortie/ca.pem")));
        assert_eq!(config.upstream.allowed_ips.len(), 2);
        assert_eq!(
            (config.log_request_start, config.tunnel_domain.as_deref()),
            (true, Some("abcd1234.tunnel.example"))
        );
        let (cert_file, key_file) = ("/etc/sortie/own.crt".into(), "/run/own.key".into());
        assert_eq!(config.certificate, Some(CertificateFiles { cert_file, key_file }));
    }

    #[test]
    fn wrong_settings_are_named_with_their_line_and_the_way_out() {
        for (text, said) in [
            (
                "[routes.docs]\nupstream = \"http://a:80/mcp\"",
                ":2: routes.docs.upstream: `http://a:80/mcp`: invalid upstream (must be scheme://host:port)",
            ),
            ("[routes.docs]\nupstream = \"http://a\"", "invalid upstream (must be scheme://host:port)"),
            ("[routes.docs]\nupstream = \"ftp://a:21\"", "invalid upstream (must be scheme://host:port)"),
            ("[routes.docs]\nupstream = \"http://u@a:21\"", "invalid upstream (must be scheme://host:port)"),
            ("[routes.docs]\nupstream = \"http://a:0\"", "invalid upstream (must be scheme://host:port)"),
            ("[routes.docs]\nupstream = \"builtin:sql\"", "builtin:files"),
            ("[routes.docs]\nupstream = \"builtin:files\"", "set root"),
            ("[routes.docs]\nupstream = \"https://a:443\"", ":2: routes.docs.upstream: an https upstream needs"),
            ("[routes.docs]\n", "missing field `upstream`"),
            ("[routes.Docs]\nupstream = \"http://a:80\"", "not a route name"),
            ("routes = {}", ":1: routes: no route"),
            ("", "missing field `routes`"),
            ("[routes.docs]\nupstream = \"http://a:80\"\nroot = \"x\"", ":3: routes.docs.root: only builtin:files"),
            ("[routes.docs]\nupstream = \"http://a:80\"\nmode = \"sealed\"", "set client_ca_file"),
            ("[routes.docs]\nupstream = \"http://a:80\"\nmode = \"open\"", ":3: mode: unknown variant `open`"),
            ("[routes.docs]\nupstream = \"http://a:80\"\nclient_ca_file = \"x\"", ":3: routes.docs.client_ca_file"),
            (
                "[routes.docs]\nupstream = \"http://a:80\"\nauthorization = \"pass\"",
                ":3: authorization: unknown variant",
            ),
            ("[routes.docs]\nupstream = \"http://a:80\"\nhost = \"a b\"", ":3: routes.docs.host: `a b`"),
            (
                "[routes.docs]\nupstream = \"http://a:80\"\ndeadline = \"soon\"",
                ":3: deadline: `soon` is not a duration",
            ),
            (
                "[routes.docs]\nupstream = \"http://a:80\"\nprotocol = \"soap\"",
                ":3: protocol: unknown variant `soap`, expected one of `auto`, `mcp`, `http`",
            ),
            ("[routes.docs]\nupstream = \"http://a:80\"\ncolour = 1", ":3: unknown field `colour`"),
            (
                "[routes.docs]\nupstream = \"http://a:80\"\n[upstream]\nallowed_ips = [\"10/8\"]",
                ":4: upstream.allowed_ips: `10/8`",
            ),
            ("shutdown_timeout = \"0s\"\n[routes.docs]\nupstream = \"http://a:80\"", ":1: shutdown_timeout: `0s`"),
            ("[link]\nproxy = \"proxy:1\"\n[routes.docs]\nupstream = \"http://a:80\"", ":2: link.proxy: `proxy:1`"),
            ("max_request_body = -1\n[routes.docs]\nupstream = \"http://a:80\"", ":1: max_request_body: "),
            ("[tls]\ncert_file = \"a\"\n[routes.docs]\nupstream = \"http://a:80\"", ":1: missing field `key_file`"),
            ("log = 1\n[routes.docs]\nupstream = \"http://a:80\"", ":1: log: "),
            ("[routes.docs\n", ":1: "),
        ] {
            let error = refusal(text);
            assert!(error.starts_with("/etc/sortie/gateway.toml:") && error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn routes_that_no_edge_could_be_told_of_are_refused() {
        let with = |length: usize| {
            let routes = (0..MAX_ROUTES).map(|n| format!("[routes.{n:0length$}]\nupstream = \"http://a:1\"\n"));
            parse(&routes.collect::<String>())
        };
        assert_eq!(with(20).expect("short names").routes.len(), MAX_ROUTES);
        let error = with(48).expect_err("long names").to_string();
        assert!(error.contains("routes: their names are too long to be announced together"), "{error}");
    }

    #[test]
    fn a_file_that_is_absent_is_named() {
        let error = GatewayConfig::load(Path::new("/nonexistent/gateway.toml")).expect_err("absent").to_string();
        assert!(error.starts_with("cannot read /nonexistent/gateway.toml"), "{error}");
    }
}
