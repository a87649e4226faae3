//! Tools as they are sent, and what becomes of them: every configuration says whether it is enabled and what it needs.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{AgentTool, McpServer, NamedToolConfig, PermissionPolicy, ToolConfig};
use crate::{ApiError, check_mcp_url};

/// The tools of the sandbox.
pub const SANDBOX_TOOLS: [&str; 8] = ["bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"];
/// What no custom tool's name begins with: names of MCP tools do, as the model knows them.
const MCP_PREFIX: &str = "mcp__";
/// Most tools of an agent, over all toolsets, those of MCP servers not counted.
const MAX_TOOLS: usize = 256;
/// Most tools that a toolset configures by name.
const MAX_CONFIGS: usize = 256;
/// Longest name of a tool, in characters.
const MAX_NAME: usize = 128;
/// Most MCP servers of an agent.
const MAX_SERVERS: usize = 20;
/// Longest name of an MCP server, in characters.
const MAX_SERVER_NAME: usize = 255;
/// Most domains of one list.
const MAX_DOMAINS: usize = 64;
/// Longest name of a property of a custom tool's input, in bytes; of its first level, as the Messages API has it.
const MAX_PROPERTY: usize = 64;

/// A tool or a set of tools, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum SentTool {
    /// The tools of the sandbox.
    #[serde(rename = "agent_toolset_20260401")]
    Toolset {
        /// What holds for those that `configs` does not name; enabled and `always_allow`, where nothing is said.
        #[serde(default)]
        default_config: Option<SentConfig>,
        /// Tools by their names.
        #[serde(default)]
        configs: Option<Vec<SentSandboxTool>>,
    },
    /// The tools of an MCP server.
    #[serde(rename = "mcp_toolset")]
    Mcp {
        /// Which one of `mcp_servers`.
        mcp_server_name: String,
        /// What holds for those that `configs` does not name; enabled and `always_ask`, where nothing is said.
        #[serde(default)]
        default_config: Option<SentConfig>,
        /// Tools by their names at the server.
        #[serde(default)]
        configs: Option<Vec<SentMcpTool>>,
    },
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom {
        /// 1 to 128 letters, digits, `_` and `-`; not the name of a tool of the sandbox, and not `mcp__...`.
        name: String,
        /// What the model is told of it.
        description: String,
        /// The JSON Schema of its input: an object, without `$ref`.
        input_schema: Map<String, Value>,
    },
}

/// A configuration, as it is sent.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SentConfig {
    /// Whether the model is told of it.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// `{"type": "always_allow"}` or `{"type": "always_ask"}`.
    #[serde(default)]
    pub permission_policy: Option<Map<String, Value>>,
}

/// The configuration of one tool of the sandbox, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SentSandboxTool {
    /// The tool.
    pub name: String,
    /// The same as `name`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// Whether the model is told of it.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// What a use needs.
    #[serde(default)]
    pub permission_policy: Option<Map<String, Value>>,
    /// Of `web_search` and `web_fetch`: the only domains that count.
    #[serde(default)]
    pub allowed_domains: Option<Vec<String>>,
    /// Of `web_search` and `web_fetch`: domains that do not count.
    #[serde(default)]
    pub blocked_domains: Option<Vec<String>>,
    /// Of `web_search`.
    #[serde(default)]
    pub user_location: Option<Map<String, Value>>,
    /// Of `web_fetch`: tokens of one answer.
    #[serde(default)]
    pub max_content_tokens: Option<u32>,
    /// Of `web_fetch`: where URLs may come from.
    #[serde(default)]
    pub url_sources: Option<Map<String, Value>>,
}

/// The configuration of one tool of an MCP server, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SentMcpTool {
    /// Its name at the server, in 1 to 128 characters.
    pub name: String,
    /// Whether the model is told of it.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// What a use needs.
    #[serde(default)]
    pub permission_policy: Option<Map<String, Value>>,
}

