//! Which Host and Origin a listener answers to: a page in somebody's browser must not reach it under a name of the
//! page's choosing (DNS rebinding).

use std::net::IpAddr;

use http::header::{self, HeaderMap};
use http::{StatusCode, Uri};
use sortie_api::{Hop, HopError, is_loopback_name};

use crate::request::bare;

/// The names that a listener is reached under.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    /// Any loopback name passes, with any port.
    loopback: bool,
    names: Vec<String>,
    origins: Vec<String>,
}

impl Hosts {
    /// For a listener on this address; `names` are its configured names, `origins` the configured further origins.
    pub(crate) fn new(listener: IpAddr, names: &[String], origins: &[String]) -> Self {
        let mut names: Vec<_> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        if !listener.is_unspecified() {
            names.push(listener.to_string());
        }
        let origins = origins.iter().map(|origin| origin.trim_end_matches('/').to_ascii_lowercase()).collect();
        Self { loopback: listener.is_loopback(), names, origins }
    }

    /// Judges the host that a request on this listener names ([`crate::request::host`]), and its Origin.
    pub(crate) fn check(&self, host: &str, headers: &HeaderMap) -> Result<(), HopError> {
        if !self.knows(host) {
            let reason = "this listener does not answer to that Host; name it with --name";
            return Err(HopError::new(Hop::Edge, reason).with_status(StatusCode::MISDIRECTED_REQUEST));
        }
        self.check_origin(None, headers)
    }

    /// Judges the Origin of a request: one of the listener's own names, a configured origin, or `own`.
    pub(crate) fn check_origin(&self, own: Option<&str>, headers: &HeaderMap) -> Result<(), HopError> {
        let mut values = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = values.next() else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("").to_ascii_lowercase();
        let allowed = values.next().is_none() && {
            let uri = origin.parse::<Uri>().ok();
            let host = uri.as_ref().filter(|uri| uri.scheme().is_some()).and_then(|uri| uri.authority());
            let host = host.and_then(|authority| bare(authority.as_str()));
            self.origins.contains(&origin) || host.is_some_and(|host| self.knows(host) || own == Some(host))
        };
        if allowed {
            return Ok(());
        }
        let reason = "this Origin is not allowed; allow it with --allow-origin";
        Err(HopError::new(Hop::Edge, reason).with_status(StatusCode::FORBIDDEN))
    }

    /// `host` is bare, and in lower case.
    fn knows(&self, host: &str) -> bool {
        self.names.iter().any(|name| name == host) || (self.loopback && is_loopback_name(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, text.parse().expect("value"));
        headers
    }

    #[test]
    fn loopback_answers_to_every_loopback_name() {
        let hosts = Hosts::new([127, 0, 0, 1].into(), &["box.corp".into()], &["https://app.example".into()]);
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "a.b.localhost", "box.corp"] {
            assert!(hosts.check(host, &HeaderMap::new()).is_ok(), "{host}");
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1", "127.1", "xlocalhost"]
        {
            let error = hosts.check(host, &HeaderMap::new()).expect_err(host);
            assert_eq!(error.status, StatusCode::MISDIRECTED_REQUEST);
        }
        for text in ["http://localhost:6274", "http://[::1]", "https://app.example", "https://APP.example"] {
            assert!(hosts.check("localhost", &origin(text)).is_ok(), "{text}");
        }
        for text in ["http://[::1]x@evil.example", "http://[::1].evil.example"] {
            assert!(hosts.check("localhost", &origin(text)).is_err(), "{text}");
        }
        for text in ["https://evil.example", "null", "localhost", "https://app.example.evil", "file://", "https://"] {
            let error = hosts.check("localhost", &origin(text)).expect_err(text);
            assert_eq!(error.status, StatusCode::FORBIDDEN);
        }
    }

    #[test]
    fn elsewhere_only_configured_names_pass() {
        let hosts = Hosts::new([10, 0, 0, 1].into(), &["hub.corp".into()], &[]);
        assert!(hosts.check("hub.corp", &HeaderMap::new()).is_ok());
        assert!(hosts.check("10.0.0.1", &HeaderMap::new()).is_ok());
        assert!(hosts.check("localhost", &HeaderMap::new()).is_err());
        let open = Hosts::new([0, 0, 0, 0].into(), &[], &[]);
        assert!(open.check("0.0.0.0", &HeaderMap::new()).is_err());
    }
}
