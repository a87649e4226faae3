//! Answers that fall quiet: comments that keep a waiting event stream alive, and the end of one whose server says
//! nothing for too long.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::body::{BodyError, CallBody};
use crate::sse::{Place, is_event_stream};

/// What is said on a quiet stream: a comment, which clients pass over, and a blank line.
pub(crate) const COMMENT: &[u8] = b": keepalive\n\n";

/// The upstream sent nothing of the answer's body for as long as its route allows.
#[derive(Debug, thiserror::Error)]
#[error("the upstream sent nothing for {} ms", .0.as_millis())]
pub(crate) struct Silent(Duration);

/// Whether the bytes of this answer are an event stream as it stands, which can be looked into and added to.
pub(crate) fn is_plain_event_stream(headers: &HeaderMap) -> bool {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().trim().to_ascii_lowercase();
    headers.get(CONTENT_TYPE).is_some_and(|value| is_event_stream(&text(value)))
        && !headers.contains_key(CONTENT_LENGTH)
        && headers.get_all(CONTENT_ENCODING).iter().all(|value| text(value) == "identity")
}

/// An answer's body whose silence is timed. It costs one timer, which is set when the first wait begins and looked at
/// when it ends; no frame touches it.
pub(crate) struct Quiet {
    body: CallBody,
    /// Where the stream is, and how long it may be quiet before a comment.
    keepalive: Option<(Place, Duration)>,
    /// How long the upstream may be silent.
    idle: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the upstream is waited for, and the caller has heard nothing. A slow reader's time does not count.
    waiting: Option<Waiting>,
    ended: bool,
}

#[derive(Clone, Copy)]
struct Waiting {
    upstream: Instant,
    caller: Instant,
}

impl Quiet {
    /// Times `body`; with `keepalive`, it has to be an event stream (see [`is_plain_event_stream`]).
    pub(crate) fn new(body: CallBody, keepalive: Option<Duration>, idle: Option<Duration>) -> Self {
        let keepalive = keepalive.map(|every| (Place::start(), every));
        Self { body, keepalive, idle, timer: None, waiting: None, ended: false }
    }

    /// What is due while the upstream is waited for. Ready when the caller gets something for it.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame<Bytes>, BodyError>> {
        if self.ended {
            return Poll::Pending;
        }
        let began = Instant::now();
        let waiting = *self.waiting.get_or_insert(Waiting { upstream: began, caller: began });
        // A comment cannot stand within an event: that wait only ends with more bytes, which set it anew.
        let comment = self.keepalive.filter(|(place, _)| place.is_between_events());
        let comment = comment.map(|(_, every)| waiting.caller + every);
        let silence = self.idle.map(|idle| (waiting.upstream + idle, idle));
        let Some(first) = comment.into_iter().chain(silence.map(|(at, _)| at)).min() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(first)));
        // Set for an earlier wait it rings too soon, and is set anew then; only a nearer end has to be set at once.
        if timer.deadline() > first {
            timer.as_mut().reset(first);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if let Some((at, idle)) = silence
                && at <= now
            {
                self.ended = true;
                return Poll::Ready(Err(Silent(idle).into()));
            }
            if comment.is_some_and(|at| at <= now) {
                self.waiting = Some(Waiting { caller: now, ..waiting });
                return Poll::Ready(Ok(Frame::data(Bytes::from_static(COMMENT))));
            }
            timer.as_mut().reset(first);
        }
    }
}

