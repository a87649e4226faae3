//! Groups of calls, written as rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use super::{Group, Key, Learner, Name, Proposal, Style, What, Who};

/// More subjects than this are named by a group, where all are in one.
const MANY: usize = 8;
/// Most names in a list of the short form.
const MAX_NAMES: usize = 4096;
/// What comes before the notes.
pub(super) const NOT_AS_SEEN: &str = "#\n# Not as it was seen:\n";
/// Most notes.
const MAX_NOTES: usize = 1000;

/// What some callers may do on one route.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Names {
    tools: BTreeSet<String>,
    resources: BTreeSet<String>,
    prompts: BTreeSet<String>,
    methods: BTreeSet<String>,
}

/// A rule but for whom it is for: rules that are the same but for that are one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Body {
    route: String,
    asked: bool,
    issuer: String,
    organization: Option<String>,
    workspace: Option<String>,
    attested: bool,
    of_agents: bool,
    names: Names,
    /// As lines of `where`.
    conditions: Vec<String>,
}

pub(super) fn propose(learner: &Learner, style: &Style) -> Proposal {
    let mut writer = Writer { learner, notes: BTreeSet::new() };
    let mut bodies: BTreeMap<Body, (Vec<&Who>, u64)> = BTreeMap::new();
    for (who, route) in learner.groups.keys().map(|key| (&key.who, key.route.as_str())).collect::<BTreeSet<_>>() {
        for (body, calls) in writer.of(who, route) {
            let entry = bodies.entry(body).or_default();
            entry.0.push(who);
            entry.1 += calls;
        }
    }
    let mut rules = String::new();
    let mut count = 0;
    for (at, (body, (callers, calls))) in bodies.iter().enumerate() {
        let id = name(at + 1);
        let text = writer.rule(&id, body, callers, *calls, style);
        if style.leave_out.contains(&id) {
            writer.note(format!("`{id}` would allow what was denied, and is left out"));
            text.lines().for_each(|line| _ = writeln!(rules, "# {line}"));
        } else {
            rules.push_str(&text);
            count += 1;
        }
        rules.push('\n');
    }
    if learner.beyond > 0 {
        writer.note(format!("{} calls are left out, since there are too many different ones", learner.beyond));
    }
    let notes: Vec<String> = writer.notes.into_iter().collect();
    let mut text =
        "# Learned from recorded calls. Read it before you use it: what was done need not be what should be.\n"
            .to_owned();
    if !notes.is_empty() {
        text.push_str(NOT_AS_SEEN);
        notes.iter().for_each(|note| _ = writeln!(text, "# - {note}"));
    }
    text.push('\n');
    text.push_str(&rules);
    Proposal { text: format!("{}\n", text.trim_end()), rules: count, notes }
}

/// The names of this many rules.
pub(super) fn names(rules: usize) -> BTreeSet<String> {
    (1..=rules).map(name).collect()
}

fn name(number: usize) -> String {
    format!("learned {number}")
}

struct Writer<'a> {
    learner: &'a Learner,
    notes: BTreeSet<String>,
}

