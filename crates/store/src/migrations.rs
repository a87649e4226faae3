//! The tables. They are described once, in the words of SQLite, of which a few are others in PostgreSQL. Where words do not
//! do, as when a table of SQLite has to be made anew, PostgreSQL has a file of the same number of its own. Only ever added
//! to: a migration that was released is never changed.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, Migrator};

use crate::StoreError;
use crate::error::During as _;

/// For SQLite.
pub(crate) static SQLITE: Migrator = sqlx::migrate!("./migrations");

/// For PostgreSQL, where they are not the same.
static OTHERS: Migrator = sqlx::migrate!("./migrations/postgres");

/// What is written otherwise in PostgreSQL, in this order.
const POSTGRES: [(&str, &str); 6] = [
    ("INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"),
    (" INTEGER", " BIGINT"),
    (" BLOB", " BYTEA"),
    (") STRICT;", ");"),
    ("COLUMN user ", "COLUMN \"user\" "),
    // The order of creation, which SQLite keeps by itself.
    ("CREATE TABLE workspaces (", "CREATE TABLE workspaces (\n    rowid BIGINT GENERATED ALWAYS AS IDENTITY,"),
];

/// For PostgreSQL.
pub(crate) fn postgres() -> Migrator {
    let migrations = SQLITE.iter().map(|migration| {
        if let Some(other) = OTHERS.iter().find(|other| other.version == migration.version) {
            return other.clone();
        }
        let sql = migration.sql.as_str().to_owned();
        let sql = POSTGRES.iter().fold(sql, |sql, (ours, theirs)| sql.replace(ours, theirs));
        let sql = sqlx::AssertSqlSafe(sql).into_sql_str();
        let Migration { version, description, migration_type, no_tx, .. } = migration;
        Migration::new(*version, description.clone(), *migration_type, sql, *no_tx)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // Whoever migrates holds a lock already.
    migrator.set_locking(false);
    migrator
}

/// What came of bringing the tables up to date.
pub(crate) fn migrated(result: Result<(), MigrateError>) -> Result<(), StoreError> {
    match result {
        Err(MigrateError::VersionMissing(_)) => Err(StoreError::Newer),
        Err(MigrateError::VersionMismatch(_)) => Err(StoreError::Foreign),
        other => other.during("bringing its tables up to date"),
    }
}

#[cfg(test)]
mod tests {
    use sortie_ids::Digest;

    use super::*;

    /// What databases were made with has to stay as it was, down to the last blank.
    #[test]
    fn tables_that_are_in_use_stay_as_they_are() {
        let digests = |migrator: &Migrator| -> Vec<String> {
            let released = migrator.iter().filter(|migration| migration.version <= 4);
            released
                .map(|migration| Digest::of(migration.sql.as_str().as_bytes()).to_string()[..16].to_owned())
                .collect()
        };
        assert_eq!(digests(&SQLITE), ["0b8f78b1f8edde9c", "da5c3c694b307797", "727caf70361d37d3", "757bf2252140cfb1"]);
    }
}
