//! `/v1/vaults` and the credentials in them. What is secret goes in, and never comes out.

use axum::extract::State;
use axum::response::Json;
use sortie_api::{
    CreateCredential, CreateVault, Credential, CredentialValidation, DeletedCredential, DeletedVault, List, ListQuery,
    UpdateCredential, UpdateVault, Vault,
};
use sortie_ids::{CredentialId, VaultId};

use super::extract::{Asked, At, Confidential, Object};
use super::frame::{Call, Failure};
use super::{Api, audit};

/// The list that cursors of vaults belong to.
const LIST: &str = "vaults";
/// Most vaults or credentials on a page, as the public contract has it.
const PAGE: u32 = 100;

pub(super) async fn create(
    State(api): Api,
    call: Call,
    Object(body): Object<CreateVault>,
) -> Result<Json<Vault>, Failure> {
    let (name, metadata) = body.define()?;
    api.limits.check_name("display_name", &name)?;
    let vault = api.store.create_vault(&call.caller.key.workspace, name, metadata).await?;
    audit::vault_created(&call, &vault);
    Ok(Json(vault))
}

pub(super) async fn list(
    State(api): Api,
    call: Call,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Vault>>, Failure> {
    let page = query.check_up_to(PAGE, LIST, &api.limits)?;
    let page = api.store.list_vaults(&call.caller.key.workspace, page).await?;
    Ok(super::list(LIST, page, |vault| vault))
}

pub(super) async fn retrieve(State(api): Api, call: Call, At(id): At<VaultId>) -> Result<Json<Vault>, Failure> {
    Ok(Json(api.store.vault(&call.caller.key.workspace, &id).await?))
}

pub(super) async fn update(
    State(api): Api,
    call: Call,
    At(id): At<VaultId>,
    Object(body): Object<UpdateVault>,
) -> Result<Json<Vault>, Failure> {
    let (workspace, limits) = (&call.caller.key.workspace, api.limits);
    let change = move |name, metadata| {
        let (name, metadata) = body.apply(name, metadata)?;
        limits.check_name("display_name", &name)?;
        Ok((name, metadata))
    };
    let changed = api.store.update_vault(workspace, &id, change).await?;
    if !changed.members.is_empty() {
        audit::vault_updated(&call, &changed.object, &changed.members);
    }
    Ok(Json(changed.object))
}

pub(super) async fn archive(State(api): Api, call: Call, At(id): At<VaultId>) -> Result<Json<Vault>, Failure> {
    let archived = api.store.archive_vault(&call.caller.key.workspace, &id).await?;
    if archived.fresh {
        audit::vault_archived(&call, &archived);
    }
    Ok(Json(archived.vault))
}

pub(super) async fn delete(State(api): Api, call: Call, At(id): At<VaultId>) -> Result<Json<DeletedVault>, Failure> {
    api.store.delete_vault(&call.caller.key.workspace, &id).await?;
    audit::vault_deleted(&call, &id);
    Ok(Json(DeletedVault { id }))
}

pub(super) async fn create_credential(
    State(api): Api,
    call: Call,
    At(vault): At<VaultId>,
    Confidential(body): Confidential<CreateCredential>,
) -> Result<Json<Credential>, Failure> {
    let (definition, secrets) = body.define(api.store.now())?;
    let credential = api.store.create_credential(&call.caller.key.workspace, &vault, definition, secrets).await?;
    audit::credential_created(&call, &credential);
    Ok(Json(credential))
}

pub(super) async fn list_credentials(
    State(api): Api,
    call: Call,
    At(vault): At<VaultId>,
    Asked(query): Asked<ListQuery>,
) -> Result<Json<List<Credential>>, Failure> {
    // A place in one vault is none in another.
    let list = format!("credentials of {vault}");
    let page = query.check_up_to(PAGE, &list, &api.limits)?;
    let page = api.store.list_credentials(&call.caller.key.workspace, &vault, page).await?;
    Ok(super::list(&list, page, |credential| credential))
}

pub(super) async fn retrieve_credential(
    State(api): Api,
    call: Call,
    At((vault, id)): At<(VaultId, CredentialId)>,
) -> Result<Json<Credential>, Failure> {
    Ok(Json(api.store.credential(&call.caller.key.workspace, &vault, &id).await?))
}

pub(super) async fn update_credential(
    State(api): Api,
    call: Call,
    At((vault, id)): At<(VaultId, CredentialId)>,
    Confidential(body): Confidential<UpdateCredential>,
) -> Result<Json<Credential>, Failure> {
    let (workspace, now) = (&call.caller.key.workspace, api.store.now());
    let change = move |before, secrets| body.apply(before, secrets, now);
    let changed = api.store.update_credential(workspace, &vault, &id, change).await?;
    if !changed.members.is_empty() {
        audit::credential_updated(&call, &changed.object, &changed.members);
    }
    Ok(Json(changed.object))
}

pub(super) async fn archive_credential(
    State(api): Api,
    call: Call,
    At((vault, id)): At<(VaultId, CredentialId)>,
) -> Result<Json<Credential>, Failure> {
    let changed = api.store.archive_credential(&call.caller.key.workspace, &vault, &id).await?;
    if !changed.members.is_empty() {
        audit::credential_archived(&call, &changed.object);
    }
    Ok(Json(changed.object))
}

pub(super) async fn delete_credential(
    State(api): Api,
    call: Call,
    At((vault, id)): At<(VaultId, CredentialId)>,
) -> Result<Json<DeletedCredential>, Failure> {
    api.store.delete_credential(&call.caller.key.workspace, &vault, &id).await?;
    audit::credential_deleted(&call, &vault, &id);
    Ok(Json(DeletedCredential { id }))
}

pub(super) async fn validate_credential(
    State(api): Api,
    call: Call,
    At((vault, id)): At<(VaultId, CredentialId)>,
) -> Result<Json<CredentialValidation>, Failure> {
    let key = &call.caller.key;
    let found = api.store.open_credential(&key.workspace, &vault, &id).await?;
    let validation = api.validator.validate(key, found).await?;
    audit::credential_validated(&call, &validation);
    Ok(Json(validation))
}
