//! The bytes that the binary messages of a WebSocket carry.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::{Sink as _, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Largest message and largest frame that is taken, in bytes; one that is larger ends the connection. A client that puts
/// several TLS records (16 KiB) into one message has room for many.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Largest message that is sent, in bytes.
const MAX_SENT: usize = 64 * 1024;
/// What may wait to be written, in bytes: one message, its frame's head, and the answers to pings.
const MAX_WAITING: usize = 2 * MAX_SENT;
/// What is read at once, in bytes.
const READ: usize = 32 * 1024;
/// How often the other side is asked whether it is there. Silent from one time to the next, it has gone.
pub(super) const PING_EVERY: Duration = Duration::from_secs(30);

/// A WebSocket as a stream of bytes. How messages cut the bytes means nothing.
///
/// Pings go out, and their answers count, while somebody reads from it.
pub(super) struct Carried<S> {
    socket: WebSocketStream<S>,
    /// What has come and was not read yet.
    rest: Bytes,
    pings: Interval,
    /// Whether anything has come since the last ping.
    heard: bool,
    fault: Arc<OnceLock<String>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carried<S> {
    /// The stream, and where it tells what the other side did wrong.
    pub(super) async fn new(io: S) -> (Self, Arc<OnceLock<String>>) {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            // What TLS has to say is said at once.
            .write_buffer_size(0)
            .max_write_buffer_size(MAX_WAITING)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
        let mut pings = tokio::time::interval_at(Instant::now() + PING_EVERY, PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let fault = Arc::<OnceLock<String>>::default();
        (Self { socket, rest: Bytes::new(), pings, heard: true, fault: fault.clone() }, fault)
    }

    /// The next bytes; none at the end.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        loop {
            let message = match Pin::new(&mut self.socket).poll_next(cx) {
                Poll::Ready(message) => message,
                Poll::Pending => {
                    ready!(self.pings.poll_tick(cx));
                    self.ping(cx)?;
                    continue;
                }
            };
            self.heard = true;
            match message {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
                Some(Ok(Message::Binary(bytes))) => return Poll::Ready(Ok(bytes)),
                Some(Ok(Message::Text(_))) => {
                    let reason = "a text message came; the bytes of TLS come in binary ones".to_owned();
                    return Poll::Ready(Err(self.broken(cx, CloseCode::Unsupported, reason)));
                }
                // Answered by the reader of messages itself.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(Bytes::new())),
                Some(Err(error)) => return Poll::Ready(Err(self.failed(cx, error))),
            }
        }
    }

    /// Asks whether the other side is there, if it has not left the last question without an answer.
    fn ping(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.heard {
            let reason = format!("nothing came for {} s, not even an answer to a ping", PING_EVERY.as_secs());
            let _ = self.fault.set(reason.clone());
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        self.heard = false;
        // With something else on its way already, that will show whether anybody is there.
        if Pin::new(&mut self.socket).poll_ready(cx).map_err(io_error)?.is_ready() {
            Pin::new(&mut self.socket).start_send(Message::Ping(Bytes::new())).map_err(io_error)?;
        }
        Ok(())
    }

    fn failed(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        match error {
            Error::Capacity(_) => {
                let reason = format!("a frame or message came that is larger than {MAX_MESSAGE} bytes");
                self.broken(cx, CloseCode::Size, reason)
            }
            Error::Protocol(tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
                io::ErrorKind::UnexpectedEof.into()
            }
            Error::Protocol(error) => {
                self.broken(cx, CloseCode::Protocol, format!("it does not follow the WebSocket protocol: {error}"))
            }
            Error::Utf8(_) => {
                self.broken(cx, CloseCode::Unsupported, "a text message came that is no text either".to_owned())
            }
            error => io_error(error),
        }
    }

    /// Says goodbye, as far as that goes at once.
    fn broken(&mut self, cx: &mut Context<'_>, code: CloseCode, reason: String) -> io::Error {
        let goodbye = Message::Close(Some(CloseFrame { code, reason: "".into() }));
        if Pin::new(&mut self.socket).start_send(goodbye).is_ok() {
            let _flushed = Pin::new(&mut self.socket).poll_flush(cx);
        }
        let error = io::Error::new(io::ErrorKind::InvalidData, reason.clone());
        let _ = self.fault.set(reason);
        error
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Carried<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            this.rest = ready!(this.poll_bytes(cx))?;
        }
        let length = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Carried<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let socket = Pin::new(&mut self.get_mut().socket);
        let mut socket = socket;
        ready!(socket.as_mut().poll_ready(cx)).map_err(io_error)?;
        let mut rest = bytes;
        let sent = rest.copy_to_bytes(bytes.len().min(MAX_SENT));
        let length = sent.len();
        socket.start_send(Message::Binary(sent)).map_err(io_error)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_close(cx).map_err(io_error)
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;

    async fn pair() -> (Carried<DuplexStream>, Arc<OnceLock<String>>, WebSocketStream<DuplexStream>) {
        let (here, there) = tokio::io::duplex(1 << 20);
        let (carried, fault) = Carried::new(here).await;
        (carried, fault, WebSocketStream::from_raw_socket(there, Role::Client, None).await)
    }

    #[tokio::test]
    async fn bytes_come_and_go_however_messages_cut_them() {
        let (mut carried, _, mut client) = pair().await;
        for piece in [&b"ab"[..], b"", b"c", b"defg"] {
            client.send(Message::Binary(Bytes::from_static(piece))).await.expect("sent");
        }
        client.send(Message::Ping(Bytes::from_static(b"p"))).await.expect("sent");
        client.send(Message::Binary(Bytes::from_static(b"h"))).await.expect("sent");
        let mut got = [0; 8];
        carried.read_exact(&mut got).await.expect("read");
        assert_eq!(&got, b"abcdefgh");
        assert_eq!(client.next().await.expect("pong").expect("message"), Message::Pong(Bytes::from_static(b"p")));
        let much = vec![7; 3 * MAX_SENT / 2];
        carried.write_all(&much).await.expect("written");
        let mut came = Vec::new();
        while came.len() < much.len() {
            let message = client.next().await.expect("message").expect("message");
            assert!(message.len() <= MAX_SENT);
            came.extend_from_slice(&message.into_data());
        }
        assert!(came == much);
        client.close(None).await.expect("closed");
        assert_eq!(carried.read(&mut got).await.expect("end"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_pings_stays_and_who_does_not_goes() {
        let (mut carried, fault, mut client) = pair().await;
        let mut byte = [0];
        let ends = tokio::time::timeout(10 * PING_EVERY, async {
            tokio::select! {
                read = carried.read(&mut byte) => read.map(|_| ()),
                () = async { while let Some(Ok(message)) = client.next().await { assert!(message.is_ping()) } } => Ok(()),
            }
        });
        assert!(ends.await.is_err(), "it stays");
        let silent = tokio::time::timeout(3 * PING_EVERY, carried.read(&mut byte)).await.expect("it ends");
        assert_eq!(silent.expect_err("error").kind(), io::ErrorKind::TimedOut);
        assert!(fault.get().is_some_and(|fault| fault.contains("answer to a ping")));
    }
}
