//! The first event of the legacy transport HTTP with SSE (MCP 2024-11-05): it tells the client where to POST, and has to
//! name a place that the client can reach.
//!
//! A server that names a path means its own origin, which by hostname is the public one; by the path form the hub takes
//! off a prefix, which then has to be put on. A server that names its own origin in full means what only the gateway
//! can dial: what is left of it is the path, which clients resolve against the URL that they dialled (RFC 3986, section
//! 5). Whatever points elsewhere, and whatever is not this event, stays as it is.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use url::{Position, Url};

use crate::body::{BodyError, CallBody};
use crate::sse::Place;

/// How much of a stream is held back to see its first event whole, in bytes. A longer one passes as it is.
const MAX_HELD: usize = 8 * 1024;
/// The byte order mark that a stream may begin with.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// What a server's references mean, and what they become.
pub(crate) struct Origin {
    /// The URL that the upstream was asked for, as it knows it.
    base: Url,
    /// Further origins that are the upstream's own: the `Host` that it gets, and the public one that it is told of.
    own: Vec<Url>,
    /// What the public path has in front of the upstream's: empty, or `/t/<label>/<route>`.
    prefix: String,
}

impl Origin {
    /// `base` is what the upstream was asked for. `own` are further names (`host` or `host:port`) of the upstream, over
    /// http and https alike. `None` when the URL is none.
    pub(crate) fn new(base: &str, own: &[&str], prefix: &str) -> Option<Self> {
        let origins =
            own.iter().flat_map(|name| ["http", "https"].map(|scheme| Url::parse(&format!("{scheme}://{name}"))));
        Some(Self { base: Url::parse(base).ok()?, own: origins.flatten().collect(), prefix: prefix.to_owned() })
    }

    /// The path and query at the upstream that a reference leads to; `None` when it leads elsewhere.
    fn resolve(&self, reference: &str) -> Option<(Url, bool)> {
        let target = self.base.join(reference).ok()?;
        let own = target.origin() == self.base.origin() || self.own.iter().any(|own| own.origin() == target.origin());
        let named = Url::parse(reference).is_ok() || reference.starts_with("//") || reference.starts_with("\\");
        own.then_some((target, named))
    }

    /// What a reference becomes; `None` where it stays.
    fn public(&self, reference: &str) -> Option<String> {
        let (target, named) = self.resolve(reference)?;
        // By hostname a path is right as it is. Behind a prefix every reference is resolved here, since `..` must not
        // lead out of it.
        (named || !self.prefix.is_empty()).then(|| format!("{}{}", self.prefix, &target[Position::BeforePath..]))
    }
}

/// Called with the path and query at the upstream that the client was told to POST to.
pub(crate) type OnEndpoint = Box<dyn FnOnce(&str) + Send + Sync>;

/// The body of an event stream whose first event, if it is `endpoint`, is made to name a public place.
pub(crate) struct Endpoint {
    body: CallBody,
    /// `None` once the first event has passed.
    looking: Option<Looking>,
    /// What is to be passed on before more is read.
    ready: VecDeque<Result<Frame<Bytes>, BodyError>>,
}

struct Looking {
    origin: Origin,
    on_endpoint: OnEndpoint,
    place: Place,
    held: Vec<u8>,
}

impl Endpoint {
    pub(crate) fn new(body: CallBody, origin: Origin, on_endpoint: OnEndpoint) -> Self {
        let looking = Looking { origin, on_endpoint, place: Place::start(), held: Vec::new() };
        Self { body, looking: Some(looking), ready: VecDeque::new() }
    }

    /// Takes in a chunk while the first event has not passed.
    fn look(&mut self, chunk: Bytes) {
        let Some(mut looking) = self.looking.take() else { return };
        let mut chunk = chunk;
        while !chunk.is_empty() {
            // The rest of the event, which ends with its blank line.
            let end = chunk.iter().position(|byte| looking.place.step(*byte)).map(|at| at + 1);
            let taken = chunk.split_to(end.unwrap_or(chunk.len()));
            if looking.held.len() + taken.len() > MAX_HELD {
                self.pass(looking.held);
                self.pass(taken);
                self.pass(chunk);
                return;
            }
            looking.held.extend_from_slice(&taken);
            if end.is_none() {
                break;
            }
            let block = std::mem::take(&mut looking.held);
            match Block::parse(&block) {
                // Comments and waiting times are no event.
                Block::Nothing => self.pass(block),
                Block::Other => {
                    self.pass(block);
                    self.pass(chunk);
                    return;
                }
                Block::Endpoint { reference, at } => {
                    let reference = reference.to_owned();
                    self.pass(looking.origin.rewritten(block, &reference, at));
                    if let Some((target, _)) = looking.origin.resolve(&reference) {
                        (looking.on_endpoint)(&target[Position::BeforePath..Position::AfterQuery]);
                    }
                    self.pass(chunk);
                    return;
                }
            }
        }
        self.looking = Some(looking);
    }

