//! Policy files: what they are made of, and what is wrong with them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use cedar_policy::{PolicySet, Schema, ValidationMode, Validator};
use jiff::tz::TimeZone;
use serde::Deserialize;
use toml::Spanned;

use crate::case::{Case, RawCaller, RawCase};
use crate::conditions::Pattern;
use crate::error::PolicyError;
use crate::facts::{FactForm, Matcher, Spec};
use crate::policy::{Loaded, Source};
use crate::rules::{Kind, Rule};
use crate::statements;
use crate::toml_values::Texts;

/// Most files that a policy file may name.
const MAX_FILES: usize = 64;
/// Most bytes of one file.
const MAX_FILE: usize = 32 << 20;
/// Most policies.
const MAX_POLICIES: usize = 100_000;
/// Most declared facts, those of conditions in rules among them.
const MAX_FACTS: usize = 20_000;
/// Most bytes of a fact's name.
const MAX_NAME: usize = 64;
/// Words that Cedar takes for itself.
const RESERVED: [&str; 9] = ["true", "false", "if", "then", "else", "in", "is", "like", "has"];

/// What a policy file and the files that it names hold.
pub(crate) struct File {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) zone: TimeZone,
    pub(crate) facts: Vec<Declared>,
    pub(crate) sources: Vec<Source>,
    pub(crate) cases: Vec<Case>,
}

/// A fact that a policy file declares.
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) matcher: Matcher,
    pub(crate) pointer: String,
    pub(crate) form: FactForm,
    /// Where it is declared.
    pub(crate) place: String,
    /// It comes from a condition of a rule.
    written: bool,
    routes: Vec<String>,
    tools: Vec<String>,
    patterns: (Vec<Pattern>, Vec<Pattern>),
}

impl Declared {
    fn new(name: &str, spec: &Spec, place: String, written: bool) -> Result<Self, String> {
        let list = |texts: &Option<Texts>| texts.as_ref().map_or_else(Vec::new, |texts| texts.as_slice().to_vec());
        let (routes, tools) = (list(&spec.routes), list(&spec.tools));
        if spec.routes.is_some() && routes.is_empty() || spec.tools.is_some() && tools.is_empty() {
            return Err(format!("{place}: the fact `{name}` is for no tool: leave out the empty list for all tools"));
        }
        let patterns = |list: &[String]| list.iter().map(|text| Pattern::with_stars(text)).collect();
        let matcher = Matcher::new(spec).map_err(|why| format!("{place}: the fact `{name}`: {why}"))?;
        Ok(Self {
            name: name.to_owned(),
            form: FactForm::of(spec, matcher.kind()),
            matcher,
            pointer: spec.pointer.clone(),
            patterns: (patterns(&routes), patterns(&tools)),
            place,
            written,
            routes,
            tools,
        })
    }

    /// Whether it is declared for this tool of this route; without one, whether it is for all.
    pub(crate) fn is_for(&self, tool: Option<(&str, &str)>) -> bool {
        let fits = |patterns: &[Pattern], text: Option<&str>| {
            patterns.is_empty() || text.is_some_and(|text| patterns.iter().any(|one| one.matches(text)))
        };
        fits(&self.patterns.0, tool.map(|(route, _)| route)) && fits(&self.patterns.1, tool.map(|(_, tool)| tool))
    }

    /// The routes and the tools that it is for, with stars; empty for all.
    pub(crate) fn reach(&self) -> (&[String], &[String]) {
        (&self.routes, &self.tools)
    }

    /// Whether it comes from a condition of a rule.
    pub(crate) fn is_written(&self) -> bool {
        self.written
    }

