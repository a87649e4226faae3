//! Sessions over a real store, with the scripted model.

mod bounds;
mod duplicates;
mod kills;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use sortie_api::{Event, EventBody, McpServer, Session, SessionAgent, SessionStatus, StopReason, Verdict};
use sortie_ids::{EventId, SessionId, WorkspaceId};
use sortie_runtime::TaskSet;
use sortie_store::{EventQuery, Store};
use tempfile::TempDir;

use super::{NewSession, Refusal, Sessions, Settings};
use crate::live::Live;
use crate::mcp::{McpAnswer, McpContext, McpFailure, McpServers, McpTool};
use crate::model::Models;
use crate::models::Catalog;

/// Longest wait for anything here; the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// A hub's sessions, over a directory that outlives them.
struct Home {
    dir: TempDir,
    servers: Arc<Servers>,
    models: Arc<dyn Models>,
    settings: Settings,
    open: Option<Open>,
    agent: SessionAgent,
    workspace: WorkspaceId,
    environment: sortie_ids::EnvironmentId,
    key: sortie_ids::KeyId,
}

struct Open {
    store: Store,
    sessions: Sessions,
    live: Live,
    tasks: TaskSet,
}

/// MCP servers with the tools `a` and `b`, which remember who was called.
#[derive(Default)]
struct Servers {
    calls: Mutex<HashMap<EventId, usize>>,
}

impl McpServers for Servers {
    fn list<'a>(&'a self, _: &'a McpContext, _: &'a McpServer) -> BoxFuture<'a, Result<Arc<[McpTool]>, McpFailure>> {
        let tool = |name: &str| McpTool { name: name.to_owned(), description: None, input_schema: Map::new() };
        Box::pin(async move { Ok(["a", "b"].map(tool).into()) })
    }

    fn call<'a>(
        &'a self,
        _: &'a McpContext,
        _: &'a McpServer,
        tool: &'a str,
        _: &'a Map<String, Value>,
        tool_use: &'a EventId,
    ) -> BoxFuture<'a, Result<McpAnswer, McpFailure>> {
        Box::pin(async move {
            *self.calls.lock().expect("calls").entry(tool_use.clone()).or_default() += 1;
            tokio::task::yield_now().await;
            Ok(McpAnswer { content: vec![text(&format!("{tool} is done"))], is_error: false })
        })
    }

    fn rest(&self, _: &SessionId) {}
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

fn message(words: impl Into<String>) -> EventBody {
    EventBody::UserMessage { content: vec![text(&words.into())] }
}

/// A message with a script for the model.
fn script(steps: Value) -> EventBody {
    message(json!({ "script": steps }).to_string())
}

fn definition() -> Value {
    let (allow, ask) = (json!({"type": "always_allow"}), json!({"type": "always_ask"}));
    json!({
        "name": "tester", "model": "scripted", "system": "Be brief.",
        "mcp_servers": [{"type": "url", "name": "files", "url": "https://files.example/mcp"}],
        "tools": [
            {"type": "agent_toolset_20260401", "configs": [{"name": "write", "permission_policy": ask}]},
            {"type": "mcp_toolset", "mcp_server_name": "files",
             "default_config": {"permission_policy": allow},
             "configs": [{"name": "b", "permission_policy": ask}]},
            {"type": "custom", "name": "pick", "description": "Pick one.", "input_schema": {"type": "object"}},
        ],
    })
}

impl Home {
    async fn new() -> Self {
        Self::with(Arc::new(Catalog::default()), Settings::default()).await
    }

