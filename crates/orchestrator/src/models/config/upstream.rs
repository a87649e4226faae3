//! One upstream of the settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};
use sortie_credentials::{CredentialKind, CredentialSpec, Source, Trust, is_private_url};
use url::Url;

use super::key::{RawKey, place};
use super::{Timeouts, Upstream, check_name, span};
use crate::model::ModelLimits;

/// Most patterns, headers and omitted members of one upstream.
const MAX_ITEMS: usize = 256;
/// Most `*` of one pattern.
const MAX_STARS: usize = 3;
/// Members of a request that are ours to fill in.
const OURS: [&str; 7] = ["model", "messages", "system", "tools", "tool_choice", "max_tokens", "stream"];
/// Headers that are ours to fill in.
const NOT_HEADERS: [&str; 9] = [
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "te",
    "transfer-encoding",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUpstream {
    pub(super) name: String,
    #[serde(rename = "match")]
    serves: Vec<String>,
    base_url: String,
    #[serde(default, deserialize_with = "place")]
    key: Option<RawKey>,
    #[serde(default)]
    auth: Auth,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default = "same")]
    model: String,
    #[serde(default = "in_flight")]
    max_in_flight: usize,
    #[serde(default)]
    timeouts: RawTimeouts,
    #[serde(default = "context_window")]
    context_window: u64,
    #[serde(default = "max_tokens")]
    max_tokens: u32,
    #[serde(default = "yes")]
    prompt_caching: bool,
    #[serde(default)]
    body: Map<String, Value>,
    #[serde(default)]
    omit: Vec<String>,
    proxy: Option<String>,
    #[serde(default)]
    tls: RawTrust,
    #[serde(default)]
    insecure_http: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Auth {
    #[default]
    XApiKey,
    Bearer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTimeouts {
    #[serde(deserialize_with = "span")]
    connect: Duration,
    #[serde(deserialize_with = "span")]
    first_byte: Duration,
    #[serde(deserialize_with = "span")]
    between_bytes: Duration,
}

impl Default for RawTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            // A long conversation is read before the first byte of its answer.
            first_byte: Duration::from_secs(300),
            // Endpoints send pings while the model thinks.
            between_bytes: Duration::from_secs(120),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTrust {
    ca_file: Option<PathBuf>,
    include_system_cas: Option<bool>,
}

fn same() -> String {
    "*".to_owned()
}

fn in_flight() -> usize {
    256
}

fn context_window() -> u64 {
    ModelLimits::default().context_window
}

fn max_tokens() -> u32 {
    ModelLimits::default().max_tokens
}

fn yes() -> bool {
    true
}

impl RawUpstream {
    pub(super) fn check(self, base: &Path) -> Result<Upstream, String> {
        check_name(&self.name).map_err(|reason| format!("name: {reason}"))?;
        if self.serves.is_empty() || self.serves.len() > MAX_ITEMS || self.serves.iter().any(String::is_empty) {
            return Err(format!("match: name 1 to {MAX_ITEMS} models, such as [\"claude-*\"]"));
        }
        if self.serves.iter().any(|pattern| pattern.matches('*').count() > MAX_STARS) {
            return Err(format!("match: a pattern has at most {MAX_STARS} `*`"));
        }
        if self.model.is_empty() || self.model.matches('*').count() > 1 {
            return Err("model: a name, in which `*` may stand once for the agent's name of the model".to_owned());
        }
        let base_url = url("base_url", &self.base_url)?;
        if base_url.query().is_some() || base_url.path().trim_end_matches('/').ends_with("/v1/messages") {
            return Err("base_url: it is what /v1/messages is put behind".to_owned());
        }
        if !is_private_url(&base_url) && !self.insecure_http {
            return Err("base_url: conversations would go over the network in the clear; use https, or set \
                        insecure_http = true"
                .to_owned());
        }
        for (setting, value) in [("max_in_flight", self.max_in_flight), ("max_tokens", as_usize(self.max_tokens))] {
            if !(1..=10_000_000).contains(&value) {
                return Err(format!("{setting}: 1 to 10000000"));
            }
        }
        if self.context_window < 1024 {
            return Err("context_window: at least 1024".to_owned());
        }
        if let Some(ours) = OURS.iter().find(|name| self.body.contains_key(**name)) {
            return Err(format!("body.{ours}: this member is filled in by Sortie"));
        }
        if self.omit.len() > MAX_ITEMS || self.omit.iter().any(|name| OURS[..3].contains(&name.as_str())) {
            return Err("omit: names of members, but not model, messages or system".to_owned());
        }
        let trust = Trust {
            include_system_cas: self.tls.include_system_cas.unwrap_or(self.tls.ca_file.is_none()),
            ca_file: self.tls.ca_file.map(|file| base.join(file)),
        };
        if base_url.scheme() == "https" && !trust.is_some() {
            return Err("tls: nobody is trusted; set ca_file".to_owned());
        }
        let source = self.key.map(|key| key.check(base)).transpose().map_err(|reason| format!("key: {reason}"))?;
        Ok(Upstream {
            credential: source.map(|source| credential(&self.name, self.auth, source)),
            name: self.name,
            serves: self.serves,
            base_url,
            headers: headers(self.headers)?,
            model: self.model,
            max_in_flight: self.max_in_flight,
            timeouts: Timeouts {
                connect: self.timeouts.connect,
                first_byte: self.timeouts.first_byte,
                between_bytes: self.timeouts.between_bytes,
            },
            limits: ModelLimits { context_window: self.context_window, max_tokens: self.max_tokens },
            prompt_caching: self.prompt_caching,
            body: self.body,
            omit: self.omit,
            proxy: self.proxy.map(|proxy| url("proxy", &proxy)).transpose()?,
            trust,
        })
    }
}

fn as_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// What is wrong is told without the text: somebody may have put a password into it.
fn url(setting: &str, text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{setting}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(format!("{setting}: it begins with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{setting}: no name and password belong into it"));
    }
    Ok(url)
}

fn credential(upstream: &str, auth: Auth, secret: Source) -> CredentialSpec {
    let kind = match auth {
        Auth::XApiKey => {
            CredentialKind::Header { header: HeaderName::from_static("x-api-key"), prefix: String::new(), secret }
        }
        Auth::Bearer => CredentialKind::Bearer { secret },
    };
    CredentialSpec { name: format!("models/{upstream}"), kind }
}

fn headers(raw: BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    if raw.len() > MAX_ITEMS {
        return Err(format!("headers: at most {MAX_ITEMS}"));
    }
    let header = |(name, value): (String, String)| {
        let wrong = |why: &str| format!("headers.{name}: {why}");
        let header: HeaderName = name.parse().map_err(|_| wrong("this is no name of a header"))?;
        if header == AUTHORIZATION || header == COOKIE || header == "x-api-key" {
            return Err(wrong("a secret does not belong into this file; say with `key` where it is"));
        }
        if NOT_HEADERS.contains(&header.as_str()) {
            return Err(wrong("this header is filled in by Sortie"));
        }
        let mut value = HeaderValue::from_str(&value).map_err(|_| wrong("this is no value of a header"))?;
        // It is not shown: somebody may think it a place for a secret.
        value.set_sensitive(true);
        Ok((header, value))
    };
    raw.into_iter().map(header).collect()
}
