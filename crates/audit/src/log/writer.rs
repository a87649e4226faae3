//! Writing: whoever has given a record its place and finds the pen free takes it, and writes for all that come meanwhile.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::disk::Disk;
use super::head::{Batch, Head, Pen, Place, Rules};
use super::ticket::{Fate, Ticket};
use super::{AppendError, Clock, DROPPED};
use crate::call::LogRecovered;
use crate::line::Draft;
use crate::note::SigningKey;

/// How many batches one writes before it hands the pen to the keeper, so that nobody writes for the others for ever.
const ROUNDS: usize = 8;

/// What all who use a log share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) dir: PathBuf,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    pub(super) rules: Rules,
    pub(super) key: SigningKey,
    head: Mutex<Head>,
    /// The keeper has something to do.
    pub(super) call: Condvar,
    /// The keeper has closed the log.
    pub(super) closed: Condvar,
    pub(super) durable: watch::Sender<u64>,
    pub(super) checkpoints: watch::Sender<Option<Arc<str>>>,
}

impl Core {
    pub(super) fn new(
        (dir, disk, clock): (PathBuf, Disk, Clock),
        rules: Rules,
        key: SigningKey,
        head: Head,
        newest: Option<Arc<str>>,
    ) -> Self {
        let (durable, checkpoints) = (watch::Sender::new(head.durable), watch::Sender::new(newest));
        Self {
            dir,
            disk,
            clock,
            rules,
            key,
            head: Mutex::new(head),
            call: Condvar::new(),
            closed: Condvar::new(),
            durable,
            checkpoints,
        }
    }

    pub(super) fn head(&self) -> MutexGuard<'_, Head> {
        self.head.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives records their places, and writes them unless somebody else is about to.
    pub(super) fn begin(&self, drafts: &[Draft]) -> Result<(u64, Option<Arc<Ticket>>), AppendError> {
        let mut head = self.head();
        let begun = head.put(&self.rules, drafts, self.clock.now())?;
        self.write_queued(head);
        Ok(begun)
    }

    /// Writes what is queued, if the pen is free.
    pub(super) fn write_queued<'a>(&'a self, mut head: MutexGuard<'a, Head>) {
        let Some(mut pen) = head.pen.take() else { return };
        for _ in 0..ROUNDS {
            if head.begins_a_file() {
                break;
            }
            let Some((batch, end)) = head.take() else { break };
            drop(head);
            head = self.write(&mut pen, batch, end);
        }
        self.lay_down(&mut head, pen);
    }

    /// Gives the pen back; to the keeper where something is left that begins a file, which takes the disk a while, or that
    /// never ends.
    pub(super) fn lay_down(&self, head: &mut Head, pen: Pen) {
        match head.is_empty() {
            true => head.pen = Some(pen),
            false => {
                head.handed = Some(pen);
                self.call.notify_one();
            }
        }
    }

    /// Writes one batch, and tells those who wait for it.
    pub(super) fn write(&self, pen: &mut Pen, batch: Batch, end: Place) -> MutexGuard<'_, Head> {
        if let Err(error) = self.disk.write(&pen.file, &pen.path, &batch.bytes) {
            let cut = self.disk.cut(&pen.file, &pen.path, pen.len);
            return self.give_up(batch, &error, cut.err());
        }
        pen.len = end.file_bytes;
        self.wrote(batch, end)
    }

    /// Tells those who wait for a batch that the kernel has it.
    pub(super) fn wrote(&self, batch: Batch, end: Place) -> MutexGuard<'_, Head> {
        let (ticket, fate, wake) = self.head().wrote(&self.rules, batch, end);
        if wake {
            self.call.notify_one();
        }
        match fate {
            Fate::Written if self.rules.power => ticket.settle_now(fate),
            _ => ticket.settle(fate),
        }
        self.head()
    }

    /// Takes back what could not be written, for good if it cannot be undone.
    pub(super) fn give_up(
        &self,
        batch: Batch,
        error: &std::io::Error,
        stuck: Option<std::io::Error>,
    ) -> MutexGuard<'_, Head> {
        let reason: Arc<str> = error.to_string().into();
        let mut head = self.head();
        let (tickets, fate) = head.failed(&self.rules, batch, &reason);
        let mut more = Vec::new();
        if let Some(stuck) = stuck {
            more = head.break_off(format!("{reason}; and what was half written could not be undone: {stuck}").into());
        }
        self.call.notify_one();
        drop(head);
        tickets.iter().chain(&more).for_each(|ticket| ticket.settle(fate.clone()));
        self.head()
    }

    /// Goes on with a log that was there.
    pub(super) fn restart(&self, recovered: Option<&LogRecovered>) -> Arc<Ticket> {
        let mut head = self.head();
        let ticket = head.restart(&self.rules, recovered, self.clock.now());
        self.write_queued(head);
        ticket
    }

    /// Appends the last record. Returns whom to ask for its fate, if it has one.
    pub(super) fn close(&self, last: &Draft) -> Result<Option<Arc<Ticket>>, AppendError> {
        let mut head = self.head();
        let put = head.put(&self.rules, std::slice::from_ref(last), self.clock.now());
        head.closed = true;
        self.write_queued(head);
        Ok(put?.1)
    }
}

/// What appending comes to.
pub(super) fn outcome(seq: u64, fate: Fate) -> Result<u64, AppendError> {
    match fate {
        Fate::Failed(reason) => Err(AppendError::Io(reason.to_string())),
        Fate::Dropped => Ok(DROPPED),
        Fate::Pending | Fate::Written | Fate::Durable => Ok(seq),
    }
}
