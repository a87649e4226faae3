//! JSON (RFC 8259) token by token, without recursion: one pass, no copy, a stack of one bit per level.

use std::ops::Range;

use super::Fault;

/// Most levels of objects and arrays. What servers read with is no more patient: serde_json stops at 128, too.
pub const MAX_DEPTH: u32 = 128;

/// What a value is, where that is told by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    /// `true` if it holds a backslash.
    String(bool),
    Number,
    Null,
    Bool,
}

/// A piece of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// An object or array begins.
    Open(Kind),
    /// The innermost object or array ends.
    Close,
    /// The name of a member, with its quotes; `true` if it holds a backslash.
    Key(bool),
    /// A value that is neither object nor array.
    Scalar(Kind),
}

/// What may come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Value,
    FirstElement,
    FirstKey,
    Key,
    CommaOrEnd,
    Nothing,
}

/// How many bytes at the beginning are neither a quote, nor a backslash, nor a control character. Eight at a time: most
/// of a large body is strings.
fn plain(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // Whether a byte of the word is less than `n`, which is at most 128; a byte that equals `b` is less than 1 in `word ^ b`.
    let any_less = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word & HIGH != 0;
    let special = |eight: &[u8]| {
        let word = u64::from_ne_bytes(eight.try_into().unwrap_or_default());
        any_less(word, 0x20)
            || any_less(word ^ (ONES * u64::from(b'"')), 1)
            || any_less(word ^ (ONES * u64::from(b'\\')), 1)
    };
    let eights = 8 * bytes.chunks_exact(8).take_while(|eight| !special(eight)).count();
    let rest = bytes.get(eights..).unwrap_or_default();
    eights + rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count()
}

/// A document that is being read.
pub(crate) struct Tokens<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Where the last token began, and where it ended.
    start: usize,
    end: usize,
    depth: u32,
    /// One bit per open level, the innermost lowest: set for an object.
    objects: u128,
    expected: Expected,
}

impl<'a> Tokens<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { bytes: text.as_bytes(), at: 0, start: 0, end: 0, depth: 0, objects: 0, expected: Expected::Value }
    }

    /// The bytes of the last token; that of a key includes its quotes.
    pub(crate) fn span(&self) -> Range<usize> {
        self.start..self.end
    }

    /// How far it was read, in bytes: the place of the fault, if there was one.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next piece; `None` after the end of the document.
    pub(crate) fn next(&mut self) -> Result<Option<Token>, Fault> {
        loop {
            self.skip_blanks();
            self.start = self.at;
            let Some(byte) = self.peek() else {
                return match self.expected {
                    Expected::Nothing => Ok(None),
                    _ if self.depth == 0 => Err(Fault::Empty),
                    _ => Err(Fault::Truncated),
                };
            };
            return match (self.expected, byte) {
                (Expected::Nothing, _) => Err(Fault::Trailing),
                (Expected::FirstElement, b']') | (Expected::FirstKey, b'}') => self.close(),
                (Expected::Value | Expected::FirstElement, _) => self.value(byte),
                (Expected::FirstKey | Expected::Key, b'"') => self.key(),
                (Expected::FirstKey | Expected::Key, _) => Err(Fault::Syntax("a key in quotes")),
                (Expected::CommaOrEnd, b',') => {
                    self.at += 1;
                    self.expected = if self.in_object() { Expected::Key } else { Expected::Value };
                    continue;
                }
                (Expected::CommaOrEnd, b'}') if self.in_object() => self.close(),
                (Expected::CommaOrEnd, b']') if !self.in_object() => self.close(),
                (Expected::CommaOrEnd, _) => Err(Fault::Syntax("a comma or the end of an object or array")),
            }
            .map(Some);
        }
    }

    fn value(&mut self, byte: u8) -> Result<Token, Fault> {
        let kind = match byte {
            b'{' => return self.open(Kind::Object),
            b'[' => return self.open(Kind::Array),
            b'"' => Kind::String(self.string()?),
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.word(b"true", Kind::Bool)?,
            b'f' => self.word(b"false", Kind::Bool)?,
            b'n' => self.word(b"null", Kind::Null)?,
            _ => return Err(Fault::Syntax("a value")),
        };
        self.ended();
        Ok(Token::Scalar(kind))
    }

    fn open(&mut self, kind: Kind) -> Result<Token, Fault> {
        if self.depth >= MAX_DEPTH {
            return Err(Fault::TooDeep);
        }
        self.at += 1;
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(kind == Kind::Object);
        self.end = self.at;
        self.expected = if kind == Kind::Object { Expected::FirstKey } else { Expected::FirstElement };
        Ok(Token::Open(kind))
    }

    fn close(&mut self) -> Result<Token, Fault> {
        self.at += 1;
        self.depth -= 1;
        self.objects >>= 1;
        self.ended();
        Ok(Token::Close)
    }

    fn key(&mut self) -> Result<Token, Fault> {
        let escaped = self.string()?;
        self.end = self.at;
        self.skip_blanks();
        match self.peek() {
            Some(b':') => self.at += 1,
            Some(_) => return Err(Fault::Syntax("a colon")),
            None => return Err(Fault::Truncated),
        }
        self.expected = Expected::Value;
        Ok(Token::Key(escaped))
    }

    /// Goes behind the closing quote; tells whether there is a backslash.
    fn string(&mut self) -> Result<bool, Fault> {
        self.at += 1;
        let mut escaped = false;
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            self.at += plain(rest);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                    self.escape()?;
                }
                Some(_) => return Err(Fault::Syntax("no control character in a string")),
                None => return Err(Fault::Truncated),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let digits = match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 0,
            Some(b'u') => 4,
            Some(_) => return Err(Fault::Syntax("a known escape in a string")),
            None => return Err(Fault::Truncated),
        };
        self.at += 1;
        for _ in 0..digits {
            match self.peek() {
                Some(byte) if byte.is_ascii_hexdigit() => self.at += 1,
                Some(_) => return Err(Fault::Syntax("four hexadecimal digits")),
                None => return Err(Fault::Truncated),
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Kind, Fault> {
        self.skip_if(b"-");
        if !self.skip_if(b"0") {
            self.digits()?;
        }
        if self.skip_if(b".") {
            self.digits()?;
        }
        if self.skip_if(b"eE") {
            self.skip_if(b"+-");
            self.digits()?;
        }
        // Inside of something there is more to come: of a document that was cut off, the last number may be cut, too.
        if self.depth > 0 && self.peek().is_none() {
            return Err(Fault::Truncated);
        }
        Ok(Kind::Number)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 if rest.is_empty() => Err(Fault::Truncated),
            0 => Err(Fault::Syntax("a digit")),
            count => {
                self.at += count;
                Ok(())
            }
        }
    }

    fn word(&mut self, word: &[u8], kind: Kind) -> Result<Kind, Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if rest.starts_with(word) {
            self.at += word.len();
            Ok(kind)
        } else if word.starts_with(rest) {
            Err(Fault::Truncated)
        } else {
            Err(Fault::Syntax("a value"))
        }
    }

    fn ended(&mut self) {
        self.end = self.at;
        self.expected = if self.depth == 0 { Expected::Nothing } else { Expected::CommaOrEnd };
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn skip_if(&mut self, any: &[u8]) -> bool {
        let found = self.peek().is_some_and(|byte| any.contains(&byte));
        self.at += usize::from(found);
        found
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}
