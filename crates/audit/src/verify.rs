//! Whether a log is what was written: every line, every link of the chain, every root that was signed.
//!
//! What is proven depends on what it is held against. Whoever can write into the directory can write a whole new log there,
//! with a key of its own: only a key or a checkpoint that was kept elsewhere tells the two apart.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::call::LogOpened;
use crate::files::{LogFile, ReadError, checkpoint_files, log_files, small_text};
use crate::hash::Hash;
use crate::kind::kinds;
use crate::line::{Line, LineError, MAX_LINE};
use crate::note::{Checkpoint, NoteError, VerifyingKey};
use crate::scan::{Chunk, Chunks, End, in_order, length};
use crate::tree::Frontier;

/// Largest checkpoint that is read, in bytes.
pub(crate) const MAX_CHECKPOINT: u64 = 16 * 1024;
/// The version of the format that is understood.
const FORMAT: u32 = 1;

/// What was kept elsewhere, and the log is held against.
#[derive(Clone, Debug, Default)]
pub struct Trusted {
    /// The log's keys: the present one, and any that it had before. Empty: the key that lies in the directory is taken, which
    /// proves nothing.
    pub keys: Vec<VerifyingKey>,
    /// Signed checkpoints, each with a name for it, such as its file's.
    pub checkpoints: Vec<(String, String)>,
}

/// A log that is what was written, as far as that can be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What the trust rests on.
    pub trust: Trust,
    /// The number of the first record that is here: 0, unless older files were archived.
    pub first: u64,
    /// How many records the log has had, those of archived files included.
    pub size: u64,
    /// How many records were looked at.
    pub records: u64,
    /// How many files.
    pub files: u64,
    /// How many bytes of whole lines.
    pub bytes: u64,
    /// The root of the tree of all records.
    pub root: Hash,
    /// When the first record was written, by the clock of the machine.
    pub begins: Option<String>,
    /// When the last one was.
    pub ends: Option<String>,
    /// How many signed checkpoints fit.
    pub checkpoints: u64,
    /// How many could not be compared: they are of records before the first one here.
    pub uncompared: u64,
    /// The size of the newest checkpoint that fits and whose word counts.
    pub signed: Option<u64>,
    /// Who signed it.
    pub origin: Option<String>,
    /// How many records are after it. Whether the last of them were cut off cannot be told.
    pub unsigned: u64,
    /// How many bytes of an unfinished record are at the end: what a crash leaves.
    pub torn: u64,
}

/// What the trust in a log rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// On nothing from elsewhere. The log contradicts itself nowhere; it may be another one.
    SelfConsistent,
    /// On a key from elsewhere: its owner wrote this up to the newest checkpoint here. A later one may have been taken away.
    Key,
    /// On checkpoints from elsewhere: up to the newest of them nothing is changed or missing.
    Checkpoint,
    /// On both.
    KeyAndCheckpoint,
}

/// How far it has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes that were looked at.
    pub done: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// Where in the log something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// The byte at which the line begins.
    pub offset: u64,
    /// The record that ought to be there.
    pub seq: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: line {} (byte {}, record {})", self.path.display(), self.line, self.offset, self.seq)
    }
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It has not the exact form.
    #[error(transparent)]
    Form(#[from] LineError),
    /// It has another number.
    #[error("it says that it is record {0}: records were cut out, put in or moved")]
    Number(u64),
    /// It follows another record.
    #[error("it follows a record with hash {said}, but the one before it has {found}: one of them was changed")]
    Chain {
        /// The hash that it names.
        said: Hash,
        /// The hash of the record before it.
        found: Hash,
    },
    /// A file does not begin as files do.
    #[error("a file has to begin with `log_opened`")]
    NotOpened,
    /// The record that opens a file cannot be read.
    #[error("`log_opened` cannot be read: {0}")]
    Opened(String),
    /// The file is of a newer format.
    #[error("format {0}; this program understands format {FORMAT}: use the one that wrote it")]
    Format(u32),
    /// The record that opens a file sums up other records than those before it.
    #[error("it names another frontier than the records before it have")]
    Frontier,
    /// The file ends within a record, and another file follows, or a checkpoint covers it.
    #[error("it has no end")]
    NoEnd,
}

