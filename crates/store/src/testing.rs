//! A store of a test's own, with a clock that the test sets, and a second workspace: on SQLite, and on a real PostgreSQL
//! server.
//!
//! A test that is to run on both is a plain function that takes the fixture, named in a list; one that is missing in the
//! list is dead code, which the compiler tells:
//!
//! ```ignore
//! on_both![what_is_stored_is_read_again];
//!
//! async fn what_is_stored_is_read_again(mut f: Fixture) {
//!     f.store.put_meta("a", "b").await.expect("put");
//!     f.reopen().await;
//!     assert_eq!(f.store.get_meta("a").await.expect("got").as_deref(), Some("b"));
//! }
//! ```
//!
//! It then runs as `sqlite::what_is_stored_is_read_again` and `postgres::what_is_stored_is_read_again`. With
//! [`Fixture::new`] a test runs on SQLite only: for what is about files, or about one engine.
//!
//! What PostgreSQL refuses and SQLite takes: `?` for a parameter, `sum()` read as an integer (write
//! `CAST(sum(x) AS BIGINT)`), a boolean made of an integer (`$1 = 1`), a column of a `GROUP BY` query that is neither grouped
//! nor aggregated, `max(a, b)` (write `CASE`), a subquery in `FROM` without a name, `user` as a name without quotes, a
//! statement after one that failed in the same transaction, and NUL in a text.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;
use sortie_api::{Limits, PageRequest};
use sortie_ids::{Digest, OrganizationId, WorkspaceId};
use sortie_testkit::Postgres;
use tempfile::TempDir;

use crate::db::{self, Query};
use crate::{Clock, NewCertificate, Options, Store};

/// Makes of functions that take a [`Fixture`] tests on SQLite and on PostgreSQL.
macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test($crate::testing::Fixture::new().await).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test]
                async fn $test() {
                    let Some(fixture) = $crate::testing::Fixture::on_postgres().await else { return };
                    super::$test(fixture).await;
                }
            )*
        }
    };
}
pub(crate) use on_both;

pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) home: WorkspaceId,
    pub(crate) foreign: WorkspaceId,
    pub(crate) limits: Limits,
    pub(crate) dir: TempDir,
    pub(crate) server: Option<Postgres>,
    seconds: Arc<AtomicI64>,
}

impl Fixture {
    /// On SQLite.
    pub(crate) async fn new() -> Self {
        Self::with(None).await
    }

    /// On PostgreSQL; `None` where it is not installed, which is said.
    pub(crate) async fn on_postgres() -> Option<Self> {
        Some(Self::with(Some(Postgres::start().await?)).await)
    }

    async fn with(server: Option<Postgres>) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let seconds = Arc::new(AtomicI64::new(1_800_000_000));
        let store = Store::open_with(options(&dir, server.as_ref(), &seconds)).await.expect("store");
        let foreign = other_workspace(&store).await;
        let home = store.default_workspace().clone();
        Self { store, home, foreign, limits: Limits::default(), dir, server, seconds }
    }

    pub(crate) fn pass(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await;
        self.store = Store::open_with(self.options()).await.expect("store again");
    }

    /// What its store was opened with.
    pub(crate) fn options(&self) -> Options {
        options(&self.dir, self.server.as_ref(), &self.seconds)
    }

    /// Changes the database behind the store's back.
    pub(crate) async fn damage(&self, query: impl Into<Query>) {
        let mut transaction = self.store.begin().await.expect("begin");
        query.into().execute(transaction.on()).await.expect("damage");
        transaction.commit().await.expect("commit");
    }

    /// Whether any file of the store or of its server holds these bytes.
    pub(crate) fn lies_in_a_file(&self, secret: &[u8]) -> bool {
        let server = self.server.as_ref().map(Postgres::data_dir);
        server.iter().map(|dir| dir.as_path()).chain([self.dir.path()]).any(|dir| lies_below(dir, secret))
    }
}

impl From<&'static str> for Query {
    fn from(sql: &'static str) -> Self {
        db::query(sql)
    }
}

fn lies_below(dir: &Path, secret: &[u8]) -> bool {
    fs::read_dir(dir).expect("dir").map(|entry| entry.expect("entry").path()).any(|path| {
        if path.is_dir() {
            return lies_below(&path, secret);
        }
        // A server removes files while it runs; a socket cannot be read.
        fs::read(path).is_ok_and(|bytes| bytes.windows(secret.len()).any(|part| part == secret))
    })
}

fn options(dir: &TempDir, server: Option<&Postgres>, seconds: &Arc<AtomicI64>) -> Options {
    let database = server.map(|server| server.url().parse().expect("url"));
    Options { database, clock: clock(seconds), ..Options::new(dir.path()) }
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
