//! The world: a queue of events on a simulated clock, and what each of them leads to.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use fastrand::Rng;
use vm_agent_daemon::engine::job::Called;
use vm_agent_daemon::engine::records::Records;
use vm_agent_hub::state::{ConnId, Event as HubEvent, Inbound};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::{Epoch, Nonce, SessionId};
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::{InstanceState, Sizes};
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{Address, Envelope, FromHub, FromRuntime, Refused, TaskOrder, TaskOutcome, TaskRef};

use crate::clock::{Clock, MINUTE, Millis, SECOND};
use crate::controller::{Life, Within, failed};
use crate::deed::{Deed, Rest};
use crate::driver::{Call, Driver, Happened, Machine, Sight};
use crate::invariants::{Broken, Invariant, all};
use crate::net::{Net, Peer, Wire};
use crate::people::People;
use crate::runtime::{Known, Runtime, ended, health};
use crate::trace::Trace;

/// How long the world is troubled, at most.
const TROUBLE: std::ops::Range<Millis> = 2 * MINUTE..20 * MINUTE;

/// How long a world without trouble may take to come to rest: longer than the longest backoff, the
/// longest way of a clock that was set back, and all that one waits for after the other.
const REST_WITHIN: Millis = 150 * MINUTE;

/// How long a world at rest is watched.
const WATCH: Millis = 5 * MINUTE;

/// What is made up and what is real.
pub struct World {
    /// The clocks.
    pub clock: Clock,
    /// Where all chance comes from.
    pub rng: Rng,
    /// Whether nothing goes wrong any more, and nobody says anything.
    pub calm: bool,
    /// What survives.
    pub disk: rusqlite::Connection,
    /// The disk takes nothing before this.
    pub disk_full_until: Millis,
    /// The life of the controller that goes on, if any does.
    pub life: Option<Life>,
    /// What the last life knew when it ended.
    pub left: Option<Arc<Records>>,
    /// The drivers.
    pub drivers: BTreeMap<DriverName, Driver>,
    /// The connections.
    pub net: Net,
    /// Copies of runtimes, and what is left of earlier ones.
    pub ghosts: Vec<Runtime>,
    /// Who edits and says things.
    pub people: People,
    /// The number of the last driver's call.
    pub last_call: u64,
    /// How many events there were.
    pub events: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    last_entry: u64,
    invariants: Vec<Box<dyn Invariant>>,
    broken: Option<Broken>,
    lines: Option<Trace>,
}

/// Something that happens.
#[derive(Debug)]
pub enum Event {
    /// In that life of the controller.
    Within(u64, Within),
    /// A call has half of its effect.
    CallHalf(DriverName, u64),
    /// A call has its effect.
    CallEffect(DriverName, u64),
    /// A call is answered, to that step of that life.
    CallAnswer(DriverName, u64, u64, u64),
    /// The runtime in a machine starts, if the machine still runs as it did.
    Boot(DriverName, InstanceName, u64),
    /// A runtime tries to connect.
    Connect(Peer),
    /// A runtime reports that all is well.
    Heartbeat(Peer),
    /// A runtime has come to the end of a task.
    TaskOver(Peer, TaskRef, TaskOutcome),
    /// The hub gets a connection.
    Opened(ConnId),
    /// The hub gets a message.
    ToHub(ConnId, Box<FromRuntime>),
    /// The hub learns that a connection is gone.
    ClosedToHub(ConnId),
    /// A runtime gets a message.
    ToRuntime(ConnId, Box<FromHub>),
    /// A runtime learns that its connection is gone.
    ClosedToRuntime(ConnId),
    /// A life begins.
    Begin,
    /// A person does something.
    Person,
    /// Something goes wrong, or right again.
    Nature,
}

#[derive(Debug)]
struct Entry {
    at: Millis,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl World {
    /// A world made up from a seed. `traced` keeps what happens as lines of text.
    #[must_use]
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut drivers = BTreeMap::new();
        for name in [DriverName::Multipass, DriverName::Qemu] {
            if name == DriverName::Qemu || rng.bool() {
                drivers.insert(name, Driver::draw(name, &mut rng));
            }
        }
        let people = People::draw(&mut rng);
        let mut world = Self {
            clock: Clock::default(),
            rng,
            calm: false,
            disk: vm_agent_store::in_memory().expect("a database in memory is made"),
            disk_full_until: 0,
            life: None,
            left: None,
            drivers,
            net: Net::default(),
            ghosts: Vec::new(),
            people,
            last_call: 0,
            events: 0,
            queue: BinaryHeap::new(),
            last_entry: 0,
            invariants: all(),
            broken: None,
            lines: traced.then(Trace::default),
        };
        world.after(0, Event::Begin);
        world.after(100, Event::Person);
        world.after(SECOND, Event::Nature);
        world
    }

