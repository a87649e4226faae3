//! Work: what workers of an environment ask a hub for.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sortie_ids::{EnvironmentId, SessionId, WorkId};

use crate::{DisplayName, Metadata};

/// Where an item of work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkState {
    /// It waits for a worker, or for the word of the one that it was handed to.
    Queued,
    /// A worker took it and has not begun.
    Starting,
    /// A worker is at it, and says so again and again.
    Active,
    /// Its worker is to end it.
    Stopping,
    /// It is over.
    Stopped,
}

impl WorkState {
    /// The name in the API and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// The state with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Queued, Self::Starting, Self::Active, Self::Stopping, Self::Stopped];
        all.into_iter().find(|state| state.as_str() == name)
    }
}

/// What an item of work is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum WorkData {
    /// A session whose tools are to be run.
    Session {
        /// Which.
        id: SessionId,
    },
    /// Nothing but an answer: a worker stops it at once.
    Healthcheck {
        /// The item itself.
        id: WorkId,
    },
}

/// An item of work. Times have microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "work")]
#[schemars(rename = "Work", transform = crate::schema::typed("work"))]
pub struct Work {
    /// Its id.
    pub id: WorkId,
    /// Whose workers get it.
    pub environment_id: EnvironmentId,
    /// What it is about.
    pub data: WorkData,
    /// Where it is.
    pub state: WorkState,
    /// What its owner wrote beside it.
    pub metadata: Metadata,
    /// Base64 (URL-safe) of `{"sessions_token": "..."}`, in the answer to a poll only: what its worker acts for the session
    /// with.
    pub secret: Option<String>,
    /// When it was made.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Timestamp")]
    pub created_at: Option<Timestamp>,
    /// When its worker took it.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub acknowledged_at: Option<Timestamp>,
    /// When its worker began.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub started_at: Option<Timestamp>,
    /// When its worker said last that it is at it.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub latest_heartbeat_at: Option<Timestamp>,
    /// When somebody asked for its end.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub stop_requested_at: Option<Timestamp>,
    /// When it ended.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub stopped_at: Option<Timestamp>,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "work_heartbeat")]
#[schemars(rename = "WorkHeartbeat", transform = crate::schema::typed("work_heartbeat"))]
pub struct WorkHeartbeat {
    /// What the next heartbeat is to expect, byte for byte; empty where there was none.
    pub last_heartbeat: String,
    /// Whether the worker may go on.
    pub lease_extended: bool,
    /// Where the item is.
    pub state: WorkState,
    /// How long the lease lasts without a further heartbeat, in seconds.
    pub ttl_seconds: u32,
}

/// What there is to do in an environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "work_queue_stats")]
#[schemars(rename = "WorkQueueStats", transform = crate::schema::typed("work_queue_stats"))]
pub struct WorkQueueStats {
    /// Items that wait for a worker.
    pub depth: u64,
    /// Items that were handed out and are not yet acknowledged.
    pub pending: u64,
    /// Since when the oldest of both waits.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub oldest_queued_at: Option<Timestamp>,
    /// Workers that asked for work within the last 30 seconds.
    pub workers_polling: Option<u64>,
}

/// The body of `POST .../work/{id}/stop`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StopWork {
    /// At once, instead of at the word of its worker.
    pub force: bool,
}

/// The body of `POST .../work/{id}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UpdateWork {
    /// Members to set; a member without a value is removed.
    pub metadata: BTreeMap<String, Option<String>>,
}

/// The body of `POST /v1/sortie/environments/{environment_id}/keys`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateEnvironmentKey {
    /// What its owner calls it.
    pub name: DisplayName,
    /// From when on it is refused; never, when absent.
    #[serde(default, with = "crate::time::optional")]
    #[schemars(with = "Option<Timestamp>")]
    pub expires_at: Option<Timestamp>,
}

/// How a check of an environment's workers went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthcheckOutcome {
    /// No worker has answered yet.
    Waiting,
    /// A worker answered.
    Passed,
    /// No worker answered in time.
    Failed,
}

/// A check of an environment's workers: an item of work that they only have to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename = "healthcheck")]
#[schemars(rename = "Healthcheck", transform = crate::schema::typed("healthcheck"))]
pub struct Healthcheck {
    /// The item.
    pub id: WorkId,
    /// The environment.
    pub environment_id: EnvironmentId,
    /// How it went.
    pub outcome: HealthcheckOutcome,
    /// What the worker calls itself that took it.
    pub worker_id: Option<String>,
    /// When it was made.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Timestamp")]
    pub created_at: Option<Timestamp>,
    /// When it was over.
    #[serde(with = "crate::time::exact")]
    #[schemars(with = "Option<Timestamp>")]
    pub ended_at: Option<Timestamp>,
}
