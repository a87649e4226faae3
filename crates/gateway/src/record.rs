//! What is told of each call when it has ended: one line in the log, and the metrics. Never payloads or header values.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};
use metrics::SharedString;
use sortie_api::{Hop, HopError};
use sortie_identity::Caller;
use sortie_ids::RequestId;

use crate::body::End;
use crate::control::Verdict;
use crate::routes::Route;

/// A call while it runs. Dropping it before an answer is known means that the caller went away.
pub(crate) struct Record {
    pub(crate) request_id: RequestId,
    method: Method,
    route: Option<Arc<Route>>,
    status: Option<StatusCode>,
    hop: Option<Hop>,
    caller: Option<Arc<Caller>>,
    verdict: Verdict,
    /// The name of the credential that the call went on with.
    pub(crate) credential: Option<Arc<str>>,
    began: Instant,
    end: End,
}

impl Record {
    pub(crate) fn begin(request_id: RequestId, method: Method) -> Self {
        Self {
            request_id,
            method,
            route: None,
            status: None,
            hop: None,
            caller: None,
            verdict: Verdict::default(),
            credential: None,
            began: Instant::now(),
            end: End::Abandoned,
        }
    }

    pub(crate) fn routed(&mut self, route: Arc<Route>) {
        self.route = Some(route);
    }

    /// What was decided.
    ///
    /// # Errors
    /// It was denied, and the policy is enforced.
    pub(crate) fn judged(&mut self, caller: &Arc<Caller>, verdict: Verdict) -> Result<(), HopError> {
        let route = self.route.as_ref().map_or("none", |route| route.name.as_str());
        verdict.tell(&self.request_id, route, caller);
        self.caller = Some(caller.clone());
        self.verdict = verdict;
        self.verdict.refusal().map_or(Ok(()), Err)
    }

    /// The head of the answer, and the hop at which the call failed.
    pub(crate) fn answered(&mut self, status: StatusCode, hop: Option<Hop>) {
        self.status = Some(status);
        self.hop = hop;
    }

    /// The end of the answer's body.
    pub(crate) fn finish(mut self, end: End) {
        self.end = end;
        if matches!(end, End::Broken | End::Silent) {
            self.hop = Some(Hop::Upstream);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        let route = self.route.as_ref().map_or("none", |route| route.name.as_str());
        let hop = self.hop.map_or("none", Hop::as_str);
        tracing::info!(
            request_id = %self.request_id,
            route,
            method = %self.method,
            caller = self.caller.as_ref().map(|caller| caller.subject.as_str()),
            issuer = self.caller.as_ref().map(|caller| caller.issuer.as_str()),
            assurance = self.caller.as_ref().map(|caller| caller.assurance.as_str()),
            credential = self.credential.as_deref(),
            status = self.status.map_or(0, |status| status.as_u16()),
            hop,
            end = self.end.as_str(),
            duration_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            "call"
        );
        let label = self.route.as_ref().map_or(SharedString::const_str("none"), |route| route.label.clone().into());
        let class = match self.status.map_or(0, |status| status.as_u16() / 100) {
            1 => "1xx",
            2 => "2xx",
            3 => "3xx",
            4 => "4xx",
            5 => "5xx",
            _ => "none",
        };
        metrics::counter!("sortie_gateway_calls_total", "route" => label.clone(), "status" => class, "hop" => hop)
            .increment(1);
        metrics::histogram!("sortie_gateway_call_duration_seconds", "route" => label).record(elapsed.as_secs_f64());
    }
}

/// Counts something while it is open.
pub(crate) struct Open(&'static str);

impl Open {
    pub(crate) fn new(gauge: &'static str) -> Self {
        metrics::gauge!(gauge).increment(1.0);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!(self.0).decrement(1.0);
    }
}
