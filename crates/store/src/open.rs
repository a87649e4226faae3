//! Opening the store: directory, database, tables, master key, and the first organisation and workspace.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use sortie_ids::{OrganizationId, WorkspaceId};

use crate::db::{self, Db};
use crate::error::During as _;
use crate::seal::MasterKey;
use crate::{DatabaseUrl, Store, StoreError, postgres, sqlite};

/// Where the store takes the time from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What a store is opened with.
#[derive(Clone)]
pub struct Options {
    /// Where the master key is, and the database if it is SQLite's.
    pub data_dir: PathBuf,
    /// A PostgreSQL database instead of a file.
    pub database: Option<DatabaseUrl>,
    /// Where it takes the time from.
    pub clock: Clock,
}

/// The secret that tells whether the master key is the one of this database.
const CHECK_NAME: &str = "store.check";
const CHECK_VALUE: &[u8] = b"sortie store";

impl Options {
    /// A SQLite file in this directory, and the time of this machine.
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), database: None, clock: Arc::new(Timestamp::now) }
    }
}

impl Store {
    /// Opens the store in a directory, as [`Store::open_with`] does.
    ///
    /// # Errors
    /// As [`Store::open_with`].
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(Options::new(data_dir)).await
    }

    /// Opens the store, and makes what is missing: the directory (mode 0700), the database `store.db` unless another one
    /// is given, and the master key `store.key` (mode 0600), the first organisation and workspace. The mode of a
    /// directory that is there already is left as it is.
    ///
    /// # Errors
    /// When a file cannot be used, the database is not there, not ours, or another hub's, or the master key is missing,
    /// exposed or another one.
    pub async fn open_with(options: Options) -> Result<Self, StoreError> {
        let Options { data_dir, database, clock } = options;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&data_dir);
        made.map_err(|source| StoreError::File { doing: "making", path: data_dir.clone(), source })?;
        let db = match &database {
            Some(url) => postgres::open(url).await?,
            None => sqlite::open(&data_dir.join("store.db")).await?,
        };
        let key_path = data_dir.join("store.key");
        let key = MasterKey::load(&key_path, !has_check(&db).await?)?;
        let workspace = first_contents(&db, &key, &key_path, clock()).await?;
        Ok(Self::assemble(db, key, clock, workspace))
    }
}

/// Whether the database was used with a master key before.
async fn has_check(db: &Db) -> Result<bool, StoreError> {
    let check = db::query("SELECT name FROM secrets WHERE name = $1").bind(CHECK_NAME);
    Ok(check.read_optional(db).await.during("looking for the check of the master key")?.is_some())
}

/// The default workspace, made together with its organisation and the check of the master key when there is none.
async fn first_contents(db: &Db, key: &MasterKey, key_path: &Path, now: Timestamp) -> Result<WorkspaceId, StoreError> {
    let wrong_key = || StoreError::MasterKeyWrong(PathBuf::from(key_path));
    let mut transaction = db.begin().await?;
    transaction.alone().await.during("waiting for other writes")?;
    let check = db::query("SELECT sealed FROM secrets WHERE name = $1")
        .bind(CHECK_NAME)
        .optional(transaction.on())
        .await
        .during("checking the master key")?;
    if let Some(row) = check {
        let opened = key.open(&secret_place(CHECK_NAME), &row.bytes("sealed")?);
        if opened.is_none_or(|value| value.as_slice() != CHECK_VALUE) {
            return Err(wrong_key());
        }
    } else {
        db::query("INSERT INTO secrets (name, sealed) VALUES ($1, $2)")
            .bind(CHECK_NAME)
            .bind(key.seal(&secret_place(CHECK_NAME), CHECK_VALUE)?)
            .execute(transaction.on())
            .await
            .during("storing the check of the master key")?;
    }
    let found = db::query("SELECT id FROM workspaces ORDER BY rowid LIMIT 1")
        .optional(transaction.on())
        .await
        .during("reading the workspaces")?;
    if let Some(row) = found {
        let workspace = row.parsed("id")?;
        transaction.commit().await.during("committing")?;
        return Ok(workspace);
    }
    let (organization, workspace) = (OrganizationId::random(), WorkspaceId::random());
    db::query("INSERT INTO organizations (id, name, created_at) VALUES ($1, 'Default', $2)")
        .bind(organization.as_str())
        .bind(now.as_second())
        .execute(transaction.on())
        .await
        .during("making the first organisation")?;
    db::query("INSERT INTO workspaces (id, organization_id, name, created_at) VALUES ($1, $2, 'Default', $3)")
        .bind(workspace.as_str())
        .bind(organization.as_str())
        .bind(now.as_second())
        .execute(transaction.on())
        .await
        .during("making the first workspace")?;
    transaction.commit().await.during("committing")?;
    Ok(workspace)
}

/// The place that a secret with this name is sealed for.
pub(crate) fn secret_place(name: &str) -> String {
    format!("secret:{name}")
}
