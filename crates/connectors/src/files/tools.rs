//! The MCP side of the connector: three tools, what they say of themselves, and how a call runs.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rmcp::handler::server::tool::{schema_for_input, schema_for_output};
use rmcp::model::{
    CacheScope, CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, JsonObject,
    ListToolsResult, PaginatedRequestParams, ServerCapabilities, ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tracing::{debug, error};

use super::FilesLimits;
use super::list::{ListArguments, Listing, list};
use super::read::{ReadArguments, Reading, read};
use super::refusal::Refusal;
use super::root::Root;
use super::search::{Found, SearchArguments, search};
use super::work::{StopOnDrop, Work};

/// The name under which the server introduces itself.
pub(crate) const NAME: &str = "sortie-files";
/// The tools, in the order in which they are listed.
pub(crate) const TOOLS: &[&str] = &["list", "read", "search"];

/// How long a client may keep the list of tools: it changes with the program only.
const TOOLS_TTL_MS: u64 = 3_600_000;

const INSTRUCTIONS: &str = "Read-only access to the text files of one directory. Paths are relative to it, with `/` \
    between names. Begin with `list`, or with `search` if you know a word; then `read`. Names that begin with a dot, \
    key and credential files, and links that leave the directory are not served.";

/// One client's server. Cheap to clone: all share the directory and the slots.
#[derive(Clone)]
pub(crate) struct FilesServer {
    root: Root,
    limits: Arc<FilesLimits>,
    slots: Arc<Semaphore>,
    tools: Arc<[Tool]>,
}

impl FilesServer {
    pub(crate) fn new(root: Root, limits: FilesLimits) -> Self {
        let slots = Arc::new(Semaphore::new(limits.concurrent_calls.min(Semaphore::MAX_PERMITS)));
        Self { root, limits: Arc::new(limits), slots, tools: tools().into() }
    }

    /// Runs a tool off the async threads and puts what it finds into words.
    async fn run<A, T>(
        &self,
        arguments: JsonObject,
        tool: fn(&Root, &FilesLimits, Work, &A) -> Result<T, Refusal>,
        text: fn(&T) -> Vec<String>,
    ) -> Result<CallToolResult, Refusal>
    where
        A: DeserializeOwned + Send + 'static,
        T: Serialize + Send + 'static,
    {
        let arguments: A = serde_json::from_value(serde_json::Value::Object(arguments))
            .map_err(|error| Refusal::Arguments(error.to_string()))?;
        let slot = tokio::time::timeout(self.limits.call_time, Arc::clone(&self.slots).acquire_owned())
            .await
            .map_err(|_| Refusal::Busy)?
            .map_err(|_| Refusal::Broken)?;
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let work = Work::new(self.limits.call_time, Arc::clone(&stop.0), self.limits.scan_names);
        let (root, limits) = (self.root.clone(), Arc::clone(&self.limits));
        let worked = tokio::task::spawn_blocking(move || {
            // The slot is free when the thread is, not when the caller stops waiting.
            let _slot = slot;
            tool(&root, &limits, work, &arguments)
        });
        let found = worked.await.map_err(|failure| {
            error!(%failure, "a files tool failed");
            Refusal::Broken
        })??;
        let content = text(&found).into_iter().map(ContentBlock::text).collect();
        let mut result = CallToolResult::success(content);
        result.structured_content = Some(serde_json::to_value(&found).map_err(|failure| {
            error!(%failure, "a files tool's answer is no JSON");
            Refusal::Broken
        })?);
        Ok(result)
    }
}

impl ServerHandler for FilesServer {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new(NAME, env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools.iter().find(|tool| tool.name == name).cloned()
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let tools = ListToolsResult::with_all_items(self.tools.to_vec());
        Ok(tools.with_ttl_ms(TOOLS_TTL_MS).with_cache_scope(CacheScope::Public))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let call = async {
            Some(match request.name.as_ref() {
                "list" => self.run::<ListArguments, Listing>(arguments, list, |found| vec![found.text()]).await,
                "read" => self.run::<ReadArguments, Reading>(arguments, read, read_text).await,
                "search" => self.run::<SearchArguments, Found>(arguments, search, |found| vec![found.text()]).await,
                _ => return None,
            })
        };
        let outcome = tokio::select! {
            outcome = call => outcome,
            () = context.ct.cancelled() => Some(Err(Refusal::Cancelled)),
        };
        let Some(outcome) = outcome else {
            let message = format!("there is no tool with this name: the tools are {}", TOOLS.join(", "));
            return Err(ErrorData::invalid_params(message, None));
        };
        Ok(outcome
            .unwrap_or_else(|refusal| {
                debug!(tool = %request.name, %refusal, "a files tool call was refused");
                CallToolResult::error(vec![ContentBlock::text(refusal.to_string())])
            })
            .into())
    }
}

/// The file's text as it is, and apart from it what is to be said of it.
fn read_text(reading: &Reading) -> Vec<String> {
    let notes = reading.notes.iter().map(|note| format!("({note})"));
    std::iter::once(reading.text.clone()).chain(notes).collect()
}

fn tools() -> Vec<Tool> {
    vec![
        tool::<ListArguments, Listing>(
            "list",
            "List files",
            "Lists the files and directories below a directory: path, kind, size and time of the last change. \
             Use it to find out what there is; `depth` shows several levels at once.",
        ),
        tool::<ReadArguments, Reading>(
            "read",
            "Read a text file",
            "Reads a UTF-8 text file, or lines of it from `offset_line` on. A long file comes in parts: the answer \
             names the line to go on with.",
        ),
        tool::<SearchArguments, Found>(
            "search",
            "Search in files",
            "Finds the lines that contain a text, or match a regular expression, in all text files below a \
             directory. Each result is `path:line: text`. Upper and lower case are the same unless `case_sensitive`.",
        ),
    ]
}

fn tool<A: JsonSchema + 'static, T: JsonSchema + 'static>(
    name: &'static str,
    title: &'static str,
    description: &'static str,
) -> Tool {
    let input = schema_for_input::<A>().expect("arguments are a struct, so their schema is an object");
    let annotations =
        ToolAnnotations::with_title(title).read_only(true).destructive(false).idempotent(true).open_world(false);
    Tool::new(name, description, input)
        .with_title(title)
        .with_raw_output_schema(schema_for_output::<T>())
        .with_annotations(annotations)
}