/// A log that is not what was written, or of which that cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record is wrong.
    #[error("{0}: {1}")]
    Record(Place, #[source] Fault),
    /// A checkpoint cannot be believed.
    #[error("checkpoint {0}: {1}")]
    Checkpoint(String, #[source] NoteError),
    /// A checkpoint has the name of another.
    #[error("checkpoint {name}: it is of size {size}: it was renamed")]
    Renamed {
        /// The file.
        name: String,
        /// What the checkpoint says.
        size: u64,
    },
    /// The log has fewer records than were signed.
    #[error("records are missing at the end: the log has {size}, but checkpoint {name} was signed at {signed}")]
    Short {
        /// How many records there are.
        size: u64,
        /// The checkpoint.
        name: String,
        /// Its size.
        signed: u64,
    },
    /// The log has other records than were signed.
    #[error(
        "the first {size} records have the root {found}, but checkpoint {name} was signed with {signed}: records were changed"
    )]
    OtherRoot {
        /// How many records.
        size: u64,
        /// Their root.
        found: Hash,
        /// The checkpoint.
        name: String,
        /// The root that was signed.
        signed: Hash,
    },
    /// The key in the directory is not the one that was given.
    #[error("{}: the key {found} is none of those given: the log was written anew, or its key was changed", path.display())]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// The key there.
        found: String,
    },
    /// There is no key.
    #[error("{}: {why}: give the log's key with --key", path.display())]
    NoKey {
        /// Where it ought to be.
        path: PathBuf,
        /// Why there is none.
        why: String,
    },
    /// A key was given, and nothing is signed with it.
    #[error("nothing here is signed with the key {0}: the log has no checkpoint")]
    Unsigned(String),
    /// Checkpoints were given, and none could be compared.
    #[error(
        "the checkpoints given are of records before {first}, the first one here: give a newer one, or the older files"
    )]
    Uncompared {
        /// The first record that is here.
        first: u64,
    },
}

/// Looks at everything in an audit directory. Works offline, and on a log that is being written, too.
///
/// # Errors
/// The first thing that is wrong, in the order of the log.
pub fn verify(dir: &Path, trusted: &Trusted, mut progress: impl FnMut(Progress)) -> Result<Report, VerifyError> {
    // Before the files: what a checkpoint covers was written before it, also while the log is written.
    let wanted = Wanted::read(dir, trusted)?;
    let files = log_files(dir)?;
    let total = files.iter().map(|file| file.bytes).sum();
    let mut walk = Walk::new(&files, wanted)?;
    let mut done = 0u64;
    in_order(Chunks::of(files.clone()), check, |chunk, checked| {
        done = done.saturating_add(length(chunk.bytes.len()));
        walk.take(&chunk, checked)?;
        progress(Progress { done: done.min(total), total });
        Ok::<_, VerifyError>(true)
    })?;
    walk.finish(trusted)
}

/// What a core finds out about a chunk alone.
#[derive(Debug, Default)]
struct Checked {
    /// What the first line says of its place.
    first: Option<(u64, Hash)>,
    /// The hashes of the lines that are good.
    leaves: Vec<Hash>,
    /// The records that open a file: which line, and what they say.
    opened: Vec<(usize, LogOpened)>,
    /// Of the first and the last line.
    times: Option<(String, String)>,
    /// What is wrong with the line after the good ones, and where in the chunk it begins.
    fault: Option<(usize, Fault)>,
}

fn check(chunk: &Chunk) -> Checked {
    let mut checked = Checked::default();
    let mut before: Option<(u64, Hash)> = None;
    let (mut begins, mut ends) = ("", "");
    for (at, bytes) in chunk.lines() {
        let line = match one(bytes, before) {
            Ok(line) => line,
            Err(fault) => {
                checked.fault = Some((at, fault));
                break;
            }
        };
        if line.code == kinds::LOG_OPENED.code {
            match serde_json::from_slice(bytes) {
                Ok(opened) => checked.opened.push((checked.leaves.len(), opened)),
                Err(error) => {
                    checked.fault = Some((at, Fault::Opened(error.to_string())));
                    break;
                }
            }
        }
        if before.is_none() {
            checked.first = Some((line.seq, line.prev));
            begins = line.time;
        }
        ends = line.time;
        let hash = Hash::of_leaf(bytes);
        before = Some((line.seq, hash));
        checked.leaves.push(hash);
    }
    checked.times = before.map(|_| (begins.to_owned(), ends.to_owned()));
    checked
}

fn one(bytes: &[u8], before: Option<(u64, Hash)>) -> Result<Line<'_>, Fault> {
    let line = Line::exact(bytes)?;
    if let Some((seq, hash)) = before {
        follows(line.seq, line.prev, seq.saturating_add(1), hash)?;
    }
    Ok(line)
}

fn follows(seq: u64, prev: Hash, wanted: u64, hash: Hash) -> Result<(), Fault> {
    if seq != wanted {
        return Err(Fault::Number(seq));
    }
    if prev != hash {
        return Err(Fault::Chain { said: prev, found: hash });
    }
    Ok(())
}

/// A checkpoint that the log has to fit.
#[derive(Debug)]
struct Signed {
    checkpoint: Checkpoint,
    name: String,
    elsewhere: bool,
}

/// All of them, smallest first.
#[derive(Debug)]
struct Wanted(Vec<Signed>);

