//! One policy, taken apart for quick decisions.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::OnceLock;

use cedar_policy::{
    ActionConstraint, Effect, EntityTypeName, EntityUid, Policy, PolicyId, PrincipalConstraint, ResourceConstraint,
};
use miette::Diagnostic as _;

use crate::conditions::{self, Condition, Pattern, REGION, Uses};
use crate::decision::PolicyName;
use crate::recorded::Part;
use crate::schema::{self, Action, types};
use crate::statements::Statement;

/// Most bytes of a policy's name, and of what it says.
const MAX_TEXT: usize = 1024;

/// The text of one policy and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) text: String,
    /// The file as given.
    pub(crate) file: String,
    /// From 1.
    pub(crate) line: usize,
    /// Whether it was written from the short form, so that lines in it are none of the file.
    pub(crate) written: bool,
}

impl Source {
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// A policy.
pub(crate) struct Loaded {
    pub(crate) name: PolicyName,
    pub(crate) place: String,
    /// It has an `@id`.
    pub(crate) named: bool,
    pub(crate) permits: bool,
    /// What an approver is to know, of a permit that asks.
    pub(crate) ask: Option<String>,
    /// What the policy says for itself.
    pub(crate) reason: Option<String>,
    /// The bits of the actions in its scope.
    pub(crate) actions: u64,
    /// One of these is the caller or above it; `None` for any.
    pub(crate) principals: Option<Vec<EntityUid>>,
    /// One of these is the resource or its route; `None` for any.
    pub(crate) resources: Option<Vec<EntityUid>>,
    pub(crate) resource_type: Option<EntityTypeName>,
    /// The resource's name has one of these forms; `None` for any. Only a quick way to leave policies out.
    pub(crate) patterns: Option<Vec<Pattern>>,
    /// The conditions that depend on who calls what, with any scope; `None` if there are none.
    pub(crate) fixed: Option<Policy>,
    pub(crate) fixed_uses: Uses,
    /// The conditions that depend on the call, with any scope; `None` if there are none.
    pub(crate) varying: Option<Policy>,
    pub(crate) varying_uses: Uses,
    /// The same, taken apart; made when it is asked for.
    pub(crate) varying_parts: OnceLock<Vec<Part>>,
    /// Indexes of the facts that it uses; filled in when the facts are known.
    pub(crate) facts: Vec<usize>,
    /// The whole policy.
    pub(crate) whole: Policy,
    pub(crate) text: String,
    /// Annotations that mean nothing here.
    pub(crate) unknown: Vec<String>,
}

impl Loaded {
    /// Reads the policy with this index.
    pub(crate) fn parse(index: usize, source: &Source) -> Result<Self, String> {
        let statement = Statement { text: &source.text, line: source.line };
        statement.is_shallow().map_err(|why| format!("{}: {why}", source.place()))?;
        let id = PolicyId::new(index.to_string());
        let whole = Policy::parse(Some(id.clone()), &source.text).map_err(|errors| {
            let wrong = errors.iter().next();
            let at = wrong.and_then(|error| error.labels()?.next().map(|label| label.offset()));
            let line = if source.written { 0 } else { lines_before(&source.text, at.unwrap_or(0)) };
            let said = wrong.map_or_else(|| errors.to_string(), ToString::to_string);
            let help = wrong.and_then(|error| error.help().map(|help| format!(" ({help})"))).unwrap_or_default();
            format!("{}:{}: {said}{help}", source.file, source.line + line)
        })?;
        let wrong = |what: &str| Err(format!("{}: {what}", source.place()));
        let text = |key| whole.annotation(key).map(ToOwned::to_owned);
        let (name, ask, reason) = (text("id"), text("ask"), text("reason"));
        let permits = whole.effect() == Effect::Permit;
        if [&name, &ask, &reason].iter().any(|text| text.as_ref().is_some_and(|text| text.len() > MAX_TEXT)) {
            return wrong("an annotation is longer than 1024 bytes");
        }
        if ask.is_some() && !permits {
            return wrong("@ask goes with permit: what is forbidden is not asked for");
        }
        if name.as_ref().is_some_and(|name| name.trim().is_empty() || name.chars().any(char::is_control)) {
            return wrong("an @id is a text without control characters that is not empty");
        }
        let named = name.is_some();
        let json = whole.to_json().map_err(|error| format!("{}: {error}", source.place()))?;
        let mut conditions = conditions::of(&json);
        let scope = Scope::of(&whole, &mut conditions);
        let (varying, fixed): (Vec<&Condition>, Vec<&Condition>) =
            conditions.iter().partition(|condition| condition.uses.varies());
        let effect = if permits { "permit" } else { "forbid" };
        let part = |of: &[&Condition]| -> Result<Option<Policy>, String> {
            if of.is_empty() {
                return Ok(None);
            }
            let policy = Policy::from_json(Some(id.clone()), conditions::policy(effect, of));
            policy.map(Some).map_err(|error| format!("{}: {error}", source.place()))
        };
        let uses = |of: &[&Condition]| {
            of.iter().fold(Uses::default(), |mut all, condition| {
                all.add(condition.uses.clone());
                all
            })
        };
        let mut known: BTreeSet<&str> = ["id", "ask", "reason"].into();
        let unknown = whole.annotations().map(|(key, _)| key).filter(|key| known.insert(key)).map(ToOwned::to_owned);
        Ok(Self {
            name: PolicyName(name.unwrap_or_else(|| source.place()).into()),
            place: source.place(),
            named,
            permits,
            ask,
            reason,
            patterns: fixed.iter().find_map(|condition| condition.patterns()),
            fixed: part(&fixed)?,
            fixed_uses: uses(&fixed),
            varying: part(&varying)?,
            varying_uses: uses(&varying),
            varying_parts: OnceLock::new(),
            actions: scope.actions,
            principals: scope.principals,
            resources: scope.resources,
            resource_type: scope.resource_type,
            facts: Vec::new(),
            unknown: unknown.collect(),
            whole: whole.clone(),
            text: source.text.clone(),
        })
    }

