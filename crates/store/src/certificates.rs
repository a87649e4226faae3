//! The CA certificates of tunnels. Whether a certificate is acceptable is decided before it comes here.

use jiff::Timestamp;
use sortie_api::{Limits, PageRequest, TunnelCertificate};
use sortie_ids::{CertificateId, Digest, TunnelId, WorkspaceId};

use crate::db::{self, Connection, Row, Transaction};
use crate::error::During as _;
use crate::repeats::{Made, Once};
use crate::store::{Change, Page, to_the_end};
use crate::{Object, Store, StoreError, tunnels};

/// A checked certificate to register.
#[derive(Clone, Debug)]
pub struct NewCertificate {
    /// Its PEM text.
    pub pem: String,
    /// SHA-256 of its DER encoding.
    pub fingerprint: Digest,
    /// The end of its validity.
    pub expires_at: Option<Timestamp>,
}

/// The outcome of registering a certificate.
#[derive(Clone, Debug)]
pub struct AddedCertificate {
    /// The certificate.
    pub certificate: TunnelCertificate,
    /// False when the tunnel trusted it already, and nothing changed.
    pub fresh: bool,
}

/// The outcome of archiving a certificate.
#[derive(Clone, Debug)]
pub struct ArchivedCertificate {
    /// The certificate.
    pub certificate: TunnelCertificate,
    /// False when it was archived before, and nothing changed.
    pub fresh: bool,
}

/// The columns that [`TunnelCertificate`] is made of.
macro_rules! select_certificate {
    ($rest:literal) => {
        concat!("SELECT seq, id, tunnel_id, fingerprint, created_at, expires_at, archived_at FROM certificates ", $rest)
    };
}

impl Store {
    /// Registers a CA certificate on a live tunnel. One that the tunnel trusts already is returned as it is and uses no
    /// second place, so that a repeated request does no harm.
    ///
    /// # Errors
    /// [`StoreError::NotFound`], [`StoreError::Archived`], [`StoreError::TooManyCertificates`]; database errors.
    pub async fn add_certificate(
        &self,
        workspace: &WorkspaceId,
        tunnel: &TunnelId,
        new: NewCertificate,
        limits: &Limits,
    ) -> Result<AddedCertificate, StoreError> {
        let (store, workspace, tunnel) = (self.clone(), workspace.clone(), tunnel.clone());
        let limit = limits.certificates_per_tunnel;
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            let added = store.register(&mut transaction, &workspace, tunnel, new, limit).await?;
            transaction.commit().await.during("committing")?;
            store.announce_added(&added);
            Ok(added)
        })
        .await
    }

    /// The same once for each idempotency key.
    ///
    /// # Errors
    /// As [`Store::add_certificate`], and [`StoreError::IdempotencyKeyReused`] or
    /// [`StoreError::TooManyIdempotencyKeys`].
    pub async fn add_certificate_once(
        &self,
        workspace: &WorkspaceId,
        tunnel: &TunnelId,
        new: NewCertificate,
        limits: &Limits,
        once: Once<AddedCertificate>,
    ) -> Result<Made<AddedCertificate>, StoreError> {
        let (store, workspace, tunnel) = (self.clone(), workspace.clone(), tunnel.clone());
        let limit = limits.certificates_per_tunnel;
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            if let Some(answered) = store.answered(&mut transaction, &workspace, &once).await? {
                return Ok(answered);
            }
            let added = store.register(&mut transaction, &workspace, tunnel, new, limit).await?;
            store.keep_answer(&mut transaction, &workspace, once, &added).await?;
            transaction.commit().await.during("committing")?;
            store.announce_added(&added);
            Ok(Made::Now(added))
        })
        .await
    }

    async fn register(
        &self,
        transaction: &mut Transaction,
        workspace: &WorkspaceId,
        tunnel: TunnelId,
        new: NewCertificate,
        limit: u32,
    ) -> Result<AddedCertificate, StoreError> {
        if tunnels::find(transaction.on(), workspace, &tunnel).await?.archived_at.is_some() {
            return Err(StoreError::Archived(Object::Tunnel));
        }
        let active = active(transaction, &tunnel).await?;
        let count = active.len();
        if let Some(certificate) = active.into_iter().find(|known| known.fingerprint == new.fingerprint) {
            return Ok(AddedCertificate { certificate, fresh: false });
        }
        if count >= usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(StoreError::TooManyCertificates(limit));
        }
        let certificate = TunnelCertificate {
            id: CertificateId::random(),
            tunnel_id: tunnel,
            fingerprint: new.fingerprint,
            created_at: self.now(),
            expires_at: new.expires_at,
            archived_at: None,
        };
        db::query(
            "INSERT INTO certificates (id, tunnel_id, pem, fingerprint, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(certificate.id.as_str())
        .bind(certificate.tunnel_id.as_str())
        .bind(new.pem)
        .bind(certificate.fingerprint.as_bytes())
        .bind(certificate.created_at.as_second())
        .bind(certificate.expires_at.map(Timestamp::as_second))
        .execute(transaction.on())
        .await
        .during("storing a certificate")?;
        Ok(AddedCertificate { certificate, fresh: true })
    }

    fn announce_added(&self, added: &AddedCertificate) {
        if added.fresh {
            self.announce(Change::CertificatesChanged(added.certificate.tunnel_id.clone()));
        }
    }

    /// The certificates of a tunnel, newest first.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the tunnel; database errors.
    pub async fn list_certificates(
        &self,
        workspace: &WorkspaceId,
        tunnel: &TunnelId,
        page: PageRequest,
    ) -> Result<Page<TunnelCertificate>, StoreError> {
        tunnels::find(self.db().on(), workspace, tunnel).await?;
        let rows = db::query(select_certificate!(
            "WHERE tunnel_id = $1 AND ($2 = 1 OR archived_at IS NULL) AND seq < $3 ORDER BY seq DESC LIMIT $4"
        ))
        .bind(tunnel.as_str())
        .bind(page.include_archived)
        .bind(page.before.unwrap_or(i64::MAX))
        .bind(i64::from(page.limit).saturating_add(1))
        .read_all(&self.db())
        .await
        .during("listing certificates")?;
        let items = rows.iter().map(|row| Ok((row.integer("seq")?, from_row(row)?)));
        Ok(Page::of(items.collect::<Result<_, StoreError>>()?, page.limit))
    }

    /// A certificate of a tunnel, active or archived.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the tunnel or the certificate; database errors.
    pub async fn get_certificate(
        &self,
        workspace: &WorkspaceId,
        tunnel: &TunnelId,
        id: &CertificateId,
    ) -> Result<TunnelCertificate, StoreError> {
        tunnels::find(self.db().on(), workspace, tunnel).await?;
        find(self.db().on(), tunnel, id).await
    }

    /// Takes a certificate out of the trusted set for good, also the last one. An archived one stays as it is.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for the tunnel or the certificate; database errors.
    pub async fn archive_certificate(
        &self,
        workspace: &WorkspaceId,
        tunnel: &TunnelId,
        id: &CertificateId,
    ) -> Result<ArchivedCertificate, StoreError> {
        let (store, workspace, tunnel, id) = (self.clone(), workspace.clone(), tunnel.clone(), id.clone());
        to_the_end(async move {
            let mut transaction = store.begin_alone().await?;
            tunnels::find(transaction.on(), &workspace, &tunnel).await?;
            let mut certificate = find(transaction.on(), &tunnel, &id).await?;
            if certificate.archived_at.is_some() {
                return Ok(ArchivedCertificate { certificate, fresh: false });
            }
            let now = store.now();
            db::query("UPDATE certificates SET archived_at = $1 WHERE id = $2")
                .bind(now.as_second())
                .bind(id.as_str())
                .execute(transaction.on())
                .await
                .during("archiving a certificate")?;
            transaction.commit().await.during("committing")?;
            store.announce(Change::CertificatesChanged(tunnel));
            certificate.archived_at = Some(now);
            Ok(ArchivedCertificate { certificate, fresh: true })
        })
        .await
    }

    /// The PEM texts of the certificates that a tunnel trusts now, of any workspace; none when it is archived.
    ///
    /// # Errors
    /// Database errors.
    pub async fn active_cas(&self, tunnel: &TunnelId) -> Result<Vec<String>, StoreError> {
        let rows =
            db::query("SELECT pem FROM certificates WHERE tunnel_id = $1 AND archived_at IS NULL ORDER BY seq DESC")
                .bind(tunnel.as_str())
                .read_all(&self.db())
                .await
                .during("reading certificates")?;
        rows.iter().map(|row| row.text("pem")).collect()
    }
}