impl Wanted {
    fn read(dir: &Path, trusted: &Trusted) -> Result<Self, VerifyError> {
        let local = checkpoint_files(dir)?;
        let own = own_key(dir, trusted, local.is_empty() && trusted.checkpoints.is_empty())?;
        let keys = if trusted.keys.is_empty() { &own } else { &trusted.keys };
        let mut all = Vec::with_capacity(local.len());
        for (size, path) in local {
            // One that was thinned out meanwhile is not there any more; the newest never is.
            let Some(note) = small_text(&path, MAX_CHECKPOINT)? else { continue };
            let name = path.display().to_string();
            let checkpoint =
                Checkpoint::open_any(&note, keys).map_err(|error| VerifyError::Checkpoint(name.clone(), error))?;
            if checkpoint.size != size {
                return Err(VerifyError::Renamed { name, size: checkpoint.size });
            }
            all.push(Signed { checkpoint, name, elsewhere: false });
        }
        for (name, note) in &trusted.checkpoints {
            let checkpoint =
                Checkpoint::open_any(note, keys).map_err(|error| VerifyError::Checkpoint(name.clone(), error))?;
            all.push(Signed { checkpoint, name: name.clone(), elsewhere: true });
        }
        all.sort_by_key(|signed| signed.checkpoint.size);
        Ok(Self(all))
    }
}

/// The key that lies in the directory. It must be one of those given, if any are.
fn own_key(dir: &Path, trusted: &Trusted, unneeded: bool) -> Result<Vec<VerifyingKey>, VerifyError> {
    let path = dir.join("key.pub");
    let no_key = |why: String| VerifyError::NoKey { path: path.clone(), why };
    let Some(text) = small_text(&path, MAX_CHECKPOINT)? else {
        return match unneeded || !trusted.keys.is_empty() {
            true => Ok(Vec::new()),
            false => Err(no_key("there is none".to_owned())),
        };
    };
    let key: VerifyingKey = text.parse().map_err(|error: NoteError| no_key(error.to_string()))?;
    if !trusted.keys.is_empty() && !trusted.keys.contains(&key) {
        return Err(VerifyError::OtherKey { path, found: key.to_string() });
    }
    Ok(vec![key])
}

/// A log as far as it was looked at.
#[derive(Debug)]
struct Walk<'a> {
    files: &'a [LogFile],
    wanted: std::iter::Peekable<std::vec::IntoIter<Signed>>,
    report: Report,
    tree: Frontier,
    /// The hash of the last record; unknown before the first one that is here.
    prev: Option<Hash>,
    /// Lines of this file.
    lines: u64,
    /// The size of the newest checkpoint from elsewhere that fits.
    elsewhere: Option<u64>,
}

impl<'a> Walk<'a> {
    fn new(files: &'a [LogFile], wanted: Wanted) -> Result<Self, VerifyError> {
        let first = files.first().map_or(0, |file| file.first);
        let report = Report {
            trust: Trust::SelfConsistent,
            first,
            size: first,
            records: 0,
            files: length(files.len()),
            bytes: 0,
            root: Hash::of_empty(),
            begins: None,
            ends: None,
            checkpoints: 0,
            uncompared: 0,
            signed: None,
            origin: None,
            unsigned: 0,
            torn: 0,
        };
        let prev = (first == 0).then_some(Hash::NONE);
        let wanted = wanted.0.into_iter().peekable();
        let mut walk = Self { files, wanted, report, tree: Frontier::default(), prev, lines: 0, elsewhere: None };
        if first == 0 {
            walk.compare()?;
        }
        Ok(walk)
    }

    /// The next lines, in order.
    fn take(&mut self, chunk: &Chunk, checked: Checked) -> Result<(), VerifyError> {
        let file = self.files.get(chunk.file).ok_or_else(|| ReadError::NotALog(PathBuf::new()))?;
        if chunk.begins {
            self.lines = 0;
            self.begin(file, chunk, &checked)?;
        }
        let place = |walk: &Self, offset: usize| Place {
            path: file.path.clone(),
            line: walk.lines.saturating_add(1),
            offset: chunk.offset.saturating_add(length(offset)),
            seq: walk.report.size,
        };
        if let (Some((seq, prev)), Some(hash)) = (checked.first, self.prev) {
            follows(seq, prev, self.report.size, hash).map_err(|fault| VerifyError::Record(place(self, 0), fault))?;
        }
        let mut opened = checked.opened.into_iter().peekable();
        for (at, leaf) in checked.leaves.iter().enumerate() {
            if let Some((_, opened)) = opened.next_if(|(line, _)| *line == at) {
                self.opened(&opened).map_err(|fault| {
                    let offset = chunk.lines().nth(at).map_or(0, |(offset, _)| offset);
                    VerifyError::Record(place(self, offset), fault)
                })?;
            }
            self.tree.push(*leaf);
            self.prev = Some(*leaf);
            self.lines += 1;
            self.report.size += 1;
            self.compare()?;
        }
        if let Some((at, fault)) = checked.fault {
            return Err(VerifyError::Record(place(self, at), fault));
        }
        if let Some((begins, ends)) = checked.times {
            self.report.begins.get_or_insert(begins);
            self.report.ends = Some(ends);
        }
        self.report.bytes = self.report.bytes.saturating_add(length(chunk.bytes.len()));
        let last = chunk.file + 1 == self.files.len();
        match chunk.end {
            End::None | End::File => Ok(()),
            End::Torn(bytes) if last => {
                self.report.torn = bytes;
                Ok(())
            }
            End::Torn(_) => Err(VerifyError::Record(place(self, chunk.bytes.len()), Fault::NoEnd)),
            End::TooLong => Err(VerifyError::Record(place(self, chunk.bytes.len()), LineError::TooLong.into())),
        }
    }

