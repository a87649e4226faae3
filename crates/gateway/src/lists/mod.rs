//! Lists in answers: what a caller may not see is cut out of them, and what a server says of its tools is held against
//! what is pinned ([`crate::pins`]).
//!
//! Looked at are the answers to requests for a list, for `initialize` and for `server/discover`, be they one document or
//! events; and event streams that are asked for by GET, by which older clients get their answers, and newer ones fetch
//! what they have missed. Such a document or event is held until it is whole, at most [`MAX_ANSWER`] bytes, in the memory
//! that requests wait in; one of which nothing is cut goes on byte for byte. What cannot be read strictly is refused, never
//! passed on unread. All other answers stream through unseen.

mod event;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::value::RawValue;
use sortie_api::{Hop, HopError};
use sortie_ids::{Digest, RequestId};
use sortie_mcp::envelope::is_json;
use sortie_mcp::list::{Document, Kind};
use sortie_mcp::message::{self, MessageKind};

use self::event::Event;
use crate::body::{BodyError, CallBody};
use crate::config::{Pinning, Protocol};
use crate::intake::Intake;
use crate::memory::{Buffer, Memory};
use crate::pins::{Looking, RoutePins};
use crate::routes::Route;
use crate::sse::{Place, is_event_stream};

/// Longest answer, and longest event, that is looked at, in bytes; a longer one is refused. No client of MCP that we know
/// of takes a longer event.
pub(crate) const MAX_ANSWER: usize = 20 * 1024 * 1024;
/// Longest silence of the upstream within an answer that is held, where the route sets none.
const SILENCE: Duration = Duration::from_secs(60);
/// What is true of a body only as it was (RFC 9110, section 8.8.3; RFC 9530; RFC 1864).
const OF_THE_BYTES: [HeaderName; 5] = [
    ETAG,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// Whether a caller may see an item, by its kind and name. Asked once for each item of each list.
pub(crate) type Visible = Arc<dyn Fn(Kind, &str) -> bool + Send + Sync>;

/// What of the messages of a request concerns lists and pins.
#[derive(Debug, Default)]
pub(crate) struct Concerns {
    /// For each call of a tool its name, if it has one.
    tools: Vec<Option<String>>,
    /// Whether a list is asked for.
    lists: bool,
    /// Whether the server is asked to say what it is.
    greets: bool,
    /// The id to answer with: that of a single request.
    id: Option<Box<RawValue>>,
}

impl Concerns {
    /// Of what was read strictly; of what was not, nothing is known.
    pub(crate) fn of(intake: &Intake<'_>, route: &Route) -> Self {
        let Intake::Messages(body) = intake else { return Self::default() };
        let mut concerns = Self::default();
        for message in body.messages() {
            match message.method.as_deref() {
                Some("tools/call") if route.pins.is_some() => {
                    concerns.tools.push(message.name.as_deref().map(ToOwned::to_owned));
                }
                Some("initialize" | "server/discover") => concerns.greets = true,
                Some(method) if message.kind == MessageKind::Request => {
                    concerns.lists |= Kind::of_method(method).is_some();
                }
                _ => {}
            }
        }
        if concerns.lists || concerns.greets {
            concerns.id = body.request_id();
        }
        concerns
    }

    /// Refuses calls of tools whose definitions are held back.
    ///
    /// # Errors
    /// What the caller is told.
    pub(crate) fn admit(&self, route: &Route, caller: Digest) -> Result<(), HopError> {
        let Some(pins) = &route.pins else { return Ok(()) };
        self.tools.iter().try_for_each(|tool| pins.admit(route.settings.pinning, caller, tool.as_deref()))
    }
}

/// What is done with the answer to one request.
pub(crate) struct Watch {
    route: Arc<str>,
    pins: Option<(Arc<RoutePins>, Pinning)>,
    visible: Option<Visible>,
    caller: Digest,
    clock: fn() -> i64,
    memory: Memory,
    silence: Duration,
    /// For answers to a POST, all of which has to be readable.
    strict: bool,
    id: Option<Box<RawValue>>,
    request_id: RequestId,
}

/// Who asks, and what happens around it.
pub(crate) struct Around<'a> {
    pub(crate) caller: Digest,
    /// What policy lets this caller see; `None` where it is not in force.
    pub(crate) visible: &'a (dyn Fn() -> Option<Visible> + Sync),
    pub(crate) request_id: &'a RequestId,
    pub(crate) memory: &'a Memory,
    /// Seconds since 1970.
    pub(crate) clock: fn() -> i64,
}

