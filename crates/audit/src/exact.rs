//! The exact form of a record's line, and nothing but it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::hash::Hash;
use crate::line::{Line, LineError, MAX_LINE};

/// From how many members on a set is quicker than looking at all of them.
const FEW: usize = 24;

impl<'a> Line<'a> {
    /// Reads a line that has to be exactly as the format says: UTF-8 without control characters; one JSON object; the log's own
    /// five members first, in their order and plainly written; no member twice.
    ///
    /// # Errors
    /// It is not.
    pub fn exact(line: &'a [u8]) -> Result<Self, LineError> {
        let (head, _) = Self::head(line)?;
        if !line.ends_with(b"}") {
            return Err(malformed("it does not end with the object"));
        }
        // JSON allows some of them between its parts.
        if line.iter().any(|byte| *byte < b' ') {
            return Err(malformed("it has control characters"));
        }
        let text = std::str::from_utf8(line).map_err(|_| malformed("not UTF-8"))?;
        let Members = serde_json::from_str(text).map_err(|error| LineError::Malformed(error.to_string()))?;
        Ok(head)
    }

    /// Reads the log's own members, and how many bytes they take. What comes after them is not looked at.
    ///
    /// # Errors
    /// It does not begin as the format says.
    pub fn head(line: &'a [u8]) -> Result<(Self, usize), LineError> {
        if line.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        let mut rest = line;
        let seq = number(member(&mut rest, br#"{"seq":"#, b',')?).ok_or_else(|| malformed("`seq` is not plain"))?;
        let prev = member(&mut rest, br#""prev":""#, b'"')?.parse::<Hash>();
        let prev = prev.map_err(|_| malformed("`prev` is not 64 lower-case hexadecimal digits"))?;
        let time = member(&mut rest, br#","time":""#, b'"')?;
        if !is_time(time.as_bytes()) {
            return Err(malformed("`time` is not RFC 3339 in UTC with six digits of seconds"));
        }
        let code = member(&mut rest, br#","code":""#, b'"')?;
        if !is_code(code.as_bytes()) {
            return Err(malformed("`code` is not a letter, four digits and I, W or E"));
        }
        let event = member(&mut rest, br#","event":""#, b'"')?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if !(1..=64).contains(&event.len()) || !event.bytes().all(plain) {
            return Err(malformed("`event` is not a plain name"));
        }
        match rest {
            [b'}'] | [b',', ..] => Ok((Self { seq, prev, time, code, event }, line.len() - rest.len())),
            _ => Err(malformed("`event` is not followed by a comma or the end")),
        }
    }
}

fn malformed(what: &str) -> LineError {
    LineError::Malformed(what.to_owned())
}

/// The text between a beginning and an end.
fn member<'a>(rest: &mut &'a [u8], begin: &'static [u8], end: u8) -> Result<&'a str, LineError> {
    let wanted = || malformed(&format!("no `{}` where it has to be", String::from_utf8_lossy(begin)));
    let after = rest.strip_prefix(begin).ok_or_else(wanted)?;
    // The longest of them is a hash; whatever is longer is none of ours.
    let at = after.iter().take(80).position(|byte| *byte == end).ok_or_else(wanted)?;
    let (value, after) = after.split_at_checked(at).ok_or_else(wanted)?;
    *rest = after.get(1..).ok_or_else(wanted)?;
    std::str::from_utf8(value).map_err(|_| malformed("not UTF-8"))
}

/// A number as JSON writes it, without a sign.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// `2026-11-22T22:40:01.500000Z`. Which month has how many days is not asked.
fn is_time(text: &[u8]) -> bool {
    const FORM: &[u8; 27] = b"dddd-dd-ddTdd:dd:dd.ddddddZ";
    let formed = text.len() == FORM.len()
        && text.iter().zip(FORM).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            other => byte == other,
        });
    let within = |at: usize, low: &[u8; 2], high: &[u8; 2]| {
        text.get(at..at + 2).is_some_and(|part| part >= low.as_slice() && part <= high.as_slice())
    };
    formed
        && within(5, b"01", b"12")
        && within(8, b"01", b"31")
        && within(11, b"00", b"23")
        && within(14, b"00", b"59")
        && within(17, b"00", b"59")
}

fn is_code(text: &[u8]) -> bool {
    matches!(text, [letter, digits @ .., b'I' | b'W' | b'E']
        if letter.is_ascii_uppercase() && digits.len() == 4 && digits.iter().all(u8::is_ascii_digit))
}

/// An object none of whose members comes twice.
struct Members;

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Names)
    }
}

