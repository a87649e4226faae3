//! `[[audit.sinks]]`: where the records of the audit log are delivered.

mod shown;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_credentials::{CredentialKind, CredentialSpec, Trust, Username, is_private_url};
use sortie_sinks::{
    Batch, Begin, Body, Confirm, Encoding, Format, HttpSpec, OnFull, OnRefused, OtlpSpec, SinkKind, SinkSpec,
    SplunkSpec, SyslogSpec, Tls,
};
use sortie_tls::ServerName;
use toml::Spanned;
use url::Url;

use super::credentials::{RawSource, Wrong, check_header, dotted, place};
use super::{ConfigError, Source, Span};

/// Most sinks.
const MOST: usize = 16;
/// Longest name, in bytes.
const MAX_NAME: usize = 64;
/// Bounds of a batch.
const MOST_RECORDS: usize = 10_000;
const BATCH_BYTES: std::ops::RangeInclusive<usize> = 1024..=16 * 1024 * 1024;
/// Least that a sink may leave behind it, in bytes.
const LEAST_SPOOL: u64 = 1024 * 1024;
/// The facilities of syslog.
const MAX_FACILITY: u8 = 23;
/// `log audit`.
const AUDIT_FACILITY: u8 = 13;
const SOURCETYPE: &str = "sortie:audit";

/// A receiver of the records: they are delivered in order, each at least once, from the log itself.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AuditSink")]
pub(super) struct RawSink {
    /// The name by which records, metrics and errors call it: 1 to 64 of a-z, 0-9 and `-`; unique. What was delivered is
    /// remembered under it.
    name: String,
    /// What it is.
    kind: RawKind,
    /// For syslog: where it is, HOST:PORT.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    /// For the others: where it is; https, or http within this machine. Of splunk the base, of the others the whole URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// Whom to trust, and what is shown to it. For syslog, that it is spoken TLS with.
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<RawSinkTls>,
    /// For syslog without tls to another machine: that everybody on the way may read and change the records.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    insecure: bool,
    /// For syslog: the facility, 0 to 23. Default 13, log audit.
    #[serde(skip_serializing_if = "Option::is_none")]
    facility: Option<u8>,
    /// For syslog: the private enterprise number under which the structured data names number and event of the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    enterprise_id: Option<u32>,
    /// For syslog: when a record counts as delivered: when the receiver has read it and closed the connection in answer to
    /// our end (closed, the default), or when it was written (written), so that some may be lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    confirm: Option<RawConfirm>,
    /// For otlp: how requests are written. Default protobuf.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<RawEncoding>,
    /// For splunk: where the token of the event collector is.
    #[serde(default, deserialize_with = "maybe_place", skip_serializing_if = "Option::is_none")]
    token: Option<RawSource>,
    /// For splunk: the index. Default: that of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<String>,
    /// For splunk: the source. Default: the name of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    /// For splunk: the source type. Default sortie:audit.
    #[serde(skip_serializing_if = "Option::is_none")]
    sourcetype: Option<String>,
    /// For splunk: whether a record counts as delivered only when the indexer acknowledges it; to be switched on for the
    /// token, too. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    acknowledge: Option<bool>,
    /// For http: POST (default) or PUT.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<RawMethod>,
    /// For http: one record a line (lines, the default), or a JSON array.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<RawBody>,
    /// For otlp and http: what is shown to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<RawSinkCredential>,
    /// What a record looks like: its line in the log (sortie), or an event of OCSF (ocsf).
    #[serde(default)]
    format: RawFormat,
    /// Where a new sink begins: with the first record of the log (start), or with the next one (now).
    #[serde(default)]
    from: RawFrom,
    /// How many bytes of the log may be undelivered; at least 1048576. Default 1073741824.
    #[serde(skip_serializing_if = "Option::is_none")]
    spool_bytes: Option<u64>,
    /// What happens when more are: calls are refused until half of it is delivered (deny), or the oldest are not delivered,
    /// and a record says which (drop-and-count).
    #[serde(default)]
    on_full: RawOnFull,
    /// What happens to a record that the receiver refuses for good: it is offered again from time to time, and nothing
    /// behind it (stop), or it is not delivered, and a record says so (skip).
    #[serde(default)]
    on_refused: RawOnRefused,
    /// Most records at once, 1 to 10000. Default 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_records: Option<usize>,
    /// Most bytes of records at once, 1024 to 16777216; one record is always sent. Default 1048576.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_bytes: Option<usize>,
    /// How long a record waits for others. Default 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_wait: Option<Span>,
    /// How long one step may take: a connection, a request with its answer. Default 10s.
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<Span>,
}

