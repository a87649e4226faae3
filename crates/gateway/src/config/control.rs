//! What callers may do: the settings `policy`, `policy_file`, `region` and `refusals`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{ConfigError, Source};

/// Longest name of a region, in bytes.
const MAX_REGION: usize = 64;

/// Whether calls are held to the policy file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PolicyMode {
    /// No policy: whoever the hub lets call a route may do everything there.
    #[default]
    Off,
    /// Each call is judged and what would be refused is told, but nothing is refused.
    Shadow,
    /// What no policy allows is refused.
    Enforce,
}

impl PolicyMode {
    /// The name as the settings have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Shadow => "shadow",
            Self::Enforce => "enforce",
        }
    }
}

/// How a caller that spoke JSON-RPC is told that it may not do something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Refusals {
    /// Status 403, and the JSON-RPC error as the body.
    #[default]
    Http,
    /// Status 200, and the same body: for clients that take a 403 for the end of the connection.
    JsonRpc,
}

/// What callers may do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlConfig {
    /// `policy`: whether calls are held to the policy file. Default `off`.
    pub policy: PolicyMode,
    /// `policy_file`: the policy, in Cedar (`.cedar`) or in the short form (`.toml`). Required unless `policy` is `off`.
    pub policy_file: Option<PathBuf>,
    /// `region`: where this gateway is, for policies that ask. 1 to 64 bytes of letters, digits, `-`, `_` and `.`.
    pub region: Option<String>,
    /// `refusals`: how a caller that spoke JSON-RPC is told that it may not do something. Default `http`.
    pub refusals: Refusals,
}

/// Reads them together.
pub(super) fn check(
    policy: PolicyMode,
    policy_file: Option<Spanned<PathBuf>>,
    region: Option<Spanned<String>>,
    refusals: Refusals,
    source: &Source<'_>,
    base: &Path,
) -> Result<ControlConfig, ConfigError> {
    if policy != PolicyMode::Off && policy_file.is_none() {
        let reason = "it needs `policy_file`, the file with what is allowed; or set policy = \"off\"";
        return Err(source.wrong(None, "policy", reason));
    }
    if let Some(region) = &region {
        let text = region.get_ref();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > MAX_REGION || !text.bytes().all(plain) {
            let reason = "a region is 1 to 64 letters, digits, `-`, `_` and `.`, such as eu-central-1";
            return Err(source.wrong(Some(region.span()), "region", reason));
        }
    }
    Ok(ControlConfig {
        policy,
        policy_file: policy_file.map(|path| base.join(path.into_inner())),
        region: region.map(Spanned::into_inner),
        refusals,
    })
}
