//! Records as JSON texts.

use rusqlite::Row;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::column;
use crate::StoreError;

/// The text that is stored.
pub(super) fn encode<T: Serialize>(table: &'static str, record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| StoreError::Unwritable { table, source })
}

/// The record in a row's column `record`.
pub(super) fn decode<T: DeserializeOwned>(table: &'static str, row: &Row<'_>) -> Result<T, StoreError> {
    column(table, row, "record", |text: String| serde_json::from_str(&text))
}
