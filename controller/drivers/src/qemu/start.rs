//! Bringing a machine up: from its disk, or from a memory that it goes on from.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::wire::Seed;

use super::channel::First;
use super::command::{Kernel, NETWORK, Use, arguments};
use super::host::Acceleration;
use super::launch::{LaunchError, launch, loaded, provisioned, seed};
use super::layers::{self, LAYERS_MAX};
use super::machine::{MONITOR, Machine, Resume, SEED_DISK, Whose};
use super::qmp::{Qmp, RunState};
use super::{Held, Qemu, bring_down, disk, powered_off, saved, snapshots};
use crate::DriverError;
use crate::folder::{Folder, remove_tree};
use crate::images::Image;

/// How long a machine may take from its start to the word that it has its seed: an emulated processor is
/// some ten times slower, and a host under load slower still.
pub(super) const fn boot_limit(acceleration: Acceleration) -> Duration {
    match acceleration {
        Acceleration::Kvm | Acceleration::Hvf => Duration::from_secs(120),
        Acceleration::Emulation => Duration::from_secs(420),
    }
}

/// How long a machine that goes on from a memory may take to take its seed: it has to end its runtime first.
const RESUME_LIMIT: Duration = Duration::from_secs(90);

impl Qemu {
    /// Has the machine run with the guest seeded.
    pub(super) async fn bring_up(&self, held: &Held<'_>, new: &Seed) -> Result<(), DriverError> {
        let act = held.act;
        self.settle(held).await?;
        let runs = held.look(Folder::state).await? == InstanceState::Running;
        // Marked as stopped, it is one that somebody began to start who did not live to end it.
        if runs && !held.folder.is_marked_stopped() && !powered_off(&held.folder).await {
            return Ok(());
        }
        // What an earlier start or a machine that powered itself off has left behind.
        bring_down(held, Duration::ZERO).await?;
        let swept = held.folder.clone();
        held.hold.blocking(move || snapshots::tidy(&swept)).await;
        let mut machine = held.look(Machine::read).await?;
        let image = self.images.get(&machine.image).await.map_err(|error| act.failed(&error))?;
        if let Some(resume) = machine.resume.clone() {
            let Err(error) = self.resume(held, &mut machine, &resume, &image, new).await else { return Ok(()) };
            bring_down(held, Duration::ZERO).await?;
            let warm = resume.memory.warm.as_ref();
            if !error.is_of_the_memory(warm.is_some()) {
                return Err(act.failed(&error));
            }
            let error = act.failed(&error);
            tracing::warn!(instance = %held.folder.instance(), %error, "a machine can't go on from its memory, and boots");
            if let Some(key) = warm {
                self.give_up_warm(key).await;
            }
            self.furnish(held, &machine, &image).await?;
            machine.resume = None;
            held.write(machine.clone()).await.map_err(|error| act.failed(&error))?;
        }
        let Err(error) = self.boot(held, &mut machine, &image, new).await else { return Ok(()) };
        // Whoever looks next is to find it stopped, and not on its way down.
        bring_down(held, Duration::ZERO).await?;
        if matches!(error, LaunchError::Unprovisioned(_)) {
            // Nothing ever ran in it. The next one is made of what the file says then.
            held.look(|folder| folder.move_away().and_then(|gone| remove_tree(&gone))).await?;
        }
        Err(act.failed(&error))
    }

    /// Boots a machine, and has its guest seeded and given what it is to have.
    async fn boot(&self, held: &Held<'_>, machine: &mut Machine, image: &Image, new: &Seed) -> Result<(), LaunchError> {
        let (hold, folder, host) = (&held.hold, &held.folder, self.host().await);
        if !machine.provisioned {
            let disk = folder.file(machine.disk.file());
            hold.blocking(move || remove(&disk)).await?;
        }
        self.furnish(held, machine, image).await.map_err(LaunchError::Unfurnished)?;
        let arguments = arguments(machine, kernel(&image.kernel()), host, Use::Own);
        let mut launched = launch(hold, &self.programs.system, arguments, folder, machine).await?;
        seed(&mut launched, folder, machine, new, First::WhenReady, boot_limit(host.acceleration)).await?;
        if !machine.provisioned {
            if machine.provision.takes_time() {
                provisioned(&mut launched, folder).await?;
            }
            machine.provisioned = true;
            held.write(machine.clone()).await?;
        }
        let up = folder.clone();
        hold.blocking(move || up.unmark_stopped()).await?;
        launched.let_go();
        Ok(())
    }

