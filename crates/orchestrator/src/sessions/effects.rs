//! What a session has done outside.

use serde_json::{Map, Value};
use sortie_api::McpServer;
use sortie_ids::{EventId, SessionId};
use sortie_store::StoreError;
use std::sync::Arc;
use tokio::sync::mpsc;

use super::actor::{Actor, Core, Done};
use crate::live::{Frame, Live};
use crate::machine::{Ask, Asked, Calling, Effect, Input};
use crate::mcp::McpFailure;
use crate::model::{Delta, ModelAnswer, ModelError, ModelRequest, Models, REQUEST_FAILED, Source};
use crate::prompt::{self, Toolbox};
use crate::transcript::Entry;

impl Actor {
    /// Sets an effect going.
    ///
    /// # Errors
    /// The transcript cannot be read.
    pub(super) async fn begin(&mut self, effect: Effect) -> Result<(), StoreError> {
        match effect {
            Effect::Ask(ask) => self.ask(ask).await?,
            Effect::List(servers) => servers.into_iter().for_each(|server| self.list(server)),
            Effect::Call(call) => self.call(call).await?,
            Effect::Cancel | Effect::Wait(_) => {}
        }
        Ok(())
    }

    async fn ask(&mut self, ask: Ask) -> Result<(), StoreError> {
        self.read_transcript().await?;
        let Some(core) = &mut self.core else { return Ok(()) };
        let toolbox = core.toolbox();
        let models = Arc::clone(&self.inner.models);
        let request = match request(core, &toolbox, ask.what, &*models) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(session = %self.id, %error, "a request to a model could not be made");
                self.running.push(Box::pin(async { Done::Input(Input::Unanswered(*error)) }));
                return Ok(());
            }
        };
        let preview = Preview::new(self.inner.live.clone(), self.id.clone(), ask);
        self.running.push(Box::pin(async move {
            match preview.shown(&*models, &request).await {
                Ok(answer) => Done::Answered(answer, toolbox),
                Err(error) => Done::Input(Input::Unanswered(error)),
            }
        }));
        Ok(())
    }

    fn list(&mut self, server: McpServer) {
        let Some(core) = &self.core else { return };
        let (servers, context) = (Arc::clone(&self.inner.servers), core.context());
        self.running.push(Box::pin(async move {
            let listed = servers.list(&context, &server).await;
            Done::Tools(server.name, listed)
        }));
    }

    async fn call(&mut self, call: Calling) -> Result<(), StoreError> {
        self.read_transcript().await?;
        let Some(core) = &self.core else { return Ok(()) };
        let (servers, context) = (Arc::clone(&self.inner.servers), core.context());
        let input = input_of(core.transcript.as_deref().unwrap_or_default(), &call.block);
        let server = core.machine.session().agent.mcp_servers.iter().find(|server| server.name == call.server).cloned();
        self.running.push(Box::pin(async move {
            let result = match server {
                Some(server) => servers.call(&context, &server, &call.tool, &input, &call.tool_use).await,
                None => Err(gone(&call.server)),
            };
            Done::Input(Input::Called { tool_use: call.tool_use, result })
        }));
        Ok(())
    }

    async fn read_transcript(&mut self) -> Result<(), StoreError> {
        let Some(core) = self.core.as_mut().filter(|core| core.transcript.is_none()) else { return Ok(()) };
        let lines = self.inner.store.transcript(&self.id).await?;
        core.transcript_bytes = lines.iter().map(String::len).sum();
        let entries =
            lines.iter().map(|line| serde_json::from_str(line).map_err(|_| StoreError::Corrupt("transcript")));
        core.transcript = Some(entries.collect::<Result<_, _>>()?);
        Ok(())
    }
}

impl Core {
    fn toolbox(&mut self) -> Arc<Toolbox> {
        let toolbox = self.toolbox.take();
        let toolbox = toolbox.unwrap_or_else(|| Arc::new(Toolbox::new(&self.machine.session().agent, &self.tools)));
        self.toolbox = Some(Arc::clone(&toolbox));
        toolbox
    }
}

