//! Checkpoints as files in a directory that is somebody else's: a mount that can be written once, another machine's.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Place, Unpublished, plain};

pub(super) struct Files {
    dir: PathBuf,
}

impl Files {
    /// In a directory of its own below this one, by the name of the log.
    pub(super) fn new(dir: &Path, origin: &str) -> Result<Self, String> {
        if !dir.is_dir() {
            return Err(format!("{} is no directory; make it, or mount what is to be there", dir.display()));
        }
        Ok(Self { dir: dir.join(plain(origin)) })
    }
}

impl Place for Files {
    async fn publish(&mut self, note: &str, size: u64) -> Result<(), Unpublished> {
        let (path, note) = (self.dir.join(format!("{size:020}")), note.to_owned());
        let written = tokio::task::spawn_blocking(move || write(&path, &note)).await;
        written.unwrap_or_else(|_| Err(Unpublished::later("the write was interrupted")))
    }
}

fn write(path: &Path, note: &str) -> Result<(), Unpublished> {
    let failed = |error: io::Error| Unpublished::later(format!("{}: {error}", path.display()));
    if let Some(dir) = path.parent()
        && !dir.is_dir()
    {
        std::fs::create_dir(dir).map_err(failed)?;
    }
    match OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(mut file) => {
            let written = file.write_all(note.as_bytes()).and_then(|()| file.sync_all());
            written.map_err(|error| {
                // Nothing there may look like a checkpoint that is none; where it cannot be removed, it is no whole note.
                let _ = std::fs::remove_file(path);
                failed(error)
            })
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let there = std::fs::read_to_string(path).map_err(failed)?;
            // Signatures may differ; what is signed may not.
            match note.split("\n\n").next() == there.split("\n\n").next() {
                true => Ok(()),
                false => Err(Unpublished::contradicted(format!("{} holds another checkpoint", path.display()))),
            }
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_checkpoint_is_written_once() {
        let dir = tempfile::tempdir().expect("dir");
        let mut files = Files::new(dir.path(), "sortie-hub/00ff").expect("place");
        files.publish("a\n7\nb\n\nsignature\n", 7).await.expect("published");
        files.publish("a\n7\nb\n\nsignature\n", 7).await.expect("again");
        let changed = files.publish("a\n7\nc\n\nsignature\n", 7).await.expect_err("another");
        assert!(changed.contradicted, "{changed}");
        let path = dir.path().join("sortie-hub-00ff/00000000000000000007");
        assert_eq!(std::fs::read_to_string(path).expect("file"), "a\n7\nb\n\nsignature\n");
        assert!(Files::new(&dir.path().join("absent"), "a").is_err());
    }
}
