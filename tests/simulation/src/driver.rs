//! Drivers and the machines that they make. A call has a fate, drawn when it is made: whether and when it
//! takes effect, and whether and when it is answered.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use vm_agent_daemon::engine::job::Work;
use vm_agent_drivers::fake::Fake;
use vm_agent_drivers::{DriverError, Target};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::{InstanceName, SnapshotName};
use vm_agent_schemas::observe::{Capabilities, Instance, InstanceState, Sizes, SnapshotSupport};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Seed;

use crate::clock::{Millis, SECOND};
use crate::runtime::Runtime;

/// Where a driver lets nonces be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// In listings, and when asked to prove.
    Listed,
    /// Only when asked to prove.
    Proved,
    /// Nowhere.
    Hidden,
}

/// A machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What it is doing.
    pub state: InstanceState,
    /// What it was made with; nothing for somebody else's.
    pub nonce: Option<Nonce>,
    /// Its sizes.
    pub sizes: Sizes,
    /// Whether its driver can't say what it is doing.
    pub dim: bool,
    /// It was made after the moment until which, by a clock that has jumped, anybody could expect it.
    pub unexpected: bool,
    /// What runs in it, or would.
    pub runtime: Option<Runtime>,
    /// Its snapshots.
    pub snapshots: BTreeSet<SnapshotName>,
}

/// What a call asks for.
#[derive(Debug, Clone)]
pub enum Asked {
    /// Make this machine and start it.
    Create(Seed, Sizes),
    /// Start it with this seed.
    Start(Seed),
    /// Stop it.
    Stop,
    /// Give it these sizes.
    Resize(Sizes),
    /// Delete it.
    Destroy,
    /// Take a snapshot of it.
    Snapshot(SnapshotName),
    /// Delete a snapshot of it.
    DeleteSnapshot(SnapshotName),
    /// Bring it back to a snapshot with this seed, and start it where that is said.
    Restore(SnapshotName, Seed, bool),
    /// Save its memory and stop it.
    Suspend,
}

impl Asked {
    /// What a step asks for.
    #[must_use]
    pub fn of(work: &Work) -> Self {
        match work {
            Work::Create(order) => Self::Create(order.seed.clone(), order.sizes),
            Work::Start(seed, _) => Self::Start(seed.as_ref().clone()),
            Work::Stop => Self::Stop,
            Work::Resize(sizes) => Self::Resize(*sizes),
            Work::Destroy => Self::Destroy,
            Work::Snapshot(name) => Self::Snapshot(name.clone()),
            Work::DeleteSnapshot(name) => Self::DeleteSnapshot(name.clone()),
            Work::Restore(name, seed, up) => Self::Restore(name.clone(), seed.as_ref().clone(), up.is_some()),
            Work::Suspend => Self::Suspend,
        }
    }
}

/// A call under way.
#[derive(Debug, Clone)]
pub struct Call {
    /// What it is about.
    pub target: Target,
    /// What it asks for.
    pub asked: Asked,
    /// How often the clock on the wall had jumped when it was made.
    pub jumps: u64,
    /// Whether somebody waits for its answer.
    pub waited_for: bool,
    /// Its fate.
    pub fate: Fate,
}

impl Call {
    /// Whether it may still have an effect although nobody waits for it.
    #[must_use]
    pub fn goes_on(&self, now: Millis) -> bool {
        let Fate { half, effect, .. } = self.fate;
        !self.waited_for && half.into_iter().chain(effect).any(|at| at > now)
    }
}

/// What becomes of a call.
#[derive(Debug, Clone)]
pub struct Fate {
    /// When it has half of its effect: a machine that is made, and not started.
    pub half: Option<Millis>,
    /// When it has all of it.
    pub effect: Option<Millis>,
    /// When it is answered, and whether it says that it failed.
    pub answer: Option<(Millis, bool)>,
}

/// A call that somebody else carries out.
#[derive(Debug, Clone)]
pub struct Begun {
    /// The call.
    pub call: u64,
    /// The life of the controller that waits for its answer.
    pub life: u64,
    /// The step of that life.
    pub job: u64,
    /// What it asks for.
    pub asked: Asked,
}

/// What an effect brought about.
#[derive(Debug, Default)]
pub struct Happened {
    /// A machine was made.
    pub made: bool,
    /// It went back to a snapshot.
    pub restored: bool,
    /// It came up.
    pub up: bool,
    /// It went down or was deleted.
    pub down: bool,
}

/// A driver.
#[derive(Debug)]
pub struct Driver {
    /// Its name.
    pub name: DriverName,
    /// What it can do and bear.
    pub capabilities: Capabilities,
    /// Where nonces can be seen.
    pub sight: Sight,
    /// Whether its listings show snapshots.
    pub shows_snapshots: bool,
    /// Its machines.
    pub machines: BTreeMap<InstanceName, Machine>,
    /// The names of all machines that it ever made.
    pub held: BTreeSet<InstanceName>,
    /// Calls under way.
    pub calls: BTreeMap<u64, Call>,
    /// It does not answer before this.
    pub out_until: Millis,
    /// Whether it hangs rather than says so.
    pub hangs: bool,
    /// The calls that are to be carried out by somebody else; nothing where what becomes of them is drawn.
    pub begun: Option<Vec<Begun>>,
}