fn request(core: &Core, toolbox: &Toolbox, what: Asked, models: &dyn Models) -> Result<ModelRequest, Box<ModelError>> {
    let session = core.machine.session();
    let entries = core.transcript.as_deref().unwrap_or_default();
    let told = match what {
        Asked::Answer => entries,
        Asked::Summary { upto, half } => {
            let entries = entries.get(..usize::try_from(upto).unwrap_or(usize::MAX)).unwrap_or(entries);
            if half { newer_half(entries) } else { entries }
        }
    };
    let messages =
        prompt::messages(told).map_err(|error| Box::new(ModelError::new(REQUEST_FAILED, error.to_string())))?;
    let source = Source {
        session: session.id.clone(),
        agent: session.agent.id.clone(),
        environment: session.environment_id.clone(),
    };
    let request = prompt::request(&session.agent, toolbox, messages, &models.limits(&session.agent.model), source);
    Ok(if what == Asked::Answer { request } else { prompt::for_summary(request) })
}

/// The newer half of what is told by these entries, from the beginning of an exchange on.
fn newer_half(entries: &[Entry]) -> &[Entry] {
    let summary = entries.iter().rposition(|entry| matches!(entry, Entry::Summary { .. }));
    let first = summary.map_or(0, |at| at + 1);
    let middle = first + (entries.len() - first) / 2;
    let begins = |entry: &Entry| matches!(entry, Entry::User { .. } | Entry::Assistant { .. });
    let from = (middle..entries.len()).find(|at| entries.get(*at).is_some_and(begins)).unwrap_or(middle);
    entries.get(from..).unwrap_or_default()
}

/// What the model has given a tool, in the block with this id.
fn input_of(entries: &[Entry], block: &str) -> Map<String, Value> {
    let mut blocks = entries.iter().rev().filter_map(|entry| match entry {
        Entry::Assistant { content, .. } => Some(content.iter()),
        _ => None,
    });
    let found =
        blocks.find_map(|mut blocks| blocks.find(|known| known.get("id").and_then(Value::as_str) == Some(block)));
    found.and_then(|block| block.get("input")?.as_object().cloned()).unwrap_or_default()
}

fn gone(server: &str) -> McpFailure {
    McpFailure {
        kind: "mcp_connection_failed_error",
        message: format!("the session has no MCP server `{server}` any more: its agent was changed"),
        hop: None,
        details: Map::new(),
    }
}

/// An answer on its way, shown to whoever watches.
struct Preview {
    live: Live,
    session: SessionId,
    /// The ids of the message and the thinking; none for what is not shown.
    shown: Option<(EventId, EventId)>,
    message_begun: bool,
    thinking_begun: bool,
}

impl Preview {
    fn new(live: Live, session: SessionId, ask: Ask) -> Self {
        let shown = (ask.what == Asked::Answer).then_some((ask.message, ask.thinking));
        Self { live, session, shown, message_begun: false, thinking_begun: false }
    }

    /// Asks the model, and shows what comes of it.
    async fn shown(mut self, models: &dyn Models, request: &ModelRequest) -> Result<ModelAnswer, ModelError> {
        let (deltas, mut coming) = mpsc::unbounded_channel();
        let mut asking = models.ask(request, deltas);
        loop {
            tokio::select! {
                biased;
                Some(delta) = coming.recv() => self.show(delta),
                answer = &mut asking => {
                    // An answer may come at once with its last pieces.
                    while let Ok(delta) = coming.try_recv() {
                        self.show(delta);
                    }
                    return answer;
                }
            }
        }
    }

    fn show(&mut self, delta: Delta) {
        let Some((message, thinking)) = &self.shown else { return };
        match delta {
            Delta::Thinking => {
                if !std::mem::replace(&mut self.thinking_begun, true) {
                    self.live.publish(&self.session, Frame::Start { id: thinking.clone(), thinking: true });
                }
            }
            Delta::Text { index, text } => {
                if !std::mem::replace(&mut self.message_begun, true) {
                    self.live.publish(&self.session, Frame::Start { id: message.clone(), thinking: false });
                }
                self.live.publish(&self.session, Frame::Delta { id: message.clone(), index, text });
            }
        }
    }
}
