//! What a model is told of its tools, and which of them it means by a name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use sortie_api::{AgentTool, NamedToolConfig, PermissionPolicy, SessionAgent, ToolConfig};
use sortie_ids::Digest;

use crate::mcp::McpTool;
use crate::transcript::ToolName;

/// What begins the names of tools of MCP servers. No tool of a client may begin so.
const MCP: &str = "mcp__";
/// Longest name of an MCP server's tool at the model, in bytes: what every endpoint of this form takes.
const MAX_NAME: usize = 64;
/// In names that cannot be whole: bytes of the server's name, and hexadecimal digits that tell them apart.
const SERVER_PART: usize = 16;
const DIGEST_PART: usize = 10;

/// The tools of a session's agent, as its model is told of them. The same agent and listings give the same tools in the
/// same order, so that what the model's endpoint has cached of them stays good.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Toolbox {
    tools: Vec<Value>,
    known: HashMap<String, Tool>,
}

/// A tool that a model may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Which.
    pub name: ToolName,
    /// What a use of it needs; none for tools of clients, which policies do not concern.
    pub policy: Option<PermissionPolicy>,
}

impl Toolbox {
    /// The tools of an agent, with those of the MCP servers that could be asked, by the agent's names for these.
    pub fn new(agent: &SessionAgent, servers: &BTreeMap<String, Arc<[McpTool]>>) -> Self {
        let mut toolbox = Self::default();
        for tool in &agent.tools {
            match tool {
                AgentTool::Toolset { default_config, configs } => toolbox.add_sandbox(default_config, configs),
                AgentTool::Mcp { mcp_server_name, default_config, configs } => {
                    let listed = servers.get(mcp_server_name).map(|tools| &**tools).unwrap_or_default();
                    for tool in listed {
                        toolbox.add_mcp(mcp_server_name, tool, config(&tool.name, default_config, configs));
                    }
                }
                AgentTool::Custom { name, description, input_schema } => {
                    let told = json!({"name": name, "description": description, "input_schema": input_schema});
                    toolbox.add(told, Tool { name: ToolName::Custom(name.clone()), policy: None });
                }
            }
        }
        toolbox
    }

    /// In the form of `tools` of the Messages API.
    pub fn tools(&self) -> &[Value] {
        &self.tools
    }

    /// The tool that the model calls by this name. None for what it was not told of.
    pub fn find(&self, at_model: &str) -> Option<&Tool> {
        self.known.get(at_model)
    }

    /// What kind of tool a model means by a name that it was not told, as far as the name says it.
    pub fn guess(at_model: &str) -> ToolName {
        match at_model.strip_prefix(MCP).and_then(|rest| rest.split_once("__")) {
            Some((server, tool)) => ToolName::Mcp { server: server.to_owned(), tool: tool.to_owned() },
            None => ToolName::Sandbox(at_model.to_owned()),
        }
    }

    fn add_sandbox(&mut self, default: &ToolConfig, configs: &[NamedToolConfig]) {
        for (name, description, input_schema) in sandbox() {
            let config = config(name, default, configs);
            if config.enabled {
                let told = json!({"name": name, "description": description, "input_schema": input_schema});
                let policy = Some(config.permission_policy);
                self.add(told, Tool { name: ToolName::Sandbox(name.to_owned()), policy });
            }
        }
    }

    fn add_mcp(&mut self, server: &str, tool: &McpTool, config: &ToolConfig) {
        if !config.enabled {
            return;
        }
        let mut told = Map::new();
        told.insert("name".to_owned(), mcp_name(server, &tool.name).into());
        if let Some(description) = tool.description.as_ref().filter(|text| !text.is_empty()) {
            told.insert("description".to_owned(), description.as_str().into());
        }
        told.insert("input_schema".to_owned(), Value::Object(tool.input_schema.clone()));
        let name = ToolName::Mcp { server: server.to_owned(), tool: tool.name.clone() };
        self.add(Value::Object(told), Tool { name, policy: Some(config.permission_policy) });
    }

    /// The first of a name counts: a server that lists one twice gains nothing by it.
    fn add(&mut self, told: Value, tool: Tool) {
        let Some(name) = told.get("name").and_then(Value::as_str) else { return };
        if !self.known.contains_key(name) {
            self.known.insert(name.to_owned(), tool);
            self.tools.push(told);
        }
    }
}

