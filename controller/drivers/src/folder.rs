//! One instance in a folder of its own, for drivers that keep their instances below one root.
//!
//! A folder appears under its name whole or not at all, with the claim in it that shows whose it is, and
//! leaves its name in one step too. Liveness is the lock on a file of it and never a process id, which may
//! be that of another process by now; a mark tells what was stopped from what crashed.
//!
//! Everything here is synchronous and short.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use uuid::Uuid;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::layout;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::InstanceState;

/// Start of the name of a folder that is being made.
const MAKING: &str = ".making-";
/// Start of the name of a folder that is being deleted.
const GONE: &str = ".gone-";

/// The files of a driver's folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Files {
    /// Shows whose the folder is: JSON with a `nonce`.
    pub(crate) claim: &'static str,
    /// Locked as long as the instance's process lives.
    pub(crate) lock: &'static str,
    /// What the process writes.
    pub(crate) log: &'static str,
}

/// Whose a folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// There is no folder.
    Nobody,
    /// That of the claim with this nonce.
    Claim(Nonce),
    /// There is something, and no nonce can be read from it. Folders appear with their seed in them,
    /// so this one was not made here, or was damaged.
    Unclear,
}

/// The folder of one instance, there or not.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    root: PathBuf,
    instance: InstanceName,
    path: PathBuf,
    files: Files,
}

impl Folder {
    pub(crate) fn new(root: &Path, instance: &InstanceName, files: Files) -> Self {
        Self { root: root.to_owned(), instance: instance.clone(), path: root.join(instance.as_str()), files }
    }

    pub(crate) fn instance(&self) -> &InstanceName {
        &self.instance
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether the folder is there.
    pub(crate) fn exists(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| found.is_dir())
    }

    /// Whose the folder is, by the nonce in its claim.
    pub(crate) fn owner(&self) -> io::Result<Owner> {
        /// Of a claim only what shows whose it is, so that the claim of another version reads too.
        #[derive(Deserialize)]
        struct Claimed {
            nonce: Nonce,
        }
        let path = self.file(self.files.claim);
        match fs::read(&path) {
            Ok(bytes) => {
                let claimed = serde_json::from_slice::<Claimed>(&bytes);
                Ok(claimed.map_or(Owner::Unclear, |claimed| Owner::Claim(claimed.nonce)))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                match fs::symlink_metadata(&self.path) {
                    Ok(_) => Ok(Owner::Unclear),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owner::Nobody),
                    Err(error) => Err(at(&self.path)(error)),
                }
            }
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Whether a process holds the lock, which it does as long as it lives.
    ///
    /// The probe takes the lock for a moment if nobody holds it; a process that comes up just then
    /// tries again. Shared, so that probes don't see each other. Released by hand rather than by
    /// closing: a process forked meanwhile would keep the file open, and the lock with it, until it
    /// executes its program.
    pub(crate) fn is_held(&self) -> io::Result<bool> {
        let path = self.file(self.files.lock);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(at(&path)(error)),
        };
        match file.try_lock_shared() {
            Ok(()) => file.unlock().map(|()| false).map_err(at(&path)),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(at(&path)(error)),
        }
    }

    /// Whether no process holds the lock.
    pub(crate) fn is_free(&self) -> io::Result<bool> {
        self.is_held().map(|held| !held)
    }

    /// What the instance is doing.
    pub(crate) fn state(&self) -> io::Result<InstanceState> {
        if self.is_held()? {
            return Ok(InstanceState::Running);
        }
        if self.is_marked_stopped() {
            return Ok(InstanceState::Stopped);
        }
        // What comes up locks first and removes the mark then: between our two looks it may have done both.
        Ok(if self.is_held()? { InstanceState::Running } else { InstanceState::Failed })
    }

    pub(crate) fn is_marked_stopped(&self) -> bool {
        self.file(layout::STOPPED_FILE).exists()
    }

    /// Writes down that the instance is down because it was stopped.
    pub(crate) fn mark_stopped(&self) -> io::Result<()> {
        let path = self.file(layout::STOPPED_FILE);
        create_private(&path).map(drop).map_err(at(&path))
    }

