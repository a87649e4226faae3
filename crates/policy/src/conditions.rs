//! Takes the conditions of a policy apart, in Cedar's JSON form: which of them depend only on who calls what (fixed), which
//! on the call itself (varying), and what they use.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// The attributes of `context`, each with its bit, but for `facts`.
pub(crate) const ATTRIBUTES: [(&str, u16); 8] = [
    ("time", 1),
    ("hour", 1 << 1),
    ("minute_of_day", 1 << 2),
    ("weekday", 1 << 3),
    ("region", 1 << 4),
    ("method", 1 << 5),
    ("counts", 1 << 6),
    ("path", 1 << 7),
];
pub(crate) const TIME: u16 = 1;
pub(crate) const HOUR: u16 = 1 << 1;
pub(crate) const MINUTE_OF_DAY: u16 = 1 << 2;
pub(crate) const WEEKDAY: u16 = 1 << 3;
pub(crate) const REGION: u16 = 1 << 4;
pub(crate) const METHOD: u16 = 1 << 5;
pub(crate) const COUNTS: u16 = 1 << 6;
pub(crate) const PATH: u16 = 1 << 7;

/// What an expression uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses {
    /// Bits of attributes of `context`.
    pub(crate) context: u16,
    /// Names of facts.
    pub(crate) facts: BTreeSet<String>,
    /// `context.facts` as a whole.
    pub(crate) all_facts: bool,
    /// `principal`, `action` or `resource`.
    pub(crate) entities: bool,
    /// Names of attributes of anything.
    pub(crate) attributes: BTreeSet<String>,
    /// Tags of anything.
    pub(crate) tags: bool,
}

impl Uses {
    /// Whether it depends on more than who calls what, and where.
    pub(crate) fn varies(&self) -> bool {
        self.context & !REGION != 0 || self.all_facts || !self.facts.is_empty()
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.context |= other.context;
        self.facts.extend(other.facts);
        self.all_facts |= other.all_facts;
        self.entities |= other.entities;
        self.attributes.extend(other.attributes);
        self.tags |= other.tags;
    }

    /// What an expression uses. More than it does is harmless, less is not.
    pub(crate) fn of(expression: &Value) -> Self {
        let mut uses = Self::default();
        uses.visit(expression);
        uses
    }

    fn visit(&mut self, expression: &Value) {
        let Some((operator, operand)) = expression.as_object().and_then(|node| node.iter().next()) else { return };
        match operator.as_str() {
            "Value" => {}
            "Var" => self.note(operand.as_str().unwrap_or_default(), &[]),
            "." | "has" => {
                let steps = steps(operand);
                self.attributes.extend(steps.iter().map(|step| (*step).to_owned()));
                match path(expression) {
                    Some((variable, path)) => self.note(variable, &path),
                    None => operand.get("left").into_iter().for_each(|left| self.visit(left)),
                }
            }
            "Record" => operand.as_object().into_iter().flatten().for_each(|(_, value)| self.visit(value)),
            _ => {
                self.tags |= matches!(operator.as_str(), "getTag" | "hasTag");
                match operand {
                    Value::Array(operands) => operands.iter().for_each(|operand| self.visit(operand)),
                    Value::Object(operands) => operands
                        .iter()
                        .filter(|(name, operand)| operand.is_object() && *name != "pattern")
                        .for_each(|(_, operand)| self.visit(operand)),
                    _ => {}
                }
            }
        }
    }

    fn note(&mut self, variable: &str, path: &[&str]) {
        self.attributes.extend(path.iter().map(|step| (*step).to_owned()));
        match (variable, path) {
            ("context", []) => {
                self.context = u16::MAX;
                self.all_facts = true;
            }
            ("context", ["facts"]) => self.all_facts = true,
            ("context", ["facts", fact, ..]) => _ = self.facts.insert((*fact).to_owned()),
            ("context", [attribute, ..]) => {
                let known = ATTRIBUTES.iter().find(|(name, _)| name == attribute);
                self.context |= known.map_or(u16::MAX, |(_, bit)| *bit);
            }
            _ => self.entities = true,
        }
    }
}

/// `context.facts.amount` as a variable and its path; `None` if it begins with something else.
fn path(expression: &Value) -> Option<(&str, Vec<&str>)> {
    if let Some(variable) = expression.get("Var") {
        return Some((variable.as_str()?, Vec::new()));
    }
    let operand = expression.get(".").or_else(|| expression.get("has"))?;
    let (variable, mut path) = path(operand.get("left")?)?;
    path.extend(steps(operand));
    Some((variable, path))
}

