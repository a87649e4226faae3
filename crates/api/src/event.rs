//! Events of sessions: what clients send, and what happened.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sortie_ids::{EventId, ThreadId};

use crate::{SessionAgent, Usage};

/// A block of content in the form of the Messages API (`{"type": "text", "text": ...}` and others), kept as it was sent.
pub type ContentBlock = Value;

/// An event of a session as it is listed and streamed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its id; for a tool use also the id that its answer names.
    pub id: EventId,
    /// When it took effect, to the microsecond; none while an event of a client waits.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub processed_at: Option<Timestamp>,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
#[allow(missing_docs, reason = "the fields are those of the public contract, described at each event")]
pub enum EventBody {
    /// A person, or the program in their place, says something.
    #[serde(rename = "user.message")]
    UserMessage { content: Vec<ContentBlock> },
    /// The turn is to end.
    #[serde(rename = "user.interrupt")]
    UserInterrupt {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_thread_id: Option<ThreadId>,
    },
    /// A tool use that asked for it is allowed or denied.
    #[serde(rename = "user.tool_confirmation")]
    UserToolConfirmation {
        tool_use_id: EventId,
        result: Verdict,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deny_message: Option<String>,
    },
    /// The answer to a custom tool.
    #[serde(rename = "user.custom_tool_result")]
    UserCustomToolResult {
        custom_tool_use_id: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Vec<ContentBlock>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        is_error: Option<bool>,
    },
    /// A worker's answer to a tool of the sandbox.
    #[serde(rename = "user.tool_result")]
    UserToolResult {
        tool_use_id: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Vec<ContentBlock>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        is_error: Option<bool>,
    },
    /// A turn in the role of the system, behind the message that it comes with.
    #[serde(rename = "system.message")]
    SystemMessage { content: Vec<ContentBlock> },
    /// The model says something.
    #[serde(rename = "agent.message")]
    AgentMessage { content: Vec<ContentBlock> },
    /// The model thinks.
    #[serde(rename = "agent.thinking")]
    AgentThinking {},
    /// The model uses a tool of the sandbox.
    #[serde(rename = "agent.tool_use")]
    AgentToolUse {
        name: String,
        input: Map<String, Value>,
        #[serde(flatten)]
        permission: Permission,
    },
    /// The hub's own answer to a tool of the sandbox.
    #[serde(rename = "agent.tool_result")]
    AgentToolResult {
        tool_use_id: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Vec<ContentBlock>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        is_error: Option<bool>,
    },
    /// The model uses a tool of an MCP server.
    #[serde(rename = "agent.mcp_tool_use")]
    AgentMcpToolUse {
        mcp_server_name: String,
        name: String,
        input: Map<String, Value>,
        #[serde(flatten)]
        permission: Permission,
    },
    /// The MCP server's answer.
    #[serde(rename = "agent.mcp_tool_result")]
    AgentMcpToolResult {
        mcp_tool_use_id: EventId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Vec<ContentBlock>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        is_error: Option<bool>,
    },
    /// The model uses a tool that the client runs.
    #[serde(rename = "agent.custom_tool_use")]
    AgentCustomToolUse { name: String, input: Map<String, Value> },
    /// What came before was summarised for the model.
    #[serde(rename = "agent.thread_context_compacted")]
    AgentThreadContextCompacted {},
    /// The session works.
    #[serde(rename = "session.status_running")]
    SessionStatusRunning {},
    /// The session waits.
    #[serde(rename = "session.status_idle")]
    SessionStatusIdle { stop_reason: StopReason, stop_details: Option<Value> },
    /// Something failed that is tried again.
    #[serde(rename = "session.status_rescheduled")]
    SessionStatusRescheduled {},
    /// The session is over.
    #[serde(rename = "session.status_terminated")]
    SessionStatusTerminated {},
    /// The session is deleted; only on streams.
    #[serde(rename = "session.deleted")]
    SessionDeleted {},
    /// The session was changed: what changed, as it is now.
    #[serde(rename = "session.updated")]
    SessionUpdated {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        title: Option<Option<String>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metadata: Option<crate::Metadata>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<Box<SessionAgent>>,
    },
    /// Something failed.
    #[serde(rename = "session.error")]
    SessionError { error: SessionFailure },
    /// What the session has used so far.
    #[serde(rename = "session.usage")]
    SessionUsage { usage: Usage, budget: Option<Value> },
    /// The thread works.
    #[serde(rename = "session.thread_status_running")]
    ThreadStatusRunning { session_thread_id: ThreadId, agent_name: String },
    /// The thread waits.
    #[serde(rename = "session.thread_status_idle")]
    ThreadStatusIdle {
        session_thread_id: ThreadId,
        agent_name: String,
        stop_reason: StopReason,
        stop_details: Option<Value>,
    },
    /// The thread is tried again.
    #[serde(rename = "session.thread_status_rescheduled")]
    ThreadStatusRescheduled { session_thread_id: ThreadId, agent_name: String },
    /// The thread is over.
    #[serde(rename = "session.thread_status_terminated")]
    ThreadStatusTerminated { session_thread_id: ThreadId, agent_name: String },
    /// A request to the model begins.
    #[serde(rename = "span.model_request_start")]
    ModelRequestStart {},
    /// A request to the model has ended.
    #[serde(rename = "span.model_request_end")]
    ModelRequestEnd { model_request_start_id: EventId, is_error: bool, model_usage: ModelUsage },
}

