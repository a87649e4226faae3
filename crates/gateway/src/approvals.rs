//! Calls that wait for a person.
//!
//! A call that policy wants asked for waits here until somebody approves or denies it, its time is over, its caller goes
//! away, or the gateway stops. Only an approval lets it go on: whatever else happens, the call is refused, or gone. All of
//! it is in memory, so that a process that is killed has approved nothing.
//!
//! An approval is good for the one call that waits. Where the approver says so, it also lets the same caller repeat that
//! call for a while: same route, method, target, arguments byte for byte, asked for by the same policies.
//!
//! Bounded: so many wait at once, over all and for one caller ([`ApprovalsConfig`]); another one is refused with that
//! reason. At most [`MOST_GRANTS`] last; then an approver is told to approve single calls. The last [`RECENT`] that have
//! ended can be looked at.

mod arguments;
mod operations;
pub(crate) mod patient;
pub(crate) mod relay;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use sortie_api::{
    ApiError, Approval, ApprovalArguments, ApprovalCaller, ApprovalDecision, ApprovalStatus, Approver, Choice,
    DecideApproval, Hop, HopError,
};
use sortie_audit::{ApprovalDecided, Kind, kinds};
use sortie_identity::Caller;
use sortie_ids::{ApprovalId, Digest, RequestId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::audit::Audit;
use crate::config::ApprovalsConfig;

pub(crate) use arguments::{summary, visible};
pub(crate) use operations::OPERATIONS;

/// Most approvals that last at once.
const MOST_GRANTS: usize = 1000;
/// How many that have ended can be looked at.
const RECENT: usize = 200;

/// A call that policy wants asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Who calls.
    pub(crate) caller: Arc<Caller>,
    pub(crate) request_id: RequestId,
    /// The route's name.
    pub(crate) route: String,
    /// The method of MCP, or `http`.
    pub(crate) method: String,
    /// The tool, prompt or resource.
    pub(crate) target: Option<String>,
    /// What [`summary`] says of the arguments. `None` where nothing is known of the body: such a call cannot be repeated.
    pub(crate) arguments: Option<ApprovalArguments>,
    /// The facts that policy took from the arguments, as text.
    pub(crate) facts: BTreeMap<String, String>,
    /// The names of the policies that ask.
    pub(crate) policies: Vec<String>,
    /// What they say that an approver is to know.
    pub(crate) reason: String,
    /// What the client calls this request, to be found when it cancels it.
    pub(crate) request: ClientRequest,
}

/// A request as its client calls it: within a session, where there is one, by its JSON-RPC id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientRequest {
    /// The digest of the session's id.
    pub(crate) session: Option<Digest>,
    /// The JSON of the id, exactly as sent.
    pub(crate) id: Option<String>,
}

/// That a call was approved. Only a decision makes one.
#[derive(Clone, Debug)]
pub(crate) struct Approved {
    /// The approval; that of the first call where this one repeats it.
    pub(crate) id: ApprovalId,
    pub(crate) decision: ApprovalDecision,
}

/// All approvals of this gateway. Clones share them.
#[derive(Clone)]
pub(crate) struct Approvals {
    state: Arc<Mutex<State>>,
    /// Seconds since 1970.
    clock: fn() -> i64,
    audit: Audit,
}

#[derive(Default)]
struct State {
    waiting: BTreeMap<ApprovalId, Waiting>,
    /// How many of them are a caller's.
    of_caller: HashMap<Digest, usize>,
    grants: HashMap<Digest, Grant>,
    /// The newest last.
    ended: VecDeque<Approval>,
    stopped: bool,
}

struct Waiting {
    shown: Approval,
    since: Instant,
    caller: Digest,
    request: ClientRequest,
    /// What is the same for a repetition of the call; `None` where that cannot be known.
    same: Option<Digest>,
    told: oneshot::Sender<Outcome>,
}

struct Grant {
    until: Instant,
    approved: Approved,
}

/// How a wait ended, other than by its time or its caller.
enum Outcome {
    Decided(ApprovalDecision),
    Withdrawn(&'static str),
}

impl Approvals {
    pub(crate) fn new(clock: fn() -> i64, audit: Audit) -> Self {
        Self { state: Arc::default(), clock, audit }
    }

