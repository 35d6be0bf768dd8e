//! Tasks, each with one outcome that never changes.

use rusqlite::{Connection, Row};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource};

use super::{already, json, row, rows};
use crate::StoreError;

const TABLE: &str = "tasks";

/// Runs that are kept of a task on a schedule: a month of a daily one.
const RUNS_KEPT: u32 = 30;

/// Stores a task, new or in place of its earlier state. What is stored already is left as it is.
///
/// # Errors
/// [`StoreError::TaskEnded`] when the task has ended, and this is not the same end.
/// [`StoreError::AlreadyExists`] when the id is that of another agent's task, or the machine was
/// given this wording of this task of the file for this moment already, under another id.
pub fn put(conn: &Connection, task: &Task) -> Result<(), StoreError> {
    match get(conn, task.id)? {
        None => insert(conn, task),
        Some(stored) if stored == *task => Ok(()),
        Some(stored) if stored.outcome().is_some() => Err(StoreError::TaskEnded { task: task.id }),
        Some(stored) if stored.agent != task.agent || stored.source != task.source => {
            Err(StoreError::AlreadyExists { what: "another task", key: task.id.to_string() })
        }
        Some(_) => update(conn, task),
    }
}

/// The task of that id.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, id: TaskId) -> Result<Option<Task>, StoreError> {
    row(conn, "SELECT record, output FROM tasks WHERE id = ?1", [id.to_string()], read_whole)
}

/// An agent's latest tasks, the latest first.
///
/// # Errors
/// When the database fails.
pub fn of_agent(conn: &Connection, agent: &AgentName, limit: u32) -> Result<Vec<Task>, StoreError> {
    let sql = "SELECT record, output FROM tasks WHERE agent = ?1 ORDER BY rowid DESC LIMIT ?2";
    rows(conn, sql, (agent.as_str(), limit), read_whole)
}

/// Every task that has not ended, in the order in which they were accepted.
///
/// # Errors
/// When the database fails.
pub fn unfinished(conn: &Connection) -> Result<Vec<Task>, StoreError> {
    rows(conn, "SELECT record, output FROM tasks WHERE ended = 0 ORDER BY rowid", (), read_whole)
}

/// Every task of the fleet file, in the order in which they were accepted, and without its output:
/// there is at most one for each agent, machine (its claim), name, wording (its digest) and moment.
///
/// # Errors
/// When the database fails.
pub fn all_from_file(conn: &Connection) -> Result<Vec<Task>, StoreError> {
    let sql = "SELECT record FROM tasks WHERE claim IS NOT NULL ORDER BY rowid";
    rows(conn, sql, (), |row| json::decode(TABLE, row))
}

fn insert(conn: &Connection, task: &Task) -> Result<(), StoreError> {
    let (claim, name, digest, due) = match &task.source {
        TaskSource::File { name, digest, claim, due } => {
            (Some(claim.to_string()), Some(name.as_str()), Some(digest.as_str()), *due)
        }
        TaskSource::Request { .. } => (None, None, None, None),
    };
    let sql = "INSERT INTO tasks (id, agent, ended, claim, name, digest, due, record, output)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let (id, ended) = (task.id.to_string(), task.outcome().is_some());
    let due = due.map(|due| due.to_string()).unwrap_or_default();
    let params = (id, task.agent.as_str(), ended, &claim, name, digest, due, record(task)?, &task.output);
    conn.prepare_cached(sql)?.execute(params).map_err(|error| {
        let key = format!("`{}` on `{}`", name.unwrap_or_default(), task.agent);
        already(error, "a task of this wording", &key)
    })?;
    forget_runs(conn, task.agent.as_str(), claim.as_deref(), name)
}

/// Drops the oldest runs of a task of the file beyond those that are kept.
fn forget_runs(conn: &Connection, agent: &str, claim: Option<&str>, name: Option<&str>) -> Result<(), StoreError> {
    let sql = "DELETE FROM tasks WHERE rowid IN (
                   SELECT rowid FROM tasks WHERE agent = ?1 AND claim = ?2 AND name = ?3 AND due <> '' AND ended = 1
                   ORDER BY rowid DESC LIMIT -1 OFFSET ?4)";
    conn.prepare_cached(sql)?.execute((agent, claim, name, RUNS_KEPT))?;
    Ok(())
}

fn update(conn: &Connection, task: &Task) -> Result<(), StoreError> {
    conn.prepare_cached("UPDATE tasks SET ended = ?2, record = ?3, output = ?4 WHERE id = ?1")?.execute((
        task.id.to_string(),
        task.outcome().is_some(),
        record(task)?,
        &task.output,
    ))?;
    Ok(())
}

/// The task without its output, which has a column of its own.
fn record(task: &Task) -> Result<String, StoreError> {
    json::encode(TABLE, &Task { output: String::new(), ..task.clone() })
}

fn read_whole(row: &Row<'_>) -> Result<Task, StoreError> {
    Ok(Task { output: row.get("output")?, ..json::decode(TABLE, row)? })
}
