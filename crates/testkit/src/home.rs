//! A throw-away home directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::process::Program;

/// A temporary directory that stands in for a user's home; removed on drop.
#[derive(Debug)]
pub struct TempHome {
    dir: tempfile::TempDir,
}

impl TempHome {
    /// A fresh, empty home, readable by this user only. Errors are those of creating a directory.
    pub fn new() -> io::Result<Self> {
        tempfile::Builder::new().prefix("sortie-test-").tempdir().map(|dir| Self { dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A path below it; nothing is created.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file below it, creating the folders on the way, and returns its path.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<PathBuf> {
        let path = self.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content)?;
        Ok(path)
    }

    /// Makes this directory the program's home and its place for configuration, state, cache and temporary files.
    pub fn apply(&self, program: Program) -> Program {
        program
            .env("HOME", self.path())
            .env("XDG_CONFIG_HOME", self.join(".config"))
            .env("XDG_DATA_HOME", self.join(".local/share"))
            .env("XDG_STATE_HOME", self.join(".local/state"))
            .env("XDG_CACHE_HOME", self.join(".cache"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_live_as_long_as_the_home() {
        let home = TempHome::new().expect("home");
        let file = home.write("a/b.toml", "x = 1").expect("write");
        assert_eq!(fs::read_to_string(&file).expect("read"), "x = 1");
        drop(home);
        assert!(!file.exists());
    }
}
