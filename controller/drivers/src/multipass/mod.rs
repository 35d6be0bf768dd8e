//! Driver `multipass`: machines of Canonical's Multipass, by its command.
//!
//! ```text
//! <records>/<instance>.json       what is remembered of an instance of ours: Multipass keeps no notes
//! <records>/images/<instance>/    a copy of its image for it alone, while it is made, where it needs one ([`copies`])
//! ```
//!
//! The command is a thin client of a daemon that others use too. So nothing is ours but what a record says, which is
//! written before the launch; and once the machine is up it has to show the nonce that it was launched with
//! ([`guest`]). An instance without a record is never touched, whatever its name.
//!
//! A command that fails, or takes too long, says little about what it did: its daemon goes on. So what is believed is
//! the next list ([`sight`]), and every call goes on from whatever that shows ([`birth`], [`power`]). What a list shows
//! means different things for an instance that is up, one that was stopped and one that was being started
//! ([`record`]).
//!
//! A machine gets its runtime and its seed by programs that are run in it: there is no other way in, and no secret in
//! what it is launched with. It is reached by SSH, which is Multipass's business.
//!
//! The daemon carries out one change after the other, so this driver sends one at a time ([`lanes`]). It never empties
//! the bin, never says `--all`, and never changes a setting of the daemon: each would touch machines of others.

mod answer;
mod birth;
mod cli;
mod clones;
mod copies;
mod doctor;
mod guest;
mod inside;
mod lanes;
mod mounts;
mod network;
mod power;
mod record;
mod sight;
mod sizes;
mod snapshots;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::OnceCell;
use vm_agent_schemas::fleet::{DEFAULT_IMAGE, DriverName, Provision};
use vm_agent_schemas::guest::{FromGuest, MachineId, ToGuest, Witness};
use vm_agent_schemas::ids::{Nonce, Secret};
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{
    Capabilities, CloneSupport, Deadlines, Description, Instance, InstanceState, MountSupport, Sizes, SnapshotSupport,
};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Seed;

use self::answer::{State, Unreadable};
pub use self::answer::{Version, Versions};
pub use self::cli::Program;
use self::cli::{CALLS_VARIABLE, CallError, Said};
pub use self::doctor::{Health, health};
use self::guest::Guest;
pub use self::lanes::Lanes;
use self::power::missing;
use self::record::{Identity, Power, Record, Records};
use self::sight::{LIST_LIMIT, Seen, Sight};
use self::sizes::Audit;
use self::trouble::{Trouble, sentence};
use crate::hold::{Hold, Holds, blocking};
use crate::process::{Mark, sweep};
use crate::{Act, Base, CreateOrder, Driver, DriverError, Mounts, Target};

/// What is said of an instance in [`answer::State::Other`].
const UNCLEAR: &str = "Multipass lists it in a state that this version does not know";
/// How long a call may take that the daemon answers at once, unless it is busy.
const SHORT_LIMIT: Duration = Duration::from_secs(30);
/// Longer than the daemon itself waits for a machine whose power button was pressed.
const STOP_LIMIT: Duration = Duration::from_secs(330);
/// How long it may take to end a machine, and to delete it.
const FORCE_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to write a machine's memory.
const SUSPEND_LIMIT: Duration = Duration::from_secs(300);
/// How long a machine may take to show its nonce.
const PROOF_LIMIT: Duration = Duration::from_secs(30);
/// The variable that says how long a launch may take, such as `30m`.
const LAUNCH_VARIABLE: &str = "VM_AGENT_MULTIPASS_LAUNCH_LIMIT";

/// How long machines may take to come up, and how long what is known of them is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A launch, download and cloud-init included.
    pub launch: Duration,
    /// A start, until the machine lets its daemon in.
    pub start: Duration,
    /// From one look at the sizes of an instance to the next, at another's.
    pub audit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of_launch(Duration::from_secs(900))
    }
}