    fn pass(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.ready.push_back(Ok(Frame::data(bytes)));
        }
    }
}

impl Origin {
    fn rewritten(&self, mut block: Vec<u8>, reference: &str, at: Range<usize>) -> Vec<u8> {
        if let Some(public) = self.public(reference) {
            block.splice(at, public.into_bytes());
        }
        block
    }
}

/// What stands before a blank line.
enum Block<'b> {
    /// No event.
    Nothing,
    /// An event `endpoint` with one line of data, and where that stands.
    Endpoint { reference: &'b str, at: Range<usize> },
    /// Any other event.
    Other,
}

impl<'b> Block<'b> {
    fn parse(bytes: &'b [u8]) -> Self {
        let (mut named, mut data, mut times) = (false, None, 0);
        let mut start = if bytes.starts_with(MARK) { MARK.len() } else { 0 };
        for line in bytes.get(start..).unwrap_or_default().split(|byte| matches!(byte, b'\r' | b'\n')) {
            let (field, value) = match line.iter().position(|byte| *byte == b':') {
                Some(at) => (line.split_at(at).0, line.get(at + 1..).unwrap_or_default()),
                None => (line, Default::default()),
            };
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match field {
                b"event" => named = value == b"endpoint",
                b"data" => {
                    times += 1;
                    let end = start + line.len();
                    data = std::str::from_utf8(value).ok().map(|text| (text, end - value.len()..end));
                }
                _ => {}
            }
            start += line.len() + 1;
        }
        match (times, named, data) {
            (0, ..) => Self::Nothing,
            (1, true, Some((reference, at))) => Self::Endpoint { reference, at },
            _ => Self::Other,
        }
    }
}