/// The attribute of `.` and `has`, or the attributes of an extended `has`.
fn steps(operand: &Value) -> Vec<&str> {
    match operand.get("attr") {
        Some(Value::Array(attributes)) => attributes.iter().filter_map(Value::as_str).collect(),
        attribute => attribute.and_then(Value::as_str).into_iter().collect(),
    }
}

/// One condition, `when` or `unless`, that is no conjunction of smaller ones.
#[derive(Clone, Debug)]
pub(crate) struct Condition {
    /// In Cedar's JSON form.
    pub(crate) json: Value,
    pub(crate) uses: Uses,
}

/// The conditions of a policy: together, in this order, they are what it says.
pub(crate) fn of(policy: &Value) -> Vec<Condition> {
    let mut out = Vec::new();
    for condition in policy.get("conditions").and_then(Value::as_array).into_iter().flatten() {
        let (Some(kind), Some(body)) = (condition.get("kind").and_then(Value::as_str), condition.get("body")) else {
            continue;
        };
        // `unless { a || b }` is `unless { a } unless { b }`.
        let operator = if kind == "when" { "&&" } else { "||" };
        cut(kind, operator, body, &mut out);
    }
    out
}

fn cut(kind: &str, operator: &str, body: &Value, out: &mut Vec<Condition>) {
    match body.get(operator) {
        Some(operand) => ["left", "right"]
            .iter()
            .filter_map(|side| operand.get(side))
            .for_each(|side| cut(kind, operator, side, out)),
        None => out.push(Condition { json: json!({ "kind": kind, "body": body }), uses: Uses::of(body) }),
    }
}

/// A policy of any scope with these conditions, in Cedar's JSON form.
pub(crate) fn policy(effect: &str, conditions: &[&Condition]) -> Value {
    let conditions: Vec<&Value> = conditions.iter().map(|condition| &condition.json).collect();
    let all = json!({ "op": "All" });
    json!({ "effect": effect, "principal": all, "action": all, "resource": all, "conditions": conditions })
}

impl Condition {
    /// The entities of `VARIABLE in [...]`, `VARIABLE in E` or `VARIABLE == E`, as type and id.
    pub(crate) fn entities(&self, variable: &str) -> Option<Vec<(String, String)>> {
        let body = self.json.get("body").filter(|_| self.is_when())?;
        let operand = body.get("in").or_else(|| body.get("=="))?;
        if operand.get("left")?.get("Var")?.as_str()? != variable {
            return None;
        }
        let right = operand.get("right")?;
        match right.get("Set").filter(|_| body.get("in").is_some()) {
            Some(set) => set.as_array()?.iter().map(entity).collect(),
            None => entity(right).map(|entity| vec![entity]),
        }
    }

    /// The patterns of `resource.name like "..."` or several of them joined by `||`, in pieces between the stars.
    pub(crate) fn patterns(&self) -> Option<Vec<Pattern>> {
        let mut out = Vec::new();
        let body = self.json.get("body").filter(|_| self.is_when())?;
        patterns(body, &mut out)?;
        Some(out)
    }

    pub(crate) fn is_when(&self) -> bool {
        self.json.get("kind").and_then(Value::as_str) == Some("when")
    }
}

fn entity(value: &Value) -> Option<(String, String)> {
    let entity = value.get("Value")?.get("__entity")?;
    Some((entity.get("type")?.as_str()?.to_owned(), entity.get("id")?.as_str()?.to_owned()))
}

fn patterns(body: &Value, out: &mut Vec<Pattern>) -> Option<()> {
    if let Some(either) = body.get("||") {
        patterns(either.get("left")?, out)?;
        return patterns(either.get("right")?, out);
    }
    let like = body.get("like")?;
    let (variable, path) = path(like.get("left")?)?;
    if variable != "resource" || path != ["name"] {
        return None;
    }
    out.push(Pattern::of(like.get("pattern")?.as_array()?)?);
    Some(())
}

/// A text with stars for any text, as `like` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern {
    /// The pieces around the stars: one more than there are stars.
    pieces: Vec<String>,
}

impl Pattern {
    /// A text with stars, each for any text.
    pub(crate) fn with_stars(text: &str) -> Self {
        Self { pieces: text.split('*').map(ToOwned::to_owned).collect() }
    }

    fn of(elements: &[Value]) -> Option<Self> {
        let mut pieces = vec![String::new()];
        for element in elements {
            match element.get("Literal") {
                Some(text) => pieces.last_mut()?.push_str(text.as_str()?),
                None if element.as_str() == Some("Wildcard") => pieces.push(String::new()),
                None => return None,
            }
        }
        Some(Self { pieces })
    }

