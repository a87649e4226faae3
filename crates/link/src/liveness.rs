//! Noticing a dead peer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A link over which nothing was heard for this long is dead.
pub const DEAD_AFTER: Duration = Duration::from_millis(3500);
/// How often a ping (RFC 9113, 6.7) makes sure that there is something to hear.
const PING_EVERY: Duration = Duration::from_secs(1);

/// When the peer was last heard.
#[derive(Clone, Debug)]
pub(crate) struct LastHeard {
    started: Instant,
    millis: Arc<AtomicU64>,
}

impl LastHeard {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), millis: Arc::default() }
    }

    fn note(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.millis.load(Ordering::Relaxed)))
    }
}

/// Sends pings and returns when the peer has been silent for [`DEAD_AFTER`] or the connection has ended.
///
/// Any byte counts as a sign of life, not only the pong: on a narrow line pongs queue behind data.
pub(crate) async fn watch(mut pings: PingPong, heard: LastHeard) {
    let mut awaiting = false;
    let mut tick = tokio::time::interval(PING_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if heard.silence() >= DEAD_AFTER {
            return;
        }
        if awaiting {
            // Only looked at: the wait is for the next tick, whether the pong has come or not.
            match std::future::poll_fn(|cx| Poll::Ready(pings.poll_pong(cx))).await {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return,
                Poll::Pending => continue,
            }
        }
        if pings.send_ping(Ping::opaque()).is_err() {
            return;
        }
        awaiting = true;
    }
}

/// A byte stream that notes when something arrives.
pub(crate) struct Heard<S> {
    inner: S,
    heard: LastHeard,
}

impl<S> Heard<S> {
    pub(crate) fn new(inner: S, heard: LastHeard) -> Self {
        Self { inner, heard }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.note();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
