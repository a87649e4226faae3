//! The hosted proxy's file, as it is: YAML with `listen_addr`, `tunnel_domain`, `tls`, a flat map of `routes`, and
//! `upstream`. Becomes the same settings as the TOML file has, so that everything behind is one.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::AliasLimits;
use serde_saphyr::{Error, MessageFormatter as _, Options, Spanned, UserMessageFormatter};
use sortie_ids::RouteName;
use toml::{Table, Value};

use super::{ConfigError, GatewayConfig, Places, Server, span_text};

/// Where upstreams may be when the file does not say: RFC 1918, and nothing else.
const DEFAULT_ALLOWED: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
/// Every IPv4 address. Loopback is meant only where it is named.
const ANY: [&str; 2] = ["0.0.0.0/0", "127.0.0.0/8"];
/// Longest `shutdown_timeout` that is kept; nobody waits longer.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What the reader may be made to do by aliases, which repeat parts of a file: a file of settings has a few, if any.
const MAX_ALIASES: usize = 100;
const MAX_REPEATED: usize = 10_000;

/// Reads settings; `path` is what errors name, and whose directory relative paths start from.
pub(super) fn parse(text: &str, path: &Path) -> Result<GatewayConfig, ConfigError> {
    let raw: Raw =
        serde_saphyr::from_str_with_options(text, options()).map_err(|error| unreadable(&error, text, path))?;
    let mut reading = Reading { path, places: Places::new(path), notes: Vec::new() };
    let table = reading.table(raw)?;
    let text = toml::to_string(&table).map_err(|error| reading.wrong(1, "", error.to_string()))?;
    // Whatever is wrong was found above, where the lines are known.
    let mut config = GatewayConfig::parse_toml(&text, path)?;
    (config.places, config.notes) = (reading.places, reading.notes);
    Ok(config)
}

fn options() -> Options {
    let mut options = Options::default();
    let mut limits = AliasLimits::default();
    limits.max_total_replayed_events = MAX_REPEATED;
    limits.max_replay_stack_depth = 8;
    options.alias_limits = limits;
    if let Some(budget) = &mut options.budget {
        budget.max_aliases = MAX_ALIASES;
        budget.max_recorded_anchor_events = MAX_REPEATED;
    }
    options.with_snippet = false;
    options
}

/// An error of the YAML reader, in the form of all others.
fn unreadable(error: &Error, text: &str, path: &Path) -> ConfigError {
    let line = error.location().map_or(1, |location| line(location.line()));
    let key = text.lines().nth(line - 1).and_then(|line| line.split_once(':')).map_or("", |(key, _)| key.trim());
    let named = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
    let mut field = if named { format!("{key}: ") } else { String::new() };
    let mut inner = error.without_snippet();
    while let Error::AliasError { error, .. } = inner {
        inner = error.without_snippet();
    }
    let reason = match inner {
        Error::SerdeUnknownField { .. }
        | Error::SerdeMissingField { .. }
        | Error::MultipleDocuments { .. }
        | Error::Message { .. } => {
            field.clear();
            said(inner)
        }
        Error::DuplicateMappingKey { .. } => "it is there twice; keep one".to_owned(),
        other => said(other),
    };
    ConfigError::Setting { path: path.to_owned(), line, field, reason: reason.replace('\n', "; ") }
}

fn said(error: &Error) -> String {
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown field `{field}`, expected one of `{}`", expected.join("`, `"))
        }
        Error::SerdeMissingField { field, .. } => format!("missing field `{field}`"),
        Error::Message { msg, .. } => msg.clone(),
        Error::Eof { .. } => "the file is empty, or breaks off".to_owned(),
        Error::MultipleDocuments { .. } => "another document begins here; a file of settings is one".to_owned(),
        other => UserMessageFormatter.format_message(other).into_owned(),
    }
}

