//! Sessions: what is shown of them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sortie_ids::{AgentId, EnvironmentId, SessionId, ThreadId, VaultId};

use crate::{AgentOverrides, ApiError, Metadata, Patch, SessionAgent};

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

/// Longest title, in characters.
const MAX_TITLE: usize = 512;
/// Most vaults of a session.
const MAX_VAULTS: usize = 50;

/// The body of `POST /v1/sessions`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSession {
    /// The agent: its id, which stands for its newest version, or an object.
    #[schemars(with = "ChosenAgent")]
    pub agent: Value,
    /// Where the tools of the sandbox run: an environment of the type `self_hosted`.
    pub environment_id: EnvironmentId,
    /// At most 512 characters.
    #[serde(default)]
    pub title: Option<String>,
    /// At most 16 pairs.
    #[serde(default)]
    pub metadata: Option<Metadata>,
    /// At most 50; credentials are looked for in this order.
    #[serde(default)]
    pub vault_ids: Option<Vec<VaultId>>,
    /// At most 50 events of the type `user.message`.
    #[serde(default)]
    pub initial_events: Option<Vec<Value>>,
    /// Not offered: refused, unless empty.
    #[serde(default)]
    pub resources: Option<Vec<Value>>,
    /// Not offered: refused.
    #[serde(default)]
    pub budget: Option<Value>,
}

/// The agent of a new session.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ChosenAgent {
    /// An agent as it is.
    Agent {
        /// Its id.
        id: AgentId,
        /// Its version; the newest, when left out.
        #[serde(default)]
        version: Option<u32>,
    },
    /// An agent of which the session changes something for itself.
    AgentWithOverrides {
        /// Its id.
        id: AgentId,
        /// Its version; the newest, when left out.
        #[serde(default)]
        version: Option<u32>,
        /// What is changed.
        #[serde(flatten)]
        overrides: Box<AgentOverrides>,
    },
}

/// The body of `POST /v1/sessions/{session_id}`. What is left out stays.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSession {
    /// `null` or an empty text clears it.
    pub title: Patch<String>,
    /// Pairs: a text takes the place of what was there, `null` takes it away.
    pub metadata: Patch<BTreeMap<String, Option<String>>>,
    /// What the session changes of its agent, from the next turn on; not while it works.
    pub agent: Option<ChangedAgent>,
    /// Not offered: refused.
    pub budget: Patch<Value>,
    /// Cannot be changed: refused.
    pub vault_ids: Option<Value>,
}

/// What a session changes of its agent later.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangedAgent {
    /// They take the place of what was there; `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<crate::SentTool>>")]
    pub tools: Patch<Vec<Value>>,
    /// They take the place of what was there; `null` or an empty list clears them.
    #[schemars(with = "Option<Vec<crate::SentServer>>")]
    pub mcp_servers: Patch<Vec<Value>>,
}

impl CreateSession {
    /// Refuses what is not offered, and what is too much.
    ///
    /// # Errors
    /// 400, naming the member.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.budget.as_ref().is_some_and(|budget| !budget.is_null()) {
            let sentence = "budget: model_not_budgetable: no prices of models are known here; leave it out";
            return Err(ApiError::invalid_request(sentence));
        }
        if self.resources.as_ref().is_some_and(|resources| !resources.is_empty()) {
            return Err(no_resources("resources"));
        }
        if self.vault_ids.as_ref().is_some_and(|vaults| vaults.len() > MAX_VAULTS) {
            return Err(ApiError::invalid_request(format!("vault_ids: at most {MAX_VAULTS}")));
        }
        check_title(self.title.as_deref())
    }
}

impl ChosenAgent {
    /// The agent that was named in one of the three forms.
    ///
    /// # Errors
    /// 400.
    pub fn read(sent: Value) -> Result<Self, ApiError> {
        let read = match sent {
            Value::String(id) => {
                id.parse().map(|id| Self::Agent { id, version: None }).map_err(|error| error.to_string())
            }
            object => match beside_overrides(&object) {
                Ok(()) => serde_json::from_value(object).map_err(|error| error.to_string()),
                Err(reason) => Err(reason),
            },
        };
        read.map_err(|reason| ApiError::invalid_request(format!("agent: {reason}")))
    }
}

