//! `/v1/sortie/keys`.

use axum::extract::State;
use axum::response::{Json, Response};
use sortie_api::{ApiError, CreateKey, Key, List};
use sortie_ids::KeyId;

use super::extract::{At, Listing, Object};
use super::frame::{Call, Failure};
use super::{Api, audit, unstored};

/// The list that cursors of keys belong to.
const LIST: &str = "keys";

pub(super) async fn create(State(api): Api, call: Call, Object(body): Object<CreateKey>) -> Result<Response, Failure> {
    let created = api.store.create_key(&call.caller.key.workspace, body, &api.limits).await?;
    audit::key_minted(&call, &created.key);
    Ok(unstored(created))
}

pub(super) async fn list(State(api): Api, call: Call, Listing(query): Listing) -> Result<Json<List<Key>>, Failure> {
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
