//! When a connection's place is better given to another: it has had no request for long, or only such as were given up.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sortie_runtime::http::{GIVEN_UP_WITHIN, MAX_GIVEN_UP};
use tokio::sync::Notify;
use tokio::time::Instant;

/// The requests of one connection. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Requests(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    /// Begins and ends so far.
    events: AtomicU64,
    /// Requests that were given up since then.
    given_up: Mutex<Option<(Instant, usize)>>,
    too_many: Notify,
}

/// A request that is not answered to the end.
pub(crate) struct Open {
    requests: Requests,
    complete: bool,
}

impl Requests {
    pub(crate) fn begin(&self) -> Open {
        self.0.open.fetch_add(1, Ordering::Relaxed);
        self.0.events.fetch_add(1, Ordering::Relaxed);
        Open { requests: self.clone(), complete: false }
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

impl Requests {
    /// Completes when the client has given up more requests within a short time than any honest one would: each was
    /// work for nothing, here and behind us (CVE-2023-44487).
    pub(crate) async fn too_many_given_up(&self) {
        self.0.too_many.notified().await;
    }

    fn given_up(&self) {
        let mut given_up = self.0.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) =
            given_up.take().filter(|(since, _)| since.elapsed() < GIVEN_UP_WITHIN).unwrap_or((Instant::now(), 0));
        if count >= MAX_GIVEN_UP {
            self.0.too_many.notify_one();
        }
        *given_up = Some((since, count.saturating_add(1)));
    }
}

impl Open {
    /// Its answer went out whole.
    pub(crate) fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let counts = &self.requests.0;
        counts.events.fetch_add(1, Ordering::Relaxed);
        counts.open.fetch_sub(1, Ordering::Relaxed);
        if !self.complete {
            self.requests.given_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const LATER: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_requests_that_are_given_up_is_too_many_and_answered_ones_are_not() {
        let requests = Requests::default();
        let too_many =
            async || tokio::time::timeout(Duration::from_millis(1), requests.too_many_given_up()).await.is_ok();
        for _ in 0..10 * MAX_GIVEN_UP {
            requests.begin().complete();
        }
        for _ in 0..MAX_GIVEN_UP {
            drop(requests.begin());
        }
        assert!(!too_many().await);
        tokio::time::advance(GIVEN_UP_WITHIN).await;
        for _ in 0..MAX_GIVEN_UP {
            drop(requests.begin());
        }
        assert!(!too_many().await, "the old ones are forgotten");
        drop(requests.begin());
        assert!(too_many().await);
    }

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
