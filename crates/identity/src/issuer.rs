//! Callers by the tokens of an identity provider or of a runner: what such a token has to say, and what is made of it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::claims::MAX_ACTORS;
use crate::keys::{Algorithm, KeySet};
use crate::token::{Rules, Unknown, Verified, open};
use crate::{Assurance, Caller};

/// Longest text that is taken from a token, in bytes.
const MAX_TEXT: usize = 1024;
/// Most values of one claim.
const MAX_VALUES: usize = 512;
/// Most audiences of one token.
const MAX_AUDIENCES: usize = 32;
/// The types of tokens that are taken, in lower case (RFC 9068 section 2.1 has the second).
const TYPES: [&str; 4] = ["", "jwt", "at+jwt", "application/at+jwt"];

/// Which tokens of an issuer are taken, and what is made of their claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerRules {
    /// Its name, as its tokens say it in `iss`.
    pub issuer: String,
    /// What it signs with.
    pub algorithms: Vec<Algorithm>,
    /// What a token has to have: the name of a claim, and the values of which it must have one; any value, where there
    /// are none.
    pub required: BTreeMap<String, Vec<String>>,
    /// What the caller is called.
    pub subject: Template,
    /// What the caller's name has to begin with; nothing in particular where empty.
    pub subject_prefix: String,
    /// The only callers that it may speak for; any, where empty.
    pub callers: Vec<String>,
    /// Further things known of the caller, and the claims that say them.
    pub fields: BTreeMap<Field, String>,
    /// What policies see, by name, and the claims that say it.
    pub claims: BTreeMap<String, String>,
    /// How far its clock may be off, in seconds.
    pub leeway: i64,
    /// Longest life of a token, in seconds.
    pub max_lifetime: i64,
}

/// What can be known of a caller beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// The person it acts for.
    User,
    /// The agent.
    Agent,
    /// The version of the agent.
    AgentVersion,
    /// The session.
    Session,
    /// The use of a tool.
    ToolUse,
    /// Where it calls from.
    Region,
}

/// A text with claims in it: `user:{email}`. A claim of a claim is written with a dot, `{act.sub}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Claim(String),
}

/// Why a text is no template.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no text with claims in braces, such as `{{sub}}` or `user:{{email}}`")]
pub struct TemplateError(String);

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let wrong = || TemplateError(text.to_owned());
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (claim, after) = behind.split_once('}').ok_or_else(wrong)?;
            if claim.is_empty() || claim.contains('{') || before.contains('}') {
                return Err(wrong());
            }
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Claim(claim.to_owned()));
            rest = after;
        }
        // Without a claim, all callers of the issuer would be one.
        if pieces.is_empty() || rest.contains('}') {
            return Err(wrong());
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Claim(claim) => write!(f, "{{{claim}}}"),
        })
    }
}

impl Template {
    fn fill(&self, claims: &Map<String, Value>) -> Result<String, Unknown> {
        let mut whole = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => whole.push_str(text),
                Piece::Claim(name) => whole.push_str(&text(claims, name)?),
            }
        }
        Ok(whole)
    }
}

