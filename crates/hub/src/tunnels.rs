//! The tunnels as calls see them: what is registered on each right now, kept in memory and never stale.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures_util::future::BoxFuture;
use sortie_api::{Hop, HopError};
use sortie_edge::{Admitted, Directory, NotAdmitted};
use sortie_ids::{BaseDomain, Digest, TunnelDomain, TunnelLabel};
use sortie_store::{Change, Store, StoreError, TunnelRecord};
use sortie_tls::{ClientConfig, RegisteredCa};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::TryRecvError;

use crate::identity::Signer;

/// Tunnels kept; when it is full, all are forgotten.
const KEPT: usize = 10_000;

/// A tunnel that is not archived, with the CAs that its gateway's certificate may come from.
pub(crate) struct LiveTunnel {
    pub(crate) record: TunnelRecord,
    pub(crate) domain: TunnelDomain,
    pub(crate) cas: Vec<RegisteredCa>,
    /// For connections of HTTP/1.1, which offer nothing.
    pub(crate) tls: Arc<ClientConfig>,
    /// For connections of HTTP/2.
    pub(crate) shared_tls: Arc<ClientConfig>,
}

/// Finds tunnels.
pub(crate) struct Tunnels {
    store: Store,
    base: BaseDomain,
    signer: Signer,
    /// Read before every look, so that a change bites from the moment that its own request was answered.
    changes: Mutex<broadcast::Receiver<Change>>,
    generation: AtomicU64,
    kept: RwLock<HashMap<TunnelLabel, Arc<LiveTunnel>>>,
}

impl Tunnels {
    pub(crate) fn new(store: Store, base: BaseDomain, signer: Signer) -> Self {
        let changes = Mutex::new(store.changes());
        Self { store, base, signer, changes, generation: AtomicU64::new(0), kept: RwLock::default() }
    }

    /// The live tunnel with this label.
    pub(crate) async fn find(&self, label: &TunnelLabel) -> Result<Option<Arc<LiveTunnel>>, HopError> {
        self.apply_changes();
        let generation = self.generation.load(Ordering::Acquire);
        if let Some(tunnel) = self.kept.read().unwrap_or_else(PoisonError::into_inner).get(label) {
            return Ok(Some(tunnel.clone()));
        }
        let tunnel = self.load(label).await.map_err(|error| {
            tracing::error!(%error, source = ?std::error::Error::source(&error), "a tunnel could not be looked up");
            HopError::new(Hop::Edge, "the tunnel cannot be looked up at the moment")
        })?;
        let Some(tunnel) = tunnel else { return Ok(None) };
        // What was read before a change must not be kept after it.
        self.apply_changes();
        if self.generation.load(Ordering::Acquire) == generation {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            if kept.len() >= KEPT {
                kept.clear();
            }
            kept.insert(label.clone(), tunnel.clone());
        }
        Ok(Some(tunnel))
    }

    async fn load(&self, label: &TunnelLabel) -> Result<Option<Arc<LiveTunnel>>, StoreError> {
        let Some(record) = self.store.tunnel_by_label(label).await? else { return Ok(None) };
        if record.archived_at.is_some() {
            return Ok(None);
        }
        let pems = self.store.active_cas(&record.id).await?;
        let cas: Vec<_> = pems.iter().filter_map(|pem| RegisteredCa::parse_any_time(pem).ok()).collect();
        let tls = sortie_tls::inner_client_config(&cas, &[]);
        let shared_tls = sortie_tls::inner_client_config(&cas, &[b"h2"]);
        let domain = self.base.tunnel(&record.label);
        Ok(Some(Arc::new(LiveTunnel { record, domain, cas, tls, shared_tls })))
    }

    fn apply_changes(&self) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match changes.try_recv() {
                Ok(Change::TunnelArchived(id) | Change::CertificatesChanged(id)) => {
                    self.generation.fetch_add(1, Ordering::AcqRel);
                    let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
                    kept.retain(|_, tunnel| tunnel.record.id != id);
                }
                Ok(_) => {}
                Err(TryRecvError::Lagged(_)) => {
                    self.generation.fetch_add(1, Ordering::AcqRel);
                    self.kept.write().unwrap_or_else(PoisonError::into_inner).clear();
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }
}

impl Directory for Tunnels {
    fn admit<'a>(&'a self, token: &'a Digest) -> BoxFuture<'a, Result<Admitted, NotAdmitted>> {
        Box::pin(async move {
            match self.store.tunnel_by_token_digest(token).await {
                Ok(Some(tunnel)) => {
                    Ok(Admitted { tunnel: tunnel.id, label: tunnel.label, identity_keys: self.signer.announcements() })
                }
                Ok(None) => Err(NotAdmitted::Token),
                Err(error) => {
                    tracing::error!(%error, "a tunnel token could not be looked up");
                    Err(NotAdmitted::Unavailable)
                }
            }
        })
    }
}
