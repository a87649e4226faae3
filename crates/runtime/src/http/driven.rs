//! An HTTP/1.1 connection to a server, without a task of its own: whoever waits for something of it drives it. A call is
//! then done where its caller's connection is served, and wakes nobody on its way.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::rt::{Read, Write};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::MAX_INTERIM;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One HTTP/1.1 connection that sends requests with bodies `B`. Dropping it closes it.
pub struct Driven<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body + Unpin + 'static,
{
    sender: SendRequest<B>,
    wire: Wire<Io, B>,
}

/// What has to be polled for anything to move. It is over when the peer closed, on an error, and when it was cut.
pub struct Wire<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body + Unpin + 'static,
{
    connection: Option<Box<Connection<Io, B>>>,
    end: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<Io, B> Driven<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body<Data: Send, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    /// Begins HTTP on a stream with the bounds that `builder` sets; cancelling `end` closes it, whatever is under way.
    ///
    /// # Errors
    /// HTTP cannot begin on it.
    pub async fn open(builder: &Builder, io: Io, end: CancellationToken) -> hyper::Result<Self> {
        let (sender, connection) = builder.handshake(io).await?;
        let ended = Box::pin(end.clone().cancelled_owned());
        Ok(Self { sender, wire: Wire { connection: Some(Box::new(connection)), end, ended } })
    }

    /// Sends a request and waits for the head of the answer. For its body, [`Driven::wire`] has to be driven. A peer that
    /// gives more than [`MAX_INTERIM`] interim answers is cut.
    ///
    /// # Errors
    /// The connection broke; with the request where nothing of that was sent.
    pub async fn send(&mut self, mut request: Request<B>) -> Result<Response<Incoming>, TrySendError<Request<B>>> {
        bound_interim(&mut request, self.wire.end.clone());
        let mut answer = std::pin::pin!(self.sender.try_send_request(request));
        let wire = &mut self.wire;
        std::future::poll_fn(|cx| {
            wire.drive(cx);
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// Whether another request can be sent now. Nobody has looked at the connection since its last call: this does.
    pub fn is_ready(&mut self) -> bool {
        self.wire.drive(&mut Context::from_waker(Waker::noop()));
        self.wire.connection.is_some() && self.sender.is_ready()
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        self.wire.end.is_cancelled()
    }

    /// What has to be driven.
    pub fn wire(&mut self) -> &mut Wire<Io, B> {
        &mut self.wire
    }
}

impl<Io, B> std::fmt::Debug for Driven<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body + Unpin + 'static,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driven").field("wire", &self.wire).finish_non_exhaustive()
    }
}

/// Cuts the connection on which a request gets too many interim answers.
fn bound_interim<B>(request: &mut Request<B>, end: CancellationToken) {
    let count = AtomicUsize::new(0);
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
            end.cancel();
        }
    });
}

impl<Io, B> Wire<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body<Data: Send, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    /// Moves what can be moved, and sees to it that the task is woken when there is more.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        // An error has reached the call that it belongs to.
        if self.ended.as_mut().poll(cx).is_ready() || Pin::new(connection).poll(cx).is_ready() {
            self.connection = None;
        }
    }

    /// All that moves, for a task of its own. What stays here moves nothing, and ends the task when it is dropped.
    pub fn detach(&mut self) -> Self {
        let ended = Box::pin(self.end.clone().cancelled_owned());
        Self { connection: self.connection.take(), end: self.end.clone(), ended }
    }

    /// Lets what was detached go on to its own end.
    pub fn let_go(&mut self) {
        self.end = CancellationToken::new();
    }
}

impl<Io, B> Drop for Wire<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body + Unpin + 'static,
{
    /// So that whoever keeps a list of what is open can tell.
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl<Io, B> Future for Wire<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body<Data: Send, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        if self.connection.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl<Io, B> std::fmt::Debug for Wire<Io, B>
where
    Io: Read + Write + Unpin,
    B: Body + Unpin + 'static,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("over", &self.connection.is_none()).finish_non_exhaustive()
    }
}

/// What an answer comes over.
pub trait Carrier {
    /// Moves what can be moved, and sees to it that the task is woken when there is more.
    fn drive(&mut self, cx: &mut Context<'_>);

    /// The answer was read to its end.
    fn give_back(self);
}

/// The body of an answer, driven by whoever reads it. Read to its end it gives its carrier back; dropped before, or broken,
/// it drops the carrier.
#[derive(Debug)]
pub struct DrivenBody<C: Carrier> {
    incoming: Incoming,
    carrier: Option<C>,
}

impl<C: Carrier> DrivenBody<C> {
    /// The body that comes over this carrier.
    pub fn new(incoming: Incoming, carrier: C) -> Self {
        let mut body = Self { incoming, carrier: Some(carrier) };
        if body.incoming.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(carrier) = self.carrier.take() {
            carrier.give_back();
        }
    }
}

impl<C: Carrier + Unpin> Body for DrivenBody<C> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if let Some(carrier) = &mut this.carrier
            && frame.is_pending()
        {
            carrier.drive(cx);
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(None) => this.give_back(),
            Poll::Ready(Some(Ok(_))) if this.incoming.is_end_stream() => this.give_back(),
            Poll::Ready(Some(Err(_))) => this.carrier = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// A body on its way out that tells when all of it was taken. Where it is not, an answer has come early, and the connection
/// must be moved also while nobody reads that: the server may read on before it says more.
#[derive(Debug)]
pub struct Outgoing<B> {
    body: B,
    sending: Option<Sending>,
}

/// Tells whether a body is still on its way.
#[derive(Clone, Debug)]
pub struct Sending(Arc<AtomicBool>);

impl Sending {
    /// Whether there is more to send, even if nobody will: a body may be dropped before its end.
    pub fn is_going_on(&self) -> bool {
        !self.0.load(Ordering::Acquire)
    }
}

impl<B: Body> Outgoing<B> {
    /// The body as it comes, and what tells how long that is; `None` where there is nothing to send.
    pub fn new(body: B) -> (Self, Option<Sending>) {
        let sending = (!body.is_end_stream()).then(|| Sending(Arc::default()));
        (Self { body, sending: sending.clone() }, sending)
    }

    /// The body itself.
    pub fn into_inner(self) -> B {
        self.body
    }
}

impl<B: Body + Unpin> Body for Outgoing<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Some(sending) = &this.sending
            && (matches!(frame, Poll::Ready(None)) || this.body.is_end_stream())
        {
            sending.0.store(true, Ordering::Release);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
