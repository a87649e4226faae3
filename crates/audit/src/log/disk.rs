//! What a log does to its disk, each step through one place: so that tests can stop the process, or let the disk fail, at
//! every one of them.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A directory is made.
    MakeDir,
    /// A file is made.
    Create,
    /// Bytes are written to the end of a file.
    Write,
    /// A file is cut to an earlier length.
    Cut,
    /// A file is brought to the disk.
    Sync,
    /// A file gets its name.
    Rename,
    /// A file is removed.
    Remove,
    /// The names in a directory are brought to the disk.
    SyncDir,
}

/// Asked before each step; with the number of bytes for [`Step::Write`], of which it tells how many may be written at once.
type Ask = dyn Fn(Step, &Path, usize) -> io::Result<usize> + Send + Sync;

/// For tests: what goes wrong with the disk. Nothing does by default.
#[derive(Clone, Default)]
pub struct Faults(Option<Arc<Ask>>);

impl Faults {
    /// Asks this before each step: with the path, and the bytes that are to be written. An error is the disk's answer; the
    /// number is how many bytes one write takes.
    pub fn new(ask: impl Fn(Step, &Path, usize) -> io::Result<usize> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    fn ask(&self, step: Step, path: &Path, bytes: usize) -> io::Result<usize> {
        self.0.as_ref().map_or(Ok(bytes), |ask| ask(step, path, bytes))
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Faults(..)" } else { "Faults" })
    }
}

/// The steps.
#[derive(Clone, Debug, Default)]
pub struct Disk(pub Faults);

impl Disk {
    /// Makes a directory with its parents, for us alone. One that is there stays as it is.
    pub(crate) fn make_dir(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.0.ask(Step::MakeDir, path, 0)?;
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    /// Opens a file to be written at its end, for us alone; makes it if it is absent.
    pub(crate) fn open(&self, path: &Path) -> io::Result<File> {
        if !path.exists() {
            self.0.ask(Step::Create, path, 0)?;
        }
        options().create(true).open(path)
    }

    /// Writes at the end of a file. After an error, a part may be there.
    pub(crate) fn write(&self, mut file: &File, path: &Path, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let most = self.0.ask(Step::Write, path, bytes.len())?;
            match file.write(bytes.get(..most).unwrap_or(bytes)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Cuts a file to an earlier length.
    pub(crate) fn cut(&self, file: &File, path: &Path, len: u64) -> io::Result<()> {
        self.0.ask(Step::Cut, path, 0)?;
        file.set_len(len)
    }

    /// Waits until the disk has a file's content.
    pub(crate) fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        self.0.ask(Step::Sync, path, 0)?;
        file.sync_data()
    }

    /// Waits until the disk has the names in a directory.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.0.ask(Step::SyncDir, path, 0)?;
        File::open(path)?.sync_all()
    }

    /// Removes a file.
    pub(crate) fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.ask(Step::Remove, path, 0)?;
        fs::remove_file(path)
    }

    /// Makes or replaces a file in one step, on the disk when it returns. Until it has its name it is `fresh`, which is on
    /// the same disk. After an error the file may be there, or not, but whole.
    ///
    /// # Errors
    /// It could not be made, or it is not known whether it outlives a power cut.
    pub fn replace(&self, path: &Path, fresh: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.fresh(fresh)?;
        let written = self.write(&file, fresh, bytes).and_then(|()| self.sync(&file, fresh));
        written.and_then(|()| self.0.ask(Step::Rename, path, 0)).and_then(|_| fs::rename(fresh, path))?;
        self.sync_dir(path.parent().unwrap_or(path))
    }

    /// Makes a file that must not be there yet, with this content and for us alone; an error of kind `AlreadyExists` when
    /// it is.
    pub(crate) fn create_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let file = self.fresh(&fresh)?;
        let written = self.write(&file, &fresh, bytes).and_then(|()| self.sync(&file, &fresh));
        // A link, since a rename would replace what is there.
        let named = written.and_then(|()| self.0.ask(Step::Rename, path, 0)).and_then(|_| fs::hard_link(&fresh, path));
        self.remove(&fresh)?;
        named.and_then(|()| {
            self.sync_dir(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        })
    }

    /// An empty file in the place of whatever an earlier process may have left there.
    fn fresh(&self, path: &Path) -> io::Result<File> {
        match self.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.0.ask(Step::Create, path, 0)?;
        options().create_new(true).open(path)
    }
}

fn options() -> OpenOptions {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).expect("a flag of open(2) fits its argument");
    let mut options = OpenOptions::new();
    options.append(true).read(true).mode(0o600).custom_flags(flags);
    options
}