    /// Has a machine go on from its memory, and its guest seeded.
    async fn resume(
        &self,
        held: &Held<'_>,
        machine: &mut Machine,
        resume: &Resume,
        image: &Image,
        new: &Seed,
    ) -> Result<(), LaunchError> {
        let (hold, folder, host) = (&held.hold, &held.folder, self.host().await);
        if let Some(obstacle) = resume.memory.obstacle(host) {
            return Err(LaunchError::Unloadable(obstacle));
        }
        self.furnish(held, machine, image).await.map_err(LaunchError::Unfurnished)?;
        let arguments = arguments(machine, kernel(&image.kernel()), host, Use::Own);
        let mut launched = launch(hold, &self.programs.system, arguments, folder, machine).await?;
        let whose = resume.memory.whose(machine);
        loaded(&mut launched, folder, whose).await?;
        seed(&mut launched, folder, machine, new, First::Now, RESUME_LIMIT).await?;
        if whose == Whose::Anothers {
            Qmp::connect(folder.path(), MONITOR).await?.set_link(NETWORK, true).await?;
        }
        machine.resume = None;
        held.write(machine.clone()).await?;
        let up = folder.clone();
        hold.blocking(move || up.unmark_stopped()).await?;
        launched.let_go();
        let swept = folder.clone();
        hold.blocking(move || snapshots::tidy(&swept)).await;
        Ok(())
    }

    /// Sets right what a call that was given up has left of a machine: one that stands still goes on, and one whose
    /// memory has been saved for its next start ends.
    pub(super) async fn settle(&self, held: &Held<'_>) -> Result<(), DriverError> {
        if held.look(Folder::state).await? != InstanceState::Running || held.folder.is_marked_stopped() {
            return Ok(());
        }
        let asked = async { Qmp::connect(held.folder.path(), MONITOR).await?.run_state().await };
        if !matches!(asked.await, Ok(RunState::Halted)) {
            return Ok(());
        }
        if held.look(Machine::read).await?.resume.is_some() {
            return bring_down(held, Duration::ZERO).await;
        }
        saved::go_on(&held.folder).await.map_err(|error| held.act.failed(&error))
    }

    /// Has a machine that is down boot at its next start, whatever it would have gone on from.
    pub(super) async fn forget_memory(&self, held: &Held<'_>) -> Result<(), DriverError> {
        let machine = held.look(Machine::read).await?;
        let Some(Resume { over, .. }) = &machine.resume else { return Ok(()) };
        let size = machine.sizes.disk.bytes();
        // A start that was given up may have written to it.
        let made = layers::lay(&self.programs.img, held.folder.path(), over, &machine.disk, size).await;
        made.map_err(|error| held.act.failed(&error))?;
        held.write(Machine { resume: None, ..machine }).await.map_err(|error| held.act.failed(&error))
    }

    /// Gives the machine's folder what is not there yet: its disk, and the volume with the present runtime. A machine
    /// that goes on from a memory has the disk and the volume of that.
    pub(super) async fn furnish(&self, held: &Held<'_>, machine: &Machine, image: &Image) -> Result<(), DriverError> {
        let (act, hold, folder) = (held.act, &held.hold, &held.folder);
        let (disk, size) = (folder.file(machine.disk.file()), machine.sizes.disk.bytes());
        let img = &self.programs.img;
        if let Some(Resume { over, .. }) = &machine.resume {
            let made = layers::lay(img, folder.path(), over, &machine.disk, size).await;
            made.map_err(|error| act.failed(&error))?;
        } else if !disk.exists() {
            let new = folder.file("disk.new");
            let made = disk::overlay(img, &image.disk(), &new, size).await;
            made.map_err(|error| act.failed(&error))?;
            let disk = disk.clone();
            hold.blocking(move || fs::rename(new, disk)).await.map_err(|error| act.failed(&error))?;
        }
        let top = machine.disk.clone();
        if held.look(move |folder| layers::chain(folder.path(), &top)).await?.len() > LAYERS_MAX {
            disk::flatten(img, &image.disk(), &disk).await.map_err(|error| act.failed(&error))?;
        }
        let new = folder.file("seed.new");
        let (make, seed_disk) = (Arc::clone(&self.seed_disk), folder.file(SEED_DISK));
        let (name, incarnation, provision) = (machine.name.clone(), machine.incarnation, machine.provision.clone());
        let saved = machine.resume.as_ref().map(|resume| folder.file(&resume.from).join(SEED_DISK));
        let made = hold.blocking(move || {
            remove(&new)?;
            saved.map_or_else(|| make(&name, incarnation, &provision, &new), |saved| fs::hard_link(saved, &new))?;
            fs::rename(&new, &seed_disk)
        });
        made.await.map_err(|error| act.failed(&error))
    }
}

/// The kernel of an image, for a command line.
pub(super) fn kernel(files: &Option<(PathBuf, PathBuf)>) -> Option<Kernel<'_>> {
    files.as_ref().map(|(kernel, initrd)| Kernel { kernel, initrd })
}

/// Deletes a file, there or not.
fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
