//! The socket: where it is, who is at its other end.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// The socket's name in the data directory, and the one under which it is made.
const NAME: &str = "admin.sock";
const NEW: &str = "admin.sock.new";
/// Longest path of a socket that the kernel takes, in bytes (`sockaddr_un`, less the final zero).
const MAX_PATH: usize = 107;
/// Largest list of users that is looked through for a name, in bytes.
const MAX_PASSWD: u64 = 1024 * 1024;

/// Where the admin socket of a data directory is. Holds the directory open where its path is too long for a socket's.
#[derive(Debug)]
pub struct AdminAddress {
    dir: PathBuf,
    open: Option<File>,
}

impl AdminAddress {
    /// The address in this data directory.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let longest = dir.join(NEW).as_os_str().len();
        let open = if longest > MAX_PATH { Some(File::open(dir)?) } else { None };
        Ok(Self { dir: dir.to_owned(), open })
    }

    /// What to connect to, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        self.named(NAME)
    }

    fn named(&self, name: &str) -> PathBuf {
        match &self.open {
            None => self.dir.join(name),
            Some(dir) => PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())),
        }
    }
}

/// The listening socket. Its drop removes it.
pub(crate) struct AdminSocket {
    address: AdminAddress,
    listener: UnixListener,
}

impl AdminSocket {
    /// Opens the socket, in place of one that a process before has left. Only for who holds the lock on the directory:
    /// it would displace a socket that is served.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let address = AdminAddress::of(dir)?;
        // Nobody can connect before the mode is right, and there is no moment without a socket.
        let new = address.named(NEW);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, address.path())?;
        Ok(Self { address, listener })
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.address.path());
    }
}

/// Who is at the other end of the socket, as the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    /// The user id.
    pub(crate) uid: u32,
    /// The user's name on this machine, where there is one.
    pub(crate) user: Option<String>,
}

/// The person at the other end, if it is one who may ask: our own user, or root.
pub(crate) fn person(stream: &UnixStream) -> Option<Person> {
    let uid = stream.peer_cred().ok()?.uid();
    if !may_ask(uid, rustix::process::geteuid().as_raw()) {
        tracing::warn!(uid, "another user was refused at the admin socket");
        return None;
    }
    Some(Person { uid, user: name_of(uid) })
}

fn may_ask(uid: u32, own: u32) -> bool {
    uid == own || uid == 0
}

/// The name of a user in `/etc/passwd` (passwd(5)).
fn name_of(uid: u32) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    File::open("/etc/passwd").ok()?.take(MAX_PASSWD).read_to_string(&mut text).ok()?;
    named(&text, uid)
}

fn named(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let given: u32 = fields.nth(1)?.parse().ok()?;
        (given == uid).then(|| name.chars().filter(|c| !c.is_control()).take(64).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_user_and_root_may_ask() {
        assert!(may_ask(1000, 1000) && may_ask(0, 1000) && may_ask(0, 0));
        assert!(!may_ask(1001, 1000) && !may_ask(1000, 0) && !may_ask(65_534, 1000));
    }

    #[test]
    fn users_have_names() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\n:x:5\nada:x:1000:1000::/home/ada:/bin/sh\n";
        assert_eq!(named(passwd, 1000).as_deref(), Some("ada"));
        assert_eq!(named(passwd, 5), None);
        assert_eq!(named("ada:x:many:", 1000), None);
    }

    #[tokio::test]
    async fn the_socket_is_private_replaces_a_stale_one_and_is_removed() {
        let temp = tempfile::tempdir().expect("dir");
        let deep = temp.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).expect("directories");
        for dir in [temp.path(), deep.as_path()] {
            // A process that was killed left these.
            std::mem::forget(AdminSocket::open(dir).expect("first"));
            let socket = AdminSocket::open(dir).expect("in place of the stale one");
            let mode = std::fs::metadata(dir.join(NAME)).expect("socket").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let address = AdminAddress::of(dir).expect("address");
            let client = UnixStream::connect(address.path()).await.expect("connected");
            let served = socket.accept().await.expect("accepted");
            let expected = rustix::process::geteuid().as_raw();
            assert_eq!(person(&served).expect("our own user").uid, expected);
            drop((client, socket));
            assert!(!dir.join(NAME).exists() && !dir.join(NEW).exists());
        }
    }
}