/// Whom to trust, and what to show.
#[derive(Clone, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SinkTls")]
struct RawSinkTls {
    /// CA certificates (PEM) that its certificate may chain to.
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
    /// Whether the machine's own CAs are trusted, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    include_system_cas: bool,
    /// The certificate (PEM, with its chain) that is shown to it where it asks for one; needs client_key_file.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cert_file: Option<PathBuf>,
    /// Its private key in PEM; needs client_cert_file.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key_file: Option<PathBuf>,
    /// For syslog: whom its certificate has to be for. Default: the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
}

/// A secret in a header: Authorization with Bearer, unless header or username says otherwise.
#[derive(Clone, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "SinkCredential")]
struct RawSinkCredential {
    /// Where the secret is.
    #[serde(deserialize_with = "place")]
    secret: RawSource,
    /// Another header, such as X-Api-Key.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<String>,
    /// With header: what is put before the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    /// The user of Authorization with Basic, whose password the secret is.
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
}

fn maybe_place<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<RawSource>, D::Error> {
    place(deserializer).map(Some)
}

/// Names of settings, for what the sinks know by types of their own.
macro_rules! names {
    ($($raw:ident as $shown:literal in $case:literal = $own:ident { $($name:ident => $value:path),+ })+) => {$(
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
        #[serde(rename_all = $case)]
        #[schemars(rename = $shown)]
        enum $raw { $($name),+ }

        impl From<$raw> for $own {
            fn from(raw: $raw) -> Self {
                match raw { $($raw::$name => $value),+ }
            }
        }

        impl From<$own> for $raw {
            fn from(own: $own) -> Self {
                match own { $($value => Self::$name),+ }
            }
        }

        impl Default for $raw {
            fn default() -> Self {
                $own::default().into()
            }
        }
    )+};
}

names! {
    RawConfirm as "SinkConfirm" in "snake_case" = Confirm { Closed => Confirm::Closed, Written => Confirm::Written }
    RawEncoding as "SinkEncoding" in "snake_case" = Encoding { Protobuf => Encoding::Protobuf, Json => Encoding::Json }
    RawBody as "SinkBody" in "snake_case" = Body { Lines => Body::Lines, Array => Body::Array }
    RawFormat as "SinkFormat" in "snake_case" = Format { Sortie => Format::Sortie, Ocsf => Format::Ocsf }
    RawFrom as "SinkFrom" in "snake_case" = Begin { Start => Begin::Oldest, Now => Begin::Now }
    RawOnFull as "SinkOnFull" in "kebab-case" = OnFull { Deny => OnFull::Deny, DropAndCount => OnFull::DropAndCount }
    RawOnRefused as "SinkOnRefused" in "snake_case" = OnRefused { Stop => OnRefused::Stop, Skip => OnRefused::Skip }
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "SinkKind")]
enum RawKind {
    /// RFC 5424 over TLS or TCP.
    Syslog,
    /// OTLP logs over HTTP.
    Otlp,
    /// The HTTP Event Collector of Splunk.
    Splunk,
    /// Any HTTP endpoint.
    Http,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(rename = "SinkMethod")]
enum RawMethod {
    Post,
    Put,
}

