//! Cases that say what policies must come to, kept beside them.

use std::collections::BTreeMap;

use serde::Deserialize;
use sortie_identity::{Assurance, Caller};

use crate::decision::{Decision, Effect};
use crate::engine::Engine;
use crate::facts::moment_of;
use crate::query::{Act, Counts, Query, Target};
use crate::toml_values::Texts;

/// A moment within working hours, a Monday, where a case names none: 2026-01-05T12:00:00Z.
const NOON: i64 = 1_767_614_400;

/// A caller as it is written in a case.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCaller {
    issuer: Option<String>,
    subject: Option<String>,
    assurance: Option<String>,
    organization: Option<String>,
    workspace: Option<String>,
    key: Option<String>,
    user: Option<String>,
    agent: Option<String>,
    agent_version: Option<String>,
    session: Option<String>,
    tool_use: Option<String>,
    region: Option<String>,
    #[serde(default)]
    actors: Vec<String>,
    groups: Option<Texts>,
    #[serde(default)]
    claims: BTreeMap<String, Texts>,
}

impl RawCaller {
    fn caller(self) -> Result<Caller, String> {
        let assurance = match self.assurance.as_deref() {
            None | Some("asserted") => Assurance::Asserted,
            Some("attested") => Assurance::Attested,
            Some(other) => return Err(format!("assurance is \"asserted\" or \"attested\", not `{other}`")),
        };
        let issuer = self.issuer.unwrap_or_else(|| "hub".to_owned());
        let mut caller = Caller::new(issuer, self.subject.unwrap_or_else(|| "someone".to_owned()), assurance, i64::MAX);
        caller.organization = self.organization;
        caller.workspace = self.workspace;
        caller.key = self.key;
        caller.user = self.user;
        caller.agent = self.agent;
        caller.agent_version = self.agent_version;
        caller.session = self.session;
        caller.tool_use = self.tool_use;
        caller.region = self.region;
        caller.actors = self.actors;
        caller.claims = self.claims.into_iter().map(|(name, values)| (name, values.as_slice().to_vec())).collect();
        if let Some(groups) = self.groups {
            caller.claims.insert("groups".to_owned(), groups.as_slice().to_vec());
        }
        Ok(caller)
    }
}

/// A caller by name, or written out.
#[derive(Clone, Debug)]
enum CallerRef {
    Name(String),
    Inline(Box<RawCaller>),
}

