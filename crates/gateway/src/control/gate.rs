//! Everything that a request has to pass once it was read, in order: limits, then the policy.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use sortie_api::HopError;
use sortie_ids::{Digest, RequestId};
use sortie_mcp::message::{Body, Message, MessageKind};
use sortie_policy::{Act, Fact};

use super::{Asking, Control, Judged, Verdict, about, named};
use crate::approvals::{Asked, ClientRequest, summary, visible};
use crate::gateway::Shared;
use crate::intake::Intake;
use crate::limits::{self, Bounds, Counted};
use crate::served::Served;
use crate::sessions::SESSION_HEADER;

/// A request that may go on, if its verdict says so.
pub(crate) struct Passed {
    /// What bounds the call from here on.
    pub(crate) bounds: Bounds,
    pub(crate) verdict: Verdict,
    /// The call, counted for policy; taken back when it does not go on.
    pub(crate) counted: Vec<Counted>,
    /// What has to be approved first, by the number of its message.
    pub(crate) asked: Vec<(usize, Asked)>,
    /// The JSON-RPC id, where the request is a single one.
    pub(crate) id: Option<Box<RawValue>>,
}

/// Has a request pass limits and policy.
///
/// # Errors
/// A limit refuses it: 429.
pub(crate) fn pass(
    shared: &Shared,
    served: &Served,
    asking: &Asking<'_>,
    request_id: &RequestId,
    intake: &Intake<'_>,
) -> Result<Passed, HopError> {
    cancelled(shared, asking, intake);
    let bounds = bounds(&served.limits, asking, intake)?;
    let (verdict, counted) = judge(shared, &served.control, asking, intake);
    let asked = verdict.asked();
    let asked = asked.map(|(at, judged)| (at, ask(served, asking, request_id, intake, at, judged))).collect::<Vec<_>>();
    let id = match intake {
        Intake::Messages(Body::Single(message)) if !asked.is_empty() => message.id.map(ToOwned::to_owned),
        _ => None,
    };
    Ok(Passed { bounds, verdict, counted, asked, id })
}

/// Judges a request once more, by the policy that is in force now: it has waited. What was approved is approved.
pub(crate) fn reconsider(
    shared: &Shared,
    served: &Served,
    asking: &Asking<'_>,
    intake: &Intake<'_>,
) -> (Verdict, Vec<Counted>) {
    judge(shared, &served.control, asking, intake)
}

fn judge(shared: &Shared, control: &Control, asking: &Asking<'_>, intake: &Intake<'_>) -> (Verdict, Vec<Counted>) {
    let counts = control.engine.as_ref().is_some_and(|engine| engine.counts());
    let mut counted = Vec::new();
    let verdict = control.judge(asking, intake, |act| {
        if !counts {
            return None;
        }
        let (counts, one) = shared.counting.count(asking.caller.digest(), &counted_as(asking, act));
        counted.push(one);
        Some(counts)
    });
    (verdict, counted)
}

/// What is counted together: the same done to the same target of the same route.
fn counted_as(asking: &Asking<'_>, act: &Act<'_>) -> String {
    format!("{}\n{}\n{}", asking.route.name, named(act), about(act).unwrap_or_default())
}

fn bounds(limits: &limits::Limits, asking: &Asking<'_>, intake: &Intake<'_>) -> Result<Bounds, HopError> {
    if limits.is_empty() {
        return Ok(Bounds::default());
    }
    let tool = |message: &Message<'_>| message.method.as_deref() == Some("tools/call");
    let messages: Vec<Option<&str>> = match intake {
        Intake::Messages(body) => {
            let named = |message| tool(message).then(|| message.name.as_deref().unwrap_or_default());
            body.messages().iter().map(named).collect()
        }
        Intake::Opaque => vec![None],
    };
    limits.admit(&limits::Request { caller: asking.caller, route: asking.route.name.as_str(), messages: &messages })
}

/// What an approver is asked about one message.
fn ask(
    served: &Served,
    asking: &Asking<'_>,
    request_id: &RequestId,
    intake: &Intake<'_>,
    at: usize,
    judged: &Judged,
) -> Asked {
    let message = match intake {
        Intake::Messages(body) => body.messages().get(at),
        Intake::Opaque => None,
    };
    let shown = served.config.approvals.show_arguments;
    let decision = &judged.decision;
    let reason = if decision.ask.is_empty() { decision.reason.clone() } else { decision.ask.join("; ") };
    Asked {
        caller: asking.caller.clone(),
        request_id: request_id.clone(),
        route: asking.route.name.to_string(),
        method: judged.method.clone(),
        target: judged.target.clone(),
        arguments: message.map(|message| summary(message.arguments_text(), shown)),
        facts: decision.facts.iter().map(|(name, fact)| (name.clone(), text(fact))).collect::<BTreeMap<_, _>>(),
        policies: decision.policies.iter().map(ToString::to_string).collect(),
        reason,
        request: ClientRequest {
            session: session(asking),
            id: message.and_then(|message| message.id).map(|id| id.get().to_owned()),
        },
    }
}

/// Tells those who wait that their client has cancelled the request (MCP 2025-11-25, utilities, "Cancellation").
fn cancelled(shared: &Shared, asking: &Asking<'_>, intake: &Intake<'_>) {
    #[derive(Deserialize)]
    struct Cancelled<'a> {
        #[serde(rename = "requestId", borrow)]
        id: &'a RawValue,
    }
    let Intake::Messages(body) = intake else { return };
    for message in body.messages() {
        if message.kind == MessageKind::Notification
            && message.method.as_deref() == Some("notifications/cancelled")
            && shared.approvals.any()
            && let Some(Ok(Cancelled { id })) = message.params().map(|params| serde_json::from_str(params.get()))
        {
            let request = ClientRequest { session: session(asking), id: Some(id.get().to_owned()) };
            shared.approvals.cancelled(&asking.caller.digest(), asking.route.name.as_str(), &request);
        }
    }
}

fn session(asking: &Asking<'_>) -> Option<Digest> {
    asking.request.headers().get(SESSION_HEADER).map(|id| Digest::of(id.as_bytes()))
}

/// A fact as a person reads it.
fn text(fact: &Fact) -> String {
    match fact {
        Fact::String(text) | Fact::Decimal(text) => visible(text),
        Fact::Long(number) => number.to_string(),
        Fact::Bool(holds) => holds.to_string(),
        Fact::Set(all) => visible(&all.join(", ")),
        Fact::Ip(address) => address.to_string(),
        Fact::Datetime(millis) => match jiff::Timestamp::from_millisecond(*millis) {
            Ok(at) => at.to_string(),
            Err(_) => format!("{millis} ms"),
        },
    }
}
