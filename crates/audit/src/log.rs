//! The log: lines that are only ever added.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::call::{LogClosed, LogOpened};
use crate::hash::Hash;
use crate::kind::kinds;
use crate::line::{Draft, DraftError};
use crate::note::{SigningKey, VerifyingKey};
use crate::tree::Frontier;

/// When a record counts as kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the kernel has it: the end of the process loses nothing, a power cut what was written within 10 ms.
    #[default]
    Process,
    /// When the disk says that it has it.
    Power,
}

/// What becomes of records that cannot be written, since the disk is full or fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// Appending fails: what was to be recorded must not be done.
    #[default]
    Deny,
    /// Appending succeeds with the number [`DROPPED`]. The record is lost and counted, and the next record that can be
    /// written says how many were.
    DropAndCount,
}

/// The number of a record that was dropped ([`OnFailure::DropAndCount`]).
pub const DROPPED: u64 = u64::MAX;

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory. Made with mode 0700 if it is absent.
    pub dir: PathBuf,
    /// The file of the private key, outside of `dir`. Made with mode 0600 if it is absent.
    pub key_file: PathBuf,
    /// What the name of a new key begins with, such as `sortie-gateway`.
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
        }
    }
}

/// How it stands with a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Records that are written.
    pub records: u64,
    /// Records that the disk has.
    pub durable: u64,
    /// Records before the newest checkpoint.
    pub checkpointed: u64,
    /// Records that were dropped since the log was opened.
    pub dropped: u64,
    /// Why records cannot be written at the moment, or why no checkpoint can.
    pub failing: Option<String>,
}

/// A log that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Something could not be read or made.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The key is no key.
    #[error("{0}: {1}")]
    Key(PathBuf, crate::NoteError),
}

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

/// A log that this process writes. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Log(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    file: File,
    dir: PathBuf,
    key: SigningKey,
    prev: Hash,
    tree: Frontier,
    closed: bool,
    durable: watch::Sender<u64>,
    checkpoints: watch::Sender<Option<Arc<str>>>,
}

impl Log {
    /// Opens the log in a directory, or begins one.
    ///
    /// # Errors
    /// It cannot be read or made, or is not one.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io(path, error)
        };
        let Options { dir, key_file, origin, .. } = options;
        for sub in ["log", "checkpoints"] {
            std::fs::create_dir_all(dir.join(sub)).map_err(io(&dir))?;
        }
        let key = match std::fs::read(&key_file) {
            Ok(pkcs8) => SigningKey::from_pkcs8(&origin, &pkcs8).map_err(|e| OpenError::Key(key_file.clone(), e))?,
            Err(_) => {
                let key = SigningKey::generate(&origin);
                std::fs::write(&key_file, key.pkcs8()).map_err(io(&key_file))?;
                key
            }
        };
        let path = dir.join("log/00000000000000000000.jsonl");
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(io(&path))?;
        let (mut prev, mut tree) = (Hash::NONE, Frontier::default());
        for line in BufReader::new(File::open(&path).map_err(io(&path))?).split(b'\n') {
            prev = Hash::of_leaf(&line.map_err(io(&path))?);
            tree.push(prev);
        }
        let reason = if tree.size() == 0 { "begun" } else { "restarted" };
        let opened = LogOpened {
            format: 1,
            reason: reason.to_owned(),
            key: key.verifying_key().to_string(),
            frontier: tree.peaks().to_vec(),
            software: concat!("sortie ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let log = Self(Arc::new(Mutex::new(State {
            file,
            dir,
            key,
            prev,
            tree,
            closed: false,
            durable: watch::Sender::new(0),
            checkpoints: watch::Sender::new(None),
        })));
        let opened = Draft::new(kinds::LOG_OPENED, &opened).expect("our own record is small");
        log.append_now(&opened).map_err(|error| OpenError::Io(path, io::Error::other(error)))?;
        Ok(log)
    }

    /// Appends a record, and returns its number when it is kept.
    ///
    /// # Errors
    /// It is not kept.
    pub async fn append(&self, draft: &Draft) -> Result<u64, AppendError> {
        self.append_now(draft)
    }

    /// Appends a record from where nothing can be waited for, and returns its number when the kernel has it.
    ///
    /// # Errors
    /// It is not kept.
    pub fn append_now(&self, draft: &Draft) -> Result<u64, AppendError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed {
            return Err(AppendError::Closed);
        }
        let seq = state.tree.size();
        let mut line = Vec::new();
        draft.write(seq, &state.prev, jiff::Timestamp::now(), &mut line);
        let hash = Hash::of_leaf(&line);
        line.push(b'\n');
        state.file.write_all(&line).map_err(|error| AppendError::Io(error.to_string()))?;
        state.prev = hash;
        state.tree.push(hash);
        state.durable.send_replace(state.tree.size());
        Ok(seq)
    }

    /// Appends records one after the other with nothing between them, and returns the number of the first when all are
    /// kept. None of them is, when they are not.
    ///
    /// # Errors
    /// They are not kept.
    pub async fn append_all(&self, drafts: &[Draft]) -> Result<u64, AppendError> {
        let mut first = None;
        for draft in drafts {
            first.get_or_insert(self.append_now(draft)?);
        }
        Ok(first.unwrap_or_else(|| self.state().tree.size()))
    }

    /// The number of records that the disk has: those before it may be read and passed on.
    pub fn durable(&self) -> watch::Receiver<u64> {
        self.state().durable.subscribe()
    }

    /// The newest checkpoint, a signed note. None before the first.
    pub fn checkpoints(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.state().checkpoints.subscribe()
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        let records = self.state().tree.size();
        Status { records, durable: records, ..Status::default() }
    }

    /// Where the log is.
    pub fn dir(&self) -> PathBuf {
        self.state().dir.clone()
    }

    /// What its checkpoints are verified with.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.state().key.verifying_key()
    }

    /// Says that records from this number on are still needed: no file with them is removed. Each call replaces what the
    /// one before said.
    pub fn hold(&self, from: u64) {
        let _ = from;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the log with a checkpoint. Nothing can be appended any more.
    ///
    /// # Errors
    /// The last record or the checkpoint cannot be written.
    pub fn close(&self) -> Result<(), AppendError> {
        let closed = Draft::new(kinds::LOG_CLOSED, &LogClosed {})?;
        self.append_now(&closed)?;
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        let note = state.key.sign(state.tree.size(), state.tree.root());
        let path = state.dir.join(format!("checkpoints/{:020}", state.tree.size()));
        std::fs::write(path, &note).map_err(|error| AppendError::Io(error.to_string()))?;
        state.checkpoints.send_replace(Some(note.into()));
        Ok(())
    }
}
