//! An MCP server as a program that goes on using it sees it: opened once, listed, called many times.
//!
//! It speaks the stateless era of the protocol (2026-07-28) where the server does, else sessions (2025-11-25 and before),
//! else the transport of two URLs (2024-11-05). How requests get there is the business of a [`Carrier`], which is given
//! with each of them: so each call can say who makes it. Dropping the future of a call cancels it at the server. What may
//! have run is never sent again. There are no deadlines in here but those for a paused stream.

mod events;
mod exchange;
mod failure;
mod mirrored;
mod sse;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::{Map, Value, json};
use url::Url;

use self::events::Channel;
use self::exchange::{Asked, Era};
use self::mirrored::Mirrored;
use crate::client::clean;

pub use self::failure::Failure;

/// Largest message of a server that is read, in bytes.
pub const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// Most tools of one server; what it lists behind them is left out.
pub const MAX_TOOLS: usize = 1000;
/// Largest listing of tools, in bytes of names, descriptions and schemas.
pub const MAX_LISTING: usize = 4 * 1024 * 1024;
/// Most pages of a listing.
const MAX_PAGES: usize = 100;

/// The body of an answer, as it comes.
pub type Answer = BoxStream<'static, Result<Bytes, Box<dyn Error + Send + Sync>>>;

/// How requests get to one server, for one caller.
pub trait Carrier: Send + Sync + 'static {
    /// Sends a request to the server and waits for the head of its answer. Dropping the answer ends the exchange.
    fn send(&self, request: Request<Bytes>) -> BoxFuture<'_, Result<Response<Answer>, Failure>>;

    /// Lets something go on that nobody waits for.
    fn behind(&self, task: BoxFuture<'static, ()>);
}

/// A tool as its server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteTool {
    /// Its name, to be called by.
    pub name: String,
    /// What it does, in the server's words.
    pub description: Option<String>,
    /// The JSON Schema of its arguments, as the server has it: any JSON.
    pub input_schema: Value,
    mirrored: Vec<Mirrored>,
}

/// What a server lists.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Its tools, each name once.
    pub tools: Vec<RemoteTool>,
    /// What was left out, a sentence each: what the protocol does not allow, and what is too much.
    pub left_out: Vec<String>,
}

/// A server that has agreed on a version of the protocol.
pub struct Remote {
    endpoint: Url,
    era: Era,
    next_id: AtomicI64,
}

impl Remote {
    /// Agrees on a version with the server at this URL.
    ///
    /// # Errors
    /// It cannot be reached, refuses the caller, or is no MCP server.
    pub async fn open(carrier: &Arc<dyn Carrier>, endpoint: Url) -> Result<Self, Failure> {
        let mut remote = Self { endpoint, era: Era::Modern, next_id: AtomicI64::new(1) };
        match remote.ask(carrier, Asked::new("server/discover")).await {
            Ok(answered) => {
                let versions = answered.result.get("supportedVersions").and_then(Value::as_array);
                if versions.is_none_or(|versions| versions.iter().any(|version| version == exchange::MODERN)) {
                    return Ok(remote);
                }
            }
            // A server of the older era refuses the question in ways of its own.
            Err(Failure::Refused { .. } | Failure::Protocol(_) | Failure::SessionLost) => {}
            Err(Failure::Status(status)) if (400..500).contains(&status) => {}
            Err(failure) => return Err(failure),
        }
        remote.era = Era::Session { version: None, id: None };
        match remote.initialize(carrier).await {
            Ok(()) => Ok(remote),
            Err(Failure::Status(400 | 404 | 405)) => {
                remote.era = Era::Events(Channel::open(carrier, &remote.endpoint).await?);
                remote.initialize(carrier).await?;
                Ok(remote)
            }
            Err(failure) => Err(failure),
        }
    }

