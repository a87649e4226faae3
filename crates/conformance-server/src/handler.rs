//! What the server says of itself, and who answers which request.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderValue;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CancelTaskParams, CompleteRequestParams, CompleteResult, CompletionInfo,
    GetPromptRequestParams, GetPromptResponse, GetTaskParams, GetTaskResult, Implementation, ListPromptsResult,
    ListResourceTemplatesResult, ListResourcesResult, ListToolsResult, LoggingLevel, PaginatedRequestParams,
    ProtocolVersion, ReadResourceRequestParams, ReadResourceResponse, RequestStateCodec, ServerCapabilities,
    ServerConfig, SetLevelRequestParams, SubscribeRequestParams, SubscriptionFilter, Tool, UnsubscribeRequestParams,
    UpdateTaskParams,
};
use rmcp::service::{RequestContext, SubscriptionContext, SubscriptionSendError};
use rmcp::task_manager::TaskManager;
use rmcp::transport::streamable_http_server::session::local::{LocalSessionHandle, LocalSessionManager};
use rmcp::{ErrorData, RoleServer, ServerHandler};
use tokio::sync::broadcast;

use crate::SESSION;
use crate::ask::{Outcome, Round};
use crate::content;
use crate::tasks::{self, text};
use crate::tools::TOOLS;

/// How much a slow listener may be behind; it misses what is older.
const BEHIND: usize = 16;

/// A list that may change.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Tools,
    Prompts,
}

/// What all sessions, and all requests without one, have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    sessions: Arc<LocalSessionManager>,
    tasks: Tasks,
    changes: broadcast::Sender<Change>,
    returns: broadcast::Sender<HeaderValue>,
    seals: RequestStateCodec,
}

/// What is heard of clients that come back.
#[derive(Debug)]
pub(crate) struct Returns {
    all: broadcast::Receiver<HeaderValue>,
    id: HeaderValue,
}

impl Returns {
    /// Waits until the client of this session does.
    pub(crate) async fn of_this_session(mut self) {
        loop {
            match self.all.recv().await {
                Ok(id) if id == self.id => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                _ => {}
            }
        }
    }
}

/// The tasks of all clients.
struct Tasks(TaskManager);

/// One session, or one request of the era without sessions.
#[derive(Clone, Debug)]
pub(crate) struct Handler {
    shared: Arc<Shared>,
    level: Arc<Mutex<LoggingLevel>>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Tasks")
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

impl Shared {
    pub(crate) fn new(sessions: Arc<LocalSessionManager>) -> Self {
        let tasks = Tasks(TaskManager::new());
        let seals = RequestStateCodec::try_new(*b"the key of a test server is no secret");
        let seals = seals.expect("the key is long enough");
        Self { sessions, tasks, changes: broadcast::channel(BEHIND).0, returns: broadcast::channel(BEHIND).0, seals }
    }

    /// The client of this session has a stream again that was closed on it.
    pub(crate) fn came_back(&self, session: HeaderValue) {
        // Nobody may be waiting for it.
        let _waiting = self.returns.send(session);
    }
}

impl Handler {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, level: Arc::new(Mutex::new(LoggingLevel::Debug)) }
    }

    /// Tells all listeners; returns how many there are.
    pub(crate) fn announce(&self, change: Change) -> usize {
        // Without a listener it is an error, which is none of ours.
        self.shared.changes.send(change).unwrap_or_default()
    }

    /// Whether this client wants lines of this level: by a setting of its session, or by its request.
    pub(crate) fn wants_logs(&self, context: &RequestContext<RoleServer>, level: LoggingLevel) -> bool {
        let least = if modern(context) {
            context.meta.log_level()
        } else {
            Some(*self.level.lock().unwrap_or_else(PoisonError::into_inner))
        };
        least.is_some_and(|least| least as u8 <= level as u8)
    }

    /// The session in which this request came, if any, and who comes back from now on.
    pub(crate) async fn session(&self, context: &RequestContext<RoleServer>) -> Option<(LocalSessionHandle, Returns)> {
        let id = context.extensions.get::<http::request::Parts>()?.headers.get(SESSION)?.clone();
        let all = self.shared.returns.subscribe();
        let session = self.shared.sessions.sessions.read().await.get(id.to_str().ok()?).cloned()?;
        Some((session, Returns { all, id }))
    }

    fn round<'r>(
        &'r self,
        name: &'r str,
        responses: Option<rmcp::model::InputResponses>,
        state: Option<String>,
        context: &RequestContext<RoleServer>,
    ) -> Round<'r> {
        let capabilities = context.client_capabilities().unwrap_or_default();
        Round { name, responses: responses.unwrap_or_default(), state, capabilities, seals: &self.shared.seals }
    }
}

