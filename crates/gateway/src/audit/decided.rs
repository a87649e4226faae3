//! The records of one call: what was decided before it went on, and how it ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, Method, Request, StatusCode, Uri};
use serde::{Serialize, Serializer};
use serde_json::Value;
use sortie_api::{Hop, HopError};
use sortie_audit::{Arguments, CallDone, DROPPED, DecidedAct, Draft, DraftError, Kind, Outcome, kinds};
use sortie_identity::Caller;
use sortie_ids::{ApprovalId, Digest, RequestId};
use sortie_mcp::message::Body;
use sortie_policy::{Act, Fact, FactFault, FactForm, PolicyName, Target};

use super::payload::Part;
use super::{Audit, Payloads, Shown, cut, unrecorded};
use crate::body::{End, Sent};
use crate::control::{self, Asking, Control, Judged, Verdict};
use crate::intake::Intake;
use crate::record::Tally;
use crate::routes::Route;
use crate::served::Served;
use crate::sessions::SESSION_HEADER;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest name of a tool, prompt or resource, and longest path, that is recorded whole, in bytes.
const MAX_NAME: usize = 2048;

/// A call of a known caller while it is decided on. Owned, since a call that waits for a person outlives its handler.
pub(crate) struct Deciding {
    audit: Audit,
    id: RequestId,
    route: Arc<Route>,
    caller: Arc<Caller>,
    method: Method,
    uri: Uri,
    session: Option<Digest>,
    trace: Option<String>,
    region: Option<Arc<str>>,
    tally: Arc<Tally>,
    payloads: Option<Arc<Payloads>>,
    facts: bool,
    batch: bool,
    /// One for each message. Empty as long as none was read.
    acts: Vec<Noted>,
    verdict: Verdict,
    policy: Option<Digest>,
    now: i64,
    /// Whether it is on record that it waits, and not yet what became of it.
    waiting: AtomicBool,
    /// By the number of the message.
    pub(crate) approvals: Vec<(usize, ApprovalId)>,
    pub(crate) credential: Option<Arc<str>>,
}

struct Noted {
    act: DecidedAct,
    arguments: Option<Arguments>,
    /// The arguments, sealed.
    payload: Option<Value>,
}

