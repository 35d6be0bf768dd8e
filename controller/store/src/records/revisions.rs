//! Revisions: every fleet file that was accepted.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, Row};
use vm_agent_schemas::ids::{Digest, Revision};

use super::{column, row};
use crate::StoreError;

/// A fleet file to be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRevision {
    /// Where the file is.
    pub path: Option<PathBuf>,
    /// What it says.
    pub text: String,
    /// The digest by which two files are the same.
    pub digest: Digest,
    /// Who applied it.
    pub author: String,
    /// When.
    pub at: Timestamp,
}

/// A fleet file that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRevision {
    /// Its number.
    pub revision: Revision,
    /// Where the file was when it was last applied.
    pub path: Option<PathBuf>,
    /// What it says.
    pub text: String,
    /// The digest by which two files are the same.
    pub digest: Digest,
    /// Who applied it first.
    pub author: String,
    /// When.
    pub at: Timestamp,
}

/// Stores a file as the latest revision. Is it the latest already, by its digest, then that one
/// stays and only learns where the file is now.
///
/// # Errors
/// When the database fails.
pub fn put(conn: &Connection, new: &NewRevision) -> Result<Revision, StoreError> {
    let path = new.path.as_deref().map(path_bytes);
    if let Some(latest) = latest(conn)?.filter(|latest| latest.digest == new.digest) {
        if latest.path != new.path {
            conn.prepare_cached("UPDATE revisions SET path = ?2 WHERE revision = ?1")?
                .execute((latest.revision.0, path))?;
        }
        return Ok(latest.revision);
    }
    conn.prepare_cached("INSERT INTO revisions (path, text, digest, author, at) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((path, &new.text, new.digest.as_str(), &new.author, new.at.to_string()))?;
    Ok(Revision(conn.last_insert_rowid().unsigned_abs()))
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

fn read(row: &Row<'_>) -> Result<StoredRevision, StoreError> {
    Ok(StoredRevision {
        revision: Revision(row.get("revision")?),
        path: row.get::<_, Option<Vec<u8>>>("path")?.map(|bytes| OsString::from_vec(bytes).into()),
        text: row.get("text")?,
        digest: Digest::from(row.get::<_, String>("digest")?),
        author: row.get("author")?,
        at: column("revisions", row, "at", |text: String| text.parse())?,
    })
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}
