//! What a fact is, whatever it is called, and what one that was recorded says of another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sortie_ids::Digest;

use super::FactFault;
use super::matcher::{Kind, Matcher, Spec};
use crate::decision::Fact;
use crate::moment;

/// Longest text of operators that a form repeats, in bytes. Of longer ones it names the SHA-256.
const MAX_OPERATORS: usize = 512;

/// What a fact is: where it lies in the arguments, its type, and what is asked of it; a JSON object such as
/// `{"pointer": "/amount", "type": "decimal", "max": 100}`, as policy files write it. Two facts of one form have the same
/// value, whatever each policy file calls them. Long operators are there as `sha256` only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FactForm(Arc<Value>);

impl FactForm {
    pub(crate) fn of(spec: &Spec, kind: Kind) -> Self {
        let operators = spec.operators();
        let text = serde_json::to_string(&operators).unwrap_or_default();
        let mut form = serde_json::Map::new();
        form.insert("pointer".to_owned(), json!(spec.pointer));
        form.insert("type".to_owned(), json!(kind.to_string()));
        if text.len() > MAX_OPERATORS {
            form.insert("sha256".to_owned(), json!(Digest::of(text.as_bytes()).to_string()));
        } else {
            form.extend(operators.into_iter().map(|(name, value)| (name.to_owned(), value)));
        }
        Self(Arc::new(Value::Object(form)))
    }

    /// As JSON.
    pub fn as_json(&self) -> &Value {
        &self.0
    }

    /// Where it lies in the arguments: a JSON pointer.
    pub fn pointer(&self) -> &str {
        self.0.get("pointer").and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn kind(&self) -> Option<Kind> {
        Kind::named(self.0.get("type")?.as_str()?)
    }

    /// Whether it is the value itself, not whether something holds of it.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.as_object().is_some_and(|form| form.len() == 2)
    }

    /// Whether its operators are written out.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.get("sha256").is_none()
    }
}

/// `/amount: decimal, max 100`.
impl fmt::Display for FactForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let member = |name: &str| self.0.get(name).and_then(Value::as_str).unwrap_or_default();
        write!(f, "{}: {}", member("pointer"), member("type"))?;
        let members = self.0.as_object().into_iter().flatten();
        for (name, value) in members.filter(|(name, _)| !matches!(name.as_str(), "pointer" | "type")) {
            write!(f, ", {name} {value}")?;
        }
        Ok(())
    }
}

impl Spec {
    /// What is asked of the value. What says the same is written in the same way.
    fn operators(&self) -> BTreeMap<&'static str, Value> {
        let mut out = BTreeMap::new();
        let mut add = |name, value: Option<Value>| out.extend(value.map(|value| (name, value)));
        let one_of = self.equals.as_ref().map(|value| json!([value])).or(self.one_of.as_ref().map(|all| json!(all)));
        add("one_of", one_of);
        add("each", self.each.as_ref().map(|each| json!(each)));
        add("glob", self.glob.as_ref().map(|globs| json!(globs.as_slice())));
        add("regex", self.regex.as_ref().map(|regex| json!(regex)));
        add("net", self.net.as_ref().map(|nets| json!(nets.as_slice())));
        add("min", self.min.as_ref().map(|min| json!(min)));
        add("max", self.max.as_ref().map(|max| json!(max)));
        out
    }
}

/// What was found where a fact was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This.
    Fact(Fact),
    /// Nothing.
    Absent,
    /// What is no such fact; the [code](FactFault::code) of the fault.
    Fault(String),
}

/// What is known of a fact of a call whose arguments are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recalled {
    /// What [`Matcher::fact`] would have come to.
    Known(Result<Option<Fact>, FactFault>),
    /// It could have come to several things.
    Unknown,
}

/// Stands for a fault of which only the code was recorded.
const RECORDED: FactFault = FactFault::Ambiguous("it could not be taken from the arguments");

impl Matcher {
    /// What this fact was, by what other facts of the same arguments were.
    pub(crate) fn recall(&self, form: &FactForm, recorded: &[(FactForm, Found)]) -> Recalled {
        if let Some(known) = recorded.iter().find(|(other, _)| other == form).and_then(|(_, found)| self.same(found)) {
            return Recalled::Known(known);
        }
        let beside = recorded.iter().filter(|(other, _)| other.pointer() == form.pointer());
        beside.filter_map(|(other, found)| self.other(other, found)).next().map_or(Recalled::Unknown, Recalled::Known)
    }

