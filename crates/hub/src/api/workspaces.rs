//! `/v1/sortie/workspaces`.

use axum::extract::State;
use axum::response::{Json, Response};
use sortie_api::{CreateWorkspace, List, ListQuery, Workspace};
use sortie_store::Made;

use super::extract::{Asked, Creation};
use super::frame::{Call, Failure};
use super::repeat::{again, once};
use super::{Api, audit};

/// The list that cursors of workspaces belong to.
const LIST: &str = "workspaces";

pub(super) async fn create(
    State(api): Api,
    call: Call,
    request: Creation<CreateWorkspace>,
) -> Result<Response, Failure> {
    let name = request.body.name;
    api.limits.check_name("name", &name)?;
    let once = request.idempotency_key.map(|key| once(key, request.digest, Workspace::clone));
    match api.store.create_workspace(&call.caller.key.organization, name, &api.limits, once).await? {
        Made::Now(workspace) => {
            audit::workspace_created(&call, &workspace);
            Ok(super::json(workspace))
        }
        earlier => Ok(again(earlier, Workspace::clone)),
    }
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Workspace>>, Failure> {
    let page = query.check(LIST, &api.limits)?;
    let page = api.store.list_workspaces(&call.caller.key.organization, page).await?;
    Ok(super::list(LIST, page, |workspace| workspace))
}
