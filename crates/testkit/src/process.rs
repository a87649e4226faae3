//! Child programs of a test: started in a process group of their own, their output kept in a bounded log for the
//! failure message, everything in the group killed by id on drop.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use crate::usage;

/// Bytes of output that are kept per process; older ones are dropped.
const LOG_BYTES: usize = 256 * 1024;
/// How long the output of a program that has ended may take to arrive. It arrives at once unless the machine is busy, or
/// a child of the program still holds the pipe.
const LAST_OUTPUT: Duration = Duration::from_secs(5);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Why a child program is not what the test needs.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("`{program}` could not be started; is it built and installed?")]
    Start {
        /// The program's name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It did not become what was waited for in time.
    #[error("`{program}` did not {what} within {within:?}; its output was:\n{output}")]
    Late {
        /// The program's name.
        program: String,
        /// What was waited for.
        what: String,
        /// The time that it had.
        within: Duration,
        /// The end of its output.
        output: String,
    },
    /// It ended before it became what was waited for.
    #[error("`{program}` ended with {status} before it could {what}; its output was:\n{output}")]
    Ended {
        /// The program's name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What was waited for.
        what: String,
        /// The end of its output.
        output: String,
    },
    /// The system refused to tell about it.
    #[error("the state of `{program}` is not known")]
    State {
        /// The program's name.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A program that is about to be started. Its standard input is empty.
#[derive(Debug)]
pub struct Program {
    command: Command,
    name: String,
}

impl Program {
    /// The program at a path, or by name from `PATH`.
    pub fn new(path: impl AsRef<OsStr>) -> Self {
        let name = Path::new(path.as_ref()).file_name().unwrap_or(path.as_ref()).to_string_lossy().into_owned();
        Self { command: Command::new(path), name }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// More arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// One variable of its environment, which is otherwise ours.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Without this variable.
    pub fn without_env(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Its working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Starts it in a process group of its own.
    ///
    /// # Errors
    /// [`ProcessError::Start`] when the program cannot be run.
    pub fn spawn(mut self) -> Result<Process, ProcessError> {
        let start = |source| ProcessError::Start { program: self.name.clone(), source };
        self.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = self.command.spawn().map_err(start)?;
        let log = Arc::new(Mutex::new(Log::default()));
        if let Some(out) = child.stdout.take() {
            collect(out, Arc::clone(&log));
        }
        if let Some(err) = child.stderr.take() {
            collect(err, Arc::clone(&log));
        }
        Ok(Process { child, name: self.name, log })
    }
}

/// A running child program. Dropping it kills its whole process group and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: Arc<Mutex<Log>>,
}

impl Process {
    /// Its process id, which is also the id of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The ids of all live processes of its group.
    pub fn pids(&self) -> Vec<u32> {
        usage::group_members(self.id())
    }

    /// The end of what it wrote to both outputs (at most 256 KiB), bytes that are not UTF-8 replaced.
    pub fn output(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).text()
    }

    /// Waits until the file holds a JSON value, as our programs write it when they truly serve.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::Late`], both with the program's output.
    pub async fn ready_file(&mut self, file: &Path, within: Duration) -> Result<Value, ProcessError> {
        let what = format!("write {}", file.display());
        self.until(&what, within, |_| {
            let text = std::fs::read(file).ok()?;
            serde_json::from_slice(&text).ok()
        })
        .await
    }

    /// Waits until the address accepts a TCP connection.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::Late`], both with the program's output.
    pub async fn ready_port(&mut self, addr: SocketAddr, within: Duration) -> Result<(), ProcessError> {
        // On loopback a connect is answered at once, so that the blocking call does not hold up the caller's runtime.
        self.until(&format!("listen on {addr}"), within, |_| {
            std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)).ok().map(drop)
        })
        .await
    }

    /// Waits until its output holds this text.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] or [`ProcessError::Late`], both with the program's output.
    pub async fn ready_output(&mut self, text: &str, within: Duration) -> Result<(), ProcessError> {
        self.until(&format!("print `{text}`"), within, |process| process.output().contains(text).then_some(())).await
    }

    /// Waits until it ends by itself, and until what it printed last is in [`Process::output`].
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it still runs; it is left running.
    pub async fn exit(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.try_exit()? {
                self.last_output().await;
                return Ok(status);
            }
            if Instant::now() >= end {
                return Err(self.late("end", within));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end with `SIGTERM` and waits for it.
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it still runs after that time.
    pub async fn stop(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::TERM);
        self.exit(within).await
    }

    /// Sends a signal to the program itself (not to its group); nothing happens when it is gone.
    pub fn signal(&self, signal: Signal) {
        // A failure means that it has ended, which is what callers find out next anyway.
        let _gone = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Kills its whole process group at once and reaps it.
    pub fn kill(&mut self) {
        let _gone = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _reaped = self.child.wait();
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    async fn until<T>(
        &mut self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T, ProcessError> {
        let end = Instant::now() + within;
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if let Some(status) = self.try_exit()? {
                self.last_output().await;
                if let Some(found) = look(self) {
                    return Ok(found);
                }
                let (program, what, output) = (self.name.clone(), what.to_owned(), self.output());
                return Err(ProcessError::Ended { program, status, what, output });
            }
            if Instant::now() >= end {
                return Err(self.late(what, within));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until what it printed last has come through the pipes: each reader holds the log until its pipe has ended.
    async fn last_output(&self) {
        let _held = eventually(LAST_OUTPUT, || (Arc::strong_count(&self.log) == 1).then_some(())).await;
    }

    fn try_exit(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|source| ProcessError::State { program: self.name.clone(), source })
    }

    fn late(&self, what: &str, within: Duration) -> ProcessError {
        ProcessError::Late { program: self.name.clone(), what: what.to_owned(), within, output: self.output() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Looks at a condition every few milliseconds until it yields a value; `None` when it did not within the time.
pub async fn eventually<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A TCP port on loopback that was free a moment ago. Something else may take it before you do, so prefer port 0 and a
/// ready file wherever the program can do that.
///
/// # Errors
/// Those of binding a socket: no loopback, or no free port at all.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[derive(Debug, Default)]
struct Log {
    bytes: VecDeque<u8>,
    dropped: bool,
}

impl Log {
    fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend(chunk);
        let over = self.bytes.len().saturating_sub(LOG_BYTES);
        self.dropped |= over > 0;
        self.bytes.drain(..over);
    }

    fn text(&self) -> String {
        let (head, tail) = self.bytes.as_slices();
        let bytes = [head, tail].concat();
        let text = String::from_utf8_lossy(&bytes);
        if self.dropped { format!("(the beginning is dropped) ...{text}") } else { text.into_owned() }
    }
}

/// Reads a pipe to its end on a thread of its own, so that the child never blocks on a full pipe.
fn collect(mut pipe: impl Read + Send + 'static, log: Arc<Mutex<Log>>) {
    thread::spawn(move || {
        let mut chunk = [0u8; 8192];
        while let Ok(count) = pipe.read(&mut chunk) {
            let Some(read) = chunk.get(..count).filter(|read| !read.is_empty()) else { break };
            log.lock().unwrap_or_else(PoisonError::into_inner).push(read);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_program_that_ends_early_shows_its_output() {
        let mut process = Program::new("sh").args(["-c", "echo no such route >&2; exit 3"]).spawn().expect("sh");
        let error = process.ready_output("serving", SOON).await.expect_err("it ends");
        assert!(matches!(error, ProcessError::Ended { .. }), "{error}");
        assert!(error.to_string().contains("no such route"), "{error}");
    }

    #[tokio::test]
    async fn a_ready_file_is_waited_for_until_it_is_whole() {
        let home = crate::TempHome::new().expect("home");
        let file = home.join("ready.json");
        let script = r#"printf '{"api' > "$F"; sleep 0.1; printf '{"api_url": 1}' > "$F"; exec sleep 60"#;
        let mut process = Program::new("sh").args(["-c", script]).env("F", &file).spawn().expect("sh");
        let ready = process.ready_file(&file, SOON).await.expect("ready");
        assert_eq!(ready["api_url"], 1);
    }

    #[tokio::test]
    async fn drop_kills_the_whole_group() {
        let process = Program::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).spawn().expect("sh");
        let pids = eventually(SOON, || Some(process.pids()).filter(|pids| pids.len() == 3)).await.expect("three");
        drop(process);
        let gone = eventually(SOON, || pids.iter().all(|pid| usage::rss_kb(&[*pid]) == 0).then_some(())).await;
        assert!(gone.is_some());
    }

    #[tokio::test]
    async fn a_program_can_be_asked_to_end() {
        let script = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done";
        let mut process = Program::new("sh").args(["-c", script]).spawn().expect("sh");
        process.ready_output("up", SOON).await.expect("up");
        assert_eq!(process.stop(SOON).await.expect("stop").code(), Some(7));
    }

    #[tokio::test]
    async fn the_log_is_bounded_and_keeps_the_end() {
        let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo the end";
        let mut process = Program::new("sh").args(["-c", script]).spawn().expect("sh");
        process.exit(SOON).await.expect("exit");
        eventually(SOON, || process.output().contains("the end").then_some(())).await.expect("end of the output");
        assert!(process.output().len() < LOG_BYTES + 100);
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Program::new("/nowhere/sortie-not-here").spawn().expect_err("missing");
        assert!(error.to_string().contains("sortie-not-here"), "{error}");
    }
}