    /// The beginning of a file: it has to go on where the one before it ended, and say so.
    fn begin(&mut self, file: &LogFile, chunk: &Chunk, checked: &Checked) -> Result<(), VerifyError> {
        if file.first != self.report.size {
            return Err(ReadError::Gap { missing: self.report.size, next: file.path.clone() }.into());
        }
        let place = Place { path: file.path.clone(), line: 1, offset: 0, seq: file.first };
        let Some((seq, prev)) = checked.first else {
            return match &checked.fault {
                // The line itself is wrong, which is said later.
                Some(_) => Ok(()),
                // A crash may leave a file without a whole line, but only the last one, and only behind others.
                None if chunk.end == End::TooLong => Ok(()),
                None if chunk.file + 1 == self.files.len() && self.prev.is_some() => Ok(()),
                None => Err(VerifyError::Record(place, Fault::NoEnd)),
            };
        };
        let Some((0, opened)) = checked.opened.first() else {
            return Err(VerifyError::Record(place, Fault::NotOpened));
        };
        if self.prev.is_none() {
            // Nothing is known of what was archived but this; a checkpoint will tell whether it is so.
            let tree = Frontier::new(file.first, opened.frontier.clone());
            self.tree = tree.ok_or_else(|| VerifyError::Record(place.clone(), Fault::Frontier))?;
            follows(seq, prev, file.first, prev).map_err(|fault| VerifyError::Record(place, fault))?;
            self.compare()?;
        }
        Ok(())
    }

    fn opened(&self, opened: &LogOpened) -> Result<(), Fault> {
        if opened.format != FORMAT {
            return Err(Fault::Format(opened.format));
        }
        match opened.frontier == self.tree.peaks() {
            true => Ok(()),
            false => Err(Fault::Frontier),
        }
    }

    /// Compares what was signed at this size.
    fn compare(&mut self) -> Result<(), VerifyError> {
        let size = self.tree.size();
        while let Some(signed) = self.wanted.next_if(|signed| signed.checkpoint.size <= size) {
            if signed.checkpoint.size < size {
                self.report.uncompared += 1;
                continue;
            }
            let found = self.tree.root();
            if signed.checkpoint.root != found {
                let (name, signed) = (signed.name, signed.checkpoint.root);
                return Err(VerifyError::OtherRoot { size, found, name, signed });
            }
            self.report.checkpoints += 1;
            self.report.signed = Some(size);
            self.report.origin = Some(signed.checkpoint.origin);
            if signed.elsewhere {
                self.elsewhere = Some(size);
            }
        }
        Ok(())
    }

    fn finish(mut self, trusted: &Trusted) -> Result<Report, VerifyError> {
        let size = self.report.size;
        if let Some(missing) = self.wanted.last() {
            return Err(VerifyError::Short { size, name: missing.name, signed: missing.checkpoint.size });
        }
        if !trusted.checkpoints.is_empty() && self.elsewhere.is_none() {
            return Err(VerifyError::Uncompared { first: self.report.first });
        }
        if let (Some(key), None) = (trusted.keys.first(), self.report.signed) {
            return Err(VerifyError::Unsigned(key.to_string()));
        }
        self.report.trust = match (trusted.keys.is_empty(), self.elsewhere) {
            (true, None) => Trust::SelfConsistent,
            (false, None) => Trust::Key,
            (false, Some(_)) => Trust::KeyAndCheckpoint,
            (true, Some(size)) => {
                // What is signed after it is signed by a key that nobody vouches for.
                self.report.signed = Some(size);
                Trust::Checkpoint
            }
        };
        self.report.records = size.saturating_sub(self.report.first);
        self.report.unsigned = size.saturating_sub(self.report.signed.unwrap_or(self.report.first));
        self.report.root = self.tree.root();
        Ok(self.report)
    }
}

/// Longest record, for who reads logs without this library.
const _: () = assert!(MAX_LINE == 256 * 1024, "docs/audit-format.md says so");