    /// Lets everything happen.
    ///
    /// # Errors
    /// With the first promise that was broken.
    pub fn run(&mut self) -> Result<(), Broken> {
        let trouble = self.rng.u64(TROUBLE);
        self.run_until(trouble)?;
        self.calm_down();
        let end = self.clock.mono + REST_WITHIN;
        let mut next = self.clock.mono + MINUTE;
        while self.clock.mono < end {
            self.run_until(next)?;
            next += MINUTE;
            if self.rest().is_some_and(|rest| crate::invariants::is_at_rest(&rest).is_ok()) && self.is_idle() {
                break;
            }
        }
        if let Some(rest) = self.rest() {
            self.tell(Deed::Rest(rest));
        }
        self.run_until(self.clock.mono + WATCH)
    }

    /// What is left to do.
    fn rest(&mut self) -> Option<Rest> {
        let (inputs, plan) = self.present()?;
        let unfinished = vm_agent_store::tasks::unfinished(&self.disk).expect("the database in memory reads");
        let unfinished = unfinished.into_iter().map(|task| task.agent).collect();
        let machines = self.drivers.values().flat_map(|driver| &driver.machines).filter(|(_, it)| !it.unexpected);
        let machines = machines.filter_map(|(name, it)| Some((name.clone(), it.nonce.clone()?))).collect();
        Some(Rest { inputs, plan, unfinished, machines })
    }

