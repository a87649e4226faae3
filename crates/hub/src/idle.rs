//! When a connection has no request, and has had none for so long that its place is better given to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The requests of one connection. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Requests(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    /// Begins and ends so far.
    events: AtomicU64,
}

/// A request that is not answered to the end.
pub(crate) struct Open(Requests);

impl Requests {
    pub(crate) fn begin(&self) -> Open {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.events.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    /// Completes when there was no request at all for a while: `first` before the first one, `later` behind another.
    pub(crate) async fn none_for(&self, first: Duration, later: Duration) {
        loop {
            let events = self.0.events.load(Ordering::Relaxed);
            tokio::time::sleep(if events == 0 { first } else { later }).await;
            if self.0.open.load(Ordering::Relaxed) == 0 && self.0.events.load(Ordering::Relaxed) == events {
                return;
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.events.fetch_add(1, Ordering::Relaxed);
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_open_request_holds_its_connection_and_its_end_begins_a_new_wait() {
        let requests = Requests::default();
        let began = Instant::now();
        requests.none_for(FIRST, LATER).await;
        assert_eq!(began.elapsed(), FIRST);

        let open = requests.begin();
        let held = tokio::time::timeout(LATER * 100, requests.none_for(FIRST, LATER)).await;
        assert!(held.is_err(), "a stream may be open for hours");
        let waiting = requests.none_for(FIRST, LATER);
        let ended = async {
            tokio::time::sleep(LATER / 2).await;
            drop(open);
            Instant::now()
        };
        let ((), ended) = tokio::join!(waiting, ended);
        assert!(ended.elapsed() >= LATER);
    }
}
