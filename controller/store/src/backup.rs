//! A copy of the database while it is in use.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::Connection;

use crate::StoreError;

/// Copies what the connection sees to a new file. The copy grows under another name beside it and
/// takes its own once it is on the disk, so that a file of that name is always a whole copy.
pub(crate) fn copy(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return Err(StoreError::BackupExists { path: path.to_owned() });
    }
    let failed = |source| StoreError::Backup { path: path.to_owned(), source };
    let partial = partial_name(path).ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
    // SQLite would make the file with the permissions of the moment; an empty file it fills as it is.
    let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial);
    let file = file.map_err(failed)?;
    let copied = conn.execute("VACUUM INTO ?1", [&partial]);
    let placed = copied.map_err(StoreError::from).and_then(|_| place(&file, Path::new(&partial), path).map_err(failed));
    if placed.is_err() {
        // The first error is the one to tell; what is left behind does no harm.
        let _ = fs::remove_file(&partial);
    }
    placed
}

/// The name while it grows; nothing for a path without a file name, or one that is not UTF-8, which
/// SQLite can't be told.
fn partial_name(path: &Path) -> Option<String> {
    path.file_name()?;
    Some(format!("{}.partial", path.to_str()?))
}

fn place(file: &File, partial: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fs::rename(partial, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}
