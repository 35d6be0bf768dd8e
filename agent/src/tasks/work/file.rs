//! Files that are read and written as tasks. This is done by the runtime itself, on a thread of its own: a disk
//! that hangs holds up nothing else. A thread can't be ended, so when such a task is cancelled or takes too long
//! its file may still be written.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use vm_agent_schemas::fleet::FileMode;
use vm_agent_schemas::task::Content;
use vm_agent_schemas::units::ByteSize;

/// How much is read at once, in bytes.
const READ: usize = 64 * 1024;

/// Where a path leads from this folder.
pub(super) fn place(folder: &Path, path: &str) -> Result<PathBuf, String> {
    let place = folder.join(path);
    if place.file_name().is_none() || path.ends_with('/') || path.contains('\0') {
        return Err(format!("`{path}` is no path of a file"));
    }
    Ok(place)
}

/// The bytes of a content.
pub(super) fn bytes(content: &Content) -> Result<Vec<u8>, String> {
    match content {
        Content::Text(text) => Ok(text.clone().into_bytes()),
        Content::Base64(text) => STANDARD.decode(text).map_err(|error| format!("the content is not base64: {error}")),
    }
}

/// Reads a file of at most `max` bytes, piece by piece, until `take` wants no more.
pub(in crate::tasks) fn read(path: &Path, max: u64, mut take: impl FnMut(Bytes) -> bool) -> Result<(), String> {
    let failed = |error: io::Error| format!("`{}` can't be read: {}", path.display(), describe(&error));
    // A pipe would be waited for otherwise.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("`{}` can't be read: it is no file", path.display()));
    }
    let long = |size| {
        let (size, max) = (ByteSize::from_bytes(size).rounded(), ByteSize::from_bytes(max).rounded());
        format!("`{}` has {size}, and at most {max} of output are kept; ask for more, or for a part", path.display())
    };
    if metadata.len() > max {
        return Err(long(metadata.len()));
    }
    let mut total = 0;
    loop {
        let mut buffer = vec![0; READ];
        let len = match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        total += len as u64;
        if total > max {
            return Err(long(total));
        }
        buffer.truncate(len);
        if !take(buffer.into()) {
            return Ok(());
        }
    }
}

/// Writes a file as a whole: it is written beside its place under the name `temporary`, and then takes it. Missing
/// folders are made. A symbolic link in its place is followed, as by any program that writes there.
pub(in crate::tasks) fn write(path: &Path, temporary: &str, content: &[u8], mode: FileMode) -> Result<(), String> {
    let failed = |error: io::Error| format!("`{}` can't be written: {}", path.display(), describe(&error));
    let folder = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).create(folder).map_err(failed)?;
    let place = match fs::canonicalize(path) {
        Ok(place) if place.is_dir() => return Err(format!("`{}` can't be written: it is a folder", path.display())),
        Ok(place) => place,
        Err(_) => path.to_owned(),
    };
    let temporary = place.with_file_name(temporary);
    let written = create(&temporary, content, mode).and_then(|()| fs::rename(&temporary, &place));
    if written.is_err() {
        // It was not made, or is of no use.
        let _ = fs::remove_file(&temporary);
    }
    let synced = written.and_then(|()| File::open(place.parent().unwrap_or(folder))?.sync_all());
    synced.map_err(failed)
}

fn create(path: &Path, content: &[u8], mode: FileMode) -> io::Result<()> {
    // What an attempt before this one has left.
    let _ = fs::remove_file(path);
    // Nobody else may read it before it has its mode.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode.bits()))?;
    file.sync_all()
}

/// An error as a part of a sentence.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it is not there".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        io::ErrorKind::NotADirectory => "something on the way to it is no folder".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path, max: u64) -> Result<Vec<u8>, String> {
        let mut content = Vec::new();
        read(path, max, |data| {
            content.extend_from_slice(&data);
            true
        })?;
        Ok(content)
    }

    #[test]
    fn a_file_is_read_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, vec![7; 200_000]).unwrap();
        assert_eq!(content(&file, 200_000).unwrap().len(), 200_000);
        let error = content(&file, 199_999).unwrap_err();
        assert!(
            error.ends_with("has 195.3K, and at most 195.3K of output are kept; ask for more, or for a part"),
            "{error}"
        );
        assert!(content(place.path(), 1).unwrap_err().ends_with("it is no file"));
        assert!(content(&place.path().join("none"), 1).unwrap_err().ends_with("it is not there"));
    }

    #[test]
    fn a_file_is_written_with_its_folders_and_its_mode_and_links_are_followed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a/b/file");
        write(&path, ".new", b"one", "0640".parse().unwrap()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        let link = place.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&link, ".new", b"two", FileMode::default()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(
            write(&place.path().join("a"), ".new", b"", FileMode::default()).unwrap_err().ends_with("it is a folder")
        );
        assert_eq!(fs::read_dir(place.path().join("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_path_and_no_content_is_refused() {
        let folder = Path::new("/work");
        assert_eq!(place(folder, "a/b"), Ok("/work/a/b".into()));
        assert_eq!(place(folder, "/etc/motd"), Ok("/etc/motd".into()));
        for bad in ["", "/", "a/", "a/..", "a\0b"] {
            assert!(place(Path::new("/"), bad).is_err(), "{bad:?}");
        }
        assert_eq!(bytes(&Content::Base64("AP8=".to_owned())), Ok(vec![0, 255]));
        assert!(bytes(&Content::Base64("?".to_owned())).unwrap_err().starts_with("the content is not base64"));
    }
}
