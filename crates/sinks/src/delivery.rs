//! One sink's task: from the log to the receiver, in order, and the cursor behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sortie_audit::{AppendError, Draft, Log, SinkDropped, kinds};
use sortie_runtime::{Backoff, TaskSet};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::CONFIRM_EVERY;
use crate::board::{Board, SinkState};
use crate::cursor::Cursor;
use crate::moments::{Moment, Watch};
use crate::reader::{self, Mark, ReadError, Record};
use crate::spec::{OnRefused, SinkSpec};
use crate::transport::{Failure, Sent, Transport};

/// How soon a delivery is tried again: at random up to this, doubled each time up to the longest.
const AGAIN: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);
/// Most records that are sent before they must be confirmed: what is sent twice, at most, after a failure.
const MAX_UNCONFIRMED: u64 = 20_000;
/// Records that are passed over at once when a sink drops some.
const DROP_STEP: usize = 4096;

pub(crate) struct Delivery {
    spec: SinkSpec,
    pub(crate) transport: Transport,
    dir: PathBuf,
    log: Log,
    /// How many records may be delivered.
    durable: watch::Receiver<u64>,
    cursor: Cursor,
    pub(crate) board: Arc<Board>,
    tasks: TaskSet,
    progress: Progress,
    watch: Watch,
}

/// How far it is. What lies between the two marks is sent and not confirmed.
struct Progress {
    confirmed: Mark,
    sent: Mark,
    since: Option<Instant>,
    /// Most records of the next batch: fewer while one that is refused is looked for.
    limit: usize,
    /// Whether the last batch was full, so that there is more to send at once.
    more: bool,
    backoff: Backoff,
}

/// Why a step was not done.
enum Trouble {
    Failed(Failure),
    Unreadable(ReadError),
    Unrecorded(AppendError),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

enum Step {
    Done,
    Ended,
}

impl Progress {
    fn new(mark: Mark, limit: usize) -> Self {
        let backoff = Backoff::new(AGAIN, LONGEST);
        Self { confirmed: mark.clone(), sent: mark, since: None, limit, more: false, backoff }
    }
}

impl Delivery {
    pub(crate) fn new(
        spec: SinkSpec,
        transport: Transport,
        log: Log,
        cursor: Cursor,
        board: Arc<Board>,
        tasks: TaskSet,
        watch: Watch,
    ) -> Self {
        let progress = Progress::new(board.mark(), spec.batch.records);
        let (dir, durable) = (log.dir().to_owned(), log.durable());
        Self { spec, transport, dir, log, durable, cursor, board, tasks, progress, watch }
    }
}

impl Delivery {
    /// Delivers until the tasks are to stop; then what there is, for as long as `flush` at most.
    pub(crate) async fn run(mut self, flush: Duration) {
        let tasks = self.tasks.clone();
        let late = async {
            tasks.stopping().await;
            tokio::time::sleep(flush).await;
        };
        let name = self.spec.name.clone();
        tokio::select! {
            () = self.deliver() => {}
            () = late => tracing::warn!(sink = name, "not everything was delivered in time; the rest is at the next start"),
        }
        self.transport.close().await;
    }

    async fn deliver(&mut self) {
        loop {
            match self.step().await {
                Ok(Step::Done) => {}
                Ok(Step::Ended) => return,
                Err(Trouble::Failed(Failure::Again { why, after })) => self.again(why, after).await,
                Err(Trouble::Failed(Failure::Refused(why))) => self.again(why, Some(LONGEST)).await,
                Err(Trouble::Failed(Failure::Partly(_))) => return self.hold().await,
                Err(Trouble::Unreadable(error)) => self.again(error.to_string(), None).await,
                Err(Trouble::Unrecorded(error)) => self.again(error.to_string(), None).await,
            }
        }
    }

    async fn step(&mut self) -> Result<Step, Trouble> {
        if self.board.overrun() {
            self.drop_oldest().await?;
        }
        let size = *self.durable.borrow_and_update();
        let pending = self.progress.sent.next.saturating_sub(self.progress.confirmed.next);
        let due = self.progress.since.map(|since| since + CONFIRM_EVERY);
        let idle = self.progress.sent.next >= size;
        if due.is_some_and(|due| due <= Instant::now()) || pending >= MAX_UNCONFIRMED {
            self.confirm().await?;
            return Ok(Step::Done);
        }
        if idle && self.tasks.is_stopping() {
            self.confirm().await?;
            return Ok(Step::Ended);
        }
        if idle {
            self.wait(due).await;
            return Ok(Step::Done);
        }
        self.gather(size).await;
        let size = *self.durable.borrow_and_update();
        let records = self.read(size).await?;
        self.watch.tell(Moment::Read);
        self.offer(records).await?;
        Ok(Step::Done)
    }