impl Watch {
    /// `None` where the answer is of no concern. `concerns` are of the same request.
    pub(crate) fn new(route: &Route, method: &Method, concerns: &Concerns, around: &Around<'_>) -> Option<Self> {
        let strict = *method == Method::POST;
        let lists = concerns.lists || *method == Method::GET && route.protocol != Protocol::Http;
        let greets = concerns.greets && route.pins.is_some();
        if !lists && !greets {
            return None;
        }
        let visible = (around.visible)();
        (route.pins.is_some() || visible.is_some()).then(|| Self {
            route: route.label.clone(),
            pins: route.pins.clone().map(|pins| (pins, route.settings.pinning)),
            visible,
            caller: around.caller,
            clock: around.clock,
            memory: around.memory.clone(),
            silence: route.settings.idle_timeout.unwrap_or(SILENCE),
            strict,
            id: concerns.id.clone(),
            request_id: around.request_id.clone(),
        })
    }

    /// Asks the upstream for an answer that can be read.
    pub(crate) fn ask_plain(&self, headers: &mut HeaderMap) {
        let wants_events = || headers.get_all(ACCEPT).iter().any(|value| has(value, b"text/event-stream"));
        if headers.contains_key(ACCEPT_ENCODING) && (self.strict || wants_events()) {
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
    }

    /// The answer as the caller gets it.
    ///
    /// # Errors
    /// It cannot be read, or what has to be kept of it cannot be kept.
    pub(crate) async fn look(self, answer: Response<CallBody>) -> Result<Response<CallBody>, HopError> {
        let mut types = answer.headers().get_all(CONTENT_TYPE).iter().map(|value| value.to_str().unwrap_or_default());
        let (kind, further) = (types.next(), types.next().is_some());
        let events = kind.is_some_and(is_event_stream);
        if answer.body().is_end_stream() || !(self.strict || events) {
            return Ok(answer);
        }
        if further {
            return Err(self.refused("it has more than one content-type"));
        }
        let codings = answer.headers().get_all(CONTENT_ENCODING).iter();
        if codings.into_iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(self.refused("it is encoded, though that was not asked for"));
        }
        if events && !answer.headers().contains_key(CONTENT_LENGTH) {
            return Ok(answer.map(|body| Stream::new(self, body).into_body()));
        }
        let demanding = self.strict && answer.status().is_success() && (events || is_json(kind));
        self.look_at_whole(answer, events, demanding).await
    }

