//! One file on the disk: looked at, compared, replaced, removed. Symbolic links in its own place are never
//! followed, nor those on the way to it below the work folder: whatever runs there could make one that leads
//! to files of others.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use vm_agent_schemas::fleet::FileContent;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::wire::TEXT_MAX;

/// The new file, before it takes the place of the old. What a crash leaves of it the next write removes.
const TEMPORARY: &str = ".vm-agent-new";
/// The permission bits of a mode.
const PERMISSIONS: u32 = 0o7777;

/// What tells that a file was not touched: any change of content or mode changes one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    mode: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What is in a place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing.
    Nothing,
    /// A file.
    File(Stamp),
    /// A symbolic link.
    Link,
    /// A folder, a pipe, a device.
    Other,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            mode: metadata.mode() & PERMISSIONS,
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What became of a file that was to be removed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It is removed.
    Removed,
    /// There was nothing.
    Gone,
    /// Something else is there by now, and stays.
    Changed,
}

/// The path of a name. Below the work folder there must be no link on the way to it; elsewhere links are the
/// system's own, and followed.
pub(super) fn path(work: &Path, name: &str) -> io::Result<PathBuf> {
    let path = work.join(name);
    let folders = path.strip_prefix(work).ok().and_then(Path::parent);
    let mut way = work.to_owned();
    for folder in folders.into_iter().flatten() {
        way.push(folder);
        match look(&way) {
            Ok(Seen::Other) => {}
            Ok(Seen::Link) => {
                let link = way.strip_prefix(work).unwrap_or(&way).display();
                return Err(io::Error::other(format!(
                    "`{link}` is a symbolic link, and in the work folder none is followed; put a folder in its place"
                )));
            }
            // The way ends here; what that means is for the deed itself to find out.
            Ok(Seen::Nothing | Seen::File(_)) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}

/// What is in a place.
pub(super) fn look(path: &Path) -> io::Result<Seen> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Seen::File(Stamp::of(&metadata))),
        Ok(metadata) if metadata.is_symlink() => Ok(Seen::Link),
        Ok(_) => Ok(Seen::Other),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Seen::Nothing),
        Err(error) => Err(error),
    }
}

/// Whether the file that looks so has this content and mode. One that can't be read has not.
pub(super) fn is(path: &Path, stamp: &Stamp, wanted: &FileContent) -> bool {
    stamp.mode == wanted.mode.bits()
        && stamp.size == wanted.content.len() as u64
        && read(path, stamp.size).is_ok_and(|content| content == wanted.content.as_bytes())
}

/// Whether the place holds a file with this content.
pub(super) fn holds(path: &Path, digest: &Digest) -> io::Result<bool> {
    let Seen::File(_) = look(path)? else { return Ok(false) };
    // A content came in one message, so there is no need to read more than fits into one.
    Ok(Digest::of(&read(path, TEXT_MAX as u64)?) == *digest)
}

/// Replaces whatever file or link is in the place, as a whole; on the disk when this returns.
pub(super) fn replace(path: &Path, file: &FileContent) -> io::Result<Stamp> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).create(folder)?;
    let temporary = folder.join(TEMPORARY);
    let replaced = create(&temporary, file).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // It was not made, or is of no use.
        let _ = fs::remove_file(&temporary);
    }
    replaced?;
    File::open(folder)?.sync_all()?;
    fs::symlink_metadata(path).map(|metadata| Stamp::of(&metadata))
}

fn create(path: &Path, file: &FileContent) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Nobody else may read it before it has its mode.
    let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    new.write_all(file.content.as_bytes())?;
    new.set_permissions(Permissions::from_mode(file.mode.bits()))?;
    new.sync_all()
}

/// Removes a file if its content still has this digest.
pub(super) fn remove_file(path: &Path, written: &Digest) -> io::Result<Removal> {
    match look(path) {
        Ok(Seen::File(_)) if holds(path, written)? => fs::remove_file(path).map(|()| Removal::Removed),
        Ok(Seen::File(_) | Seen::Link | Seen::Other) => Ok(Removal::Changed),
        Ok(Seen::Nothing) => Ok(Removal::Gone),
        // A file on the way to it: then there is none at the end.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Removal::Gone),
        Err(error) => Err(error),
    }
}

/// Reads a file of at most that size, and one byte more of a larger one. Whatever took its place meanwhile is
/// neither followed nor waited for.
fn read(path: &Path, size: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let mut content = Vec::new();
    file.take(size + 1).read_to_end(&mut content)?;
    Ok(content)
}
