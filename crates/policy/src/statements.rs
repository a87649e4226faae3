//! Cuts a text of Cedar policies into single ones, so that each has its line.

/// One policy in a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Statement<'a> {
    /// From its first byte that is neither blank nor comment to the end of its `;`.
    pub(crate) text: &'a str,
    /// The line of its first byte, from 1.
    pub(crate) line: usize,
}

/// The policies of a text, in order. A semicolon ends one, outside strings and comments; what follows the last one is a
/// policy that is not complete, for the parser to say so.
pub(crate) fn split(text: &str) -> Vec<Statement<'_>> {
    let mut out = Vec::new();
    let mut start: Option<(usize, usize)> = None;
    let mut line = 1;
    let mut state = State::Code;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (state, c) {
            (State::Comment, '\n') => state = State::Code,
            (State::Comment, _) => {}
            (State::Text, '\\') => {
                if chars.next_if(|(_, c)| *c != '\n').is_none() {
                    continue;
                }
            }
            (State::Text, '"') => state = State::Code,
            (State::Text, _) => {}
            (State::Code, '/') if chars.peek().is_some_and(|(_, next)| *next == '/') => state = State::Comment,
            (State::Code, ';') => {
                let (from, first) = start.take().unwrap_or((at, line));
                out.push(Statement { text: text.get(from..=at).unwrap_or_default(), line: first });
            }
            (State::Code, c) => {
                if !c.is_whitespace() && start.is_none() {
                    start = Some((at, line));
                }
                if c == '"' {
                    state = State::Text;
                }
            }
        }
        if c == '\n' {
            line += 1;
        }
    }
    if let Some((from, first)) = start {
        out.push(Statement { text: text.get(from..).unwrap_or_default(), line: first });
    }
    out
}

#[derive(Clone, Copy)]
enum State {
    Code,
    Text,
    Comment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_strings_and_comments_end_nothing() {
        let text = "// a; b\n\n@id(\"x;\\\"y\")\npermit(a); // c;\n  forbid // ;\n(b);\nrest";
        let found: Vec<_> = split(text).iter().map(|one| (one.text, one.line)).collect();
        assert_eq!(found, [("@id(\"x;\\\"y\")\npermit(a);", 3), ("forbid // ;\n(b);", 5), ("rest", 7)]);
    }

    #[test]
    fn nothing_is_nothing() {
        assert_eq!(split(" \n// only a comment"), []);
    }
}
