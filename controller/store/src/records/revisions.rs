//! Revisions: every fleet file that was accepted.

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use vm_agent_schemas::api::FleetSource;
use vm_agent_schemas::ids::{Digest, Revision};

use super::{column, json, row, rows};
use crate::StoreError;

/// A fleet file to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRevision {
    /// What it says, and where it is.
    pub source: FleetSource,
    /// The digest by which two files are the same.
    pub digest: Digest,
    /// Who applied it.
    pub author: String,
    /// When.
    pub at: Timestamp,
    /// What it changed, in a sentence.
    pub summary: String,
}

/// A fleet file that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRevision {
    /// Its number.
    pub revision: Revision,
    /// What it says, and where it was when it was last applied.
    pub source: FleetSource,
    /// The digest by which two files are the same.
    pub digest: Digest,
    /// Who applied it first.
    pub author: String,
    /// When.
    pub at: Timestamp,
    /// What it changed, in a sentence.
    pub summary: String,
}

/// Stores a file as the latest revision. Is it the latest already, by its digest, then that one
/// stays and only learns where the file is now.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, new: &NewRevision) -> Result<Revision, StoreError> {
    let source = json::encode("revisions", &new.source)?;
    if let Some(latest) = latest(conn)?.filter(|latest| latest.digest == new.digest) {
        if latest.source != new.source {
            conn.prepare_cached("UPDATE revisions SET source = ?2 WHERE revision = ?1")?
                .execute((latest.revision.0, source))?;
        }
        return Ok(latest.revision);
    }
    conn.prepare_cached("INSERT INTO revisions (source, digest, author, at, summary) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((source, new.digest.as_str(), &new.author, new.at.to_string(), &new.summary))?;
    Ok(Revision(conn.last_insert_rowid().unsigned_abs()))
}

/// The revisions, newest first, at most so many.
///
/// # Errors
/// When the database fails.
pub fn newest(conn: &Connection, most: u32) -> Result<Vec<StoredRevision>, StoreError> {
    rows(conn, "SELECT * FROM revisions ORDER BY revision DESC LIMIT ?1", [most], read)
}

/// The latest revision.
///
/// # Errors
/// When the database fails.
pub fn latest(conn: &Connection) -> Result<Option<StoredRevision>, StoreError> {
    row(conn, "SELECT * FROM revisions ORDER BY revision DESC LIMIT 1", (), read)
}

/// The revision of that number.
///
/// # Errors
/// When the database fails.
pub fn get(conn: &Connection, revision: Revision) -> Result<Option<StoredRevision>, StoreError> {
    row(conn, "SELECT * FROM revisions WHERE revision = ?1", [revision.0], read)
}

/// Removes all but the latest `keep` revisions, and tells how many.
///
/// # Errors
/// When the database fails.
pub fn prune(conn: &Connection, keep: u32) -> Result<usize, StoreError> {
    let sql = "DELETE FROM revisions WHERE revision <= \
               (SELECT revision FROM revisions ORDER BY revision DESC LIMIT 1 OFFSET ?1)";
    Ok(conn.prepare_cached(sql)?.execute([keep])?)
}

fn read(row: &Row<'_>) -> Result<StoredRevision, StoreError> {
    Ok(StoredRevision {
        revision: Revision(row.get("revision")?),
        source: column("revisions", row, "source", |text: String| serde_json::from_str(&text))?,
        digest: Digest::from(row.get::<_, String>("digest")?),
        author: row.get("author")?,
        at: column("revisions", row, "at", |text: String| text.parse())?,
        summary: row.get("summary")?,
    })
}
