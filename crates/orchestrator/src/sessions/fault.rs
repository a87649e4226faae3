//! A kill at a step, for tests: from then on nothing is stored, shown or begun.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Semaphore;

pub(super) struct Fault {
    /// Steps until the kill; none when it is negative.
    left: AtomicI64,
    before: AtomicI64,
    killed: Semaphore,
}

impl Default for Fault {
    fn default() -> Self {
        Self { left: AtomicI64::new(-1), before: AtomicI64::new(-1), killed: Semaphore::new(0) }
    }
}

impl Fault {
    /// Kills at this step from now on, right before it is stored or right after.
    pub(super) fn arm(&self, step: i64, before: bool) {
        let armed = if before { &self.before } else { &self.left };
        armed.store(step, Ordering::SeqCst);
    }

    /// Completes when it has struck.
    pub(super) async fn killed(&self) {
        let _struck = self.killed.acquire().await;
    }

    pub(super) async fn before_commit(&self) {
        self.strike(&self.before).await;
    }

    pub(super) async fn after_commit(&self) {
        self.strike(&self.left).await;
    }

    async fn strike(&self, left: &AtomicI64) {
        let at = left.load(Ordering::SeqCst);
        if at < 0 {
            return;
        }
        if left.fetch_sub(1, Ordering::SeqCst) <= 1 {
            left.store(0, Ordering::SeqCst);
            self.killed.add_permits(1);
            std::future::pending::<()>().await;
        }
    }
}
