//! One stream of a link as a byte stream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

/// One stream of a link. Dropping it before both directions have ended resets the stream, so that a caller's hang-up
/// reaches the far end at once.
pub struct LinkStream {
    send: SendStream<Bytes>,
    receive: Receive,
    chunk: Bytes,
    ended: bool,
    _counted: Counted,
}

/// What a stream holds while it is there.
#[expect(dead_code, reason = "held for their drop")]
enum Counted {
    /// Its place among the streams that may be open on the link.
    Opened(OwnedSemaphorePermit),
    /// By this the link can tell when its last stream has ended.
    Accepted(Arc<()>),
}

/// The receiving half: on the side that opened the stream it exists once the peer has answered.
enum Receive {
    Awaited(ResponseFuture),
    Open(RecvStream),
}

impl std::fmt::Debug for LinkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkStream").field("id", &self.send.stream_id()).finish_non_exhaustive()
    }
}

impl LinkStream {
    pub(crate) fn opened(send: SendStream<Bytes>, response: ResponseFuture, room: OwnedSemaphorePermit) -> Self {
        let counted = Counted::Opened(room);
        Self { send, receive: Receive::Awaited(response), chunk: Bytes::new(), ended: false, _counted: counted }
    }

    pub(crate) fn accepted(send: SendStream<Bytes>, receive: RecvStream, open: Arc<()>) -> Self {
        let counted = Counted::Accepted(open);
        Self { send, receive: Receive::Open(receive), chunk: Bytes::new(), ended: false, _counted: counted }
    }

    /// Waits until some bytes may be sent; never zero.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        loop {
            self.send.reserve_capacity(wanted);
            let room = self.send.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }
}

fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) => io::ErrorKind::ConnectionReset.into(),
        _ => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

impl AsyncRead for LinkStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.chunk.is_empty() {
                let n = this.chunk.len().min(buf.remaining());
                buf.put_slice(this.chunk.get(..n).unwrap_or_default());
                this.chunk.advance(n);
                if this.chunk.is_empty() {
                    // Even an empty piece would hold the whole buffer that it was cut from.
                    this.chunk = Bytes::new();
                }
                if let Receive::Open(receive) = &mut this.receive {
                    // The window is given back only for what was taken, so that a slow reader holds its own peer back.
                    let _ = receive.flow_control().release_capacity(n);
                }
                return Poll::Ready(Ok(()));
            }
            if this.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match &mut this.receive {
                Receive::Awaited(response) => {
                    let response = ready!(Pin::new(response).poll(cx)).map_err(io_error)?;
                    if response.status() != http::StatusCode::OK {
                        return Poll::Ready(Err(io::Error::new(
                            io::ErrorKind::ConnectionRefused,
                            format!("the gateway refused the stream with status {}", response.status().as_u16()),
                        )));
                    }
                    this.receive = Receive::Open(response.into_body());
                }
                Receive::Open(receive) => match ready!(receive.poll_data(cx)) {
                    Some(Ok(chunk)) => this.chunk = chunk,
                    Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
                    None => this.ended = true,
                },
            }
        }
    }
}

impl AsyncWrite for LinkStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, buf.len()))?;
        let piece = buf.get(..room).unwrap_or_default();
        this.send.send_data(Bytes::copy_from_slice(piece), false).map_err(io_error)?;
        Poll::Ready(Ok(piece.len()))
    }

    /// Several TLS records go out as one frame.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wanted = bufs.iter().map(|b| b.len()).sum::<usize>().min(crate::MAX_FRAME as usize);
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, wanted))?;
        let mut piece = BytesMut::with_capacity(room);
        for buf in bufs {
            let n = buf.len().min(room - piece.len());
            piece.extend_from_slice(buf.get(..n).unwrap_or_default());
        }
        let n = piece.len();
        this.send.send_data(piece.freeze(), false).map_err(io_error)?;
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send.send_data(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            // Already ended, by us or by a reset: there is nothing left to end.
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}
