//! Opening: the directory and its lock, the key, and what the last process has left.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::disk::Disk;
use super::head::Place;
use super::{OpenError, Options};
use crate::call::LogRecovered;
use crate::hash::Hash;
use crate::line::{Line, MAX_LINE};
use crate::note::{Checkpoint, SigningKey, VerifyingKey};
use crate::tree::Frontier;

/// Largest key file and checkpoint that is read, in bytes.
const MAX_SMALL: u64 = 16 * 1024;

/// The directory, ours alone until the lock is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) dir: PathBuf,
    pub(super) lock: File,
}

/// What the last process has left.
pub(super) struct Left {
    /// Where the log goes on: behind the last whole record.
    pub(super) place: Place,
    /// The files, oldest first: the number of their first record, and their length.
    pub(super) files: VecDeque<(u64, u64)>,
    /// The hashes of the records of the last file.
    pub(super) leaves: Vec<Hash>,
    /// The sizes of all checkpoints in ascending order, and the newest one.
    pub(super) sizes: Vec<u64>,
    pub(super) newest: Option<Arc<str>>,
    /// What was taken off the end.
    pub(super) recovered: Option<LogRecovered>,
}

/// Makes the directory, if it is absent, and locks it.
pub(super) fn hold(disk: &Disk, options: &Options) -> Result<Held, OpenError> {
    let io = |error| OpenError::Io(options.dir.clone(), error);
    disk.make_dir(&options.dir).map_err(io)?;
    // A link to the directory is followed once, here.
    let dir = fs::canonicalize(&options.dir).map_err(io)?;
    for part in ["", "log", "checkpoints", "tree"] {
        let path = if part.is_empty() { dir.clone() } else { dir.join(part) };
        disk.make_dir(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
        let found = fs::symlink_metadata(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
        let writable = found.mode() & 0o022 != 0;
        let problem = match found.is_dir() {
            false => "it is no directory",
            true if found.uid() != rustix::process::geteuid().as_raw() => "it belongs to somebody else",
            true if writable => "others than its owner may write to it (chmod 0700)",
            true => continue,
        };
        return Err(OpenError::NotOurs(path, problem));
    }
    let path = dir.join("lock");
    let lock = disk.open(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Held { dir, lock }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(dir)),
        Err(error) => Err(OpenError::Io(path, error.into())),
    }
}

/// Reads the key, or makes one for a log that has none yet. Writes its public half beside the log.
pub(super) fn key(disk: &Disk, held: &Held, options: &Options) -> Result<SigningKey, OpenError> {
    let path = &options.key_file;
    let io = |error| OpenError::Io(path.clone(), error);
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if fs::canonicalize(parent).map_err(io)?.starts_with(&held.dir) {
        return Err(OpenError::KeyInside(path.clone(), held.dir.clone()));
    }
    if !path.try_exists().map_err(io)? {
        let used = ["log", "checkpoints"]
            .iter()
            .any(|part| fs::read_dir(held.dir.join(part)).is_ok_and(|mut entries| entries.next().is_some()));
        if used {
            return Err(OpenError::KeyLost(path.clone(), held.dir.clone()));
        }
        let fresh = SigningKey::generate(&options.origin);
        match disk.create_new(path, fresh.pkcs8()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
            _ => {}
        }
    }
    if fs::metadata(path).map_err(io)?.permissions().mode() & 0o027 != 0 {
        return Err(OpenError::KeyOpen(path.clone()));
    }
    let pkcs8 = Zeroizing::new(read_small(path).map_err(io)?);
    let key = SigningKey::from_pkcs8(&options.origin, &pkcs8).map_err(|error| OpenError::Key(path.clone(), error))?;
    let public = held.dir.join("key.pub");
    let text = format!("{}\n", key.verifying_key());
    if read_small(&public).ok().as_deref() != Some(text.as_bytes()) {
        let written = disk.replace(&public, &held.dir.join("new"), text.as_bytes());
        written.map_err(|error| OpenError::Io(public, error))?;
    }
    Ok(key)
}

/// Finds the end of the log, and takes off what is unfinished. `None` when there is no log yet.
pub(super) fn recover(disk: &Disk, dir: &Path, key: &VerifyingKey) -> Result<Option<Left>, OpenError> {
    let sizes = numbers(&dir.join("checkpoints"), "")?;
    let mut firsts = numbers(&dir.join("log"), ".jsonl")?;
    let newest = match sizes.last() {
        Some(size) => Some(checkpoint(&dir.join(format!("checkpoints/{size:020}")), *size, key)?),
        None => None,
    };
    let (checked, note) = newest.unzip();
    let mut recovered = None;
    let (place, leaves) = loop {
        let Some(first) = firsts.last().copied() else {
            return match checked {
                None => Ok(None),
                Some(checked) => Err(OpenError::CutOff { dir: dir.to_owned(), records: 0, checkpoint: checked.size }),
            };
        };
        let path = dir.join(format!("log/{first:020}.jsonl"));
        let found = read(&path, first, checked.as_ref()).map_err(|wrong| wrong.told(&path))?;
        let file = disk.open(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
        if let Some((whole, torn)) = found.torn {
            disk.cut(&file, &path, whole).map_err(|error| OpenError::Io(path.clone(), error))?;
            recovered = Some(torn);
        }
        // How much of it the disk has is not known.
        disk.sync(&file, &path).map_err(|error| OpenError::Io(path.clone(), error))?;
        match found.place {
            Some(place) => break (place, found.leaves),
            // Not even its first record is whole: it had not begun.
            None => disk.remove(&path).map_err(|error| OpenError::Io(path, error))?,
        }
        firsts.pop();
    };
    disk.sync_dir(&dir.join("log")).map_err(|error| OpenError::Io(dir.join("log"), error))?;
    let size = checked.as_ref().map_or(0, |checked| checked.size);
    if place.tree.size() < size {
        return Err(OpenError::CutOff { dir: dir.to_owned(), records: place.tree.size(), checkpoint: size });
    }
    // A file begins only behind a checkpoint, so there is one of its beginning or a later one.
    if size < place.file_first {
        return Err(OpenError::NoCheckpoint { dir: dir.to_owned(), first: place.file_first });
    }
    let len = |first: &u64| fs::metadata(dir.join(format!("log/{first:020}.jsonl"))).map_or(0, |meta| meta.len());
    let files = firsts.iter().map(|first| (*first, len(first))).collect();
    Ok(Some(Left { place, files, leaves, sizes, newest: note, recovered }))
}

/// What one file holds.
struct Found {
    /// Behind its last whole record; `None` when it has none.
    place: Option<Place>,
    leaves: Vec<Hash>,
    /// The length of what is whole, and what is behind it.
    torn: Option<(u64, LogRecovered)>,
}

/// What is wrong with a file.
enum Wrong {
    Io(io::Error),
    Record(u64, &'static str),
    Checkpoint(u64),
}

impl Wrong {
    fn told(self, path: &Path) -> OpenError {
        let path = path.to_owned();
        match self {
            Wrong::Io(error) => OpenError::Io(path, error),
            Wrong::Record(record, how) => OpenError::Changed { path, record, how },
            Wrong::Checkpoint(size) => OpenError::Contradicted { path, size },
        }
    }
}

/// What a file's first record says beside what all say.
#[derive(Deserialize)]
struct Opening {
    event: String,
    frontier: Vec<Hash>,
}

/// Reads a file: each record has to follow the one before, and all of them have to be what the checkpoint says.
fn read(path: &Path, first: u64, checkpoint: Option<&Checkpoint>) -> Result<Found, Wrong> {
    let mut file = BufReader::with_capacity(256 * 1024, File::open(path).map_err(Wrong::Io)?);
    let most = u64::try_from(MAX_LINE).expect("a small number") + 1;
    let (mut found, mut whole) = (Found { place: None, leaves: Vec::new(), torn: None }, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        (&mut file).take(most).read_until(b'\n', &mut line).map_err(Wrong::Io)?;
        let number = found.place.as_ref().map_or(first, |place| place.tree.size());
        let Some(record) = line.strip_suffix(b"\n") else { break };
        let read = Line::parse(record).map_err(|_| Wrong::Record(number, "is no record"))?;
        if read.seq != number {
            return Err(Wrong::Record(number, "has another number"));
        }
        let before = match found.place.take() {
            Some(place) if place.prev != read.prev => {
                return Err(Wrong::Record(number, "does not follow the one before it"));
            }
            Some(place) => place.tree,
            None => opening(record, first)?,
        };
        let mut tree = before;
        if checkpoint.is_some_and(|signed| signed.size == number && signed.root != tree.root()) {
            return Err(Wrong::Checkpoint(number));
        }
        let prev = Hash::of_leaf(record);
        tree.push(prev);
        found.leaves.push(prev);
        whole += u64::try_from(line.len()).expect("a line in memory");
        let time: Timestamp = read.time.parse().map_err(|_| Wrong::Record(number, "has no time"))?;
        found.place = Some(Place { prev, tree, file_first: first, file_bytes: whole, time });
    }
    let end = found.place.as_ref().map(|place| &place.tree);
    if let (Some(tree), Some(signed)) = (end, checkpoint)
        && signed.size == tree.size()
        && signed.root != tree.root()
    {
        return Err(Wrong::Checkpoint(signed.size));
    }
    if !line.is_empty() {
        let number = end.map_or(first, Frontier::size);
        // What is in front of the checkpoint was whole once.
        if checkpoint.is_some_and(|signed| signed.size > number) {
            return Err(Wrong::Record(number, "is cut off, although a checkpoint has it"));
        }
        found.torn = Some((whole, torn(file.into_inner(), whole).map_err(Wrong::Io)?));
    }
    Ok(found)
}

/// The tree before a file, as its first record says.
fn opening(record: &[u8], first: u64) -> Result<Frontier, Wrong> {
    let opening: Opening =
        serde_json::from_slice(record).map_err(|_| Wrong::Record(first, "is not what a file begins with"))?;
    let tree = Frontier::new(first, opening.frontier).filter(|_| opening.event == "log_opened");
    tree.ok_or(Wrong::Record(first, "is not what a file begins with"))
}

/// What is behind the last whole record.
fn torn(mut file: File, from: u64) -> io::Result<LogRecovered> {
    file.seek(io::SeekFrom::Start(from))?;
    let mut reader = BufReader::new(file);
    let (mut digest, mut bytes) = (Context::new(&SHA256), 0);
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(LogRecovered { bytes, sha256: hex::encode(digest.finish().as_ref()) });
        }
        digest.update(chunk);
        let count = chunk.len();
        bytes += u64::try_from(count).expect("a buffer in memory");
        reader.consume(count);
    }
}

/// Reads a checkpoint of ours.
fn checkpoint(path: &Path, size: u64, key: &VerifyingKey) -> Result<(Checkpoint, Arc<str>), OpenError> {
    let bytes = read_small(path).map_err(|error| OpenError::Io(path.to_owned(), error))?;
    let wrong = |error| OpenError::Checkpoint(path.to_owned(), error);
    let note = String::from_utf8(bytes).map_err(|_| wrong(crate::NoteError::Malformed("not UTF-8")))?;
    let opened = Checkpoint::open(&note, key).map_err(wrong)?;
    match opened.size == size {
        true => Ok((opened, note.into())),
        false => Err(wrong(crate::NoteError::Malformed("its size is not that of its name"))),
    }
}

/// The numbers that files are named by, in ascending order. Other files are let be.
fn numbers(dir: &Path, suffix: &str) -> Result<Vec<u64>, OpenError> {
    let io = |error| OpenError::Io(dir.to_owned(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(suffix)).filter(|digits| digits.len() == 20);
        found.extend(
            digits
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|d| d.parse::<u64>().ok()),
        );
    }
    found.sort_unstable();
    Ok(found)
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SMALL).read_to_end(&mut bytes)?;
    Ok(bytes)
}
