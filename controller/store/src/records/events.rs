//! Events, in order.

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use vm_agent_schemas::event::{Event, EventKind, NewEvent};
use vm_agent_schemas::names::AgentName;

use super::{column, row, rows};
use crate::StoreError;

const TABLE: &str = "events";

/// Appends an event and gives it its place in the order. Places grow, also over what was pruned.
///
/// # Errors
/// When the database fails.
pub fn append(conn: &Connection, new: &NewEvent, at: Timestamp) -> Result<Event, StoreError> {
    let agent = new.agent.as_ref().map(AgentName::as_str);
    conn.prepare_cached("INSERT INTO events (at, kind, agent, message) VALUES (?1, ?2, ?3, ?4)")?.execute((
        at.to_string(),
        new.kind.as_str(),
        agent,
        &new.message,
    ))?;
    let seq = conn.last_insert_rowid().unsigned_abs();
    Ok(Event { seq, at, kind: new.kind, agent: new.agent.clone(), message: new.message.clone() })
}

/// The first events after that place, of all or of one agent, the oldest first.
///
/// # Errors
/// When the database fails.
pub fn since(conn: &Connection, seq: u64, of: Option<&AgentName>, limit: u32) -> Result<Vec<Event>, StoreError> {
    let sql = "SELECT * FROM events WHERE seq > ?1 AND (?2 IS NULL OR agent = ?2) ORDER BY seq LIMIT ?3";
    rows(conn, sql, (seq, of.map(AgentName::as_str), limit), read)
}

/// The latest events, of all or of one agent, the oldest first.
///
/// # Errors
/// When the database fails.
pub fn latest(conn: &Connection, of: Option<&AgentName>, limit: u32) -> Result<Vec<Event>, StoreError> {
    let latest = "SELECT * FROM events WHERE ?1 IS NULL OR agent = ?1 ORDER BY seq DESC LIMIT ?2";
    rows(conn, &format!("SELECT * FROM ({latest}) ORDER BY seq"), (of.map(AgentName::as_str), limit), read)
}

/// The latest event of one of two kinds.
///
/// # Errors
/// When the database fails.
pub fn latest_of(conn: &Connection, kinds: [EventKind; 2]) -> Result<Option<Event>, StoreError> {
    let sql = "SELECT * FROM events WHERE kind IN (?1, ?2) ORDER BY seq DESC LIMIT 1";
    row(conn, sql, kinds.map(EventKind::as_str), read)
}

/// Removes all but the latest `keep` events, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u64) -> Result<usize, StoreError> {
    let sql = "DELETE FROM events WHERE seq <= (SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?1)";
    Ok(conn.prepare_cached(sql)?.execute([keep])?)
}

fn read(row: &Row<'_>) -> Result<Event, StoreError> {
    Ok(Event {
        seq: row.get("seq")?,
        at: column(TABLE, row, "at", |text: String| text.parse())?,
        kind: column(TABLE, row, "kind", |text: String| kind(&text))?,
        agent: column(TABLE, row, "agent", |name: Option<String>| name.map(|name| name.parse()).transpose())?,
        message: row.get("message")?,
    })
}

fn kind(text: &str) -> Result<EventKind, String> {
    let kind = EventKind::ALL.iter().copied().find(|kind| kind.as_str() == text);
    kind.ok_or_else(|| format!("`{text}` is no kind of event"))
}
