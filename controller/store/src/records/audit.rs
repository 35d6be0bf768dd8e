//! The audit: who asked the API for what, and how it was answered.

use jiff::Timestamp;
use rusqlite::Connection;

use crate::StoreError;

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

/// Removes all but the latest `keep` requests, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET ?1)";
    Ok(conn.prepare_cached(sql)?.execute([keep])?)
}
