//! Bodies on their way through: frame by frame, never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use sortie_api::clean_trailers;
use sortie_runtime::http::{Carrier, DrivenBody, Outgoing, Sending};

use crate::idle::Open;
use crate::inner::{Inner, Pool, Shared};

/// Trailers pass, except what they must not say.
fn clean(mut frame: Frame<Bytes>) -> Frame<Bytes> {
    if let Some(trailers) = frame.trailers_mut() {
        clean_trailers(trailers);
    }
    frame
}

/// The body of a request to a gateway.
pub(crate) enum RequestBody {
    /// The caller's, as it comes.
    Caller(Outgoing<Incoming>),
    /// None.
    Empty,
    /// The hub's own.
    Own(Full<Bytes>),
}

impl RequestBody {
    /// A body of the hub's own.
    pub(crate) fn own(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Own(Full::new(bytes)) }
    }

    /// The request with its body as it comes, and what tells how long that is; `None` where it has none.
    pub(crate) fn of(request: Request<Incoming>) -> (Request<Self>, Option<Sending>) {
        let (head, body) = request.into_parts();
        let (body, sending) = Outgoing::new(body);
        (Request::from_parts(head, Self::Caller(body)), sending)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Caller(body) => Pin::new(body).poll_frame(cx).map_ok(clean),
            Self::Empty => Poll::Ready(None),
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Caller(body) => body.is_end_stream(),
            Self::Empty => true,
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Caller(body) => body.size_hint(),
            Self::Empty => SizeHint::with_exact(0),
            Self::Own(body) => body.size_hint(),
        }
    }
}

/// The body of an answer.
pub(crate) enum ResponseBody {
    /// A gateway's, as it comes.
    Gateway(GatewayBody),
    /// Our own.
    Own(Body),
}

/// A gateway's answer. Read to its end it gives its connection back; dropped before, it ends the connection, so that
/// the gateway sees the caller leave.
pub(crate) struct GatewayBody {
    body: DrivenBody<Way>,
    /// How it broke, told one look later: an error ends the caller's connection, and what was answered so far has to
    /// leave first.
    broken: Option<hyper::Error>,
}

/// What an answer comes over.
enum Way {
    /// A connection of its own, which whoever reads the answer drives.
    Own(Box<Inner>, Arc<Pool>),
    /// One that others use, too, and that moves by itself.
    Shared(#[expect(dead_code, reason = "held to be counted")] Arc<Shared>),
}

impl GatewayBody {
    pub(crate) fn own(incoming: Incoming, inner: Inner, pool: Arc<Pool>) -> Self {
        Self { body: DrivenBody::new(incoming, Way::Own(Box::new(inner), pool)), broken: None }
    }

    pub(crate) fn shared(incoming: Incoming, shared: Arc<Shared>) -> Self {
        Self { body: DrivenBody::new(incoming, Way::Shared(shared)), broken: None }
    }
}

impl Carrier for Way {
    fn drive(&mut self, cx: &mut Context<'_>) {
        if let Self::Own(inner, _) = self {
            inner.wire().drive(cx);
        }
    }

    fn give_back(self) {
        if let Self::Own(inner, pool) = self {
            pool.keep(*inner);
        }
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Gateway(body) => {
                if let Some(error) = body.broken.take() {
                    return Poll::Ready(Some(Err(error.into())));
                }
                match ready!(Pin::new(&mut body.body).poll_frame(cx)) {
                    None => Poll::Ready(None),
                    Some(Ok(frame)) => Poll::Ready(Some(Ok(clean(frame)))),
                    Some(Err(error)) => {
                        body.broken = Some(error);
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                }
            }
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Gateway(body) => body.body.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Gateway(body) => body.body.size_hint(),
            Self::Own(body) => body.size_hint(),
        }
    }
}

/// An answer's body on its way to the caller: as long as it is there, its request is open.
pub(crate) struct Answering {
    body: ResponseBody,
    /// Whether the caller has all of it.
    complete: bool,
    open: Open,
}

impl Answering {
    /// `head_only`: the caller gets no body, as for HEAD.
    pub(crate) fn new(body: ResponseBody, head_only: bool, open: Open) -> Self {
        Self { body, complete: head_only, open }
    }
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = <ResponseBody as HttpBody>::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.complete |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.complete || self.body.is_end_stream() {
            self.open.complete();
        }
    }
}
