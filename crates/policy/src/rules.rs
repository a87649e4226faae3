//! The short form: rules of a TOML file, written as Cedar.

use std::fmt::Write as _;

use serde::Deserialize;

use crate::caller;
use crate::facts::Spec;
use crate::schema::Action;
use crate::toml_values::Texts;

/// Most entries of a list, and most pairs of route and tool.
const MAX_LIST: usize = 4096;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Allow,
    Ask,
    Deny,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }
}

/// A rule as it is written: it is for a call that fits all of what it says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// The policy's name.
    id: Option<String>,
    /// What the policy says for itself.
    reason: Option<String>,
    /// What an approver is to know, of a rule that asks.
    why: Option<String>,
    callers: Option<Texts>,
    issuers: Option<Texts>,
    organizations: Option<Texts>,
    workspaces: Option<Texts>,
    agents: Option<Texts>,
    groups: Option<Texts>,
    users: Option<Texts>,
    assurance: Option<String>,
    routes: Option<Texts>,
    tools: Option<Texts>,
    resources: Option<Texts>,
    prompts: Option<Texts>,
    methods: Option<Texts>,
    hours: Option<Texts>,
    weekdays: Option<Texts>,
    regions: Option<Texts>,
    max_per_minute: Option<u32>,
    max_per_hour: Option<u32>,
    max_per_day: Option<u32>,
    #[serde(default, rename = "where")]
    conditions: Vec<Spec>,
}

/// What a rule comes to.
pub(crate) struct Written {
    /// The texts of its policies.
    pub(crate) policies: Vec<String>,
    /// The facts of its conditions on arguments.
    pub(crate) facts: Vec<(String, Spec)>,
}

