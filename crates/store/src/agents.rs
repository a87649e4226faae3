//! Agents and their versions.

use jiff::Timestamp;
use serde_json::json;
use sortie_api::{Agent, AgentDefinition, ApiError, PageRequest};
use sortie_ids::{AgentId, WorkspaceId};

use crate::db::{Connection, Row, Transaction, query};
use crate::error::During as _;
use crate::store::{Page, to_the_end};
use crate::{Object, Store, StoreError};

/// The columns of an agent, joined with those of one of its versions.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT a.seq, a.id, a.created_at, a.archived_at, v.version, v.body, v.created_at AS updated_at \
             FROM agents a JOIN agent_versions v ON v.agent_id = a.id ",
            $rest
        )
    };
}

/// What came of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed<T> {
    /// The object as it is now.
    pub object: T,
    /// The members that are different from before; none when nothing was changed.
    pub members: Vec<&'static str>,
}

/// Times of creation, in whole seconds; both ends are among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Created {
    /// The first second.
    pub from: Option<i64>,
    /// The last second.
    pub to: Option<i64>,
}

impl Created {
    fn bounds(self) -> (i64, i64) {
        (self.from.unwrap_or(i64::MIN), self.to.unwrap_or(i64::MAX))
    }
}

impl Store {
    /// Makes an agent, in version 1.
    ///
    /// # Errors
    /// Database errors.
    pub async fn create_agent(
        &self,
        workspace: &WorkspaceId,
        definition: AgentDefinition,
    ) -> Result<Agent, StoreError> {
        let (store, workspace) = (self.clone(), workspace.clone());
        to_the_end(async move {
            let now = store.now();
            let (id, version) = (AgentId::random(), 1u32);
            let mut transaction = store.begin().await?;
            query("INSERT INTO agents (id, workspace_id, version, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)")
                .bind(id.as_str())
                .bind(workspace.as_str())
                .bind(version)
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("storing an agent")?;
            insert_version(&mut transaction, &id, version, &definition, now).await?;
            transaction.commit().await.during("committing")?;
            Ok(Agent { id, version, definition, created_at: now, updated_at: now, archived_at: None })
        })
        .await
    }

