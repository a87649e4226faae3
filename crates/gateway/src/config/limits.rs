//! `[[limits]]`: how much callers may do.

use std::num::NonZeroU32;
use std::time::Duration;

use globset::{Glob, GlobBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{ConfigError, Source, Span};

/// Most limits of one file.
const MOST: usize = 256;

/// One limit. It holds for the calls that all of its lists match; a list that is empty matches every call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitConfig {
    /// `routes`: names of routes, with `*`, `?`, `[...]` and `{a,b}` as in globs; here and below.
    pub routes: Vec<String>,
    /// `tools`: tools, whatever their case. With it, only calls of tools count; without, every message of MCP, and every
    /// request that is none.
    pub tools: Vec<String>,
    /// `callers`: subjects.
    pub callers: Vec<String>,
    /// `agents`: agents.
    pub agents: Vec<String>,
    /// `workspaces`: workspaces of the hub.
    pub workspaces: Vec<String>,
    /// `per`: what is counted together. Default `caller`.
    pub per: Per,
    /// `rate`: calls in a time, like `60/m`.
    pub rate: Option<Rate>,
    /// `burst`: how many of them may come at once. Default: the number of `rate`.
    pub burst: Option<NonZeroU32>,
    /// `concurrency`: calls at once, each until its answer has ended.
    pub concurrency: Option<NonZeroU32>,
    /// `max_request_body`, in bytes: a larger one is answered 413.
    pub max_request_body: Option<u64>,
    /// `max_response_body`, in bytes: a larger answer is refused with 502, or cut where its length was not told.
    pub max_response_body: Option<u64>,
    /// `time`: how long a call may take from when it goes to the upstream until its answer has ended; then 504, or the
    /// answer is cut.
    pub time: Option<Duration>,
}

/// What is counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// What one caller does with one tool.
    #[serde(rename = "caller+tool")]
    CallerTool,
    /// What one caller does, on all routes that the limit is for.
    #[default]
    Caller,
    /// What all callers do with one tool of one route.
    Tool,
    /// What all callers do on one route.
    Route,
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: NonZeroU32,
    /// In which time: a second, a minute, an hour or a day.
    pub unit: Duration,
}

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
/// Most calls of a rate.
const MOST_CALLS: u32 = 1_000_000;

impl Rate {
    fn parse(text: &str) -> Option<Self> {
        let (count, unit) = text.split_once('/')?;
        let count: NonZeroU32 = count.parse().ok().filter(|count: &NonZeroU32| count.get() <= MOST_CALLS)?;
        let (_, seconds) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        Some(Self { count, unit: Duration::from_secs(seconds) })
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = UNITS.into_iter().find(|(_, seconds)| Duration::from_secs(*seconds) == self.unit);
        write!(f, "{}/{}", self.count, unit.map_or("s", |(name, _)| name))
    }
}

impl LimitConfig {
    /// A pattern of names; those of tools match in any case.
    pub(crate) fn glob(pattern: &str, any_case: bool) -> Result<Glob, globset::Error> {
        GlobBuilder::new(pattern).case_insensitive(any_case).build()
    }
}

/// One limit.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Limit")]
pub(super) struct RawLimit {
    /// The routes that it is for, by name or pattern. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    routes: Vec<Spanned<String>>,
    /// The tools, by name or pattern, in any case. With it only calls of tools count. Default: every message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    tools: Vec<Spanned<String>>,
    /// The callers, by subject or pattern. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    callers: Vec<Spanned<String>>,
    /// The agents. Default: all callers, agents or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    agents: Vec<Spanned<String>>,
    /// The workspaces of the hub. Default: all callers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<String>")]
    workspaces: Vec<Spanned<String>>,
    /// What is counted together.
    #[serde(default)]
    per: Per,
    /// How many calls in a second, minute, hour or day, like 60/m; further ones are answered 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("pattern" = "^[0-9]+/[smhd]$"))]
    rate: Option<Spanned<String>>,
    /// How many of them may come at once. Default: the number of rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u32>")]
    burst: Option<Spanned<u32>>,
    /// How many calls at once, each until its answer has ended; further ones are answered 429.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u32>")]
    concurrency: Option<Spanned<u32>>,
    /// Largest request body in bytes; a larger one is answered 413.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_request_body: Option<u64>,
    /// Largest body of an answer in bytes; a larger one is answered 502, or cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_response_body: Option<u64>,
    /// How long a call may take, its answer included; then 504, or the answer is cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Span>,
}

