//! Reading a stream of events (HTML standard, section 9.2.6) in bounded memory.

use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{Answer, Failure, MAX_ANSWER};

/// One event.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) data: String,
}

/// A stream of events; the last id that it named, and how long it wants clients to wait before they come again.
pub(super) struct Events {
    body: Answer,
    decoder: Decoder,
    /// Set when the body has ended.
    over: bool,
}

impl Events {
    pub(super) fn new(body: Answer) -> Self {
        Self { body, decoder: Decoder::default(), over: false }
    }

    /// The next event with data; `None` at the end of the stream.
    ///
    /// # Errors
    /// The connection broke, or an event is larger than [`MAX_ANSWER`].
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if let Some(event) = self.decoder.event()? {
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
            match self.body.next().await {
                Some(Ok(piece)) => self.decoder.push(&piece),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a stream of events broke");
                    return Err(Failure::Broken);
                }
                None => self.over = true,
            }
        }
    }

    pub(super) fn last_id(&self) -> Option<&str> {
        self.decoder.last_id.as_deref()
    }

    /// In milliseconds.
    pub(super) fn retry(&self) -> Option<u64> {
        self.decoder.retry
    }
}

#[derive(Default)]
struct Decoder {
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no end of a line.
    searched: usize,
    event: Event,
    has_data: bool,
    last_id: Option<String>,
    retry: Option<u64>,
}

impl Decoder {
    fn push(&mut self, piece: &Bytes) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole event in the buffer.
    fn event(&mut self) -> Result<Option<Event>, Failure> {
        let mut read = 0;
        let mut found = None;
        while found.is_none() {
            let rest = self.buffer.get(read..).unwrap_or_default();
            let from = self.searched.saturating_sub(read).min(rest.len());
            let unsearched = rest.get(from..).unwrap_or_default();
            let Some(end) = unsearched.iter().position(|byte| *byte == b'\n').map(|at| from + at) else {
                self.searched = self.buffer.len();
                break;
            };
            let line = rest.get(..end).unwrap_or_default();
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
            read += end + 1;
            self.searched = read;
            found = self.line(&line);
            if self.event.data.len() > MAX_ANSWER {
                return Err(Failure::TooLarge { most: MAX_ANSWER });
            }
        }
        self.buffer.drain(..read);
        self.searched = self.searched.saturating_sub(read);
        if self.buffer.len() > MAX_ANSWER {
            return Err(Failure::TooLarge { most: MAX_ANSWER });
        }
        Ok(found)
    }

    /// Takes a line; an event where it ends one that has data.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field.trim_start_matches('\u{feff}') {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            "retry" => self.retry = value.parse().ok().or(self.retry),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&str]) -> (Vec<Event>, Option<String>, Option<u64>) {
        let mut decoder = Decoder::default();
        let mut events = Vec::new();
        for piece in pieces {
            decoder.push(&Bytes::copy_from_slice(piece.as_bytes()));
            while let Some(event) = decoder.event().expect("small") {
                events.push(event);
            }
        }
        (events, decoder.last_id, decoder.retry)
    }

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text = "\u{feff}: hello\r\nretry: 250\r\nid: 1\r\ndata:\r\n\r\nevent: endpoint\ndata: /a\ndata: b\nid: 2\n\ndata: {}\n\n";
        let expected = vec![
            Event::default(),
            Event { name: "endpoint".to_owned(), data: "/a\nb".to_owned() },
            Event { name: String::new(), data: "{}".to_owned() },
        ];
        let whole = read(&[text]);
        assert_eq!(whole, (expected, Some("2".to_owned()), Some(250)));
        for at in (0..text.len()).filter(|at| text.is_char_boundary(*at)) {
            let (head, tail) = text.split_at(at);
            assert_eq!(read(&[head, tail]), whole, "cut at {at}");
        }
        let single: Vec<String> = text.chars().map(|c| c.to_string()).collect();
        assert_eq!(read(&single.iter().map(String::as_str).collect::<Vec<_>>()), whole);
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let mut decoder = Decoder::default();
        let piece = Bytes::from(vec![b'x'; 1024 * 1024]);
        let given_up = (0..=MAX_ANSWER / piece.len()).any(|_| {
            decoder.push(&piece);
            decoder.event().is_err()
        });
        assert!(given_up);
    }
}
