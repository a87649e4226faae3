//! Running a program for the secret that it prints. No shell, a bare environment, bounds of time and size.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use sortie_tls::Secret;
use zeroize::Zeroizing;

use crate::problem::Problem;
use crate::source::{Command, MAX_SECRET, secret_of};

/// What is passed on of our own environment.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LANG", "TMPDIR", "XDG_RUNTIME_DIR"];
const FAILED: &str = "the command that gives it has failed";

/// Runs it once. What it writes to its standard error is not read, since it may hold secrets.
///
/// Dropping the future kills the command with all that it has started, as does the end of its time.
pub(crate) async fn run(command: &Command) -> Result<Secret, Problem> {
    let name = command.argv.first().cloned().unwrap_or_default();
    let running = Running::default();
    let (here, argv, environment) = (running.0.clone(), command.argv.clone(), command.environment.clone());
    let reading = tokio::task::spawn_blocking(move || read(&argv, &environment, &here));
    let read = match tokio::time::timeout(command.timeout, reading).await {
        Err(_) => {
            let told = format!("`{name}` did not end within {} ms and was killed", command.timeout.as_millis());
            return Err(Problem::passing(FAILED, told));
        }
        Ok(Err(_)) => return Err(Problem::passing(FAILED, "the program is ending")),
        Ok(Ok(read)) => read,
    };
    // It has ended by itself, so that its id is nobody's or another's.
    running.forget();
    match read {
        Err(problem) => Err(Problem::passing(FAILED, format!("`{name}` {problem}"))),
        Ok(bytes) => secret_of(bytes).map_err(|what| Problem::passing(FAILED, format!("what `{name}` printed {what}"))),
    }
}

/// Blocks until the program has ended.
fn read(argv: &[String], environment: &[String], running: &Mutex<State>) -> Result<Zeroizing<Vec<u8>>, String> {
    let (program, arguments) = argv.split_first().ok_or("has no name")?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    for name in KEPT.into_iter().chain(environment.iter().map(String::as_str)) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let mut child = {
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*running, State::Unwanted) {
            return Err("was no longer wanted".to_owned());
        }
        let child = command.process_group(0).spawn().map_err(|error| format!("cannot be started: {error}"))?;
        *running = State::Runs(Pid::from_child(&child));
        child
    };
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
    let bound = u64::try_from(MAX_SECRET + 1).unwrap_or(u64::MAX);
    let read = child.stdout.take().map(|out| out.take(bound).read_to_end(&mut bytes));
    if bytes.len() > MAX_SECRET {
        end(&mut child);
        return Err(format!("printed more than {MAX_SECRET} bytes"));
    }
    let status = child.wait().map_err(|error| format!("cannot be waited for: {error}"))?;
    match read {
        Some(Err(error)) => Err(format!("cannot be read: {error}")),
        _ if !status.success() => Err(format!("ended with {status}")),
        _ => Ok(bytes),
    }
}

fn end(child: &mut Child) {
    let _gone = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _reaped = child.wait();
}

#[derive(Default)]
enum State {
    #[default]
    Begins,
    Runs(Pid),
    Unwanted,
}

/// Kills the process group when dropped, unless it was forgotten.
#[derive(Default)]
struct Running(Arc<Mutex<State>>);

impl Running {
    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State::Begins;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Runs(group) = std::mem::replace(&mut *state, State::Unwanted) {
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn shell(script: &str, timeout: Duration) -> Command {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Command { argv, timeout, cache: Duration::from_secs(60), environment: vec!["CARGO_PKG_NAME".to_owned()] }
    }

    #[tokio::test]
    async fn what_is_printed_is_the_secret() {
        let second = Duration::from_secs(10);
        let secret = run(&shell("printf 'abc\\n'; echo noise >&2", second)).await.expect("secret");
        assert_eq!(secret.expose(), "abc");
        for (script, said) in [
            ("exit 3", "exit status: 3"),
            ("true", "is empty"),
            ("printf 'a\\nb'", "more than one line"),
            ("printf '\\377'", "not UTF-8"),
            ("head -c 100000 /dev/zero; sleep 100", "more than 65536 bytes"),
        ] {
            let problem = run(&shell(script, second)).await.expect_err(script);
            assert!(problem.private.contains(said) && !problem.withdrawn, "{script}: {problem:?}");
        }
        let absent = Command { argv: vec!["/nonexistent/x".to_owned()], ..shell("", second) };
        assert!(run(&absent).await.expect_err("absent").private.contains("cannot be started"));
    }

    #[tokio::test]
    async fn it_gets_no_more_of_the_environment_than_it_needs() {
        let seen =
            run(&shell("env | cut -d= -f1 | sort | tr '\\n' ' '", Duration::from_secs(10))).await.expect("names");
        let allowed =
            |name: &str| KEPT.contains(&name) || ["CARGO_PKG_NAME", "PWD", "_", "SHLVL", "OLDPWD"].contains(&name);
        assert!(seen.expose().split(' ').filter(|name| !name.is_empty()).all(allowed), "{}", seen.expose());
        assert!(seen.expose().contains("PATH") && seen.expose().contains("CARGO_PKG_NAME"), "{}", seen.expose());
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_killed_with_all_that_it_began() {
        let dir = tempfile::tempdir().expect("dir");
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        let began = Instant::now();
        let problem = run(&shell(&script, Duration::from_millis(500))).await.expect_err("endless");
        assert!(problem.private.contains("did not end within 500 ms"), "{problem:?}");
        assert!(began.elapsed() < Duration::from_secs(10));
        let pid: u32 = std::fs::read_to_string(pid_file).expect("pid").trim().parse().expect("number");
        let gone = || {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            (state.is_empty() || state.contains(") Z ")).then_some(())
        };
        sortie_testkit::eventually(Duration::from_secs(10), gone).await.expect("the grandchild is gone");
    }
}
