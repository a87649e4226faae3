//! Finding records, by all cores: by what their bytes hold first, and only then by what they say.

use std::path::Path;

use jiff::Timestamp;
use memchr::memmem::Finder;
use serde_json::Value;

use crate::files::{LogFile, ReadError, log_files, open};
use crate::line::Line;
use crate::read::{Record, Records};
use crate::scan::{Chunk, Chunks, End, in_order, length};
use crate::verify::Progress;

/// How far the clock of a machine may have been set back within a file, for files to be passed over by the time of their
/// first record, in seconds.
const CLOCK_MARGIN: i64 = 3600;

/// What is looked for: records to which all of it applies.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Written at this time or later.
    pub since: Option<Timestamp>,
    /// Written before this time.
    pub until: Option<Timestamp>,
    /// This record or a later one.
    pub from: u64,
    /// What members of the record say.
    pub members: Vec<(Member, String)>,
    /// What stands somewhere in the line, as it is written there.
    pub text: Option<String>,
    /// Read also files that the times of their first records rule out: for a clock that was set back by more than an hour.
    pub every_file: bool,
}

/// What can be asked of a record. Records that do not say it are not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Member {
    /// The stable code.
    Code,
    /// The name of the event.
    Event,
    /// The id of the request.
    Id,
    /// The route.
    Route,
    /// The tool.
    Tool,
    /// The prompt.
    Prompt,
    /// The URI of the resource.
    Resource,
    /// The method.
    Method,
    /// What became of a call.
    Outcome,
    /// What the policy said.
    Effect,
    /// A policy that decided.
    Policy,
    /// Where a call was refused, or failed.
    Hop,
    /// The caller, or who did a management act, by its issuer's name.
    Subject,
    /// The agent.
    Agent,
    /// The person that the caller acts for.
    User,
    /// The key with which the hub was called.
    Key,
    /// The session that the call is part of.
    Session,
    /// The trace.
    Trace,
}

impl Member {
    /// Where records say it, as JSON pointers.
    fn pointers(self) -> &'static [&'static str] {
        match self {
            Self::Code => &["/code"],
            Self::Event => &["/event"],
            Self::Id => &["/id"],
            Self::Route => &["/route"],
            Self::Tool => &["/tool"],
            Self::Prompt => &["/prompt"],
            Self::Resource => &["/resource"],
            Self::Method => &["/method"],
            Self::Outcome => &["/outcome"],
            Self::Effect => &["/decision/effect"],
            Self::Policy => &["/decision/policies"],
            Self::Hop => &["/hop"],
            Self::Subject => &["/caller/subject", "/actor/subject", "/actor/id"],
            Self::Agent => &["/caller/agent"],
            Self::User => &["/caller/user", "/actor/user"],
            Self::Key => &["/caller/key", "/actor/key", "/actor/id"],
            Self::Session => &["/caller/session"],
            Self::Trace => &["/trace"],
        }
    }

    fn says(self, record: &Value, wanted: &str) -> bool {
        self.pointers().iter().filter_map(|at| record.pointer(at)).any(|value| match value {
            Value::Array(all) => all.iter().any(|one| one == wanted),
            one => one == wanted,
        })
    }
}

