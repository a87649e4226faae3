//! Sessions: what is shown of them.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sortie_ids::{EnvironmentId, SessionId, ThreadId, VaultId};

use crate::{Metadata, SessionAgent};

/// What a session does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// It waits for a message, an answer or a word.
    Idle,
    /// It works.
    Running,
    /// Something failed that will be tried again.
    Rescheduling,
    /// It is over, and takes nothing more.
    Terminated,
}

impl SessionStatus {
    /// The word for it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Rescheduling => "rescheduling",
            Self::Terminated => "terminated",
        }
    }

    /// Whether something happens without a client: what cannot be archived or deleted.
    pub fn is_at_work(self) -> bool {
        matches!(self, Self::Running | Self::Rescheduling)
    }
}

/// What a session has used, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Tokens read that no cache had.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Tokens read from the model's cache.
    pub cache_read_input_tokens: u64,
    /// Tokens written into the model's cache.
    pub cache_creation: CacheCreation,
}

/// Tokens written into the model's cache, by how long they stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CacheCreation {
    /// For five minutes.
    pub ephemeral_5m_input_tokens: u64,
    /// For an hour.
    pub ephemeral_1h_input_tokens: u64,
}

/// How long a session has worked, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SessionStats {
    /// Time at work.
    pub active_seconds: f64,
    /// Time from its beginning to its last event.
    pub duration_seconds: f64,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "session")]
#[schemars(transform = crate::schema::typed("session"))]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// What it does.
    pub status: SessionStatus,
    /// Its own copy of the agent.
    pub agent: SessionAgent,
    /// Where the tools of the sandbox run.
    pub environment_id: EnvironmentId,
    /// What its owner calls it.
    pub title: Option<String>,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// Files and stores: always empty, others are refused.
    pub resources: Vec<Value>,
    /// Where credentials are looked for, in this order.
    pub vault_ids: Vec<VaultId>,
    /// Always none: refused at creation.
    pub budget: Option<Value>,
    /// What it has used.
    pub usage: Usage,
    /// How long it has worked.
    pub stats: SessionStats,
    /// Always empty.
    pub outcome_evaluations: Vec<Value>,
    /// Always none.
    pub deployment_id: Option<String>,
    /// When it was made.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When it changed last.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub updated_at: Timestamp,
    /// When it was archived.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
}

/// A page of sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SessionList {
    /// The sessions.
    pub data: Vec<Session>,
    /// What to send as `page` for the next page; none on the last one.
    pub next_page: Option<String>,
    /// What to send as `page` for the page before; none on the first one.
    pub prev_page: Option<String>,
}

/// What is left of a deleted session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "session_deleted")]
#[schemars(transform = crate::schema::typed("session_deleted"))]
pub struct DeletedSession {
    /// Its id.
    pub id: SessionId,
}

/// A thread of a session. There is one, whose events are the session's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "session_thread")]
#[schemars(transform = crate::schema::typed("session_thread"))]
pub struct SessionThread {
    /// Its id.
    pub id: ThreadId,
    /// The session.
    pub session_id: SessionId,
    /// The session's copy of the agent.
    pub agent: SessionAgent,
    /// Always none: no thread is made by another one.
    pub parent_thread_id: Option<ThreadId>,
    /// What it does.
    pub status: SessionStatus,
    /// How long it has worked.
    pub stats: SessionStats,
    /// What it has used.
    pub usage: Usage,
    /// Always none.
    pub workflow_run_id: Option<String>,
    /// When it was archived, which is when its session was.
    #[serde(with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub archived_at: Option<Timestamp>,
    /// When it was made.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub created_at: Timestamp,
    /// When it changed last.
    #[serde(with = "crate::time")]
    #[schemars(with = "Timestamp")]
    pub updated_at: Timestamp,
}

impl SessionThread {
    /// The one thread of a session.
    pub fn primary(id: ThreadId, session: Session) -> Self {
        Self {
            id,
            session_id: session.id,
            agent: session.agent,
            parent_thread_id: None,
            status: session.status,
            stats: session.stats,
            usage: session.usage,
            workflow_run_id: None,
            archived_at: session.archived_at,
            created_at: session.created_at,
            updated_at: session.updated_at,
        }
    }
}
