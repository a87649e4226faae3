//! Making proofs from an audit directory: quickly with the hashes that are kept beside the log, and from the log itself
//! where they are not there or wrong.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::files::{LogFile, ReadError, checkpoint_files, log_files, open, small_text};
use crate::hash::Hash;
use crate::note::{Checkpoint, NoteError};
use crate::proof::{FORMAT, Proof, Range, inclusion_ranges, inclusion_root};
use crate::read::{Records, frontier};
use crate::scan::{Chunks, End, in_order, length};
use crate::tree::Frontier;
use crate::verify::{MAX_CHECKPOINT, Progress};

/// How many entries of a level of `tree/` stand under one of the next, as a power of two.
const WIDTH: u32 = 8;
/// How many entries are read for one subtree at most, as a power of two.
const MOST: u32 = 2 * WIDTH;
/// The length of a hash.
const HASH: usize = 32;

/// A proof that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// No checkpoint covers the record.
    #[error("record {0} is not signed yet: the newest checkpoint is of {1} records")]
    Unsigned(u64, u64),
    /// The checkpoint is none.
    #[error("checkpoint {0}: {1}")]
    Checkpoint(String, #[source] NoteError),
    /// The log has other records than were signed.
    #[error("the log has not the root that checkpoint {0} was signed with; `sortie audit verify` says more")]
    OtherRoot(String),
    /// What the proof needs of archived records cannot be known.
    #[error("what is needed of the records before {0} is not here: they were archived")]
    Archived(u64),
}

/// Proves that a record is in the log, up to its newest checkpoint.
///
/// # Errors
/// There is no such record, or none that is signed; the log was changed.
pub fn prove(dir: &Path, seq: u64, progress: impl FnMut(Progress)) -> Result<Proof, ProveError> {
    let (note, checkpoint, name) = newest(dir, seq)?;
    let mut records = Records::open(dir, seq)?;
    let Some(record) = records.read()? else {
        return Err(ReadError::Beyond { wanted: seq, size: records.next_seq() }.into());
    };
    let leaf = Hash::of_leaf(record.line);
    // A line is valid UTF-8, or the log was changed.
    let text = String::from_utf8(record.line.to_vec()).map_err(|_| ProveError::OtherRoot(name.clone()))?;
    let ranges = inclusion_ranges(seq, checkpoint.size);
    let fits = |path: &[Hash]| inclusion_root(seq, checkpoint.size, leaf, path) == Some(checkpoint.root);
    let kept = Levels::open(dir).and_then(|levels| levels.roots(&ranges)).filter(|path| fits(path));
    let path = match kept {
        Some(path) => path,
        None => roots_from_log(dir, &ranges, progress)?,
    };
    if !fits(&path) {
        return Err(ProveError::OtherRoot(name));
    }
    Ok(Proof { format: FORMAT.to_owned(), index: seq, size: checkpoint.size, record: text, path, checkpoint: note })
}

/// The newest checkpoint, which must cover a record.
fn newest(dir: &Path, seq: u64) -> Result<(String, Checkpoint, String), ProveError> {
    let Some((size, path)) = checkpoint_files(dir)?.pop() else { return Err(ProveError::Unsigned(seq, 0)) };
    let name = path.display().to_string();
    let note = small_text(&path, MAX_CHECKPOINT)?.ok_or(ProveError::Unsigned(seq, 0))?;
    let checkpoint = Checkpoint::peek(&note).map_err(|error| ProveError::Checkpoint(name.clone(), error))?;
    match seq < checkpoint.size {
        true => Ok((note, checkpoint, name)),
        false => Err(ProveError::Unsigned(seq, size)),
    }
}