/// Calls `found` with each record that is looked for, in order, until it says `false`. Lines that are no records are passed
/// over: what was changed is for [`verify`](crate::verify()) to find.
///
/// # Errors
/// The log cannot be read.
pub fn search(
    dir: &Path,
    search: &Search,
    mut found: impl FnMut(Record<'_>) -> bool,
    mut progress: impl FnMut(Progress),
) -> Result<(), ReadError> {
    let files = search.files(dir)?;
    let total = files.iter().map(|file| file.bytes).sum();
    let asked = Asked::new(search);
    let mut done = 0u64;
    let matching = |chunk: &Chunk| chunk.lines().filter_map(|(at, line)| asked.matches(line, at)).collect::<Vec<_>>();
    in_order(Chunks::of(files), matching, |chunk, matches| {
        for Match { seq, begin, end } in matches {
            let line = chunk.bytes.get(begin..end).unwrap_or_default();
            if !found(Record { seq, line }) {
                return Ok(false);
            }
        }
        done = done.saturating_add(length(chunk.bytes.len()));
        progress(Progress { done: done.min(total), total });
        Ok(chunk.end != End::TooLong)
    })
}

impl Search {
    /// The files in which there can be what is looked for.
    fn files(&self, dir: &Path) -> Result<Vec<LogFile>, ReadError> {
        let mut files = log_files(dir)?;
        let after = files.iter().position(|file| file.first > self.from).unwrap_or(files.len());
        files.drain(..after.saturating_sub(1));
        if self.every_file || (self.since.is_none() && self.until.is_none()) {
            return Ok(files);
        }
        let times: Vec<Option<Timestamp>> = files.iter().map(begins).collect::<Result<_, _>>()?;
        // A clock that went back from file to file is not to be relied on at all.
        if times.is_sorted_by(|one, next| one.is_none() || next.is_none() || one <= next) {
            let margin = jiff::SignedDuration::from_secs(CLOCK_MARGIN);
            let next = times.iter().skip(1).copied().chain([None]);
            let kept = times.iter().zip(next).map(|(begins, ends)| {
                let late = self.until.zip(*begins).is_some_and(|(until, begins)| begins - margin > until);
                let early = self.since.zip(ends).is_some_and(|(since, ends)| ends + margin < since);
                !late && !early
            });
            let kept: Vec<bool> = kept.collect();
            let mut kept = kept.into_iter();
            files.retain(|_| kept.next().unwrap_or(true));
        }
        Ok(files)
    }
}

/// The time of the first record of a file.
fn begins(file: &LogFile) -> Result<Option<Timestamp>, ReadError> {
    use std::os::unix::fs::FileExt as _;
    let mut buffer = [0; 512];
    let read = open(&file.path)?.read_at(&mut buffer, 0).map_err(ReadError::io(&file.path))?;
    let line = buffer.get(..read).unwrap_or_default();
    Ok(Line::head(line).ok().and_then(|(line, _)| line.time.parse().ok()))
}

struct Match {
    seq: u64,
    begin: usize,
    end: usize,
}

/// What is looked for, ready to be compared.
struct Asked<'a> {
    search: &'a Search,
    /// As records write them: a byte for byte comparison is one of times.
    since: Option<String>,
    until: Option<String>,
    text: Option<Finder<'a>>,
    /// What has to stand in a line, unless it escapes what need not be.
    needles: Vec<Finder<'static>>,
    escapes: [Finder<'static>; 2],
}

impl<'a> Asked<'a> {
    fn new(search: &'a Search) -> Self {
        let written = |time: &Timestamp| format!("{time:.6}");
        let quoted = |text: &String| Finder::new(Value::String(text.clone()).to_string().as_bytes()).into_owned();
        Self {
            search,
            since: search.since.as_ref().map(written),
            until: search.until.as_ref().map(written),
            text: search.text.as_ref().map(|text| Finder::new(text.as_bytes())),
            needles: search.members.iter().map(|(_, value)| quoted(value)).collect(),
            escapes: [Finder::new(b"\\u"), Finder::new(b"\\/")],
        }
    }

    fn matches(&self, line: &[u8], begin: usize) -> Option<Match> {
        if self.text.as_ref().is_some_and(|text| text.find(line).is_none()) {
            return None;
        }
        let plain = self.needles.iter().all(|needle| needle.find(line).is_some());
        if !plain && self.escapes.iter().all(|escape| escape.find(line).is_none()) {
            return None;
        }
        let (head, _) = Line::head(line).ok()?;
        let early = head.seq < self.search.from || self.since.as_deref().is_some_and(|since| head.time < since);
        if early || self.until.as_deref().is_some_and(|until| head.time >= until) {
            return None;
        }
        if !self.search.members.is_empty() {
            let record: Value = serde_json::from_slice(line).ok()?;
            if !self.search.members.iter().all(|(member, wanted)| member.says(&record, wanted)) {
                return None;
            }
        }
        Some(Match { seq: head.seq, begin, end: begin + line.len() })
    }
}

/// One record by its number, as text.
///
/// # Errors
/// It is not there, or is none.
pub fn record(dir: &Path, seq: u64) -> Result<String, ReadError> {
    let mut records = Records::open(dir, seq)?;
    match records.read()? {
        Some(record) => Ok(String::from_utf8_lossy(record.line).into_owned()),
        None => Err(ReadError::Beyond { wanted: seq, size: seq }),
    }
}
