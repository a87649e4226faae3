//! Where the URL of an MCP server leads. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use http::uri::PathAndQuery;
use sortie_api::{Hop, HopError, is_loopback_name};
use sortie_ids::BaseDomain;
use sortie_runtime::addresses::{is_public, meant, never_dialled};
use url::{Host, Url};

use crate::call::Target;
use crate::front::path_target;

/// Where the hub itself is found.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    /// The domain of tunnels' domains.
    pub(crate) base: BaseDomain,
    /// Names and addresses of the API's listener, in lower case.
    pub(crate) names: Vec<String>,
    /// Whether every loopback name is one of them.
    pub(crate) loopback: bool,
    /// Its port.
    pub(crate) port: u16,
}

/// A host, or one port of it, that sessions may reach although it is not public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateHost {
    /// In lower case; an IPv6 address without brackets.
    host: String,
    port: Option<u16>,
}

/// Where a URL leads.
#[derive(Debug)]
pub(crate) enum Place {
    /// Through a tunnel.
    Tunnel(Target),
    /// To another machine, by its own name.
    Elsewhere {
        /// Whether its address need not be public.
        private: bool,
    },
}

impl FromStr for PrivateHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither HOST nor HOST:PORT");
        let bare = text.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6).map(|address| format!("http://[{address}]"));
        let url = Url::parse(&bare.unwrap_or_else(|| format!("http://{text}"))).map_err(|_| wrong())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        let host = url.host().filter(|_| plain).ok_or_else(wrong)?;
        // A scheme's own port is not told apart from none by the parser.
        let port = text.rsplit_once(':').filter(|(before, _)| !before.contains(':') || before.ends_with(']'));
        let port = port.map(|(_, port)| port.parse().map_err(|_| wrong())).transpose()?;
        Ok(Self { host: bare_host(&host), port })
    }
}

impl fmt::Display for PrivateHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => f.write_str(&self.host),
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
        }
    }
}

impl Home {
    /// Where a URL leads, and whether it may be gone there.
    ///
    /// # Errors
    /// It may not, or leads nowhere.
    pub(crate) fn place(&self, url: &Url, private: &[PrivateHost]) -> Result<Place, HopError> {
        let host = url.host().ok_or_else(|| refused("its URL names no host"))?;
        let name = bare_host(&host);
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        let path: PathAndQuery = path.parse().map_err(|_| refused("the path of its URL cannot be sent"))?;
        if let Some(named) = self.base.parse_host(&name) {
            return Ok(Place::Tunnel(Target { label: named.label, route: named.route, path, on_api_origin: false }));
        }
        if url.port_or_known_default() == Some(self.port) && self.is_named(&name) {
            return path_target(Some(&path)).map(Place::Tunnel);
        }
        if name == self.base.as_str() || name.ends_with(&format!(".{}", self.base)) {
            return Err(HopError::no_route());
        }
        let port = url.port_or_known_default();
        let private = private.iter().any(|known| known.host == name && (known.port.is_none() || known.port == port));
        if url.scheme() != "https" && !private {
            let reason = "only https is spoken to servers elsewhere, unless the operator allows the host by \
                          --allow-private-mcp";
            return Err(refused(reason));
        }
        if let Ok(address) = name.parse() {
            judge(address, private).map_err(|reason| refused(&reason))?;
        }
        Ok(Place::Elsewhere { private })
    }

    fn is_named(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name) || (self.loopback && is_loopback_name(name))
    }
}

/// Whether an address may be dialled.
pub(crate) fn judge(address: IpAddr, private: bool) -> Result<(), String> {
    let meant = meant(address);
    let good = if private { never_dialled(meant).is_none() } else { is_public(meant) };
    if good { Ok(()) } else { Err(not_reached(address)) }
}

fn not_reached(address: IpAddr) -> String {
    format!(
        "{address} is not a public address; put the server behind a tunnel, or have the operator allow it by \
         --allow-private-mcp"
    )
}

fn refused(reason: &str) -> HopError {
    HopError::new(Hop::UpstreamConnect, reason)
}

