//! The audit: who asked the API for what, and how it was answered.

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use vm_agent_schemas::api::AuditEntry;

use super::{column, rows};
use crate::StoreError;

const TABLE: &str = "audit";

/// Appends a request: who made it, with which HTTP method and path, and the HTTP status of its
/// answer. The path is stored as it is given, so it must carry no secret.
///
/// # Errors
/// When the database fails.
pub fn append(
    conn: &Connection,
    at: Timestamp,
    actor: &str,
    method: &str,
    path: &str,
    status: u16,
) -> Result<(), StoreError> {
    conn.prepare_cached("INSERT INTO audit (at, actor, method, path, status) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((at.to_string(), actor, method, path, status))?;
    Ok(())
}

/// The first requests after that place, the oldest first.
///
/// # Errors
/// When the database fails.
pub fn since(conn: &Connection, after: u64, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    rows(conn, "SELECT * FROM audit WHERE id > ?1 ORDER BY id LIMIT ?2", (after, limit), read)
}

/// The latest requests, the oldest first.
///
/// # Errors
/// When the database fails.
pub fn latest(conn: &Connection, limit: u32) -> Result<Vec<AuditEntry>, StoreError> {
    let sql = "SELECT * FROM (SELECT * FROM audit ORDER BY id DESC LIMIT ?1) ORDER BY id";
    rows(conn, sql, [limit], read)
}

/// Removes all but the latest `keep` requests, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET ?1)";
    Ok(conn.prepare_cached(sql)?.execute([keep])?)
}

fn read(row: &Row<'_>) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        seq: row.get("id")?,
        at: column(TABLE, row, "at", |text: String| text.parse())?,
        actor: row.get("actor")?,
        method: row.get("method")?,
        path: row.get("path")?,
        status: row.get("status")?,
    })
}
