//! Driver `qemu`: real machines, by `qemu-system-*` itself. A machine is a folder and a QEMU process that
//! works in it and outlives the controller.
//!
//! ```text
//! <machines>/<instance>/machine.json   what it is made from: the nonce in it is the proof
//!                       disk*.qcow2    the layers of its disk, the last over its image
//!                       snapshots/     its snapshots
//!                       saved-*/       the memory that it goes on from at its next start
//!                       seed.img       what brings the runtime into it; no secret is on it
//!                       qmp.sock       QEMU's monitor
//!                       channel.sock   the line to the guest program, over which the seed goes
//!                       qemu.log       what QEMU writes; locked as long as QEMU lives
//!                       serial.log     the end of the console of a start that failed
//!                       stopped        it is not up: it was stopped, or its start is not over
//! <machines>/.making-<instance>.*      being made; renamed when whole
//! <machines>/.gone-<instance>.*        being deleted; the name is free already
//! <machines>/../warm/                  what machines start warm from
//! ```
//!
//! A machine is Running when the lock is held and `stopped` is not there; `stopped` goes when the guest has
//! its seed. One that is up and marked so was being started by a controller that is no more: it is ended,
//! as the seed of that start is void. A machine that powered itself off waits in its QEMU until that has
//! been seen, which tells it from a crash. One that is down and has a memory to go on from is Suspended. One that
//! stands still though nobody acts on it was left so by a call that was given up, and is told to go on.
//!
//! Calls on one instance wait for each other, and a call that its caller gave up counts until the piece of
//! work is over that it was in. One root belongs to one [`Qemu`]: it lies in the controller's state folder,
//! which is locked.

mod channel;
mod command;
pub(crate) mod disk;
mod host;
mod inside;
mod launch;
mod layers;
mod machine;
mod programs;
mod qmp;
mod saved;
mod snapshots;
mod start;
mod warm;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OnceCell;
use vm_agent_schemas::fleet::{DriverName, ImageReference, Provision};
use vm_agent_schemas::guest::{FromGuest, ToGuest, Witness};
use vm_agent_schemas::ids::{Incarnation, Nonce, Secret};
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{
    Capabilities, CloneSupport, Deadlines, Instance, InstanceState, MountSupport, Sizes, SnapshotSupport,
};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_schemas::wire::Seed;

use self::channel::{Channel, First};
pub use self::host::{Acceleration, Host};
use self::machine::{CHANNEL, FILES, MACHINE_FILE, MONITOR, Machine, folder};
pub use self::programs::{Missing, Programs};
use self::qmp::{Qmp, RunState};
use self::warm::Warm;
use crate::folder::{Folder, Owner, folders, leftovers, remove_tree};
use crate::hold::{Hold, Holds, blocking};
use crate::images::{Images, ignore_progress};
use crate::process::{self, Mark};
use crate::{Act, Base, CreateOrder, Driver, DriverError, Mounts, Target};

/// Where a machine with QEMU's user-mode network sees its host.
pub const HOST_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));

/// How long a machine whose power button was pressed may take to go down. The runtime gives its tasks less
/// than this.
const GRACE: Duration = Duration::from_secs(30);

/// How long QEMU may take to be gone once it was told to end.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// How long a guest may take to show its nonce.
const PROOF_LIMIT: Duration = Duration::from_secs(20);

/// How long a listing waits for one monitor. Another may be talking to it.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Writes the volume that brings the runtime into a machine, and tells what else it is to have: for an instance
/// in an incarnation, to a path.
pub type SeedDisk = Arc<dyn Fn(&InstanceName, Incarnation, &Provision, &Path) -> io::Result<()> + Send + Sync>;

/// Driver `qemu`. See the [module](self).
#[derive(Clone)]
pub struct Qemu {
    root: PathBuf,
    programs: Programs,
    images: Images,
    seed_disk: SeedDisk,
    host: Arc<OnceCell<Host>>,
    holds: Holds,
    warm: Warm,
}

/// A machine that is held, and was shown to be the one that is meant.
struct Held<'a> {
    act: Act<'a>,
    hold: Hold,
    folder: Folder,
    nonce: Nonce,
}

impl Qemu {
    /// A driver that keeps its machines below `root`, and what they start warm from beside it, in `warm`. Both are
    /// made when first needed.
    #[must_use]
    pub fn new(root: PathBuf, programs: Programs, images: Images, seed_disk: SeedDisk) -> Self {
        // QEMU is started in the machine's folder, where a relative path would mean another file. Only a
        // process without a working folder has no absolute paths; then they stay as they are.
        let root = std::path::absolute(&root).unwrap_or(root);
        let warm = Warm::new(root.with_file_name("warm"));
        Self { root, programs, images, seed_disk, host: Arc::default(), holds: Holds::default(), warm }
    }

