//! Snapshots of machines, and machines that go on from them.
//!
//! ```text
//! <machine>/snapshots/<name>/snapshot.json   the layer of the disk that it keeps, and the machine's sizes
//!                            memory          the machine's memory, of one that ran
//!                            seed.img        the volume that it had then
//! <machine>/snapshots/.making-*, .gone-*     half made, half deleted
//! <machine>/saved-<id>/memory, seed.img      what the machine goes on from at its next start
//! ```
//!
//! A snapshot appears under its name whole: after its layer is one that nobody writes to any more. What lies about
//! besides is swept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::SnapshotName;
use vm_agent_schemas::observe::{InstanceState, Sizes};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::Seed;

use super::layers::{self, LAYERS_MAX, Layer};
use super::machine::{MACHINE_FILE, MONITOR, Machine, Memory, Resume, SEED_DISK};
use super::qmp::Qmp;
use super::saved::{self, Halt, SaveError};
use super::{Held, Qemu, bring_down, powered_off};
use crate::folder::{Folder, at, private_dirs, remove_tree, sync_dir};
use crate::{CreateOrder, DriverError, Target};

/// The folder of a machine's snapshots.
const SNAPSHOTS: &str = "snapshots";
/// What is known of a snapshot.
const SNAPSHOT_FILE: &str = "snapshot.json";
/// A machine's memory.
pub(super) const MEMORY: &str = "memory";
/// What a machine had in its memory, where that is a file of its own: [`MEMORY`] is all the rest then.
pub(super) const RAM: &str = "ram";
/// What a file's blocks are counted in, in bytes, whatever the file system has.
const BLOCK: u64 = 512;
/// Start of the name of a folder with what a machine goes on from.
const SAVED: &str = "saved-";
/// Start of the name of a snapshot that is being made.
pub(super) const MAKING: &str = ".making-";
/// Start of the name of one that is being deleted.
pub(super) const GONE: &str = ".gone-";

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Snapshot {
    /// The layer that was the machine's disk.
    pub(super) disk: Layer,
    /// The machine's sizes.
    pub(super) sizes: Sizes,
    /// What its memory takes to be loaded, of a machine that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<Memory>,
}

impl Snapshot {
    pub(super) fn read(place: &Path) -> io::Result<Self> {
        let path = place.join(SNAPSHOT_FILE);
        fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?)).map_err(at(&path))
    }

    /// Puts it under its name, with what lies beside it already.
    pub(super) fn publish(&self, making: &Path, place: &Path) -> io::Result<()> {
        fs::write(making.join(SNAPSHOT_FILE), serde_json::to_vec_pretty(self)?).map_err(at(making))?;
        for entry in fs::read_dir(making).map_err(at(making))? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_dir(making)?;
        fs::rename(making, place).map_err(at(place))?;
        place.parent().map_or(Ok(()), sync_dir)
    }
}

/// The snapshots of a machine, by what its folder holds.
pub(super) fn names(folder: &Folder) -> io::Result<BTreeSet<SnapshotName>> {
    let place = folder.file(SNAPSHOTS);
    let found = match fs::read_dir(&place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        found => found.map_err(at(&place))?,
    };
    Ok(found.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// What the snapshots of a machine take on the disk of this host: each its layer, which holds what was written since
/// the one before, and the memory beside it. What goes while we look is left out.
pub(super) fn sizes(folder: &Folder) -> io::Result<BTreeMap<SnapshotName, ByteSize>> {
    let mut sizes = BTreeMap::new();
    for name in names(folder)? {
        let place = folder.file(SNAPSHOTS).join(name.as_str());
        let Ok(snapshot) = Snapshot::read(&place) else { continue };
        let files = [folder.file(snapshot.disk.file()), place.join(MEMORY), place.join(RAM)];
        let bytes = files.iter().filter_map(|file| fs::metadata(file).ok()).map(|file| file.blocks() * BLOCK).sum();
        sizes.insert(name, ByteSize::from_bytes(bytes));
    }
    Ok(sizes)
}

/// Sweeps a machine's folder. What can't be swept lies about, and harms nobody.
pub(super) fn tidy(folder: &Folder) {
    if let Err(error) = sweep(folder) {
        tracing::warn!(instance = %folder.instance(), %error, "what is left of a machine's snapshots can't be swept");
    }
}

/// Deletes what nothing needs any more: what is half made or half deleted, memories that no start goes on from, and
/// layers under no disk and no snapshot.
fn sweep(folder: &Folder) -> io::Result<()> {
    let machine = Machine::read(folder)?;
    let keeps = machine.resume.as_ref().map(|resume| resume.from.as_str());
    for (place, name) in folders(folder.path())? {
        if name.starts_with(SAVED) && Some(name.as_str()) != keeps {
            remove_tree(&place)?;
        }
    }
    let mut used = vec![machine.disk.clone()];
    used.extend(machine.resume.as_ref().map(|resume| resume.over.clone()));
    for (place, name) in folders(&folder.file(SNAPSHOTS))? {
        if name.starts_with('.') {
            remove_tree(&place)?;
        } else {
            used.push(Snapshot::read(&place)?.disk);
        }
    }
    layers::sweep(folder.path(), &used)
}

pub(super) fn folders(path: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let found = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found.map_err(at(path))?,
    };
    let entries = found.filter_map(Result::ok).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(entries.filter_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?))).collect())
}

