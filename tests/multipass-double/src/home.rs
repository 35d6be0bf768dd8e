//! Where things lie in the state folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The variable that names the state folder.
pub const DIR_VARIABLE: &str = "MULTIPASS_DOUBLE_DIR";

/// The state folder of a double.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// The state folder at a path, which has to be absolute.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What the double is to do wrong, and how long it takes. Tests write it.
    #[must_use]
    pub fn knobs(&self) -> PathBuf {
        self.0.join("knobs.json")
    }

    /// What it was called for.
    #[must_use]
    pub fn calls(&self) -> PathBuf {
        self.0.join("calls.jsonl")
    }

    /// What the daemon remembers.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.0.join("state.json")
    }

    /// Whether there is a daemon.
    #[must_use]
    pub fn daemon(&self) -> PathBuf {
        self.0.join("daemon.json")
    }

    /// Held by whatever the daemon does at the moment: it does one thing at a time.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Held by the tests' handle as long as it lives. Machines whose owner is gone end.
    #[must_use]
    pub fn owner(&self) -> PathBuf {
        self.0.join("owner")
    }

    /// What all machines of this double have in common.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    /// The folder of an instance.
    #[must_use]
    pub fn instance(&self, name: &str) -> PathBuf {
        self.0.join("instances").join(name)
    }

    /// The disk of an instance: the folder that is its root.
    #[must_use]
    pub fn disk(&self, name: &str) -> PathBuf {
        self.instance(name).join("root")
    }

    /// What the daemon and the running machine tell each other.
    #[must_use]
    pub fn machine(&self, name: &str) -> PathBuf {
        self.instance(name).join("machine")
    }

    /// The disk of an instance as a snapshot has it.
    #[must_use]
    pub fn snapshot(&self, instance: &str, snapshot: &str) -> PathBuf {
        self.instance(instance).join("snapshots").join(snapshot)
    }
}

/// Reads a file of JSON, or gives what stands for none where it is missing or broken.
pub(crate) fn read_json<T: DeserializeOwned + Default>(path: &Path) -> T {
    fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Replaces a file of JSON as a whole.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let next = path.with_extension(format!("new-{}", std::process::id()));
    File::create(&next)?.write_all(&serde_json::to_vec_pretty(value)?)?;
    fs::rename(next, path)
}
