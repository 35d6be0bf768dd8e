//! Backoffs: when an agent may be tried again.

use rusqlite::Connection;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Backoff;

use super::by_agent::ByAgent;
use crate::StoreError;

const TABLE: ByAgent = ByAgent("backoffs");

/// Stores an agent's backoff in place of the one before.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, backoff: &Backoff) -> Result<(), StoreError> {
    TABLE.put(conn, &backoff.agent, backoff)
}

/// Every backoff, by agent.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<Backoff>, StoreError> {
    TABLE.all(conn)
}

/// An agent's backoff.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, agent: &AgentName) -> Result<Option<Backoff>, StoreError> {
    TABLE.get(conn, agent)
}

/// Removes an agent's backoff, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, agent: &AgentName) -> Result<bool, StoreError> {
    TABLE.remove(conn, agent)
}