struct Names;

impl<'de> Visitor<'de> for Names {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut names: Vec<Name<'de>> = Vec::with_capacity(FEW);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            map.next_value::<IgnoredAny>()?;
            if names.len() < FEW && names.contains(&name) {
                return Err(A::Error::custom(format_args!("member `{}` comes twice", name.0)));
            }
            names.push(name);
        }
        if names.len() > FEW {
            names.sort_unstable();
            if let Some([twice, _]) = names.array_windows::<2>().find(|[one, other]| one == other) {
                return Err(A::Error::custom(format_args!("member `{}` comes twice", twice.0)));
            }
        }
        Ok(Members)
    }
}

/// The name of a member, unescaped; borrowed where it can be.
#[derive(PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

    fn line(rest: &str) -> String {
        format!(
            r#"{{"seq":7,"prev":"{ZEROS}","time":"2026-11-22T22:40:01.500000Z","code":"G1010I","event":"call_done"{rest}"#
        )
    }

    #[test]
    fn the_exact_form_is_read() {
        for rest in ["}", r#","id":"a\n\u2028\"b","n":[1,{"n":2,"n":3}],"\u0069e":null}"#] {
            let text = line(rest);
            let read = Line::exact(text.as_bytes()).expect("exact");
            assert_eq!((read.seq, read.code, read.event), (7, "G1010I", "call_done"));
            assert_eq!(read, Line::parse(text.as_bytes()).expect("parsed"));
        }
    }

    #[test]
    fn nothing_else_is() {
        let good = line(r#","id":"a"}"#);
        let many: String = (0..40).map(|n| format!(r#","m{n}":0"#)).collect();
        assert!(Line::exact(line(&format!("{many}}}")).as_bytes()).is_ok());
        for bad in [
            line(""),
            line(" }"),
            line("}}"),
            line("} "),
            line(r#","id":"a","id":"a"}"#),
            line(r#","id":"a","\u0069d":"a"}"#),
            line(r#","seq":7}"#),
            line(&format!(r#"{many},"m3":1}}"#)),
            line(",\"id\":\"a\tb\"}"),
            line(",\"id\":[\n]}"),
            line(",\"id\":[\r]}"),
            line(",\"id\":\t0}"),
            line(r#","id":"a"},"#),
            line(r#","id":"a"} "#),
            line(r#","id":NaN}"#),
            good.replacen("7", "07", 1),
            good.replacen("7", "-7", 1),
            good.replacen("7", "7.0", 1),
            good.replacen("7", " 7", 1),
            good.replacen("7", "18446744073709551616", 1),
            good.replacen("000", "00A", 1),
            good.replacen("0", "", 1),
            good.replace("Z\"", "+00:00\""),
            good.replace(".500000Z", ".5Z"),
            good.replace("22:40", "24:40"),
            good.replace("-11-", "-13-"),
            good.replace("G1010I", "G1010X"),
            good.replace("G1010I", "g1010I"),
            good.replace("call_done", "call done"),
            good.replace("call_done", ""),
            good.replace("\"seq\"", "\"Seq\""),
            good.replacen('{', "[", 1),
            String::new(),
        ] {
            assert!(Line::exact(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Line::exact(&[good.as_bytes(), &[0xff]].concat()).is_err());
        let mut bytes = good.into_bytes();
        let at = bytes.len() - 3;
        bytes[at] = 0xff;
        assert!(Line::exact(&bytes).is_err());
    }
}
