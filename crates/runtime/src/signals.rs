//! `SIGTERM` and `SIGINT`: the first drains, a second ends the process at once. `SIGHUP`: read the configuration again.

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

/// `SIGHUP`, which ends the process no more while this listens, nor after.
#[derive(Debug)]
pub struct ReloadSignal(tokio::signal::unix::Signal);

impl ReloadSignal {
    /// Begins to listen.
    pub fn listen() -> std::io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next one. Several that come at once count as one.
    pub async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            // The runtime is ending.
            std::future::pending::<()>().await;
        }
    }
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
