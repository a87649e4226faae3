//! Opening the store: directory, master key, database, migrations, and the first organisation and workspace.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sortie_ids::{OrganizationId, WorkspaceId};
use sqlx::ConnectOptions as _;
use sqlx::SqlitePool;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::error::During as _;
use crate::rows;
use crate::seal::MasterKey;
use crate::{Store, StoreError};

/// Where the store takes the time from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// The secret that tells whether the master key is the one of this database.
const CHECK_NAME: &str = "store.check";
const CHECK_VALUE: &[u8] = b"sortie store";

/// How long a write waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections for reading; each is a thread with a small cache.
const READERS: u32 = 4;

impl Store {
    /// Opens the store in a directory, and makes what is missing: the directory (mode 0700), the database `store.db`
    /// and the master key `store.key` (mode 0600), the first organisation and workspace. The mode of a directory that
    /// is there already is left as it is.
    ///
    /// # Errors
    /// When a file cannot be used, the master key is missing, exposed or another one, or the database is not ours.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        Self::open_with_clock(data_dir, Arc::new(Timestamp::now)).await
    }

    /// The same with another clock.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_with_clock(data_dir: &Path, clock: Clock) -> Result<Self, StoreError> {
        let key_path = data_dir.join("store.key");
        let database = data_dir.join("store.db");
        let is_new = prepare_files(data_dir, &database)?;
        let key = MasterKey::load(&key_path, is_new)?;
        make_private(&database)?;

        let options = SqliteConnectOptions::new()
            .filename(&database)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            // Wiped tokens are overwritten in the file, too.
            .pragma("secure_delete", "ON")
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .test_before_acquire(false)
                .idle_timeout(None)
                .max_lifetime(None)
        };
        let writer = pool(1).connect_with(options.clone()).await.during("opening it")?;
        MIGRATIONS.run(&writer).await.during("bringing its tables up to date")?;
        let readers = pool(READERS).connect_with(options).await.during("opening it for reading")?;
        let workspace = first_contents(&writer, &key, &key_path, clock()).await?;
        Ok(Self::assemble(writer, readers, key, clock, workspace))
    }
}

/// Makes the directory; tells whether the database is still to be made.
fn prepare_files(data_dir: &Path, database: &Path) -> Result<bool, StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
    made.map_err(|source| StoreError::File { doing: "making", path: data_dir.to_owned(), source })?;
    match fs::metadata(database) {
        // An empty file is what an interrupted first start leaves.
        Ok(found) => Ok(found.len() == 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(StoreError::File { doing: "reading", path: database.to_owned(), source }),
    }
}

/// Makes the database file before SQLite does, which would leave its mode to the umask. The journal gets the same mode.
fn make_private(database: &Path) -> Result<(), StoreError> {
    let result = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(database)
        .and_then(|file| file.set_permissions(fs::Permissions::from_mode(0o600)));
    result.map_err(|source| StoreError::File { doing: "making", path: database.to_owned(), source })
}

/// The default workspace, made together with its organisation and the check of the master key when there is none.
async fn first_contents(
    writer: &SqlitePool,
    key: &MasterKey,
    key_path: &Path,
    now: Timestamp,
) -> Result<WorkspaceId, StoreError> {
    let wrong_key = || StoreError::MasterKeyWrong(PathBuf::from(key_path));
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await.during("beginning a transaction")?;
    let check = sqlx::query("SELECT sealed FROM secrets WHERE name = ?")
        .bind(CHECK_NAME)
        .fetch_optional(&mut *transaction)
        .await
        .during("checking the master key")?;
    if let Some(row) = check {
        let opened = key.open(&secret_place(CHECK_NAME), rows::bytes(&row, "sealed")?);
        if opened.is_none_or(|value| value.as_slice() != CHECK_VALUE) {
            return Err(wrong_key());
        }
    } else {
        sqlx::query("INSERT INTO secrets (name, sealed) VALUES (?, ?)")
            .bind(CHECK_NAME)
            .bind(key.seal(&secret_place(CHECK_NAME), CHECK_VALUE)?)
            .execute(&mut *transaction)
            .await
            .during("storing the check of the master key")?;
    }
    let found = sqlx::query("SELECT id FROM workspaces ORDER BY rowid LIMIT 1")
        .fetch_optional(&mut *transaction)
        .await
        .during("reading the workspaces")?;
    if let Some(row) = found {
        let workspace = rows::parsed(&row, "id")?;
        transaction.commit().await.during("committing")?;
        return Ok(workspace);
    }
    let (organization, workspace) = (OrganizationId::random(), WorkspaceId::random());
    sqlx::query("INSERT INTO organizations (id, name, created_at) VALUES (?, 'Default', ?)")
        .bind(organization.as_str())
        .bind(now.as_second())
        .execute(&mut *transaction)
        .await
        .during("making the first organisation")?;
    sqlx::query("INSERT INTO workspaces (id, organization_id, name, created_at) VALUES (?, ?, 'Default', ?)")
        .bind(workspace.as_str())
        .bind(organization.as_str())
        .bind(now.as_second())
        .execute(&mut *transaction)
        .await
        .during("making the first workspace")?;
    transaction.commit().await.during("committing")?;
    Ok(workspace)
}

/// The place that a secret with this name is sealed for.
pub(crate) fn secret_place(name: &str) -> String {
    format!("secret:{name}")
}
