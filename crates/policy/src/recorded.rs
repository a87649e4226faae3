//! Decides about calls of the past, whose arguments are not there: on what was recorded of them.
//!
//! The answer is that of [`Engine::decide`] where it is the same for everything that the missing arguments and counts
//! could have been; else it is not known.

use std::collections::BTreeSet;

use cedar_policy::{Entities, Policy, Request};
use serde_json::{Value, json};

use crate::conditions::{self, Uses};
use crate::decision::{Decision, Fact, PolicyName};
use crate::engine::{Engine, Taken, hides};
use crate::facts::{FactForm, Found, Kind, Recalled};
use crate::file::Declared;
use crate::policy::Loaded;
use crate::query::{Counts, Query};
use crate::slice::{Open, Outcome, Slice};

/// What was recorded of a call beside who did what when.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Facts that were looked for in the arguments, and what was found.
    pub facts: Vec<(FactForm, Found)>,
    /// There were no arguments, or none with a member.
    pub no_arguments: bool,
    /// How often the caller had done the same.
    pub counts: Option<Counts>,
}

/// The answer about a call of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This, whatever was not recorded.
    Decided(Decision),
    /// It depends on what was not recorded.
    Unknown(Unknown),
}

/// What would have to be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// What was not recorded, in words: arguments, counts.
    pub needs: Vec<String>,
    /// The policies that look at it.
    pub policies: Vec<PolicyName>,
}

impl Engine {
    /// Decides about a call of the past. Of the query, arguments and counts are not looked at.
    pub fn replay(&self, query: &Query<'_>, recorded: &Recorded) -> Answer {
        let slice = match self.slice(query) {
            Ok(slice) => slice,
            Err(reason) => return Answer::Decided(Decision::deny(Vec::new(), reason)),
        };
        match self.replay_by(&slice, query, recorded) {
            Answer::Decided(decision) => Answer::Decided(Decision { hidden: hides(&slice, query), ..decision }),
            unknown @ Answer::Unknown(_) => unknown,
        }
    }

    fn replay_by(&self, slice: &Slice, query: &Query<'_>, recorded: &Recorded) -> Answer {
        let open = match &slice.outcome {
            Outcome::Decided(decision) => return Answer::Decided(decision.clone()),
            Outcome::Open(open) => open,
        };
        let mut taken = Taken { facts: Vec::new(), faults: Vec::new() };
        let mut missing = Missing { counts: recorded.counts.is_none(), ..Missing::default() };
        for at in &open.facts {
            let Some(declared) = self.facts.get(*at) else { continue };
            match recall(declared, recorded) {
                Recalled::Known(found) => taken.add(*at, declared, found),
                Recalled::Unknown => missing.add(*at, declared),
            }
        }
        let query = Query { arguments: None, counts: recorded.counts.unwrap_or_default(), ..*query };
        missing.counts &= open.context & conditions::COUNTS != 0;
        if !taken.faults.is_empty() || !missing.counts && missing.facts.is_empty() {
            return Answer::Decided(self.decide_on(slice, open, &query, taken).0);
        }
        self.weigh(open, &query, &taken.facts, &missing)
    }

    /// Decides where something is missing: by what each policy comes to, whatever it is.
    fn weigh(&self, open: &Open, query: &Query<'_>, facts: &[(String, Fact)], missing: &Missing) -> Answer {
        let request = match self.request(open.context, &open.request, query, facts) {
            Ok(request) => request,
            Err(reason) => return Answer::Decided(Decision::deny(Vec::new(), reason)),
        };
        let mut weighing =
            Weighing { engine: self, missing, request, entities: &open.entities, may_fail: missing.may_fail };
        let (mut holding, mut open_still) = (open.fixed.clone(), Vec::new());
        for at in &open.set.0 {
            match weighing.policy(self.policy(*at)) {
                Ok(Tri::Yes) => holding.push(*at),
                Ok(Tri::No) => {}
                Ok(Tri::Maybe) => open_still.push(*at),
                Err(Broken) => return Answer::Decided(self.broken(*at)),
            }
        }
        holding.sort_unstable();
        let (permitting, forbidding): (Vec<usize>, Vec<usize>) =
            holding.iter().partition(|at| self.policy(**at).permits);
        let asks = |list: &[usize]| list.iter().any(|at| self.policy(*at).ask.is_some());
        let permits = |list: &[usize]| list.iter().any(|at| self.policy(*at).permits);
        if !forbidding.is_empty() {
            return Answer::Decided(self.forbidden(&forbidding));
        }
        if permitting.is_empty() && !permits(&open_still) {
            return Answer::Decided(self.permitted(&[]));
        }
        let could_deny =
            weighing.may_fail || permitting.is_empty() || open_still.iter().any(|at| !self.policy(*at).permits);
        if could_deny || (asks(&open_still) && !asks(&permitting)) {
            let of = |at: &&usize| open_still.contains(at) || missing.is_used(self.policy(**at));
            let policies = open.set.0.iter().filter(of).map(|at| self.policy(*at).name.clone()).collect();
            return Answer::Unknown(Unknown { needs: missing.phrases(), policies });
        }
        Answer::Decided(self.permitted(&permitting))
    }
}