impl Rule {
    /// Writes it as Cedar. `number` tells it from others of its kind, from 1.
    pub(crate) fn write(&self, kind: Kind, number: usize) -> Result<Written, String> {
        self.check(kind)?;
        let callers = self.callers()?;
        let mut when = callers.clone();
        when.extend(self.times()?);
        when.extend(self.limits(kind)?);
        let mut facts = Vec::new();
        for (at, spec) in self.conditions.iter().enumerate() {
            let name = format!("where_{}_{number}_{}", kind.name(), at + 1);
            let test = format!("context.facts.{name}");
            when.push(match (spec.optional, kind) {
                (false, _) => test,
                (true, Kind::Deny) => format!("(context.facts has {name} && {test})"),
                (true, _) => format!("(if context.facts has {name} then {test} else true)"),
            });
            let mut spec = spec.clone();
            // A condition speaks of the tools of its rule.
            (spec.routes, spec.tools) = (self.routes.clone(), self.tools.clone());
            facts.push((name, spec));
        }
        let mut writer = Writer { rule: self, kind, policies: Vec::new() };
        if let Some(tools) = &self.tools {
            writer.part(
                "",
                r#"action == Action::"tools/call""#,
                "is Tool",
                [self.named("Tool", "name", tools)?, when.clone()],
            );
        }
        if let Some(resources) = &self.resources {
            let actions = r#"action in [Action::"resources/read", Action::"resources/subscribe", Action::"resources/unsubscribe", Action::"completion/complete"]"#;
            writer.part(
                " (resources)",
                actions,
                "is Resource",
                [self.named("Resource", "uri", resources)?, when.clone()],
            );
        }
        if let Some(prompts) = &self.prompts {
            let actions = r#"action in [Action::"prompts/get", Action::"completion/complete"]"#;
            writer.part(" (prompts)", actions, "is Prompt", [self.named("Prompt", "name", prompts)?, when.clone()]);
        }
        let routes = self.any_in_routes()?;
        if let Some(methods) = &self.methods {
            let (known, others): (Vec<&String>, Vec<&String>) =
                listed("methods", methods)?.iter().partition(|method| Action::is_method(method));
            if !known.is_empty() {
                let list: Vec<String> = known.iter().map(|method| format!("Action::{}", quoted(method))).collect();
                let actions = format!("action in [{}]", list.join(", "));
                writer.part(" (methods)", &actions, "", [routes.clone(), when.clone()]);
            }
            if !others.is_empty() {
                let list: Vec<String> = others.iter().map(|method| quoted(method)).collect();
                let mut when = when.clone();
                when.push(format!("[{}].contains(context.method)", list.join(", ")));
                writer.part(" (other methods)", r#"action == Action::"other""#, "", [routes.clone(), when]);
            }
        }
        let narrow = self.tools.is_some() || self.resources.is_some() || self.prompts.is_some();
        if !narrow && self.methods.is_none() {
            let known = r#"action in [Action::"base", Action::"list", Action::"read", Action::"call", Action::"tasks", Action::"logging/setLevel", Action::"http"]"#;
            let actions = if kind == Kind::Deny { "action" } else { known };
            writer.part("", actions, "", [routes, when]);
        }
        if narrow && kind != Kind::Deny {
            // What every client does first and besides; at any time, since clients keep their connection.
            writer.kind = Kind::Allow;
            let actions = r#"action in [Action::"base", Action::"list"]"#;
            writer.part(" (base)", actions, "is Route", [self.routes_themselves()?, callers]);
        }
        Ok(Written { policies: writer.policies, facts })
    }

    fn check(&self, kind: Kind) -> Result<(), String> {
        match (kind, &self.why) {
            (Kind::Ask, None) => return Err("say what an approver is to know: why = \"...\"".to_owned()),
            (Kind::Allow | Kind::Deny, Some(_)) => {
                return Err("`why` goes with [[ask]]; elsewhere write `reason`".to_owned());
            }
            _ => {}
        }
        let selects = [
            &self.callers,
            &self.issuers,
            &self.organizations,
            &self.workspaces,
            &self.agents,
            &self.groups,
            &self.users,
            &self.routes,
            &self.tools,
            &self.resources,
            &self.prompts,
            &self.methods,
        ];
        if kind != Kind::Deny && self.assurance.is_none() && selects.iter().all(|list| list.is_none()) {
            return Err("this is for everyone and everything: say for whom or for what; if you mean it, write \
                        routes = \"*\""
                .to_owned());
        }
        if self.conditions.is_empty() {
            return Ok(());
        }
        if self.tools.is_none() || self.resources.is_some() || self.prompts.is_some() || self.methods.is_some() {
            return Err(
                "`where` looks at arguments of tools: name the `tools`, \"*\" for all, and leave resources, prompts \
                        and methods to a rule of their own"
                    .to_owned(),
            );
        }
        if self.conditions.iter().any(|spec| spec.routes.is_some() || spec.tools.is_some()) {
            return Err("`where` is for the routes and tools of its rule; leave them out of it".to_owned());
        }
        Ok(())
    }

    /// The conditions on who calls.
    fn callers(&self) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        if let Some(callers) = &self.callers {
            let mut list = Vec::new();
            for text in starless("callers", callers)? {
                let (issuer, subject) = text.split_once('#').ok_or_else(|| {
                    format!(
                        "a caller is written ISSUER#SUBJECT; `{text}` has no `#`. For agents, workspaces and groups \
                             there are `agents`, `workspaces` and `groups`"
                    )
                })?;
                list.push(format!("Caller::{}", quoted(caller::principal(issuer, subject).id().unescaped())));
            }
            out.push(format!("principal in [{}]", list.join(", ")));
        }
        for (name, kind, list) in [
            ("agents", "Agent", &self.agents),
            ("groups", "Group", &self.groups),
            ("workspaces", "Workspace", &self.workspaces),
            ("organizations", "Organization", &self.organizations),
            ("issuers", "Issuer", &self.issuers),
        ] {
            if let Some(list) = list {
                let list: Vec<String> =
                    starless(name, list)?.iter().map(|id| format!("{kind}::{}", quoted(id))).collect();
                out.push(format!("principal in [{}]", list.join(", ")));
            }
        }
        if let Some(users) = &self.users {
            let list: Vec<String> = starless("users", users)?.iter().map(|user| quoted(user)).collect();
            out.push("principal has user".to_owned());
            out.push(format!("[{}].contains(principal.user)", list.join(", ")));
        }
        match self.assurance.as_deref() {
            None => {}
            Some(assurance @ ("asserted" | "attested")) => {
                out.push(format!("principal.assurance == {}", quoted(assurance)));
            }
            Some(other) => return Err(format!("assurance is \"asserted\" or \"attested\", not `{other}`")),
        }
        Ok(out)
    }

