//! Overrides: what people say beside the file. One for each agent and path.

use rusqlite::Connection;
use vm_agent_schemas::intent::{Override, OverridePath};
use vm_agent_schemas::names::AgentName;

use super::{json, rows};
use crate::StoreError;

const TABLE: &str = "overrides";

/// Stores an override in place of the one with the same agent and path.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, new: &Override) -> Result<(), StoreError> {
    let record = json::encode(TABLE, new)?;
    conn.prepare_cached("INSERT OR REPLACE INTO overrides (agent, path, record) VALUES (?1, ?2, ?3)")?.execute((
        new.agent.as_str(),
        OverridePath::as_str(new.change.path()),
        record,
    ))?;
    Ok(())
}

/// Removes an override, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, agent: &AgentName, path: OverridePath) -> Result<bool, StoreError> {
    let sql = "DELETE FROM overrides WHERE agent = ?1 AND path = ?2";
    Ok(conn.prepare_cached(sql)?.execute((agent.as_str(), OverridePath::as_str(path)))? > 0)
}

/// Every override, by agent and path.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<Override>, StoreError> {
    rows(conn, "SELECT record FROM overrides ORDER BY agent, path", (), |row| json::decode(TABLE, row))
}
