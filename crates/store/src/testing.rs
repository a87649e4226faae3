//! A store in a directory of its own, with a clock that the test sets, and a second workspace.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use sortie_api::{Limits, PageRequest};
use sortie_ids::{Digest, OrganizationId, WorkspaceId};
use tempfile::TempDir;

use crate::db;
use crate::{Clock, NewCertificate, Options, Store};

pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) home: WorkspaceId,
    pub(crate) foreign: WorkspaceId,
    pub(crate) limits: Limits,
    pub(crate) dir: TempDir,
    seconds: Arc<AtomicI64>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let seconds = Arc::new(AtomicI64::new(1_800_000_000));
        let store =
            Store::open_with(Options { clock: clock(&seconds), ..Options::new(dir.path()) }).await.expect("store");
        let foreign = other_workspace(&store).await;
        let home = store.default_workspace().clone();
        Self { store, home, foreign, limits: Limits::default(), dir, seconds }
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        self.store = Store::open_with(Options { clock: clock(&self.seconds), ..Options::new(self.dir.path()) })
            .await
            .expect("store again");
    }

    /// Changes the database behind the store's back.
    pub(crate) async fn damage(&self, sql: &'static str) {
        let mut transaction = self.store.begin().await.expect("begin");
        db::query(sql).execute(transaction.on()).await.expect("damage");
        transaction.commit().await.expect("commit");
    }
}

fn clock(seconds: &Arc<AtomicI64>) -> Clock {
    let seconds = Arc::clone(seconds);
    Arc::new(move || Timestamp::from_second(seconds.load(Ordering::SeqCst)).expect("time"))
}

async fn other_workspace(store: &Store) -> WorkspaceId {
    let (organization, workspace) = (OrganizationId::random(), WorkspaceId::random());
    let mut transaction = store.begin().await.expect("begin");
    db::query("INSERT INTO organizations (id, name, created_at) VALUES ($1, 'Other', 0)")
        .bind(organization.as_str())
        .execute(transaction.on())
        .await
        .expect("organisation");
    db::query("INSERT INTO workspaces (id, organization_id, name, created_at) VALUES ($1, $2, 'Other', 0)")
        .bind(workspace.as_str())
        .bind(organization.as_str())
        .execute(transaction.on())
        .await
        .expect("workspace");
    transaction.commit().await.expect("commit");
    workspace
}

pub(crate) fn first(limit: u32) -> PageRequest {
    PageRequest { limit, before: None, include_archived: false }
}

pub(crate) fn all() -> PageRequest {
    PageRequest { include_archived: true, ..first(100) }
}

pub(crate) fn certificate(name: &str) -> NewCertificate {
    let expires_at = Some(Timestamp::from_second(1_900_000_000).expect("time"));
    NewCertificate { pem: format!("pem of {name}"), fingerprint: Digest::of(name.as_bytes()), expires_at }
}