/// Reads the tools that were sent.
///
/// # Errors
/// 400, naming the tool by its place.
pub(super) fn tools(sent: Vec<Value>) -> Result<Vec<AgentTool>, ApiError> {
    if sent.len() > MAX_TOOLS {
        return Err(too_many(sent.len()));
    }
    let place = |at: usize| format!("tools[{at}]");
    let sent = sent.into_iter().enumerate();
    let tools = sent.map(|(at, tool)| resolved(&place(at), read(&place(at), tool)?)).collect::<Result<Vec<_>, _>>()?;
    let mut names = HashSet::new();
    let mut count = 0;
    for (at, tool) in tools.iter().enumerate() {
        let (unique, many) = match tool {
            AgentTool::Toolset { .. } => (("toolset", ""), SANDBOX_TOOLS.len()),
            AgentTool::Mcp { mcp_server_name, .. } => (("mcp", mcp_server_name.as_str()), 0),
            AgentTool::Custom { name, .. } => (("custom", name.as_str()), 1),
        };
        count += many;
        if !names.insert(unique) {
            let what = match unique {
                ("toolset", _) => "the agent toolset is there twice".to_owned(),
                ("mcp", name) => format!("the MCP server `{name}` has two toolsets"),
                (_, name) => format!("two tools are named `{name}`"),
            };
            return Err(conflict(format!("{}: {what}", place(at))));
        }
    }
    if count > MAX_TOOLS { Err(too_many(count)) } else { Ok(tools) }
}

/// Reads the MCP servers that were sent.
///
/// # Errors
/// 400, naming the server by its place.
pub(super) fn servers(sent: Vec<Value>) -> Result<Vec<McpServer>, ApiError> {
    if sent.len() > MAX_SERVERS {
        return refused(format!("mcp_servers: {} servers, at most {MAX_SERVERS}", sent.len()));
    }
    let mut names = HashSet::new();
    let mut all = Vec::with_capacity(sent.len());
    for (at, sent) in sent.into_iter().enumerate() {
        let place = format!("mcp_servers[{at}]");
        let SentServer::Url { name, url } = read(&place, sent)?;
        let length = name.chars().count();
        if !(1..=MAX_SERVER_NAME).contains(&length) {
            return refused(format!("{place}.name: {length} characters; 1 to {MAX_SERVER_NAME} are possible"));
        }
        check_mcp_url(&format!("{place}.url"), &url)?;
        if !names.insert(name.clone()) {
            return refused(format!("{place}.name: two servers are named `{name}`"));
        }
        all.push(McpServer { name, url });
    }
    Ok(all)
}

/// An MCP server, as it is sent.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum SentServer {
    /// One with a URL, the only kind there is.
    #[serde(rename = "url")]
    Url {
        /// What toolsets call it by, in 1 to 255 characters; each server has another name.
        name: String,
        /// Its endpoint, in at most 2,048 characters. Credentials for it are kept in vaults.
        url: String,
    },
}

/// Checks that each toolset has its server, and each server its toolset.
///
/// # Errors
/// 400.
pub(super) fn match_servers(tools: &[AgentTool], servers: &[McpServer]) -> Result<(), ApiError> {
    let used: HashSet<&str> = tools
        .iter()
        .filter_map(|tool| match tool {
            AgentTool::Mcp { mcp_server_name, .. } => Some(mcp_server_name.as_str()),
            _ => None,
        })
        .collect();
    let there: HashSet<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    if let Some(missing) = used.difference(&there).min() {
        return refused(format!("tools: an mcp_toolset names `{missing}`, which is none of mcp_servers"));
    }
    match there.difference(&used).min() {
        Some(unused) => {
            refused(format!("mcp_servers: no mcp_toolset in tools names `{unused}`; add one, or leave the server out"))
        }
        None => Ok(()),
    }
}

/// Whether the model has the tool `read` of the sandbox, which skills need.
pub(super) fn can_read(tools: &[AgentTool]) -> bool {
    tools.iter().any(|tool| match tool {
        AgentTool::Toolset { default_config, configs } => {
            let named = configs.iter().find(|config| config.name == "read");
            named.map_or(default_config, |named| &named.config).enabled
        }
        _ => false,
    })
}

/// Reads one item of a list, naming its place when it cannot be read.
pub(super) fn read<T: DeserializeOwned>(place: &str, sent: Value) -> Result<T, ApiError> {
    serde_json::from_value(sent).map_err(|error| {
        let words: String = error.to_string().chars().take(300).collect();
        ApiError::invalid_request(format!("{place}: {words}"))
    })
}

pub(super) fn refused<T>(reason: String) -> Result<T, ApiError> {
    Err(ApiError::invalid_request(reason))
}

fn too_many(count: usize) -> ApiError {
    let error = ApiError::invalid_request(format!("tools: {count} tools, at most {MAX_TOOLS}"));
    error.with_details(json!({"error_code": "available_tools_limit_exceeded"}))
}

