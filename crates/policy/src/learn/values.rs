//! The values that one fact had, and the condition that lets through just these.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::decision::Fact;
use crate::facts::{FactForm, Found, Kind, ten_thousandths};
use crate::moment;

/// Most values that a condition lists.
const FEW: usize = 8;

/// The values of one fact over some calls.
#[derive(Clone, Debug)]
pub(super) struct Values {
    form: FactForm,
    /// Calls of which it is known, whatever it was.
    known: u64,
    absent: bool,
    fault: bool,
    /// The values, of numbers with their order; one more than `FEW` of them stands for many.
    few: BTreeSet<(i64, String)>,
    range: Option<((i64, String), (i64, String))>,
}

impl Values {
    /// After some calls without arguments.
    pub(super) fn of(form: FactForm, bare: u64) -> Self {
        Self { form, known: bare, absent: bare > 0, fault: false, few: BTreeSet::new(), range: None }
    }

    pub(super) fn add(&mut self, found: &Found) {
        self.known += 1;
        match found {
            Found::Absent => self.absent = true,
            Found::Fault(_) => self.fault = true,
            // Each element by itself: the condition is for all of them.
            Found::Fact(Fact::Set(texts)) => texts.iter().for_each(|text| self.value((0, text.clone()))),
            Found::Fact(fact) => self.value(ordered(fact)),
        }
    }

    fn value(&mut self, value: (i64, String)) {
        self.range = Some(match self.range.take() {
            None => (value.clone(), value.clone()),
            Some((low, high)) => (low.min(value.clone()), high.max(value.clone())),
        });
        if self.few.len() <= FEW {
            self.few.insert(value);
        }
    }

    /// The condition for all of some calls, as policy files write it; `None` if there is none to be made.
    ///
    /// # Errors
    /// It was the same, or within bounds, and cannot be said: why, in words.
    pub(super) fn condition(&self, calls: u64) -> Result<Option<Value>, String> {
        let pointer = self.form.pointer();
        let at = format!("the argument {pointer:?}");
        let Some(kind) = self.form.kind().filter(|_| !self.fault) else { return Ok(None) };
        if self.known != calls {
            return Err(format!("{at} was recorded for some of the calls only, so that it may be anything"));
        }
        if self.few.is_empty() && kind != Kind::Exists {
            return if self.absent && kind != Kind::Strings {
                Err(format!("{at} was never there, and could be"))
            } else {
                Err(format!("{at} was empty each time, and need not be"))
            };
        }
        let is = |text: &str| self.few.len() == 1 && self.few.first().is_some_and(|(_, only)| only == text);
        let mut out = self.form.as_json().clone();
        let Some(members) = out.as_object_mut() else { return Ok(None) };
        if !self.form.is_plain() {
            // Of an operator it is known whether it held.
            if !is("true") {
                return if is("false") {
                    Err(format!("{at} never met a condition of the policy of then"))
                } else {
                    Ok(None)
                };
            }
            if !self.form.is_whole() {
                return Err(format!("{at} met a condition of the policy of then, which is too long to be recorded"));
            }
        } else {
            match self.operator(kind) {
                Ok(operators) => members.extend(operators.into_iter().map(|(name, value)| (name.to_owned(), value))),
                Err(Some(why)) => return Err(format!("{at} {why}")),
                Err(None) => return Ok(None),
            }
        }
        if self.absent {
            members.insert("optional".to_owned(), true.into());
        }
        Ok(Some(out))
    }

    /// What is asked of a plain value; without words where nothing is to be asked.
    fn operator(&self, kind: Kind) -> Result<Vec<(&'static str, Value)>, Option<String>> {
        let few = self.few.len() <= FEW;
        let values = |write: fn(&(i64, String)) -> Value| Value::Array(self.few.iter().map(write).collect());
        let text = |value: &(i64, String)| json!(value.1);
        let number = |value: &(i64, String)| json!(value.0);
        let range = |write: fn(&(i64, String)) -> Value| match &self.range {
            Some((low, high)) => Ok(vec![("min", write(low)), ("max", write(high))]),
            None => Err(None),
        };
        let many = || Err(Some(format!("had more than {FEW} values, so that it may be anything")));
        match kind {
            Kind::Bool | Kind::Exists => match self.few.first() {
                Some((_, only)) if self.few.len() == 1 => match (kind, only.as_str()) {
                    (Kind::Bool, only) => Ok(vec![("equals", json!(only == "true"))]),
                    (_, "true") => Ok(Vec::new()),
                    _ => Err(Some("was never there, and could be".to_owned())),
                },
                _ => Err(None),
            },
            Kind::Long | Kind::Count if few => Ok(vec![("one_of", values(number))]),
            Kind::Long | Kind::Count => range(number),
            Kind::Decimal | Kind::Datetime if few => Ok(vec![("one_of", values(text))]),
            Kind::Decimal | Kind::Datetime => range(text),
            Kind::String if few => Ok(vec![("one_of", values(text))]),
            Kind::Strings if few => Ok(vec![("each", json!("all")), ("one_of", values(text))]),
            Kind::Ip if few => Ok(vec![("net", values(text))]),
            Kind::String | Kind::Strings | Kind::Ip => many(),
        }
    }
}

/// A value as policy files write it, before it its order among numbers.
fn ordered(fact: &Fact) -> (i64, String) {
    match fact {
        Fact::String(text) => (0, text.clone()),
        Fact::Long(value) => (*value, value.to_string()),
        Fact::Decimal(text) => (ten_thousandths(text).unwrap_or_default(), text.clone()),
        Fact::Bool(value) => (0, value.to_string()),
        Fact::Set(texts) => (0, texts.join(",")),
        Fact::Ip(ip) => (0, ip.to_string()),
        Fact::Datetime(millis) => (*millis, moment::text(*millis)),
    }
}