    /// Whether a text is of this form. Linear for each piece: the first place where a piece fits is as good as any.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else {
            return self.pieces.first().is_some_and(|only| only == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
        for piece in middle {
            match rest.find(piece.as_str()) {
                Some(at) => rest = rest.get(at + piece.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last.as_str())
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;

    use super::*;

    fn conditions(text: &str) -> Vec<Condition> {
        let text = format!("permit(principal, action, resource) {text};");
        of(&Policy::parse(None, &text).expect(&text).to_json().expect("a policy has a JSON form"))
    }

    #[test]
    fn conjunctions_are_cut() {
        let found = conditions(
            "when { context.hour > 5 && (principal.user == \"a\" && true) } unless { context.facts.x || resource.name == \"t\" }",
        );
        let varies: Vec<bool> = found.iter().map(|one| one.uses.varies()).collect();
        assert_eq!(varies, [true, false, false, true, false]);
    }

    #[test]
    fn what_is_used_is_found() {
        let uses = |text| {
            conditions(text).into_iter().fold(Uses::default(), |mut all, one| {
                all.add(one.uses);
                all
            })
        };
        assert_eq!(uses("when { context.hour < 3 }").context, HOUR);
        assert_eq!(uses("when { context has region && context.region == \"eu\" }").context, REGION);
        assert_eq!(uses("when { context.counts.minute < 3 }").context, COUNTS);
        assert!(uses("when { context.facts.amount < 3 }").facts.contains("amount"));
        assert!(uses("when { context.facts has amount }").facts.contains("amount"));
        assert!(uses("when { context has facts.amount }").facts.contains("amount"));
        assert!(uses("when { context.facts == {} }").all_facts);
        assert!(uses("when { {a: context}.a.hour == 1 }").all_facts);
        assert!(uses("when { [1, context.hour].contains(2) }").varies());
        assert!(uses("when { if context.hour > 2 then true else false }").varies());
        assert!(uses("when { context.time < datetime(\"2026-01-01\") }").varies());
        assert!(uses("when { decimal(\"1.0\").lessThan(context.facts.amount) }").facts.contains("amount"));
        assert!(uses("when { {\"Var\": context.hour} == {\"Var\": 1} }").varies());
        assert!(uses("when { principal.hasTag(\"x\") }").tags);
        assert!(uses("when { {a: principal}.a.user == \"x\" }").attributes.contains("user"));
        assert!(uses("when { principal is Caller in Agent::\"a\" }").entities);
        assert!(!uses("when { resource.name like \"context*\" }").varies());
    }

    #[test]
    fn lists_and_patterns_are_seen() {
        let entities = |text: &str| conditions(text).first().and_then(|one| one.entities("resource"));
        assert_eq!(entities("when { resource in [Tool::\"r/a\", Tool::\"r/b\"] }").map(|found| found.len()), Some(2));
        assert_eq!(entities("when { resource == Tool::\"r/a\" }").map(|found| found.len()), Some(1));
        assert_eq!(entities("unless { resource == Tool::\"r/a\" }"), None);
        assert_eq!(entities("when { principal == Caller::\"a\" }"), None);
        let patterns = |text: &str| conditions(text).first().and_then(Condition::patterns);
        assert_eq!(
            patterns("when { resource.name like \"a*\" || resource.name like \"*b\" }").map(|found| found.len()),
            Some(2)
        );
        assert_eq!(patterns("when { resource.name like \"a*\" || resource.route == \"b\" }"), None);
        assert_eq!(patterns("unless { resource.name like \"a*\" }"), None);
    }

    #[test]
    fn stars_stand_for_any_text() {
        let matches = |pattern: &str, text: &str| {
            let text_of = format!("when {{ resource.name like \"{pattern}\" }}");
            conditions(&text_of).first().and_then(Condition::patterns).expect("a pattern")[0].matches(text)
        };
        for (pattern, text) in [
            ("a", "a"),
            ("a*", "a"),
            ("a*", "ab"),
            ("*", ""),
            ("*b", "ab"),
            ("a*c*e", "abcde"),
            ("a*a", "aa"),
            ("*a*", "xay"),
            (r"a\*", "a*"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a", "ab"), ("a*a", "a"), ("a*c", "acd"), ("*b*c", "cb"), ("", "a"), (r"a\*", "ab"), ("ab*bc", "abc")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
