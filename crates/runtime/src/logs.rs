//! Logs on standard error: events with fields, never payloads or secrets.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How long a line may wait for others to be written with it. One write, and one wake-up of whoever reads the log, for
/// every call would cost as much as a third of the call.
const TOGETHER: Duration = Duration::from_millis(20);
/// So many bytes are written at once without waiting.
const ENOUGH: usize = 32 * 1024;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for people.
    #[default]
    Text,
    /// One JSON object a line for programs.
    Json,
}

/// Writes what waits of the log when it is dropped, which belongs at the end of `main`.
#[derive(Debug)]
pub struct Logs(());

impl Drop for Logs {
    fn drop(&mut self) {
        flush_logs();
    }
}

/// Starts logging for the process. `filter` is a level (`info`) or a list of `target=level`; an unreadable one is an
/// error that repeats it. A second call does nothing.
///
/// Lines below `warn` are written within 20 ms, together; a warning or an error, and all before it, at once. So a
/// process that is killed loses at most the last 20 ms of what was not a warning.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<Logs, String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    // Colours are for people who look at a terminal, and who did not switch them off (no-color.org).
    let terminal = io::stderr().is_terminal();
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = Lines::stderr(terminal);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(lines);
    let started = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
    };
    drop(started);
    Ok(Logs(()))
}

/// Writes what waits of the log.
pub(crate) fn flush_logs() {
    if let Some(lines) = LINES.get() {
        lines.0.write_out(&mut lines.0.waiting());
    }
}

static LINES: OnceLock<Lines> = OnceLock::new();

/// Lines on their way to standard error.
#[derive(Clone)]
struct Lines(Arc<Shared>);

struct Shared {
    waiting: Mutex<Vec<u8>>,
    some: Condvar,
    /// Nothing waits: somebody is looking on.
    direct: bool,
}

impl Lines {
    fn stderr(direct: bool) -> Self {
        let lines = LINES.get_or_init(|| {
            let lines = Self(Arc::new(Shared { waiting: Mutex::default(), some: Condvar::new(), direct }));
            let shared = lines.0.clone();
            // A thread, since lines have to leave also when every task is stuck.
            let writer = std::thread::Builder::new().name("logs".to_owned()).spawn(move || shared.write_for_ever());
            match writer {
                Ok(_) => lines,
                Err(_) => Self(Arc::new(Shared { waiting: Mutex::default(), some: Condvar::new(), direct: true })),
            }
        });
        lines.clone()
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Vec<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_for_ever(&self) {
        loop {
            let waiting = self.some.wait_while(self.waiting(), |waiting| waiting.is_empty());
            drop(waiting.unwrap_or_else(PoisonError::into_inner));
            std::thread::sleep(TOGETHER);
            self.write_out(&mut self.waiting());
        }
    }

    /// Under the lock, so that lines stay in order. A log that cannot be written has nowhere to be told.
    fn write_out(&self, waiting: &mut Vec<u8>) {
        let _unwritten = io::stderr().write_all(waiting);
        waiting.clear();
    }
}

/// One event on its way into [`Lines`].
struct Line<'a> {
    shared: &'a Shared,
    at_once: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.shared.waiting();
        let first = waiting.is_empty();
        waiting.extend_from_slice(line);
        if self.at_once || waiting.len() >= ENOUGH {
            self.shared.write_out(&mut waiting);
        } else if first {
            self.shared.some.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { shared: &self.0, at_once: true }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { shared: &self.0, at_once: self.0.direct || *event.level() <= Level::WARN }
    }
}
