//! The store itself, and how it writes and announces.

use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use sortie_api::time::{exact::micros, whole_seconds};
use sortie_ids::{EnvironmentId, KeyId, OrganizationId, TunnelId, WorkspaceId};
use tokio::sync::broadcast;

use crate::db::{self, Db, Transaction};
use crate::error::During as _;
use crate::keys::KeyCache;
use crate::open::Clock;
use crate::seal::MasterKey;
use crate::{Object, StoreError};

/// What changed, after it is stored. A receiver reads the new state itself; a change may be announced more than once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The tunnel takes no more calls and no more links; its certificates went with it.
    TunnelArchived(TunnelId),
    /// A certificate was added or archived: connections were checked against a set that is out of date.
    CertificatesChanged(TunnelId),
    /// The old token opens no new links; links that are open stay.
    TokenRotated(TunnelId),
    /// The key is not accepted any more.
    KeyArchived(KeyId),
    /// There is an item of work in the environment's queue that was not there before.
    WorkWaits(EnvironmentId),
}

/// One page of a list, newest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The objects.
    pub items: Vec<T>,
    /// The sequence number of the last one, when more follow.
    pub next: Option<i64>,
}

impl<T> Page<T> {
    /// Makes a page of at most `limit` objects from rows of which one more than that was asked for.
    pub(crate) fn of(mut items: Vec<(i64, T)>, limit: u32) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next = if more { items.last().map(|(sequence, _)| *sequence) } else { None };
        Self { items: items.into_iter().map(|(_, item)| item).collect(), next }
    }
}

/// Announcements that a slow receiver may be behind by; one that falls further behind is told so, and has to read
/// everything again.
const CHANGES: usize = 1024;

/// The hub's state. Clones are handles to the same store.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    db: Db,
    key: MasterKey,
    clock: Clock,
    default_workspace: WorkspaceId,
    changes: broadcast::Sender<Change>,
    known_keys: KeyCache,
}

impl Store {
    pub(crate) fn assemble(db: Db, key: MasterKey, clock: Clock, default_workspace: WorkspaceId) -> Self {
        let (changes, _) = broadcast::channel(CHANGES);
        let known_keys = KeyCache::default();
        Self { inner: Arc::new(Inner { db, key, clock, default_workspace, changes, known_keys }) }
    }

    /// The workspace that was made when the store was first opened.
    pub fn default_workspace(&self) -> &WorkspaceId {
        &self.inner.default_workspace
    }

    /// The organisation that a workspace belongs to.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] for an unknown workspace; database errors.
    pub async fn organization_of(&self, workspace: &WorkspaceId) -> Result<OrganizationId, StoreError> {
        let row = db::query("SELECT organization_id FROM workspaces WHERE id = $1")
            .bind(workspace.as_str())
            .read_optional(&self.db())
            .await
            .during("reading a workspace")?;
        row.ok_or(StoreError::NotFound(Object::Workspace))?.parsed("organization_id")
    }

    /// The time, in whole seconds, by the store's clock.
    pub fn now(&self) -> Timestamp {
        whole_seconds((self.inner.clock)())
    }

    /// The time, in whole microseconds, by the store's clock.
    pub fn exact_now(&self) -> Timestamp {
        micros((self.inner.clock)())
    }

    /// Announcements of changes from now on. `Lagged` means that some were missed: read everything again.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Waits for the writes that have begun, then closes the database. Every later call fails.
    pub async fn close(&self) {
        self.inner.db.close().await;
    }

    /// The database, for reading.
    pub(crate) fn db(&self) -> Db {
        self.inner.db.clone()
    }

    pub(crate) fn key(&self) -> &MasterKey {
        &self.inner.key
    }

    pub(crate) fn known_keys(&self) -> &KeyCache {
        &self.inner.known_keys
    }

    /// Begins a transaction. What it reads may change before its end, but for rows that it has written or locked: see
    /// [`Store::begin_alone`].
    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        self.inner.db.begin().await
    }

    /// Begins a transaction that no other one of this kind runs beside, so that what it reads of theirs stays true until
    /// it ends. For what is rare, such as making a tunnel.
    pub(crate) async fn begin_alone(&self) -> Result<Transaction, StoreError> {
        let mut transaction = self.begin().await?;
        transaction.alone().await.during("waiting for other writes")?;
        Ok(transaction)
    }

    pub(crate) fn announce(&self, change: Change) {
        // An error means that nobody listens.
        let _ = self.inner.changes.send(change);
    }
}

/// Runs a write to its end even when the caller goes away, so that no commit stays without its announcement.
#[expect(clippy::disallowed_methods, reason = "a write has to outlive its caller; the pool's close waits for it")]
pub(crate) async fn to_the_end<T: Send + 'static>(
    write: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::spawn(write).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Interrupted),
        },
    }
}
