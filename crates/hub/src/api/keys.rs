//! `/v1/sortie/keys`.

use axum::extract::State;
use axum::response::{Json, Response};
use sortie_api::{ApiError, CreateKey, CreatedKey, Key, KeyKind, List, ListQuery};
use sortie_ids::{KeyId, WorkspaceId};
use sortie_store::{Made, Object, StoreError};

use super::extract::{Asked, At, Creation};
use super::frame::{Call, Failure};
use super::repeat::{again, once};
use super::{Api, ApiState, audit, unstored};

/// The list that cursors of keys belong to.
const LIST: &str = "keys";

pub(super) async fn create(State(api): Api, call: Call, request: Creation<CreateKey>) -> Result<Response, Failure> {
    let body = request.body;
    api.limits.check_name("name", &body.name)?;
    let workspace = workspace(&api, &call, &body).await?;
    let home = &call.caller.key.workspace;
    let made = match request.idempotency_key {
        Some(key) => {
            let once = once(key, request.digest, CreatedKey::clone);
            api.store.create_key_once(home, &workspace, body, &api.limits, once).await?
        }
        None => Made::Now(api.store.create_key(&workspace, body, &api.limits).await?),
    };
    match made {
        Made::Now(created) => {
            audit::key_minted(&call, &created.key);
            Ok(unstored(created))
        }
        earlier => Ok(again(earlier, CreatedKey::clone)),
    }
}

/// The workspace of a new key. Another one than the caller's is there for administrators only.
async fn workspace(api: &ApiState, call: &Call, body: &CreateKey) -> Result<WorkspaceId, Failure> {
    let own = &call.caller.key.workspace;
    let Some(asked) = body.workspace_id.as_ref().filter(|asked| *asked != own) else { return Ok(own.clone()) };
    if own != api.store.default_workspace() {
        return Err(StoreError::NotFound(Object::Workspace).into());
    }
    api.store.check_workspace(&call.caller.key.organization, asked).await?;
    if body.kind != KeyKind::Manage {
        let reason = "workspace_id: only a manage key can be made in another workspace; it makes the others there";
        return Err(ApiError::invalid_request(reason).into());
    }
    Ok(asked.clone())
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Key>>, Failure> {
    let page = query.check(LIST, &api.limits)?;
    let page = api.store.list_keys(&call.caller.key.workspace, page).await?;
    Ok(super::list(LIST, page, |key| key))
}

pub(super) async fn retrieve(State(api): Api, call: Call, At(id): At<KeyId>) -> Result<Json<Key>, Failure> {
    Ok(Json(api.store.get_key(&call.caller.key.workspace, &id).await?))
}

pub(super) async fn archive(State(api): Api, call: Call, At(id): At<KeyId>) -> Result<Json<Key>, Failure> {
    // Otherwise the last manage key of a workspace could be archived with nobody left to make another.
    if call.caller.key.id == id {
        return Err(ApiError::conflict("A key cannot archive itself; use another manage key.").into());
    }
    let archived = api.store.archive_key(&call.caller.key.workspace, &id).await?;
    if archived.fresh {
        audit::key_revoked(&call, &archived.key);
    }
    Ok(Json(archived.key))
}
