//! One event of a `text/event-stream`: its data, and the same event with other data. Pure.
//!
//! Spec: the HTML standard, section 9.2.6. What stands beside the data (id, name, waiting time, comments) stays byte for
//! byte.

use std::borrow::Cow;
use std::ops::Range;

use crate::sse::Place;

/// The byte order mark that a stream may begin with.
const MARK: &[u8] = b"\xef\xbb\xbf";
/// What some readers take for the end of a line, too, in UTF-8: U+0085, U+2028, U+2029.
const OTHER_ENDS: [&[u8]; 3] = [b"\xc2\x85data", b"\xe2\x80\xa8data", b"\xe2\x80\xa9data"];

/// The lines up to a blank one, it included.
#[derive(Debug)]
pub(super) struct Event<'a> {
    bytes: &'a [u8],
    /// Where the values of its lines `data` stand.
    values: Vec<Range<usize>>,
    /// Where each of these lines stands, its end included.
    lines: Vec<Range<usize>>,
    /// Whether it has a name other than `message`, which clients of MCP pass over.
    pub(super) named: bool,
}

/// Cuts text that ends with an event, or with the stream, into its events.
pub(super) fn split(text: &[u8]) -> Vec<Range<usize>> {
    let (mut place, mut events, mut start, mut open) = (Place::start(), Vec::new(), 0, false);
    for (at, byte) in text.iter().enumerate() {
        place.step(*byte);
        if !place.is_blank() {
            open = true;
        } else if open {
            open = false;
            events.push(start..at + 1);
            start = at + 1;
        }
    }
    if start < text.len() {
        events.push(start..text.len());
    }
    events
}

impl<'a> Event<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Self {
        let mut event = Self { bytes, values: Vec::new(), lines: Vec::new(), named: false };
        let mut start = if bytes.starts_with(MARK) { MARK.len() } else { 0 };
        while start < bytes.len() {
            let rest = bytes.get(start..).unwrap_or_default();
            let length = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
            let line = rest.get(..length).unwrap_or_default();
            let ending = match rest.get(length..) {
                Some([b'\r', b'\n', ..]) => 2,
                Some([_, ..]) => 1,
                _ => 0,
            };
            let (field, value) = match line.iter().position(|byte| *byte == b':') {
                Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..).unwrap_or_default()),
                None => (line, Default::default()),
            };
            let value = value.strip_prefix(b" ").unwrap_or(value);
            let end = start + length;
            match field {
                b"data" => {
                    event.values.push(end - value.len()..end);
                    event.lines.push(start..end + ending);
                }
                b"event" => event.named = !matches!(value, b"" | b"message"),
                _ => {}
            }
            start = end + ending;
        }
        event
    }

    /// Its data: the values of its lines, with LF between them.
    pub(super) fn data(&self) -> Cow<'a, [u8]> {
        let value = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
        match self.values.as_slice() {
            [] => Cow::Borrowed(&[]),
            [only] => Cow::Borrowed(value(only)),
            several => Cow::Owned(several.iter().map(value).collect::<Vec<_>>().join(&b'\n')),
        }
    }

    /// Whether some readers would see other lines in it than the standard does.
    pub(super) fn is_ambiguous(&self) -> bool {
        OTHER_ENDS.iter().any(|end| self.bytes.windows(end.len()).any(|window| window == *end))
    }

    /// The same event with other data, in the place of the first line of the old one.
    pub(super) fn with_data(&self, data: &str) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.bytes.len());
        let mut at = 0;
        for (index, (line, value)) in self.lines.iter().zip(&self.values).enumerate() {
            text.extend_from_slice(self.bytes.get(at..line.start).unwrap_or_default());
            if index == 0 {
                let name = self.bytes.get(line.start..value.start).unwrap_or_default();
                let ending = self.bytes.get(value.end..line.end).unwrap_or_default();
                for part in data.split('\n') {
                    text.extend_from_slice(name);
                    text.extend_from_slice(part.as_bytes());
                    text.extend_from_slice(ending);
                }
            }
            at = line.end;
        }
        text.extend_from_slice(self.bytes.get(at..).unwrap_or_default());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, data: &str) -> String {
        String::from_utf8(Event::parse(text.as_bytes()).with_data(data)).expect("text")
    }

    #[test]
    fn events_end_where_the_standard_ends_them() {
        for (text, expected) in [
            ("data: a\n\ndata: b\n\n", vec!["data: a\n\n", "data: b\n\n"]),
            ("data: a\r\n\r\n: c\r\n\r\n", vec!["data: a\r\n\r", "\n: c\r\n\r", "\n"]),
            ("\n\ndata: a\r\rdata: b", vec!["\n\ndata: a\r\r", "data: b"]),
            ("", vec![]),
        ] {
            let found: Vec<&str> = split(text.as_bytes()).into_iter().map(|range| &text[range]).collect();
            assert_eq!(found, expected);
            assert_eq!(found.concat(), text);
        }
    }

    #[test]
    fn data_is_read_as_clients_read_it() {
        for (text, expected, named) in [
            ("data: {}\n\n", "{}", false),
            ("\u{feff}data:{}\n\n", "{}", false),
            ("id: 7\r\nevent: message\r\ndata:  x\r\n\r\n", " x", false),
            ("data: a\ndata\ndata: b\n\n", "a\n\nb", false),
            ("event: endpoint\ndata: /x\n\n", "/x", true),
            (": data: x\n\n", "", false),
            ("Data: x\n data: y\n\n", "", false),
            ("\ndata: x", "x", false),
        ] {
            let event = Event::parse(text.as_bytes());
            assert_eq!((event.data().as_ref(), event.named), (expected.as_bytes(), named), "{text:?}");
        }
        assert!(Event::parse("data: \"\u{2028}data: x\"\n\n".as_bytes()).is_ambiguous());
        assert!(!Event::parse("data: \"\u{2028}the data\"\n\n".as_bytes()).is_ambiguous());
    }

    #[test]
    fn only_the_data_is_replaced() {
        assert_eq!(with("id: 7\r\ndata:x\r\n: c\r\n\r\n", "{}"), "id: 7\r\ndata:{}\r\n: c\r\n\r\n");
        assert_eq!(with("data: a\ndata: b\nid: 7\n\n", "{\n}"), "data: {\ndata: }\nid: 7\n\n");
        assert_eq!(with("\u{feff}data: a\n\n", "b"), "\u{feff}data: b\n\n");
        assert_eq!(with("data: a", "b"), "data: b");
    }
}
