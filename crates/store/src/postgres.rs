//! Opening a PostgreSQL database: is it new enough, does nobody else use it, is it ours.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::time::timeout;

use crate::db::Db;
use crate::error::During as _;
use crate::migrations::{self, migrated};
use crate::sole::{self, Sole};
use crate::{DatabaseUrl, StoreError};

/// Transactions at the same time; one more waits.
const WRITERS: u32 = 8;
/// Reads at the same time; one more waits.
const READERS: u32 = 8;
/// How long a wait for a free connection, or for the server to take one, may last.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// How long a statement may take, a server that has vanished included: longer than the server itself lets it.
const ANSWER: Duration = Duration::from_secs(40);
/// A connection that rested longer than this is asked whether it still lives before it is used.
const RESTED: Duration = Duration::from_secs(1);
/// The oldest server that is supported, in its own way of counting.
const OLDEST: u32 = 130_000;

/// What a connection is set to, whatever the server's default is. The server soon lets go of what belongs to a hub that has
/// vanished.
const SETTINGS: [(&str, &str); 5] = [
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "60s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];
/// Of those that serve requests.
const SERVING: [(&str, &str); 2] = [("statement_timeout", "30s"), ("lock_timeout", "10s")];

/// Opens a database and brings its tables up to date.
pub(crate) async fn open(url: &DatabaseUrl) -> Result<Db, StoreError> {
    let options = url.options().options(SETTINGS);
    let mut connection = connect(url, &options).await?;
    check_server(&mut connection).await?;
    let pid = sole::take(&mut connection, PATIENCE).await?;
    check_owner(&mut connection).await?;
    migrated(migrations::postgres().run(&mut connection).await)?;
    let sole = Sole::keep(connection, pid, options.clone());
    let options = options.options(SERVING);
    let writers = pool(WRITERS, Some(&sole)).connect_lazy_with(options.clone());
    let readers = pool(READERS, None).connect_lazy_with(options.options([("default_transaction_read_only", "on")]));
    Ok(Db::Postgres { writers, readers, sole: Arc::new(sole) })
}

async fn connect(url: &DatabaseUrl, options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    let connected = timeout(PATIENCE, options.connect()).await.unwrap_or_else(|_| Err(late()));
    connected.map_err(|source| StoreError::Connect {
        database: url.to_string(),
        reason: reason(&source),
        source: Box::new(source),
    })
}

/// Why a connection fails, and what to do about it.
fn reason(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    match (error, code.as_deref()) {
        (_, Some("28P01" | "28000")) => "it refuses this user with this password".to_owned(),
        (_, Some("3D000")) => "there is no such database; make it with `CREATE DATABASE`".to_owned(),
        (_, Some("53300")) => "it has no connection left for the hub, which needs 17".to_owned(),
        (_, Some("57P03")) => "it is starting or stopping".to_owned(),
        (sqlx::Error::Tls(_), _) => format!("its server is not proven: {error}"),
        (sqlx::Error::Io(io), _) if io.kind() == io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        (sqlx::Error::Io(_), _) => format!("nothing answers there ({error})"),
        _ => error.to_string(),
    }
}

/// Whether the server and the database are of a kind that this works with.
async fn check_server(connection: &mut PgConnection) -> Result<(), StoreError> {
    if connection.server_version_num().is_none_or(|version| version < OLDEST) {
        return Err(StoreError::OldServer);
    }
    let sql = "SELECT current_setting('server_encoding') AS encoding, current_schema()::text AS schema, \
               current_setting('fsync') AS fsync";
    let row = sqlx::query(sql).fetch_one(connection).await.during("asking the server for its settings")?;
    let text = |column| row.try_get::<Option<String>, _>(column).during("asking the server for its settings");
    if text("encoding")?.as_deref() != Some("UTF8") {
        return Err(StoreError::Encoding);
    }
    if text("schema")?.is_none() {
        return Err(StoreError::NoSchema);
    }
    if text("fsync")?.as_deref() == Some("off") {
        tracing::warn!(
            "the database server runs with fsync=off: a crash of its machine loses or damages what it holds"
        );
    }
    Ok(())
}

/// Whether the tables that are there are ours.
async fn check_owner(connection: &mut PgConnection) -> Result<(), StoreError> {
    let sql = "SELECT count(*) AS tables, \
                   count(*) FILTER (WHERE tablename IN ('_sqlx_migrations', 'organizations', 'workspaces', 'secrets')) AS ours \
               FROM pg_tables WHERE schemaname = current_schema()";
    let row = sqlx::query(sql).fetch_one(connection).await.during("looking at its tables")?;
    let count = |column| row.try_get::<i64, _>(column).during("looking at its tables");
    // An interrupted first start leaves the first of ours alone.
    let (tables, ours) = (count("tables")?, count("ours")?);
    if ours == 4 || tables == ours { Ok(()) } else { Err(StoreError::Foreign) }
}

fn pool(connections: u32, sole: Option<&Sole>) -> PgPoolOptions {
    let sole = sole.map(Sole::watch);
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .max_lifetime(None)
        .test_before_acquire(false)
        .before_acquire(|connection, rested| {
            Box::pin(async move {
                if rested.idle_for > RESTED {
                    timeout(PATIENCE, connection.ping()).await.unwrap_or_else(|_| Err(late()))?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection, _| {
            let sole = sole.clone();
            Box::pin(async move {
                // A commit that was acknowledged is on the disk; a stronger setting of the server's stays.
                let sql = "SELECT set_config('synchronous_commit', 'on', false) \
                           WHERE current_setting('synchronous_commit') IN ('off', 'local')";
                sqlx::query(sql).execute(&mut *connection).await?;
                match sole {
                    Some(sole) => sole.check(connection).await,
                    None => Ok(()),
                }
            })
        })
}

/// Bounds the wait for an answer.
pub(crate) async fn answered<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(late()))
}

fn late() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "the database server did not answer in time"))
}

#[cfg(test)]
mod tests;
