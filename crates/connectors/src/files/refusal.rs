//! Why a tool call has no answer, in one sentence for the model that made it.

use std::io;

use super::path::ServedPath;

/// A call that is refused or cannot be done. Every text names the path as the caller sees it and the rule, and never
/// where the served directory lies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// The path begins with a slash.
    #[error("`{0}` is absolute: paths are relative to the served directory, leave out the leading `/`")]
    Absolute(String),
    /// The path has a `..`.
    #[error("`{0}` goes upwards: `..` is not allowed, name the path from the served directory")]
    Upwards(String),
    /// The path has a NUL.
    #[error("`{0}` contains a NUL character, which no file name does")]
    Nul(String),
    /// The path is longer than any can be.
    #[error("the path that begins `{0}` is too long: at most 4096 bytes are taken")]
    TooLong(String),
    /// A name on the way begins with a dot.
    #[error("`{0}` is never served: it has or leads to a name that begins with a dot")]
    Hidden(String),
    /// A name on the way is one of key files.
    #[error("`{0}` is never served: it has or leads to a name of key or credential files")]
    KeyName(String),
    /// The content is a private key.
    #[error("`{0}` is never served: it contains a private key")]
    KeyContent(String),
    /// A link leads out.
    #[error("`{0}` is never served: a symbolic link on the way leaves the served directory or is absolute")]
    Outside(String),
    /// Too many links, or links that change while they are followed.
    #[error("`{0}` cannot be reached: too many symbolic links on the way")]
    Links(String),
    /// Nothing there.
    #[error("`{0}` does not exist: use `list` to see what does")]
    Missing(String),
    /// A file where a directory is needed.
    #[error("`{0}` is not a directory: use `read` for files")]
    NotDirectory(String),
    /// A directory where a file is needed.
    #[error("`{0}` is a directory: use `list` for directories")]
    NotFile(String),
    /// A pipe, socket or device.
    #[error("`{0}` is never served: it is neither a file nor a directory")]
    Special(String),
    /// The operating system says no.
    #[error("`{0}` cannot be read: this server has no permission to")]
    Denied(String),
    /// Not text.
    #[error("`{0}` is not UTF-8 text: only text files are served")]
    Binary(String),
    /// The first line asked for is behind the last.
    #[error("`{path}` has {lines} lines: there is no line {line}")]
    PastEnd {
        /// The file.
        path: String,
        /// Asked for.
        line: u64,
        /// There are.
        lines: u64,
    },
    /// The first line asked for is deeper in the file than this server reads.
    #[error("line {line} of `{path}` lies beyond the first {bytes} bytes, which is as far as files are read")]
    PastReach {
        /// The file.
        path: String,
        /// Asked for.
        line: u64,
        /// The bound.
        bytes: u64,
    },
    /// The search text cannot be used.
    #[error("the query cannot be searched for: {0}")]
    Query(String),
    /// The name pattern cannot be used.
    #[error("the glob cannot be used: {0}")]
    Glob(String),
    /// The arguments do not fit the tool.
    #[error("the arguments do not fit the tool's schema: {0}")]
    Arguments(String),
    /// No slot became free.
    #[error("this server is busy with other calls: try again in a moment")]
    Busy,
    /// The time is over before there is anything to answer.
    #[error("the call took longer than {0} s: ask for less at once")]
    TimedOut(u64),
    /// The caller has gone.
    #[error("the call was cancelled")]
    Cancelled,
    /// The operating system failed otherwise.
    #[error("`{path}` cannot be read: {kind}")]
    Io {
        /// The path.
        path: String,
        /// What kind of failure.
        kind: io::ErrorKind,
    },
    /// A defect of ours.
    #[error("the call failed inside the server, which has logged why")]
    Broken,
}

impl Refusal {
    /// What a failure of the operating system on a path means to the caller.
    pub(crate) fn from_io(path: &ServedPath, error: &io::Error) -> Self {
        let path = path.to_string();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing(path),
            io::ErrorKind::PermissionDenied => Self::Denied(path),
            io::ErrorKind::NotADirectory => Self::NotDirectory(path),
            io::ErrorKind::IsADirectory => Self::NotFile(path),
            kind => Self::Io { path, kind },
        }
    }
}
