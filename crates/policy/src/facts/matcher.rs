//! Declared matchers: where a fact lies, of which type it is, and what is asked of it.

use std::fmt;
use std::net::IpAddr;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use ipnet::IpNet;
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use super::pointer::Pointer;
use super::{FactFault, read};
use crate::decision::Fact;
use crate::toml_values::{Scalar, Texts};

/// Most bytes of a glob or regular expression.
const MAX_PATTERN: usize = 4096;
/// Most memory of a compiled regular expression, in bytes.
const MAX_REGEX: usize = 1 << 20;
/// Most entries of a list of values, patterns or nets.
const MAX_LIST: usize = 4096;

/// Why a matcher cannot be: one sentence with the way out.
pub(crate) type MatcherError = String;

/// The type of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    String,
    Long,
    Decimal,
    Bool,
    Strings,
    Ip,
    Datetime,
    Count,
    Exists,
}

impl Kind {
    /// By its name in policy files.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "string" => Self::String,
            "long" => Self::Long,
            "decimal" => Self::Decimal,
            "bool" => Self::Bool,
            "strings" => Self::Strings,
            "ip" => Self::Ip,
            "datetime" => Self::Datetime,
            "count" => Self::Count,
            "exists" => Self::Exists,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::String => "string",
            Self::Long => "long",
            Self::Decimal => "decimal",
            Self::Bool => "bool",
            Self::Strings => "strings",
            Self::Ip => "ip",
            Self::Datetime => "datetime",
            Self::Count => "count",
            Self::Exists => "exists",
        })
    }
}

/// Of which elements of an array of strings something must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Each {
    All,
    Any,
}

/// A matcher as it is written in a policy file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    /// Where the value lies in the arguments: a JSON pointer (RFC 6901).
    pub(crate) pointer: String,
    /// Of which type it must be; told by the operators where they are there.
    #[serde(rename = "type")]
    kind: Option<Kind>,
    /// It need not be there.
    #[serde(default)]
    pub(crate) optional: bool,
    /// Of which elements of an array the operators must hold.
    pub(super) each: Option<Each>,
    pub(super) equals: Option<Scalar>,
    pub(super) one_of: Option<Vec<Scalar>>,
    pub(super) glob: Option<Texts>,
    pub(super) regex: Option<String>,
    pub(super) net: Option<Texts>,
    pub(super) min: Option<Scalar>,
    pub(super) max: Option<Scalar>,
    /// Of which routes' tools, by name with stars; for declared facts only.
    pub(crate) routes: Option<Texts>,
    /// Of which tools, by name with stars; for declared facts only.
    pub(crate) tools: Option<Texts>,
}

/// A matcher, ready.
#[derive(Clone, Debug)]
pub(crate) struct Matcher {
    pointer: Pointer,
    kind: Kind,
    pub(crate) optional: bool,
    each: Each,
    /// All must hold. Without any the fact is the value itself.
    tests: Vec<Test>,
}

#[derive(Clone, Debug)]
enum Test {
    Texts(Vec<String>),
    Longs(Vec<i64>),
    Bool(bool),
    Glob {
        set: GlobSet,
        paths: bool,
    },
    Regex(Regex),
    Nets(Vec<IpNet>),
    /// In the unit of the type.
    Range {
        min: Option<i64>,
        max: Option<i64>,
    },
}

impl Matcher {
    pub(crate) fn new(spec: &Spec) -> Result<Self, MatcherError> {
        let pointer = Pointer::parse(&spec.pointer)?;
        let kind = spec.kind()?;
        let tests = spec.tests(kind)?;
        if spec.each.is_some() && (kind != Kind::Strings || tests.is_empty()) {
            return Err("`each` goes with type = \"strings\" and an operator; leave it out".to_owned());
        }
        if kind == Kind::Strings && !tests.is_empty() && spec.each.is_none() {
            return Err("say whether it must hold for all elements or for any: each = \"all\" or \"any\"".to_owned());
        }
        if kind == Kind::Exists && (spec.optional || !tests.is_empty()) {
            return Err("type = \"exists\" is true or false by itself; leave `optional` and operators out".to_owned());
        }
        Ok(Self { pointer, kind, optional: spec.optional, each: spec.each.unwrap_or(Each::All), tests })
    }