/// Gives a folder its own names for a memory and the volume that goes with it.
pub(super) fn share_memory(from: &Path, with: &Path) -> io::Result<()> {
    private_dirs(with)?;
    for name in [MEMORY, SEED_DISK, RAM] {
        let to = with.join(name);
        match fs::hard_link(from.join(name), &to) {
            Err(error) if name == RAM && error.kind() == io::ErrorKind::NotFound => {}
            shared => shared.map_err(at(&to))?,
        }
    }
    Ok(())
}

/// A name for a folder with what a machine goes on from.
pub(super) fn new_saved() -> String {
    format!("{SAVED}{}", Uuid::new_v4().simple())
}

/// Makes the file that a memory goes into, with the volume of the machine beside it.
fn new_memory(folder: &Folder, place: &Path) -> io::Result<File> {
    private_dirs(place)?;
    fs::hard_link(folder.file(SEED_DISK), place.join(SEED_DISK)).map_err(at(place))?;
    let path = place.join(MEMORY);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at(&path))
}

impl Qemu {
    /// Takes a snapshot of a machine that is held.
    pub(super) async fn take(&self, held: &Held<'_>, name: &SnapshotName) -> Result<(), DriverError> {
        let place = held.folder.file(SNAPSHOTS).join(name.as_str());
        if place.exists() {
            return Ok(());
        }
        self.settle(held).await?;
        let machine = held.look(Machine::read).await?;
        if !machine.provisioned {
            return Err(held.failed("it has never been up, so there is nothing to keep of it"));
        }
        let making = held.folder.file(SNAPSHOTS).join(format!("{MAKING}{name}.{}", Uuid::new_v4().simple()));
        let made = making.clone();
        held.look(move |_| private_dirs(&made)).await?;
        let state = held.look(Folder::state).await?;
        let taken = if state == InstanceState::Running {
            self.take_live(held, machine, &making).await
        } else {
            self.take_down(held, machine, &making).await
        };
        let published = match taken {
            Ok(snapshot) => {
                let making = making.clone();
                held.look(move |_| snapshot.publish(&making, &place)).await
            }
            Err(error) => Err(held.act.failed(&error)),
        };
        if published.is_err() {
            // What can't be removed now is swept later.
            let _ = held.look(move |_| remove_tree(&making)).await;
        }
        published
    }

    /// What a snapshot of a machine that is down keeps: its disk, and the memory that it would go on from.
    async fn take_down(&self, held: &Held<'_>, mut machine: Machine, making: &Path) -> Result<Snapshot, SaveError> {
        let sizes = machine.sizes;
        if let Some(Resume { from, over, memory }) = machine.resume {
            let (from, making) = (held.folder.file(&from), making.to_owned());
            held.hold.blocking(move || share_memory(&from, &making)).await?;
            return Ok(Snapshot { disk: over, sizes, memory: Some(memory) });
        }
        let disk = self.next_layer(held, &machine).await?;
        let disk = std::mem::replace(&mut machine.disk, disk);
        held.write(machine).await?;
        Ok(Snapshot { disk, sizes, memory: None })
    }

