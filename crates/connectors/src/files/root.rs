//! The served directory, opened once; everything else is opened from it, name by name, over descriptors.
//!
//! Each name is opened relative to the descriptor of the directory before it and never through a link: a link is read
//! as text and its names take the place of its own, under the same rules. So no change of the tree between two steps
//! leads out of it, and a link cannot lead to a name that is not served. One `openat2` with `RESOLVE_BENEATH` would
//! hold the first promise but not the second, since it does not tell which names it passed; it also exists on Linux
//! alone. What cannot be told apart is a hard link or a mount inside the directory: both are part of it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::path::{ServedPath, check_name};
use super::refusal::Refusal;

/// Links and repeated steps on the way to one file. The operating system's own bound is 40.
const MAX_LINKS: usize = 16;

/// The served directory.
#[derive(Clone, Debug)]
pub(crate) struct Root(Arc<OwnedFd>);

/// Something that is served.
#[derive(Debug)]
pub(crate) enum Node {
    /// A directory.
    Directory(OwnedFd),
    /// A regular file, open for reading at its start.
    File(File),
}

/// Something that is served, and what is known of it.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The open directory or file.
    pub(crate) node: Node,
    /// Bytes.
    pub(crate) size: u64,
    /// Seconds since 1970 of the last change, where the operating system tells.
    pub(crate) modified: Option<i64>,
}

/// The names in a directory.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Sorted by their bytes.
    pub(crate) names: Vec<String>,
    /// How many were left out because they are not UTF-8.
    pub(crate) unreadable: u64,
    /// Whether the bound was met before the end.
    pub(crate) truncated: bool,
}

/// What an entry of a directory is, without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// Anything else.
    Special,
}

/// What is known of an entry of a directory without opening it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryStat {
    /// What it is.
    pub(crate) kind: EntryKind,
    /// Bytes.
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) modified: Option<i64>,
}

impl From<&Stat> for EntryStat {
    fn from(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => EntryKind::Directory,
            FileType::RegularFile => EntryKind::File,
            FileType::Symlink => EntryKind::Link,
            _ => EntryKind::Special,
        };
        Self { kind, size: u64::try_from(stat.st_size).unwrap_or(0), modified: Some(stat.st_mtime) }
    }
}

impl Root {
    /// Opens the directory to serve. Links in its own path are followed: it is the operator's word.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(Arc::new(rustix::fs::open(directory, flags, Mode::empty())?)))
    }

    /// Opens what a path names, through links that stay inside.
    pub(crate) fn resolve(&self, path: &ServedPath) -> Result<Opened, Refusal> {
        let mut above: Vec<OwnedFd> = Vec::new();
        let mut ahead: VecDeque<Vec<u8>> = path.names().iter().map(|name| name.clone().into_bytes()).collect();
        let mut links = 0;
        while let Some(raw) = ahead.pop_front() {
            if raw == b".." {
                // Only a link's text has one: parsing a path refuses it.
                above.pop().ok_or_else(|| Refusal::Outside(path.to_string()))?;
                continue;
            }
            let name = std::str::from_utf8(&raw).map_err(|_| Refusal::Missing(path.to_string()))?;
            check_name(name, || path.to_string())?;
            let here = above.last().map_or(self.0.as_fd(), AsFd::as_fd);
            let stat = stat(here, name).map_err(|error| Refusal::from_io(path, &error))?;
            let opened = match stat.kind {
                EntryKind::Special => return Err(Refusal::Special(path.to_string())),
                EntryKind::Link => read_link(here, name).map(Step::Link),
                EntryKind::Directory => open_directory(here, name).map(Step::Down),
                EntryKind::File if !ahead.is_empty() => return Err(Refusal::NotDirectory(path.to_string())),
                EntryKind::File => match open_file(here, name) {
                    Ok(Some(opened)) => return Ok(opened),
                    Ok(None) => return Err(Refusal::Special(path.to_string())),
                    Err(error) => Err(error),
                },
            };
            match opened {
                Ok(Step::Down(directory)) => above.push(directory),
                Ok(Step::Link(target)) => {
                    links += 1;
                    if target.first() == Some(&b'/') {
                        return Err(Refusal::Outside(path.to_string()));
                    }
                    let names = target.split(|b| *b == b'/').filter(|name| !matches!(*name, b"" | b"."));
                    names.rev().for_each(|name| ahead.push_front(name.to_vec()));
                }
                // The entry became something else between the two looks at it: look again, a bounded number of times.
                Err(Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::MLINK) => {
                    links += 1;
                    ahead.push_front(raw);
                }
                Err(error) => return Err(Refusal::from_io(path, &error.into())),
            }
            if links > MAX_LINKS {
                return Err(Refusal::Links(path.to_string()));
            }
        }
        let directory = match above.pop() {
            Some(directory) => directory,
            None => self.0.try_clone().map_err(|error| Refusal::from_io(path, &error))?,
        };
        let stat = rustix::fs::fstat(&directory).map_err(|error| Refusal::from_io(path, &error.into()))?;
        let stat = EntryStat::from(&stat);
        Ok(Opened { node: Node::Directory(directory), size: stat.size, modified: stat.modified })
    }
}

/// One step on the way to a file.
enum Step {
    Down(OwnedFd),
    Link(Vec<u8>),
}

/// What an entry is; a link is a link.
pub(crate) fn stat(directory: BorrowedFd<'_>, name: &str) -> io::Result<EntryStat> {
    Ok(EntryStat::from(&rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?))
}

fn read_link(directory: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, Errno> {
    Ok(rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes())
}

/// Opens a directory that is no link.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Opens a regular file that is no link; `None` where it is something else by now. `NONBLOCK` keeps a pipe that took
/// the file's place from holding the call.
pub(crate) fn open_file(parent: BorrowedFd<'_>, name: &str) -> Result<Option<Opened>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        // A socket, or a device without a driver.
        Err(Errno::NXIO | Errno::NODEV | Errno::OPNOTSUPP) => return Ok(None),
        other => other?,
    };
    let stat = EntryStat::from(&rustix::fs::fstat(&file)?);
    if stat.kind != EntryKind::File {
        return Ok(None);
    }
    Ok(Some(Opened { node: Node::File(File::from(file)), size: stat.size, modified: stat.modified }))
}

/// Reads the names of a directory, at most `most`.
pub(crate) fn names(directory: BorrowedFd<'_>, most: u64) -> io::Result<Names> {
    let mut found = Names::default();
    let mut seen = 0;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let raw = entry.file_name().to_bytes();
        if matches!(raw, b"." | b"..") {
            continue;
        }
        if seen == most {
            found.truncated = true;
            break;
        }
        seen += 1;
        match std::str::from_utf8(raw) {
            Ok(name) => found.names.push(name.to_owned()),
            Err(_) => found.unreadable += 1,
        }
    }
    found.names.sort_unstable();
    Ok(found)
}
