//! Driver `local`: no machine at all. An instance is a folder below one root and a runtime process
//! that works in it. **It isolates nothing**: the runtime and its tasks run as the controller's own
//! user, on its own files.
//!
//! ```text
//! <root>/<instance>/seed.json      whose it is: the nonce in it is the proof
//!                   runtime.lock   locked as long as a runtime lives; its pid
//!                   stopped        it is down because it was stopped
//!                   runtime.log    what the runtime writes
//!                   work/          where tasks and sessions run; mounts are links in it
//!                   mounts.json    the links in it that are this driver's
//! <root>/.making-<instance>.*      being made; renamed when whole
//! <root>/.gone-<instance>.*        being deleted; the name is free already
//! ```
//!
//! Liveness is the lock and never a process id, which may be that of another process by now: locked
//! is Running; else `stopped` tells Stopped from Failed. Every process of an instance carries the
//! nonce in its environment, so that what a killed runtime leaves behind is found and ended.
//!
//! A mount is a symbolic link in the work folder to the folder of the host. **`writable: false` is not
//! enforced**: a runtime that is the controller's own user may write wherever that user may, mounted or
//! not. For the same reason there is no place for a mount outside of the work folder: `/src` would be
//! the host's own. Deleting an instance deletes its links and never what they lead to.
//!
//! One root belongs to one [`Local`]: it lies in the controller's state folder, which is locked.
//! Calls on one instance wait for each other, and a call that its caller gave up counts until the
//! piece of work is over that it was in.

mod folder;
mod launch;
mod mounts;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::{
    Capabilities, CloneSupport, Deadlines, Instance, InstanceState, MountSupport, Sizes, SnapshotSupport,
};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Seed;

use self::folder::{FILES, folder, make, pid, write_seed};
pub use self::launch::RuntimeProgram;
use crate::folder::{Folder, Owner, folders, leftovers, remove_tree};
use crate::hold::{Hold, Holds, blocking};
use crate::process::{self, Mark};
use crate::{Act, Base, CreateOrder, Driver, DriverError, Mounts, Target};

/// How long a runtime that was asked to end may take to end its tasks and write down what they came
/// to. Then it is killed. The runtime gives its tasks less than this.
const GRACE: Duration = Duration::from_secs(5);

/// How long the kernel may take to release the lock of a runtime that was killed.
const RELEASE_LIMIT: Duration = Duration::from_secs(2);

/// Driver `local`. See the [module](self).
#[derive(Debug, Clone)]
pub struct Local {
    root: PathBuf,
    program: RuntimeProgram,
    holds: Holds,
}

impl Local {
    /// A driver that keeps its instances below `root`, which is made when first needed, and runs
    /// `program` in each.
    #[must_use]
    pub fn new(root: PathBuf, mut program: RuntimeProgram) -> Self {
        // The runtime starts in its own folder, where a relative path would mean another file. Only a
        // process without a working folder has no absolute paths; then they stay as they are.
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        if program.path.components().count() > 1 {
            program.path = absolute(program.path);
        }
        Self { root: absolute(root), program, holds: Holds::default() }
    }

    /// The folder of an instance, whether or not it is there.
    #[must_use]
    pub fn folder(&self, instance: &InstanceName) -> PathBuf {
        folder(&self.root, instance).path().to_owned()
    }

    /// Holds an instance, and checks that it is the one that is meant.
    async fn hold(&self, act: Act<'_>, target: &Target) -> Result<(Hold, Folder), DriverError> {
        let hold = self.holds.hold(&target.instance).await;
        let folder = folder(&self.root, &target.instance);
        let looked = folder.clone();
        let instance = target.instance.clone();
        match hold.blocking(move || looked.owner()).await {
            Ok(Owner::Claim(nonce)) if nonce == target.nonce => Ok((hold, folder)),
            Ok(Owner::Claim(_) | Owner::Unclear) => Err(DriverError::Foreign { instance }),
            Ok(Owner::Nobody) => Err(DriverError::Missing { instance }),
            Err(error) => Err(act.failed(&error)),
        }
    }

