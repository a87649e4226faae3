//! The MCP servers of sessions: reached through tunnels inside the hub, or elsewhere under the address guard.
//!
//! What is kept for a session is kept in memory only: a listing while the session is awake, and behind that, for a while,
//! sessions that servers keep for it. A call that may have run is never made again. Each call is the agent's own: gateways
//! are told which agent, session and use of a tool it is.

mod credentials;
mod oauth;
mod place;
mod validate;
mod way;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use sortie_api::{Hop, HopError, McpServer};
use sortie_identity::{Assurance, Caller};
use sortie_ids::{EventId, SessionId, WorkspaceId};
use sortie_mcp::remote::{Carrier, Failure, Remote, RemoteTool};
use sortie_orchestrator::mcp::content::{answer, failed};
use sortie_orchestrator::mcp::{McpAnswer, McpContext, McpFailure, McpServers, McpTool, schema};
use sortie_runtime::TaskSet;
use url::Url;

use crate::call::Calls;

use credentials::{Bearers, Credentials, Wanted};
use place::Place;
use way::{Outside, Way};

pub(crate) use place::Home;
pub use place::PrivateHost;
pub use validate::Validator;

/// How long a server may take to agree on a version, and to list its tools.
const OPENING: Duration = Duration::from_secs(60);
/// How long what a server keeps for a session is kept open when the session rests.
const KEPT: Duration = Duration::from_secs(600);
/// For how many sessions that rest; beyond it, that of the one that rests longest is closed.
const MOST_KEPT: usize = 1000;
/// How often what is kept too long is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

const CONNECTION_FAILED: &str = "mcp_connection_failed_error";
const AUTHENTICATION_FAILED: &str = "mcp_authentication_failed_error";
const HOST_UNREACHABLE: &str = "credential_host_unreachable_error";

/// How sessions reach MCP servers.
#[derive(Clone, Debug)]
pub struct McpConfig {
    /// Hosts that may be reached although they are not public, also in plain HTTP. Left empty: none.
    pub allow_private: Vec<PrivateHost>,
    /// CAs to trust for servers elsewhere, beside the machine's own, in PEM.
    pub ca_file: Option<PathBuf>,
    /// How long a call may take; it is cancelled then.
    pub call_timeout: Duration,
}

impl Default for McpConfig {
    fn default() -> Self {
        Self { allow_private: Vec::new(), ca_file: None, call_timeout: Duration::from_secs(3600) }
    }
}

/// The MCP servers of all sessions.
#[derive(Clone)]
pub(crate) struct Servers(Arc<Inner>);

struct Inner {
    calls: Arc<Calls>,
    home: Home,
    outside: Arc<Outside>,
    credentials: Credentials,
    config: McpConfig,
    tasks: TaskSet,
    open: Mutex<HashMap<SessionId, Open>>,
}

/// What is open for a session.
#[derive(Default)]
struct Open {
    /// By the servers' URLs.
    servers: HashMap<String, Arc<Slot>>,
    resting: Option<Instant>,
}

/// One server for one session: opened by one call, for all that want it.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Arc<Ready>>>);

/// A server that was listed.
struct Ready {
    remote: Remote,
    tools: HashMap<String, RemoteTool>,
    listed: Arc<[McpTool]>,
    /// Whether the session was awake all the time since.
    fresh: AtomicBool,
    /// Who closes it.
    way: Arc<dyn Carrier>,
}

/// A way, as what it is and as what it does.
struct Reach {
    way: Arc<Way>,
    carrier: Arc<dyn Carrier>,
    endpoint: Url,
}