fn modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version.as_str() >= ProtocolVersion::V_2026_07_28.as_str())
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_completions()
            .enable_logging()
            .enable_prompts()
            .enable_prompts_list_changed()
            .enable_resources()
            .enable_resources_subscribe()
            .enable_tools()
            .enable_tool_list_changed()
            .enable_tasks()
            .build();
        ServerConfig::new(capabilities)
            .with_server_info(Implementation::new("mcp-conformance", env!("CARGO_PKG_VERSION")))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        TOOLS.iter().find(|tool| tool.name == name).cloned()
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(TOOLS.clone()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let (name, arguments) = (request.name.as_ref(), request.arguments.unwrap_or_default());
        let round = self.round(name, request.input_responses, request.request_state, &context);
        let tasks = &self.shared.tasks.0;
        if name == "test_tool_with_task" {
            return match round.text_of("user_name", "What is your name?", "name")? {
                Outcome::Ask(ask) => Ok(ask.into()),
                Outcome::Text(name) => {
                    Ok(tasks::start(tasks, |_| Box::pin(async move { Ok(text(format!("Hello, {name}!"))) })))
                }
            };
        }
        match round.tool() {
            Some(Ok(Outcome::Text(said))) => return Ok(text(said).into()),
            Some(Ok(Outcome::Ask(ask))) => return Ok(ask.into()),
            Some(Err(error)) => return Err(error),
            None => {}
        }
        if let Some(answer) = tasks::call(tasks, name, &arguments, &round.capabilities).await {
            return answer;
        }
        Ok(self.one_round(name, &arguments, &context).await?.into())
    }

    async fn list_prompts(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(content::prompts()))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name == "test_input_required_result_prompt" {
            let round = self.round(&request.name, request.input_responses, request.request_state, &context);
            return Ok(match round.text_of("user_context", "What context should the prompt use?", "context")? {
                Outcome::Ask(ask) => ask.into(),
                Outcome::Text(context) => content::prompt_of(&format!("Think of {context}.")).into(),
            });
        }
        Ok(content::prompt(&request.name, &request.arguments.unwrap_or_default())?.into())
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let words = ["paris", "park", "party"].map(str::to_owned).into_iter();
        let fitting = words.filter(|word| word.starts_with(&request.argument.value)).collect();
        let fitting = CompletionInfo::with_all_values(fitting);
        Ok(CompleteResult::new(fitting.map_err(|error| ErrorData::internal_error(error, None))?))
    }

    async fn set_level(
        &self,
        request: SetLevelRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        if modern(&context) {
            return Err(ErrorData::method_not_found::<rmcp::model::SetLevelRequestMethod>());
        }
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = request.level;
        Ok(())
    }

    async fn list_resources(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(content::resources()))
    }

    async fn list_resource_templates(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListResourceTemplatesResult, ErrorData> {
        Ok(ListResourceTemplatesResult::with_all_items(content::templates()))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        Ok(content::read(&request.uri)?.into())
    }

    // No resource ever changes, so that nothing has to be remembered of who watches which.
    async fn subscribe(
        &self,
        request: SubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        content::read(&request.uri).map(drop)
    }

    async fn unsubscribe(
        &self,
        _request: UnsubscribeRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        Ok(())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.supported_by(&self.get_info().capabilities))
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let mut changes = self.shared.changes.subscribe();
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = context.cancelled() => return Ok(()),
            };
            let told = match change {
                Ok(Change::Tools) => context.sink().notify_tool_list_changed().await,
                Ok(Change::Prompts) => context.sink().notify_prompt_list_changed().await,
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            };
            match told {
                Ok(()) | Err(SubscriptionSendError::NotificationNotAccepted(_)) => {}
                Err(_) => return Ok(()),
            }
        }
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        self.shared.tasks.0.get_task(&request.task_id).map(GetTaskResult::new)
    }

    async fn update_task(
        &self,
        request: UpdateTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.shared.tasks.0.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(
        &self,
        request: CancelTaskParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<(), ErrorData> {
        self.shared.tasks.0.cancel_task(&request.task_id)
    }
}