impl Limits {
    /// Those of this host: the usual ones, unless `VM_AGENT_MULTIPASS_LAUNCH_LIMIT` says how long a launch may take.
    #[must_use]
    pub fn of_host() -> Self {
        let Ok(said) = std::env::var(LAUNCH_VARIABLE) else { return Self::default() };
        match said.parse::<Span>().map(Span::get) {
            // The command counts in seconds, and a start has a part of them.
            Ok(launch) if launch >= Duration::from_secs(3) => Self::of_launch(launch),
            _ => {
                tracing::warn!("{LAUNCH_VARIABLE} is `{said}`, which is no duration from 3s on, such as `30m`");
                Self::default()
            }
        }
    }

    /// A start takes no download and no cloud-init.
    const fn of_launch(launch: Duration) -> Self {
        let whole = Duration::from_secs(launch.as_secs());
        Self { launch: whole, start: Duration::from_secs(whole.as_secs() / 3), audit: Duration::from_secs(600) }
    }
}

/// Makes the archive that brings the runtime into a machine, and what else it is to have.
pub type Kit = Arc<dyn Fn(&Provision) -> io::Result<Vec<u8>> + Send + Sync>;

/// Driver `multipass`. See the [module](self).
#[derive(Clone)]
pub struct Multipass {
    program: Program,
    /// Whether those are over that another life of the controller has left behind.
    former_calls: Arc<OnceCell<()>>,
    kit: Kit,
    records: Arc<Records>,
    sight: Arc<Sight>,
    lanes: Arc<Lanes>,
    holds: Holds,
    limits: Limits,
    audit: Arc<Audit>,
}

/// An instance that is held, with what is remembered of it.
struct Held<'a> {
    act: Act<'a>,
    hold: Hold,
    record: Record,
}

impl Held<'_> {
    fn name(&self) -> &str {
        self.act.1.as_str()
    }

    /// What is done with it can't be, for this reason.
    fn failed(&self, reason: &str) -> DriverError {
        self.act.failed(&io::Error::other(reason.to_owned()))
    }
}

/// Why a call of the command did not do what it was made for.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{said}")]
    Said { trouble: Trouble, code: Option<i32>, said: String },
    /// The same for all who waited for it.
    #[error(transparent)]
    Shared(Arc<Fault>),
}

impl Fault {
    /// What a call that failed came to.
    fn of(said: &Said) -> Self {
        Self::Said { trouble: Trouble::of(said), code: said.code, said: sentence(said) }
    }

    fn trouble(&self) -> Trouble {
        match self {
            Self::Shared(fault) => fault.trouble(),
            Self::Call(CallError::Late { .. }) => Trouble::Late,
            Self::Call(_) | Self::Unreadable(_) => Trouble::Other,
            Self::Said { trouble, .. } => *trouble,
        }
    }

    /// What it says, and what a person can do about it.
    fn told(&self) -> String {
        match self.trouble().remedy() {
            Some(remedy) => format!("{self}; {remedy}"),
            None => self.to_string(),
        }
    }

    /// Whether nobody answered in time.
    fn is_without_answer(&self) -> bool {
        match self {
            Self::Shared(fault) => fault.is_without_answer(),
            Self::Call(CallError::Late { .. }) => true,
            Self::Call(_) | Self::Unreadable(_) | Self::Said { .. } => false,
        }
    }

    /// Whether it is the command that gave up or was ended, and not its daemon, which goes on.
    fn is_clients(&self) -> bool {
        match self {
            Self::Shared(fault) => fault.is_clients(),
            Self::Call(CallError::Late { .. }) | Self::Said { code: Some(5) | None, .. } => true,
            Self::Call(_) | Self::Unreadable(_) | Self::Said { .. } => false,
        }
    }
}

