//! What the driver remembers of each of its instances, because Multipass keeps no notes: a file for each, written
//! before what it announces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use vm_agent_schemas::fleet::Provision;
use vm_agent_schemas::guest::MachineId;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{InstanceState, Sizes};

use super::answer::State;
use crate::folder::{at, private_dirs, sync_dir};

/// How long an instance counts as down whose start was given up or failed. Whoever looks after it tries again in that
/// time; what still runs then without having been tried is simply one that runs.
const UNFINISHED: SignedDuration = SignedDuration::from_mins(15);

/// An instance of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The nonce of its present incarnation.
    pub(super) nonce: Nonce,
    /// The nonce that it was made with. It lies in the instance and in all snapshots of it, and shows whose it is.
    pub(super) birth: Nonce,
    /// What its `/etc/machine-id` is to hold in this incarnation.
    pub(super) machine_id: MachineId,
    /// The sizes that it was given.
    pub(super) sizes: Sizes,
    /// What it gets besides the runtime.
    pub(super) provision: Provision,
    /// Whether it has that.
    pub(super) provisioned: bool,
    /// Whether what has its name is this one.
    pub(super) identity: Identity,
    /// What it was last brought to.
    pub(super) power: Power,
    /// Whether it was not made by us, and is just being taken over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) adopting: bool,
    /// The nonce that cloud-init writes down at a first boot, of this instance or of a copy of it.
    pub(super) given: Nonce,
    /// Of a copy of another instance, the nonce which that was made with, until it says that it was made with its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) copy_of: Option<Nonce>,
    /// Whether folders of the host may be mounted in it.
    pub(super) has_mounts: bool,
    /// The sizes that it had when each of its snapshots was taken: a restore brings them back.
    pub(super) snapshots: BTreeMap<SnapshotName, Sizes>,
    /// Those of its snapshots that are deleted, and still on its disk until it is down.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) dropped: BTreeSet<SnapshotName>,
}

/// Whether what has an instance's name is the one that a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Identity {
    /// It was made, copied or taken over for the record, and has not been asked yet.
    Unasked,
    /// The birth's nonce has been read back from it, and nobody has seen the name free since.
    Shown,
    /// The name was seen free since: what has it now is another's, until it shows that it is not.
    Doubtful,
}

impl Record {
    /// Whether it has shown that it is the one.
    pub(super) fn is_known(&self) -> bool {
        self.identity == Identity::Shown
    }

    /// Whether an instance that shows this nonce is the one.
    pub(super) fn is_of(&self, shown: &Nonce) -> bool {
        let as_source = self.copy_of.as_ref().is_some_and(|source| shown == source || *shown == self.given);
        *shown == self.birth || as_source
    }

    /// Whether whatever has its name from now on, where that is free, may be another's: nobody is making it.
    pub(super) fn may_be_lost(&self) -> bool {
        match self.identity {
            Identity::Unasked => !matches!(self.power, Power::Coming { .. }),
            Identity::Shown => true,
            Identity::Doubtful => false,
        }
    }
}

/// What an instance was last brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Power {
    /// Down.
    Down,
    /// It is on its way up. The daemon may be at it until this time, whoever asked for it.
    Coming {
        /// The time.
        until: Timestamp,
    },
    /// Up, with its seed.
    Up,
}

impl Power {
    /// Whether the daemon may still be bringing it up.
    pub(super) fn is_under_way(self, now: Timestamp) -> bool {
        matches!(self, Self::Coming { until } if now < until)
    }

    /// What an instance is shown as that Multipass says is in this state. `held` is whether a call is at work on it.
    pub(super) fn shows(self, state: State, held: bool, now: Timestamp) -> InstanceState {
        let is_at_work = held && matches!(self, Self::Coming { .. });
        let unfinished = matches!(self, Self::Coming { until } if now < later(until, UNFINISHED));
        match state {
            State::Starting => InstanceState::Starting,
            State::Running | State::DelayedShutdown if is_at_work => InstanceState::Starting,
            // The daemon goes on with it, whether anybody waits for that or not.
            State::Unknown if is_at_work || self.is_under_way(now) => InstanceState::Starting,
            // Its process lives. Whether its daemon can speak to it is not what counts, as long as it has its seed.
            State::Unknown if !matches!(self, Self::Coming { .. }) => InstanceState::Running,
            State::Unknown => InstanceState::Failed,
            // It runs and has no seed, and nobody is about to give it one.
            State::Running | State::DelayedShutdown if unfinished => InstanceState::Failed,
            State::Running | State::DelayedShutdown => InstanceState::Running,
            State::Stopped if self == Self::Up => InstanceState::Failed,
            State::Stopped => InstanceState::Stopped,
            State::Suspending => InstanceState::Stopping,
            State::Suspended => InstanceState::Suspended,
            State::Deleted => InstanceState::Deleted,
            State::Other => InstanceState::Unknown,
        }
    }
}

/// So much later, or the end of time.
pub(super) fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// All records, in memory as on the disk. One folder belongs to one driver.
#[derive(Debug)]
pub(super) struct Records {
    root: PathBuf,
    known: Mutex<Option<BTreeMap<InstanceName, Record>>>,
}