    /// Has a runtime run in the folder, with these mounts in it.
    async fn bring_up(
        &self,
        act: Act<'_>,
        hold: &Hold,
        folder: &Folder,
        nonce: &Nonce,
        mounts: &Mounts,
    ) -> Result<(), DriverError> {
        let looked = folder.clone();
        if hold.blocking(move || looked.is_held()).await.map_err(|error| act.failed(&error))? {
            return Ok(());
        }
        // A runtime that was killed has left the processes of its tasks behind.
        process::sweep(hold, &Mark::of_instance(nonce)).await.map_err(|error| act.failed(&error))?;
        let (mounted, mounts) = (folder.clone(), mounts.clone());
        hold.blocking(move || mounts::apply(&mounted, &mounts)).await.map_err(|error| act.failed(&error))?;
        let launched = launch::launch(hold, &self.program, folder, nonce).await;
        launched.map_err(|error| act.failed(&error))
    }

    /// Deletes what dead controllers left half made or half deleted, in the background: there may be
    /// much of it, and nobody waits for it.
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
}

#[async_trait]
impl Driver for Local {
    fn name(&self) -> DriverName {
        DriverName::Local
    }

    fn runtime(&self) -> Option<&Path> {
        // One that is looked up in `PATH` may be another one each time.
        Some(self.program.path.as_path()).filter(|path| path.is_absolute())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            sizes: false,
            images: false,
            resize_running: false,
            suspend: false,
            snapshots: SnapshotSupport::None,
            clones: CloneSupport::None,
            warm: false,
            labels: false,
            mounts: MountSupport::Any,
            // Its processes take what they take of the host: there are no sizes to count.
            uses_host: false,
            // A call is made of short pieces of work in this process.
            calls_outlive_controller: false,
            // Starting a process is cheap; more at a time would only make a small host stutter.
            lanes: 4,
            host_address: None,
            deadlines: Deadlines {
                // Some system calls for each instance: only a sick disk takes so long.
                list: Span::from_secs(10),
                // Both longer than the sweep before and the wait for the runtime together.
                create: Span::from_secs(30),
                start: Span::from_secs(30),
                // Longer than the grace, the sweep and the release together.
                stop: Span::from_secs(20),
                // Refused at once.
                resize: Span::from_secs(10),
                // A stop, and the deletion of many small files.
                destroy: Span::from_secs(30),
                // It has none.
                snapshot: Span::from_secs(30),
                restore: Span::from_secs(30),
                // The runtime is up already and has to say hello over loopback.
                connect: Span::from_secs(30),
            },
        }
    }

    async fn list(&self) -> Result<Vec<Instance>, DriverError> {
        let root = self.root.clone();
        let listed = blocking(move || list(&root)).await;
        listed.map_err(|error| DriverError::Unavailable { driver: DriverName::Local, reason: error.to_string() })
    }

    async fn create(&self, order: &CreateOrder) -> Result<(), DriverError> {
        let act = Act("create", &order.instance);
        if let Some((_, what)) = order.provision.obstacle(Some(DriverName::Local), "") {
            return Err(DriverError::Unsupported { driver: DriverName::Local, what: format!("do that: {what}") });
        }
        if order.base == Base::Existing {
            return Err(self.unsupported("take over machines that it did not make"));
        }
        self.sweep_leftovers();
        let hold = self.holds.hold(&order.instance).await;
        let folder = folder(&self.root, &order.instance);
        let (made, seed) = (folder.clone(), order.seed.clone());
        let ours = hold.blocking(move || ensure_made(&made, &seed)).await.map_err(|error| act.failed(&error))?;
        if !ours {
            return Err(DriverError::Foreign { instance: order.instance.clone() });
        }
        self.bring_up(act, &hold, &folder, &order.seed.nonce, &order.mounts).await
    }

    async fn start(&self, target: &Target, seed: &Seed, mounts: &Mounts) -> Result<(), DriverError> {
        let act = Act("start", &target.instance);
        let (hold, folder) = self.hold(act, target).await?;
        if seed.nonce != target.nonce {
            return Err(act.failed(&io::Error::other("its new seed is that of another instance")));
        }
        let (seeded, seed) = (folder.clone(), seed.clone());
        let seeded = hold.blocking(move || if seeded.is_held()? { Ok(()) } else { write_seed(&seeded, &seed) }).await;
        seeded.map_err(|error| act.failed(&error))?;
        self.bring_up(act, &hold, &folder, &target.nonce, mounts).await
    }

    async fn stop(&self, target: &Target) -> Result<(), DriverError> {
        let act = Act("stop", &target.instance);
        let (hold, folder) = self.hold(act, target).await?;
        bring_down(&hold, &folder, &target.nonce).await.map_err(|error| act.failed(&error))
    }

    async fn resize(&self, _: &Target, _: &Sizes) -> Result<(), DriverError> {
        let what = "give an instance sizes: it is a process of this host, not a machine".to_owned();
        Err(DriverError::Unsupported { driver: DriverName::Local, what })
    }

    async fn destroy(&self, target: &Target) -> Result<(), DriverError> {
        let act = Act("destroy", &target.instance);
        self.sweep_leftovers();
        let (hold, folder) = match self.hold(act, target).await {
            Err(DriverError::Missing { .. }) => return Ok(()),
            held => held?,
        };
        bring_down(&hold, &folder, &target.nonce).await.map_err(|error| act.failed(&error))?;
        let removed = hold.blocking(move || folder.move_away().and_then(|gone| remove_tree(&gone))).await;
        removed.map_err(|error| act.failed(&error))
    }

    fn isolates(&self) -> bool {
        false
    }

    async fn prove(&self, instance: &InstanceName) -> Result<Option<Nonce>, DriverError> {
        let folder = folder(&self.root, instance);
        match blocking(move || folder.owner()).await {
            Ok(Owner::Claim(nonce)) => Ok(Some(nonce)),
            Ok(Owner::Unclear) => Ok(None),
            Ok(Owner::Nobody) => Err(DriverError::Missing { instance: instance.clone() }),
            Err(error) => Err(Act("prove", instance).failed(&error)),
        }
    }
}