    /// Sends records; where the receiver finds something wrong in them, fewer the next time, until it is one.
    async fn offer(&mut self, records: Vec<Record>) -> Result<(), Trouble> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            // The log says that there is something, and its file has not; it will have.
            return Err(Failure::again(format!("record {} is not in the log yet", self.progress.sent.next)).into());
        };
        match self.transport.send(&records).await {
            Ok(Sent::Taken) => {
                self.progress.sent = last.after.clone();
                self.confirmed().await;
            }
            Ok(Sent::Unconfirmed) => {
                self.progress.sent = last.after.clone();
                self.progress.since.get_or_insert_with(Instant::now);
                self.watch.tell(Moment::Sent);
            }
            Err(Failure::Refused(_)) if records.len() > 1 => {
                self.progress.limit = records.len() / 2;
                return Ok(());
            }
            Err(Failure::Refused(why)) if self.spec.on_refused == OnRefused::Skip => {
                tracing::warn!(sink = self.spec.name, record = first.seq, "a record is refused and skipped: {why}");
                self.confirm().await?;
                // A record about a refusal that is refused itself would make another one, and so on without end.
                let told = !String::from_utf8_lossy(&first.line).contains(r#","event":"sink_dropped","#);
                self.give_up(last.after.clone(), 1, "refused", told).await?;
            }
            Err(Failure::Refused(why)) => {
                self.confirm().await?;
                let why = format!(
                    "record {} is refused for good: {why}; nothing is delivered until it is taken, or \
                     on_refused = \"skip\" is set",
                    first.seq
                );
                self.board.failed(SinkState::Stopped, why.clone());
                return Err(Failure::Refused(why).into());
            }
            Err(Failure::Partly(refused)) => {
                let (first, last) = (first.seq, last.after.clone());
                tracing::warn!(sink = self.spec.name, first, refused, "records of a batch are refused");
                if self.spec.on_refused == OnRefused::Stop {
                    let why = format!(
                        "{refused} of the records {first} to {} are refused for good; nothing is delivered until the \
                         next start, or on_refused = \"skip\" is set",
                        last.next.saturating_sub(1)
                    );
                    self.board.failed(SinkState::Stopped, why);
                    return Err(Failure::Partly(refused).into());
                }
                self.give_up(last, refused, "refused", true).await?;
            }
            Err(failure) => return Err(failure.into()),
        }
        self.progress.limit = self.progress.limit.saturating_mul(2).min(self.spec.batch.records).max(1);
        Ok(())
    }

    /// Has the receiver say that it has everything.
    async fn confirm(&mut self) -> Result<(), Trouble> {
        self.transport.confirm().await?;
        self.confirmed().await;
        Ok(())
    }

    /// Everything that was sent is delivered.
    async fn confirmed(&mut self) {
        self.progress.since = None;
        if self.progress.sent.next == self.progress.confirmed.next {
            return;
        }
        self.watch.tell(Moment::Acknowledged);
        self.progress.backoff.reset();
        self.progress.confirmed = self.progress.sent.clone();
        self.board.delivered(self.progress.confirmed.clone());
        self.save().await;
        self.watch.tell(Moment::Moved);
    }

    /// What cannot be written now is written with the next delivery; until then a crash has records sent twice.
    async fn save(&self) {
        let (cursor, mark) = (self.cursor.clone(), self.progress.confirmed.clone());
        let saved = tokio::task::spawn_blocking(move || cursor.save(&mark)).await;
        if let Ok(Err(error)) = saved {
            let path = self.cursor.path().display();
            tracing::error!(sink = self.spec.name, "cannot write {path}: {error}; records may be delivered twice");
        }
    }

