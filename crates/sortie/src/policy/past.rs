//! Recorded calls, as policies are asked about them.

use std::collections::HashSet;
use std::path::PathBuf;

use jiff::Timestamp;
use sortie_audit::{CallDecided, Line, Outcome, Records};
use sortie_identity::Caller;
use sortie_policy::{Act, Answer, Counts, Engine, Fact, FactForm, Found, Query, Recorded, Target};

use super::args::PastArgs;
use crate::audit;
use crate::error::Failure;

/// Calls that wait for a person at once, as far as they are told from those that begin.
const WAITING: usize = 100_000;
/// The SHA-256 of `{}`.
const EMPTY_OBJECT: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// Which recorded calls.
pub(crate) struct Past {
    dir: PathBuf,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// What callers must be, by attribute.
    callers: Vec<(String, String)>,
    /// The log was verified.
    pub(crate) verified: bool,
}

/// One recorded call.
pub(crate) struct Call {
    /// The number of its record.
    pub(crate) seq: u64,
    /// When, as RFC 3339.
    pub(crate) time: String,
    pub(crate) decided: CallDecided,
    pub(crate) recorded: Recorded,
    /// An earlier record told that it waits: this one tells what became of it.
    pub(crate) again: bool,
}

/// What was decided about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Was {
    Allow,
    Ask,
    Deny,
    /// It went on, and no policy was asked.
    Unasked,
}

impl Was {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
            Self::Unasked => "no policy",
        }
    }
}

impl Past {
    /// Finds the log, and verifies it if something was given to do so by; else says that it has not.
    pub(crate) fn open(args: &PastArgs, callers: &[String]) -> Result<Self, Failure> {
        let dir = audit::dir(args.audit.as_deref())?;
        let callers = callers.iter().map(|pair| {
            let (key, value) = pair.split_once('=').filter(|(key, _)| is_attribute(key)).ok_or_else(|| {
                Failure::usage(format!(
                    "--caller `{pair}`: write KEY=VALUE with issuer, subject, assurance, organization, workspace, key, user, \
                     agent, agent_version, session, region, group, actor or claim.NAME"
                ))
            })?;
            Ok((key.to_owned(), value.to_owned()))
        });
        let callers = callers.collect::<Result<_, Failure>>()?;
        let verified = audit::check(&dir, &args.trust)?;
        if !verified {
            eprintln!(
                "warning: the log was not verified: give --key or --checkpoint from elsewhere to verify it first"
            );
        }
        Ok(Self { dir, since: args.since, until: args.until, callers, verified })
    }

    /// Gives out the calls, oldest first.
    pub(crate) fn each(&self, mut of: impl FnMut(Call) -> Result<(), Failure>) -> Result<(), Failure> {
        let (first, _) = sortie_audit::span(&self.dir).map_err(audit::unread)?;
        let mut records = Records::open(&self.dir, first).map_err(audit::unread)?;
        let mut waiting: HashSet<(String, Option<u32>)> = HashSet::new();
        while let Some(record) = records.read().map_err(audit::unread)? {
            let wrong = |what: &dyn std::fmt::Display| {
                Failure::failed(format!(
                    "{}: record {}: {what}: see `sortie audit verify`",
                    self.dir.display(),
                    record.seq
                ))
            };
            let line = Line::parse(record.line).map_err(|error| wrong(&error))?;
            if line.event != "call_decided" || !self.is_in(&line, &wrong)? {
                continue;
            }
            let decided: CallDecided = serde_json::from_slice(record.line).map_err(|error| wrong(&error))?;
            if !self.callers.iter().all(|(key, value)| has(&decided.caller, key, value)) {
                continue;
            }
            let id = (decided.id.clone(), decided.message);
            let again = waiting.remove(&id);
            if decided.outcome == Outcome::Waits {
                if waiting.len() >= WAITING {
                    waiting.clear();
                }
                waiting.insert(id);
            }
            let recorded = recorded(&decided).map_err(|error| wrong(&error))?;
            of(Call { seq: record.seq, time: line.time.to_owned(), decided, recorded, again })?;
        }
        Ok(())
    }

    fn is_in(&self, line: &Line<'_>, wrong: &dyn Fn(&dyn std::fmt::Display) -> Failure) -> Result<bool, Failure> {
        if self.since.is_none() && self.until.is_none() {
            return Ok(true);
        }
        let time: Timestamp = line.time.parse().map_err(|error| wrong(&error))?;
        Ok(self.since.is_none_or(|since| since <= time) && self.until.is_none_or(|until| time < until))
    }
}

impl Call {
    /// What was decided; `None` where it was refused before a policy was asked.
    pub(crate) fn was(&self) -> Option<Was> {
        match (&self.decided.decision, self.decided.outcome) {
            (Some(decision), _) => match decision.effect.as_str() {
                "allow" => Some(Was::Allow),
                "ask" => Some(Was::Ask),
                _ => Some(Was::Deny),
            },
            (None, Outcome::Forwarded) => Some(Was::Unasked),
            (None, _) => None,
        }
    }