    fn run_until(&mut self, end: Millis) -> Result<(), Broken> {
        while let Some(Reverse(entry)) = self.queue.peek() {
            if entry.at > end {
                break;
            }
            let Some(Reverse(Entry { at, event, .. })) = self.queue.pop() else { break };
            self.clock.mono = at;
            self.events += 1;
            self.happens(event);
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        self.clock.mono = end;
        Ok(())
    }

    /// No more trouble: what is broken is mended, as far as it is not for a person to mend.
    fn calm_down(&mut self) {
        self.trace(|| "all is calm from now on".to_owned());
        self.calm = true;
        self.disk_full_until = 0;
        for driver in self.drivers.values_mut() {
            driver.out_until = 0;
            for machine in driver.machines.values_mut() {
                machine.dim = false;
                if let Some(runtime) = &mut machine.runtime {
                    runtime.silent = false;
                }
            }
        }
        let runs = |machine: &Machine| machine.state == InstanceState::Running;
        let down = self.drivers.values().flat_map(|driver| {
            let machines = driver.machines.iter().filter(|(_, machine)| runs(machine));
            machines.filter_map(|(name, machine)| {
                let runtime = machine.runtime.as_ref().filter(|runtime| !runtime.up)?;
                Some(Event::Boot(driver.name, name.clone(), runtime.run))
            })
        });
        for boot in down.collect::<Vec<_>>() {
            self.after(SECOND, boot);
        }
        if self.life.is_none() {
            self.after(SECOND, Event::Begin);
        }
    }

    // The queue, the trace and the invariants.

    /// Something is to happen after that long.
    pub(super) fn after(&mut self, delay: Millis, event: Event) {
        self.at(self.clock.mono + delay, event);
    }

    /// Something is to happen then.
    pub(super) fn at(&mut self, at: Millis, event: Event) {
        self.last_entry += 1;
        let number = self.last_entry;
        self.queue.push(Reverse(Entry { at, number, event }));
    }

    /// How long the small things take: mostly next to nothing, so that what belongs together comes
    /// together, and now and then long enough for the world to come between.
    pub(super) fn latency(&mut self) -> Millis {
        match self.rng.u8(..100) {
            _ if self.calm => self.rng.u64(..2),
            0 => self.rng.u64(..2 * SECOND),
            1..10 => self.rng.u64(..100),
            _ => self.rng.u64(..3),
        }
    }

    /// Notes a line, if somebody reads it.
    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.note(self.clock.mono, &line());
        }
    }

    /// The lines noted.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        self.lines.as_ref().map(Trace::lines).unwrap_or_default()
    }

    /// Shows a deed to every invariant.
    pub(super) fn tell(&mut self, deed: Deed) {
        for invariant in &mut self.invariants {
            if let Err(how) = invariant.see(&deed)
                && self.broken.is_none()
            {
                self.broken = Some(Broken { invariant: invariant.name(), promise: invariant.promise(), how });
            }
        }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Within(life, event) => self.happens_within(life, event),
            Event::CallHalf(driver, call) => self.call_takes_effect(driver, call, false),
            Event::CallEffect(driver, call) => self.call_takes_effect(driver, call, true),
            Event::CallAnswer(driver, call, life, job) => self.call_is_answered(driver, call, life, job),
            Event::Boot(driver, instance, run) => self.boot(driver, &instance, run),
            Event::Connect(peer) => self.connect(peer),
            Event::Heartbeat(peer) => self.heartbeat(peer),
            Event::TaskOver(peer, task, outcome) => self.task_over(&peer, task, outcome),
            Event::Opened(conn) => self.opened(conn),
            Event::ToHub(conn, body) => self.to_hub(conn, *body),
            Event::ClosedToHub(conn) => {
                if self.leads_here(conn) {
                    self.hub(HubEvent::Closed { conn });
                }
            }
            Event::ToRuntime(conn, body) => self.to_runtime(conn, *body),
            Event::ClosedToRuntime(conn) => self.closed_to_runtime(conn),
            Event::Begin => self.begin_life(),
            Event::Person => self.person(),
            Event::Nature => self.nature(),
        }
    }

    // Drivers and machines.

    fn call_takes_effect(&mut self, name: DriverName, id: u64, whole: bool) {
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
        self.machine_changed(name, &instance, &happened);
    }

    fn made(&mut self, driver: DriverName, instance: &InstanceName) {
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
        self.tell(Deed::Made { driver, instance: instance.clone(), nonce, agent, others });
    }

    fn machine_changed(&mut self, name: DriverName, instance: &InstanceName, happened: &Happened) {
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

    fn call_is_answered(&mut self, name: DriverName, id: u64, life: u64, job: u64) {
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
    pub(super) fn runtime_in(&mut self, driver: DriverName, instance: &InstanceName) -> Option<&mut Runtime> {
        self.drivers.get_mut(&driver)?.machines.get_mut(instance)?.runtime.as_mut()
    }

    /// The process of a machine's runtime ends, and its connection with it.
    pub(super) fn runtime_ends(&mut self, driver: DriverName, instance: &InstanceName) {
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

    fn boot(&mut self, driver: DriverName, instance: &InstanceName, run: u64) {
        let runs = self.drivers[&driver].machines.get(instance).is_some_and(|it| it.state == InstanceState::Running);
        let Some(runtime) = self.runtime_in(driver, instance).filter(|it| runs && it.run == run && !it.up) else {
            return;
        };
        runtime.start();
        let (run, boot) = (runtime.run, runtime.boot);
        self.trace(|| format!("{driver} {instance}: its runtime starts (boot {boot})"));
        self.after(50, Event::Connect(Peer::Machine { driver, instance: instance.clone(), run }));
    }

    // Runtimes.

    /// The runtime at the far end, if it is still the same run of it.
    fn peer(&mut self, peer: &Peer) -> Option<&mut Runtime> {
        match peer {
            Peer::Machine { driver, instance, run } => {
                self.runtime_in(*driver, instance).filter(|runtime| runtime.up && runtime.run == *run)
            }
            Peer::Ghost(index) => self.ghosts.get_mut(*index),
        }
    }

    /// Whether a connection leads to the life that goes on.
    fn leads_here(&self, conn: ConnId) -> bool {
        let number = self.life.as_ref().map(|life| life.number);
        self.net.conns.get(&conn).is_some_and(|conn| Some(conn.life) == number)
    }

    fn connect(&mut self, peer: Peer) {
        let now = self.clock.mono;
        let Some(runtime) = self.peer(&peer).filter(|it| it.wire.is_none() && !it.given_up) else { return };
        let _ = &runtime;
        let Some(life) = self.life.as_ref().map(|life| life.number) else {
            if matches!(peer, Peer::Machine { .. }) {
                let delay = self.rng.u64(500..3 * SECOND);
                self.after(delay, Event::Connect(peer));
            }
            return;
        };
        let conn = self.net.connect(peer.clone(), life, now);
        let runtime = self.peer(&peer).expect("it was just looked at");
        runtime.wire = Some(Wire { conn, welcomed: false });
        let hello = runtime.hello();
        self.after(1, Event::Opened(conn));
        self.send_to_hub(conn, FromRuntime::Hello(hello));
    }

    /// A runtime whose connection is gone tries again.
    fn reconnect(&mut self, peer: Peer) {
        let delay = self.rng.u64(100..4 * SECOND);
        if matches!(peer, Peer::Machine { .. }) {
            self.after(delay, Event::Connect(peer));
        }
    }

    fn heartbeat(&mut self, peer: Peer) {
        let Some(runtime) = self.peer(&peer) else { return };
        let (wire, silent) = (runtime.wire.filter(|wire| wire.welcomed), runtime.silent);
        let Some(wire) = wire else { return };
        if !silent {
            self.send_to_hub(wire.conn, health());
        }
        self.after(30 * SECOND, Event::Heartbeat(peer));
    }

    fn task_over(&mut self, peer: &Peer, task: TaskRef, outcome: TaskOutcome) {
        let Some(runtime) = self.peer(peer) else { return };
        let Some(known @ Known::Started) = runtime.known(task) else { return };
        *known = Known::Ended(outcome.clone());
        let wire = runtime.wire.filter(|wire| wire.welcomed);
        if let Some(wire) = wire {
            self.send_to_hub(wire.conn, ended(task, outcome));
        }
    }

    fn to_runtime(&mut self, conn: ConnId, body: FromHub) {
        let Some(peer) = self.net.open(conn).map(|conn| conn.peer.clone()) else { return };
        let Some(runtime) = self.peer(&peer).filter(|it| it.wire.is_some_and(|wire| wire.conn == conn)) else { return };
        match body {
            FromHub::Challenge(challenge) => {
                let proof = runtime.prove(&challenge);
                self.send_to_hub(conn, proof);
            }
            FromHub::Welcome(welcome) => {
                runtime.joined = true;
                runtime.wire = Some(Wire { conn, welcomed: true });
                if let Some(configuration) = welcome.configuration {
                    runtime.configuration = Some(configuration);
                }
                let mut words = vec![runtime.configured()];
                words.extend(runtime.unsettled());
                words.into_iter().for_each(|word| self.send_to_hub(conn, word));
                self.after(30 * SECOND, Event::Heartbeat(peer));
            }
            FromHub::Configure(configuration) => {
                runtime.configuration = Some(configuration);
                let word = runtime.configured();
                self.send_to_hub(conn, word);
            }
            FromHub::Refused(Refused { retry, code, .. }) => {
                runtime.given_up = !retry;
                self.trace(|| format!("{peer:?} is refused ({code})"));
            }
            FromHub::Task(order) => self.ordered(conn, &peer, &order),
            FromHub::TaskAck(task) => {
                if let Some(known) = runtime.known(task)
                    && let Known::Ended(outcome) = known
                {
                    *known = Known::Settled(outcome.clone());
                }
            }
            _ => {}
        }
    }

    /// An order is carried out once, by what the journal knows.
    fn ordered(&mut self, conn: ConnId, peer: &Peer, order: &TaskOrder) {
        let task = order.task;
        let runtime = self.peer(peer).expect("it was just looked at");
        let answer = match runtime.known(task).cloned() {
            Some(Known::Started) => FromRuntime::TaskStarted(task),
            Some(Known::Ended(outcome) | Known::Settled(outcome)) => ended(task, outcome),
            None => {
                runtime.journal.push((task, Known::Started));
                let number = |index: usize| order.run.argv.get(index).and_then(|text| text.parse().ok());
                let (code, takes) =
                    (number(1).unwrap_or(0), number(2).map_or(SECOND, |it: i32| it.unsigned_abs().into()));
                let (takes, outcome) = if takes > order.timeout_ms {
                    (order.timeout_ms, TaskOutcome::TimedOut)
                } else {
                    (takes, TaskOutcome::Exited { code })
                };
                self.trace(|| format!("{peer:?} runs a task"));
                self.tell(Deed::Ran(task));
                self.after(takes, Event::TaskOver(peer.clone(), task, outcome));
                FromRuntime::TaskStarted(task)
            }
        };
        self.send_to_hub(conn, answer);
    }

    /// A session was accepted.
    pub(super) fn welcomed(&mut self, conn: ConnId, epoch: Epoch) {
        let Some(peer) = self.net.conns.get(&conn).map(|conn| conn.peer.clone()) else { return };
        let records = self.life.as_ref().map(|life| Arc::clone(&life.records));
        let (Some(runtime), Some(records)) = (self.peer(&peer), records) else { return };
        let (agent, incarnation, boot) = (runtime.seed.agent.clone(), runtime.seed.incarnation, runtime.boot);
        self.trace(|| format!("{peer:?} is welcome (epoch {epoch}, boot {boot})"));
        self.tell(Deed::Welcomed { agent, incarnation, boot, epoch, records });
    }

    // Connections.

    fn frame_latency(&mut self) -> Millis {
        if !self.calm && self.rng.u8(..50) == 0 { self.rng.u64(..3 * SECOND) } else { self.rng.u64(1..20) }
    }

    fn send_to_hub(&mut self, conn: ConnId, body: FromRuntime) {
        let at = self.clock.mono + self.frame_latency();
        if let Some(entry) = self.net.open(conn) {
            entry.to_hub = entry.to_hub.max(at) + 1;
            let at = entry.to_hub;
            self.at(at, Event::ToHub(conn, Box::new(body)));
            self.maybe_cut(conn);
        }
    }

    /// The hub sends a message.
    pub(super) fn send_to_runtime(&mut self, conn: ConnId, body: FromHub) {
        let at = self.clock.mono + self.frame_latency();
        if let Some(entry) = self.net.open(conn) {
            entry.to_runtime = entry.to_runtime.max(at) + 1;
            let at = entry.to_runtime;
            self.at(at, Event::ToRuntime(conn, Box::new(body)));
            self.maybe_cut(conn);
        }
    }

    /// Any message may be the last of its connection.
    fn maybe_cut(&mut self, conn: ConnId) {
        if !self.calm && self.rng.u8(..60) == 0 {
            self.cut(conn);
        }
    }

    /// No frame passes any more. Both ends learn of it, and not at once.
    pub(super) fn cut(&mut self, conn: ConnId) {
        let Some(entry) = self.net.open(conn) else { return };
        entry.open = false;
        let (hub, runtime) = if self.calm {
            (20, 20)
        } else {
            // One end may take long to notice.
            let longest = if self.rng.u8(..5) == 0 { 3 * MINUTE } else { SECOND };
            (self.rng.u64(1..longest), self.rng.u64(1..SECOND))
        };
        self.after(hub, Event::ClosedToHub(conn));
        self.after(runtime, Event::ClosedToRuntime(conn));
    }

    /// The controller is gone, and all connections with it.
    pub(super) fn cut_all(&mut self, _gone: bool) {
        let open: Vec<ConnId> = self.net.conns.iter().filter(|(_, conn)| conn.open).map(|(id, _)| *id).collect();
        open.into_iter().for_each(|conn| self.cut(conn));
    }

    /// The hub closes a connection, once what is under way has arrived.
    pub(super) fn close_from_hub(&mut self, conn: ConnId) {
        if let Some(entry) = self.net.open(conn) {
            let at = entry.to_runtime + 1;
            self.at(at, Event::ClosedToRuntime(conn));
        }
    }

    fn opened(&mut self, conn: ConnId) {
        if !self.leads_here(conn) {
            return;
        }
        let challenge = Nonce::from_text(format!("challenge {}", conn.0));
        let (since, session) = (self.clock.wall(), SessionId::generate());
        let peer = ([127, 0, 0, 1], 5000).into();
        self.hub(HubEvent::Opened { conn, peer, since, challenge, session });
    }

    fn to_hub(&mut self, conn: ConnId, body: FromRuntime) {
        if self.net.open(conn).is_none() || !self.leads_here(conn) {
            return;
        }
        let peer = self.net.conns[&conn].peer.clone();
        let now = self.clock.wall();
        // Whoever has been replaced by another run may still have said this.
        let agent = match &peer {
            Peer::Machine { driver, instance, .. } => {
                self.runtime_in(*driver, instance).map(|it| it.seed.agent.clone())
            }
            Peer::Ghost(index) => self.ghosts.get(*index).map(|it| it.seed.agent.clone()),
        };
        let Some(agent) = agent else { return };
        let envelope = Envelope::new(Address::Agent(agent), Address::Host, now, body);
        self.hub(HubEvent::Received { conn, inbound: Inbound::Message(envelope) });
    }

    fn closed_to_runtime(&mut self, conn: ConnId) {
        let Some(entry) = self.net.conns.get_mut(&conn) else { return };
        entry.open = false;
        let peer = entry.peer.clone();
        let Some(runtime) = self.peer(&peer).filter(|it| it.wire.is_some_and(|wire| wire.conn == conn)) else { return };
        runtime.wire = None;
        self.reconnect(peer);
    }

    // What goes wrong.

    fn nature(&mut self) {
        if self.calm {
            return;
        }
        let delay = self.rng.u64(200..20 * SECOND);
        self.after(delay, Event::Nature);
        match self.rng.u8(..20) {
            0..4 => {
                self.end_life();
                self.start_again();
            }
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
            18 => self.disk_full_until = self.clock.mono + self.rng.u64(..5 * SECOND),
            _ => {}
        }
    }

    /// Somebody starts the controller again, sooner or later.
    pub(super) fn start_again(&mut self) {
        let delay = if self.rng.u8(..4) == 0 { self.rng.u64(..2 * MINUTE) } else { self.rng.u64(..2 * SECOND) };
        self.after(if self.calm { SECOND } else { delay }, Event::Begin);
    }

    fn machine(&mut self, driver: DriverName, instance: &InstanceName) -> &mut Machine {
        let driver = self.drivers.get_mut(&driver).expect("the machine's driver is there");
        driver.machines.get_mut(instance).expect("the machine is there")
    }

    fn some_machine(&mut self) -> Option<(DriverName, InstanceName)> {
        let all =
            self.drivers.values().flat_map(|it| it.machines.iter().map(move |(name, machine)| (it, name, machine)));
        let ours = all.filter(|(_, _, machine)| machine.nonce.is_some());
        let ours: Vec<_> = ours.map(|(driver, name, _)| (driver.name, name.clone())).collect();
        self.rng.choice(ours)
    }

    /// Somebody else makes or deletes machines.
    fn intrude(&mut self) {
        let name = *self.rng.choice(self.drivers.keys().collect::<Vec<_>>()).expect("there are some");
        let instance: InstanceName = self.people.some_name(&mut self.rng).parse().expect("it is a name");
        let kind = self.rng.u8(..4);
        let driver = self.drivers.get_mut(&name).expect("it is one of them");
        let gib = ByteSize::from_gib;
        let sizes = Sizes { cpus: 1, memory: gib(1), disk: gib(5) };
        let foreign =
            Machine { state: InstanceState::Running, nonce: None, sizes, dim: false, unexpected: false, runtime: None };
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
    fn haunt(&mut self) {
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
                self.ghosts.push(ghost);
            }
        }
        if let Some(index) = (!self.ghosts.is_empty()).then(|| self.rng.usize(..self.ghosts.len())) {
            // As it was in that start of it, it may be the very runtime: a ghost is one that has been
            // replaced by a later start, an earlier life or another machine.
            let ghost = &self.ghosts[index];
            let (agent, boot, incarnation) = (ghost.seed.agent.clone(), ghost.boot, ghost.seed.incarnation);
            let all = self.drivers.values().flat_map(|driver| driver.machines.values());
            let same = |it: &&Runtime| it.seed.agent == agent && it.seed.incarnation == incarnation && it.boot == boot;
            let is_it = all.filter_map(|machine| machine.runtime.as_ref()).any(|it| same(&it));
            let copied = !is_it || ghost_is_copy(ghost, self.drivers.values());
            if copied {
                self.ghosts[index].given_up = false;
                self.after(1, Event::Connect(Peer::Ghost(index)));
            }
        }
    }
}

/// Whether no machine has this ghost's disk.
fn ghost_is_copy<'a>(ghost: &Runtime, drivers: impl Iterator<Item = &'a Driver>) -> bool {
    let mut runtimes = drivers.flat_map(|driver| driver.machines.values()).filter_map(|it| it.runtime.as_ref());
    !runtimes.any(|it| it.is_same_machine(ghost))
}

fn asked(call: &Call) -> String {
    let text = format!("{:?}", call.asked);
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}