    /// Goes on behind records that are not delivered, which is recorded first.
    async fn give_up(&mut self, to: Mark, records: u64, why: &'static str, told: bool) -> Result<(), Trouble> {
        let from = self.progress.sent.next.min(self.progress.confirmed.next);
        if told {
            let fields = SinkDropped {
                sink: self.spec.name.clone(),
                first: from,
                last: to.next.saturating_sub(1),
                records,
                reason: why.to_owned(),
            };
            let draft = Draft::new(kinds::SINK_DROPPED, &fields).map_err(AppendError::from);
            self.log.append(&draft.map_err(Trouble::Unrecorded)?).await.map_err(Trouble::Unrecorded)?;
        }
        self.transport.forget();
        self.board.dropped(to.clone(), records, why);
        self.progress = Progress { limit: self.progress.limit, ..Progress::new(to, self.spec.batch.records) };
        self.save().await;
        Ok(())
    }

    /// Gives up the oldest records until an eighth of the room is free.
    async fn drop_oldest(&mut self) -> Result<(), Trouble> {
        let size = *self.durable.borrow();
        let wanted = self.spec.spool_bytes / 8 * 7;
        let (dir, from) = (self.dir.clone(), self.progress.confirmed.clone());
        let found = blocking(move || {
            let mut mark = from;
            while mark.next < size && reader::bytes_behind(&dir, &mark)? > wanted {
                match reader::read(&dir, &mark, size, DROP_STEP, 1 << 20)?.pop() {
                    Some(last) => mark = last.after,
                    None => break,
                }
            }
            Ok(mark)
        });
        let to = found.await.map_err(Trouble::Unreadable)?;
        let records = to.next.saturating_sub(self.progress.confirmed.next);
        if records > 0 {
            let (sink, first) = (&self.spec.name, self.progress.confirmed.next);
            tracing::error!(sink, first, records, "records are dropped, since the sink is too far behind");
            self.progress.sent = self.progress.confirmed.clone();
            self.give_up(to, records, "full", true).await?;
        }
        self.board.overrun_handled();
        Ok(())
    }

    /// The next records. Where their files are gone, they are given up.
    async fn read(&mut self, size: u64) -> Result<Vec<Record>, Trouble> {
        loop {
            let (dir, from) = (self.dir.clone(), self.progress.sent.clone());
            let (records, bytes) = (self.progress.limit, self.spec.batch.bytes);
            match blocking(move || reader::read(&dir, &from, size, records, bytes)).await {
                Ok(found) => {
                    let next = found.last().map_or(size, |last| last.after.next);
                    self.progress.more = next < size;
                    return Ok(found);
                }
                Err(ReadError::Gone { from, next }) => {
                    self.confirm().await?;
                    tracing::error!(
                        sink = self.spec.name,
                        from,
                        next,
                        "records were removed before they were delivered"
                    );
                    let records = next.saturating_sub(from);
                    self.give_up(Mark::at_file(next), records, "removed", true).await?;
                }
                Err(error) => return Err(Trouble::Unreadable(error)),
            }
        }
    }

    /// Lets a batch become larger, for a moment.
    async fn gather(&mut self, size: u64) {
        let wanted = u64::try_from(self.spec.batch.records).unwrap_or(u64::MAX);
        let wanted = self.progress.sent.next.saturating_add(wanted);
        if self.progress.more || size >= wanted {
            return;
        }
        let mut durable = self.durable.clone();
        tokio::select! {
            _ = durable.wait_for(|size| *size >= wanted) => {}
            () = tokio::time::sleep(self.spec.batch.wait) => {}
            () = self.tasks.stopping() => {}
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self, due: Option<Instant>) {
        let grown = async {
            if self.durable.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = grown => {}
            () = due => {}
            () = self.tasks.stopping() => {}
            () = self.board.disturbed.notified() => {}
        }
    }

    /// Begins again behind what is confirmed, after a rest.
    async fn again(&mut self, why: String, after: Option<Duration>) {
        self.board.failed_unless_stopped(why);
        self.transport.forget();
        self.progress.sent = self.progress.confirmed.clone();
        self.progress.since = None;
        let rest = self.progress.backoff.next(random()).max(after.unwrap_or_default());
        let stopping = async {
            if self.tasks.is_stopping() {
                std::future::pending::<()>().await;
            }
            self.tasks.stopping().await;
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = stopping => {}
            () = self.board.disturbed.notified() => {}
        }
    }

    /// Delivers nothing more.
    async fn hold(&mut self) {
        self.tasks.stopping().await;
    }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(_) => Err(ReadError::Io(PathBuf::new(), std::io::Error::other("the program is ending"))),
    }
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness everybody waits equally long, which is no harm.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}
