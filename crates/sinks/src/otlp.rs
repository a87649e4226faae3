//! OTLP logs over HTTP (opentelemetry-proto 1.5 and later), in protobuf or JSON.

mod json;
mod proto;

use http::{HeaderMap, Method};
use serde_json::Value;

use crate::client::Client;
use crate::reader::Record;
use crate::spec::{Encoding, Format, OtlpSpec};
use crate::transport::{Failure, Origin, Severity, Shown};

/// Most attributes of one record; what goes beyond is in the body only.
const MAX_ATTRIBUTES: usize = 64;
/// Objects of a record whose members become attributes, too.
const WITHIN: [&str; 4] = ["caller", "actor", "decision", "arguments"];

pub(crate) struct Otlp {
    pub(crate) client: Client,
    spec: OtlpSpec,
    format: Format,
    origin: Origin,
}

/// What a record is for OTLP.
struct LogRecord<'a> {
    /// Nanoseconds since 1970: when it was written, and when it is sent.
    time: u64,
    observed: u64,
    severity: (u8, &'static str),
    event: &'a str,
    body: &'a str,
    attributes: Vec<(String, Attribute)>,
    trace: Option<[u8; 16]>,
}

enum Attribute {
    Text(String),
    Number(i64),
    Truth(bool),
}

impl Otlp {
    pub(crate) fn new(client: Client, spec: OtlpSpec, format: Format, origin: &Origin) -> Self {
        Self { client, spec, format, origin: origin.clone() }
    }

    pub(crate) async fn send(&mut self, records: &[Record]) -> Result<(), Failure> {
        let now = nanoseconds(jiff::Timestamp::now());
        let shown = records.iter().map(|record| Shown::of(record, self.format)).collect::<Result<Vec<_>, _>>()?;
        let written = records
            .iter()
            .zip(&shown)
            .map(|(record, shown)| self.log_record(record, shown, now))
            .collect::<Result<Vec<_>, _>>()?;
        let resource = [
            ("service.name", self.origin.program()),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", self.origin.log.as_str()),
            ("host.name", self.origin.host.as_str()),
        ];
        let (kind, body) = match self.spec.encoding {
            Encoding::Protobuf => ("application/x-protobuf", proto::request(&resource, &written)),
            Encoding::Json => ("application/json", json::request(&resource, &written)),
        };
        let answer = self.client.ask(Method::POST, self.spec.url.clone(), kind, HeaderMap::new(), body).await?;
        if !answer.status.is_success() {
            return Err(answer.failure());
        }
        let rejected = match self.spec.encoding {
            Encoding::Protobuf => proto::rejected(&answer.body),
            Encoding::Json => json::rejected(&answer.body),
        };
        if rejected > 0 { Err(Failure::Partly(rejected)) } else { Ok(()) }
    }

    fn log_record<'a>(&self, record: &Record, shown: &'a Shown<'_>, now: u64) -> Result<LogRecord<'a>, Failure> {
        let no_record = |_| Failure::Refused("it is no record".to_owned());
        let fields: Value = serde_json::from_slice(&record.line).map_err(no_record)?;
        let trace = fields.get("trace").and_then(Value::as_str).and_then(trace_id);
        Ok(LogRecord {
            time: nanoseconds(shown.time()),
            observed: now,
            severity: match shown.severity() {
                Severity::Error => (17, "ERROR"),
                Severity::Warning => (13, "WARN"),
                Severity::Informational => (9, "INFO"),
            },
            event: shown.head.event,
            body: std::str::from_utf8(&shown.body).map_err(|_| Failure::Refused("it is no text".to_owned()))?,
            attributes: self.attributes(shown.head.seq, &fields),
            trace,
        })
    }

    /// The name of the record, and its plain members: `sortie.route`, `sortie.caller.subject`.
    fn attributes(&self, seq: u64, fields: &Value) -> Vec<(String, Attribute)> {
        let mut found = vec![("log.record.uid".to_owned(), Attribute::Text(format!("{}/{seq}", self.origin.log)))];
        for (name, value) in fields.as_object().into_iter().flatten() {
            match value.as_object() {
                Some(inner) if WITHIN.contains(&name.as_str()) => {
                    let inner = inner.iter().map(|(inner, value)| (format!("sortie.{name}.{inner}"), value));
                    found.extend(inner.filter_map(|(name, value)| Some((name, Attribute::of(value)?))));
                }
                _ if name == "prev" || name == "time" => {}
                _ => found.extend(Attribute::of(value).map(|value| (format!("sortie.{name}"), value))),
            }
        }
        found.truncate(MAX_ATTRIBUTES);
        found
    }
}

impl Attribute {
    fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Some(Self::Text(text.clone())),
            Value::Bool(truth) => Some(Self::Truth(*truth)),
            Value::Number(number) => number.as_i64().map(Self::Number),
            _ => None,
        }
    }
}

fn nanoseconds(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

/// 32 hexadecimal digits, not all of them zero.
fn trace_id(text: &str) -> Option<[u8; 16]> {
    let number = (text.len() == 32).then(|| u128::from_str_radix(text, 16).ok())??;
    (number != 0).then(|| number.to_be_bytes())
}
