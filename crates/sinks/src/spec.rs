//! Sinks as settings say them. Nothing here holds a secret.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use sortie_credentials::{CredentialSpec, Trust};
use url::Url;

/// Unsent log that a sink may leave behind it, in bytes, unless set otherwise.
pub const DEFAULT_SPOOL: u64 = 1 << 30;
/// How long one step of a delivery may take (a connection, an answer, a confirmation), unless set otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkSpec {
    /// The name by which records, metrics and errors call it, and that of its cursor's file: 1 to 64 of `a-z`, `0-9`
    /// and `-`.
    pub name: String,
    /// Where records go, and in which way.
    pub kind: SinkKind,
    /// What a record looks like there.
    pub format: Format,
    /// With which record a sink that has no cursor begins.
    pub from: Begin,
    /// How many bytes of the log may be undelivered.
    pub spool_bytes: u64,
    /// What happens when more are.
    pub on_full: OnFull,
    /// What happens to a record that the other side refuses for good.
    pub on_refused: OnRefused,
    /// How much is sent at once.
    pub batch: Batch,
    /// How long one step of a delivery may take.
    pub timeout: Duration,
}

impl SinkSpec {
    /// One with nothing but defaults beside its name and kind.
    pub fn new(name: impl Into<String>, kind: SinkKind) -> Self {
        Self {
            name: name.into(),
            kind,
            format: Format::default(),
            from: Begin::default(),
            spool_bytes: DEFAULT_SPOOL,
            on_full: OnFull::default(),
            on_refused: OnRefused::default(),
            batch: Batch::default(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Whom it trusts, and what it shows, where it may be spoken TLS with.
    pub fn tls(&self) -> Option<&Tls> {
        match &self.kind {
            SinkKind::Syslog(syslog) => syslog.tls.as_ref(),
            SinkKind::Otlp(otlp) => Some(&otlp.tls),
            SinkKind::Splunk(splunk) => Some(&splunk.tls),
            SinkKind::Http(http) => Some(&http.tls),
        }
    }

    /// The credential that it shows, if it does.
    pub fn credential(&self) -> Option<&CredentialSpec> {
        match &self.kind {
            SinkKind::Syslog(_) => None,
            SinkKind::Otlp(otlp) => otlp.credential.as_ref(),
            SinkKind::Splunk(splunk) => Some(&splunk.token),
            SinkKind::Http(http) => http.credential.as_ref(),
        }
    }
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// Syslog (RFC 5424) over TCP or TLS.
    Syslog(SyslogSpec),
    /// OTLP logs over HTTP.
    Otlp(OtlpSpec),
    /// The HTTP Event Collector of Splunk.
    Splunk(SplunkSpec),
    /// Any HTTP endpoint.
    Http(HttpSpec),
}

impl SinkKind {
    /// The name by which settings and metrics call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Syslog(_) => "syslog",
            Self::Otlp(_) => "otlp",
            Self::Splunk(_) => "splunk",
            Self::Http(_) => "http",
        }
    }
}

/// A receiver of syslog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyslogSpec {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS (RFC 5425); without it plain TCP, framed by octet counting (RFC 6587 section 3.4.1).
    pub tls: Option<Tls>,
    /// The name that the receiver's certificate must have. Default: the host.
    pub server_name: Option<String>,
    /// The facility, 0 to 23; 13 is `log audit`.
    pub facility: u8,
    /// The private enterprise number under which the structured data names the record, as `sortie@NUMBER`. Without
    /// one the structured data has only what IANA has registered.
    pub enterprise_id: Option<u32>,
    /// When a record counts as delivered.
    pub confirm: Confirm,
}

/// When a record counts as delivered to a receiver of syslog, which acknowledges nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confirm {
    /// When the receiver has closed the connection in answer to the end of ours: it has read everything then. Done every
    /// [`crate::CONFIRM_EVERY`] while there is something to confirm.
    #[default]
    Closed,
    /// When it was written to the connection, and that was still open. What is on its way when a receiver ends is lost.
    Written,
}

/// A receiver of OTLP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpSpec {
    /// The whole URL, such as `https://collector:4318/v1/logs`.
    pub url: Url,
    /// How requests are written.
    pub encoding: Encoding,
    /// What is shown to it.
    pub credential: Option<CredentialSpec>,
    /// Whom to trust behind `https`.
    pub tls: Tls,
}

/// How requests of OTLP are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// `application/x-protobuf`.
    #[default]
    Protobuf,
    /// `application/json`.
    Json,
}

/// An HTTP Event Collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplunkSpec {
    /// Its base URL, such as `https://splunk:8088`; the paths of the collector are put behind it.
    pub url: Url,
    /// Its token, as the credential that makes `Authorization: Splunk TOKEN`.
    pub token: CredentialSpec,
    /// The index. Default: that of the token.
    pub index: Option<String>,
    /// The source. Default: the name of the log.
    pub source: Option<String>,
    /// The source type.
    pub sourcetype: String,
    /// Whether a record counts as delivered only when the indexer says so. The token must have that switched on.
    pub acknowledge: bool,
    /// Whom to trust behind `https`.
    pub tls: Tls,
}

/// Any HTTP endpoint. What it answers with 200 to 299, it has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSpec {
    /// The whole URL.
    pub url: Url,
    /// The method: POST or PUT.
    pub method: http::Method,
    /// How records are put together.
    pub body: Body,
    /// What is shown to it.
    pub credential: Option<CredentialSpec>,
    /// Whom to trust behind `https`.
    pub tls: Tls,
}

/// How records are put together in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// One a line: `application/x-ndjson`.
    #[default]
    Lines,
    /// A JSON array.
    Array,
}

/// Whom to trust, and what to show to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whom to trust.
    pub trust: Trust,
    /// Certificate and key, in PEM, that are shown to a receiver that asks for one. Read again when they change.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What a record looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The line of the log, byte for byte.
    #[default]
    Sortie,
    /// An event of OCSF, made from it.
    Ocsf,
}

/// With which record a sink begins that has no cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// The first one that the log still has.
    #[default]
    Oldest,
    /// The first one that the disk does not have yet.
    Now,
}

/// What happens when a sink has left more behind than it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// Nothing that would make records is admitted until it has caught up.
    #[default]
    Deny,
    /// The oldest records are not delivered; a record says which.
    DropAndCount,
}

/// What happens to a record that the other side refuses for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnRefused {
    /// Nothing is delivered until it is taken; it is offered again from time to time.
    #[default]
    Stop,
    /// It is not delivered; a record says which.
    Skip,
}

/// How much is sent at once: what comes first of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Records.
    pub records: usize,
    /// Bytes of their lines. One record is always sent.
    pub bytes: usize,
    /// How long a record may wait for others.
    pub wait: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self { records: 500, bytes: 1 << 20, wait: Duration::from_secs(1) }
    }
}
