//! The tool `read`: a text file, or some lines of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FilesLimits;
use super::lines::{Head, Line, Lines};
use super::path::ServedPath;
use super::refusal::Refusal;
use super::root::{Node, Root};
use super::rules::private_key_begins;
use super::work::Work;

/// Lines between two looks at the clock.
const LINES_PER_LOOK: u64 = 1024;

/// What `read` takes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadArguments {
    /// The file, relative to the served directory, with `/` between names.
    path: String,
    /// The first line to read, counted from 1. Left out: 1.
    #[schemars(range(min = 1))]
    offset_line: Option<u64>,
    /// How many lines to read at most. Left out: as many as an answer holds.
    #[schemars(range(min = 1))]
    limit_lines: Option<u64>,
}

/// What `read` answers.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Reading {
    /// The file.
    pub(crate) path: String,
    /// Bytes in the whole file.
    pub(crate) size_bytes: u64,
    /// The number of the first line in `text`.
    pub(crate) first_line: u64,
    /// How many lines `text` holds.
    pub(crate) lines: u64,
    /// The lines, with their ends as in the file.
    pub(crate) text: String,
    /// The `offset_line` that goes on where this answer ends; absent at the end of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_line: Option<u64>,
    /// What is missing and how to see it, in words.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) notes: Vec<String>,
}

/// Reads a file.
pub(crate) fn read(
    root: &Root,
    limits: &FilesLimits,
    work: Work,
    arguments: &ReadArguments,
) -> Result<Reading, Refusal> {
    let path = ServedPath::parse(&arguments.path)?;
    let first_line = arguments.offset_line.unwrap_or(1);
    let most = arguments.limit_lines.unwrap_or(u64::MAX);
    if first_line == 0 || most == 0 {
        return Err(Refusal::Arguments("`offset_line` and `limit_lines` begin at 1".to_owned()));
    }
    let opened = root.resolve(&path)?;
    let Node::File(file) = opened.node else { return Err(Refusal::NotFile(path.to_string())) };
    let failed = |error: std::io::Error| Refusal::from_io(&path, &error);

    let mut file = Lines::new(file, limits.answer_bytes, limits.read_bytes);
    match file.head().map_err(failed)? {
        Head::Text => {}
        Head::Binary => return Err(Refusal::Binary(path.to_string())),
        Head::PrivateKey => return Err(Refusal::KeyContent(path.to_string())),
    }
    let mut reading = Reading {
        path: path.text(),
        size_bytes: opened.size,
        first_line,
        lines: 0,
        text: String::new(),
        next_line: None,
        notes: Vec::new(),
    };
    let (mut number, mut line) = (0, Vec::new());
    while reading.lines < most {
        if number % LINES_PER_LOOK == 0 && work.over()? {
            if reading.lines == 0 {
                return Err(Refusal::TimedOut(limits.call_time.as_secs()));
            }
            reading.next_line = Some(number + 1);
            break;
        }
        let Some(kind) = file.next(&mut line).map_err(failed)? else { break };
        number += 1;
        // Lines before the first one asked for count as well: what follows the beginning of a key is the key.
        if private_key_begins(&line) {
            return Err(Refusal::KeyContent(path.to_string()));
        }
        if number < first_line {
            continue;
        }
        let text =
            text_of(&line, kind == Line::Cut || file.at_bound()).ok_or_else(|| Refusal::Binary(path.to_string()))?;
        if reading.text.len() + text.len() > limits.answer_bytes {
            reading.next_line = Some(number);
            break;
        }
        reading.text.push_str(text);
        reading.lines += 1;
        if kind == Line::Cut {
            let bytes = limits.answer_bytes;
            reading.notes.push(format!("line {number} is longer than {bytes} bytes: the rest of it is left out"));
        }
    }
    if reading.lines == 0 && first_line > 1 {
        let path = path.to_string();
        return Err(match file.at_bound() {
            true => Refusal::PastReach { path, line: first_line, bytes: limits.read_bytes },
            false => Refusal::PastEnd { path, line: first_line, lines: number },
        });
    }
    if reading.next_line.is_none() && !file.at_end().map_err(failed)? {
        reading.next_line = Some(number + 1);
    }
    if let Some(next) = reading.next_line {
        reading.notes.push(format!("there is more: go on with `offset_line` {next}"));
    } else if file.at_bound() && opened.size > file.read() {
        let bytes = limits.read_bytes;
        reading.notes.push(format!("files are read up to {bytes} bytes: what follows is left out"));
    }
    Ok(reading)
}

/// A line as text, if it is text. A line that is cut may end inside a character, which is then left out.
fn text_of(line: &[u8], cut: bool) -> Option<&str> {
    if line.contains(&0) {
        return None;
    }
    match std::str::from_utf8(line) {
        Ok(text) => Some(text),
        Err(error) if cut && error.error_len().is_none() => std::str::from_utf8(line.get(..error.valid_up_to())?).ok(),
        Err(_) => None,
    }
}