/// The sinks of the settings, in the table of this name. `vaults` are the names of those that there are.
pub(super) fn check(
    raw: Vec<Spanned<RawSink>>,
    source: &Source<'_>,
    table: &str,
    base: &Path,
    vaults: &dyn Fn(&str) -> bool,
) -> Result<Vec<SinkSpec>, ConfigError> {
    let mut checked: Vec<SinkSpec> = Vec::with_capacity(raw.len());
    for (number, raw) in raw.into_iter().enumerate() {
        let at = raw.span();
        let wrong = |(setting, reason): Wrong| {
            source.wrong(Some(at.clone()), &format!("{table}.{number}{}", dotted(&setting)), reason)
        };
        if number >= MOST {
            return Err(wrong((String::new(), format!("there are more than {MOST}"))));
        }
        let sink = raw.into_inner().check(base, vaults).map_err(wrong)?;
        if checked.iter().any(|other| other.name == sink.name) {
            let reason = format!("there are two sinks `{}`; give one another name", sink.name);
            return Err(wrong(("name".to_owned(), reason)));
        }
        checked.push(sink);
    }
    Ok(checked)
}

fn wrong<T>(setting: &str, reason: impl Into<String>) -> Result<T, Wrong> {
    Err((setting.to_owned(), reason.into()))
}

