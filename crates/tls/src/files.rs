//! Files that are either whole or absent: readers and crashes never see half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Writes a file that only its owner may read (mode 0600), replacing what was there in one step.
///
/// The bytes are on the disk when this returns. Fails as the file system does; then the old file is untouched.
pub fn write_private(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    replace(path.as_ref(), bytes, 0o600)
}

/// Like [`write_private`] for what everyone may read (mode 0644).
pub fn write_public(path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
    replace(path.as_ref(), bytes, 0o644)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut suffix = [0u8; 8];
    aws_lc_rs::rand::fill(&mut suffix).map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", hex::encode(suffix)));
    let mut temporary = Temporary { path: directory.join(temporary), in_place: false };

    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary.path)?;
    // The mode at creation passed through the umask; set it exactly.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary.path, path)?;
    temporary.in_place = true;
    // The rename itself is durable only with its directory.
    File::open(directory)?.sync_all()
}

/// A temporary file that is removed unless it was renamed into place.
struct Temporary {
    path: PathBuf,
    in_place: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.in_place {
            // Absent when it was never created; nothing better can be done about the rest.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o7777
    }

    #[test]
    fn files_get_their_mode_and_content_also_when_they_existed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("key");
        write_public(&path, b"one").expect("write");
        assert_eq!((mode(&path), fs::read(&path).expect("read")), (0o644, b"one".to_vec()));
        write_private(&path, b"two").expect("write");
        assert_eq!((mode(&path), fs::read(&path).expect("read")), (0o600, b"two".to_vec()));
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("dir");
        let target = dir.path().join("is-a-directory");
        fs::create_dir(&target).expect("directory");
        fs::write(target.join("file"), "").expect("file");
        assert!(write_private(&target, b"x").is_err());
        assert!(write_private(dir.path().join("missing/file"), b"x").is_err());
        assert!(write_private("/", b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn readers_see_the_old_file_until_the_new_one_is_whole() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("file");
        write_public(&path, b"old").expect("write");
        let mut open = File::open(&path).expect("open");
        write_public(&path, b"new").expect("write");
        let mut seen = String::new();
        io::Read::read_to_string(&mut open, &mut seen).expect("read");
        assert_eq!(seen, "old");
    }
}
