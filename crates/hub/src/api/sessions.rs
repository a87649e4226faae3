//! `/v1/sessions`: sessions, and what little there is of their resources.

use axum::extract::State;
use axum::response::Json;
use sortie_api::{ApiError, List, Session, SessionList, SessionStatus, place_text};
use sortie_ids::SessionId;
use sortie_store::{SessionFilter, SessionPlace, SessionRecord};

use super::extract::At;
use super::frame::{Call, Failure};
use super::pairs::{Pairs, Unit, place};
use super::{Api, ApiState};

/// Values of a repeated parameter at most.
const MAX_VALUES: usize = 100;

pub(super) async fn list(State(api): Api, call: Call, pairs: Pairs) -> Result<Json<SessionList>, Failure> {
    let ascending = pairs.ascending(false)?;
    let name = if ascending { "sessions asc" } else { "sessions desc" };
    let within = pairs.within("created_at", Unit::Second)?;
    let place = match place(name, &pairs)? {
        Some([back, seq, at]) => {
            within.check_place(at)?;
            Some(SessionPlace { back: back != 0, seq, at })
        }
        None => None,
    };
    let filter = SessionFilter {
        agent: pairs.parsed("agent_id", "an agent id (agent_...)")?,
        version: pairs.parsed("agent_version", "a number")?,
        statuses: statuses(&pairs)?,
        from: within.from,
        to: within.to,
        include_archived: pairs.parsed("include_archived", "`true` or `false`")?.unwrap_or(false),
        ascending,
        limit: pairs.limit(api.limits.default_page, api.limits.largest_page)?,
        place,
    };
    if filter.version.is_some() && filter.agent.is_none() {
        return Err(ApiError::invalid_request("agent_version: goes with agent_id only").into());
    }
    // No session is of a deployment, and none has a memory store.
    if pairs.one("deployment_id")?.is_some() || pairs.one("memory_store_id")?.is_some() {
        return Ok(Json(SessionList { data: Vec::new(), next_page: None, prev_page: None }));
    }
    let page = api.store.list_sessions(&call.caller.key.workspace, &filter).await?;
    let text = |place: SessionPlace| place_text(name, &[i64::from(place.back), place.seq, place.at]);
    let (next_page, prev_page) = (page.next.map(text), page.previous.map(text));
    Ok(Json(SessionList { data: page.items, next_page, prev_page }))
}

pub(super) async fn retrieve(State(api): Api, call: Call, At(id): At<SessionId>) -> Result<Json<Session>, Failure> {
    Ok(Json(reached(&api, &call, &id).await?.session))
}

pub(super) async fn resources(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
) -> Result<Json<List<serde_json::Value>>, Failure> {
    let session = reached(&api, &call, &id).await?.session;
    Ok(Json(List { data: session.resources, next_page: None }))
}

pub(super) async fn add_resource(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
) -> Result<Json<serde_json::Value>, Failure> {
    reached(&api, &call, &id).await?;
    Err(no_resources("type").into())
}

/// Why a session takes no resources.
pub(super) fn no_resources(member: &str) -> ApiError {
    ApiError::invalid_request(format!(
        "{member}: sessions in `self_hosted` environments take no files and no repositories, and there are no memory \
         stores here; put files where the environment's workers run"
    ))
}

/// The session, if the caller may reach it.
///
/// # Errors
/// 404 when its workspace has no such session.
pub(super) async fn reached(api: &ApiState, call: &Call, id: &SessionId) -> Result<SessionRecord, Failure> {
    Ok(api.store.session(&call.caller.key.workspace, id).await?)
}

/// The statuses that a list is asked for.
pub(super) fn statuses(pairs: &Pairs) -> Result<Vec<SessionStatus>, ApiError> {
    let read = |text: &str| match text {
        "idle" => Ok(SessionStatus::Idle),
        "running" => Ok(SessionStatus::Running),
        "rescheduling" => Ok(SessionStatus::Rescheduling),
        "terminated" => Ok(SessionStatus::Terminated),
        _ => Err(ApiError::invalid_request("statuses: must be `idle`, `running`, `rescheduling` or `terminated`")),
    };
    pairs.many("statuses", MAX_VALUES)?.into_iter().map(read).collect()
}