    /// By a fact of the same form.
    fn same(&self, found: &Found) -> Option<Result<Option<Fact>, FactFault>> {
        match found {
            Found::Fact(fact) => self.is_of(fact).then(|| Ok(Some(fact.clone()))),
            Found::Absent => Some(self.absent()),
            Found::Fault(_) => Some(Err(RECORDED)),
        }
    }

    /// By a fact of another form at the same place.
    fn other(&self, form: &FactForm, found: &Found) -> Option<Result<Option<Fact>, FactFault>> {
        match (form.kind()?, found) {
            (_, Found::Absent) | (Kind::Exists, Found::Fact(Fact::Bool(false))) => Some(self.absent()),
            (_, Found::Fault(code)) if code == FactFault::Twice.code() || code == FactFault::NotJson.code() => {
                Some(Err(RECORDED))
            }
            // There was something.
            (_, _) if self.kind() == Kind::Exists => Some(Ok(Some(Fact::Bool(true)))),
            (kind, Found::Fact(fact)) if form.is_plain() => self.rejudge(kind, fact),
            _ => None,
        }
    }

    /// By the value of a plain fact, where its text can be written again as it was.
    fn rejudge(&self, kind: Kind, fact: &Fact) -> Option<Result<Option<Fact>, FactFault>> {
        let text = |text: &str| serde_json::to_string(text).ok();
        let json = match (kind, fact) {
            (Kind::String, Fact::String(value)) => text(value)?,
            (Kind::Long, Fact::Long(value)) => value.to_string(),
            // `1.0` is a decimal and no integer, `1` is both: which of them it was is not kept.
            (Kind::Decimal, Fact::Decimal(value)) if self.kind() != Kind::Long => value.clone(),
            (Kind::Bool, Fact::Bool(value)) => value.to_string(),
            // How often an element was repeated is not kept.
            (Kind::Strings, Fact::Set(values)) if self.kind() != Kind::Count => serde_json::to_string(values).ok()?,
            (Kind::Ip, Fact::Ip(ip)) if self.kind() == Kind::Ip => text(&ip.to_string())?,
            (Kind::Datetime, Fact::Datetime(millis)) if self.kind() == Kind::Datetime => text(&moment::text(*millis))?,
            (Kind::Count, Fact::Long(count)) if self.kind() == Kind::Count => {
                let count = usize::try_from(*count).ok().filter(|count| *count <= MAX_COUNT)?;
                format!("[{}]", vec!["0"; count].join(","))
            }
            _ => return None,
        };
        Some(self.judge(&json).map(Some))
    }

    fn absent(&self) -> Result<Option<Fact>, FactFault> {
        match self.kind() {
            Kind::Exists => Ok(Some(Fact::Bool(false))),
            _ if self.optional => Ok(None),
            _ => Err(FactFault::Absent),
        }
    }

    /// Whether a value is of this fact's type: a record may say anything.
    fn is_of(&self, fact: &Fact) -> bool {
        let wanted = match fact {
            Fact::String(_) => "String",
            Fact::Long(_) => "Long",
            Fact::Decimal(_) => "decimal",
            Fact::Bool(_) => "Bool",
            Fact::Set(_) => "Set<String>",
            Fact::Ip(_) => "ipaddr",
            Fact::Datetime(_) => "datetime",
        };
        wanted == self.cedar_type()
    }
}

