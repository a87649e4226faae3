//! What the commands for agents, environments and vaults share, and `sortie export`.

use std::io::Read as _;

use serde_json::{Map, Value, json};
use sortie_api::{Agent, Credential, Environment, Vault};

use crate::cli::{From, HubAccess};
use crate::error::Failure;
use crate::{output, profile};

/// Largest page of these lists.
pub(super) const PAGE: u32 = 100;
/// Longest JSON that is read, in bytes: what the API takes.
const MAX_BODY: u64 = 32 * 1024 * 1024;

/// The JSON object of a request. Its text is not repeated in errors, since it may hold secrets.
pub(super) fn body(from: &From) -> Result<Map<String, Value>, Failure> {
    let path = from.from.display().to_string();
    let unreadable = |error| Failure::usage(format!("{path} cannot be read: {error}"));
    let mut text = String::new();
    if path == "-" {
        std::io::stdin().take(MAX_BODY).read_to_string(&mut text).map_err(unreadable)?;
    } else {
        let file = std::fs::File::open(&from.from).map_err(unreadable)?;
        file.take(MAX_BODY).read_to_string(&mut text).map_err(unreadable)?;
    }
    serde_json::from_str(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        Failure::usage(format!("{path} is no JSON object (line {line}, column {column})"))
    })
}

/// The path of a list, with or without what is archived.
pub(super) fn of_archived(path: &str, archived: bool) -> String {
    if archived { format!("{path}?include_archived=true") } else { path.to_owned() }
}

/// `sortie export`: what is active in the workspace, as JSON that makes the same elsewhere, but for secrets.
pub(crate) async fn export(access: &HubAccess) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    let agents: Vec<Agent> = hub.all_by(PAGE, "/v1/agents").await?;
    let environments: Vec<Environment> = hub.all_by(PAGE, "/v1/environments").await?;
    let vaults: Vec<Vault> = hub.all_by(PAGE, "/v1/vaults").await?;
    let mut with_credentials = Vec::with_capacity(vaults.len());
    for vault in vaults {
        let credentials: Vec<Credential> = hub.all_by(PAGE, &format!("/v1/vaults/{}/credentials", vault.id)).await?;
        let credentials: Vec<_> = credentials.into_iter().rev().map(|credential| credential.definition).collect();
        with_credentials.push(json!({
            "id": vault.id, "display_name": vault.display_name, "metadata": vault.metadata, "credentials": credentials,
        }));
    }
    let named = |id: Value, definition: Value| json!({"id": id, "definition": definition});
    // Oldest first, so that what is made again has the order of what was there.
    let agents = agents.iter().rev().map(|agent| named(json!(agent.id), json!(agent.definition)));
    let environments = environments.iter().rev().map(|one| named(json!(one.id), json!(one.definition)));
    with_credentials.reverse();
    output::json(&json!({
        "agents": agents.collect::<Vec<_>>(),
        "environments": environments.collect::<Vec<_>>(),
        "vaults": with_credentials,
    }))
}
