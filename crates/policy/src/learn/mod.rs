//! Proposes the smallest policy, in the short form, that allows what was allowed and used.
//!
//! Callers are named by what stays the same from call to call: the agent where there is one, within its issuer, organisation
//! and workspace; else the subject; a group in place of many subjects. Of arguments only facts are known: few values become
//! a list of them, many numbers or moments a range.

mod rules;
mod trial;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use sortie_identity::{Assurance, Caller};

pub use self::trial::Trial;
use self::values::Values;
use crate::facts::Found;
use crate::query::{Act, Target};
use crate::recorded::Recorded;
use crate::schema::Action;

/// Most different things that are kept apart, each a caller's use of one target. What comes beyond them is counted only.
const MAX_GROUPS: usize = 20_000;
/// Most facts of one of them.
const MAX_FACTS: usize = 64;
/// The claim whose values are groups.
const GROUPS: &str = "groups";

/// Learns from calls of the past.
#[derive(Debug, Default)]
pub struct Learner {
    groups: BTreeMap<Key, Group>,
    /// The groups that all calls of a subject have shown.
    shared: BTreeMap<Who, BTreeSet<String>>,
    beyond: u64,
}

/// A policy that was learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The policy file.
    pub text: String,
    /// How many rules it has.
    pub rules: usize,
    /// What it does not say as it was seen, one sentence each; they are comments of the file, too.
    pub notes: Vec<String>,
}

/// How a policy is proposed.
#[derive(Clone, Debug, Default)]
struct Style {
    /// Name every subject, and no group in its place.
    no_groups: bool,
    /// Rules to leave out, by name: they would allow what was denied.
    leave_out: BTreeSet<String>,
}

/// Who calls, by what stays the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    issuer: String,
    organization: Option<String>,
    workspace: Option<String>,
    name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Agent(String),
    Subject(String),
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Tool(String),
    Resource(String),
    Prompt(String),
    Method(String),
    /// What comes with any tool, resource or prompt of the route, and can be allowed alone by its name.
    Base(String),
    /// What only comes with others.
    OnlyWith(&'static str),
    /// What the short form cannot name.
    Nameless(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    who: Who,
    route: String,
    /// It was asked for and approved.
    asked: bool,
    what: What,
}

#[derive(Clone, Debug)]
struct Group {
    calls: u64,
    /// The gateway had verified the caller each time.
    attested: bool,
    /// Calls without arguments.
    bare: u64,
    /// By the text of its form.
    facts: BTreeMap<String, Values>,
}

impl Learner {
    /// Takes a call that was allowed and went on; `asked` if somebody had to approve it.
    pub fn used(&mut self, caller: &Caller, route: &str, act: &Act<'_>, asked: bool, recorded: &Recorded) {
        let key = Key { who: Who::of(caller), route: route.to_owned(), asked, what: What::of(act) };
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&key) {
            self.beyond += 1;
            return;
        }
        let groups: BTreeSet<String> = caller.claims.get(GROUPS).into_iter().flatten().cloned().collect();
        match self.shared.get_mut(&key.who) {
            Some(shared) => shared.retain(|group| groups.contains(group)),
            None => _ = self.shared.insert(key.who.clone(), groups),
        }
        let new = || Group { calls: 0, attested: true, bare: 0, facts: BTreeMap::new() };
        let group = self.groups.entry(key).or_insert_with(new);
        group.calls += 1;
        group.attested &= caller.assurance == Assurance::Attested;
        if recorded.no_arguments {
            group.bare += 1;
            group.facts.values_mut().for_each(|values| values.add(&Found::Absent));
            return;
        }
        for (form, found) in &recorded.facts {
            let text = form.as_json().to_string();
            if group.facts.len() < MAX_FACTS || group.facts.contains_key(&text) {
                let bare = group.bare;
                group.facts.entry(text).or_insert_with(|| Values::of(form.clone(), bare)).add(found);
            }
        }
    }
}

impl Who {
    fn of(caller: &Caller) -> Self {
        let name = match &caller.agent {
            Some(agent) => Name::Agent(agent.clone()),
            None => Name::Subject(caller.subject.clone()),
        };
        let (organization, workspace) = (caller.organization.clone(), caller.workspace.clone());
        Self { issuer: caller.issuer.clone(), organization, workspace, name }
    }
}

impl What {
    fn of(act: &Act<'_>) -> Self {
        let action = Action::of(act);
        let base = (Action::bits("base") | Action::bits("list")) & action.bit() != 0;
        match act {
            Act::Mcp { target: Some(Target::Tool(name)), method: "tools/call" } => Self::Tool((*name).to_owned()),
            Act::Mcp { target: Some(Target::Prompt(name)), method: "prompts/get" } => Self::Prompt((*name).to_owned()),
            Act::Mcp {
                target: Some(Target::Resource(uri)),
                method: "resources/read" | "resources/subscribe" | "resources/unsubscribe",
            } => Self::Resource((*uri).to_owned()),
            Act::Mcp { method, .. } if base && Action::is_method(method) => Self::Base((*method).to_owned()),
            Act::Mcp { .. } | Act::Answer | Act::Stream | Act::EndSession if base => Self::OnlyWith(action.name()),
            // A rule for the method would be one for all tools.
            Act::Mcp { method: "tools/call" | "prompts/get", .. } => Self::Nameless("a call that names nothing"),
            Act::Mcp { method, .. } if method.starts_with("resources/") && Action::is_method(method) => {
                Self::Nameless("a call that names nothing")
            }
            Act::Mcp { method, .. } => Self::Method((*method).to_owned()),
            Act::Http { .. } => Self::Nameless("requests that are not MCP: write Cedar, with context.path"),
            Act::Answer | Act::Stream | Act::EndSession => Self::OnlyWith(action.name()),
        }
    }
}