    /// `demanding`: what is no message is refused even if it does not look like one.
    async fn look_at_whole(
        &self,
        answer: Response<CallBody>,
        events: bool,
        demanding: bool,
    ) -> Result<Response<CallBody>, HopError> {
        let (mut head, mut body) = answer.into_parts();
        let (mut buffer, mut trailers) = (Buffer::default(), None);
        loop {
            let frame = tokio::time::timeout(self.silence, body.frame())
                .await
                .map_err(|_| self.refused("it stopped in the middle").with_status(StatusCode::GATEWAY_TIMEOUT))?;
            let Some(frame) = frame else { break };
            match frame.map_err(|_| self.refused("it broke off"))?.into_data() {
                Ok(data) => self.hold(&mut buffer, &data).await?,
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let bytes = Bytes::from_owner(buffer);
        let edited = match (bytes.is_empty(), events) {
            (true, _) => None,
            (_, true) => self.edit_events(&bytes).await?,
            (_, false) => self.edit(&bytes, demanding).await?.map(String::into_bytes),
        };
        if let Some(edited) = &edited {
            OF_THE_BYTES.iter().for_each(|name| drop(head.headers.remove(name)));
            if head.headers.contains_key(CACHE_CONTROL) {
                head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
            }
            if head.headers.contains_key(CONTENT_LENGTH) {
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(edited.len()));
            }
        }
        let bytes = edited.map_or(bytes, Bytes::from);
        let sized = head.headers.contains_key(CONTENT_LENGTH) && trailers.is_none();
        let body = if sized {
            http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed()
        } else {
            // Framed as it came: with a length only where it had one.
            let data = Some(bytes).filter(|bytes| !bytes.is_empty()).map(Frame::data);
            let frames: Vec<_> =
                data.into_iter().chain(trailers.map(Frame::trailers)).map(Ok::<_, BodyError>).collect();
            StreamBody::new(futures_util::stream::iter(frames)).boxed()
        };
        Ok(Response::from_parts(head, body))
    }

    async fn hold(&self, buffer: &mut Buffer, data: &[u8]) -> Result<(), HopError> {
        if buffer.as_ref().len() + data.len() > MAX_ANSWER {
            return Err(self.refused(&format!("it is larger than {MAX_ANSWER} bytes")));
        }
        let most = u64::try_from(MAX_ANSWER).unwrap_or(u64::MAX);
        self.memory.append(buffer, data, most).await.map_err(|spent| {
            let mut error =
                HopError::new(Hop::Upstream, spent.to_string()).with_status(StatusCode::SERVICE_UNAVAILABLE);
            error.retry_after = Some(1);
            error
        })
    }

    /// Whole events as the caller gets them; `None` where they stay as they are.
    async fn edit_events(&self, text: &[u8]) -> Result<Option<Vec<u8>>, HopError> {
        let mut edited: Option<Vec<u8>> = None;
        let mut done = 0;
        for range in event::split(text) {
            let event = Event::parse(text.get(range.clone()).unwrap_or_default());
            let data = event.data();
            // Nothing, or the address in the legacy transport's first event.
            let first = data.iter().find(|byte| !byte.is_ascii_whitespace());
            if first.is_none_or(|first| event.named && !b"{[".contains(first)) {
                continue;
            }
            if event.is_ambiguous() && message::may_speak_jsonrpc(&data) {
                return Err(self.refused("an event of it could be read in two ways"));
            }
            if let Some(data) = self.edit(&data, self.strict && !event.named).await? {
                let edited = edited.get_or_insert_default();
                edited.extend_from_slice(text.get(done..range.start).unwrap_or_default());
                edited.extend_from_slice(&event.with_data(&data));
                done = range.end;
            }
        }
        if let Some(edited) = &mut edited {
            edited.extend_from_slice(text.get(done..).unwrap_or_default());
        }
        Ok(edited)
    }

    /// One document as the caller gets it; `None` where it stays as it is.
    async fn edit(&self, text: &[u8], demanding: bool) -> Result<Option<String>, HopError> {
        let document = match Document::read(text) {
            Ok(document) => document,
            Err(_) if !demanding && !speaks_jsonrpc(text) => return Ok(None),
            Err((fault, at)) => return Err(self.refused(&format!("it is not one message of MCP: {fault} (byte {at})"))),
        };
        let visible = |kind: Kind, name: &str| self.visible.as_ref().is_none_or(|visible| visible(kind, name));
        let allowed: Vec<bool> = document.items().map(|item| visible(item.kind, &item.name)).collect();
        let (mut items, mut introductions) = (allowed.clone(), Vec::new());
        if let Some((pins, pinning)) = &self.pins {
            let looking = Looking { pinning: *pinning, caller: self.caller, now: (self.clock)() };
            let (pinned, heard) = pins.look(&looking, &document, &allowed).await?;
            items.iter_mut().zip(&pinned).for_each(|(item, pinned)| *item &= pinned);
            introductions = heard;
            self.count("pins", allowed.iter().zip(&pinned).filter(|(allowed, pinned)| **allowed && !**pinned).count());
        }
        self.count("policy", allowed.iter().filter(|allowed| !**allowed).count());
        let (mut items, mut introductions) = (items.into_iter(), introductions.into_iter());
        let private = self.visible.is_some();
        let (edited, _) =
            document.edited(private, |_| items.next().unwrap_or(false), |_| introductions.next().unwrap_or(true));
        Ok(edited)
    }

    fn count(&self, why: &'static str, dropped: usize) {
        if dropped > 0 {
            let dropped = u64::try_from(dropped).unwrap_or(u64::MAX);
            metrics::counter!("sortie_gateway_list_items_hidden_total", "route" => self.route.clone(), "by" => why)
                .increment(dropped);
        }
    }

    fn refused(&self, why: &str) -> HopError {
        let route = &self.route;
        metrics::counter!("sortie_gateway_lists_refused_total", "route" => route.clone()).increment(1);
        tracing::warn!(request_id = %self.request_id, %route, "the upstream's answer is refused: {why}");
        HopError::new(Hop::Upstream, format!("the answer of the upstream of route `{route}` is refused: {why}"))
    }
}

/// Events that are held until they are whole.
struct Stream {
    watch: Watch,
    body: CallBody,
    place: Place,
    /// The beginning of an event that is not whole.
    held: Buffer,
    /// What comes behind what was just passed on.
    next: Option<Frame<Bytes>>,
    ended: bool,
}

impl Stream {
    fn new(watch: Watch, body: CallBody) -> Self {
        Self { watch, body, place: Place::start(), held: Buffer::default(), next: None, ended: false }
    }

