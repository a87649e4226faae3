//! How far a sink has come: one small file per sink, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sortie_audit::{Disk, Hash};

use crate::reader::Mark;

/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4096;

/// Where a cursor is kept.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    path: PathBuf,
    disk: Disk,
}

/// What the file says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The number of the first record that was not acknowledged.
    pub(crate) next: u64,
    /// The leaf hash of the record before it: whose log this is about.
    pub(crate) prev: Option<Hash>,
}

impl Cursor {
    /// That of a sink. Makes the directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(crate) fn new(dir: &Path, sink: &str, disk: Disk) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let dir = dir.join("sinks");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self { path: dir.join(sink), disk })
    }

    /// What it says; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn load(&self) -> io::Result<Option<Kept>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let damaged = |_| io::Error::new(io::ErrorKind::InvalidData, "it is damaged");
        serde_json::from_slice(&text).map(Some).map_err(damaged)
    }

    /// Replaces it, so that after a crash it is either what it was or what it is to be.
    ///
    /// # Errors
    /// It cannot be written; it is still what it was.
    pub(crate) fn save(&self, mark: &Mark) -> io::Result<()> {
        let mut text = serde_json::to_vec(&Kept { next: mark.next, prev: mark.prev })?;
        text.push(b'\n');
        self.disk.replace(&self.path, &self.path.with_extension("new"), &text)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