    fn times(&self) -> Result<Vec<String>, String> {
        let mut out = Vec::new();
        if let Some(hours) = &self.hours {
            let spans = listed("hours", hours)?.iter().map(|text| span(text)).collect::<Result<Vec<_>, _>>()?;
            out.push(either(spans));
        }
        if let Some(weekdays) = &self.weekdays {
            let mut list = Vec::new();
            for text in listed("weekdays", weekdays)? {
                list.extend(days(text)?.into_iter().map(quoted));
            }
            out.push(format!("[{}].contains(context.weekday)", list.join(", ")));
        }
        if let Some(regions) = &self.regions {
            let list: Vec<String> = listed("regions", regions)?.iter().map(|region| quoted(region)).collect();
            out.push("context has region".to_owned());
            out.push(format!("[{}].contains(context.region)", list.join(", ")));
        }
        Ok(out)
    }

    fn limits(&self, kind: Kind) -> Result<Vec<String>, String> {
        let limits = [("minute", self.max_per_minute), ("hour", self.max_per_hour), ("day", self.max_per_day)];
        let limits: Vec<String> = limits
            .iter()
            .filter_map(|(span, most)| most.map(|most| format!("context.counts.{span} < {most}")))
            .collect();
        if kind == Kind::Deny && !limits.is_empty() {
            return Err("max_per_minute, max_per_hour and max_per_day go with [[allow]] and [[ask]]".to_owned());
        }
        Ok(limits)
    }

    /// The conditions on a target: in which route, and of which name.
    fn named(&self, kind: &str, attribute: &str, names: &Texts) -> Result<Vec<String>, String> {
        let names = listed(attribute, names)?;
        let exact = |list: &[String]| list.iter().all(|text| !text.contains('*'));
        let routes = self.routes.as_ref().map(|routes| listed("routes", routes)).transpose()?;
        if let Some(routes) = routes.filter(|routes| exact(routes) && exact(names)) {
            if routes.len().saturating_mul(names.len()) > MAX_LIST {
                return Err(format!("these are more than {MAX_LIST} pairs of route and name: make two rules of it"));
            }
            let pairs = routes.iter().flat_map(|route| names.iter().map(move |name| format!("{route}/{name}")));
            let list: Vec<String> = pairs.map(|id| format!("{kind}::{}", quoted(&id))).collect();
            return Ok(vec![format!("resource in [{}]", list.join(", "))]);
        }
        let mut out = Vec::new();
        match routes {
            None => {}
            Some(routes) if exact(routes) => out.push(format!("resource in [{}]", route_list(routes))),
            Some(routes) => out.extend(likes("resource.route", routes)),
        }
        out.extend(likes(&format!("resource.{attribute}"), names));
        Ok(out)
    }

    /// The conditions on a route itself.
    fn routes_themselves(&self) -> Result<Vec<String>, String> {
        let Some(routes) = &self.routes else { return Ok(Vec::new()) };
        let routes = listed("routes", routes)?;
        if routes.iter().all(|route| !route.contains('*')) {
            return Ok(vec![format!("resource in [{}]", route_list(routes))]);
        }
        Ok(likes("resource.name", routes).into_iter().collect())
    }

    /// The conditions on a route or anything in it.
    fn any_in_routes(&self) -> Result<Vec<String>, String> {
        let Some(routes) = &self.routes else { return Ok(Vec::new()) };
        let routes = listed("routes", routes)?;
        if routes.iter().all(|route| !route.contains('*')) {
            return Ok(vec![format!("resource in [{}]", route_list(routes))]);
        }
        let (Some(route), Some(inside)) = (likes("resource.name", routes), likes("resource.route", routes)) else {
            return Ok(Vec::new());
        };
        let inside = ["Tool", "Prompt", "Resource"].map(|kind| format!("resource is {kind} && {inside}"));
        Ok(vec![format!("(resource is Route && {route} || {})", inside.join(" || "))])
    }
}

struct Writer<'a> {
    rule: &'a Rule,
    kind: Kind,
    policies: Vec<String>,
}