    /// All pages of its tools.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn tools(&self, carrier: &Arc<dyn Carrier>) -> Result<Listing, Failure> {
        let (mut listing, mut bytes, mut cursor) = (Listing::default(), 0, None::<String>);
        for _ in 0..MAX_PAGES {
            let params = cursor.iter().map(|cursor| ("cursor".to_owned(), json!(cursor))).collect();
            let mut answered = self.ask(carrier, Asked { params, ..Asked::new("tools/list") }).await?;
            let Some(Value::Array(tools)) = answered.result.get_mut("tools").map(Value::take) else {
                return Err(Failure::protocol("its list of tools is none"));
            };
            for tool in tools {
                bytes += tool.to_string().len();
                if bytes > MAX_LISTING || listing.tools.len() >= MAX_TOOLS {
                    let reason = format!("all behind the first {MAX_TOOLS} tools or {MAX_LISTING} bytes of them");
                    listing.left_out.push(reason);
                    return Ok(listing);
                }
                match RemoteTool::read(tool) {
                    Ok(tool) if listing.tools.iter().any(|known| known.name == tool.name) => {
                        listing.left_out.push(format!("a second tool with the name `{}`", clean(&tool.name)));
                    }
                    Ok(tool) => listing.tools.push(tool),
                    Err(reason) => listing.left_out.push(reason),
                }
            }
            match answered.result.get("nextCursor").and_then(Value::as_str) {
                Some(next) if cursor.as_deref() != Some(next) => cursor = Some(next.to_owned()),
                _ => return Ok(listing),
            }
        }
        listing.left_out.push(format!("all behind the first {MAX_PAGES} pages"));
        Ok(listing)
    }

    /// Calls a tool, once. The `result` of the answer, as it is.
    ///
    /// # Errors
    /// See [`Failure`]; a tool that says that it failed is none.
    pub async fn call(
        &self,
        carrier: &Arc<dyn Carrier>,
        tool: &RemoteTool,
        arguments: &Map<String, Value>,
    ) -> Result<Value, Failure> {
        let mut headers = HeaderMap::new();
        if matches!(self.era, Era::Modern) {
            mirrored::put(&tool.mirrored, arguments, &mut headers);
        }
        let params = Map::from_iter([
            ("name".to_owned(), json!(tool.name)),
            ("arguments".to_owned(), Value::Object(arguments.clone())),
        ]);
        let asked = Asked { method: "tools/call", params, headers, name: Some(&tool.name) };
        let result = self.ask(carrier, asked).await?.result;
        let finished = matches!(result.get("resultType").and_then(Value::as_str), None | Some("complete"));
        if !finished || (result.get("content").is_none() && result.get("task").is_some()) {
            return Err(Failure::Interactive);
        }
        Ok(result)
    }

    /// Whether the server keeps something for this client from one request to the next.
    pub fn is_kept(&self) -> bool {
        match &self.era {
            Era::Modern => false,
            Era::Session { id, .. } => id.is_some(),
            Era::Events(_) => true,
        }
    }

    /// Ends what the server keeps for this client. A session that is not ended ends by itself.
    pub async fn close(&self, carrier: &Arc<dyn Carrier>) {
        let Era::Session { id: Some(id), .. } = &self.era else { return };
        let mut request = exchange::request(http::Method::DELETE, &self.endpoint, Bytes::new());
        self.era.put(request.headers_mut());
        request.headers_mut().insert(exchange::SESSION_HEADER, id.clone());
        if let Err(error) = carrier.send(request).await {
            tracing::debug!(%error, "the session of MCP was not ended");
        }
    }

    /// The handshake of the older eras.
    async fn initialize(&mut self, carrier: &Arc<dyn Carrier>) -> Result<(), Failure> {
        let params = json!({"protocolVersion": exchange::NEWEST_WITH_HANDSHAKE, "capabilities": {},
                            "clientInfo": exchange::me()});
        let params = params.as_object().cloned().unwrap_or_default();
        let answered = self.ask(carrier, Asked { params, ..Asked::new("initialize") }).await?;
        let version = answered.result.get("protocolVersion").and_then(Value::as_str);
        let version = version.filter(|version| exchange::WITH_HANDSHAKE.contains(version)).map(HeaderValue::from_str);
        let Some(Ok(version)) = version else {
            return Err(Failure::protocol("it agrees on no version of the protocol that is known here"));
        };
        if let Era::Session { version: agreed, id } = &mut self.era {
            (*agreed, *id) = (Some(version), answered.session);
        }
        self.tell(carrier, json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await
    }

    fn new_id(&self) -> i64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

impl RemoteTool {
    /// Reads a tool of a list; a sentence where it is none.
    fn read(mut tool: Value) -> Result<Self, String> {
        let name = tool.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if name.is_empty() || name.len() > 256 || name.chars().any(char::is_control) {
            return Err(format!("a tool with the name `{}`", clean(&name.chars().take(256).collect::<String>())));
        }
        let input_schema = tool.get_mut("inputSchema").map(Value::take).unwrap_or_default();
        let mirrored =
            mirrored::of_schema(&input_schema).map_err(|reason| format!("the tool `{}`: {reason}", clean(&name)))?;
        let description = tool.get("description").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { name, description, input_schema, mirrored })
    }
}
