//! The end of the log in memory: what was given a place, and what of it the kernel and the disk have.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::ticket::{Fate, Ticket};
use super::{AppendError, DROPPED, OnFailure};
use crate::call::{ClockSteppedBack, LogOpened, LogRecovered, RecordsDropped};
use crate::hash::Hash;
use crate::kind::kinds;
use crate::line::Draft;
use crate::tree::Frontier;

/// How much may wait to be written, in bytes. Beyond, appending fails as if the disk did.
const MAX_QUEUED: usize = 64 << 20;
/// How far the clock may go back before it is recorded.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// A place in the log, behind some record.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The hash of that record.
    pub(super) prev: Hash,
    /// All records up to it.
    pub(super) tree: Frontier,
    /// The number of the first record of its file.
    pub(super) file_first: u64,
    /// The length of its file so far.
    pub(super) file_bytes: u64,
    /// Its time.
    pub(super) time: Timestamp,
}

/// Who holds it writes; there is one.
#[derive(Debug)]
pub(super) struct Pen {
    pub(super) file: Arc<File>,
    pub(super) path: Arc<Path>,
    /// Its length, without what a failed write may have left.
    pub(super) len: u64,
}

/// Records that are written together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) leaves: Vec<Hash>,
    /// The number of its only record, when that is the first of a new file.
    pub(super) opens: Option<u64>,
    /// The place behind it; absent while it is the last, since more may be added.
    end: Option<Place>,
    pub(super) ticket: Arc<Ticket>,
    /// The records of others than the log itself.
    appended: u64,
    /// Lost records that it tells of.
    reports: Option<Lost>,
}

/// Records that were dropped and of which the log does not tell yet.
#[derive(Debug)]
struct Lost {
    count: u64,
    first: Timestamp,
    last: Timestamp,
    reason: Arc<str>,
}

/// What the keeper is asked, and what it says.
#[derive(Debug, Default)]
pub(super) struct Desk {
    /// Since when there are records behind the newest checkpoint.
    pub(super) uncheckpointed_since: Option<Instant>,
    /// Records before the newest checkpoint.
    pub(super) checkpointed: u64,
    /// Why the last checkpoint could not be written.
    pub(super) problem: Option<Arc<str>>,
    /// The first record that somebody still needs.
    pub(super) hold: u64,
    /// The log is closed: a last checkpoint, and no more.
    pub(super) closing: bool,
    /// Nobody has the log any more.
    pub(super) stop: bool,
    /// How closing went.
    pub(super) closed: Option<Result<(), Arc<str>>>,
}

/// What does not change while a log is open.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) max_file_bytes: u64,
    pub(super) on_failure: OnFailure,
    pub(super) power: bool,
    /// The key that signs checkpoints, as text.
    pub(super) key: String,
}

impl Rules {
    /// What those hear who appended what is lost.
    pub(super) fn fate(&self, reason: &Arc<str>) -> Fate {
        match self.on_failure {
            OnFailure::Deny => Fate::Failed(reason.clone()),
            OnFailure::DropAndCount => Fate::Dropped,
        }
    }
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Head {
    /// Behind all that was given a place.
    now: Place,
    /// Behind all that the kernel has.
    written: Place,
    queue: VecDeque<Batch>,
    queued_bytes: usize,
    /// Absent while somebody writes.
    pub(super) pen: Option<Pen>,
    /// The pen, for the keeper: it goes on with the queue.
    pub(super) handed: Option<Pen>,
    /// The hashes of records that the kernel has, and the keeper not yet.
    pub(super) leaves: Vec<Hash>,
    /// Those who wait until the disk has what the kernel has.
    pub(super) unsynced: Vec<Arc<Ticket>>,
    /// Since when the kernel has what the disk may not have.
    pub(super) unsynced_since: Option<Instant>,
    /// Records that the disk has.
    pub(super) durable: u64,
    pub(super) desk: Desk,
    /// Why the last write failed.
    pub(super) failing: Option<Arc<str>>,
    /// Why nothing can be written any more.
    pub(super) broken: Option<Arc<str>>,
    lost: Option<Lost>,
    pub(super) dropped: u64,
    pub(super) closed: bool,
    spare: Vec<u8>,
}

impl Head {
    /// Of a log that is written up to a place.
    pub(super) fn new(written: Place, pen: Pen, checkpointed: u64, hold: u64) -> Self {
        Self {
            now: written.clone(),
            durable: written.tree.size(),
            desk: Desk { checkpointed, hold, ..Desk::default() },
            written,
            queue: VecDeque::new(),
            queued_bytes: 0,
            pen: Some(pen),
            handed: None,
            leaves: Vec::new(),
            unsynced: Vec::new(),
            unsynced_since: None,
            failing: None,
            broken: None,
            lost: None,
            dropped: 0,
            closed: false,
            spare: Vec::new(),
        }
    }

