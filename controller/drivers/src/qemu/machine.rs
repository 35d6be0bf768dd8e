//! What a machine is made from, and where it lies.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vm_agent_schemas::fleet::Provision;
use vm_agent_schemas::guest::{Mac, MachineId};
use vm_agent_schemas::ids::{Digest, Incarnation, Nonce};
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::Sizes;
use vm_agent_schemas::wire::Seed;

use super::host::Host;
use super::layers::Layer;
use crate::folder::{Files, Folder, at};

/// What the machine is made from.
pub(super) const MACHINE_FILE: &str = "machine.json";
/// What brings the runtime into it.
pub(super) const SEED_DISK: &str = "seed.img";
/// QEMU's monitor.
pub(super) const MONITOR: &str = "qmp.sock";
/// The channel to the guest program.
pub(super) const CHANNEL: &str = "channel.sock";
/// The end of what the machine's console showed when a start of it failed.
pub(super) const CONSOLE_LOG: &str = "serial.log";
/// What QEMU itself writes. QEMU holds the lock on it: it has it as its stdout from before its first moment.
pub(super) const LOG: &str = "qemu.log";
/// QEMU's process id, for people.
pub(super) const PID: &str = "qemu.pid";

/// The files of a machine's folder that the folder itself speaks of.
pub(super) const FILES: Files = Files { claim: MACHINE_FILE, lock: LOG, log: LOG };

/// What a machine is made from. Written before anything else of it exists: it shows whose the folder is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Machine {
    pub(super) name: InstanceName,
    pub(super) nonce: Nonce,
    pub(super) incarnation: Incarnation,
    pub(super) sizes: Sizes,
    /// The image that its disk lies over.
    pub(super) image: Digest,
    /// The address of its network card.
    pub(super) mac: Mac,
    /// What its `/etc/machine-id` is to hold: the same at each boot of this incarnation.
    pub(super) machine_id: MachineId,
    /// What it gets besides the runtime.
    #[serde(default)]
    pub(super) provision: Provision,
    /// Whether it has that. Until then its disk is half of something, and is made anew at each start. One whose
    /// disk is that of another machine has it from the beginning.
    #[serde(default = "yes")]
    pub(super) provisioned: bool,
    /// The layer of its disk that it writes to.
    #[serde(default = "Layer::first")]
    pub(super) disk: Layer,
    /// The memory that its next start goes on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<Resume>,
}

/// A memory that a machine goes on from. As long as there is one, the machine's disk is made anew at each start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resume {
    /// The folder in the machine's that it lies in.
    pub(super) from: String,
    /// The layer that was the machine's disk at its moment.
    pub(super) over: Layer,
    /// What it takes to be loaded.
    pub(super) memory: Memory,
}

/// What has to be as it was for a memory to be loaded, besides the machine's sizes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    /// QEMU's version.
    pub(super) qemu: String,
    /// How it ran the machine.
    pub(super) acceleration: String,
    /// Whose memory it is. In another incarnation the machine has to become another first.
    pub(super) nonce: Nonce,
    /// The warm start that it is of: it is nobody's memory then, and begins with a file that all its machines share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) warm: Option<Digest>,
}

/// Whose a memory is that a machine goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Its own.
    Own,
    /// That of another machine, or of another incarnation.
    Anothers,
    /// Nobody's: it was saved to be copied.
    Nobodys,
}

impl Memory {
    /// That of a machine on this host.
    pub(super) fn of(machine: &Machine, host: &Host) -> Self {
        let acceleration = host.acceleration.as_str().to_owned();
        Self { qemu: host.version.clone(), acceleration, nonce: machine.nonce.clone(), warm: None }
    }

    /// Whose it is to a machine.
    pub(super) fn whose(&self, machine: &Machine) -> Whose {
        match &self.warm {
            Some(_) => Whose::Nobodys,
            None if self.nonce == machine.nonce => Whose::Own,
            None => Whose::Anothers,
        }
    }