impl Records {
    /// Those below this folder, which is made when first needed.
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root, known: Mutex::new(None) }
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// All of them.
    pub(super) fn all(&self) -> io::Result<BTreeMap<InstanceName, Record>> {
        self.with(|known| Ok(known.clone()))
    }

    /// That of an instance.
    pub(super) fn get(&self, instance: &InstanceName) -> io::Result<Option<Record>> {
        self.with(|known| Ok(known.get(instance).cloned()))
    }

    /// Writes one down.
    pub(super) fn put(&self, instance: &InstanceName, record: &Record) -> io::Result<()> {
        self.with(|known| {
            if known.get(instance) != Some(record) {
                private_dirs(&self.root)?;
                write(&self.path(instance), record)?;
                known.insert(instance.clone(), record.clone());
            }
            Ok(())
        })
    }

    /// Forgets one.
    pub(super) fn remove(&self, instance: &InstanceName) -> io::Result<()> {
        self.with(|known| {
            let path = self.path(instance);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&path)(error)),
                _ => drop(known.remove(instance)),
            }
            Ok(())
        })
    }

    fn path(&self, instance: &InstanceName) -> PathBuf {
        self.root.join(format!("{instance}.json"))
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<InstanceName, Record>) -> io::Result<T>) -> io::Result<T> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_none() {
            *known = Some(read(&self.root)?);
        }
        work(known.as_mut().expect("it has just been read"))
    }
}

/// Reads all records of a folder. One that says nothing belongs to nobody, and so does its instance.
fn read(root: &Path) -> io::Result<BTreeMap<InstanceName, Record>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(at(root)(error)),
    };
    let mut records = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(at(root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")?.parse().ok());
        let Some(name) = name else { continue };
        match serde_json::from_slice(&fs::read(&path).map_err(at(&path))?) {
            Ok(record) => drop(records.insert(name, record)),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a record can't be read: its instance is not ours");
            }
        }
    }
    Ok(records)
}

/// Writes a file that only the owner may read. A crash leaves the old one or the new one.
fn write(path: &Path, record: &Record) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let put = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(io::Error::from)
    };
    put().map_err(at(path))?;
    sync_dir(folder)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::contract::an_order;
    use std::os::unix::fs::PermissionsExt;

    pub(in crate::multipass) fn a_record() -> Record {
        let order = an_order("web");
        Record {
            nonce: order.seed.nonce.clone(),
            birth: order.seed.nonce.clone(),
            machine_id: MachineId::generate(),
            sizes: order.sizes,
            provision: Provision::default(),
            provisioned: true,
            identity: Identity::Shown,
            given: order.seed.nonce.clone(),
            power: Power::Up,
            adopting: false,
            has_mounts: false,
            snapshots: BTreeMap::new(),
            dropped: BTreeSet::new(),
            copy_of: None,
        }
    }

    #[test]
    fn records_outlive_the_driver_and_are_for_their_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("multipass");
        let (name, record) = ("web".parse().unwrap(), a_record());
        let records = Records::new(place.clone());
        assert_eq!(records.get(&name).unwrap(), None);
        records.put(&name, &record).unwrap();
        assert_eq!(Records::new(place.clone()).all().unwrap(), BTreeMap::from([(name.clone(), record)]));
        let mode = fs::metadata(place.join("web.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for _ in 0..2 {
            records.remove(&name).unwrap();
        }
        assert_eq!(Records::new(place).get(&name).unwrap(), None);
    }

    #[test]
    fn a_record_that_can_not_be_read_makes_nothing_ours_and_hides_no_other() {
        let root = tempfile::tempdir().unwrap();
        let records = Records::new(root.path().to_owned());
        records.put(&"web".parse().unwrap(), &a_record()).unwrap();
        fs::write(root.path().join("db.json"), "{").unwrap();
        fs::write(root.path().join(".tmpAbc"), "half").unwrap();
        let all = Records::new(root.path().to_owned()).all().unwrap();
        assert_eq!(all.keys().map(InstanceName::as_str).collect::<Vec<_>>(), ["web"]);
    }

    #[test]
    fn an_instance_shows_what_multipass_says_in_the_light_of_what_it_was_brought_to() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let minutes = |minutes| later(now, SignedDuration::from_mins(minutes));
        let powers = [
            ("down", Power::Down, false),
            ("up", Power::Up, false),
            ("under way", Power::Coming { until: minutes(1) }, false),
            ("held", Power::Coming { until: minutes(-1) }, true),
            ("over", Power::Coming { until: minutes(-1) }, false),
            ("long over", Power::Coming { until: minutes(-16) }, false),
        ];
        let states = [
            State::Running,
            State::DelayedShutdown,
            State::Unknown,
            State::Starting,
            State::Stopped,
            State::Suspending,
            State::Suspended,
            State::Deleted,
            State::Other,
        ];
        let mut table = String::new();
        for state in states {
            let shown = powers.map(|(name, power, held)| format!("{name}: {:?}", power.shows(state, held, now)));
            table.push_str(&format!("{state:?} -> {}\n", shown.join(", ")));
        }
        insta::assert_snapshot!(table, @"
        Running -> down: Running, up: Running, under way: Failed, held: Starting, over: Failed, long over: Running
        DelayedShutdown -> down: Running, up: Running, under way: Failed, held: Starting, over: Failed, long over: Running
        Unknown -> down: Running, up: Running, under way: Starting, held: Starting, over: Failed, long over: Failed
        Starting -> down: Starting, up: Starting, under way: Starting, held: Starting, over: Starting, long over: Starting
        Stopped -> down: Stopped, up: Failed, under way: Stopped, held: Stopped, over: Stopped, long over: Stopped
        Suspending -> down: Stopping, up: Stopping, under way: Stopping, held: Stopping, over: Stopping, long over: Stopping
        Suspended -> down: Suspended, up: Suspended, under way: Suspended, held: Suspended, over: Suspended, long over: Suspended
        Deleted -> down: Deleted, up: Deleted, under way: Deleted, held: Deleted, over: Deleted, long over: Deleted
        Other -> down: Unknown, up: Unknown, under way: Unknown, held: Unknown, over: Unknown, long over: Unknown
        ");
    }
}