/// Whether a tool use may go on, and on what ground.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Permission {
    /// What came of it; none for what needs no permission.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated_permission: Option<Evaluated>,
    /// The policy that said so; none where the tool is not there at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
}

/// What a permission policy came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words say it")]
pub enum Evaluated {
    Allow,
    Ask,
    Deny,
}

/// The policy that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words say it")]
pub enum Evaluation {
    AlwaysAllow,
    AlwaysAsk,
}

/// A person's word about a tool use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words say it")]
pub enum Verdict {
    Allow,
    Deny,
}

/// Why a session waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words say it")]
pub enum StopReason {
    /// The model has ended its turn, or was interrupted.
    EndTurn,
    /// These tool uses have no answer yet.
    RequiresAction { event_ids: Vec<EventId> },
    /// What failed was tried as often as is allowed.
    RetriesExhausted,
    /// The model refuses.
    Refusal,
}

/// What failed in a session. `type` is one of the contract's, such as `model_overloaded_error` or
/// `mcp_connection_failed_error`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionFailure {
    /// The kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// One sentence that names the thing and the way out.
    pub message: String,
    /// Whether it is tried again.
    pub retry_status: RetryStatus,
    /// More of it, such as `mcp_server_name` and `hop`.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// Whether what failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the words say it")]
pub enum RetryStatus {
    Retrying,
    Exhausted,
    Terminal,
}

/// What one request to a model has used, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are those of the Messages API")]
pub struct ModelUsage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_creation_input_tokens: u64,
    pub cache_read_input_tokens: u64,
}

impl EventBody {
    /// The `type` on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::UserMessage { .. } => "user.message",
            Self::UserInterrupt { .. } => "user.interrupt",
            Self::UserToolConfirmation { .. } => "user.tool_confirmation",
            Self::UserCustomToolResult { .. } => "user.custom_tool_result",
            Self::UserToolResult { .. } => "user.tool_result",
            Self::SystemMessage { .. } => "system.message",
            Self::AgentMessage { .. } => "agent.message",
            Self::AgentThinking {} => "agent.thinking",
            Self::AgentToolUse { .. } => "agent.tool_use",
            Self::AgentToolResult { .. } => "agent.tool_result",
            Self::AgentMcpToolUse { .. } => "agent.mcp_tool_use",
            Self::AgentMcpToolResult { .. } => "agent.mcp_tool_result",
            Self::AgentCustomToolUse { .. } => "agent.custom_tool_use",
            Self::AgentThreadContextCompacted {} => "agent.thread_context_compacted",
            Self::SessionStatusRunning {} => "session.status_running",
            Self::SessionStatusIdle { .. } => "session.status_idle",
            Self::SessionStatusRescheduled {} => "session.status_rescheduled",
            Self::SessionStatusTerminated {} => "session.status_terminated",
            Self::SessionDeleted {} => "session.deleted",
            Self::SessionUpdated { .. } => "session.updated",
            Self::SessionError { .. } => "session.error",
            Self::SessionUsage { .. } => "session.usage",
            Self::ThreadStatusRunning { .. } => "session.thread_status_running",
            Self::ThreadStatusIdle { .. } => "session.thread_status_idle",
            Self::ThreadStatusRescheduled { .. } => "session.thread_status_rescheduled",
            Self::ThreadStatusTerminated { .. } => "session.thread_status_terminated",
            Self::ModelRequestStart {} => "span.model_request_start",
            Self::ModelRequestEnd { .. } => "span.model_request_end",
        }
    }

    /// The tool use that this answers, as its result or as a word about it.
    pub fn answers(&self) -> Option<&EventId> {
        match self {
            Self::UserToolConfirmation { tool_use_id, .. }
            | Self::UserToolResult { tool_use_id, .. }
            | Self::AgentToolResult { tool_use_id, .. } => Some(tool_use_id),
            Self::UserCustomToolResult { custom_tool_use_id, .. } => Some(custom_tool_use_id),
            Self::AgentMcpToolResult { mcp_tool_use_id, .. } => Some(mcp_tool_use_id),
            _ => None,
        }
    }
}
