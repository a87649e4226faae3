//! Why a decision is as it is, and what policies can never do.

use cedar_policy::{Context, PolicySet, Request, ValidationMode, Validator};

use crate::decision::{Decision, PolicyName};
use crate::engine::Engine;
use crate::file::said;
use crate::query::Query;
use crate::slice::Outcome;

/// A decision and the way to it.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What is decided.
    pub decision: Decision,
    /// How many policies there are.
    pub policies: usize,
    /// Those whose scope fits, in order.
    pub looked_at: Vec<Looked>,
    /// Whether a list may show it.
    pub listed: bool,
}

/// A policy that was looked at.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Its name.
    pub name: PolicyName,
    /// `file:line`.
    pub place: String,
    /// Whether it permits; else it forbids.
    pub permits: bool,
    /// Whether it asks first.
    pub asks: bool,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does not apply to this caller, action and target.
    DoesNotApply,
    /// It applies, and its conditions hold.
    Holds,
    /// It applies, and its conditions do not hold.
    DoesNotHold,
    /// It cannot be told: a fact is missing, or it cannot be evaluated.
    Unknown,
    /// Others decide, whatever it says.
    NotNeeded,
}

impl Verdict {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DoesNotApply => "does not apply",
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::Unknown => "cannot be told",
            Self::NotNeeded => "is not needed",
        }
    }
}

/// A policy as it is loaded.
#[derive(Clone, Debug)]
pub struct PolicyText<'a> {
    /// Its name.
    pub name: &'a PolicyName,
    /// `file:line`.
    pub place: &'a str,
    /// As Cedar.
    pub cedar: &'a str,
}

impl Engine {
    /// Decides, and says which policies were looked at and what became of them.
    pub fn explain(&self, query: &Query<'_>) -> Explanation {
        let candidates = self.candidates(query).unwrap_or_default();
        let slice = self.slice(query).ok();
        let looked = |at: usize| {
            let policy = self.policy(at);
            let verdict = match &slice {
                None => Verdict::Unknown,
                Some(slice) if !slice.applying.contains(&at) => Verdict::DoesNotApply,
                Some(slice) => match &policy.varying {
                    None => Verdict::Holds,
                    Some(varying) => self.verdict(varying.clone(), &slice.outcome, query),
                },
            };
            Looked {
                name: policy.name.clone(),
                place: policy.place.clone(),
                permits: policy.permits,
                asks: policy.ask.is_some(),
                verdict,
            }
        };
        Explanation {
            decision: self.decide(query),
            policies: self.policies.len(),
            looked_at: candidates.into_iter().map(looked).collect(),
            listed: self.may_see(query),
        }
    }

    fn verdict(&self, varying: cedar_policy::Policy, outcome: &Outcome, query: &Query<'_>) -> Verdict {
        let Outcome::Open(open) = outcome else { return Verdict::NotNeeded };
        let mut facts = Vec::new();
        for at in &open.facts {
            let Some(declared) = self.facts.get(*at) else { return Verdict::Unknown };
            match declared.matcher.fact(query.arguments) {
                Ok(fact) => facts.extend(fact.map(|fact| (declared.name.clone(), fact))),
                Err(_) => return Verdict::Unknown,
            }
        }
        let request = self.request(open.context, &open.request, query, &facts);
        match request.map(|request| self.holds(varying, &request, &open.entities)) {
            Ok(Ok(true)) => Verdict::Holds,
            Ok(Ok(false)) => Verdict::DoesNotHold,
            _ => Verdict::Unknown,
        }
    }