    /// The folder of an instance, whether or not it is there.
    #[must_use]
    pub fn folder(&self, instance: &InstanceName) -> PathBuf {
        folder(&self.root, instance).path().to_owned()
    }

    /// What QEMU can do on this host; found out when first asked.
    pub async fn host(&self) -> &Host {
        self.host.get_or_init(|| Host::look(&self.programs)).await
    }

    /// Holds an instance, and checks that it is the one that is meant.
    async fn hold<'a>(&self, action: &'static str, target: &'a Target) -> Result<Held<'a>, DriverError> {
        let act = Act(action, &target.instance);
        let hold = self.holds.hold(&target.instance).await;
        let folder = folder(&self.root, &target.instance);
        let looked = folder.clone();
        let instance = target.instance.clone();
        match hold.blocking(move || looked.owner()).await {
            Ok(Owner::Claim(nonce)) if target.is(&nonce) => Ok(Held { act, hold, folder, nonce }),
            Ok(Owner::Claim(_) | Owner::Unclear) => Err(DriverError::Foreign { instance }),
            Ok(Owner::Nobody) => Err(DriverError::Missing { instance }),
            Err(error) => Err(act.failed(&error)),
        }
    }

    /// One machine, as a listing shows it; nothing when it went while we looked.
    async fn look(&self, folder: Folder) -> Option<Instance> {
        let looked = folder.clone();
        let look = move || (Machine::read(&looked), looked.state(), snapshots::names(&looked));
        let (machine, state, snapshots) = blocking(look).await;
        // What can't be read of one instance must not hide the others.
        let machine = machine.ok();
        let mut state = state.unwrap_or(InstanceState::Unknown);
        if state == InstanceState::Running {
            state = self.look_inside(&folder, machine.as_ref()).await;
        } else if machine.as_ref().is_some_and(|machine| machine.resume.is_some()) {
            state = InstanceState::Suspended;
        }
        let snapshots = snapshots.ok().filter(|_| machine.is_some());
        let (nonce, sizes) = (machine.as_ref().map(|it| it.nonce.clone()), machine.map(|it| it.sizes));
        // Deleted while we looked, what we saw means nothing.
        folder.exists().then(|| Instance { name: folder.instance().clone(), state, nonce, sizes, snapshots })
    }

    /// What a machine with a living QEMU is doing. What nobody looks after is set right in passing.
    async fn look_inside(&self, folder: &Folder, machine: Option<&Machine>) -> InstanceState {
        let unheld = self.holds.try_hold(folder.instance());
        if folder.is_marked_stopped() {
            // Nobody brings it up any more.
            if let (Some(hold), Some(machine)) = (unheld, machine) {
                let nonce = machine.nonce.clone();
                tokio::spawn(async move { process::sweep(&hold, &Mark::of_instance(&nonce)).await });
            }
            return InstanceState::Starting;
        }
        let asked = async { Qmp::connect(folder.path(), MONITOR).await?.run_state().await };
        match (tokio::time::timeout(LOOK_LIMIT, asked).await, unheld) {
            (Ok(Ok(RunState::PoweredOff)), Some(hold)) => {
                lay_to_rest(hold, folder.clone());
                InstanceState::Stopped
            }
            (Ok(Ok(RunState::PoweredOff)), None) => InstanceState::Stopping,
            (Ok(Ok(RunState::DiskError)), _) => {
                tracing::warn!(instance = %folder.instance(), "the disk of the host is full, or fails: the machine stands still until it can write");
                let folder = folder.clone();
                tokio::spawn(async move { Qmp::connect(folder.path(), MONITOR).await?.go_on().await });
                InstanceState::Running
            }
            (Ok(Ok(RunState::Halted)), Some(hold)) => {
                let (folder, ends) = (folder.clone(), machine.is_some_and(|machine| machine.resume.is_some()));
                if ends {
                    lay_to_rest(hold, folder);
                    return InstanceState::Stopping;
                }
                tokio::spawn(async move {
                    if let Err(error) = saved::go_on(&folder).await {
                        tracing::warn!(instance = %folder.instance(), %error, "a machine stands still and can't be told to go on");
                    }
                    drop(hold);
                });
                InstanceState::Running
            }
            // A monitor that is silent for a moment says nothing; the lock does.
            _ => InstanceState::Running,
        }
    }