    /// An agent of the workspace, in this version or in its newest; live or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], also for a version that there is not; database errors.
    pub async fn agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<u32>,
    ) -> Result<Agent, StoreError> {
        let asked = query(select!("WHERE a.id = $1 AND a.workspace_id = $2 AND v.version = coalesce($3, a.version)"));
        let asked = asked.bind(id.as_str()).bind(workspace.as_str()).bind(version);
        let row = asked.read_optional(&self.db()).await.during("reading an agent")?;
        agent(&row.ok_or(StoreError::NotFound(Object::Agent))?)
    }

    /// Changes an agent, which makes its next version; nothing is made when nothing is different. `version` is the newest
    /// one as the caller knows it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Refused`] with 409 for another version, with 400 for an archived agent, and
    /// with what `change` refuses; database errors.
    pub async fn update_agent(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        version: Option<u32>,
        change: impl FnOnce(AgentDefinition) -> Result<AgentDefinition, ApiError> + Send + 'static,
    ) -> Result<Changed<Agent>, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = newest(transaction.on(), &workspace, &id).await?;
            if before.archived_at.is_some() {
                return Err(ApiError::invalid_request("The agent is archived, and that is final.").into());
            }
            if version.is_some_and(|version| version != before.version) {
                return Err(outdated(before.version).into());
            }
            let definition = change(before.definition.clone())?;
            let members = definition.changed(&before.definition);
            if members.is_empty() {
                return Ok(Changed { object: before, members });
            }
            let now = store.now();
            let version = before.version.checked_add(1).ok_or(StoreError::Corrupt("agents.version"))?;
            query("UPDATE agents SET version = $2, updated_at = $3 WHERE id = $1")
                .bind(id.as_str())
                .bind(version)
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("updating an agent")?;
            insert_version(&mut transaction, &id, version, &definition, now).await?;
            transaction.commit().await.during("committing")?;
            Ok(Changed { object: Agent { version, definition, updated_at: now, ..before }, members })
        })
        .await
    }

    /// Archives an agent for good. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn archive_agent(&self, workspace: &WorkspaceId, id: &AgentId) -> Result<Changed<Agent>, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = newest(transaction.on(), &workspace, &id).await?;
            if before.archived_at.is_some() {
                return Ok(Changed { object: before, members: Vec::new() });
            }
            let now = store.now();
            query("UPDATE agents SET archived_at = $2 WHERE id = $1")
                .bind(id.as_str())
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("archiving an agent")?;
            transaction.commit().await.during("committing")?;
            Ok(Changed { object: Agent { archived_at: Some(now), ..before }, members: vec!["archived_at"] })
        })
        .await
    }

    /// The workspace's agents in their newest versions, newest first.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with 400 for a page after an agent that was not made in these times; database errors.
    pub async fn list_agents(
        &self,
        workspace: &WorkspaceId,
        created: Created,
        page: PageRequest,
    ) -> Result<Page<Agent>, StoreError> {
        let (from, to) = created.bounds();
        if let Some(before) = page.before {
            self.check_place(workspace, before, from, to).await?;
        }
        let rows = query(select!(
            "WHERE a.workspace_id = $1 AND v.version = a.version AND ($2 = 1 OR a.archived_at IS NULL) \
             AND a.created_at >= $3 AND a.created_at <= $4 AND a.seq < $5 ORDER BY a.seq DESC LIMIT $6"
        ))
        .bind(workspace.as_str())
        .bind(page.include_archived)
        .bind(from)
        .bind(to)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing agents")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, agent(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// The versions of an agent, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn list_agent_versions(
        &self,
        workspace: &WorkspaceId,
        id: &AgentId,
        page: PageRequest,
    ) -> Result<Page<Agent>, StoreError> {
        self.agent(workspace, id, None).await?;
        let rows = query(select!("WHERE a.id = $1 AND v.version < $2 ORDER BY v.version DESC LIMIT $3"))
            .bind(id.as_str())
            .bind(page.before.unwrap_or(i64::MAX))
            .bind(i64::from(page.limit).saturating_add(1))
            .read_all(&self.db())
            .await
            .during("listing the versions of an agent")?;
        let items = rows.iter().map(|row| Ok((row.integer("version")?, agent(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// Refuses to go on after an agent that the times of a list leave out.
    async fn check_place(&self, workspace: &WorkspaceId, before: i64, from: i64, to: i64) -> Result<(), StoreError> {
        let row = query("SELECT created_at FROM agents WHERE seq = $1 AND workspace_id = $2")
            .bind(before)
            .bind(workspace.as_str())
            .read_optional(&self.db())
            .await
            .during("reading an agent")?;
        let Some(row) = row else { return Ok(()) };
        if (from..=to).contains(&row.integer("created_at")?) {
            return Ok(());
        }
        let reason = "page: the filter on created_at leaves out the place of this cursor; begin with the first page";
        Err(ApiError::invalid_request(reason).into())
    }
}

async fn newest(on: Connection<'_>, workspace: &WorkspaceId, id: &AgentId) -> Result<Agent, StoreError> {
    let asked = query(select!("WHERE a.id = $1 AND a.workspace_id = $2 AND v.version = a.version"));
    let row = asked.bind(id.as_str()).bind(workspace.as_str()).optional(on).await.during("reading an agent")?;
    agent(&row.ok_or(StoreError::NotFound(Object::Agent))?)
}

async fn insert_version(
    transaction: &mut Transaction,
    id: &AgentId,
    version: u32,
    definition: &AgentDefinition,
    now: Timestamp,
) -> Result<(), StoreError> {
    let body = serde_json::to_string(definition).map_err(|_| StoreError::Corrupt("agent_versions.body"))?;
    query("INSERT INTO agent_versions (agent_id, version, body, created_at) VALUES ($1, $2, $3, $4)")
        .bind(id.as_str())
        .bind(version)
        .bind(body)
        .bind(now.as_second())
        .execute(transaction.on())
        .await
        .during("storing a version of an agent")?;
    Ok(())
}

fn outdated(version: u32) -> ApiError {
    let reason = format!("version: the agent is at version {version}; read it, and send that version with the change");
    ApiError::conflict(reason).with_details(json!({"current_version": version}))
}

fn agent(row: &Row) -> Result<Agent, StoreError> {
    Ok(Agent {
        id: row.parsed("id")?,
        version: u32::try_from(row.integer("version")?).map_err(|_| StoreError::Corrupt("agent_versions.version"))?,
        definition: row.json("body")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        archived_at: row.optional_time("archived_at")?,
    })
}

#[cfg(test)]
mod tests;
