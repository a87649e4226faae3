//! `[identity]`: how this gateway tells upstreams who is calling.

use std::time::Duration;

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_api::{HEADER_PREFIX, IDENTITY_HEADER};
use toml::Spanned;

use super::{ConfigError, Source, Span};

/// Shortest and longest life of a token for an upstream.
const LIFETIMES: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(300);
/// Its life where nothing is said.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(120);

/// Whether the upstream of a route is told who is calling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TellUpstream {
    /// It is not.
    #[default]
    None,
    /// In a token that this gateway signs.
    Signed,
}

/// How upstreams are told who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityConfig {
    /// `issuer`: the name under which this gateway signs, best the URL at which its keys are published. Default: made of
    /// the tunnel's domain.
    pub issuer: Option<String>,
    /// `header`: the header with the token. Default `sortie-identity`.
    pub header: HeaderName,
    /// `lifetime`: the life of a token, `60s` to `300s`. Default `120s`.
    pub lifetime: Duration,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self { issuer: None, header: HeaderName::from_static(IDENTITY_HEADER), lifetime: DEFAULT_LIFETIME }
    }
}

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Identity")]
pub(super) struct RawIdentity {
    /// The name under which this gateway signs, best the URL at which its keys are published. Default: made of the tunnel's
    /// domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    issuer: Option<Spanned<String>>,
    /// The header with the token. Default: sortie-identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    header: Option<Spanned<String>>,
    /// The life of a token, 60s to 300s. Default: 120s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Span>")]
    lifetime: Option<Spanned<Span>>,
}

impl RawIdentity {
    pub(super) fn check(self, source: &Source<'_>) -> Result<IdentityConfig, ConfigError> {
        let mut config = IdentityConfig::default();
        if let Some(issuer) = self.issuer {
            if issuer.get_ref().is_empty() || issuer.get_ref().chars().any(|c| c.is_control() || c == ' ') {
                let reason = "it is not a name or URL";
                return Err(source.wrong(Some(issuer.span()), "identity.issuer", reason));
            }
            config.issuer = Some(issuer.into_inner());
        }
        if let Some(header) = self.header {
            let name = header.get_ref().parse::<HeaderName>().ok().filter(is_free);
            let reason = format!("`{}` cannot carry a token; name a header of your own", header.get_ref());
            config.header = name.ok_or_else(|| source.wrong(Some(header.span()), "identity.header", reason))?;
        }
        if let Some(lifetime) = self.lifetime {
            if !LIFETIMES.contains(&lifetime.get_ref().0) {
                return Err(source.wrong(Some(lifetime.span()), "identity.lifetime", "it is not from 60s to 300s"));
            }
            config.lifetime = lifetime.into_inner().0;
        }
        Ok(config)
    }
}

/// Whether a header means nothing else to a server, or to us.
fn is_free(name: &HeaderName) -> bool {
    let name_text = name.as_str();
    let taken = ["host", "cookie", "connection", "transfer-encoding", "te", "trailer", "upgrade", "accept", "origin"];
    name_text == IDENTITY_HEADER
        || !name_text.starts_with(HEADER_PREFIX)
            && !name_text.starts_with("mcp-")
            && !name_text.starts_with("content-")
            && !taken.contains(&name_text)
}

impl From<&IdentityConfig> for RawIdentity {
    fn from(config: &IdentityConfig) -> Self {
        RawIdentity {
            issuer: config.issuer.clone().map(|issuer| Spanned::new(0..0, issuer)),
            header: Some(Spanned::new(0..0, config.header.as_str().to_owned())),
            lifetime: Some(Spanned::new(0..0, Span(config.lifetime))),
        }
    }
}
