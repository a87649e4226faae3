//! HTTP/2 by hand (RFC 9113, and RFC 7541 without Huffman or tables): what no library would let a test send.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::SOON;
use crate::support::Wire;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as a header block.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            string(&mut block, text);
        }
    }
    block
}

fn string(block: &mut Vec<u8>, text: &str) {
    // One character, one byte.
    let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).expect("one byte")).collect();
    let mut length = bytes.len();
    if length < 127 {
        block.push(u8::try_from(length).expect("short"));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).expect("seven bits") | 128);
            length /= 128;
        }
        block.push(u8::try_from(length).expect("seven bits"));
    }
    block.extend_from_slice(&bytes);
}

/// A HEADERS frame with all of its block.
pub(crate) fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, &block(fields))
}

/// A frame that was read.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        self.payload.get(at..at + 4).map_or(0, |code| u32::from_be_bytes(code.try_into().expect("four")))
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This status, and this body.
    Answered(u16, String),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection ended with this code.
    GoneAway(u32),
    /// The connection ended.
    Closed,
    /// Nothing of that in time.
    Silent,
}

/// A client's end.
pub(crate) struct Http2<W> {
    pub(crate) wire: W,
    bytes: Vec<u8>,
}

impl<W: Wire> Http2<W> {
    /// Begins the connection with these settings, by identifier and value.
    pub(crate) async fn begin(mut wire: W, settings: &[(u16, u32)]) -> Self {
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        wire.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &settings), &frame(SETTINGS, ACK, 0, &[])].concat())
            .await
            .expect("preface");
        Self { wire, bytes: Vec::new() }
    }

    /// Sends bytes; false when the connection is gone.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).await.is_ok() && self.wire.flush().await.is_ok()
    }

    /// The next frame; `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((head, rest)) = self.bytes.split_first_chunk::<9>() {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
                    let frame = Frame { kind: head[3], flags: head[4], stream, payload: rest[..length].to_vec() };
                    self.bytes.drain(..9 + length);
                    return Some(frame);
                }
            }
            let Ok(1..) = self.wire.read_buf(&mut self.bytes).await else { return None };
        }
    }

    /// What becomes of the request on this stream, the first one of the connection that is answered.
    pub(crate) async fn outcome(&mut self, stream: u32) -> Outcome {
        self.outcome_within(stream, SOON).await
    }

    pub(crate) async fn outcome_within(&mut self, stream: u32, wait: Duration) -> Outcome {
        let (mut answered, mut body) = (0, Vec::new());
        let reading = async {
            while let Some(frame) = self.next().await {
                match frame.kind {
                    GOAWAY if frame.code() != 0 => return Outcome::GoneAway(frame.code()),
                    RST_STREAM if frame.stream == stream => return Outcome::Reset(frame.code()),
                    HEADERS if frame.stream == stream && answered == 0 => answered = status(&frame.payload),
                    DATA if frame.stream == stream => body.extend_from_slice(&frame.payload),
                    _ => continue,
                }
                if frame.flags & END_STREAM != 0 && matches!(frame.kind, HEADERS | DATA) {
                    return Outcome::Answered(answered, String::from_utf8_lossy(&body).into_owned());
                }
            }
            Outcome::Closed
        };
        tokio::time::timeout(wait, reading).await.unwrap_or(Outcome::Silent)
    }
}

/// The status in the first header block of a connection.
fn status(block: &[u8]) -> u16 {
    let mut rest = block;
    // Changes of the table's size come first.
    while let [0x20..=0x3f, more @ ..] = rest {
        rest = more;
    }
    match rest {
        [indexed @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(indexed - 0x88)],
        [0x48 | 0x08 | 0x18, length, text @ ..] if length & 0x80 != 0 => huffman_digits(text),
        [0x48 | 0x08 | 0x18, 3, text @ ..] => String::from_utf8_lossy(&text[..3]).parse().unwrap_or(0),
        _ => 0,
    }
}

/// Three digits (RFC 7541, appendix B): 0 to 2 have five bits, the others six.
fn huffman_digits(text: &[u8]) -> u16 {
    let bits: String = text.iter().take(3).map(|byte| format!("{byte:08b}")).collect();
    let (mut rest, mut value) = (&bits[..], 0);
    for _ in 0..3 {
        let (digit, length) = match u16::from_str_radix(&rest[..5], 2) {
            Ok(digit @ 0..=2) => (digit, 5),
            _ => (u16::from_str_radix(&rest[..6], 2).expect("bits").wrapping_sub(22), 6),
        };
        value = value * 10 + digit;
        rest = &rest[length..];
    }
    value
}

impl<W: Wire> Http2<W> {
    /// The next window that is opened for the stream (those of the connection come with them), or what became of its
    /// request.
    pub(crate) async fn outcome_or_window(&mut self, stream: u32) -> Result<u32, Outcome> {
        let mut answered = 0;
        while let Some(frame) = self.next().await {
            match frame.kind {
                WINDOW_UPDATE if frame.stream == stream => {
                    return Ok(frame.payload.try_into().map_or(0, u32::from_be_bytes));
                }
                GOAWAY => return Err(Outcome::GoneAway(frame.code())),
                RST_STREAM if frame.stream == stream => return Err(Outcome::Reset(frame.code())),
                HEADERS if frame.stream == stream => answered = status(&frame.payload),
                DATA if frame.stream == stream => {
                    return Err(Outcome::Answered(answered, String::from_utf8_lossy(&frame.payload).into_owned()));
                }
                _ => {}
            }
        }
        Err(Outcome::Closed)
    }
}
