//! A driver in memory, for tests: it does what it is asked unless a test has told it otherwise.
//!
//! ```
//! use vm_agent_drivers::fake::{Behaviour, Call, Fake, On};
//! use vm_agent_schemas::fleet::DriverName;
//!
//! let fake = Fake::new(DriverName::Multipass, Fake::capabilities_default());
//! fake.script(On::create("web").once(), Behaviour::HangAfterEffect);
//! fake.script(On::list(), Behaviour::Unavailable("the daemon is down".into()));
//! assert_eq!(fake.calls(Call::Create), 0);
//! ```

mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::guest::Witness;
use vm_agent_schemas::ids::{Nonce, Secret};
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{
    Capabilities, CloneSupport, Deadlines, Description, Instance, InstanceState, MountSupport, Sizes, SnapshotSupport,
};
use vm_agent_schemas::units::{ByteSize, Span};
use vm_agent_schemas::wire::Seed;

use self::script::Script;
pub use self::script::{Behaviour, Call, On};
use crate::{Base, CreateOrder, Driver, DriverError, Mounts, Target};

/// Told of each machine that comes up, with its seed.
pub type UpHook = Arc<dyn Fn(&Seed) + Send + Sync>;

/// Told of each machine that goes down, for whatever reason.
pub type DownHook = Arc<dyn Fn(&InstanceName) + Send + Sync>;

/// Asked to lay a challenge into a machine that runs; gives what the machine says of itself.
pub type ChallengeHook = Arc<dyn Fn(&InstanceName, &Secret) -> Witness + Send + Sync>;

/// What each snapshot of a fake instance takes.
pub const SNAPSHOT_SIZE: ByteSize = ByteSize::from_mib(1);

/// Where a driver lets the nonce of an instance be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NonceSight {
    /// In listings, and when asked to prove.
    Listed,
    /// Only when asked to prove.
    Proved,
    /// Nowhere: only the runtime can tell.
    Hidden,
}

/// A driver in memory. A clone shares its world.
#[derive(Clone)]
pub struct Fake {
    name: DriverName,
    capabilities: Capabilities,
    /// What takes the place of the runtimes in its machines.
    program: Option<PathBuf>,
    world: Arc<Mutex<State>>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake").field("name", &self.name).field("instances", &self.instances()).finish_non_exhaustive()
    }
}

/// All that exists in the fake's world, and what was asked of it.
struct State {
    instances: BTreeMap<InstanceName, Instance>,
    script: Script,
    /// The snapshots of each instance, where it has had any.
    snapshots: BTreeMap<InstanceName, BTreeSet<SnapshotName>>,
    /// What each instance that ever came up was last started with.
    mounts: BTreeMap<InstanceName, Mounts>,
    folders_are_real: bool,
    nonces: NonceSight,
    calls: Vec<(Call, Option<InstanceName>)>,
    under_way: usize,
    most_under_way: usize,
    on_up: Option<UpHook>,
    on_down: Option<DownHook>,
    on_challenge: Option<ChallengeHook>,
    on_reseed: Option<UpHook>,
}

/// What an effect on the world brings about outside of it.
enum Effect {
    None,
    Up(Seed),
    Down(InstanceName),
}

type Effects<'a> = [&'a (dyn Fn(&mut State) -> Result<Effect, DriverError> + Sync)];

impl Fake {
    /// A fake without instances, under the name of a real driver.
    #[must_use]
    pub fn new(name: DriverName, capabilities: Capabilities) -> Self {
        let state = State {
            instances: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            mounts: BTreeMap::new(),
            folders_are_real: false,
            script: Script::default(),
            nonces: NonceSight::Listed,
            calls: Vec::new(),
            under_way: 0,
            most_under_way: 0,
            on_up: None,
            on_down: None,
            on_challenge: None,
            on_reseed: None,
        };
        Self { name, capabilities, program: None, world: Arc::new(Mutex::new(state)) }
    }

    /// The same fake with a program that takes the place of the runtimes in its machines.
    #[must_use]
    pub fn with_runtime(self, program: PathBuf) -> Self {
        Self { program: Some(program), ..self }
    }

