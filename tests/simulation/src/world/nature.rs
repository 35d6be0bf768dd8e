//! What goes wrong by itself.

use vm_agent_hub::state::ConnId;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::{InstanceState, Sizes};
use vm_agent_schemas::units::ByteSize;

use crate::clock::{MINUTE, SECOND};
use crate::driver::{Machine, Sight};
use crate::net::Peer;
use crate::runtime::Runtime;
use crate::world::{Event, World};

impl World {
    pub(super) fn nature(&mut self) {
        if self.calm {
            return;
        }
        let delay = self.rng.u64(200..20 * SECOND);
        self.after(delay, Event::Nature);
        match self.rng.u8(..20) {
            0..=3 => self.kill(),
            4 | 5 => {
                if let Some((driver, instance)) = self.some_machine() {
                    self.trace(|| format!("{driver} {instance}: crashes"));
                    let down = [InstanceState::Failed, InstanceState::Failed, InstanceState::Stopped];
                    let state = *self.rng.choice(&down).expect("there are some");
                    self.machine(driver, &instance).state = state;
                    self.runtime_ends(driver, &instance);
                }
            }
            6 => self.intrude(),
            7 => {
                if let Some((driver, instance)) = self.some_machine() {
                    let machine = self.machine(driver, &instance);
                    machine.dim = !machine.dim;
                }
            }
            8 | 9 => {
                let name = *self.rng.choice(self.drivers.keys().collect::<Vec<_>>()).expect("there are some");
                let (until, hangs) = (self.clock.mono + self.rng.u64(..MINUTE), self.rng.bool());
                self.trace(|| format!("{name} does not answer"));
                let driver = self.drivers.get_mut(&name).expect("it is one of them");
                (driver.out_until, driver.hangs) = (until, hangs);
            }
            10 | 11 => {
                if let Some((driver, instance)) = self.some_machine() {
                    self.trace(|| format!("{driver} {instance}: its runtime dies"));
                    self.runtime_ends(driver, &instance);
                    if let Some(run) = self.runtime_in(driver, &instance).map(|it| it.run) {
                        self.after(500, Event::Boot(driver, instance, run));
                    }
                }
            }
            12 => {
                if let Some((driver, instance)) = self.some_machine()
                    && let Some(runtime) = self.runtime_in(driver, &instance)
                {
                    runtime.silent = !runtime.silent;
                }
            }
            13 | 14 => self.haunt(),
            15 => {
                let conns: Vec<ConnId> = self.net.conns.iter().filter(|(_, it)| it.open).map(|(id, _)| *id).collect();
                if let Some(conn) = self.rng.choice(conns) {
                    self.cut(conn);
                }
            }
            16 => {
                let ahead = i64::try_from(self.rng.u64(MINUTE..3 * 60 * MINUTE)).unwrap_or_default();
                self.trace(|| format!("the host sleeps for {} s", ahead / 1000));
                self.clock.jump(ahead);
            }
            17 if self.rng.bool() => {
                let back = i64::try_from(self.rng.u64(SECOND..20 * MINUTE)).unwrap_or_default();
                self.trace(|| format!("the clock is set back by {} s", back / 1000));
                self.clock.jump(-back);
            }
            19 => {
                if let Some((driver, instance)) = self.some_machine() {
                    self.trace(|| format!("{driver} {instance}: somebody deletes it"));
                    let machines = self.drivers.get_mut(&driver).map(|driver| &mut driver.machines);
                    machines.and_then(|machines| machines.remove(&instance));
                    self.runtime_ends(driver, &instance);
                }
            }
            18 => self.disk_full_until = self.clock.mono + self.rng.u64(..5 * SECOND),
            _ => {}
        }
    }

    /// The controller is killed, and started again some time.
    pub(super) fn kill(&mut self) {
        if !self.calm && self.life.is_some() {
            self.end_life();
            self.start_again();
        }
    }

    /// Somebody starts the controller again, sooner or later.
    pub(crate) fn start_again(&mut self) {
        let delay = if self.rng.u8(..4) == 0 { self.rng.u64(..2 * MINUTE) } else { self.rng.u64(..2 * SECOND) };
        self.after(if self.calm { SECOND } else { delay }, Event::Begin);
    }