impl Deciding {
    pub(crate) fn new(
        audit: &Audit,
        served: &Served,
        (route, caller): (&Arc<Route>, &Arc<Caller>),
        request: &Request<()>,
        (id, tally): (&RequestId, &Arc<Tally>),
    ) -> Self {
        let headers = Some(request.headers()).filter(|_| audit.is_on());
        let session = headers.and_then(|headers| headers.get(SESSION_HEADER));
        Self {
            audit: audit.clone(),
            id: id.clone(),
            route: route.clone(),
            caller: caller.clone(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            session: session.map(|id| Digest::of(id.as_bytes())),
            trace: headers.and_then(trace),
            region: served.control.region.clone(),
            tally: tally.clone(),
            payloads: served.payloads.clone(),
            facts: served.config.audit.facts,
            batch: false,
            acts: Vec::new(),
            verdict: Verdict::default(),
            policy: None,
            now: 0,
            waiting: AtomicBool::new(false),
            approvals: Vec::new(),
            credential: None,
        }
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// Notes where a call failed, whose answer may have begun before.
    pub(crate) fn failed(&self, hop: Hop) {
        let _first = self.tally.failed.set(hop);
    }

    /// Notes what the request wants.
    pub(crate) fn note(&mut self, asking: &Asking<'_>, intake: &Intake<'_>, shown: &Shown) {
        if !self.audit.is_on() {
            return;
        }
        self.acts = match intake {
            Intake::Opaque => vec![Noted::opaque(&control::opaque(asking))],
            Intake::Messages(body) => {
                self.batch = matches!(body, Body::Batch(_));
                let messages = body.messages().iter().enumerate();
                let noted = messages.map(|(at, message)| {
                    let act = act(&control::act(message));
                    let text = message.arguments_text();
                    let arguments = text.map(|text| shown.of(asking.route.name.as_str(), act.tool.as_deref(), text));
                    let payload = self.payloads.as_ref().zip(text).map(|(payloads, text)| {
                        let bytes = arguments.as_ref().map_or(0, |arguments| arguments.bytes);
                        payloads.seal(&self.id, &Part::Arguments(at), text.as_bytes(), bytes)
                    });
                    Noted { act, arguments, payload }
                });
                noted.collect()
            }
        };
    }

    /// Notes what the policy said.
    pub(crate) fn judged(&mut self, control: &Control, verdict: Verdict, now: i64) {
        (self.verdict, self.now) = (verdict, now);
        self.policy = Some(control.text);
        self.region = control.region.clone();
    }

    /// Records that it goes on.
    ///
    /// # Errors
    /// It cannot be recorded, and must not go on: 503.
    pub(crate) async fn forwarded(&self) -> Result<(), HopError> {
        if !self.audit.is_on() {
            return Ok(());
        }
        if let Err(behind) = self.audit.admits() {
            return Err(if self.waiting.load(Ordering::Relaxed) { self.refused(behind).await } else { behind });
        }
        let Some(appending) = self.audit.begin(self.drafts(Outcome::Forwarded, None))? else { return Ok(()) };
        self.waiting.store(false, Ordering::Relaxed);
        self.tally.decided.get_or_init(|| appending).kept().await.map(drop).map_err(unrecorded)
    }

    /// Records that it waits for a person.
    ///
    /// # Errors
    /// It cannot be recorded: 503.
    pub(crate) async fn waits(&self) -> Result<(), HopError> {
        if !self.audit.is_on() {
            return Ok(());
        }
        self.audit.admits()?;
        let Some(appending) = self.audit.begin(self.drafts(Outcome::Waits, None))? else { return Ok(()) };
        self.waiting.store(true, Ordering::Relaxed);
        appending.kept().await.map(drop).map_err(|error| {
            self.waiting.store(false, Ordering::Relaxed);
            unrecorded(error)
        })
    }

    /// Records that it does not go on, and returns what to answer: why, or that not even this can be recorded.
    pub(crate) async fn refused(&self, error: HopError) -> HopError {
        if !self.audit.is_on() {
            return error;
        }
        self.waiting.store(false, Ordering::Relaxed);
        match self.audit.append(self.drafts(Outcome::Refused, Some(&error))).await {
            Ok(()) => error,
            Err(unrecorded) => unrecorded,
        }
    }

    fn drafts(&self, outcome: Outcome, error: Option<&HopError>) -> Result<Vec<Draft>, DraftError> {
        let unread = self.acts.is_empty().then(|| {
            let http = Act::Http { method: self.method.as_str(), path: self.uri.path() };
            Noted::opaque(&http)
        });
        let reason = error.map(|error| cut(&error.reason));
        let hop = error.map(|error| error.hop.as_str());
        let session = self.session.map(|digest| digest.to_string());
        let policy = self.policy.map(|digest| digest.to_string());
        let draft = |(at, noted): (usize, &Noted)| {
            let approval = self.approvals.iter().find(|(message, _)| *message == at);
            let judged = self.verdict.judged.get(at);
            let decided = Decided {
                id: self.id.as_str(),
                message: if self.batch { u32::try_from(at).ok() } else { None },
                route: self.route.name.as_str(),
                caller: &self.caller,
                method: &noted.act.method,
                tool: noted.act.tool.as_deref(),
                prompt: noted.act.prompt.as_deref(),
                resource: noted.act.resource.as_deref(),
                http_method: noted.act.http_method.as_deref(),
                http_path: noted.act.http_path.as_deref(),
                arguments: noted.arguments.as_ref(),
                outcome,
                hop,
                reason: reason.as_deref(),
                decision: judged.zip(policy.as_deref()).map(|(judged, policy)| Said {
                    effect: judged.decision.effect.as_str(),
                    mode: self.verdict.mode.as_str(),
                    policies: Names(&judged.decision.policies),
                    reason: &judged.decision.reason,
                    policy_sha256: policy,
                    facts: ByName(if self.facts { &judged.decision.facts } else { &[] }),
                    fact_forms: ByName(if self.facts { &judged.decision.forms } else { &[] }),
                    fact_faults: Faults(if self.facts { &judged.decision.faults } else { &[] }),
                    now: self.now,
                    counts: counts(judged),
                }),
                approval: approval.map(|(_, id)| id.as_str()),
                credential: self.credential.as_deref(),
                mcp_session: session.as_deref(),
                region: self.region.as_deref(),
                trace: self.trace.as_deref(),
                // Once: when it is decided for good.
                payload: noted.payload.as_ref().filter(|_| outcome != Outcome::Waits),
            };
            Draft::new(kind(outcome), &decided)
        };
        self.acts.iter().chain(&unread).enumerate().map(draft).collect()
    }
}

/// A caller that goes away while its call waits leaves nothing open: that it does not go on is recorded, too.
impl Drop for Deciding {
    fn drop(&mut self) {
        if self.waiting.load(Ordering::Relaxed) {
            let gone = HopError::new(Hop::Policy, "the caller went away while the call waited for a person");
            self.audit.append_drafts_now(self.drafts(Outcome::Refused, Some(&gone)));
        }
    }
}

impl Noted {
    fn opaque(wanted: &Act<'_>) -> Self {
        Self { act: act(wanted), arguments: None, payload: None }
    }
}

/// How a call ended that went on.
pub(crate) struct Ending<'a> {
    pub(crate) id: &'a RequestId,
    pub(crate) tally: &'a Tally,
    pub(crate) status: Option<StatusCode>,
    pub(crate) hop: Option<Hop>,
    pub(crate) end: End,
    pub(crate) sent: Sent,
    pub(crate) duration: std::time::Duration,
    /// Where answers are recorded, sealed.
    pub(crate) payloads: Option<&'a Payloads>,
}

impl Audit {
    /// Records how a call ended; nothing for one that never went on.
    pub(crate) fn ended(&self, ending: Ending<'_>) {
        let Ending { id, tally, status, hop, end, sent, duration, payloads } = ending;
        let decided = tally.decided.get().and_then(|appending| appending.kept_now().ok());
        let Some(decided) = decided.filter(|number| *number != DROPPED) else { return };
        let done = CallDone {
            id: id.to_string(),
            decided,
            status: status.map(|status| status.as_u16()),
            hop: hop.map(|hop| hop.as_str().to_owned()),
            end: end.as_str().to_owned(),
            request_bytes: tally.request_bytes(),
            response_bytes: sent.bytes,
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            payload: payloads.and_then(|payloads| Some(payloads.seal(id, &Part::Answer, sent.kept()?, sent.bytes))),
            result_sha256: sent.digest().filter(|_| end == End::Complete),
        };
        let kind = match (end, hop) {
            (End::Abandoned, _) => kinds::CALL_ABANDONED,
            (End::Complete, None) => kinds::CALL_DONE,
            _ => kinds::CALL_FAILED,
        };
        self.note(kind, &done);
    }
}

fn kind(outcome: Outcome) -> Kind {
    match outcome {
        Outcome::Forwarded => kinds::CALL_ALLOWED,
        Outcome::Refused => kinds::CALL_REFUSED,
        Outcome::Waits => kinds::CALL_WAITS,
    }
}

fn act(act: &Act<'_>) -> DecidedAct {
    let mut decided = DecidedAct { method: whole(control::named(act)), ..DecidedAct::default() };
    match act {
        Act::Mcp { target: Some(target), .. } => {
            let (field, name) = match target {
                Target::Tool(name) => (&mut decided.tool, name),
                Target::Prompt(name) => (&mut decided.prompt, name),
                Target::Resource(name) => (&mut decided.resource, name),
            };
            *field = Some(whole(name));
        }
        Act::Http { method, path } => {
            decided.http_method = Some((*method).to_owned());
            decided.http_path = Some(whole(path));
        }
        Act::Mcp { target: None, .. } | Act::Answer | Act::Stream | Act::EndSession => {}
    }
    decided
}

/// A name; of one that is longer than anybody means, its beginning and its digest, which is no other name.
fn whole(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let beginning: String = name.chars().take(64).collect();
    format!("{beginning}\u{2026} ({} bytes, sha256:{})", name.len(), Digest::of(name.as_bytes()))
}

fn counts(judged: &Judged) -> Option<[u32; 3]> {
    judged.counts.map(|counts| [counts.minute, counts.hour, counts.day])
}

/// The trace-id of `traceparent` (W3C Trace Context, section 3.2); none where the header is not well-formed.
fn trace(headers: &HeaderMap) -> Option<String> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return None };
    let mut fields = value.to_str().ok()?.split('-');
    let mut field = |length: usize| {
        let text = fields.next().filter(|text| text.len() == length)?;
        text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(text)
    };
    let (version, trace, parent, _flags) = (field(2)?, field(32)?, field(16)?, field(2)?);
    let more = fields.next().is_some();
    let zeros = |text: &str| text.bytes().all(|byte| byte == b'0');
    let known = version != "ff" && !(version == "00" && more);
    (known && !zeros(trace) && !zeros(parent)).then(|| trace.to_owned())
}

