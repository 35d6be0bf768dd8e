//! Single values by name.

use rusqlite::Connection;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vm_agent_schemas::ids::Life;

use super::{json, row};
use crate::StoreError;

const TABLE: &str = "meta";

/// The name under which the latest life stands.
const LIFE: &str = "life";

/// The value of that name.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    row(conn, "SELECT value FROM meta WHERE key = ?1", [key], |row| Ok(row.get(0)?))
}

/// Stores the value of a name in place of the one before.
///
/// # Errors
/// When the database fails.
pub fn set(conn: &Connection, key: &str, value: &str) -> Result<(), StoreError> {
    conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?.execute((key, value))?;
    Ok(())
}

/// The value of that name, from JSON.
///
/// # Errors
/// When the database fails, or what it holds is no such value.
pub fn get_json<T: DeserializeOwned>(conn: &Connection, key: &str) -> Result<Option<T>, StoreError> {
    row(conn, "SELECT value AS record FROM meta WHERE key = ?1", [key], |row| json::decode(TABLE, row))
}

/// Stores the value of a name as JSON.
///
/// # Errors
/// When the database fails, or the value has no JSON.
pub fn set_json<T: Serialize>(conn: &Connection, key: &str, value: &T) -> Result<(), StoreError> {
    set(conn, key, &json::encode(TABLE, value)?)
}

/// Begins the next life of the controller on this database. The first is 1.
///
/// # Errors
/// When the database fails.
pub fn next_life(conn: &Connection) -> Result<Life, StoreError> {
    let life = get_json::<Life>(conn, LIFE)?.unwrap_or_default().next();
    set_json(conn, LIFE, &life)?;
    Ok(life)
}
