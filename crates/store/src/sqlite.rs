//! Opening the SQLite file.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use crate::StoreError;
use crate::db::Db;
use crate::error::During as _;
use crate::migrations::{self, migrated};

/// How long a write waits for another process that holds the database.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections for reading; each is a thread with a small cache.
const READERS: u32 = 4;

/// Opens a database, which is made when there is none, and brings its tables up to date.
pub(crate) async fn open(database: &Path) -> Result<Db, StoreError> {
    make_private(database)?;
    let options = SqliteConnectOptions::new()
        .filename(database)
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
    // One connection: writes take turns here, not in SQLite's busy handler.
    let writer = pool(1).connect_with(options.clone()).await.during("opening it")?;
    migrated(migrations::SQLITE.run(&writer).await)?;
    let options = options.pragma("query_only", "ON");
    let readers = pool(READERS).connect_with(options).await.during("opening it for reading")?;
    Ok(Db::Sqlite { writer, readers })
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