impl Multipass {
    /// A driver that calls `program`, puts what `kit` makes into its machines, and keeps its records below `root`,
    /// which is made when first needed.
    #[must_use]
    pub fn new(root: PathBuf, program: Program, kit: Kit) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            program: program.with(CALLS_VARIABLE, &root),
            former_calls: Arc::default(),
            kit,
            records: Arc::new(Records::new(root)),
            sight: Arc::default(),
            lanes: Lanes::new(cpus),
            holds: Holds::default(),
            limits: Limits::default(),
            audit: Arc::default(),
        }
    }

    /// The same with other limits: whole seconds for what machines may take.
    #[must_use]
    pub const fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The command.
    #[must_use]
    pub fn program(&self) -> &Path {
        self.program.path()
    }

    /// Calls the command, and expects it to succeed.
    async fn call<A: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: &[A],
        stdin: Option<&[u8]>,
        limit: Duration,
    ) -> Result<Said, Fault> {
        let said = self.program.call(arguments, stdin, limit).await?;
        if said.code == Some(0) { Ok(said) } else { Err(Fault::of(&said)) }
    }

    /// All instances, as Multipass sees them from now on.
    async fn seen(&self) -> Result<Seen, Fault> {
        self.former_calls.get_or_init(|| self.end_former_calls()).await;
        let expects = || self.records.all().is_ok_and(|all| all.values().any(Record::is_known));
        self.sight.list(&self.program, expects).await
    }

    /// Ends what a controller that was killed left of its calls. They go on without it: one whose output nobody reads
    /// any more has been seen to keep a processor busy for ever.
    async fn end_former_calls(&self) {
        let mark = Mark::new(CALLS_VARIABLE, self.records.root());
        if let Err(error) = sweep(&Hold::of_nothing(), &mark).await {
            tracing::warn!(%error, "calls of Multipass that were begun before this controller are still there");
        }
    }

    /// The same for a call on an instance.
    async fn look(&self, act: Act<'_>) -> Result<Seen, DriverError> {
        match self.seen().await {
            Ok(seen) => Ok(seen),
            // Of a list that fails, nothing can be told about any instance.
            Err(fault) => {
                tracing::debug!(action = act.0, instance = %act.1, %fault, "no list");
                Err(self.unavailable(&fault))
            }
        }
    }

    fn guest<'a>(&'a self, instance: &'a InstanceName) -> Guest<'a> {
        Guest { program: &self.program, instance }
    }

    /// The daemon does not do its work.
    fn unavailable(&self, fault: &Fault) -> DriverError {
        if fault.trouble() == Trouble::Unreachable {
            self.lanes.stumble();
        }
        DriverError::Unavailable { driver: DriverName::Multipass, reason: self.told(fault) }
    }

    /// What a call on an instance failed by.
    fn trouble(&self, act: Act<'_>, fault: &Fault) -> DriverError {
        let was_never_made = matches!(fault, Fault::Call(CallError::Spawn { .. }));
        if was_never_made || fault.trouble().is_of_daemon() {
            return self.unavailable(fault);
        }
        act.failed(&io::Error::other(self.told(fault)))
    }

    /// What a call failed by, and what kept the daemon from answering it.
    fn told(&self, fault: &Fault) -> String {
        match self.lanes.busy() {
            Some(busy) if fault.is_without_answer() => format!("{}; its daemon is busy with `{busy}`", fault.told()),
            _ => fault.told(),
        }
    }

    /// Writes down what is known of an instance.
    async fn remember(&self, held: &Held<'_>) -> Result<(), DriverError> {
        let (records, name, record) = (Arc::clone(&self.records), held.act.1.clone(), held.record.clone());
        let put = held.hold.blocking(move || records.put(&name, &record)).await;
        put.map_err(|error| held.act.failed(&error))
    }

    /// Forgets an instance that is no more.
    async fn forget(&self, held: &Held<'_>) -> Result<(), DriverError> {
        let (records, name) = (Arc::clone(&self.records), held.act.1.clone());
        let removed = held.hold.blocking(move || records.remove(&name)).await;
        removed.map_err(|error| held.act.failed(&error))
    }

    /// The archive for an instance.
    async fn kit(&self, held: &Held<'_>) -> Result<Vec<u8>, DriverError> {
        let (kit, provision) = (Arc::clone(&self.kit), held.record.provision.clone());
        held.hold.blocking(move || kit(&provision)).await.map_err(|error| held.act.failed(&error))
    }

    /// What is remembered of an instance.
    async fn recall(&self, act: Act<'_>) -> Result<Option<Record>, DriverError> {
        let (records, name) = (Arc::clone(&self.records), act.1.clone());
        blocking(move || records.get(&name)).await.map_err(|error| act.failed(&error))
    }

    /// Holds an instance that is there, and checks that it is the one that is meant.
    async fn hold<'a>(&self, action: &'static str, target: &'a Target) -> Result<Held<'a>, DriverError> {
        let act = Act(action, &target.instance);
        let hold = self.holds.hold(&target.instance).await;
        let (seen, record) = (self.look(act).await?, self.recall(act).await?);
        let state = *seen.get(target.instance.as_str()).ok_or_else(|| missing(&target.instance))?;
        match record.filter(|record| target.is(&record.nonce)) {
            Some(record) => self.certain(Held { act, hold, record }, state).await,
            None => Err(DriverError::Foreign { instance: target.instance.clone() }),
        }
    }

    /// One that is held, and is no other.
    async fn certain<'a>(&self, mut held: Held<'a>, state: State) -> Result<Held<'a>, DriverError> {
        if held.record.identity == Identity::Doubtful {
            self.recognise_again(&mut held, state).await?;
        }
        Ok(held)
    }

    /// Holds the instance of an order, and writes down that it is ours where its name is free.
    async fn hold_for<'a>(&self, order: &'a CreateOrder) -> Result<Held<'a>, DriverError> {
        let act = Act("create", &order.instance);
        let hold = self.holds.hold(&order.instance).await;
        let (seen, known) = (self.look(act).await?, self.recall(act).await?);
        let state = seen.get(order.instance.as_str());
        let is_ours = known.as_ref().is_some_and(|record| record.nonce == order.seed.nonce);
        match (known, state) {
            (Some(record), Some(&state)) if is_ours => return self.certain(Held { act, hold, record }, state).await,
            (None, Some(State::Deleted)) => {
                let name = &order.instance;
                let reason = format!(
                    "a deleted instance that is not ours keeps that name; `multipass recover {name}` brings it back, \
                     `multipass delete --purge {name}` frees the name"
                );
                return Err(act.failed(&io::Error::other(reason)));
            }
            (_, Some(_)) => return Err(DriverError::Foreign { instance: order.instance.clone() }),
            (Some(record), None) if !is_ours => {
                if self.is_being_made(act, &record).await? {
                    return Err(DriverError::Foreign { instance: order.instance.clone() });
                }
            }
            // A launch that was given up, perhaps: the next one finds out.
            (Some(record), None) => {
                let mut held = Held { act, hold, record };
                held.record.identity = Identity::Unasked;
                return Ok(held);
            }
            (None, None) => {}
        }
        Ok(Held { act, hold, record: Record::of(order) })
    }

    /// What the driver shows of an instance.
    fn show(
        &self,
        name: &InstanceName,
        state: State,
        record: Option<&Record>,
        now: Timestamp,
    ) -> (InstanceState, Option<Nonce>) {
        let ours = record.filter(|record| record.identity != Identity::Doubtful);
        let Some(record) = ours else { return (Power::Down.shows(state, false, now), None) };
        let held = self.holds.try_hold(name).is_none();
        (record.power.shows(state, held, now), record.is_known().then(|| record.nonce.clone()))
    }

    /// Instances of ours that are being made for calls that nobody waits for any more. Until their image is ready no
    /// list of Multipass shows them.
    async fn unseen(
        &self,
        seen: &Seen,
        records: &BTreeMap<InstanceName, Record>,
        now: Timestamp,
    ) -> Result<Vec<Instance>, DriverError> {
        let mut unseen = Vec::new();
        for (name, record) in records {
            let may_be_made = record.power.is_under_way(now) && !seen.contains_key(name.as_str());
            if !may_be_made || self.holds.try_hold(name).is_none() {
                continue;
            }
            if self.is_being_made(Act("look at", name), record).await? {
                let (state, name) = (InstanceState::Starting, name.clone());
                unseen.push(Instance { name, state, nonce: None, sizes: None, snapshots: None });
            }
        }
        Ok(unseen)
    }

    /// Notes that names are free that instances of ours had: whoever has one of them after this is another.
    async fn note_the_gone(&self, seen: &Seen) -> io::Result<()> {
        let known = self.records.all()?;
        for (name, record) in known {
            if !record.may_be_lost() || seen.contains_key(name.as_str()) {
                continue;
            }
            let Some(hold) = self.holds.try_hold(&name) else { continue };
            let records = Arc::clone(&self.records);
            hold.blocking(move || match records.get(&name)? {
                Some(record) if record.may_be_lost() => {
                    records.put(&name, &Record { identity: Identity::Doubtful, ..record })
                }
                _ => Ok(()),
            })
            .await?;
        }
        Ok(())
    }
}

