//! What is told of each call when it has ended: one line in the log, and the metrics. Never payloads or header values.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::{Method, StatusCode};
use metrics::SharedString;
use sortie_api::{Hop, HopError};
use sortie_audit::Appending;
use sortie_identity::Caller;
use sortie_ids::RequestId;

use crate::audit::{Audit, Ending, Payloads};
use crate::body::{End, Sent};
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
    audit: Audit,
    /// What becomes known of it in other places.
    pub(crate) tally: Arc<Tally>,
    /// The name of the credential that the call went on with.
    pub(crate) credential: Option<Arc<str>>,
    began: Instant,
    end: End,
    sent: Sent,
    /// Where answers are recorded, sealed.
    pub(crate) payloads: Option<Arc<Payloads>>,
}

/// What becomes known of a call while others have it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The record that it goes on, from the moment on at which that is on its way: whoever leaves does not take it back.
    pub(crate) decided: OnceLock<Appending>,
    /// Where it failed after the head of the answer was sent.
    pub(crate) failed: OnceLock<Hop>,
    request_bytes: AtomicU64,
}

impl Tally {
    /// Counts bytes of the request's body.
    pub(crate) fn received(&self, bytes: usize) {
        self.request_bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn request_bytes(&self) -> u64 {
        self.request_bytes.load(Ordering::Relaxed)
    }
}

impl Record {
    pub(crate) fn begin(request_id: RequestId, method: Method, audit: Audit) -> Self {
        Self {
            request_id,
            method,
            route: None,
            status: None,
            hop: None,
            caller: None,
            audit,
            tally: Arc::default(),
            credential: None,
            began: Instant::now(),
            end: End::Abandoned,
            sent: Sent::default(),
            payloads: None,
        }
    }

    pub(crate) fn routed(&mut self, route: Arc<Route>) {
        self.route = Some(route);
    }

    pub(crate) fn route(&self) -> Option<&Arc<Route>> {
        self.route.as_ref()
    }

    /// Who is calling.
    pub(crate) fn called(&mut self, caller: Arc<Caller>) {
        self.caller = Some(caller);
    }

    /// The route and the caller, once both are known.
    pub(crate) fn known(&self) -> Option<(&Arc<Route>, &Arc<Caller>)> {
        self.route.as_ref().zip(self.caller.as_ref())
    }

    /// Tells of what was decided.
    ///
    /// # Errors
    /// It was denied, and the policy is enforced.
    pub(crate) fn judged(&self, caller: &Caller, verdict: &Verdict) -> Result<(), HopError> {
        let route = self.route.as_ref().map_or("none", |route| route.name.as_str());
        verdict.tell(&self.request_id, route, caller);
        verdict.refusal().map_or(Ok(()), Err)
    }

    /// The head of the answer, and the hop at which the call failed.
    pub(crate) fn answered(&mut self, status: StatusCode, hop: Option<Hop>) {
        self.status = Some(status);
        self.hop = hop;
    }

    /// The end of the answer's body.
    pub(crate) fn finish(mut self, end: End, sent: Sent) {
        (self.end, self.sent) = (end, sent);
        if matches!(end, End::Broken | End::Silent) {
            self.hop = Some(Hop::Upstream);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let elapsed = self.began.elapsed();
        let route = self.route.as_ref().map_or("none", |route| route.name.as_str());
        self.audit.ended(Ending {
            id: &self.request_id,
            tally: &self.tally,
            status: self.status,
            hop: self.hop.or_else(|| self.tally.failed.get().copied()),
            end: self.end,
            sent: std::mem::take(&mut self.sent),
            duration: elapsed,
            payloads: self.payloads.as_deref(),
        });
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