    /// Whether it names something that is too long to be recorded whole: what it was is not known then.
    pub(crate) fn is_cut(&self) -> bool {
        let act = &self.decided.act;
        let names =
            [Some(&act.method), act.tool.as_ref(), act.prompt.as_ref(), act.resource.as_ref(), act.http_path.as_ref()];
        names.into_iter().flatten().any(|name| name.contains("\u{2026} (") && name.contains(" bytes, sha256:"))
    }

    pub(crate) fn act(&self) -> Act<'_> {
        let act = &self.decided.act;
        let target = match (&act.tool, &act.prompt, &act.resource) {
            (Some(tool), ..) => Some(Target::Tool(tool)),
            (_, Some(prompt), _) => Some(Target::Prompt(prompt)),
            (_, _, Some(resource)) => Some(Target::Resource(resource)),
            _ => None,
        };
        match (act.method.as_str(), &act.http_method) {
            (_, Some(method)) => Act::Http { method, path: act.http_path.as_deref().unwrap_or_default() },
            ("answer", _) => Act::Answer,
            ("stream", _) => Act::Stream,
            ("session/delete", _) => Act::EndSession,
            (method, _) => Act::Mcp { method, target },
        }
    }

    /// What is done, in words.
    pub(crate) fn what(&self) -> String {
        let act = &self.decided.act;
        let name = act.tool.as_ref().or(act.prompt.as_ref()).or(act.resource.as_ref());
        match (&act.http_method, name) {
            (Some(method), _) => format!("{method} {}", act.http_path.as_deref().unwrap_or_default()),
            (None, Some(name)) => format!("{} {name}", act.method),
            (None, None) => act.method.clone(),
        }
    }

    /// Asks a policy about it.
    pub(crate) fn ask(&self, engine: &Engine) -> Answer {
        let now = self.decided.decision.as_ref().map(|decision| decision.now);
        let now = now.or_else(|| self.time.parse::<Timestamp>().ok().map(Timestamp::as_second)).unwrap_or_default();
        let query = Query {
            caller: &self.decided.caller,
            route: &self.decided.route,
            act: self.act(),
            arguments: None,
            now,
            region: self.decided.region.as_deref(),
            counts: Counts::default(),
        };
        engine.replay(&query, &self.recorded)
    }
}

/// Who called, in words: the agent if there is one.
pub(crate) fn who(caller: &Caller) -> String {
    match &caller.agent {
        Some(agent) => format!("agent {agent}"),
        None => format!("{}#{}", caller.issuer, caller.subject),
    }
}

fn recorded(decided: &CallDecided) -> Result<Recorded, serde_json::Error> {
    let arguments = decided.arguments.as_ref();
    let no_arguments = arguments.is_none_or(|arguments| arguments.sha256 == EMPTY_OBJECT);
    let mut out = Recorded { facts: Vec::new(), no_arguments, counts: None };
    let Some(decision) = &decided.decision else { return Ok(out) };
    out.counts = decision.counts.map(|[minute, hour, day]| Counts { minute, hour, day });
    for (name, form) in &decision.fact_forms {
        let form: FactForm = serde_json::from_value(form.clone())?;
        let found = match (decision.facts.get(name), decision.fact_faults.get(name).map(String::as_str)) {
            (_, Some("absent")) | (None, None) => Found::Absent,
            (_, Some(code)) => Found::Fault(code.to_owned()),
            (Some(fact), None) => Found::Fact(serde_json::from_value::<Fact>(fact.clone())?),
        };
        out.facts.push((form, found));
    }
    Ok(out)
}

fn is_attribute(key: &str) -> bool {
    key.strip_prefix("claim.").is_some_and(|claim| !claim.is_empty())
        || matches!(
            key,
            "issuer"
                | "subject"
                | "assurance"
                | "organization"
                | "workspace"
                | "key"
                | "user"
                | "agent"
                | "agent_version"
                | "session"
                | "region"
                | "group"
                | "actor"
        )
}

fn has(caller: &Caller, key: &str, value: &str) -> bool {
    let is = |text: &Option<String>| text.as_deref() == Some(value);
    let claims = |name: &str| caller.claims.get(name).is_some_and(|values| values.iter().any(|one| one == value));
    match key {
        "issuer" => caller.issuer == value,
        "subject" => caller.subject == value,
        "assurance" => caller.assurance.as_str() == value,
        "organization" => is(&caller.organization),
        "workspace" => is(&caller.workspace),
        "key" => is(&caller.key),
        "user" => is(&caller.user),
        "agent" => is(&caller.agent),
        "agent_version" => is(&caller.agent_version),
        "session" => is(&caller.session),
        "region" => is(&caller.region),
        "group" => claims("groups"),
        "actor" => caller.actors.iter().any(|one| one == value),
        claim => claim.strip_prefix("claim.").is_some_and(claims),
    }
}
