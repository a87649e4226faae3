//! The tool `list`: the entries of a directory, some levels deep.

use std::fmt::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FilesLimits;
use super::path::{ServedPath, check_name, shown};
use super::refusal::Refusal;
use super::root::{EntryKind, EntryStat, Node, Root, names, open_directory, stat};
use super::work::Work;

/// Levels that one call lists at most.
const MAX_DEPTH: u8 = 8;

/// What `list` takes.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListArguments {
    /// The directory, relative to the served one, with `/` between names. Left out: the served directory itself.
    path: Option<String>,
    /// How many levels to list, 1 to 8. Left out: 1, the directory's own entries.
    #[schemars(range(min = 1, max = 8))]
    depth: Option<u8>,
}

/// What `list` answers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Listing {
    /// The directory listed; `.` is the served one.
    pub(crate) path: String,
    /// The entries in order of their names, each directory followed by its own entries.
    pub(crate) entries: Vec<Entry>,
    /// Whether there are entries that are not in this answer.
    pub(crate) truncated: bool,
    /// What is missing and how to see it, in words.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) notes: Vec<String>,
}

/// One file or directory.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Entry {
    /// Its path, to be used with `read`, `list` and `search`.
    pub(crate) path: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Bytes in a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size_bytes: Option<u64>,
    /// When it was changed last, RFC 3339 in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) modified: Option<String>,
    /// Whether it is a symbolic link to what `kind` says.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(crate) link: bool,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
}

impl Listing {
    /// The answer as text, one entry a line.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for entry in &self.entries {
            out.push_str(&shown(&entry.path));
            if entry.kind == Kind::Directory {
                out.push('/');
            }
            if let Some(size) = entry.size_bytes {
                // Writing to a string does not fail.
                let _ = write!(out, "  {size} bytes");
            }
            if let Some(modified) = &entry.modified {
                let _ = write!(out, "  {modified}");
            }
            out.push('\n');
        }
        if self.entries.is_empty() {
            out.push_str("(nothing is served here)\n");
        }
        for note in &self.notes {
            let _ = writeln!(out, "({note})");
        }
        out
    }
}

/// Lists a directory.
pub(crate) fn list(
    root: &Root,
    limits: &FilesLimits,
    mut work: Work,
    arguments: &ListArguments,
) -> Result<Listing, Refusal> {
    let path = ServedPath::parse(arguments.path.as_deref().unwrap_or_default())?;
    let depth = arguments.depth.unwrap_or(1);
    if !(1..=MAX_DEPTH).contains(&depth) {
        return Err(Refusal::Arguments(format!("`depth` is {depth}, it goes from 1 to {MAX_DEPTH}")));
    }
    let Node::Directory(directory) = root.resolve(&path)?.node else {
        return Err(Refusal::NotDirectory(path.to_string()));
    };
    let mut lister = Lister { root, limits, work: &mut work, bytes: 0, unreadable: 0, full: None, entries: Vec::new() };
    lister.list(directory.as_fd(), &path, depth)?;
    let Lister { unreadable, full, entries, .. } = lister;
    let mut notes = Vec::new();
    if let Some(full) = full {
        notes.push(full.note(limits));
    }
    if unreadable > 0 {
        notes.push(format!("{unreadable} entries are left out: their names are not UTF-8"));
    }
    Ok(Listing { path: path.text(), entries, truncated: full.is_some(), notes })
}

/// Which bound ended a listing.
#[derive(Clone, Copy, Debug)]
enum Full {
    Entries,
    Names,
    Time,
}

impl Full {
    fn note(self, limits: &FilesLimits) -> String {
        let why = match self {
            Full::Entries => format!("an answer holds at most {} entries", limits.list_entries),
            Full::Names => format!("a call looks at no more than {} names", limits.scan_names),
            Full::Time => format!("a call takes no longer than {} s", limits.call_time.as_secs()),
        };
        format!("not everything is listed: {why}; list a directory further down, or use `search` with a `glob`")
    }
}

/// A listing under way.
struct Lister<'a> {
    root: &'a Root,
    limits: &'a FilesLimits,
    work: &'a mut Work,
    bytes: usize,
    unreadable: u64,
    full: Option<Full>,
    entries: Vec<Entry>,
}

impl Lister<'_> {
    /// Adds a directory's entries. Recursion is bounded by `levels`.
    fn list(&mut self, directory: BorrowedFd<'_>, path: &ServedPath, levels: u8) -> Result<(), Refusal> {
        let found = match names(directory, self.work.names_left()) {
            Ok(found) => found,
            // A directory further down that cannot be read is listed without its entries.
            Err(_) if !self.entries.is_empty() => return Ok(()),
            Err(error) => return Err(Refusal::from_io(path, &error)),
        };
        self.work.spend_names(found.names.len());
        self.unreadable += found.unreadable;
        for name in &found.names {
            if self.full.is_some() {
                return Ok(());
            }
            if self.work.over()? {
                self.full = Some(Full::Time);
                return Ok(());
            }
            if check_name(name, String::new).is_err() {
                continue;
            }
            // What vanished between the two looks is not listed.
            let Ok(stat) = stat(directory, name) else { continue };
            let child = path.child(name);
            let added = match stat.kind {
                EntryKind::Special => false,
                EntryKind::Link => match self.root.resolve(&child) {
                    Ok(opened) => {
                        let kind = match opened.node {
                            Node::Directory(_) => EntryKind::Directory,
                            Node::File(_) => EntryKind::File,
                        };
                        self.add(&child, EntryStat { kind, size: opened.size, modified: opened.modified }, true)
                    }
                    Err(_) => false,
                },
                EntryKind::File | EntryKind::Directory => self.add(&child, stat, false),
            };
            if added
                && stat.kind == EntryKind::Directory
                && levels > 1
                && let Ok(below) = open_directory(directory, name)
            {
                self.list(below.as_fd(), &child, levels - 1)?;
            }
        }
        if found.truncated && self.full.is_none() {
            self.full = Some(Full::Names);
        }
        Ok(())
    }

    /// Adds an entry, or notes that the answer is full.
    fn add(&mut self, path: &ServedPath, stat: EntryStat, link: bool) -> bool {
        let text = path.text();
        self.bytes += text.len();
        if self.entries.len() >= self.limits.list_entries || self.bytes > self.limits.answer_bytes {
            self.full = Some(Full::Entries);
            return false;
        }
        let kind = if stat.kind == EntryKind::Directory { Kind::Directory } else { Kind::File };
        let modified = stat.modified.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        self.entries.push(Entry {
            path: text,
            kind,
            size_bytes: (kind == Kind::File).then_some(stat.size),
            modified: modified.map(|at| at.to_string()),
            link,
        });
        true
    }
}
