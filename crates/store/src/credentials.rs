//! Credentials in vaults. Their secrets are sealed, and are opened for nobody but who uses them.

use jiff::Timestamp;
use sortie_api::{
    ApiError, Credential, CredentialAuth, CredentialDefinition, CredentialSecrets, PageRequest, SecretText,
};
use sortie_ids::{CredentialId, VaultId, WorkspaceId};

use crate::agents::Changed;
use crate::db::{Connection, Row, Transaction, query};
use crate::error::During as _;
use crate::store::{Page, to_the_end};
use crate::{Object, Store, StoreError, vaults};

/// Most credentials that a vault has at one time, archived ones not counted, as the public contract has it.
const MAX_CREDENTIALS: i64 = 20;

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT c.seq, c.id, c.vault_id, c.body, c.sealed, c.revision, c.created_at, c.updated_at, c.archived_at \
             FROM vault_credentials c JOIN vaults v ON v.id = c.vault_id ",
            $rest
        )
    };
}

/// A credential with its secrets, for whoever uses it.
#[derive(Clone, Debug)]
pub struct FoundCredential {
    /// The vault that it was found in.
    pub vault: VaultId,
    /// Its id.
    pub id: CredentialId,
    /// What it is for.
    pub auth: CredentialAuth,
    /// Its secrets.
    pub secrets: CredentialSecrets,
    /// Which state of it this is: it grows with every change.
    pub revision: i64,
}

/// What an authorisation server gave.
#[derive(Clone, Debug)]
pub struct NewTokens {
    /// The token.
    pub access_token: SecretText,
    /// What the next one is got with; none when the earlier one stays.
    pub refresh_token: Option<SecretText>,
    /// When the token ends; none when that is not known.
    pub expires_at: Option<Timestamp>,
}