/// A host in lower case, without brackets or the dot at the end.
fn bare_host(host: &Host<&str>) -> String {
    match host {
        Host::Domain(name) => name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Home {
        let base = "sortie.localhost".parse().expect("base");
        Home { base, names: vec!["hub.corp".to_owned(), "127.0.0.1".to_owned()], loopback: true, port: 4180 }
    }

    fn place(url: &str, private: &[&str]) -> Result<Place, HopError> {
        let private: Vec<_> = private.iter().map(|text| text.parse().expect(text)).collect();
        home().place(&url.parse().expect(url), &private)
    }

    #[test]
    fn every_name_of_a_tunnel_leads_through_it() {
        for url in [
            "https://files.abcd1234.sortie.localhost/mcp?x=1",
            "https://FILES--abcd1234.sortie.localhost./mcp?x=1",
            "https://files.abcd1234.sortie.localhost:4443/mcp?x=1",
            "https://files.abcd1234.sortie.localhost:4180/mcp?x=1",
            "http://127.0.0.1:4180/t/abcd1234/files/mcp?x=1",
            "http://localhost:4180/t/abcd1234/files/mcp?x=1",
            "https://hub.corp:4180/t/abcd1234/files/mcp?x=1",
        ] {
            let Ok(Place::Tunnel(target)) = place(url, &[]) else { panic!("{url} leads elsewhere") };
            let seen = (target.label.as_str(), target.route.as_str(), target.path.as_str());
            assert_eq!(seen, ("abcd1234", "files", "/mcp?x=1"), "{url}");
        }
    }

    #[test]
    fn what_looks_like_a_tunnel_is_asked_of_no_name_server() {
        for url in [
            "https://sortie.localhost/mcp",
            "https://abcd1234.sortie.localhost/mcp",
            "https://a.b.abcd1234.sortie.localhost/",
            "http://127.0.0.1:4180/v1/agents",
            "http://localhost:4180/t/abcd1234",
        ] {
            assert_eq!(place(url, &["sortie.localhost", "localhost"]).expect_err(url).hop, Hop::Route, "{url}");
        }
    }

    #[test]
    fn elsewhere_only_public_addresses_and_https_unless_allowed() {
        for url in ["https://mcp.example.com/mcp", "https://8.8.8.8/mcp", "https://[2606:4700::1]/mcp"] {
            assert!(matches!(place(url, &[]), Ok(Place::Elsewhere { private: false })), "{url}");
        }
        for url in [
            "http://mcp.example.com/mcp",
            "https://127.0.0.1/mcp",
            "https://[::1]/mcp",
            "https://[::ffff:10.0.0.1]/mcp",
            "https://10.0.0.1/mcp",
            "https://169.254.169.254/latest",
            "https://2130706433/mcp",
            "https://0x7f.1/mcp",
        ] {
            assert_eq!(place(url, &[]).expect_err(url).hop, Hop::UpstreamConnect, "{url}");
        }
        for (url, allowed) in [
            ("http://127.0.0.1:8000/mcp", "127.0.0.1:8000"),
            ("http://127.0.0.1/mcp", "127.0.0.1:80"),
            ("https://[::1]:9/mcp", "[::1]:9"),
            ("https://[::1]:9/mcp", "::1"),
            ("https://Tools.corp/mcp", "tools.CORP"),
        ] {
            assert!(matches!(place(url, &[allowed]), Ok(Place::Elsewhere { private: true })), "{url}");
            assert!(place("http://127.0.0.1:8001/mcp", &[allowed]).is_err());
        }
        assert!(place("http://169.254.169.254/latest", &["169.254.169.254"]).is_err());
    }

    #[test]
    fn hosts_are_read_as_they_are_written() {
        for text in ["tools.corp", "tools.corp:443", "127.0.0.1:80", "[::1]:9", "::1"] {
            assert_eq!(text.parse::<PrivateHost>().expect(text).to_string(), text);
        }
        for bad in ["", "a/b", "https://a", "a:x", "a:70000", "u@a", "a?b"] {
            assert!(bad.parse::<PrivateHost>().is_err(), "{bad}");
        }
    }
}