/// Checks all limits. One that is said twice counts once.
pub(super) fn check(raw: Vec<Spanned<RawLimit>>, source: &Source<'_>) -> Result<Vec<LimitConfig>, ConfigError> {
    if let Some(first) = raw.get(MOST) {
        return Err(source.wrong(Some(first.span()), "limits", format!("there are more than {MOST}")));
    }
    let mut limits = Vec::with_capacity(raw.len());
    for one in raw {
        let span = one.span();
        let limit = one.into_inner().check(span, source)?;
        if !limits.contains(&limit) {
            limits.push(limit);
        }
    }
    Ok(limits)
}

impl RawLimit {
    fn check(self, span: std::ops::Range<usize>, source: &Source<'_>) -> Result<LimitConfig, ConfigError> {
        let patterns = |list: Vec<Spanned<String>>, name: &str| {
            list.into_iter()
                .map(|pattern| match LimitConfig::glob(pattern.get_ref(), false) {
                    Ok(_) => Ok(pattern.into_inner()),
                    Err(error) => Err(source.wrong(Some(pattern.span()), name, format!("{}", error.kind()))),
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let above_zero = |given: Option<Spanned<u32>>, name: &str| match given {
            None => Ok(None),
            Some(given) => match NonZeroU32::new(*given.get_ref()).filter(|count| count.get() <= MOST_CALLS) {
                Some(count) => Ok(Some(count)),
                None => Err(source.wrong(Some(given.span()), name, format!("write 1 to {MOST_CALLS}"))),
            },
        };
        let rate = match &self.rate {
            None => None,
            Some(text) => Some(Rate::parse(text.get_ref()).ok_or_else(|| {
                let reason = format!("`{}` is not a rate such as 10/s, 60/m, 1000/h or 5000/d", text.get_ref());
                source.wrong(Some(text.span()), "limits.rate", reason)
            })?),
        };
        if let (Some(burst), None) = (&self.burst, rate) {
            return Err(source.wrong(Some(burst.span()), "limits.burst", "it belongs to a rate; set rate = \"60/m\""));
        }
        let limit = LimitConfig {
            routes: patterns(self.routes, "limits.routes")?,
            tools: patterns(self.tools, "limits.tools")?,
            callers: patterns(self.callers, "limits.callers")?,
            agents: patterns(self.agents, "limits.agents")?,
            workspaces: patterns(self.workspaces, "limits.workspaces")?,
            per: self.per,
            rate,
            burst: above_zero(self.burst, "limits.burst")?,
            concurrency: above_zero(self.concurrency, "limits.concurrency")?,
            max_request_body: self.max_request_body,
            max_response_body: self.max_response_body,
            time: self.time.map(|span| span.0),
        };
        let bounds_nothing = limit.rate.is_none()
            && limit.concurrency.is_none()
            && limit.max_request_body.is_none()
            && limit.max_response_body.is_none()
            && limit.time.is_none();
        if bounds_nothing {
            let reason =
                "this limit bounds nothing; set rate, concurrency, max_request_body, max_response_body or time";
            return Err(source.wrong(Some(span), "limits", reason));
        }
        Ok(limit)
    }
}

impl From<&LimitConfig> for RawLimit {
    fn from(limit: &LimitConfig) -> Self {
        let placed = |list: &[String]| list.iter().map(|text| Spanned::new(0..0, text.clone())).collect();
        let count = |count: Option<NonZeroU32>| count.map(|count| Spanned::new(0..0, count.get()));
        Self {
            routes: placed(&limit.routes),
            tools: placed(&limit.tools),
            callers: placed(&limit.callers),
            agents: placed(&limit.agents),
            workspaces: placed(&limit.workspaces),
            per: limit.per,
            rate: limit.rate.map(|rate| Spanned::new(0..0, rate.to_string())),
            burst: count(limit.burst),
            concurrency: count(limit.concurrency),
            max_request_body: limit.max_request_body,
            max_response_body: limit.max_response_body,
            time: limit.time.map(Span),
        }
    }
}