fn conflict(reason: String) -> ApiError {
    ApiError::invalid_request(reason).with_details(json!({"error_code": "tool_name_conflict"}))
}

fn resolved(place: &str, sent: SentTool) -> Result<AgentTool, ApiError> {
    match sent {
        SentTool::Toolset { default_config, configs } => {
            let default_config = default(place, default_config, PermissionPolicy::AlwaysAllow)?;
            let configs = each(place, configs, |place, config| sandbox_tool(place, config, &default_config))?;
            Ok(AgentTool::Toolset { default_config, configs })
        }
        SentTool::Mcp { mcp_server_name, default_config, configs } => {
            let default_config = default(place, default_config, PermissionPolicy::AlwaysAsk)?;
            let configs = each(place, configs, |place, config| mcp_tool(place, config, &default_config))?;
            Ok(AgentTool::Mcp { mcp_server_name, default_config, configs })
        }
        SentTool::Custom { name, description, input_schema } => {
            check_custom(place, &name, &description)?;
            Ok(AgentTool::Custom { name, description, input_schema: schema(place, input_schema)? })
        }
    }
}

fn default(place: &str, sent: Option<SentConfig>, policy: PermissionPolicy) -> Result<ToolConfig, ApiError> {
    let SentConfig { enabled, permission_policy } = sent.unwrap_or_default();
    let own = ToolConfig { enabled: true, permission_policy: policy };
    config(&format!("{place}.default_config"), enabled, permission_policy, &own)
}

fn config(
    place: &str,
    enabled: Option<bool>,
    policy: Option<Map<String, Value>>,
    default: &ToolConfig,
) -> Result<ToolConfig, ApiError> {
    let permission_policy = match policy {
        Some(policy) => permission_policy(place, policy)?,
        None => default.permission_policy,
    };
    Ok(ToolConfig { enabled: enabled.unwrap_or(default.enabled), permission_policy })
}

fn permission_policy(place: &str, sent: Map<String, Value>) -> Result<PermissionPolicy, ApiError> {
    if sent.get("type").is_some_and(|kind| kind == "auto") {
        let reason = "the policy `auto` is not offered here; use always_allow or always_ask";
        return refused(format!("{place}.permission_policy: {reason}"));
    }
    read(&format!("{place}.permission_policy"), Value::Object(sent))
}

fn each<T>(
    place: &str,
    sent: Option<Vec<T>>,
    resolve: impl Fn(&str, T) -> Result<NamedToolConfig, ApiError>,
) -> Result<Vec<NamedToolConfig>, ApiError> {
    let sent = sent.unwrap_or_default();
    if sent.len() > MAX_CONFIGS {
        return refused(format!("{place}.configs: {} tools, at most {MAX_CONFIGS}", sent.len()));
    }
    let mut names = HashSet::new();
    let mut configs = Vec::with_capacity(sent.len());
    for (at, sent) in sent.into_iter().enumerate() {
        let place = format!("{place}.configs[{at}]");
        let config = resolve(&place, sent)?;
        if !names.insert(config.name.clone()) {
            return Err(conflict(format!("{place}.name: `{}` is configured twice", config.name)));
        }
        configs.push(config);
    }
    Ok(configs)
}

fn sandbox_tool(place: &str, sent: SentSandboxTool, default: &ToolConfig) -> Result<NamedToolConfig, ApiError> {
    let name = sent.name;
    if !SANDBOX_TOOLS.contains(&name.as_str()) {
        return refused(format!("{place}.name: must be one of {}", SANDBOX_TOOLS.join(", ")));
    }
    if sent.kind.is_some_and(|kind| kind != name) {
        return refused(format!("{place}.type: must be the same as name, or be left out"));
    }
    let config = config(place, sent.enabled, sent.permission_policy, default)?;
    let mut more = Map::from_iter([("type".to_owned(), Value::from(name.as_str()))]);
    let (searches, fetches) = (name == "web_search", name == "web_fetch");
    for (member, value, fits) in [
        ("allowed_domains", domains(place, "allowed_domains", sent.allowed_domains)?, searches || fetches),
        ("blocked_domains", domains(place, "blocked_domains", sent.blocked_domains)?, searches || fetches),
        ("user_location", sent.user_location.map(Value::Object), searches),
        ("max_content_tokens", sent.max_content_tokens.map(Value::from), fetches),
        ("url_sources", sent.url_sources.map(Value::Object), fetches),
    ] {
        let Some(value) = value else { continue };
        if !fits {
            return refused(format!("{place}.{member}: the tool `{name}` has no such setting"));
        }
        more.insert(member.to_owned(), value);
    }
    if more.contains_key("allowed_domains") && more.contains_key("blocked_domains") {
        return refused(format!("{place}: allowed_domains and blocked_domains exclude each other"));
    }
    Ok(NamedToolConfig { name, config, more })
}

