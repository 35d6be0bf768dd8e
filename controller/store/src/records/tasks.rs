//! Tasks, each with one outcome that never changes.

use rusqlite::{Connection, ToSql, params_from_iter};
use vm_agent_schemas::ids::{GroupId, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource, TaskState};

use super::{already, json, row, rows};
use crate::StoreError;

const TABLE: &str = "tasks";

/// Runs that are kept of a task on a schedule: a month of a daily one.
const RUNS_KEPT: u32 = 30;

/// Which tasks. Each requirement that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Those that this agent does or did.
    pub agent: Option<AgentName>,
    /// Those of this group.
    pub group: Option<GroupId>,
    /// Those that are so far: [`state_name`] of their state.
    pub state: Option<&'static str>,
    /// Those that are dead letters, or those that are not.
    pub dead: Option<bool>,
}

/// What a state is called in a [`Filter`].
#[must_use]
pub const fn state_name(state: &TaskState) -> &'static str {
    match state {
        TaskState::Queued { .. } => "queued",
        TaskState::Sent { .. } => "sent",
        TaskState::Running { .. } => "running",
        TaskState::Ended { .. } => "ended",
    }
}

/// Stores a task that is new.
///
/// # Errors
/// [`StoreError::AlreadyExists`] when the id is that of another task, the key is that of another request,
/// or the machine was given this wording of this task of the file for this moment already, under another
/// id.
pub fn accept(conn: &Connection, task: &Task) -> Result<(), StoreError> {
    insert(conn, task)
}

/// Stores a task, new or in place of its earlier state, and gives that. What is stored already is left as it
/// is.
///
/// # Errors
/// [`StoreError::TaskEnded`] when the task has ended, and this is not the same end.
/// [`StoreError::AlreadyExists`] as of [`accept`].
pub fn put(conn: &Connection, task: &Task) -> Result<Option<Task>, StoreError> {
    let stored = get(conn, task.id)?;
    match &stored {
        None => insert(conn, task)?,
        Some(stored) if stored == task => {}
        Some(stored) if stored.outcome().is_some() => return Err(StoreError::TaskEnded { task: task.id }),
        Some(stored) if !is_same(stored, task) => {
            return Err(StoreError::AlreadyExists { what: "another task", key: task.id.to_string() });
        }
        Some(stored) => update(conn, stored, task)?,
    }
    Ok(stored)
}

/// Whether these are states of one task. Only a task of a pool goes from agent to agent.
fn is_same(stored: &Task, task: &Task) -> bool {
    let may_move = stored.pool.is_some() && stored.pool == task.pool;
    stored.source == task.source && (may_move || stored.agent == task.agent)
}

/// The task of that id.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, id: TaskId) -> Result<Option<Task>, StoreError> {
    row(conn, "SELECT record FROM tasks WHERE id = ?1", [id.to_string()], |row| json::decode(TABLE, row))
}

/// The latest tasks that a filter lets through, the latest first.
///
/// # Errors
/// When the database fails.
pub fn list(conn: &Connection, filter: &Filter, limit: u32) -> Result<Vec<Task>, StoreError> {
    let (mut sql, mut params) = ("SELECT record FROM tasks WHERE TRUE".to_owned(), Vec::<Box<dyn ToSql>>::new());
    if let Some(agent) = &filter.agent {
        sql.push_str(" AND agent = ?");
        params.push(Box::new(agent.to_string()));
    }
    if let Some(group) = filter.group {
        sql.push_str(" AND \"group\" = ?");
        params.push(Box::new(group.to_string()));
    }
    if let Some(state) = filter.state {
        // For the planner: what is not over has an index of its own.
        sql.push_str(if state == "ended" { " AND state = ?" } else { " AND state <> 'ended' AND state = ?" });
        params.push(Box::new(state));
    }
    if let Some(dead) = filter.dead {
        sql.push_str(if dead { " AND dead = 1" } else { " AND dead = 0" });
    }
    sql.push_str(" ORDER BY rowid DESC LIMIT ?");
    params.push(Box::new(limit));
    rows(conn, &sql, params_from_iter(params), |row| json::decode(TABLE, row))
}

/// Every task that has not ended, in the order in which they were accepted.
///
/// # Errors
/// When the database fails.
pub fn unfinished(conn: &Connection) -> Result<Vec<Task>, StoreError> {
    rows(conn, "SELECT record FROM tasks WHERE state <> 'ended' ORDER BY rowid", (), |row| json::decode(TABLE, row))
}

/// The tasks of the request that its author calls so, in the order in which they were accepted: one, or
/// one for each agent.
///
/// # Errors
/// When the database fails.
pub fn by_key(conn: &Connection, key: &str) -> Result<Vec<Task>, StoreError> {
    let sql = "SELECT record FROM tasks WHERE request_key = ?1 ORDER BY rowid";
    rows(conn, sql, [key], |row| json::decode(TABLE, row))
}

