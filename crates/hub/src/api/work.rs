//! `/v1/environments/{environment_id}/work`: what workers ask for and say, and what operators see of it; and beside it,
//! what Sortie adds: keys of environments and checks of their workers.

use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Json, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json};
use sortie_api::{
    ApiError, CreateEnvironmentKey, CreatedKey, Healthcheck, HealthcheckOutcome, Key, KeyKind, List, ListQuery, Patch,
    StopWork, UpdateWork, Work, WorkHeartbeat, WorkQueueStats, WorkState, patch_metadata,
};
use sortie_audit::kinds;
use sortie_ids::{ApiKey, EnvironmentId, KeyId, WorkId};
use sortie_orchestrator::queue::{self, Beat};
use sortie_orchestrator::work::{Handed, Place, Poll, RECLAIM_MILLIS, show};
use sortie_store::{Object, StoreError, WorkItem};
use zeroize::Zeroizing;

use super::extract::{Asked, At, Object as Given};
use super::frame::{Call, Failure};
use super::{Api, audit, unstored};
use crate::audit::visible;

/// The lists that cursors belong to.
const LIST: &str = "work";
const KEYS: &str = "environment keys";
/// How a worker calls itself.
const WORKER_ID: &str = "anthropic-worker-id";
/// Longest name of a worker that is kept, in characters.
const MAX_WORKER_ID: usize = 200;
/// Longest expected heartbeat that is repeated in an answer, in characters.
const MAX_EXPECTED: usize = 100;
/// Longest time after which a worker may ask for items that were handed out, in milliseconds: an hour.
const MAX_RECLAIM: u32 = 3_600_000;
/// What an official SDK counts its attempts in.
const ATTEMPT: &str = "x-stainless-retry-count";

/// The query of a poll.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PollQuery {
    block_ms: Option<u32>,
    reclaim_older_than_ms: Option<u32>,
}

/// The query of a heartbeat.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HeartbeatQuery {
    expected_last_heartbeat: Option<String>,
    desired_ttl_seconds: Option<u32>,
}

pub(super) async fn poll(
    State(api): Api,
    call: Call,
    At(environment): At<EnvironmentId>,
    Asked(query): Asked<PollQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let wait = query.block_ms.unwrap_or(0);
    if query.block_ms.is_some() && !(1..=999).contains(&wait) {
        let reason = format!("block_ms: must be between 1 and 999, not {wait}; leave it out not to wait");
        return Err(ApiError::invalid_request(reason).into());
    }
    let reclaim = query.reclaim_older_than_ms.unwrap_or(RECLAIM_MILLIS);
    if reclaim > MAX_RECLAIM {
        let reason = format!("reclaim_older_than_ms: must be at most {MAX_RECLAIM}, not {reclaim}");
        return Err(ApiError::invalid_request(reason).into());
    }
    let worker = headers.get(WORKER_ID).map(|id| visible(&String::from_utf8_lossy(id.as_bytes()), MAX_WORKER_ID));
    let poll = Poll {
        workspace: call.caller.key.workspace.clone(),
        environment,
        key: call.caller.key.id.clone(),
        worker: worker.filter(|worker| !worker.is_empty()),
        wait: Duration::from_millis(wait.into()),
        reclaim: Duration::from_millis(reclaim.into()),
    };
    Ok(match api.work.poll(&poll).await? {
        Some(Handed { item, token }) => unstored(show(item, Some(secret(&token)))),
        None => Json(Value::Null).into_response(),
    })
}

/// What a worker reads its token from.
fn secret(token: &ApiKey) -> String {
    let payload = Zeroizing::new(json!({"sessions_token": token.expose()}).to_string());
    URL_SAFE_NO_PAD.encode(payload.as_bytes())
}

pub(super) async fn acknowledge(
    State(api): Api,
    call: Call,
    At(ids): At<(EnvironmentId, WorkId)>,
) -> Result<Json<Work>, Failure> {
    match api.work.acknowledge(&place(&call, ids)).await? {
        Ok(item) => Ok(Json(show(item, None))),
        Err(queue::NotWaiting(state)) => {
            let state = state.as_str();
            let reason =
                format!("The item of work is {state} and was not handed to this worker; poll for another one.");
            Err(ApiError::conflict(reason).into())
        }
    }
}

pub(super) async fn heartbeat(
    State(api): Api,
    call: Call,
    At(ids): At<(EnvironmentId, WorkId)>,
    Asked(query): Asked<HeartbeatQuery>,
    headers: HeaderMap,
) -> Result<Json<WorkHeartbeat>, Failure> {
    let again =
        headers.get(ATTEMPT).and_then(|count| count.to_str().ok()?.parse::<u32>().ok()).is_some_and(|count| count > 0);
    let expected = query.expected_last_heartbeat;
    let beat = Beat { expected: expected.clone(), again, ttl_seconds: query.desired_ttl_seconds };
    let (item, outcome) = api.work.heartbeat(&place(&call, ids), beat).await?;
    let lease = api.limits.work_lease_seconds;
    match outcome {
        Ok(()) => Ok(Json(WorkHeartbeat {
            last_heartbeat: item.latest_heartbeat_at.map(queue::shown).unwrap_or_default(),
            lease_extended: queue::is_extended(&item),
            state: item.state,
            ttl_seconds: item.ttl_seconds.unwrap_or(lease),
        })),
        Err(queue::LeaseLost) => Err(lease_lost(&item, expected.as_deref(), lease).into()),
    }
}