    /// What a plain driver of machines can do: images, sizes that need a stop and are taken of this
    /// host, mounts, four lanes, and deadlines of a minute.
    #[must_use]
    pub fn capabilities_default() -> Capabilities {
        let minute = Span::from_secs(60);
        Capabilities {
            sizes: true,
            images: true,
            resize_running: false,
            suspend: false,
            snapshots: SnapshotSupport::None,
            clones: CloneSupport::None,
            warm: false,
            labels: false,
            mounts: MountSupport::Any,
            uses_host: true,
            calls_outlive_controller: false,
            lanes: 4,
            host_address: None,
            deadlines: Deadlines {
                list: Span::from_secs(10),
                create: minute,
                start: minute,
                stop: minute,
                resize: minute,
                destroy: minute,
                snapshot: minute,
                restore: minute,
                connect: minute,
            },
        }
    }

    /// Tells the fake how to behave on these calls. What is told last leads.
    pub fn script(&self, on: On, behaviour: Behaviour) {
        self.state().script.add(on, behaviour);
    }

    /// Has the fake do what it is asked from now on.
    pub fn clear_script(&self) {
        self.state().script.clear();
    }

    /// Says where nonces can be seen from now on.
    pub fn show_nonces(&self, sight: NonceSight) {
        self.state().nonces = sight;
    }

    /// Has the fake look, from now on, whether the folders that it is to mount are on this host. Until
    /// then any folder will do.
    pub fn folders_are_real(&self) {
        self.state().folders_are_real = true;
    }

    /// Calls `hook` with the seed of each machine that comes up from now on, so that a test can
    /// attach a simulated runtime. The world may be looked at and changed from within.
    pub fn on_up(&self, hook: UpHook) {
        self.state().on_up = Some(hook);
    }

    /// Calls `hook` for each machine that goes down from now on.
    pub fn on_down(&self, hook: DownHook) {
        self.state().on_down = Some(hook);
    }

    /// Has a way into its machines from now on: `challenge` is called with each challenge for one that runs, and
    /// `reseed` with each new seed for one. The world may be looked at and changed from within.
    pub fn lets_in(&self, challenge: ChallengeHook, reseed: UpHook) {
        let mut world = self.state();
        (world.on_challenge, world.on_reseed) = (Some(challenge), Some(reseed));
    }