    fn into_body(self) -> CallBody {
        let frames = futures_util::stream::unfold(self, |mut stream| async move {
            let frame = stream.frame().await?;
            Some((frame, stream))
        });
        StreamBody::new(frames).boxed()
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        if let Some(frame) = self.next.take() {
            return Some(Ok(frame));
        }
        while !self.ended {
            let data = match self.body.frame().await {
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.pass(data).await,
                    Err(trailers) => {
                        self.ended = true;
                        self.next = Some(trailers);
                        self.rest().await
                    }
                },
                None => {
                    self.ended = true;
                    self.rest().await
                }
            };
            match data {
                Ok(data) if data.is_empty() => {
                    if let Some(frame) = self.next.take() {
                        return Some(Ok(frame));
                    }
                }
                Ok(data) => return Some(Ok(Frame::data(data))),
                Err(error) => return Some(self.failed(error)),
            }
        }
        None
    }

    /// The events that are whole with this piece.
    async fn pass(&mut self, mut data: Bytes) -> Result<Bytes, HopError> {
        let mut end = 0;
        for (at, byte) in data.iter().enumerate() {
            self.place.step(*byte);
            if self.place.is_blank() {
                end = at + 1;
            }
        }
        let mut whole = data.split_to(end);
        if !whole.is_empty() && !self.held.as_ref().is_empty() {
            self.watch.hold(&mut self.held, &whole).await?;
            whole = Bytes::from_owner(std::mem::take(&mut self.held));
        }
        self.watch.hold(&mut self.held, &data).await?;
        self.edited(whole).await
    }

    /// What is left when the stream ends: some clients take it for an event.
    async fn rest(&mut self) -> Result<Bytes, HopError> {
        let rest = Bytes::from_owner(std::mem::take(&mut self.held));
        self.edited(rest).await
    }

    async fn edited(&self, whole: Bytes) -> Result<Bytes, HopError> {
        Ok(self.watch.edit_events(&whole).await?.map_or(whole, Bytes::from))
    }

    /// The end of a stream that cannot be read: in words where the caller waits for one answer.
    fn failed(&mut self, error: HopError) -> Result<Frame<Bytes>, BodyError> {
        self.ended = true;
        self.next = None;
        let Some(id) = &self.watch.id else { return Err(error.into()) };
        let mut event = b"event: message\ndata: ".to_vec();
        event.extend_from_slice(&error.body(self.watch.request_id.as_str(), Some(id)));
        event.extend_from_slice(b"\n\n");
        Ok(Frame::data(Bytes::from(event)))
    }
}

/// Whether what cannot be read as an answer may be one for somebody.
fn speaks_jsonrpc(text: &[u8]) -> bool {
    message::parse(text).map_or_else(|refused| refused.speaks_jsonrpc, |_| true)
}

fn has(value: &HeaderValue, part: &[u8]) -> bool {
    value.as_bytes().windows(part.len()).any(|window| window.eq_ignore_ascii_case(part))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
