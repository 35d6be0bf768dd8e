//! Operations: the steps under way, and how the former ones ended.

use jiff::Timestamp;
use rusqlite::Connection;
use vm_agent_schemas::ids::OperationId;
use vm_agent_schemas::observe::Operation;

use super::{already, json, rows};
use crate::StoreError;

const TABLE: &str = "operations";

/// Stores an operation as under way.
///
/// # Errors
/// [`StoreError::AlreadyExists`] when one of the same agent is under way, or the operation itself was
/// stored before.
pub fn open(conn: &Connection, operation: &Operation) -> Result<(), StoreError> {
    let record = json::encode(TABLE, operation)?;
    conn.prepare_cached("INSERT INTO operations (id, agent, record) VALUES (?1, ?2, ?3)")?
        .execute((operation.id.to_string(), operation.agent.as_str(), record))
        .map_err(|error| already(error, "an operation under way", &operation.agent))?;
    Ok(())
}

/// Stores how an operation ended, and tells whether it was under way; one that has ended stays as it
/// is.
///
/// # Errors
/// When the database fails.
pub fn close(conn: &Connection, id: OperationId, outcome: &str, at: Timestamp) -> Result<bool, StoreError> {
    let closed = conn
        .prepare_cached("UPDATE operations SET outcome = ?2, closed_at = ?3 WHERE id = ?1 AND closed_at IS NULL")?
        .execute((id.to_string(), outcome, at.to_string()))?;
    Ok(closed > 0)
}

/// The operations under way, in the order in which they were opened.
///
/// # Errors
/// When the database fails.
pub fn open_operations(conn: &Connection) -> Result<Vec<Operation>, StoreError> {
    let sql = "SELECT record FROM operations WHERE closed_at IS NULL ORDER BY rowid";
    rows(conn, sql, (), |row| json::decode(TABLE, row))
}

/// Removes operations that have ended but the latest `keep`, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM operations WHERE rowid IN (
                   SELECT rowid FROM operations WHERE closed_at IS NOT NULL ORDER BY rowid DESC LIMIT -1 OFFSET ?1)";
    Ok(conn.prepare_cached(sql)?.execute([keep])?)
}
