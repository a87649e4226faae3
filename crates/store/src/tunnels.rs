//! Tunnels and their tokens.

use jiff::Timestamp;
use sortie_api::{DisplayName, Limits, PageRequest, Tunnel, TunnelCertificate, TunnelToken};
use sortie_ids::{BaseDomain, Digest, OrganizationId, TokenId, TunnelId, TunnelLabel, WorkspaceId};

use crate::db::{self, Connection, Row, Transaction};
use crate::error::During as _;
use crate::repeats::{Made, Repeat};
use crate::seal::MasterKey;
use crate::store::{Change, Page, to_the_end};
use crate::{Object, Store, StoreError, certificates};

/// A tunnel as it is stored: with its workspace, and with a label instead of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelRecord {
    /// Its id.
    pub id: TunnelId,
    /// The workspace it belongs to, for ever.
    pub workspace: WorkspaceId,
    /// The random part of its domain, taken for ever.
    pub label: TunnelLabel,
    /// What its owner calls it.
    pub display_name: Option<DisplayName>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was archived.
    pub archived_at: Option<Timestamp>,
}

impl TunnelRecord {
    /// The tunnel as the API shows it.
    pub fn object(&self, base: &BaseDomain) -> Tunnel {
        Tunnel {
            id: self.id.clone(),
            display_name: self.display_name.clone(),
            domain: base.tunnel(&self.label).to_string(),
            created_at: self.created_at,
            archived_at: self.archived_at,
        }
    }

    fn from_row(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parsed("id")?,
            workspace: row.parsed("workspace_id")?,
            label: row.parsed("label")?,
            display_name: row.optional_parsed("display_name")?,
            created_at: row.time("created_at")?,
            archived_at: row.optional_time("archived_at")?,
        })
    }
}

/// The outcome of archiving a tunnel.
#[derive(Clone, Debug)]
pub struct ArchivedTunnel {
    /// The tunnel.
    pub tunnel: TunnelRecord,
    /// The certificates that were archived with it, just now.
    pub certificates: Vec<TunnelCertificate>,
    /// False when it was archived before, and nothing changed.
    pub fresh: bool,
}

/// The columns that [`TunnelRecord`] is made of.
macro_rules! select_tunnel {
    ($rest:literal) => {
        concat!(
            "SELECT t.seq, t.id, t.workspace_id, t.label, t.display_name, t.created_at, t.archived_at FROM tunnels t ",
            $rest
        )
    };
}