    /// Behind all that the kernel has.
    pub(super) fn written(&self) -> &Place {
        &self.written
    }

    /// Whether there are lost records of which the log does not tell yet.
    pub(super) fn is_owing(&self) -> bool {
        self.lost.is_some()
    }

    /// Gives records their places, one after the other. Returns the number of the first, and whom to ask for their fate.
    pub(super) fn put(
        &mut self,
        rules: &Rules,
        drafts: &[Draft],
        time: Timestamp,
    ) -> Result<(u64, Option<Arc<Ticket>>), AppendError> {
        let appended = u64::try_from(drafts.len()).expect("a slice in memory");
        let bytes: usize = drafts.iter().map(Draft::most_bytes).sum();
        if self.closed {
            return Err(AppendError::Closed);
        }
        if drafts.is_empty() {
            return Ok((self.now.tree.size(), None));
        }
        let problem = self.broken.clone().or_else(|| {
            let full = self.queued_bytes.saturating_add(bytes) > MAX_QUEUED;
            full.then(|| "more than 64 MiB wait for the disk".into())
        });
        if let Some(problem) = problem {
            return match self.lose(rules, appended, time, &problem) {
                Fate::Failed(reason) => Err(AppendError::Io(reason.to_string())),
                _ => Ok((DROPPED, None)),
            };
        }
        self.make_room(rules, bytes, time);
        self.tell_of_itself(time);
        let first = self.now.tree.size();
        for draft in drafts {
            self.push(draft, time);
        }
        let batch = self.batch();
        batch.appended += appended;
        Ok((first, Some(batch.ticket.clone())))
    }

    /// Goes on with a log: the first records of this process. Returns whom to ask for their fate.
    pub(super) fn restart(&mut self, rules: &Rules, recovered: Option<&LogRecovered>, time: Timestamp) -> Arc<Ticket> {
        let last = self.now.time;
        match self.now.file_bytes >= rules.max_file_bytes {
            true => self.begin_file(rules, "restarted", time),
            false => self.push(&opened(rules, &self.now.tree, "restarted"), time),
        }
        if let Some(recovered) = recovered {
            self.push(&Draft::new(kinds::LOG_RECOVERED, recovered).expect("our own record is small"), time);
        }
        self.tell_of_clock(last, time);
        self.batch().ticket.clone()
    }

    /// Takes what is to be written next, with the place behind it.
    pub(super) fn take(&mut self) -> Option<(Batch, Place)> {
        let mut batch = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(batch.bytes.len());
        let end = batch.end.take().unwrap_or_else(|| self.now.clone());
        Some((batch, end))
    }

    /// Whether there is nothing to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether what is to be written next begins a file.
    pub(super) fn begins_a_file(&self) -> bool {
        self.queue.front().is_some_and(|batch| batch.opens.is_some())
    }