/// [`sortie_audit::CallDecided`], as it is written: of references.
#[derive(Serialize)]
struct Decided<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<u32>,
    route: &'a str,
    caller: &'a Caller,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a Arguments>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    hop: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Said<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mcp_session: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a Value>,
}

/// [`sortie_audit::Decision`] of references.
#[derive(Serialize)]
struct Said<'a> {
    effect: &'a str,
    mode: &'a str,
    #[serde(skip_serializing_if = "Names::is_empty")]
    policies: Names<'a>,
    reason: &'a str,
    policy_sha256: &'a str,
    #[serde(skip_serializing_if = "ByName::is_empty")]
    facts: ByName<'a, Fact>,
    #[serde(skip_serializing_if = "ByName::is_empty")]
    fact_forms: ByName<'a, FactForm>,
    #[serde(skip_serializing_if = "Faults::is_empty")]
    fact_faults: Faults<'a>,
    now: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<[u32; 3]>,
}

struct Names<'a>(&'a [PolicyName]);

impl Names<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(PolicyName::as_str))
    }
}

/// Values by name. What each fact is that was looked for stands beside the facts: to another policy their names say nothing.
struct ByName<'a, T>(&'a [(String, T)]);

impl<T> ByName<'_, T> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Serialize> Serialize for ByName<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