    /// Takes back that the instance was stopped.
    pub(crate) fn unmark_stopped(&self) -> io::Result<()> {
        let path = self.file(layout::STOPPED_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes the folder, with this claim in it, marked as stopped. It appears under its name whole or not at
    /// all, so that a name is never taken by something that shows no nonce.
    pub(crate) fn make(&self, claim: &[u8]) -> io::Result<()> {
        self.make_with(claim, |_| Ok(()))
    }

    /// The same, with what else is to be in it from the beginning.
    pub(crate) fn make_with(&self, claim: &[u8], fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        private_dirs(&self.root)?;
        let made = Self { path: self.scratch(MAKING), ..self.clone() };
        let result = private_dirs(&made.path)
            .and_then(|()| made.write(self.files.claim, claim))
            .and_then(|()| made.mark_stopped())
            .and_then(|()| fill(&made.path))
            .and_then(|()| fs::rename(&made.path, &self.path).map_err(at(&self.path)))
            .and_then(|()| sync_dir(&self.root));
        if result.is_err() {
            // What can't be removed now is a leftover for later.
            let _ = fs::remove_dir_all(&made.path);
        }
        result
    }

    /// Writes a file that only the owner may read, unless it says this already. A crash leaves the old
    /// one or the new one.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.file(name);
        if fs::read(&path).is_ok_and(|old| old == bytes) {
            return Ok(());
        }
        let new = path.with_extension("json.new");
        let write = || {
            let mut file = create_private(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(at(&path))?;
        sync_dir(&self.path)
    }

    /// Opens the runtime's log to be written on, and says how long it is.
    pub(crate) fn open_log(&self) -> io::Result<(File, u64)> {
        let path = self.file(self.files.log);
        let open = || {
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        open().map_err(at(&path))
    }

    /// The end of what the log says after its first `from` bytes, on one line.
    pub(crate) fn log_since(&self, from: u64) -> String {
        /// Enough for the sentence that a program ends with, and fit to be shown in a table.
        const LONGEST: u64 = 1024;
        let read = || {
            let mut file = File::open(self.file(self.files.log))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(from.max(length.saturating_sub(LONGEST))))?;
            let mut bytes = Vec::new();
            file.take(LONGEST).read_to_end(&mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// Moves the folder out of its name, which is free from then on, and says where it went.
    pub(crate) fn move_away(&self) -> io::Result<PathBuf> {
        let gone = self.scratch(GONE);
        fs::rename(&self.path, &gone).map_err(at(&self.path))?;
        sync_dir(&self.root)?;
        Ok(gone)
    }

    /// A new path beside the folder. No instance name has a dot in it.
    fn scratch(&self, kind: &str) -> PathBuf {
        self.root.join(format!("{kind}{}.{}", self.instance, Uuid::new_v4().simple()))
    }
}

/// The folders below `root` that have an instance's name. A root that is not there holds none.
pub(crate) fn folders(root: &Path, files: Files) -> io::Result<Vec<Folder>> {
    let directories = entries(root)?.into_iter().filter(|(path, _)| path.is_dir() && !path.is_symlink());
    let names = directories.filter_map(|(_, name)| name.parse().ok());
    Ok(names.map(|instance| Folder::new(root, &instance, files)).collect())
}

/// Folders below `root` that a dead controller left half made or half deleted, each with the instance
/// whose it was. Those of calls under way are among them: their instances' locks are held.
pub(crate) fn leftovers(root: &Path) -> io::Result<Vec<(InstanceName, PathBuf)>> {
    let whose = |name: &str| {
        let rest = name.strip_prefix(MAKING).or_else(|| name.strip_prefix(GONE))?;
        rest.split_once('.')?.0.parse().ok()
    };
    Ok(entries(root)?.into_iter().filter_map(|(path, name)| Some((whose(&name)?, path))).collect())
}

fn entries(root: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let found = match fs::read_dir(root) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(root)(error)),
    };
    let entry = |entry: fs::DirEntry| Some((entry.path(), entry.file_name().into_string().ok()?));
    found.filter_map(|found| found.map(entry).transpose()).collect::<io::Result<_>>().map_err(at(root))
}

/// Deletes a folder with all that is in it, folders without write permission included: tools leave
/// such behind on purpose, as Go's module cache does.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path);
            fs::remove_dir_all(path)
        }
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Gives the owner back every right on a folder and those in it. What fails here fails again, with
/// its reason, when it is deleted.
fn open_up(path: &Path) {
    let _ = fs::set_permissions(path, Permissions::from_mode(0o700));
    let inner = fs::read_dir(path).into_iter().flatten().flatten();
    // The type of an entry is its own, not that of what it links to.
    for entry in inner.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        open_up(&entry.path());
    }
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes a folder that only the owner may enter, and those on the way to it.
pub(crate) fn private_dirs(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Makes what happened to names in a folder outlive a loss of power.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at(path))
}

/// Puts the path before the operating system's words, which don't tell it.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::an_order;

    const FILES: Files = Files { claim: "claim.json", lock: "lock", log: "log" };

    fn a_folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path(), &"web".parse().unwrap(), FILES);
        (root, folder)
    }

    fn claim() -> Vec<u8> {
        serde_json::to_vec(&an_order("web").seed).unwrap()
    }

    #[test]
    fn a_folder_appears_whole_and_private() {
        let (root, folder) = a_folder();
        let order = an_order("web");
        assert_eq!(folder.owner().unwrap(), Owner::Nobody);
        folder.make(&serde_json::to_vec(&order.seed).unwrap()).unwrap();
        assert_eq!(folder.owner().unwrap(), Owner::Claim(order.seed.nonce));
        assert_eq!(folder.state().unwrap(), InstanceState::Stopped);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(folder.path.clone()), 0o700);
        assert_eq!(mode(folder.file(FILES.claim)), 0o600);
        assert_eq!(leftovers(root.path()).unwrap(), []);
    }

    #[test]
    fn the_lock_tells_whether_it_runs_and_the_mark_why_not() {
        let (_root, folder) = a_folder();
        folder.make(&claim()).unwrap();
        let lock = File::create(folder.file(FILES.lock)).unwrap();
        lock.lock().unwrap();
        assert_eq!(folder.state().unwrap(), InstanceState::Running);
        lock.unlock().unwrap();
        assert_eq!(folder.state().unwrap(), InstanceState::Stopped);
        folder.unmark_stopped().unwrap();
        assert_eq!(folder.state().unwrap(), InstanceState::Failed);
    }

    #[test]
    fn only_folders_with_an_instances_name_are_instances() {
        let (root, folder) = a_folder();
        folder.make(&claim()).unwrap();
        fs::create_dir(root.path().join(".gone-web.0")).unwrap();
        fs::create_dir(root.path().join("Not a name")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(&folder.path, root.path().join("link")).unwrap();
        let found: Vec<_> =
            folders(root.path(), FILES).unwrap().iter().map(|found| found.instance().to_string()).collect();
        assert_eq!(found, ["web"]);
        assert_eq!(leftovers(root.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_shows_no_nonce_is_nobodys_to_take() {
        let (root, folder) = a_folder();
        fs::create_dir(&folder.path).unwrap();
        assert_eq!(folder.owner().unwrap(), Owner::Unclear);
        fs::write(folder.file(FILES.claim), "{").unwrap();
        assert_eq!(folder.owner().unwrap(), Owner::Unclear);
        let file = Folder::new(root.path(), &"file".parse().unwrap(), FILES);
        fs::write(&file.path, "").unwrap();
        assert_eq!(file.owner().unwrap(), Owner::Unclear);
    }

    #[test]
    fn a_folder_that_can_not_be_made_leaves_nothing_and_says_why() {
        let (root, folder) = a_folder();
        fs::write(&folder.path, "in the way").unwrap();
        let error = folder.make(&claim()).unwrap_err().to_string();
        assert!(error.contains("web: "), "{error}");
        assert_eq!(leftovers(root.path()).unwrap(), []);
    }

    #[test]
    fn a_tree_without_write_permission_is_deleted_and_links_are_not_followed() {
        let (root, folder) = a_folder();
        let kept = tempfile::tempdir().unwrap();
        fs::write(kept.path().join("kept"), "").unwrap();
        fs::set_permissions(kept.path(), Permissions::from_mode(0o500)).unwrap();
        let inner = folder.path.join("cache/inner");
        fs::create_dir_all(&inner).unwrap();
        std::os::unix::fs::symlink(kept.path(), inner.join("link")).unwrap();
        fs::set_permissions(&inner, Permissions::from_mode(0o500)).unwrap();
        open_up(&folder.path);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&inner), mode(kept.path())), (0o700, 0o500));
        remove_tree(&folder.path).unwrap();
        remove_tree(&folder.path).unwrap();
        assert_eq!(entries(root.path()).unwrap(), []);
        assert!(kept.path().join("kept").exists());
    }

    #[test]
    fn the_log_is_told_from_where_this_start_began() {
        let (_root, folder) = a_folder();
        fs::create_dir(&folder.path).unwrap();
        fs::write(folder.file(FILES.log), "an old line\n").unwrap();
        let (mut log, length) = folder.open_log().unwrap();
        log.write_all(b"first\n\n  second\n").unwrap();
        assert_eq!(folder.log_since(length), "first; second");
    }
}
