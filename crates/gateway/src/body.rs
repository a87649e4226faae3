//! Bodies on their way through: counted and watched. Only a request that has to be judged is collected, within bounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_lc_rs::digest::{Context as Hashing, SHA256};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use serde_json::value::RawValue;
use sortie_api::clean_trailers;
use sortie_mcp::message::id_in_part;
use tokio::time::Instant;

use crate::limits::Cut;
use crate::memory::{Buffer, Memory, Spent};
use crate::quiet::Silent;
use crate::record::Tally;

/// Any error of a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A body on its way through the gateway, in either direction.
pub type CallBody = BoxBody<Bytes, BodyError>;

/// How much of a request is looked at for its JSON-RPC id, in bytes.
const MAX_PEEK: usize = 64 * 1024;
/// How long the rest of a request may take to come when only its id is wanted.
const PEEK_DEADLINE: Duration = Duration::from_secs(1);
/// How long a body that is collected may take to arrive, and how many bytes of the limit give it one second more.
const ARRIVAL: Duration = Duration::from_secs(60);
const SLOWEST: u64 = 64 * 1024;

/// A whole body of our own.
pub(crate) fn whole(bytes: Vec<u8>) -> CallBody {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}

fn clean<D>(mut frame: Frame<D>) -> Frame<D> {
    if let Some(trailers) = frame.trailers_mut() {
        clean_trailers(trailers);
    }
    frame
}

/// A request's body that ends with an error past its limit. Clones share it: one goes to the upstream, the other
/// stays, to find the JSON-RPC id when the upstream could not be reached.
pub(crate) struct RequestBody<B>(Arc<Mutex<Inbound<B>>>);

struct Inbound<B> {
    body: B,
    limit: u64,
    left: u64,
    /// The piece that passed the limit.
    over: Option<Bytes>,
    seen: Seen,
    /// Where its bytes are counted.
    tally: Arc<Tally>,
    /// What was collected and not taken since.
    whole: Option<Whole>,
}

/// What is known of the JSON-RPC id to answer with.
enum Seen {
    /// It is not wanted.
    Nothing,
    /// The first bytes, at most [`MAX_PEEK`]. A copy: many small pieces would hold far more than their bytes.
    Part(Vec<u8>),
    /// The body was judged.
    Known(Option<Box<RawValue>>),
}

/// A body that was collected.
struct Whole {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// Why a body could not be collected.
#[derive(Debug)]
pub(crate) enum Unread {
    /// It is larger than the limit.
    TooLarge,
    /// It did not arrive in time.
    Slow,
    /// It broke off.
    Broken,
    /// There was no memory for it in time.
    Spent(Spent),
}

/// A request larger than the limit.
#[derive(Debug, thiserror::Error)]
#[error("the request body is larger than the limit")]
struct TooLarge;

impl<B> Clone for RequestBody<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    /// A body of at most `limit` bytes. With `jsonrpc`, its first bytes are kept until [`RequestBody::forget`].
    pub(crate) fn new(body: B, limit: u64, jsonrpc: bool, tally: Arc<Tally>) -> Self {
        let seen = if jsonrpc { Seen::Part(Vec::new()) } else { Seen::Nothing };
        Self(Arc::new(Mutex::new(Inbound { body, limit, left: limit, over: None, seen, tally, whole: None })))
    }

    /// The most bytes that it may have.
    pub(crate) fn limit(&self) -> u64 {
        self.lock().limit
    }

    /// Lowers the limit; false when the body is larger already, as far as is known.
    pub(crate) fn restrict(&self, limit: u64) -> bool {
        let announced = self.size_hint().lower();
        let mut inbound = self.lock();
        if inbound.whole.is_none() && limit < inbound.limit {
            let read = inbound.limit - inbound.left;
            (inbound.limit, inbound.left) = (limit, limit.saturating_sub(read));
        }
        announced <= limit
    }

    /// Whether the limit was passed.
    pub(crate) fn exceeded(&self) -> bool {
        self.lock().over.is_some()
    }

    /// The id will not be asked for.
    pub(crate) fn forget(&self) {
        self.lock().seen = Seen::Nothing;
    }