/// Largest count that is judged again.
const MAX_COUNT: usize = 100_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(toml: &str) -> Spec {
        toml::from_str(toml).expect(toml)
    }

    fn matcher(toml: &str) -> (Matcher, FactForm) {
        let matcher = Matcher::new(&spec(toml)).expect(toml);
        let form = FactForm::of(&spec(toml), matcher.kind());
        (matcher, form)
    }

    #[test]
    fn forms_are_the_same_where_facts_are() {
        let form = |toml: &str| matcher(toml).1;
        assert_eq!(form("pointer='/a'\nmax=3"), form("pointer='/a'\ntype='long'\nmax=3\noptional=true"));
        assert_eq!(form("pointer='/a'\nequals='x'"), form("pointer='/a'\none_of=['x']"));
        for other in ["pointer='/b'\nmax=3", "pointer='/a'\nmax=4", "pointer='/a'\nmin=3", "pointer='/a'\ntype='long'"]
        {
            assert_ne!(form("pointer='/a'\nmax=3"), form(other), "{other}");
        }
        let json = serde_json::to_string(&form("pointer='/a'\nmax=3.5")).expect("json");
        assert_eq!(serde_json::from_str::<FactForm>(&json).expect("form"), form("pointer='/a'\nmax=3.5"));
        let long = form(&format!("pointer='/a'\nglob='{}'", "x".repeat(600)));
        assert!(!long.is_whole() && !long.is_plain());
        assert_ne!(long, form(&format!("pointer='/a'\nglob='{}y'", "x".repeat(599))));
    }

    const MATCHERS: [&str; 22] = [
        "type='string'",
        "type='string'\noptional=true",
        "type='long'",
        "type='decimal'",
        "type='bool'",
        "type='strings'",
        "type='ip'",
        "type='datetime'",
        "type='count'",
        "type='exists'",
        "max=3",
        "type='decimal'\nmin=1\nmax='2.5'",
        "equals=true",
        "one_of=['x','10.0.0.1']",
        "glob='/srv/**'",
        "regex='[a-z]+'",
        "net='10.0.0.0/8'",
        "type='strings'\neach='all'\none_of=['x','y']",
        "type='strings'\neach='any'\nglob='x*'\noptional=true",
        "type='count'\nmax=2",
        "type='datetime'\nmin='2026-01-01T00:00:00Z'",
        "type='long'\none_of=[1,2]\noptional=true",
    ];

    const ARGUMENTS: [&str; 24] = [
        "{}",
        "{\"a\":1,\"a\":1}",
        "{\"a\":null}",
        "{\"a\":1}",
        "{\"a\":1.0}",
        "{\"a\":2.5}",
        "{\"a\":1e3}",
        "{\"a\":-0}",
        "{\"a\":9007199254740991}",
        "{\"a\":true}",
        "{\"a\":false}",
        "{\"a\":\"x\"}",
        "{\"a\":\"\"}",
        "{\"a\":\"/srv/x\"}",
        "{\"a\":\"/srv/../x\"}",
        "{\"a\":\"10.0.0.1\"}",
        "{\"a\":\"2001:DB8::1\"}",
        "{\"a\":\"2026-05-01T10:00:00+02:00\"}",
        "{\"a\":[]}",
        "{\"a\":[\"x\",\"x\"]}",
        "{\"a\":[\"x\",\"z\"]}",
        "{\"a\":[1,2,3]}",
        "{\"a\":{}}",
        "{\"b\":1}",
    ];

    proptest! {
        /// Whatever was recorded of some arguments: what is recalled is what would have been found.
        #[test]
        fn what_is_recalled_is_what_was(
            recorded in prop::collection::vec(prop::sample::select(&MATCHERS[..]), 0..4),
            asked in prop::sample::select(&MATCHERS[..]),
            arguments in prop::sample::select(&ARGUMENTS[..]),
        ) {
            let whole = |toml: &str| matcher(&format!("pointer='/a'\n{toml}"));
            let records: Vec<(FactForm, Found)> = recorded.iter().map(|toml| {
                let (matcher, form) = whole(toml);
                let found = match matcher.fact(Some(arguments)) {
                    Ok(Some(fact)) => Found::Fact(fact),
                    Ok(None) | Err(FactFault::Absent) => Found::Absent,
                    Err(fault) => Found::Fault(fault.code().to_owned()),
                };
                (form, found)
            }).collect();
            let (matcher, form) = whole(asked);
            match (matcher.recall(&form, &records), matcher.fact(Some(arguments))) {
                (Recalled::Unknown, _) => prop_assert!(!recorded.contains(&asked), "what is recorded is known"),
                (Recalled::Known(Ok(known)), found) => prop_assert_eq!(Ok(known), found),
                (Recalled::Known(Err(_)), found) => prop_assert!(found.is_err(), "{:?}", found),
            }
        }
    }
}
