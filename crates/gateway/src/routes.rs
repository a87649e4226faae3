//! Which route a hostname names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Request};
use sortie_ids::{Digest, RouteName};
use sortie_link::protos::RouteMode;
use sortie_tls::ServerConfig;

use crate::config::{Protocol, RouteConfig};
use crate::credentials::RouteCredentials;
use crate::pins::RoutePins;
use crate::upstream::{LocalUpstream, Servers};
use crate::upstream_identity::UpstreamIdentity;

/// A route as it is served.
pub(crate) struct Route {
    pub(crate) name: RouteName,
    /// `<route>.<tunnel-domain>`.
    pub(crate) host: String,
    pub(crate) target: Target,
    /// The same as a header's value.
    pub(crate) host_value: HeaderValue,
    /// What sessions belong to: the same for all routes to the same servers, and for no others.
    pub(crate) session_scope: Digest,
    pub(crate) authorization: bool,
    /// Headers that bring tokens of issuers, which end here.
    pub(crate) token_headers: Vec<HeaderName>,
    /// How the upstream is told who is calling.
    pub(crate) identity: Option<UpstreamIdentity>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) protocol: Protocol,
    /// In bytes.
    pub(crate) max_request_body: u64,
    /// `Some` for sealed routes: TLS that demands a certificate of the route's client CA.
    pub(crate) sealed: Option<Arc<ServerConfig>>,
    /// The text of that CA's file.
    pub(crate) client_ca: Option<String>,
    /// With whose secret calls go on.
    pub(crate) credentials: RouteCredentials,
    /// The settings as they were read.
    pub(crate) settings: RouteConfig,
    /// What is pinned of its tools; `None` where nothing is.
    pub(crate) pins: Option<Arc<RoutePins>>,
    /// The name as a metric's label.
    pub(crate) label: Arc<str>,
}

/// Where calls go.
pub(crate) enum Target {
    Servers(Arc<Servers>),
    Local(Arc<dyn LocalUpstream>),
}

impl Route {
    /// Whether a client that proved itself to `self` has thereby proved itself to `other`: a sealed route that demands
    /// the very same.
    pub(crate) fn proves(&self, other: &Self) -> bool {
        let same_tls = self.sealed.as_ref().zip(other.sealed.as_ref()).is_some_and(|(one, two)| Arc::ptr_eq(one, two));
        same_tls && self.host == other.host
    }

    /// Whether settings and files say the same.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let same_servers = match (&self.target, &other.target) {
            (Target::Servers(one), Target::Servers(two)) => one.same(two),
            _ => true,
        };
        same_servers && self.settings == other.settings && self.host == other.host && self.client_ca == other.client_ca
    }

    pub(crate) fn log(&self) {
        let upstream = &self.settings.upstream;
        tracing::info!(route = %self.name, host = self.host, %upstream, mode = ?self.mode(), "route configured");
    }

    pub(crate) fn mode(&self) -> RouteMode {
        if self.sealed.is_some() { RouteMode::Sealed } else { RouteMode::Terminated }
    }
}

/// All routes.
pub(crate) struct RouteTable {
    by_host: HashMap<String, Arc<Route>>,
    by_name: BTreeMap<RouteName, Arc<Route>>,
}

impl RouteTable {
    pub(crate) fn new(routes: Vec<Route>) -> Self {
        let routes: Vec<_> = routes.into_iter().map(Arc::new).collect();
        Self {
            by_host: routes.iter().map(|route| (route.host.clone(), route.clone())).collect(),
            by_name: routes.into_iter().map(|route| (route.name.clone(), route)).collect(),
        }
    }

    /// The route of a hostname, which may have a port, a trailing dot and upper case.
    pub(crate) fn by_host(&self, host: &str) -> Option<&Arc<Route>> {
        self.by_host.get(&plain_host(host))
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Route>> {
        self.by_name.values().find(|route| route.name.as_str() == name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_name.values()
    }
}

/// A hostname in lower case, without port and trailing dot.
fn plain_host(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// The one host that a request names: its target's authority (HTTP/2, or the absolute form of HTTP/1.1) or its `Host`.
/// `None` when it names none, or two.
pub(crate) fn requested_host<B>(request: &Request<B>) -> Option<String> {
    let mut headers = request.headers().get_all(HOST).iter();
    let header = headers.next().map(|value| value.to_str().ok().map(plain_host));
    if headers.next().is_some() {
        return None;
    }
    let authority = request.uri().authority().map(|authority| plain_host(authority.as_str()));
    match (authority, header) {
        (Some(authority), Some(header)) => (header? == authority).then_some(authority),
        (Some(authority), None) => Some(authority),
        (None, header) => header?,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_in_one_form() {
        for host in ["docs.abcd.test", "DOCS.abcd.Test", "docs.abcd.test.", "docs.abcd.test:443", "docs.abcd.test.:443"]
        {
            assert_eq!(plain_host(host), "docs.abcd.test", "{host}");
        }
    }

    #[test]
    fn a_request_names_one_host() {
        let request = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            requested_host(&request.body(()).expect("request"))
        };
        assert_eq!(request("/mcp", &["a.test"]).as_deref(), Some("a.test"));
        assert_eq!(request("https://a.test/mcp", &[]).as_deref(), Some("a.test"));
        assert_eq!(request("https://a.test/mcp", &["A.test:443"]).as_deref(), Some("a.test"));
        assert_eq!(request("https://a.test/mcp", &["b.test"]), None);
        assert_eq!(request("/mcp", &["a.test", "a.test"]), None);
        assert_eq!(request("/mcp", &[]), None);
    }
}