    async fn with(models: Arc<dyn Models>, settings: Settings) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(dir.path()).await.expect("store");
        let workspace = store.default_workspace().clone();
        let agent: sortie_api::CreateAgent = serde_json::from_value(definition()).expect("definition");
        let agent = store.create_agent(&workspace, agent.define().expect("agent")).await.expect("agent");
        let environment: sortie_api::CreateEnvironment =
            serde_json::from_value(json!({"name": "here"})).expect("environment");
        let environment =
            store.create_environment(&workspace, environment.define().expect("environment")).await.expect("made");
        let key = serde_json::from_value(json!({"kind": "manage", "name": "tester"})).expect("key");
        let key = store.create_key(&workspace, key, &sortie_api::Limits::default()).await.expect("key").key.id;
        store.close().await;
        let (servers, environment) = (Arc::new(Servers::default()), environment.id);
        let agent = crate::agent::resolve(agent);
        let mut home = Self { dir, servers, models, settings, open: None, agent, workspace, environment, key };
        home.open().await;
        home
    }

    /// Begins a process, as it were.
    async fn open(&mut self) {
        let store = Store::open(self.dir.path()).await.expect("store");
        let (tasks, live) = (TaskSet::new(), Live::default());
        let sessions = Sessions::start(
            store.clone(),
            Arc::clone(&self.models),
            Arc::clone(&self.servers) as Arc<dyn McpServers>,
            live.clone(),
            self.settings,
            tasks.clone(),
        );
        self.open = Some(Open { store, sessions, live, tasks });
    }

    /// Ends it at once, whatever it is at.
    async fn kill(&mut self) {
        let open = self.open.take().expect("open");
        open.tasks.abort();
        assert!(tokio::time::timeout(PATIENCE, open.tasks.shutdown(Duration::ZERO)).await.is_ok());
        open.store.close().await;
    }

    fn sessions(&self) -> &Sessions {
        &self.open.as_ref().expect("open").sessions
    }

    fn store(&self) -> &Store {
        &self.open.as_ref().expect("open").store
    }

    async fn create(&self, initial: Vec<EventBody>) -> Session {
        let new = NewSession {
            workspace: self.workspace.clone(),
            organization: self.store().organization_of(&self.workspace).await.expect("organization"),
            key: self.key.clone(),
            agent: self.agent.clone(),
            environment: self.environment.clone(),
            title: None,
            metadata: sortie_api::Metadata::new(),
            vault_ids: Vec::new(),
            initial,
        };
        self.sessions().create(new).await.expect("created")
    }

    async fn post(&self, id: &SessionId, bodies: Vec<EventBody>) -> Result<Vec<Event>, Refusal> {
        self.sessions().post(&self.workspace, id, bodies).await
    }

    async fn session(&self, id: &SessionId) -> Session {
        self.store().session(&self.workspace, id).await.expect("session").session
    }

    async fn events(&self, id: &SessionId) -> Vec<Event> {
        let all = EventQuery {
            kinds: Vec::new(),
            from: None,
            to: None,
            descending: false,
            limit: 10_000,
            bytes: u64::from(u32::MAX),
            place: None,
        };
        let page = self.store().list_events(id, &all).await.expect("events");
        page.lines.iter().map(|line| serde_json::from_str(line).expect("event")).collect()
    }

    /// Waits until it is so; what is true is looked for again and again.
    async fn wait<T>(&self, id: &SessionId, mut found: impl FnMut(&Session, &[Event]) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let (session, events) = (self.session(id).await, self.events(id).await);
                if let Some(found) = found(&session, &events) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("it does not come: {:?}", kinds(&self.events(id).await)),
        }
    }

    async fn wait_for_open(&self, id: &SessionId) -> Vec<EventId> {
        self.wait(id, |session, events| {
            let open = open_uses(events);
            (session.status == SessionStatus::Idle && !open.is_empty()).then_some(open)
        })
        .await
    }

    /// Answers whatever waits for a client, until the turn is over.
    async fn serve(&self, id: &SessionId) {
        loop {
            let open = self
                .wait(id, |session, events| match reason(events) {
                    _ if session.status != SessionStatus::Idle => None,
                    Some(StopReason::RequiresAction { event_ids }) => Some(event_ids),
                    Some(_) => Some(Vec::new()),
                    None => None,
                })
                .await;
            let Some(first) = open.first() else { return };
            let events = self.events(id).await;
            let word = |event: &&Event| {
                matches!(event.body, EventBody::UserToolConfirmation { .. }) && event.body.answers() == Some(first)
            };
            let used = events.iter().find(|event| event.id == *first).expect("the use is listed");
            let asks = |permission: &sortie_api::Permission| {
                permission.evaluated_permission == Some(sortie_api::Evaluated::Ask)
                    && !events.iter().any(|event| word(&event))
            };
            let body = match &used.body {
                EventBody::AgentToolUse { permission, .. } | EventBody::AgentMcpToolUse { permission, .. }
                    if asks(permission) =>
                {
                    let result = Verdict::Allow;
                    EventBody::UserToolConfirmation { tool_use_id: first.clone(), result, deny_message: None }
                }
                _ => result_of(used, "served"),
            };
            // Another try of the same may have been taken already.
            let posted = self.post(id, vec![body]).await;
            assert!(matches!(posted, Ok(_) | Err(Refusal::Store(_))), "{posted:?}");
        }
    }
}

/// A client's result for a use of a tool.
fn result_of(used: &Event, words: &str) -> EventBody {
    let (content, is_error) = (Some(vec![text(words)]), None);
    match used.body {
        EventBody::AgentCustomToolUse { .. } => {
            EventBody::UserCustomToolResult { custom_tool_use_id: used.id.clone(), content, is_error }
        }
        _ => EventBody::UserToolResult { tool_use_id: used.id.clone(), content, is_error },
    }
}

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events.iter().map(|event| event.body.kind()).collect()
}

fn reason(events: &[Event]) -> Option<StopReason> {
    events.iter().rev().find_map(|event| match &event.body {
        EventBody::SessionStatusIdle { stop_reason, .. } => Some(stop_reason.clone()),
        _ => None,
    })
}

fn is_use(body: &EventBody) -> bool {
    matches!(
        body,
        EventBody::AgentToolUse { .. } | EventBody::AgentMcpToolUse { .. } | EventBody::AgentCustomToolUse { .. }
    )
}

/// How many answers a use of a tool has.
fn answers(events: &[Event], id: &EventId) -> usize {
    let word = |body: &EventBody| matches!(body, EventBody::UserToolConfirmation { result: Verdict::Allow, .. });
    events.iter().filter(|event| event.body.answers() == Some(id) && !word(&event.body)).count()
}

fn open_uses(events: &[Event]) -> Vec<EventId> {
    let uses = events.iter().filter(|event| is_use(&event.body)).map(|event| &event.id);
    uses.filter(|id| answers(events, id) == 0).cloned().collect()
}

fn said(events: &[Event]) -> Vec<String> {
    let texts = events.iter().filter_map(|event| match &event.body {
        EventBody::AgentMessage { content } => content.first()?["text"].as_str().map(str::to_owned),
        _ => None,
    });
    texts.collect()
}