impl Store {
    /// Puts a credential into a vault.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the vault; [`StoreError::Refused`] with 400 for an archived or full one, with 409 when
    /// it has an active credential for the same server or variable; database errors.
    pub async fn create_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        definition: CredentialDefinition,
        secrets: CredentialSecrets,
    ) -> Result<Credential, StoreError> {
        let (store, workspace, vault_id) = (self.clone(), workspace.clone(), vault.clone());
        to_the_end(async move {
            let now = store.now();
            let id = CredentialId::random();
            let mut transaction = store.begin_alone().await?;
            vaults::live(transaction.on(), &workspace, &vault_id).await?;
            let place = definition.auth.place();
            check_room(&mut transaction, &vault_id, &place).await?;
            query(
                "INSERT INTO vault_credentials (id, vault_id, place, body, sealed, revision, created_at, updated_at) \
                 VALUES ($1, $2, $3, $4, $5, 1, $6, $6)",
            )
            .bind(id.as_str())
            .bind(vault_id.as_str())
            .bind(place)
            .bind(body(&definition)?)
            .bind(store.sealed(&id, &secrets)?)
            .bind(now.as_second())
            .execute(transaction.on())
            .await
            .during("storing a credential")?;
            transaction.commit().await.during("committing")?;
            Ok(Credential { id, vault_id, definition, created_at: now, updated_at: now, archived_at: None })
        })
        .await
    }

    /// A credential, live or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for vault or credential; database errors.
    pub async fn credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Credential, StoreError> {
        self.vault(workspace, vault).await?;
        let asked = query(select!("WHERE c.id = $1 AND c.vault_id = $2")).bind(id.as_str()).bind(vault.as_str());
        let row = asked.read_optional(&self.db()).await.during("reading a credential")?;
        credential(&row.ok_or(StoreError::NotFound(Object::Credential))?)
    }

    /// The credentials of a vault, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the vault; database errors.
    pub async fn list_credentials(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        page: PageRequest,
    ) -> Result<Page<Credential>, StoreError> {
        self.vault(workspace, vault).await?;
        let rows = query(select!(
            "WHERE c.vault_id = $1 AND ($2 = 1 OR c.archived_at IS NULL) AND c.seq < $3 ORDER BY c.seq DESC LIMIT $4"
        ))
        .bind(vault.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing credentials")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, credential(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// Changes a credential.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for vault or credential; [`StoreError::Refused`] with 400 for an archived one, and with what
    /// `change` refuses; [`StoreError::Corrupt`] when its secrets cannot be opened; database errors.
    pub async fn update_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
        change: impl FnOnce(
            CredentialDefinition,
            CredentialSecrets,
        ) -> Result<(CredentialDefinition, CredentialSecrets), ApiError>
        + Send
        + 'static,
    ) -> Result<Changed<Credential>, StoreError> {
        let (store, workspace, vault, id) = (self.clone(), workspace.clone(), vault.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let row = find(&mut transaction, &workspace, &vault, &id).await?;
            let before = credential(&row)?;
            if before.archived_at.is_some() {
                return Err(ApiError::invalid_request("The credential is archived, and that is final.").into());
            }
            let earlier = store.opened(&id, &row)?;
            let (definition, secrets) = change(before.definition.clone(), earlier.clone())?;
            let members = changed(&before.definition, &definition, earlier != secrets);
            if members.is_empty() {
                return Ok(Changed { object: before, members });
            }
            let now = store.now();
            let (text, sealed) = (body(&definition)?, store.sealed(&id, &secrets)?);
            write(&mut transaction, &id, text, sealed, now).await?;
            transaction.commit().await.during("committing")?;
            Ok(Changed { object: Credential { definition, updated_at: now, ..before }, members })
        })
        .await
    }

    /// Archives a credential for good, and removes its secrets. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for vault or credential; database errors.
    pub async fn archive_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<Changed<Credential>, StoreError> {
        let (store, workspace, vault, id) = (self.clone(), workspace.clone(), vault.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let before = credential(&find(&mut transaction, &workspace, &vault, &id).await?)?;
            if before.archived_at.is_some() {
                return Ok(Changed { object: before, members: Vec::new() });
            }
            let now = store.now();
            query(
                "UPDATE vault_credentials SET archived_at = $2, updated_at = $2, sealed = NULL, revision = revision + 1 \
                 WHERE id = $1",
            )
            .bind(id.as_str())
            .bind(now.as_second())
            .execute(transaction.on())
            .await
            .during("archiving a credential")?;
            transaction.commit().await.during("committing")?;
            let object = Credential { archived_at: Some(now), updated_at: now, ..before };
            Ok(Changed { object, members: vec!["archived_at"] })
        })
        .await
    }

    /// Deletes a credential.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for vault or credential; database errors.
    pub async fn delete_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<(), StoreError> {
        let (store, workspace, vault, id) = (self.clone(), workspace.clone(), vault.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            find(&mut transaction, &workspace, &vault, &id).await?;
            query("DELETE FROM vault_credentials WHERE id = $1")
                .bind(id.as_str())
                .execute(transaction.on())
                .await
                .during("deleting a credential")?;
            transaction.commit().await.during("committing")
        })
        .await
    }

    /// The active credential for a place (see [`CredentialAuth::place`]; for a server [`sortie_api::normalized_mcp_url`])
    /// in the first of these vaults that has one. Vaults that are gone, archived or of another workspace have none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when its secrets cannot be opened; database errors.
    pub async fn credentials_for(
        &self,
        workspace: &WorkspaceId,
        vaults: &[VaultId],
        place: &str,
    ) -> Result<Option<FoundCredential>, StoreError> {
        for vault in vaults {
            let row = query(select!(
                "WHERE c.vault_id = $1 AND v.workspace_id = $2 AND c.place = $3 \
                 AND c.archived_at IS NULL AND v.archived_at IS NULL"
            ))
            .bind(vault.as_str())
            .bind(workspace.as_str())
            .bind(place)
            .read_optional(&self.db())
            .await
            .during("looking for a credential")?;
            if let Some(row) = row {
                return self.found(&row).map(Some);
            }
        }
        Ok(None)
    }

    /// An active credential with its secrets.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for vault or credential; [`StoreError::Refused`] with 400 for an archived one;
    /// [`StoreError::Corrupt`] when its secrets cannot be opened; database errors.
    pub async fn open_credential(
        &self,
        workspace: &WorkspaceId,
        vault: &VaultId,
        id: &CredentialId,
    ) -> Result<FoundCredential, StoreError> {
        self.vault(workspace, vault).await?;
        let asked = query(select!("WHERE c.id = $1 AND c.vault_id = $2")).bind(id.as_str()).bind(vault.as_str());
        let row = asked.read_optional(&self.db()).await.during("reading a credential")?;
        let row = row.ok_or(StoreError::NotFound(Object::Credential))?;
        if row.optional_integer("archived_at")?.is_some() {
            return Err(ApiError::invalid_request("The credential is archived, and its secrets are gone.").into());
        }
        self.found(&row)
    }

    /// Puts what an authorisation server gave in the place of what was there, if the credential is still in the state that
    /// the caller knows, and active. The new revision; none when it is not.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when its secrets cannot be opened, or it is of another kind; database errors.
    pub async fn replace_tokens(
        &self,
        credential: &CredentialId,
        revision: i64,
        new: NewTokens,
    ) -> Result<Option<i64>, StoreError> {
        let (store, id) = (self.clone(), credential.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let row = query(select!("WHERE c.id = $1 AND c.revision = $2 AND c.archived_at IS NULL"))
                .bind(id.as_str())
                .bind(revision)
                .optional(transaction.on())
                .await
                .during("reading a credential")?;
            let Some(row) = row else { return Ok(None) };
            let (mut definition, secrets) = (row.json::<CredentialDefinition>("body")?, store.opened(&id, &row)?);
            let (
                CredentialAuth::McpOauth { expires_at, .. },
                CredentialSecrets::Oauth { refresh_token, client_secret, .. },
            ) = (&mut definition.auth, secrets)
            else {
                return Err(StoreError::Corrupt("vault_credentials.sealed"));
            };
            *expires_at = new.expires_at;
            let secrets = CredentialSecrets::Oauth {
                access_token: new.access_token,
                refresh_token: new.refresh_token.or(refresh_token),
                client_secret,
            };
            let (text, sealed) = (body(&definition)?, store.sealed(&id, &secrets)?);
            write(&mut transaction, &id, text, sealed, store.now()).await?;
            transaction.commit().await.during("committing")?;
            Ok(Some(revision.saturating_add(1)))
        })
        .await
    }

    fn found(&self, row: &Row) -> Result<FoundCredential, StoreError> {
        let Credential { id, vault_id, definition, .. } = credential(row)?;
        let secrets = self.opened(&id, row)?;
        Ok(FoundCredential { vault: vault_id, id, auth: definition.auth, secrets, revision: row.integer("revision")? })
    }

    fn sealed(&self, id: &CredentialId, secrets: &CredentialSecrets) -> Result<Vec<u8>, StoreError> {
        self.key().seal(&place(id), secrets.to_sealed_text().as_bytes())
    }

    fn opened(&self, id: &CredentialId, row: &Row) -> Result<CredentialSecrets, StoreError> {
        let opened = self.key().open(&place(id), &row.bytes("sealed")?);
        let secrets = opened.and_then(|text| CredentialSecrets::from_sealed_text(&text));
        secrets.ok_or(StoreError::Corrupt("vault_credentials.sealed"))
    }
}

