//! Records as lines.

use serde::{Deserialize, Serialize};

use crate::hash::Hash;
use crate::kind::Kind;

/// Longest line, in bytes, without its end.
pub const MAX_LINE: usize = 256 * 1024;
/// Room in a line for what the log puts before the fields.
const PREFIX: usize = 256;

/// What is to be recorded: its kind and its fields, ready but for its place in the log.
#[derive(Clone, Debug)]
pub struct Draft {
    kind: Kind,
    /// The members of an object, each after a comma, and its end.
    tail: Vec<u8>,
}

/// A record that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// It is no JSON object.
    #[error("a record is not an object: {0}")]
    NotAnObject(String),
    /// It is too large.
    #[error("a record of kind {0} is {1} bytes, more than {MAX_LINE}")]
    TooLong(&'static str, usize),
}

impl Draft {
    /// Of fields that serialise as an object, and none of whose names is one of the log's own (`seq`, `prev`, `time`,
    /// `code`, `event`).
    ///
    /// # Errors
    /// They do not, or they are too large.
    pub fn new<T: Serialize + ?Sized>(kind: Kind, fields: &T) -> Result<Self, DraftError> {
        let mut tail = Vec::with_capacity(512);
        serde_json::to_writer(&mut tail, fields).map_err(|error| DraftError::NotAnObject(error.to_string()))?;
        match tail.as_mut_slice() {
            [b'{', b'}'] => {
                tail.remove(0);
            }
            [first @ b'{', .., b'}'] => *first = b',',
            _ => return Err(DraftError::NotAnObject(kind.event.to_owned())),
        }
        if tail.len() > MAX_LINE - PREFIX {
            return Err(DraftError::TooLong(kind.code, tail.len()));
        }
        Ok(Self { kind, tail })
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What its line takes at most, in bytes, with its end.
    pub(crate) fn most_bytes(&self) -> usize {
        self.tail.len() + PREFIX
    }

    /// Appends the line, without its end.
    pub fn write(&self, seq: u64, prev: &Hash, time: jiff::Timestamp, out: &mut Vec<u8>) {
        use std::io::Write as _;
        let Kind { code, event, .. } = self.kind;
        let head = write!(out, r#"{{"seq":{seq},"prev":"{prev}","time":"{time:.6}","code":"{code}","event":"{event}""#);
        head.expect("a vector takes all");
        out.extend_from_slice(&self.tail);
    }
}

/// What every record says, read from its line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Line<'a> {
    /// Its number, from 0.
    pub seq: u64,
    /// The leaf hash of the record before it.
    pub prev: Hash,
    /// When it was written, by the clock of the machine: RFC 3339, UTC, with six digits of seconds.
    #[serde(borrow)]
    pub time: &'a str,
    /// The stable code of its kind. May be one of a newer version.
    #[serde(borrow)]
    pub code: &'a str,
    /// The stable name of its event.
    #[serde(borrow)]
    pub event: &'a str,
}

/// A line that is no record.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It is not what a record begins with.
    #[error("not a record: {0}")]
    Malformed(String),
    /// It is too long.
    #[error("longer than {MAX_LINE} bytes")]
    TooLong,
}

impl<'a> Line<'a> {
    /// Reads what every record says.
    ///
    /// # Errors
    /// The line is no record.
    pub fn parse(line: &'a [u8]) -> Result<Self, LineError> {
        if line.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        serde_json::from_slice(line).map_err(|error| LineError::Malformed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::kinds;

    #[test]
    fn what_is_written_is_read() {
        let time: jiff::Timestamp = "2026-11-22T22:40:01.5Z".parse().expect("time");
        let mut out = Vec::new();
        Draft::new(kinds::CALL_DONE, &json!({"id": "a\n\"b"})).expect("draft").write(7, &Hash::NONE, time, &mut out);
        let text = std::str::from_utf8(&out).expect("text");
        let zeros = "0".repeat(64);
        assert_eq!(
            text,
            format!(
                r#"{{"seq":7,"prev":"{zeros}","time":"2026-11-22T22:40:01.500000Z","code":"G1010I","event":"call_done","id":"a\n\"b"}}"#
            )
        );
        let line = Line::parse(&out).expect("line");
        assert_eq!((line.seq, line.code, line.event), (7, "G1010I", "call_done"));

        let mut out = Vec::new();
        Draft::new(kinds::LOG_CLOSED, &json!({})).expect("draft").write(0, &Hash::NONE, time, &mut out);
        assert!(out.ends_with(br#""event":"log_closed"}"#));
        assert!(Draft::new(kinds::LOG_CLOSED, &json!([1])).is_err());
        assert!(Draft::new(kinds::LOG_CLOSED, &json!({"a": "x".repeat(MAX_LINE)})).is_err());
    }
}
