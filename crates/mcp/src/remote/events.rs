//! The transport of two URLs (2024-11-05): one stream of events brings all answers, and says where messages are posted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use tokio::sync::oneshot;
use url::Url;

use super::exchange::{Answered, answer_to, content_type, post, refused, reply, request};
use super::sse::Events;
use super::{Carrier, Failure};

/// Most events before the one that says where to post.
const BEFORE_ENDPOINT: usize = 16;

/// The stream, which a task of its own reads until this is dropped.
pub(super) struct Channel {
    post_to: Url,
    waiting: Arc<Waiting>,
    _open: oneshot::Sender<()>,
}

/// Who waits for an answer.
type Waiter = oneshot::Sender<Result<Value, Failure>>;

/// Those who wait for answers, by the ids of their requests; none once the stream has ended.
struct Waiting(Mutex<Option<HashMap<i64, Waiter>>>);

impl Channel {
    /// Opens the stream and learns where to post: at the origin of the stream, and nowhere else.
    pub(super) async fn open(carrier: &Arc<dyn Carrier>, endpoint: &Url) -> Result<Self, Failure> {
        let answer = carrier.send(request(Method::GET, endpoint, Bytes::new())).await?;
        if !answer.status().is_success() {
            return Err(refused(answer, false).await);
        }
        if content_type(answer.headers()) != "text/event-stream" {
            return Err(Failure::protocol("it answers neither POST nor GET as an MCP server does"));
        }
        let mut events = Events::new(answer.into_body());
        let mut post_to = None;
        for _ in 0..BEFORE_ENDPOINT {
            let Some(event) = events.next().await? else { break };
            if event.name == "endpoint" {
                post_to = endpoint.join(event.data.trim()).ok();
                break;
            }
        }
        let same_origin = |url: &Url| url.origin() == endpoint.origin();
        let post_to = post_to.filter(same_origin).ok_or_else(|| {
            Failure::protocol("its stream does not say where to post, or names a place at another origin")
        })?;
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let (open, closed) = oneshot::channel::<()>();
        let reading = read(events, carrier.clone(), post_to.clone(), waiting.clone());
        carrier.behind(Box::pin(async move {
            tokio::select! {
                () = reading => {}
                _ = closed => {}
            }
        }));
        Ok(Self { post_to, waiting, _open: open })
    }

    /// Where messages are posted.
    pub(super) fn url(&self) -> &Url {
        &self.post_to
    }

    /// Posts a request, and waits for its answer on the stream.
    pub(super) async fn ask(&self, carrier: &Arc<dyn Carrier>, id: i64, message: &Value) -> Result<Answered, Failure> {
        let (sender, answer) = oneshot::channel();
        let Some(_place) = self.waiting.enter(id, sender) else { return Err(Failure::SessionLost) };
        let posted = carrier.send(post(&self.post_to, message)).await?;
        if !posted.status().is_success() {
            return Err(match refused(posted, true).await {
                // The stream was that of a session.
                Failure::Status(400 | 404) => Failure::SessionLost,
                failure => failure,
            });
        }
        let result = answer.await.unwrap_or(Err(Failure::Broken))?;
        Ok(Answered { result, session: None })
    }
}

/// Hands out the answers of a stream, to its end.
async fn read(mut events: Events, carrier: Arc<dyn Carrier>, post_to: Url, waiting: Arc<Waiting>) {
    let _end = End(waiting.clone());
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "the stream of an MCP server ended");
                return;
            }
        };
        let Ok(message) = serde_json::from_str::<Value>(&event.data) else { continue };
        if let Some(reply) = reply(&message) {
            if let Err(error) = carrier.send(post(&post_to, &reply)).await {
                tracing::debug!(%error, "a server's request was not answered");
            }
        } else if let Some(id) = message.get("id").and_then(Value::as_i64)
            && let Some(sender) = waiting.leave(id)
            && let Ok(outcome) = answer_to(id, message)
        {
            // Who has left does not wait.
            drop(sender.send(outcome));
        }
    }
}

/// A place among those who wait, left at its end.
struct Place<'a>(&'a Waiting, i64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        drop(self.0.leave(self.1));
    }
}

/// The end of a stream: nothing is waited for any more.
struct End(Arc<Waiting>);

impl Drop for End {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Waiting {
    fn enter(&self, id: i64, sender: Waiter) -> Option<Place<'_>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut()?.insert(id, sender);
        Some(Place(self, id))
    }

    fn leave(&self, id: i64) -> Option<Waiter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(&id)
    }
}