impl<'de> Deserialize<'de> for CallerRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = CallerRef;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a caller of [callers], or a table")
            }

            fn visit_str<E>(self, name: &str) -> Result<CallerRef, E> {
                Ok(CallerRef::Name(name.to_owned()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<CallerRef, A::Error> {
                RawCaller::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    .map(|caller| CallerRef::Inline(Box::new(caller)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawCase {
    name: Option<String>,
    caller: Option<CallerRef>,
    route: String,
    tool: Option<String>,
    resource: Option<String>,
    prompt: Option<String>,
    method: Option<String>,
    /// `GET /path`, of a route that is not MCP.
    http: Option<String>,
    arguments: Option<toml::Table>,
    /// The arguments as JSON, where TOML has no word for them.
    arguments_json: Option<String>,
    time: Option<String>,
    region: Option<String>,
    #[serde(default)]
    counts: RawCounts,
    expect: String,
    by: Option<Texts>,
    listed: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCounts {
    #[serde(default)]
    minute: u32,
    #[serde(default)]
    hour: u32,
    #[serde(default)]
    day: u32,
}

impl RawCase {
    pub(crate) fn check(self, place: &str, callers: &BTreeMap<String, RawCaller>) -> Result<Case, String> {
        let caller = match self.caller {
            None => RawCaller::default(),
            Some(CallerRef::Inline(caller)) => *caller,
            Some(CallerRef::Name(name)) => {
                callers.get(&name).cloned().ok_or_else(|| format!("no caller `{name}`: write [callers.{name}]"))?
            }
        };
        let arguments = match (self.arguments, self.arguments_json) {
            (Some(_), Some(_)) => return Err("give `arguments` or `arguments_json`, not both".to_owned()),
            (Some(table), None) => {
                Some(serde_json::to_string(&table).map_err(|error| format!("the arguments are not JSON: {error}"))?)
            }
            (None, json) => json,
        };
        let time = self.time.map(|text| {
            moment_of(&text).ok_or_else(|| format!("`{text}` is not a moment: write it as \"2026-01-05T12:00:00Z\""))
        });
        let expect = match self.expect.as_str() {
            "allow" => Effect::Allow,
            "deny" => Effect::Deny,
            "ask" => Effect::Ask,
            other => return Err(format!("expect is \"allow\", \"deny\" or \"ask\", not `{other}`")),
        };
        Ok(Case {
            name: self.name.unwrap_or_else(|| place.to_owned()),
            place: place.to_owned(),
            caller: caller.caller()?,
            act: CaseAct::of(self.tool, self.resource, self.prompt, self.method, self.http)?,
            route: self.route,
            arguments,
            now: time.transpose()?.map_or(NOON, |millis| millis.div_euclid(1000)),
            region: self.region,
            counts: Counts { minute: self.counts.minute, hour: self.counts.hour, day: self.counts.day },
            expect,
            by: self.by.map(|names| names.as_slice().to_vec()),
            listed: self.listed,
        })
    }
}

/// What a case does: owned, since a query borrows.
#[derive(Clone, Debug)]
enum CaseAct {
    Tool(String, String),
    Resource(String, String),
    Prompt(String, String),
    Method(String),
    Http(String, String),
}

impl CaseAct {
    fn of(
        tool: Option<String>,
        resource: Option<String>,
        prompt: Option<String>,
        method: Option<String>,
        http: Option<String>,
    ) -> Result<Self, String> {
        let named = |method: Option<String>, default: &str| method.unwrap_or_else(|| default.to_owned());
        match (tool, resource, prompt, http) {
            (Some(name), None, None, None) => Ok(Self::Tool(named(method, "tools/call"), name)),
            (None, Some(uri), None, None) => Ok(Self::Resource(named(method, "resources/read"), uri)),
            (None, None, Some(name), None) => Ok(Self::Prompt(named(method, "prompts/get"), name)),
            (None, None, None, Some(line)) if method.is_none() => {
                let (method, path) =
                    line.split_once(' ').ok_or_else(|| format!("`http` is written \"GET /path\", not `{line}`"))?;
                Ok(Self::Http(method.to_owned(), path.to_owned()))
            }
            (None, None, None, None) => match method {
                Some(method) => Ok(Self::Method(method)),
                None => Err("say what is done: `tool`, `resource`, `prompt`, `method` or `http`".to_owned()),
            },
            _ => Err("say one of `tool`, `resource`, `prompt` and `http`".to_owned()),
        }
    }

    fn act(&self) -> Act<'_> {
        match self {
            Self::Tool(method, name) => Act::Mcp { method, target: Some(Target::Tool(name)) },
            Self::Resource(method, uri) => Act::Mcp { method, target: Some(Target::Resource(uri)) },
            Self::Prompt(method, name) => Act::Mcp { method, target: Some(Target::Prompt(name)) },
            Self::Method(method) => Act::Mcp { method, target: None },
            Self::Http(method, path) => Act::Http { method, path },
        }
    }
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    name: String,
    place: String,
    caller: Caller,
    route: String,
    act: CaseAct,
    arguments: Option<String>,
    now: i64,
    region: Option<String>,
    counts: Counts,
    expect: Effect,
    by: Option<Vec<String>>,
    listed: Option<bool>,
}

/// How a case went.
#[derive(Clone, Debug)]
pub struct CaseResult {
    /// The case's name, else `file:line`.
    pub name: String,
    /// `file:line`.
    pub place: String,
    /// What it expects.
    pub expect: Effect,
    /// What was decided.
    pub decision: Decision,
    /// What is not as it should be, one sentence each; empty if the case passes.
    pub problems: Vec<String>,
}

impl Case {
    fn query(&self) -> Query<'_> {
        Query {
            caller: &self.caller,
            route: &self.route,
            act: self.act.act(),
            arguments: self.arguments.as_deref(),
            now: self.now,
            region: self.region.as_deref(),
            counts: self.counts,
        }
    }
}

impl Engine {
    /// The cases in the policy file.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// The cases in the text of another file.
    ///
    /// # Errors
    /// It is not TOML, or not of cases.
    pub fn read_cases(file: &std::path::Path, text: &str) -> Result<Vec<Case>, crate::PolicyError> {
        crate::file::cases(file, text)
    }

    /// Decides a case.
    pub fn run_case(&self, case: &Case) -> CaseResult {
        let query = case.query();
        let decision = self.decide(&query);
        let mut problems = Vec::new();
        if decision.effect != case.expect {
            problems.push(format!("expected {}, got {}: {}", case.expect, decision.effect, decision.reason));
        }
        if let Some(by) = &case.by {
            let mut expected: Vec<&str> = by.iter().map(String::as_str).collect();
            let mut found: Vec<&str> = decision.policies.iter().map(|policy| policy.as_str()).collect();
            expected.sort_unstable();
            found.sort_unstable();
            if expected != found {
                problems.push(format!("expected it to be decided by {expected:?}, not {found:?}"));
            }
        }
        if let Some(listed) = case.listed
            && self.may_see(&query) != listed
        {
            problems.push(format!("expected a list {} it", if listed { "to show" } else { "not to show" }));
        }
        CaseResult { name: case.name.clone(), place: case.place.clone(), expect: case.expect, decision, problems }
    }
}
