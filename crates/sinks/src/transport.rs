//! What all ways of delivery have in common.

use std::borrow::Cow;
use std::time::Duration;

use sortie_audit::Line;

use crate::http::Http;
use crate::otlp::Otlp;
use crate::reader::Record;
use crate::spec::Format;
use crate::splunk::Splunk;
use crate::syslog::Syslog;

/// What became of records that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// They are the receiver's.
    Taken,
    /// That shows when they are confirmed.
    Unconfirmed,
}

/// Why records were not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// They may be, later: all since the last confirmation are sent again.
    Again {
        /// Why. Says nothing that a receiver has said, and no secret.
        why: String,
        /// How long the receiver wants to be left alone.
        after: Option<Duration>,
    },
    /// Not as they are: something in them is wrong for the receiver.
    Refused(String),
    /// The receiver took the request, and refused this many of its records without saying which. They must not be sent
    /// again.
    Partly(u64),
}

impl Failure {
    pub(crate) fn again(why: impl Into<String>) -> Self {
        Self::Again { why: why.into(), after: None }
    }
}

/// One way of delivery, with its connections.
pub(crate) enum Transport {
    Syslog(Syslog),
    Otlp(Otlp),
    Splunk(Splunk),
    Http(Http),
}

impl Transport {
    /// Sends records, in order. Whoever drops this unfinished does not know what became of them.
    pub(crate) async fn send(&mut self, records: &[Record]) -> Result<Sent, Failure> {
        match self {
            Self::Syslog(syslog) => syslog.send(records).await,
            Self::Otlp(otlp) => otlp.send(records).await.map(|()| Sent::Taken),
            Self::Splunk(splunk) => splunk.send(records).await,
            Self::Http(http) => http.send(records).await.map(|()| Sent::Taken),
        }
    }

    /// Makes sure that all that was sent is taken.
    pub(crate) async fn confirm(&mut self) -> Result<(), Failure> {
        match self {
            Self::Syslog(syslog) => syslog.confirm().await,
            Self::Splunk(splunk) => splunk.confirm().await,
            Self::Otlp(_) | Self::Http(_) => Ok(()),
        }
    }

    /// Forgets what was sent and not confirmed: it will be sent again.
    pub(crate) fn forget(&mut self) {
        match self {
            Self::Syslog(syslog) => syslog.forget(),
            Self::Splunk(splunk) => splunk.forget(),
            Self::Otlp(_) | Self::Http(_) => {}
        }
    }

    /// Looks whether files that it was made of have changed.
    pub(crate) fn client_identity(&self) -> Option<&std::sync::Arc<sortie_tls::ReloadingIdentity>> {
        match self {
            Self::Syslog(syslog) => syslog.identity(),
            Self::Otlp(otlp) => otlp.client.identity(),
            Self::Splunk(splunk) => splunk.client.identity(),
            Self::Http(http) => http.client.identity(),
        }
    }

    /// Gives back what its credential has borrowed.
    pub(crate) async fn close(&mut self) {
        match self {
            Self::Syslog(_) => {}
            Self::Otlp(otlp) => otlp.client.close().await,
            Self::Splunk(splunk) => splunk.client.close().await,
            Self::Http(http) => http.client.close().await,
        }
    }
}

/// The log and the machine that records are of.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The name of the log: that of its key, such as `sortie-gateway/0123456789abcdef`.
    pub(crate) log: String,
    /// The name of the machine.
    pub(crate) host: String,
}

impl Origin {
    pub(crate) fn new(log: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { log: log.to_owned(), host: host.trim().to_owned() }
    }

    /// What kind of program writes the log.
    pub(crate) fn program(&self) -> &str {
        self.log.split('/').next().unwrap_or_default()
    }
}

/// What every record says, with its place and its text.
pub(crate) struct Shown<'a> {
    pub(crate) head: Line<'a>,
    pub(crate) body: Cow<'a, [u8]>,
}

impl<'a> Shown<'a> {
    pub(crate) fn of(record: &'a Record, format: Format) -> Result<Self, Failure> {
        let no_record = |_| Failure::Refused("it is no record".to_owned());
        let head = Line::parse(&record.line).map_err(no_record)?;
        let body = match format {
            Format::Sortie => Cow::Borrowed(record.line.as_slice()),
            Format::Ocsf => Cow::Owned(sortie_audit::ocsf(&record.line).map_err(no_record)?.to_string().into_bytes()),
        };
        Ok(Self { head, body })
    }

    /// When it was written.
    pub(crate) fn time(&self) -> jiff::Timestamp {
        self.head.time.parse().unwrap_or_default()
    }

    /// How it went: the last letter of the code.
    pub(crate) fn severity(&self) -> Severity {
        match self.head.code.as_bytes().last() {
            Some(b'E') => Severity::Error,
            Some(b'W') => Severity::Warning,
            _ => Severity::Informational,
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    Error,
    Warning,
    Informational,
}