impl Body for Quiet {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => this.poll_due(cx).map(Some),
            Poll::Ready(Some(Ok(frame))) => {
                this.waiting = None;
                match (&mut this.keepalive, frame.data_ref()) {
                    (Some((place, _)), Some(data)) => place.pass(data),
                    (_, Some(_)) => {}
                    // Behind trailers nothing may come.
                    (_, None) => this.ended = true,
                }
                Poll::Ready(Some(Ok(frame)))
            }
            end => {
                this.ended = true;
                end
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.keepalive {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::{advance, sleep};

    use super::*;

    const EVERY: Duration = Duration::from_secs(20);

    /// A body of texts, each after so many seconds.
    fn timed(pieces: Vec<(u64, Result<&'static str, &'static str>)>) -> CallBody {
        let pieces = stream::unfold(pieces.into_iter(), |mut pieces| async {
            let (after, piece) = pieces.next()?;
            sleep(Duration::from_secs(after)).await;
            let frame = piece.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))).map_err(BodyError::from);
            Some((frame, pieces))
        });
        StreamBody::new(pieces).boxed()
    }

    /// What came, and how it ended.
    async fn read(mut body: Quiet) -> (String, Result<(), String>) {
        let mut text = String::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text.push_str(std::str::from_utf8(frame.data_ref().expect("data")).expect("text")),
                Err(error) => return (text, Err(error.to_string())),
            }
        }
        (text, Ok(()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_is_kept_alive_between_its_events() {
        let pieces = vec![(25, Ok("data: 1\r\n\r\n")), (19, Ok("data: 2\n\n")), (65, Ok("data: 3\n\n"))];
        let body = Quiet::new(timed(pieces), Some(EVERY), None);
        let expected =
            ": keepalive\n\ndata: 1\r\n\r\ndata: 2\n\n: keepalive\n\n: keepalive\n\n: keepalive\n\ndata: 3\n\n";
        assert_eq!(read(body).await, (expected.to_owned(), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_said_within_an_event() {
        let pieces = vec![(1, Ok("data: 1")), (90, Ok("\n")), (90, Ok("data: 2\r\n\r")), (90, Ok("\n")), (30, Ok("x"))];
        let body = Quiet::new(timed(pieces), Some(EVERY), None);
        assert_eq!(read(body).await, ("data: 1\ndata: 2\r\n\r\n: keepalive\n\nx".to_owned(), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_upstream_breaks_its_stream_and_comments_do_not_hide_it() {
        let pieces = vec![(40, Ok("data: 1\n\n")), (51, Ok("data: 2\n\n"))];
        let body = Quiet::new(timed(pieces.clone()), Some(EVERY), Some(Duration::from_secs(50)));
        let comments = ": keepalive\n\n";
        let (text, end) = read(body).await;
        assert!(text.ends_with(&format!("data: 1\n\n{comments}{comments}")), "{text}");
        assert_eq!(end, Err("the upstream sent nothing for 50000 ms".to_owned()));
        let body = Quiet::new(timed(pieces), None, Some(Duration::from_secs(52)));
        assert_eq!(read(body).await, ("data: 1\n\ndata: 2\n\n".to_owned(), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_of_a_slow_reader_is_not_the_upstreams() {
        let pieces = vec![(0, Ok("data: 1\n\n")), (0, Ok("data: 2\n\n"))];
        let mut body = Quiet::new(timed(pieces), Some(EVERY), Some(Duration::from_secs(30)));
        for _ in 0..2 {
            let frame = body.frame().await.expect("frame").expect("data");
            assert!(frame.data_ref().expect("data").starts_with(b"data"));
            advance(Duration::from_secs(100)).await;
        }
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_broke_is_not_kept_alive() {
        let body = Quiet::new(timed(vec![(1, Ok("data: 1\n\n")), (1, Err("broke"))]), Some(EVERY), None);
        assert_eq!(read(body).await, ("data: 1\n\n".to_owned(), Err("broke".to_owned())));
    }

    /// Every stream of up to seven bytes that matter, cut in every way, with a comment wherever one may stand.
    #[test]
    fn without_the_comments_every_stream_is_what_it_was() {
        const BYTES: [u8; 3] = *b"x\r\n";
        for length in 0..=7_u32 {
            for number in 0..3_usize.pow(length) {
                let stream: Vec<u8> = (0..length).map(|at| BYTES[number / 3_usize.pow(at) % 3]).collect();
                for cuts in 0..1_usize << length.saturating_sub(1) {
                    check(&stream, cuts);
                }
            }
        }
    }

    fn check(stream: &[u8], cuts: usize) {
        let (mut place, mut sent, mut rest) = (Place::start(), Vec::new(), stream);
        let mut at = 0;
        while !rest.is_empty() {
            if place.is_between_events() {
                sent.extend_from_slice(COMMENT);
            }
            let mut length = 1;
            while length < rest.len() && cuts >> (at + length - 1) & 1 == 0 {
                length += 1;
            }
            let (chunk, left) = rest.split_at(length);
            place.pass(chunk);
            sent.extend_from_slice(chunk);
            (at, rest) = (at + length, left);
        }
        let text = String::from_utf8(sent).expect("text");
        assert_eq!(text.replace(": keepalive\n\n", "").as_bytes(), stream, "{stream:?} {cuts:b}");
        let before = events(std::str::from_utf8(stream).expect("text"));
        assert_eq!(events(&text), before, "{stream:?} {cuts:b}: the same events");
    }

    /// The events that a client sees: their lines, without comments and events of no lines.
    fn events(text: &str) -> Vec<Vec<String>> {
        let lines = text.replace("\r\n", "\n").replace('\r', "\n");
        let blocks = lines.split("\n\n").map(|block| {
            let lines = block.split('\n').filter(|line| !line.is_empty() && !line.starts_with(':'));
            lines.map(ToOwned::to_owned).collect::<Vec<_>>()
        });
        blocks.filter(|block| !block.is_empty()).collect()
    }

    #[test]
    fn only_a_plain_event_stream_is_added_to() {
        let headers = |pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
            pairs.collect::<HeaderMap>()
        };
        let kind = ("content-type", "text/event-stream; charset=utf-8");
        for good in [vec![kind], vec![kind, ("content-encoding", "Identity")]] {
            assert!(is_plain_event_stream(&headers(&good)), "{good:?}");
        }
        for bad in [
            vec![],
            vec![("content-type", "application/json")],
            vec![kind, ("content-length", "10")],
            vec![kind, ("content-encoding", "gzip")],
        ] {
            assert!(!is_plain_event_stream(&headers(&bad)), "{bad:?}");
        }
    }
}
