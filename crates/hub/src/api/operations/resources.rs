//! Agents, environments, vaults and credentials.

use axum::routing::{get, post};
use sortie_api::{Agent, CreateAgent, UpdateAgent};
use sortie_audit::kinds;

use super::super::agents;
use super::{Access, Operation};

pub(super) fn all() -> Vec<Operation> {
    agents()
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
