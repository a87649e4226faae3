//! `/v1/sessions/{session_id}/threads`: each session has one thread, made and ended with it.

use axum::extract::State;
use axum::response::Json;
use sortie_api::{ApiError, List, SessionThread};
use sortie_ids::{SessionId, ThreadId};
use sortie_store::SessionRecord;

use super::extract::At;
use super::frame::{Call, Failure};
use super::pairs::Pairs;
use super::sessions::{reached, statuses};
use super::{Api, ApiState};

/// Threads on a page, at most and when the caller does not say.
const MAX_PAGE: u32 = 1000;

pub(super) async fn list(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
    pairs: Pairs,
) -> Result<Json<List<SessionThread>>, Failure> {
    let statuses = statuses(&pairs)?;
    pairs.limit(MAX_PAGE, MAX_PAGE)?;
    if pairs.one("page")?.is_some() {
        return Err(ApiError::invalid_request("page: the list has one page; leave the parameter out").into());
    }
    let SessionRecord { thread, session, .. } = reached(&api, &call, &id).await?;
    let thread = SessionThread::primary(thread, session);
    let shown = statuses.is_empty() || statuses.contains(&thread.status);
    Ok(Json(List { data: shown.then_some(thread).into_iter().collect(), next_page: None }))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At((id, thread)): At<(SessionId, ThreadId)>,
) -> Result<Json<SessionThread>, Failure> {
    let SessionRecord { thread, session, .. } = thread_of(&api, &call, &id, &thread).await?;
    Ok(Json(SessionThread::primary(thread, session)))
}

pub(super) async fn archive(
    State(api): Api,
    call: Call,
    At((id, thread)): At<(SessionId, ThreadId)>,
) -> Result<Json<SessionThread>, Failure> {
    thread_of(&api, &call, &id, &thread).await?;
    let sentence = "The primary thread is archived with its session; archive the session.";
    Err(ApiError::invalid_request(sentence).into())
}

/// The session, if this is its thread.
pub(super) async fn thread_of(
    api: &ApiState,
    call: &Call,
    id: &SessionId,
    thread: &ThreadId,
) -> Result<SessionRecord, Failure> {
    let session = reached(api, call, id).await?;
    if session.thread == *thread {
        return Ok(session);
    }
    Err(ApiError::not_found("The session has no thread with this id.").into())
}
