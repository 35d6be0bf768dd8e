//! What can go wrong with the database.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vm_agent_schemas::ids::TaskId;

/// Why the store did not do what it was asked to. Nothing of a failed write is kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file can't be made, or is no database.
    #[error("can't open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The database was written by a later version of the program.
    #[error(
        "the database was written by a newer version of this program (its schema is {found}, and this \
         version knows {known}); run that version, or restore a backup from before it"
    )]
    Newer {
        /// The version of its schema.
        found: usize,
        /// The latest version that this program knows.
        known: usize,
    },
    /// SQLite refused a statement.
    #[error("the database refused a statement")]
    Database(#[from] rusqlite::Error),
    /// The transaction that held this write, and perhaps others, could not be begun or committed.
    #[error("the database could not commit what was written")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// A stored record is not what its table should hold.
    #[error("a record of table `{table}` can't be read")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A record can't be turned into what is stored.
    #[error("a record for table `{table}` can't be written")]
    Unwritable {
        /// The table.
        table: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// There may be only one of these, and there is one.
    #[error("there is already {what} for {key}")]
    AlreadyExists {
        /// What there is, with its article.
        what: &'static str,
        /// For what.
        key: String,
    },
    /// A task has its one outcome.
    #[error("task {task} has ended, and a task that has ended never changes")]
    TaskEnded {
        /// The task.
        task: TaskId,
    },
    /// A read or a write panicked: a bug of the program. It alone was rolled back.
    #[error("a read or write of the store panicked; this is a bug of the program")]
    Panicked,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A thread could not be started.
    #[error("can't start a thread of the store")]
    Thread(#[source] io::Error),
    /// A backup would replace a file.
    #[error("{} exists; choose another name for the backup, or move the file away", path.display())]
    BackupExists {
        /// The file.
        path: PathBuf,
    },
    /// A backup could not be put into its place.
    #[error("can't write the backup {}", path.display())]
    Backup {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
