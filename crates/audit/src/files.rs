//! The files of an audit directory: which there are, and opening them without being led elsewhere.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// Digits of the number in a file's name.
const DIGITS: usize = 20;

/// An audit directory that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// There is no log.
    #[error("{}: not an audit directory: it has no `log`", .0.display())]
    NotALog(PathBuf),
    /// Something lies among the files that is none of the log's.
    #[error("{}: {what}: it is none of the log's files; nobody but the log may write here", path.display())]
    Strange {
        /// What.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Files are missing between others, or records between them.
    #[error("record {missing} is missing: no file begins with it, and {} comes after it", next.display())]
    Gap {
        /// The first record that is missing.
        missing: u64,
        /// The file after the gap.
        next: PathBuf,
    },
    /// The record that is asked for is not there any more.
    #[error("record {wanted} is not here: the log begins at record {first}; older files were moved away")]
    Archived {
        /// The record that was asked for.
        wanted: u64,
        /// The first that is here.
        first: u64,
    },
    /// The record that is asked for is not there yet.
    #[error("there is no record {wanted}: the log has {size}")]
    Beyond {
        /// The record that was asked for.
        wanted: u64,
        /// How many records there are.
        size: u64,
    },
    /// A file has other records than it should, or has become shorter while it was read.
    #[error("{}: byte {offset}: {what}; `sortie audit verify` says more", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

impl ReadError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }
}

/// One file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFile {
    /// The number of its first record, which is its name.
    pub(crate) first: u64,
    pub(crate) path: PathBuf,
    /// Its length when it was listed.
    pub(crate) bytes: u64,
}

/// The path of the file that begins with a record.
pub(crate) fn log_path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("log/{first:020}.jsonl"))
}

/// The files of the log, oldest first. Between the first and the last none need be missing: that is for the reader to see.
pub(crate) fn log_files(dir: &Path) -> Result<Vec<LogFile>, ReadError> {
    let log = dir.join("log");
    let entries = match std::fs::read_dir(&log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ReadError::NotALog(dir.to_owned())),
        entries => entries.map_err(ReadError::io(&log))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ReadError::io(&log))?;
        let path = entry.path();
        let name = entry.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(".jsonl")).and_then(number);
        let Some(first) = first else {
            return Err(ReadError::Strange { path, what: "not named after a record" });
        };
        // Of the entry itself, not of what a link points to.
        let about = match std::fs::symlink_metadata(&path) {
            // Archived meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            about => about.map_err(ReadError::io(&path))?,
        };
        if !about.is_file() {
            return Err(ReadError::Strange { path, what: "not a regular file" });
        }
        files.push(LogFile { first, path, bytes: about.len() });
    }
    files.sort_by_key(|file| file.first);
    Ok(files)
}

/// The checkpoints of a directory by the sizes in their names, smallest first. Anything else there is let be: an unfinished
/// checkpoint of a crash has another name.
pub(crate) fn checkpoint_files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, ReadError> {
    let checkpoints = dir.join("checkpoints");
    let entries = match std::fs::read_dir(&checkpoints) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ReadError::io(&checkpoints))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ReadError::io(&checkpoints))?;
        if let Some(size) = entry.file_name().to_str().and_then(number) {
            found.push((size, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn number(digits: &str) -> Option<u64> {
    let plain = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
}

/// Opens a file for reading; never through a link, and nothing that would wait for a writer.
pub(crate) fn open(path: &Path) -> Result<File, ReadError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::LOOP) => {
            return Err(ReadError::Strange { path: path.to_owned(), what: "a symbolic link" });
        }
        file => File::from(file.map_err(io::Error::from).map_err(ReadError::io(path))?),
    };
    let about = rustix::fs::fstat(&file).map_err(io::Error::from).map_err(ReadError::io(path))?;
    match FileType::from_raw_mode(about.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(ReadError::Strange { path: path.to_owned(), what: "not a regular file" }),
    }
}

/// A small file as text; `None` where there is none.
pub(crate) fn small_text(path: &Path, most: u64) -> Result<Option<String>, ReadError> {
    let file = match open(path) {
        Err(ReadError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut text = String::new();
    let wrong = |what| ReadError::Strange { path: path.to_owned(), what };
    match file.take(most.saturating_add(1)).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(wrong("not text")),
        Err(error) => Err(ReadError::Io { path: path.to_owned(), error }),
        Ok(read) if u64::try_from(read).is_ok_and(|read| read <= most) => Ok(Some(text)),
        Ok(_) => Err(wrong("too large")),
    }
}