    /// The id to answer with is known.
    pub(crate) fn answer_with(&self, id: Option<Box<RawValue>>) {
        self.lock().seen = Seen::Known(id);
    }

    /// Collects the body, which is then yielded again from its beginning. Its memory counts until nobody has it any more.
    ///
    /// # Errors
    /// It cannot be collected; with the first of what has come, to find the id in.
    pub(crate) async fn read(&self, memory: &Memory) -> Result<Bytes, (Unread, Vec<u8>)> {
        self.forget();
        let most = self.size_hint().upper().unwrap_or(u64::MAX).min(self.limit());
        let mut deadline = Instant::now() + ARRIVAL + Duration::from_secs(self.limit() / SLOWEST);
        let (mut buffer, mut trailers) = (Buffer::default(), None);
        let failed = loop {
            let frame = match tokio::time::timeout_at(deadline, self.frame()).await {
                Err(_) => break Unread::Slow,
                Ok(None) => {
                    let bytes = Bytes::from_owner(buffer);
                    let data = Some(bytes.clone()).filter(|bytes| !bytes.is_empty());
                    self.lock().whole = Some(Whole { data, trailers });
                    return Ok(bytes);
                }
                Ok(Some(Err(_))) if self.exceeded() => break Unread::TooLarge,
                Ok(Some(Err(_))) => break Unread::Broken,
                Ok(Some(Ok(frame))) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    let began = Instant::now();
                    if let Err(spent) = memory.append(&mut buffer, &data, most).await {
                        break Unread::Spent(spent);
                    }
                    // Waiting for memory is no fault of the sender.
                    deadline += began.elapsed();
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        };
        let over = self.lock().over.clone().unwrap_or_default();
        Err((failed, buffer.as_ref().iter().chain(&over).take(MAX_PEEK).copied().collect()))
    }

    /// The id of the JSON-RPC request in the body, as it was sent. Reads on, up to [`MAX_PEEK`] bytes and one second, if it
    /// is not known yet. `None` when the body is not one request, or the id is not in what was read.
    pub(crate) async fn jsonrpc_id(&self) -> Option<Box<RawValue>> {
        // Whatever ends it: what has come by then is looked at.
        let reading = async {
            loop {
                let wanted = self.lock().wants_more();
                if !wanted || !matches!(self.frame().await, Some(Ok(_))) {
                    break;
                }
            }
        };
        let _late = tokio::time::timeout(PEEK_DEADLINE, reading).await;
        let seen = std::mem::replace(&mut self.lock().seen, Seen::Nothing);
        match seen {
            Seen::Nothing => None,
            Seen::Part(part) => id_in_part(&part),
            Seen::Known(id) => id,
        }
    }

    async fn frame(&self) -> Option<Result<Frame<Bytes>, BodyError>> {
        std::future::poll_fn(|cx| self.lock().poll(cx)).await
    }

    fn lock(&self) -> MutexGuard<'_, Inbound<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Inbound<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    fn wants_more(&self) -> bool {
        matches!(&self.seen, Seen::Part(part) if part.len() < MAX_PEEK)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(whole) = &mut self.whole {
            let data = whole.data.take().map(Frame::data);
            return Poll::Ready(data.or_else(|| whole.trailers.take().map(Frame::trailers)).map(Ok));
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(None) };
        let frame = clean(frame.map_err(Into::into)?);
        if let Some(data) = frame.data_ref() {
            if let Seen::Part(part) = &mut self.seen {
                part.extend(data.iter().take(MAX_PEEK - part.len()));
            }
            self.tally.received(data.len());
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            let Some(left) = self.left.checked_sub(length) else {
                self.over = Some(data.clone());
                return Poll::Ready(Some(Err(TooLarge.into())));
            };
            self.left = left;
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.lock().poll(cx)
    }

    fn is_end_stream(&self) -> bool {
        let inbound = self.lock();
        match &inbound.whole {
            Some(whole) => whole.data.is_none() && whole.trailers.is_none(),
            None => inbound.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let inbound = self.lock();
        match &inbound.whole {
            Some(Whole { data, trailers: None }) => {
                let left = data.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(left).unwrap_or(u64::MAX))
            }
            Some(_) => SizeHint::default(),
            None => inbound.body.size_hint(),
        }
    }
}

/// What happened to an answer's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// All of it went to the caller.
    Complete,
    /// The upstream broke off.
    Broken,
    /// The upstream said nothing for longer than its route allows.
    Silent,
    /// A limit cut it.
    Cut,
    /// The caller went away first.
    Abandoned,
}