fn domains(place: &str, member: &str, sent: Option<Vec<String>>) -> Result<Option<Value>, ApiError> {
    let Some(domains) = sent else { return Ok(None) };
    if !(1..=MAX_DOMAINS).contains(&domains.len()) {
        return refused(format!("{place}.{member}: 1 to {MAX_DOMAINS} domains, or none of the member"));
    }
    let plain = |domain: &String| {
        let length = 1..=MAX_SERVER_NAME;
        length.contains(&domain.len()) && !domain.contains(char::is_whitespace) && !domain.contains("://")
    };
    if !domains.iter().all(plain) {
        return refused(format!("{place}.{member}: each is a plain host name, such as docs.example.com"));
    }
    Ok(Some(domains.into()))
}

fn mcp_tool(place: &str, sent: SentMcpTool, default: &ToolConfig) -> Result<NamedToolConfig, ApiError> {
    let length = sent.name.chars().count();
    if !(1..=MAX_NAME).contains(&length) {
        return refused(format!("{place}.name: {length} characters; 1 to {MAX_NAME} are possible"));
    }
    let config = config(place, sent.enabled, sent.permission_policy, default)?;
    Ok(NamedToolConfig { name: sent.name, config, more: Map::new() })
}

fn check_custom(place: &str, name: &str, description: &str) -> Result<(), ApiError> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if !(1..=MAX_NAME).contains(&name.len()) || !plain {
        return refused(format!("{place}.name: must be 1 to {MAX_NAME} letters, digits, `_` and `-`"));
    }
    if SANDBOX_TOOLS.contains(&name) {
        return Err(conflict(format!("{place}.name: `{name}` is a tool of the sandbox; take another name")));
    }
    if name.starts_with(MCP_PREFIX) {
        return Err(conflict(format!("{place}.name: only tools of MCP servers begin with `{MCP_PREFIX}`")));
    }
    if description.trim().is_empty() {
        return refused(format!("{place}.description: must say what `{name}` does, since the model chooses by it"));
    }
    Ok(())
}

fn schema(place: &str, mut schema: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    let place = format!("{place}.input_schema");
    if schema.get("type").is_none_or(|kind| kind != "object") {
        return refused(format!("{place}.type: must be \"object\""));
    }
    for member in ["oneOf", "anyOf", "allOf"] {
        if schema.contains_key(member) {
            return refused(format!("{place}: {member} is not possible at the top; it is within properties"));
        }
    }
    for optional in ["properties", "required"] {
        if schema.get(optional).is_some_and(Value::is_null) {
            schema.remove(optional);
        }
    }
    match schema.get("properties") {
        None => {}
        Some(Value::Object(properties)) => {
            for (name, property) in properties {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
                if !(1..=MAX_PROPERTY).contains(&name.len()) || !name.bytes().all(plain) {
                    let rule = format!("1 to {MAX_PROPERTY} letters, digits, `_`, `.` and `-`");
                    let shown: String = name.chars().take(MAX_PROPERTY).collect();
                    return refused(format!("{place}.properties: the name `{shown}` is not {rule}"));
                }
                if !property.is_object() && !property.is_boolean() {
                    return refused(format!("{place}.properties.{name}: must be a JSON Schema"));
                }
            }
        }
        Some(_) => return refused(format!("{place}.properties: must be an object")),
    }
    let names = |value: &Value| value.as_array().is_some_and(|names| names.iter().all(Value::is_string));
    if schema.get("required").is_some_and(|required| !names(required)) {
        return refused(format!("{place}.required: must be a list of names"));
    }
    if schema.values().any(refers) || schema.contains_key("$ref") {
        return refused(format!("{place}: $ref is not possible; write what it refers to in its place"));
    }
    Ok(schema)
}

fn refers(value: &Value) -> bool {
    match value {
        Value::Object(members) => members.contains_key("$ref") || members.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
