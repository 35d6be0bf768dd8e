//! Claims: which instances are ours.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row};
use vm_agent_schemas::ids::Incarnation;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Claim;

use super::by_agent::ByAgent;
use super::{column, rows};
use crate::StoreError;

const TABLE: ByAgent = ByAgent("claims");

/// Stores an agent's claim in place of the one before.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, claim: &Claim) -> Result<(), StoreError> {
    conn.prepare_cached(
        "INSERT INTO incarnations (agent, last) VALUES (?1, ?2) \
         ON CONFLICT (agent) DO UPDATE SET last = max(last, excluded.last)",
    )?
    .execute((claim.agent.as_str(), claim.incarnation.0))?;
    TABLE.put(conn, &claim.agent, claim)
}

/// The latest incarnation of every name that ever had a claim.
///
/// # Errors
/// When the database fails.
pub fn incarnations(conn: &Connection) -> Result<BTreeMap<AgentName, Incarnation>, StoreError> {
    let read = |row: &Row<'_>| {
        let agent = column("incarnations", row, "agent", |text: String| text.parse())?;
        Ok((agent, Incarnation(row.get("last")?)))
    };
    Ok(rows(conn, "SELECT * FROM incarnations", (), read)?.into_iter().collect())
}

/// Every claim, by agent.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<Claim>, StoreError> {
    TABLE.all(conn)
}

/// An agent's claim.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, agent: &AgentName) -> Result<Option<Claim>, StoreError> {
    TABLE.get(conn, agent)
}

/// Removes an agent's claim, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, agent: &AgentName) -> Result<bool, StoreError> {
    TABLE.remove(conn, agent)
}