/// Archives every active certificate of a tunnel; returns them as they are now.
pub(crate) async fn archive_all(
    transaction: &mut Transaction,
    tunnel: &TunnelId,
    now: Timestamp,
) -> Result<Vec<TunnelCertificate>, StoreError> {
    let mut certificates = active(transaction, tunnel).await?;
    db::query("UPDATE certificates SET archived_at = $1 WHERE tunnel_id = $2 AND archived_at IS NULL")
        .bind(now.as_second())
        .bind(tunnel.as_str())
        .execute(transaction.on())
        .await
        .during("archiving certificates")?;
    for certificate in &mut certificates {
        certificate.archived_at = Some(now);
    }
    Ok(certificates)
}

async fn active(transaction: &mut Transaction, tunnel: &TunnelId) -> Result<Vec<TunnelCertificate>, StoreError> {
    let rows = db::query(select_certificate!("WHERE tunnel_id = $1 AND archived_at IS NULL ORDER BY seq DESC"))
        .bind(tunnel.as_str())
        .all(transaction.on())
        .await
        .during("reading certificates")?;
    rows.iter().map(from_row).collect()
}

async fn find(on: Connection<'_>, tunnel: &TunnelId, id: &CertificateId) -> Result<TunnelCertificate, StoreError> {
    let row = db::query(select_certificate!("WHERE id = $1 AND tunnel_id = $2"))
        .bind(id.as_str())
        .bind(tunnel.as_str())
        .optional(on)
        .await
        .during("reading a certificate")?;
    from_row(&row.ok_or(StoreError::NotFound(Object::Certificate))?)
}

fn from_row(row: &Row) -> Result<TunnelCertificate, StoreError> {
    Ok(TunnelCertificate {
        id: row.parsed("id")?,
        tunnel_id: row.parsed("tunnel_id")?,
        fingerprint: row.digest("fingerprint")?,
        created_at: row.time("created_at")?,
        expires_at: row.optional_time("expires_at")?,
        archived_at: row.optional_time("archived_at")?,
    })
}

#[cfg(test)]
mod tests;