    /// Whether its fixed conditions look at the gateway's region.
    pub(crate) fn looks_at_region(&self) -> bool {
        (self.fixed_uses.context | self.varying_uses.context) & REGION != 0
    }

    /// What it uses at all.
    pub(crate) fn uses(&self) -> Uses {
        let mut uses = self.fixed_uses.clone();
        uses.add(self.varying_uses.clone());
        uses
    }
}

fn lines_before(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// Whom and what a policy is for, as far as an index can tell.
struct Scope {
    actions: u64,
    principals: Option<Vec<EntityUid>>,
    resources: Option<Vec<EntityUid>>,
    resource_type: Option<EntityTypeName>,
}

impl Scope {
    /// The scope of a policy. Conditions that say the same as the scope could are taken out of the list and into it.
    fn of(policy: &Policy, conditions: &mut Vec<Condition>) -> Self {
        let only_callers = |kind: &EntityTypeName| if *kind == types().caller { None } else { Some(Vec::new()) };
        let mut principals = match policy.principal_constraint() {
            PrincipalConstraint::Any => None,
            PrincipalConstraint::In(uid) | PrincipalConstraint::Eq(uid) => Some(vec![uid]),
            PrincipalConstraint::Is(kind) => only_callers(&kind),
            PrincipalConstraint::IsIn(kind, uid) => only_callers(&kind).or(Some(vec![uid])),
        };
        let (mut resources, resource_type) = match policy.resource_constraint() {
            ResourceConstraint::Any => (None, None),
            ResourceConstraint::In(uid) => (Some(vec![uid]), None),
            // The index finds what lies in a route, too; its type tells a route from that.
            ResourceConstraint::Eq(uid) => (Some(vec![uid.clone()]), Some(uid.type_name().clone())),
            ResourceConstraint::Is(kind) => (None, Some(kind)),
            ResourceConstraint::IsIn(kind, uid) => (Some(vec![uid]), Some(kind)),
        };
        if principals.is_none() {
            principals = taken(conditions, "principal");
        }
        if resources.is_none() {
            resources = taken(conditions, "resource");
        }
        let bits = |uid: &EntityUid| Action::bits(uid.id().unescaped());
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => u64::MAX,
            ActionConstraint::Eq(uid) => Action::find(uid.id().unescaped()).map_or(0, Action::bit),
            ActionConstraint::In(uids) => uids.iter().map(bits).fold(0, |all, bit| all | bit),
        };
        Self { actions, principals, resources, resource_type }
    }
}

/// The entities of the condition that names the narrowest of them for a variable, taken out of the list.
fn taken(conditions: &mut Vec<Condition>, variable: &str) -> Option<Vec<EntityUid>> {
    // `resource == Route::"r"` does not hold of what lies in the route, `resource in Route::"r"` does; the index knows
    // only the latter. Of entities that contain nothing both say the same.
    let leaf = |kind: &str| matches!(kind, "Caller" | "Tool" | "Prompt" | "Resource");
    let rank = |kind: &str| match kind {
        "Caller" | "Tool" | "Prompt" | "Resource" => 0,
        "Agent" => 1,
        "Group" | "Workspace" => 2,
        "Organization" => 3,
        _ => 4,
    };
    let best = conditions.iter().enumerate().filter_map(|(at, condition)| {
        let entities = condition.entities(variable)?;
        let equal = condition.json.get("body").is_some_and(|body| body.get("==").is_some());
        if equal && !entities.iter().all(|(kind, _)| leaf(kind)) {
            return None;
        }
        let rank = entities.iter().map(|(kind, _)| rank(kind)).max()?;
        Some((rank, at, entities))
    });
    let (_, at, entities) = best.min_by_key(|(rank, at, _)| (*rank, *at))?;
    let uids = entities.iter().map(|(kind, id)| EntityTypeName::from_str(kind).ok().map(|kind| schema::uid(&kind, id)));
    let uids = uids.collect::<Option<Vec<_>>>()?;
    conditions.remove(at);
    Some(uids)
}