struct Faults<'a>(&'a [(String, FactFault)]);

impl Faults<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Faults<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, fault)| (name, fault.code())))
    }
}

#[cfg(test)]
mod tests {
    use sortie_audit::CallDecided;
    use sortie_identity::Assurance;

    use super::*;

    #[test]
    fn what_is_written_is_what_readers_read() {
        let caller = Caller::new("issuer", "subject\n\u{202e}", Assurance::Attested, 7);
        let arguments = Arguments { sha256: "00".repeat(32), bytes: 2, shown: Some(serde_json::json!({"/a": "b"})) };
        let facts = [("amount".to_owned(), Fact::Long(7)), ("to".to_owned(), Fact::String("eve".to_owned()))];
        let form = serde_json::from_str(r#"{"pointer":"/amount","type":"long"}"#).expect("form");
        let (forms, faults) = ([("amount".to_owned(), form)], [("iban".to_owned(), FactFault::Absent)]);
        let digits = "11".repeat(32);
        let payload = serde_json::json!({"enc": "x"});
        let written = Decided {
            id: "req_1",
            message: Some(3),
            route: "docs",
            caller: &caller,
            method: "tools/call",
            tool: Some("x\"y\n"),
            prompt: Some("p"),
            resource: Some("r"),
            http_method: Some("GET"),
            http_path: Some("/x"),
            arguments: Some(&arguments),
            outcome: Outcome::Refused,
            hop: Some("policy"),
            reason: Some("why"),
            decision: Some(Said {
                effect: "deny",
                mode: "enforce",
                policies: Names(&[]),
                reason: "because",
                policy_sha256: &digits,
                facts: ByName(&facts),
                fact_forms: ByName(&forms),
                fact_faults: Faults(&faults),
                now: 9,
                counts: Some([1, 2, 3]),
            }),
            approval: Some("apr_1"),
            credential: Some("github"),
            mcp_session: Some(&digits),
            region: Some("eu"),
            trace: Some("abc"),
            payload: Some(&payload),
        };
        let text = serde_json::to_string(&written).expect("json");
        assert!(!text.contains('\n'));
        let read: CallDecided = serde_json::from_str(&text).expect("readers' type");
        assert_eq!((&read.caller, read.act.tool.as_deref()), (&caller, Some("x\"y\n")));
        let again = serde_json::to_value(&read).expect("json");
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(&text).expect("json"), "nothing is lost");
        let decision = read.decision.expect("decision");
        assert_eq!(decision.facts["amount"], serde_json::json!({"long": 7}));
        assert_eq!(decision.fact_forms["amount"], serde_json::json!({"pointer": "/amount", "type": "long"}));
        assert_eq!(decision.fact_faults["iban"], "absent");
    }

    #[test]
    fn only_a_well_formed_trace_is_recorded() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        let of = |all: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in all {
                headers.append(TRACEPARENT, value.parse().expect("value"));
            }
            trace(&headers)
        };
        let good = format!("00-{id}-b7ad6b7169203331-01");
        assert_eq!(of(&[&good]).as_deref(), Some(id));
        assert_eq!(of(&[&format!("cc-{id}-b7ad6b7169203331-01-what-else")]).as_deref(), Some(id));
        for wrong in [
            format!("{good}-x"),
            format!("ff-{id}-b7ad6b7169203331-01"),
            good.to_uppercase(),
            format!("00-{id}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{id}\"}}{{-b7ad6b7169203331-01"),
            String::new(),
        ] {
            assert_eq!(of(&[&wrong]), None, "{wrong}");
        }
        assert_eq!(of(&[&good, &good]), None);
    }

    #[test]
    fn a_name_without_end_is_named_by_its_digest() {
        assert_eq!(whole("search"), "search");
        let long = whole(&"x".repeat(1_000_000));
        assert!(long.len() < 256 && long.contains("1000000 bytes, sha256:"), "{long}");
    }
}