fn config<'a>(name: &str, default: &'a ToolConfig, configs: &'a [NamedToolConfig]) -> &'a ToolConfig {
    configs.iter().find(|config| config.name == name).map_or(default, |config| &config.config)
}

/// The name of an MCP server's tool at the model: `mcp__SERVER__TOOL` where that has at most 64 bytes, all of them ASCII
/// letters, digits, `_` and `-`, and says which part is which. Else a digest of both names is in the server's place, behind
/// the beginning of its name. Only the owner of an agent names servers, so no server can take the name of another's tool.
pub fn mcp_name(server: &str, tool: &str) -> String {
    let whole = format!("{MCP}{server}__{tool}");
    let told_apart = !server.contains("__") && !server.ends_with('_');
    if whole.len() <= MAX_NAME && whole.chars().all(allowed) && told_apart && !server.is_empty() && !tool.is_empty() {
        return whole;
    }
    let digest = Digest::of(format!("{}:{server}{tool}", server.len()).as_bytes()).to_string();
    let digest: String = digest.chars().take(DIGEST_PART).collect();
    // Without `_`, so that the first `__` behind it is the one that ends it.
    let server: String =
        server.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(SERVER_PART).collect();
    let name = format!("{MCP}{server}-{digest}__");
    let room = MAX_NAME.saturating_sub(name.len());
    let tool: String = tool.chars().map(|c| if allowed(c) { c } else { '_' }).take(room).collect();
    name + &tool
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// The tools of the sandbox: name, what the model is told, and the schema of the input.
fn sandbox() -> [(&'static str, &'static str, Value); 6] {
    let text = |description: &str| json!({"type": "string", "description": description});
    let object = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false});
    let path = "A path in the working directory: relative to it, or absolute.";
    [
        (
            "bash",
            "Runs a command in a bash shell that stays open for the whole session: the working directory, variables and \
             background jobs of earlier commands are still there. Returns what the command writes to standard output and \
             standard error. Use it for whatever the other tools do not do; prefer `read`, `write`, `edit`, `glob` and \
             `grep` for files. Commands get no keyboard: use flags that keep programs from asking. A command that runs too \
             long is ended, and the shell with it; start long-running ones in the background with their output in a file.",
            object(
                json!({
                    "command": text("The command. Needed unless `restart` is true."),
                    "restart": {"type": "boolean", "description": "True to end the shell and open a new one instead of \
                                running a command, for instance when it no longer answers."},
                    "timeout_ms": {"type": "integer", "minimum": 1, "description": "How long the command may take, in \
                                   milliseconds. Left out, the sandbox's own limit holds."},
                }),
                &[],
            ),
        ),
        (
            "read",
            "Reads a file and returns its text. Images and PDF files are returned as such. For a large file, ask for a \
             range of lines.",
            object(
                json!({
                    "file_path": text(path),
                    "view_range": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2,
                                   "description": "First and last line to return, counted from 1; a last line of 0 or -1 \
                                   is the end of the file. Left out, the whole file is returned."},
                }),
                &["file_path"],
            ),
        ),
        (
            "write",
            "Writes a whole file. One that is there is replaced; directories that are missing are made. To change a part \
             of a file, use `edit`.",
            object(
                json!({"file_path": text(path), "content": text("The whole content of the file.")}),
                &["file_path", "content"],
            ),
        ),
        (
            "edit",
            "Replaces a text in a file by another. The old text must be there exactly as given, with all its white space, \
             and only once: give enough of what is around it, or set `replace_all`. Read the file first.",
            object(
                json!({
                    "file_path": text(path),
                    "old_string": text("The text to be replaced."),
                    "new_string": text("The text to put in its place; empty to delete."),
                    "replace_all": {"type": "boolean", "description": "True to replace every occurrence."},
                }),
                &["file_path", "old_string", "new_string"],
            ),
        ),
        (
            "glob",
            "Finds files by a pattern of their paths, such as `**/*.rs` or `src/**/test_*.py`. Returns paths, the most \
             recently changed first.",
            object(
                json!({
                    "pattern": text("The pattern; `**` stands for any number of directories."),
                    "path": text("The directory to look in. Left out, the working directory."),
                }),
                &["pattern"],
            ),
        ),
        (
            "grep",
            "Searches the contents of files for a regular expression. Returns the lines that match, with file and number.",
            object(
                json!({
                    "pattern": text("The regular expression."),
                    "path": text("The file or directory to search. Left out, the working directory."),
                }),
                &["pattern"],
            ),
        ),
    ]
}
