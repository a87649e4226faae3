//! `[audit]`: how what happens is recorded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_sinks::SinkSpec;
use sortie_sinks::publish::PlaceSpec;
use toml::Spanned;

use super::credentials::RawVault;
use super::publish::{self, RawPublish};
use super::sinks::{self, RawSink};
use super::{ConfigError, LimitConfig, Source, Span};

/// Most rules about arguments, and most pointers of one rule.
const MOST: usize = 64;
/// Longest pointer, in bytes.
const MAX_POINTER: usize = 256;
/// Smallest size of a file of the log, in bytes.
const LEAST_FILE: u64 = 1024 * 1024;
/// How much of a payload is recorded, in bytes, and how much at most: with base64, and all else in the record, less than
/// the longest line.
const PAYLOAD: usize = 16 * 1024;
const MOST_PAYLOAD: usize = 64 * 1024;
/// Longest time that records are kept, in days.
const MOST_DAYS: u32 = 36_500;

/// How what happens is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditConfig {
    /// Where and how the log is kept: used from the start of the process to its end.
    pub log: AuditLogConfig,
    /// `facts`: whether the values that policy took from arguments are recorded with its decision. Default true.
    pub facts: bool,
    /// `result_digest`: whether the SHA-256 of each answer is recorded. Default true.
    pub result_digest: bool,
    /// `[[audit.arguments]]`: what of the arguments is shown. The first rule that matches a call counts. At most 64.
    pub arguments: Vec<ShownArguments>,
    /// `[[audit.sinks]]`: where records are delivered: used from the start of the process to its end. At most 16.
    pub sinks: Vec<SinkSpec>,
    /// `[audit.payload]`: what is recorded whole, sealed for a key of yours. Default: nothing.
    pub payload: Option<PayloadConfig>,
    /// `[[audit.publish]]`: where checkpoints are published, beside the hub; used from the start of the process to its
    /// end. At most 16.
    pub publish: Vec<PlaceSpec>,
}

/// What is recorded whole, sealed for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadConfig {
    /// `key_file`: the public key, as `sortie audit keygen` writes it.
    pub key_file: PathBuf,
    /// `answers`: whether answers are recorded, too. Default false.
    pub answers: bool,
    /// `max_bytes`: how much of each is recorded, 1 to 65536 bytes; the rest is cut. Default 16384.
    pub max_bytes: usize,
}

/// Where and how the log is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLogConfig {
    /// `enabled`: whether there is an audit. Default true.
    pub enabled: bool,
    /// `dir`: its directory. Default: `audit` in the data directory.
    pub dir: Option<PathBuf>,
    /// `durability`: when a record counts as kept. Default `process`.
    pub durability: AuditDurability,
    /// `on_failure`: what becomes of a call that cannot be recorded. Default `deny`.
    pub on_failure: OnFailure,
    /// `max_file_bytes`: size at which a new file of the log begins. Default: that of the log.
    pub max_file_bytes: Option<u64>,
    /// `checkpoint_records`: after how many records a checkpoint is signed.
    pub checkpoint_records: Option<u64>,
    /// `checkpoint_every`: after which time a checkpoint is signed where records were added.
    pub checkpoint_every: Option<Duration>,
    /// `keep_bytes`: how many bytes of the log are kept; the oldest files go first. Default: all.
    pub keep_bytes: Option<u64>,
    /// `keep_days`: for how many days files of the log are kept. Default: for ever.
    pub keep_days: Option<u32>,
}

/// When a record counts as kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditDurability {
    /// When the kernel has it: the end of the process loses nothing.
    #[default]
    Process,
    /// When the disk says that it has it: a power cut loses nothing.
    Power,
}

/// What becomes of a call that cannot be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// It is refused with 503 at the hop `audit`.
    #[default]
    Deny,
    /// It goes on, and its records are counted only.
    DropAndCount,
}

/// What is shown of the arguments of some calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownArguments {
    /// `route`: the routes, by name or pattern. Default: all.
    pub route: Option<String>,
    /// `tool`: the tools, by name or pattern, in any case. Default: all.
    pub tool: Option<String>,
    /// `show`: JSON pointers (RFC 6901) into the arguments; what lies under them is shown, at most 16 values.
    pub show: Vec<String>,
    /// `hide`: pointers to what is not shown all the same.
    pub hide: Vec<String>,
}

