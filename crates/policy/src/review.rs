//! Who may do what, answered from the policies alone: for people who review access.
//!
//! What depends on the call, or on what is not said of a caller, is shown as the policies say it.

use std::collections::BTreeSet;

use cedar_policy::{Context, EntityUid, Policy, PrincipalConstraint, Request, ResourceConstraint};
use serde_json::{Value, json};
use sortie_identity::{Assurance, Caller};

use crate::caller;
use crate::conditions::{self, Condition, Pattern};
use crate::decision::PolicyName;
use crate::engine::Engine;
use crate::policy::Loaded;
use crate::query::{Act, Counts, Query, Target};
use crate::schema::{Action, types};

/// Most targets of one policy that are told apart.
const MAX_REACH: usize = 4096;

/// What is known of a caller: what is left out may be anything. The issuer's word is taken for all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Its issuer and its name there, `ISSUER#SUBJECT`.
    pub caller: Option<String>,
    /// Its issuer.
    pub issuer: Option<String>,
    /// Its organisation.
    pub organization: Option<String>,
    /// Its workspace.
    pub workspace: Option<String>,
    /// The agent.
    pub agent: Option<String>,
    /// Groups that it is in; it may be in others.
    pub groups: Vec<String>,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// In every case.
    Always,
    /// If the conditions hold.
    OnlyIf,
    /// Once somebody approves, and if the conditions hold.
    AfterApproval,
    /// In no case.
    Forbidden,
}

impl Access {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnlyIf => "only if",
            Self::AfterApproval => "after approval",
            Self::Forbidden => "forbidden",
        }
    }
}

/// One policy's word on one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What it comes to, with the policies that forbid or ask beside it.
    pub access: Access,
    /// Whom the policy is for, each of these; empty for anyone.
    pub callers: Vec<String>,
    /// Of these, what is not known of the caller that was asked about.
    pub unknown_callers: Vec<String>,
    /// What it is for.
    pub reach: Reach,
    /// What has to hold, each of these, as the policy says it.
    pub conditions: Vec<String>,
    /// Policies that can forbid some of it.
    pub unless: Vec<PolicyName>,
    /// Policies that can ask first.
    pub asks: Vec<PolicyName>,
    /// The policy's name.
    pub policy: PolicyName,
    /// `file:line`.
    pub place: String,
}

/// What a policy is for; `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// The route.
    pub route: String,
    /// `tool`, `resource`, `prompt`, or `method` for all else.
    pub kind: &'static str,
    /// The name of the tool or prompt, the resource's URI, or the methods.
    pub name: String,
}

impl Reach {
    /// Whether a target lies in it.
    pub fn contains(&self, route: &str, kind: &str, name: &str) -> bool {
        self.kind == kind && fits(&self.route, route) && fits(&self.name, name)
    }

    /// Whether all of another one lies in it, as far as can be told from the texts.
    fn covers(&self, other: &Self) -> bool {
        let covers = |mine: &str, its: &str| mine == its || mine == "*" || !its.contains('*') && fits(mine, its);
        self.kind == other.kind && covers(&self.route, &other.route) && covers(&self.name, &other.name)
    }

    /// Whether they may have something in common.
    fn meets(&self, other: &Self) -> bool {
        let meets = |mine: &str, its: &str| match (mine.contains('*'), its.contains('*')) {
            (_, false) => fits(mine, its),
            (false, true) => fits(its, mine),
            (true, true) => {
                let begins = |text: &str| text.split('*').next().unwrap_or_default().to_owned();
                let ends = |text: &str| text.rsplit('*').next().unwrap_or_default().to_owned();
                let (a, b, c, d) = (begins(mine), begins(its), ends(mine), ends(its));
                (a.starts_with(&b) || b.starts_with(&a)) && (c.ends_with(&d) || d.ends_with(&c))
            }
        };
        self.kind == other.kind && meets(&self.route, &other.route) && meets(&self.name, &other.name)
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    Pattern::with_stars(pattern).matches(text)
}

impl Engine {
    /// What a caller may do: a row for each policy and target, sorted by target. What every client does first and besides
    /// is left out.
    pub fn what(&self, subject: &Subject) -> Vec<Grant> {
        let said = self.policies.iter().filter_map(|policy| Said::of(policy, self, subject));
        grants(&said.collect::<Vec<_>>(), false)
    }

