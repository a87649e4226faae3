//! How much callers may do: rates, calls at once, sizes and times, as `[[limits]]` says.
//!
//! Every limit that matches a call has to let it pass. Narrow ones are asked first, so that what a caller is refused by
//! its own limit takes nothing from what it shares with others. The clock is monotonic: setting the machine's time changes
//! nothing. A limit whose settings stay the same keeps its counts over reloads.
//!
//! Bounded: see [`rates::Cells`]. Without limits, a call costs one look at an empty list.

mod body;
mod calls;
mod counts;
mod rates;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use globset::{GlobSet, GlobSetBuilder};
use governor::clock::Clock as _;
use http::StatusCode;
use sortie_api::{Hop, HopError};
use sortie_identity::Caller;
use sortie_ids::Digest;

use crate::config::{LimitConfig, Per};

pub(crate) use body::{Bounds, Cut};
pub(crate) use counts::{Counted, Counting};

use calls::{Calls, Permit};
use rates::{Key, Rates};

/// After how many seconds a caller may try again who has too many calls at once.
const TRY_AGAIN: u32 = 1;

/// All limits of the settings in force.
#[derive(Default)]
pub(crate) struct Limits(Vec<Arc<Limit>>);

/// One limit, and what it has counted.
struct Limit {
    config: LimitConfig,
    routes: GlobSet,
    tools: GlobSet,
    callers: GlobSet,
    agents: GlobSet,
    workspaces: GlobSet,
    rates: Option<Rates>,
    calls: Option<Arc<Calls>>,
}

/// A request, as limits see it.
pub(crate) struct Request<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) route: &'a str,
    /// One for each message of MCP, with the name of the tool where it calls one; a single `None` for anything else.
    pub(crate) messages: &'a [Option<&'a str>],
}

impl Limits {
    /// The limits of these settings. One that was there with the same settings goes on counting.
    pub(crate) fn new(configs: &[LimitConfig], previous: Option<&Limits>) -> Result<Self, globset::Error> {
        let kept = |config: &LimitConfig| previous?.0.iter().find(|limit| limit.config == *config).cloned();
        let limits = configs.iter().map(|config| match kept(config) {
            Some(limit) => Ok(limit),
            None => Limit::new(config).map(Arc::new),
        });
        let mut limits = limits.collect::<Result<Vec<_>, _>>()?;
        limits.sort_by_key(|limit| limit.config.per);
        Ok(Self(limits))
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Lets a request pass, and tells what bounds it from here on.
    ///
    /// # Errors
    /// 429 with the time after which it makes sense to try again.
    pub(crate) fn admit(&self, request: &Request<'_>) -> Result<Bounds, HopError> {
        let mut bounds = Bounds::default();
        let mut caller = None;
        for limit in &self.0 {
            if limit.concerns(request) {
                let caller = *caller.get_or_insert_with(|| request.caller.digest());
                limit.admit(request, &caller, &mut bounds)?;
            }
        }
        Ok(bounds)
    }
}

impl Limit {
    fn new(config: &LimitConfig) -> Result<Self, globset::Error> {
        let set = |patterns: &[String], any_case| {
            let mut set = GlobSetBuilder::new();
            for pattern in patterns {
                set.add(LimitConfig::glob(pattern, any_case)?);
            }
            set.build()
        };
        Ok(Self {
            routes: set(&config.routes, false)?,
            tools: set(&config.tools, true)?,
            callers: set(&config.callers, false)?,
            agents: set(&config.agents, false)?,
            workspaces: set(&config.workspaces, false)?,
            rates: config.rate.map(|rate| rates::rates(rate, config.burst)),
            calls: config.concurrency.map(|most| Arc::new(Calls::new(most))),
            config: config.clone(),
        })
    }

    /// Whether the limit is for this caller on this route.
    fn concerns(&self, request: &Request<'_>) -> bool {
        let one_of = |set: &GlobSet, text: Option<&str>| set.is_empty() || text.is_some_and(|text| set.is_match(text));
        one_of(&self.routes, Some(request.route))
            && one_of(&self.callers, Some(&request.caller.subject))
            && one_of(&self.agents, request.caller.agent.as_deref())
            && one_of(&self.workspaces, request.caller.workspace.as_deref())
    }

