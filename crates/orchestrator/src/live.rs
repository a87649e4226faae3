//! Sessions as they are watched: each event to every reader, in order, right after it is stored.
//!
//! A reader is a bounded queue and nothing else: no task, no timer. What is published is written as a frame of SSE once, and
//! shared by all readers. A reader that falls behind by [`MAX_FRAMES`] or [`MAX_BYTES`] is told so and closed, and no other
//! reader notices; long before that it is given no more previews, which are worth nothing once the event is there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use sortie_api::{Event, EventBody};
use sortie_ids::{EventId, SessionId};
use sortie_runtime::TaskSet;

/// Frames that a reader may be behind by.
pub const MAX_FRAMES: usize = 1024;
/// Bytes that a reader may be behind by; a single larger frame passes when nothing else waits.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Frames that a reader may be behind by while it still gets previews.
const MAX_PREVIEWS: usize = MAX_FRAMES / 4;
/// How often quiet readers are looked for, and after how many such looks one is sent a ping: at most 15 s of silence.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const QUIET_LOOKS: u8 = 2;
/// Frames that a queue keeps room for once it is empty.
const KEPT_ROOM: usize = 8;

const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// What is published of a session.
#[derive(Clone, Debug)]
pub enum Frame {
    /// An event, as it was stored; an event of a client is published when it waits, and again when it took its place.
    Event(Arc<Event>),
    /// The event with this id is being written: `agent.thinking`, or else `agent.message`.
    Start {
        /// The event.
        id: EventId,
        /// Whether it is `agent.thinking`, of which there is no more to preview.
        thinking: bool,
    },
    /// More text of an event that is being written.
    Delta {
        /// The event.
        id: EventId,
        /// The block of its content.
        index: usize,
        /// What is appended to the block's text.
        text: String,
    },
    /// The session is deleted; its streams end.
    Deleted,
}

/// Which events a reader wants to see while they are being written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    /// Those of the type `agent.message`.
    pub message: bool,
    /// Those of the type `agent.thinking`.
    pub thinking: bool,
}

/// Whose right to read ends, and when.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The id of what was presented, such as a key's.
    pub id: String,
    /// When it expires.
    pub until: Option<Timestamp>,
}

/// All streams. Clones are of the same.
#[derive(Clone, Default)]
pub struct Live(Arc<Inner>);

#[derive(Default)]
struct Inner {
    sessions: Mutex<HashMap<SessionId, Arc<Channel>>>,
    /// The number of the next reader.
    next: AtomicU64,
    stopped: AtomicBool,
}

/// The readers of one session, in the order in which they came.
#[derive(Default)]
struct Channel(Mutex<BTreeMap<u64, Arc<Reader>>>);

struct Reader {
    deltas: Deltas,
    holder: Option<Holder>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    /// In those frames.
    bytes: usize,
    /// Events that are being previewed.
    previews: Vec<EventId>,
    /// Looks since something was queued.
    quiet: u8,
    /// Nothing follows what is queued.
    ended: bool,
    waker: Option<Waker>,
}

/// One reader's stream: frames of SSE from the moment of [`Live::subscribe`] on. It ends when the session is terminated or
/// deleted, when the reader falls behind, when its right to read ends, and when the hub stops. Dropped, it is forgotten.
pub struct Subscription {
    live: Live,
    session: SessionId,
    number: u64,
    reader: Arc<Reader>,
}

/// What is published, written once for all.
struct Written {
    bytes: Bytes,
    what: What,
}

enum What {
    Event { id: EventId, ends_previews: bool, last: bool },
    Start { id: EventId, thinking: bool },
    Delta { id: EventId },
}

