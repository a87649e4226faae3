//! Cuts a text of Cedar policies into single ones, so that each has its line.

/// One policy in a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Statement<'a> {
    /// From its first byte that is neither blank nor comment to the end of its `;`.
    pub(crate) text: &'a str,
    /// The line of its first byte, from 1.
    pub(crate) line: usize,
}

/// Most brackets that are open at once.
const MAX_DEPTH: usize = 64;
/// Most characters of a policy that are operators or dots, outside strings and comments, and sixteen for each word `if`.
const MAX_LINKS: usize = 500;

impl Statement<'_> {
    /// Whether it can be read and evaluated without deep recursion: brackets, chains of operators and of `if` are what
    /// makes Cedar descend.
    ///
    /// # Errors
    /// It cannot, in words.
    pub(crate) fn is_shallow(&self) -> Result<(), &'static str> {
        let (mut depth, mut links) = (0usize, 0usize);
        let mut before = ' ';
        for (at, c) in code(self.text) {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                '&' | '|' | '+' | '-' | '*' | '!' | '.' => links += 1,
                'i' if !before.is_alphanumeric() && self.text.get(at..).is_some_and(|rest| rest.starts_with("if")) => {
                    links += 16;
                }
                _ => {}
            }
            before = c;
            if depth > MAX_DEPTH {
                return Err("brackets lie in each other more than 64 deep: make several policies of it");
            }
            if links > MAX_LINKS {
                return Err("more than 500 operators: make several policies of it, or a list with `in` or `contains`");
            }
        }
        Ok(())
    }
}

/// The characters outside strings and comments, each with its place.
fn code(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut state = State::Code;
    let mut escaped = false;
    let mut chars = text.char_indices().peekable();
    std::iter::from_fn(move || {
        loop {
            let (at, c) = chars.next()?;
            match (state, c) {
                (State::Comment, '\n') => state = State::Code,
                (State::Comment, _) => {}
                (State::Text, _) if escaped => escaped = false,
                (State::Text, '\\') => escaped = true,
                (State::Text, '"') => state = State::Code,
                (State::Text, _) => {}
                (State::Code, '/') if chars.peek().is_some_and(|(_, next)| *next == '/') => state = State::Comment,
                (State::Code, c) => {
                    if c == '"' {
                        state = State::Text;
                    }
                    return Some((at, c));
                }
            }
        }
    })
}

/// The policies of a text, in order. A semicolon ends one, outside strings and comments; what follows the last one is a
/// policy that is not complete, for the parser to say so.
pub(crate) fn split(text: &str) -> Vec<Statement<'_>> {
    let mut out = Vec::new();
    let mut start: Option<usize> = None;
    // Lines are counted as far as they were needed.
    let (mut line, mut counted) = (1, 0);
    let mut add = |from: usize, to: usize| {
        line += text.get(counted..from).map_or(0, |before| before.matches('\n').count());
        counted = from;
        out.push(Statement { text: text.get(from..to).unwrap_or_default(), line });
    };
    for (at, c) in code(text) {
        if start.is_none() && !c.is_whitespace() {
            start = Some(at);
        }
        if c == ';' {
            add(start.take().unwrap_or(at), at + 1);
        }
    }
    if let Some(from) = start {
        add(from, text.len());
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
