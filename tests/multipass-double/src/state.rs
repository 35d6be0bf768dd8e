//! What the daemon remembers between two calls.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::sizes::{GIB, MIB};
use crate::vault::Vault;

/// Everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The instances, deleted ones too.
    pub instances: BTreeMap<String, Instance>,
    /// Names under preparation, with the process that prepares.
    pub preparing: BTreeMap<String, u32>,
    /// Settings that are not the default.
    pub settings: BTreeMap<String, String>,
    /// Images that need not be fetched again.
    pub cached: BTreeSet<String>,
    /// What instances were made from.
    pub(crate) vault: Vault,
    /// How many addresses were given away.
    pub addresses: u32,
    /// How often each fault was met, under the generation of the knobs.
    pub met: (u64, Vec<u32>),
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// What it is about.
    pub phase: Phase,
    /// It is deleted, and not yet purged.
    pub deleted: bool,
    /// What it was made from.
    pub image: Image,
    /// Processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of disk.
    pub disk: u64,
    /// Host folders in it, by their place there.
    pub mounts: BTreeMap<String, Mount>,
    /// In the order in which they were taken.
    pub snapshots: Vec<Snapshot>,
    /// How many were ever taken.
    pub snapshots_taken: u32,
    /// The one that was last taken or gone back to.
    pub parent: Option<String>,
    /// How many clones were made of it.
    pub clones: u32,
    /// The management address.
    pub ipv4: String,
    /// The id of its hardware.
    pub uuid: String,
    /// Has a second network card.
    pub bridged: bool,
    /// When it is to be shut down, in milliseconds since the epoch.
    pub shutdown_at: Option<i64>,
    /// The next daemon starts it: it ran when the last one ended.
    pub autostart: bool,
}

impl Instance {
    /// The state as it is told.
    #[must_use]
    pub fn told(&self) -> &'static str {
        if self.deleted { "Deleted" } else { self.phase.told() }
    }
}

/// What an instance is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No process.
    Stopped,
    /// Boots.
    Starting,
    /// Runs.
    Running,
    /// Boots again.
    Restarting,
    /// Runs, and will be shut down.
    DelayedShutdown,
    /// Its memory is saved.
    Suspended,
    /// Runs, but SSH did not answer.
    Unknown,
}

impl Phase {
    /// As it is told.
    #[must_use]
    pub fn told(self) -> &'static str {
        match self {
            Self::Stopped => "Stopped",
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Restarting => "Restarting",
            Self::DelayedShutdown => "Delayed Shutdown",
            Self::Suspended => "Suspended",
            Self::Unknown => "Unknown",
        }
    }

    /// Whether SSH is to be had.
    pub(crate) fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::DelayedShutdown)
    }

    /// Whether there has to be a process.
    pub(crate) fn needs_process(self) -> bool {
        !matches!(self, Self::Stopped)
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Such as `24.04 LTS`; empty for one that no manifest knows.
    pub release: String,
    /// The hash of the file.
    pub hash: String,
    /// Given as a file that is no `*.img`, which 1.16.3 can't clone.
    pub uncloneable: bool,
}

/// A host folder in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The folder.
    pub source: String,
    /// `native` rather than `classic`.
    pub native: bool,
    /// Users, as `HOST:INSTANCE`.
    pub uids: Vec<String>,
    /// Groups.
    pub gids: Vec<String>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: String,
    /// The folder that keeps it, which keeps its name when the snapshot gets another.
    pub folder: String,
    /// A remark.
    pub comment: String,
    /// The one before it.
    pub parent: Option<String>,
    /// Seconds since the epoch.
    pub created: i64,
    /// Processors then.
    pub cpus: u32,
    /// Bytes of memory then.
    pub memory: u64,
    /// Bytes of disk then.
    pub disk: u64,
    /// Mounts then.
    pub mounts: BTreeMap<String, Mount>,
}

impl State {
    /// The next address. They are not given twice.
    pub(crate) fn next_address(&mut self) -> String {
        self.addresses += 1;
        format!("10.155.{}.{}", 154 + self.addresses / 250, 2 + self.addresses % 250)
    }

    /// A setting, or its default.
    pub(crate) fn setting(&self, key: &str) -> &str {
        let default = match key {
            "client.primary-name" => "primary",
            "local.driver" => "qemu",
            "local.privileged-mounts" => "true",
            "local.passphrase" => "false",
            _ => "",
        };
        self.settings.get(key).map_or(default, String::as_str)
    }
}

/// The sizes of an instance that asks for none.
pub(crate) const DEFAULTS: (u32, u64, u64) = (1, GIB, 5 * GIB);
/// The least memory and disk, in bytes.
pub(crate) const MINIMUMS: (u64, u64) = (128 * MIB, 512 * MIB);
/// The least of the development head.
pub(crate) const MINIMUMS_OF_MAIN: (u64, u64) = (512 * MIB, GIB);

/// Whether a text can name an instance or a snapshot.
pub(crate) fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_with_a_letter_and_end_with_no_hyphen() {
        assert!(["a", "one", "A-1", "web-1"].into_iter().all(is_name));
        assert!(!["", "1foo", "-foo", "foo-", "a_b", "a b", "é", "..", "foo.bar"].into_iter().any(is_name));
    }
}