impl Driver {
    /// A driver that can do this, and has no machines yet.
    #[must_use]
    pub const fn new(name: DriverName, capabilities: Capabilities, sight: Sight, shows_snapshots: bool) -> Self {
        Self {
            name,
            capabilities,
            sight,
            shows_snapshots,
            machines: BTreeMap::new(),
            held: BTreeSet::new(),
            calls: BTreeMap::new(),
            out_until: 0,
            hangs: false,
            begun: None,
        }
    }

    /// A driver with abilities and limits as they come.
    #[must_use]
    pub fn draw(name: DriverName, rng: &mut Rng) -> Self {
        let mut capabilities = Fake::capabilities_default();
        capabilities.sizes = rng.u8(..8) != 0;
        capabilities.images = rng.u8(..8) != 0;
        capabilities.resize_running = rng.u8(..4) == 0;
        capabilities.calls_outlive_controller = rng.bool();
        capabilities.suspend = rng.u8(..4) == 0;
        capabilities.snapshots = match rng.u8(..4) {
            0 => SnapshotSupport::None,
            1 => SnapshotSupport::Down,
            _ => SnapshotSupport::Live,
        };
        capabilities.lanes = rng.u32(1..=4);
        let limit = |rng: &mut Rng| Span::from_secs(rng.u64(10..=60));
        capabilities.deadlines.list = Span::from_secs(rng.u64(3..=10));
        capabilities.deadlines.create = limit(rng);
        capabilities.deadlines.start = limit(rng);
        capabilities.deadlines.stop = limit(rng);
        capabilities.deadlines.resize = limit(rng);
        capabilities.deadlines.destroy = limit(rng);
        capabilities.deadlines.snapshot = limit(rng);
        capabilities.deadlines.restore = limit(rng);
        capabilities.deadlines.connect = limit(rng);
        let sight = match rng.u8(..4) {
            0 => Sight::Hidden,
            1 => Sight::Proved,
            _ => Sight::Listed,
        };
        Self::new(name, capabilities, sight, rng.bool())
    }

    /// Draws what becomes of a call that may take that long, made now. In a calm world all goes well.
    #[must_use]
    pub fn fate(&self, asked: &Asked, now: Millis, limit: Millis, calm: bool, rng: &mut Rng) -> Fate {
        let soon = now + rng.u64(20..(limit / 2).min(8 * SECOND));
        let half = |at: Millis| matches!(asked, Asked::Create(..) | Asked::Restore(..)).then_some(now + (at - now) / 2);
        let well = Fate { half: half(soon), effect: Some(soon), answer: Some((soon + rng.u64(1..200), false)) };
        if calm || rng.u8(..100) < 70 {
            return well;
        }
        let late = now + rng.u64(limit / 2..limit);
        let nothing = Fate { half: None, effect: None, answer: None };
        match rng.u8(..7) {
            0 => Fate { answer: Some((soon, true)), ..nothing },
            1 => nothing,
            // It times out, and yet succeeds.
            2 => Fate { half: half(late), effect: Some(late), answer: None },
            // It takes nearly as long as it may.
            3 => Fate { half: half(late), effect: Some(late), answer: Some((late, false)) },
            // It does what it should, and says that it failed.
            4 => Fate { answer: Some((soon + 50, true)), ..well },
            // It does half of it.
            5 => Fate { half: half(soon), effect: None, answer: Some((soon, true)) },
            // It takes effect, and the answer is lost.
            _ => Fate { answer: None, ..well },
        }
    }

    /// What a listing shows.
    #[must_use]
    pub fn list(&self) -> Vec<Instance> {
        let shown = |(name, machine): (&InstanceName, &Machine)| {
            let whole = machine.state != InstanceState::Starting;
            let nonce = machine.nonce.clone().filter(|_| self.sight == Sight::Listed && whole);
            // Somebody else's machine has a nonce of its own where this driver reads them.
            let other = (machine.nonce.is_none() && self.sight == Sight::Listed).then(|| Nonce::from_text("foreign"));
            Instance {
                name: name.clone(),
                state: if machine.dim { InstanceState::Unknown } else { machine.state },
                nonce: nonce.or(other),
                sizes: self.capabilities.sizes.then_some(machine.sizes),
                snapshots: self.shows_snapshots.then(|| machine.snapshots.clone()),
            }
        };
        self.machines.iter().map(shown).collect()
    }

    /// What the driver reads back from inside a machine.
    #[must_use]
    pub fn prove(&self, instance: &InstanceName) -> Option<Nonce> {
        let machine = self.machines.get(instance).filter(|_| self.sight != Sight::Hidden)?;
        Some(machine.nonce.clone().unwrap_or_else(|| Nonce::from_text("foreign")))
    }