impl Body for Endpoint {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Some(frame) = this.ready.pop_front() {
                return Poll::Ready(Some(frame));
            }
            let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
            if this.looking.is_none() {
                return Poll::Ready(frame);
            }
            let last = match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(chunk))) => {
                    this.look(chunk);
                    continue;
                }
                Some(Ok(Err(trailers))) => Some(Ok(trailers)),
                Some(Err(error)) => Some(Err(error)),
                None => None,
            };
            // It ends within its first event.
            if let Some(looking) = this.looking.take() {
                this.pass(looking.held);
            }
            match last {
                Some(last) => this.ready.push_back(last),
                None if this.ready.is_empty() => return Poll::Ready(None),
                None => {}
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty()
            && self.looking.as_ref().is_none_or(|looking| looking.held.is_empty())
            && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.looking {
            Some(_) => SizeHint::default(),
            None if self.ready.is_empty() => self.body.size_hint(),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures_util::stream;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    const BASE: &str = "http://10.0.0.5:8080/sse?x=1";
    const OWN: [&str; 2] = ["wiki.corp", "docs.abcd.test"];

    fn public(prefix: &str, reference: &str) -> String {
        let origin = Origin::new(BASE, &OWN, prefix).expect("origin");
        origin.public(reference).unwrap_or_else(|| reference.to_owned())
    }

    #[test]
    fn a_path_stays_by_hostname_and_gets_the_prefix_by_path() {
        for (reference, by_path) in [
            ("/message?sessionId=a%2Fb", "/t/abcd/docs/message?sessionId=a%2Fb"),
            ("message?s=1", "/t/abcd/docs/message?s=1"),
            ("?s=1", "/t/abcd/docs/sse?s=1"),
            ("", "/t/abcd/docs/sse?x=1"),
            ("/../../v1/tunnels", "/t/abcd/docs/v1/tunnels"),
            ("%2e%2e/../v1/tunnels", "/t/abcd/docs/v1/tunnels"),
            ("/a//b/?x=1&x=2", "/t/abcd/docs/a//b/?x=1&x=2"),
        ] {
            assert_eq!(public("", reference), reference);
            assert_eq!(public("/t/abcd/docs", reference), by_path);
        }
    }

    #[test]
    fn the_upstreams_own_origin_becomes_the_public_one_and_no_other_does() {
        for reference in [
            "http://10.0.0.5:8080/message?s=1",
            "//10.0.0.5:8080/message?s=1",
            "http://wiki.corp/message?s=1",
            "https://wiki.corp:443/message?s=1",
            "HTTPS://DOCS.abcd.test/message?s=1",
        ] {
            assert_eq!(public("", reference), "/message?s=1", "{reference}");
            assert_eq!(public("/t/abcd/docs", reference), "/t/abcd/docs/message?s=1", "{reference}");
        }
        for reference in [
            "http://10.0.0.5:8081/message",
            "https://10.0.0.5:8080/message",
            "http://10.0.0.6:8080/message",
            "//evil.example/message",
            "\\\\evil.example/message",
            "https://wiki.corp.evil.example/message",
            "https://wiki.corp:8443/message",
            "http://",
            "data:text/plain,x",
            "javascript:alert(1)",
        ] {
            assert_eq!(public("", reference), reference);
            assert_eq!(public("/t/abcd/docs", reference), reference);
        }
    }

    /// What comes through, with the stream cut after every so many bytes, and what was told.
    async fn through(text: &str, cut: usize) -> (String, Vec<String>) {
        let frames: Vec<_> =
            text.as_bytes().chunks(cut).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = told.clone();
        let origin = Origin::new(BASE, &OWN, "/t/abcd/docs").expect("origin");
        let on_endpoint = move |path: &str| teller.lock().expect("lock").push(path.to_owned());
        let body = Endpoint::new(StreamBody::new(stream::iter(frames)).boxed(), origin, Box::new(on_endpoint));
        let bytes = body.collect().await.expect("body").to_bytes();
        let told = told.lock().expect("lock").clone();
        (String::from_utf8(bytes.to_vec()).expect("text"), told)
    }

    #[tokio::test]
    async fn only_the_data_of_the_first_event_changes_however_the_stream_is_cut() {
        let later = "event: endpoint\ndata: /message\n\ndata: http://10.0.0.5:8080/message\n\n";
        for end in ["\n", "\r\n", "\r"] {
            for (before, after) in [
                ("event: endpoint\ndata: /m?s=1\n\n", "event: endpoint\ndata: /t/abcd/docs/m?s=1\n\n"),
                (
                    "data:http://wiki.corp/m?s=1\nid: 7\nevent:endpoint\n\n",
                    "data:/t/abcd/docs/m?s=1\nid: 7\nevent:endpoint\n\n",
                ),
                (
                    ": hi\n\nretry: 3\n\nevent: endpoint\ndata: /m?s=1\n\n",
                    ": hi\n\nretry: 3\n\nevent: endpoint\ndata: /t/abcd/docs/m?s=1\n\n",
                ),
                ("\u{feff}event: endpoint\ndata: /m?s=1\n\n", "\u{feff}event: endpoint\ndata: /t/abcd/docs/m?s=1\n\n"),
            ] {
                let (before, after) = (before.replace('\n', end), after.replace('\n', end));
                for cut in 1..before.len() + 2 {
                    let (came, told) = through(&format!("{before}{later}"), cut).await;
                    assert_eq!(came, format!("{after}{later}"), "{before:?} cut at {cut}");
                    assert_eq!(told, ["/m?s=1"]);
                }
            }
        }
    }

    #[tokio::test]
    async fn whatever_else_comes_first_passes_as_it_is() {
        let long = format!("event: endpoint\ndata: /{}\n\n", "x".repeat(MAX_HELD));
        for text in [
            "",
            "data: {}\n\nevent: endpoint\ndata: /m\n\n",
            "event: message\ndata: /m\n\nevent: endpoint\ndata: /m\n\n",
            "event: endpoint\nevent: message\ndata: /m\n\n",
            "event: endpoint\ndata: /m\ndata: /n\n\n",
            "event: Endpoint\ndata: /m\n\n",
            "event: endpoint\ndata: /m\n",
            "event: endpoint\n\n",
            "event: endpoint\ndata: https://evil.example/m\n\n",
            &long,
        ] {
            for cut in [1, 7, 5000, 100_000] {
                let (came, told) = through(text, cut).await;
                assert_eq!((came.as_str(), told.len()), (text, 0), "cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_within_its_first_event_breaks_behind_it() {
        let frames: Vec<Result<_, BodyError>> =
            vec![Ok(Frame::data(Bytes::from_static(b"event: end"))), Err("broke".into())];
        let origin = Origin::new(BASE, &OWN, "").expect("origin");
        let mut body = Endpoint::new(StreamBody::new(stream::iter(frames)).boxed(), origin, Box::new(|_| ()));
        assert_eq!(body.frame().await.expect("frame").expect("data").into_data().expect("data"), "event: end");
        assert!(body.frame().await.expect("frame").is_err());
    }
}
