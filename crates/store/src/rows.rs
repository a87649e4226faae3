//! From columns to values. A value that is not of its type is an error of the database, never a panic.

use std::str::FromStr;

use jiff::Timestamp;
use sortie_ids::Digest;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::StoreError;

type Column = &'static str;

pub(crate) fn parsed<T: FromStr>(row: &SqliteRow, column: Column) -> Result<T, StoreError> {
    optional(row, column)?.ok_or(StoreError::Corrupt(column))
}

pub(crate) fn optional<T: FromStr>(row: &SqliteRow, column: Column) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = row.try_get(column).map_err(|_| StoreError::Corrupt(column))?;
    text.map(|text| text.parse().map_err(|_| StoreError::Corrupt(column))).transpose()
}

pub(crate) fn text(row: &SqliteRow, column: Column) -> Result<String, StoreError> {
    row.try_get(column).map_err(|_| StoreError::Corrupt(column))
}

pub(crate) fn bytes(row: &SqliteRow, column: Column) -> Result<&[u8], StoreError> {
    row.try_get(column).map_err(|_| StoreError::Corrupt(column))
}

pub(crate) fn integer(row: &SqliteRow, column: Column) -> Result<i64, StoreError> {
    row.try_get(column).map_err(|_| StoreError::Corrupt(column))
}

pub(crate) fn time(row: &SqliteRow, column: Column) -> Result<Timestamp, StoreError> {
    optional_time(row, column)?.ok_or(StoreError::Corrupt(column))
}

pub(crate) fn optional_time(row: &SqliteRow, column: Column) -> Result<Option<Timestamp>, StoreError> {
    let seconds: Option<i64> = row.try_get(column).map_err(|_| StoreError::Corrupt(column))?;
    seconds.map(|seconds| Timestamp::from_second(seconds).map_err(|_| StoreError::Corrupt(column))).transpose()
}

pub(crate) fn digest(row: &SqliteRow, column: Column) -> Result<Digest, StoreError> {
    // Text is the only form that `Digest` is made from.
    let hex: String = bytes(row, column)?.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.parse().map_err(|_| StoreError::Corrupt(column))
}
