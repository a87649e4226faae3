//! `/v1/environments`.

use axum::extract::State;
use axum::response::Json;
use sortie_api::{CreateEnvironment, DeletedEnvironment, Environment, List, ListQuery, UpdateEnvironment};
use sortie_ids::EnvironmentId;

use super::extract::{Asked, At, Object};
use super::frame::{Call, Failure};
use super::{Api, audit};

/// The list that cursors of environments belong to.
const LIST: &str = "environments";

pub(super) async fn create(
    State(api): Api,
    call: Call,
    Object(body): Object<CreateEnvironment>,
) -> Result<Json<Environment>, Failure> {
    let environment = api.store.create_environment(&call.caller.key.workspace, body.define()?).await?;
    audit::environment_created(&call, &environment);
    Ok(Json(environment))
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Environment>>, Failure> {
    let page = query.check(LIST, &api.limits)?;
    let page = api.store.list_environments(&call.caller.key.workspace, page).await?;
    Ok(super::list(LIST, page, |environment| environment))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At(id): At<EnvironmentId>,
) -> Result<Json<Environment>, Failure> {
    Ok(Json(api.store.environment(&call.caller.key.workspace, &id).await?))
}

pub(super) async fn update(
    State(api): Api,
    call: Call,
    At(id): At<EnvironmentId>,
    Object(body): Object<UpdateEnvironment>,
) -> Result<Json<Environment>, Failure> {
    let workspace = &call.caller.key.workspace;
    let changed = api.store.update_environment(workspace, &id, move |before| body.apply(before)).await?;
    if !changed.members.is_empty() {
        audit::environment_updated(&call, &changed.object, &changed.members);
    }
    Ok(Json(changed.object))
}

pub(super) async fn archive(
    State(api): Api,
    call: Call,
    At(id): At<EnvironmentId>,
) -> Result<Json<Environment>, Failure> {
    let changed = api.store.archive_environment(&call.caller.key.workspace, &id).await?;
    if !changed.members.is_empty() {
        audit::environment_archived(&call, &changed.object);
    }
    Ok(Json(changed.object))
}

pub(super) async fn delete(
    State(api): Api,
    call: Call,
    At(id): At<EnvironmentId>,
) -> Result<Json<DeletedEnvironment>, Failure> {
    api.store.delete_environment(&call.caller.key.workspace, &id).await?;
    audit::environment_deleted(&call, &id);
    Ok(Json(DeletedEnvironment { id }))
}