    /// Everything that exists, as it is and not as a listing shows it.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        self.state().instances.values().cloned().collect()
    }

    /// What an instance was last started with; nothing for one that never came up.
    #[must_use]
    pub fn mounts(&self, instance: &str) -> Option<Mounts> {
        let world = self.state();
        let found = world.mounts.iter().find(|(name, _)| name.as_str() == instance);
        found.map(|(_, mounts)| mounts.clone())
    }

    /// Puts an instance into the world, in the place of one of the same name: a foreign one, say.
    pub fn put(&self, instance: Instance) {
        self.state().instances.insert(instance.name.clone(), instance);
    }

    /// Has an instance crash.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn crash(&self, instance: &str) {
        self.set_state(instance, InstanceState::Failed);
    }

    /// Marks an instance as deleted; it still holds its name.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn tombstone(&self, instance: &str) {
        self.set_state(instance, InstanceState::Deleted);
    }

    /// Puts an instance into a state.
    ///
    /// # Panics
    /// When it does not exist.
    pub fn set_state(&self, instance: &str, state: InstanceState) {
        let effect = {
            let mut world = self.state();
            let found = world.instances.values_mut().find(|found| found.name.as_str() == instance);
            let found = found.unwrap_or_else(|| panic!("the test means an instance that exists, not `{instance}`"));
            let was_up = found.state == InstanceState::Running;
            found.state = state;
            if was_up && state != InstanceState::Running { Effect::Down(found.name.clone()) } else { Effect::None }
        };
        self.tell(effect);
    }

    /// Takes an instance out of the world.
    pub fn remove(&self, instance: &str) {
        let removed = {
            let mut world = self.state();
            let name = world.instances.keys().find(|name| name.as_str() == instance).cloned();
            name.and_then(|name| world.take(&name))
        };
        self.tell(removed.map_or(Effect::None, |removed| went_down(&removed)));
    }

    /// How many calls of this kind there were, those under way included.
    #[must_use]
    pub fn calls(&self, call: Call) -> usize {
        self.state().calls.iter().filter(|(made, _)| *made == call).count()
    }

    /// How many calls of this kind on this instance there were, those under way included.
    #[must_use]
    pub fn calls_on(&self, call: Call, instance: &str) -> usize {
        let on = |name: &Option<InstanceName>| name.as_ref().is_some_and(|name| name.as_str() == instance);
        self.state().calls.iter().filter(|(made, name)| *made == call && on(name)).count()
    }

    /// How many calls there were that change anything, those under way included.
    #[must_use]
    pub fn mutating_calls(&self) -> usize {
        self.state().calls.iter().filter(|(call, _)| call.mutates()).count()
    }

    /// How many calls that change anything are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.state().under_way
    }

    /// How many calls that change anything were under way at a time, at most.
    #[must_use]
    pub fn most_under_way(&self) -> usize {
        self.state().most_under_way
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the hooks, with the world unlocked.
    fn tell(&self, effect: Effect) {
        let (up, down) = {
            let world = self.state();
            (world.on_up.clone(), world.on_down.clone())
        };
        match (effect, up, down) {
            (Effect::Up(seed), Some(hook), _) => hook(&seed),
            (Effect::Down(instance), _, Some(hook)) => hook(&instance),
            _ => {}
        }
    }

    /// Makes a call as it was told to behave. The effects come one after the other, and a caller may
    /// give up before, between and after them.
    async fn call(
        &self,
        call: Call,
        instance: Option<&InstanceName>,
        effects: &Effects<'_>,
    ) -> Result<(), DriverError> {
        let (_under_way, behaviour) = self.begin(call, instance);
        tokio::task::yield_now().await;
        match behaviour {
            Behaviour::Succeed => self.take_effect(effects).await,
            Behaviour::Fail(reason) => Err(self.failure(call, instance, reason)),
            Behaviour::Unavailable(reason) => Err(DriverError::Unavailable { driver: self.name, reason }),
            Behaviour::Delay(delay) => {
                tokio::time::sleep(delay).await;
                self.take_effect(effects).await
            }
            Behaviour::Hang => std::future::pending().await,
            Behaviour::HangAfterEffect => {
                self.take_effect(effects).await?;
                std::future::pending().await
            }
            Behaviour::FailAfterEffect(reason) => {
                self.take_effect(effects).await?;
                Err(self.failure(call, instance, reason))
            }
            Behaviour::HalfMake(reason) => {
                let all_but_last = effects.split_last().map_or(effects, |(_, before)| before);
                self.take_effect(all_but_last).await?;
                Err(self.failure(call, instance, reason))
            }
        }
    }

    async fn take_effect(&self, effects: &Effects<'_>) -> Result<(), DriverError> {
        for effect in effects {
            let effect = effect(&mut self.state())?;
            self.tell(effect);
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    fn begin(&self, call: Call, instance: Option<&InstanceName>) -> (Option<UnderWay>, Behaviour) {
        let mut world = self.state();
        world.calls.push((call, instance.cloned()));
        let under_way = call.mutates().then(|| {
            world.under_way += 1;
            world.most_under_way = world.most_under_way.max(world.under_way);
            UnderWay(self.clone())
        });
        (under_way, world.script.next(call, instance))
    }

    fn failure(&self, call: Call, instance: Option<&InstanceName>, reason: String) -> DriverError {
        match instance {
            Some(instance) => DriverError::Failed { action: call.verb(), instance: instance.clone(), reason },
            None => DriverError::Unavailable { driver: self.name, reason },
        }
    }

    fn check_seed(&self, target: &Target, seed: &Seed) -> Result<(), DriverError> {
        if seed.nonce == target.nonce {
            return Ok(());
        }
        let reason = "its new seed is that of another instance".to_owned();
        Err(self.failure(Call::Start, Some(&target.instance), reason))
    }

    fn check_mounts(&self, mounts: &Mounts) -> Result<(), DriverError> {
        if self.capabilities.mounts != MountSupport::None || mounts.is_empty() {
            return Ok(());
        }
        Err(DriverError::Unsupported { driver: self.name, what: "mount folders of the host".to_owned() })
    }
}

/// A call that changes something, from its begin until it is answered or given up.
struct UnderWay(Fake);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.state().under_way -= 1;
    }
}

fn went_down(instance: &Instance) -> Effect {
    if instance.state == InstanceState::Running { Effect::Down(instance.name.clone()) } else { Effect::None }
}

