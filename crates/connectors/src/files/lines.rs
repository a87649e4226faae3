//! A file, line by line, in bounded memory.

use std::io::{self, BufRead as _, BufReader, Read};

use super::rules::private_key_begins;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Bytes at the beginning in which a NUL means that the file is not text.
const HEAD: usize = 8 * 1024;

/// What the beginning of a file tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// It may be text.
    Text,
    /// It is not text.
    Binary,
    /// It is a private key.
    PrivateKey,
}

/// How a line came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Whole, with its end if it has one.
    Whole,
    /// Longer than the bound: its beginning; the rest is passed over.
    Cut,
}

/// Reads lines of at most `line_bytes`, and no more than `file_bytes` in all.
pub(crate) struct Lines<R> {
    reader: BufReader<io::Take<R>>,
    line_bytes: usize,
    file_bytes: u64,
    read: u64,
}

impl<R: Read> Lines<R> {
    /// Lines of a file from its start.
    pub(crate) fn new(file: R, line_bytes: usize, file_bytes: u64) -> Self {
        Self { reader: BufReader::with_capacity(CHUNK, file.take(file_bytes)), line_bytes, file_bytes, read: 0 }
    }

    /// Looks at the beginning; to be called before the first line is read.
    pub(crate) fn head(&mut self) -> io::Result<Head> {
        let bytes = self.reader.fill_buf()?;
        if private_key_begins(bytes) {
            return Ok(Head::PrivateKey);
        }
        let head = bytes.get(..HEAD).unwrap_or(bytes);
        Ok(if head.contains(&0) { Head::Binary } else { Head::Text })
    }

    /// Reads the next line into `line`, with its line feed; `None` at the end of the file or of the bound.
    pub(crate) fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<Line>> {
        line.clear();
        let (mut any, mut kind) = (false, Line::Whole);
        loop {
            let available = self.reader.fill_buf()?;
            if available.is_empty() {
                return Ok(any.then_some(kind));
            }
            any = true;
            let end = available.iter().position(|b| *b == b'\n').map(|at| at + 1);
            let used = end.unwrap_or(available.len());
            let room = self.line_bytes.saturating_sub(line.len()).min(used);
            line.extend_from_slice(available.get(..room).unwrap_or(available));
            if room < used {
                kind = Line::Cut;
            }
            self.reader.consume(used);
            self.read += u64::try_from(used).unwrap_or(u64::MAX);
            if end.is_some() {
                return Ok(Some(kind));
            }
        }
    }

    /// Bytes read so far.
    pub(crate) fn read(&self) -> u64 {
        self.read
    }

    /// Whether the bound of the file was met. The last line may then be a part of one.
    pub(crate) fn at_bound(&self) -> bool {
        self.read >= self.file_bytes
    }

    /// Whether there is nothing more to read.
    pub(crate) fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.reader.fill_buf()?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8], line_bytes: usize, file_bytes: u64) -> Vec<(Vec<u8>, Line)> {
        let mut lines = Lines::new(text, line_bytes, file_bytes);
        let (mut out, mut line) = (Vec::new(), Vec::new());
        while let Some(kind) = lines.next(&mut line).expect("memory reads") {
            out.push((line.clone(), kind));
        }
        out
    }

    #[test]
    fn lines_keep_every_byte() {
        for text in [&b""[..], b"a", b"a\n", b"\n\n", b"a\r\nb", b"a\n\nb\n"] {
            let lines = all(text, 100, 100);
            assert_eq!(lines.iter().flat_map(|(line, _)| line.clone()).collect::<Vec<_>>(), text);
            assert!(lines.iter().all(|(_, kind)| *kind == Line::Whole));
        }
        assert_eq!(all(b"a\n\nb", 100, 100).len(), 3);
    }

    #[test]
    fn long_lines_are_cut_and_passed_over() {
        let text = [vec![b'x'; 200_000], b"\nshort\n".to_vec()].concat();
        let lines = all(&text, 10, u64::MAX);
        assert_eq!(lines, vec![(vec![b'x'; 10], Line::Cut), (b"short\n".to_vec(), Line::Whole)]);
    }

    #[test]
    fn reading_ends_at_the_bound() {
        let mut lines = Lines::new(&b"one\ntwo\n"[..], 100, 5);
        let mut line = Vec::new();
        while lines.next(&mut line).expect("memory reads").is_some() {}
        assert_eq!(lines.read(), 5);
        assert!(lines.at_bound());
    }

    #[test]
    fn heads_tell_binary_and_keys() {
        let head = |bytes: &[u8]| Lines::new(bytes, 10, 1 << 20).head().expect("memory reads");
        assert_eq!(head(b"text"), Head::Text);
        assert_eq!(head(b"\x7fELF\0"), Head::Binary);
        assert_eq!(head(b"x\n-----BEGIN PRIVATE KEY-----\nMII"), Head::PrivateKey);
    }
}
