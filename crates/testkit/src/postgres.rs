//! A real PostgreSQL server of a test's own, in a temporary directory.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::process::{Process, ProcessError, Program, free_port};
use crate::skip::skip_tool;

/// The superuser of each server.
pub const USER: &str = "sortie";
/// Its password. Only demanded over TCP.
pub const PASSWORD: &str = "only for tests";
/// A variable with the path of the program `postgres`, for one that is not found by itself.
const PROGRAM: &str = "SORTIE_TEST_POSTGRES";
/// `nobody`: the server refuses to run as root.
const NOBODY: u32 = 65534;
/// How long a start may take on a busy machine, recovery after a crash included.
const START: Duration = Duration::from_secs(60);

/// A running server. Dropping it stops it and removes its directory.
#[derive(Debug)]
pub struct Postgres {
    process: Option<Process>,
    programs: PathBuf,
    port: u16,
    dir: TempDir,
}

impl Postgres {
    /// Starts a server with one empty database, `postgres`. It listens on a Unix socket, where everybody is let in, and
    /// on a loopback port, where the password is asked for. Prints the `skipped:` line and returns `None` where
    /// PostgreSQL is missing.
    ///
    /// # Panics
    /// When a server that is there does not start.
    pub async fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            skip_tool("there is no PostgreSQL; `cargo xtask test` installs it");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("sortie-pg-").tempdir().expect("a directory for PostgreSQL");
        if is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("a directory for PostgreSQL");
        }
        let template = template(&programs).expect("a fresh PostgreSQL cluster");
        let copied = Command::new("cp").arg("-a").arg(template).arg(dir.path().join("data")).status();
        assert!(copied.is_ok_and(|status| status.success()), "a copy of the PostgreSQL cluster");
        let mut server = Self { process: None, programs, port: free_port().expect("a port"), dir };
        server.restart().await;
        Some(server)
    }

    /// Its database, over the Unix socket.
    pub fn url(&self) -> String {
        let socket = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://{USER}@{socket}:{}/postgres", self.port)
    }

    /// The same over TCP, or through something that stands before it.
    pub fn url_at(&self, addr: SocketAddr) -> String {
        format!("postgres://{USER}:{}@{addr}/postgres", PASSWORD.replace(' ', "%20"))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Everything that it keeps.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Runs a program of its package, such as `psql` or `pg_dump`, against its database; what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(self.programs.join(program));
        command.env("LD_LIBRARY_PATH", libraries(&self.programs));
        command.arg("--host").arg(self.dir.path()).args(["--port", &self.port.to_string(), "--username", USER]);
        let output = command.args(["--dbname", "postgres"]).args(args).output().expect("a program of PostgreSQL");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Ends all its processes at once, without a word.
    pub fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let children = children(process.id());
        process.kill();
        for child in children {
            let _gone = kill_process(child, Signal::KILL);
        }
    }

    /// Stops it as a service manager does.
    ///
    /// # Panics
    /// When it does not stop.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // What it calls a fast shutdown: connections are ended.
            process.signal(Signal::INT);
            process.exit(START).await.expect("PostgreSQL stops");
        }
    }

    /// Starts it again, after [`Postgres::kill`] or [`Postgres::stop`].
    ///
    /// # Panics
    /// When it does not start.
    pub async fn restart(&mut self) {
        let end = tokio::time::Instant::now() + START;
        loop {
            match self.try_start().await {
                Ok(process) => {
                    self.process = Some(process);
                    return;
                }
                // What a killed server leaves in shared memory is in use until the last of its processes has gone.
                Err(ProcessError::Ended { output, .. })
                    if output.contains("shared memory block") && tokio::time::Instant::now() < end => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn try_start(&self) -> Result<Process, ProcessError> {
        // `setpriv` gives up being root, and ends the server when the test ends without a word.
        let mut program = Program::new("setpriv").arg("--pdeathsig=QUIT");
        program = program.env("LD_LIBRARY_PATH", libraries(&self.programs));
        if is_root() {
            let (uid, gid) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
            program = program.args([&uid, &gid]).arg("--clear-groups");
        }
        program = program.arg(self.programs.join("postgres")).arg("-D").arg(self.data_dir());
        program = program.arg("-k").arg(self.dir.path()).args(["-p", &self.port.to_string()]);
        // Nothing here outlives a crash of the machine.
        for setting in ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=16MB", "autovacuum=off", "jit=off"] {
            program = program.args(["-c", setting]);
        }
        let mut process = program.spawn()?;
        process.ready_output("ready to accept connections", START).await?;
        Ok(process)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // Killed, it would leave its shared memory behind.
        process.signal(Signal::QUIT);
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while !process.ended() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The directory of the programs: where the variable says, in `PATH`, or where Debian has them, the newest first.
fn programs() -> Option<PathBuf> {
    let named = std::env::var_os(PROGRAM).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin/postgres")).collect())
        .unwrap_or_default();
    debian.sort();
    let found = named
        .into_iter()
        .chain(std::env::split_paths(&path).map(|dir| dir.join("postgres")))
        .chain(debian.into_iter().rev())
        .find(|program| program.is_file())?;
    // It finds its own files from where it really is.
    Some(fs::canonicalize(found).ok()?.parent()?.to_owned())
}

/// A cluster that was never started, made once for each version and kept beside the tests' programs.
fn template(programs: &Path) -> io::Result<PathBuf> {
    let version = Command::new(programs.join("postgres")).arg("--version").output()?.stdout;
    let version: String =
        String::from_utf8_lossy(&version).chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).ok_or(io::ErrorKind::NotFound)?;
    let template = folder.join(format!("postgres-{version}"));
    let lock = File::create(folder.join(format!("postgres-{version}.lock")))?;
    lock.lock()?;
    if !template.exists() {
        let draft = tempfile::Builder::new().prefix("sortie-pg-").tempdir()?;
        let password = draft.path().join("password");
        fs::write(&password, PASSWORD)?;
        let mut init = Command::new("setpriv");
        if is_root() {
            for path in [draft.path(), &password] {
                chown(path, Some(NOBODY), Some(NOBODY))?;
            }
            init.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]).arg("--clear-groups");
        } else {
            init.arg("--no-new-privs");
        }
        init.env("LD_LIBRARY_PATH", libraries(programs));
        init.arg(programs.join("initdb")).arg("-D").arg(draft.path().join("data")).args(["-U", USER, "-E", "UTF8"]);
        init.args(["--locale=C", "--no-sync", "--wal-segsize=1", "--auth-local=trust", "--auth-host=scram-sha-256"]);
        let made = init.arg("--pwfile").arg(&password).output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let beside = folder.join(format!("postgres-{version}.new"));
        let copied = Command::new("cp").arg("-a").arg(draft.path().join("data")).arg(&beside).status()?;
        if !copied.success() {
            return Err(io::Error::other("the cluster could not be copied"));
        }
        fs::rename(&beside, &template)?;
    }
    Ok(template)
}

/// The libraries beside programs that were unpacked and not installed: those of the same root.
fn libraries(programs: &Path) -> OsString {
    let root = programs.ancestors().nth(5).unwrap_or(Path::new("/"));
    let found = fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten().map(|entry| entry.path());
    let found = found.filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    std::env::join_paths(found).unwrap_or_default()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<Pid> {
    let text = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect()
}