impl Record {
    /// That of an instance that is about to be made.
    fn of(order: &CreateOrder) -> Self {
        Self {
            nonce: order.seed.nonce.clone(),
            birth: order.seed.nonce.clone(),
            machine_id: MachineId::generate(),
            sizes: order.sizes,
            provision: order.provision.clone(),
            provisioned: false,
            identity: Identity::Unasked,
            given: order.seed.nonce.clone(),
            power: Power::Down,
            adopting: false,
            has_mounts: false,
            snapshots: BTreeMap::new(),
            dropped: BTreeSet::new(),
            copy_of: None,
        }
    }
}

/// The image of an order, as an argument; nothing for the one that Multipass takes by itself.
fn image(order: &CreateOrder) -> Result<Option<String>, DriverError> {
    let image = match &order.base {
        Base::Image(image) => image,
        Base::Existing | Base::Snapshot(..) => return Ok(None),
    };
    match image.trim() {
        DEFAULT_IMAGE | "" => Ok(None),
        option if option.starts_with('-') => {
            let reason = format!("`{option}` is no image; `multipass find` lists those that there are");
            Err(Act("create", &order.instance).failed(&io::Error::other(reason)))
        }
        path if path.starts_with('/') => Ok(Some(format!("file://{path}"))),
        image => Ok(Some(image.to_owned())),
    }
}