impl Servers {
    /// `ca_pem` is what [`McpConfig::ca_file`] holds.
    pub(crate) fn new(calls: Arc<Calls>, home: Home, config: McpConfig, ca_pem: &str, tasks: &TaskSet) -> Self {
        let outside = Arc::new(Outside::new(ca_pem));
        let private = config.allow_private.clone();
        let credentials = Credentials::new(calls.store.clone(), outside.clone(), home.clone(), private, tasks.clone());
        let (tasks_of_all, open) = (tasks.clone(), Mutex::default());
        let inner = Inner { calls, home, outside, credentials, config, tasks: tasks_of_all, open };
        let servers = Self(Arc::new(inner));
        let (sweeping, stop) = (servers.clone(), tasks.clone());
        tasks.spawn("mcp-sweep", async move {
            let mut tick = tokio::time::interval(SWEEP_EVERY);
            loop {
                tokio::select! {
                    _ = tick.tick() => sweeping.sweep(),
                    () = stop.stopping() => return,
                }
            }
        });
        servers
    }

    /// The way to a server, for a session or one use of a tool of it.
    fn reach(&self, context: &McpContext, server: &McpServer, tool_use: Option<&EventId>) -> Result<Reach, McpFailure> {
        let place = self.place(&server.url).map_err(|error| of_hop(server, &error))?;
        let endpoint = endpoint(&self.0.home, &place, &server.url).ok_or_else(|| of_hop(server, &not_a_url()))?;
        let bearers = Bearers::Kept(Wanted {
            credentials: self.0.credentials.clone(),
            workspace: context.workspace.clone(),
            vaults: context.vaults.clone(),
            url: server.url.clone(),
        });
        let way = self.way(place, context.workspace.clone(), caller(context, tool_use), bearers);
        Ok(Reach { carrier: way.clone(), way, endpoint })
    }

    fn way(&self, place: Place, workspace: WorkspaceId, caller: Caller, bearers: Bearers) -> Arc<Way> {
        let (calls, outside, tasks) = (self.0.calls.clone(), self.0.outside.clone(), self.0.tasks.clone());
        let problem = Mutex::default();
        Arc::new(Way { calls, outside, tasks, place, workspace, caller, bearers, problem })
    }

    fn place(&self, url: &str) -> Result<Place, HopError> {
        let url: Url = url.parse().map_err(|_| not_a_url())?;
        self.0.home.place(&url, &self.0.config.allow_private)
    }