/// Refuses members that there are not: those beside the overrides are read apart, so that neither reading misses them.
fn beside_overrides(object: &Value) -> Result<(), String> {
    let form = |members: &&Map<String, Value>| members.get("type").is_some_and(|form| form == "agent_with_overrides");
    let Some(members) = object.as_object().filter(form) else { return Ok(()) };
    let own = |name: &str| matches!(name, "type" | "id" | "version");
    let overrides = members.iter().filter(|(name, _)| !own(name)).map(|(name, value)| (name.clone(), value.clone()));
    let read: Result<AgentOverrides, _> = serde_json::from_value(Value::Object(overrides.collect()));
    read.map(drop).map_err(|error| error.to_string())
}

impl UpdateSession {
    /// Refuses what is not offered, and what is too much.
    ///
    /// # Errors
    /// 400, naming the member.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.budget != Patch::Keep {
            let sentence = "budget: budget_create_only: the session was made without one";
            return Err(ApiError::invalid_request(sentence));
        }
        if self.vault_ids.is_some() {
            return Err(ApiError::invalid_request("vault_ids: cannot be changed; make another session"));
        }
        match &self.title {
            Patch::Set(title) => check_title(Some(title)),
            Patch::Keep | Patch::Clear => Ok(()),
        }
    }
}

/// Why a session takes no resources; `member` is where they were sent.
pub fn no_resources(member: &str) -> ApiError {
    ApiError::invalid_request(format!(
        "{member}: sessions in `self_hosted` environments take no files and no repositories, and there are no memory \
         stores here; put files where the environment's workers run"
    ))
}

fn check_title(title: Option<&str>) -> Result<(), ApiError> {
    if title.is_some_and(|title| title.chars().count() > MAX_TITLE) {
        return Err(ApiError::invalid_request(format!("title: at most {MAX_TITLE} characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_agent_is_named_in_three_forms() {
        assert!(matches!(ChosenAgent::read(json!("agent_1")), Ok(ChosenAgent::Agent { version: None, .. })));
        let versioned = ChosenAgent::read(json!({"type": "agent", "id": "agent_1", "version": 2}));
        assert!(matches!(versioned, Ok(ChosenAgent::Agent { version: Some(2), .. })));
        let changed = json!({"type": "agent_with_overrides", "id": "agent_1", "system": null, "model": "m"});
        let Ok(ChosenAgent::AgentWithOverrides { overrides, .. }) = ChosenAgent::read(changed) else { panic!("read") };
        assert_eq!((overrides.system, overrides.tools), (Patch::Clear, Patch::Keep));
        for bad in [
            json!("tnl_1"),
            json!(7),
            json!({"id": "agent_1"}),
            json!({"type": "agent"}),
            json!({"type": "agent", "id": "agent_1", "version": -1}),
            json!({"type": "agent_with_overrides", "id": "agent_1", "name": "x"}),
        ] {
            let refused = ChosenAgent::read(bad.clone()).expect_err("refused");
            assert!(refused.message.starts_with("agent: "), "{bad}: {}", refused.message);
        }
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        let create = |more: Value| {
            let mut body = json!({"agent": "agent_1", "environment_id": "env_1"});
            for (name, value) in more.as_object().expect("object") {
                body[name] = value.clone();
            }
            let body: CreateSession = serde_json::from_value(body).expect("body");
            body.check().map_err(|error| error.message)
        };
        assert_eq!(create(json!({"budget": null, "resources": [], "title": "A"})), Ok(()));
        for (more, member) in [
            (json!({"budget": {"amount": "100", "currency": "USD"}}), "budget: model_not_budgetable"),
            (json!({"resources": [{"type": "file", "file_id": "file_1"}]}), "resources: "),
            (json!({"title": "x".repeat(513)}), "title: "),
            (json!({"vault_ids": vec!["vlt_1"; 51]}), "vault_ids: "),
        ] {
            let refused = create(more).expect_err("refused");
            assert!(refused.starts_with(member), "{refused}");
        }
        for (body, member) in [
            (json!({"budget": null}), "budget: budget_create_only"),
            (json!({"vault_ids": []}), "vault_ids: "),
            (json!({"title": "x".repeat(513)}), "title: "),
        ] {
            let body: UpdateSession = serde_json::from_value(body).expect("body");
            let refused = body.check().expect_err("refused").message;
            assert!(refused.starts_with(member), "{refused}");
        }
    }
}