    /// What a snapshot of a machine that runs keeps. The machine stands still for a moment.
    async fn take_live(&self, held: &Held<'_>, mut machine: Machine, making: &Path) -> Result<Snapshot, SaveError> {
        let (sizes, memory) = (machine.sizes, Memory::of(&machine, self.host().await));
        let (next, image) = (self.next_layer(held, &machine).await?, machine.image.clone());
        let file = {
            let (folder, making) = (held.folder.clone(), making.to_owned());
            held.hold.blocking(move || new_memory(&folder, &making)).await?
        };
        let begun = Instant::now();
        let halt = Halt::new(&held.folder, &held.hold);
        let mut qmp = Qmp::connect(held.folder.path(), MONITOR).await?;
        // A call that was given up may have left it at the layer before.
        saved::switch(&mut qmp, &machine.disk).await?;
        let former = machine.clone();
        let disk = std::mem::replace(&mut machine.disk, next.clone());
        // From here on the next start is over what is kept. Until the machine writes there too, it is empty.
        held.write(machine).await?;
        if let Err(error) = saved::begin(&mut qmp, &file).await {
            // No layer is left of each attempt.
            held.write(former).await?;
            return Err(error);
        }
        let paused = Instant::now();
        let saved = async {
            saved::switch(&mut qmp, &next).await?;
            saved::finish(&mut qmp).await?;
            qmp.go_on().await?;
            Ok::<_, SaveError>(paused.elapsed())
        };
        let pause = saved.await?;
        halt.call_off();
        self.flatten_live(held, &mut qmp, &next, &image).await;
        let (took, bytes) = (begun.elapsed(), file.metadata().map_or(0, |file| file.len()));
        tracing::info!(instance = %held.folder.instance(), ?pause, ?took, bytes, "a machine's memory was saved");
        Ok(Snapshot { disk, sizes, memory: Some(memory) })
    }