    /// Deletes what dead controllers left half made or half deleted, in the background: nobody waits for it.
    fn sweep_leftovers(&self) {
        let (root, holds) = (self.root.clone(), self.holds.clone());
        tokio::task::spawn_blocking(move || {
            for (instance, path) in leftovers(&root).unwrap_or_default() {
                // Held, it is no leftover but under way; if not, the next sweep finds it.
                let Some(_hold) = holds.try_hold(&instance) else { continue };
                if let Err(error) = remove_tree(&path) {
                    tracing::warn!(%instance, %error, "a leftover can't be deleted");
                }
            }
        });
    }

    /// Makes the machine's folder, unless it is there. Says whether it is that of the order.
    async fn ensure_made(&self, hold: &Hold, act: Act<'_>, order: &CreateOrder) -> Result<bool, DriverError> {
        let folder = folder(&self.root, &order.instance);
        let looked = folder.clone();
        match hold.blocking(move || looked.owner()).await.map_err(|error| act.failed(&error))? {
            Owner::Claim(nonce) => return Ok(nonce == order.seed.nonce),
            Owner::Unclear => return Ok(false),
            Owner::Nobody => {}
        }
        let image = match &order.base {
            Base::Image(image) => image,
            Base::Snapshot(source, name) => return self.make_clone(order, &folder, source, name).await.map(|()| true),
            Base::Existing => return Err(self.unsupported("take over machines that it did not make")),
        };
        let reference: ImageReference = image.parse().map_err(|error| act.failed(&error))?;
        let name = image;
        let image = self.images.obtain(&reference, &ignore_progress).await.map_err(|error| act.failed(&error))?;
        if order.warm && self.make_warm(hold, act, order, name, &image).await? {
            return Ok(true);
        }
        let machine = Machine::new(&order.instance, &order.seed, order.sizes, image.digest().clone());
        let machine = Machine { provision: order.provision.clone(), ..machine };
        // While the image is in use by this call it is not deleted; after it, the folder shows its use.
        let made = hold.blocking(move || machine.to_bytes().and_then(|claim| folder.make(&claim)));
        made.await.map_err(|error| act.failed(&error))?;
        drop(image);
        Ok(true)
    }
}

