//! The tool `search`: lines that match, in every text file below a directory.
//!
//! Patterns are compiled with a bound on their size and matched in linear time, so no pattern can hold the server.
//! Ignore files (`.gitignore`) have no say: they describe a build, not what is data.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};

use globset::{GlobBuilder, GlobMatcher};
use regex::bytes::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FilesLimits;
use super::lines::{Head, Line, Lines};
use super::path::{ServedPath, check_name, shown};
use super::refusal::Refusal;
use super::root::{EntryKind, Node, Root, names, open_directory, open_file, stat};
use super::rules::private_key_begins;
use super::work::Work;

/// Longest query and glob, in bytes.
const MAX_PATTERN: usize = 1024;
/// Memory of a compiled pattern and of its matching cache, in bytes each.
const PATTERN_MEMORY: usize = 1 << 20;
/// Levels of groups in a pattern.
const PATTERN_NESTING: u32 = 50;
/// Levels of directories that a search goes down.
const MAX_DEPTH: usize = 64;
/// Longest line that is matched, in bytes; the rest of a longer one is passed over.
const MAX_LINE: usize = 1 << 20;
/// Bytes of a matching line in an answer.
const MAX_EXCERPT: usize = 300;
/// Results where the caller names no number.
const DEFAULT_RESULTS: usize = 50;
/// Results at most.
const MAX_RESULTS: usize = 200;
/// Lines between two looks at the clock.
const LINES_PER_LOOK: u64 = 1024;

/// What `search` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SearchArguments {
    /// The text to find within a line, or a regular expression if `regex` is true.
    query: String,
    /// Where to search: a directory or one file, relative to the served directory. Left out: everywhere.
    path: Option<String>,
    /// Which files to search: `*.md` is compared with names, a glob with `/` (`docs/**/*.md`) with whole paths.
    glob: Option<String>,
    /// Whether `query` is a regular expression (RE2 syntax: no look-around, no back-references). Left out: false.
    regex: Option<bool>,
    /// Whether upper and lower case differ. Left out: false.
    case_sensitive: Option<bool>,
    /// How many matching lines to answer at most, 1 to 200. Left out: 50.
    #[schemars(range(min = 1, max = 200))]
    max_results: Option<usize>,
}

/// What `search` answers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Found {
    /// The matching lines, in order of their paths.
    pub(crate) matches: Vec<Match>,
    /// How many files were searched.
    pub(crate) files_searched: u64,
    /// Whether there may be matches that are not in this answer.
    pub(crate) truncated: bool,
    /// What is missing and how to see it, in words.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) notes: Vec<String>,
}

/// One matching line.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Match {
    /// The file.
    pub(crate) path: String,
    /// The line's number, counted from 1, to be used as `offset_line` of `read`.
    pub(crate) line: u64,
    /// The line, or the part of it around the match.
    pub(crate) text: String,
}

impl Found {
    /// The answer as text: `path:line: text`.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        for found in &self.matches {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{}:{}: {}", shown(&found.path), found.line, found.text);
        }
        if self.matches.is_empty() {
            let _ = writeln!(out, "(no match in {} files)", self.files_searched);
        }
        for note in &self.notes {
            let _ = writeln!(out, "({note})");
        }
        out
    }
}

/// Searches.
pub(crate) fn search(
    root: &Root,
    limits: &FilesLimits,
    mut work: Work,
    arguments: &SearchArguments,
) -> Result<Found, Refusal> {
    let path = ServedPath::parse(arguments.path.as_deref().unwrap_or_default())?;
    let most = arguments.max_results.unwrap_or(DEFAULT_RESULTS);
    if !(1..=MAX_RESULTS).contains(&most) {
        return Err(Refusal::Arguments(format!("`max_results` is {most}, it goes from 1 to {MAX_RESULTS}")));
    }
    let mut searcher = Searcher {
        limits,
        work: &mut work,
        pattern: pattern(arguments)?,
        glob: arguments.glob.as_deref().map(Glob::parse).transpose()?,
        most,
        bytes_left: limits.search_bytes,
        answer_left: limits.answer_bytes,
        unreadable: 0,
        too_deep: 0,
        cut: false,
        full: None,
        found: Found { matches: Vec::new(), files_searched: 0, truncated: false, notes: Vec::new() },
    };
    match root.resolve(&path)?.node {
        Node::Directory(directory) => searcher.directory(directory.as_fd(), &path, 0)?,
        Node::File(file) => {
            let refused = searcher.file(file, &path)?;
            if let Some(head) = refused {
                return Err(match head {
                    Head::PrivateKey => Refusal::KeyContent(path.to_string()),
                    _ => Refusal::Binary(path.to_string()),
                });
            }
        }
    }
    Ok(searcher.finish())
}

