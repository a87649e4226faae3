//! `sortie agents`.

use serde_json::json;
use sortie_api::{Agent, AgentTool};

use super::resources::{PAGE, body, of_archived};
use super::{text, time};
use crate::cli::{AgentsCommand, HubAccess};
use crate::error::Failure;
use crate::output::Style;
use crate::{output, profile};

const PATH: &str = "/v1/agents";

pub(crate) async fn run(command: AgentsCommand, access: &HubAccess, output: Style) -> Result<(), Failure> {
    let hub = profile::hub(access)?;
    match command {
        AgentsCommand::List { archived } => {
            let agents: Vec<Agent> = hub.all_by(PAGE, &of_archived(PATH, archived)).await?;
            output::list(output, &agents, &["id", "name", "version", "model", "tools", "archived"], |agent| {
                vec![
                    agent.id.to_string(),
                    agent.definition.name.clone(),
                    agent.version.to_string(),
                    agent.definition.model.id.clone(),
                    tools(&agent.definition.tools),
                    time(agent.archived_at),
                ]
            })
        }
        AgentsCommand::Get { agent, version, definition } => {
            let query = version.map(|version| format!("?version={version}")).unwrap_or_default();
            let agent: Agent = hub.get(&format!("{PATH}/{agent}{query}")).await?;
            if definition { output::json(&agent.definition) } else { show(output, &agent) }
        }
        AgentsCommand::Create { body: from } => {
            let made: Agent = hub.post(PATH, &body(&from)?).await?;
            show(output, &made)
        }
        AgentsCommand::Update { agent, body: from } => {
            let changed: Agent = hub.post(&format!("{PATH}/{agent}"), &body(&from)?).await?;
            show(output, &changed)
        }
        AgentsCommand::Versions { agent } => {
            let versions: Vec<Agent> = hub.all_by(PAGE, &format!("{PATH}/{agent}/versions")).await?;
            output::list(output, &versions, &["version", "made", "name", "model", "tools"], |agent| {
                vec![
                    agent.version.to_string(),
                    agent.updated_at.to_string(),
                    agent.definition.name.clone(),
                    agent.definition.model.id.clone(),
                    tools(&agent.definition.tools),
                ]
            })
        }
        AgentsCommand::Archive { agent } => {
            let agent: Agent = hub.post(&format!("{PATH}/{agent}/archive"), &json!({})).await?;
            output::one(output, &agent, &[("id", agent.id.to_string()), ("archived", time(agent.archived_at))])
        }
    }
}

fn show(output: Style, agent: &Agent) -> Result<(), Failure> {
    let definition = &agent.definition;
    let servers = definition.mcp_servers.iter().map(|server| format!("{} ({})", server.name, server.url));
    output::one(
        output,
        agent,
        &[
            ("id", agent.id.to_string()),
            ("version", agent.version.to_string()),
            ("name", definition.name.clone()),
            ("description", text(definition.description.as_ref())),
            ("model", definition.model.id.clone()),
            ("tools", tools(&definition.tools)),
            ("mcp servers", text(Some(servers.collect::<Vec<_>>().join(", ")).filter(|all| !all.is_empty()))),
            ("system", text(definition.system.as_ref())),
            ("archived", time(agent.archived_at)),
        ],
    )
}

/// What the model may use, in short.
fn tools(tools: &[AgentTool]) -> String {
    let name = |tool: &AgentTool| match tool {
        AgentTool::Toolset { .. } => "sandbox".to_owned(),
        AgentTool::Mcp { mcp_server_name, .. } => format!("mcp:{mcp_server_name}"),
        AgentTool::Custom { name, .. } => name.clone(),
    };
    text(Some(tools.iter().map(name).collect::<Vec<_>>().join(" ")).filter(|all| !all.is_empty()))
}
