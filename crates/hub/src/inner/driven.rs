//! An HTTP/1.1 connection without a task of its own: whoever waits for something of it drives it. A call is then done
//! where its caller's connection is served, and wakes nobody on its way.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use sortie_link::LinkStream;
use sortie_runtime::http::{MAX_ANSWER_HEAD, MAX_INNER_HEADERS, MAX_INTERIM};
use sortie_tls::ClientStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::body::RequestBody;

type Io = TokioIo<ClientStream<LinkStream>>;

/// One HTTP/1.1 connection to a gateway. Dropping it closes it.
pub(crate) struct Driven {
    sender: SendRequest<RequestBody>,
    wire: Wire,
}

/// What has to be polled for anything to move. It is over when the peer closed, on an error, and when trust ended.
pub(crate) struct Wire {
    connection: Option<Box<Connection<Io, RequestBody>>>,
    end: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Driven {
    /// Begins HTTP on a stream whose TLS is done; cancelling `end` closes it, whatever is under way.
    pub(crate) async fn open(stream: ClientStream<LinkStream>, end: CancellationToken) -> hyper::Result<Self> {
        let io = TokioIo::new(stream);
        let (sender, connection) =
            Builder::new().max_buf_size(MAX_ANSWER_HEAD).max_headers(MAX_INNER_HEADERS).handshake(io).await?;
        let ended = Box::pin(end.clone().cancelled_owned());
        Ok(Self { sender, wire: Wire { connection: Some(Box::new(connection)), end, ended } })
    }

    /// Sends a request and waits for the head of the answer. For its body, [`Driven::wire`] has to be driven.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
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
    pub(crate) fn is_ready(&mut self) -> bool {
        self.wire.drive(&mut Context::from_waker(Waker::noop()));
        self.wire.connection.is_some() && self.sender.is_ready()
    }

    /// Whether trust in the peer has ended.
    pub(crate) fn is_cut(&self) -> bool {
        self.wire.end.is_cancelled()
    }

    /// What has to be driven.
    pub(crate) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }
}

/// Ends the connection when its gateway answers this request with too many interim answers. A gateway of ours sends none.
fn bound_interim<B>(request: &mut Request<B>, end: CancellationToken) {
    let count = AtomicUsize::new(0);
    hyper::ext::on_informational(request, move |_| {
        if count.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
            end.cancel();
        }
    });
}

impl Wire {
    /// Moves what can be moved, and sees to it that the task is woken when there is more.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        // An error has reached the call that it belongs to.
        if self.ended.as_mut().poll(cx).is_ready() || Pin::new(connection).poll(cx).is_ready() {
            self.connection = None;
        }
    }

    /// All that moves, for a task of its own. What stays here moves nothing, and ends the task when it is dropped.
    pub(crate) fn detach(&mut self) -> Self {
        let ended = Box::pin(self.end.clone().cancelled_owned());
        Self { connection: self.connection.take(), end: self.end.clone(), ended }
    }
}

impl Drop for Wire {
    /// So that the list of what is open can tell.
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Future for Wire {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        if self.connection.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}