/// Multipass makes an instance of this name a special one.
fn check_name(instance: &InstanceName) -> Result<(), DriverError> {
    if instance.as_str() != "primary" {
        return Ok(());
    }
    let reason = "Multipass gives an instance of this name the user's home; name the agent otherwise";
    Err(Act("create", instance).failed(&io::Error::other(reason)))
}

/// The new seed of a start or restore has to be that of the instance.
fn check_seed(held: &Held<'_>, target: &Target, seed: &Seed) -> Result<(), DriverError> {
    if seed.nonce == target.nonce { Ok(()) } else { Err(held.failed("its new seed is that of another instance")) }
}

#[async_trait]
impl Driver for Multipass {
    fn name(&self) -> DriverName {
        DriverName::Multipass
    }

    fn capabilities(&self) -> Capabilities {
        let version = self.sight.versions().map(|versions| versions.common());
        let has_snapshots = version.is_none_or(Version::has_snapshots);
        Capabilities {
            sizes: true,
            images: true,
            resize_running: false,
            suspend: true,
            snapshots: if has_snapshots { SnapshotSupport::Down } else { SnapshotSupport::None },
            clones: if version.is_none_or(Version::has_clones) { CloneSupport::Down } else { CloneSupport::None },
            warm: false,
            labels: false,
            mounts: MountSupport::Writable,
            uses_host: true,
            // Calls do. But what a record says was begun is gone on with, and meanwhile shown as what it is.
            calls_outlive_controller: false,
            lanes: self.lanes.steps(),
            host_address: network::host_address(version),
            deadlines: Deadlines {
                // As long as a list may take, and a second one where the first says that there is nothing.
                list: Span::from_secs(2 * LIST_LIMIT.as_secs() + 30),
                // A download, a boot and packages; and again, after it had to be ended by force.
                create: Span::from_secs((45 * 60).max(3 * self.limits.launch.as_secs())),
                // A boot, one by force after it, and the way of the runtime into it.
                start: Span::from_secs((15 * 60).max(3 * self.limits.start.as_secs())),
                // All that a machine that does not listen is given, for each that waits in the lane.
                stop: Span::from_secs(15 * 60),
                resize: Span::from_secs(15 * 60),
                // A kill, and its disk; it may wait for another that is being stopped.
                destroy: Span::from_secs(10 * 60),
                snapshot: Span::from_secs(10 * 60),
                // The way back, and a start.
                restore: Span::from_secs(20 * 60),
                // The machine is up, and its runtime has been started in it.
                connect: Span::from_secs(90),
            },
        }
    }