    /// The type of the value.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the fact is true or false.
    pub(crate) fn is_bool(&self) -> bool {
        !self.tests.is_empty() || matches!(self.kind, Kind::Bool | Kind::Exists)
    }

    /// The type that policies see.
    pub(crate) fn cedar_type(&self) -> &'static str {
        match self.kind {
            _ if self.is_bool() => "Bool",
            Kind::String => "String",
            Kind::Long | Kind::Count => "Long",
            Kind::Decimal => "decimal",
            Kind::Strings => "Set<String>",
            Kind::Ip => "ipaddr",
            Kind::Datetime => "datetime",
            Kind::Bool | Kind::Exists => "Bool",
        }
    }

    /// The fact in the arguments of a call; `None` if it need not be there and is not.
    pub(crate) fn fact(&self, arguments: Option<&str>) -> Result<Option<Fact>, FactFault> {
        let found = match arguments {
            Some(json) => self.pointer.find(json)?,
            None => None,
        };
        let json = match (self.kind, found) {
            (Kind::Exists, found) => return Ok(Some(Fact::Bool(found.is_some()))),
            (_, Some(json)) => json,
            (_, None) if self.optional => return Ok(None),
            (_, None) => return Err(FactFault::Absent),
        };
        self.judge(json).map(Some)
    }

    pub(super) fn judge(&self, json: &str) -> Result<Fact, FactFault> {
        match self.kind {
            Kind::String => {
                let text = read::string(json)?;
                self.hold(Fact::String(text.clone()), |test| test.text(&text))
            }
            Kind::Strings => {
                let all = read::strings(json)?;
                self.hold(Fact::Set(all.clone()), |test| {
                    // Every element is looked at, so that a fault in one is seen whatever the others are.
                    let held = all.iter().map(|text| test.text(text)).collect::<Result<Vec<_>, _>>()?;
                    Ok(match self.each {
                        Each::All => held.iter().all(|held| *held),
                        Each::Any => held.iter().any(|held| *held),
                    })
                })
            }
            Kind::Long => read::long(json).and_then(|value| self.hold(Fact::Long(value), |test| Ok(test.long(value)))),
            Kind::Count => {
                read::count(json).and_then(|value| self.hold(Fact::Long(value), |test| Ok(test.long(value))))
            }
            Kind::Datetime => {
                read::datetime(json).and_then(|value| self.hold(Fact::Datetime(value), |test| Ok(test.long(value))))
            }
            Kind::Decimal => {
                let value = read::decimal(json)?;
                self.hold(Fact::Decimal(read::decimal_text(value)), |test| Ok(test.long(value)))
            }
            Kind::Bool => {
                let value = read::bool(json)?;
                self.hold(Fact::Bool(value), |test| Ok(matches!(test, Test::Bool(wanted) if *wanted == value)))
            }
            Kind::Ip => read::ip(json).and_then(|ip| self.hold(Fact::Ip(ip), |test| Ok(test.ip(ip)))),
            // Told by whether it was found, before this.
            Kind::Exists => Ok(Fact::Bool(true)),
        }
    }

    /// The value itself, or whether all tests hold of it.
    fn hold(&self, value: Fact, test: impl Fn(&Test) -> Result<bool, FactFault>) -> Result<Fact, FactFault> {
        if self.tests.is_empty() {
            return Ok(value);
        }
        let held = self.tests.iter().map(test).collect::<Result<Vec<_>, _>>()?;
        Ok(Fact::Bool(held.iter().all(|held| *held)))
    }
}

impl Test {
    fn text(&self, text: &str) -> Result<bool, FactFault> {
        Ok(match self {
            Self::Texts(texts) => texts.iter().any(|wanted| wanted == text),
            Self::Glob { paths: true, .. } if is_winding(text) => {
                return Err(FactFault::Ambiguous(
                    "it is a path that leads elsewhere for some: with `.` or `..`, `//`, a backslash, a zero byte, or \
                     one of them percent-encoded",
                ));
            }
            Self::Glob { set, .. } => set.is_match(text),
            Self::Regex(regex) => regex.is_match(text),
            _ => false,
        })
    }

    fn long(&self, value: i64) -> bool {
        match self {
            Self::Longs(values) => values.contains(&value),
            Self::Range { min, max } => min.is_none_or(|min| min <= value) && max.is_none_or(|max| value <= max),
            _ => false,
        }
    }

