use serde_json::{Value, json};

use super::*;

fn define(body: Value) -> Result<AgentDefinition, String> {
    let request: CreateAgent = serde_json::from_value(body).map_err(|error| error.to_string())?;
    request.define().map_err(|error| error.message)
}

fn plain() -> AgentDefinition {
    define(json!({"name": "plain", "model": "scripted"})).expect("plain")
}

fn update(before: &AgentDefinition, body: Value) -> Result<AgentDefinition, String> {
    let request: UpdateAgent = serde_json::from_value(body).map_err(|error| error.to_string())?;
    request.apply(before.clone()).map_err(|error| error.message)
}

fn shown(definition: &AgentDefinition) -> Value {
    serde_json::to_value(definition).expect("json")
}

#[test]
fn the_least_that_is_sent_is_shown_in_full() {
    let expected = json!({
        "name": "plain", "description": null, "system": null,
        "model": {"id": "scripted", "effort": {"type": "high"}, "speed": "standard"},
        "tools": [], "mcp_servers": [], "skills": [], "multiagent": null, "metadata": {},
        "execution_identity": {"type": "service_account"},
    });
    assert_eq!(shown(&plain()), expected);
    let nulls = json!({
        "name": "plain", "model": {"id": "scripted", "effort": null, "speed": null, "inference_geo": null},
        "description": null, "system": "", "tools": null, "mcp_servers": null, "skills": null, "multiagent": null,
        "metadata": null, "execution_identity": null,
    });
    assert_eq!(define(nulls).expect("nulls"), plain());
    let stored = serde_json::to_string(&plain()).expect("json");
    assert_eq!(serde_json::from_str::<AgentDefinition>(&stored).expect("read"), plain());
}

#[test]
fn models_are_resolved() {
    let model = |sent: Value| define(json!({"name": "a", "model": sent})).map(|made| shown(&made)["model"].clone());
    let level = |level: &str| json!({"id": "m", "effort": {"type": level}, "speed": "standard"});
    for effort in ["low", "medium", "high", "xhigh", "max"] {
        assert_eq!(model(json!({"id": "m", "effort": effort})), Ok(level(effort)));
        assert_eq!(model(json!({"id": "m", "effort": {"type": effort}})), Ok(level(effort)));
    }
    let fast = json!({"id": "m", "effort": {"type": "high"}, "speed": "fast", "inference_geo": "eu"});
    assert_eq!(model(json!({"id": "m", "speed": "fast", "inference_geo": "eu"})), Ok(fast));
    for bad in [
        json!(""),
        json!("a\nb"),
        json!(null),
        json!(["m"]),
        json!({}),
        json!({"id": "m", "effort": "extreme"}),
        json!({"id": "m", "effort": 5}),
        json!({"id": "m", "speed": "slow"}),
        json!({"id": "m", "temperature": 1}),
        json!("m".repeat(257)),
    ] {
        let error = model(bad.clone()).expect_err("refused");
        assert!(error.starts_with("model"), "{bad}: {error}");
    }
}

#[test]
fn texts_have_bounds_in_characters() {
    let sized = |name: usize, description: usize, system: usize| {
        let text = |length| "\u{e9}".repeat(length);
        define(json!({"name": text(name), "model": "m", "description": text(description), "system": text(system)}))
    };
    assert!(sized(256, 2048, 100_000).is_ok());
    for (refused, member) in [
        (sized(0, 1, 1), "name"),
        (sized(257, 1, 1), "name"),
        (sized(1, 2049, 1), "description"),
        (sized(1, 1, 100_001), "system"),
    ] {
        assert!(refused.expect_err(member).starts_with(&format!("{member}: ")));
    }
}

#[test]
fn servers_and_toolsets_need_each_other() {
    let made = |tools: Value, servers: Value| {
        define(json!({"name": "a", "model": "m", "tools": tools, "mcp_servers": servers}))
    };
    let set = |name: &str| json!({"type": "mcp_toolset", "mcp_server_name": name});
    let server = |name: &str| json!({"type": "url", "name": name, "url": "https://mcp.example.com"});
    assert!(made(json!([set("a"), set("b")]), json!([server("b"), server("a")])).is_ok());
    assert!(made(json!([set("a")]), json!([])).expect_err("no server").contains("`a`, which is none of mcp_servers"));
    assert!(
        made(json!([]), json!([server("a")])).expect_err("no toolset").contains("no mcp_toolset in tools names `a`")
    );
}