impl Writer<'_> {
    fn note(&mut self, note: String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.insert(note);
        }
    }

    /// The rules of one caller on one route, each with the calls that it was made from.
    fn of(&mut self, who: &Who, route: &str) -> Vec<(Body, u64)> {
        let first = Key { who: who.clone(), route: route.to_owned(), asked: false, what: What::Tool(String::new()) };
        let from_there = self.learner.groups.range(&first..);
        let groups: Vec<(&Key, &Group)> =
            from_there.take_while(|(key, _)| key.who == *who && key.route == route).collect();
        let label = who.label();
        if !who.is_plain() || route.contains('*') {
            self.note(format!("{label} on route {route:?}: the short form cannot name this caller or route"));
            return Vec::new();
        }
        let narrow = groups.iter().any(|(key, _)| {
            matches!(&key.what, What::Tool(name) | What::Resource(name) | What::Prompt(name) if is_plain(name))
        });
        let mut bodies: BTreeMap<Body, u64> = BTreeMap::new();
        let mut parts: BTreeMap<(bool, bool, Vec<String>), (Names, u64)> = BTreeMap::new();
        for (key, group) in groups {
            let mut names = Names::default();
            let mut conditions = Vec::new();
            let cannot = |what: &str| format!("{label} on route {route:?}: {what}");
            match &key.what {
                What::Tool(name) | What::Resource(name) | What::Prompt(name) if !is_plain(name) => {
                    self.note(cannot(&format!("the short form cannot name {name:?}, which has a star or is empty")));
                    continue;
                }
                What::Tool(name) => {
                    conditions = self.conditions(&label, route, name, group);
                    names.tools.insert(name.clone());
                }
                What::Resource(uri) => _ = names.resources.insert(uri.clone()),
                What::Prompt(name) => _ = names.prompts.insert(name.clone()),
                What::Base(_) | What::OnlyWith(_) if narrow => continue,
                What::Method(method) | What::Base(method) if !method.is_empty() => {
                    names.methods.insert(method.clone());
                }
                What::Method(_) | What::Base(_) => {
                    self.note(cannot("a method without a name"));
                    continue;
                }
                What::OnlyWith(what) => {
                    self.note(cannot(&format!(
                        "{what}: the short form allows it only with a tool, resource or prompt"
                    )));
                    continue;
                }
                What::Nameless(what) => {
                    self.note(cannot(&format!("the short form cannot name {what}")));
                    continue;
                }
            }
            let part = parts.entry((key.asked, group.attested, conditions)).or_default();
            part.0.add(names);
            part.1 += group.calls;
        }
        for ((asked, attested, conditions), (names, calls)) in parts {
            if names.longest() > MAX_NAMES {
                self.note(format!("{label} on route {route:?}: more than {MAX_NAMES} names; the rule is left out"));
                continue;
            }
            let Who { issuer, organization, workspace, name } = who.clone();
            let of_agents = matches!(name, Name::Agent(_));
            let route = route.to_owned();
            let body = Body { route, asked, issuer, organization, workspace, attested, of_agents, names, conditions };
            *bodies.entry(body).or_default() += calls;
        }
        bodies.into_iter().collect()
    }

    fn conditions(&mut self, label: &str, route: &str, tool: &str, group: &Group) -> Vec<String> {
        let mut out = Vec::new();
        for values in group.facts.values() {
            match values.condition(group.calls) {
                Ok(Some(condition)) => out.push(inline(&condition)),
                Ok(None) => {}
                Err(why) => self.note(format!("{label} calling {tool:?} on route {route:?}: {why}")),
            }
        }
        out
    }

    fn rule(&self, id: &str, body: &Body, callers: &[&Who], calls: u64, style: &Style) -> String {
        let (mut out, plural) = (String::new(), if calls == 1 { "" } else { "s" });
        let _ = writeln!(out, "# {calls} call{plural}.\n[[{}]]", if body.asked { "ask" } else { "allow" });
        let mut set = |name: &str, value: String| _ = writeln!(out, "{name} = {value}");
        set("id", text(id));
        if body.asked {
            set("why", text("it was asked for before"));
        }
        let mut named: Vec<&str> = callers.iter().map(|who| who.name.as_str()).collect();
        named.sort_unstable();
        named.dedup();
        match (body.of_agents, self.group(callers, style)) {
            (true, _) => set("agents", list(named.iter().copied())),
            (false, Some(group)) => set("groups", text(&group)),
            (false, None) => {
                let callers: Vec<String> = named.iter().map(|subject| format!("{}#{subject}", body.issuer)).collect();
                set("callers", list(callers.iter().map(String::as_str)));
            }
        }
        set("issuers", text(&body.issuer));
        body.organization.iter().for_each(|organization| set("organizations", text(organization)));
        body.workspace.iter().for_each(|workspace| set("workspaces", text(workspace)));
        if body.attested {
            set("assurance", text("attested"));
        }
        set("routes", text(&body.route));
        let Names { tools, resources, prompts, methods } = &body.names;
        for (name, names) in [("tools", tools), ("resources", resources), ("prompts", prompts), ("methods", methods)] {
            if !names.is_empty() {
                set(name, list(names.iter().map(String::as_str)));
            }
        }
        if !body.conditions.is_empty() {
            let lines: String = body.conditions.iter().map(|line| format!("    {line},\n")).collect();
            set("where", format!("[\n{lines}]"));
        }
        out
    }

    /// A group that many subjects share.
    fn group(&self, callers: &[&Who], style: &Style) -> Option<String> {
        if callers.len() <= MANY || style.no_groups {
            return None;
        }
        let of = |who: &&Who| self.learner.shared.get(*who).cloned().unwrap_or_default();
        let all = callers.iter().map(of).reduce(|all, one| all.intersection(&one).cloned().collect())?;
        all.into_iter().find(|group| is_plain(group))
    }
}

impl Names {
    fn add(&mut self, other: Self) {
        self.tools.extend(other.tools);
        self.resources.extend(other.resources);
        self.prompts.extend(other.prompts);
        self.methods.extend(other.methods);
    }

    fn longest(&self) -> usize {
        let all = [&self.tools, &self.resources, &self.prompts, &self.methods];
        all.iter().map(|names| names.len()).max().unwrap_or_default()
    }
}

impl Name {
    fn as_str(&self) -> &str {
        let (Self::Agent(name) | Self::Subject(name)) = self;
        name
    }
}

impl Who {
    fn label(&self) -> String {
        match &self.name {
            Name::Agent(agent) => format!("agent {agent:?}"),
            Name::Subject(subject) => format!("caller {:?}", format!("{}#{subject}", self.issuer)),
        }
    }

    /// Whether the short form can name it.
    fn is_plain(&self) -> bool {
        let scopes = self.organization.iter().chain(&self.workspace);
        let issuer = is_plain(&self.issuer) && (matches!(self.name, Name::Agent(_)) || !self.issuer.contains('#'));
        // An empty subject still makes a name.
        let name = match &self.name {
            Name::Agent(agent) => is_plain(agent),
            Name::Subject(subject) => !subject.contains('*'),
        };
        issuer && name && scopes.into_iter().all(|scope| is_plain(scope))
    }
}

/// Whether a name stands for itself in the short form.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.contains('*')
}

/// A text as TOML writes it.
fn text(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(text).collect();
    if names.len() == 1 { names.concat() } else { format!("[{}]", names.join(", ")) }
}

/// A condition as an inline table of TOML: where it lies and its type, then what is asked of it.
fn inline(condition: &Value) -> String {
    let rank = |name: &str| ["pointer", "type", "each"].iter().position(|known| *known == name).unwrap_or(3);
    let mut members: Vec<_> = condition.as_object().into_iter().flatten().collect();
    members.sort_unstable_by_key(|(name, _)| (rank(name), name.as_str()));
    let members: Vec<String> = members.iter().map(|(name, value)| format!("{name} = {}", written(value))).collect();
    format!("{{ {} }}", members.join(", "))
}

fn written(value: &Value) -> String {
    match value {
        Value::String(value) => text(value),
        Value::Array(values) => format!("[{}]", values.iter().map(written).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