    /// Who may call a tool: a row for each policy.
    pub fn who(&self, route: &str, tool: &str) -> Vec<Grant> {
        let nobody = Caller::new("", "", Assurance::Asserted, 0);
        let act = Act::Mcp { method: Action::TOOLS_CALL, target: Some(Target::Tool(tool)) };
        let (arguments, region, counts) = (None, None, Counts::default());
        let query = Query { caller: &nobody, route, act, arguments, now: 0, region, counts };
        let Ok((caller, place)) = self.caller_and_place(&query) else { return Vec::new() };
        let Ok(entities) = self.entities(&caller, &place) else { return Vec::new() };
        let request =
            Request::new(caller.uid.clone(), place.action.uid(), place.resource.clone(), Context::empty(), None);
        let Ok(request) = request else { return Vec::new() };
        let is_for = |policy: &Loaded| {
            let resource = match policy.whole.resource_constraint() {
                ResourceConstraint::Any => true,
                ResourceConstraint::In(uid) => {
                    uid == place.resource || uid.type_name() == &types().route && uid.id().unescaped() == route
                }
                ResourceConstraint::Eq(uid) => uid == place.resource,
                ResourceConstraint::Is(kind) => kind == *place.resource.type_name(),
                ResourceConstraint::IsIn(kind, uid) => {
                    kind == *place.resource.type_name()
                        && (uid == place.resource || uid.id().unescaped() == route && uid.type_name() == &types().route)
                }
            };
            let of_facts = self.declared(&policy.facts).all(|fact| fact.is_for(Some((route, tool))));
            resource && of_facts && policy.actions & place.action.bit() != 0
        };
        let reach = Reach { route: route.to_owned(), kind: "tool", name: tool.to_owned() };
        let said = self.policies.iter().filter(|policy| is_for(policy)).filter_map(|policy| {
            let mut said = Said::of(policy, self, &Subject::default())?;
            // What a policy says of nothing but the target is known.
            let of_target = said.of_target.iter().all(|condition| {
                let alone = Policy::from_json(None, conditions::policy("permit", &[condition]));
                alone.is_ok_and(|policy| self.holds(policy, &request, &entities) == Ok(true))
            });
            said.reach = vec![reach.clone()];
            of_target.then_some(said)
        });
        grants(&said.collect::<Vec<_>>(), true)
    }
}

/// All that is said, each beside what else is said of the same. `by_callers` if a row is read as one about the callers that
/// it names, so that they are no condition.
fn grants(said: &[Said<'_>], by_callers: bool) -> Vec<Grant> {
    let others: Vec<&Said<'_>> = said.iter().filter(|one| !one.policy.permits || one.policy.ask.is_some()).collect();
    let mut out = Vec::new();
    for one in said {
        for reach in &one.reach {
            let meeting = others.iter().filter(|other| other.reach.iter().any(|its| its.meets(reach)));
            let (asks, forbids): (Vec<&Said<'_>>, Vec<&Said<'_>>) =
                meeting.filter(|other| !std::ptr::eq(**other, one)).partition(|other| other.policy.permits);
            let sure = |list: &[&Said<'_>]| {
                list.iter().any(|other| other.is_sure() && other.reach.iter().any(|its| its.covers(reach)))
            };
            let access = if !one.policy.permits || sure(&forbids) {
                Access::Forbidden
            } else if one.policy.ask.is_some() || sure(&asks) {
                Access::AfterApproval
            } else if (one.is_sure() || by_callers && one.conditions.is_empty())
                && forbids.is_empty()
                && asks.is_empty()
            {
                Access::Always
            } else {
                Access::OnlyIf
            };
            let names = |list: &[&Said<'_>]| list.iter().map(|other| other.policy.name.clone()).collect();
            let (unless, asks) = if one.policy.permits { (names(&forbids), names(&asks)) } else { Default::default() };
            out.push(Grant {
                access,
                callers: one.callers.clone(),
                unknown_callers: one.unknown_callers.clone(),
                reach: reach.clone(),
                conditions: one.conditions.clone(),
                unless,
                asks,
                policy: one.policy.name.clone(),
                place: one.policy.place.clone(),
            });
        }
    }
    out.sort_by(|a, b| (&a.reach, a.access).cmp(&(&b.reach, b.access)));
    out
}

/// What one policy says.
struct Said<'a> {
    policy: &'a Loaded,
    callers: Vec<String>,
    /// Of `callers`, what is not known of the subject.
    unknown_callers: Vec<String>,
    reach: Vec<Reach>,
    conditions: Vec<String>,
    /// The conditions that look at nothing but the target.
    of_target: Vec<Condition>,
}

impl<'a> Said<'a> {
    /// `None` if it is not for this subject, or only for what every client does first.
    fn of(policy: &'a Loaded, engine: &Engine, subject: &Subject) -> Option<Self> {
        let mut said = Self {
            policy,
            callers: Vec::new(),
            unknown_callers: Vec::new(),
            reach: Vec::new(),
            conditions: Vec::new(),
            of_target: Vec::new(),
        };
        let ids = |uid: EntityUid| vec![(uid.type_name().to_string(), uid.id().unescaped().to_owned())];
        match policy.whole.principal_constraint() {
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => {}
            PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) | PrincipalConstraint::IsIn(_, uid) => {
                said.of_callers(&ids(uid), subject)?;
            }
        }
        let mut targets = Targets::of(policy);
        for condition in conditions::of(&policy.whole.to_json().ok()?) {
            let body = condition.json.get("body")?;
            let mut variables = BTreeSet::new();
            self::variables(body, &mut variables);
            let only = |name: &str| variables.len() == 1 && variables.contains(name);
            if only("principal") {
                match condition.entities("principal") {
                    Some(entities) => said.of_callers(&entities, subject)?,
                    None => {
                        let text = engine.text(&condition);
                        said.callers.push(text.clone());
                        said.unknown_callers.push(text);
                    }
                }
            } else if only("resource") {
                if !targets.take(&condition) {
                    said.conditions.push(engine.text(&condition));
                }
                said.of_target.push(condition);
            } else {
                said.conditions.push(engine.text(&condition));
            }
        }
        for fact in engine.declared(&policy.facts) {
            let (routes, tools) = fact.reach();
            targets.of_fact(routes, tools);
        }
        said.reach = targets.reach(policy.actions);
        (!said.reach.is_empty()).then_some(said)
    }

    /// It is for one of these; `None` if the subject is known to be none of them.
    fn of_callers(&mut self, entities: &[(String, String)], subject: &Subject) -> Option<()> {
        let known: Vec<Option<bool>> = entities.iter().map(|(kind, id)| subject.is(kind, id)).collect();
        if known.iter().all(|is| *is == Some(false)) {
            return None;
        }
        let names: Vec<String> = entities.iter().map(|(kind, id)| format!("{} {id}", kind.to_lowercase())).collect();
        let text = names.join(" or ");
        if !known.contains(&Some(true)) {
            self.unknown_callers.push(text.clone());
        }
        self.callers.push(text);
        Some(())
    }

    /// Whether it applies whatever the call is.
    fn is_sure(&self) -> bool {
        self.unknown_callers.is_empty() && self.conditions.is_empty()
    }
}

impl Subject {
    /// Whether it is, or lies in, an entity; `None` if that is not known.
    fn is(&self, kind: &str, id: &str) -> Option<bool> {
        let same = |value: &Option<String>| value.as_ref().map(|value| value == id);
        match kind {
            "Agent" => same(&self.agent),
            "Issuer" => same(&self.issuer),
            "Organization" => same(&self.organization),
            "Workspace" => same(&self.workspace),
            "Group" => self.groups.iter().any(|group| group == id).then_some(true),
            "Caller" => {
                let (issuer, subject) = self.caller.as_deref()?.split_once('#')?;
                Some(caller::principal(issuer, subject).id().unescaped() == id)
            }
            _ => Some(false),
        }
    }
}

/// Which targets a policy is for.
#[derive(Default)]
struct Targets {
    /// Entities, as type and id, one of which it lies in or is.
    entities: Option<Vec<(String, String)>>,
    /// It is a route itself, not what lies in it.
    itself: bool,
    kind: Option<String>,
    routes: Option<Vec<String>>,
    names: Option<Vec<String>>,
}

impl Targets {
    /// Of a policy's scope.
    fn of(policy: &Loaded) -> Self {
        let mut out = Self::default();
        let ids = |uid: &EntityUid| Some(vec![(uid.type_name().to_string(), uid.id().unescaped().to_owned())]);
        match policy.whole.resource_constraint() {
            ResourceConstraint::Any => {}
            ResourceConstraint::In(uid) => out.entities = ids(&uid),
            ResourceConstraint::Eq(uid) => (out.entities, out.itself) = (ids(&uid), true),
            ResourceConstraint::Is(kind) => out.kind = Some(kind.to_string()),
            ResourceConstraint::IsIn(kind, uid) => (out.entities, out.kind) = (ids(&uid), Some(kind.to_string())),
        }
        out
    }

