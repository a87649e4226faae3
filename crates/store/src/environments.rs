//! Environments.

use serde_json::json;
use sortie_api::{ApiError, Environment, EnvironmentDefinition, PageRequest};
use sortie_ids::{EnvironmentId, KeyId, WorkspaceId};

use crate::agents::Changed;
use crate::db::{Connection, Row, Transaction, query};
use crate::error::During as _;
use crate::store::{Page, to_the_end};
use crate::{Change, Object, Store, StoreError};

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT seq, id, body, created_at, updated_at, archived_at FROM environments ", $rest)
    };
}

impl Store {
    /// Makes an environment.
    ///
    /// # Errors
    /// [`StoreError::Refused`] with 409 when another active one of the workspace has its name; database errors.
    pub async fn create_environment(
        &self,
        workspace: &WorkspaceId,
        definition: EnvironmentDefinition,
    ) -> Result<Environment, StoreError> {
        let (store, workspace) = (self.clone(), workspace.clone());
        to_the_end(async move {
            let now = store.now();
            let id = EnvironmentId::random();
            let mut transaction = store.begin_alone().await?;
            check_name(&mut transaction, &workspace, &definition.name, &id).await?;
            query(
                "INSERT INTO environments (id, workspace_id, name, kind, body, created_at, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $6)",
            )
            .bind(id.as_str())
            .bind(workspace.as_str())
            .bind(definition.name.as_str())
            .bind(definition.config.kind())
            .bind(body(&definition)?)
            .bind(now.as_second())
            .execute(transaction.on())
            .await
            .during("storing an environment")?;
            transaction.commit().await.during("committing")?;
            Ok(Environment { id, definition, created_at: now, updated_at: now, archived_at: None })
        })
        .await
    }

    /// An environment of the workspace, live or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn environment(&self, workspace: &WorkspaceId, id: &EnvironmentId) -> Result<Environment, StoreError> {
        let asked = query(select!("WHERE id = $1 AND workspace_id = $2")).bind(id.as_str()).bind(workspace.as_str());
        let row = asked.read_optional(&self.db()).await.during("reading an environment")?;
        environment(&row.ok_or(StoreError::NotFound(Object::Environment))?)
    }

    /// The workspace's environments, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_environments(
        &self,
        workspace: &WorkspaceId,
        page: PageRequest,
    ) -> Result<Page<Environment>, StoreError> {
        let rows = query(select!(
            "WHERE workspace_id = $1 AND ($2 = 1 OR archived_at IS NULL) AND seq < $3 ORDER BY seq DESC LIMIT $4"
        ))
        .bind(workspace.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing environments")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, environment(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// Changes an environment.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Refused`] with 400 for an archived one, with 409 when another active one of
    /// the workspace has its name, and with what `change` refuses; database errors.
    pub async fn update_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
        change: impl FnOnce(EnvironmentDefinition) -> Result<EnvironmentDefinition, ApiError> + Send + 'static,
    ) -> Result<Changed<Environment>, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = find(transaction.on(), &workspace, &id).await?;
            if before.archived_at.is_some() {
                let error = ApiError::invalid_request("The environment is archived, and that is final.");
                return Err(error.with_details(json!({"error_code": "environment_archived"})).into());
            }
            let definition = change(before.definition.clone())?;
            let members = changed(&before.definition, &definition);
            if members.is_empty() {
                return Ok(Changed { object: before, members });
            }
            check_name(&mut transaction, &workspace, &definition.name, &id).await?;
            let now = store.now();
            query("UPDATE environments SET name = $2, body = $3, updated_at = $4 WHERE id = $1")
                .bind(id.as_str())
                .bind(definition.name.as_str())
                .bind(body(&definition)?)
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("updating an environment")?;
            transaction.commit().await.during("committing")?;
            Ok(Changed { object: Environment { definition, updated_at: now, ..before }, members })
        })
        .await
    }

    /// Archives an environment for good: its sessions go on, and no new ones are made. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn archive_environment(
        &self,
        workspace: &WorkspaceId,
        id: &EnvironmentId,
    ) -> Result<Changed<Environment>, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = find(transaction.on(), &workspace, &id).await?;
            if before.archived_at.is_some() {
                return Ok(Changed { object: before, members: Vec::new() });
            }
            let now = store.now();
            query("UPDATE environments SET archived_at = $2, updated_at = $2 WHERE id = $1")
                .bind(id.as_str())
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("archiving an environment")?;
            transaction.commit().await.during("committing")?;
            let object = Environment { archived_at: Some(now), updated_at: now, ..before };
            Ok(Changed { object, members: vec!["archived_at"] })
        })
        .await
    }

    /// Deletes an environment that no session is in, with its keys and what is left of its work.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Refused`] with 409 while there are sessions; database errors.
    pub async fn delete_environment(&self, workspace: &WorkspaceId, id: &EnvironmentId) -> Result<(), StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            find(transaction.on(), &workspace, &id).await?;
            let row = query("SELECT count(*) AS count FROM sessions WHERE environment_id = $1")
                .bind(id.as_str())
                .optional(transaction.on())
                .await
                .during("counting sessions")?;
            let sessions = row.map_or(Ok(0), |row| row.integer("count"))?;
            if sessions > 0 {
                let reason = format!(
                    "The environment has {sessions} sessions, archived ones among them; delete these first, or archive it."
                );
                return Err(ApiError::conflict(reason).into());
            }
            let keys = query("DELETE FROM keys WHERE environment_id = $1 RETURNING id")
                .bind(id.as_str())
                .all(transaction.on())
                .await
                .during("deleting keys")?;
            let keys = keys.iter().map(|row| row.parsed("id")).collect::<Result<Vec<KeyId>, _>>()?;
            for (statement, doing) in [
                ("DELETE FROM work WHERE environment_id = $1", "deleting work"),
                ("DELETE FROM environments WHERE id = $1", "deleting an environment"),
            ] {
                query(statement).bind(id.as_str()).execute(transaction.on()).await.during(doing)?;
            }
            transaction.commit().await.during("committing")?;
            store.known_keys().forget_all();
            for key in keys {
                store.announce(Change::KeyArchived(key));
            }
            Ok(())
        })
        .await
    }
}