    /// Asks for a call: it waits from here on. Dropping the future withdraws it.
    ///
    /// # Errors
    /// 403 when it is denied, or nobody decided in time; 429 when too many wait; 503 when the gateway stops.
    pub(crate) fn ask(
        &self,
        rules: &ApprovalsConfig,
        asked: Asked,
    ) -> impl Future<Output = Result<Approved, HopError>> + Send + 'static + use<> {
        let timeout = rules.timeout;
        let begun = self.begin(rules, asked);
        async move {
            let mut ticket = match begun? {
                Begun::Granted(approved) => return Ok(*approved),
                Begun::Waits(ticket) => ticket,
            };
            let outcome = match tokio::time::timeout(timeout, &mut ticket.outcome).await {
                Ok(outcome) => outcome.ok(),
                Err(_) if ticket.end(ApprovalStatus::Expired) => None,
                // It was decided in the very moment.
                Err(_) => ticket.outcome.try_recv().ok(),
            };
            let refused = |reason: String| Err(HopError::new(Hop::Policy, reason));
            match outcome {
                Some(Outcome::Decided(decision)) if decision.decision == Choice::Approve => {
                    Ok(Approved { id: ticket.id.clone(), decision })
                }
                Some(Outcome::Decided(decision)) => {
                    let why = decision.reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                    refused(format!("approval {} was denied by {}{why}", ticket.id, decision.by))
                }
                Some(Outcome::Withdrawn(why)) => {
                    let error = HopError::new(Hop::Policy, format!("approval {}: {why}", ticket.id));
                    Err(error.with_status(StatusCode::SERVICE_UNAVAILABLE))
                }
                None => refused(format!(
                    "nobody decided on approval {} within {} s; have somebody look at `sortie approvals list`, and call \
                     again",
                    ticket.id,
                    timeout.as_secs()
                )),
            }
        }
    }

    /// Those that wait, the oldest first.
    pub(crate) fn waiting(&self) -> Vec<Approval> {
        self.lock().waiting.values().map(Waiting::now).collect()
    }

    /// One that waits, or has ended lately.
    pub(crate) fn find(&self, id: &ApprovalId) -> Option<Approval> {
        let state = self.lock();
        let waiting = state.waiting.get(id).map(Waiting::now);
        waiting.or_else(|| state.ended.iter().find(|ended| ended.id == *id).cloned())
    }

    /// Decides, and records it first. The first decision counts.
    ///
    /// # Errors
    /// 404 when there is none with this id, 409 when it has ended, with how; 400 when the decision says too much; 503 when
    /// it cannot be recorded: then nothing is decided.
    pub(crate) fn decide(&self, id: &ApprovalId, by: Approver, decide: DecideApproval) -> Result<Approval, ApiError> {
        decide.check()?;
        let at = self.now();
        let mut state = self.lock();
        if let Some(ended) = state.ended.iter().find(|ended| ended.id == *id) {
            return Err(ApiError::conflict(format!(
                "this approval is {} already{}",
                ended.status.as_str(),
                told(ended)
            )));
        }
        let Some(waiting) = state.waiting.get(id) else {
            return Err(ApiError::not_found(format!("no approval `{id}` is waiting")));
        };
        let reason = decide.reason.as_deref().map(visible).filter(|reason| !reason.is_empty());
        let decision = ApprovalDecision { decision: decide.decision, by, at, reason, for_s: decide.for_s };
        let status = match decide.decision {
            Choice::Approve => ApprovalStatus::Approved,
            Choice::Deny => ApprovalStatus::Denied,
        };
        let decided = Approval { status, decision: Some(decision.clone()), ..waiting.now() };
        let same = waiting.same;
        let mut grant = None;
        if let Some(seconds) = decide.for_s {
            let same = same.ok_or_else(|| {
                ApiError::invalid_request("for_s: nothing is known of this call's body; approve it without")
            })?;
            let now = Instant::now();
            state.grants.retain(|_, grant| grant.until > now);
            if state.grants.len() >= MOST_GRANTS && !state.grants.contains_key(&same) {
                let reason = format!("for_s: {MOST_GRANTS} approvals last already; approve this call alone");
                return Err(ApiError::limit_reached(reason));
            }
            let approved = Approved { id: id.clone(), decision: decision.clone() };
            grant = Some((same, Grant { until: now + Duration::from_secs(seconds.into()), approved }));
        }
        self.audit.before(kind(status), &record(&decided)).map_err(|_| {
            ApiError::overloaded("this cannot be recorded, so it is not decided; see the gateway's log, and try again")
        })?;
        state.grants.extend(grant);
        let (ended, told) = state.end(id, status, Some(decision.clone())).ok_or_else(ApiError::internal)?;
        let _gone = told.send(Outcome::Decided(decision));
        Ok(ended)
    }

