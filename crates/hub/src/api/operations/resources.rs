//! Agents, environments, vaults and credentials.

use axum::routing::{delete, get, post};
use sortie_api::{
    Agent, CreateAgent, CreateEnvironment, DeletedEnvironment, Environment, UpdateAgent, UpdateEnvironment,
};
use sortie_audit::kinds;

use super::super::{agents, environments};
use super::{Access, Operation};

pub(super) fn all() -> Vec<Operation> {
    let mut all = agents();
    all.extend(environments());
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
