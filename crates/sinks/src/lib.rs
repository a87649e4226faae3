//! Delivery of the audit log to the company's own pipeline.
//!
//! The log is the spool: a sink reads its records by a cursor, a small file beside it that moves only when the receiver
//! has acknowledged them. So nothing is written twice, a crash loses nothing, and records arrive at least once and in
//! order; a record that arrives twice has the same number. Only records that are durable are delivered.
//!
//! It must never hold back or change the log, deliver a record that the log does not have, or repeat in logs and errors
//! what a receiver has said. Each sink is one task in the [`sortie_runtime::TaskSet`] that is passed in; when that stops,
//! or [`Sinks::close`] is called, it delivers what there is within the deadline, and ends.

mod board;
mod client;
mod cursor;
mod delivery;
mod http;
mod moments;
mod otlp;
mod outlets;
pub mod publish;
mod reader;
mod spec;
mod splunk;
mod syslog;
mod transport;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sortie_audit::{Disk, Log};
use sortie_credentials::Vault;
use sortie_runtime::TaskSet;
use tokio::sync::watch;

use board::Board;
use cursor::Cursor;
use delivery::Delivery;
use reader::{Mark, ReadError, SeekError};
use transport::{Origin, Transport};

pub use board::{SinkState, SinkStatus};
pub use moments::{Moment, Watch};
pub use outlets::{OutletError, Outlets};
pub use spec::{
    Batch, Begin, Body, Confirm, DEFAULT_SPOOL, DEFAULT_TIMEOUT, Encoding, Format, HttpSpec, OnFull, OnRefused,
    OtlpSpec, SinkKind, SinkSpec, SplunkSpec, SyslogSpec, Tls,
};

/// How often a receiver that acknowledges late, or only by closing a connection, is made to do so.
pub const CONFIRM_EVERY: Duration = Duration::from_secs(2);
/// How long sinks may deliver what there is after the program was asked to stop, unless [`Sinks::close`] says otherwise.
const FLUSH: Duration = Duration::from_secs(5);
/// How often it is looked how much is behind a sink.
const MEASURE_EVERY: Duration = Duration::from_millis(250);
/// How often it is looked whether a certificate was renewed.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Why sinks cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// What the settings name is missing or cannot be used.
    #[error("audit sink `{sink}`: {reason}")]
    Sink {
        /// The sink.
        sink: String,
        /// What, and the way out.
        reason: String,
    },
    /// The cursor is not one of this log.
    #[error("audit sink `{sink}`: {path}: {reason}; remove it, and the sink gets every record of the log once more", path = path.display())]
    Cursor {
        /// The sink.
        sink: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl StartError {
    /// The name of the sink.
    pub fn sink(&self) -> &str {
        match self {
            Self::Sink { sink, .. } | Self::Cursor { sink, .. } => sink,
        }
    }
}

/// Why nothing is admitted: a sink is too far behind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit sink `{sink}` is {behind} bytes behind, more than the {spool_bytes} that it may be")]
pub struct Behind {
    /// The sink.
    pub sink: String,
    /// Bytes of the log that are not delivered.
    pub behind: u64,
    /// Bytes that may be.
    pub spool_bytes: u64,
}

/// The sinks of a log. Clones are the same.
#[derive(Clone)]
pub struct Sinks(Arc<Inner>);

struct Inner {
    boards: Vec<Arc<Board>>,
    durable: watch::Receiver<u64>,
    tasks: TaskSet,
    ended: watch::Receiver<()>,
}

impl Sinks {
    /// Begins to deliver, and has the log hold the files that it needs; a log with sinks is opened with `hold` 0. Blocks: reads files, and one file of the log for each sink.
    ///
    /// # Errors
    /// Something that a sink needs is not there, or its cursor is not one of this log.
    pub fn start(
        log: &Log,
        specs: Vec<SinkSpec>,
        vaults: &BTreeMap<String, Arc<Vault>>,
        tasks: &TaskSet,
    ) -> Result<Self, StartError> {
        Self::start_watched(log, specs, vaults, tasks, &Watch::default())
    }

    /// The same, watched by a test.
    ///
    /// # Errors
    /// As of [`Sinks::start`].
    pub fn start_watched(
        log: &Log,
        specs: Vec<SinkSpec>,
        vaults: &BTreeMap<String, Arc<Vault>>,
        tasks: &TaskSet,
        watch: &Watch,
    ) -> Result<Self, StartError> {
        let tasks = tasks.child();
        let (ends, ended) = watch::channel(());
        let mut deliveries = Vec::with_capacity(specs.len());
        for spec in specs {
            deliveries.push(prepare(log, spec, vaults, &tasks, watch)?);
        }
        let boards: Vec<_> = deliveries.iter().map(|delivery| delivery.board.clone()).collect();
        let identities: Vec<_> =
            deliveries.iter().filter_map(|delivery| delivery.transport.client_identity().cloned()).collect();
        for delivery in deliveries {
            let ends = ends.clone();
            tasks.spawn("audit-sink", async move {
                delivery.run(FLUSH).await;
                drop(ends);
            });
        }
        if !boards.is_empty() {
            tasks.spawn("audit-sinks-lag", measure(log.clone(), boards.clone(), ended.clone()));
        }
        if !identities.is_empty() {
            tasks.spawn("audit-sinks-certificates", reload(identities, tasks.clone()));
        }
        Ok(Self(Arc::new(Inner { boards, durable: log.durable(), tasks, ended })))
    }

    /// Whether something that will be recorded may begin. Costs a few loads of memory.
    ///
    /// # Errors
    /// The first sink that is too far behind and denies.
    pub fn admits(&self) -> Result<(), Behind> {
        match self.0.boards.iter().find(|board| board.denies()) {
            None => Ok(()),
            Some(board) => Err(board.behind()),
        }
    }

    /// How each sink is doing, in the order of the settings.
    pub fn status(&self) -> Vec<SinkStatus> {
        let size = *self.0.durable.borrow();
        self.0.boards.iter().map(|board| board.status(size)).collect()
    }

    /// Delivers what there is, for as long as this at most, and ends all tasks. To be called when the log is closed.
    pub async fn close(&self, deadline: Duration) {
        self.0.tasks.stop();
        let mut ended = self.0.ended.clone();
        let all = async { while ended.changed().await.is_ok() {} };
        if tokio::time::timeout(deadline, all).await.is_err() {
            self.0.tasks.abort();
        }
    }
}

/// Whoever lets go of them without [`Sinks::close`] has them end at once; the rest is delivered at the next start.
impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

impl std::fmt::Debug for Sinks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sinks").field("status", &self.status()).finish()
    }
}