    /// The client has cancelled a request of its own (`notifications/cancelled`): it waits no longer.
    pub(crate) fn cancelled(&self, caller: &Digest, route: &str, request: &ClientRequest) {
        let why = "the caller has cancelled the request";
        self.withdraw(why, |waiting| {
            waiting.caller == *caller && waiting.shown.route == route && waiting.request == *request
        });
    }

    /// Whether anything waits.
    pub(crate) fn any(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// The gateway stops: nothing waits any longer, nor will.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.withdraw("the gateway stops, and nobody has decided; call again", |_| true);
    }

    fn withdraw(&self, why: &'static str, which: impl Fn(&Waiting) -> bool) {
        let mut state = self.lock();
        let ids: Vec<_> = state.waiting.iter().filter(|(_, one)| which(one)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            if let Some((ended, told)) = state.end(&id, ApprovalStatus::Withdrawn, None) {
                self.audit.note(kind(ended.status), &record(&ended));
                let _gone = told.send(Outcome::Withdrawn(why));
            }
        }
    }

    fn begin(&self, rules: &ApprovalsConfig, asked: Asked) -> Result<Begun, HopError> {
        let caller = asked.caller.digest();
        let same = asked.same(&caller);
        let mut state = self.lock();
        let since = Instant::now();
        if let Some(grant) = same.and_then(|same| state.grants.get(&same)).filter(|grant| grant.until > since) {
            tracing::info!(request_id = %asked.request_id, approval = %grant.approved.id, "approved before");
            return Ok(Begun::Granted(Box::new(grant.approved.clone())));
        }
        let full = |reason: String| {
            metrics::counter!("sortie_gateway_approvals_total", "end" => "refused").increment(1);
            Err(HopError::new(Hop::Policy, reason).with_status(StatusCode::TOO_MANY_REQUESTS))
        };
        if state.stopped {
            let error = HopError::new(Hop::Policy, "this has to be approved, and the gateway stops; call again");
            return Err(error.with_status(StatusCode::SERVICE_UNAVAILABLE));
        }
        if state.waiting.len() >= rules.max_waiting {
            return full(format!("this has to be approved, and {} calls wait for that already", rules.max_waiting));
        }
        let own = state.of_caller.get(&caller).copied().unwrap_or_default();
        if own >= rules.max_waiting_per_caller {
            let most = rules.max_waiting_per_caller;
            return full(format!("this has to be approved, and {most} calls of this caller wait for that already"));
        }
        let id = ApprovalId::random();
        let request = asked.request.clone();
        let shown = asked.shown(id.clone(), self.now(), rules.timeout);
        tracing::info!(
            approval = %id,
            request_id = shown.request_id,
            route = shown.route,
            caller = shown.caller.subject,
            agent = shown.caller.agent,
            method = shown.method,
            target = shown.target,
            policies = ?shown.policies,
            "approval asked"
        );
        let (told, outcome) = oneshot::channel();
        *state.of_caller.entry(caller).or_default() += 1;
        state.waiting.insert(id.clone(), Waiting { shown, since, caller, request, same, told });
        metrics::gauge!("sortie_gateway_approvals_waiting").increment(1.0);
        Ok(Begun::Waits(Ticket { id, outcome, approvals: self.clone() }))
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second((self.clock)()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Begun {
    Granted(Box<Approved>),
    Waits(Ticket),
}

/// A call that waits. Its drop withdraws it, if it still does.
struct Ticket {
    id: ApprovalId,
    outcome: oneshot::Receiver<Outcome>,
    approvals: Approvals,
}

impl Ticket {
    /// Ends the wait; false when it has ended.
    fn end(&self, status: ApprovalStatus) -> bool {
        let ended = self.approvals.lock().end(&self.id, status, None);
        if let Some((ended, _)) = &ended {
            self.approvals.audit.note(kind(status), &record(ended));
        }
        ended.is_some()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end(ApprovalStatus::Withdrawn);
    }
}

impl State {
    /// Ends a wait, and notes how. `None` when it has ended.
    fn end(
        &mut self,
        id: &ApprovalId,
        status: ApprovalStatus,
        decision: Option<ApprovalDecision>,
    ) -> Option<(Approval, oneshot::Sender<Outcome>)> {
        let waiting = self.waiting.remove(id)?;
        if let Some(count) = self.of_caller.get_mut(&waiting.caller) {
            *count -= 1;
            if *count == 0 {
                self.of_caller.remove(&waiting.caller);
            }
        }
        let ended = Approval { status, decision, ..waiting.now() };
        metrics::gauge!("sortie_gateway_approvals_waiting").decrement(1.0);
        metrics::counter!("sortie_gateway_approvals_total", "end" => status.as_str()).increment(1);
        tracing::info!(
            approval = %ended.id,
            request_id = ended.request_id,
            route = ended.route,
            caller = ended.caller.subject,
            target = ended.target,
            status = status.as_str(),
            by = ended.decision.as_ref().map(|decision| decision.by.to_string()),
            reason = ended.decision.as_ref().and_then(|decision| decision.reason.as_deref()),
            waiting_s = ended.waiting_s,
            "approval ended"
        );
        if self.ended.len() >= RECENT {
            self.ended.pop_front();
        }
        self.ended.push_back(ended.clone());
        Some((ended, waiting.told))
    }
}

impl Waiting {
    /// As it is at this moment.
    fn now(&self) -> Approval {
        Approval { waiting_s: self.since.elapsed().as_secs(), ..self.shown.clone() }
    }
}

impl Asked {
    /// One value for a call and its repetitions; `None` where nothing is known of its body.
    fn same(&self, caller: &Digest) -> Option<Digest> {
        let arguments = self.arguments.as_ref()?;
        Some(Digest::of_optional(&[
            Some(&caller.to_string()),
            Some(&self.route),
            Some(&self.method),
            self.target.as_deref(),
            Some(&arguments.sha256),
            Some(&self.policies.join("\n")),
        ]))
    }

    fn shown(self, id: ApprovalId, asked_at: Timestamp, timeout: Duration) -> Approval {
        let caller = &self.caller;
        let text = |text: &Option<String>| text.as_deref().map(visible);
        let agent = text(&caller.agent).map(|agent| match text(&caller.agent_version) {
            Some(version) => format!("{agent}/{version}"),
            None => agent,
        });
        Approval {
            id,
            status: ApprovalStatus::Waiting,
            caller: ApprovalCaller {
                issuer: visible(&caller.issuer),
                subject: visible(&caller.subject),
                assurance: caller.assurance.as_str().to_owned(),
                organization: text(&caller.organization),
                workspace: text(&caller.workspace),
                user: text(&caller.user),
                agent,
                session: text(&caller.session),
            },
            route: self.route,
            method: visible(&self.method),
            target: self.target.as_deref().map(visible),
            arguments: self.arguments,
            facts: self.facts,
            policies: self.policies,
            reason: visible(&self.reason),
            request_id: self.request_id.to_string(),
            asked_at,
            expires_at: asked_at.checked_add(timeout).unwrap_or(asked_at),
            waiting_s: 0,
            decision: None,
        }
    }
}

/// What is recorded of an approval that has ended.
fn record(ended: &Approval) -> ApprovalDecided {
    let decision = ended.decision.as_ref();
    ApprovalDecided {
        id: ended.request_id.clone(),
        approval: ended.id.to_string(),
        route: ended.route.clone(),
        method: ended.method.clone(),
        target: ended.target.clone(),
        status: ended.status.as_str().to_owned(),
        by: decision.map(|decision| match &decision.by {
            by @ Approver::Local { .. } => format!("{by} (local)"),
            by @ Approver::Hub { .. } => format!("{by} (hub)"),
        }),
        reason: decision.and_then(|decision| decision.reason.clone()),
        lasts_s: decision.and_then(|decision| decision.for_s),
        waited_s: ended.waiting_s,
    }
}

fn kind(status: ApprovalStatus) -> Kind {
    if status == ApprovalStatus::Approved { kinds::APPROVAL_DECIDED } else { kinds::APPROVAL_DENIED }
}

/// Who ended an approval, for somebody who comes too late.
fn told(ended: &Approval) -> String {
    let Some(decision) = &ended.decision else { return String::new() };
    format!(": {} decided at {}", decision.by, decision.at)
}

#[cfg(test)]
mod tests;
