//! A call that waits for a person, without the client's giving it up for dead.
//!
//! A client that takes event streams gets the head of one when the wait goes on for as long as its route lets streams be
//! quiet, and comments from then on. The upstream's answer follows as it is where it is an event stream itself, and as one
//! event where it is JSON. Until that time, and for other clients, nothing is sent before the answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use serde_json::value::RawValue;
use sortie_api::{Hop, HopError};
use sortie_ids::RequestId;
use tokio::time::{Instant, Sleep};

use crate::body::{BodyError, CallBody};
use crate::quiet::{COMMENT, is_plain_event_stream};

/// What comes before and behind a JSON text that is sent as one event.
const BEFORE: &[u8] = b"event: message\ndata: ";
const BEHIND: &[u8] = b"\n\n";

type Answer = Result<Response<CallBody>, HopError>;

/// How a client that takes events is answered.
pub(crate) struct Events {
    /// How long it may hear nothing.
    pub(crate) every: Duration,
    /// The JSON-RPC id of its request.
    pub(crate) id: Box<RawValue>,
    pub(crate) request_id: RequestId,
}

/// Whether an answer to this request may be an event stream (MCP 2025-11-25, transports, "Sending Messages").
pub(crate) fn takes_events(method: &Method, headers: &HeaderMap) -> bool {
    let named =
        |value: &HeaderValue| value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("text/event-stream"));
    method == Method::POST && headers.get_all(ACCEPT).iter().any(named)
}

/// Awaits an answer that a person has to let happen first. Dropping the future, or the answer's body, drops `answering`.
///
/// # Errors
/// Those of `answering`, as long as nothing was sent.
pub(crate) async fn wait(answering: BoxFuture<'static, Answer>, events: Option<Events>) -> Answer {
    let Some(events) = events else { return answering.await };
    let mut answering = answering;
    match tokio::time::timeout(events.every, answering.as_mut()).await {
        Ok(answered) => answered,
        Err(_) => {
            let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
            let patient = Patient { stage: Stage::Waits { answering: Mutex::new(answering), timer }, events };
            let mut response = Response::new(patient.boxed());
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            Ok(response)
        }
    }
}

struct Patient {
    stage: Stage,
    events: Events,
}

enum Stage {
    Waits {
        /// The lock is for the compiler: a body may be looked at from several threads.
        answering: Mutex<BoxFuture<'static, Answer>>,
        timer: Pin<Box<Sleep>>,
    },
    /// The upstream's event stream.
    Events(CallBody),
    /// The upstream's JSON, as one event.
    Json {
        body: CallBody,
        begun: bool,
    },
    Ended,
}

impl Patient {
    /// What is sent when the wait has ended.
    fn answered(&mut self, answer: Answer) -> Option<Bytes> {
        let error = match answer {
            Ok(response) if is_plain_event_stream(response.headers()) => {
                self.stage = Stage::Events(response.into_body());
                return None;
            }
            Ok(response) if is_json(response.headers()) => {
                self.stage = Stage::Json { body: response.into_body(), begun: false };
                return None;
            }
            Ok(response) => {
                let reason = format!("the upstream answered {} without JSON", response.status().as_u16());
                HopError::new(Hop::Upstream, reason)
            }
            Err(error) => error,
        };
        self.stage = Stage::Ended;
        let body = error.body(self.events.request_id.as_str(), Some(&self.events.id));
        Some([BEFORE, &body, BEHIND].concat().into())
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match &mut this.stage {
                Stage::Waits { answering, timer } => {
                    let answering = answering.get_mut().unwrap_or_else(PoisonError::into_inner);
                    if let Poll::Ready(answer) = answering.as_mut().poll(cx) {
                        match this.answered(answer) {
                            Some(event) => return Poll::Ready(Some(Ok(Frame::data(event)))),
                            None => continue,
                        }
                    }
                    ready!(timer.as_mut().poll(cx));
                    timer.as_mut().reset(Instant::now() + this.events.every);
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(COMMENT)))));
                }
                Stage::Events(body) => return Pin::new(body).poll_frame(cx),
                Stage::Json { begun: begun @ false, .. } => {
                    *begun = true;
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(BEFORE)))));
                }
                Stage::Json { body, .. } => match ready!(Pin::new(body).poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) => return Poll::Ready(Some(Ok(Frame::data(in_event(&data))))),
                        Err(_trailers) => continue,
                    },
                    Some(Err(error)) => {
                        this.stage = Stage::Ended;
                        return Poll::Ready(Some(Err(error)));
                    }
                    None => {
                        this.stage = Stage::Ended;
                        return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(BEHIND)))));
                    }
                },
                Stage::Ended => return Poll::Ready(None),
            }
        }
    }
}

