//! What a call may do: the policy that is in force, and what it says of each call.
//!
//! A decision is a value: the log tells of it, and so can an audit. Each request is decided on anew, so that a grant that
//! is gone is gone at once.

mod gate;

use std::sync::Arc;

use http::header::ACCEPT;
use http::{HeaderValue, Method, Request};
use sortie_api::{Hop, HopError};
use sortie_identity::Caller;
use sortie_ids::{Digest, RequestId};
use sortie_mcp::list::Kind;
use sortie_mcp::message::{Message, MessageKind};
use sortie_policy::{Act, Counts, Decision, Effect, Engine, Query, Target};

use crate::config::{PolicyMode, Protocol};
use crate::intake::Intake;
use crate::lists::Visible;
use crate::routes::Route;
use crate::sessions::SESSION_HEADER;

pub(crate) use gate::{Passed, pass, reconsider};

/// What the settings say about calls. A part of what is served.
pub(crate) struct Control {
    pub(crate) mode: PolicyMode,
    /// `Some` unless the mode is [`PolicyMode::Off`].
    pub(crate) engine: Option<Arc<Engine>>,
    /// Of the policy as it was read.
    pub(crate) text: Digest,
    /// Where this gateway is.
    pub(crate) region: Option<Arc<str>>,
}

/// One thing that a request wants to do, and what was decided about it.
#[derive(Clone, Debug)]
pub(crate) struct Judged {
    /// The method of MCP, or `http`.
    pub(crate) method: String,
    /// The tool, prompt or resource.
    pub(crate) target: Option<String>,
    pub(crate) decision: Decision,
    /// How often the caller had done the same lately, where the policy counts.
    pub(crate) counts: Option<Counts>,
}

/// What was decided about a request: one [`Judged`] for each of its messages. Empty without a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) mode: PolicyMode,
    pub(crate) judged: Vec<Judged>,
}

/// Who asks, and where.
pub(crate) struct Asking<'a> {
    pub(crate) caller: &'a Arc<Caller>,
    pub(crate) route: &'a Route,
    pub(crate) request: &'a Request<()>,
    /// Seconds since 1970.
    pub(crate) now: i64,
}

impl Control {
    /// What requests of a route are held to. Where a policy is enforced, nothing goes on that was not read: a server may
    /// take a message for one that the gateway took for something else.
    pub(crate) fn held_to(&self, protocol: Protocol) -> Protocol {
        match (self.mode, protocol) {
            (PolicyMode::Enforce, Protocol::Auto) => Protocol::Mcp,
            _ => protocol,
        }
    }

    /// Decides on a request. Without a policy there is nothing to decide. `counts` tells how often the caller did something
    /// lately.
    pub(crate) fn judge(
        &self,
        asking: &Asking<'_>,
        intake: &Intake<'_>,
        mut counts: impl FnMut(&Act<'_>) -> Option<Counts>,
    ) -> Verdict {
        let Some(engine) = &self.engine else { return Verdict::default() };
        let mut decide = |act: Act<'_>, arguments: Option<&str>| {
            let counts = counts(&act);
            let query = Query {
                caller: asking.caller,
                route: asking.route.name.as_str(),
                act,
                arguments,
                now: asking.now,
                region: self.region.as_deref(),
                counts: counts.unwrap_or_default(),
            };
            Judged { method: named(&act).to_owned(), target: about(&act), decision: engine.decide(&query), counts }
        };
        let judged = match intake {
            Intake::Messages(body) => {
                body.messages().iter().map(|message| decide(act(message), message.arguments_text())).collect()
            }
            Intake::Opaque => vec![decide(opaque(asking), None)],
        };
        Verdict { mode: self.mode, judged }
    }
}

impl Control {
    /// What a caller may see of lists; `None` where the policy is not enforced.
    pub(crate) fn visible(&self, caller: &Arc<Caller>, route: &Arc<Route>, clock: fn() -> i64) -> Option<Visible> {
        let engine = self.engine.clone().filter(|_| self.mode == PolicyMode::Enforce)?;
        let (caller, route, region) = (caller.clone(), route.clone(), self.region.clone());
        Some(Arc::new(move |kind, name| {
            let (method, target) = match kind {
                Kind::Tool => ("tools/call", Target::Tool(name)),
                Kind::Prompt => ("prompts/get", Target::Prompt(name)),
                Kind::Resource | Kind::Template => ("resources/read", Target::Resource(name)),
            };
            engine.may_see(&Query {
                caller: &caller,
                route: route.name.as_str(),
                act: Act::Mcp { method, target: Some(target) },
                arguments: None,
                now: clock(),
                region: region.as_deref(),
                counts: Counts::default(),
            })
        }))
    }
}