impl State {
    /// The instance that is meant, if it is ours.
    fn ours(&mut self, target: &Target) -> Result<&mut Instance, DriverError> {
        let instance = target.instance.clone();
        match self.instances.get_mut(&target.instance) {
            None => Err(DriverError::Missing { instance }),
            Some(found) if found.nonce.as_ref().is_some_and(|nonce| target.is(nonce)) => Ok(found),
            Some(_) => Err(DriverError::Foreign { instance }),
        }
    }

    /// Makes the instance of an order unless it is there. It is Starting until it is brought up.
    fn make(&mut self, order: &CreateOrder, sizes: Option<Sizes>) -> Result<Effect, DriverError> {
        if order.base == Base::Existing {
            return self.adopt(order);
        }
        match self.ours(&order.target()) {
            Err(DriverError::Missing { .. }) => {
                let (name, nonce) = (order.instance.clone(), Some(order.seed.nonce.clone()));
                let made =
                    Instance { name: name.clone(), state: InstanceState::Starting, nonce, sizes, snapshots: None };
                self.instances.insert(name, made);
                Ok(Effect::None)
            }
            found => found.map(|_| Effect::None),
        }
    }

    /// An instance that nobody has claimed gets the nonce, and is brought up anew.
    fn adopt(&mut self, order: &CreateOrder) -> Result<Effect, DriverError> {
        let found = self.instances.get_mut(&order.instance);
        if let Some(found) = found.filter(|found| found.nonce.is_none() && found.state != InstanceState::Deleted) {
            found.nonce = Some(order.seed.nonce.clone());
            found.state = InstanceState::Starting;
        }
        self.ours(&order.target()).map(|_| Effect::None)
    }

    fn bring_up(&mut self, call: Call, target: &Target, seed: &Seed, mounts: &Mounts) -> Result<Effect, DriverError> {
        let name = target.instance.clone();
        let absent = mounts.values().find(|mount| self.folders_are_real && !mount.source.is_dir());
        let found = self.ours(target)?;
        let problem = match (found.state, absent) {
            (InstanceState::Running, _) => return Ok(Effect::None),
            (InstanceState::Deleted, _) => "it is deleted and still holds its name".to_owned(),
            (_, Some(absent)) => format!("there is no folder {} on the host", absent.source.display()),
            (_, None) => {
                found.state = InstanceState::Running;
                self.mounts.insert(name, mounts.clone());
                return Ok(Effect::Up(seed.clone()));
            }
        };
        Err(DriverError::Failed { action: call.verb(), instance: name, reason: problem })
    }

    /// Nothing happens to an instance, which has to run for what is asked of it.
    fn running(&mut self, call: Call, target: &Target) -> Result<Effect, DriverError> {
        match self.ours(target)?.state {
            InstanceState::Running => Ok(Effect::None),
            _ => {
                let (action, instance) = (call.verb(), target.instance.clone());
                Err(DriverError::Failed { action, instance, reason: "it does not run".to_owned() })
            }
        }
    }

    fn take(&mut self, instance: &InstanceName) -> Option<Instance> {
        self.mounts.remove(instance);
        self.snapshots.remove(instance);
        self.instances.remove(instance)
    }

    fn bring_down(&mut self, target: &Target) -> Result<Effect, DriverError> {
        let found = self.ours(target)?;
        let effect = went_down(found);
        found.state = InstanceState::Stopped;
        Ok(effect)
    }

    /// The snapshots of an instance that is there.
    fn snapshots(&mut self, target: &Target) -> Result<&mut BTreeSet<SnapshotName>, DriverError> {
        self.ours(target)?;
        Ok(self.snapshots.entry(target.instance.clone()).or_default())
    }

    fn snapshot(&mut self, target: &Target, name: &SnapshotName, live: bool) -> Result<Effect, DriverError> {
        let state = self.ours(target)?.state;
        if matches!(state, InstanceState::Running) && !live {
            let reason = "it runs, and snapshots are taken of what is down".to_owned();
            return Err(DriverError::Failed { action: "snapshot", instance: target.instance.clone(), reason });
        }
        self.snapshots(target)?.insert(name.clone());
        Ok(Effect::None)
    }

