//! The runtime's folder: the lock that makes it the only one there, and what survives a restart.
//!
//! Every file is replaced as a whole and reaches the disk before the call returns, so a crash leaves
//! the old or the new content. File access blocks the loop for that moment; the files are small.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vm_agent_schemas::ids::{Boot, Incarnation};
use vm_agent_schemas::layout::{LOCK_FILE, SEED_FILE, STOPPED_FILE, WORK_DIR};
use vm_agent_schemas::wire::Seed;

use crate::rotation::{ACKED_FILE, KEY_FILE, NEXT_FILE};

/// How often the runtime has started.
const BOOT_FILE: &str = "boot";
/// The incarnation in which the hub has bound the runtime's key. From then on the join token is not
/// sent any more.
const JOINED_FILE: &str = "joined";
/// Which life of which instance the rest of the folder belongs to.
const INCARNATION_FILE: &str = "incarnation";
/// Stands in for the machine's id where the operating system keeps none in a file.
const MACHINE_FILE: &str = "machine";
/// Which files of the configuration the runtime wrote. They lie on the disk and not in the incarnation, so a
/// new one keeps it.
const FILES_FILE: &str = "files.json";
/// The journals of tasks.
const TASKS_DIR: &str = "tasks";
/// Versions of the runtime that were sent.
const VERSIONS_DIR: &str = "versions";
/// What is remembered of them.
const UPGRADE_FILE: &str = "upgrade.json";
/// Messages on their way in and out.
const MESSAGES_DIR: &str = "messages";

/// How long the lock is tried for: a driver that looks whether a runtime lives holds it for an instant.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked for a seed. A machine is being made then, and has nothing else to do.
const SEED_PAUSE: Duration = Duration::from_millis(10);
/// The pause between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The folder of this runtime, locked.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Held until the process ends.
    _lock: File,
}

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another runtime has it.
    #[error("a runtime is already running in {folder}{}; end it first", process.map(|pid| format!(" as process {pid}")).unwrap_or_default())]
    AlreadyRunning {
        /// The folder.
        folder: PathBuf,
        /// That runtime's process, where it could be read.
        process: Option<u32>,
    },
    /// A file or folder could not be read or written.
    #[error("could not {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The seed is not one.
    #[error("{path} is no seed (line {line}, column {column}); have the instance seeded again")]
    Seed {
        /// The file.
        path: PathBuf,
        /// Where in it. The content is not shown: a seed holds a secret.
        line: usize,
        /// Where in the line.
        column: usize,
    },
    /// A file does not hold what the runtime wrote there.
    #[error("{path} holds no {expected}; the folder is damaged, have the instance made again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
}

impl Folder {
    /// Takes a folder: makes it where it is missing, locks it, and removes the mark of an earlier
    /// orderly end.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        create_dir(path)?;
        let path = fs::canonicalize(path).map_err(failed("resolve", path))?;
        let lock = lock(&path)?;
        remove(&path.join(STOPPED_FILE))?;
        create_dir(&path.join(WORK_DIR))?;
        create_dir(&path.join(TASKS_DIR))?;
        create_dir(&path.join(MESSAGES_DIR))?;
        Ok(Self { path, _lock: lock })
    }

    /// The folder's canonical path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where processes run unless told otherwise.
    pub(crate) fn work(&self) -> PathBuf {
        self.path.join(WORK_DIR)
    }

    /// Where the journals of tasks lie.
    pub(crate) fn tasks(&self) -> PathBuf {
        self.path.join(TASKS_DIR)
    }

    /// Where messages lie on their way in and out.
    pub(crate) fn messages(&self) -> PathBuf {
        self.path.join(MESSAGES_DIR)
    }

    /// Where versions of the runtime lie that were sent.
    pub(crate) fn versions(&self) -> PathBuf {
        self.path.join(VERSIONS_DIR)
    }

    /// Where it is noted which of them is to run.
    pub(crate) fn upgrade(&self) -> PathBuf {
        self.path.join(UPGRADE_FILE)
    }

    /// Where it is noted which files of the configuration were written.
    pub(crate) fn files(&self) -> PathBuf {
        self.path.join(FILES_FILE)
    }

    /// What the driver put here.
    pub(crate) fn seed(&self) -> Result<Seed, FolderError> {
        let path = self.path.join(SEED_FILE);
        let text = fs::read(&path).map_err(failed("read", &path))?;
        serde_json::from_slice(&text).map_err(|error| FolderError::Seed {
            path,
            line: error.line(),
            column: error.column(),
        })
    }

    /// Waits until the driver has put a seed here. It appears whole.
    pub(crate) fn await_seed(&self) {
        let path = self.path.join(SEED_FILE);
        while !path.exists() {
            std::thread::sleep(SEED_PAUSE);
        }
    }

    /// Makes sure that what is kept belongs to the seed's incarnation. A restored or cloned instance
    /// brings along the key, the counts and the journal of another life, and must use none of them.
    pub(crate) fn begin(&self, seed: &Seed) -> Result<(), FolderError> {
        let path = self.path.join(INCARNATION_FILE);
        let now = format!("{} {}", seed.incarnation, seed.nonce).into_bytes();
        if read_if_there(&path)?.as_ref() == Some(&now) {
            return Ok(());
        }
        for name in [JOINED_FILE, KEY_FILE, NEXT_FILE, ACKED_FILE, BOOT_FILE] {
            remove(&self.path.join(name))?;
        }
        for folder in [self.tasks(), self.messages()] {
            std::fs::remove_dir_all(&folder).map_err(failed("remove", &folder))?;
            create_dir(&folder)?;
        }
        write(&path, &now)
    }

    /// Counts this start.
    pub(crate) fn next_boot(&self) -> Result<Boot, FolderError> {
        let boot = self.number(BOOT_FILE)?.map_or_else(Boot::default, Boot).next();
        write(&self.path.join(BOOT_FILE), boot.to_string().as_bytes())?;
        Ok(boot)
    }

    /// The incarnation in which the hub bound the key, if it has.
    pub(crate) fn joined(&self) -> Result<Option<Incarnation>, FolderError> {
        Ok(self.number(JOINED_FILE)?.map(Incarnation))
    }

    /// Remembers, or forgets, in which incarnation the hub bound the key.
    pub(crate) fn set_joined(&self, incarnation: Option<Incarnation>) -> Result<(), FolderError> {
        let path = self.path.join(JOINED_FILE);
        match incarnation {
            Some(incarnation) => write(&path, incarnation.to_string().as_bytes()),
            None => remove(&path),
        }
    }

    /// The key's PKCS#8 document; made by `generate` at the first start.
    pub(crate) fn key(&self, generate: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, FolderError> {
        self.kept(KEY_FILE, generate)
    }

    /// What stands in for the machine's id; made by `generate` at the first start.
    pub(crate) fn machine(&self, generate: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, FolderError> {
        self.kept(MACHINE_FILE, generate)
    }

    /// Leaves the mark of an orderly end.
    pub(crate) fn mark_stopped(&self) -> Result<(), FolderError> {
        write(&self.path.join(STOPPED_FILE), b"")
    }

    fn kept(&self, name: &str, generate: impl FnOnce() -> Vec<u8>) -> Result<Vec<u8>, FolderError> {
        let path = self.path.join(name);
        if let Some(content) = read_if_there(&path)? {
            return Ok(content);
        }
        let content = generate();
        write(&path, &content)?;
        Ok(content)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, FolderError> {
        let path = self.path.join(name);
        let Some(content) = read_if_there(&path)? else { return Ok(None) };
        let number = str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
        number.map(Some).ok_or(FolderError::Damaged { path, expected: "number" })
    }
}

/// Takes the exclusive lock and writes the own process id into the locked file.
fn lock(folder: &Path) -> Result<File, FolderError> {
    let path = folder.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed("open", &path))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let process = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(FolderError::AlreadyRunning { folder: folder.to_owned(), process });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    written.map_err(failed("write", &path))?;
    Ok(file)
}

/// Replaces a file as a whole, readable for its owner alone; the new content is on the disk when this
/// returns. Only one process writes here, the holder of the lock, so one temporary name will do.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), FolderError> {
    let temporary = path.with_added_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| path.parent().map_or(Ok(()), sync_dir))
        .map_err(failed("write", path))
}

