//! Vaults.

use sortie_api::{ApiError, DisplayName, Metadata, PageRequest, Vault};
use sortie_ids::{CredentialId, VaultId, WorkspaceId};

use crate::agents::Changed;
use crate::credentials;
use crate::db::{Connection, Row, query};
use crate::error::During as _;
use crate::store::{Page, to_the_end};
use crate::{Object, Store, StoreError};

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT seq, id, body, created_at, updated_at, archived_at FROM vaults ", $rest)
    };
}

/// A vault that was archived, with what was archived in it by that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedVault {
    /// The vault.
    pub vault: Vault,
    /// Whether it was not archived before.
    pub fresh: bool,
    /// The credentials that went with it.
    pub credentials: Vec<CredentialId>,
}

/// What is kept in the column `body`.
#[derive(serde::Serialize, serde::Deserialize)]
struct Body {
    display_name: DisplayName,
    metadata: Metadata,
}

impl Store {
    /// Makes a vault.
    ///
    /// # Errors
    /// Database errors.
    pub async fn create_vault(
        &self,
        workspace: &WorkspaceId,
        display_name: DisplayName,
        metadata: Metadata,
    ) -> Result<Vault, StoreError> {
        let (store, workspace) = (self.clone(), workspace.clone());
        to_the_end(async move {
            let now = store.now();
            let vault = Vault {
                id: VaultId::random(),
                display_name,
                metadata,
                created_at: now,
                updated_at: now,
                archived_at: None,
            };
            let mut transaction = store.begin().await?;
            query("INSERT INTO vaults (id, workspace_id, body, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)")
                .bind(vault.id.as_str())
                .bind(workspace.as_str())
                .bind(body(&vault)?)
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("storing a vault")?;
            transaction.commit().await.during("committing")?;
            Ok(vault)
        })
        .await
    }

    /// A vault of the workspace, live or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<Vault, StoreError> {
        let asked = query(select!("WHERE id = $1 AND workspace_id = $2")).bind(id.as_str()).bind(workspace.as_str());
        let row = asked.read_optional(&self.db()).await.during("reading a vault")?;
        vault(&row.ok_or(StoreError::NotFound(Object::Vault))?)
    }

    /// The workspace's vaults, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_vaults(&self, workspace: &WorkspaceId, page: PageRequest) -> Result<Page<Vault>, StoreError> {
        let rows = query(select!(
            "WHERE workspace_id = $1 AND ($2 = 1 OR archived_at IS NULL) AND seq < $3 ORDER BY seq DESC LIMIT $4"
        ))
        .bind(workspace.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing vaults")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, vault(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// Changes name and metadata of a vault.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Refused`] with 400 for an archived one, and with what `change` refuses;
    /// database errors.
    pub async fn update_vault(
        &self,
        workspace: &WorkspaceId,
        id: &VaultId,
        change: impl FnOnce(DisplayName, Metadata) -> Result<(DisplayName, Metadata), ApiError> + Send + 'static,
    ) -> Result<Changed<Vault>, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = live(transaction.on(), &workspace, &id).await?;
            let (display_name, metadata) = change(before.display_name.clone(), before.metadata.clone())?;
            let differs =
                [("display_name", display_name != before.display_name), ("metadata", metadata != before.metadata)];
            let members: Vec<_> = differs.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect();
            if members.is_empty() {
                return Ok(Changed { object: before, members });
            }
            let now = store.now();
            let object = Vault { display_name, metadata, updated_at: now, ..before };
            query("UPDATE vaults SET body = $2, updated_at = $3 WHERE id = $1")
                .bind(id.as_str())
                .bind(body(&object)?)
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("updating a vault")?;
            transaction.commit().await.during("committing")?;
            Ok(Changed { object, members })
        })
        .await
    }

    /// Archives a vault for good, with all credentials in it, whose secrets are removed. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn archive_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<ArchivedVault, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = find(transaction.on(), &workspace, &id).await?;
            if before.archived_at.is_some() {
                return Ok(ArchivedVault { vault: before, fresh: false, credentials: Vec::new() });
            }
            let now = store.now();
            query("UPDATE vaults SET archived_at = $2, updated_at = $2 WHERE id = $1")
                .bind(id.as_str())
                .bind(now.as_second())
                .execute(transaction.on())
                .await
                .during("archiving a vault")?;
            let credentials = credentials::archive_all(transaction.on(), &id, now).await?;
            transaction.commit().await.during("committing")?;
            let vault = Vault { archived_at: Some(now), updated_at: now, ..before };
            Ok(ArchivedVault { vault, fresh: true, credentials })
        })
        .await
    }

    /// Deletes a vault with all credentials in it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn delete_vault(&self, workspace: &WorkspaceId, id: &VaultId) -> Result<(), StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            find(transaction.on(), &workspace, &id).await?;
            for (statement, doing) in [
                ("DELETE FROM vault_credentials WHERE vault_id = $1", "deleting credentials"),
                ("DELETE FROM vaults WHERE id = $1", "deleting a vault"),
            ] {
                query(statement).bind(id.as_str()).execute(transaction.on()).await.during(doing)?;
            }
            transaction.commit().await.during("committing")
        })
        .await
    }
}

/// The vault, if the workspace has it.
pub(crate) async fn find(on: Connection<'_>, workspace: &WorkspaceId, id: &VaultId) -> Result<Vault, StoreError> {
    let asked = query(select!("WHERE id = $1 AND workspace_id = $2")).bind(id.as_str()).bind(workspace.as_str());
    let row = asked.optional(on).await.during("reading a vault")?;
    vault(&row.ok_or(StoreError::NotFound(Object::Vault))?)
}

/// The same, if it is not archived.
pub(crate) async fn live(on: Connection<'_>, workspace: &WorkspaceId, id: &VaultId) -> Result<Vault, StoreError> {
    let vault = find(on, workspace, id).await?;
    match vault.archived_at {
        None => Ok(vault),
        Some(_) => Err(ApiError::invalid_request("The vault is archived, and that is final.").into()),
    }
}

fn body(vault: &Vault) -> Result<String, StoreError> {
    let body = Body { display_name: vault.display_name.clone(), metadata: vault.metadata.clone() };
    serde_json::to_string(&body).map_err(|_| StoreError::Corrupt("vaults.body"))
}

fn vault(row: &Row) -> Result<Vault, StoreError> {
    let Body { display_name, metadata } = row.json("body")?;
    Ok(Vault {
        id: row.parsed("id")?,
        display_name,
        metadata,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        archived_at: row.optional_time("archived_at")?,
    })
}
