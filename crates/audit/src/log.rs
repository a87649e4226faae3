//! The log: lines that are only ever added.
//!
//! Whoever appends gives the record its place under a short lock, and writes it unless somebody is writing already, who then
//! writes it as well (`head`, `writer`). There is no thread between a record and the kernel. One thread beside (`keeper`)
//! brings records to the disk, signs checkpoints, begins files and removes old ones; it sleeps while nothing is appended.

pub(crate) mod disk;
mod head;
mod keeper;
mod open;
mod ticket;
mod writer;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::call::LogClosed;
use crate::kind::kinds;
use crate::line::{Draft, DraftError};
use crate::note::{SigningKey, VerifyingKey};
use crate::tree_cache::Filler;

pub use disk::{Disk, Faults, Step};

use head::{Head, Pen, Rules};
use keeper::Keeper;
use ticket::{Fate, Ticket};
use writer::Core;

/// The smallest files that can be asked for, in bytes.
const MIN_FILE_BYTES: u64 = 4096;

/// When a record counts as kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the kernel has it: the end of the process loses nothing, a power cut what was written within 10 ms.
    #[default]
    Process,
    /// When the disk says that it has it.
    Power,
}

/// What becomes of records that cannot be written, since the disk is full or fails. They are lost, and the log says how many
/// there were as soon as it can (`records_dropped`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Appending fails: what was to be recorded must not be done.
    #[default]
    Deny,
    /// Appending succeeds with the number [`DROPPED`].
    DropAndCount,
}

/// The number of a record that was dropped ([`OnFailure::DropAndCount`]).
pub const DROPPED: u64 = u64::MAX;

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory. Made with mode 0700 if it is absent; ours, and writable by nobody else. It may be a link.
    pub dir: PathBuf,
    /// The file of the private key, outside of `dir`. Made with mode 0600 if it is absent and the log is new.
    pub key_file: PathBuf,
    /// What the name of the key begins with, such as `sortie-gateway`.
    pub origin: String,
    /// When a record counts as kept.
    pub durability: Durability,
    /// What becomes of records that cannot be written.
    pub on_failure: OnFailure,
    /// How large a file may become before the next one begins, in bytes; at least 4 KiB. 64 MiB.
    pub max_file_bytes: u64,
    /// How much is kept, in bytes of whole files: the oldest are removed. Everything, when absent.
    pub keep_bytes: Option<u64>,
    /// How long whole files are kept, in days after their last record. For ever, when absent.
    pub keep_days: Option<u32>,
    /// The first record that somebody still needs, until [`Log::hold`] says otherwise: 0 holds all. Nobody, by default.
    pub hold: u64,
    /// After how many records a checkpoint is signed. 10,000.
    pub checkpoint_records: u64,
    /// After what time a checkpoint is signed, if there are records behind the last one. 10 s.
    pub checkpoint_every: Duration,
    /// Tells the time. The machine's.
    pub clock: Clock,
    /// For tests: what goes wrong with the disk. Nothing.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dir: PathBuf::new(),
            key_file: PathBuf::new(),
            origin: "sortie".to_owned(),
            durability: Durability::default(),
            on_failure: OnFailure::default(),
            max_file_bytes: 64 << 20,
            keep_bytes: None,
            keep_days: None,
            hold: u64::MAX,
            checkpoint_records: 10_000,
            checkpoint_every: Duration::from_secs(10),
            clock: Clock::default(),
            faults: Faults::default(),
        }
    }
}

/// Tells the time of records.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// One that tells what a function does.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock(..)")
    }
}

/// How it stands with a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Records that the kernel has.
    pub records: u64,
    /// Records that the disk has.
    pub durable: u64,
    /// Records before the newest checkpoint.
    pub checkpointed: u64,
    /// Records that could not be written since the log was opened.
    pub dropped: u64,
    /// Why records cannot be written at the moment, or why no checkpoint can.
    pub failing: Option<String>,
}

