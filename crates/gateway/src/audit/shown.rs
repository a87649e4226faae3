//! What a record says of arguments: their digest and length, and what the settings let be shown.

use std::borrow::Cow;
use std::collections::BTreeMap;

use globset::{GlobSet, GlobSetBuilder};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sortie_audit::Arguments;
use sortie_ids::Digest;

use crate::approvals::visible;
use crate::config::{LimitConfig, ShownArguments};

/// Most values that are shown of one call.
const MOST: usize = 16;
/// Longest arguments of which anything is shown, in bytes: of longer ones, nobody reads 16 values.
const MAX_LOOK: usize = 64 * 1024;
/// Under this name stands how many more there were. No pointer is called so.
const MORE: &str = "more";

/// The rules of the settings in force.
#[derive(Default)]
pub(crate) struct Shown(Vec<Rule>);

struct Rule {
    routes: GlobSet,
    tools: GlobSet,
    show: Vec<String>,
    hide: Vec<String>,
}

impl Shown {
    pub(crate) fn new(rules: &[ShownArguments]) -> Result<Self, globset::Error> {
        let set = |pattern: &Option<String>, any_case| {
            let mut set = GlobSetBuilder::new();
            if let Some(pattern) = pattern {
                set.add(LimitConfig::glob(pattern, any_case)?);
            }
            set.build()
        };
        let rules = rules.iter().map(|rule| {
            let (routes, tools) = (set(&rule.route, false)?, set(&rule.tool, true)?);
            Ok(Rule { routes, tools, show: rule.show.clone(), hide: rule.hide.clone() })
        });
        rules.collect::<Result<_, _>>().map(Self)
    }

    /// What is recorded of arguments, whose JSON is exactly as sent and strictly parsed before.
    pub(super) fn of(&self, route: &str, tool: Option<&str>, arguments: &str) -> Arguments {
        let for_it = |set: &GlobSet, text: Option<&str>| set.is_empty() || text.is_some_and(|text| set.is_match(text));
        let rule = self.0.iter().find(|rule| for_it(&rule.routes, Some(route)) && for_it(&rule.tools, tool));
        Arguments {
            sha256: Digest::of(arguments.as_bytes()).to_string(),
            bytes: u64::try_from(arguments.len()).unwrap_or(u64::MAX),
            shown: rule.filter(|_| arguments.len() <= MAX_LOOK).and_then(|rule| rule.shown(arguments)),
        }
    }
}

impl Rule {
    /// Values by their pointers; `None` where there is nothing to show.
    fn shown(&self, arguments: &str) -> Option<Value> {
        let mut found = Found { hide: &self.hide, values: Map::new(), more: 0 };
        for pointer in &self.show {
            if let Some(value) = at(arguments, pointer) {
                found.take(&mut pointer.clone(), value);
            }
        }
        if found.more > 0 {
            found.values.insert(MORE.to_owned(), found.more.into());
        }
        (!found.values.is_empty()).then_some(Value::Object(found.values))
    }
}

struct Found<'a> {
    hide: &'a [String],
    values: Map<String, Value>,
    more: u64,
}

impl Found<'_> {
    /// Takes what a value holds, by pointer. The depth is that of JSON which was parsed before, at most 128.
    fn take(&mut self, pointer: &mut String, json: &str) {
        let under = |hidden: &String| {
            pointer.strip_prefix(hidden.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self.hide.iter().any(under) || self.values.contains_key(pointer) {
            return;
        }
        let outer = pointer.len();
        match json.bytes().next() {
            Some(b'{') => {
                for (name, value) in members(json).unwrap_or_default() {
                    pointer.push('/');
                    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                    self.take(pointer, value.get());
                    pointer.truncate(outer);
                }
            }
            Some(b'[') => {
                for (number, value) in items(json).unwrap_or_default().iter().enumerate() {
                    pointer.push_str(&format!("/{number}"));
                    self.take(pointer, value.get());
                    pointer.truncate(outer);
                }
            }
            _ if self.values.len() >= MOST => self.more += 1,
            _ => {
                let value = match serde_json::from_str::<Value>(json) {
                    Ok(Value::String(text)) => Value::String(visible(&text)),
                    Ok(value @ (Value::Bool(_) | Value::Null)) => value,
                    // As it was sent: readers of JSON differ about numbers.
                    _ => Value::String(visible(json)),
                };
                self.values.insert(visible(pointer), value);
            }
        }
    }
}

/// The JSON text that a pointer (RFC 6901) leads to.
fn at<'a>(json: &'a str, pointer: &str) -> Option<&'a str> {
    let Some(path) = pointer.strip_prefix('/') else { return Some(json) };
    path.split('/').try_fold(json, |json, token| {
        let token = token.replace("~1", "/").replace("~0", "~");
        match json.bytes().next()? {
            b'{' => members(json)?.get(token.as_str()).map(|value| value.get()),
            b'[' => items(json)?.get(token.parse::<usize>().ok()?).map(|value| value.get()),
            _ => None,
        }
    })
}

fn members(json: &str) -> Option<BTreeMap<Cow<'_, str>, &RawValue>> {
    serde_json::from_str(json).ok()
}

fn items(json: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(show: &[&str], hide: &[&str], arguments: &str) -> Option<Value> {
        let texts = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        let rule = ShownArguments {
            route: Some("docs".into()),
            tool: Some("Se*".into()),
            show: texts(show),
            hide: texts(hide),
        };
        let rules = Shown::new(&[rule]).expect("rules");
        assert_eq!(rules.of("other", Some("search"), arguments).shown, None);
        assert_eq!(rules.of("docs", Some("delete"), arguments).shown, None);
        assert_eq!(rules.of("docs", None, arguments).shown, None);
        let recorded = rules.of("docs", Some("SEARCH"), arguments);
        assert_eq!(recorded.sha256, Digest::of(arguments.as_bytes()).to_string());
        assert_eq!(recorded.bytes, arguments.len() as u64);
        recorded.shown
    }

    #[test]
    fn only_what_a_rule_names_is_shown() {
        let arguments = r#"{"a":{"b~/c":"x\u202e\n","secret":"s"},"n":1.50,"l":[true,null,{"q":"y"}],"other":"o"}"#;
        let all = shown(&["/a", "/n", "/l", "/absent", "/n/x"], &["/a/secret"], arguments);
        let expected =
            json!({"/a/b~0~1c": "x\\u{202e}\\u{a}", "/n": "1.50", "/l/0": true, "/l/1": null, "/l/2/q": "y"});
        assert_eq!(all, Some(expected));
        assert_eq!(shown(&["/l/2/q"], &[], arguments), Some(json!({"/l/2/q": "y"})));
        assert_eq!(shown(&["/a/secret"], &["/a/secret"], arguments), None);
        assert_eq!(shown(&["/a", "/a/secret"], &["/a"], arguments), None);
        assert_eq!(shown(&["/other"], &["/oth"], arguments), Some(json!({"/other": "o"})));
        assert_eq!(shown(&[""], &[], "7"), Some(json!({"": "7"})));
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let many: Vec<String> = (0..100).map(|_| "x".repeat(500)).collect();
        let text = serde_json::to_string(&many).expect("json");
        let shown = shown(&[""], &[], &text).expect("shown");
        assert_eq!(shown[MORE], 84);
        assert_eq!(shown.as_object().expect("object").len(), MOST + 1);
        let long = format!("[\"{}\"]", "x".repeat(MAX_LOOK));
        assert_eq!(super::tests::shown(&[""], &[], &long), None);
        assert_eq!(shown["/15"].as_str().expect("text").chars().count(), 257);
    }
}