impl IssuerRules {
    /// Who a token of this issuer is about. Where and when it is good is asked of the result.
    ///
    /// # Errors
    /// See [`Unknown`].
    pub fn verify(&self, token: &[u8], keys: &KeySet, now: i64) -> Result<Verified, Unknown> {
        let rules = Rules { algorithms: &self.algorithms, types: &TYPES, named_key: false };
        let claims: Map<String, Value> = open(token, keys, &rules, now)?;
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err(Unknown::Issuer);
        }
        let expires = time(&claims, "exp")?.ok_or(Unknown::Malformed)?;
        let (issued, not_before) = (time(&claims, "iat")?, time(&claims, "nbf")?);
        let begins = issued.max(not_before).unwrap_or(i64::MIN);
        if issued.is_some_and(|issued| expires.saturating_sub(issued) > self.max_lifetime) {
            return Err(Unknown::TooLong);
        }
        for (name, values) in &self.required {
            let said = texts(&claims, name)?.ok_or_else(|| Unknown::Claim(name.clone()))?;
            if !values.is_empty() && !said.iter().any(|value| values.contains(value)) {
                return Err(Unknown::Claim(name.clone()));
            }
        }
        let caller = Arc::new(self.caller(&claims, expires)?);
        let (leeway, max_life) = (self.leeway, self.max_lifetime);
        Ok(Verified { caller, audiences: audiences(&claims)?, begins, ahead: leeway, behind: leeway, max_life })
    }

    fn caller(&self, claims: &Map<String, Value>, expires: i64) -> Result<Caller, Unknown> {
        let subject = self.subject.fill(claims)?;
        let may = subject.starts_with(&self.subject_prefix)
            && (self.callers.is_empty() || self.callers.contains(&subject))
            && subject.len() <= MAX_TEXT;
        if !may {
            return Err(Unknown::Caller);
        }
        let mut caller = Caller::new(&self.issuer, subject, Assurance::Attested, expires);
        for (field, name) in &self.fields {
            let value = match find(claims, name) {
                None => continue,
                Some(_) => Some(text(claims, name)?),
            };
            match field {
                Field::User => caller.user = value,
                Field::Agent => caller.agent = value,
                Field::AgentVersion => caller.agent_version = value,
                Field::Session => caller.session = value,
                Field::ToolUse => caller.tool_use = value,
                Field::Region => caller.region = value,
            }
        }
        for (name, claim) in &self.claims {
            if let Some(values) = texts(claims, claim)? {
                caller.claims.insert(name.clone(), values);
            }
        }
        caller.token_id = claims.get("jti").and_then(Value::as_str).and_then(plain);
        caller.actors = actors(claims)?;
        Ok(caller)
    }
}

/// A claim by its name, or, with dots, a member of one.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return (!value.is_null()).then_some(value);
    }
    let (outer, inner) = name.split_once('.')?;
    find(claims.get(outer)?.as_object()?, inner)
}

/// A claim that is one text, number or truth.
fn text(claims: &Map<String, Value>, name: &str) -> Result<String, Unknown> {
    find(claims, name).and_then(scalar).filter(|text| !text.is_empty()).ok_or_else(|| Unknown::Claim(name.to_owned()))
}

/// A claim that is one value or a list of them; `None` when it is absent.
fn texts(claims: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, Unknown> {
    let wrong = || Unknown::Claim(name.to_owned());
    match find(claims, name) {
        None => Ok(None),
        // A list that was cut could hide what a policy forbids: it is refused as a whole.
        Some(Value::Array(values)) if values.len() > MAX_VALUES => Err(wrong()),
        Some(Value::Array(values)) => {
            values.iter().map(|value| scalar(value).ok_or_else(wrong)).collect::<Result<_, _>>().map(Some)
        }
        Some(value) => Ok(Some(vec![scalar(value).ok_or_else(wrong)?])),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => plain(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// A text that can be shown and kept.
fn plain(text: &str) -> Option<String> {
    (text.len() <= MAX_TEXT && !text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// A time in whole seconds; RFC 7519 allows fractions, which are cut.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<i64>, Unknown> {
    match claims.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64() {
            Some(seconds) => Ok(Some(seconds)),
            None => value.as_f64().and_then(whole).map(Some).ok_or(Unknown::Malformed),
        },
    }
}

#[expect(clippy::cast_possible_truncation, reason = "within the bounds that are checked")]
fn whole(seconds: f64) -> Option<i64> {
    (0.0..=1e15).contains(&seconds).then(|| seconds.floor() as i64)
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<String>, Unknown> {
    match claims.get("aud") {
        Some(Value::String(audience)) => Ok(vec![audience.clone()]),
        Some(Value::Array(listed)) if listed.len() <= MAX_AUDIENCES => {
            let all = listed.iter().map(|value| value.as_str().map(str::to_owned));
            all.collect::<Option<_>>().ok_or(Unknown::Malformed)
        }
        _ => Err(Unknown::Malformed),
    }
}

/// The chain of actors (RFC 8693 section 4.1), nearest first.
fn actors(claims: &Map<String, Value>) -> Result<Vec<String>, Unknown> {
    let mut actors = Vec::new();
    let mut next = claims.get("act");
    while let Some(actor) = next {
        let sub = actor.get("sub").and_then(Value::as_str).and_then(plain);
        if actors.len() == MAX_ACTORS {
            return Err(Unknown::Claim("act".to_owned()));
        }
        actors.push(sub.ok_or_else(|| Unknown::Claim("act".to_owned()))?);
        next = actor.get("act");
    }
    Ok(actors)
}

#[cfg(test)]
mod tests;
