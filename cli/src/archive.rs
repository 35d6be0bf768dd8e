//! Files and folders as tar archives with one top-level entry, written and unpacked on this machine.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tar::{Archive, Builder, EntryType, Header};

/// Writes a file or a folder as the archive's one entry, called `name`. A link at the top is followed, those below
/// stay links; sockets, pipes and devices are left out.
pub(crate) fn pack(from: &Path, name: &str, to: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(to);
    let metadata = fs::metadata(from).map_err(|error| at(from, &error))?;
    append(&mut archive, from, Path::new(name), &metadata)?;
    archive.into_inner()?.flush()
}

fn append(archive: &mut Builder<impl Write>, from: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
    let failed = |error: io::Error| at(from, &error);
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    if metadata.is_file() {
        let mut content = File::open(from).map_err(failed)?.take(metadata.len());
        archive.append_data(&mut header, name, &mut content).map_err(failed)?;
        // What the header promises has to come: everything after it would be read as something else.
        return match content.limit() {
            0 => Ok(()),
            _ => Err(at(from, &"it became shorter while it was read")),
        };
    }
    if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        let target = fs::read_link(from).map_err(failed)?;
        return archive.append_link(&mut header, name, target).map_err(failed);
    }
    if metadata.is_dir() {
        header.set_size(0);
        archive.append_data(&mut header, name, io::empty()).map_err(failed)?;
        for path in entries(from).map_err(failed)? {
            let metadata = path.symlink_metadata().map_err(|error| at(&path, &error))?;
            let name = name.join(path.file_name().unwrap_or_default());
            append(archive, &path, &name, &metadata)?;
        }
    }
    Ok(())
}

/// What is in a folder, by name: the same folder is the same archive.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// How many bytes of content a file or a folder has; what can't be read counts as none.
pub(crate) fn size_of(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else { return 0 };
    if !metadata.is_dir() {
        return metadata.len();
    }
    entries(path).map_or(0, |paths| paths.iter().map(|path| size_of(path)).sum())
}

/// Unpacks an archive into an empty folder, and says which its one entry is. Nothing of it gets out of the
/// folder, whatever its names and links say.
pub(crate) fn unpack(mut from: impl Read, folder: &Path) -> io::Result<PathBuf> {
    Archive::new(&mut from).unpack(folder)?;
    // The end of an archive is padded; who sends it has to get rid of that.
    io::copy(&mut from, &mut io::sink())?;
    match entries(folder)?.as_slice() {
        [one] => Ok(one.clone()),
        several => Err(io::Error::other(format!("the archive has {} entries instead of one", several.len()))),
    }
}

/// Where something called `name` comes to lie when it is copied to `to`: in it, if that is a folder.
pub(crate) fn destination(to: &Path, name: &str) -> PathBuf {
    if to.is_dir() { to.join(name) } else { to.to_owned() }
}

/// The folder that something lies in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn packed(from: &Path, name: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        pack(from, name, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_folder_is_the_same_after_its_journey() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("deep/er")).unwrap();
        fs::write(tree.join("deep/er/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(tree.join("deep/er/run"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(tree.join("n".repeat(200)), "a long name").unwrap();
        symlink("deep/er/run", tree.join("link")).unwrap();
        fs::set_permissions(tree.join("deep/er"), fs::Permissions::from_mode(0o555)).unwrap();
        let to = tempfile::tempdir().unwrap();
        let entry = unpack(packed(&tree, "other").as_slice(), to.path()).unwrap();
        assert_eq!(entry, to.path().join("other"));
        assert_eq!(fs::read_to_string(entry.join("link")).unwrap(), "#!/bin/sh\n");
        assert_eq!(fs::read_link(entry.join("link")).unwrap(), Path::new("deep/er/run"));
        assert_eq!(fs::read_to_string(entry.join("n".repeat(200))).unwrap(), "a long name");
        let mode = |path: &str| entry.join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("deep/er/run"), mode("deep/er")), (0o755, 0o555));
        assert_eq!(size_of(&entry.join("deep")), 10);
        for folder in [tree.join("deep/er"), entry.join("deep/er")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn a_link_that_is_named_is_followed_and_what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        symlink("file", dir.path().join("link")).unwrap();
        let to = tempfile::tempdir().unwrap();
        let entry = unpack(packed(&dir.path().join("link"), "link").as_slice(), to.path()).unwrap();
        assert!(entry.symlink_metadata().unwrap().is_file());
        let missing = dir.path().join("missing");
        let error = pack(&missing, "missing", io::sink()).unwrap_err();
        assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    }

    #[test]
    fn nothing_of_an_archive_gets_out_of_its_folder() {
        let outside = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "way-out", outside.path()).unwrap();
        let mut header = Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        archive.append_data(&mut header, "way-out/file", &b"x"[..]).unwrap();
        assert!(unpack(archive.into_inner().unwrap().as_slice(), to.path()).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), vec![b'x'; 4096]).unwrap();
        let bytes = packed(&dir.path().join("file"), "file");
        let to = tempfile::tempdir().unwrap();
        assert!(unpack(&bytes[..2000], to.path()).is_err());
    }

    #[test]
    fn a_folder_takes_in_what_is_copied_to_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(destination(dir.path(), "a"), dir.path().join("a"));
        assert_eq!(destination(&dir.path().join("b"), "a"), dir.path().join("b"));
        assert_eq!((folder_of(Path::new("a")), folder_of(Path::new("a/b"))), (Path::new("."), Path::new("a")));
    }
}