    fn ip(&self, ip: IpAddr) -> bool {
        matches!(self, Self::Nets(nets) if nets.iter().any(|net| net.contains(&ip)))
    }
}

/// Whether a path names something that its text does not show.
fn is_winding(path: &str) -> bool {
    let lower = path.to_ascii_lowercase();
    let doubled = path.match_indices("//").any(|(at, _)| !path.get(..at).is_some_and(|before| before.ends_with(':')));
    doubled
        || path.contains(['\\', '\0'])
        || ["%2e", "%2f", "%5c", "%00"].iter().any(|code| lower.contains(code))
        || path.split('/').any(|segment| segment == "." || segment == "..")
}

impl Spec {
    /// The type: as given, else as the operators tell.
    pub(crate) fn kind(&self) -> Result<Kind, MatcherError> {
        let scalar = |value: &Scalar| match value {
            Scalar::Bool(_) => Kind::Bool,
            Scalar::Long(_) => Kind::Long,
            Scalar::Float(_) => Kind::Decimal,
            Scalar::Text(_) => Kind::String,
        };
        if let Some(kind) = self.kind {
            return Ok(kind);
        }
        if self.glob.is_some() || self.regex.is_some() {
            return Ok(Kind::String);
        }
        if self.net.is_some() {
            return Ok(Kind::Ip);
        }
        if let Some(value) = self.equals.as_ref().or(self.one_of.as_ref().and_then(|values| values.first())) {
            return Ok(scalar(value));
        }
        match (&self.min, &self.max) {
            (None, None) => Err("say of which type it is, such as type = \"string\", or give an operator".to_owned()),
            (Some(Scalar::Float(_)), _) | (_, Some(Scalar::Float(_))) => Ok(Kind::Decimal),
            (Some(Scalar::Text(_)), _) | (_, Some(Scalar::Text(_))) => {
                Err("a limit that is a text needs type = \"decimal\" or \"datetime\"".to_owned())
            }
            _ => Ok(Kind::Long),
        }
    }

    fn tests(&self, kind: Kind) -> Result<Vec<Test>, MatcherError> {
        let mut tests = Vec::new();
        let wrong = |operator: &str| Err(format!("`{operator}` does not go with type = \"{kind}\""));
        let textual = matches!(kind, Kind::String | Kind::Strings);
        let values = self.equals.as_ref().map(std::slice::from_ref).or(self.one_of.as_deref());
        if self.equals.is_some() && self.one_of.is_some() {
            return Err("`equals` and `one_of` say the same; keep one".to_owned());
        }
        if let Some(values) = values {
            bounded("values", values.len())?;
            tests.push(among(kind, values)?);
        }
        if let Some(globs) = &self.glob {
            if !textual {
                return wrong("glob");
            }
            tests.push(glob(globs.as_slice())?);
        }
        if let Some(pattern) = &self.regex {
            if !textual {
                return wrong("regex");
            }
            tests.push(Test::Regex(regex(pattern)?));
        }
        if let Some(nets) = &self.net {
            if kind != Kind::Ip {
                return wrong("net");
            }
            bounded("nets", nets.as_slice().len())?;
            let net = |text: &String| {
                let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
                net.map_err(|_| format!("`{text}` is not a net: write it as 10.0.0.0/8"))
            };
            tests.push(Test::Nets(nets.as_slice().iter().map(net).collect::<Result<_, _>>()?));
        }
        if self.min.is_some() || self.max.is_some() {
            if !matches!(kind, Kind::Long | Kind::Count | Kind::Decimal | Kind::Datetime) {
                return wrong("min` or `max");
            }
            let limit = |value: &Option<Scalar>| value.as_ref().map(|value| limit(kind, value)).transpose();
            let (min, max) = (limit(&self.min)?, limit(&self.max)?);
            if min.zip(max).is_some_and(|(min, max)| min > max) {
                return Err("`min` is above `max`: nothing lies between".to_owned());
            }
            tests.push(Test::Range { min, max });
        }
        Ok(tests)
    }
}

fn bounded(what: &str, count: usize) -> Result<(), MatcherError> {
    match count {
        0 => Err(format!("the list of {what} is empty: nothing would match")),
        count if count > MAX_LIST => Err(format!("there are more than {MAX_LIST} {what}")),
        _ => Ok(()),
    }
}

