//! `/v1/sessions`: sessions, and what little there is of their resources.

use axum::extract::State;
use axum::response::Json;
use serde_json::json;
use sortie_api::{
    AgentOverrides, ApiError, ChangedAgent, ChosenAgent, CreateSession, DeletedSession, List, Patch, Session,
    SessionAgent, SessionList, SessionStatus, UpdateSession, check_metadata, initial_events, no_resources,
    patch_metadata, place_text,
};
use sortie_ids::{SessionId, WorkspaceId};
use sortie_orchestrator::agent::{resolve, with_overrides};
use sortie_orchestrator::sessions::{Change, NewSession, Refusal};
use sortie_store::{Object as Kind, SessionFilter, SessionPlace, SessionRecord, StoreError};

use super::extract::{At, Object};
use super::frame::{Call, Failure};
use super::pairs::{Pairs, Unit, place};
use super::{Api, ApiState, audit};

/// Values of a repeated parameter at most.
const MAX_VALUES: usize = 100;

pub(super) async fn create(
    State(api): Api,
    call: Call,
    Object(body): Object<CreateSession>,
) -> Result<Json<Session>, Failure> {
    body.check()?;
    let initial = initial_events(body.initial_events.unwrap_or_default())?;
    let metadata = check_metadata(body.metadata.unwrap_or_default())?;
    let key = &call.caller.key;
    let agent = agent_of(&api, &key.workspace, ChosenAgent::read(body.agent)?).await?;
    let vault_ids = body.vault_ids.unwrap_or_default();
    for vault in &vault_ids {
        if api.store.vault(&key.workspace, vault).await?.archived_at.is_some() {
            return Err(ApiError::invalid_request(format!("vault_ids: {vault} is archived; leave it out")).into());
        }
    }
    let new = NewSession {
        workspace: key.workspace.clone(),
        organization: key.organization.clone(),
        key: key.id.clone(),
        agent,
        environment: body.environment_id,
        title: body.title.filter(|title| !title.is_empty()),
        metadata,
        vault_ids,
        initial,
    };
    let session = api.sessions.create(new).await.map_err(refused)?;
    audit::session_created(&call, &session);
    Ok(Json(session))
}

/// The session's own copy of the agent that it was asked for with.
async fn agent_of(api: &ApiState, workspace: &WorkspaceId, chosen: ChosenAgent) -> Result<SessionAgent, Failure> {
    let (id, version, overrides) = match chosen {
        ChosenAgent::Agent { id, version } => (id, version, None),
        ChosenAgent::AgentWithOverrides { id, version, overrides } => (id, version, Some(*overrides)),
    };
    let agent = api.store.agent(workspace, &id, version).await?;
    if agent.archived_at.is_some() {
        return Err(ApiError::invalid_request("agent: it is archived; name another one").into());
    }
    let agent = resolve(agent);
    let agent = match overrides {
        Some(overrides) => with_overrides(agent, overrides).map_err(|error| within("agent", error))?,
        None => agent,
    };
    Ok(agent)
}

/// The same error with its member inside of another one.
fn within(member: &str, error: ApiError) -> ApiError {
    ApiError { message: format!("{member}.{}", error.message), ..error }
}

pub(super) async fn update(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
    Object(body): Object<UpdateSession>,
) -> Result<Json<Session>, Failure> {
    body.check()?;
    let before = reached(&api, &call, &id).await?.session;
    // For its bounds: pairs are changed where the session is.
    patch_metadata(before.metadata.clone(), body.metadata.clone())?;
    let change = Change {
        title: match body.title {
            Patch::Keep => None,
            Patch::Clear => Some(None),
            Patch::Set(title) => Some(Some(title).filter(|title| !title.is_empty())),
        },
        metadata: body.metadata.or(None).unwrap_or_default(),
        agent: body.agent.filter(changes).map(|changed| {
            let ChangedAgent { tools, mcp_servers } = changed;
            let overrides = AgentOverrides { tools, mcp_servers, ..AgentOverrides::default() };
            let change = |agent: &SessionAgent| with_overrides(agent.clone(), overrides).map_err(|error| error.message);
            Box::new(change) as Box<dyn FnOnce(&SessionAgent) -> Result<SessionAgent, String> + Send>
        }),
    };
    let session = api.sessions.update(&call.caller.key.workspace, &id, change).await.map_err(refused)?;
    if session != before {
        audit::session_updated(&call, &before, &session);
    }
    Ok(Json(session))
}

fn changes(agent: &ChangedAgent) -> bool {
    agent.tools != Patch::Keep || agent.mcp_servers != Patch::Keep
}

pub(super) async fn archive(State(api): Api, call: Call, At(id): At<SessionId>) -> Result<Json<Session>, Failure> {
    let before = reached(&api, &call, &id).await?.session;
    let session = api.sessions.archive(&call.caller.key.workspace, &id).await.map_err(refused)?;
    if before.archived_at.is_none() {
        audit::session_archived(&call, &id);
    }
    Ok(Json(session))
}

pub(super) async fn delete(
    State(api): Api,
    call: Call,
    At(id): At<SessionId>,
) -> Result<Json<DeletedSession>, Failure> {
    api.sessions.delete(&call.caller.key.workspace, &id).await.map_err(refused)?;
    audit::session_deleted(&call, &id);
    Ok(Json(DeletedSession { id }))
}

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

/// What a session did not do, as an answer.
pub(super) fn refused(refusal: Refusal) -> Failure {
    let sentence = super::frame::capitalised(&refusal.to_string());
    match refusal {
        Refusal::Store(error) => environment_refused(error),
        Refusal::NotFound => ApiError::not_found(sentence).into(),
        Refusal::Invalid(reason) => ApiError::invalid_request(reason).into(),
        Refusal::Conflict(reason) => ApiError::conflict(reason).into(),
        Refusal::Terminated => ApiError::invalid_request(sentence).into(),
        Refusal::Busy => ApiError::rate_limited(sentence).with_retry(true).into(),
    }
}

/// What is wrong with a new session's environment has its code in the public contract.
fn environment_refused(error: StoreError) -> Failure {
    let coded = |public: ApiError, code: &str| public.with_details(json!({"error_code": code})).into();
    match error {
        StoreError::NotFound(Kind::Environment) => {
            coded(ApiError::not_found("The workspace has no environment with this id."), "environment_not_found")
        }
        StoreError::Archived(Kind::Environment) => {
            let sentence = "environment_id: the environment is archived and takes no new sessions; name another one";
            coded(ApiError::invalid_request(sentence), "environment_archived")
        }
        other => other.into(),
    }
}
