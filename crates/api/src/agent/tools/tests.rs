use serde_json::{Value, json};

use super::*;

fn one(tool: Value) -> Result<Value, ApiError> {
    let tools = tools(vec![tool])?;
    Ok(serde_json::to_value(tools.into_iter().next()).expect("json"))
}

fn custom(name: &str) -> Value {
    json!({"type": "custom", "name": name, "description": "Does it.", "input_schema": {"type": "object"}})
}

fn with_schema(schema: Value) -> Value {
    json!({"type": "custom", "name": "it", "description": "Does it.", "input_schema": schema})
}

fn code(error: &ApiError) -> Option<&str> {
    error.details.as_ref()?.get("error_code")?.as_str()
}

#[test]
fn every_configuration_says_whether_it_is_enabled_and_what_it_needs() {
    let (allow, ask) = (json!({"type": "always_allow"}), json!({"type": "always_ask"}));
    let plain = one(json!({"type": "agent_toolset_20260401"})).expect("plain");
    let default = json!({"enabled": true, "permission_policy": allow});
    assert_eq!(plain, json!({"type": "agent_toolset_20260401", "default_config": default, "configs": []}));
    let nulls = json!({"type": "agent_toolset_20260401", "default_config": null, "configs": null});
    assert_eq!(one(nulls).expect("nulls"), plain);

    let set = one(json!({
        "type": "agent_toolset_20260401",
        "default_config": {"enabled": false, "permission_policy": {"type": "always_ask"}},
        "configs": [
            {"name": "bash"},
            {"name": "read", "type": "read", "enabled": true, "permission_policy": {"type": "always_allow"}},
            {"name": "web_search", "enabled": null, "allowed_domains": ["docs.example.com"],
             "user_location": {"type": "approximate", "country": "CH"}},
            {"name": "web_fetch", "blocked_domains": ["ads.example.com"], "max_content_tokens": 1000},
        ],
    }))
    .expect("set");
    assert_eq!(
        set["configs"],
        json!([
            {"name": "bash", "type": "bash", "enabled": false, "permission_policy": ask},
            {"name": "read", "type": "read", "enabled": true, "permission_policy": allow},
            {"name": "web_search", "type": "web_search", "enabled": false, "permission_policy": ask,
             "allowed_domains": ["docs.example.com"], "user_location": {"type": "approximate", "country": "CH"}},
            {"name": "web_fetch", "type": "web_fetch", "enabled": false, "permission_policy": ask,
             "blocked_domains": ["ads.example.com"], "max_content_tokens": 1000},
        ])
    );

    let mcp =
        one(json!({"type": "mcp_toolset", "mcp_server_name": "s", "configs": [{"name": "a.b/c", "enabled": false}]}));
    let default = json!({"enabled": true, "permission_policy": ask});
    let configs = json!([{"name": "a.b/c", "enabled": false, "permission_policy": ask}]);
    let expected =
        json!({"type": "mcp_toolset", "mcp_server_name": "s", "default_config": default, "configs": configs});
    assert_eq!(mcp.expect("mcp"), expected, "what an MCP server offers asks first");
}

#[test]
fn what_is_resolved_reads_as_itself() {
    let sent = json!([
        {"type": "agent_toolset_20260401", "configs": [{"name": "web_search", "allowed_domains": ["a.example"]}]},
        {"type": "mcp_toolset", "mcp_server_name": "s", "default_config": {"enabled": false}, "configs": [{"name": "a"}]},
        custom("ask"),
    ]);
    let resolved = tools(serde_json::from_value(sent).expect("list")).expect("tools");
    let text = serde_json::to_string(&resolved).expect("json");
    assert_eq!(serde_json::from_str::<Vec<AgentTool>>(&text).expect("read"), resolved);
    assert_eq!(tools(serde_json::from_str(&text).expect("list")).expect("sent again"), resolved);
}

