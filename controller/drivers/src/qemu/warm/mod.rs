//! Warm starts: machines that have booted and got what they are to have, but no seed, saved to be copied.
//!
//! ```text
//! <warm>/<key>/snapshot.json  as of a snapshot, and the files that it names beside it
//!              memory         the state of the devices
//!              ram            what was in the memory: every copy begins with it, and none writes to it
//!              recipe.json    what it is made for
//!              used           when a machine began as it last
//! <warm>/.making-*, .gone-*   half made, half deleted
//! ```
//!
//! The key is the digest of all that went in, so what is there under a key is what would be made now. One that is
//! made by a call that needs it has all others that need it wait; one that is made anew, because it is old or because
//! what it is made of has changed, is made beside them. Nothing in it is a secret or anybody's identity: no machine
//! that it is made of has ever had a seed.

mod recipe;
mod store;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::timeout;
use uuid::Uuid;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::InstanceName;

use self::recipe::{Recipe, Verdict};
use self::store::Kept;
use super::command::{Use, arguments};
use super::launch::{LaunchError, launch, prepared};
use super::layers::{self, Layer};
use super::machine::{self, MONITOR, Machine, Memory, Resume};
use super::qmp::Qmp;
use super::snapshots::{MAKING, MEMORY, Snapshot, new_saved, share_memory};
use super::start::{boot_limit, kernel};
use super::{Held, Qemu, RELEASE_LIMIT, saved};
use crate::folder::{Folder, at, leftovers, remove_tree};
use crate::hold::{Hold, Holds, blocking};
use crate::images::Image;
use crate::process::{self, Mark};
use crate::{Act, CreateOrder, DriverError};

/// How long a warm start that could not be made is not tried again: machines boot meanwhile.
const FAILED_PAUSE: Duration = Duration::from_secs(600);

/// How often it is looked whether what is kept is to be made anew.
const TEND_PAUSE: Duration = Duration::from_secs(3600);

/// What is kept of warm starts.
#[derive(Debug, Clone)]
pub(super) struct Warm {
    root: PathBuf,
    /// One maker for each, by the name of the machine that it is made of.
    holds: Holds,
    /// Those that could not be made: when, and why.
    failed: Arc<Mutex<HashMap<Digest, (Instant, String)>>>,
    /// When it was last looked what is to be made anew. Held while that is done.
    tended: Arc<tokio::sync::Mutex<Option<Instant>>>,
}

/// For whom a warm start is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Machines that wait for it.
    Now,
    /// Those to come: nothing else is to notice.
    Later,
}

impl Warm {
    /// What is kept below this folder, which is made when first needed.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, holds: Holds::default(), failed: Arc::default(), tended: Arc::default() }
    }

    fn place(&self, key: &Digest) -> PathBuf {
        self.root.join(key.as_str())
    }

    /// Why it could not be made a while ago.
    fn failure(&self, key: &Digest) -> Option<String> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (when, _)| when.elapsed() < FAILED_PAUSE);
        failed.get(key).map(|(_, why)| why.clone())
    }

    fn note_failure(&self, key: &Digest, why: String) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(key.clone(), (Instant::now(), why));
    }
}

/// The machine that a warm start is made of, by its name.
fn model(kind: &str, key: &Digest) -> InstanceName {
    let name = format!("{kind}-{}", key.short());
    name.parse().expect("letters, a hyphen and hexadecimal digits are a name")
}