    /// Gives an instance that is down its next incarnation.
    fn go_back(&mut self, target: &Target, name: &SnapshotName) -> Result<Effect, DriverError> {
        let known = self.snapshots(target)?.contains(name);
        let found = self.ours(target)?;
        if found.nonce.as_ref() == Some(&target.nonce) {
            return Ok(Effect::None);
        }
        let problem = match found.state {
            InstanceState::Running | InstanceState::Starting => "it runs".to_owned(),
            _ if !known => format!("there is no snapshot `{name}`"),
            _ => {
                found.nonce = Some(target.nonce.clone());
                return Ok(Effect::None);
            }
        };
        Err(DriverError::Failed { action: "restore", instance: target.instance.clone(), reason: problem })
    }

    /// An instance as a listing shows it: one that is not yet made shows no nonce.
    fn shown(&self, instance: &Instance) -> Instance {
        let visible = self.nonces == NonceSight::Listed && instance.state != InstanceState::Starting;
        let nonce = instance.nonce.clone().filter(|_| visible);
        let snapshots = visible.then(|| self.snapshots.get(&instance.name).cloned().unwrap_or_default());
        Instance { nonce, snapshots, ..instance.clone() }
    }
}

#[async_trait]
impl Driver for Fake {
    fn name(&self) -> DriverName {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    fn runtime(&self) -> Option<&Path> {
        self.program.as_deref()
    }

    async fn list(&self) -> Result<Vec<Instance>, DriverError> {
        self.call(Call::List, None, &[]).await?;
        let world = self.state();
        Ok(world.instances.values().map(|instance| world.shown(instance)).collect())
    }

    async fn create(&self, order: &CreateOrder) -> Result<(), DriverError> {
        let sizes = self.capabilities.sizes.then_some(order.sizes);
        let make = |world: &mut State| {
            if let Base::Snapshot(source, name) = &order.base {
                let only_down = self.capabilities.clones != CloneSupport::Snapshots;
                let runs = world.ours(source)?.state != InstanceState::Stopped;
                let reason = match world.snapshots(source)?.contains(name) {
                    false => Some(format!("instance `{}` has no snapshot `{name}`", source.instance)),
                    true if only_down && runs => Some(format!("instance `{}` is not down", source.instance)),
                    true => None,
                };
                if let Some(reason) = reason {
                    return Err(DriverError::Failed { action: "create", instance: order.instance.clone(), reason });
                }
            }
            self.check_mounts(&order.mounts)?;
            world.make(order, sizes)
        };
        let start = |world: &mut State| world.bring_up(Call::Create, &order.target(), &order.seed, &order.mounts);
        self.call(Call::Create, Some(&order.instance), &[&make, &start]).await
    }

    async fn describe(&self, instance: &InstanceName) -> Result<Description, DriverError> {
        self.call(Call::List, None, &[]).await?;
        let world = self.state();
        let found = world.instances.get(instance);
        let found = found.ok_or_else(|| DriverError::Missing { instance: instance.clone() })?;
        let mounts = world.mounts.get(instance).cloned().unwrap_or_default();
        Ok(Description { image: None, sizes: found.sizes, mounts })
    }

    async fn start(&self, target: &Target, seed: &Seed, mounts: &Mounts) -> Result<(), DriverError> {
        let start = |world: &mut State| {
            world.ours(target)?;
            self.check_seed(target, seed)?;
            self.check_mounts(mounts)?;
            world.bring_up(Call::Start, target, seed, mounts)
        };
        self.call(Call::Start, Some(&target.instance), &[&start]).await
    }

    async fn stop(&self, target: &Target) -> Result<(), DriverError> {
        let stop = |world: &mut State| world.bring_down(target);
        self.call(Call::Stop, Some(&target.instance), &[&stop]).await
    }

    async fn resize(&self, target: &Target, sizes: &Sizes) -> Result<(), DriverError> {
        let stop = |world: &mut State| match (self.capabilities.sizes, self.capabilities.resize_running) {
            (false, _) => {
                let what = "give an instance sizes".to_owned();
                Err(DriverError::Unsupported { driver: self.name, what })
            }
            (true, true) => world.ours(target).map(|_| Effect::None),
            (true, false) => world.bring_down(target),
        };
        let resize = |world: &mut State| {
            world.ours(target)?.sizes = Some(*sizes);
            Ok(Effect::None)
        };
        self.call(Call::Resize, Some(&target.instance), &[&stop, &resize]).await
    }

    async fn destroy(&self, target: &Target) -> Result<(), DriverError> {
        let destroy = |world: &mut State| match world.ours(target) {
            Err(DriverError::Missing { .. }) => Ok(Effect::None),
            found => {
                let effect = went_down(found?);
                world.take(&target.instance);
                Ok(effect)
            }
        };
        self.call(Call::Destroy, Some(&target.instance), &[&destroy]).await
    }

    async fn snapshot(&self, target: &Target, name: &SnapshotName) -> Result<(), DriverError> {
        let live = match self.capabilities.snapshots {
            SnapshotSupport::None => return Err(self.unsupported("take snapshots")),
            support => support == SnapshotSupport::Live,
        };
        let take = |world: &mut State| world.snapshot(target, name, live);
        self.call(Call::Snapshot, Some(&target.instance), &[&take]).await
    }

    async fn delete_snapshot(&self, target: &Target, name: &SnapshotName) -> Result<(), DriverError> {
        let delete = |world: &mut State| {
            world.snapshots(target)?.remove(name);
            Ok(Effect::None)
        };
        self.call(Call::DeleteSnapshot, Some(&target.instance), &[&delete]).await
    }

    async fn restore(
        &self,
        target: &Target,
        snapshot: &SnapshotName,
        seed: &Seed,
        mounts: &Mounts,
    ) -> Result<(), DriverError> {
        if self.capabilities.snapshots == SnapshotSupport::None {
            return Err(self.unsupported("take snapshots"));
        }
        let go_back = |world: &mut State| {
            world.ours(target)?;
            self.check_seed(target, seed)?;
            world.go_back(target, snapshot)
        };
        let start = |world: &mut State| world.bring_up(Call::Restore, target, seed, mounts);
        self.call(Call::Restore, Some(&target.instance), &[&go_back, &start]).await
    }

    async fn go_back(&self, target: &Target, snapshot: &SnapshotName, seed: &Seed) -> Result<(), DriverError> {
        if self.capabilities.snapshots == SnapshotSupport::None {
            return Err(self.unsupported("take snapshots"));
        }
        let go_back = |world: &mut State| {
            world.ours(target)?;
            self.check_seed(target, seed)?;
            world.go_back(target, snapshot)
        };
        self.call(Call::Restore, Some(&target.instance), &[&go_back]).await
    }

    async fn snapshot_sizes(&self, target: &Target) -> Result<BTreeMap<SnapshotName, ByteSize>, DriverError> {
        let mut world = self.state();
        Ok(world.snapshots(target)?.iter().map(|name| (name.clone(), SNAPSHOT_SIZE)).collect())
    }

    async fn suspend(&self, target: &Target) -> Result<(), DriverError> {
        if !self.capabilities.suspend {
            return Err(self.unsupported("suspend machines"));
        }
        let suspend = |world: &mut State| {
            let found = world.ours(target)?;
            let effect = went_down(found);
            if found.state == InstanceState::Running {
                found.state = InstanceState::Suspended;
            }
            Ok(effect)
        };
        self.call(Call::Suspend, Some(&target.instance), &[&suspend]).await
    }

    async fn prove(&self, instance: &InstanceName) -> Result<Option<Nonce>, DriverError> {
        self.call(Call::Prove, Some(instance), &[]).await?;
        let world = self.state();
        let found = world.instances.get(instance);
        let found = found.ok_or_else(|| DriverError::Missing { instance: instance.clone() })?;
        Ok(found.nonce.clone().filter(|_| world.nonces != NonceSight::Hidden))
    }

    async fn challenge(&self, target: &Target, challenge: &Secret) -> Result<Witness, DriverError> {
        let Some(hook) = self.state().on_challenge.clone() else {
            return Err(self.unsupported("reach into its machines"));
        };
        let runs = |world: &mut State| world.running(Call::Challenge, target);
        self.call(Call::Challenge, Some(&target.instance), &[&runs]).await?;
        Ok(hook(&target.instance, challenge))
    }

    async fn reseed(&self, target: &Target, seed: &Seed) -> Result<(), DriverError> {
        let Some(hook) = self.state().on_reseed.clone() else {
            return Err(self.unsupported("give a machine that runs another seed"));
        };
        let runs = |world: &mut State| {
            self.check_seed(target, seed)?;
            world.running(Call::Reseed, target)
        };
        self.call(Call::Reseed, Some(&target.instance), &[&runs]).await?;
        hook(seed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use vm_agent_schemas::fleet::Mount;

    use super::*;
    use crate::contract::{self, Look, an_order};

    fn a_fake() -> Fake {
        Fake::new(DriverName::Multipass, Fake::capabilities_default())
    }

    /// A fake on a host of its own.
    struct Ground {
        fake: Fake,
        host: tempfile::TempDir,
    }

    impl Ground {
        fn new(capabilities: Capabilities, sight: NonceSight) -> Self {
            let fake = Fake::new(DriverName::Qemu, capabilities);
            fake.show_nonces(sight);
            fake.folders_are_real();
            Self { fake, host: tempfile::tempdir().unwrap() }
        }
    }

    #[async_trait]
    impl contract::World for Ground {
        async fn crash(&self, instance: &InstanceName) {
            self.fake.crash(instance.as_str());
        }

        fn folder(&self) -> PathBuf {
            tempfile::tempdir_in(&self.host).unwrap().keep()
        }

        async fn read(&self, instance: &InstanceName, path: &str) -> Look {
            let mounts = self.fake.mounts(instance.as_str()).unwrap_or_default();
            let inside = |(target, mount): (&String, &Mount)| {
                let rest = Path::new(path).strip_prefix(target).ok()?;
                std::fs::read_to_string(mount.source.join(rest)).ok()
            };
            mounts.iter().find_map(inside).map_or(Look::Absent, Look::Content)
        }
    }

    /// Waits until the deadline of a caller who gives up.
    async fn given_up<T>(call: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_secs(60), call).await.is_err()
    }

    #[tokio::test]
    async fn the_fake_keeps_the_contract_with_all_capabilities() {
        let running = Capabilities { resize_running: true, ..Fake::capabilities_default() };
        let sizeless = Capabilities { sizes: false, ..Fake::capabilities_default() };
        let mountless = Capabilities { mounts: MountSupport::None, ..Fake::capabilities_default() };
        let base = Fake::capabilities_default();
        let (support, clones) = (SnapshotSupport::Down, CloneSupport::Down);
        let down = Capabilities { snapshots: support, clones, ..base.clone() };
        let (support, clones) = (SnapshotSupport::Live, CloneSupport::Snapshots);
        let live = Capabilities { snapshots: support, clones, suspend: true, warm: true, ..base.clone() };
        for capabilities in [base, running, sizeless, mountless, down, live] {
            for sight in [NonceSight::Listed, NonceSight::Proved, NonceSight::Hidden] {
                for check in contract::CHECKS {
                    let ground = Ground::new(capabilities.clone(), sight);
                    check.run(&ground.fake, &ground).await;
                    assert_eq!(ground.fake.under_way(), 0, "{}", check.name);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_launch_that_times_out_may_yet_succeed() {
        let (fake, order) = (a_fake(), an_order("web"));
        fake.script(On::create("web").once(), Behaviour::HangAfterEffect);
        assert!(given_up(fake.create(&order)).await);
        assert_eq!(fake.list().await.unwrap()[0].state, InstanceState::Running);
        fake.create(&order).await.unwrap();
        assert_eq!(fake.calls_on(Call::Create, "web"), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_does_nothing_and_counts_until_it_is_given_up() {
        let (fake, order) = (a_fake(), an_order("web"));
        fake.script(On::create("web"), Behaviour::Hang);
        {
            let mut call = std::pin::pin!(fake.create(&order));
            assert!(given_up(&mut call).await);
            assert_eq!(fake.under_way(), 1);
        }
        assert_eq!((fake.under_way(), fake.most_under_way()), (0, 1));
        assert_eq!(fake.instances(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_passes_on_the_tests_clock() {
        let (fake, order) = (a_fake(), an_order("web"));
        fake.script(On::every(Call::Create), Behaviour::Delay(Duration::from_secs(30)));
        let begun = tokio::time::Instant::now();
        fake.create(&order).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_half_made_instance_shows_no_nonce_and_is_finished_by_the_next_create() {
        let (fake, order) = (a_fake(), an_order("web"));
        fake.script(On::create("web").once(), Behaviour::HalfMake("no space left".into()));
        assert!(fake.create(&order).await.unwrap_err().to_string().contains("no space left"));
        let shown = fake.list().await.unwrap();
        assert_eq!((shown[0].state, &shown[0].nonce), (InstanceState::Starting, &None));
        fake.create(&order).await.unwrap();
        let shown = fake.list().await.unwrap();
        assert_eq!((shown[0].state, &shown[0].nonce), (InstanceState::Running, &Some(order.seed.nonce)));
    }

    #[tokio::test]
    async fn errors_are_as_scripted_and_a_listing_that_fails_shows_nothing() {
        let (fake, order) = (a_fake(), an_order("web"));
        fake.script(On::list().once(), Behaviour::Fail("the daemon is down".into()));
        assert!(matches!(fake.list().await, Err(DriverError::Unavailable { .. })));
        assert_eq!(fake.list().await.unwrap(), []);
        fake.script(On::create("web"), Behaviour::Unavailable("gone".into()));
        assert!(matches!(fake.create(&order).await, Err(DriverError::Unavailable { .. })));
        fake.clear_script();
        fake.script(On::create("web"), Behaviour::FailAfterEffect("timed out waiting".into()));
        assert!(matches!(fake.create(&order).await, Err(DriverError::Failed { .. })));
        assert_eq!(fake.instances().len(), 1);
        assert_eq!(fake.mutating_calls(), 2);
    }

    #[tokio::test]
    async fn the_world_can_be_changed_behind_the_controllers_back() {
        let (fake, order) = (a_fake(), an_order("web"));
        let name: InstanceName = "web".parse().unwrap();
        fake.put(Instance { name, state: InstanceState::Unknown, nonce: None, sizes: None, snapshots: None });
        assert!(matches!(fake.create(&order).await, Err(DriverError::Foreign { .. })));
        fake.remove("web");
        fake.create(&order).await.unwrap();
        fake.tombstone("web");
        assert_eq!(fake.list().await.unwrap()[0].state, InstanceState::Deleted);
        assert!(matches!(
            fake.start(&order.target(), &order.seed, &order.mounts).await,
            Err(DriverError::Failed { .. })
        ));
        fake.destroy(&order.target()).await.unwrap();
        assert_eq!(fake.instances(), []);
    }

    #[tokio::test]
    async fn what_an_instance_was_last_started_with_is_remembered_while_it_exists() {
        let (fake, mut order) = (a_fake(), an_order("web"));
        let mounts = Mounts::from([("src".to_owned(), Mount { source: "/made/up".into(), writable: false })]);
        order.mounts = mounts.clone();
        assert_eq!(fake.mounts("web"), None);
        fake.create(&order).await.unwrap();
        fake.start(&order.target(), &order.seed, &Mounts::new()).await.unwrap();
        assert_eq!(fake.mounts("web"), Some(mounts), "a start of what runs changes nothing");
        fake.stop(&order.target()).await.unwrap();
        fake.start(&order.target(), &order.seed, &Mounts::new()).await.unwrap();
        assert_eq!(fake.mounts("web"), Some(Mounts::new()));
        fake.destroy(&order.target()).await.unwrap();
        assert_eq!(fake.mounts("web"), None);
    }

    #[tokio::test]
    async fn hooks_are_told_of_every_machine_that_comes_up_or_goes_down() {
        let (fake, order) = (a_fake(), an_order("web"));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (up, down) = (Arc::clone(&told), Arc::clone(&told));
        fake.on_up(Arc::new(move |seed| up.lock().unwrap().push(format!("{} up", seed.agent))));
        fake.on_down(Arc::new(move |name| down.lock().unwrap().push(format!("{name} down"))));
        fake.create(&order).await.unwrap();
        fake.create(&order).await.unwrap();
        fake.crash("web");
        fake.stop(&order.target()).await.unwrap();
        fake.start(&order.target(), &order.seed, &order.mounts).await.unwrap();
        fake.destroy(&order.target()).await.unwrap();
        assert_eq!(*told.lock().unwrap(), ["web up", "web down", "web up", "web down"]);
    }
}