impl RawSink {
    fn check(self, base: &Path, vaults: &dyn Fn(&str) -> bool) -> Result<SinkSpec, Wrong> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.bytes().all(plain) {
            return wrong("name", format!("a name has 1 to {MAX_NAME} of a-z, 0-9 and `-`"));
        }
        self.check_fitting()?;
        let kind = match self.kind {
            RawKind::Syslog => SinkKind::Syslog(self.syslog(base)?),
            RawKind::Otlp => SinkKind::Otlp(OtlpSpec {
                url: self.url()?,
                encoding: self.encoding.map(Encoding::from).unwrap_or_default(),
                credential: self.credential(base, vaults)?,
                tls: self.tls(base)?,
            }),
            RawKind::Splunk => SinkKind::Splunk(SplunkSpec {
                url: self.url()?,
                token: self.token(base, vaults)?,
                index: self.index.clone(),
                source: self.source.clone(),
                sourcetype: self.sourcetype.clone().unwrap_or_else(|| SOURCETYPE.to_owned()),
                acknowledge: self.acknowledge.unwrap_or(false),
                tls: self.tls(base)?,
            }),
            RawKind::Http => SinkKind::Http(HttpSpec {
                url: self.url()?,
                method: match self.method {
                    Some(RawMethod::Put) => Method::PUT,
                    _ => Method::POST,
                },
                body: self.body.map(Body::from).unwrap_or_default(),
                credential: self.credential(base, vaults)?,
                tls: self.tls(base)?,
            }),
        };
        let defaults = SinkSpec::new(self.name.clone(), kind);
        let spool_bytes = self.spool_bytes.unwrap_or(defaults.spool_bytes);
        if spool_bytes < LEAST_SPOOL {
            return wrong("spool_bytes", format!("write at least {LEAST_SPOOL}"));
        }
        let batch = self.batch(defaults.batch)?;
        Ok(SinkSpec {
            format: self.format.into(),
            from: self.from.into(),
            spool_bytes,
            on_full: self.on_full.into(),
            on_refused: self.on_refused.into(),
            batch,
            timeout: self.timeout.map_or(defaults.timeout, |span| span.0),
            ..defaults
        })
    }

    /// Whether each setting is one of this kind.
    fn check_fitting(&self) -> Result<(), Wrong> {
        use RawKind::{Http, Otlp, Splunk, Syslog};
        for (setting, set, of) in [
            ("address", self.address.is_some(), &[Syslog][..]),
            ("insecure", self.insecure, &[Syslog]),
            ("facility", self.facility.is_some(), &[Syslog]),
            ("enterprise_id", self.enterprise_id.is_some(), &[Syslog]),
            ("confirm", self.confirm.is_some(), &[Syslog]),
            ("tls.server_name", self.tls.as_ref().is_some_and(|tls| tls.server_name.is_some()), &[Syslog]),
            ("url", self.url.is_some(), &[Otlp, Splunk, Http]),
            ("encoding", self.encoding.is_some(), &[Otlp]),
            ("token", self.token.is_some(), &[Splunk]),
            ("index", self.index.is_some(), &[Splunk]),
            ("source", self.source.is_some(), &[Splunk]),
            ("sourcetype", self.sourcetype.is_some(), &[Splunk]),
            ("acknowledge", self.acknowledge.is_some(), &[Splunk]),
            ("method", self.method.is_some(), &[Http]),
            ("body", self.body.is_some(), &[Http]),
            ("credential", self.credential.is_some(), &[Otlp, Http]),
        ] {
            if set && !of.contains(&self.kind) {
                let kinds: Vec<&str> = of.iter().map(RawKind::name).collect();
                return wrong(setting, format!("this is for sinks of kind {}; remove it", kinds.join(" and ")));
            }
        }
        Ok(())
    }

    fn syslog(&self, base: &Path) -> Result<SyslogSpec, Wrong> {
        let Some(address) = &self.address else {
            return wrong("address", "a sink of kind syslog needs it; write HOST:PORT");
        };
        let authority: Option<http::uri::Authority> = address.parse().ok();
        let parts = authority.as_ref().filter(|authority| !authority.as_str().contains('@'));
        let parts = parts.and_then(|authority| Some((authority.host(), authority.port_u16()?)));
        let Some((host, port)) = parts.filter(|(host, port)| !host.is_empty() && *port != 0) else {
            return wrong("address", format!("`{}` is not HOST:PORT", address.escape_debug()));
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
        if self.tls.is_none() && !loopback && !self.insecure {
            let reason = "records go to other machines over TLS; set tls.ca_file or tls.include_system_cas = true \
                          (or insecure = true, and everybody on the way may read and change them)";
            return wrong("tls", reason);
        }
        if self.tls.is_some() && self.insecure {
            return wrong("insecure", "with tls it is not; remove one of the two");
        }
        let tls = match &self.tls {
            None => None,
            Some(_) => Some(self.trusting(base)?),
        };
        let server_name = self.tls.as_ref().and_then(|tls| tls.server_name.clone());
        if let Some(name) = &server_name
            && ServerName::try_from(name.as_str()).is_err()
        {
            let reason = format!("`{}` is neither a DNS name nor an IP address", name.escape_debug());
            return wrong("tls.server_name", reason);
        }
        let facility = self.facility.unwrap_or(AUDIT_FACILITY);
        if facility > MAX_FACILITY {
            return wrong("facility", format!("write 0 to {MAX_FACILITY}"));
        }
        let confirm = self.confirm.map(Confirm::from).unwrap_or_default();
        Ok(SyslogSpec { host, port, tls, server_name, facility, enterprise_id: self.enterprise_id, confirm })
    }

    fn url(&self) -> Result<Url, Wrong> {
        let Some(text) = &self.url else { return wrong("url", "a sink of this kind needs it") };
        let Ok(url) = text.parse::<Url>() else { return wrong("url", "it is no URL") };
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return wrong("url", "it holds neither a user, nor a password, nor anything behind `#`; see credential");
        }
        if !is_private_url(&url) {
            return wrong("url", "records go over https://, or over http:// within this machine only");
        }
        Ok(url)
    }

    /// Of a sink with a URL.
    fn tls(&self, base: &Path) -> Result<Tls, Wrong> {
        let https = self.url.as_deref().is_some_and(|url| url.starts_with("https:"));
        match (https, &self.tls) {
            (true, _) => self.trusting(base),
            (false, None) => Ok(Tls::default()),
            (false, Some(_)) => wrong("tls", "only https is spoken TLS with; remove it, or write https://"),
        }
    }

    fn trusting(&self, base: &Path) -> Result<Tls, Wrong> {
        let raw = self.tls.clone().unwrap_or_default();
        let ca_file = raw.ca_file.map(|file| base.join(file));
        let trust = Trust { ca_file, include_system_cas: raw.include_system_cas };
        if !trust.is_some() {
            let reason = "TLS needs to know whom to trust; set tls.ca_file or tls.include_system_cas = true";
            return wrong("tls", reason);
        }
        let client = match (raw.client_cert_file, raw.client_key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((base.join(cert), base.join(key))),
            (Some(_), None) => {
                return wrong("tls.client_cert_file", "a certificate needs its key; set client_key_file, too");
            }
            (None, Some(_)) => {
                return wrong("tls.client_key_file", "a key needs its certificate; set client_cert_file, too");
            }
        };
        Ok(Tls { trust, client })
    }

    fn token(&self, base: &Path, vaults: &dyn Fn(&str) -> bool) -> Result<CredentialSpec, Wrong> {
        let Some(token) = &self.token else { return wrong("token", "a sink of kind splunk needs it") };
        let secret = secret(token, base, vaults).map_err(|(at, why)| (format!("token{}", dotted(&at)), why))?;
        let kind = CredentialKind::Header { header: http::header::AUTHORIZATION, prefix: "Splunk ".to_owned(), secret };
        Ok(CredentialSpec { name: self.credential_name(), kind })
    }

    fn credential(&self, base: &Path, vaults: &dyn Fn(&str) -> bool) -> Result<Option<CredentialSpec>, Wrong> {
        let Some(raw) = &self.credential else { return Ok(None) };
        let within = |(at, why): Wrong| (format!("credential.secret{}", dotted(&at)), why);
        let secret = secret(&raw.secret, base, vaults).map_err(within)?;
        let kind = match (&raw.header, &raw.username) {
            (Some(_), Some(_)) => return wrong("credential", "set one of header and username"),
            (Some(name), None) => {
                let header = check_header(name).or_else(|reason| wrong("credential.header", reason))?;
                let prefix = raw.prefix.clone().unwrap_or_default();
                if !prefix.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                    return wrong("credential.prefix", "it has characters that no header can have");
                }
                CredentialKind::Header { header, prefix, secret }
            }
            (None, _) if raw.prefix.is_some() => {
                return wrong("credential.prefix", "this is for a header of its own; set header, too, or remove it");
            }
            (None, Some(name)) if name.contains(':') => {
                return wrong("credential.username", "a user name of Basic has no colon (RFC 7617)");
            }
            (None, Some(name)) => CredentialKind::Basic { username: Username::Is(name.clone()), secret },
            (None, None) => CredentialKind::Bearer { secret },
        };
        Ok(Some(CredentialSpec { name: self.credential_name(), kind }))
    }

    fn credential_name(&self) -> String {
        format!("audit sink {}", self.name)
    }

    fn batch(&self, defaults: Batch) -> Result<Batch, Wrong> {
        let records = self.batch_records.unwrap_or(defaults.records);
        if !(1..=MOST_RECORDS).contains(&records) {
            return wrong("batch_records", format!("write 1 to {MOST_RECORDS}"));
        }
        let bytes = self.batch_bytes.unwrap_or(defaults.bytes);
        if !BATCH_BYTES.contains(&bytes) {
            return wrong("batch_bytes", format!("write {} to {}", BATCH_BYTES.start(), BATCH_BYTES.end()));
        }
        let wait: Duration = self.batch_wait.map_or(defaults.wait, |span| span.0);
        Ok(Batch { records, bytes, wait })
    }
}

impl RawKind {
    fn name(&self) -> &'static str {
        match self {
            Self::Syslog => "syslog",
            Self::Otlp => "otlp",
            Self::Splunk => "splunk",
            Self::Http => "http",
        }
    }
}

fn secret(raw: &RawSource, base: &Path, vaults: &dyn Fn(&str) -> bool) -> Result<sortie_credentials::Source, Wrong> {
    let source = raw.clone().check(base)?;
    match &source {
        sortie_credentials::Source::Vault(secret) if !vaults(&secret.server) => {
            let server = &secret.server;
            wrong("vault", format!("there is no vault `{server}`; add [vault.{server}] with its address"))
        }
        _ => Ok(source),
    }
}