impl Qemu {
    /// Makes the folder of a machine that begins as a copy of one like it. Says whether it could: if not, it boots.
    pub(super) async fn make_warm(
        &self,
        hold: &Hold,
        act: Act<'_>,
        order: &CreateOrder,
        reference: &str,
        image: &Image,
    ) -> Result<bool, DriverError> {
        let folder = machine::folder(&self.root, &order.instance);
        let recipe = Recipe { image: reference.to_owned(), sizes: order.sizes, provision: order.provision.clone() };
        let instance = &order.instance;
        let key = match self.key(&recipe, image).await {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(%instance, %error, "it can't be told what a machine would begin as: it boots");
                return Ok(false);
            }
        };
        let name = model("warm", &key);
        let model_hold = self.warm.holds.hold(&name).await;
        match self.ensure_warm(&model_hold, &name, &key, &recipe, image).await {
            Ok(()) => {}
            // It would not get it by booting either.
            Err(error @ LaunchError::Unprovisioned(_)) => return Err(act.failed(&error)),
            Err(error) => {
                let error = act.failed(&error);
                tracing::warn!(%instance, %error, "there is nothing that a machine could begin as: it boots");
                return Ok(false);
            }
        }
        let machine = Machine::new(instance, &order.seed, order.sizes, image.digest().clone());
        let machine = Machine { provision: order.provision.clone(), provisioned: true, ..machine };
        let (place, kept) = (self.warm.place(&key), model_hold.clone());
        // Whoever gives up does not have the next one meet what goes on here, nor what is copied be deleted.
        let copied = hold.blocking(move || {
            let copied = copy(&place, machine, &folder);
            drop(kept);
            copied
        });
        if let Err(error) = copied.await {
            tracing::warn!(%instance, %error, "what a machine was to begin as can't be used: it boots");
            drop(model_hold);
            self.give_up_warm(&key).await;
            return Ok(false);
        }
        Ok(true)
    }

    /// What such a machine is kept under.
    async fn key(&self, recipe: &Recipe, image: &Image) -> io::Result<Digest> {
        let (host, make, provision) = (self.host().await, Arc::clone(&self.seed_disk), recipe.provision.clone());
        let stand_in = recipe.stand_in(image.digest());
        let (name, incarnation) = (stand_in.name.clone(), stand_in.incarnation);
        // Everything that is brought into it is on its volume, the runtime too.
        let volume = blocking(move || {
            let volume = tempfile::NamedTempFile::new()?;
            make(&name, incarnation, &provision, volume.path())?;
            std::fs::read(volume.path()).map(|bytes| Digest::of(&bytes))
        });
        let arguments = arguments(&stand_in, kernel(&image.kernel()), host, Use::Copies);
        Ok(recipe.key(image.info(), &volume.await?, &host.version, &arguments))
    }

    /// Has a warm start be there.
    async fn ensure_warm(
        &self,
        hold: &Hold,
        name: &InstanceName,
        key: &Digest,
        recipe: &Recipe,
        image: &Image,
    ) -> Result<(), LaunchError> {
        let place = self.warm.place(key);
        if hold.blocking(move || store::mark_used(&place)).await? {
            return Ok(());
        }
        if let Some(why) = self.warm.failure(key) {
            return Err(LaunchError::FailedBefore(why));
        }
        let made = self.make_model(hold, name, key, recipe, image, For::Now).await;
        if let Err(error) = &made {
            self.warm.note_failure(key, error.to_string());
        }
        made
    }

    /// Boots a machine that is nobody's, and keeps it as it is then.
    async fn make_model(
        &self,
        hold: &Hold,
        name: &InstanceName,
        key: &Digest,
        recipe: &Recipe,
        image: &Image,
        whom: For,
    ) -> Result<(), LaunchError> {
        let begun = Instant::now();
        let scratch = self.warm.root.join(format!("{MAKING}{name}.{}", Uuid::new_v4().simple()));
        let machine = Machine::of_nobody(name, recipe.sizes, image.digest().clone());
        let machine = Machine { provision: recipe.provision.clone(), ..machine };
        let (act, folder) = (Act("make a warm start of", name), machine::folder(&scratch, name));
        let held = Held { act, hold: hold.clone(), folder, nonce: machine.nonce.clone() };
        let made = self.run_model(&held, &machine, image, whom).await;
        let kept = match made {
            Ok(()) => self.keep(&held, &machine, key, recipe, whom).await,
            Err(error) => Err(error),
        };
        // What can't be removed now is swept later.
        let _ = hold.blocking(move || remove_tree(&scratch)).await;
        if kept.is_ok() {
            tracing::info!(%key, took = ?begun.elapsed(), "machines can start warm");
        }
        kept
    }

    async fn run_model(&self, held: &Held<'_>, machine: &Machine, image: &Image, whom: For) -> Result<(), LaunchError> {
        let (hold, folder, host) = (&held.hold, &held.folder, self.host().await);
        let claim = machine.to_bytes()?;
        let made = folder.clone();
        hold.blocking(move || made.make(&claim)).await?;
        self.furnish(held, machine, image).await.map_err(LaunchError::Unfurnished)?;
        let arguments = arguments(machine, kernel(&image.kernel()), host, Use::Copies);
        let mut launched = launch(hold, &self.programs.system, arguments, folder, machine).await?;
        if whom == For::Later {
            launched.step_back();
        }
        prepared(&mut launched, folder, machine.provision.takes_time(), boot_limit(host.acceleration)).await?;
        let path = folder.file(MEMORY);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(at(&path))?;
        let mut qmp = Qmp::connect(folder.path(), MONITOR).await?;
        saved::freeze(&mut qmp, &file).await?;
        // It has written all that it has to.
        let _ = qmp.quit().await;
        let _ = timeout(RELEASE_LIMIT, launched.ended()).await;
        Ok(())
    }

    /// Puts what was made under its key, in place of any that is there, and deletes what is too much then.
    async fn keep(
        &self,
        held: &Held<'_>,
        machine: &Machine,
        key: &Digest,
        recipe: &Recipe,
        whom: For,
    ) -> Result<(), LaunchError> {
        let memory = Memory { warm: Some(key.clone()), ..Memory::of(machine, self.host().await) };
        let snapshot = Snapshot { disk: machine.disk.clone(), sizes: machine.sizes, memory: Some(memory) };
        let (root, made, recipe, fresh) = (self.warm.root.clone(), held.folder.clone(), recipe.clone(), key.clone());
        let name = model("warm", key);
        // Whoever copies the one that is there holds this.
        let _mine = match whom {
            For::Now => None,
            For::Later => Some(self.warm.holds.hold(&name).await),
        };
        held.hold.blocking(move || store::keep(&root, &fresh, made.path(), &snapshot, recipe)).await?;
        self.shrink(key).await;
        Ok(())
    }

    /// Deletes what is kept beyond the bounds, but for this one and those that are being copied.
    async fn shrink(&self, fresh: &Digest) {
        let (root, holds, fresh) = (self.warm.root.clone(), self.warm.holds.clone(), fresh.clone());
        let shrunk = blocking(move || {
            for key in store::surplus(&store::list(&root)?, &fresh) {
                if let Some(_hold) = holds.try_hold(&model("warm", &key)) {
                    store::drop_kept(&root, &key)?;
                }
            }
            io::Result::Ok(())
        });
        if let Err(error) = shrunk.await {
            tracing::warn!(%error, "what is kept of warm starts can't be made less");
        }
    }

    /// Drops a warm start that no machine can begin as any more.
    pub(super) async fn give_up_warm(&self, key: &Digest) {
        let (root, key) = (self.warm.root.clone(), key.clone());
        let hold = self.warm.holds.hold(&model("warm", &key)).await;
        if let Err(error) = hold.blocking(move || store::drop_kept(&root, &key)).await {
            tracing::warn!(%error, "a warm start that can't be used can't be deleted either");
        }
    }

    /// Looks after what is kept, in the background: at first, and once in a while.
    pub(super) fn tend_warm(&self) {
        let Ok(mut tended) = Arc::clone(&self.warm.tended).try_lock_owned() else { return };
        if tended.is_some_and(|tended| tended.elapsed() < TEND_PAUSE) {
            return;
        }
        *tended = Some(Instant::now());
        let driver = self.clone();
        tokio::spawn(async move {
            driver.sweep_warm().await;
            driver.renew_warm().await;
            drop(tended);
        });
    }

    /// Ends and deletes what dead controllers left half made or half deleted.
    async fn sweep_warm(&self) {
        let root = self.warm.root.clone();
        for (name, path) in blocking(move || leftovers(&root)).await.unwrap_or_default() {
            // Held, it is no leftover but under way.
            let Some(hold) = self.warm.holds.try_hold(&name) else { continue };
            let folder = machine::folder(&path, &name);
            if let Ok(machine) = Machine::read(&folder)
                && let Err(error) = process::sweep(&hold, &Mark::of_instance(&machine.nonce)).await
            {
                tracing::warn!(%name, %error, "what a dead controller was making can't be ended");
                continue;
            }
            if let Err(error) = hold.blocking(move || remove_tree(&path)).await {
                tracing::warn!(%name, %error, "a leftover can't be deleted");
            }
        }
    }

    /// Makes anew what is old, and what would be another now.
    async fn renew_warm(&self) {
        let root = self.warm.root.clone();
        for kept in blocking(move || store::list(&root)).await.unwrap_or_default() {
            if let Err(error) = self.renew(&kept).await {
                tracing::warn!(key = %kept.key, %error, "a warm start can't be made anew");
            }
        }
    }

    async fn renew(&self, kept: &Kept) -> Result<(), LaunchError> {
        // What is not on this host is got when a machine needs it.
        let recipe = &kept.recipe;
        let Ok(reference) = recipe.image.parse() else { return Ok(()) };
        let Ok(image) = self.images.at_hand(&reference).await else { return Ok(()) };
        let key = self.key(recipe, &image).await?;
        match kept.verdict(&key, Timestamp::now()) {
            Verdict::Keep => {}
            Verdict::Renew => {
                let name = model("fresh", &key);
                let hold = self.warm.holds.hold(&name).await;
                self.make_model(&hold, &name, &key, recipe, &image, For::Later).await?;
            }
            Verdict::Replace => {
                if !self.warm.place(&key).exists() {
                    let name = model("fresh", &key);
                    let hold = self.warm.holds.hold(&name).await;
                    self.make_model(&hold, &name, &key, recipe, &image, For::Later).await?;
                }
                self.give_up_warm(&kept.key).await;
            }
        }
        Ok(())
    }
}

/// Makes the folder of a machine that begins as what is kept in this place.
fn copy(place: &Path, machine: Machine, folder: &Folder) -> io::Result<()> {
    let Snapshot { disk, memory, .. } = Snapshot::read(place)?;
    let memory = memory.ok_or_else(|| io::Error::other("it has no memory"))?;
    let resume = Resume { from: new_saved(), over: disk, memory };
    let machine = Machine { disk: Layer::new(), resume: Some(resume.clone()), ..machine };
    folder.make_with(&machine.to_bytes()?, |path| {
        layers::share(place, &resume.over, path)?;
        share_memory(place, &path.join(&resume.from))
    })
}
