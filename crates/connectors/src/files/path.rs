//! Paths as callers name them: relative to the served directory, with `/` between names, never upwards.

use std::fmt;

use super::refusal::Refusal;
use super::rules::{NameRule, forbidden_name};

/// The longest path taken, in bytes (Linux PATH_MAX).
const MAX_PATH: usize = 4096;

/// A path below the served directory: names that may be served, none of them `.` or `..`, none with a `/` or NUL.
/// The directory itself is the empty path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServedPath(Vec<String>);

impl ServedPath {
    /// Takes what a caller sent. `.` and doubled slashes are skipped, everything else that is not a plain name below
    /// the directory is refused.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        if text.starts_with('/') {
            return Err(Refusal::Absolute(shown(text)));
        }
        if text.len() > MAX_PATH {
            return Err(Refusal::TooLong(shown(&text.chars().take(64).collect::<String>())));
        }
        if text.contains('\0') {
            return Err(Refusal::Nul(shown(text)));
        }
        let mut names = Vec::new();
        for name in text.split('/').filter(|name| !matches!(*name, "" | ".")) {
            if name == ".." {
                return Err(Refusal::Upwards(shown(text)));
            }
            check_name(name, || shown(text))?;
            names.push(name.to_owned());
        }
        Ok(Self(names))
    }

    /// The names, from the served directory downwards.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// The path of an entry of this directory.
    pub(crate) fn child(&self, name: &str) -> Self {
        let mut names = self.0.clone();
        names.push(name.to_owned());
        Self(names)
    }

    /// The path as answers carry it; `.` is the served directory.
    pub(crate) fn text(&self) -> String {
        if self.0.is_empty() { ".".to_owned() } else { self.0.join("/") }
    }
}

impl fmt::Display for ServedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.text()))
    }
}

/// Refuses a name that is never served; `whole` is the path to name in the refusal.
pub(crate) fn check_name(name: &str, whole: impl FnOnce() -> String) -> Result<(), Refusal> {
    match forbidden_name(name) {
        None => Ok(()),
        Some(NameRule::Hidden) => Err(Refusal::Hidden(whole())),
        Some(NameRule::Key) => Err(Refusal::KeyName(whole())),
    }
}

/// A name for people and models to read: control and direction-changing characters are escaped, so that a name can
/// neither start a new line nor show itself as another.
pub(crate) fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let invisible = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
        if c.is_control() || invisible { out.extend(c.escape_unicode()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_are_taken_and_tidied() {
        for (text, want) in
            [("", "."), (".", "."), ("./", "."), ("a/b", "a/b"), ("./a//b/./c/", "a/b/c"), ("ä ö", "ä ö")]
        {
            assert_eq!(ServedPath::parse(text).expect("path").text(), want);
        }
        assert_eq!(ServedPath::parse("a\\..\\b").expect("one odd name").names().len(), 1);
    }

    #[test]
    fn every_way_out_is_refused() {
        for text in ["/", "/etc/passwd", "..", "a/..", "a/../../b", "../a", "./..", "a\0b", ".git/config", "a/.env"] {
            assert!(ServedPath::parse(text).is_err(), "{text:?}");
        }
        assert!(ServedPath::parse("tls/server.key").is_err());
        assert!(ServedPath::parse(&"a/".repeat(3000)).is_err());
    }

    #[test]
    fn shown_names_stay_on_their_line() {
        assert_eq!(shown("a\nb"), "a\\u{a}b");
        assert_eq!(shown("x\u{202e}txt.exe"), "x\\u{202e}txt.exe");
        assert_eq!(shown("größe 日本"), "größe 日本");
    }
}