fn recall(declared: &Declared, recorded: &Recorded) -> Recalled {
    if recorded.no_arguments {
        return Recalled::Known(declared.matcher.fact(None));
    }
    declared.matcher.recall(&declared.form, &recorded.facts)
}

/// What was not recorded of what policies look at.
#[derive(Default)]
struct Missing {
    /// Indexes of facts.
    facts: Vec<usize>,
    names: BTreeSet<String>,
    /// Of these facts, those that may be absent.
    optional: BTreeSet<String>,
    phrases: Vec<String>,
    counts: bool,
    /// One of the facts could have been none, which denies.
    may_fail: bool,
}

impl Missing {
    fn add(&mut self, at: usize, declared: &Declared) {
        self.facts.push(at);
        self.names.insert(declared.name.clone());
        self.phrases.push(declared.phrase());
        self.may_fail |= declared.matcher.kind() != Kind::Exists;
        if declared.matcher.optional {
            self.optional.insert(declared.name.clone());
        }
    }

    /// Whether an expression looks at something that is missing.
    fn is_in(&self, uses: &Uses) -> bool {
        self.counts && uses.context & conditions::COUNTS != 0 || uses.facts.iter().any(|fact| self.names.contains(fact))
    }

    fn is_used(&self, policy: &Loaded) -> bool {
        self.is_in(&policy.varying_uses)
    }

    fn phrases(&self) -> Vec<String> {
        let counts = self.counts.then(|| "how often the caller had called".to_owned());
        let mut phrases: Vec<String> = self.phrases.iter().cloned().chain(counts).collect();
        phrases.sort_unstable();
        phrases.dedup();
        phrases
    }
}

/// What an expression comes to, whatever is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tri {
    No,
    Yes,
    Maybe,
}

impl From<bool> for Tri {
    fn from(held: bool) -> Self {
        if held { Self::Yes } else { Self::No }
    }
}

/// The policy fails on this call, whatever is missing.
struct Broken;

struct Weighing<'a> {
    engine: &'a Engine,
    missing: &'a Missing,
    request: Request,
    entities: &'a Entities,
    /// Something could fail, which denies.
    may_fail: bool,
}