impl End {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            End::Complete => "complete",
            End::Broken => "upstream broke off",
            End::Silent => "upstream fell silent",
            End::Cut => "cut by a limit",
            End::Abandoned => "caller left",
        }
    }
}

/// What went to a caller.
#[derive(Default)]
pub(crate) struct Sent {
    /// Bytes of the body.
    pub(crate) bytes: u64,
    hash: Option<Hashing>,
    /// The beginning of the body, and how long it may be.
    kept: Option<(Vec<u8>, usize)>,
}

impl Sent {
    /// Nothing yet; with `hashed`, a digest is made of what follows, and of its beginning so many bytes are kept.
    pub(crate) fn begin(hashed: bool, kept: Option<usize>) -> Self {
        Self { bytes: 0, hash: hashed.then(|| Hashing::new(&SHA256)), kept: kept.map(|most| (Vec::new(), most)) }
    }

    fn add(&mut self, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if let Some(hash) = &mut self.hash {
            hash.update(data);
        }
        if let Some((kept, most)) = &mut self.kept {
            kept.extend(data.iter().take(most.saturating_sub(kept.len())));
        }
    }

    /// The beginning of what went by, if it was kept.
    pub(crate) fn kept(&self) -> Option<&[u8]> {
        self.kept.as_ref().map(|(kept, _)| kept.as_slice())
    }

    /// The SHA-256 of all of it, if one was made: 64 hexadecimal digits.
    pub(crate) fn digest(self) -> Option<String> {
        self.hash.map(|hash| hex::encode(hash.finish()))
    }
}

/// An answer's body that tells its watcher how it ended and what went by, once.
pub(crate) struct Watched<B: Body, W: FnOnce(End, Sent)> {
    body: B,
    sent: Sent,
    /// Bytes still to come, where that is known: HTTP/1 does not ask for more after the last one.
    left: Option<u64>,
    /// How it broke, told one look later: an error ends the connection, and what was answered so far has to leave first.
    broken: Option<B::Error>,
    watcher: Option<W>,
}

impl<B: Body, W: FnOnce(End, Sent)> Watched<B, W> {
    /// `bodiless`: the caller gets only the head, as for HEAD.
    pub(crate) fn new(body: B, bodiless: bool, sent: Sent, watcher: W) -> Self {
        let left = if bodiless { Some(0) } else { body.size_hint().exact() };
        Self { body, sent, left, broken: None, watcher: Some(watcher) }
    }
}

impl<B: Body, W: FnOnce(End, Sent)> Watched<B, W> {
    fn tell(&mut self, end: End) {
        if let Some(watcher) = self.watcher.take() {
            watcher(end, std::mem::take(&mut self.sent));
        }
    }
}

