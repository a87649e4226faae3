//! Agents: a model with a prompt, tools and MCP servers, in versions.

mod definition;
mod tools;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sortie_ids::AgentId;

pub use definition::{Agent, AgentDefinition, AgentOverrides, CreateAgent, ExecutionIdentity, SentModel, UpdateAgent};
pub use tools::{SANDBOX_TOOLS, SentConfig, SentMcpTool, SentSandboxTool, SentServer, SentTool};

/// What the owner of an object writes beside it: at most 16 pairs, keys of at most 64 characters, values of at most 512.
pub type Metadata = BTreeMap<String, String>;

/// The model of an agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// Its name at the model's endpoint.
    pub id: String,
    /// What else was set, such as `effort` and `speed`, resolved.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// An MCP server that an agent uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "url")]
#[schemars(rename = "McpServer", transform = crate::schema::typed("url"))]
pub struct McpServer {
    /// What the agent's tools call it by.
    pub name: String,
    /// Its endpoint.
    pub url: String,
}

/// A tool or a set of tools of an agent, resolved: every configuration says whether it is enabled and what it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum AgentTool {
    /// The tools of the sandbox.
    #[serde(rename = "agent_toolset_20260401")]
    Toolset {
        /// What holds for those that `configs` does not name.
        default_config: ToolConfig,
        /// Tools by their names.
        configs: Vec<NamedToolConfig>,
    },
    /// The tools of an MCP server.
    #[serde(rename = "mcp_toolset")]
    Mcp {
        /// Which server.
        mcp_server_name: String,
        /// What holds for those that `configs` does not name.
        default_config: ToolConfig,
        /// Tools by their names at the server.
        configs: Vec<NamedToolConfig>,
    },
    /// A tool that the client runs.
    #[serde(rename = "custom")]
    Custom {
        /// Its name.
        name: String,
        /// What the model is told of it.
        description: String,
        /// The JSON Schema of its input.
        input_schema: Map<String, Value>,
    },
}

/// Whether a tool is there, and what a use of it needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolConfig {
    /// Whether the model is told of it.
    pub enabled: bool,
    /// What a use needs.
    pub permission_policy: PermissionPolicy,
}

/// The same for one tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NamedToolConfig {
    /// The tool.
    pub name: String,
    /// Its configuration.
    #[serde(flatten)]
    pub config: ToolConfig,
    /// What else was set, such as `type` or `allowed_domains`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What the use of a tool needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PermissionPolicy {
    /// Nothing.
    AlwaysAllow,
    /// A person's word, each time.
    AlwaysAsk,
}

/// The part of an agent that a session runs: its own copy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "agent")]
#[schemars(rename = "SessionAgent", transform = crate::schema::typed("agent"))]
pub struct SessionAgent {
    /// The agent that it was made from.
    pub id: AgentId,
    /// The version of it.
    pub version: u32,
    /// The agent's name.
    pub name: String,
    /// What people are told of it.
    pub description: Option<String>,
    /// The prompt.
    pub system: Option<String>,
    /// The model.
    pub model: Model,
    /// What the model may use.
    pub tools: Vec<AgentTool>,
    /// The servers of those tools.
    pub mcp_servers: Vec<McpServer>,
    /// Skills, as they were sent.
    pub skills: Vec<Value>,
    /// Always none: refused at creation.
    pub multiagent: Option<Value>,
}