impl Default for AuditConfig {
    fn default() -> Self {
        let log = AuditLogConfig {
            enabled: true,
            dir: None,
            durability: AuditDurability::default(),
            on_failure: OnFailure::default(),
            max_file_bytes: None,
            checkpoint_records: None,
            checkpoint_every: None,
            keep_bytes: None,
            keep_days: None,
        };
        let (arguments, sinks, publish) = (Vec::new(), Vec::new(), Vec::new());
        Self { log, facts: true, result_digest: true, arguments, sinks, payload: None, publish }
    }
}

/// How what happens is recorded.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Audit")]
pub(super) struct RawAudit {
    /// Whether what happens is recorded. Without it, nothing proves what was called.
    enabled: bool,
    /// The directory of the log. Default: audit in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<PathBuf>,
    /// When a record counts as kept: when the kernel has it (process), or when the disk says so (power).
    durability: AuditDurability,
    /// What becomes of a call that cannot be recorded: refused (deny), or let through and counted (drop-and-count).
    on_failure: OnFailure,
    /// Size in bytes at which a new file of the log begins; at least 1048576. Default 67108864.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    max_file_bytes: Option<Spanned<u64>>,
    /// After how many records a checkpoint is signed; at least 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    checkpoint_records: Option<Spanned<u64>>,
    /// After which time a checkpoint is signed, where records were added.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_every: Option<Span>,
    /// How many bytes of the log are kept, the newest; at least twice max_file_bytes. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u64>")]
    keep_bytes: Option<Spanned<u64>>,
    /// For how many days files of the log are kept, 1 to 36500. Default: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<u32>")]
    keep_days: Option<Spanned<u32>>,
    /// Whether the values that policy took from arguments are recorded with its decision.
    facts: bool,
    /// Whether the SHA-256 of each answer is recorded.
    result_digest: bool,
    /// What of the arguments is shown in records; without a rule, only digest and length are. The first rule that matches a
    /// call counts. At most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RawShown>")]
    arguments: Vec<Spanned<RawShown>>,
    /// Where records are delivered, beside the log itself. At most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RawSink>")]
    sinks: Vec<Spanned<RawSink>>,
    /// What is recorded whole, sealed for a key whose other half is not here. Default: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<RawPayload>,
    /// Where checkpoints are published, beside the hub. At most 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<RawPublish>")]
    publish: Vec<Spanned<RawPublish>>,
}

/// What is recorded whole, sealed for a key.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AuditPayload")]
pub(super) struct RawPayload {
    /// The public key, as sortie audit keygen writes it.
    key_file: PathBuf,
    /// Whether answers are recorded beside the arguments of calls.
    #[serde(default)]
    answers: bool,
    /// How much of each is recorded, 1 to 65536 bytes. Default 16384.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<usize>")]
    max_bytes: Option<Spanned<usize>>,
}

impl Default for RawAudit {
    fn default() -> Self {
        (&AuditConfig::default()).into()
    }
}

/// What is shown of the arguments of some calls.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ShownArguments")]
pub(super) struct RawShown {
    /// The routes, by name or pattern. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// The tools, by name or pattern, in any case. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<String>,
    /// JSON pointers into the arguments, like /path; what lies under them is shown, at most 16 values of 256 characters.
    show: Vec<String>,
    /// Pointers to what is not shown all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hide: Vec<String>,
}