    fn network(&self) -> Option<IpAddr> {
        network::bridge(self.sight.versions().map(|versions| versions.common()))
    }

    async fn list(&self) -> Result<Vec<Instance>, DriverError> {
        let seen = self.seen().await.map_err(|fault| self.unavailable(&fault))?;
        let unreadable = |error: io::Error| DriverError::Unavailable {
            driver: DriverName::Multipass,
            reason: format!("what is remembered of its instances can't be had: {error}"),
        };
        self.note_the_gone(&seen).await.map_err(unreadable)?;
        let records = self.records.all().map_err(unreadable)?;
        self.audit_sizes(&records);
        let snapshots = self.sight.snapshots(&self.program).await.unwrap_or_else(|fault| {
            tracing::warn!(%fault, "the snapshots of Multipass can't be listed");
            None
        });
        let now = Timestamp::now();
        // Names that no instance of ours can have are nobody's business.
        let named = seen.iter().filter_map(|(name, state)| Some((name.parse::<InstanceName>().ok()?, *state)));
        let instance = |(name, state): (InstanceName, State)| {
            let record = records.get(&name);
            let (state, nonce) = self.show(&name, state, record, now);
            let mut taken = snapshots.as_ref().map(|all| all.get(name.as_str()).cloned().unwrap_or_default());
            if let (Some(taken), Some(record)) = (&mut taken, record) {
                taken.retain(|snapshot| !record.dropped.contains(snapshot));
            }
            let sizes = record.filter(|record| record.is_known()).map(|record| record.sizes);
            Instance { name, state, nonce, sizes, snapshots: taken }
        };
        let unseen = self.unseen(&seen, &records, now).await?;
        Ok(named.map(instance).chain(unseen).collect())
    }

    async fn create(&self, order: &CreateOrder) -> Result<(), DriverError> {
        image(order)?;
        check_name(&order.instance)?;
        mounts::check(&order.instance, &order.mounts)?;
        if order.base == Base::Existing {
            let mut held = self.hold_existing(order).await?;
            let taken_over = self.bring_up(&mut held, None, &order.seed, &order.mounts).await;
            if held.record.adopting && matches!(taken_over, Err(DriverError::Foreign { .. })) {
                // It says that it is another controller's.
                self.forget(&held).await?;
            }
            return taken_over;
        }
        let mut held = self.hold_for(order).await?;
        if let Err(error) = self.sweep_copies(&held).await {
            tracing::warn!(%error, "a copy of an image is left behind");
        }
        self.bring_up(&mut held, Some(order), &order.seed, &order.mounts).await
    }

    async fn start(&self, target: &Target, seed: &Seed, mounts: &Mounts) -> Result<(), DriverError> {
        let mut held = self.hold("start", target).await?;
        check_seed(&held, target, seed)?;
        mounts::check(&target.instance, mounts)?;
        if held.record.power == Power::Up && self.state(&held).await? == State::Running {
            return Ok(());
        }
        self.bring_up(&mut held, None, seed, mounts).await
    }