    /// Notes that the kernel has a batch. Returns whom to tell what, and whether to wake the keeper.
    pub(super) fn wrote(&mut self, rules: &Rules, mut batch: Batch, end: Place) -> (Arc<Ticket>, Fate, bool) {
        let records = end.tree.size() - self.written.tree.size();
        metrics::counter!("sortie_audit_records_total").increment(records);
        metrics::counter!("sortie_audit_bytes_total").increment(u64::try_from(batch.bytes.len()).unwrap_or(0));
        self.written = end;
        self.leaves.extend_from_slice(&batch.leaves);
        if self.failing.take().is_some() {
            metrics::gauge!("sortie_audit_failing").set(0);
            tracing::info!("the audit log can be written again");
        }
        let fate = match &self.broken {
            // The disk will not be asked again.
            Some(reason) if rules.power => rules.fate(reason),
            _ => Fate::Written,
        };
        if rules.power && fate == Fate::Written {
            self.unsynced.push(batch.ticket.clone());
        }
        if self.spare.capacity() < batch.bytes.capacity() && batch.bytes.capacity() <= 1 << 20 {
            batch.bytes.clear();
            self.spare = batch.bytes;
        }
        let first = self.unsynced_since.is_none();
        let now = Instant::now();
        self.unsynced_since.get_or_insert(now);
        self.desk.uncheckpointed_since.get_or_insert(now);
        (batch.ticket, fate, first)
    }

    /// Takes back the places of a batch that could not be written, and of all behind it. Returns whom to tell what.
    #[must_use]
    pub(super) fn failed(&mut self, rules: &Rules, batch: Batch, reason: &Arc<str>) -> (Vec<Arc<Ticket>>, Fate) {
        let now = Timestamp::now();
        let mut tickets = Vec::new();
        let mut appended = 0;
        for batch in std::iter::once(batch).chain(std::mem::take(&mut self.queue)) {
            appended += batch.appended;
            if let Some(again) = batch.reports {
                self.owe(again);
            }
            tickets.push(batch.ticket);
        }
        self.queued_bytes = 0;
        self.now = self.written.clone();
        if self.failing.replace(reason.clone()).is_none() {
            metrics::gauge!("sortie_audit_failing").set(1);
            tracing::error!(%reason, "the audit log cannot be written");
        }
        let fate = self.lose(rules, appended, now, reason);
        (tickets, fate)
    }

    /// Gives up for good. Returns those who wait for the disk.
    #[must_use]
    pub(super) fn break_off(&mut self, reason: Arc<str>) -> Vec<Arc<Ticket>> {
        metrics::gauge!("sortie_audit_failing").set(1);
        tracing::error!(%reason, "the audit log takes nothing more until the process is started again");
        self.broken.get_or_insert(reason);
        std::mem::take(&mut self.unsynced)
    }

    /// Adds the records with which the log tells of itself, where there is something to tell.
    pub(super) fn tell_of_itself(&mut self, time: Timestamp) {
        self.tell_of_clock(self.now.time, time);
        if let Some(lost) = self.lost.take() {
            // Apart from what may tell of other losses.
            self.close_batch();
            let Lost { count, first, last, ref reason } = lost;
            let fields = RecordsDropped { count, first: text(first), last: text(last), reason: reason.to_string() };
            self.push(&Draft::new(kinds::RECORDS_DROPPED, &fields).expect("our own record is small"), time);
            self.batch().reports = Some(lost);
        }
    }

    /// Tells of a clock that went back.
    fn tell_of_clock(&mut self, from: Timestamp, to: Timestamp) {
        if Duration::try_from(from.duration_since(to)).is_ok_and(|back| back > CLOCK_SLACK) {
            let fields = ClockSteppedBack { from: text(from), to: text(to) };
            self.push(&Draft::new(kinds::CLOCK_STEPPED_BACK, &fields).expect("our own record is small"), to);
        }
    }

