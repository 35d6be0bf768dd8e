//! The records: one module for each kind, free functions over a connection.

pub mod approvals;
pub mod audit;
pub mod backoffs;
pub mod claims;
pub mod credentials;
pub mod errands;
pub mod events;
pub mod messages;
pub mod meta;
pub mod operations;
pub mod overrides;
pub mod revisions;
pub mod snapshots;
pub mod tasks;
pub mod tokens;

mod by_agent;
mod json;

#[cfg(test)]
mod tests;

use std::error::Error;

use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
use rusqlite::types::FromSql;
use rusqlite::{Connection, Params, Row};

use crate::StoreError;

/// Turns the refusal of a second row, where there may be one, into an error that says so.
fn already(error: rusqlite::Error, what: &'static str, key: &impl ToString) -> StoreError {
    let code = error.sqlite_error().map(|error| error.extended_code);
    match code {
        Some(SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY) => {
            StoreError::AlreadyExists { what, key: key.to_string() }
        }
        _ => error.into(),
    }
}

/// Reads a column and makes of it what it stands for.
fn column<S: FromSql, T, E: Into<Box<dyn Error + Send + Sync>>>(
    table: &'static str,
    row: &Row<'_>,
    name: &str,
    parse: impl FnOnce(S) -> Result<T, E>,
) -> Result<T, StoreError> {
    parse(row.get(name)?).map_err(|error| StoreError::Unreadable { table, source: error.into() })
}

/// Every row of a query.
fn rows<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    conn.prepare_cached(sql)?.query_and_then(params, read)?.collect()
}

/// The first row of a query, if there is one.
fn row<T>(
    conn: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    conn.prepare_cached(sql)?.query_and_then(params, read)?.next().transpose()
}