    /// What keeps a call from having an effect.
    ///
    /// # Errors
    /// When the machine is not there, or is not the one that is meant.
    pub fn check(&self, call: &Call) -> Result<(), DriverError> {
        let instance = call.target.instance.clone();
        match self.machines.get(&instance) {
            Some(machine) if !machine.nonce.as_ref().is_some_and(|nonce| call.target.is(nonce)) => {
                Err(DriverError::Foreign { instance })
            }
            None if !matches!(call.asked, Asked::Create(..) | Asked::Destroy) => Err(DriverError::Missing { instance }),
            Some(Machine { state: InstanceState::Deleted, .. }) if !matches!(call.asked, Asked::Destroy) => {
                let reason = "it is deleted and still holds its name".to_owned();
                Err(DriverError::Failed { action: "change", instance, reason })
            }
            Some(machine) => match self.obstacle(machine, call) {
                Some(reason) => Err(DriverError::Failed { action: "change", instance, reason: reason.to_owned() }),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// What of a machine's state keeps a call from having an effect.
    fn obstacle(&self, machine: &Machine, call: &Call) -> Option<&'static str> {
        let runs = matches!(machine.state, InstanceState::Running | InstanceState::Starting);
        let arrived = machine.nonce.as_ref() == Some(&call.target.nonce);
        match &call.asked {
            Asked::Snapshot(_) if runs && self.capabilities.snapshots != SnapshotSupport::Live => Some("it runs"),
            Asked::Restore(..) if arrived => None,
            Asked::Restore(..) if runs => Some("it runs"),
            Asked::Restore(name, ..) if !machine.snapshots.contains(name) => Some("there is no such snapshot"),
            _ => None,
        }
    }

    /// Lets a call have its effect, or half of it.
    pub fn take_effect(&mut self, call: &Call, whole: bool, rng: &mut Rng) -> Happened {
        let mut happened = Happened::default();
        if self.check(call).is_err() {
            return happened;
        }
        let name = &call.target.instance;
        match &call.asked {
            Asked::Create(seed, sizes) => {
                if !self.machines.contains_key(name) {
                    let runtime = Some(Runtime::new(seed.clone(), rng));
                    let nonce = Some(seed.nonce.clone());
                    let state = InstanceState::Starting;
                    let machine = Machine {
                        state,
                        nonce,
                        sizes: *sizes,
                        dim: false,
                        unexpected: false,
                        runtime,
                        snapshots: BTreeSet::new(),
                    };
                    self.machines.insert(name.clone(), machine);
                    self.held.insert(name.clone());
                    happened.made = true;
                }
                happened.up = whole && self.bring_up(name, seed);
            }
            Asked::Start(seed) => happened.up = self.bring_up(name, seed),
            Asked::Stop => happened.down = self.bring_down(name),
            Asked::Resize(sizes) => {
                if !self.capabilities.resize_running {
                    happened.down = self.bring_down(name);
                }
                if let Some(machine) = self.machines.get_mut(name) {
                    machine.sizes = *sizes;
                }
            }
            Asked::Destroy => happened.down = self.machines.remove(name).is_some(),
            Asked::Snapshot(snapshot) => self.change_snapshots(name, |all| all.insert(snapshot.clone())),
            Asked::DeleteSnapshot(snapshot) => self.change_snapshots(name, |all| all.remove(snapshot)),
            Asked::Restore(_, seed, up) => {
                if let Some(machine) = self.machines.get_mut(name).filter(|it| it.nonce.as_ref() != Some(&seed.nonce)) {
                    machine.nonce = Some(seed.nonce.clone());
                    machine.runtime = Some(Runtime::new(seed.clone(), rng));
                    happened.restored = true;
                }
                happened.up = *up && whole && self.bring_up(name, seed);
            }
            Asked::Suspend => {
                if let Some(machine) = self.machines.get_mut(name).filter(|it| it.state == InstanceState::Running) {
                    machine.state = InstanceState::Suspended;
                    happened.down = true;
                }
            }
        }
        happened
    }

    fn change_snapshots(&mut self, name: &InstanceName, change: impl FnOnce(&mut BTreeSet<SnapshotName>) -> bool) {
        if let Some(machine) = self.machines.get_mut(name) {
            change(&mut machine.snapshots);
        }
    }

    fn bring_up(&mut self, name: &InstanceName, seed: &Seed) -> bool {
        let Some(machine) = self.machines.get_mut(name).filter(|it| it.state != InstanceState::Running) else {
            return false;
        };
        machine.state = InstanceState::Running;
        if let Some(runtime) = &mut machine.runtime {
            runtime.seed = seed.clone();
        }
        true
    }

    fn bring_down(&mut self, name: &InstanceName) -> bool {
        let Some(machine) = self.machines.get_mut(name) else { return false };
        machine.state = InstanceState::Stopped;
        true
    }
}