impl RawAudit {
    pub(super) fn check(
        self,
        source: &Source<'_>,
        base: &Path,
        vaults: &BTreeMap<String, Spanned<RawVault>>,
    ) -> Result<AuditConfig, ConfigError> {
        let at_least = |least: u64, value: Option<Spanned<u64>>, name: &str| match value {
            Some(given) if *given.get_ref() < least => {
                Err(source.wrong(Some(given.span()), &format!("audit.{name}"), format!("write at least {least}")))
            }
            given => Ok(given.map(Spanned::into_inner)),
        };
        let keep_days = match self.keep_days {
            Some(days) if !(1..=MOST_DAYS).contains(days.get_ref()) => {
                return Err(source.wrong(Some(days.span()), "audit.keep_days", format!("write 1 to {MOST_DAYS}")));
            }
            days => days.map(Spanned::into_inner),
        };
        let max_file_bytes = at_least(LEAST_FILE, self.max_file_bytes, "max_file_bytes")?;
        if self.arguments.len() > MOST {
            return Err(source.wrong(None, "audit.arguments", format!("there are more than {MOST} rules")));
        }
        let arguments = self.arguments.into_iter().map(|rule| {
            let at = rule.span();
            let rule = rule.into_inner().check();
            rule.map_err(|(name, reason)| source.wrong(Some(at), &format!("audit.arguments.{name}"), reason))
        });
        let payload = self.payload.map(|payload| {
            let max_bytes = match payload.max_bytes {
                None => PAYLOAD,
                Some(given) if (1..=MOST_PAYLOAD).contains(given.get_ref()) => given.into_inner(),
                Some(given) => {
                    let reason = format!("write 1 to {MOST_PAYLOAD}");
                    return Err(source.wrong(Some(given.span()), "audit.payload.max_bytes", reason));
                }
            };
            Ok(PayloadConfig { key_file: base.join(payload.key_file), answers: payload.answers, max_bytes })
        });
        Ok(AuditConfig {
            publish: publish::check(self.publish, source, "audit.publish", base)?,
            payload: payload.transpose()?,
            arguments: arguments.collect::<Result<_, _>>()?,
            sinks: sinks::check(self.sinks, source, "audit.sinks", base, &|name| vaults.contains_key(name))?,
            facts: self.facts,
            result_digest: self.result_digest,
            log: AuditLogConfig {
                enabled: self.enabled,
                dir: self.dir.map(|dir| base.join(dir)),
                durability: self.durability,
                on_failure: self.on_failure,
                checkpoint_records: at_least(1, self.checkpoint_records, "checkpoint_records")?,
                checkpoint_every: self.checkpoint_every.map(|span| span.0),
                keep_bytes: at_least(2 * max_file_bytes.unwrap_or(LEAST_FILE), self.keep_bytes, "keep_bytes")?,
                keep_days,
                max_file_bytes,
            },
        })
    }
}

impl RawShown {
    fn check(self) -> Result<ShownArguments, (&'static str, String)> {
        for (name, pattern, any_case) in [("route", &self.route, false), ("tool", &self.tool, true)] {
            if let Some(Err(error)) = pattern.as_ref().map(|pattern| LimitConfig::glob(pattern, any_case)) {
                return Err((name, format!("it is not a pattern: {}", error.kind())));
            }
        }
        for (name, pointers) in [("show", &self.show), ("hide", &self.hide)] {
            if pointers.len() > MOST {
                return Err((name, format!("there are more than {MOST} pointers")));
            }
            let wrong =
                |pointer: &&String| pointer.len() > MAX_POINTER || !(pointer.is_empty() || pointer.starts_with('/'));
            if let Some(pointer) = pointers.iter().find(wrong) {
                let reason = format!(
                    "`{}` is not a JSON pointer: write / and the names on the way, like /filter/path, at most \
                     {MAX_POINTER} bytes; an empty one is for all",
                    pointer.chars().take(40).collect::<String>().escape_debug()
                );
                return Err((name, reason));
            }
        }
        if self.show.is_empty() {
            return Err(("show", "nothing is shown; name what is, or remove the rule".to_owned()));
        }
        let Self { route, tool, show, hide } = self;
        Ok(ShownArguments { route, tool, show, hide })
    }
}

