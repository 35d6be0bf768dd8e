//! Snapshots of machines. A name is unique among those of an agent.

use rusqlite::Connection;
use vm_agent_schemas::ids::ClaimId;
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::snapshot::Snapshot;

use super::{json, rows};
use crate::StoreError;

const TABLE: &str = "snapshots";

/// Stores a snapshot in place of the one with its name.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, snapshot: &Snapshot) -> Result<(), StoreError> {
    let record = json::encode(TABLE, snapshot)?;
    conn.prepare_cached("INSERT OR REPLACE INTO snapshots (agent, name, record) VALUES (?1, ?2, ?3)")?.execute((
        snapshot.agent.as_str(),
        snapshot.name.as_str(),
        record,
    ))?;
    Ok(())
}

/// Removes a snapshot, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, agent: &AgentName, name: &SnapshotName) -> Result<bool, StoreError> {
    let sql = "DELETE FROM snapshots WHERE agent = ?1 AND name = ?2";
    Ok(conn.prepare_cached(sql)?.execute((agent.as_str(), name.as_str()))? > 0)
}

/// Removes an agent's snapshots but those of this claim: they went with their machine.
///
/// # Errors
/// When the database fails.
pub fn keep(conn: &Connection, agent: &AgentName, claim: Option<ClaimId>) -> Result<(), StoreError> {
    let sql = "DELETE FROM snapshots WHERE agent = ?1 AND record ->> '$.claim' IS NOT ?2";
    conn.prepare_cached(sql)?.execute((agent.as_str(), claim.map(|claim| claim.to_string())))?;
    Ok(())
}

/// Every snapshot, by agent and name.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<Snapshot>, StoreError> {
    rows(conn, "SELECT record FROM snapshots ORDER BY agent, name", (), |row| json::decode(TABLE, row))
}
