//! How a command fails: one sentence, and an exit code that says whose turn it is.

use std::fmt;
use std::process::ExitCode;

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    sentence: String,
    usage: bool,
}

impl Failure {
    /// The command or its configuration is wrong: exit code 2.
    pub(crate) fn usage(sentence: impl fmt::Display) -> Self {
        Self { sentence: sentence.to_string(), usage: true }
    }

    /// Anything else: exit code 1.
    pub(crate) fn failed(sentence: impl fmt::Display) -> Self {
        Self { sentence: sentence.to_string(), usage: false }
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(if self.usage { 2 } else { 1 })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}