    /// Takes a condition on the target, if it is a list of entities or of forms of its name.
    fn take(&mut self, condition: &Condition) -> bool {
        let Some(body) =
            condition.json.get("body").filter(|_| condition.entities("resource").is_some() || condition.is_when())
        else {
            return false;
        };
        if self.entities.is_none() && body.get("in").is_some() {
            self.entities = condition.entities("resource");
            return self.entities.is_some();
        }
        if let Some(names) = forms(body, "name").or_else(|| forms(body, "uri")).filter(|_| self.names.is_none()) {
            self.names = Some(names);
        } else if let Some(routes) = forms(body, "route").filter(|_| self.routes.is_none()) {
            self.routes = Some(routes);
        } else {
            return false;
        }
        true
    }

    /// A fact is of the tools only that it is declared for.
    fn of_fact(&mut self, routes: &[String], tools: &[String]) {
        if self.entities.is_none() {
            self.routes = self.routes.take().or((!routes.is_empty()).then(|| routes.to_vec()));
        }
        self.names = self.names.take().or((!tools.is_empty()).then(|| tools.to_vec()));
    }

    fn reach(&self, actions: u64) -> Vec<Reach> {
        let has = |name: &str| actions & Action::bits(name) != 0;
        let mut kinds = Vec::new();
        for (kind, entity, is) in [
            ("tool", "Tool", has("tools/call")),
            (
                "resource",
                "Resource",
                has("resources/read") || has("resources/subscribe") || has("resources/unsubscribe"),
            ),
            ("prompt", "Prompt", has("prompts/get")),
        ] {
            if is && self.kind.as_ref().is_none_or(|wanted| wanted == entity) {
                kinds.push((kind, entity));
            }
        }
        let mut out: Vec<Reach> = kinds.iter().flat_map(|(kind, entity)| self.of_kind(kind, entity)).collect();
        if self.kind.as_ref().is_none_or(|kind| kind == "Route") {
            let all = METHODS.iter().all(|method| has(method));
            let methods = METHODS.iter().filter(|method| has(method)).map(|method| (*method).to_owned());
            let methods: Vec<String> = if all { vec!["*".to_owned()] } else { methods.collect() };
            let route = |name: &String| {
                self.of_kind("method", "Route")
                    .into_iter()
                    .map(|reach| Reach { name: name.clone(), ..reach })
                    .collect::<Vec<_>>()
            };
            out.extend(methods.iter().flat_map(route));
        }
        out.truncate(MAX_REACH);
        out
    }

