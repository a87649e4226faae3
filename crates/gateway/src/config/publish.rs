//! `[[audit.publish]]`: where the checkpoints of the audit are published, beside the hub.

use std::path::{Path, PathBuf};

use http::{HeaderName, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_credentials::{CredentialKind, CredentialSpec, Source as Secret, Trust};
use sortie_sinks::Tls;
use sortie_sinks::publish::{PlaceKind, PlaceSpec};
use toml::Spanned;
use url::Url;

use super::{ConfigError, Source};

/// Most places.
const MOST: usize = 16;
/// Longest name of a place, in characters.
const MAX_NAME: usize = 64;
/// What a secret is sent in, unless the settings name another header.
const HEADER: &str = "authorization";

/// A place where checkpoints of the audit are published. Names one of file, url and witness.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Publish")]
pub(super) struct RawPublish {
    /// The name by which metrics and errors call it: 1 to 64 of a-z, 0-9 and -.
    name: String,
    /// A directory: a new file for each checkpoint, below one that is named after the log; none is written twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    /// An object store, or any HTTP endpoint; {origin} and {size} stand for the log and the number of records.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// PUT or POST. Default PUT.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// The header that the secret is sent in. Default authorization.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    /// What is put before the secret. Default Bearer and a blank for authorization, nothing for other headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// The file with the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<PathBuf>,
    /// A witness (C2SP tlog-witness): its submission prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    witness: Option<String>,
    /// What the signatures of the witness are verified with: NAME+HASH+KEY.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// CA certificates (PEM) that are trusted behind https.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted, too. Default: where there is no ca_file.
    #[serde(skip_serializing_if = "Option::is_none")]
    include_system_cas: Option<bool>,
}

/// The places of the settings, in the table of this name.
pub(super) fn check(
    raw: Vec<Spanned<RawPublish>>,
    source: &Source<'_>,
    table: &str,
    base: &Path,
) -> Result<Vec<PlaceSpec>, ConfigError> {
    let mut checked: Vec<PlaceSpec> = Vec::with_capacity(raw.len());
    for place in raw {
        let at = place.span();
        let wrong = |name: &str, reason| source.wrong(Some(at.clone()), &format!("{table}.{name}"), reason);
        let place = place.into_inner().check(base).map_err(|(name, reason)| wrong(name, reason))?;
        if checked.iter().any(|other| other.name == place.name) {
            return Err(wrong("name", format!("two places have the name `{}`", place.name)));
        }
        if checked.len() == MOST {
            return Err(wrong("name", format!("there are more than {MOST} places")));
        }
        checked.push(place);
    }
    Ok(checked)
}

impl RawPublish {
    /// The place; else the setting that is wrong, and why.
    fn check(self, base: &Path) -> Result<PlaceSpec, (&'static str, String)> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=MAX_NAME).contains(&self.name.len()) || !self.name.chars().all(plain) || self.name == "hub" {
            return Err(("name", "write 1 to 64 of a-z, 0-9 and -; `hub` is the hub itself".to_owned()));
        }
        let named = [self.file.is_some(), self.url.is_some(), self.witness.is_some()];
        if named.iter().filter(|named| **named).count() != 1 {
            return Err(("file", "name exactly one of file, url and witness".to_owned()));
        }
        let ca_file = self.ca_file.as_ref().map(|file| base.join(file));
        let include_system_cas = self.include_system_cas.unwrap_or(ca_file.is_none());
        let tls = Tls { trust: Trust { ca_file, include_system_cas }, client: None };
        for (given, name, with) in [
            (self.method.is_some(), "method", self.url.is_some()),
            (self.header.is_some(), "header", self.secret_file.is_some()),
            (self.prefix.is_some(), "prefix", self.secret_file.is_some()),
            (self.secret_file.is_some(), "secret_file", self.url.is_some()),
            (self.key.is_some(), "key", self.witness.is_some()),
            (self.ca_file.is_some() || self.include_system_cas.is_some(), "ca_file", self.file.is_none()),
        ] {
            if given && !with {
                return Err((name, "it has no meaning here; remove it".to_owned()));
            }
        }
        let name = self.name.clone();
        let kind = if let Some(dir) = &self.file {
            PlaceKind::File(base.join(dir))
        } else if let Some(witness) = &self.witness {
            let key = self.key.as_deref().unwrap_or_default().parse().map_err(|error| ("key", format!("{error}")))?;
            PlaceKind::Witness { url: url(witness, false).map_err(|reason| ("witness", reason))?, key, tls }
        } else {
            let template = self.url.clone().unwrap_or_default();
            let sample = template.replace("{origin}", "log").replace("{size}", "0");
            url(&sample, self.secret_file.is_some()).map_err(|reason| ("url", reason))?;
            let method = match self.method.as_deref() {
                None | Some("PUT") => Method::PUT,
                Some("POST") => Method::POST,
                Some(_) => return Err(("method", "write PUT or POST".to_owned())),
            };
            let credential = self.credential(base)?.map(Box::new);
            PlaceKind::Url { method, template, credential, tls }
        };
        Ok(PlaceSpec { name, kind })
    }

    fn credential(&self, base: &Path) -> Result<Option<CredentialSpec>, (&'static str, String)> {
        let Some(file) = &self.secret_file else { return Ok(None) };
        let header = self.header.as_deref().unwrap_or(HEADER).to_ascii_lowercase();
        let prefix =
            self.prefix.clone().unwrap_or_else(|| if header == HEADER { "Bearer ".into() } else { String::new() });
        let header = header.parse::<HeaderName>().map_err(|_| ("header", "this is no name of a header".to_owned()))?;
        if !prefix.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
            return Err(("prefix", "write visible ASCII and blanks".to_owned()));
        }
        let kind = CredentialKind::Header { header, prefix, secret: Secret::File(base.join(file)) };
        Ok(Some(CredentialSpec { name: format!("audit.publish {}", self.name), kind }))
    }
}

