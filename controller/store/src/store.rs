//! The database: one thread that writes, one that reads, and the handle to both.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::migrations::migrate;
use crate::worker::{Counts, Worker};
use crate::{StoreError, backup};

/// How long a statement waits for a lock. Only a backup, or a person with a tool of their own, ever
/// holds one beside the writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// More than there are statements in this crate, so that each is prepared once.
const STATEMENTS: usize = 128;

/// The database. Clones are handles to the same one.
///
/// All writes go through one thread, which puts whatever has queued into one transaction: many
/// writers share one flush of the disk. Reads have a thread of their own, so that a slow one never
/// delays a write.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    writer: Worker,
    reader: Worker,
    counts: Arc<Counts>,
}

/// What a store has done since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreStats {
    /// Transactions committed.
    pub commits: u64,
    /// Writes that those held. More than `commits` means that writes shared one.
    pub writes: u64,
}

impl Store {
    /// Opens a database, or makes it, and brings its schema up to date. Works on the calling thread.
    ///
    /// # Errors
    /// When the file can't be opened or is no database, or was written by a newer version of the
    /// program.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let open = |source| StoreError::Open { path: path.to_owned(), source };
        make_private(path).map_err(|error| open(error.into()))?;
        let mut conn = connect_to_write(path).map_err(|error| open(error.into()))?;
        migrate(&mut conn)?;
        let reading = connect_to_read(path)?;
        let counts = Arc::new(Counts::default());
        let shared = Shared {
            path: path.to_owned(),
            writer: Worker::writer(conn, Arc::clone(&counts))?,
            reader: Worker::reader(reading)?,
            counts,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Writes, whole or not at all, and answers once the commit has reached the disk. An error of
    /// the closure undoes what it wrote, and nothing of others. Dropping the future does not take
    /// the write back.
    ///
    /// # Errors
    /// The closure's own, [`StoreError::Panicked`], or [`StoreError::Commit`] when the transaction
    /// around it failed.
    pub async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.shared.writer.run(job, |value| value).await
    }

    /// Writes, and then has `then` take note of it, whether or not somebody still waits for the answer: in
    /// the order in which the writes are in the database, so that a copy in memory is changed as that is.
    /// It holds up all other writes, and must not wait for anything.
    ///
    /// # Errors
    /// As of [`Self::write`]; then nothing was taken note of. [`StoreError::Panicked`] when `then` did.
    pub async fn write_then<T, U, F, N>(&self, job: F, then: N) -> Result<U, StoreError>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce(T) -> U + Send + 'static,
    {
        self.shared.writer.run(job, then).await
    }

    /// The same in two parts: once the first is over, the write has its place in the order, and the next can
    /// be asked for.
    ///
    /// # Errors
    /// As of [`Self::write_then`].
    pub async fn queue_write<T, U, F, N>(
        &self,
        job: F,
        then: N,
    ) -> Result<impl Future<Output = Result<U, StoreError>> + Send + use<T, U, F, N>, StoreError>
    where
        T: Send + 'static,
        U: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
        N: FnOnce(T) -> U + Send + 'static,
    {
        self.shared.writer.queue(job, then).await
    }

    /// Reads. The closure sees one state of the database, with every write that was answered before.
    ///
    /// # Errors
    /// The closure's own, or [`StoreError::Panicked`].
    pub async fn read<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    {
        self.shared.reader.run(job, |value| value).await
    }

    /// Writes a copy of the database to a new file (mode 0600). Delays neither reads nor writes; the
    /// copy holds everything that was answered before. It is there whole or not at all.
    ///
    /// # Errors
    /// When the file exists or can't be written.
    pub async fn backup_to(&self, path: &Path) -> Result<(), StoreError> {
        let (database, path) = (self.shared.path.clone(), path.to_owned());
        let copying = tokio::task::spawn_blocking(move || backup::copy(&connect_to_read(&database)?, &path));
        copying.await.map_err(|_| StoreError::Panicked)?
    }

    /// What the store has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            commits: self.shared.counts.commits.load(Ordering::Relaxed),
            writes: self.shared.counts.writes.load(Ordering::Relaxed),
        }
    }

    /// Refuses further reads and writes of every handle, and waits until those that were asked for
    /// are done and the files are let go. Dropping the last handle does the same without waiting.
    pub async fn close(&self) {
        // The writer last: the last connection that can write tidies the log up into the database.
        self.shared.reader.close().await;
        self.shared.writer.close().await;
    }
}

/// A database of this schema that lives in memory alone, for simulations. Who holds it writes by
/// themselves.
///
/// # Errors
/// When it can't be made.
pub fn in_memory() -> Result<Connection, StoreError> {
    let mut conn = Connection::open_in_memory()?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    migrate(&mut conn)?;
    Ok(conn)
}

/// Makes the file if there is none, readable by its owner alone. SQLite gives its companions (`-wal`,
/// `-shm`) the same mode.
fn make_private(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(fs::canonicalize(folder)?)?.sync_all(),
        _ => Ok(()),
    }
}

fn connect_to_write(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    // In WAL mode anything less may lose the latest commits with the power.
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

fn connect_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

#[cfg(test)]
mod tests;