    pub(super) fn machine(&mut self, driver: DriverName, instance: &InstanceName) -> &mut Machine {
        let driver = self.drivers.get_mut(&driver).expect("the machine's driver is there");
        driver.machines.get_mut(instance).expect("the machine is there")
    }

    pub(super) fn some_machine(&mut self) -> Option<(DriverName, InstanceName)> {
        let all =
            self.drivers.values().flat_map(|it| it.machines.iter().map(move |(name, machine)| (it, name, machine)));
        let ours = all.filter(|(_, _, machine)| machine.nonce.is_some());
        let ours: Vec<_> = ours.map(|(driver, name, _)| (driver.name, name.clone())).collect();
        self.rng.choice(ours)
    }

    /// Somebody else makes or deletes machines.
    pub(super) fn intrude(&mut self) {
        let name = *self.rng.choice(self.drivers.keys().collect::<Vec<_>>()).expect("there are some");
        let instance: InstanceName = self.people.some_name(&mut self.rng).parse().expect("it is a name");
        let kind = self.rng.u8(..4);
        let driver = self.drivers.get_mut(&name).expect("it is one of them");
        let gib = ByteSize::from_gib;
        let sizes = Sizes { cpus: 1, memory: gib(1), disk: gib(5) };
        let foreign = Machine {
            state: InstanceState::Running,
            nonce: None,
            sizes,
            dim: false,
            unexpected: false,
            runtime: None,
            snapshots: Default::default(),
        };
        match (driver.machines.get_mut(&instance), kind) {
            // Where listings show no nonce, nobody could tell it from the one that was there before.
            (None, _) if driver.sight != Sight::Listed && driver.held.contains(&instance) => return,
            (None, _) => {
                driver.machines.insert(instance.clone(), foreign);
            }
            (Some(machine), 0) if machine.nonce.is_some() => machine.state = InstanceState::Deleted,
            (Some(machine), 1) if machine.nonce.is_some() => {
                driver.machines.remove(&instance);
            }
            (Some(machine), _) if machine.nonce.is_none() => {
                driver.machines.remove(&instance);
            }
            _ => return,
        }
        self.trace(|| format!("{name} {instance}: somebody else was here"));
        self.runtime_ends(name, &instance);
    }

    /// What is left of a runtime comes back: as it was, or in another machine.
    pub(super) fn haunt(&mut self) {
        if self.ghosts.len() < 8
            && let Some((driver, instance)) = self.some_machine()
        {
            let other = self.rng.bool();
            let mut rng = self.rng.fork();
            // A copy of what has not joined yet may join first: then the one in place is the copy, and
            // a person has to see to it.
            if let Some(runtime) = self.runtime_in(driver, &instance).filter(|runtime| runtime.joined) {
                let mut ghost = if other { runtime.copy(&mut rng) } else { runtime.clone() };
                (ghost.wire, ghost.up) = (None, true);
                // Of one start of one machine there is one disk, and no two that go on from it.
                let twin = |it: &Runtime| it.is_same_machine(&ghost) && it.boot == ghost.boot;
                if !self.ghosts.iter().any(twin) {
                    self.ghosts.push(ghost);
                }
            }
        }
        if let Some(index) = (!self.ghosts.is_empty()).then(|| self.rng.usize(..self.ghosts.len()))
            && self.is_told_apart(&self.ghosts[index])
        {
            self.ghosts[index].given_up = false;
            self.after(1, Event::Connect(Peer::Ghost(index)));
        }
    }

    /// Whether a ghost can be told from the runtime that the hub knows: it is in another machine, of an earlier
    /// life, or of an earlier start. Who puts a machine back to an earlier moment of its present start, behind
    /// everybody's back, has the very runtime.
    fn is_told_apart(&self, ghost: &Runtime) -> bool {
        let Some(life) = &self.life else { return false };
        let known = life.records.credentials.get(&ghost.seed.agent);
        known.is_none_or(|known| {
            let elsewhere = known.binding.as_ref().is_some_and(|bound| !ghost.is_on(&bound.machine_id));
            elsewhere || known.incarnation != ghost.seed.incarnation || known.boot > ghost.boot
        })
    }
}