impl<B, W> Body for Watched<B, W>
where
    B: Body<Data = Bytes, Error = BodyError> + Unpin,
    W: FnOnce(End, Sent) + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(error) = this.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            None => {
                this.tell(End::Complete);
                Poll::Ready(None)
            }
            Some(Err(error)) => {
                this.tell(match () {
                    () if error.is::<Silent>() => End::Silent,
                    () if error.is::<Cut>() => End::Cut,
                    () => End::Broken,
                });
                this.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.sent.add(data);
                    if let Some(left) = &mut this.left {
                        *left = left.saturating_sub(u64::try_from(data.len()).unwrap_or(u64::MAX));
                    }
                    // Before the caller can have all of it: what was answered is on record.
                    if this.left == Some(0) {
                        this.tell(End::Complete);
                    }
                }
                Poll::Ready(Some(Ok(clean(frame))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Body, W: FnOnce(End, Sent)> Drop for Watched<B, W> {
    fn drop(&mut self) {
        self.tell(if self.left == Some(0) { End::Complete } else { End::Abandoned });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    fn pieces(
        pieces: &[&'static str],
    ) -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, BodyError>> + Unpin + use<>> {
        let frames: Vec<_> = pieces.iter().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes())))).collect();
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn the_id_is_found_before_and_after_the_body_was_passed_on() {
        let text = ["{\"jsonrpc\":\"2.0\",\"method\":\"x\",", "\"id\":1.50}"];
        let kept = RequestBody::new(pieces(&text), 100, true, Arc::default());
        assert_eq!(kept.jsonrpc_id().await.expect("id").get(), "1.50");

        let kept = RequestBody::new(pieces(&text), 100, true, Arc::default());
        let passed = kept.clone().collect().await.expect("body").to_bytes();
        assert_eq!(passed.len(), text.concat().len());
        assert_eq!(kept.jsonrpc_id().await.expect("id").get(), "1.50");

        let kept = RequestBody::new(pieces(&text), 100, false, Arc::default());
        assert!(kept.jsonrpc_id().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_collected_is_yielded_again_and_counts_until_it_is_gone() {
        let memory = Memory::default();
        let body = RequestBody::new(pieces(&["12345", "67890"]), 10, true, Arc::default());
        assert_eq!(body.read(&memory).await.expect("whole"), "1234567890");
        assert_eq!(body.size_hint().exact(), Some(10));
        let again = body.clone().collect().await.expect("body").to_bytes();
        assert_eq!((again, body.is_end_stream()), (Bytes::from_static(b"1234567890"), true));

        let body = RequestBody::new(pieces(&["12345", "67890", "1"]), 10, true, Arc::default());
        let (why, part) = body.read(&memory).await.expect_err("too large");
        assert!(matches!(why, Unread::TooLarge), "{why:?}");
        assert_eq!(part, b"12345678901");
    }

    /// A body whose next piece never comes is given up, however small it is.
    #[tokio::test(start_paused = true)]
    async fn a_sender_that_stops_is_not_waited_for() {
        let first = stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"{")))]);
        let body = StreamBody::new(futures_util::StreamExt::chain(first, stream::pending()));
        let body = RequestBody::new(body, 1000, true, Arc::default());
        let began = Instant::now();
        let (why, part) = body.read(&Memory::default()).await.expect_err("slow");
        assert!(matches!(why, Unread::Slow), "{why:?}");
        assert_eq!((began.elapsed(), part), (ARRIVAL, b"{".to_vec()));
    }

    #[tokio::test]
    async fn many_small_pieces_cost_no_more_than_one() {
        let pieces: Vec<_> = (0..MAX_PEEK).map(|_| Ok::<_, BodyError>(Frame::data(Bytes::from_static(b" ")))).collect();
        let kept = RequestBody::new(StreamBody::new(stream::iter(pieces)), u64::MAX, true, Arc::default());
        let began = std::time::Instant::now();
        assert!(kept.jsonrpc_id().await.is_none());
        assert!(began.elapsed() < PEEK_DEADLINE, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_body_past_its_limit_ends_with_an_error() {
        let kept = RequestBody::new(pieces(&["12345", "67890", "1"]), 10, true, Arc::default());
        assert!(kept.clone().collect().await.is_err());
        assert!(kept.exceeded());
        let kept = RequestBody::new(pieces(&["12345", "67890"]), 10, true, Arc::default());
        assert!(kept.clone().collect().await.is_ok());
        assert!(!kept.exceeded());
    }

    #[tokio::test]
    async fn the_end_of_an_answer_is_told_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let watch = |body, bodiless| {
            let told = told.clone();
            Watched::new(body, bodiless, Sent::begin(true, None), move |end, _| told.lock().expect("lock").push(end))
        };
        drop(watch(pieces(&["a"]), false).collect().await);
        drop(watch(pieces(&["a"]), false));
        drop(watch(pieces(&["a"]), true));
        let broken: Vec<Result<Frame<Bytes>, BodyError>> = vec![Err("broke".into())];
        let mut body = Watched::new(StreamBody::new(stream::iter(broken)), false, Sent::default(), {
            let told = told.clone();
            move |end, _| told.lock().expect("lock").push(end)
        });
        assert!(body.frame().await.expect("frame").is_err());
        drop(body);
        let ends = told.lock().expect("lock").clone();
        assert_eq!(ends, [End::Complete, End::Abandoned, End::Complete, End::Broken]);
    }
}
