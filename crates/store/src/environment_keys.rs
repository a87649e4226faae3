//! Keys of environments: what their workers ask for work with.

use jiff::Timestamp;
use sortie_api::{CreateEnvironmentKey, CreatedKey, Key, KeyKind, Limits, PageRequest};
use sortie_ids::{ApiKey, EnvironmentId, KeyId, WorkspaceId};

use crate::db::{Row, query};
use crate::error::During as _;
use crate::keys::ArchivedKey;
use crate::store::{Page, to_the_end};
use crate::work::check_self_hosted;
use crate::{Object, Store, StoreError};

/// A statement about keys of environments.
macro_rules! select_key {
    ($rest:literal) => {
        concat!(
            "SELECT seq, id, workspace_id, name, environment_id, created_at, expires_at, archived_at, last_used_at \
             FROM keys ",
            $rest
        )
    };
}

impl Store {
    /// Makes a key of an environment; it may have several. The answer is the only place where its secret is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the workspace has no such environment, [`StoreError::NoWorkers`],
    /// [`StoreError::Archived`], [`StoreError::KeyRefused`], [`StoreError::TooManyKeys`]; database errors.
    pub async fn create_environment_key(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        new: CreateEnvironmentKey,
        limits: &Limits,
    ) -> Result<CreatedKey, StoreError> {
        let now = self.now();
        if new.expires_at.is_some_and(|end| end <= now) {
            return Err(StoreError::KeyRefused("expires_at: must be in the future".to_owned()));
        }
        let (store, workspace, environment) = (self.clone(), workspace.clone(), environment.clone());
        let limit = limits.keys_per_workspace;
        to_the_end(async move {
            let mut transaction = store.db().begin().await.during("beginning a transaction")?;
            transaction.alone().await.during("beginning a transaction")?;
            check_self_hosted(&mut transaction, &workspace, &environment).await?;
            let archived = query("SELECT id FROM environments WHERE id = $1 AND archived_at IS NOT NULL")
                .bind(environment.as_str())
                .optional(transaction.on())
                .await
                .during("reading an environment")?;
            if archived.is_some() {
                return Err(StoreError::Archived(Object::Environment));
            }
            let row = query("SELECT count(*) AS count FROM keys WHERE workspace_id = $1 AND archived_at IS NULL")
                .bind(workspace.as_str())
                .optional(transaction.on())
                .await
                .during("counting keys")?;
            if row.ok_or(StoreError::Corrupt("count"))?.integer("count")? >= i64::from(limit) {
                return Err(StoreError::TooManyKeys(limit));
            }
            let secret = ApiKey::random(KeyKind::Environment.as_str());
            let key = Key {
                id: KeyId::random(),
                workspace_id: workspace,
                kind: KeyKind::Environment,
                role: None,
                name: new.name,
                grants: Vec::new(),
                agent: None,
                user: None,
                environment_id: Some(environment),
                created_at: now,
                expires_at: new.expires_at,
                archived_at: None,
                last_used_at: None,
            };
            query(
                "INSERT INTO keys (id, workspace_id, kind, name, digest, environment_id, created_at, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(key.id.as_str())
            .bind(key.workspace_id.as_str())
            .bind(key.kind.as_str())
            .bind(key.name.as_str())
            .bind(secret.digest().as_bytes())
            .bind(key.environment_id.as_ref().map(EnvironmentId::as_str))
            .bind(key.created_at.as_second())
            .bind(key.expires_at.map(Timestamp::as_second))
            .execute(transaction.on())
            .await
            .during("storing a key")?;
            transaction.commit().await.during("committing")?;
            Ok(CreatedKey { key, secret })
        })
        .await
    }

    /// The keys of an environment, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the workspace has no such environment; database errors.
    pub async fn list_environment_keys(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        page: PageRequest,
    ) -> Result<Page<Key>, StoreError> {
        self.check_environment(workspace, environment).await?;
        let rows = query(select_key!(
            "WHERE environment_id = $1 AND ($2 = 1 OR archived_at IS NULL) AND seq < $3 ORDER BY seq DESC LIMIT $4"
        ))
        .bind(environment.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing keys")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, key(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// Withdraws a key of an environment for good, and with it every token that was handed out for it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn archive_environment_key(
        &self,
        workspace: &WorkspaceId,
        environment: &EnvironmentId,
        id: &KeyId,
    ) -> Result<ArchivedKey, StoreError> {
        let found = query("SELECT id FROM keys WHERE id = $1 AND environment_id = $2 AND workspace_id = $3")
            .bind(id.as_str())
            .bind(environment.as_str())
            .bind(workspace.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a key")?;
        found.ok_or(StoreError::NotFound(Object::Key))?;
        self.archive_key(workspace, id).await
    }
}

fn key(row: &Row) -> Result<Key, StoreError> {
    Ok(Key {
        id: row.parsed("id")?,
        workspace_id: row.parsed("workspace_id")?,
        kind: KeyKind::Environment,
        role: None,
        name: row.parsed("name")?,
        grants: Vec::new(),
        agent: None,
        user: None,
        environment_id: row.optional_parsed("environment_id")?,
        created_at: row.time("created_at")?,
        expires_at: row.optional_time("expires_at")?,
        archived_at: row.optional_time("archived_at")?,
        last_used_at: row.optional_time("last_used_at")?,
    })
}