#[test]
fn skills_need_the_tool_that_reads_them() {
    let made =
        |tools: Value, skills: Value| define(json!({"name": "a", "model": "m", "tools": tools, "skills": skills}));
    let skill = json!({"type": "anthropic", "skill_id": "xlsx", "version": null});
    let toolset = |more: Value| json!([{"type": "agent_toolset_20260401", "configs": more}]);
    let agent = made(toolset(json!([])), json!([skill])).expect("made");
    assert_eq!(agent.skills, [json!({"type": "anthropic", "skill_id": "xlsx", "version": "latest"})]);
    assert!(made(json!([]), json!([skill])).expect_err("no tools").starts_with("skills: "));
    let off = toolset(json!([{"name": "read", "enabled": false}]));
    assert!(made(off, json!([skill])).expect_err("no read").starts_with("skills: "));
    let many = vec![skill.clone(); 21];
    assert!(made(toolset(json!([])), json!(many)).expect_err("many").contains("at most 20"));
    for bad in
        [json!({"type": "own", "skill_id": "a"}), json!({"type": "custom"}), json!({"type": "custom", "skill_id": ""})]
    {
        assert!(made(toolset(json!([])), json!([bad])).expect_err("bad").starts_with("skills[0]"));
    }
}

#[test]
fn what_is_not_offered_is_named() {
    let coordinator = json!({"type": "coordinator", "agents": []});
    let refused = define(json!({"name": "a", "model": "m", "multiagent": coordinator})).expect_err("refused");
    assert!(refused.starts_with("multiagent: not offered"), "{refused}");
    assert!(update(&plain(), json!({"multiagent": coordinator})).expect_err("refused").starts_with("multiagent: "));
    assert_eq!(update(&plain(), json!({"multiagent": null})), Ok(plain()));
    assert!(define(json!({"name": "a", "model": "m", "surprise": 1})).expect_err("refused").contains("surprise"));
    assert!(define(json!({"model": "m"})).expect_err("refused").contains("`name`"));
    assert!(define(json!({"name": "a"})).expect_err("refused").contains("`model`"));
}

#[test]
fn identities_are_shown_as_they_were_sent() {
    let role = json!({"type": "aws_role", "role_arn": "arn:aws:iam::123456789012:role/runner"});
    let made = define(json!({"name": "a", "model": "m", "execution_identity": role})).expect("made");
    assert_eq!(shown(&made)["execution_identity"], role);
    let restored = update(&made, json!({"execution_identity": null})).expect("restored");
    assert_eq!(shown(&restored)["execution_identity"], json!({"type": "service_account"}));
    for bad in [json!({"type": "aws_role"}), json!({"type": "aws_role", "role_arn": ""}), json!({"type": "root"})] {
        assert!(define(json!({"name": "a", "model": "m", "execution_identity": bad})).is_err());
    }
}

#[test]
fn an_update_keeps_what_it_leaves_out() {
    let before = define(json!({
        "name": "full", "model": {"id": "m", "effort": "low", "speed": "fast"}, "description": "d", "system": "s",
        "tools": [{"type": "agent_toolset_20260401"}, {"type": "mcp_toolset", "mcp_server_name": "a"}],
        "mcp_servers": [{"type": "url", "name": "a", "url": "https://a.example.com"}],
        "skills": [{"type": "custom", "skill_id": "skill_1"}], "metadata": {"a": "1", "b": "2"},
    }))
    .expect("full");
    assert_eq!(update(&before, json!({})), Ok(before.clone()));
    assert_eq!(update(&before, json!({"version": 1})), Ok(before.clone()));
    assert_eq!(before.changed(&before), Vec::<&str>::new());

    let after =
        update(&before, json!({"description": "", "system": null, "metadata": {"a": null, "c": "3"}})).expect("after");
    assert_eq!((&after.description, &after.system), (&None, &None));
    assert_eq!(shown(&after)["metadata"], json!({"b": "2", "c": "3"}));
    assert_eq!(after.changed(&before), ["description", "system", "metadata"]);

    let cleared = update(&before, json!({"tools": null, "mcp_servers": [], "skills": null})).expect("cleared");
    assert!(cleared.tools.is_empty() && cleared.mcp_servers.is_empty() && cleared.skills.is_empty());
    for (body, reason) in [
        (json!({"name": null}), "name: cannot be cleared"),
        (json!({"name": ""}), "name: 0 characters"),
        (json!({"model": null}), "model: cannot be cleared"),
        (json!({"tools": []}), "mcp_servers: no mcp_toolset in tools names `a`"),
        (json!({"mcp_servers": null}), "tools: an mcp_toolset names `a`"),
        (json!({"tools": [{"type": "mcp_toolset", "mcp_server_name": "a"}]}), "skills: "),
    ] {
        let error = update(&before, body.clone()).expect_err("refused");
        assert!(error.starts_with(reason), "{body}: {error}");
    }
}

#[test]
fn a_model_is_replaced_in_full_but_for_the_effort_of_the_same_one() {
    let before = define(json!({"name": "a", "model": {"id": "m", "effort": "low", "speed": "fast"}})).expect("before");
    let model = |sent: Value| shown(&update(&before, json!({"model": sent})).expect("after"))["model"].clone();
    assert_eq!(model(json!("m")), json!({"id": "m", "effort": {"type": "low"}, "speed": "standard"}));
    assert_eq!(model(json!({"id": "m", "effort": "max"}))["effort"], json!({"type": "max"}));
    assert_eq!(model(json!("other")), json!({"id": "other", "effort": {"type": "high"}, "speed": "standard"}));
}