fn prepare(
    log: &Log,
    spec: SinkSpec,
    vaults: &BTreeMap<String, Arc<Vault>>,
    tasks: &TaskSet,
    watch: &Watch,
) -> Result<Delivery, StartError> {
    let (cursor, mark) = place(log, &spec, watch)?;
    let wrong = |reason| StartError::Sink { sink: spec.name.clone(), reason };
    let transport = transport(log, &spec, vaults, tasks).map_err(wrong)?;
    let board = Arc::new(Board::new(&spec, mark));
    Ok(Delivery::new(spec, transport, log.clone(), cursor, board, tasks.clone(), watch.clone()))
}

/// Where a sink goes on.
fn place(log: &Log, spec: &SinkSpec, watch: &Watch) -> Result<(Cursor, Mark), StartError> {
    let wrong = |reason: String| StartError::Sink { sink: spec.name.clone(), reason };
    let dir = log.dir().to_owned();
    let cursor = Cursor::new(&dir, &spec.name, Disk(watch.disk.clone())).map_err(|error| wrong(error.to_string()))?;
    let damaged = |reason: String| {
        let (sink, path) = (spec.name.clone(), cursor.path().to_owned());
        StartError::Cursor { sink, path, reason }
    };
    let Some(kept) = cursor.load().map_err(|error| damaged(error.to_string()))? else {
        let found = match spec.from {
            Begin::Oldest => reader::start(&dir).map_err(SeekError::from),
            Begin::Now => reader::seek(&dir, *log.durable().borrow(), None),
        };
        let mark = found.map_err(|error| wrong(error.to_string()))?;
        cursor.save(&mark).map_err(|error| wrong(format!("{}: {error}", cursor.path().display())))?;
        return Ok((cursor, mark));
    };
    match reader::seek(&dir, kept.next, kept.prev) {
        Ok(mark) => Ok((cursor, mark)),
        // Found again, and recorded, when it is read.
        Err(SeekError::Read(ReadError::Gone { from, .. })) => Ok((cursor, Mark::at_file(from))),
        Err(SeekError::Read(error)) => Err(wrong(error.to_string())),
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn transport(
    log: &Log,
    spec: &SinkSpec,
    vaults: &BTreeMap<String, Arc<Vault>>,
    tasks: &TaskSet,
) -> Result<Transport, String> {
    let origin = Origin::new(log.verifying_key().name());
    let (format, step) = (spec.format, spec.timeout);
    let client = |url, tls| client::Client::new(url, tls, spec.credential(), step, vaults, tasks);
    Ok(match &spec.kind {
        SinkKind::Syslog(kind) => Transport::Syslog(syslog::Syslog::new(kind.clone(), format, step, &origin)?),
        SinkKind::Otlp(kind) => {
            Transport::Otlp(otlp::Otlp::new(client(&kind.url, &kind.tls)?, kind.clone(), format, &origin))
        }
        SinkKind::Splunk(kind) => {
            Transport::Splunk(splunk::Splunk::new(client(&kind.url, &kind.tls)?, kind.clone(), format, &origin))
        }
        SinkKind::Http(kind) => {
            Transport::Http(http::Http::new(client(&kind.url, &kind.tls)?, kind.clone(), format, &origin))
        }
    })
}

/// Looks how much is behind each sink, and has the log hold that, until all have ended.
async fn measure(log: Log, boards: Vec<Arc<Board>>, mut ended: watch::Receiver<()>) {
    let durable = log.durable();
    loop {
        let (dir, boards) = (log.dir().to_owned(), boards.clone());
        let size = *durable.borrow();
        if let Some(first) = boards.iter().map(|board| board.mark().next).min() {
            log.hold(first);
        }
        let measured = tokio::task::spawn_blocking(move || {
            for board in &boards {
                match reader::bytes_behind(&dir, &board.mark()) {
                    Ok(bytes) => board.measured(bytes, size),
                    Err(error) => tracing::warn!(sink = board.name(), %error, "what is behind the sink is not known"),
                }
            }
        });
        if measured.await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(MEASURE_EVERY) => {}
            _ = async { while ended.changed().await.is_ok() {} } => return,
        }
    }
}

/// Puts renewed client certificates in force.
async fn reload(identities: Vec<Arc<sortie_tls::ReloadingIdentity>>, tasks: TaskSet) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(RELOAD_EVERY) => {}
            () = tasks.stopping() => return,
        }
        let identities = identities.clone();
        let reloaded = tokio::task::spawn_blocking(move || {
            for identity in &identities {
                match identity.reload() {
                    Ok(true) => tracing::info!("the client certificate of an audit sink was renewed"),
                    Ok(false) => {}
                    Err(error) => tracing::warn!("the old client certificate of an audit sink stays in force: {error}"),
                }
            }
        });
        if reloaded.await.is_err() {
            return;
        }
    }
}