fn among(kind: Kind, values: &[Scalar]) -> Result<Test, MatcherError> {
    let mut texts = Vec::new();
    let mut longs = Vec::new();
    for value in values {
        match (kind, value) {
            (Kind::String | Kind::Strings, Scalar::Text(text)) => texts.push(text.clone()),
            (Kind::Long | Kind::Count | Kind::Decimal | Kind::Datetime, value) => longs.push(limit(kind, value)?),
            (Kind::Bool, Scalar::Bool(value)) if values.len() == 1 => return Ok(Test::Bool(*value)),
            _ => return Err(format!("a value in `equals` or `one_of` does not go with type = \"{kind}\"")),
        }
    }
    Ok(if texts.is_empty() { Test::Longs(longs) } else { Test::Texts(texts) })
}

/// A number or moment of a policy file in the unit of the type.
fn limit(kind: Kind, value: &Scalar) -> Result<i64, MatcherError> {
    let wrong = || format!("a limit does not go with type = \"{kind}\"");
    match (kind, value) {
        (Kind::Long | Kind::Count, Scalar::Long(value)) => Ok(*value),
        (Kind::Decimal, Scalar::Long(value)) => read::ten_thousandths(&value.to_string()).ok_or_else(wrong),
        (Kind::Decimal, Scalar::Float(value)) => read::ten_thousandths(&value.to_string()).ok_or_else(wrong),
        (Kind::Decimal, Scalar::Text(text)) => read::ten_thousandths(text)
            .ok_or_else(|| format!("`{text}` is not a decimal: at most four digits behind the point, 15 in all")),
        (Kind::Datetime, Scalar::Text(text)) => read::moment(text)
            .ok_or_else(|| format!("`{text}` is not a moment: write it as \"2026-01-31T08:00:00Z\" (RFC 3339)")),
        _ => Err(wrong()),
    }
}

fn glob(patterns: &[String]) -> Result<Test, MatcherError> {
    bounded("globs", patterns.len())?;
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("a glob has at most {MAX_PATTERN} bytes"));
        }
        let glob = GlobBuilder::new(pattern).literal_separator(true).backslash_escape(true).build();
        set.add(glob.map_err(|error| format!("`{pattern}` is not a glob: {}", error.kind()))?);
    }
    let set = set.build().map_err(|error| format!("the globs cannot be used together: {error}"))?;
    Ok(Test::Glob { set, paths: patterns.iter().any(|pattern| pattern.contains('/')) })
}

