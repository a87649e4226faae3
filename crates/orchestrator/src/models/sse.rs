//! Reading a stream of server-sent events (HTML Living Standard, section 9.2) in bounded memory. Pure.

use memchr::memchr2;

/// Largest event, in bytes: a block of an answer that is sent whole may be large.
pub(super) const MAX_EVENT: usize = 8 * 1024 * 1024;

/// What is no stream of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoEvents {
    #[error("an event has more than {MAX_EVENT} bytes")]
    Large,
    #[error("an event is not UTF-8")]
    NotText,
}

/// Takes bytes as they come and gives the data of events when they are whole. Names, ids and comments are passed over: the
/// data of this protocol says its type itself.
#[derive(Debug, Default)]
pub(super) struct Events {
    line: Vec<u8>,
    data: Option<String>,
    after_cr: bool,
    begun: bool,
}

impl Events {
    /// Takes more of the stream; the data of each event that is whole now.
    ///
    /// # Errors
    /// See [`NoEvents`]; nothing more is to be taken then.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, NoEvents> {
        let mut whole = Vec::new();
        while let Some(at) = memchr2(b'\n', b'\r', bytes) {
            let (line, behind) = bytes.split_at(at);
            let Some((end, rest)) = behind.split_first() else { break };
            bytes = rest;
            let second_half = self.after_cr && *end == b'\n' && line.is_empty() && self.line.is_empty();
            self.after_cr = *end == b'\r';
            if second_half {
                continue;
            }
            self.hold(line)?;
            let line = std::mem::take(&mut self.line);
            whole.extend(self.end_of_line(&line)?);
        }
        if !bytes.is_empty() {
            self.after_cr = false;
            self.hold(bytes)?;
        }
        Ok(whole)
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), NoEvents> {
        let held = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if held + bytes.len() > MAX_EVENT {
            return Err(NoEvents::Large);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_line(&mut self, line: &[u8]) -> Result<Option<String>, NoEvents> {
        let text = std::str::from_utf8(line).map_err(|_| NoEvents::NotText)?;
        let text = if std::mem::replace(&mut self.begun, true) { text } else { text.trim_start_matches('\u{feff}') };
        if text.is_empty() {
            return Ok(self.data.take());
        }
        let (name, value) = text.split_once(':').unwrap_or((text, ""));
        if name == "data" {
            let value = value.strip_prefix(' ').unwrap_or(value);
            match &mut self.data {
                None => self.data = Some(value.to_owned()),
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        pieces.iter().flat_map(|piece| events.take(piece).expect("events")).collect()
    }

    #[test]
    fn events_are_whole_at_their_empty_line() {
        let stream = "\u{feff}event: a\ndata: 1\n\n: comment\ndata:2\r\ndata:  3\r\n\r\nid: 7\n\ndata\n\ndata: cut";
        assert_eq!(read(&[stream.as_bytes()]), ["1", "2\n 3", ""]);
        assert_eq!(read(&[b"data: 1\r\rdata: 2\r", b"\n", b"\r\n"]), ["1", "2"]);
    }

    #[test]
    fn what_is_too_large_or_no_text_ends_it() {
        let mut events = Events::default();
        let half = vec![b'x'; MAX_EVENT / 2];
        assert_eq!(events.take(b"data: "), Ok(vec![]));
        assert_eq!(events.take(&half), Ok(vec![]));
        assert_eq!(events.take(&half), Err(NoEvents::Large));
        let mut events = Events::default();
        for _ in 0..7 {
            let line = [b"data: ", &vec![b'x'; MAX_EVENT / 8][..], b"\n"].concat();
            assert_eq!(events.take(&line), Ok(vec![]));
        }
        assert_eq!(events.take(&half), Err(NoEvents::Large));
        assert_eq!(Events::default().take(b"data: \xff\n"), Err(NoEvents::NotText));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_stream_is_cut(text in "([a-z: \n\r]|data: |\n\n){0,60}", cuts in proptest::collection::vec(0_usize..60, 0..8)) {
            let whole = read(&[text.as_bytes()]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(read(&pieces), whole);
        }
    }
}