/// The answer to a worker that has lost its item, in the words of the public contract.
fn lease_lost(item: &WorkItem, expected: Option<&str>, lease: u32) -> ApiError {
    let latest = item.latest_heartbeat_at.map(queue::shown);
    let expected = expected.map_or_else(|| "a lease".to_owned(), |expected| visible(expected, MAX_EXPECTED));
    let actual = latest.as_deref().unwrap_or("NULL");
    ApiError::precondition_failed(format!("Heartbeat precondition failed: expected {expected}, actual was {actual}"))
        .with_details(json!({
            "error_code": "heartbeat_precondition_failed",
            "error_visibility": "user_facing",
            "current_state": {
                "state": item.state,
                "last_heartbeat": latest,
                "lease_updated_at": latest,
                "lease_extended": false,
                "ttl_seconds": item.ttl_seconds.unwrap_or(lease),
            },
        }))
}

pub(super) async fn stop(
    State(api): Api,
    call: Call,
    At(ids): At<(EnvironmentId, WorkId)>,
    Given(stop): Given<StopWork>,
) -> Result<Json<Work>, Failure> {
    let by_worker = call.caller.key.kind == KeyKind::Environment;
    let ending = queue::Stop { force: stop.force, by_worker };
    match api.work.stop(&place(&call, ids), ending).await? {
        Ok(item) => {
            let fields = json!({"work_id": item.id, "session_id": item.session, "force": stop.force});
            call.note(kinds::WORK_STOPPED, fields);
            Ok(Json(show(item, None)))
        }
        Err(queue::AlreadyStopped) => Err(ApiError::conflict("The item of work is stopped already.").into()),
    }
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    At(environment): At<EnvironmentId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Work>>, Failure> {
    let page = query.check(LIST, &api.limits)?;
    let page = api.work.list(&call.caller.key.workspace, &environment, page).await?;
    Ok(super::list(LIST, page, |item| show(item, None)))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At(ids): At<(EnvironmentId, WorkId)>,
) -> Result<Json<Work>, Failure> {
    Ok(Json(show(api.work.get(&place(&call, ids)).await?, None)))
}

pub(super) async fn update(
    State(api): Api,
    call: Call,
    At(ids): At<(EnvironmentId, WorkId)>,
    Given(update): Given<UpdateWork>,
) -> Result<Json<Work>, Failure> {
    let patch = move |metadata| patch_metadata(metadata, Patch::Set(update.metadata.clone()));
    let item = api.work.update(&place(&call, ids), patch).await??;
    call.note(kinds::WORK_UPDATED, json!({"work_id": item.id}));
    Ok(Json(show(item, None)))
}

pub(super) async fn stats(
    State(api): Api,
    call: Call,
    At(environment): At<EnvironmentId>,
) -> Result<Json<WorkQueueStats>, Failure> {
    Ok(Json(api.work.stats(&call.caller.key.workspace, &environment).await?))
}

pub(super) async fn check_workers(
    State(api): Api,
    call: Call,
    At(environment): At<EnvironmentId>,
) -> Result<Json<Healthcheck>, Failure> {
    let item = api.work.healthcheck(&call.caller.key.workspace, &environment).await?;
    call.note(kinds::HEALTHCHECK_CREATED, json!({"environment_id": environment, "work_id": item.id}));
    Ok(Json(checked(item)))
}

pub(super) async fn healthcheck(
    State(api): Api,
    call: Call,
    At(ids): At<(EnvironmentId, WorkId)>,
) -> Result<Json<Healthcheck>, Failure> {
    let item = api.work.get(&place(&call, ids)).await?;
    if item.session.is_some() {
        return Err(StoreError::NotFound(Object::Work).into());
    }
    Ok(Json(checked(item)))
}

/// How a health check stands: a worker has answered that ended it, and not the end of the time for it.
fn checked(item: WorkItem) -> Healthcheck {
    let outcome = match item.state {
        WorkState::Stopped if item.stop_requested_at.is_none() => HealthcheckOutcome::Passed,
        WorkState::Stopped => HealthcheckOutcome::Failed,
        _ => HealthcheckOutcome::Waiting,
    };
    Healthcheck {
        id: item.id,
        environment_id: item.environment,
        outcome,
        worker_id: item.worker,
        created_at: Some(item.created_at),
        ended_at: item.stopped_at,
    }
}

pub(super) async fn create_key(
    State(api): Api,
    call: Call,
    At(environment): At<EnvironmentId>,
    Given(body): Given<CreateEnvironmentKey>,
) -> Result<Response, Failure> {
    api.limits.check_name("name", &body.name)?;
    let workspace = &call.caller.key.workspace;
    let created: CreatedKey = api.store.create_environment_key(workspace, &environment, body, &api.limits).await?;
    audit::key_minted(&call, &created.key);
    Ok(unstored(created))
}

pub(super) async fn list_keys(
    State(api): Api,
    call: Call,
    At(environment): At<EnvironmentId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Key>>, Failure> {
    let page = query.check(KEYS, &api.limits)?;
    let page = api.store.list_environment_keys(&call.caller.key.workspace, &environment, page).await?;
    Ok(super::list(KEYS, page, |key| key))
}

pub(super) async fn archive_key(
    State(api): Api,
    call: Call,
    At((environment, key)): At<(EnvironmentId, KeyId)>,
) -> Result<Json<Key>, Failure> {
    let archived = api.store.archive_environment_key(&call.caller.key.workspace, &environment, &key).await?;
    if archived.fresh {
        audit::key_revoked(&call, &archived.key);
    }
    Ok(Json(archived.key))
}

fn place(call: &Call, (environment, work): (EnvironmentId, WorkId)) -> Place {
    Place { workspace: call.caller.key.workspace.clone(), environment, work }
}
