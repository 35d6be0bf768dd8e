//! Approvals: each a person's yes to exactly one shown thing.

use jiff::Timestamp;
use rusqlite::Connection;
use vm_agent_schemas::ids::Digest;

use super::{column, rows};
use crate::StoreError;

/// A person's yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approval {
    /// The digest of what was shown.
    pub id: Digest,
    /// Who said yes.
    pub author: String,
    /// When.
    pub at: Timestamp,
}

/// Stores a yes. The first one to a thing is kept.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, id: &Digest, author: &str, at: Timestamp) -> Result<(), StoreError> {
    conn.prepare_cached("INSERT INTO approvals (id, author, at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute((id.as_str(), author, at.to_string()))?;
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
