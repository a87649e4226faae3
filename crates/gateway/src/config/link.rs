//! How the edge is reached: `[link]`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{ConfigError, LinkConfig, Source};

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Link")]
pub(super) struct RawLink {
    /// An HTTP proxy, http://host:port, that the link goes through by CONNECT; with one set, nothing is dialled directly.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(super) proxy: Option<Spanned<String>>,
    /// Holds the value of the header Proxy-Authorization, like `Basic ...`; read at each dial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) proxy_authorization_file: Option<PathBuf>,
}

impl RawLink {
    pub(super) fn check(self, source: &Source<'_>, base: &Path) -> Result<LinkConfig, ConfigError> {
        let proxy = match self.proxy {
            None => None,
            Some(text) => {
                let wrong = |reason: String| source.wrong(Some(text.span()), "link.proxy", reason);
                Some(text.get_ref().parse().map_err(wrong)?)
            }
        };
        let proxy_authorization_file = self.proxy_authorization_file.map(|path| base.join(path));
        Ok(LinkConfig { proxy, proxy_authorization_file })
    }
}