/// A URL that a checkpoint may go to; a secret is sent in plain text within this machine only.
fn url(text: &str, secret: bool) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("this is no URL: {error}"))?;
    let local = url.host_str().is_some_and(sortie_api::is_loopback_name);
    match url.scheme() {
        "https" => Ok(url),
        "http" if local || !secret => Ok(url),
        "http" => Err("a secret is sent by https only, but to this machine".to_owned()),
        _ => Err("write https://".to_owned()),
    }
}

impl From<&PlaceSpec> for RawPublish {
    fn from(place: &PlaceSpec) -> Self {
        let named = Self { name: place.name.clone(), ..Self::default() };
        let trusting = |tls: &Tls| (tls.trust.ca_file.clone(), Some(tls.trust.include_system_cas));
        match &place.kind {
            PlaceKind::File(dir) => Self { file: Some(dir.clone()), ..named },
            PlaceKind::Witness { url, key, tls } => {
                let (ca_file, include_system_cas) = trusting(tls);
                let (witness, key) = (Some(url.to_string()), Some(key.to_string()));
                Self { witness, key, ca_file, include_system_cas, ..named }
            }
            PlaceKind::Url { method, template, credential, tls } => {
                let (ca_file, include_system_cas) = trusting(tls);
                let (url, method) = (Some(template.clone()), Some(method.to_string()));
                let named = Self { url, method, ca_file, include_system_cas, ..named };
                match credential.as_deref().map(|credential| &credential.kind) {
                    Some(CredentialKind::Header { header, prefix, secret: Secret::File(file) }) => Self {
                        header: Some(header.to_string()),
                        prefix: Some(prefix.clone()),
                        secret_file: Some(file.clone()),
                        ..named
                    },
                    _ => named,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;

    const ROUTE: &str = "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n[[audit.publish]]\n";
    const KEY: &str = "witness.example.com/w1+4132fd93+BAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";

    fn parse(text: &str) -> Result<GatewayConfig, String> {
        let path = Path::new("/etc/sortie/gateway.toml");
        GatewayConfig::parse(&format!("{ROUTE}{text}"), path).map_err(|error| error.to_string())
    }

    #[test]
    fn every_place_is_read_and_shown_again() {
        let witness = format!("name = \"w\"\nwitness = \"https://witness.example.com/x\"\nkey = \"{KEY}\"\n");
        for text in [
            "name = \"worm\"\nfile = \"worm\"\n",
            "name = \"a\"\nurl = \"https://b.example.com/{origin}/{size}\"\n",
            "name = \"a\"\nurl = \"http://127.0.0.1:1/x\"\nmethod = \"POST\"\nsecret_file = \"s\"\nca_file = \"ca.pem\"\n",
            "name = \"a\"\nurl = \"https://b.example.com/\"\nheader = \"X-Key\"\nprefix = \"k \"\nsecret_file = \"/s\"\n",
            witness.as_str(),
        ] {
            let config = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(config.audit.publish.len(), 1);
            let shown = config.to_toml().expect("toml");
            let again = GatewayConfig::parse(&shown, Path::new("/etc/sortie/gateway.toml")).expect("the same");
            assert_eq!(again.audit, config.audit, "{shown}");
        }
    }

    #[test]
    fn wrong_places_are_named() {
        for (text, said) in [
            ("name = \"a\"\n", "audit.publish.file: name exactly one of"),
            ("name = \"a\"\nfile = \"x\"\nurl = \"https://b/\"\n", "audit.publish.file: name exactly one of"),
            ("name = \"hub\"\nfile = \"x\"\n", "audit.publish.name: write 1 to 64"),
            ("name = \"a b\"\nfile = \"x\"\n", "audit.publish.name: write 1 to 64"),
            ("name = \"a\"\nfile = \"x\"\nmethod = \"PUT\"\n", "audit.publish.method: it has no meaning here"),
            ("name = \"a\"\nurl = \"https://b/\"\nmethod = \"GET\"\n", "audit.publish.method: write PUT or POST"),
            (
                "name = \"a\"\nurl = \"http://b/\"\nsecret_file = \"s\"\n",
                "audit.publish.url: a secret is sent by https",
            ),
            ("name = \"a\"\nurl = \"ftp://b/\"\n", "audit.publish.url: write https"),
            ("name = \"a\"\nwitness = \"https://b/\"\n", "audit.publish.key: not the key of a witness"),
            ("name = \"a\"\nfile = \"x\"\n[[audit.publish]]\nname = \"a\"\nfile = \"y\"\n", "two places have the name"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