    /// Has the disk of a machine that runs lie over its image alone once it has many layers, in the background.
    async fn flatten_live(&self, held: &Held<'_>, qmp: &mut Qmp, top: &Layer, image: &Digest) {
        let (folder, top) = (held.folder.clone(), top.clone());
        let chain = held.hold.blocking(move || layers::chain(folder.path(), &top)).await;
        if chain.is_ok_and(|chain| chain.len() <= LAYERS_MAX) {
            return;
        }
        let flattened = match self.images.get(image).await {
            Ok(image) => saved::flatten(qmp, &image.disk()).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = flattened {
            tracing::warn!(instance = %held.folder.instance(), %error, "a disk has many layers, and gets no fewer");
        }
    }

    /// Makes an empty layer over a machine's disk.
    async fn next_layer(&self, held: &Held<'_>, machine: &Machine) -> io::Result<Layer> {
        let next = Layer::new();
        let size = machine.sizes.disk.bytes();
        layers::lay(&self.programs.img, held.folder.path(), &machine.disk, &next, size).await?;
        Ok(next)
    }

    /// Deletes a snapshot of a machine that is held.
    pub(super) async fn delete(&self, held: &Held<'_>, name: &SnapshotName) -> Result<(), DriverError> {
        let (place, gone) = (name.as_str().to_owned(), format!("{GONE}{}", Uuid::new_v4().simple()));
        let delete = move |folder: &Folder| {
            let snapshots = folder.file(SNAPSHOTS);
            let place = snapshots.join(place);
            match fs::rename(&place, snapshots.join(gone)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&place)(error)),
                _ => {}
            }
            sweep(folder)
        };
        held.look(delete).await
    }

    /// Holds a machine that is back at a snapshot of it, as the incarnation that is meant. It is down unless it was that
    /// already.
    pub(super) async fn hold_back_at<'a>(
        &self,
        target: &'a Target,
        snapshot: &SnapshotName,
        seed: &Seed,
    ) -> Result<Held<'a>, DriverError> {
        let mut held = self.hold("restore", target).await?;
        if seed.nonce != target.nonce {
            return Err(held.failed("its new seed is that of another instance"));
        }
        if held.nonce != target.nonce {
            self.put_back(&held, target, snapshot, seed).await?;
            held.nonce = target.nonce.clone();
        }
        Ok(held)
    }

    /// Makes a machine that is held and down the next incarnation of itself, as a snapshot of it is.
    async fn put_back(
        &self,
        held: &Held<'_>,
        target: &Target,
        name: &SnapshotName,
        seed: &Seed,
    ) -> Result<(), DriverError> {
        self.settle(held).await?;
        if held.look(Folder::state).await? == InstanceState::Running && !held.folder.is_marked_stopped() {
            return Err(held.failed("it runs; stop it first"));
        }
        bring_down(held, std::time::Duration::ZERO).await?;
        let place = held.folder.file(SNAPSHOTS).join(name.as_str());
        if !place.exists() {
            return Err(held.failed(&format!("there is no snapshot `{name}`")));
        }
        let looked = place.clone();
        let snapshot = held.look(move |_| Snapshot::read(&looked)).await?;
        let machine = held.look(Machine::read).await?;
        let new = Machine::new(&target.instance, seed, machine.sizes, machine.image.clone());
        let machine = Machine { provision: machine.provision, ..new };
        let machine = self.over_snapshot(held, &snapshot, machine).await?;
        let resume = machine.resume.clone();
        let write = move |folder: &Folder| {
            if let Some(resume) = resume {
                share_memory(&place, &folder.file(&resume.from))?;
            }
            folder.write(MACHINE_FILE, &machine.to_bytes()?)
        };
        held.look(write).await
    }

    /// A machine with its disk over that of a snapshot in the held folder, and with its memory if there is any.
    async fn over_snapshot(
        &self,
        held: &Held<'_>,
        snapshot: &Snapshot,
        machine: Machine,
    ) -> Result<Machine, DriverError> {
        let sizes = if snapshot.memory.is_some() { snapshot.sizes } else { machine.sizes };
        let over = Machine { disk: snapshot.disk.clone(), sizes, ..machine };
        let disk = self.next_layer(held, &over).await.map_err(|error| held.act.failed(&error))?;
        let resume = |memory| Resume { from: new_saved(), over: snapshot.disk.clone(), memory };
        Ok(Machine { provisioned: true, disk, resume: snapshot.memory.clone().map(resume), ..over })
    }

    /// Makes the folder of a machine that is to be as a snapshot of another is.
    pub(super) async fn make_clone(
        &self,
        order: &CreateOrder,
        folder: &Folder,
        source: &Target,
        name: &SnapshotName,
    ) -> Result<(), DriverError> {
        let held = self.hold("create a machine from", source).await?;
        let place = held.folder.file(SNAPSHOTS).join(name.as_str());
        if !place.exists() {
            let reason = format!("instance `{}` has no snapshot `{name}`", source.instance);
            return Err(DriverError::Failed { action: "create", instance: order.instance.clone(), reason });
        }
        let looked = place.clone();
        let snapshot = held.look(move |_| Snapshot::read(&looked)).await?;
        let image = held.look(Machine::read).await?.image;
        let machine = Machine::new(&order.instance, &order.seed, order.sizes, image);
        let machine = Machine { provision: order.provision.clone(), ..machine };
        let machine = self.over_snapshot(&held, &snapshot, machine).await?;
        let folder = folder.clone();
        let make = move |source: &Folder| {
            folder.make_with(&machine.to_bytes()?, |path| {
                layers::share(source.path(), &snapshot.disk, path)?;
                fs::rename(source.file(machine.disk.file()), path.join(machine.disk.file()))?;
                machine.resume.as_ref().map_or(Ok(()), |resume| share_memory(&place, &path.join(&resume.from)))
            })
        };
        held.look(make).await
    }

    /// Saves the memory of a machine that is held and runs, and ends its QEMU.
    pub(super) async fn put_to_sleep(&self, held: &Held<'_>) -> Result<(), DriverError> {
        self.settle(held).await?;
        let running = held.look(Folder::state).await? == InstanceState::Running;
        if !running || held.folder.is_marked_stopped() || powered_off(&held.folder).await {
            return Ok(());
        }
        let machine = held.look(Machine::read).await?;
        let saved = self.save_for_resume(held, machine).await;
        saved.map_err(|error| held.act.failed(&error))?;
        bring_down(held, std::time::Duration::ZERO).await
    }

    /// Has the next start of a machine go on from its present memory. The machine stands still after that, and
    /// must not go on.
    async fn save_for_resume(&self, held: &Held<'_>, mut machine: Machine) -> Result<(), SaveError> {
        let memory = Memory::of(&machine, self.host().await);
        let (from, next) = (new_saved(), self.next_layer(held, &machine).await?);
        let file = {
            let (folder, place) = (held.folder.clone(), held.folder.file(&from));
            held.hold.blocking(move || new_memory(&folder, &place)).await?
        };
        let halt = Halt::new(&held.folder, &held.hold);
        let mut qmp = Qmp::connect(held.folder.path(), MONITOR).await?;
        saved::switch(&mut qmp, &machine.disk).await?;
        saved::begin(&mut qmp, &file).await?;
        saved::finish(&mut qmp).await?;
        held.hold.blocking(move || file.sync_all()).await?;
        let over = std::mem::replace(&mut machine.disk, next);
        machine.resume = Some(Resume { from, over, memory });
        // Written, it must not go on; and a write that fails may have been one.
        halt.call_off();
        held.write(machine).await.map_err(SaveError::Io)
    }
}