    async fn stop(&self, target: &Target) -> Result<(), DriverError> {
        let mut held = self.hold("stop", target).await?;
        self.bring_down(&mut held).await
    }

    async fn resize(&self, target: &Target, sizes: &Sizes) -> Result<(), DriverError> {
        let mut held = self.hold("resize", target).await?;
        self.bring_down(&mut held).await?;
        self.give_sizes(&mut held, *sizes).await
    }

    async fn destroy(&self, target: &Target) -> Result<(), DriverError> {
        let act = Act("destroy", &target.instance);
        match self.hold(act.0, target).await {
            Ok(mut held) => return self.purge(&mut held).await,
            Err(DriverError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        let hold = self.holds.hold(&target.instance).await;
        let Some(record) = self.recall(act).await?.filter(|record| target.is(&record.nonce)) else { return Ok(()) };
        let mut held = Held { act, hold, record };
        if held.record.power.is_under_way(Timestamp::now()) {
            self.until_nobody_makes_it(&held).await?;
        }
        match self.look(act).await?.contains_key(held.name()) {
            true => self.purge(&mut held).await,
            false => self.forget(&held).await,
        }
    }

    async fn snapshot(&self, target: &Target, name: &SnapshotName) -> Result<(), DriverError> {
        let mut held = self.hold("take a snapshot of", target).await?;
        self.take(&mut held, name).await
    }

    async fn delete_snapshot(&self, target: &Target, name: &SnapshotName) -> Result<(), DriverError> {
        let mut held = self.hold("delete a snapshot of", target).await?;
        self.drop_snapshot(&mut held, name).await
    }

    async fn restore(
        &self,
        target: &Target,
        snapshot: &SnapshotName,
        seed: &Seed,
        mounts: &Mounts,
    ) -> Result<(), DriverError> {
        let mut held = self.hold("restore", target).await?;
        check_seed(&held, target, seed)?;
        mounts::check(&target.instance, mounts)?;
        if held.record.nonce != target.nonce {
            self.put_back(&mut held, target, snapshot).await?;
        } else if held.record.power == Power::Up && self.state(&held).await? == State::Running {
            return Ok(());
        }
        self.bring_up(&mut held, None, seed, mounts).await
    }

    async fn go_back(&self, target: &Target, snapshot: &SnapshotName, seed: &Seed) -> Result<(), DriverError> {
        let mut held = self.hold("restore", target).await?;
        check_seed(&held, target, seed)?;
        if held.record.nonce == target.nonce {
            return Ok(());
        }
        self.put_back(&mut held, target, snapshot).await
    }

    async fn suspend(&self, target: &Target) -> Result<(), DriverError> {
        let mut held = self.hold("suspend", target).await?;
        self.put_to_sleep(&mut held).await
    }

    async fn describe(&self, instance: &InstanceName) -> Result<Description, DriverError> {
        self.description(instance).await
    }

    async fn challenge(&self, target: &Target, challenge: &Secret) -> Result<Witness, DriverError> {
        self.lay_challenge(target, challenge).await
    }

    async fn reseed(&self, target: &Target, seed: &Seed) -> Result<(), DriverError> {
        let held = self.hold("seed", target).await?;
        check_seed(&held, target, seed)?;
        self.seed_anew(&held, seed).await
    }

    async fn prove(&self, instance: &InstanceName) -> Result<Option<Nonce>, DriverError> {
        let act = Act("prove", instance);
        let _hold = self.holds.hold(instance).await;
        match self.look(act).await?.get(instance.as_str()) {
            None => return Err(missing(instance)),
            Some(State::Running) => {}
            // It would be started by being asked.
            Some(_) => return Ok(None),
        }
        let asked = tokio::time::timeout(PROOF_LIMIT, self.guest(instance).ask(|id| ToGuest::Prove { id })).await;
        Ok(match asked {
            Ok(Ok(FromGuest::Proof(proof))) => proof.nonce,
            _ => None,
        })
    }
}