impl Verdict {
    /// The answer to a caller who may not do it, if the policy is enforced. A request goes on only as a whole.
    pub(crate) fn refusal(&self) -> Option<HopError> {
        if self.mode != PolicyMode::Enforce {
            return None;
        }
        let refused = self.judged.iter().find(|judged| judged.decision.effect == Effect::Deny)?;
        Some(HopError::new(Hop::Policy, refused.decision.told()))
    }

    /// What has to be approved first, by the number of its message, if the policy is enforced and nothing is denied.
    pub(crate) fn asked(&self) -> impl Iterator<Item = (usize, &Judged)> {
        let asks = self.mode == PolicyMode::Enforce && self.refusal().is_none();
        let all = self.judged.iter().enumerate().filter(move |_| asks);
        all.filter(|(_, judged)| judged.decision.effect == Effect::Ask)
    }

    /// Tells of what is not simply allowed. Names are quoted, since they are the caller's.
    pub(crate) fn tell(&self, request_id: &RequestId, route: &str, caller: &Caller) {
        for judged in &self.judged {
            let effect = judged.decision.effect.as_str();
            metrics::counter!("sortie_gateway_decisions_total", "effect" => effect, "policy" => self.mode.as_str())
                .increment(1);
            if judged.decision.effect == Effect::Allow {
                continue;
            }
            tracing::warn!(
                %request_id,
                route,
                caller = caller.subject,
                issuer = caller.issuer,
                agent = caller.agent,
                method = judged.method,
                target = judged.target,
                effect,
                reason = judged.decision.reason,
                policy = self.mode.as_str(),
                "decision"
            );
        }
    }
}

/// What a message wants to do.
pub(crate) fn act<'a>(message: &'a Message<'_>) -> Act<'a> {
    if message.kind == MessageKind::Response {
        return Act::Answer;
    }
    let method = message.method.as_deref().unwrap_or_default();
    let target = match method {
        "tools/call" => message.name.as_deref().map(Target::Tool),
        "prompts/get" => message.name.as_deref().map(Target::Prompt),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
            message.uri.as_deref().map(Target::Resource)
        }
        _ => None,
    };
    Act::Mcp { method, target }
}

/// What a request wants whose body says nothing to us: a stream of events, the end of a session, or anything.
pub(crate) fn opaque<'a>(asking: &Asking<'a>) -> Act<'a> {
    let request = asking.request;
    let http = Act::Http { method: request.method().as_str(), path: request.uri().path() };
    match (asking.route.protocol, request.method()) {
        (Protocol::Http, _) => http,
        (_, &Method::GET) if request.headers().get_all(ACCEPT).iter().any(wants_events) => Act::Stream,
        (_, &Method::DELETE) if request.headers().contains_key(SESSION_HEADER) => Act::EndSession,
        _ => http,
    }
}

fn wants_events(accept: &HeaderValue) -> bool {
    accept.to_str().is_ok_and(|accept| accept.to_ascii_lowercase().contains("text/event-stream"))
}

pub(crate) fn named<'a>(act: &Act<'a>) -> &'a str {
    match act {
        Act::Mcp { method, .. } => method,
        Act::Answer => "answer",
        Act::Stream => "stream",
        Act::EndSession => "session/delete",
        Act::Http { .. } => "http",
    }
}

fn about(act: &Act<'_>) -> Option<String> {
    match act {
        Act::Mcp { target: Some(Target::Tool(name) | Target::Prompt(name) | Target::Resource(name)), .. } => {
            Some((*name).to_owned())
        }
        Act::Mcp { target: None, .. } | Act::Answer | Act::Stream | Act::EndSession => None,
        Act::Http { method, path } => Some(format!("{method} {path}")),
    }
}
