//! Where the events of a `text/event-stream` end. Pure; follows bytes as they pass and keeps none.
//!
//! Spec: the HTML standard, section 9.2.6: lines end with LF, CR, or CR LF; a blank line ends an event.

/// The media type.
const EVENT_STREAM: &str = "text/event-stream";

/// Whether a `Content-Type` names an event stream.
pub(crate) fn is_event_stream(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(EVENT_STREAM)
}

/// The place that a stream has come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    at: At,
    /// The last byte was a CR, whose LF may still come.
    open_cr: bool,
    /// That CR directly followed one that ended a line by itself, so that this stream ends lines with CR alone.
    cr_alone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Within a line.
    Line,
    /// Behind a line of an event.
    Event,
    /// Behind a blank line, or at the very start.
    Between,
}

impl Place {
    /// The start of a stream, which is between events.
    pub(crate) fn start() -> Self {
        Self { at: At::Between, open_cr: false, cr_alone: false }
    }

    /// Follows the bytes of one chunk. Only what ends lines at its end is looked at closely.
    pub(crate) fn pass(&mut self, chunk: &[u8]) {
        let text = chunk.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
        if text.is_some() {
            *self = Self { at: At::Line, open_cr: false, cr_alone: false };
        }
        for byte in chunk.iter().skip(text.map_or(0, |at| at + 1)) {
            self.step(*byte);
        }
    }

    /// Follows one byte; `true` when it ends a blank line, be it that the LF of its CR is still to come.
    pub(crate) fn step(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' if self.open_cr => {
                (self.open_cr, self.cr_alone) = (false, false);
                false
            }
            b'\r' | b'\n' => {
                self.at = if self.at == At::Line { At::Event } else { At::Between };
                (self.cr_alone, self.open_cr) = (self.open_cr, byte == b'\r');
                self.at == At::Between
            }
            _ => {
                *self = Self { at: At::Line, open_cr: false, cr_alone: false };
                false
            }
        }
    }

    /// Whether this is behind a blank line, or at the very start, be it that the LF of a CR is still to come.
    pub(crate) fn is_blank(self) -> bool {
        self.at == At::Between
    }

    /// Whether a comment may stand here: between events, and not between a CR and its LF.
    pub(crate) fn is_between_events(self) -> bool {
        self.at == At::Between && (!self.open_cr || self.cr_alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(text: &str) -> bool {
        let mut place = Place::start();
        place.pass(text.as_bytes());
        place.is_between_events()
    }

    #[test]
    fn events_end_with_a_blank_line_however_lines_end() {
        for text in
            ["", "\n", "data: x\n\n", "data: x\r\n\r\n", "data: x\r\r", "a\n\n\n", "a\r\n\n", "data: x\r\ry\r\r"]
        {
            assert!(between(text), "{text:?}");
        }
        // A CR may be the first half of a CR LF; only behind another lone CR it is not.
        for text in
            ["d", "data: x", "data: x\n", "data: x\r\n", "data: x\r", "data: x\r\n\r", "a\n\nb", "a\n\nb\n", "\r"]
        {
            assert!(!between(text), "{text:?}");
        }
    }

    #[test]
    fn the_media_type_is_told_with_and_without_parameters() {
        for good in ["text/event-stream", "Text/Event-Stream; charset=utf-8", " text/event-stream ;x"] {
            assert!(is_event_stream(good), "{good}");
        }
        for bad in ["", "application/json", "text/event-streams", "text/event"] {
            assert!(!is_event_stream(bad), "{bad}");
        }
    }
}
