//! What a session asks of a model, and what it may answer. The form is that of the Messages API.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use sortie_api::{Model, ModelUsage};
use sortie_ids::{AgentId, EnvironmentId, SessionId};
use tokio::sync::mpsc;

/// One request.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    /// The agent's model.
    pub model: Model,
    /// The agent's prompt.
    pub system: Option<String>,
    /// The conversation, in the form of `messages`.
    pub messages: Vec<Value>,
    /// What the model may use, in the form of `tools`.
    pub tools: Vec<Value>,
    /// Tokens that it may write.
    pub max_tokens: u32,
    /// For whom.
    pub source: Source,
}

/// For whom a model is asked.
#[derive(Clone, Debug)]
pub struct Source {
    /// The session.
    pub session: SessionId,
    /// Its agent.
    pub agent: AgentId,
    /// Its environment.
    pub environment: EnvironmentId,
}

/// A piece of an answer on its way. Pieces are shown to whoever watches, and are worth nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// The model thinks.
    Thinking,
    /// Text of the text block with this number among the answer's text blocks, to be appended.
    Text {
        /// The block.
        index: usize,
        /// More of its text.
        text: String,
    },
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelAnswer {
    /// The blocks, as the model sent them (`text`, `thinking`, `tool_use`, others), kept for the next request.
    pub content: Vec<Value>,
    /// Why it ended: `end_turn`, `tool_use`, `max_tokens`, `refusal`, `pause_turn`, `model_context_window_exceeded`, others.
    pub stop_reason: String,
    /// More on a refusal.
    pub stop_details: Option<Value>,
    /// What it has used.
    pub usage: ModelUsage,
    /// Of what was written into the cache, what stays for an hour.
    pub cached_for_an_hour: u64,
}

/// Why there is no answer. The words are shown to the session's owner: they name the upstream by the name that the
/// settings give it, and hold no secret.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ModelError {
    /// The contract's kind, such as `model_overloaded_error`, `model_rate_limited_error`, `model_request_failed_error`,
    /// `billing_error`.
    pub kind: &'static str,
    /// One sentence.
    pub message: String,
    /// Whether the same request may succeed later.
    pub retryable: bool,
    /// How long the upstream asks to wait.
    pub retry_after: Option<Duration>,
    /// Whether the conversation is too long for the model.
    pub too_long: bool,
    /// More for programs.
    pub details: Map<String, Value>,
}

/// Too many at once, there or here.
pub const OVERLOADED: &str = "model_overloaded_error";
/// More than the upstream allows in a time.
pub const RATE_LIMITED: &str = "model_rate_limited_error";
/// Any other failure.
pub const REQUEST_FAILED: &str = "model_request_failed_error";
/// The upstream wants to be paid.
pub const BILLING: &str = "billing_error";

impl ModelError {
    /// One of this kind that another try does not change.
    pub fn new(kind: &'static str, message: impl Into<String>) -> Self {
        let (message, details) = (message.into(), Map::new());
        Self { kind, message, retryable: false, retry_after: None, too_long: false, details }
    }

    /// One of this kind that another try may change.
    pub fn passing(kind: &'static str, message: impl Into<String>) -> Self {
        Self { retryable: true, ..Self::new(kind, message) }
    }
}

/// How much a model takes and gives, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelLimits {
    /// Of a request and its answer together.
    pub context_window: u64,
    /// Of an answer.
    pub max_tokens: u32,
}

impl Default for ModelLimits {
    fn default() -> Self {
        Self { context_window: 200_000, max_tokens: 32_000 }
    }
}

/// The models that there are.
pub trait Models: Send + Sync + 'static {
    /// Asks one. Dropping the future ends the request. Each upstream is tried at most once here: a failure that can be tried
    /// again is the session's to repeat, so that it is seen.
    fn ask<'a>(
        &'a self,
        request: &'a ModelRequest,
        deltas: mpsc::UnboundedSender<Delta>,
    ) -> BoxFuture<'a, Result<ModelAnswer, ModelError>>;

    /// Refuses a model that no upstream serves, in one sentence, so that an agent with it is not made.
    fn check(&self, model: &Model) -> Result<(), String>;

    /// How much this model takes and gives, as far as the settings say it.
    fn limits(&self, model: &Model) -> ModelLimits {
        let _unknown = model;
        ModelLimits::default()
    }
}