/// A log that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something could not be read or made.
    #[error("{}: {}", .0.display(), .1)]
    Io(PathBuf, io::Error),
    /// The key is no key.
    #[error("{}: {}; restore it, or set another audit directory and key to begin a new log", .0.display(), .1)]
    Key(PathBuf, crate::NoteError),
    /// The key is in the directory that it vouches for.
    #[error("the key {} is inside of {}, where it would prove nothing: keep it elsewhere", .0.display(), .1.display())]
    KeyInside(PathBuf, PathBuf),
    /// There is a log, but not its key.
    #[error(
        "the key {} is missing, but {} has a log: restore it, or set another audit directory to begin a new log",
        .0.display(), .1.display()
    )]
    KeyLost(PathBuf, PathBuf),
    /// The key can be read or changed by others.
    #[error("others may read or change the key {}: chmod 0600, and if somebody has, begin a new log with a new key", .0.display())]
    KeyOpen(PathBuf),
    /// The directory is not for us alone.
    #[error("{} cannot hold an audit log: {}", .0.display(), .1)]
    NotOurs(PathBuf, &'static str),
    /// Another process has it.
    #[error("the audit log in {} is open in another process: give each process a directory of its own", .0.display())]
    Locked(PathBuf),
    /// The newest checkpoint cannot be believed.
    #[error("{}: {}; restore it and the key, or {WAY_OUT}", .0.display(), .1)]
    Checkpoint(PathBuf, crate::NoteError),
    /// The log is shorter than its newest checkpoint.
    #[error(
        "the audit log in {} has {records} records, but a checkpoint says that it had {checkpoint}: restore its files, or \
         {WAY_OUT}", .dir.display()
    )]
    CutOff {
        /// The directory.
        dir: PathBuf,
        /// How many records there are.
        records: u64,
        /// How many there were.
        checkpoint: u64,
    },
    /// The checkpoint with which a file begins is not there.
    #[error("the audit log in {} lacks its checkpoints since record {first}: restore them, or {WAY_OUT}", .dir.display())]
    NoCheckpoint {
        /// The directory.
        dir: PathBuf,
        /// The number of the first record of the last file.
        first: u64,
    },
    /// A record is not what was written.
    #[error("{}: record {record} {how}: restore the file, or {WAY_OUT}", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// The number of the record.
        record: u64,
        /// What is wrong with it.
        how: &'static str,
    },
    /// The records are not those that were signed.
    #[error("{}: its records are not those of the checkpoint of {size} records: restore the file, or {WAY_OUT}", .path.display())]
    Contradicted {
        /// The file.
        path: PathBuf,
        /// The size of the checkpoint.
        size: u64,
    },
}

/// What to do with a log that cannot be gone on with.
const WAY_OUT: &str =
    "keep the directory as evidence (`sortie audit verify` tells more) and set another one to begin a new log";

/// A record that is not kept. Whatever was to be recorded must not be done.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It cannot be written at all.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The log takes nothing more.
    #[error("the audit log cannot be written: {0}")]
    Io(String),
    /// The log was closed.
    #[error("the audit log is closed")]
    Closed,
}

/// A log that this process writes. Clones are the same log. When the last is dropped, the log ends as if the process had;
/// [`Log::close`] says that it ended as asked.
#[derive(Clone, Debug)]
pub struct Log(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    core: Arc<Core>,
    keeper: Mutex<Option<JoinHandle<()>>>,
    _lock: File,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.core.head().desk.stop = true;
        self.core.call.notify_all();
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It has panicked: there is nobody to tell.
            drop(keeper.join());
        }
    }
}

