//! One HTTP/2 connection to a gateway for many calls that last and say little: an open stream then costs a few hundred
//! bytes instead of a TLS connection at both ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use sortie_link::LinkStream;
use sortie_runtime::TaskSet;
use sortie_runtime::http::{InTasks, MAX_ANSWER_HEAD_U32, MAX_FRAME, MAX_GIVEN_UP, MAX_SEND_BUFFER};
use sortie_tls::ClientStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Peer;
use crate::body::RequestBody;

/// Calls on one connection; a gateway admits 256.
const MAX_CALLS: usize = 240;
/// Window of one call's answer, in bytes: what a caller that does not read makes the hub hold.
const CALL_WINDOW: u32 = 64 * 1024;
/// Window of all answers together, so large that one caller that does not read holds up no other.
const CONNECTION_WINDOW: u32 = CALL_WINDOW * 256;

/// Whether a call is made to last: the stream of a session (2025-11-25 and before), or a subscription (2026-07-28).
pub(crate) fn is_lasting<B>(request: &Request<B>) -> bool {
    let header = |name| request.headers().get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
    match *request.method() {
        Method::GET => header(ACCEPT.as_str()).is_some_and(|accept| accept.contains("text/event-stream")),
        Method::POST => header("mcp-method") == Some("subscriptions/listen"),
        _ => false,
    }
}

/// A connection that carries up to 240 calls. It is closed when the last who holds it lets it go.
pub(crate) struct Shared {
    pub(crate) peer: Peer,
    sender: SendRequest<RequestBody>,
    _end: DropGuard,
}

impl Shared {
    /// Begins HTTP on a stream whose TLS is done; cancelling `end` closes it, whatever is under way.
    pub(crate) async fn open(
        stream: ClientStream<LinkStream>,
        peer: Peer,
        end: CancellationToken,
        tasks: &TaskSet,
    ) -> hyper::Result<Self> {
        let mut builder = Builder::new(InTasks::new(tasks.clone(), "inner-http2"));
        builder
            .initial_stream_window_size(CALL_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_ANSWER_HEAD_U32)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(MAX_SEND_BUFFER)
            .max_concurrent_reset_streams(MAX_GIVEN_UP)
            .keep_alive_interval(None);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let ended = end.clone();
        tasks.spawn("inner-connection", async move {
            // An error has reached the calls that it belongs to.
            let _ = ended.run_until_cancelled(connection).await;
            ended.cancel();
        });
        Ok(Self { peer, sender, _end: end.drop_guard() })
    }

    /// Whether another call may begin on it.
    pub(crate) fn has_room(self: &Arc<Self>) -> bool {
        self.is_live() && Arc::strong_count(self) <= MAX_CALLS
    }

    pub(crate) fn is_live(&self) -> bool {
        !self.sender.is_closed() && !self.peer.is_retired()
    }

    /// Sends a request to the host that it names, and waits for the head of the answer.
    pub(crate) async fn send(
        &self,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let host = request.headers().get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let mut target = std::mem::take(request.uri_mut()).into_parts();
        target.scheme = Some(Scheme::HTTPS);
        target.authority = host;
        // HTTP/2 has a framing of its own.
        request.headers_mut().remove(TRANSFER_ENCODING);
        if let Ok(target) = Uri::from_parts(target) {
            *request.uri_mut() = target;
        }
        self.sender.clone().try_send_request(request).await
    }
}

/// The connection to which calls of a tunnel are given, and since when it has had none.
pub(crate) struct Kept {
    pub(crate) shared: Arc<Shared>,
    pub(crate) idle_since: Instant,
}

impl Kept {
    /// Whether it is worth keeping: live, and in use or used lately. To be called now and then.
    pub(crate) fn look(&mut self, idle: Duration) -> bool {
        if Arc::strong_count(&self.shared) > 1 {
            self.idle_since = Instant::now();
        }
        self.shared.is_live() && self.idle_since.elapsed() < idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_known_by_its_head() {
        let request = |method: &str, name: &str, value: &str| {
            is_lasting(&Request::builder().method(method).header(name, value).body(()).expect("request"))
        };
        assert!(request("GET", "accept", "text/event-stream"));
        assert!(request("GET", "accept", "application/json, text/event-stream"));
        assert!(request("POST", "mcp-method", "subscriptions/listen"));
        assert!(!request("GET", "accept", "text/html"));
        assert!(!request("POST", "accept", "application/json, text/event-stream"));
        assert!(!request("POST", "mcp-method", "tools/call"));
    }
}