#[async_trait]
impl Driver for Qemu {
    fn name(&self) -> DriverName {
        DriverName::Qemu
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            sizes: true,
            images: true,
            resize_running: false,
            suspend: true,
            snapshots: SnapshotSupport::Live,
            clones: CloneSupport::Snapshots,
            warm: true,
            labels: false,
            mounts: MountSupport::None,
            uses_host: true,
            // What a dead controller was bringing up is ended when it is seen.
            calls_outlive_controller: false,
            // Machines that boot keep a processor each busy.
            lanes: std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1)),
            host_address: Some(HOST_ADDRESS),
            deadlines: Deadlines {
                // Some system calls and one short question for each machine, all at once.
                list: Span::from_secs(15),
                // An image that has to be built or downloaded first, a boot, and packages.
                create: Span::from_secs(45 * 60),
                // Longer than the longest boot.
                start: Span::from_secs(450),
                // Longer than the grace and the release together.
                stop: Span::from_secs(60),
                // A stop, and a word to `qemu-img`.
                resize: Span::from_secs(90),
                // A kill, and the deletion of a few large files.
                destroy: Span::from_secs(60),
                // Its memory has to be written.
                snapshot: Span::from_secs(120),
                // No longer than a start.
                restore: Span::from_secs(450),
                // The machine is up already; an emulated one that comes up with others is slow.
                connect: Span::from_secs(120),
            },
        }
    }

    async fn list(&self) -> Result<Vec<Instance>, DriverError> {
        self.tend_warm();
        let root = self.root.clone();
        let found = blocking(move || folders(&root, FILES)).await;
        let found =
            found.map_err(|error| DriverError::Unavailable { driver: DriverName::Qemu, reason: error.to_string() })?;
        let looks = found.into_iter().map(|folder| {
            let driver = self.clone();
            tokio::spawn(async move { driver.look(folder).await })
        });
        let mut instances = Vec::new();
        for look in looks.collect::<Vec<_>>() {
            instances.extend(look.await.unwrap_or_default());
        }
        Ok(instances)
    }

    async fn create(&self, order: &CreateOrder) -> Result<(), DriverError> {
        let act = Act("create", &order.instance);
        if !order.mounts.is_empty() {
            let what = "mount folders of the host yet; take `mounts` out of the agent's spec".to_owned();
            return Err(DriverError::Unsupported { driver: DriverName::Qemu, what });
        }
        if let Base::Image(image) = &order.base
            && let Some((key, what)) = order.provision.obstacle(Some(DriverName::Qemu), image)
        {
            let what = format!("give a machine `{key}` here: {what}");
            return Err(DriverError::Unsupported { driver: DriverName::Qemu, what });
        }
        self.sweep_leftovers();
        let hold = self.holds.hold(&order.instance).await;
        if !self.ensure_made(&hold, act, order).await? {
            return Err(DriverError::Foreign { instance: order.instance.clone() });
        }
        let folder = folder(&self.root, &order.instance);
        self.bring_up(&Held { act, hold, folder, nonce: order.seed.nonce.clone() }, &order.seed).await
    }

    async fn start(&self, target: &Target, seed: &Seed, _: &Mounts) -> Result<(), DriverError> {
        let held = self.hold("start", target).await?;
        if seed.nonce != target.nonce {
            return Err(held.act.failed(&io::Error::other("its new seed is that of another instance")));
        }
        self.bring_up(&held, seed).await
    }

    async fn stop(&self, target: &Target) -> Result<(), DriverError> {
        let held = self.hold("stop", target).await?;
        self.settle(&held).await?;
        bring_down(&held, GRACE).await?;
        self.forget_memory(&held).await
    }

    async fn resize(&self, target: &Target, sizes: &Sizes) -> Result<(), DriverError> {
        let held = self.hold("resize", target).await?;
        self.settle(&held).await?;
        bring_down(&held, GRACE).await?;
        // It fits no machine of another size.
        self.forget_memory(&held).await?;
        let mut machine = held.look(Machine::read).await?;
        let disk = held.folder.file(machine.disk.file());
        if disk.exists() {
            let grown = disk::grow(&self.programs.img, &disk, sizes.disk.bytes()).await;
            let larger = grown.map_err(|error| held.act.failed(&error))?;
            // An image that is larger than the disk asked for has made it so large from the beginning.
            if larger.is_some() && sizes.disk < machine.sizes.disk {
                let message = format!("its disk has {} already, and a disk only grows", machine.sizes.disk);
                return Err(held.act.failed(&io::Error::other(message)));
            }
        }
        machine.sizes = *sizes;
        held.look(move |folder| folder.write(MACHINE_FILE, &machine.to_bytes()?)).await
    }

    async fn destroy(&self, target: &Target) -> Result<(), DriverError> {
        self.sweep_leftovers();
        let held = match self.hold("destroy", target).await {
            Err(DriverError::Missing { .. }) => return Ok(()),
            held => held?,
        };
        bring_down(&held, Duration::ZERO).await?;
        held.look(|folder| folder.move_away().and_then(|gone| remove_tree(&gone))).await
    }

    async fn snapshot(&self, target: &Target, name: &SnapshotName) -> Result<(), DriverError> {
        let held = self.hold("take a snapshot of", target).await?;
        self.take(&held, name).await
    }

    async fn delete_snapshot(&self, target: &Target, name: &SnapshotName) -> Result<(), DriverError> {
        let held = self.hold("delete a snapshot of", target).await?;
        self.delete(&held, name).await
    }

    async fn restore(
        &self,
        target: &Target,
        snapshot: &SnapshotName,
        seed: &Seed,
        _: &Mounts,
    ) -> Result<(), DriverError> {
        let held = self.hold_back_at(target, snapshot, seed).await?;
        self.bring_up(&held, seed).await
    }

    async fn go_back(&self, target: &Target, snapshot: &SnapshotName, seed: &Seed) -> Result<(), DriverError> {
        self.hold_back_at(target, snapshot, seed).await.map(drop)
    }

    async fn snapshot_sizes(&self, target: &Target) -> Result<BTreeMap<SnapshotName, ByteSize>, DriverError> {
        let folder = folder(&self.root, &target.instance);
        let sizes = blocking(move || snapshots::sizes(&folder)).await;
        sizes.map_err(|error| Act("look at the snapshots of", &target.instance).failed(&error))
    }

    async fn suspend(&self, target: &Target) -> Result<(), DriverError> {
        let held = self.hold("suspend", target).await?;
        self.put_to_sleep(&held).await
    }

    async fn prove(&self, instance: &InstanceName) -> Result<Option<Nonce>, DriverError> {
        let _hold = self.holds.hold(instance).await;
        let folder = folder(&self.root, instance);
        let looked = folder.clone();
        match blocking(move || looked.owner()).await {
            Ok(Owner::Nobody) => return Err(DriverError::Missing { instance: instance.clone() }),
            Ok(_) => {}
            Err(error) => return Err(Act("prove", instance).failed(&error)),
        }
        let ask = async {
            let mut channel = Channel::connect(folder.path(), CHANNEL).await?;
            channel.ask(First::Now, |id| ToGuest::Prove { id }).await
        };
        Ok(match tokio::time::timeout(PROOF_LIMIT, ask).await {
            Ok(Ok(FromGuest::Proof(proof))) => proof.nonce,
            // It is down, or silent: nothing was read back.
            _ => None,
        })
    }

    async fn challenge(&self, target: &Target, challenge: &Secret) -> Result<Witness, DriverError> {
        self.lay_challenge(target, challenge).await
    }

    async fn reseed(&self, target: &Target, seed: &Seed) -> Result<(), DriverError> {
        let held = self.hold("seed", target).await?;
        if seed.nonce != target.nonce {
            return Err(held.failed("its new seed is that of another instance"));
        }
        self.seed_anew(&held, seed).await
    }
}