fn line(number: u64) -> usize {
    usize::try_from(number).unwrap_or(1).max(1)
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listen_addr: Spanned<String>,
    #[serde(default)]
    log_level: Option<Spanned<String>>,
    #[serde(default)]
    shutdown_timeout: Option<Spanned<String>>,
    #[serde(default)]
    tunnel_domain: Option<Spanned<String>>,
    tls: RawTls,
    routes: Routes,
    #[serde(default)]
    upstream: Option<RawUpstream>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert_file: Spanned<String>,
    key_file: Spanned<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawUpstream {
    #[serde(default)]
    allowed_ips: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    disable_ip_validation: Option<Spanned<bool>>,
    #[serde(default)]
    tls: Option<RawUpstreamTls>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawUpstreamTls {
    #[serde(default)]
    ca_file: Option<Spanned<String>>,
    #[serde(default)]
    include_system_cas: bool,
}

/// A flat map of names to upstreams, in the order of the file.
struct Routes(Vec<(Spanned<String>, Spanned<String>)>);

impl<'de> Deserialize<'de> for Routes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flat;

        impl<'de> Visitor<'de> for Flat {
            type Value = Routes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of names to scheme://host:port")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Routes, A::Error> {
                let mut routes = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    routes.push(entry);
                }
                Ok(Routes(routes))
            }

            /// What people write who think of lists of routes; the sentence is the one that they find explained.
            fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<Routes, A::Error> {
                Err(serde::de::Error::custom(
                    "routes: cannot unmarshal !!seq into map[string]string; write NAME: scheme://host:port, one a line",
                ))
            }
        }

        deserializer.deserialize_any(Flat)
    }
}

/// One file while it is made into settings.
struct Reading<'a> {
    path: &'a Path,
    places: Places,
    notes: Vec<String>,
}

