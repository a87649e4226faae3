//! `[upstream]`: how upstreams are dialled, for all routes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{ConfigError, Source, Span, UpstreamConfig};

/// Addresses that upstreams may have by default: RFC 1918 and unique local IPv6 (RFC 4193).
const DEFAULT_ALLOWED: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Upstream")]
pub(super) struct RawDialling {
    /// Address ranges or single addresses that upstreams may have. Replaces the default: 10.0.0.0/8, 172.16.0.0/12,
    /// 192.168.0.0/16 and fc00::/7.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<String>>")]
    pub(super) allowed_ips: Option<Vec<Spanned<String>>>,
    /// Longest wait for name resolution, TCP and TLS together. Default 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connect_timeout: Option<Span>,
    /// For https upstreams, which need one of the two.
    #[serde(default)]
    pub(super) tls: RawTls,
}

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamTls")]
pub(super) struct RawTls {
    /// CA certificates (PEM) that upstreams may chain to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted, too.
    #[serde(default)]
    pub(super) include_system_cas: bool,
}

impl RawDialling {
    pub(super) fn check(self, source: &Source<'_>, base: &Path) -> Result<UpstreamConfig, ConfigError> {
        let allowed_ips = match &self.allowed_ips {
            None => DEFAULT_ALLOWED.iter().filter_map(|text| range(text)).collect(),
            Some(listed) => ranges(listed, source, "upstream.allowed_ips")?,
        };
        Ok(UpstreamConfig {
            allowed_ips,
            connect_timeout: self.connect_timeout.map_or(Duration::from_secs(10), |span| span.0),
            ca_file: self.tls.ca_file.map(|file| base.join(file)),
            include_system_cas: self.tls.include_system_cas,
        })
    }
}

fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(text.parse::<std::net::IpAddr>().ok()?.into()))
}

/// Address ranges and single addresses.
pub(super) fn ranges(
    listed: &[Spanned<String>],
    source: &Source<'_>,
    setting: &str,
) -> Result<Vec<IpNet>, ConfigError> {
    let read = |text: &Spanned<String>| {
        range(text.get_ref()).ok_or_else(|| {
            let reason =
                format!("`{}` is not an address range such as 10.0.0.0/8, nor a single address", text.get_ref());
            source.wrong(Some(text.span()), setting, reason)
        })
    };
    listed.iter().map(read).collect()
}