/// Archives what is active in a vault, and removes the secrets.
pub(crate) async fn archive_all(
    on: Connection<'_>,
    vault: &VaultId,
    now: Timestamp,
) -> Result<Vec<CredentialId>, StoreError> {
    let rows = query(
        "UPDATE vault_credentials SET archived_at = $2, updated_at = $2, sealed = NULL, revision = revision + 1 \
         WHERE vault_id = $1 AND archived_at IS NULL RETURNING id",
    )
    .bind(vault.as_str())
    .bind(now.as_second())
    .all(on)
    .await
    .during("archiving credentials")?;
    let mut ids = rows.iter().map(|row| row.parsed("id")).collect::<Result<Vec<CredentialId>, _>>()?;
    ids.sort_unstable();
    Ok(ids)
}

/// The place that a credential's secrets are sealed for.
fn place(id: &CredentialId) -> String {
    format!("vault_credential:{id}")
}

async fn find(
    transaction: &mut Transaction,
    workspace: &WorkspaceId,
    vault: &VaultId,
    id: &CredentialId,
) -> Result<Row, StoreError> {
    vaults::find(transaction.on(), workspace, vault).await?;
    let asked = query(select!("WHERE c.id = $1 AND c.vault_id = $2")).bind(id.as_str()).bind(vault.as_str());
    let row = asked.optional(transaction.on()).await.during("reading a credential")?;
    row.ok_or(StoreError::NotFound(Object::Credential))
}

/// Refuses what has no place in a vault.
async fn check_room(transaction: &mut Transaction, vault: &VaultId, place: &str) -> Result<(), StoreError> {
    let rows = query("SELECT id, place FROM vault_credentials WHERE vault_id = $1 AND archived_at IS NULL")
        .bind(vault.as_str())
        .all(transaction.on())
        .await
        .during("counting credentials")?;
    for row in &rows {
        if row.text("place")? == place {
            let other = row.text("id")?;
            let reason =
                format!("The vault has an active credential for `{place}`: {other}. Change or archive that one.");
            return Err(ApiError::conflict(reason).into());
        }
    }
    if i64::try_from(rows.len()).unwrap_or(i64::MAX) >= MAX_CREDENTIALS {
        let reason =
            format!("The vault has {MAX_CREDENTIALS} active credentials, the most there can be; archive one first.");
        return Err(ApiError::limit_reached(reason).into());
    }
    Ok(())
}

async fn write(
    transaction: &mut Transaction,
    id: &CredentialId,
    body: String,
    sealed: Vec<u8>,
    now: Timestamp,
) -> Result<(), StoreError> {
    query(
        "UPDATE vault_credentials SET body = $2, sealed = $3, updated_at = $4, revision = revision + 1 WHERE id = $1",
    )
    .bind(id.as_str())
    .bind(body)
    .bind(sealed)
    .bind(now.as_second())
    .execute(transaction.on())
    .await
    .during("updating a credential")?;
    Ok(())
}

fn changed(before: &CredentialDefinition, after: &CredentialDefinition, secrets: bool) -> Vec<&'static str> {
    [
        ("display_name", before.display_name != after.display_name),
        ("auth", before.auth != after.auth),
        ("metadata", before.metadata != after.metadata),
        ("secrets", secrets),
    ]
    .into_iter()
    .filter_map(|(member, differs)| differs.then_some(member))
    .collect()
}

fn body(definition: &CredentialDefinition) -> Result<String, StoreError> {
    serde_json::to_string(definition).map_err(|_| StoreError::Corrupt("vault_credentials.body"))
}

fn credential(row: &Row) -> Result<Credential, StoreError> {
    Ok(Credential {
        id: row.parsed("id")?,
        vault_id: row.parsed("vault_id")?,
        definition: row.json("body")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        archived_at: row.optional_time("archived_at")?,
    })
}

#[cfg(test)]
mod tests;
