//! Settings of models: a file in TOML that names upstreams, and where their keys are. It never holds a key.

mod key;
mod upstream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use sortie_credentials::{CredentialSpec, Trust};
use url::Url;

use crate::model::ModelLimits;
use upstream::RawUpstream;

/// Largest file of settings, and largest script, in bytes.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// Most upstreams.
const MAX_UPSTREAMS: usize = 64;
/// Most scripts.
const MAX_SCRIPTS: usize = 64;
/// Longest name of an upstream or a script, in bytes.
const MAX_NAME: usize = 64;

/// The settings of models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelsConfig {
    /// Endpoints of the Messages API, in the order in which they are tried.
    pub upstreams: Vec<Upstream>,
    /// Files with scripts for the scripted model, by their names.
    pub scripts: BTreeMap<String, PathBuf>,
}

/// An endpoint of the Messages API.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// The name by which errors, metrics and logs call it.
    pub name: String,
    /// Which models it serves: names, in which `*` stands for any text.
    pub serves: Vec<String>,
    /// What `/v1/messages` is put behind.
    pub base_url: Url,
    /// The key that it is asked with.
    pub credential: Option<CredentialSpec>,
    /// Headers of every request.
    pub headers: Vec<(http::HeaderName, http::HeaderValue)>,
    /// What it calls the model; `*` stands for the agent's name of it.
    pub model: String,
    /// Requests to it at the same time. Further ones go to the next upstream, or wait.
    pub max_in_flight: usize,
    /// How long is waited for it.
    pub timeouts: Timeouts,
    /// How much its models take and give.
    pub limits: ModelLimits,
    /// Whether it is told what to keep in its cache.
    pub prompt_caching: bool,
    /// Further members of every request.
    pub body: Map<String, Value>,
    /// Members that no request has.
    pub omit: Vec<String>,
    /// The proxy that it is asked through.
    pub proxy: Option<Url>,
    /// Whom to trust behind `https`.
    pub trust: Trust,
}

/// How long an upstream is waited for. A whole answer may take as long as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For the head of the answer.
    pub first_byte: Duration,
    /// For the next piece of it.
    pub between_bytes: Duration,
}

/// Why settings cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ModelsConfigError {
    /// The file.
    pub path: PathBuf,
    /// The setting, and what is wrong with it.
    pub reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    upstreams: Vec<RawUpstream>,
    #[serde(default)]
    scripts: BTreeMap<String, PathBuf>,
}

impl ModelsConfig {
    /// Reads a file. Blocks.
    ///
    /// # Errors
    /// It cannot be read, or says something that cannot be.
    pub fn load(path: &Path) -> Result<Self, ModelsConfigError> {
        let text = read(path, MAX_FILE).map_err(|reason| ModelsConfigError { path: path.to_owned(), reason })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file. Paths in it are relative to the file's directory.
    ///
    /// # Errors
    /// It says something that cannot be.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ModelsConfigError> {
        let wrong = |reason: String| ModelsConfigError { path: path.to_owned(), reason };
        let raw: Raw = toml::from_str(text).map_err(|error| wrong(told(text, &error)))?;
        let base = path.parent().unwrap_or(Path::new(""));
        if raw.upstreams.len() > MAX_UPSTREAMS {
            return Err(wrong(format!("there are more than {MAX_UPSTREAMS} upstreams")));
        }
        let mut upstreams: Vec<Upstream> = Vec::with_capacity(raw.upstreams.len());
        for (number, upstream) in raw.upstreams.into_iter().enumerate() {
            let place = format!("upstreams.{number} (`{}`)", upstream.name);
            let upstream = upstream.check(base).map_err(|reason| wrong(format!("{place}: {reason}")))?;
            if upstreams.iter().any(|other| other.name == upstream.name) {
                return Err(wrong(format!("{place}: name: there is another upstream of this name")));
            }
            upstreams.push(upstream);
        }
        if raw.scripts.len() > MAX_SCRIPTS {
            return Err(wrong(format!("there are more than {MAX_SCRIPTS} scripts")));
        }
        let mut scripts = BTreeMap::new();
        for (name, file) in raw.scripts {
            check_name(&name).map_err(|reason| wrong(format!("scripts.{name}: {reason}")))?;
            scripts.insert(name, base.join(file));
        }
        Ok(Self { upstreams, scripts })
    }

    /// What is missing for these settings, as far as it shows without asking anybody: one sentence each. Blocks.
    pub fn check(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for upstream in &self.upstreams {
            let key = upstream.credential.as_ref().map_or(Ok(()), CredentialSpec::check);
            missing.extend(key.err().map(|why| format!("upstream `{}`: its key: {why}", upstream.name)));
            missing.extend(upstream.trust.check().err().map(|why| format!("upstream `{}`: {why}", upstream.name)));
        }
        for (name, path) in &self.scripts {
            let script = read(path, MAX_FILE).and_then(|text| super::script::Script::parse(&text).map(drop));
            missing.extend(script.err().map(|why| format!("script `{name}`: {}: {why}", path.display())));
        }
        missing
    }

    /// The files that are named and whose content is part of what is in force.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        let trusted = self.upstreams.iter().filter_map(|upstream| upstream.trust.ca_file.clone());
        self.scripts.values().cloned().chain(trusted).collect()
    }
}

/// The text of a file of at most this many bytes. Blocks.
pub(super) fn read(path: &Path, most: u64) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let read = file.take(most + 1).read_to_string(&mut text).map_err(|error| format!("cannot be read: {error}"))?;
    if u64::try_from(read).is_ok_and(|read| read > most) {
        return Err(format!("has more than {most} bytes"));
    }
    Ok(text)
}

/// An error of TOML with its line, and without the line's text: somebody may have written a key there.
fn told(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {}", before.matches('\n').count() + 1, error.message()),
        None => error.message().to_owned(),
    }
}

/// Names are parts of metrics and of names of models.
fn check_name(name: &str) -> Result<(), String> {
    let usable = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(usable) {
        true => Ok(()),
        false => Err(format!("a name has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`")),
    }
}

/// A duration as people write it: a whole number followed by `ms`, `s`, `m` or `h`; not zero, at most 24 h.
fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let millis = number.parse().ok().and_then(|number: u64| number.checked_mul(unit)).unwrap_or(0);
    match (1..=86_400_000).contains(&millis) {
        true => Ok(Duration::from_millis(millis)),
        false => Err(serde::de::Error::custom("a duration is written as 500ms, 30s, 5m or 1h, and is at most 24h")),
    }
}

#[cfg(test)]
mod tests;
