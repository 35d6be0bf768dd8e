//! Credentials: who may speak as an agent.

use rusqlite::Connection;
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::names::AgentName;

use super::by_agent::ByAgent;
use crate::StoreError;

const TABLE: ByAgent = ByAgent("credentials");

/// Stores an agent's credential in place of the one before.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, credential: &Credential) -> Result<(), StoreError> {
    TABLE.put(conn, &credential.agent, credential)
}

/// Every credential, by agent.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<Credential>, StoreError> {
    TABLE.all(conn)
}

/// An agent's credential.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, agent: &AgentName) -> Result<Option<Credential>, StoreError> {
    TABLE.get(conn, agent)
}

/// Removes an agent's credential, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, agent: &AgentName) -> Result<bool, StoreError> {
    TABLE.remove(conn, agent)
}
