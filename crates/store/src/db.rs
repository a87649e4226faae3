//! One database, SQLite or PostgreSQL, behind one small interface, so that every statement is written once.
//!
//! Statements number their parameters (`$1`, `$2`), which both know, and stay within what both understand: integers of 64
//! bits, text, bytes; no booleans (`$1 = 1`); `RETURNING` and `ON CONFLICT` are fine. Values are bound, never written into
//! a statement.

#![expect(dead_code, reason = "used by what is written on top of it")]

use std::str::FromStr;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sortie_ids::Digest;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, PgPool, Postgres, Row as _, Sqlite, SqlitePool};

use crate::StoreError;

/// The pools of one database.
#[derive(Clone, Debug)]
pub(crate) enum Db {
    /// One connection that writes, some that read.
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    /// All of one kind.
    Postgres(PgPool),
}

/// A connection out of a pool, or within a transaction.
pub(crate) enum Connection<'c> {
    Sqlite(&'c mut sqlx::SqliteConnection),
    Postgres(&'c mut sqlx::PgConnection),
}

/// What has begun and is not yet committed; dropped, it is as if it had never been.
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// A row of an answer.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

/// A value of a parameter.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(Option<String>),
    Integer(Option<i64>),
    Bytes(Option<Vec<u8>>),
}

/// A statement with its values.
pub(crate) struct Query {
    sql: &'static str,
    values: Vec<Value>,
}

/// A statement that values are still to be bound to, in the order of their numbers.
pub(crate) fn query(sql: &'static str) -> Query {
    Query { sql, values: Vec::new() }
}

impl Db {
    /// Begins a transaction. On SQLite it holds the lock for writing from the start, so that what it reads stays true. On
    /// PostgreSQL it holds nothing yet: see [`Transaction::alone`].
    pub(crate) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Transaction::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(pool) => Transaction::Postgres(pool.begin().await?),
        })
    }

    /// Waits for what has begun, then closes.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                writer.close().await;
                readers.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// The lock that transactions share which must see no other beside them.
const ALONE: &str = "SELECT pg_advisory_xact_lock(6077020617)";

