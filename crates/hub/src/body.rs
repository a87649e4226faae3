//! Bodies on their way through: frame by frame, never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use sortie_api::clean_trailers;

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
    Caller(Incoming, Option<Sending>),
    /// None.
    Empty,
    /// The hub's own.
    Own(Full<Bytes>),
}

/// Tells whether a request's body is still on its way.
#[derive(Clone)]
pub(crate) struct Sending(Arc<AtomicBool>);

impl Sending {
    /// Whether there is more to send, even if nobody will: a body may be dropped before its end.
    pub(crate) fn is_going_on(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

impl RequestBody {
    /// A body of the hub's own.
    pub(crate) fn own(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Own(Full::new(bytes)) }
    }

    /// The request with its body as it comes, and what tells how long that is; `None` where it has none.
    pub(crate) fn of(request: Request<Incoming>) -> (Request<Self>, Option<Sending>) {
        let sending = (!request.body().is_end_stream()).then(|| Sending(Arc::default()));
        (request.map(|body| Self::Caller(body, sending.clone())), sending)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Caller(body, sending) => {
                let frame = Pin::new(&mut *body).poll_frame(cx).map_ok(clean);
                if let Some(sending) = sending
                    && (matches!(frame, Poll::Ready(None)) || body.is_end_stream())
                {
                    sending.0.store(true, Ordering::Release);
                }
                frame
            }
            Self::Empty => Poll::Ready(None),
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Caller(body, _) => body.is_end_stream(),
            Self::Empty => true,
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Caller(body, _) => body.size_hint(),
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
    incoming: Incoming,
    carrier: Carrier,
    /// How it broke, told one look later: an error ends the caller's connection, and what was answered so far has to
    /// leave first.
    broken: Option<hyper::Error>,
}

/// What an answer comes over.
enum Carrier {
    /// A connection of its own, which whoever reads the answer drives.
    Own(Box<Inner>, Arc<Pool>),
    /// One that others use, too.
    Shared(#[expect(dead_code, reason = "held to be counted")] Arc<Shared>),
    /// Given back, or broken.
    None,
}

impl GatewayBody {
    pub(crate) fn own(incoming: Incoming, inner: Inner, pool: Arc<Pool>) -> Self {
        let mut body = Self { incoming, carrier: Carrier::Own(Box::new(inner), pool), broken: None };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    pub(crate) fn shared(incoming: Incoming, shared: Arc<Shared>) -> Self {
        Self { incoming, carrier: Carrier::Shared(shared), broken: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &mut self.carrier {
            Carrier::Own(inner, _) if polled.is_pending() => {
                inner.wire().drive(cx);
                Pin::new(&mut self.incoming).poll_frame(cx)
            }
            _ => polled,
        }
    }

    fn give_back(&mut self) {
        if let Carrier::Own(inner, pool) = std::mem::replace(&mut self.carrier, Carrier::None) {
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
                let frame = ready!(body.poll(cx));
                match frame {
                    None => {
                        body.give_back();
                        Poll::Ready(None)
                    }
                    Some(Ok(frame)) => {
                        if body.incoming.is_end_stream() {
                            body.give_back();
                        }
                        Poll::Ready(Some(Ok(clean(frame))))
                    }
                    Some(Err(error)) => {
                        body.carrier = Carrier::None;
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
            Self::Gateway(body) => body.incoming.is_end_stream(),
            Self::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Gateway(body) => body.incoming.size_hint(),
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
