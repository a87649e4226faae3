//! Where the calls of a route go, and how: the settings of one route that concern its upstream.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::uri::Authority;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_tls::ServerName;
use toml::Spanned;

use sortie_credentials::Trust;

use super::{Span, span_text};

/// Most servers of one route.
const MAX_SERVERS: usize = 16;
/// Longest path of a Unix socket, in bytes: `sun_path` less its final NUL.
const MAX_SOCKET_PATH: usize = 107;
/// How long an event stream may be quiet before a comment is put in, where nothing else is said.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(20);

/// Where calls of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// Servers that are dialled; calls go to the first that can be connected. At least one, at most 16.
    Servers(Vec<Server>),
    /// The built-in server of a directory, within this process.
    Files,
}

/// A server that is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// `http://host:port` or `https://host:port`.
    Tcp {
        /// Whether it speaks TLS.
        tls: bool,
        /// Its host and port as written.
        authority: Authority,
        /// Its host: a name, or an address without brackets.
        host: String,
        /// Its port.
        port: u16,
    },
    /// `unix:PATH`: a socket of this machine, without TLS. A path of 1 to 107 bytes.
    Unix(PathBuf),
}

impl Server {
    /// What it is called in a `Host` header.
    pub fn authority(&self) -> &str {
        match self {
            Self::Tcp { authority, .. } => authority.as_str(),
            Self::Unix(_) => "localhost",
        }
    }

    /// Its canonical URL: host in lower case, no default port, no slash at the end (RFC 3986 section 6.2).
    pub fn url(&self) -> String {
        match self {
            Self::Tcp { tls, host, port, .. } => {
                let scheme = if *tls { "https" } else { "http" };
                let host = host.to_ascii_lowercase();
                let host = if host.contains(':') { format!("[{host}]") } else { host };
                match (*tls, *port) {
                    (true, 443) | (false, 80) => format!("{scheme}://{host}"),
                    (_, port) => format!("{scheme}://{host}:{port}"),
                }
            }
            Self::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// Whether it speaks TLS.
    pub fn tls(&self) -> bool {
        matches!(self, Self::Tcp { tls: true, .. })
    }
}

/// `[routes.NAME.tls]`: how the certificates of this route's `https` upstreams are judged, and what is shown to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTls {
    /// `ca_file` and `include_system_cas`: whom to trust. Where either is set, both of `[upstream.tls]` do not count.
    pub trust: Option<Trust>,
    /// `client_cert_file` and `client_key_file`: the certificate, with its chain, that is shown to upstreams that ask
    /// for one, and its key, in PEM. Default none.
    pub client: Option<(PathBuf, PathBuf)>,
    /// `server_name`: the name or address that the upstream's certificate has to be for, and that is asked for by SNI.
    /// Default: the upstream's host.
    pub server_name: Option<String>,
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("builtin:") {
            Some("files") => Ok(Self::Files),
            Some(other) => Err(format!("there is no built-in upstream `{other}`; the one there is is builtin:files")),
            None => Ok(Self::Servers(vec![text.parse()?])),
        }
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket(text, path);
        }
        let malformed = || format!("`{text}`: invalid upstream (must be scheme://host:port)");
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(malformed()),
        };
        if rest.contains(['/', '?', '#', '@']) {
            return Err(malformed());
        }
        let authority: Authority = rest.parse().map_err(|_| malformed())?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        match authority.port_u16() {
            Some(port) if port != 0 && !host.is_empty() => Ok(Self::Tcp { tls, authority, host, port }),
            _ => Err(malformed()),
        }
    }
}

