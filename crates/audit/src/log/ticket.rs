//! What those who append wait for.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::Notify;

/// What became of the records that were written together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing yet.
    Pending,
    /// The kernel has them.
    Written,
    /// The disk has them.
    Durable,
    /// They are lost, and were counted.
    Dropped,
    /// They are lost, and whoever appended them must know.
    Failed(Arc<str>),
}

/// The fate of records that are written together. Whoever stops waiting changes nothing.
#[derive(Debug)]
pub(super) struct Ticket {
    fate: Mutex<Fate>,
    changed: Condvar,
    notify: Notify,
}

impl Ticket {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { fate: Mutex::new(Fate::Pending), changed: Condvar::new(), notify: Notify::new() })
    }

    /// Tells all that wait.
    pub(super) fn settle(&self, fate: Fate) {
        self.settle_now(fate);
        self.notify.notify_waiters();
    }

    /// Tells only those who wait for the kernel, where all others wait for the disk.
    pub(super) fn settle_now(&self, fate: Fate) {
        let mut known = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        // The disk may have been faster than whoever tells of the kernel; what it said stays.
        if matches!(*known, Fate::Pending | Fate::Written) {
            *known = fate;
        }
        drop(known);
        self.changed.notify_all();
    }

    /// Waits until the kernel has the records, or the disk when `durable`, or neither ever will.
    pub(super) async fn settled(&self, durable: bool) -> Fate {
        loop {
            let changed = self.notify.notified();
            if let Some(fate) = self.known(durable) {
                return fate;
            }
            changed.await;
        }
    }

    /// Waits in the same way for the kernel, blocking the thread.
    pub(super) fn settled_now(&self) -> Fate {
        let mut fate = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        while *fate == Fate::Pending {
            fate = self.changed.wait(fate).unwrap_or_else(PoisonError::into_inner);
        }
        fate.clone()
    }

    /// Whether it is settled.
    pub(super) fn known(&self, durable: bool) -> Option<Fate> {
        match &*self.fate.lock().unwrap_or_else(PoisonError::into_inner) {
            Fate::Pending => None,
            Fate::Written if durable => None,
            fate => Some(fate.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_disk_said_is_not_taken_back() {
        let ticket = Ticket::new();
        ticket.settle(Fate::Durable);
        ticket.settle_now(Fate::Written);
        assert_eq!(ticket.settled(true).await, Fate::Durable);
        assert_eq!(ticket.settled_now(), Fate::Durable);
    }
}
