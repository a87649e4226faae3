//! The thread that brings records to the disk, signs checkpoints and begins files. It sleeps while there is nothing to do.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::head::{Batch, Pen, Place};
use super::ticket::{Fate, Ticket};
use super::writer::Core;
use super::{DROPPED, Options};
use crate::call::FilesRemoved;
use crate::kind::kinds;
use crate::line::Draft;
use crate::tree_cache::Filler;

/// When the disk is asked for what the kernel has, after the first write: it has it within 10 ms unless it is slow.
const SYNC_AFTER: Duration = Duration::from_millis(8);
/// When something that failed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How many checkpoints are kept beside the last one of each file.
const CHECKPOINTS: usize = 256;

/// What the thread owns.
pub(super) struct Keeper {
    core: Arc<Core>,
    file: Arc<File>,
    path: Arc<Path>,
    limits: Limits,
    /// Of the newest checkpoint.
    checkpointed: u64,
    /// When a checkpoint, or the telling of losses, may be tried again.
    again: Instant,
    /// The sizes of checkpoints that are not the last one of a file, oldest first.
    loose: VecDeque<u64>,
    /// The files, oldest first: the number of their first record, and their length; of the last it is not known.
    files: VecDeque<(u64, u64)>,
    /// Files that go when this record has a checkpoint: all before the number.
    leaving: Option<(u64, Arc<Ticket>, u64)>,
    filler: Filler,
}

/// When something is done.
struct Limits {
    sync_after: Duration,
    checkpoint_records: u64,
    checkpoint_every: Duration,
    keep_bytes: Option<u64>,
    keep: Option<Duration>,
}

/// What there is to do.
enum Task {
    Write(Pen),
    Sync,
    Checkpoint,
    Report,
    Close,
    Stop,
}

impl Keeper {
    pub(super) fn new(
        core: Arc<Core>,
        options: &Options,
        (file, path): (Arc<File>, Arc<Path>),
        (files, sizes): (VecDeque<(u64, u64)>, Vec<u64>),
        filler: Filler,
    ) -> Self {
        let power = core.rules.power;
        let limits = Limits {
            sync_after: if power { Duration::ZERO } else { SYNC_AFTER },
            checkpoint_records: options.checkpoint_records.max(1),
            checkpoint_every: options.checkpoint_every,
            keep_bytes: options.keep_bytes,
            keep: options.keep_days.map(|days| Duration::from_secs(u64::from(days) * 24 * 3600)),
        };
        let checkpointed = core.head().desk.checkpointed;
        let loose = sizes.into_iter().filter(|size| !files.iter().any(|(first, _)| first == size)).collect();
        let again = Instant::now();
        Self { core, file, path, limits, checkpointed, again, loose, files, leaving: None, filler }
    }

    /// Works until the log is closed or nobody has it any more.
    pub(super) fn run(mut self) {
        loop {
            match self.next() {
                Task::Write(pen) => self.write(pen),
                Task::Sync => drop(self.sync()),
                Task::Checkpoint => drop(self.checkpoint()),
                Task::Report => self.report(),
                Task::Close => {
                    let closed = self.checkpoint().map_err(|error| error.to_string().into());
                    self.core.head().desk.closed = Some(closed);
                    self.core.closed.notify_all();
                    return;
                }
                Task::Stop => return drop(self.sync()),
            }
        }
    }