/// Every task of the fleet file, in the order in which they were accepted: there is at most one for each
/// agent, machine (its claim), name, wording (its digest) and moment, beside those that do one of them again.
///
/// # Errors
/// When the database fails.
pub fn all_from_file(conn: &Connection) -> Result<Vec<Task>, StoreError> {
    let sql = "SELECT record FROM tasks WHERE claim IS NOT NULL ORDER BY rowid";
    rows(conn, sql, (), |row| json::decode(TABLE, row))
}

/// Lets a task be a dead letter no more, and tells whether it was one. Its outcome stays.
///
/// # Errors
/// When the database fails.
pub fn drop_dead(conn: &Connection, id: TaskId) -> Result<bool, StoreError> {
    let sql = "UPDATE tasks SET dead = 0, record = json_remove(record, '$.dead') WHERE id = ?1 AND dead = 1";
    Ok(conn.prepare_cached(sql)?.execute([id.to_string()])? > 0)
}

/// Removes ended tasks but the latest `keep`, and dead letters but the latest `keep_dead`; tells how many.
/// Tasks of the file stay while the machine that they were for is claimed: they say what it was given.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32, keep_dead: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM tasks WHERE rowid IN (
                   SELECT rowid FROM tasks
                   WHERE state = 'ended' AND dead = ?1 AND (claim IS NULL OR claim NOT IN (
                       SELECT record ->> '$.id' FROM claims))
                   ORDER BY rowid DESC LIMIT -1 OFFSET ?2)";
    let mut statement = conn.prepare_cached(sql)?;
    Ok(statement.execute((false, keep))? + statement.execute((true, keep_dead))?)
}

fn insert(conn: &Connection, task: &Task) -> Result<(), StoreError> {
    let (claim, name, digest, due, key) = match &task.source {
        TaskSource::File { name, digest, claim, due } => {
            (Some(claim.to_string()), Some(name.as_str()), Some(digest.as_str()), *due, None)
        }
        TaskSource::Request { key, .. } => (None, None, None, None, key.as_deref()),
    };
    let group = task.group.map(|group| group.to_string());
    if let Some(key) = key {
        claim_key(conn, key, group.as_deref())?;
    }
    let sql = "INSERT INTO tasks (id, agent, \"group\", state, dead, request_key, claim, name, digest, due, record)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
    let agent = task.agent.as_ref().map(AgentName::as_str);
    // One that does another again is for the same moment, and beside it.
    let again = task.replay_of.filter(|_| name.is_some()).map(|_| format!(" {}", task.id));
    let due = due.map(|due| due.to_string()).unwrap_or_default() + &again.unwrap_or_default();
    let (id, record) = (task.id.to_string(), json::encode(TABLE, task)?);
    let params =
        (id, agent, &group, state_name(&task.state), task.dead.is_some(), key, &claim, name, digest, due, record);
    conn.prepare_cached(sql)?.execute(params).map_err(|error| match name {
        Some(name) => already(error, "a task of this wording", &format!("`{name}` on `{}`", agent.unwrap_or_default())),
        None => already(error, "a task", &task.id),
    })?;
    match (claim, name) {
        (Some(claim), Some(name)) => forget_runs(conn, agent, &claim, name),
        _ => Ok(()),
    }
}

/// Refuses a key that is another request's: of a task that is not of the same group.
fn claim_key(conn: &Connection, key: &str, group: Option<&str>) -> Result<(), StoreError> {
    let sql = "SELECT 1 FROM tasks WHERE request_key = ?1 AND (\"group\" IS NULL OR \"group\" IS NOT ?2) LIMIT 1";
    if conn.prepare_cached(sql)?.exists((key, group))? {
        return Err(StoreError::AlreadyExists { what: "a task with the key", key: key.to_owned() });
    }
    Ok(())
}

/// Drops the oldest runs of a task of the file beyond those that are kept.
fn forget_runs(conn: &Connection, agent: Option<&str>, claim: &str, name: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM tasks WHERE rowid IN (
                   SELECT rowid FROM tasks
                   WHERE agent = ?1 AND claim = ?2 AND name = ?3 AND due <> '' AND state = 'ended'
                   ORDER BY rowid DESC LIMIT -1 OFFSET ?4)";
    conn.prepare_cached(sql)?.execute((agent, claim, name, RUNS_KEPT))?;
    Ok(())
}

/// Writes no more than what is different: each column has indexes that would be written with it.
fn update(conn: &Connection, stored: &Task, task: &Task) -> Result<(), StoreError> {
    let (id, record) = (task.id.to_string(), json::encode(TABLE, task)?);
    let agent = task.agent.as_ref().map(AgentName::as_str);
    let (state, dead) = (state_name(&task.state), task.dead.is_some());
    if stored.agent != task.agent || stored.dead.is_some() != dead {
        let sql = "UPDATE tasks SET agent = ?2, state = ?3, dead = ?4, record = ?5 WHERE id = ?1";
        conn.prepare_cached(sql)?.execute((id, agent, state, dead, record))?;
    } else if state_name(&stored.state) != state {
        conn.prepare_cached("UPDATE tasks SET state = ?2, record = ?3 WHERE id = ?1")?.execute((id, state, record))?;
    } else {
        conn.prepare_cached("UPDATE tasks SET record = ?2 WHERE id = ?1")?.execute((id, record))?;
    }
    Ok(())
}
