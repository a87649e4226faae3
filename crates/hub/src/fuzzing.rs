//! What fuzz targets reach of this crate, and nobody else: it exists only where they are built.

use std::net::Ipv4Addr;

use http::HeaderMap;
use http::uri::PathAndQuery;

use crate::front;
use crate::hosts::Hosts;
use crate::request;

/// Label, route and what follows, of a path that names a route.
pub fn path_target(path: &PathAndQuery) -> Option<(String, String, String)> {
    let target = front::path_target(Some(path)).ok()?;
    Some((target.label.to_string(), target.route.to_string(), target.path.to_string()))
}

/// Whether a loopback listener answers to this Host.
pub fn knows_host(host: &str) -> bool {
    let host = request::bare(host).map(str::to_ascii_lowercase);
    host.is_some_and(|host| loopback().check(&host, &HeaderMap::new()).is_ok())
}

/// Whether a loopback listener takes requests with this Origin.
pub fn knows_origin(headers: &HeaderMap) -> bool {
    loopback().check_origin(None, headers).is_ok()
}

fn loopback() -> Hosts {
    Hosts::new(Ipv4Addr::LOCALHOST.into(), &[], &[])
}