impl Store {
    /// Makes a tunnel with a fresh label and token.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown workspace, [`StoreError::TooManyTunnels`] at the organisation's limit;
    /// database errors.
    pub async fn create_tunnel(
        &self,
        workspace: &WorkspaceId,
        display_name: Option<DisplayName>,
        limits: &Limits,
    ) -> Result<TunnelRecord, StoreError> {
        let (store, workspace, limit) = (self.clone(), workspace.clone(), limits.tunnels_per_organization);
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let tunnel = store.insert_tunnel(&mut transaction, &workspace, display_name, limit).await?;
            transaction.commit().await.during("committing")?;
            Ok(tunnel)
        })
        .await
    }

    /// The same for a request that may come again. Writes take turns, so an attempt that comes while an earlier one runs
    /// finds what that one made.
    ///
    /// # Errors
    /// As [`Store::create_tunnel`], and [`StoreError::IdempotencyKeyReused`] or [`StoreError::TooManyIdempotencyKeys`].
    pub async fn create_tunnel_once(
        &self,
        workspace: &WorkspaceId,
        display_name: Option<DisplayName>,
        limits: &Limits,
        repeat: Repeat<TunnelRecord>,
    ) -> Result<Made<TunnelRecord>, StoreError> {
        let (store, workspace, limit) = (self.clone(), workspace.clone(), limits.tunnels_per_organization);
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let earlier = match &repeat {
                Repeat::Once(once) => store.answered(&mut transaction, &workspace, once).await?,
                Repeat::Attempt(attempt) => match store.earlier_attempt(&mut transaction, &workspace, attempt).await? {
                    Some(id) => Some(Made::Before(find(transaction.on(), &workspace, &id).await?)),
                    None => None,
                },
            };
            if let Some(earlier) = earlier {
                transaction.commit().await.during("committing")?;
                return Ok(earlier);
            }
            let tunnel = store.insert_tunnel(&mut transaction, &workspace, display_name, limit).await?;
            match repeat {
                Repeat::Once(once) => store.keep_answer(&mut transaction, &workspace, once, &tunnel).await?,
                Repeat::Attempt(attempt) => {
                    store.leave_unclaimed(&mut transaction, &tunnel.id, &attempt).await?;
                }
            }
            transaction.commit().await.during("committing")?;
            Ok(Made::Now(tunnel))
        })
        .await
    }

    async fn insert_tunnel(
        &self,
        transaction: &mut Transaction,
        workspace: &WorkspaceId,
        display_name: Option<DisplayName>,
        limit: u32,
    ) -> Result<TunnelRecord, StoreError> {
        let organization = organization(transaction.on(), workspace).await?;
        let row = db::query(
            "SELECT count(*) AS count FROM tunnels t JOIN workspaces w ON w.id = t.workspace_id \
             WHERE w.organization_id = $1 AND t.archived_at IS NULL",
        )
        .bind(organization.as_str())
        .one(transaction.on())
        .await
        .during("counting tunnels")?;
        if row.integer("count")? >= i64::from(limit) {
            return Err(StoreError::TooManyTunnels(limit));
        }
        let tunnel = TunnelRecord {
            id: TunnelId::random(),
            workspace: workspace.clone(),
            // 60 random bits; should one ever meet a label that is taken, the unique index refuses it.
            label: TunnelLabel::random(),
            display_name,
            created_at: self.now(),
            archived_at: None,
        };
        db::query(
            "INSERT INTO tunnels (id, workspace_id, label, display_name, created_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(tunnel.id.as_str())
        .bind(tunnel.workspace.as_str())
        .bind(tunnel.label.as_str())
        .bind(tunnel.display_name.as_ref().map(DisplayName::as_str))
        .bind(tunnel.created_at.as_second())
        .execute(transaction.on())
        .await
        .during("storing a tunnel")?;
        new_token(transaction, self.key(), &organization, &tunnel.id, None, tunnel.created_at).await?;
        Ok(tunnel)
    }

    /// The workspace's tunnels, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_tunnels(
        &self,
        workspace: &WorkspaceId,
        page: PageRequest,
    ) -> Result<Page<TunnelRecord>, StoreError> {
        let rows = db::query(select_tunnel!(
            "WHERE t.workspace_id = $1 AND ($2 = 1 OR t.archived_at IS NULL) AND t.seq < $3 ORDER BY t.seq DESC LIMIT $4"
        ))
        .bind(workspace.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing tunnels")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, TunnelRecord::from_row(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// A tunnel of the workspace, live or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn get_tunnel(&self, workspace: &WorkspaceId, id: &TunnelId) -> Result<TunnelRecord, StoreError> {
        find(self.db().on(), workspace, id).await
    }

    /// Archives a tunnel for good, with its certificates and its token. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; database errors.
    pub async fn archive_tunnel(&self, workspace: &WorkspaceId, id: &TunnelId) -> Result<ArchivedTunnel, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let mut tunnel = find(transaction.on(), &workspace, &id).await?;
            if tunnel.archived_at.is_some() {
                return Ok(ArchivedTunnel { tunnel, certificates: Vec::new(), fresh: false });
            }
            let now = store.now();
            db::query("UPDATE tunnels SET archived_at = $1 WHERE id = $2")
                .bind(now.as_second())
                .bind(id.as_str())
                .execute(transaction.on())
                .await
                .during("archiving a tunnel")?;
            let certificates = certificates::archive_all(&mut transaction, &id, now).await?;
            end_token(&mut transaction, &id, now).await?;
            transaction.commit().await.during("committing")?;
            store.announce(Change::TunnelArchived(id));
            tunnel.archived_at = Some(now);
            Ok(ArchivedTunnel { tunnel, certificates, fresh: true })
        })
        .await
    }

    /// The tunnels of an organisation, or of one workspace of it, newest first.
    ///
    /// # Errors
    /// Database errors.
    pub async fn list_organization_tunnels(
        &self,
        organization: &OrganizationId,
        workspace: Option<&WorkspaceId>,
        page: PageRequest,
    ) -> Result<Page<TunnelRecord>, StoreError> {
        let rows = db::query(select_tunnel!(
            "JOIN workspaces w ON w.id = t.workspace_id \
             WHERE w.organization_id = $1 AND ($2 IS NULL OR t.workspace_id = $2) \
             AND ($3 = 1 OR t.archived_at IS NULL) AND t.seq < $4 ORDER BY t.seq DESC LIMIT $5"
        ))
        .bind(organization.as_str())
        .bind(workspace.map(WorkspaceId::as_str))
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing tunnels")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, TunnelRecord::from_row(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// The workspace of a tunnel of this organisation.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the tunnel; database errors.
    pub async fn workspace_of_tunnel(
        &self,
        organization: &OrganizationId,
        id: &TunnelId,
    ) -> Result<WorkspaceId, StoreError> {
        let row = db::query(
            "SELECT t.workspace_id FROM tunnels t JOIN workspaces w ON w.id = t.workspace_id \
             WHERE t.id = $1 AND w.organization_id = $2",
        )
        .bind(id.as_str())
        .bind(organization.as_str())
        .read_optional(&self.db())
        .await
        .during("looking for a tunnel's workspace")?;
        row.ok_or(StoreError::NotFound(Object::Tunnel))?.parsed("workspace_id")
    }

    /// The current token of a tunnel.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Archived`]; [`StoreError::Corrupt`] when it cannot be unsealed; database
    /// errors.
    pub async fn reveal_token(&self, workspace: &WorkspaceId, id: &TunnelId) -> Result<TunnelToken, StoreError> {
        if find(self.db().on(), workspace, id).await?.archived_at.is_some() {
            return Err(StoreError::Archived(Object::Tunnel));
        }
        let row = db::query("SELECT sealed, digest FROM tunnel_tokens WHERE tunnel_id = $1 AND ended_at IS NULL")
            .bind(id.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a token")?;
        // Archived between the two reads.
        let row = row.ok_or(StoreError::Archived(Object::Tunnel))?;
        let corrupt = || StoreError::Corrupt("tunnel_tokens.sealed");
        let value = self.key().open(&token_place(id), &row.bytes("sealed")?).ok_or_else(corrupt)?;
        let text = std::str::from_utf8(&value).map_err(|_| corrupt())?;
        let value = sortie_ids::TunnelToken::parse(text).map_err(|_| corrupt())?;
        let digest = value.digest();
        if digest != row.digest("digest")? {
            return Err(corrupt());
        }
        Ok(TunnelToken { id: TokenId::of(&digest), value })
    }

    /// Replaces the token of a tunnel at once; the reason is kept beside the new one.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Archived`]; database errors.
    pub async fn rotate_token(
        &self,
        workspace: &WorkspaceId,
        id: &TunnelId,
        reason: Option<String>,
    ) -> Result<TunnelToken, StoreError> {
        let (store, workspace, id) = (self.clone(), workspace.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            if find(transaction.on(), &workspace, &id).await?.archived_at.is_some() {
                return Err(StoreError::Archived(Object::Tunnel));
            }
            let organization = organization(transaction.on(), &workspace).await?;
            let now = store.now();
            end_token(&mut transaction, &id, now).await?;
            let token = new_token(&mut transaction, store.key(), &organization, &id, reason, now).await?;
            transaction.commit().await.during("committing")?;
            store.announce(Change::TokenRotated(id));
            Ok(token)
        })
        .await
    }

    /// The live tunnel with this label, of any workspace.
    ///
    /// # Errors
    /// Database errors.
    pub async fn tunnel_by_label(&self, label: &TunnelLabel) -> Result<Option<TunnelRecord>, StoreError> {
        let row = db::query(select_tunnel!("WHERE t.label = $1 AND t.archived_at IS NULL"))
            .bind(label.as_str())
            .read_optional(&self.db())
            .await
            .during("looking a hostname up")?;
        row.as_ref().map(TunnelRecord::from_row).transpose()
    }

    /// A tunnel of any workspace, archived or not: for those who follow [`Change`]s.
    ///
    /// # Errors
    /// Database errors.
    pub async fn any_tunnel(&self, id: &TunnelId) -> Result<Option<TunnelRecord>, StoreError> {
        let row = db::query(select_tunnel!("WHERE t.id = $1"))
            .bind(id.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a tunnel")?;
        row.as_ref().map(TunnelRecord::from_row).transpose()
    }

    /// The live tunnel whose current token has this digest, of any workspace; none for a rotated token.
    ///
    /// # Errors
    /// Database errors.
    pub async fn tunnel_by_token_digest(&self, digest: &Digest) -> Result<Option<TunnelRecord>, StoreError> {
        let row = db::query(select_tunnel!(
            "JOIN tunnel_tokens k ON k.tunnel_id = t.id \
             WHERE k.digest = $1 AND k.ended_at IS NULL AND t.archived_at IS NULL"
        ))
        .bind(digest.as_bytes())
        .read_optional(&self.db())
        .await
        .during("looking a token up")?;
        row.as_ref().map(TunnelRecord::from_row).transpose()
    }
}

/// The tunnel, if the workspace has it.
pub(crate) async fn find(
    on: Connection<'_>,
    workspace: &WorkspaceId,
    id: &TunnelId,
) -> Result<TunnelRecord, StoreError> {
    let row = db::query(select_tunnel!("WHERE t.id = $1 AND t.workspace_id = $2"))
        .bind(id.as_str())
        .bind(workspace.as_str())
        .optional(on)
        .await
        .during("reading a tunnel")?;
    TunnelRecord::from_row(&row.ok_or(StoreError::NotFound(Object::Tunnel))?)
}

async fn organization(on: Connection<'_>, workspace: &WorkspaceId) -> Result<OrganizationId, StoreError> {
    let row = db::query("SELECT organization_id FROM workspaces WHERE id = $1")
        .bind(workspace.as_str())
        .optional(on)
        .await
        .during("reading a workspace")?;
    row.ok_or(StoreError::NotFound(Object::Workspace))?.parsed("organization_id")
}

/// The place that a tunnel's token is sealed for.
fn token_place(tunnel: &TunnelId) -> String {
    format!("tunnel_token:{tunnel}")
}

/// Ends the validity of the current token and wipes its value.
async fn end_token(transaction: &mut Transaction, tunnel: &TunnelId, now: Timestamp) -> Result<(), StoreError> {
    db::query("UPDATE tunnel_tokens SET ended_at = $1, sealed = NULL WHERE tunnel_id = $2 AND ended_at IS NULL")
        .bind(now.as_second())
        .bind(tunnel.as_str())
        .execute(transaction.on())
        .await
        .during("ending a token")?;
    Ok(())
}

async fn new_token(
    transaction: &mut Transaction,
    key: &MasterKey,
    organization: &OrganizationId,
    tunnel: &TunnelId,
    reason: Option<String>,
    now: Timestamp,
) -> Result<TunnelToken, StoreError> {
    let value = sortie_ids::TunnelToken::random(organization.as_str(), tunnel.as_str());
    let digest = value.digest();
    db::query("INSERT INTO tunnel_tokens (tunnel_id, digest, sealed, reason, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(tunnel.as_str())
        .bind(digest.as_bytes())
        .bind(key.seal(&token_place(tunnel), value.expose().as_bytes())?)
        .bind(reason)
        .bind(now.as_second())
        .execute(transaction.on())
        .await
        .during("storing a token")?;
    Ok(TunnelToken { id: TokenId::of(&digest), value })
}

#[cfg(test)]
mod tests;
