//! `SIGTERM` and `SIGINT`: the first drains, a second ends the process at once.

use tokio::signal::unix::{SignalKind, signal};

/// Which signal asked for the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `SIGTERM`.
    Terminate,
    /// `SIGINT`, Ctrl-C.
    Interrupt,
}

/// Waits for the first signal. From then on a second one ends the process at once with exit code 1.
pub async fn stop_signal() -> std::io::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let first = tokio::select! {
        _ = terminate.recv() => Stop::Terminate,
        _ = interrupt.recv() => Stop::Interrupt,
    };
    exit_on(terminate, interrupt);
    Ok(first)
}

#[expect(clippy::disallowed_methods, reason = "the second signal is a request to skip draining")]
fn exit_on(mut terminate: tokio::signal::unix::Signal, mut interrupt: tokio::signal::unix::Signal) {
    drop(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        crate::logs::flush_logs();
        std::process::exit(1);
    }));
}
