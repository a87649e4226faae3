//! Reads records out of the log's files, by their numbers.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use sortie_audit::{Hash, Line, MAX_LINE};

/// A place in the log: between two records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The number of the record behind it.
    pub(crate) next: u64,
    /// The leaf hash of the record before it; `None` where that one was not read.
    pub(crate) prev: Option<Hash>,
    /// The number of the first record of the file that the place is in.
    file: u64,
    /// How far into that file, in bytes.
    offset: u64,
}

/// A record of the log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Its number.
    pub(crate) seq: u64,
    /// Its line, without the end.
    pub(crate) line: Vec<u8>,
    /// The place behind it.
    pub(crate) after: Mark,
}

/// Why records cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// Something could not be read.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
    /// The files with these records are gone; the next that there is has this number.
    #[error("the records {from} to {to} are no longer in the log", to = next.saturating_sub(1))]
    Gone {
        /// The first one.
        from: u64,
        /// The one after the last.
        next: u64,
    },
    /// A record is not what the one after it says.
    #[error("the log was changed at record {0}; run sortie audit verify")]
    Changed(u64),
}

/// Why a place cannot be found again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeekError {
    /// The log cannot be read there.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log is shorter.
    #[error("it is at record {next}, and the log has only {size}")]
    Ahead {
        /// Where it is.
        next: u64,
        /// How many records there are.
        size: u64,
    },
    /// The record before the place is another one.
    #[error("it is of another log: record {0} is not the one that was delivered")]
    Other(u64),
}

/// The place before the first record that the log still has.
pub(crate) fn start(dir: &Path) -> Result<Mark, ReadError> {
    let first = files(dir)?.first().copied().unwrap_or(0);
    let prev = (first == 0).then_some(Hash::NONE);
    Ok(Mark { next: first, prev, file: first, offset: 0 })
}

/// Finds a place again by its number, and checks that the record before it is the same. Reads one file.
pub(crate) fn seek(dir: &Path, next: u64, prev: Option<Hash>) -> Result<Mark, SeekError> {
    let files = files(dir)?;
    let Some(&file) = files.iter().rfind(|first| **first <= next) else {
        return match files.first() {
            Some(&first) => Err(ReadError::Gone { from: next, next: first }.into()),
            None if next == 0 => Ok(Mark { next, prev: Some(Hash::NONE), file: 0, offset: 0 }),
            None => Err(SeekError::Ahead { next, size: 0 }),
        };
    };
    let mut mark = Mark { next: file, prev: (file == 0).then_some(Hash::NONE), file, offset: 0 };
    let mut lines = Lines::open(dir, &mark)?;
    while mark.next < next {
        let Some(line) = lines.next()? else {
            return match files.iter().find(|first| **first > next) {
                Some(&following) => Err(ReadError::Gone { from: next, next: following }.into()),
                None => Err(SeekError::Ahead { next, size: mark.next }),
            };
        };
        mark = mark.behind(&line);
    }
    // At the beginning of a file, what the first record says of the one before it; the file may be the first one kept.
    let before = match mark.prev {
        Some(before) => Some(before),
        None => lines.next()?.and_then(|line| Line::parse(&line).ok().map(|line| line.prev)),
    };
    match (prev, before) {
        (Some(told), Some(found)) if told != found => Err(SeekError::Other(next.saturating_sub(1))),
        (told, found) => Ok(Mark { prev: found.or(told), ..mark }),
    }
}

