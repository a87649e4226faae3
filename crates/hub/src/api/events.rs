//! `/v1/sessions/{session_id}/events`: what happened, what is sent, and the stream of what happens. The one thread of a
//! session has the same events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Json, Response};
use bytes::Bytes;
use futures_util::Stream as _;
use http_body::{Body as HttpBody, Frame};
use sortie_api::{ApiError, EventBody, SendEvents, SentEvents, SessionStatus, place_text};
use sortie_ids::{SessionId, ThreadId};
use sortie_orchestrator::live::{Deltas, Holder, Subscription};
use sortie_store::{EventPlace, EventQuery, SessionRecord};

use super::extract::{At, Object};
use super::frame::{Call, Failure};
use super::pairs::{Pairs, Unit, place};
use super::sessions::{reached, refused};
use super::threads::thread_of;
use super::{Api, ApiState, audit, workers};

/// Events on a page, at most and when the caller does not say.
const MAX_PAGE: u32 = 1000;
/// Bytes of events on a page.
const PAGE_BYTES: u64 = 8 * 1024 * 1024;
/// Values of a repeated parameter at most.
const MAX_VALUES: usize = 100;

pub(super) async fn send(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
    Object(body): Object<SendEvents>,
) -> Result<Json<SentEvents>, Failure> {
    let session = reached(&api, &call, &id).await?;
    let events = body.check()?;
    workers::check_events(&call.caller, &events)?;
    for event in &events {
        if let EventBody::UserInterrupt { session_thread_id: Some(thread) } = event
            && *thread != session.thread
        {
            return Err(ApiError::invalid_request("session_thread_id: the session has no thread with this id").into());
        }
    }
    let data = api.sessions.post(&session.workspace, &id, events).await.map_err(refused)?;
    audit::session_events_sent(&call, &id, &data);
    Ok(Json(SentEvents { data }))
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
    pairs: Pairs,
) -> Result<Response, Failure> {
    let session = reached(&api, &call, &id).await?;
    page(&api, &session, &pairs).await
}

pub(super) async fn list_of_thread(
    State(api): Api,
    call: Call,
    At((id, thread)): At<(SessionId, ThreadId)>,
    pairs: Pairs,
) -> Result<Response, Failure> {
    let session = thread_of(&api, &call, &id, &thread).await?;
    page(&api, &session, &pairs).await
}

async fn page(api: &ApiState, session: &SessionRecord, pairs: &Pairs) -> Result<Response, Failure> {
    let id = &session.session.id;
    let within = pairs.within("created_at", Unit::Microsecond)?;
    let descending = !pairs.ascending(true)?;
    let list = format!("events of {id} {}", if descending { "desc" } else { "asc" });
    let place = match place(&list, pairs)? {
        Some([position, seq, at]) => {
            if at != 0 {
                within.check_place(at)?;
            }
            Some(EventPlace { position, seq, at })
        }
        None => None,
    };
    let kinds = pairs.many("types", MAX_VALUES)?.into_iter().map(str::to_owned).collect();
    let limit = pairs.limit(MAX_PAGE, MAX_PAGE)?;
    let (from, to) = (within.from, within.to);
    let asked = EventQuery { kinds, from, to, descending, limit, bytes: PAGE_BYTES, place };
    let page = api.store.list_events(id, &asked).await?;
    let next = page.next.map(|EventPlace { position, seq, at }| place_text(&list, &[position, seq, at]));
    // What was stored is what is shown, byte for byte.
    let next = serde_json::Value::from(next);
    let body = format!("{{\"data\":[{}],\"next_page\":{next}}}", page.lines.join(","));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

pub(super) async fn stream(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
    pairs: Pairs,
) -> Result<Response, Failure> {
    // First, so that nothing is missed that happens from here on.
    let events = subscribe(&api, &call, &id, &pairs)?;
    let session = reached(&api, &call, &id).await?;
    Ok(streamed(&session, events))
}

pub(super) async fn stream_of_thread(
    State(api): Api,
    call: Call,
    At((id, thread)): At<(SessionId, ThreadId)>,
    pairs: Pairs,
) -> Result<Response, Failure> {
    let events = subscribe(&api, &call, &id, &pairs)?;
    let session = thread_of(&api, &call, &id, &thread).await?;
    Ok(streamed(&session, events))
}

fn subscribe(api: &ApiState, call: &Call, id: &SessionId, pairs: &Pairs) -> Result<Subscription, ApiError> {
    let mut deltas = Deltas::default();
    for kind in pairs.many("event_deltas", MAX_VALUES)? {
        match kind {
            "agent.message" => deltas.message = true,
            "agent.thinking" => deltas.thinking = true,
            _ => {
                let sentence =
                    "event_deltas: must be `agent.message` or `agent.thinking`; no other events have previews";
                return Err(ApiError::invalid_request(sentence));
            }
        }
    }
    let key = &call.caller.key;
    let holder = Holder { id: key.id.to_string(), until: key.expires_at };
    Ok(api.live.subscribe(id, deltas, Some(holder)))
}

fn streamed(session: &SessionRecord, events: Subscription) -> Response {
    if session.session.status == SessionStatus::Terminated {
        // Nothing more happens in it.
        events.close();
    }
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store")),
        // Proxies such as nginx would collect it otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::new(Events(events))).into_response()
}

/// A stream of events as the body of an answer.
struct Events(Subscription);

impl HttpBody for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_next(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}