/// The roots of subtrees, from the lines themselves.
fn roots_from_log(dir: &Path, ranges: &[Range], mut progress: impl FnMut(Progress)) -> Result<Vec<Hash>, ProveError> {
    let end = ranges.iter().map(|range| range.1).max().unwrap_or(0);
    let files: Vec<LogFile> = log_files(dir)?.into_iter().filter(|file| file.first < end).collect();
    let total = files.iter().map(|file| file.bytes).sum();
    let first = files.first().map_or(0, |file| file.first);
    let peaks = opened(dir, first)?;
    let mut growing: Vec<(Range, Frontier)> = Vec::with_capacity(ranges.len());
    for &(low, high) in ranges {
        let tree = part(&peaks, low, high.min(first)).ok_or(ProveError::Archived(first))?;
        growing.push(((low, high), tree));
    }
    let (mut size, mut done) = (first, 0u64);
    let hashes = |chunk: &crate::scan::Chunk| chunk.lines().map(|(_, line)| Hash::of_leaf(line)).collect::<Vec<_>>();
    in_order(Chunks::of(files.clone()), hashes, |chunk, leaves| {
        let here = files.get(chunk.file).filter(|file| chunk.begins && file.first != size);
        if let Some(file) = here {
            return Err(ReadError::Gap { missing: size, next: file.path.clone() });
        }
        for leaf in leaves {
            let of = growing.iter_mut().filter(|((low, high), _)| (*low..*high).contains(&size));
            of.for_each(|(_, tree)| tree.push(leaf));
            size += 1;
        }
        done = done.saturating_add(length(chunk.bytes.len()));
        progress(Progress { done, total });
        Ok(size < end && chunk.end != End::TooLong)
    })?;
    if size < end {
        return Err(ReadError::Beyond { wanted: end.saturating_sub(1), size }.into());
    }
    Ok(growing.into_iter().map(|(_, tree)| tree.root()).collect())
}

/// The frontier that the first file here begins with.
fn opened(dir: &Path, first: u64) -> Result<Frontier, ProveError> {
    if first == 0 {
        return Ok(Frontier::default());
    }
    frontier(dir, first)?.ok_or(ProveError::Archived(first))
}

/// What a frontier knows of the leaves from one on, up to its own end or before; `None` when it knows too little. That of
/// a subtree, since subtrees begin where peaks do.
fn part(peaks: &Frontier, low: u64, high: u64) -> Option<Frontier> {
    if high <= low {
        return Some(Frontier::default());
    }
    let mut at = 0u64;
    let mut inside = Vec::new();
    for (bit, peak) in (0..64).rev().filter(|bit| peaks.size() >> bit & 1 == 1).zip(peaks.peaks()) {
        let end = at.checked_add(1 << bit)?;
        if at >= low && end <= high {
            inside.push(*peak);
        } else if end > low && at < high {
            return None;
        }
        at = end;
    }
    Frontier::new(high - low, inside)
}

/// The hashes that are kept in `tree/`: file `L` has the roots of each 256^L records. Never trusted.
#[derive(Debug)]
struct Levels(Vec<File>);

impl Levels {
    fn open(dir: &Path) -> Option<Self> {
        let mut levels = Vec::new();
        while let Ok(file) = open(&dir.join(format!("tree/{}", levels.len()))) {
            levels.push(file);
        }
        (!levels.is_empty()).then_some(Self(levels))
    }

    fn roots(&self, ranges: &[Range]) -> Option<Vec<Hash>> {
        ranges.iter().map(|&(low, high)| self.root(low, high).ok()).collect()
    }

    /// Of a subtree: made of perfect ones, largest first.
    fn root(&self, low: u64, high: u64) -> io::Result<Hash> {
        let (mut at, mut left) = (low, high - low);
        let mut peaks = Vec::new();
        while left > 0 {
            let bits = left.ilog2();
            peaks.push(self.perfect(bits, at >> bits)?);
            at += 1 << bits;
            left -= 1 << bits;
        }
        peaks.into_iter().rev().reduce(|right, left| Hash::of_node(&left, &right)).ok_or(io::ErrorKind::NotFound.into())
    }

    /// The root of the `index`th 2^bits leaves.
    fn perfect(&self, bits: u32, index: u64) -> io::Result<Hash> {
        let highest = u32::try_from(self.0.len()).unwrap_or(u32::MAX).saturating_sub(1);
        let mut found = Err(io::ErrorKind::NotFound.into());
        // A level that is behind the log may lack an entry whose parts the one below has.
        for level in (0..=highest.min(bits / WIDTH)).rev() {
            let below = bits - level * WIDTH;
            if below > MOST {
                break;
            }
            found = self.fold(level, index << below, 1 << below);
            if found.is_ok() {
                break;
            }
        }
        found
    }

    /// The root over so many entries of a level, a power of two.
    fn fold(&self, level: u32, from: u64, count: usize) -> io::Result<Hash> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = usize::try_from(level).ok().and_then(|level| self.0.get(level)).ok_or_else(missing)?;
        let mut bytes = vec![0; count * HASH];
        file.read_exact_at(&mut bytes, from.checked_mul(length(HASH)).ok_or_else(missing)?)?;
        let mut tree = Frontier::default();
        for hash in bytes.as_chunks::<HASH>().0 {
            tree.push(Hash::from(*hash));
        }
        Ok(tree.root())
    }
}