impl Live {
    /// Streams that are kept awake by pings until the set is stopped, which ends them.
    pub fn start(tasks: &TaskSet) -> Self {
        let live = Self::default();
        let (streams, stop) = (live.clone(), tasks.clone());
        tasks.spawn("session-pings", async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    _ = look.tick() => streams.look(Timestamp::now()),
                    () = stop.stopping() => return streams.stop(),
                }
            }
        });
        live
    }

    /// Shows something of a session to whoever watches it. To be called in order, after it was stored.
    pub fn publish(&self, session: &SessionId, frame: Frame) {
        let channel = locked(&self.0.sessions).get(session).cloned();
        let Some(channel) = channel else { return };
        let Some(written) = Written::of(frame) else { return };
        for reader in locked(&channel.0).values() {
            reader.push(&written);
        }
    }

    /// Watches a session from now on: whatever is published after this returned is in the stream.
    pub fn subscribe(&self, session: &SessionId, deltas: Deltas, holder: Option<Holder>) -> Subscription {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let reader = Arc::new(Reader { deltas, holder, queue: Mutex::default() });
        {
            let mut sessions = locked(&self.0.sessions);
            let channel = sessions.entry(session.clone()).or_default();
            locked(&channel.0).insert(number, reader.clone());
        }
        if self.0.stopped.load(Ordering::SeqCst) {
            reader.end(None);
        }
        Subscription { live: self.clone(), session: session.clone(), number, reader }
    }

    /// Ends the streams of a holder whose right to read has ended.
    pub fn revoke(&self, holder: &str) {
        self.each(|reader| {
            if reader.holder.as_ref().is_some_and(|known| known.id == holder) {
                reader.end(None);
            }
        });
    }

    /// Ends all streams; readers may open them again.
    pub fn end_all(&self) {
        self.each(|reader| reader.end(None));
    }

    /// How many streams there are.
    pub fn readers(&self) -> usize {
        let channels: Vec<_> = locked(&self.0.sessions).values().cloned().collect();
        channels.iter().map(|channel| locked(&channel.0).len()).sum()
    }

    fn look(&self, now: Timestamp) {
        let ping = Bytes::from_static(PING);
        self.each(|reader| {
            let expires = reader.holder.as_ref().and_then(|holder| holder.until);
            if expires.is_some_and(|until| until <= now) {
                reader.end(None);
            } else {
                reader.look(&ping);
            }
        });
    }

    fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.each(|reader| reader.end(None));
    }

    fn each(&self, mut what: impl FnMut(&Reader)) {
        let channels: Vec<_> = locked(&self.0.sessions).values().cloned().collect();
        for channel in channels {
            locked(&channel.0).values().for_each(|reader| what(reader));
        }
    }

    fn forget(&self, session: &SessionId, number: u64) {
        let mut sessions = locked(&self.0.sessions);
        let Some(channel) = sessions.get(session) else { return };
        let empty = {
            let mut readers = locked(&channel.0);
            readers.remove(&number);
            readers.is_empty()
        };
        if empty {
            sessions.remove(session);
        }
    }
}

impl Written {
    fn of(frame: Frame) -> Option<Self> {
        Some(match frame {
            Frame::Event(event) => Self::event(&event)?,
            Frame::Start { id, thinking } => {
                let kind = if thinking { "agent.thinking" } else { "agent.message" };
                let data = json!({"type": "event_start", "event": {"type": kind, "id": id}});
                Self { bytes: frame_of("event_start", &data)?, what: What::Start { id, thinking } }
            }
            Frame::Delta { id, index, text } => {
                let content = json!({"type": "text", "text": text});
                let delta = json!({"type": "content_delta", "index": index, "content": content});
                let data = json!({"type": "event_delta", "event_id": id, "delta": delta});
                Self { bytes: frame_of("event_delta", &data)?, what: What::Delta { id } }
            }
            Frame::Deleted => {
                let body = EventBody::SessionDeleted {};
                Self::event(&Event { id: EventId::random(), processed_at: Some(Timestamp::now()), body })?
            }
        })
    }

    fn event(event: &Event) -> Option<Self> {
        let body = &event.body;
        let last = matches!(body, EventBody::SessionDeleted {} | EventBody::SessionStatusTerminated {});
        let ends_previews = matches!(body, EventBody::ModelRequestEnd { .. });
        let what = What::Event { id: event.id.clone(), ends_previews, last };
        Some(Self { bytes: frame_of(name(body.kind()), event)?, what })
    }
}

