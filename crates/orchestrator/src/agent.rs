//! What a session runs: its own copy of an agent.

use sortie_api::{Agent, AgentDefinition, AgentOverrides, ApiError, ExecutionIdentity, Metadata, SessionAgent};

/// The copy of an agent, in the version that is given, for a session.
pub fn resolve(agent: Agent) -> SessionAgent {
    let AgentDefinition { name, description, system, model, tools, mcp_servers, skills, multiagent, .. } =
        agent.definition;
    let (id, version) = (agent.id, agent.version);
    SessionAgent { id, version, name, description, system, model, tools, mcp_servers, skills, multiagent }
}

/// The copy with what the session changes of it, at its creation or later. Id and version stay those of the agent.
///
/// # Errors
/// 400, naming the member that breaks a rule.
pub fn with_overrides(agent: SessionAgent, overrides: AgentOverrides) -> Result<SessionAgent, ApiError> {
    let SessionAgent { id, version, name, description, system, model, tools, mcp_servers, skills, multiagent } = agent;
    let (metadata, execution_identity) = (Metadata::new(), ExecutionIdentity::default());
    let before = AgentDefinition {
        name,
        description,
        system,
        model,
        tools,
        mcp_servers,
        skills,
        multiagent,
        metadata,
        execution_identity,
    };
    let AgentDefinition { name, description, system, model, tools, mcp_servers, skills, multiagent, .. } =
        overrides.apply(before)?;
    Ok(SessionAgent { id, version, name, description, system, model, tools, mcp_servers, skills, multiagent })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn agent(definition: Value) -> SessionAgent {
        let request: sortie_api::CreateAgent = serde_json::from_value(definition).expect("request");
        let at = jiff::Timestamp::UNIX_EPOCH;
        resolve(Agent {
            id: "agent_1".parse().expect("id"),
            version: 3,
            definition: request.define().expect("definition"),
            created_at: at,
            updated_at: at,
            archived_at: None,
        })
    }

    fn changed(agent: &SessionAgent, overrides: Value) -> Result<Value, String> {
        let overrides = serde_json::from_value(overrides).expect("overrides");
        let after = with_overrides(agent.clone(), overrides).map_err(|error| error.message)?;
        Ok(serde_json::to_value(after).expect("json"))
    }

    fn full() -> SessionAgent {
        agent(json!({
            "name": "full", "model": {"id": "scripted", "effort": "low"}, "system": "Be brief.", "description": "All of it.",
            "tools": [
                {"type": "agent_toolset_20260401"},
                {"type": "mcp_toolset", "mcp_server_name": "files"},
            ],
            "mcp_servers": [{"type": "url", "name": "files", "url": "https://files.example.com/mcp"}],
            "skills": [{"type": "custom", "skill_id": "skill_1"}],
            "metadata": {"team": "a"},
        }))
    }

    #[test]
    fn a_session_has_its_own_copy() {
        let copy = serde_json::to_value(full()).expect("json");
        assert_eq!((&copy["type"], &copy["id"], &copy["version"]), (&json!("agent"), &json!("agent_1"), &json!(3)));
        for absent in ["metadata", "created_at", "updated_at", "archived_at", "execution_identity"] {
            assert_eq!(copy.get(absent), None, "{absent}");
        }
        assert_eq!(copy["multiagent"], Value::Null);
        assert_eq!(changed(&full(), json!({})), Ok(copy));
    }

    #[test]
    fn a_value_replaces_in_full_and_null_clears() {
        let after = changed(&full(), json!({"system": null, "skills": [], "tools": null})).expect("allowed");
        assert_eq!((&after["system"], &after["skills"], &after["tools"]), (&Value::Null, &json!([]), &json!([])));
        assert_eq!(after["mcp_servers"][0]["name"], "files", "what no tool uses any more stays");
        assert_eq!((&after["id"], &after["version"], &after["name"]), (&json!("agent_1"), &json!(3), &json!("full")));
        let tools =
            json!([{"type": "custom", "name": "ask", "description": "Asks.", "input_schema": {"type": "object"}}]);
        let after = changed(&full(), json!({"tools": tools, "skills": null, "mcp_servers": null})).expect("allowed");
        assert_eq!(after["tools"].as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn the_effort_of_an_override_is_not_applied() {
        let of = |model: Value| changed(&full(), json!({"model": model})).expect("allowed")["model"].clone();
        let high = json!({"type": "high"});
        let low = json!({"type": "low"});
        assert_eq!(of(json!({"id": "scripted", "effort": "max"}))["effort"], low);
        assert_eq!(of(json!("scripted"))["effort"], low);
        assert_eq!(of(json!({"id": "other", "effort": "max"}))["effort"], high);
        assert_eq!(of(json!({"id": "other", "speed": "fast"}))["speed"], "fast");
    }

    #[test]
    fn what_would_not_run_is_refused() {
        for (overrides, reason) in [
            (json!({"model": null}), "agent_model_required"),
            (json!({"tools": null}), "skills: "),
            (json!({"mcp_servers": null}), "names `files`"),
            (json!({"mcp_servers": [{"type": "url", "name": "other", "url": "https://a.example.com"}]}), "`files`"),
            (json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "none"}], "skills": []}), "names `none`"),
            (json!({"tools": [{"type": "bash_20250124"}]}), "tools[0]: "),
            (json!({"model": ""}), "model: "),
        ] {
            let refused = changed(&full(), overrides.clone()).expect_err("refused");
            assert!(refused.contains(reason), "{overrides}: {refused}");
        }
        assert!(serde_json::from_value::<AgentOverrides>(json!({"name": "x"})).is_err());
    }
}
