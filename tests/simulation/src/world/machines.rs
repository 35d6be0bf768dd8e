//! Calls that take effect, and machines that come up and go down.

use vm_agent_daemon::engine::job::Called;
use vm_agent_hub::state::ConnId;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::InstanceState;

use crate::clock::SECOND;
use crate::controller::failed;
use crate::deed::Deed;
use crate::driver::{Begun, Call, Happened, Machine};
use crate::net::Peer;
use crate::runtime::Runtime;
use crate::world::{Event, World};

impl World {
    /// Calls that were made of a driver since this was last asked, and that somebody else carries out.
    pub fn begun(&mut self, driver: DriverName) -> Vec<Begun> {
        let begun = self.drivers.get_mut(&driver).and_then(|driver| driver.begun.as_mut());
        begun.map(std::mem::take).unwrap_or_default()
    }

    /// Such a call takes half of its effect, or all of it, and then it is answered.
    pub fn carried_out(&mut self, driver: DriverName, begun: &Begun, whole: bool) {
        let now = self.clock.mono;
        let call = self.drivers.get_mut(&driver).and_then(|driver| driver.calls.get_mut(&begun.call));
        // Nobody waits for it any more.
        let Some(call) = call else { return };
        if !whole {
            return self.after(0, Event::CallHalf(driver, begun.call));
        }
        call.fate.answer = Some((now, false));
        self.after(0, Event::CallEffect(driver, begun.call));
        self.after(0, Event::CallAnswer(driver, begun.call, begun.life, begun.job));
    }

    pub(super) fn call_takes_effect(&mut self, name: DriverName, id: u64, whole: bool) {
        let Some(driver) = self.drivers.get_mut(&name) else { return };
        let Some(call) = driver.calls.get(&id).cloned() else { return };
        let happened = driver.take_effect(&call, whole, &mut self.rng);
        let instance = call.target.instance.clone();
        self.trace(|| format!("{name} {instance}: {} takes effect (whole: {whole})", asked(&call)));
        if whole && !call.waited_for {
            self.drivers.get_mut(&name).expect("it was just looked at").calls.remove(&id);
        }
        if happened.made {
            let unexpected = !call.waited_for && call.jumps != self.clock.jumps;
            self.machine(name, &instance).unexpected = unexpected;
            self.made(name, &instance);
        }
        if happened.restored {
            self.made(name, &instance);
        }
        self.machine_changed(name, &instance, &happened);
    }

    pub(super) fn made(&mut self, driver: DriverName, instance: &InstanceName) {
        let Some(Machine { nonce: Some(nonce), runtime: Some(runtime), .. }) =
            self.drivers[&driver].machines.get(instance)
        else {
            return;
        };
        let (agent, nonce) = (runtime.seed.agent.clone(), nonce.clone());
        let of_agent = |machine: &Machine| machine.runtime.as_ref().is_some_and(|it| it.seed.agent == agent);
        let others = self.drivers.values().flat_map(|other| {
            let machines = other.machines.iter().filter(|(_, machine)| of_agent(machine));
            machines.filter(|(name, _)| (other.name, *name) != (driver, instance)).map(|_| other.name)
        });
        let others = others.collect();
        self.tell(&Deed::Made { driver, instance: instance.clone(), nonce, agent, others });
    }

    pub(super) fn machine_changed(&mut self, name: DriverName, instance: &InstanceName, happened: &Happened) {
        if happened.down {
            self.runtime_ends(name, instance);
        }
        if happened.up {
            self.runtime_ends(name, instance);
            let dead = !self.calm && self.rng.u8(..25) == 0;
            let run = self.runtime_in(name, instance).map(|runtime| runtime.run);
            if let Some(run) = run.filter(|_| !dead) {
                let delay = self.rng.u64(200..8 * SECOND);
                self.after(delay, Event::Boot(name, instance.clone(), run));
            }
        }
    }

    pub(super) fn call_is_answered(&mut self, name: DriverName, id: u64, life: u64, job: u64) {
        let Some(driver) = self.drivers.get_mut(&name) else { return };
        let Some(call) = driver.calls.remove(&id) else { return };
        let called = match (driver.check(&call), call.fate.answer) {
            (Err(error), _) => Called::Failed(error),
            (Ok(()), Some((_, false))) => Called::Done,
            _ => failed(&call),
        };
        if self.life.as_ref().is_some_and(|it| it.number == life) {
            self.called(job, called);
        }
    }

    /// The runtime in a machine, if there is one.
    pub(crate) fn runtime_in(&mut self, driver: DriverName, instance: &InstanceName) -> Option<&mut Runtime> {
        self.drivers.get_mut(&driver)?.machines.get_mut(instance)?.runtime.as_mut()
    }

    /// The process of a machine's runtime ends, and its connection with it.
    pub(crate) fn runtime_ends(&mut self, driver: DriverName, instance: &InstanceName) {
        if let Some(runtime) = self.runtime_in(driver, instance) {
            let wire = runtime.wire;
            runtime.stop();
            if let Some(wire) = wire {
                self.cut(wire.conn);
            }
        } else {
            // The machine is gone: nobody is at the far end of its connections.
            let gone = |peer: &Peer| matches!(peer, Peer::Machine { driver: d, instance: i, .. } if *d == driver && i == instance);
            let conns: Vec<ConnId> =
                self.net.conns.iter().filter(|(_, conn)| conn.open && gone(&conn.peer)).map(|(id, _)| *id).collect();
            conns.into_iter().for_each(|conn| self.cut(conn));
        }
    }

    pub(super) fn boot(&mut self, driver: DriverName, instance: &InstanceName, run: u64) {
        let runs = self.drivers[&driver].machines.get(instance).is_some_and(|it| it.state == InstanceState::Running);
        let Some(runtime) = self.runtime_in(driver, instance).filter(|it| runs && it.run == run && !it.up) else {
            return;
        };
        runtime.start();
        let (run, boot) = (runtime.run, runtime.boot);
        self.trace(|| format!("{driver} {instance}: its runtime starts (boot {boot})"));
        self.after(50, Event::Connect(Peer::Machine { driver, instance: instance.clone(), run }));
    }
}

fn asked(call: &Call) -> String {
    let text = format!("{:?}", call.asked);
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}
