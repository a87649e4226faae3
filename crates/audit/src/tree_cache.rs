//! The hashes of the tree, kept beside the log so that a proof does not have to read all of it. They are derived from the
//! log and never trusted: a verifier makes its own, and a proof is checked against a signed root. They can be deleted.
//!
//! # Format
//!
//! `tree/0` holds the leaf hashes of all records from record 0 on, 32 bytes each. `tree/1` holds the root of each 256
//! leaves, `tree/2` the root of each 256 of those, and so on: entry `i` of `tree/L` is the root (RFC 6962) of the records
//! from `i * 256^L` on, as many as `256^L`. Only whole entries count: a length that is no multiple of 32 ends with what a
//! crash left. The files are only added to, in the background at each checkpoint, so that they are never ahead of the newest
//! checkpoint, and may be behind it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use crate::hash::Hash;
use crate::log::disk::Disk;
use crate::tree::Frontier;

/// How many entries of a level one of the next stands for.
const WIDTH: u64 = 256;
/// The length of a hash.
const HASH: u64 = 32;
/// How many leaves may wait in memory while the levels cannot be written. Beyond, they are given up until the log is
/// opened again.
const MAX_WAITING: usize = 1 << 20;
/// How many leaves are written at once when the levels are made anew.
const CHUNK: usize = 64 * 1024;

/// The files, open to be added to.
#[derive(Debug)]
struct Levels {
    disk: Disk,
    dir: PathBuf,
    levels: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    file: File,
    path: PathBuf,
    count: u64,
    /// The entries that make no entry of the next level yet.
    tail: Vec<Hash>,
}

impl Levels {
    /// Opens what is there, and repairs it as far as it can be without the log: nothing of it is behind `sure`, unless
    /// `size` records are there as well.
    fn open(disk: &Disk, dir: &Path, sure: u64, size: u64) -> io::Result<Self> {
        disk.make_dir(dir)?;
        let mut levels = Self { disk: disk.clone(), dir: dir.to_owned(), levels: Vec::new() };
        let mut count = levels.open_level(0)?.count;
        if count > size {
            count = sure.min(count);
        }
        levels.settle(0, count)?;
        for number in 1.. {
            let (below, there) = (count, dir.join(number.to_string()).exists());
            count /= WIDTH;
            if count == 0 && !there {
                break;
            }
            let had = levels.open_level(number)?.count.min(count);
            levels.settle(number, had)?;
            for entry in had..count {
                let children = levels.read(number - 1, entry * WIDTH, WIDTH)?;
                levels.put(number, &[root(&children)])?;
            }
            debug_assert_eq!(below / WIDTH, count);
        }
        Ok(levels)
    }

    fn count(&self) -> u64 {
        self.levels.first().map_or(0, |level| level.count)
    }

    /// Adds leaves, and what they complete above.
    fn add(&mut self, leaves: &[Hash]) -> io::Result<()> {
        let mut entries = leaves.to_vec();
        for number in 0.. {
            if entries.is_empty() {
                break;
            }
            if number == self.levels.len() {
                self.open_level(number)?;
            }
            entries = self.put(number, &entries)?;
        }
        Ok(())
    }

    /// Adds to one level; returns what that completes above.
    fn put(&mut self, number: usize, entries: &[Hash]) -> io::Result<Vec<Hash>> {
        let Some(level) = self.levels.get_mut(number) else { return Ok(Vec::new()) };
        let bytes: Vec<u8> = entries.iter().flat_map(|hash| *hash.as_bytes()).collect();
        self.disk.write(&level.file, &level.path, &bytes)?;
        level.count += u64::try_from(entries.len()).expect("a slice in memory");
        level.tail.extend_from_slice(entries);
        let width = usize::try_from(WIDTH).expect("small");
        let whole = level.tail.len() / width * width;
        let above = level.tail.drain(..whole).collect::<Vec<_>>();
        Ok(above.chunks(width).map(root).collect())
    }

    fn open_level(&mut self, number: usize) -> io::Result<&mut Level> {
        let path = self.dir.join(number.to_string());
        let file = self.disk.open(&path)?;
        let count = file.metadata()?.len() / HASH;
        self.levels.push(Level { file, path, count, tail: Vec::new() });
        Ok(self.levels.last_mut().expect("just pushed"))
    }

    /// Cuts a level to so many entries, and reads those that make none above.
    fn settle(&mut self, number: usize, count: u64) -> io::Result<()> {
        let disk = self.disk.clone();
        let tail = self.read(number, count / WIDTH * WIDTH, count % WIDTH)?;
        let Some(level) = self.levels.get_mut(number) else { return Ok(()) };
        if level.file.metadata()?.len() != count * HASH {
            disk.cut(&level.file, &level.path, count * HASH)?;
        }
        (level.count, level.tail) = (count, tail);
        Ok(())
    }

    fn read(&self, number: usize, from: u64, count: u64) -> io::Result<Vec<Hash>> {
        let Some(level) = self.levels.get(number) else { return Ok(Vec::new()) };
        let mut bytes = vec![0; usize::try_from(count * HASH).map_err(io::Error::other)?];
        level.file.read_exact_at(&mut bytes, from * HASH)?;
        let (hashes, _) = bytes.as_chunks::<32>();
        Ok(hashes.iter().map(|hash| Hash::from(*hash)).collect())
    }
}