    /// All policies as Cedar, those of the short form among them.
    pub fn texts(&self) -> impl Iterator<Item = PolicyText<'_>> {
        self.policies.iter().map(|policy| PolicyText { name: &policy.name, place: &policy.place, cedar: &policy.text })
    }

    /// The schema that the policies were checked against, with their facts.
    pub fn schema(&self) -> &str {
        &self.schema_text
    }

    /// What is allowed to be so and surely is not meant: policies that can never apply, facts that none uses, names that
    /// look like others. One sentence each, `file:line: ...`.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.policies.is_empty() {
            out.push("there are no policies, so everything is denied".to_owned());
        }
        if let Ok(set) = PolicySet::from_policies(self.policies.iter().map(|policy| policy.whole.clone())) {
            let result = Validator::new(self.schema.clone()).validate(&set, ValidationMode::Strict);
            for warning in result.validation_warnings() {
                let at: Option<usize> = warning.policy_id().to_string().parse().ok();
                let place = at.and_then(|at| self.policies.get(at)).map_or("", |policy| policy.place.as_str());
                out.push(format!("{place}: {}", said(warning)));
            }
        }
        for policy in &self.policies {
            if policy.actions == 0 {
                out.push(format!("{}: it can never apply: its actions are none that a gateway knows", policy.place));
            }
            for key in &policy.unknown {
                out.push(format!(
                    "{}: the annotation @{key} means nothing here: there are id, ask and reason",
                    policy.place
                ));
            }
        }
        for (at, fact) in self.facts.iter().enumerate() {
            if !self.policies.iter().any(|policy| policy.facts.contains(&at)) {
                out.push(format!("{}: no policy uses the fact `{}`", fact.place, fact.name));
            }
        }
        out.sort_unstable();
        out
    }

    /// The routes that policies name, each with the first place: `(route, file:line)`.
    pub fn routes(&self) -> Vec<(String, String)> {
        let mut out: Vec<(String, String)> = Vec::new();
        for policy in &self.policies {
            for uid in policy.whole.entity_literals() {
                let id = uid.id().unescaped();
                let route = match uid.type_name().to_string().as_str() {
                    "Route" => id,
                    "Tool" | "Prompt" | "Resource" => id.split_once('/').map_or(id, |(route, _)| route),
                    _ => continue,
                };
                if !out.iter().any(|(known, _)| known == route) {
                    out.push((route.to_owned(), policy.place.clone()));
                }
            }
        }
        out.sort_unstable();
        out
    }

    /// The decision of Cedar alone over all policies, without index and memory: what [`Engine::decide`] must come to,
    /// where nothing fails. For tests and for comparing speeds.
    #[doc(hidden)]
    pub fn decide_plainly(&self, query: &Query<'_>) -> Result<(crate::Effect, Vec<PolicyName>), String> {
        let (base, entities) = self.whole(query)?;
        let mut facts = Vec::new();
        for declared in &self.facts {
            if let Ok(Some(fact)) = declared.matcher.fact(query.arguments) {
                facts.push((declared.name.clone(), fact));
            }
        }
        let request: Request = self.request(u16::MAX, &base, query, &facts)?;
        let response = self.authorizer().is_authorized(&request, self.plain_set(), &entities);
        if response.diagnostics().errors().next().is_some() {
            return Err("a policy fails".to_owned());
        }
        let mut by: Vec<usize> = response.diagnostics().reason().filter_map(|id| id.to_string().parse().ok()).collect();
        by.sort_unstable();
        let allowed = response.decision() == cedar_policy::Decision::Allow;
        let asking: Vec<usize> = by.iter().copied().filter(|at| self.policy(*at).ask.is_some()).collect();
        let (effect, by) = match (allowed, asking.is_empty()) {
            (false, _) => (crate::Effect::Deny, by),
            (true, true) => (crate::Effect::Allow, by),
            (true, false) => (crate::Effect::Ask, asking),
        };
        Ok((effect, by.into_iter().map(|at| self.policy(at).name.clone()).collect()))
    }

    fn whole(&self, query: &Query<'_>) -> Result<(Request, cedar_policy::Entities), String> {
        let (caller, place) = self.caller_and_place(query)?;
        let entities = self.entities(&caller, &place)?;
        let (principal, action, resource) = (caller.uid.clone(), place.action.uid(), place.resource.clone());
        let request = Request::new(principal, action, resource, Context::empty(), None);
        Ok((request.map_err(|error| error.to_string())?, entities))
    }
}