impl Writer<'_> {
    fn part<const N: usize>(&mut self, suffix: &str, action: &str, resource: &str, when: [Vec<String>; N]) {
        let mut text = String::new();
        let mut note = |key: &str, value: &Option<String>, suffix: &str| {
            if let Some(value) = value {
                let _ = writeln!(text, "@{key}({})", quoted(&format!("{value}{suffix}")));
            }
        };
        note("id", &self.rule.id, if self.policies.is_empty() { "" } else { suffix });
        note("reason", &self.rule.reason, "");
        if self.kind == Kind::Ask {
            note("ask", &self.rule.why, "");
        }
        let effect = if self.kind == Kind::Deny { "forbid" } else { "permit" };
        let _ = write!(text, "{effect} (principal, {action}, {})", format!("resource {resource}").trim_end());
        let when: Vec<String> = when.into_iter().flatten().collect();
        if !when.is_empty() {
            let _ = write!(text, "\nwhen {{\n    {}\n}}", when.join(" &&\n    "));
        }
        text.push(';');
        self.policies.push(text);
    }
}

/// The entries of a list, which is neither empty nor without bound.
fn listed<'a>(name: &str, texts: &'a Texts) -> Result<&'a [String], String> {
    match texts.as_slice() {
        [] => Err(format!("the list `{name}` is empty, so nothing would fit; leave it out if it does not matter")),
        list if list.len() > MAX_LIST => Err(format!("the list `{name}` has more than {MAX_LIST} entries")),
        list if list.iter().any(String::is_empty) => Err(format!("the list `{name}` has an empty entry")),
        list => Ok(list),
    }
}

/// The entries of a list of names that are compared as they are.
fn starless<'a>(name: &str, texts: &'a Texts) -> Result<&'a [String], String> {
    let list = listed(name, texts)?;
    match list.iter().find(|text| text.contains('*')) {
        Some(text) => Err(format!("`{text}`: the names in `{name}` have no stars; leave the list out for any")),
        None => Ok(list),
    }
}

fn route_list(routes: &[String]) -> String {
    routes.iter().map(|route| format!("Route::{}", quoted(route))).collect::<Vec<_>>().join(", ")
}

/// The condition that a text has one of these forms; `None` where it may have any.
fn likes(attribute: &str, patterns: &[String]) -> Option<String> {
    if patterns.iter().any(|pattern| pattern == "*") {
        return None;
    }
    Some(either(patterns.iter().map(|pattern| format!("{attribute} like {}", quoted(pattern))).collect()))
}

fn either(all: Vec<String>) -> String {
    if all.len() == 1 { all.concat() } else { format!("({})", all.join(" || ")) }
}

/// `08:00-18:00` as a condition; past midnight where the end is before the beginning.
fn span(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not a span of hours: write it as \"08:00-18:00\"");
    let minutes = |text: &str| -> Option<u32> {
        let (hour, minute) = text.split_once(':')?;
        let two = |text: &str| if text.len() == 2 { text.parse::<u32>().ok() } else { None };
        let (hour, minute) = (two(hour)?, two(minute)?);
        let whole = hour * 60 + minute;
        if minute < 60 && whole <= 1440 { Some(whole) } else { None }
    };
    let (from, to) = text.split_once('-').ok_or_else(wrong)?;
    let (from, to) = (minutes(from).ok_or_else(wrong)?, minutes(to).ok_or_else(wrong)?);
    let (after, before) = (format!("context.minute_of_day >= {from}"), format!("context.minute_of_day < {to}"));
    match from.cmp(&to) {
        std::cmp::Ordering::Less => Ok(format!("({after} && {before})")),
        std::cmp::Ordering::Greater => Ok(format!("({after} || {before})")),
        std::cmp::Ordering::Equal => Err(format!("the span `{text}` is empty")),
    }
}

/// `mon`, or `mon-fri`.
fn days(text: &str) -> Result<Vec<&'static str>, String> {
    const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let wrong = || format!("`{text}` is not a weekday: write mon, tue, wed, thu, fri, sat, sun, or a span as mon-fri");
    let at = |day: &str| DAYS.iter().position(|known| *known == day).ok_or_else(wrong);
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (at(from)?, at(to)?);
    let count = (to + 7 - from) % 7 + 1;
    Ok(DAYS.iter().cycle().skip(from).take(count).copied().collect())
}

/// A text as Cedar writes it. In patterns a star stays a star.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => _ = write!(out, "\\u{{{:x}}}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
