//! `/v1/agents`.

use axum::extract::State;
use axum::response::Json;
use jiff::Timestamp;
use serde::Deserialize;
use sortie_api::{Agent, AgentDefinition, ApiError, CreateAgent, List, ListQuery, Model, UpdateAgent};
use sortie_ids::AgentId;
use sortie_orchestrator::model::Models;
use sortie_store::Created;

use super::extract::{Asked, At, Object};
use super::frame::{Call, Failure};
use super::{Api, audit};

/// The list that cursors of agents belong to.
const LIST: &str = "agents";
/// Most agents on a page, as the public contract has it.
const PAGE: u32 = 100;

/// The query of the list of agents.
#[derive(Deserialize)]
pub(super) struct AgentsQuery {
    #[serde(default)]
    limit: Option<u32>,
    #[serde(default)]
    page: Option<String>,
    #[serde(default)]
    include_archived: bool,
    #[serde(default, rename = "created_at[gte]")]
    from: Option<String>,
    #[serde(default, rename = "created_at[lte]")]
    to: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct VersionQuery {
    #[serde(default)]
    version: Option<u32>,
}

pub(super) async fn create(
    State(api): Api,
    call: Call,
    Object(body): Object<CreateAgent>,
) -> Result<Json<Agent>, Failure> {
    let definition = body.define()?;
    check_model(&*api.models, &definition.model)?;
    let agent = api.store.create_agent(&call.caller.key.workspace, definition).await?;
    audit::agent_created(&call, &agent);
    Ok(Json(agent))
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<AgentsQuery>,
) -> Result<Json<List<Agent>>, Failure> {
    let AgentsQuery { limit, page, include_archived, from, to } = query;
    let page = ListQuery { limit, page, include_archived }.check_up_to(PAGE, LIST, &api.limits)?;
    let created = created(from.as_deref(), to.as_deref())?;
    let page = api.store.list_agents(&call.caller.key.workspace, created, page).await?;
    Ok(super::list(LIST, page, |agent| agent))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At(id): At<AgentId>,
    Asked(query): Asked<VersionQuery>,
) -> Result<Json<Agent>, Failure> {
    let version = version(query.version)?;
    Ok(Json(api.store.agent(&call.caller.key.workspace, &id, version).await?))
}

pub(super) async fn update(
    State(api): Api,
    call: Call,
    At(id): At<AgentId>,
    Object(body): Object<UpdateAgent>,
) -> Result<Json<Agent>, Failure> {
    let version = version(body.version)?;
    let workspace = &call.caller.key.workspace;
    let models = api.models.clone();
    let change = move |before: AgentDefinition| {
        let earlier = before.model.id.clone();
        let after = body.apply(before)?;
        // One that was served when it was set does not keep an agent from being changed.
        if after.model.id != earlier {
            check_model(&*models, &after.model)?;
        }
        Ok(after)
    };
    let changed = api.store.update_agent(workspace, &id, version, change).await?;
    if !changed.members.is_empty() {
        audit::agent_updated(&call, &changed.object, &changed.members);
    }
    Ok(Json(changed.object))
}

pub(super) async fn archive(State(api): Api, call: Call, At(id): At<AgentId>) -> Result<Json<Agent>, Failure> {
    let changed = api.store.archive_agent(&call.caller.key.workspace, &id).await?;
    if !changed.members.is_empty() {
        audit::agent_archived(&call, &changed.object);
    }
    Ok(Json(changed.object))
}

pub(super) async fn versions(
    State(api): Api,
    call: Call,
    At(id): At<AgentId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Agent>>, Failure> {
    // A place in one agent's versions is none in another's.
    let list = format!("versions of {id}");
    let page = query.check_up_to(PAGE, &list, &api.limits)?;
    let page = api.store.list_agent_versions(&call.caller.key.workspace, &id, page).await?;
    Ok(super::list(&list, page, |agent| agent))
}

fn check_model(models: &dyn Models, model: &Model) -> Result<(), ApiError> {
    models.check(model).map_err(|why| ApiError::invalid_request(format!("model: {why}.")))
}

fn version(version: Option<u32>) -> Result<Option<u32>, ApiError> {
    match version {
        Some(0) => Err(ApiError::invalid_request("version: must be at least 1")),
        version => Ok(version),
    }
}

/// The whole seconds between two moments, both among them.
fn created(from: Option<&str>, to: Option<&str>) -> Result<Created, ApiError> {
    let moment = |member: &str, text: &str| {
        let parsed = text.parse::<Timestamp>();
        parsed.map_err(|_| ApiError::invalid_request(format!("created_at[{member}]: must be an RFC 3339 timestamp")))
    };
    let from = from.map(|text| moment("gte", text)).transpose()?;
    let to = to.map(|text| moment("lte", text)).transpose()?;
    let up = |at: Timestamp| at.as_second().saturating_add(i64::from(at.subsec_nanosecond() > 0));
    // Before 1970, seconds are rounded towards 1970.
    let down = |at: Timestamp| at.as_second().saturating_sub(i64::from(at.subsec_nanosecond() < 0));
    Ok(Created { from: from.map(up), to: to.map(down) })
}
