//! What a session asks of MCP servers.

pub mod content;
pub mod schema;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use sortie_api::{ContentBlock, Hop, McpServer};
use sortie_ids::{AgentId, EventId, KeyId, OrganizationId, SessionId, VaultId, WorkspaceId};

/// For whom a server is asked: gateways are told all of it, and decide by it.
#[derive(Clone, Debug)]
pub struct McpContext {
    /// The organisation.
    pub organization: OrganizationId,
    /// The workspace, in which tunnels and vaults are looked for.
    pub workspace: WorkspaceId,
    /// The key that the session was made with.
    pub key: KeyId,
    /// The agent.
    pub agent: AgentId,
    /// Its name.
    pub agent_name: String,
    /// Its version.
    pub agent_version: u32,
    /// The session.
    pub session: SessionId,
    /// Where credentials are looked for, in this order.
    pub vaults: Vec<VaultId>,
}

/// A tool of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct McpTool {
    /// Its name at the server.
    pub name: String,
    /// What the model is told of it.
    pub description: Option<String>,
    /// The JSON Schema of its input.
    pub input_schema: Map<String, Value>,
}

/// What a tool answered, in blocks that the Messages API takes in a tool result.
#[derive(Clone, Debug, PartialEq)]
pub struct McpAnswer {
    /// The blocks; not empty.
    pub content: Vec<ContentBlock>,
    /// Whether the tool says that it failed.
    pub is_error: bool,
}

/// Why a server did not answer. The words hold no secret.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct McpFailure {
    /// The contract's kind: `mcp_connection_failed_error`, `mcp_authentication_failed_error` or
    /// `credential_host_unreachable_error`.
    pub kind: &'static str,
    /// One sentence that names the server and the way out.
    pub message: String,
    /// Where on the way, if Sortie knows.
    pub hop: Option<Hop>,
    /// More for programs, such as `vault_id`.
    pub details: Map<String, Value>,
}

/// The way to MCP servers: over tunnels inside the hub, and to public ones.
pub trait McpServers: Send + Sync + 'static {
    /// The tools of a server, all pages of them.
    fn list<'a>(
        &'a self,
        context: &'a McpContext,
        server: &'a McpServer,
    ) -> BoxFuture<'a, Result<Arc<[McpTool]>, McpFailure>>;

    /// Calls a tool for this use of it, once. Dropping the future cancels the call at the server.
    fn call<'a>(
        &'a self,
        context: &'a McpContext,
        server: &'a McpServer,
        tool: &'a str,
        input: &'a Map<String, Value>,
        tool_use: &'a EventId,
    ) -> BoxFuture<'a, Result<McpAnswer, McpFailure>>;

    /// The session waits or is over: what is kept open for it may be closed.
    fn rest(&self, session: &SessionId);
}

/// No way to any server: each one fails, in words that say so.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoServers;

impl NoServers {
    fn failure(server: &McpServer) -> McpFailure {
        McpFailure {
            kind: "mcp_connection_failed_error",
            message: format!("the MCP server `{}` cannot be reached: this hub has no way to MCP servers", server.name),
            hop: None,
            details: Map::new(),
        }
    }
}

impl McpServers for NoServers {
    fn list<'a>(
        &'a self,
        _: &'a McpContext,
        server: &'a McpServer,
    ) -> BoxFuture<'a, Result<Arc<[McpTool]>, McpFailure>> {
        Box::pin(async { Err(Self::failure(server)) })
    }

    fn call<'a>(
        &'a self,
        _: &'a McpContext,
        server: &'a McpServer,
        _: &'a str,
        _: &'a Map<String, Value>,
        _: &'a EventId,
    ) -> BoxFuture<'a, Result<McpAnswer, McpFailure>> {
        Box::pin(async { Err(Self::failure(server)) })
    }

    fn rest(&self, _: &SessionId) {}
}
