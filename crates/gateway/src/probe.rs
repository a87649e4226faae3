//! Asking for a call through the whole path back to this gateway: edge, link, inner TLS and identity together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use sortie_api::Hop;
use sortie_ids::RouteName;
use sortie_link::protos::{FromGateway, ProbeFailure};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::link_state::LinkBoard;

/// How long a probe may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer counts as fresh.
const FRESH: Duration = Duration::from_secs(2);
/// Longest text of the edge that is repeated, in characters.
const MAX_TEXT: usize = 200;

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeReport {
    /// Whether it came through.
    pub ok: bool,
    /// The hop at which it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hop: Option<String>,
    /// Why it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl ProbeReport {
    pub(crate) fn good() -> Self {
        Self { ok: true, hop: None, reason: None }
    }

    pub(crate) fn failed(hop: Hop, reason: impl Into<String>) -> Self {
        Self { ok: false, hop: Some(hop.as_str().to_owned()), reason: Some(reason.into()) }
    }
}

/// Probes that wait for their results.
#[derive(Default)]
pub(crate) struct Prober {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Option<ProbeFailure>>>>,
    last: Mutex<Option<(Instant, ProbeReport)>>,
    /// Held during a probe whose result is to be shared, so that many who ask cause one.
    asking: tokio::sync::Mutex<()>,
}

impl Prober {
    /// Asks the edge for a probe by a route, and waits at most five seconds.
    pub(crate) async fn probe(&self, link: &LinkBoard, route: &RouteName) -> ProbeReport {
        let state = link.now();
        let Some(up) = state.up else {
            return ProbeReport::failed(Hop::Link, state.trouble.unwrap_or_else(|| "no link is up".to_owned()));
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (told, result) = oneshot::channel();
        self.waiting().insert(id, told);
        let _waiting = Waiting { prober: self, id };
        if !up.teller.tell(FromGateway::Probe { id, route: route.clone() }) {
            return ProbeReport::failed(Hop::Link, "the edge does not take messages from the link");
        }
        match tokio::time::timeout(DEADLINE, result).await {
            Ok(Ok(None)) => ProbeReport::good(),
            Ok(Ok(Some(failure))) => {
                ProbeReport { ok: false, hop: Some(printable(&failure.hop)), reason: Some(printable(&failure.reason)) }
            }
            _ => ProbeReport::failed(Hop::Edge, format!("no result of the probe came within {} s", DEADLINE.as_secs())),
        }
    }

    /// The result of a probe within the last two seconds, or of a new one.
    pub(crate) async fn fresh(&self, link: &LinkBoard, route: &RouteName) -> ProbeReport {
        let _one = self.asking.lock().await;
        if let Some((at, report)) = self.last_with_time()
            && at.elapsed() < FRESH
        {
            return report;
        }
        self.noted(link, route).await
    }

    /// A new probe whose result others may use.
    pub(crate) async fn noted(&self, link: &LinkBoard, route: &RouteName) -> ProbeReport {
        let report = self.probe(link, route).await;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), report.clone()));
        report
    }

    /// The newest shared result.
    pub(crate) fn last(&self) -> Option<ProbeReport> {
        self.last_with_time().map(|(_, report)| report)
    }

    /// The edge's message about a probe. One that nobody waits for is ignored.
    pub(crate) fn result(&self, id: u64, failure: Option<ProbeFailure>) {
        if let Some(told) = self.waiting().remove(&id) {
            let _ = told.send(failure);
        }
    }

    fn last_with_time(&self) -> Option<(Instant, ProbeReport)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<ProbeFailure>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a probe that nobody waits for any more.
struct Waiting<'a> {
    prober: &'a Prober,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.prober.waiting().remove(&self.id);
    }
}

/// Text of the edge as it may stand in a log line or an answer.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