    fn slot(&self, session: &SessionId, server: &McpServer) -> Arc<Slot> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.entry(session.clone()).or_default();
        open.resting = None;
        open.servers.entry(server.url.clone()).or_default().clone()
    }

    /// The server, opened and listed where it is not. `fresh`: listed since the session woke up.
    async fn ready(&self, context: &McpContext, server: &McpServer, fresh: bool) -> Result<Arc<Ready>, McpFailure> {
        let slot = self.slot(&context.session, server);
        let mut place = slot.0.lock().await;
        if let Some(ready) = place.as_ref().filter(|ready| !fresh || ready.fresh.load(Ordering::Acquire)) {
            return Ok(ready.clone());
        }
        let reach = self.reach(context, server, None)?;
        let opening = open(&reach, server, place.take());
        let silent = |_| Err(Failure::Silent { seconds: OPENING.as_secs() });
        let opened = tokio::time::timeout(OPENING, opening).await.unwrap_or_else(silent);
        let ready = Arc::new(opened.map_err(|failure| explain(&reach.way, server, &failure))?);
        *place = Some(ready.clone());
        Ok(ready)
    }

    /// Forgets a server that failed, so that the next use of it opens it anew.
    async fn forget(&self, session: &SessionId, server: &McpServer, failed: &Arc<Ready>) {
        let slot = self.slot(session, server);
        let mut place = slot.0.lock().await;
        if place.as_ref().is_some_and(|ready| Arc::ptr_eq(ready, failed)) {
            *place = None;
        }
    }

    async fn call_once(
        &self,
        context: &McpContext,
        server: &McpServer,
        tool: &str,
        input: &Map<String, Value>,
        tool_use: &EventId,
    ) -> Result<McpAnswer, McpFailure> {
        let mut again = true;
        loop {
            let ready = self.ready(context, server, false).await?;
            let Some(tool) = ready.tools.get(tool) else {
                return Ok(failed(format!("The MCP server `{}` has no tool `{tool}`.", server.name)));
            };
            let reach = self.reach(context, server, Some(tool_use))?;
            let limit = self.0.config.call_timeout;
            let calling = tokio::time::timeout(limit, ready.remote.call(&reach.carrier, tool, input)).await;
            let failure = match calling {
                Ok(Ok(result)) => return Ok(answer(&result)),
                Ok(Err(failure)) => failure,
                Err(_) => {
                    let seconds = limit.as_secs();
                    return Ok(failed(format!(
                        "The tool `{}` did not answer within {seconds} s and was cancelled. It may have run.",
                        tool.name
                    )));
                }
            };
            match failure {
                Failure::SessionLost | Failure::Refused { code: Failure::HEADER_MISMATCH, .. } if again => {
                    // It was refused before it ran. What the server keeps, or what it lists, has changed.
                    again = false;
                    self.forget(&context.session, server, &ready).await;
                }
                Failure::Refused { .. } | Failure::Interactive | Failure::TooLarge { .. } | Failure::Protocol(_) => {
                    return Ok(failed(format!("The MCP server `{}` failed: {failure}.", server.name)));
                }
                Failure::Hop { hop: Hop::Policy, reason, .. } => {
                    return Ok(failed(format!("The call was refused at `policy`: {reason}")));
                }
                failure => {
                    self.forget(&context.session, server, &ready).await;
                    return Err(explain_call(&reach.way, server, &failure));
                }
            }
        }
    }

    /// Closes what is kept too long, or too much.
    fn sweep(&self) {
        let mut over = Vec::new();
        {
            let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
            let mut resting: Vec<_> =
                open.iter().filter_map(|(id, open)| open.resting.map(|since| (since, id.clone()))).collect();
            resting.sort_unstable();
            let too_many = resting.len().saturating_sub(MOST_KEPT);
            for (at, (since, id)) in resting.into_iter().enumerate() {
                if at < too_many || since.elapsed() >= KEPT {
                    over.extend(open.remove(&id).into_iter().flat_map(|open| open.servers.into_values()));
                }
            }
        }
        for slot in over {
            self.close(slot);
        }
    }

    fn close(&self, slot: Arc<Slot>) {
        self.0.tasks.spawn("mcp-close", async move {
            let Some(ready) = slot.0.lock().await.take() else { return };
            if tokio::time::timeout(OPENING, ready.remote.close(&ready.way)).await.is_err() {
                tracing::debug!("an MCP server did not take the end of its session");
            }
        });
    }
}

impl McpServers for Servers {
    fn list<'a>(
        &'a self,
        context: &'a McpContext,
        server: &'a McpServer,
    ) -> BoxFuture<'a, Result<Arc<[McpTool]>, McpFailure>> {
        Box::pin(async move { Ok(self.ready(context, server, true).await?.listed.clone()) })
    }

    fn call<'a>(
        &'a self,
        context: &'a McpContext,
        server: &'a McpServer,
        tool: &'a str,
        input: &'a Map<String, Value>,
        tool_use: &'a EventId,
    ) -> BoxFuture<'a, Result<McpAnswer, McpFailure>> {
        Box::pin(self.call_once(context, server, tool, input, tool_use))
    }

    fn rest(&self, session: &SessionId) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = open.get_mut(session) else { return };
        // A slot that is being opened belongs to a call that was dropped, or soon will be.
        kept.servers.retain(|_, slot| match slot.0.try_lock().as_deref() {
            Ok(Some(ready)) => {
                ready.fresh.store(false, Ordering::Release);
                ready.remote.is_kept()
            }
            _ => false,
        });
        kept.resting = Some(Instant::now());
        if kept.servers.is_empty() {
            open.remove(session);
        }
    }
}

/// Opens a server, or goes on with one that was opened before, and lists its tools.
async fn open(reach: &Reach, server: &McpServer, before: Option<Arc<Ready>>) -> Result<Ready, Failure> {
    if let Some(Ok(Ready { remote, .. })) = before.map(Arc::try_unwrap)
        && let Ok(ready) = list(reach, server, remote).await
    {
        return Ok(ready);
    }
    let remote = Remote::open(&reach.carrier, reach.endpoint.clone()).await?;
    list(reach, server, remote).await
}

