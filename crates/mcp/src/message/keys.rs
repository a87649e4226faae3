//! The keys of objects: which are known, which came before, and what can be taken for `jsonrpc`.

use std::borrow::Cow;
use std::collections::HashSet;

use super::{Fault, Field, Place, VERSION_KEY};

/// Objects with more keys than this get a hash set.
const FEW: usize = 12;
/// Most members of one object.
pub const MAX_MEMBERS: usize = 65_536;

/// The members that a message is judged by, where each has its place.
const KNOWN: [(Place, &str, Field); 13] = [
    (Place::Message, "jsonrpc", Field::Jsonrpc),
    (Place::Message, "id", Field::Id),
    (Place::Message, "method", Field::Method),
    (Place::Message, "params", Field::Params),
    (Place::Message, "result", Field::Result),
    (Place::Message, "error", Field::Error),
    (Place::Params, "name", Field::Name),
    (Place::Params, "uri", Field::Uri),
    (Place::Params, "taskId", Field::TaskId),
    (Place::Params, "arguments", Field::Arguments),
    (Place::Params, "_meta", Field::Meta),
    (Place::Meta, "progressToken", Field::ProgressToken),
    (Place::Meta, VERSION_KEY, Field::Version),
];

/// The known member that a key is, or would be to a reader that ignores case.
pub(super) fn known(place: Place, key: &str) -> Option<(&'static str, Field)> {
    if place == Place::Elsewhere {
        return None;
    }
    let here = || KNOWN.iter().filter(|(at, ..)| *at == place);
    let exact = here().find(|(_, name, _)| *name == key);
    let found = exact.or_else(|| here().find(|(_, name, _)| same_but_for_case(name, key)))?;
    Some((found.1, found.2))
}

/// Whether a reader that ignores case takes `key` for `name`, which is ASCII.
pub(crate) fn same_but_for_case(name: &str, key: &str) -> bool {
    // No letter that is folded to ASCII has more than three bytes.
    (name.len()..=3 * name.len()).contains(&key.len())
        && key.chars().map(folded).eq(name.chars().map(|letter| letter.to_ascii_lowercase()))
}

/// A letter without its case. Beyond ASCII four letters turn into ASCII ones in one library or another: long s, the
/// Kelvin sign, and the two i of Turkish.
fn folded(letter: char) -> char {
    match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        '\u{130}' | '\u{131}' => 'i',
        other => other.to_ascii_lowercase(),
    }
}

/// The keys of all objects that are open, innermost last.
#[derive(Default)]
pub(crate) struct Keys<'a> {
    /// Those of objects with few, one object after the other.
    few: Vec<Cow<'a, str>>,
    open: Vec<Open<'a>>,
}

#[derive(Default)]
struct Open<'a> {
    /// Where its keys begin.
    from: usize,
    many: Option<HashSet<Cow<'a, str>>>,
}

impl<'a> Keys<'a> {
    pub(crate) fn open(&mut self) {
        self.open.push(Open { from: self.few.len(), many: None });
    }

    pub(crate) fn close(&mut self) {
        if let Some(open) = self.open.pop() {
            self.few.truncate(open.from);
        }
    }

    /// Adds a key to the innermost object.
    pub(crate) fn add(&mut self, key: Cow<'a, str>) -> Result<(), Fault> {
        let Some(open) = self.open.last_mut() else { return Ok(()) };
        if let Some(many) = &mut open.many {
            return match many.len() < MAX_MEMBERS {
                false => Err(Fault::LongObject),
                true if many.insert(key) => Ok(()),
                true => Err(Fault::DuplicateKey),
            };
        }
        let mine = self.few.get(open.from..).unwrap_or_default();
        if mine.contains(&key) {
            return Err(Fault::DuplicateKey);
        }
        self.few.push(key);
        if self.few.len() - open.from > FEW {
            open.many = Some(self.few.drain(open.from..).collect());
        }
        Ok(())
    }
}

/// Whether a body may have a member `jsonrpc` for some reader: the word in any case, with its letters written as
/// themselves or as `\uXXXX`, in UTF-8, UTF-16 or UTF-32.
pub(super) fn may_speak_jsonrpc(body: &[u8]) -> bool {
    const WORD: [char; 7] = ['j', 's', 'o', 'n', 'r', 'p', 'c'];
    let mut rest = body;
    let mut found = 0;
    while let Some((letter, after)) = letter(rest) {
        rest = after;
        // `j` is only the first letter, so that no beginning of the word lies within it.
        found = match folded(letter) {
            letter if WORD.get(found) == Some(&letter) => found + 1,
            'j' => 1,
            _ => 0,
        };
        if found == WORD.len() {
            return true;
        }
    }
    false
}

/// The next letter, and what follows it. Zeros are what UTF-16 and UTF-32 put around ASCII; a letter beyond ASCII is
/// only told where it counts.
fn letter(bytes: &[u8]) -> Option<(char, &[u8])> {
    let bytes = bytes.get(bytes.iter().position(|byte| *byte != 0)?..)?;
    let (first, rest) = bytes.split_first()?;
    match (first, rest) {
        (0xc5, [0xbf, rest @ ..]) => Some(('s', rest)),
        (b'\\', _) => Some(escape(rest).unwrap_or(('\\', rest))),
        _ => Some((char::from(*first), rest)),
    }
}

/// What `uXXXX` behind a backslash stands for.
fn escape(bytes: &[u8]) -> Option<(char, &[u8])> {
    let mut value = 0;
    let (mut digits, mut rest) = (0, bytes);
    while digits <= 4 {
        let (byte, after) = rest.split_first()?;
        rest = after;
        match (digits, byte) {
            (_, 0) => continue,
            (0, b'u') => {}
            (0, _) => return None,
            (_, byte) => value = value * 16 + char::from(*byte).to_digit(16)?,
        }
        digits += 1;
    }
    Some((char::from_u32(value).unwrap_or('\u{fffd}'), rest))
}
