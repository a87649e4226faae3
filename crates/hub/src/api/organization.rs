//! `/v1/organizations/tunnels`: the older surface, over all workspaces of the organisation. It makes no tunnels; tokens
//! and certificates are those of `/v1/tunnels`.

use axum::extract::State;
use axum::response::Json;
use serde::Deserialize;
use sortie_api::{ApiError, List, ListQuery, OrganizationTunnel};
use sortie_ids::{TunnelId, WorkspaceId};
use sortie_store::TunnelRecord;

use super::extract::{Asked, At};
use super::frame::{Call, Failure};
use super::{Api, ApiState, tunnels};

/// What the list is filtered by.
#[derive(Deserialize)]
pub(super) struct OfWorkspace {
    workspace_id: Option<String>,
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<ListQuery>,
    Asked(filter): Asked<OfWorkspace>,
) -> Result<Json<List<OrganizationTunnel>>, Failure> {
    let workspace = filter.workspace_id.map(|text| workspace(&api, &text)).transpose()?;
    let name = format!("tunnels of {}", workspace.as_ref().map_or("all", |workspace| workspace.as_str()));
    let page = query.check(&name, &api.limits)?;
    let organization = &call.caller.key.organization;
    let page = api.store.list_organization_tunnels(organization, workspace.as_ref(), page).await?;
    Ok(super::list(&name, page, |tunnel| object(&api, &tunnel)))
}

pub(super) async fn retrieve(
    State(api): Api,
    call: Call,
    At(id): At<TunnelId>,
) -> Result<Json<OrganizationTunnel>, Failure> {
    let tunnel = api.store.get_tunnel(&call.home(&api, &id).await?, &id).await?;
    Ok(Json(object(&api, &tunnel)))
}

pub(super) async fn archive(
    State(api): Api,
    call: Call,
    At(id): At<TunnelId>,
) -> Result<Json<OrganizationTunnel>, Failure> {
    Ok(Json(object(&api, &tunnels::archived(&api, &call, &id).await?)))
}

fn object(api: &ApiState, tunnel: &TunnelRecord) -> OrganizationTunnel {
    let workspace_id = (tunnel.workspace != *api.store.default_workspace()).then(|| tunnel.workspace.clone());
    OrganizationTunnel { tunnel: tunnel.object(&api.base_domain), workspace_id }
}

fn workspace(api: &ApiState, text: &str) -> Result<WorkspaceId, ApiError> {
    if text == "default" {
        return Ok(api.store.default_workspace().clone());
    }
    text.parse().map_err(|_| ApiError::invalid_request("workspace_id: must be `default` or begin with `wrkspc_`"))
}