/// The records behind a place, up to the one with the number `until`: at most `records`, and at most `bytes` but for one.
pub(crate) fn read(
    dir: &Path,
    from: &Mark,
    until: u64,
    records: usize,
    bytes: usize,
) -> Result<Vec<Record>, ReadError> {
    let mut found = Vec::new();
    let mut sum = 0usize;
    let mut mark = from.clone();
    let mut lines = match Lines::open(dir, &mark) {
        Ok(lines) => lines,
        Err(error) => return Err(gone(dir, &mark)?.unwrap_or(error)),
    };
    while mark.next < until && found.len() < records {
        let Some(line) = lines.next()? else {
            mark = Mark { file: mark.next, offset: 0, ..mark };
            lines = match Lines::open(dir, &mark) {
                Ok(lines) => lines,
                Err(_) if !found.is_empty() => break,
                Err(error) => return Err(gone(dir, &mark)?.unwrap_or(error)),
            };
            continue;
        };
        sum = sum.saturating_add(line.len());
        if sum > bytes && !found.is_empty() {
            break;
        }
        let head = Line::parse(&line).map_err(|_| ReadError::Changed(mark.next))?;
        if head.seq != mark.next || mark.prev.is_some_and(|prev| prev != head.prev) {
            return Err(ReadError::Changed(mark.next.saturating_sub(1)));
        }
        mark = mark.behind(&line);
        found.push(Record { seq: head.seq, line, after: mark.clone() });
    }
    Ok(found)
}

/// How many bytes the log has behind a place.
pub(crate) fn bytes_behind(dir: &Path, mark: &Mark) -> Result<u64, ReadError> {
    let mut sum = 0u64;
    for file in files(dir)?.into_iter().filter(|first| *first >= mark.file) {
        let path = path(dir, file);
        let length = match std::fs::metadata(&path) {
            Ok(found) => found.len(),
            // Removed since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(ReadError::Io(path, error)),
        };
        let before = if file == mark.file { mark.offset } else { 0 };
        sum = sum.saturating_add(length.saturating_sub(before));
    }
    Ok(sum)
}

impl Mark {
    fn behind(&self, line: &[u8]) -> Self {
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX).saturating_add(1);
        Self {
            next: self.next.saturating_add(1),
            prev: Some(Hash::of_leaf(line)),
            file: self.file,
            offset: self.offset.saturating_add(length),
        }
    }

    /// The place before a record whose predecessors are gone.
    pub(crate) fn at_file(first: u64) -> Self {
        Self { next: first, prev: (first == 0).then_some(Hash::NONE), file: first, offset: 0 }
    }
}

/// That the records behind a place were removed, if they were.
fn gone(dir: &Path, mark: &Mark) -> Result<Option<ReadError>, ReadError> {
    let next = files(dir)?.into_iter().find(|first| *first > mark.next);
    Ok(next.map(|next| ReadError::Gone { from: mark.next, next }))
}

/// The files of the log by their first record, in order.
fn files(dir: &Path) -> Result<Vec<u64>, ReadError> {
    let dir = dir.join("log");
    let io = |error| ReadError::Io(dir.clone(), error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).filter(|number| number.len() == 20);
        files.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    files.sort_unstable();
    Ok(files)
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("log/{first:020}.jsonl"))
}

/// The whole lines of a file from a place on.
struct Lines {
    path: PathBuf,
    file: BufReader<File>,
}

impl Lines {
    fn open(dir: &Path, mark: &Mark) -> Result<Self, ReadError> {
        let path = path(dir, mark.file);
        let opened = File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(mark.offset))?;
            Ok(file)
        });
        match opened {
            Ok(file) => Ok(Self { path, file: BufReader::with_capacity(64 * 1024, file) }),
            Err(error) => Err(ReadError::Io(path, error)),
        }
    }

    /// The next line without its end; `None` behind the last one that has an end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        let bound = u64::try_from(MAX_LINE + 1).unwrap_or(u64::MAX);
        let mut line = Vec::new();
        let read = self.file.by_ref().take(bound).read_until(b'\n', &mut line);
        read.map_err(|error| ReadError::Io(self.path.clone(), error))?;
        if line.pop() == Some(b'\n') {
            return Ok(Some(line));
        }
        match line.len() >= MAX_LINE {
            true => Err(ReadError::Io(self.path.clone(), io::Error::other("a line is longer than any record"))),
            false => Ok(None),
        }
    }
}
