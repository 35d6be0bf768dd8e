//! Tokens of the HTTP API, as digests.

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::ids::{Digest, TokenId};

use super::{already, column, row, rows};
use crate::StoreError;

/// Stores a token.
///
/// # Errors
/// [`StoreError::AlreadyExists`] when one with this id or digest is stored.
pub fn put(conn: &Connection, token: &ApiToken) -> Result<(), StoreError> {
    let sql = "INSERT INTO tokens (id, name, digest, role, created_at, expires_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let (created, expires) = (token.created_at.to_string(), token.expires_at.map(|at| at.to_string()));
    conn.prepare_cached(sql)?
        .execute((token.id.to_string(), &token.name, token.digest.as_str(), token.role.as_str(), created, expires))
        .map_err(|error| already(error, "a token", &token.id))?;
    Ok(())
}

/// The token with that digest.
///
/// # Errors
/// When the database fails.
pub fn find(conn: &Connection, digest: &Digest) -> Result<Option<ApiToken>, StoreError> {
    row(conn, "SELECT * FROM tokens WHERE digest = ?1", [digest.as_str()], read)
}

/// Every token, the oldest first.
///
/// # Errors
/// When the database fails.
pub fn all(conn: &Connection) -> Result<Vec<ApiToken>, StoreError> {
    // Later ids sort after earlier ones.
    rows(conn, "SELECT * FROM tokens ORDER BY id", (), read)
}

/// Has a token stop working then, and tells whether there is such a token.
///
/// # Errors
/// When the database fails.
pub fn end_at(conn: &Connection, id: TokenId, end: Timestamp) -> Result<bool, StoreError> {
    let sql = "UPDATE tokens SET expires_at = ?2 WHERE id = ?1";
    Ok(conn.prepare_cached(sql)?.execute([id.to_string(), end.to_string()])? > 0)
}

/// Removes a token, and tells whether there was one.
///
/// # Errors
/// When the database fails.
pub fn remove(conn: &Connection, id: TokenId) -> Result<bool, StoreError> {
    Ok(conn.prepare_cached("DELETE FROM tokens WHERE id = ?1")?.execute([id.to_string()])? > 0)
}

fn read(row: &Row<'_>) -> Result<ApiToken, StoreError> {
    Ok(ApiToken {
        id: column("tokens", row, "id", |text: String| text.parse())?,
        name: row.get("name")?,
        digest: Digest::from(row.get::<_, String>("digest")?),
        role: column("tokens", row, "role", |text: String| text.parse())?,
        created_at: column("tokens", row, "created_at", |text: String| text.parse())?,
        expires_at: column("tokens", row, "expires_at", |at: Option<String>| at.map(|at| at.parse()).transpose())?,
    })
}