/// JSON within an event: a line's end, which in JSON is a blank, would end the event's line, and becomes a space.
fn in_event(json: &Bytes) -> Bytes {
    if !json.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return json.clone();
    }
    let mut data = BytesMut::from(json.as_ref());
    data.iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')).for_each(|byte| *byte = b' ');
    data.freeze()
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    sortie_mcp::envelope::is_json(kind) && !headers.contains_key(http::header::CONTENT_ENCODING)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::sync::oneshot;

    use super::*;
    use crate::body::whole;

    fn events() -> Option<Events> {
        let id = RawValue::from_string("1.50".to_owned()).expect("id");
        Some(Events { every: Duration::from_secs(20), id, request_id: RequestId::random() })
    }

    fn response(kind: &'static str, body: &str) -> Response<CallBody> {
        let mut response = Response::new(whole(body.as_bytes().to_vec()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    /// The whole text of an answer that is given after so many seconds.
    async fn after(seconds: u64, answer: Answer) -> String {
        let answering = async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            answer
        };
        let response = wait(answering.boxed(), events()).await.expect("a stream");
        assert_eq!(response.headers()[CONTENT_TYPE], "text/event-stream");
        let body = response.into_body().collect().await.expect("body").to_bytes();
        String::from_utf8(body.to_vec()).expect("text")
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_wait_changes_nothing() {
        let answer = async { Ok(response("application/json", "{}")) };
        let answered = wait(answer.boxed(), events()).await.expect("answer");
        assert_eq!(answered.headers()[CONTENT_TYPE], "application/json");
        let refused = async { Err(HopError::new(Hop::Policy, "denied")) };
        assert!(wait(refused.boxed(), events()).await.is_err());
        let answering = async {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            Ok(response("application/json", "{}"))
        };
        let patient = wait(answering.boxed(), None).await.expect("answer");
        assert_eq!(patient.headers()[CONTENT_TYPE], "application/json", "who takes no events just waits");
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_is_filled_with_comments_until_the_answer() {
        let comments = ": keepalive\n\n".repeat(3);
        let json = "{\"jsonrpc\":\"2.0\",\r\n \"id\":1.50}\n";
        let text = after(70, Ok(response("application/json; charset=utf-8", json))).await;
        assert_eq!(text, format!("{comments}event: message\ndata: {{\"jsonrpc\":\"2.0\",   \"id\":1.50}} \n\n"));
        let stream = "id: 7\nevent: message\ndata: {}\n\n";
        assert_eq!(after(70, Ok(response("text/event-stream", stream))).await, format!("{comments}{stream}"));
        let text = after(70, Err(HopError::new(Hop::Policy, "denied by ada"))).await;
        let data = text.strip_prefix(&format!("{comments}event: message\ndata: ")).expect("an event");
        let error: serde_json::Value = serde_json::from_str(data).expect("json");
        assert_eq!(error["error"]["data"]["hop"], "policy");
        assert!(data.contains("\"id\":1.50,"), "{data}");
        let text = after(70, Ok(response("text/plain", "oops"))).await;
        assert!(text.contains("the upstream answered 200 without JSON"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_ends_the_wait() {
        let (held, mut gone) = oneshot::channel::<()>();
        let answering = async move {
            let _held = held;
            std::future::pending().await
        };
        let response = wait(answering.boxed(), events()).await.expect("a stream");
        assert!(gone.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        drop(response);
        assert!(gone.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
    }
}