impl From<&AuditConfig> for RawAudit {
    fn from(config: &AuditConfig) -> Self {
        fn placed<T: Copy>(value: Option<T>) -> Option<Spanned<T>> {
            value.map(|value| Spanned::new(0..0, value))
        }
        let AuditConfig { log, facts, result_digest, arguments, sinks, payload, publish } = config;
        Self {
            enabled: log.enabled,
            dir: log.dir.clone(),
            durability: log.durability,
            on_failure: log.on_failure,
            max_file_bytes: placed(log.max_file_bytes),
            checkpoint_records: placed(log.checkpoint_records),
            checkpoint_every: log.checkpoint_every.map(Span),
            keep_bytes: placed(log.keep_bytes),
            keep_days: placed(log.keep_days),
            payload: payload.as_ref().map(|payload| RawPayload {
                key_file: payload.key_file.clone(),
                answers: payload.answers,
                max_bytes: placed(Some(payload.max_bytes)),
            }),
            publish: publish.iter().map(|place| Spanned::new(0..0, place.into())).collect(),
            facts: *facts,
            result_digest: *result_digest,
            sinks: sinks.iter().map(|sink| Spanned::new(0..0, sink.into())).collect(),
            arguments: arguments
                .iter()
                .map(|ShownArguments { route, tool, show, hide }| {
                    let (route, tool, show, hide) = (route.clone(), tool.clone(), show.clone(), hide.clone());
                    Spanned::new(0..0, RawShown { route, tool, show, hide })
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;

    const ROUTE: &str = "[routes.docs]\nupstream = \"http://10.0.0.5:8080\"\n";

    fn parse(text: &str) -> Result<AuditConfig, String> {
        let parsed = GatewayConfig::parse(&format!("{ROUTE}{text}"), Path::new("/etc/sortie/gateway.toml"));
        parsed.map(|config| config.audit).map_err(|error| error.to_string())
    }

    #[test]
    fn it_is_on_unless_the_settings_say_otherwise() {
        let audit = parse("").expect("settings");
        assert_eq!(audit, AuditConfig::default());
        assert!(audit.log.enabled && audit.facts && audit.result_digest && audit.arguments.is_empty());
        assert_eq!((audit.log.durability, audit.log.on_failure), (AuditDurability::Process, OnFailure::Deny));
    }

    #[test]
    fn every_setting_is_read_and_shown_again() {
        let text = "[audit]\nenabled = false\ndir = \"log\"\ndurability = \"power\"\non_failure = \"drop-and-count\"\n\
                    max_file_bytes = 2000000\ncheckpoint_records = 5\ncheckpoint_every = \"2s\"\nkeep_bytes = 5000000\n\
                    keep_days = 30\nfacts = false\nresult_digest = false\n\
                    [[audit.arguments]]\nroute = \"docs\"\ntool = \"se*\"\nshow = [\"/query\", \"\"]\nhide = [\"/a~1b\"]\n\
                    [audit.payload]\nkey_file = \"key\"\nanswers = true\n";
        let audit = parse(text).expect("settings");
        assert_eq!(audit.log.dir.as_deref(), Some(Path::new("/etc/sortie/log")));
        assert_eq!((audit.log.durability, audit.log.on_failure), (AuditDurability::Power, OnFailure::DropAndCount));
        assert_eq!((audit.log.keep_days, audit.log.keep_bytes), (Some(30), Some(5_000_000)));
        assert!(!audit.log.enabled && !audit.facts && !audit.result_digest);
        assert_eq!(audit.arguments[0].hide, ["/a~1b"]);
        let payload = audit.payload.clone().expect("payload");
        assert_eq!(payload.key_file, Path::new("/etc/sortie/key"));
        assert_eq!((payload.answers, payload.max_bytes), (true, 16_384));
        let path = Path::new("/etc/sortie/gateway.toml");
        let whole = GatewayConfig::parse(&format!("{ROUTE}{text}"), path).expect("settings");
        let again = GatewayConfig::parse(&whole.to_toml().expect("toml"), path).expect("the same");
        assert_eq!(again.audit, audit);
    }

    #[test]
    fn wrong_settings_are_named_with_their_line() {
        for (text, said) in [
            ("[audit]\nmax_file_bytes = 5\n", ":4: audit.max_file_bytes: write at least 1048576"),
            ("[audit]\nkeep_bytes = 1048576\n", ":4: audit.keep_bytes: write at least 2097152"),
            ("[audit]\nkeep_days = 0\n", ":4: audit.keep_days: write 1 to 36500"),
            ("[audit]\ncheckpoint_records = 0\n", ":4: audit.checkpoint_records: write at least 1"),
            ("[audit]\non_failure = \"ignore\"\n", ":4: on_failure: unknown variant `ignore`"),
            ("[audit]\nsilent = true\n", ":4: unknown field `silent`"),
            ("[[audit.arguments]]\nshow = [\"path\"]\n", ":3: audit.arguments.show: `path` is not a JSON pointer"),
            ("[[audit.arguments]]\nshow = []\n", ":3: audit.arguments.show: nothing is shown"),
            ("[[audit.arguments]]\nshow = [\"\"]\ntool = \"[\"\n", ":3: audit.arguments.tool: it is not a pattern"),
            ("[audit.payload]\nkey_file = \"k\"\nmax_bytes = 65537\n", ":5: audit.payload.max_bytes: write 1 to 65536"),
            ("[audit.payload]\n", ":3: missing field `key_file`"),
            ("audit = false\n", ":3: audit: unknown field `audit`"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(said) || text.starts_with("audit"), "{text}: {error}");
        }
    }
}