impl Transaction {
    /// Waits until no other transaction that asked for this is open, here or in another process: what is counted stays
    /// true until the end. For what is rare, such as making a tunnel.
    pub(crate) async fn alone(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(transaction) => {
                sqlx::query(ALONE).execute(&mut **transaction).await?;
            }
        }
        Ok(())
    }

    /// The connection that it runs on.
    pub(crate) fn on(&mut self) -> Connection<'_> {
        match self {
            Self::Sqlite(transaction) => Connection::Sqlite(transaction),
            Self::Postgres(transaction) => Connection::Postgres(transaction),
        }
    }

    /// Makes it last.
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl Query {
    /// Binds the next value.
    pub(crate) fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it; tells how many rows it changed.
    pub(crate) async fn execute(self, on: Connection<'_>) -> Result<u64, sqlx::Error> {
        match on {
            Connection::Sqlite(connection) => {
                let done = sqlx::query_with(self.sql, sqlite(self.values)?).execute(connection).await?;
                Ok(done.rows_affected())
            }
            Connection::Postgres(connection) => {
                let done = sqlx::query_with(self.sql, postgres(self.values)?).execute(connection).await?;
                Ok(done.rows_affected())
            }
        }
    }

    /// Runs it; its rows.
    pub(crate) async fn all(self, on: Connection<'_>) -> Result<Vec<Row>, sqlx::Error> {
        Ok(match on {
            Connection::Sqlite(connection) => {
                let rows = sqlx::query_with(self.sql, sqlite(self.values)?).fetch_all(connection).await?;
                rows.into_iter().map(Row::Sqlite).collect()
            }
            Connection::Postgres(connection) => {
                let rows = sqlx::query_with(self.sql, postgres(self.values)?).fetch_all(connection).await?;
                rows.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    /// Runs it; its first row.
    pub(crate) async fn optional(self, on: Connection<'_>) -> Result<Option<Row>, sqlx::Error> {
        Ok(match on {
            Connection::Sqlite(connection) => {
                sqlx::query_with(self.sql, sqlite(self.values)?).fetch_optional(connection).await?.map(Row::Sqlite)
            }
            Connection::Postgres(connection) => {
                sqlx::query_with(self.sql, postgres(self.values)?).fetch_optional(connection).await?.map(Row::Postgres)
            }
        })
    }

    /// The same on a connection for reading.
    pub(crate) async fn read_all(self, db: &Db) -> Result<Vec<Row>, sqlx::Error> {
        match db {
            Db::Sqlite { readers, .. } => self.all(Connection::Sqlite(&mut *readers.acquire().await?)).await,
            Db::Postgres(pool) => self.all(Connection::Postgres(&mut *pool.acquire().await?)).await,
        }
    }

    /// The same for the first row.
    pub(crate) async fn read_optional(self, db: &Db) -> Result<Option<Row>, sqlx::Error> {
        match db {
            Db::Sqlite { readers, .. } => self.optional(Connection::Sqlite(&mut *readers.acquire().await?)).await,
            Db::Postgres(pool) => self.optional(Connection::Postgres(&mut *pool.acquire().await?)).await,
        }
    }
}

fn sqlite(values: Vec<Value>) -> Result<SqliteArguments, sqlx::Error> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        match value {
            Value::Text(text) => arguments.add(text),
            Value::Integer(integer) => arguments.add(integer),
            Value::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn postgres(values: Vec<Value>) -> Result<PgArguments, sqlx::Error> {
    let mut arguments = PgArguments::default();
    for value in values {
        match value {
            Value::Text(text) => arguments.add(text),
            Value::Integer(integer) => arguments.add(integer),
            Value::Bytes(bytes) => arguments.add(bytes),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

macro_rules! into_value {
    ($($kind:ident: $from:ty => $to:expr;)*) => {
        $(
            impl From<$from> for Value {
                fn from(value: $from) -> Self {
                    let to: fn($from) -> _ = $to;
                    Self::$kind(Some(to(value)))
                }
            }

            impl From<Option<$from>> for Value {
                fn from(value: Option<$from>) -> Self {
                    let to: fn($from) -> _ = $to;
                    Self::$kind(value.map(to))
                }
            }
        )*
    };
}

into_value! {
    Text: &str => str::to_owned;
    Text: String => |text| text;
    Integer: i64 => |integer| integer;
    Integer: u32 => i64::from;
    Integer: bool => i64::from;
    Bytes: Vec<u8> => |bytes| bytes;
    Bytes: &[u8] => <[u8]>::to_vec;
    Bytes: &[u8; 32] => |bytes| bytes.to_vec();
}

/// A column by its name.
type Column = &'static str;

impl Row {
    fn get<T>(&self, column: Column) -> Result<T, StoreError>
    where
        T: for<'r> sqlx::Decode<'r, Sqlite>
            + sqlx::Type<Sqlite>
            + for<'r> sqlx::Decode<'r, Postgres>
            + sqlx::Type<Postgres>,
    {
        let value = match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        };
        value.map_err(|_| StoreError::Corrupt(column))
    }

    pub(crate) fn text(&self, column: Column) -> Result<String, StoreError> {
        self.get(column)
    }

    pub(crate) fn optional_text(&self, column: Column) -> Result<Option<String>, StoreError> {
        self.get(column)
    }

    pub(crate) fn integer(&self, column: Column) -> Result<i64, StoreError> {
        self.get(column)
    }

    pub(crate) fn optional_integer(&self, column: Column) -> Result<Option<i64>, StoreError> {
        self.get(column)
    }

    pub(crate) fn bytes(&self, column: Column) -> Result<Vec<u8>, StoreError> {
        self.get(column)
    }

    pub(crate) fn optional_bytes(&self, column: Column) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(column)
    }

    /// A text that is read into its type.
    pub(crate) fn parsed<T: FromStr>(&self, column: Column) -> Result<T, StoreError> {
        self.text(column)?.parse().map_err(|_| StoreError::Corrupt(column))
    }

    /// The same where there may be none.
    pub(crate) fn optional_parsed<T: FromStr>(&self, column: Column) -> Result<Option<T>, StoreError> {
        let text = self.optional_text(column)?;
        text.map(|text| text.parse().map_err(|_| StoreError::Corrupt(column))).transpose()
    }

    /// A JSON text that is read into its type.
    pub(crate) fn json<T: DeserializeOwned>(&self, column: Column) -> Result<T, StoreError> {
        serde_json::from_str(&self.text(column)?).map_err(|_| StoreError::Corrupt(column))
    }

    /// A time in seconds.
    pub(crate) fn time(&self, column: Column) -> Result<Timestamp, StoreError> {
        Timestamp::from_second(self.integer(column)?).map_err(|_| StoreError::Corrupt(column))
    }

    /// The same where there may be none.
    pub(crate) fn optional_time(&self, column: Column) -> Result<Option<Timestamp>, StoreError> {
        let seconds = self.optional_integer(column)?;
        seconds.map(|seconds| Timestamp::from_second(seconds).map_err(|_| StoreError::Corrupt(column))).transpose()
    }

    /// A time in microseconds.
    pub(crate) fn exact_time(&self, column: Column) -> Result<Timestamp, StoreError> {
        Timestamp::from_microsecond(self.integer(column)?).map_err(|_| StoreError::Corrupt(column))
    }

    /// The same where there may be none.
    pub(crate) fn optional_exact_time(&self, column: Column) -> Result<Option<Timestamp>, StoreError> {
        let micros = self.optional_integer(column)?;
        micros.map(|micros| Timestamp::from_microsecond(micros).map_err(|_| StoreError::Corrupt(column))).transpose()
    }

    /// A digest.
    pub(crate) fn digest(&self, column: Column) -> Result<Digest, StoreError> {
        let bytes: [u8; 32] = self.bytes(column)?.try_into().map_err(|_| StoreError::Corrupt(column))?;
        Ok(Digest::from(bytes))
    }
}
