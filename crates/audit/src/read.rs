//! Reading records in order, from one on, also while the log is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::call::LogOpened;
use crate::files::{ReadError, log_files, log_path, open};
use crate::line::{Line, MAX_LINE};
use crate::scan::{count_lines, length, offset_of_line};
use crate::tree::Frontier;

/// How much is read at once, in bytes: the longest line with its end, and a little more.
const CHUNK: usize = MAX_LINE + 4096;

/// The records of a log, in order. Holds one chunk of 260 KiB. Does not verify them: who must know that they are what was
/// written calls [`verify`](crate::verify()) first.
///
/// All calls block on the disk; in a task they belong on a thread for blocking work.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    /// The number of the record that comes next.
    next: u64,
    file: Option<Reading>,
}

#[derive(Debug)]
struct Reading {
    file: File,
    path: PathBuf,
    first: u64,
    /// Where in the file the buffer begins.
    offset: u64,
    buffer: Vec<u8>,
    /// How much of the buffer was given out.
    given: usize,
}

/// One record, as it lies in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number.
    pub seq: u64,
    /// Its line, without the end.
    pub line: &'a [u8],
}

impl Records {
    /// Those of a directory from a record on; from the one that is written next, if there are no more.
    ///
    /// # Errors
    /// There is no log; the record was archived; there are fewer.
    pub fn open(dir: &Path, from: u64) -> Result<Self, ReadError> {
        let files = log_files(dir)?;
        let mut records = Self { dir: dir.to_owned(), next: from, file: None };
        let Some(first) = files.first() else {
            return match from {
                0 => Ok(records),
                wanted => Err(ReadError::Beyond { wanted, size: 0 }),
            };
        };
        let Some(holds) = files.iter().rev().find(|file| file.first <= from) else {
            return Err(ReadError::Archived { wanted: from, first: first.first });
        };
        let mut file = open(&holds.path)?;
        let skipped = from.saturating_sub(holds.first);
        let Some(offset) = offset_of_line(&mut file, &holds.path, skipped)? else {
            let size = holds.first.saturating_add(count_lines(&mut file, &holds.path)?);
            return match files.iter().find(|file| file.first > from) {
                Some(next) => Err(ReadError::Gap { missing: size, next: next.path.clone() }),
                None => Err(ReadError::Beyond { wanted: from, size }),
            };
        };
        records.file = Some(Reading::new(file, holds.path.clone(), holds.first, offset));
        Ok(records)
    }

    /// The number of the record that comes next.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The next record. `None` at the present end of the log: what is written later comes with a later call. An unfinished
    /// record at the end is none.
    ///
    /// # Errors
    /// The files cannot be read, were changed, or have been archived meanwhile.
    pub fn read(&mut self) -> Result<Option<Record<'_>>, ReadError> {
        loop {
            let Some(reading) = &mut self.file else {
                match self.following()? {
                    Some(next) => self.file = Some(next),
                    None => return Ok(None),
                }
                continue;
            };
            if reading.has_line() || reading.fill()? {
                let Some(reading) = &mut self.file else { return Ok(None) };
                let seq = self.next;
                let line = reading.line(seq)?;
                self.next = seq.saturating_add(1);
                return Ok(Some(Record { seq, line }));
            }
            if reading.first == self.next {
                return Ok(None);
            }
            match self.following()? {
                Some(next) => self.file = Some(next),
                None => return Ok(None),
            }
        }
    }

    /// The file that begins with the next record. The one before it is complete then: only whole records precede a new
    /// file.
    fn following(&self) -> Result<Option<Reading>, ReadError> {
        let path = log_path(&self.dir, self.next);
        match open(&path) {
            Ok(file) => Ok(Some(Reading::new(file, path, self.next, 0))),
            Err(ReadError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => self.nothing_after(),
            Err(error) => Err(error),
        }
    }

    /// The end of the log, unless there are records after it.
    fn nothing_after(&self) -> Result<Option<Reading>, ReadError> {
        let files = log_files(&self.dir)?;
        match files.iter().find(|file| file.first > self.next) {
            None => Ok(None),
            Some(next) if files.first() == Some(next) => {
                Err(ReadError::Archived { wanted: self.next, first: next.first })
            }
            Some(next) => Err(ReadError::Gap { missing: self.next, next: next.path.clone() }),
        }
    }
}

impl Reading {
    fn new(file: File, path: PathBuf, first: u64, offset: u64) -> Self {
        Self { file, path, first, offset, buffer: Vec::new(), given: 0 }
    }

    fn rest(&self) -> &[u8] {
        self.buffer.get(self.given..).unwrap_or_default()
    }

    fn has_line(&self) -> bool {
        memchr::memchr(b'\n', self.rest()).is_some()
    }

    /// Reads on from the first byte that was not given out; whether there is a whole line then. An unfinished line is read
    /// again from its beginning: after a crash it may have been taken off, and another one stands in its place.
    fn fill(&mut self) -> Result<bool, ReadError> {
        self.offset = self.offset.saturating_add(length(self.given));
        self.given = 0;
        self.buffer.resize(CHUNK, 0);
        let mut read = 0;
        while let Some(free) = self.buffer.get_mut(read..).filter(|free| !free.is_empty()) {
            match self.file.read_at(free, self.offset.saturating_add(length(read))) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io { path: self.path.clone(), error }),
            }
        }
        self.buffer.truncate(read);
        if self.has_line() {
            return Ok(true);
        }
        let bytes = self.file.metadata().map_err(ReadError::io(&self.path))?.len();
        if bytes < self.offset {
            return Err(self.damaged(format!("the file has only {bytes} bytes left: records were cut off")));
        }
        if read > MAX_LINE {
            return Err(self.damaged(format!("a line is longer than {MAX_LINE} bytes")));
        }
        // Not kept: see above.
        self.buffer.clear();
        Ok(false)
    }

    /// The next line, which has to be this record.
    fn line(&mut self, seq: u64) -> Result<&[u8], ReadError> {
        let begin = self.given;
        let end = begin + memchr::memchr(b'\n', self.rest()).unwrap_or(self.rest().len());
        let said = Line::head(self.buffer.get(begin..end).unwrap_or_default()).map(|(line, _)| line.seq);
        match said {
            Err(error) => return Err(self.damaged(error.to_string())),
            Ok(said) if said != seq => return Err(self.damaged(format!("record {said}, where {seq} has to be"))),
            Ok(_) => {}
        }
        self.given = end + 1;
        Ok(self.buffer.get(begin..end).unwrap_or_default())
    }

    fn damaged(&self, what: String) -> ReadError {
        let offset = self.offset.saturating_add(length(self.given));
        ReadError::Damaged { path: self.path.clone(), offset, what }
    }
}

/// The tree before a file, as its first record says; `None` where that is not what a file begins with.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub(crate) fn frontier(dir: &Path, first: u64) -> Result<Option<Frontier>, ReadError> {
    let mut records = Records::open(dir, first)?;
    let opened = records.read()?.and_then(|record| serde_json::from_slice::<LogOpened>(record.line).ok());
    Ok(opened.and_then(|opened| Frontier::new(first, opened.frontier)))
}

/// The number of the first record that is in a directory, and how many the log has had.
///
/// # Errors
/// There is no log, or it cannot be read.
pub fn span(dir: &Path) -> Result<(u64, u64), ReadError> {
    let files = log_files(dir)?;
    let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok((0, 0)) };
    let lines = count_lines(&mut open(&last.path)?, &last.path)?;
    Ok((first.first, last.first.saturating_add(lines)))
}