fn pattern(arguments: &SearchArguments) -> Result<Regex, Refusal> {
    let query = arguments.query.as_str();
    if query.is_empty() || query.len() > MAX_PATTERN {
        return Err(Refusal::Query(format!("it is empty or longer than {MAX_PATTERN} bytes")));
    }
    let text = match arguments.regex {
        Some(true) => Cow::Borrowed(query),
        _ => Cow::Owned(regex::escape(query)),
    };
    RegexBuilder::new(&text)
        .case_insensitive(arguments.case_sensitive != Some(true))
        .size_limit(PATTERN_MEMORY)
        .dfa_size_limit(PATTERN_MEMORY)
        .nest_limit(PATTERN_NESTING)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => Refusal::Query("the regular expression is too large".to_owned()),
            other => Refusal::Query(other.to_string()),
        })
}

/// Which files a search looks at.
struct Glob {
    matcher: GlobMatcher,
    whole_path: bool,
}

impl Glob {
    fn parse(text: &str) -> Result<Self, Refusal> {
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(Refusal::Glob(format!("it is empty or longer than {MAX_PATTERN} bytes")));
        }
        let glob = GlobBuilder::new(text)
            .literal_separator(true)
            .build()
            .map_err(|error| Refusal::Glob(error.kind().to_string()))?;
        Ok(Self { matcher: glob.compile_matcher(), whole_path: text.contains('/') })
    }

    fn takes(&self, path: &ServedPath) -> bool {
        let name = path.names().last().map_or("", String::as_str);
        if self.whole_path { self.matcher.is_match(path.text()) } else { self.matcher.is_match(name) }
    }
}

/// Which bound ended a search.
#[derive(Clone, Copy, Debug)]
enum Full {
    Results,
    Answer,
    Names,
    Files,
    Bytes,
    Time,
}

/// A search under way.
struct Searcher<'a> {
    limits: &'a FilesLimits,
    work: &'a mut Work,
    pattern: Regex,
    glob: Option<Glob>,
    most: usize,
    bytes_left: u64,
    answer_left: usize,
    unreadable: u64,
    too_deep: u64,
    cut: bool,
    full: Option<Full>,
    found: Found,
}

impl Searcher<'_> {
    /// Searches the files of a directory, then those further down. Links are not followed: what they lead to is
    /// searched at its own place. Recursion is bounded by `MAX_DEPTH`.
    fn directory(&mut self, directory: BorrowedFd<'_>, path: &ServedPath, depth: usize) -> Result<(), Refusal> {
        let listed = match names(directory, self.work.names_left()) {
            Ok(listed) => listed,
            Err(_) if depth > 0 => return Ok(()),
            Err(error) => return Err(Refusal::from_io(path, &error)),
        };
        self.work.spend_names(listed.names.len());
        self.unreadable += listed.unreadable;
        for name in &listed.names {
            if self.full.is_some() {
                return Ok(());
            }
            if self.work.over()? {
                self.full = Some(Full::Time);
                return Ok(());
            }
            // What may not be served, has vanished or may not be opened is passed over.
            if check_name(name, String::new).is_err() {
                continue;
            }
            let Ok(stat) = stat(directory, name) else { continue };
            let child = path.child(name);
            match stat.kind {
                EntryKind::Directory if depth >= MAX_DEPTH => self.too_deep += 1,
                EntryKind::Directory => {
                    if let Ok(below) = open_directory(directory, name) {
                        self.directory(below.as_fd(), &child, depth + 1)?;
                    }
                }
                EntryKind::File if self.glob.as_ref().is_none_or(|glob| glob.takes(&child)) => {
                    if self.found.files_searched >= self.limits.search_files {
                        self.full = Some(Full::Files);
                    } else if let Ok(Some(opened)) = open_file(directory, name)
                        && let Node::File(file) = opened.node
                    {
                        self.file(file, &child)?;
                    }
                }
                EntryKind::File | EntryKind::Link | EntryKind::Special => {}
            }
        }
        if listed.truncated && self.full.is_none() {
            self.full = Some(Full::Names);
        }
        Ok(())
    }

    /// Searches one file; `Some` says why its content is not searched.
    fn file(&mut self, file: std::fs::File, path: &ServedPath) -> Result<Option<Head>, Refusal> {
        let mut lines = Lines::new(file, MAX_LINE, self.bytes_left);
        match lines.head() {
            Ok(Head::Text) => {}
            Ok(refused) => return Ok(Some(refused)),
            Err(_) => return Ok(None),
        }
        self.found.files_searched += 1;
        let (before, answer_before) = (self.found.matches.len(), self.answer_left);
        let (mut number, mut line) = (0, Vec::new());
        while let Ok(Some(kind)) = lines.next(&mut line) {
            number += 1;
            self.cut |= kind == Line::Cut;
            if private_key_begins(&line) {
                self.found.matches.truncate(before);
                self.answer_left = answer_before;
                return Ok(Some(Head::PrivateKey));
            }
            if number % LINES_PER_LOOK == 0 && self.work.over()? {
                self.full = Some(Full::Time);
                break;
            }
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if let Some(found) = self.pattern.find(text) {
                self.add(path, number, excerpt(text, found.range()));
                if self.full.is_some() {
                    break;
                }
            }
        }
        self.bytes_left = self.bytes_left.saturating_sub(lines.read());
        if self.bytes_left == 0 && self.full.is_none() {
            self.full = Some(Full::Bytes);
        }
        Ok(None)
    }

    fn add(&mut self, path: &ServedPath, line: u64, text: String) {
        let path = path.text();
        let size = path.len() + text.len();
        if self.found.matches.len() >= self.most {
            self.full = Some(Full::Results);
        } else if size > self.answer_left {
            self.full = Some(Full::Answer);
        } else {
            self.answer_left -= size;
            self.found.matches.push(Match { path, line, text });
        }
    }

    fn finish(self) -> Found {
        let Self { limits, most, unreadable, too_deep, cut, full, mut found, .. } = self;
        found.truncated = full.is_some() || too_deep > 0 || cut;
        if let Some(full) = full {
            let why = match full {
                Full::Results => format!("there are more than {most} matching lines"),
                Full::Answer => format!("an answer holds at most {} bytes", limits.answer_bytes),
                Full::Names => format!("a call looks at no more than {} names", limits.scan_names),
                Full::Files => format!("a call searches no more than {} files", limits.search_files),
                Full::Bytes => format!("a call searches no more than {} bytes", limits.search_bytes),
                Full::Time => format!("a call takes no longer than {} s", limits.call_time.as_secs()),
            };
            found.notes.push(format!("not every match is here: {why}; narrow it with `path`, `glob` or `query`"));
        }
        if too_deep > 0 {
            found.notes.push(format!("{too_deep} directories lie deeper than {MAX_DEPTH} levels: name one as `path`"));
        }
        if cut {
            found.notes.push(format!("of lines longer than {MAX_LINE} bytes only the beginning was searched"));
        }
        if unreadable > 0 {
            found.notes.push(format!("{unreadable} entries were passed over: their names are not UTF-8"));
        }
        found
    }
}

