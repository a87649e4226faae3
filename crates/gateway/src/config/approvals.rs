//! `approval_timeout` and `[approvals]`: how calls wait for a person, and who may decide.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{ConfigError, Source, Span};

/// How calls wait for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalsConfig {
    /// `approval_timeout`: how long a call waits; then it is refused. Default `5m`.
    pub timeout: Duration,
    /// `approvals.from`: who may decide. Default: the users of the gateway's own machine who may open its admin socket.
    pub from: ApprovalSources,
    /// `approvals.show_arguments`: whether approvers see values of arguments, bounded, beside types and sizes. Default
    /// false.
    pub show_arguments: bool,
    /// `approvals.max_waiting`: calls that wait at once; another one is refused with 429. Default 100.
    pub max_waiting: usize,
    /// `approvals.max_waiting_per_caller`: the same for one caller. Default 10.
    pub max_waiting_per_caller: usize,
}

impl Default for ApprovalsConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(300),
            from: ApprovalSources::default(),
            show_arguments: false,
            max_waiting: 100,
            max_waiting_per_caller: 10,
        }
    }
}

/// Who may decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalSources(Vec<ApprovalSource>);

/// One kind of approver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalSource {
    /// Users of the gateway's machine who may open its admin socket.
    Local,
    /// Holders of `manage` keys of the hub. The hub then sees what waits, and is trusted to say who decided.
    Hub,
}

impl ApprovalSources {
    /// Whether users of the gateway's machine may decide.
    pub fn local(&self) -> bool {
        self.0.contains(&ApprovalSource::Local)
    }

    /// Whether holders of `manage` keys of the hub may.
    pub fn hub(&self) -> bool {
        self.0.contains(&ApprovalSource::Hub)
    }
}

impl Default for ApprovalSources {
    fn default() -> Self {
        Self(vec![ApprovalSource::Local])
    }
}

/// Most calls that may be let wait at once.
const MOST: usize = 10_000;

#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Approvals")]
pub(super) struct RawApprovals {
    /// Who may decide: local (users of this machine who may open the admin socket), hub (manage keys). Default local.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<ApprovalSource>>")]
    from: Option<Spanned<Vec<ApprovalSource>>>,
    /// Whether approvers see values of arguments, at most 256 characters of each, beside types and sizes.
    #[serde(default)]
    show_arguments: bool,
    /// Calls that wait at once; another one is refused with 429. 1 to 10000, default 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<usize>")]
    max_waiting: Option<Spanned<usize>>,
    /// The same for one caller. Default 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<usize>")]
    max_waiting_per_caller: Option<Spanned<usize>>,
}

impl RawApprovals {
    pub(super) fn check(self, timeout: Option<Span>, source: &Source<'_>) -> Result<ApprovalsConfig, ConfigError> {
        let defaults = ApprovalsConfig::default();
        let count = |given: Option<Spanned<usize>>, name: &str, default: usize| match given {
            None => Ok(default),
            Some(given) if (1..=MOST).contains(given.get_ref()) => Ok(given.into_inner()),
            Some(given) => Err(source.wrong(Some(given.span()), name, format!("write 1 to {MOST}"))),
        };
        let from = match self.from {
            None => defaults.from,
            Some(from) if from.get_ref().is_empty() => {
                let reason = "nobody could decide, and every call that is asked for would be refused; write \"local\" \
                              or \"hub\", or deny such calls by policy";
                return Err(source.wrong(Some(from.span()), "approvals.from", reason));
            }
            Some(from) => ApprovalSources(from.into_inner()),
        };
        Ok(ApprovalsConfig {
            timeout: timeout.map_or(defaults.timeout, |span| span.0),
            from,
            show_arguments: self.show_arguments,
            max_waiting: count(self.max_waiting, "approvals.max_waiting", defaults.max_waiting)?,
            max_waiting_per_caller: count(
                self.max_waiting_per_caller,
                "approvals.max_waiting_per_caller",
                defaults.max_waiting_per_caller,
            )?,
        })
    }
}

impl From<&ApprovalsConfig> for RawApprovals {
    fn from(config: &ApprovalsConfig) -> Self {
        let placed = |count: usize| Some(Spanned::new(0..0, count));
        Self {
            from: Some(Spanned::new(0..0, config.from.0.clone())),
            show_arguments: config.show_arguments,
            max_waiting: placed(config.max_waiting),
            max_waiting_per_caller: placed(config.max_waiting_per_caller),
        }
    }
}
