//! Claims: which instances are ours.

use rusqlite::Connection;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Claim;

use super::by_agent::ByAgent;
use crate::StoreError;

const TABLE: ByAgent = ByAgent("claims");

/// Stores an agent's claim in place of the one before.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, claim: &Claim) -> Result<(), StoreError> {
    TABLE.put(conn, &claim.agent, claim)
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
