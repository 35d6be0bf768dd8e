//! The world: a queue of events on a simulated clock, and what each of them leads to.

mod machines;
mod nature;
mod programs;
mod runtimes;
mod wires;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use fastrand::Rng;
use vm_agent_daemon::engine::records::Records;
use vm_agent_hub::state::{ConnId, Event as HubEvent, Inbound};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::message::MessageState;
use vm_agent_schemas::names::InstanceName;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::wire::{Envelope, FromHub, TaskOutcome, TaskRef};

use crate::clock::{Clock, MINUTE, Millis, SECOND};
use crate::controller::{Life, Within};
use crate::deed::{Deed, Rest};
use crate::driver::{Driver, Machine};
use crate::invariants::{Broken, Invariant, all};
use crate::net::{Net, Peer};
use crate::output::Log;
use crate::people::People;
use crate::runtime::Runtime;
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
    /// The output log.
    pub log: Log,
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
    /// How often a program or a person said something to a program.
    pub words_said: u64,
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
    /// A task writes so much to a channel.
    Writes(Peer, TaskRef, usize, u64),
    /// A program in a machine looks for a message.
    Program(Peer),
    /// Somebody has something to say to a program, or a program to another.
    Talk,
    /// The hub gets a connection.
    Opened(ConnId),
    /// The hub gets a message.
    ToHub(ConnId, Box<Inbound>),
    /// The hub learns that a connection is gone.
    ClosedToHub(ConnId),
    /// A runtime gets a message.
    ToRuntime(ConnId, Box<Envelope<FromHub>>),
    /// A runtime learns that its connection is gone.
    ClosedToRuntime(ConnId),
    /// A life begins.
    Begin,
    /// A person does something.
    Person,
    /// A person says something that can't wait.
    Remark,
    /// The controller is killed.
    Kill,
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
        let mut world = Self::of(rng, drivers, people, traced);
        world.after(0, Event::Begin);
        world.after(100, Event::Person);
        world.after(SECOND, Event::Nature);
        world.after(SECOND, Event::Talk);
        world
    }

    /// A world of these drivers in which nothing goes wrong, and in which people say only what they are made to.
    #[must_use]
    pub fn still(drivers: BTreeMap<DriverName, Driver>) -> Self {
        let mut rng = Rng::with_seed(0);
        let people = People::draw(&mut rng);
        let mut world = Self { calm: true, ..Self::of(rng, drivers, people, true) };
        world.after(0, Event::Begin);
        world
    }

    fn of(rng: Rng, drivers: BTreeMap<DriverName, Driver>, people: People, traced: bool) -> Self {
        Self {
            clock: Clock::default(),
            rng,
            calm: false,
            disk: vm_agent_store::in_memory().expect("a database in memory is made"),
            log: Log::default(),
            disk_full_until: 0,
            life: None,
            left: None,
            drivers,
            net: Net::default(),
            ghosts: Vec::new(),
            people,
            last_call: 0,
            words_said: 0,
            events: 0,
            queue: BinaryHeap::new(),
            last_entry: 0,
            invariants: all(),
            broken: None,
            lines: traced.then(Trace::default),
        }
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
            self.tell(&Deed::Rest(rest));
        }
        self.run_until(self.clock.mono + WATCH)
    }

    /// What is left to do.
    fn rest(&mut self) -> Option<Rest> {
        let (inputs, plan) = self.present()?;
        let unfinished = vm_agent_store::tasks::unfinished(&self.disk).expect("the database in memory reads");
        let messages = vm_agent_store::messages::remembered(&self.disk).expect("the database in memory reads");
        let waiting = messages.into_iter().filter(|message| message.state == MessageState::Waiting).collect();
        let runtimes = self.drivers.values().flat_map(|driver| driver.machines.values());
        let runtimes = runtimes.filter_map(|machine| machine.runtime.as_ref()).filter(|it| it.up);
        let unsent = runtimes.filter(|it| !it.boxes.outbox.is_empty()).map(|it| it.seed.agent.clone()).collect();
        let machines = self.drivers.values().flat_map(|driver| &driver.machines).filter(|(_, it)| !it.unexpected);
        let machines = machines.filter_map(|(name, it)| Some((name.clone(), it.nonce.clone()?))).collect();
        Some(Rest { inputs, plan, unfinished, waiting, unsent, machines })
    }

    /// When something happens next.
    #[must_use]
    pub fn next_at(&self) -> Option<Millis> {
        self.queue.peek().map(|Reverse(entry)| entry.at)
    }

    /// Lets happen what happens until then.
    ///
    /// # Errors
    /// With the first promise that was broken.
    pub fn run_until(&mut self, end: Millis) -> Result<(), Broken> {
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
    pub(crate) fn after(&mut self, delay: Millis, event: Event) {
        self.at(self.clock.mono + delay, event);
    }

    /// Something is to happen then.
    pub(crate) fn at(&mut self, at: Millis, event: Event) {
        self.last_entry += 1;
        let number = self.last_entry;
        self.queue.push(Reverse(Entry { at, number, event }));
    }

    /// How long the small things take: mostly next to nothing, so that what belongs together comes
    /// together, and now and then long enough for the world to come between.
    pub(crate) fn latency(&mut self) -> Millis {
        match self.rng.u8(..100) {
            _ if self.calm => self.rng.u64(..2),
            0 => self.rng.u64(..2 * SECOND),
            1..10 => self.rng.u64(..100),
            _ => self.rng.u64(..3),
        }
    }

    /// Notes a line, if somebody reads it.
    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
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
    pub(crate) fn tell(&mut self, deed: &Deed) {
        for invariant in &mut self.invariants {
            if let Err(how) = invariant.see(deed)
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
            Event::Writes(peer, task, channel, len) => self.writes(&peer, task, channel, len),
            Event::Program(peer) => self.program(&peer),
            Event::Talk => self.talk(),
            Event::Opened(conn) => self.opened(conn),
            Event::ToHub(conn, body) => self.hub_hears(conn, *body),
            Event::ClosedToHub(conn) => {
                if self.leads_here(conn) {
                    self.hub(HubEvent::Closed { conn });
                }
            }
            Event::ToRuntime(conn, body) => self.runtime_hears(conn, *body),
            Event::ClosedToRuntime(conn) => self.closed_to_runtime(conn),
            Event::Begin => self.begin_life(),
            Event::Person => self.person(),
            Event::Remark => self.remark(),
            Event::Kill => self.kill(),
            Event::Nature => self.nature(),
        }
    }
}