    /// Adds a record of the log's own.
    fn push(&mut self, draft: &Draft, time: Timestamp) {
        let spare = &mut self.spare;
        if self.queue.back().is_none_or(|last| last.end.is_some()) {
            self.queue.push_back(Batch::new(std::mem::take(spare)));
        }
        let batch = self.queue.back_mut().expect("there is one now");
        let (now, begin) = (&mut self.now, batch.bytes.len());
        draft.write(now.tree.size(), &now.prev, time, &mut batch.bytes);
        let hash = Hash::of_leaf(batch.bytes.get(begin..).unwrap_or_default());
        batch.bytes.push(b'\n');
        batch.leaves.push(hash);
        let written = batch.bytes.len() - begin;
        self.queued_bytes += written;
        now.prev = hash;
        now.tree.push(hash);
        now.file_bytes += u64::try_from(written).expect("a line in memory");
        now.time = time;
    }

    /// Begins a new file where the next records do not fit into this one.
    fn make_room(&mut self, rules: &Rules, bytes: usize, time: Timestamp) {
        let after = self.now.file_bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let has_records = self.now.tree.size() > self.now.file_first.saturating_add(1);
        if after > rules.max_file_bytes && has_records {
            self.begin_file(rules, "rotated", time);
        }
    }

    /// Begins a new file with the next record.
    fn begin_file(&mut self, rules: &Rules, reason: &str, time: Timestamp) {
        self.close_batch();
        let opened = opened(rules, &self.now.tree, reason);
        let first = self.now.tree.size();
        (self.now.file_first, self.now.file_bytes) = (first, 0);
        self.push(&opened, time);
        self.batch().opens = Some(first);
        self.close_batch();
    }

    /// The next record is written apart from those before it.
    fn close_batch(&mut self) {
        if let Some(last) = self.queue.back_mut() {
            last.end.get_or_insert_with(|| self.now.clone());
        }
    }

    fn batch(&mut self) -> &mut Batch {
        self.queue.back_mut().expect("a record was just pushed")
    }

    /// Counts records that are lost. Returns what to tell those who appended them.
    fn lose(&mut self, rules: &Rules, count: u64, time: Timestamp, reason: &Arc<str>) -> Fate {
        if count > 0 {
            self.dropped += count;
            self.owe(Lost { count, first: time, last: time, reason: reason.clone() });
        }
        match rules.on_failure {
            OnFailure::Deny => metrics::counter!("sortie_audit_append_failures_total").increment(count),
            OnFailure::DropAndCount => metrics::counter!("sortie_audit_dropped_total").increment(count),
        }
        rules.fate(reason)
    }

    fn owe(&mut self, lost: Lost) {
        match &mut self.lost {
            Some(owed) => {
                owed.count += lost.count;
                owed.first = owed.first.min(lost.first);
                owed.last = owed.last.max(lost.last);
            }
            None => self.lost = Some(lost),
        }
    }
}

impl Batch {
    fn new(bytes: Vec<u8>) -> Self {
        let ticket = Ticket::new();
        Self { bytes, leaves: Vec::new(), opens: None, end: None, ticket, appended: 0, reports: None }
    }
}

/// What a file begins with, and a process.
fn opened(rules: &Rules, tree: &Frontier, reason: &str) -> Draft {
    let opened = LogOpened {
        format: 1,
        reason: reason.to_owned(),
        key: rules.key.clone(),
        frontier: tree.peaks().to_vec(),
        software: concat!("sortie ", env!("CARGO_PKG_VERSION")).to_owned(),
    };
    Draft::new(kinds::LOG_OPENED, &opened).expect("our own record is small")
}

/// The first line of a log.
pub(super) fn first_line(rules: &Rules, time: Timestamp) -> Vec<u8> {
    let mut line = Vec::new();
    opened(rules, &Frontier::default(), "begun").write(0, &Hash::NONE, time, &mut line);
    line.push(b'\n');
    line
}

/// A time as records have it.
fn text(time: Timestamp) -> String {
    format!("{time:.6}")
}