fn list(root: &Path) -> io::Result<Vec<Instance>> {
    let look = |folder: Folder| {
        // What can't be read of one instance must not hide the others.
        let nonce =
            folder.owner().ok().and_then(|owner| if let Owner::Claim(nonce) = owner { Some(nonce) } else { None });
        let state = folder.state().unwrap_or(InstanceState::Unknown);
        let instance = Instance { name: folder.instance().clone(), state, nonce, sizes: None, snapshots: None };
        // Deleted while we looked, what we saw means nothing.
        folder.exists().then_some(instance)
    };
    Ok(folders(root, FILES)?.into_iter().filter_map(look).collect())
}

/// Makes the folder, or seeds it anew. Says whether it is that of the seed.
fn ensure_made(folder: &Folder, seed: &Seed) -> io::Result<bool> {
    match folder.owner()? {
        Owner::Nobody => make(folder, seed).map(|()| true),
        Owner::Claim(nonce) if nonce == seed.nonce => write_seed(folder, seed).map(|()| true),
        Owner::Claim(_) | Owner::Unclear => Ok(false),
    }
}

/// Has nothing of an instance run: asks its runtime to end, then kills what is left.
async fn bring_down(hold: &Hold, folder: &Folder, nonce: &Nonce) -> io::Result<()> {
    let (asked, meant) = (folder.clone(), nonce.clone());
    let asked = hold.blocking(move || ask_runtime(&asked, &meant)).await?;
    let released = {
        let folder = folder.clone();
        move || folder.is_free()
    };
    if asked {
        hold.until(GRACE, released.clone()).await?;
    }
    // Before the hard means, so that no listing takes for a crash what they do; and after, as a
    // runtime that was just coming up may have taken it back.
    let mark = {
        let folder = folder.clone();
        move || folder.mark_stopped()
    };
    hold.blocking(mark.clone()).await?;
    process::sweep(hold, &Mark::of_instance(nonce)).await?;
    hold.blocking(mark).await?;
    if hold.until(RELEASE_LIMIT, released).await? {
        return Ok(());
    }
    let lock = folder.path().join(vm_agent_schemas::layout::LOCK_FILE);
    Err(io::Error::other(format!(
        "{} is locked by a process that this driver did not start; end it by hand",
        lock.display()
    )))
}

/// Asks the runtime to end, and says whether there is one to wait for. One that has not yet said
/// which process it is has nothing to lose by being killed.
fn ask_runtime(folder: &Folder, nonce: &Nonce) -> io::Result<bool> {
    match pid(folder) {
        Some(pid) if folder.is_held()? => process::ask_to_end(pid, &Mark::of_instance(nonce), || folder.is_held()),
        _ => Ok(false),
    }
}