    /// The targets of one kind.
    fn of_kind(&self, kind: &'static str, entity: &str) -> Vec<Reach> {
        let any = vec!["*".to_owned()];
        let names = self.names.as_ref().unwrap_or(&any);
        let pairs: Vec<(String, Vec<String>)> = match &self.entities {
            None => self.routes.as_ref().unwrap_or(&any).iter().map(|route| (route.clone(), names.clone())).collect(),
            Some(entities) => entities
                .iter()
                .filter_map(|(of, id)| match of.as_str() {
                    "Route" if !self.itself || kind == "method" => Some((id.clone(), names.clone())),
                    of if of == entity && kind != "method" => {
                        id.split_once('/').map(|(route, name)| (route.to_owned(), vec![name.to_owned()]))
                    }
                    _ => None,
                })
                .collect(),
        };
        let reach = |(route, names): (String, Vec<String>)| {
            names.into_iter().map(move |name| Reach { route: route.clone(), kind, name })
        };
        pairs.into_iter().flat_map(reach).collect()
    }
}

/// The methods that are neither of the base nor lists nor have targets of their own.
const METHODS: [&str; 8] = [
    "completion/complete",
    "tasks/get",
    "tasks/list",
    "tasks/result",
    "tasks/update",
    "tasks/cancel",
    "logging/setLevel",
    "http",
];

/// The forms that a condition asks of an attribute of the target: of `like`, `==` and `[...].contains`, joined by `||`.
fn forms(body: &Value, attribute: &str) -> Option<Vec<String>> {
    let text = |value: &Value| value.get("Value")?.as_str().map(ToOwned::to_owned);
    let is_it = |value: &Value| {
        let access = value.get(".")?;
        (access.get("left")?.get("Var")? == "resource" && access.get("attr")? == attribute).then_some(())
    };
    if let Some(either) = body.get("||") {
        let mut all = forms(either.get("left")?, attribute)?;
        all.extend(forms(either.get("right")?, attribute)?);
        return Some(all);
    }
    if let Some(like) = body.get("like") {
        is_it(like.get("left")?)?;
        let pieces = like.get("pattern")?.as_array()?.iter();
        return Some(vec![pieces.map(|piece| piece.get("Literal").and_then(Value::as_str).unwrap_or("*")).collect()]);
    }
    if let Some(equal) = body.get("==") {
        is_it(equal.get("left")?)?;
        return Some(vec![text(equal.get("right")?)?]);
    }
    let contains = body.get("contains")?;
    is_it(contains.get("right")?)?;
    contains.get("left")?.get("Set")?.as_array()?.iter().map(text).collect()
}

/// The variables of an expression.
fn variables(expression: &Value, out: &mut BTreeSet<String>) {
    match expression {
        Value::Object(node) => {
            for (operator, operand) in node {
                match (operator.as_str(), operand) {
                    ("Value", _) => {}
                    ("Var", Value::String(name)) => _ = out.insert(name.clone()),
                    _ => variables(operand, out),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| variables(one, out)),
        _ => {}
    }
}

impl Engine {
    /// A condition in words where it is one of the short form's on arguments, else as Cedar.
    fn text(&self, condition: &Condition) -> String {
        let body = condition.json.get("body").unwrap_or(&Value::Null);
        let fact = |body: &Value| -> Option<String> {
            let access = body.get(".")?;
            let facts = access.get("left")?.get(".")?;
            let is_fact = facts.get("left")?.get("Var")? == "context" && facts.get("attr")? == "facts";
            let name = access.get("attr")?.as_str().filter(|_| is_fact)?;
            let declared = self.facts.iter().find(|declared| declared.name == name && declared.is_written())?;
            Some(declared.form.to_string())
        };
        if let Some(text) = fact(body).filter(|_| condition.is_when()) {
            return text;
        }
        if let Some(text) = body.get("if-then-else").and_then(|choice| fact(choice.get("then")?)) {
            return format!("{text}, if it is there");
        }
        let shown = json!({ "kind": "when", "body": body });
        let shown = Condition { json: shown, uses: condition.uses.clone() };
        let text = Policy::from_json(None, conditions::policy("permit", &[&shown])).ok().and_then(|one| one.to_cedar());
        let text = text.unwrap_or_default();
        let inner = text.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |(inner, _)| inner);
        let inner = inner.split_whitespace().collect::<Vec<_>>().join(" ");
        if condition.is_when() { inner } else { format!("not ({inner})") }
    }
}