#[test]
fn toolsets_are_refused_by_their_place() {
    for (tool, reason) in [
        (json!({"type": "bash_20250124"}), "tools[0]: unknown variant"),
        (json!("bash"), "tools[0]: "),
        (json!({"type": "agent_toolset_20260401", "surprise": 1}), "tools[0]: unknown field `surprise`"),
        (
            json!({"type": "agent_toolset_20260401", "configs": [{"name": "rm"}]}),
            "tools[0].configs[0].name: must be one of bash",
        ),
        (json!({"type": "agent_toolset_20260401", "configs": [{"name": "bash", "type": "read"}]}), "configs[0].type: "),
        (
            json!({"type": "agent_toolset_20260401", "configs": [{"name": "bash"}, {"name": "bash"}]}),
            "configs[1].name: ",
        ),
        (
            json!({"type": "agent_toolset_20260401", "configs": [{"name": "bash", "allowed_domains": ["a.example"]}]}),
            "allowed_domains: the tool `bash` has no such setting",
        ),
        (
            json!({"type": "agent_toolset_20260401", "configs": [
                {"name": "web_fetch", "allowed_domains": ["a.example"], "blocked_domains": ["b.example"]}]}),
            "exclude each other",
        ),
        (
            json!({"type": "agent_toolset_20260401", "configs": [{"name": "web_fetch", "allowed_domains": []}]}),
            "1 to 64",
        ),
        (
            json!({"type": "agent_toolset_20260401", "configs": [{"name": "web_fetch", "allowed_domains": ["https://a"]}]}),
            "plain host name",
        ),
        (
            json!({"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "auto"}}}),
            "tools[0].default_config.permission_policy: the policy `auto` is not offered",
        ),
        (
            json!({"type": "agent_toolset_20260401", "default_config": {"permission_policy": {"type": "never"}}}),
            "unknown variant `never`",
        ),
        (json!({"type": "mcp_toolset"}), "missing field `mcp_server_name`"),
        (json!({"type": "mcp_toolset", "mcp_server_name": "s", "configs": [{"name": ""}]}), "1 to 128"),
        (json!({"type": "mcp_toolset", "mcp_server_name": "s", "configs": {"a": {}}}), "tools[0]: "),
    ] {
        let error = one(tool.clone()).expect_err("refused");
        assert!(error.message.contains(reason), "{tool}: {}", error.message);
    }
}

#[test]
fn names_are_taken_once() {
    let twice = |one: Value, other: Value| tools(vec![one, other]).expect_err("refused");
    let set = json!({"type": "agent_toolset_20260401"});
    let mcp = json!({"type": "mcp_toolset", "mcp_server_name": "s"});
    for error in [
        twice(set.clone(), set),
        twice(mcp.clone(), mcp),
        twice(custom("ask"), custom("ask")),
        one(custom("bash")).expect_err("a tool of the sandbox"),
        one(custom("mcp__files__read")).expect_err("a tool of an MCP server"),
    ] {
        assert_eq!(code(&error), Some("tool_name_conflict"), "{}", error.message);
    }
    assert!(tools(vec![custom("Bash"), custom("mcp_files")]).is_ok());
}

#[test]
fn there_are_at_most_256_tools() {
    let customs = |count: usize| (0..count).map(|at| custom(&format!("tool_{at}"))).collect::<Vec<_>>();
    assert!(tools(customs(256)).is_ok());
    let mut with_set = customs(248);
    with_set.push(json!({"type": "agent_toolset_20260401"}));
    assert!(tools(with_set.clone()).is_ok());
    with_set.push(custom("one_more"));
    for many in [customs(257), with_set] {
        assert_eq!(code(&tools(many).expect_err("too many")), Some("available_tools_limit_exceeded"));
    }
}

#[test]
fn custom_tools_have_plain_names_and_a_description() {
    for name in ["a", "Ask_me-2", &"n".repeat(128)] {
        assert!(one(custom(name)).is_ok(), "{name}");
    }
    for name in ["", "a b", "a.b", "caf\u{e9}", "a/b", &"n".repeat(129)] {
        assert!(one(custom(name)).expect_err(name).message.starts_with("tools[0].name: "), "{name}");
    }
    let mut tool = custom("ask");
    tool["description"] = json!(" \n");
    assert!(one(tool).expect_err("blank").message.starts_with("tools[0].description: "));
}

#[test]
fn schemas_of_custom_tools_are_ones_that_models_take() {
    let nested = json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}});
    for good in [
        json!({"type": "object", "properties": {}, "required": []}),
        json!({"type": "object", "properties": {"a-b.c_d": {"type": "string"}}, "additionalProperties": false}),
        nested,
    ] {
        assert_eq!(one(with_schema(good.clone())).expect("good")["input_schema"], good);
    }
    let nulls = one(with_schema(json!({"type": "object", "properties": null, "required": null}))).expect("nulls");
    assert_eq!(nulls["input_schema"], json!({"type": "object"}));
    for (bad, reason) in [
        (json!({}), "type: must be \"object\""),
        (json!({"type": "string"}), "type: must be \"object\""),
        (json!({"type": ["object"]}), "type: must be \"object\""),
        (json!({"type": "object", "oneOf": []}), "oneOf"),
        (json!({"type": "object", "anyOf": []}), "anyOf"),
        (json!({"type": "object", "allOf": []}), "allOf"),
        (json!({"type": "object", "properties": []}), "properties: must be an object"),
        (json!({"type": "object", "properties": {"a b": {}}}), "the name `a b`"),
        (json!({"type": "object", "properties": {"": {}}}), "the name ``"),
        (json!({"type": "object", "properties": {"a": 1}}), "properties.a: must be a JSON Schema"),
        (json!({"type": "object", "required": "a"}), "required: "),
        (json!({"type": "object", "required": [1]}), "required: "),
        (json!({"type": "object", "$ref": "#/$defs/a"}), "$ref"),
        (json!({"type": "object", "properties": {"a": {"items": [{"$ref": "#"}]}}}), "$ref"),
    ] {
        let error = one(with_schema(bad.clone())).expect_err("refused");
        assert!(error.message.contains(reason), "{bad}: {}", error.message);
    }
    let long = with_schema(json!({"type": "object", "properties": {"p".repeat(65): {}}}));
    assert!(one(long).is_err());
}

#[test]
fn servers_have_names_of_their_own_and_no_credentials() {
    let server = |name: &str, url: &str| json!({"type": "url", "name": name, "url": url});
    let url = "https://mcp.example.com/mcp";
    let all = servers(vec![server("a", url), server("b", url)]).expect("servers");
    assert_eq!(serde_json::to_value(&all).expect("json"), json!([server("a", url), server("b", url)]));
    let many = (0..21).map(|at| server(&at.to_string(), url)).collect::<Vec<_>>();
    for (sent, reason) in [
        (many, "21 servers, at most 20"),
        (vec![server("", url)], "mcp_servers[0].name: 0 characters"),
        (vec![server(&"n".repeat(256), url)], "256 characters"),
        (vec![server("a", url), server("a", url)], "mcp_servers[1].name: two servers are named `a`"),
        (vec![server("a", "not a url")], "mcp_servers[0].url: "),
        (vec![server("a", "https://me:secret@mcp.example.com")], "vault"),
        (vec![json!({"type": "stdio", "name": "a"})], "mcp_servers[0]: unknown variant"),
        (vec![json!({"type": "url", "name": "a", "url": url, "authorization_token": "secret"})], "authorization_token"),
    ] {
        let error = servers(sent).expect_err(reason);
        assert!(error.message.contains(reason) && !error.message.contains("secret@"), "{}", error.message);
    }
}