/// The part of a line to show: all of it, or what surrounds the match.
fn excerpt(line: &[u8], found: std::ops::Range<usize>) -> String {
    if line.len() <= MAX_EXCERPT {
        return String::from_utf8_lossy(line).into_owned();
    }
    let start = found.start.saturating_sub(MAX_EXCERPT / 3);
    let end = start.saturating_add(MAX_EXCERPT).min(line.len());
    let part = line.get(start..end).unwrap_or(line);
    // A cut inside a character leaves at most three bytes of it on either side.
    let begin = part.iter().take(3).take_while(|b| start > 0 && (**b & 0b1100_0000) == 0b1000_0000).count();
    let part = String::from_utf8_lossy(part.get(begin..).unwrap_or(part));
    let part = if end < line.len() { part.trim_end_matches('\u{fffd}') } else { &part };
    let before = if start > 0 { "…" } else { "" };
    let after = if end < line.len() { "…" } else { "" };
    format!("{before}{part}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_surround_the_match_and_cut_no_character() {
        let line = format!("{}needle{}", "ä".repeat(1000), "ö".repeat(1000));
        let at = line.find("needle").expect("it is there");
        for shift in 0..4 {
            let line = format!("{}{line}", "x".repeat(shift));
            let text = excerpt(line.as_bytes(), at + shift..at + shift + 6);
            assert!(text.contains("needle") && text.starts_with('…') && text.ends_with('…'), "{text}");
            assert!(!text.contains('\u{fffd}'), "{text}");
            assert!(text.len() <= MAX_EXCERPT + 6);
        }
        assert_eq!(excerpt(b"short", 0..1), "short");
    }

    #[test]
    fn patterns_that_would_grow_are_refused() {
        let ask = |query: &str| {
            pattern(&SearchArguments {
                query: query.to_owned(),
                path: None,
                glob: None,
                regex: Some(true),
                case_sensitive: None,
                max_results: None,
            })
        };
        assert!(ask("a+b").is_ok());
        for bomb in ["", "(", "(?:(?:(?:a{100}){100}){100}){100}", r"\w{5000}", &"(".repeat(200), &"a".repeat(2000)] {
            assert!(matches!(ask(bomb), Err(Refusal::Query(_))), "{bomb}");
        }
        assert!(ask(&format!("{}a{}", "(".repeat(100), ")".repeat(100))).is_err());
    }
}