/// Has what was made, renamed or removed in a folder reach the disk.
pub(crate) fn sync_dir(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file. A file that is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<(), FolderError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

pub(crate) fn create_dir(path: &Path) -> Result<(), FolderError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create", path))
}

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn every_start_counts() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!(folder.next_boot().unwrap(), Boot(1));
        assert_eq!(folder.next_boot().unwrap(), Boot(2));
    }

    #[test]
    fn the_key_is_made_once_and_is_for_its_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!(folder.key(|| b"first".to_vec()).unwrap(), b"first");
        assert_eq!(folder.key(|| b"second".to_vec()).unwrap(), b"first");
        let mode = fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_start_removes_the_mark_of_an_orderly_end() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        folder.mark_stopped().unwrap();
        assert!(place.path().join(STOPPED_FILE).exists());
        drop(folder);
        Folder::open(place.path()).unwrap();
        assert!(!place.path().join(STOPPED_FILE).exists());
    }

    #[test]
    fn a_lock_held_for_an_instant_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let prober = File::create(place.path().join(LOCK_FILE)).unwrap();
        prober.lock().unwrap();
        std::thread::scope(|scope| {
            let open = scope.spawn(|| Folder::open(place.path()));
            prober.unlock().unwrap();
            assert!(open.join().unwrap().is_ok());
        });
    }

    #[test]
    fn a_broken_seed_is_refused_without_showing_it() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        fs::write(place.path().join(SEED_FILE), r#"{"joinToken": "hunter2", "nonce": }"#).unwrap();
        let error = crate::chain(&folder.seed().unwrap_err());
        assert!(error.contains("seed.json is no seed (line 1"), "{error}");
        assert!(!error.contains("hunter2"));
    }

    #[test]
    fn another_incarnation_begins_anew_and_the_same_goes_on() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        let mut seed = crate::identity::tests::seed();
        let life = |seed: &Seed, key: &[u8]| {
            folder.begin(seed).unwrap();
            let kept = fs::read_dir(folder.tasks()).unwrap().count();
            fs::write(folder.tasks().join("journal"), "").unwrap();
            (folder.key(|| key.to_vec()).unwrap(), folder.next_boot().unwrap(), kept)
        };
        assert_eq!(life(&seed, b"first"), (b"first".to_vec(), Boot(1), 0));
        assert_eq!(life(&seed, b"second"), (b"first".to_vec(), Boot(2), 1));
        seed.incarnation = seed.incarnation.next();
        assert_eq!(life(&seed, b"third"), (b"third".to_vec(), Boot(1), 0));
    }

    #[test]
    fn where_the_key_was_bound_can_be_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!(folder.joined().unwrap(), None);
        folder.set_joined(Some(Incarnation(3))).unwrap();
        assert_eq!(folder.joined().unwrap(), Some(Incarnation(3)));
        folder.set_joined(None).unwrap();
        assert_eq!(folder.joined().unwrap(), None);
    }
}