/// The root of a perfect subtree.
fn root(hashes: &[Hash]) -> Hash {
    let mut tree = Frontier::default();
    hashes.iter().for_each(|hash| tree.push(*hash));
    tree.root()
}

/// Writes the levels as the log grows.
#[derive(Debug)]
pub(crate) struct Filler {
    state: State,
    /// Leaves that are in no level yet, and the number of the first.
    waiting: Vec<Hash>,
    first: u64,
}

#[derive(Debug)]
enum State {
    Ready(Levels),
    /// What is behind is read from the log, on a thread of its own.
    Behind {
        levels: Receiver<io::Result<Levels>>,
        stop: Arc<AtomicBool>,
    },
    GivenUp,
}

impl Filler {
    /// Opens the levels below a log's directory. `leaves` are those of the log's last file, the first of them with this
    /// number; `files` are the numbers of the first records of all files.
    pub(crate) fn open(disk: &Disk, log: &Path, (first, leaves): (u64, Vec<Hash>), files: &[u64]) -> Self {
        let size = first + u64::try_from(leaves.len()).expect("a vector in memory");
        let state = match Levels::open(disk, &log.join("tree"), first, size) {
            Ok(levels) if levels.count() >= first => State::Ready(levels),
            Ok(levels) => behind(levels, log.join("log"), files.to_vec(), first),
            Err(error) => given_up(&error),
        };
        Self { state, waiting: leaves, first }
    }

    /// Takes the leaves that follow.
    pub(crate) fn add(&mut self, leaves: Vec<Hash>) {
        match self.state {
            State::GivenUp => {}
            _ if self.waiting.len() + leaves.len() > MAX_WAITING => {
                self.waiting = Vec::new();
                self.state = given_up(&io::Error::other("too many wait to be written"));
            }
            _ if self.waiting.is_empty() => self.waiting = leaves,
            _ => self.waiting.extend(leaves),
        }
    }

    /// Writes what waits, if it can be.
    pub(crate) fn fill(&mut self) {
        if let State::Behind { levels, .. } = &self.state {
            self.state = match levels.try_recv() {
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => State::GivenUp,
                Ok(Ok(levels)) => State::Ready(levels),
                Ok(Err(error)) => given_up(&error),
            };
        }
        let State::Ready(levels) = &mut self.state else { return };
        let known = levels.count().checked_sub(self.first).and_then(|known| usize::try_from(known).ok());
        let Some(fresh) = known.and_then(|known| self.waiting.get(known..)) else {
            self.state = given_up(&io::Error::other("they are not those of this log"));
            return;
        };
        match levels.add(fresh) {
            Ok(()) => {
                self.first += u64::try_from(self.waiting.len()).expect("a vector in memory");
                self.waiting = Vec::new();
            }
            Err(error) => self.state = given_up(&error),
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        if let State::Behind { stop, .. } = &self.state {
            stop.store(true, Ordering::Relaxed);
        }
    }
}

fn given_up(error: &io::Error) -> State {
    tracing::warn!(%error, "the hashes of the audit log are not kept, so proofs have to read the log");
    State::GivenUp
}

/// Reads what the levels lack, up to a record that begins a file, from the log.
fn behind(mut levels: Levels, log: PathBuf, files: Vec<u64>, to: u64) -> State {
    let (give, take) = sync_channel(1);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let work = move || {
        let read = read_log(&mut levels, &log, &files, to, &stopped);
        // Nobody takes it when the log is closed meanwhile.
        drop(give.send(read.map(|()| levels)));
    };
    match std::thread::Builder::new().name("audit-tree".to_owned()).spawn(work) {
        Ok(_) => State::Behind { levels: take, stop },
        Err(error) => given_up(&error),
    }
}

fn read_log(levels: &mut Levels, log: &Path, files: &[u64], to: u64, stop: &AtomicBool) -> io::Result<()> {
    let mut leaves = Vec::new();
    // Beginning with the file that has the first one that is lacking.
    let begin = files.iter().rposition(|first| *first <= levels.count());
    let begin = begin.ok_or_else(|| io::Error::other("older files of the log were removed"))?;
    for first in files.iter().skip(begin).take_while(|first| **first < to) {
        let mut lines = BufReader::new(File::open(log.join(format!("{first:020}.jsonl")))?);
        let (mut number, mut line) = (*first, Vec::new());
        while lines.read_until(b'\n', &mut line)? > 0 {
            if number >= levels.count() + u64::try_from(leaves.len()).expect("a vector in memory") {
                leaves.push(Hash::of_leaf(line.strip_suffix(b"\n").unwrap_or(&line)));
            }
            (number, _) = (number + 1, line.clear());
            if leaves.len() >= CHUNK {
                levels.add(&std::mem::take(&mut leaves))?;
            }
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
    }
    levels.add(&leaves)?;
    match levels.count() == to {
        true => Ok(()),
        false => Err(io::Error::other("the files of the log have a gap")),
    }
}