impl Reader {
    fn push(&self, written: &Written) {
        let mut queue = locked(&self.queue);
        if queue.ended {
            return;
        }
        let behind = queue.frames.len() >= MAX_PREVIEWS || queue.bytes >= MAX_BYTES / 4;
        match &written.what {
            What::Event { id, ends_previews, last } => {
                queue.previews.retain(|preview| preview != id && !ends_previews);
                queue.ended = *last;
            }
            What::Start { thinking: true, .. } if self.deltas.thinking && !behind => {}
            What::Start { id, thinking: false } if self.deltas.message && !behind => queue.previews.push(id.clone()),
            What::Start { .. } => return,
            What::Delta { id } => {
                if behind {
                    // What was shown must be a beginning of the whole: nothing may be left out and then gone on with.
                    queue.previews.retain(|preview| preview != id);
                }
                if !queue.previews.contains(id) {
                    return;
                }
            }
        }
        let full = queue.frames.len() >= MAX_FRAMES
            || (!queue.frames.is_empty() && queue.bytes.saturating_add(written.bytes.len()) > MAX_BYTES);
        if full {
            metrics::counter!("sortie_session_streams_closed_total", "reason" => "behind").increment(1);
            queue.close(Some(fell_behind()));
        } else {
            queue.quiet = 0;
            queue.put(written.bytes.clone());
        }
        wake(queue);
    }

    fn look(&self, ping: &Bytes) {
        let mut queue = locked(&self.queue);
        if queue.ended || !queue.frames.is_empty() {
            return;
        }
        if queue.quiet < QUIET_LOOKS {
            queue.quiet = queue.quiet.saturating_add(1);
            return;
        }
        queue.quiet = 0;
        queue.put(ping.clone());
        wake(queue);
    }

    /// Ends the stream at once, behind a last frame if there is one.
    fn end(&self, last: Option<Bytes>) {
        let mut queue = locked(&self.queue);
        if !queue.ended {
            queue.close(last);
            wake(queue);
        }
    }
}

impl Queue {
    fn put(&mut self, frame: Bytes) {
        self.bytes = self.bytes.saturating_add(frame.len());
        self.frames.push_back(frame);
    }

    fn close(&mut self, last: Option<Bytes>) {
        self.frames = last.into_iter().collect();
        (self.bytes, self.previews, self.ended) = (0, Vec::new(), true);
    }

    fn take(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes = self.bytes.saturating_sub(frame.len());
        if self.frames.is_empty() && self.frames.capacity() > KEPT_ROOM {
            self.frames = VecDeque::new();
        }
        Some(frame)
    }
}

impl Subscription {
    /// Ends the stream behind what is queued: there will be no more.
    pub fn close(&self) {
        locked(&self.reader.queue).ended = true;
    }
}

impl Stream for Subscription {
    type Item = Bytes;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut queue = locked(&self.reader.queue);
        match queue.take() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if queue.ended => Poll::Ready(None),
            None => {
                match &mut queue.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.live.forget(&self.session, self.number);
    }
}

/// The name of an event's frame. The official TypeScript SDK passes over frames whose name it does not list; `message` is
/// read by all.
fn name(kind: &'static str) -> &'static str {
    if kind == "session.usage" { "message" } else { kind }
}

/// JSON has no line's end in it.
fn frame_of(name: &str, data: &impl Serialize) -> Option<Bytes> {
    match serde_json::to_string(data) {
        Ok(data) => Some(Bytes::from(format!("event: {name}\ndata: {data}\n\n"))),
        Err(error) => {
            tracing::error!(%error, "an event could not be written for its readers");
            None
        }
    }
}

fn fell_behind() -> Bytes {
    let message =
        "The stream was read too slowly, and what followed is not in it: open it again, then list the events.";
    let error = json!({"type": "error", "error": {"type": "overloaded_error", "message": message}});
    frame_of("error", &error).unwrap_or_default()
}

/// Wakes the reader's task once nothing is locked any more.
fn wake(mut queue: MutexGuard<'_, Queue>) {
    let waker = queue.waker.take();
    drop(queue);
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