    fn admit(&self, request: &Request<'_>, caller: &Digest, bounds: &mut Bounds) -> Result<(), HopError> {
        let counted = request.messages.iter().filter(|tool| match tool {
            _ if self.tools.is_empty() => true,
            Some(tool) => self.tools.is_match(tool),
            None => false,
        });
        let mut keys: Vec<(Key, NonZeroU32)> = Vec::with_capacity(1);
        for tool in counted {
            let key = self.key(request.route, caller, *tool);
            match keys.iter_mut().find(|(known, _)| *known == key) {
                Some((_, count)) => *count = count.saturating_add(1),
                None => keys.push((key, NonZeroU32::MIN)),
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        if let Some(rates) = &self.rates {
            for (key, count) in &keys {
                self.in_rate(rates, key, *count)?;
            }
        }
        if let Some(calls) = &self.calls {
            for (key, count) in keys {
                let permit: Permit = Calls::take(calls, key, count).ok_or_else(|| {
                    let most = self.config.concurrency.map_or(0, NonZeroU32::get);
                    self.refuse(format!("{} {most} at once", self.limited()), TRY_AGAIN)
                })?;
                bounds.hold(permit);
            }
        }
        let LimitConfig { max_request_body, max_response_body, time, .. } = self.config;
        bounds.narrow(max_request_body, max_response_body, time);
        Ok(())
    }

    fn in_rate(&self, rates: &Rates, key: &Key, count: NonZeroU32) -> Result<(), HopError> {
        let rate = self.config.rate.map(|rate| rate.to_string()).unwrap_or_default();
        match rates.check_key_n(key, count) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(until)) => {
                let wait = until.wait_time_from(rates.clock().now());
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
                Err(self.refuse(format!("{} {rate}; try again in {seconds} s", self.limited()), seconds))
            }
            // It will never pass: no time to try again.
            Err(_) => {
                let reason = format!("{} {rate}, and this batch has more calls than may come at once", self.limited());
                Err(self.refuse(reason, 0))
            }
        }
    }

    /// The beginning of a reason.
    fn limited(&self) -> &'static str {
        match self.config.per {
            Per::CallerTool => "this caller's calls of this tool are limited to",
            Per::Caller => "this caller's calls are limited to",
            Per::Tool => "calls of this tool are limited to",
            Per::Route => "calls of this route are limited to",
        }
    }

    /// `retry_after` in seconds; 0 for none.
    fn refuse(&self, reason: String, retry_after: u32) -> HopError {
        metrics::counter!("sortie_gateway_limited_total").increment(1);
        let mut error = HopError::new(Hop::Policy, reason).with_status(StatusCode::TOO_MANY_REQUESTS);
        error.retry_after = (retry_after > 0).then_some(retry_after);
        error
    }

    /// What is counted together with this message. Names of tools count in any case: a server may not tell them apart.
    fn key(&self, route: &str, caller: &Digest, tool: Option<&str>) -> Key {
        let tool = || tool.map(|tool| tool.to_lowercase().into_boxed_str());
        let route = || Some(route.into());
        match self.config.per {
            Per::Caller => Key { caller: Some(*caller), route: None, tool: None },
            Per::CallerTool => Key { caller: Some(*caller), route: route(), tool: tool() },
            Per::Tool => Key { caller: None, route: route(), tool: tool() },
            Per::Route => Key { caller: None, route: route(), tool: None },
        }
    }
}

/// The refusal of a call that took too long.
pub(crate) fn too_long(time: Duration) -> HopError {
    let reason = format!("the call took longer than its limit of {} ms", time.as_millis());
    HopError::new(Hop::Policy, reason).with_status(StatusCode::GATEWAY_TIMEOUT)
}

/// The refusal of an answer whose length is above its limit.
pub(crate) fn answer_too_large(limit: u64) -> HopError {
    let reason = format!("the answer is larger than its limit of {limit} bytes");
    HopError::new(Hop::Policy, reason).with_status(StatusCode::BAD_GATEWAY)
}

/// The refusal of a request that is above its limit.
pub(crate) fn request_too_large(limit: u64) -> HopError {
    let reason = format!("the request body is larger than its limit of {limit} bytes");
    HopError::new(Hop::Policy, reason).with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

#[cfg(test)]
mod tests;
