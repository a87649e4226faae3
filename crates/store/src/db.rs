//! One database, SQLite or PostgreSQL, behind one small interface, so that every statement is written once.
//!
//! Statements number their parameters (`$1`, `$2`), which both know, and stay within what both understand: integers of 64
//! bits, text, bytes; no booleans (`$1 = 1`); `RETURNING` and `ON CONFLICT` are fine. Values are bound, never written into
//! a statement.

use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sortie_ids::Digest;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments as _, PgPool, Postgres, Row as _, Sqlite, SqlitePool};

use crate::StoreError;
use crate::error::During as _;
use crate::postgres::answered;
use crate::sole::Sole;

/// The pools of one database.
#[derive(Clone)]
pub(crate) enum Db {
    /// One connection that writes, some that read.
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    /// Some that write, some that only read, so that reads do not wait behind writes; and the right to write.
    Postgres { writers: PgPool, readers: PgPool, sole: Arc<Sole> },
}

/// What a statement runs on: the connection of a transaction, or any that only reads.
pub(crate) enum Connection<'c> {
    Sqlite(&'c mut sqlx::SqliteConnection),
    Postgres(&'c mut sqlx::PgConnection),
    Reader(&'c Db),
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
    pub(crate) async fn begin(&self) -> Result<Transaction, StoreError> {
        let doing = "beginning a transaction";
        Ok(match self {
            Self::Sqlite { writer, .. } => {
                Transaction::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await.during(doing)?)
            }
            Self::Postgres { writers, sole, .. } => {
                sole.held().await?;
                Transaction::Postgres(answered(writers.begin()).await.during(doing)?)
            }
        })
    }

    /// A connection for reading; each statement takes one for itself.
    pub(crate) fn on(&self) -> Connection<'_> {
        Connection::Reader(self)
    }

    /// Waits for what has begun, then closes.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                writer.close().await;
                readers.close().await;
            }
            Self::Postgres { writers, readers, sole } => {
                writers.close().await;
                readers.close().await;
                sole.release().await;
            }
        }
    }
}

/// The lock that transactions share which must see no other beside them.
const ALONE: &str = "SELECT pg_advisory_xact_lock(1936683637::bigint << 32 | oid::bigint) \
                     FROM pg_namespace WHERE nspname = current_schema()";

impl Transaction {
    /// Waits until no other transaction that asked for this is open, here or in another process: what is counted stays
    /// true until the end. For what is rare, such as making a tunnel.
    pub(crate) async fn alone(&mut self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(transaction) => {
                answered(sqlx::query(ALONE).execute(&mut **transaction)).await?;
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
            Self::Postgres(transaction) => answered(transaction.commit()).await,
        }
    }
}

impl Connection<'_> {
    /// The same once more.
    pub(crate) fn again(&mut self) -> Connection<'_> {
        match self {
            Self::Sqlite(connection) => Connection::Sqlite(connection),
            Self::Postgres(connection) => Connection::Postgres(connection),
            Self::Reader(db) => Connection::Reader(db),
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
        Ok(match on {
            Connection::Sqlite(connection) => self.sqlite()?.execute(connection).await?.rows_affected(),
            Connection::Postgres(connection) => answered(self.postgres()?.execute(connection)).await?.rows_affected(),
            // These connections refuse to change anything.
            Connection::Reader(Db::Sqlite { readers, .. }) => self.sqlite()?.execute(readers).await?.rows_affected(),
            Connection::Reader(Db::Postgres { readers, .. }) => {
                answered(self.postgres()?.execute(readers)).await?.rows_affected()
            }
        })
    }

    /// Runs it; its rows.
    pub(crate) async fn all(self, on: Connection<'_>) -> Result<Vec<Row>, sqlx::Error> {
        let sqlite = |rows: Vec<SqliteRow>| rows.into_iter().map(Row::Sqlite).collect();
        let postgres = |rows: Vec<PgRow>| rows.into_iter().map(Row::Postgres).collect();
        Ok(match on {
            Connection::Sqlite(connection) => sqlite(self.sqlite()?.fetch_all(connection).await?),
            Connection::Postgres(connection) => postgres(answered(self.postgres()?.fetch_all(connection)).await?),
            Connection::Reader(Db::Sqlite { readers, .. }) => sqlite(self.sqlite()?.fetch_all(readers).await?),
            Connection::Reader(Db::Postgres { readers, .. }) => {
                postgres(answered(self.postgres()?.fetch_all(readers)).await?)
            }
        })
    }

    /// Runs it; its first row, if it has any.
    pub(crate) async fn optional(self, on: Connection<'_>) -> Result<Option<Row>, sqlx::Error> {
        Ok(match on {
            Connection::Sqlite(connection) => self.sqlite()?.fetch_optional(connection).await?.map(Row::Sqlite),
            Connection::Postgres(connection) => {
                answered(self.postgres()?.fetch_optional(connection)).await?.map(Row::Postgres)
            }
            Connection::Reader(Db::Sqlite { readers, .. }) => {
                self.sqlite()?.fetch_optional(readers).await?.map(Row::Sqlite)
            }
            Connection::Reader(Db::Postgres { readers, .. }) => {
                answered(self.postgres()?.fetch_optional(readers)).await?.map(Row::Postgres)
            }
        })
    }

    /// Runs it; its first row, which there always is, such as that of a count.
    pub(crate) async fn one(self, on: Connection<'_>) -> Result<Row, sqlx::Error> {
        self.optional(on).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Its rows, read outside of a transaction.
    pub(crate) async fn read_all(self, db: &Db) -> Result<Vec<Row>, sqlx::Error> {
        self.all(db.on()).await
    }

    /// Its first row, read outside of a transaction.
    pub(crate) async fn read_optional(self, db: &Db) -> Result<Option<Row>, sqlx::Error> {
        self.optional(db.on()).await
    }

    fn sqlite(self) -> Result<sqlx::query::Query<'static, Sqlite, SqliteArguments>, sqlx::Error> {
        let mut arguments = SqliteArguments::default();
        for value in self.values {
            match value {
                Value::Text(text) => arguments.add(text),
                Value::Integer(integer) => arguments.add(integer),
                Value::Bytes(bytes) => arguments.add(bytes),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(self.sql, arguments))
    }

    fn postgres(self) -> Result<sqlx::query::Query<'static, Postgres, PgArguments>, sqlx::Error> {
        let mut arguments = PgArguments::default();
        for value in self.values {
            match value {
                Value::Text(text) => arguments.add(text),
                Value::Integer(integer) => arguments.add(integer),
                Value::Bytes(bytes) => arguments.add(bytes),
            }
            .map_err(sqlx::Error::Encode)?;
        }
        Ok(sqlx::query_with(self.sql, arguments))
    }
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

#[allow(dead_code, reason = "some are only used by what is built on this")]
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
