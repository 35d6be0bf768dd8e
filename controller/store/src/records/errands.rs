//! Errands: what is to be done with snapshots, and how that ended.

use rusqlite::Connection;
use vm_agent_schemas::ids::ErrandId;
use vm_agent_schemas::snapshot::Errand;

use super::{json, row, rows};
use crate::StoreError;

const TABLE: &str = "errands";

/// Stores an errand as it is now. One that has ended stays as it is.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, errand: &Errand) -> Result<(), StoreError> {
    let sql = "INSERT INTO errands (id, agent, open, record) VALUES (?1, ?2, ?3, ?4)
               ON CONFLICT (id) DO UPDATE SET open = excluded.open, record = excluded.record WHERE open = 1";
    let record = json::encode(TABLE, errand)?;
    let key = (errand.id.to_string(), errand.agent.as_str(), errand.end.is_none(), record);
    conn.prepare_cached(sql)?.execute(key)?;
    Ok(())
}

/// An errand, over or not.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, id: ErrandId) -> Result<Option<Errand>, StoreError> {
    row(conn, "SELECT record FROM errands WHERE id = ?1", [id.to_string()], |row| json::decode(TABLE, row))
}

/// The errands that are not over, in the order in which they were asked for.
///
/// # Errors
/// When the database fails.
pub fn open(conn: &Connection) -> Result<Vec<Errand>, StoreError> {
    rows(conn, "SELECT record FROM errands WHERE open = 1 ORDER BY id", (), |row| json::decode(TABLE, row))
}

/// Removes errands that have ended but the latest `keep`, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM errands WHERE rowid IN (
                   SELECT rowid FROM errands WHERE open = 0 ORDER BY rowid DESC LIMIT -1 OFFSET ?1)";
    Ok(conn.prepare_cached(sql)?.execute([keep])?)
}
