//! Agents, environments, vaults and credentials.

use axum::routing::{delete, get, post};
use sortie_api::{
    Agent, CreateAgent, CreateCredential, CreateEnvironment, CreateVault, Credential, CredentialValidation,
    DeletedCredential, DeletedEnvironment, DeletedVault, Environment, UpdateAgent, UpdateCredential, UpdateEnvironment,
    UpdateVault, Vault,
};
use sortie_audit::kinds;

use super::super::{agents, environments, vaults};
use super::{Access, Operation};

pub(super) fn all() -> Vec<Operation> {
    let mut all = agents();
    all.extend(environments());
    all.extend(vaults());
    all.extend(credentials());
    all
}

fn agents() -> Vec<Operation> {
    let access = Access::Manage;
    vec![
        Operation::post("/v1/agents", "create_agent", access, &[kinds::AGENT_CREATED], || post(agents::create))
            .says("Make an agent.")
            .takes::<CreateAgent>()
            .large()
            .answers::<Agent>(),
        Operation::get("/v1/agents", "list_agents", access, || get(agents::list))
            .says("List the agents of the workspace in their newest versions, newest first.")
            .lists::<Agent>(),
        Operation::get("/v1/agents/{agent_id}", "get_agent", access, || get(agents::retrieve))
            .says("Show an agent, in its newest version or in the one that is asked for.")
            .asks("version", "One version; the newest, when left out.")
            .answers::<Agent>(),
        Operation::post("/v1/agents/{agent_id}", "update_agent", access, &[kinds::AGENT_UPDATED], || {
            post(agents::update)
        })
        .says("Change an agent, which makes its next version unless nothing is different.")
        .takes::<UpdateAgent>()
        .large()
        .answers::<Agent>(),
        Operation::post("/v1/agents/{agent_id}/archive", "archive_agent", access, &[kinds::AGENT_ARCHIVED], || {
            post(agents::archive)
        })
        .says("Retire an agent for ever. Its sessions go on; no new ones are made.")
        .answers::<Agent>(),
        Operation::get("/v1/agents/{agent_id}/versions", "list_agent_versions", access, || get(agents::versions))
            .says("List the versions of an agent, newest first.")
            .lists::<Agent>(),
    ]
}

fn environments() -> Vec<Operation> {
    let access = Access::Manage;
    let (base, one) = ("/v1/environments", "/v1/environments/{environment_id}");
    vec![
        Operation::post(base, "create_environment", access, &[kinds::ENVIRONMENT_CREATED], || {
            post(environments::create)
        })
        .says("Make an environment.")
        .takes::<CreateEnvironment>()
        .large()
        .answers::<Environment>(),
        Operation::get(base, "list_environments", access, || get(environments::list))
            .says("List the environments of the workspace, newest first.")
            .lists::<Environment>(),
        Operation::get(one, "get_environment", access, || get(environments::retrieve))
            .says("Show an environment.")
            .answers::<Environment>(),
        Operation::post(one, "update_environment", access, &[kinds::ENVIRONMENT_UPDATED], || {
            post(environments::update)
        })
        .says("Change an environment.")
        .takes::<UpdateEnvironment>()
        .large()
        .answers::<Environment>(),
        Operation::post(
            "/v1/environments/{environment_id}/archive",
            "archive_environment",
            access,
            &[kinds::ENVIRONMENT_ARCHIVED],
            || post(environments::archive),
        )
        .says("Retire an environment for ever. Its sessions go on; no new ones are made.")
        .answers::<Environment>(),
        Operation::delete(one, "delete_environment", access, &[kinds::ENVIRONMENT_DELETED], || {
            delete(environments::delete)
        })
        .says("Delete an environment that no session is in; 409 while there are any.")
        .answers::<DeletedEnvironment>(),
    ]
}

fn vaults() -> Vec<Operation> {
    let access = Access::Manage;
    let (base, one) = ("/v1/vaults", "/v1/vaults/{vault_id}");
    vec![
        Operation::post(base, "create_vault", access, &[kinds::VAULT_CREATED], || post(vaults::create))
            .says("Make a vault.")
            .takes::<CreateVault>()
            .answers::<Vault>(),
        Operation::get(base, "list_vaults", access, || get(vaults::list))
            .says("List the vaults of the workspace, newest first.")
            .lists::<Vault>(),
        Operation::get(one, "get_vault", access, || get(vaults::retrieve)).says("Show a vault.").answers::<Vault>(),
        Operation::post(one, "update_vault", access, &[kinds::VAULT_UPDATED], || post(vaults::update))
            .says("Change name and metadata of a vault.")
            .takes::<UpdateVault>()
            .answers::<Vault>(),
        Operation::post("/v1/vaults/{vault_id}/archive", "archive_vault", access, &[kinds::VAULT_ARCHIVED], || {
            post(vaults::archive)
        })
        .says("Retire a vault for ever, with all credentials in it; their secrets are removed.")
        .answers::<Vault>(),
        Operation::delete(one, "delete_vault", access, &[kinds::VAULT_DELETED], || delete(vaults::delete))
            .says("Delete a vault with all credentials in it.")
            .answers::<DeletedVault>(),
    ]
}

fn credentials() -> Vec<Operation> {
    let access = Access::Manage;
    let (base, one) = ("/v1/vaults/{vault_id}/credentials", "/v1/vaults/{vault_id}/credentials/{credential_id}");
    vec![
        Operation::post(base, "create_vault_credential", access, &[kinds::CREDENTIAL_CREATED], || {
            post(vaults::create_credential)
        })
        .says("Put a credential into a vault. Its secrets are never shown again; whether its server takes them is seen later.")
        .takes::<CreateCredential>()
        .answers::<Credential>(),
        Operation::get(base, "list_vault_credentials", access, || get(vaults::list_credentials))
            .says("List the credentials of a vault, newest first.")
            .lists::<Credential>(),
        Operation::get(one, "get_vault_credential", access, || get(vaults::retrieve_credential))
            .says("Show a credential without its secrets.")
            .answers::<Credential>(),
        Operation::post(one, "update_vault_credential", access, &[kinds::CREDENTIAL_UPDATED], || {
            post(vaults::update_credential)
        })
        .says("Change a credential. Sessions that run take the new secrets from then on.")
        .takes::<UpdateCredential>()
        .answers::<Credential>(),
        Operation::post(
            "/v1/vaults/{vault_id}/credentials/{credential_id}/archive",
            "archive_vault_credential",
            access,
            &[kinds::CREDENTIAL_ARCHIVED],
            || post(vaults::archive_credential),
        )
        .says("Retire a credential for ever; its secrets are removed.")
        .answers::<Credential>(),
        Operation::post(
            "/v1/vaults/{vault_id}/credentials/{credential_id}/mcp_oauth_validate",
            "validate_vault_credential",
            access,
            &[kinds::CREDENTIAL_VALIDATED],
            || post(vaults::validate_credential),
        )
        .says("Try an OAuth credential at its server; where its token is refused, get a new one first.")
        .answers::<CredentialValidation>(),
        Operation::delete(one, "delete_vault_credential", access, &[kinds::CREDENTIAL_DELETED], || {
            delete(vaults::delete_credential)
        })
        .says("Delete a credential.")
        .answers::<DeletedCredential>(),
    ]
}