    /// What keeps it from being loaded on this host.
    pub(super) fn obstacle(&self, host: &Host) -> Option<String> {
        let acceleration = host.acceleration.as_str();
        (self.qemu != host.version || self.acceleration != acceleration).then(|| {
            let (qemu, by) = (&self.qemu, &self.acceleration);
            format!("it is of QEMU {qemu} by {by}, and here is QEMU {} by {acceleration}", host.version)
        })
    }
}

/// A machine of a version that knew nothing of this has lived already: its disk is kept.
const fn yes() -> bool {
    true
}

impl Machine {
    pub(super) fn new(name: &InstanceName, seed: &Seed, sizes: Sizes, image: Digest) -> Self {
        Self::of(name, seed.nonce.clone(), seed.incarnation, sizes, image)
    }

    /// One that is no agent's, and never will be.
    pub(super) fn of_nobody(name: &InstanceName, sizes: Sizes, image: Digest) -> Self {
        Self::of(name, Nonce::generate(), Incarnation::default().next(), sizes, image)
    }

    fn of(name: &InstanceName, nonce: Nonce, incarnation: Incarnation, sizes: Sizes, image: Digest) -> Self {
        // Of the nonce, so that no two machines on a network have the same.
        let digest = ring::digest::digest(&ring::digest::SHA256, nonce.as_str().as_bytes());
        let mac = Mac::of_qemu(std::array::from_fn(|at| digest.as_ref()[at]));
        let machine_id = MachineId::generate();
        Self {
            name: name.clone(),
            nonce,
            incarnation,
            sizes,
            image,
            mac,
            machine_id,
            provision: Provision::default(),
            provisioned: false,
            disk: Layer::first(),
            resume: None,
        }
    }

    /// The machine that a folder says it is.
    pub(super) fn read(folder: &Folder) -> io::Result<Self> {
        let path = folder.file(MACHINE_FILE);
        let machine = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        machine.map_err(at(&path))
    }

    /// The machine as its folder keeps it.
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

/// The folder of a machine, there or not.
pub(super) fn folder(root: &Path, instance: &InstanceName) -> Folder {
    Folder::new(root, instance, FILES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::an_order;
    use crate::folder::Owner;

    #[test]
    fn a_machine_reads_back_and_shows_whose_its_folder_is() {
        let root = tempfile::tempdir().unwrap();
        let order = an_order("web");
        let folder = folder(root.path(), &order.instance);
        let machine = Machine::new(&order.instance, &order.seed, order.sizes, Digest::of(b"image"));
        folder.make(&machine.to_bytes().unwrap()).unwrap();
        assert_eq!(Machine::read(&folder).unwrap(), machine);
        assert_eq!(folder.owner().unwrap(), Owner::Claim(order.seed.nonce.clone()));
        let text = fs::read_to_string(folder.file(MACHINE_FILE)).unwrap();
        assert!(!text.contains(order.seed.join_token.expose()));
        let other = Machine::new(&order.instance, &an_order("web").seed, order.sizes, Digest::of(b"image"));
        assert_ne!((other.mac, other.machine_id), (machine.mac, machine.machine_id));
    }

    #[test]
    fn the_disk_of_a_machine_that_an_older_version_made_is_kept() {
        let order = an_order("web");
        let machine = Machine::new(&order.instance, &order.seed, order.sizes, Digest::of(b"image"));
        assert!(!machine.provisioned);
        let mut text: serde_json::Value = serde_json::from_slice(&machine.to_bytes().unwrap()).unwrap();
        text.as_object_mut().unwrap().retain(|key, _| !["provision", "provisioned", "disk"].contains(&key.as_str()));
        let read = serde_json::from_value::<Machine>(text).unwrap();
        assert_eq!((read.provisioned, read.disk.file()), (true, "disk.qcow2"));
    }

    #[test]
    fn a_machine_that_can_not_be_read_is_told_with_its_path() {
        let root = tempfile::tempdir().unwrap();
        let folder = folder(root.path(), &"web".parse().unwrap());
        folder.make(b"{\"nonce\": \"n\"}").unwrap();
        let error = Machine::read(&folder).unwrap_err().to_string();
        assert!(error.contains("web/machine.json") && error.contains("missing field"), "{error}");
    }
}