fn socket(text: &str, path: &str) -> Result<Server, String> {
    if path.starts_with('@') || path.contains('\0') {
        return Err(format!(
            "`{}`: abstract sockets have no owner and no permissions, so that anybody on this machine could stand in for \
             the upstream; use a socket in the file system",
            text.escape_debug()
        ));
    }
    if path.is_empty() || path.starts_with("//") {
        return Err(format!("`{text}`: invalid upstream (a socket is written unix:/run/mcp.sock)"));
    }
    Ok(Server::Unix(path.into()))
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Servers(servers) => {
                for (number, server) in servers.iter().enumerate() {
                    write!(f, "{}{server}", if number == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::Files => f.write_str("builtin:files"),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls, authority, .. } => {
                write!(f, "{}://{authority}", if *tls { "https" } else { "http" })
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One server, or a list.
#[derive(Deserialize, Serialize, JsonSchema)]
#[schemars(rename = "Servers", extend("maxItems" = MAX_SERVERS))]
#[serde(untagged, expecting = "expected a text such as \"http://host:port\", or a list of such texts")]
pub(super) enum RawUpstream {
    One(String),
    Several(Vec<String>),
}

impl From<&Upstream> for RawUpstream {
    fn from(upstream: &Upstream) -> Self {
        match upstream {
            Upstream::Servers(servers) if servers.len() > 1 => {
                Self::Several(servers.iter().map(ToString::to_string).collect())
            }
            upstream => Self::One(upstream.to_string()),
        }
    }
}

impl RawUpstream {
    /// Paths of sockets become relative to `base`.
    pub(super) fn check(&self, base: &Path) -> Result<Upstream, String> {
        let upstream = match self {
            Self::One(text) => text.parse()?,
            Self::Several(texts) => {
                if texts.is_empty() || texts.len() > MAX_SERVERS {
                    return Err(format!("a list has one to {MAX_SERVERS} servers"));
                }
                let servers = texts.iter().map(|text| match text.parse()? {
                    Upstream::Servers(servers) => Ok(servers),
                    Upstream::Files => Err(format!("`{text}` cannot be one of several; give it a route of its own")),
                });
                Upstream::Servers(servers.collect::<Result<Vec<_>, String>>()?.concat())
            }
        };
        let Upstream::Servers(servers) = upstream else { return Ok(upstream) };
        let placed = servers.into_iter().map(|server| match server {
            Server::Unix(path) => match base.join(path) {
                path if path.as_os_str().len() > MAX_SOCKET_PATH => {
                    Err(format!("the path {} is longer than the {MAX_SOCKET_PATH} bytes of a socket's", path.display()))
                }
                path => Ok(Server::Unix(path)),
            },
            server => Ok(server),
        });
        Ok(Upstream::Servers(placed.collect::<Result<_, _>>()?))
    }
}

/// How the certificates of a route's upstreams are judged, and what is shown to them.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RouteTls")]
pub(super) struct RawRouteTls {
    /// CA certificates (PEM) that this route's upstreams may chain to. With it, those of upstream.tls do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted, too. With it, those of upstream.tls do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    include_system_cas: Option<bool>,
    /// The certificate (PEM, with its chain) that is shown to an upstream that asks for one; needs client_key_file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    client_cert_file: Option<Spanned<PathBuf>>,
    /// Its private key in PEM; needs client_cert_file.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PathBuf>")]
    client_key_file: Option<Spanned<PathBuf>>,
    /// Whom the upstream's certificate has to be for; also sent as SNI. Default: the upstream's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    server_name: Option<Spanned<String>>,
}

impl From<&RouteTls> for RawRouteTls {
    fn from(tls: &RouteTls) -> Self {
        let placeless = |path: &PathBuf| Spanned::new(0..0, path.clone());
        Self {
            ca_file: tls.trust.as_ref().and_then(|trust| trust.ca_file.clone()),
            include_system_cas: tls.trust.as_ref().map(|trust| trust.include_system_cas),
            client_cert_file: tls.client.as_ref().map(|(cert, _)| placeless(cert)),
            client_key_file: tls.client.as_ref().map(|(_, key)| placeless(key)),
            server_name: tls.server_name.clone().map(|name| Spanned::new(0..0, name)),
        }
    }
}

/// A setting of `[routes.NAME.tls]` that is wrong: where, its name, and why.
pub(super) type WrongTls = (std::ops::Range<usize>, &'static str, String);

impl RawRouteTls {
    pub(super) fn check(self, base: &Path) -> Result<RouteTls, WrongTls> {
        let trust = match (self.ca_file, self.include_system_cas) {
            (None, None) => None,
            (file, system) => {
                Some(Trust { ca_file: file.map(|file| base.join(file)), include_system_cas: system.unwrap_or(false) })
            }
        };
        let client = match (self.client_cert_file, self.client_key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((base.join(cert.get_ref()), base.join(key.get_ref()))),
            (Some(cert), None) => {
                let reason = "a certificate needs its key; set client_key_file, too".to_owned();
                return Err((cert.span(), "client_cert_file", reason));
            }
            (None, Some(key)) => {
                let reason = "a key needs its certificate; set client_cert_file, too".to_owned();
                return Err((key.span(), "client_key_file", reason));
            }
        };
        let server_name = match self.server_name {
            None => None,
            Some(name) if ServerName::try_from(name.get_ref().as_str()).is_ok() => Some(name.into_inner()),
            Some(name) => {
                let reason = format!("`{}` is neither a DNS name nor an IP address", name.get_ref().escape_debug());
                return Err((name.span(), "server_name", reason));
            }
        };
        Ok(RouteTls { trust, client, server_name })
    }
}

/// A duration from one second, or "0" for none.
#[derive(Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^([0-9]+(ms|s|m|h)|0)$"))]
pub(super) struct Keepalive(pub(super) Option<Duration>);

impl Default for Keepalive {
    fn default() -> Self {
        Self(Some(DEFAULT_KEEPALIVE))
    }
}

impl From<Keepalive> for String {
    fn from(keepalive: Keepalive) -> String {
        keepalive.0.map_or_else(|| "0".to_owned(), span_text)
    }
}

impl TryFrom<String> for Keepalive {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if matches!(text.as_str(), "0" | "0s") {
            return Ok(Self(None));
        }
        match Span::try_from(text.clone()) {
            Ok(Span(every)) if every >= Duration::from_secs(1) => Ok(Self(Some(every))),
            _ => Err(format!("`{text}` is not a duration such as 20s or 5m, from 1s to 24h, nor \"0\" for none")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConfigError, GatewayConfig, RouteConfig};
    use super::*;

    fn parse(text: &str) -> Result<RouteConfig, ConfigError> {
        let config = GatewayConfig::parse(text, Path::new("/etc/sortie/gateway.toml"))?;
        Ok(config.routes.into_values().next().expect("a route"))
    }

    #[test]
    fn an_upstream_is_one_server_or_several() {
        let servers = |upstream: &str| match parse(&format!("[routes.docs]\nupstream = {upstream}\n")) {
            Ok(RouteConfig { upstream: Upstream::Servers(servers), .. }) => {
                servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            }
            other => panic!("{upstream}: {other:?}"),
        };
        assert_eq!(servers("\"http://[::1]:80\""), "http://[::1]:80");
        assert_eq!(servers("[\"http://10.0.0.5:80\", \"http://a:81\"]"), "http://10.0.0.5:80 http://a:81");
        assert_eq!(servers("\"unix:/run/mcp.sock\""), "unix:/run/mcp.sock");
        assert_eq!(servers("[\"unix:mcp.sock\"]"), "unix:/etc/sortie/mcp.sock");
    }

    #[test]
    fn every_setting_of_an_upstream_is_read() {
        let route = parse(
            r#"
            [routes.docs]
            upstream = "https://wiki.internal:8443"
            connect_timeout = "2s"
            idle_timeout = "5m"
            keepalive = "30s"
            max_request_body = 100
            [routes.docs.tls]
            ca_file = "ca.pem"
            client_cert_file = "client.crt"
            client_key_file = "/keys/client.key"
            server_name = "wiki.corp.example"
            "#,
        )
        .expect("accepted");
        let times = (route.connect_timeout, route.idle_timeout, route.keepalive);
        assert_eq!(
            times,
            (Some(Duration::from_secs(2)), Some(Duration::from_secs(300)), Some(Duration::from_secs(30)))
        );
        assert_eq!(route.max_request_body, Some(100));
        let trust = Trust { ca_file: Some("/etc/sortie/ca.pem".into()), include_system_cas: false };
        let client = Some(("/etc/sortie/client.crt".into(), "/keys/client.key".into()));
        let server_name = Some("wiki.corp.example".to_owned());
        assert_eq!(route.tls, RouteTls { trust: Some(trust), client, server_name });

        let route = parse("[routes.docs]\nupstream = \"http://a:1\"\nkeepalive = \"0\"\n").expect("accepted");
        assert_eq!((route.keepalive, route.idle_timeout, route.connect_timeout), (None, None, None));
        let route = parse("[routes.docs]\nupstream = \"http://a:1\"\n").expect("accepted");
        assert_eq!(route.keepalive, Some(DEFAULT_KEEPALIVE));
    }

    #[test]
    fn wrong_settings_of_an_upstream_are_named() {
        let long = format!("upstream = \"unix:/{}\"", "x".repeat(MAX_SOCKET_PATH));
        for (text, said) in [
            ("upstream = \"unix:@mcp\"", ":2: routes.docs.upstream: `unix:@mcp`: abstract sockets have no owner"),
            ("upstream = \"unix:\\u0000mcp\"", "abstract sockets have no owner"),
            ("upstream = \"unix:\"", "a socket is written unix:/run/mcp.sock"),
            ("upstream = \"unix:///run/x\"", "a socket is written unix:/run/mcp.sock"),
            (long.as_str(), "longer than the 107 bytes"),
            ("upstream = []", "one to 16 servers"),
            ("upstream = 1", "expected a text such as"),
            ("upstream = [\"http://a:1\", \"builtin:files\"]", "cannot be one of several"),
            ("upstream = [\"http://a:1\", \"b\"]", ":2: routes.docs.upstream: `b`: invalid upstream"),
            ("upstream = [\"http://a:1\", \"https://b:1\"]", "an https upstream needs to know whom to trust"),
            ("upstream = \"http://a:1\"\nkeepalive = \"10ms\"", ":3: keepalive: `10ms`"),
            ("upstream = \"http://a:1\"\nidle_timeout = \"0s\"", ":3: idle_timeout: `0s`"),
            ("upstream = \"http://a:1\"\ntls.server_name = \"a\"", ":3: routes.docs.tls: only https upstreams"),
            ("upstream = \"https://a:1\"\ntls.ca_file = \"x\"\ntls.client_cert_file = \"x\"", "set client_key_file"),
            ("upstream = \"https://a:1\"\ntls.ca_file = \"x\"\ntls.client_key_file = \"x\"", "set client_cert_file"),
            ("upstream = \"https://a:1\"\ntls.ca_file = \"x\"\ntls.server_name = \"a b\"", "`a b` is neither"),
            ("upstream = \"https://a:1\"\ntls.include_system_cas = false", "an https upstream needs"),
            ("upstream = \"https://a:1\"\ntls.colour = 1", "unknown field `colour`"),
        ] {
            let error = parse(&format!("[routes.docs]\n{text}\n")).expect_err(text).to_string();
            assert!(error.starts_with("/etc/sortie/gateway.toml:") && error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn whom_a_route_trusts_replaces_whom_all_trust() {
        let all = "[upstream.tls]\ninclude_system_cas = true\n";
        let text = format!("{all}[routes.docs]\nupstream = \"https://a:1\"\ntls.ca_file = \"ca.pem\"\n");
        let trust = parse(&text).expect("accepted").tls.trust.expect("trust");
        assert!(!trust.include_system_cas && trust.ca_file.is_some());
        let text = format!("{all}[routes.docs]\nupstream = \"https://a:1\"\ntls.include_system_cas = false\n");
        assert!(parse(&text).is_err(), "nobody would be trusted");
    }
}