    /// Its name with its type in the schema, and whether it may be absent.
    pub(crate) fn kind(&self) -> (String, (&'static str, bool)) {
        (self.name.clone(), (self.matcher.cedar_type(), self.matcher.optional))
    }

    /// What a reason calls it.
    pub(crate) fn phrase(&self) -> String {
        let argument = if self.pointer.is_empty() {
            "the arguments".to_owned()
        } else {
            format!("the argument `{}`", self.pointer)
        };
        if self.written { argument } else { format!("the fact `{}` ({argument})", self.name) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    timezone: Option<Spanned<String>>,
    #[serde(default)]
    cedar: Vec<String>,
    #[serde(default)]
    facts: BTreeMap<String, Spanned<Spec>>,
    #[serde(default)]
    allow: Vec<Spanned<Rule>>,
    #[serde(default)]
    ask: Vec<Spanned<Rule>>,
    #[serde(default)]
    deny: Vec<Spanned<Rule>>,
    #[serde(default)]
    callers: BTreeMap<String, RawCaller>,
    #[serde(default)]
    test: Vec<Spanned<RawCase>>,
}

/// A file of cases only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCases {
    #[serde(default)]
    callers: BTreeMap<String, RawCaller>,
    #[serde(default)]
    test: Vec<Spanned<RawCase>>,
}

/// Reads a policy file and what it names.
pub(crate) fn load(file: &Path, read: &impl Fn(&Path) -> std::io::Result<String>) -> Result<File, PolicyError> {
    let text = text_of(file, read)?;
    let mut loaded = File {
        files: vec![file.to_owned()],
        zone: TimeZone::UTC,
        facts: Vec::new(),
        sources: Vec::new(),
        cases: Vec::new(),
    };
    if file.extension().is_some_and(|extension| extension == "cedar") {
        loaded.add_cedar(file, &text);
    } else {
        loaded.add_toml(file, &text, read)?;
    }
    if loaded.sources.len() > MAX_POLICIES {
        return Err(PolicyError::one(format!("{}: there are more than {MAX_POLICIES} policies", file.display())));
    }
    Ok(loaded)
}

/// Reads a file of cases.
pub(crate) fn cases(file: &Path, text: &str) -> Result<Vec<Case>, PolicyError> {
    let raw: RawCases = toml::from_str(text).map_err(|error| wrong_toml(file, text, &error))?;
    named_cases(file, text, raw.test, &raw.callers)
}

fn named_cases(
    file: &Path,
    text: &str,
    cases: Vec<Spanned<RawCase>>,
    callers: &BTreeMap<String, RawCaller>,
) -> Result<Vec<Case>, PolicyError> {
    let mut out = Vec::with_capacity(cases.len());
    for case in cases {
        let place = place(file, text, case.span().start);
        out.push(
            case.into_inner().check(&place, callers).map_err(|what| PolicyError::one(format!("{place}: {what}")))?,
        );
    }
    Ok(out)
}

fn text_of(file: &Path, read: &impl Fn(&Path) -> std::io::Result<String>) -> Result<String, PolicyError> {
    let text = read(file)
        .map_err(|error| PolicyError::one(format!("{}: the policy file cannot be read: {error}", file.display())))?;
    if text.len() > MAX_FILE {
        return Err(PolicyError::one(format!(
            "{}: a policy file has at most 32 MiB; make several of it",
            file.display()
        )));
    }
    Ok(text)
}

fn wrong_toml(file: &Path, text: &str, error: &toml::de::Error) -> PolicyError {
    let at = error.span().map_or(0, |span| span.start);
    PolicyError::one(format!("{}: {}", place(file, text, at), error.message()))
}

fn place(file: &Path, text: &str, offset: usize) -> String {
    format!("{}:{}", file.display(), line(text, offset))
}

fn line(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

impl File {
    fn add_cedar(&mut self, file: &Path, text: &str) {
        let name = file.display().to_string();
        self.sources.extend(statements::split(text).into_iter().map(|statement| Source {
            text: statement.text.to_owned(),
            file: name.clone(),
            line: statement.line,
            written: false,
        }));
    }

    fn add_toml(
        &mut self,
        file: &Path,
        text: &str,
        read: &impl Fn(&Path) -> std::io::Result<String>,
    ) -> Result<(), PolicyError> {
        let raw: Raw = toml::from_str(text).map_err(|error| wrong_toml(file, text, &error))?;
        if let Some(zone) = &raw.timezone {
            self.zone = TimeZone::get(zone.get_ref()).map_err(|_| {
                let place = place(file, text, zone.span().start);
                PolicyError::one(format!("{place}: no time zone `{}`: write it as Europe/Berlin", zone.get_ref()))
            })?;
        }
        if raw.cedar.len() > MAX_FILES {
            return Err(PolicyError::one(format!("{}: `cedar` names more than {MAX_FILES} files", file.display())));
        }
        let mut problems = Vec::new();
        for (name, spec) in &raw.facts {
            let place = place(file, text, spec.span().start);
            match check_name(name).map_err(|why| format!("{place}: {why}")) {
                Ok(()) => self.declare(name, spec.get_ref(), place, false, &mut problems),
                Err(problem) => problems.push(problem),
            }
        }
        for (kind, rules) in [(Kind::Allow, &raw.allow), (Kind::Ask, &raw.ask), (Kind::Deny, &raw.deny)] {
            for (at, rule) in rules.iter().enumerate() {
                let line = line(text, rule.span().start);
                let place = format!("{}:{line}", file.display());
                match rule.get_ref().write(kind, at + 1) {
                    Err(problem) => problems.push(format!("{place}: {problem}")),
                    Ok(written) => {
                        for (name, spec) in &written.facts {
                            self.declare(name, spec, place.clone(), true, &mut problems);
                        }
                        self.sources.extend(written.policies.into_iter().map(|text| Source {
                            text,
                            file: file.display().to_string(),
                            line,
                            written: true,
                        }));
                    }
                }
            }
        }
        if self.facts.len() > MAX_FACTS {
            problems.push(format!("{}: there are more than {MAX_FACTS} facts", file.display()));
        }
        if !problems.is_empty() {
            problems.truncate(PolicyError::MOST);
            return Err(PolicyError { problems });
        }
        for name in &raw.cedar {
            let path = file.parent().unwrap_or(Path::new("")).join(name);
            let text = text_of(&path, read)?;
            self.add_cedar(&path, &text);
            self.files.push(path);
        }
        self.cases = named_cases(file, text, raw.test, &raw.callers)?;
        Ok(())
    }

    fn declare(&mut self, name: &str, spec: &Spec, place: String, written: bool, problems: &mut Vec<String>) {
        let declared = Declared::new(name, spec, place, written).and_then(|declared| {
            if written && !declared.matcher.is_bool() {
                return Err(format!(
                    "{}: a condition is true or false: give it an operator such as `max`",
                    declared.place
                ));
            }
            Ok(declared)
        });
        match declared {
            Ok(declared) => self.facts.push(declared),
            Err(problem) => problems.push(problem),
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !plain || name.len() > MAX_NAME || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(format!(
            "`{name}` is no name of a fact: lower-case letters, digits and `_`, a letter first, up to 64"
        ));
    }
    if RESERVED.contains(&name) || name.starts_with("where_") {
        return Err(format!("`{name}` is taken; call the fact something else"));
    }
    Ok(())
}

/// Checks policies against the schema and each other, and finds the facts that each uses.
pub(crate) fn check(
    schema: &Schema,
    sources: &[Source],
    policies: &mut [Loaded],
    facts: &[Declared],
) -> Result<(), PolicyError> {
    let mut problems = Vec::new();
    names_differ(policies, &mut problems);
    let by_name: HashMap<&str, usize> = facts.iter().enumerate().map(|(at, fact)| (fact.name.as_str(), at)).collect();
    for policy in policies.iter_mut() {
        match facts_of(policy, &by_name, facts) {
            Ok(used) => policy.facts = used,
            Err(problem) => problems.push(problem),
        }
    }
    // A fact that there is not would be told twice.
    if problems.is_empty() {
        let set = PolicySet::from_policies(policies.iter().map(|policy| policy.whole.clone()))
            .map_err(|error| PolicyError::one(error.to_string()))?;
        let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
        // One for each policy: it is checked for each action, and fails for most of them alike.
        let mut first: BTreeMap<usize, String> = BTreeMap::new();
        for error in result.validation_errors() {
            let at: usize = error.policy_id().to_string().parse().unwrap_or(usize::MAX);
            let text = said(error);
            let known = first.entry(at).or_insert_with(|| text.clone());
            if text < *known {
                *known = text;
            }
        }
        let place = |at: &usize| sources.get(*at).map(Source::place).unwrap_or_default();
        problems.extend(first.iter().map(|(at, text)| format!("{}: {text}", place(at))));
    }
    problems.truncate(PolicyError::MOST);
    if problems.is_empty() { Ok(()) } else { Err(PolicyError { problems }) }
}

/// What Cedar says, without its own name for the policy.
pub(crate) fn said(error: &(impl std::fmt::Display + miette::Diagnostic)) -> String {
    let text = error.to_string();
    let text = match text.strip_prefix("for policy `").and_then(|rest| rest.split_once("`, ")) {
        Some((_, rest)) => rest.to_owned(),
        None => text,
    };
    match error.help() {
        Some(help) => format!("{text} ({help})"),
        None => text,
    }
}

fn names_differ(policies: &[Loaded], problems: &mut Vec<String>) {
    let mut seen: HashMap<&str, &str> = HashMap::new();
    for policy in policies.iter().filter(|policy| policy.named) {
        if let Some(first) = seen.insert(policy.name.as_str(), &policy.place) {
            problems.push(format!("{}: the name `{}` is taken by {first}; choose another", policy.place, policy.name));
        }
    }
}

/// The facts that a policy uses. All are for the same tools: a policy speaks of the tools that its facts are for, and a
/// policy of two kinds of tools would speak of neither.
fn facts_of(policy: &Loaded, by_name: &HashMap<&str, usize>, facts: &[Declared]) -> Result<Vec<usize>, String> {
    let uses = policy.uses();
    if uses.all_facts {
        return Err(format!("{}: name the fact that is meant: context.facts.NAME", policy.place));
    }
    let mut used: Vec<usize> = Vec::new();
    for name in &uses.facts {
        let at = by_name
            .get(name.as_str())
            .ok_or_else(|| format!("{}: no fact `{name}` is declared: declare it in [facts.{name}]", policy.place))?;
        used.push(*at);
    }
    let mut of = used.iter().filter_map(|at| facts.get(*at));
    if let Some(first) = of.next()
        && let Some(other) = of.find(|other| (&other.routes, &other.tools) != (&first.routes, &first.tools))
    {
        return Err(format!(
            "{}: the facts `{}` and `{}` are for different tools: declare both for the same `routes` and `tools`, or write \
             two policies",
            policy.place, first.name, other.name
        ));
    }
    Ok(used)
}
