//! Reading a whole log quickly: in large chunks of whole lines, looked at by all cores, taken in order.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use crate::files::{LogFile, ReadError, open};
use crate::line::MAX_LINE;

/// How much is read at once, in bytes: more than the longest line.
const CHUNK: usize = 2 * 1024 * 1024;
/// How many cores are used at most. Three chunks for each are in memory at a time.
const MAX_WORKERS: usize = 16;

/// Lines of one file.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// Which file, counted from the first that is read.
    pub(crate) file: usize,
    /// Where in it the lines begin.
    pub(crate) offset: u64,
    /// Whole lines, each with its end; or the rest of a file, if that has none.
    pub(crate) bytes: Vec<u8>,
    /// Whether these are the first lines of the file.
    pub(crate) begins: bool,
    /// How the file ends after these lines.
    pub(crate) end: End,
}

/// What comes after a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// More of the same file.
    None,
    /// Nothing: the file has ended.
    File,
    /// So many bytes without an end of line.
    Torn(u64),
    /// A line that is longer than a record can be.
    TooLong,
}

impl Chunk {
    /// The lines, each with its place in the chunk, without its end.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut at = 0;
        memchr::memchr_iter(b'\n', &self.bytes).filter_map(move |end| {
            let begin = std::mem::replace(&mut at, end + 1);
            Some((begin, self.bytes.get(begin..end)?))
        })
    }
}

/// The chunks of some files, in order.
#[derive(Debug)]
pub(crate) struct Chunks {
    files: std::vec::IntoIter<LogFile>,
    open: Option<Reading>,
    /// How many files were begun.
    begun: usize,
    /// How much is read at once.
    size: usize,
}

#[derive(Debug)]
struct Reading {
    file: File,
    path: Arc<Path>,
    /// What was read of a line whose end was not.
    carry: Vec<u8>,
    /// Where the carried bytes begin.
    offset: u64,
    begins: bool,
}

impl Chunks {
    pub(crate) fn of(files: Vec<LogFile>) -> Self {
        Self { files: files.into_iter(), open: None, begun: 0, size: CHUNK }
    }

    /// Up to so many chunks; none at the end.
    fn round(&mut self, chunks: usize) -> Result<Vec<Chunk>, ReadError> {
        let mut round = Vec::with_capacity(chunks);
        while round.len() < chunks {
            let Some(chunk) = self.next()? else { break };
            round.push(chunk);
        }
        Ok(round)
    }

    fn next(&mut self) -> Result<Option<Chunk>, ReadError> {
        if self.open.is_none() {
            let Some(LogFile { path, .. }) = self.files.next() else { return Ok(None) };
            let file = open(&path)?;
            self.begun += 1;
            self.open = Some(Reading { file, path: path.into(), carry: Vec::new(), offset: 0, begins: true });
        }
        let Some(reading) = &mut self.open else { return Ok(None) };
        let chunk = reading.next(self.begun - 1, self.size)?;
        if chunk.end != End::None {
            self.open = None;
        }
        Ok(Some(chunk))
    }
}

impl Reading {
    fn next(&mut self, file: usize, size: usize) -> Result<Chunk, ReadError> {
        let offset = self.offset;
        let mut bytes = Vec::with_capacity(self.carry.len() + size);
        bytes.append(&mut self.carry);
        let wanted = u64::try_from(size).unwrap_or(u64::MAX);
        let read = (&self.file).take(wanted).read_to_end(&mut bytes).map_err(ReadError::io(&self.path))?;
        let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
        let rest = bytes.split_off(whole);
        let begins = std::mem::replace(&mut self.begins, false);
        self.offset = offset.saturating_add(length(whole));
        let end = match (read < size, rest.len()) {
            (true, 0) => End::File,
            (true, torn) => End::Torn(length(torn)),
            (false, long) if long > MAX_LINE => self.measure(rest.len())?,
            (false, _) => {
                self.carry = rest;
                End::None
            }
        };
        Ok(Chunk { file, offset, bytes, begins, end })
    }

    /// Whether what is too long for a line ever ends.
    fn measure(&mut self, mut torn: usize) -> Result<End, ReadError> {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = self.file.read(&mut buffer).map_err(ReadError::io(&self.path))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
                return Ok(End::Torn(length(torn)));
            };
            if memchr::memchr(b'\n', bytes).is_some() {
                return Ok(End::TooLong);
            }
            torn = torn.saturating_add(read);
        }
    }
}

/// Lets all cores work on chunks, and takes what they have found in the order of the log, until it says `false`.
pub(crate) fn in_order<T: Send, E: From<ReadError>>(
    mut chunks: Chunks,
    work: impl Fn(&Chunk) -> T + Sync,
    mut take: impl FnMut(Chunk, T) -> Result<bool, E>,
) -> Result<(), E> {
    let workers = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MAX_WORKERS);
    let mut ready = chunks.round(workers)?;
    let mut done: Vec<(Chunk, T)> = Vec::new();
    while !ready.is_empty() || !done.is_empty() {
        let (found, next) = std::thread::scope(|scope| {
            let working: Vec<_> = ready.iter().map(|chunk| scope.spawn(|| work(chunk))).collect();
            let mut go_on = true;
            for (chunk, found) in done.drain(..) {
                go_on = go_on && take(chunk, found)?;
            }
            let next = if go_on { chunks.round(workers)? } else { Vec::new() };
            let found: Vec<T> = working
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect();
            Ok::<_, E>((go_on.then_some(found), next))
        })?;
        let Some(found) = found else { break };
        done = std::mem::replace(&mut ready, next).into_iter().zip(found).collect();
    }
    Ok(())
}

/// The place in a file where its nth line begins, counted from 0; `None` if it has fewer whole lines.
pub(crate) fn offset_of_line(file: &mut File, path: &Path, lines: u64) -> Result<Option<u64>, ReadError> {
    file.seek(SeekFrom::Start(0)).map_err(ReadError::io(path))?;
    let (mut left, mut offset) = (lines, 0u64);
    let mut buffer = vec![0; if lines == 0 { 0 } else { CHUNK / 8 }];
    while left > 0 {
        let read = file.read(&mut buffer).map_err(ReadError::io(path))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        for end in memchr::memchr_iter(b'\n', bytes) {
            left -= 1;
            if left == 0 {
                return Ok(Some(offset.saturating_add(length(end + 1))));
            }
        }
        offset = offset.saturating_add(length(read));
    }
    Ok(Some(offset))
}

/// How many whole lines a file has.
pub(crate) fn count_lines(file: &mut File, path: &Path) -> Result<u64, ReadError> {
    file.seek(SeekFrom::Start(0)).map_err(ReadError::io(path))?;
    let mut buffer = vec![0; CHUNK / 8];
    let mut lines = 0u64;
    loop {
        let read = file.read(&mut buffer).map_err(ReadError::io(path))?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { return Ok(lines) };
        lines = lines.saturating_add(length(memchr::memchr_iter(b'\n', bytes).count()));
    }
}

pub(crate) fn length(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