async fn list(reach: &Reach, server: &McpServer, remote: Remote) -> Result<Ready, Failure> {
    let listing = remote.tools(&reach.carrier).await?;
    for left_out in &listing.left_out {
        tracing::warn!(server = server.name, "left out of the tools of an MCP server: {left_out}");
    }
    let (mut tools, mut listed) = (HashMap::new(), Vec::new());
    for tool in listing.tools {
        match schema::tool(&tool.name, tool.description.as_deref(), &tool.input_schema) {
            Ok(shown) => {
                listed.push(shown);
                tools.insert(tool.name.clone(), tool);
            }
            Err(reason) => {
                tracing::warn!(server = server.name, tool = tool.name, "a tool of an MCP server is left out: {reason}");
            }
        }
    }
    Ok(Ready { remote, tools, listed: listed.into(), fresh: AtomicBool::new(true), way: reach.carrier.clone() })
}

/// The URL that a server is spoken to under.
fn endpoint(home: &Home, place: &Place, url: &str) -> Option<Url> {
    match place {
        Place::Tunnel(target) => {
            let host = home.base.tunnel(&target.label).route_host(&target.route);
            format!("https://{host}{}", target.path).parse().ok()
        }
        Place::Elsewhere { .. } => url.parse().ok(),
    }
}

/// Who calls.
fn caller(context: &McpContext, tool_use: Option<&EventId>) -> Caller {
    Caller {
        organization: Some(context.organization.to_string()),
        workspace: Some(context.workspace.to_string()),
        key: Some(context.key.to_string()),
        agent: Some(context.agent.to_string()),
        agent_version: Some(context.agent_version.to_string()),
        session: Some(context.session.to_string()),
        tool_use: tool_use.map(ToString::to_string),
        claims: [("agent_name".to_owned(), vec![context.agent_name.clone()])].into(),
        ..Caller::new("", format!("agent:{}", context.agent), Assurance::Asserted, i64::MAX)
    }
}

fn not_a_url() -> HopError {
    HopError::new(Hop::Route, "its URL is none")
}

fn of_hop(server: &McpServer, error: &HopError) -> McpFailure {
    connection_failed(server, Some(error.hop), &error.reason, "")
}

fn connection_failed(server: &McpServer, hop: Option<Hop>, reason: &str, more: &str) -> McpFailure {
    let message = format!("The MCP server `{}` ({}) cannot be used: {reason}{more}", server.name, server.url);
    McpFailure { kind: CONNECTION_FAILED, message, hop, details: Map::new() }
}

/// A failure as the contract has it.
fn explain(way: &Way, server: &McpServer, failure: &Failure) -> McpFailure {
    let problem = way.problem.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(problem) = problem {
        let ids = [("vault_id", json!(problem.vault)), ("credential_id", json!(problem.credential))];
        let details = ids.into_iter().filter(|(_, id)| !id.is_null()).map(|(name, id)| (name.to_owned(), id));
        return McpFailure {
            kind: problem.kind,
            message: problem.message,
            hop: Some(Hop::Upstream),
            details: details.collect(),
        };
    }
    let more = match failure {
        Failure::Unauthorized { status: 401 } => {
            ": put a credential for this URL into a vault of the session".to_owned()
        }
        _ => failure.advice().map(|advice| format!(": {advice}")).unwrap_or_default(),
    };
    let mut explained = connection_failed(server, Some(way.hop(failure)), &failure.to_string(), &more);
    if matches!(failure, Failure::Unauthorized { .. }) {
        explained.kind = AUTHENTICATION_FAILED;
    }
    explained
}

/// The same of a call, of which it is said whether it may have run.
fn explain_call(way: &Way, server: &McpServer, failure: &Failure) -> McpFailure {
    let mut explained = explain(way, server, failure);
    if !failure.has_not_run() && !explained.message.contains("may have run") {
        explained.message.push_str(". The call may have run, and is not repeated.");
    }
    explained
}