async fn find(on: Connection<'_>, workspace: &WorkspaceId, id: &EnvironmentId) -> Result<Environment, StoreError> {
    let asked = query(select!("WHERE id = $1 AND workspace_id = $2")).bind(id.as_str()).bind(workspace.as_str());
    let row = asked.optional(on).await.during("reading an environment")?;
    environment(&row.ok_or(StoreError::NotFound(Object::Environment))?)
}

/// Refuses a name that another active environment has.
async fn check_name(
    transaction: &mut Transaction,
    workspace: &WorkspaceId,
    name: &str,
    id: &EnvironmentId,
) -> Result<(), StoreError> {
    let taken =
        query("SELECT id FROM environments WHERE workspace_id = $1 AND name = $2 AND archived_at IS NULL AND id <> $3")
            .bind(workspace.as_str())
            .bind(name)
            .bind(id.as_str())
            .optional(transaction.on())
            .await
            .during("looking for a name")?;
    match taken {
        None => Ok(()),
        Some(row) => {
            let other = row.text("id")?;
            let reason = format!("name: the active environment {other} has this name; take another, or use that one");
            Err(ApiError::conflict(reason).into())
        }
    }
}

fn changed(before: &EnvironmentDefinition, after: &EnvironmentDefinition) -> Vec<&'static str> {
    [
        ("name", before.name != after.name),
        ("description", before.description != after.description),
        ("metadata", before.metadata != after.metadata),
        ("config", before.config != after.config),
    ]
    .into_iter()
    .filter_map(|(member, differs)| differs.then_some(member))
    .collect()
}

fn body(definition: &EnvironmentDefinition) -> Result<String, StoreError> {
    serde_json::to_string(definition).map_err(|_| StoreError::Corrupt("environments.body"))
}

fn environment(row: &Row) -> Result<Environment, StoreError> {
    Ok(Environment {
        id: row.parsed("id")?,
        definition: row.json("body")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        archived_at: row.optional_time("archived_at")?,
    })
}

#[cfg(test)]
mod tests;