/// A regular expression for the whole of a text.
fn regex(pattern: &str) -> Result<Regex, MatcherError> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("a regular expression has at most {MAX_PATTERN} bytes"));
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern).size_limit(MAX_REGEX).dfa_size_limit(MAX_REGEX).build().map_err(
            |error| match error {
                regex::Error::CompiledTooBig(_) => {
                    "the regular expression takes more than 1 MiB: make it smaller".to_owned()
                }
                error => format!("not a regular expression: {error}"),
            },
        )
    };
    // By itself first: a bracket too many must not close the one that is put around it.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(toml: &str) -> Matcher {
        Matcher::new(&toml::from_str(toml).expect(toml)).expect(toml)
    }

    fn fact(toml: &str, json: &str) -> Result<Option<Fact>, FactFault> {
        matcher(toml).fact(Some(json))
    }

    fn holds(toml: &str, json: &str) -> bool {
        match fact(toml, json).expect(json) {
            Some(Fact::Bool(held)) => held,
            other => panic!("not a truth value: {other:?}"),
        }
    }

    #[test]
    fn operators_make_truth_values() {
        for (toml, right, wrong) in [
            ("pointer='/a'\nglob='/srv/**'", r#"{"a":"/srv/x/y"}"#, r#"{"a":"/etc/x"}"#),
            ("pointer='/a'\nglob=['a*','b?']", r#"{"a":"bx"}"#, r#"{"a":"bxx"}"#),
            ("pointer='/a'\nregex='[a-z]+|x1'", r#"{"a":"x1"}"#, r#"{"a":"x1 "}"#),
            ("pointer='/a'\none_of=['x','y']", r#"{"a":"y"}"#, r#"{"a":"Y"}"#),
            ("pointer='/a'\none_of=[1,2]", r#"{"a":2}"#, r#"{"a":3}"#),
            ("pointer='/a'\nequals=true", r#"{"a":true}"#, r#"{"a":false}"#),
            ("pointer='/a'\nmin=1\nmax=3", r#"{"a":3}"#, r#"{"a":4}"#),
            ("pointer='/a'\nmax=99.5", r#"{"a":99.5}"#, r#"{"a":99.5001}"#),
            ("pointer='/a'\ntype='decimal'\nmax='100'", r#"{"a":100}"#, r#"{"a":100.0001}"#),
            ("pointer='/a'\ntype='count'\nmax=2", r#"{"a":[1,2]}"#, r#"{"a":[1,2,3]}"#),
            ("pointer='/a'\nnet=['10.0.0.0/8','::1']", r#"{"a":"10.2.3.4"}"#, r#"{"a":"11.2.3.4"}"#),
            ("pointer='/a'\ntype='exists'", r#"{"a":null}"#, r#"{"b":1}"#),
            ("pointer='/a'\ntype='strings'\neach='all'\none_of=['x','y']", r#"{"a":["x"]}"#, r#"{"a":["x","z"]}"#),
            ("pointer='/a'\ntype='strings'\neach='any'\nglob='p*'", r#"{"a":["x","p1"]}"#, r#"{"a":["x"]}"#),
            (
                "pointer='/a'\ntype='datetime'\nmin='2026-01-01T00:00:00Z'",
                r#"{"a":"2026-01-01T01:00:00+01:00"}"#,
                r#"{"a":"2025-12-31T23:59:59.999Z"}"#,
            ),
        ] {
            assert!(holds(toml, right), "{toml} {right}");
            assert!(!holds(toml, wrong), "{toml} {wrong}");
        }
    }

    #[test]
    fn a_value_of_another_type_is_a_fault() {
        assert!(matches!(fact("pointer='/a'\nmax=3", r#"{"a":"1"}"#), Err(FactFault::Type(_))));
        assert!(matches!(fact("pointer='/a'\nmax=3", r#"{"a":1.0}"#), Err(FactFault::Inexact(_))));
        assert!(matches!(fact("pointer='/a'\nglob='x'", r#"{"a":["x"]}"#), Err(FactFault::Type(_))));
        assert_eq!(fact("pointer='/a'\nmax=3", "{}"), Err(FactFault::Absent));
        assert_eq!(matcher("pointer='/a'\nmax=3").fact(None), Err(FactFault::Absent));
    }

    #[test]
    fn an_optional_fact_may_be_absent_but_not_wrong() {
        let toml = "pointer='/a'\nmax=3\noptional=true";
        assert_eq!(fact(toml, "{}"), Ok(None));
        assert!(fact(toml, r#"{"a":null}"#).is_err());
        assert!(fact(toml, r#"{"a":"3"}"#).is_err());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_faults() {
        let toml = "pointer='/a'\nglob='/srv/**'";
        for path in
            ["/srv/../etc", "/srv/./x", "/srv//x", "/srv/a\\b", "/srv/%2E%2e/x", "/srv/%2fx", "..", "/srv/\u{0}"]
        {
            let json = serde_json::json!({ "a": path }).to_string();
            assert!(matches!(fact(toml, &json), Err(FactFault::Ambiguous(_))), "{path}");
        }
        assert!(holds("pointer='/a'\nglob='https://x.example/**'", r#"{"a":"https://x.example/y..z/.w"}"#));
        assert!(holds("pointer='/a'\nglob='a*'", r#"{"a":"a..b"}"#));
    }

    #[test]
    fn wrong_matchers_are_refused() {
        for toml in [
            "pointer='/a'",
            "pointer='a'\nmax=1",
            "pointer='/a'\nregex='('",
            "pointer='/a'\nregex='a)|(b'",
            "pointer='/a'\nregex='(?:a{1000}){1000}'",
            "pointer='/a'\nglob='[a'",
            "pointer='/a'\nglob=[]",
            "pointer='/a'\nnet='10.0.0.0/33'",
            "pointer='/a'\nmin=3\nmax=2",
            "pointer='/a'\nmax='x'",
            "pointer='/a'\ntype='string'\nmax=1",
            "pointer='/a'\ntype='strings'\nglob='x'",
            "pointer='/a'\ntype='exists'\noptional=true",
            "pointer='/a'\none_of=['x',1]",
            "pointer='/a'\none_of=['x']\nequals='x'",
            "pointer='/a'\nmax=1.00001",
        ] {
            Matcher::new(&toml::from_str(toml).expect(toml)).expect_err(toml);
        }
    }
}
