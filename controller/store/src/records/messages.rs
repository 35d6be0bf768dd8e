//! Messages between programs, each on its way to one receiver.

use rusqlite::{Connection, named_params};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Message, MessageState};
use vm_agent_schemas::wire::Address;

use super::{json, rows};
use crate::StoreError;

const TABLE: &str = "messages";

/// Stores a message, new or further on its way. One that was taken or is a dead letter stays as it is.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, message: &Message) -> Result<(), StoreError> {
    let state = match message.state {
        MessageState::Waiting => "waiting",
        MessageState::Taken { .. } => "taken",
        MessageState::Dead { .. } => "dead",
    };
    let sql = "INSERT INTO messages (id, sender, receiver, state, record) VALUES (?1, ?2, ?3, ?4, ?5)
               ON CONFLICT (id, sender, receiver) DO UPDATE SET state = excluded.state, record = excluded.record
               WHERE state = 'waiting'";
    let (from, to) = (message.from.to_string(), message.to.to_string());
    conn.prepare_cached(sql)?.execute((message.id.to_string(), from, to, state, json::encode(TABLE, message)?))?;
    Ok(())
}

/// Everything that a sender, or anybody, sent under that id: one message, or one for each receiver.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, id: MessageId, from: Option<&Address>) -> Result<Vec<Message>, StoreError> {
    let sql = "SELECT record FROM messages WHERE id = ?1 AND sender = coalesce(?2, sender) ORDER BY seq";
    rows(conn, sql, (id.to_string(), from.map(ToString::to_string)), |row| json::decode(TABLE, row))
}

/// Every message that waits for its receiver, and those that are over and kept, without what they said: a sender
/// that was not told so sends them again. In the order in which they were accepted.
///
/// # Errors
/// When the database fails.
pub fn remembered(conn: &Connection) -> Result<Vec<Message>, StoreError> {
    let sql = "SELECT iif(state = 'waiting', record, json_set(record, '$.body', NULL)) AS record
               FROM messages ORDER BY seq";
    rows(conn, sql, (), |row| json::decode(TABLE, row))
}

/// Messages to an address, and with `sent` those from it as well, in the order in which they were
/// accepted: the first after the one of that id, or else the latest. An id that is not known, or no longer,
/// is none.
///
/// # Errors
/// When the database fails.
pub fn of(
    conn: &Connection,
    address: &Address,
    sent: bool,
    after: Option<MessageId>,
    limit: u32,
) -> Result<Vec<Message>, StoreError> {
    let theirs = if sent { "(receiver = :address OR sender = :address)" } else { "receiver = :address" };
    let seq = match after {
        Some(id) => {
            let sql = "SELECT max(seq) FROM messages WHERE id = ?1";
            conn.prepare_cached(sql)?.query_row([id.to_string()], |row| row.get::<_, Option<i64>>(0))?
        }
        None => None,
    };
    let sql = match seq {
        Some(_) => format!("SELECT record FROM messages WHERE {theirs} AND seq > :seq ORDER BY seq LIMIT :limit"),
        None => format!(
            "SELECT record FROM (SELECT seq, record FROM messages WHERE {theirs} AND :seq IS NULL
             ORDER BY seq DESC LIMIT :limit) ORDER BY seq"
        ),
    };
    let params = named_params! {":address": address.to_string(), ":seq": seq, ":limit": limit};
    rows(conn, &sql, params, |row| json::decode(TABLE, row))
}

/// The latest dead letters, the latest first.
///
/// # Errors
/// When the database fails.
pub fn dead(conn: &Connection, limit: u32) -> Result<Vec<Message>, StoreError> {
    let sql = "SELECT record FROM messages WHERE state = 'dead' ORDER BY seq DESC LIMIT ?1";
    rows(conn, sql, [limit], |row| json::decode(TABLE, row))
}

/// Removes the dead letters of that id, to all receivers or to one, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn drop_dead(conn: &Connection, id: MessageId, to: Option<&Address>) -> Result<usize, StoreError> {
    let sql = "DELETE FROM messages WHERE id = ?1 AND state = 'dead' AND receiver = coalesce(?2, receiver)";
    Ok(conn.prepare_cached(sql)?.execute((id.to_string(), to.map(ToString::to_string)))?)
}

/// Removes messages that were taken but the latest `keep`, and dead letters but the latest `keep_dead`;
/// tells how many. What waits stays.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32, keep_dead: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM messages WHERE seq IN (
                   SELECT seq FROM messages WHERE state = ?1 ORDER BY seq DESC LIMIT -1 OFFSET ?2)";
    let mut statement = conn.prepare_cached(sql)?;
    Ok(statement.execute(("taken", keep))? + statement.execute(("dead", keep_dead))?)
}
