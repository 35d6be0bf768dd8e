//! Approvals: each a person's yes to exactly one shown thing.

use jiff::Timestamp;
use rusqlite::Connection;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::AgentName;

use super::{column, rows};
use crate::StoreError;

/// A person's yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The digest of what was shown.
    pub id: Digest,
    /// The agent that it was about.
    pub agent: AgentName,
    /// Who said yes.
    pub author: String,
    /// When.
    pub at: Timestamp,
}

/// Stores a yes. The first one to a thing is kept.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, approval: &Approval) -> Result<(), StoreError> {
    let sql = "INSERT INTO approvals (id, agent, author, at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING";
    let Approval { id, agent, author, at } = approval;
    conn.prepare_cached(sql)?.execute((id.as_str(), agent.as_str(), author, at.to_string()))?;
    Ok(())
}

/// Every yes.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<Approval>, StoreError> {
    rows(conn, "SELECT * FROM approvals ORDER BY id", (), |row| {
        Ok(Approval {
            id: Digest::from(row.get::<_, String>("id")?),
            agent: column("approvals", row, "agent", |text: String| text.parse())?,
            author: row.get("author")?,
            at: column("approvals", row, "at", |text: String| text.parse())?,
        })
    })
}

/// Removes a yes, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, id: &Digest) -> Result<bool, StoreError> {
    Ok(conn.prepare_cached("DELETE FROM approvals WHERE id = ?1")?.execute([id.as_str()])? > 0)
}