impl Weighing<'_> {
    /// What the varying conditions of a policy come to.
    fn policy(&mut self, policy: &Loaded) -> Result<Tri, Broken> {
        if !self.missing.is_used(policy) {
            let Some(varying) = &policy.varying else { return Ok(Tri::Yes) };
            return self.holds(varying);
        }
        let parts = policy.varying_parts.get_or_init(|| Part::of(policy));
        let mut parts = parts.iter();
        self.all(&mut parts)
    }

    fn holds(&self, policy: &Policy) -> Result<Tri, Broken> {
        self.engine.holds(policy.clone(), &self.request, self.entities).map(Tri::from).map_err(|()| Broken)
    }

    /// All of these, looked at in this order until one does not hold.
    fn all(&mut self, parts: &mut dyn Iterator<Item = &Part>) -> Result<Tri, Broken> {
        let Some(first) = parts.next() else { return Ok(Tri::Yes) };
        match self.part(first)? {
            Tri::No => Ok(Tri::No),
            Tri::Yes => self.all(parts),
            Tri::Maybe => {
                let rest = self.all(parts);
                Ok(if self.perhaps(rest) == Tri::No { Tri::No } else { Tri::Maybe })
            }
        }
    }

    /// What something comes to that may never be looked at.
    fn perhaps(&mut self, come: Result<Tri, Broken>) -> Tri {
        self.may_fail |= come.is_err();
        come.unwrap_or(Tri::Maybe)
    }

    fn part(&mut self, part: &Part) -> Result<Tri, Broken> {
        match part {
            Part::Leaf { policy, uses, .. } if !self.missing.is_in(uses) => self.holds(policy),
            Part::Leaf { fails, has, .. } => {
                self.may_fail |= fails;
                let is_there = has.as_ref().is_some_and(|fact| !self.missing.optional.contains(fact));
                Ok(if is_there { Tri::Yes } else { Tri::Maybe })
            }
            Part::All(parts) => self.all(&mut parts.iter()),
            Part::Not(inner) => Ok(match self.part(inner)? {
                Tri::No => Tri::Yes,
                Tri::Yes => Tri::No,
                Tri::Maybe => Tri::Maybe,
            }),
            Part::If(condition, then, otherwise) => match self.part(condition)? {
                Tri::Yes => self.part(then),
                Tri::No => self.part(otherwise),
                Tri::Maybe => {
                    let (then, otherwise) = (self.part(then), self.part(otherwise));
                    let (then, otherwise) = (self.perhaps(then), self.perhaps(otherwise));
                    Ok(if then == otherwise { then } else { Tri::Maybe })
                }
            },
        }
    }
}

/// A condition, taken apart as far as its parts are true or false by themselves.
pub(crate) enum Part {
    Leaf {
        /// Permits where it holds.
        policy: Box<Policy>,
        uses: Uses,
        /// Arithmetic in it can overflow.
        fails: bool,
        /// It asks only whether this fact is there.
        has: Option<String>,
    },
    All(Vec<Part>),
    Not(Box<Part>),
    If(Box<Part>, Box<Part>, Box<Part>),
}

impl Part {
    /// The varying conditions of a policy, in their order.
    fn of(policy: &Loaded) -> Vec<Self> {
        let json = policy.whole.to_json().unwrap_or_default();
        let varying = conditions::of(&json).into_iter().filter(|condition| condition.uses.varies());
        varying
            .filter_map(|condition| {
                let body = Self::from_json(condition.json.get("body")?)?;
                let unless = condition.json.get("kind").and_then(Value::as_str) == Some("unless");
                Some(if unless { Self::Not(Box::new(body)) } else { body })
            })
            .collect()
    }

    /// `None` for what no policy of Cedar is.
    fn from_json(body: &Value) -> Option<Self> {
        let (operator, operand) = body.as_object()?.iter().next()?;
        let part = |name: &str| operand.get(name).and_then(Self::from_json);
        let boxed = |name: &str| part(name).map(Box::new);
        match operator.as_str() {
            "&&" => Some(Self::All(vec![part("left")?, part("right")?])),
            // By De Morgan.
            "||" => {
                let not = |name: &str| boxed(name).map(Self::Not);
                Some(Self::Not(Box::new(Self::All(vec![not("left")?, not("right")?]))))
            }
            "!" => Some(Self::Not(boxed("arg")?)),
            "if-then-else" => Some(Self::If(boxed("if")?, boxed("then")?, boxed("else")?)),
            _ => {
                let uses = Uses::of(body);
                let condition = conditions::Condition { json: json!({ "kind": "when", "body": body }), uses };
                let policy = Policy::from_json(None, conditions::policy("permit", &[&condition])).ok()?;
                let has = if operator == "has" { condition.uses.facts.first().cloned() } else { None };
                Some(Self::Leaf { policy: Box::new(policy), fails: computes(body), has, uses: condition.uses })
            }
        }
    }
}

/// Whether an expression computes.
fn computes(expression: &Value) -> bool {
    match expression {
        Value::Object(node) => node.iter().any(|(operator, operand)| {
            matches!(operator.as_str(), "+" | "-" | "*" | "neg" | "offset" | "durationSince") || computes(operand)
        }),
        Value::Array(all) => all.iter().any(computes),
        _ => false,
    }
}