impl Reading<'_> {
    fn wrong(&self, line: usize, field: &str, reason: impl Into<String>) -> ConfigError {
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        ConfigError::Setting { path: self.path.to_owned(), line, field, reason: reason.into() }
    }

    /// The text of a setting, whose line is noted.
    fn noted<T>(&mut self, setting: &str, value: Spanned<T>) -> (usize, T) {
        let line = line(value.referenced.line());
        self.places.note(setting, line);
        (line, value.value)
    }

    /// The settings as the TOML file would have them.
    fn table(&mut self, raw: Raw) -> Result<Table, ConfigError> {
        let mut table = Table::new();
        let (line, listen_addr) = self.noted("listen_addr", raw.listen_addr);
        if !is_listen_addr(&listen_addr) {
            return Err(self.wrong(line, "listen_addr", format!("`{listen_addr}` is not an address such as :8080")));
        }
        self.notes.push(format!(
            "listen_addr `{listen_addr}` is not needed and not listened on: calls come over the outbound link. To take the \
             hosted service's own traffic there, go on with TOML and say who calls, under [listener] and [listener.caller]"
        ));
        if let Some(value) = raw.log_level {
            let (line, level) = self.noted("log_level", value);
            if !["debug", "info", "warn", "error"].contains(&level.as_str()) {
                let reason = format!("`{level}` is not one of debug, info, warn, error");
                return Err(self.wrong(line, "log_level", reason));
            }
            table.insert("log".into(), level.into());
        }
        table.insert("log_request_start".into(), true.into());
        if let Some(value) = raw.shutdown_timeout {
            let (line, text) = self.noted("shutdown_timeout", value);
            let timeout = go_duration(&text).map_err(|reason| self.wrong(line, "shutdown_timeout", reason))?;
            if timeout > LONGEST {
                self.notes.push(format!("shutdown_timeout `{text}` is held to 24h"));
            }
            let timeout = timeout.clamp(Duration::from_millis(1), LONGEST);
            table.insert("shutdown_timeout".into(), span_text(timeout).into());
        }
        let mut tls = Table::new();
        for (name, value) in [("cert_file", raw.tls.cert_file), ("key_file", raw.tls.key_file)] {
            let setting = format!("tls.{name}");
            let (line, file) = self.noted(&setting, value);
            if file.is_empty() {
                return Err(self.wrong(line, &setting, "it is empty; write the path of a PEM file"));
            }
            tls.insert(name.into(), file.into());
        }
        table.insert("tls".into(), tls.into());

        let upstream = raw.upstream.unwrap_or_default();
        let upstream_tls = upstream.tls.unwrap_or_default();
        let trusts = upstream_tls.ca_file.is_some() || upstream_tls.include_system_cas;
        let domain = raw.tunnel_domain.map(|value| self.noted("tunnel_domain", value));
        let domain = domain.map(|(_, domain)| plain_domain(&domain)).filter(|domain| !domain.is_empty());
        let (routes, domain) = self.routes(raw.routes, domain, trusts)?;
        table.insert("routes".into(), routes.into());
        if let Some(domain) = domain {
            table.insert("tunnel_domain".into(), domain.into());
        }

        let allowed = self.allowed(upstream.allowed_ips, upstream.disable_ip_validation)?;
        let mut tls = Table::new();
        if let Some(value) = upstream_tls.ca_file {
            let (_, file) = self.noted("upstream.tls.ca_file", value);
            tls.insert("ca_file".into(), file.into());
        }
        tls.insert("include_system_cas".into(), upstream_tls.include_system_cas.into());
        let mut upstream = Table::new();
        upstream.insert("allowed_ips".into(), allowed.into());
        upstream.insert("tls".into(), tls.into());
        table.insert("upstream".into(), upstream.into());
        Ok(table)
    }

    /// The routes by their names, and the tunnel's domain: what `tunnel_domain` says, or else what the full hostnames
    /// have in common.
    fn routes(
        &mut self,
        routes: Routes,
        stated: Option<String>,
        trusts: bool,
    ) -> Result<(Table, Option<String>), ConfigError> {
        let mut domain = stated.clone();
        let mut found = Vec::new();
        for (key, upstream) in routes.0 {
            let at = line(key.referenced.line());
            let field = format!("routes.{}", key.value);
            let host = plain_domain(&key.value);
            let name = match (&domain, host.split_once('.')) {
                (_, None) if stated.is_none() => {
                    Err("without tunnel_domain this must be a full hostname; set tunnel_domain".to_owned())
                }
                (_, None) => Ok(host.clone()),
                (Some(domain), Some(_)) if host == *domain => {
                    Err("this is the tunnel's own domain, for which no call comes; write a name below it".to_owned())
                }
                (Some(domain), Some(_)) => host
                    .strip_suffix(domain)
                    .and_then(|rest| rest.strip_suffix('.'))
                    .map(ToOwned::to_owned)
                    .ok_or_else(|| format!("no call comes for this host: it is not below `{domain}`")),
                (None, Some((name, rest))) => {
                    self.places.note("tunnel_domain", at);
                    domain = Some(rest.to_owned());
                    Ok(name.to_owned())
                }
            };
            let name = name.and_then(|name| name.parse::<RouteName>().map_err(|error| error.to_string()));
            let name = name.map_err(|reason| self.wrong(at, &field, reason))?;
            let full = name.as_str() != host;
            found.push((full, at, field.clone(), name, self.upstream(&field, upstream, trusts)?));
        }
        if found.is_empty() {
            return Err(self.wrong(1, "routes", "no route is set; write NAME: scheme://host:port under routes"));
        }
        // A full hostname comes before the name alone.
        found.sort_by_key(|(full, ..)| *full);
        let mut table = Table::new();
        let mut names = BTreeSet::new();
        for (full, at, field, name, upstream) in found {
            if !names.insert((full, name.clone())) {
                return Err(self.wrong(at, &field, "there is another route of this name"));
            }
            self.places.note(format!("routes.{name}.upstream"), at);
            let mut route = Table::new();
            route.insert("upstream".into(), upstream.into());
            route.insert("authorization".into(), "forward".into());
            if table.insert(name.to_string(), route.into()).is_some() {
                self.notes.push(format!("routes.{name} is not used: {field} is the same host and comes first"));
            }
        }
        Ok((table, domain))
    }

    fn upstream(&self, field: &str, value: Spanned<String>, trusts: bool) -> Result<String, ConfigError> {
        let at = line(value.referenced.line());
        let text = value.value;
        match text.parse() {
            Ok(Server::Tcp { tls: true, .. }) if !trusts => {
                let reason = "an https upstream needs to know whom to trust; set upstream.tls.ca_file, or \
                              upstream.tls.include_system_cas to true";
                Err(self.wrong(at, field, reason))
            }
            Ok(Server::Tcp { .. }) => Ok(text),
            _ => Err(self.wrong(at, field, format!("`{text}`: invalid upstream (must be scheme://host:port)"))),
        }
    }

    fn allowed(
        &mut self,
        listed: Option<Spanned<Vec<Spanned<String>>>>,
        disabled: Option<Spanned<bool>>,
    ) -> Result<Vec<Value>, ConfigError> {
        let disabled = disabled.map(|value| self.noted("upstream.disable_ip_validation", value));
        let listed = listed.map(|value| self.noted("upstream.allowed_ips", value));
        let values = |texts: &[&str]| texts.iter().copied().map(Value::from).collect();
        match (listed, disabled) {
            (Some(_), Some((at, true))) => {
                let reason = "it excludes upstream.allowed_ips; remove one of the two";
                Err(self.wrong(at, "upstream.disable_ip_validation", reason))
            }
            (None, Some((_, true))) => {
                self.notes.push(
                    "upstream.disable_ip_validation is set: every IPv4 address may be dialled, this machine's own \
                     included; only link-local addresses and metadata services may not"
                        .to_owned(),
                );
                Ok(values(&ANY))
            }
            (None, _) => Ok(values(&DEFAULT_ALLOWED)),
            (Some((at, listed)), _) if listed.is_empty() => {
                let reason = "an empty list allows no upstream; list ranges, or remove it for the default";
                Err(self.wrong(at, "upstream.allowed_ips", reason))
            }
            (Some((_, listed)), _) => listed
                .into_iter()
                .map(|text| {
                    let good = text.value.parse::<Ipv4Net>().is_ok() || text.value.parse::<Ipv4Addr>().is_ok();
                    let reason =
                        format!("`{}` is not an IPv4 range such as 10.0.0.0/8, nor a single address", text.value);
                    let at = line(text.referenced.line());
                    if good { Ok(text.value.into()) } else { Err(self.wrong(at, "upstream.allowed_ips", reason)) }
                })
                .collect(),
        }
    }
}

/// `host:port` as Go's listeners take it; either may be empty but for the colon.
fn is_listen_addr(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        port.parse::<u16>().is_ok() && !host.contains(['/', '[', ']', ' '])
    })
}

/// A hostname in the one form that is compared.
fn plain_domain(text: &str) -> String {
    text.trim_matches('.').to_ascii_lowercase()
}

/// A duration as Go's `time.ParseDuration` reads it: decimal numbers, each with a unit, like `1h30m` or `1.5s`; `0` alone
/// needs none. Not negative. What is below a nanosecond is cut off.
fn go_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration `{text}`; write one such as 30s, 1m30s or 500ms");
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, unit_and_rest) = rest.split_at(end);
        let end = unit_and_rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit_and_rest.len());
        let (unit, after) = unit_and_rest.split_at(end);
        let unit: u64 = match unit {
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(wrong());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
        nanos = whole.checked_mul(unit).and_then(|part| nanos.checked_add(part)).ok_or_else(wrong)?;
        let mut place = unit;
        for digit in fraction.bytes() {
            place /= 10;
            nanos = nanos.checked_add(u64::from(digit - b'0') * place).ok_or_else(wrong)?;
        }
        rest = after;
    }
    Ok(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests;