impl Held<'_> {
    /// Does something short with the folder, in a thread that may wait.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> io::Result<T> + Send + 'static,
    ) -> Result<T, DriverError> {
        let folder = self.folder.clone();
        self.hold.blocking(move || work(&folder)).await.map_err(|error| self.act.failed(&error))
    }

    /// Writes down what the machine is now.
    async fn write(&self, machine: Machine) -> io::Result<()> {
        let folder = self.folder.clone();
        self.hold.blocking(move || folder.write(MACHINE_FILE, &machine.to_bytes()?)).await
    }

    /// What is done with it can't be, for this reason.
    fn failed(&self, reason: &str) -> DriverError {
        self.act.failed(&io::Error::other(reason))
    }
}

async fn powered_off(folder: &Folder) -> bool {
    let asked = async { Qmp::connect(folder.path(), MONITOR).await?.run_state().await };
    matches!(asked.await, Ok(RunState::PoweredOff))
}

/// Ends the QEMU of a machine that has powered itself off, in the background.
fn lay_to_rest(hold: Hold, folder: Folder) {
    tokio::spawn(async move {
        let marked = folder.clone();
        if let Err(error) = hold.blocking(move || marked.mark_stopped()).await {
            return tracing::warn!(instance = %folder.instance(), %error, "that it was stopped can't be written down");
        }
        if let Ok(mut qmp) = Qmp::connect(folder.path(), MONITOR).await {
            let _ = qmp.quit().await;
        }
        let released = folder.clone();
        let _ = hold.until(RELEASE_LIMIT, move || released.is_free()).await;
    });
}

/// Has no QEMU of a machine run: presses its power button where it is given time, then ends it.
async fn bring_down(held: &Held<'_>, grace: Duration) -> Result<(), DriverError> {
    let (hold, folder) = (&held.hold, &held.folder);
    let failed = |error: io::Error| held.act.failed(&error);
    let seeded = held.look(Folder::is_held).await? && !folder.is_marked_stopped();
    if seeded && !grace.is_zero() {
        press_power_button(folder, grace).await;
    }
    // Before QEMU ends, so that no listing takes that for a crash.
    held.look(Folder::mark_stopped).await?;
    if held.look(Folder::is_held).await? {
        if let Ok(mut qmp) = Qmp::connect(folder.path(), MONITOR).await {
            let _ = qmp.quit().await;
        }
        let released = folder.clone();
        hold.until(RELEASE_LIMIT, move || released.is_free()).await.map_err(failed)?;
    }
    process::sweep(hold, &Mark::of_instance(&held.nonce)).await.map_err(failed)?;
    let released = folder.clone();
    if hold.until(RELEASE_LIMIT, move || released.is_free()).await.map_err(failed)? {
        return Ok(());
    }
    let message = format!(
        "{} is locked by a process that this driver did not start; end it by hand",
        folder.file(FILES.lock).display()
    );
    Err(failed(io::Error::other(message)))
}

/// Asks the machine to go down, and waits until it has powered itself off or its grace is over.
async fn press_power_button(folder: &Folder, grace: Duration) {
    /// Seldom enough to cost nothing.
    const PAUSE: Duration = Duration::from_millis(100);
    let wait = async {
        let mut qmp = Qmp::connect(folder.path(), MONITOR).await?;
        qmp.power_down().await?;
        while qmp.run_state().await? != RunState::PoweredOff {
            tokio::time::sleep(PAUSE).await;
        }
        Ok::<_, qmp::QmpError>(())
    };
    match tokio::time::timeout(grace, wait).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(instance = %folder.instance(), %error, "the power button"),
        Err(_) => tracing::info!(instance = %folder.instance(), "the machine did not go down by itself in time"),
    }
}