    /// Waits for something to do.
    fn next(&mut self) -> Task {
        let mut head = self.core.head();
        loop {
            let now = Instant::now();
            let mut soonest: Option<Instant> = None;
            let mut due = |at: Instant| {
                soonest = Some(soonest.map_or(at, |other| other.min(at)));
                at <= now
            };
            if head.broken.is_none() {
                if head.unsynced_since.is_some_and(|since| due(since + self.limits.sync_after)) {
                    return Task::Sync;
                }
                let behind = head.written().tree.size().saturating_sub(self.checkpointed);
                let many = behind >= self.limits.checkpoint_records;
                let every = if many { Duration::ZERO } else { self.limits.checkpoint_every };
                let since = head.desk.uncheckpointed_since.filter(|_| behind > 0);
                if since.is_some_and(|since| due((since + every).max(self.again))) {
                    return Task::Checkpoint;
                }
                if head.is_owing() && due(self.again) {
                    return Task::Report;
                }
            }
            if let Some(pen) = head.handed.take() {
                return Task::Write(pen);
            }
            if head.desk.closing && head.desk.closed.is_none() {
                return Task::Close;
            }
            if head.desk.stop {
                return Task::Stop;
            }
            let call = &self.core.call;
            head = match soonest {
                None => call.wait(head).unwrap_or_else(PoisonError::into_inner),
                Some(at) => call.wait_timeout(head, at - now).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Goes on with the queue: one batch.
    fn write(&mut self, mut pen: Pen) {
        let taken = self.core.head().take();
        let core = self.core.clone();
        let mut head = match taken {
            None => core.head(),
            Some((batch, end)) if batch.opens.is_none() => core.write(&mut pen, batch, end),
            Some((batch, end)) => {
                self.begin_file(&mut pen, batch, end);
                core.head()
            }
        };
        core.lay_down(&mut head, pen);
    }

    /// Ends the file with a checkpoint, and begins the next one with its first record.
    fn begin_file(&mut self, pen: &mut Pen, batch: Batch, end: Place) {
        let first = batch.opens.unwrap_or_default();
        let path: Arc<Path> = self.core.dir.join(format!("log/{first:020}.jsonl")).into();
        let made = self.checkpoint().map_err(|error| (error, None)).and_then(|()| self.make(&path, &batch.bytes));
        let file = match made {
            Ok(file) => Arc::new(file),
            Err((error, stuck)) => return drop(self.core.give_up(batch, &error, stuck)),
        };
        if let Some(last) = self.files.back_mut() {
            last.1 = pen.len;
        }
        self.files.push_back((first, 0));
        // The checkpoint that was just written is the last one of its file.
        self.loose.pop_back_if(|size| *size == first);
        *pen = Pen { file: file.clone(), path: path.clone(), len: end.file_bytes };
        (self.file, self.path) = (file, path);
        drop(self.core.wrote(batch, end));
    }

    /// Makes a file of the log. After an error it is not there, or the second one says why it still is.
    fn make(&self, path: &Path, bytes: &[u8]) -> Result<File, (io::Error, Option<io::Error>)> {
        let disk = &self.core.disk;
        let made = disk.replace(path, &self.core.dir.join("new"), bytes).and_then(|()| disk.open(path));
        made.map_err(|error| {
            let gone = match path.try_exists() {
                Ok(false) => Ok(()),
                _ => disk.remove(path).and_then(|()| disk.sync_dir(&self.core.dir.join("log"))),
            };
            (error, gone.err())
        })
    }

    /// Brings to the disk what the kernel has. An error ends the log: what of it the disk has is not known any more, and a
    /// second try would say that all is well.
    fn sync(&mut self) -> io::Result<()> {
        let (size, tickets, since) = {
            let mut head = self.core.head();
            (head.written().tree.size(), std::mem::take(&mut head.unsynced), head.unsynced_since.take())
        };
        let Some(since) = since else { return Ok(()) };
        if let Err(error) = self.core.disk.sync(&self.file, &self.path) {
            let reason: Arc<str> = format!("the disk did not take what was written: {error}").into();
            let more = self.core.head().break_off(reason.clone());
            let fate = self.core.rules.fate(&reason);
            tickets.iter().chain(&more).for_each(|ticket| ticket.settle(fate.clone()));
            return Err(error);
        }
        metrics::histogram!("sortie_audit_sync_seconds").record(since.elapsed());
        self.core.head().durable = size;
        self.core.durable.send_replace(size);
        tickets.iter().for_each(|ticket| ticket.settle(Fate::Durable));
        Ok(())
    }

    /// Signs what the kernel has, when the disk has it.
    fn checkpoint(&mut self) -> io::Result<()> {
        let (tree, leaves) = {
            let mut head = self.core.head();
            if let Some(reason) = &head.broken {
                return Err(io::Error::other(reason.to_string()));
            }
            head.desk.uncheckpointed_since = None;
            (head.written().tree.clone(), std::mem::take(&mut head.leaves))
        };
        self.sync()?;
        self.filler.add(leaves);
        let size = tree.size();
        if size == self.checkpointed {
            return Ok(());
        }
        let note: Arc<str> = self.core.key.sign(size, tree.root()).into();
        let path = self.core.dir.join(format!("checkpoints/{size:020}"));
        let written = self.core.disk.replace(&path, &self.core.dir.join("new"), note.as_bytes());
        let mut head = self.core.head();
        if let Err(error) = written {
            metrics::counter!("sortie_audit_checkpoint_failures_total").increment(1);
            self.again = Instant::now() + AGAIN_AFTER;
            head.desk.uncheckpointed_since = Some(Instant::now());
            if head.desk.problem.replace(error.to_string().into()).is_none() {
                tracing::error!(%error, path = %path.display(), "a checkpoint of the audit log cannot be written");
            }
            return Err(error);
        }
        head.desk.checkpointed = size;
        head.desk.problem = None;
        drop(head);
        self.checkpointed = size;
        self.core.checkpoints.send_replace(Some(note));
        self.loose.push_back(size);
        self.filler.fill();
        self.thin();
        self.retain();
        Ok(())
    }

    /// Tells of losses, when nothing else is written.
    fn report(&mut self) {
        self.again = Instant::now() + AGAIN_AFTER;
        let mut head = self.core.head();
        head.tell_of_itself(self.core.clock.now());
        self.core.write_queued(head);
    }

    /// Removes checkpoints that are neither new nor the last one of a file.
    fn thin(&mut self) {
        while self.loose.len() > CHECKPOINTS {
            let Some(size) = self.loose.pop_front() else { return };
            let path = self.core.dir.join(format!("checkpoints/{size:020}"));
            if let Err(error) = self.core.disk.remove(&path) {
                tracing::warn!(%error, path = %path.display(), "an old checkpoint of the audit log cannot be removed");
            }
        }
    }

    /// Removes the oldest files where the settings ask for it: first the log says so, and when a checkpoint holds that, they
    /// go.
    fn retain(&mut self) {
        if let Some((seq, ticket, to)) = self.leaving.take() {
            let needed = self.core.head().desk.hold < to;
            match ticket.known(false) {
                Some(Fate::Written | Fate::Durable) if needed => {}
                Some(Fate::Written | Fate::Durable) if seq < self.checkpointed => self.remove_before(to),
                Some(Fate::Written | Fate::Durable) | None => self.leaving = Some((seq, ticket, to)),
                Some(_) => {}
            }
            return;
        }
        let (files, to) = self.superfluous();
        let Some((from, _)) = self.files.front().filter(|_| files > 0) else { return };
        let fields = FilesRemoved { files, from: *from, to };
        let told = Draft::new(kinds::FILES_REMOVED, &fields).map_err(super::AppendError::from);
        if let Ok((seq, Some(ticket))) = told.and_then(|draft| self.core.begin(&[draft]))
            && seq != DROPPED
        {
            self.leaving = Some((seq, ticket, to));
        }
    }

    /// How many of the oldest files may go, and the number of the first record that stays.
    fn superfluous(&self) -> (u64, u64) {
        let needed = self.core.head().desk.hold.min(self.checkpointed);
        let mut bytes: u64 = self.files.iter().map(|(_, bytes)| bytes).sum();
        let (mut count, mut to) = (0, 0);
        for ((first, len), (next, _)) in self.files.iter().zip(self.files.iter().skip(1)) {
            let path = self.core.dir.join(format!("log/{first:020}.jsonl"));
            let is_old = self.limits.keep.is_some_and(|keep| {
                let modified = std::fs::metadata(&path).and_then(|meta| meta.modified());
                modified.is_ok_and(|at| {
                    SystemTime::from(self.core.clock.now()).duration_since(at).is_ok_and(|age| age > keep)
                })
            });
            let is_much = self.limits.keep_bytes.is_some_and(|keep| bytes > keep);
            if *next > needed || !(is_old || is_much) {
                break;
            }
            (count, to, bytes) = (count + 1, *next, bytes.saturating_sub(*len));
        }
        (count, to)
    }

    fn remove_before(&mut self, to: u64) {
        while let Some((first, _)) = self.files.pop_front_if(|(first, _)| *first < to) {
            let path = self.core.dir.join(format!("log/{first:020}.jsonl"));
            match self.core.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "an old file of the audit log cannot be removed");
                }
                _ => {}
            }
        }
        if let Err(error) = self.core.disk.sync_dir(&self.core.dir.join("log")) {
            tracing::warn!(%error, "the removal of old files of the audit log may be undone by a power cut");
        }
    }
}