impl Log {
    /// Opens the log in a directory, or begins one. Waits for the disk. What a crash left unfinished behind the newest
    /// checkpoint is taken off and recorded.
    ///
    /// # Errors
    /// It cannot be read or made, another process has it, or it is not what its newest checkpoint says.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let disk = Disk(options.faults.clone());
        let held = open::hold(&disk, &options)?;
        let dir = held.dir.clone();
        let key = open::key(&disk, &held, &options)?;
        let rules = Rules {
            max_file_bytes: options.max_file_bytes.max(MIN_FILE_BYTES),
            on_failure: options.on_failure,
            power: options.durability == Durability::Power,
            key: key.verifying_key().to_string(),
        };
        let found = open::recover(&disk, &dir, &key.verifying_key())?;
        let is_new = found.is_none();
        let left = match found {
            Some(left) => left,
            None => begin(&disk, &dir, &rules, &options, &key)?,
        };
        let path: Arc<Path> = dir.join(format!("log/{:020}.jsonl", left.place.file_first)).into();
        let io = |error| OpenError::Io(path.to_path_buf(), error);
        let file = Arc::new(disk.open(&path).map_err(io)?);
        let pen = Pen { file: file.clone(), path: path.clone(), len: left.place.file_bytes };
        let firsts: Vec<u64> = left.files.iter().map(|(first, _)| *first).collect();
        let filler = Filler::open(&disk, &dir, (left.place.file_first, left.leaves), &firsts);
        let head = Head::new(left.place, pen, left.sizes.last().copied().unwrap_or(0), options.hold);
        let core = Core::new((dir, disk, options.clock.clone()), rules, key, head, left.newest);
        let core = Arc::new(core);
        let keeper = Keeper::new(core.clone(), &options, (file, path.clone()), (left.files, left.sizes), filler);
        let keeper = std::thread::Builder::new().name("audit-keeper".to_owned()).spawn(move || keeper.run());
        let keeper = Mutex::new(Some(keeper.map_err(io)?));
        let log = Self(Arc::new(Owner { core, keeper, _lock: held.lock }));
        if !is_new {
            let fate = log.0.core.restart(left.recovered.as_ref()).settled_now();
            if let Fate::Failed(_) | Fate::Dropped = fate {
                return Err(io(io::Error::other(log.status().failing.unwrap_or_default())));
            }
        }
        Ok(log)
    }

    /// Appends a record, and returns its number when it is kept. Whoever stops waiting does not take it back.
    ///
    /// # Errors
    /// It is not kept.
    pub async fn append(&self, draft: &Draft) -> Result<u64, AppendError> {
        self.append_all(std::slice::from_ref(draft)).await
    }

    /// Appends records one after the other with nothing between them, and returns the number of the first when all are
    /// kept. None of them is, when they are not. Of no records, the number that the next one would have.
    ///
    /// # Errors
    /// They are not kept.
    pub async fn append_all(&self, drafts: &[Draft]) -> Result<u64, AppendError> {
        self.begin(drafts)?.kept().await
    }

    /// Begins to append records as [`Log::append_all`] does: they have their places, and are on their way. Whoever may stop
    /// waiting, and has to know afterwards whether they were kept, waits with what this returns.
    ///
    /// # Errors
    /// They are not kept.
    pub fn begin(&self, drafts: &[Draft]) -> Result<Appending, AppendError> {
        let core = &self.0.core;
        let (seq, ticket) = core.begin(drafts)?;
        Ok(Appending { seq, ticket, power: core.rules.power })
    }

    /// Appends a record from where nothing can be waited for, and returns its number when the kernel has it: the end of the
    /// process does not lose it. Blocks while another thread writes what came before, and while that begins a file, which
    /// takes the disk some milliseconds. That the disk has it is not waited for, however the log is kept.
    ///
    /// # Errors
    /// It is not kept.
    pub fn append_now(&self, draft: &Draft) -> Result<u64, AppendError> {
        self.begin(std::slice::from_ref(draft))?.kept_now()
    }

    /// The number of records that the disk has: those before it may be read and passed on.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.0.core.durable.subscribe()
    }

    /// The newest checkpoint, a signed note. None before the first.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.core.checkpoints.subscribe()
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let head = self.0.core.head();
        let failing = head.broken.as_ref().or(head.failing.as_ref()).or(head.desk.problem.as_ref());
        Status {
            records: head.written().tree.size(),
            durable: head.durable,
            checkpointed: head.desk.checkpointed,
            dropped: head.dropped,
            failing: failing.map(ToString::to_string),
        }
    }

    /// Where the log is: an absolute path without links.
    pub fn dir(&self) -> PathBuf {
        self.0.core.dir.clone()
    }

    /// What its checkpoints are verified with.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.0.core.key.verifying_key()
    }

    /// Says that records from this number on are still needed: no file with them is removed. Each call replaces what the
    /// one before said.
    pub fn hold(&self, from: u64) {
        self.0.core.head().desk.hold = from;
    }

    /// Ends the log with a checkpoint. Nothing can be appended any more. Waits for the disk.
    ///
    /// # Errors
    /// The last record or the checkpoint cannot be written.
    pub fn close(&self) -> Result<(), AppendError> {
        let core = &self.0.core;
        let closed = Draft::new(kinds::LOG_CLOSED, &LogClosed {})?;
        let last = core.close(&closed)?;
        match last.map(|ticket| ticket.settled_now()) {
            Some(Fate::Failed(reason)) => return Err(AppendError::Io(reason.to_string())),
            None | Some(Fate::Dropped) => return Err(AppendError::Io("its last record was dropped".to_owned())),
            Some(_) => {}
        }
        let mut head = core.head();
        head.desk.closing = true;
        core.call.notify_one();
        loop {
            if let Some(closed) = &head.desk.closed {
                return closed.clone().map_err(|reason| AppendError::Io(reason.to_string()));
            }
            head = core.closed.wait(head).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Records on their way into the log. Dropping it takes nothing back.
#[derive(Debug)]
pub struct Appending {
    seq: u64,
    /// None where there is nothing to wait for.
    ticket: Option<Arc<Ticket>>,
    /// Whether they count only when the disk has them.
    power: bool,
}

impl Appending {
    /// Waits until they are kept, and returns the number of the first.
    ///
    /// # Errors
    /// They are not kept.
    pub async fn kept(&self) -> Result<u64, AppendError> {
        match &self.ticket {
            Some(ticket) => writer::outcome(self.seq, ticket.settled(self.power).await),
            None => Ok(self.seq),
        }
    }

    /// The same from where nothing can be waited for, until the kernel has them; see [`Log::append_now`].
    ///
    /// # Errors
    /// They are not kept.
    pub fn kept_now(&self) -> Result<u64, AppendError> {
        match &self.ticket {
            Some(ticket) => writer::outcome(self.seq, ticket.settled_now()),
            None => Ok(self.seq),
        }
    }
}

/// Begins a log: its first file has its first record when it gets its name, as every file.
fn begin(disk: &Disk, dir: &Path, rules: &Rules, options: &Options, key: &SigningKey) -> Result<open::Left, OpenError> {
    let path = dir.join(format!("log/{:020}.jsonl", 0));
    let line = head::first_line(rules, options.clock.now());
    disk.replace(&path, &dir.join("new"), &line).map_err(|error| OpenError::Io(path.clone(), error))?;
    let left = open::recover(disk, dir, &key.verifying_key())?;
    left.ok_or_else(|| OpenError::Io(path, io::ErrorKind::NotFound.into()))
}
