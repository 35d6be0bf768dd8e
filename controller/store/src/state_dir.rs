//! The state folder: everything that a controller keeps lies below it, and one controller at a time
//! holds it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vm_agent_schemas::api::ControllerFile;

const LOCK: &str = "lock";
const DATABASE: &str = "state.db";
/// What is in a state folder before it has had a controller: the log of the one that is being started, and what
/// commands have laid there for it.
const BEFORE: [&str; 3] = ["controller.log", "images", "runtimes"];
const CONTROLLER_FILE: &str = "controller.json";
const SOCKET: &str = "api.sock";

/// How long to try for the lock. A client that asks whether the folder is held ([`is_locked`]) holds
/// it itself for an instant, which must not look like another controller.
const PATIENCE: Duration = Duration::from_millis(300);
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// Why the state folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// Another controller holds it.
    #[error(
        "the state folder {} is held by another controller{}; stop that one, or give this one a folder \
         of its own",
        dir.display(),
        pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held {
        /// The folder.
        dir: PathBuf,
        /// The other controller's process id, as it wrote it down.
        pid: Option<u32>,
    },
    /// It is somebody else's folder: closing it to others might break what it is for.
    #[error(
        "{0} holds files that are not a controller's, and others may read it; name a folder that is \
         empty or does not exist yet, or close this one to others: chmod 700 {0}",
        dir.display()
    )]
    Foreign {
        /// The folder.
        dir: PathBuf,
    },
    /// A file or folder can't be read or written.
    #[error("can't {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `controller.json` is not what a controller writes.
    #[error("{} is not what a controller writes; is it from another version?", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl StateDirError {
    fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

/// A state folder that this process holds, for as long as the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: File,
}

impl StateDir {
    /// Takes hold of a state folder, and makes it (mode 0700) if there is none. Works on the calling
    /// thread, for up to a third of a second when the folder is held.
    ///
    /// # Errors
    /// [`StateDirError::Held`] when another controller holds it, [`StateDirError::Foreign`] when it is
    /// no state folder, [`StateDirError::Io`] when it can't be made or used.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        make_private(path)?;
        let lock = lock(path)?;
        // Absolute, so that what lies in it is found from any working folder.
        let path = fs::canonicalize(path).map_err(StateDirError::io("find", path))?;
        Ok(Self { path, lock })
    }

    /// The folder, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of something in the folder.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// The database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.join(DATABASE)
    }

    /// The unix socket of the API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.join(SOCKET)
    }

    /// Tells clients where this controller listens: `controller.json`, readable by its owner alone,
    /// replaced whole.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write_controller_file(&self, content: &ControllerFile) -> Result<(), StateDirError> {
        let path = self.join(CONTROLLER_FILE);
        // Whoever holds the folder is the only writer, so one name for the growing file will do, and
        // what a crash leaves of it is overwritten.
        let growing = self.join("controller.json.new");
        let text = serde_json::to_vec_pretty(content)
            .map_err(|source| StateDirError::Malformed { path: path.clone(), source })?;
        let write = || {
            let mut options = OpenOptions::new();
            let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&growing)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&growing, &path)?;
            self.sync()
        };
        write().map_err(StateDirError::io("write", &path))
    }

    /// What `controller.json` says; nothing when there is none.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read_controller_file(&self) -> Result<Option<ControllerFile>, StateDirError> {
        read_controller_file(&self.path)
    }

    /// Removes `controller.json`, if there is one.
    ///
    /// # Errors
    /// When it can't be removed.
    pub fn remove_controller_file(&self) -> Result<(), StateDirError> {
        let path = self.join(CONTROLLER_FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| self.sync()).map_err(StateDirError::io("remove", &path)),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // Closing the file would do, but for a child process that is just being started and has not
        // let go of its copy yet. When unlocking fails, closing is what is left.
        let _ = self.lock.unlock();
    }
}

/// What `controller.json` in a state folder says; nothing when there is none. A controller that died
/// leaves it behind: [`is_locked`] tells whether one lives.
///
/// # Errors
/// When it can't be read.
pub fn read_controller_file(dir: &Path) -> Result<Option<ControllerFile>, StateDirError> {
    let path = dir.join(CONTROLLER_FILE);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(StateDirError::io("read", &path))?,
    };
    serde_json::from_slice(&text).map(Some).map_err(|source| StateDirError::Malformed { path, source })
}

/// Whether a living controller holds a state folder. A folder that does not exist is held by nobody;
/// one that can't be looked into counts as not held.
#[must_use]
pub fn is_locked(dir: &Path) -> bool {
    // Shared, so that two who ask at once don't take each other for a controller.
    File::open(dir.join(LOCK)).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Makes the folder if there is none, and closes it to others if it is ours.
fn make_private(dir: &Path) -> Result<(), StateDirError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(StateDirError::io("make the folder", dir))?;
    let mode = fs::metadata(dir).map_err(StateDirError::io("look at", dir))?.permissions().mode();
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let mut entries = fs::read_dir(dir).map_err(StateDirError::io("read", dir))?.flatten();
    let is_ours = entries.all(|entry| BEFORE.iter().any(|name| entry.file_name() == *name));
    if !is_ours && !dir.join(LOCK).exists() && !dir.join(DATABASE).exists() {
        return Err(StateDirError::Foreign { dir: dir.to_owned() });
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(StateDirError::io("close to others", dir))
}

/// Takes the lock and writes the process id into it, for whoever comes second.
fn lock(dir: &Path) -> Result<File, StateDirError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let opened = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
    let mut file = opened.map_err(StateDirError::io("open", &path))?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => std::thread::sleep(BETWEEN_TRIES),
            Err(TryLockError::WouldBlock) => {
                return Err(StateDirError::Held { dir: dir.to_owned(), pid: read_pid(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(StateDirError::io("lock", &path)(source)),
        }
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.write_all(std::process::id().to_string().as_bytes())
    };
    write(&mut file).map_err(StateDirError::io("write", &path))?;
    Ok(file)
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests;
