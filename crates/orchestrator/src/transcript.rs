//! What a model is told of a session: entries that are only ever appended, each a JSON text of its own in the store.
//!
//! Requests are made of them by `prompt.rs`. The rules that it may rely on:
//!
//! - An [`Entry::Assistant`] with uses of tools is followed by one [`Entry::ToolResult`] for each of them, in the order in
//!   which they were answered, before any other entry. (The newest one may lack some, but no request is made then.)
//! - The last [`Entry::Summary`] replaces every entry before `upto`; those from `upto` on are still told behind it.
//! - Texts are not empty; an assistant's content is not empty; two entries of people may follow each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sortie_api::ContentBlock;
use sortie_ids::EventId;

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Entry {
    /// A person's message.
    User {
        /// Its blocks, as they were sent.
        content: Vec<ContentBlock>,
    },
    /// A turn in the role of the system, behind the message or the result that it came with.
    System {
        /// Its blocks: text only.
        content: Vec<ContentBlock>,
    },
    /// What the model answered.
    Assistant {
        /// The blocks as they came, in their order: `text`, `thinking`, `tool_use` and others. Every `tool_use` has an `id`
        /// that is unique within the session's entries.
        content: Vec<Value>,
        /// The events that its uses of tools became, by the `id` of the block.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        uses: BTreeMap<String, EventId>,
    },
    /// The answer to one use of a tool.
    ToolResult {
        /// The `id` of the `tool_use` block.
        tool_use_id: String,
        /// Its blocks; not empty.
        content: Vec<ContentBlock>,
        /// Whether the use failed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        is_error: bool,
    },
    /// What stands for the entries before it.
    Summary {
        /// The model's own words.
        text: String,
        /// The number of entries, from the first of the session, that it stands for.
        upto: u64,
    },
}

/// What a tool is that a model may use. Models know tools by one flat name each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToolName {
    /// A tool of the sandbox.
    Sandbox(String),
    /// A tool of one of the agent's MCP servers.
    Mcp {
        /// The agent's name for the server.
        server: String,
        /// The tool's name at the server.
        tool: String,
    },
    /// A tool that the client runs.
    Custom(String),
}
