//! One life of a controller: it looks, lets the engine decide, and carries effects out, one at a time,
//! each an event of its own. So the world goes on, and the life may end, between any two of them.

mod hub;
mod steps;

pub(crate) use steps::failed;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_daemon::disk;
use vm_agent_daemon::engine::directory::directory;
use vm_agent_daemon::engine::job::{Called, HubAddress, Job};
use vm_agent_daemon::engine::memory::{HEARTBEAT, Memory, Moment, silence};
use vm_agent_daemon::engine::pass::{Act, PASS_EVERY, Turn, at_rest, turn};
use vm_agent_daemon::engine::records::{Change, NewFile, Records};
use vm_agent_daemon::engine::sight::Sight;
use vm_agent_daemon::engine::{Effect, HubCall, Sequence, life};
use vm_agent_daemon::storing::Holes;
use vm_agent_hub::state::{Effect as HubEffect, Event as HubEvent, Hub, Notice, Record};
use vm_agent_plan::{Inputs, Listing, plan};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskRef;
use vm_agent_store::{self as store, StoreError};

use crate::clock::{Millis, SECOND};
use crate::deed::{By, Deed};
use crate::world::{Event, World};

/// How often the hub looks at the time. The real one does so twice as often, to no other end.
const TICK: Millis = 2 * SECOND;

/// The pause after a pass or an end of a step that the disk refused.
const STORE_PAUSE: Millis = SECOND;

/// A life of the controller.
#[derive(Debug)]
pub struct Life {
    /// Which.
    pub number: u64,
    /// The records in memory.
    pub records: Arc<Records>,
    began: Timestamp,
    memory: Memory,
    /// The hub.
    pub hub: Hub,
    observers: BTreeMap<DriverName, Observer>,
    pass: Pass,
    woken: bool,
    timer: u64,
    strands: BTreeMap<u64, Strand>,
    last_strand: u64,
    jobs: BTreeMap<u64, Run>,
    last_job: u64,
    held: VecDeque<Held>,
    storing: bool,
    holes: Holes,
    notices: Vec<Notice>,
}

/// How far the pass is.
#[derive(Debug)]
enum Pass {
    Asleep,
    Begins,
    HasRecords(Arc<Records>),
    CarriesOut,
}

#[derive(Debug, Default)]
struct Observer {
    sight: Sight,
    begun: u64,
    busy: bool,
    /// When the listing under way began.
    began: Option<Timestamp>,
    asked: bool,
    timer: u64,
    /// Steps that wait for a listing that begins later, and for which.
    waiting: Vec<(u64, u64)>,
}

/// A step that is carried out.
#[derive(Debug)]
struct Run {
    job: Box<Job>,
    call: Option<u64>,
    called: Option<Called>,
    listing: Option<Listing>,
    proved: Option<Nonce>,
}

/// Effects that are being carried out.
#[derive(Debug)]
struct Strand {
    todo: VecDeque<VecDeque<Do>>,
    now: Timestamp,
    whose: Whose,
}

#[derive(Debug)]
enum Whose {
    Pass(Arc<Inputs>, Option<Box<Act>>),
    Step(u64),
    Person,
}

/// What a strand does next.
#[derive(Debug)]
pub(crate) enum Do {
    Effect(Effect),
    /// Accept a fleet file.
    Accept(Box<NewFile>, Vec<Change>),
}

/// What became of an effect.
enum Carried {
    /// It is done.
    Out,
    /// People have said something meanwhile: it is to be decided anew.
    Overtaken,
}

/// Effects of the hub that wait for their records to become durable.
#[derive(Debug)]
struct Held {
    records: Vec<Record>,
    dependent: Vec<HubEffect>,
    later: Vec<HubEffect>,
}

/// Something that happens in a life.
#[derive(Debug)]
pub enum Within {
    /// The next part of a pass.
    Pass,
    /// A pass is due, if nothing woke the loop since.
    PassDue(u64),
    /// The next effect of a strand.
    Strand(u64),
    /// The hub looks at the time.
    Tick,
    /// The hub's next records become durable.
    Store,
    /// What the hub told is taken note of.
    Notices,
    /// A driver is due to be looked at, if nobody asked since.
    Observe(DriverName, u64),
    /// A listing sees what is.
    Lists(DriverName),
    /// A listing has ended.
    Listed(DriverName, Result<Vec<vm_agent_schemas::observe::Instance>, String>),
    /// A step calls its driver.
    Call(u64),
    /// A call of a step was answered, or nobody waits for it any more.
    Called(u64, Called),
    /// A nonce was read back, or not.
    Proved(u64, Option<Nonce>),
    /// A step's end is written down.
    Settle(u64),
}

impl World {
    /// A life begins.
    pub(crate) fn begin_life(&mut self) {
        if self.life.is_some() {
            return;
        }
        let now = self.clock.wall();
        let found = (|| {
            let number = store::meta::next_life(&self.disk)?;
            let (records, file) = disk::read(&self.disk, number)?;
            Ok::<_, StoreError>((records, file))
        })();
        let (records, file) = found.expect("the database in memory reads");
        let records = match file {
            Some(file) => disk::with_file(records, file).expect("a file that was accepted reads"),
            None => records,
        };
        let mut records = records;
        if records.owner.is_none() {
            let owner = vm_agent_schemas::names::FleetName::default();
            disk::belong_to(&self.disk, &owner).expect("the database in memory writes");
            records.owner = Some(owner);
        }
        let records = Arc::new(records);
        let number = records.life.0;
        self.trace(|| format!("life {number} begins"));
        let left = self.left.take();
        self.tell(&Deed::Began { left, found: Arc::clone(&records) });
        let observers = self.drivers.keys().map(|name| (*name, Observer::default())).collect();
        let hub = Hub::new(records.owner.clone().unwrap_or_default(), HEARTBEAT);
        self.life = Some(Life {
            number,
            records: Arc::clone(&records),
            began: now,
            memory: Memory::default(),
            hub,
            observers,
            pass: Pass::Asleep,
            woken: false,
            timer: 0,
            strands: BTreeMap::new(),
            last_strand: 0,
            jobs: BTreeMap::new(),
            last_job: 0,
            held: VecDeque::new(),
            storing: false,
            holes: Holes::default(),
            notices: Vec::new(),
        });
        let unfinished = store::tasks::unfinished(&self.disk).expect("the database in memory reads");
        let known = |task: &Task| self.log.known(TaskRef { task: task.id, attempt: task.attempt });
        let unfinished = unfinished.into_iter().map(|task| (task.clone(), known(&task))).collect();
        let waiting = store::messages::remembered(&self.disk).expect("the database in memory reads");
        for call in life::first_words(&records, unfinished, waiting, now) {
            self.tell_hub(call);
        }
        let mut changes = vec![life::began(&records)];
        if self.rng.u8(..4) != 0 {
            // Whoever starts a controller usually wants the fleet up.
            changes.push(at_rest());
        }
        let _ = self.write(By::Person, changes, now);
        for name in self.drivers.keys().copied().collect::<Vec<_>>() {
            self.look_at(name);
        }
        self.within(0, Within::Tick);
        self.wake();
    }

    /// The life ends, wherever it is.
    pub(crate) fn end_life(&mut self) {
        let Some(life) = self.life.take() else { return };
        self.trace(|| format!("life {} ends", life.number));
        for run in life.jobs.values() {
            self.tell(&Deed::CallOver(run.job.operation.id));
            if let Some(call) = run.call {
                self.abandon(run.job.operation.driver, call);
            }
        }
        self.left = Some(life.records);
        // The program ends more often than the host goes down.
        if self.rng.u8(..3) == 0 {
            self.log.crash(&mut self.rng);
        }
        self.log.flush();
        self.cut_all();
    }

    /// Nobody waits for a call any more: it ends, unless its driver goes on by itself.
    fn abandon(&mut self, driver: DriverName, call: u64) {
        let Some(driver) = self.drivers.get_mut(&driver) else { return };
        if driver.capabilities.calls_outlive_controller {
            if let Some(call) = driver.calls.get_mut(&call) {
                call.waited_for = false;
            }
        } else {
            driver.calls.remove(&call);
        }
    }

    /// Something happens in the life with that number, if it still goes on.
    pub(crate) fn happens_within(&mut self, number: u64, event: Within) {
        if self.life.as_ref().is_none_or(|life| life.number != number) {
            return;
        }
        match event {
            Within::Pass => self.pass(),
            Within::PassDue(timer) => {
                if self.life().timer == timer {
                    self.wake();
                }
            }
            Within::Strand(id) => self.strand(id),
            Within::Tick => {
                self.hub(HubEvent::Tick);
                self.within(TICK, Within::Tick);
            }
            Within::Store => self.store(),
            Within::Notices => self.take_notices(),
            Within::Observe(driver, timer) => {
                if self.life().observers[&driver].timer == timer {
                    self.look_at(driver);
                }
            }
            Within::Lists(driver) => self.lists(driver),
            Within::Listed(driver, answer) => self.listed(driver, answer),
            Within::Call(job) => self.call(job),
            Within::Called(job, called) => self.called(job, called),
            Within::Proved(job, nonce) => {
                if let Some(run) = self.life_mut().jobs.get_mut(&job) {
                    run.proved = nonce;
                    self.settle(job);
                }
            }
            Within::Settle(job) => self.settle(job),
        }
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("a life goes on")
    }

    fn life_mut(&mut self) -> &mut Life {
        self.life.as_mut().expect("a life goes on")
    }

    /// Something is to happen in this life.
    fn within(&mut self, delay: Millis, event: Within) {
        let number = self.life().number;
        self.after(delay, Event::Within(number, event));
    }

    // The loop.

    /// Asks for a pass.
    pub(crate) fn wake(&mut self) {
        let life = self.life_mut();
        life.woken = true;
        if matches!(life.pass, Pass::Asleep) {
            life.woken = false;
            life.pass = Pass::Begins;
            life.timer += 1;
            self.soon(Within::Pass);
        }
    }

    fn soon(&mut self, event: Within) {
        let delay = self.latency();
        self.within(delay, event);
    }

    fn pass(&mut self) {
        match std::mem::replace(&mut self.life_mut().pass, Pass::CarriesOut) {
            Pass::Begins => {
                let records = Arc::clone(&self.life().records);
                self.life_mut().pass = Pass::HasRecords(records);
                self.soon(Within::Pass);
            }
            Pass::HasRecords(records) => self.decide(&records),
            asleep => self.life_mut().pass = asleep,
        }
    }

    /// Everything that a plan is made from, were the records these.
    pub(crate) fn inputs(&mut self, records: &Records) -> Inputs {
        let (clock, mono) = (self.clock.wall(), self.clock.mono);
        let life = self.life.as_mut().expect("a life goes on");
        let drivers = &self.drivers;
        let view = |(name, observer): (&DriverName, &Observer)| {
            (*name, observer.sight.view(drivers[name].capabilities.clone(), life.began))
        };
        let moment = Moment {
            drivers: life.observers.iter().map(view).collect(),
            sessions: life.hub.sessions(),
            silence: silence(HEARTBEAT),
            clock,
            monotonic: Duration::from_millis(mono),
            unread: BTreeMap::new(),
        };
        life.memory.inputs(records, moment)
    }

    fn decide(&mut self, records: &Records) {
        let inputs = Arc::new(self.inputs(records));
        let mut rng = self.rng.fork();
        let current = Arc::clone(&self.life().records);
        match turn(&inputs, &current, &hub_address(), &mut || rng.f64()) {
            Turn::Note(changes) => {
                let whose = Whose::Pass(Arc::clone(&inputs), None);
                self.begin_strand(vec![vec![Effect::Announce(changes, inputs.said)]], inputs.now, whose);
            }
            Turn::Act(mut act) => {
                self.tell(&Deed::Acted { inputs: Arc::clone(&inputs), plan: Arc::new(act.plan.clone()) });
                let life = self.life_mut();
                let listings = life.observers.iter().map(|(name, it)| (*name, it.sight.listing.as_ref()));
                let told = life.memory.driver_events(listings);
                let told = told.into_iter().chain(life.memory.clock_event()).map(Change::Event).collect();
                let mut sequences = vec![vec![Effect::Record(told)]];
                sequences.append(&mut act.sequences);
                let begins = sequences.iter().flatten().any(|effect| matches!(effect, Effect::Begin(_)));
                let (now, whose) = (inputs.now, Whose::Pass(Arc::clone(&inputs), Some(act)));
                self.begin_strand(sequences, now, whose);
                // People like to say something just when it has been decided otherwise.
                if begins && !self.calm && self.rng.u8(..8) == 0 {
                    let soon = self.rng.u64(..5);
                    self.after(soon, Event::Remark);
                }
            }
        }
    }

    fn sleep_until(&mut self, at: Option<Timestamp>) {
        let until = |at: Timestamp| Duration::try_from(at.duration_since(self.clock.wall())).unwrap_or_default();
        let pause = at.map_or(PASS_EVERY, |at| (until(at) + Duration::from_millis(1)).min(PASS_EVERY));
        self.sleep_for(u64::try_from(pause.as_millis()).unwrap_or(STORE_PAUSE));
    }

    fn sleep_for(&mut self, pause: Millis) {
        let life = self.life_mut();
        life.pass = Pass::Asleep;
        if life.woken {
            return self.wake();
        }
        let timer = life.timer;
        self.within(pause, Within::PassDue(timer));
    }

    // Effects.

    fn begin_strand(&mut self, sequences: Vec<Sequence>, now: Timestamp, whose: Whose) {
        let todo = sequences.into_iter().map(|it| it.into_iter().map(Do::Effect).collect()).collect();
        self.begin_to_do(todo, now, whose);
    }

    fn begin_to_do(&mut self, todo: VecDeque<VecDeque<Do>>, now: Timestamp, whose: Whose) {
        let life = self.life_mut();
        life.last_strand += 1;
        let id = life.last_strand;
        life.strands.insert(id, Strand { todo, now, whose });
        self.soon(Within::Strand(id));
    }

    /// What a person said is carried out.
    pub(crate) fn carry_out(&mut self, todo: Vec<Do>) {
        let now = self.clock.wall();
        self.begin_to_do(VecDeque::from([todo.into()]), now, Whose::Person);
    }

    /// The next effect of a strand.
    fn strand(&mut self, id: u64) {
        let Some(mut strand) = self.life_mut().strands.remove(&id) else { return };
        while strand.todo.front().is_some_and(VecDeque::is_empty) {
            strand.todo.pop_front();
        }
        let Some(next) = strand.todo.front_mut().and_then(VecDeque::pop_front) else {
            return self.strand_is_over(strand.whose, true);
        };
        let by = match &strand.whose {
            Whose::Pass(inputs, _) => By::Pass(Arc::clone(inputs)),
            Whose::Step(_) => By::Step,
            Whose::Person => By::Person,
        };
        match self.carry_out_one(next, by, strand.now) {
            Ok(Carried::Out) => {}
            Ok(Carried::Overtaken) => return self.pass_begins(),
            // What follows has been done.
            Err(StoreError::AlreadyExists { .. }) => {
                strand.todo.pop_front();
            }
            Err(_) => return self.strand_is_over(strand.whose, false),
        }
        if self.life.is_some() {
            self.life_mut().strands.insert(id, strand);
            self.soon(Within::Strand(id));
        }
    }

    fn pass_begins(&mut self) {
        self.life_mut().pass = Pass::Begins;
        self.soon(Within::Pass);
    }

    fn strand_is_over(&mut self, whose: Whose, done: bool) {
        match whose {
            Whose::Pass(_, None) if done => self.pass_begins(),
            Whose::Pass(_, Some(act)) if done && act.down => {
                let now = self.clock.wall();
                let _ = self.write(By::Teller, vec![at_rest()], now);
                self.trace(|| "the fleet is down".to_owned());
                self.end_life();
                self.start_again();
            }
            Whose::Pass(_, Some(act)) if done => self.sleep_until(act.wake_at),
            Whose::Pass(..) => self.sleep_for(STORE_PAUSE),
            Whose::Step(job) if done => {
                self.life_mut().jobs.remove(&job);
            }
            Whose::Step(job) => self.within(STORE_PAUSE, Within::Settle(job)),
            Whose::Person => {}
        }
    }

    fn carry_out_one(&mut self, next: Do, by: By, now: Timestamp) -> Result<Carried, StoreError> {
        match next {
            Do::Effect(Effect::Record(changes)) => {
                // A store that is full fails in its own way; nothing is known already.
                let recorded = self.write(by, changes, now);
                recorded.map_err(|error| match error {
                    StoreError::AlreadyExists { what, key } => {
                        panic!("what a pass records is new, and {what} {key} is not")
                    }
                    error => error,
                })?;
            }
            Do::Effect(Effect::Announce(changes, said)) => {
                if self.life().records.said != said {
                    return Ok(Carried::Overtaken);
                }
                self.write(by, changes, now)?;
            }
            Do::Effect(Effect::Accept(changes)) => self.write(by, changes, now)?,
            Do::Effect(Effect::Hub(call)) => self.tell_hub(call),
            Do::Effect(Effect::Declare) => {
                let declared = directory(&self.life().records, now);
                self.tell_hub(HubCall::Directory(declared));
            }
            // Nobody here has secrets: what they are is known at once.
            Do::Effect(Effect::Configure(agent, configuration, _)) => {
                self.tell_hub(HubCall::Configure(agent, *configuration));
            }
            // No driver here has a runtime to offer.
            Do::Effect(Effect::Upgrade(..)) => {}
            Do::Effect(Effect::Begin(job)) => {
                let life = self.life_mut();
                life.last_job += 1;
                let id = life.last_job;
                life.jobs.insert(id, Run { job, call: None, called: None, listing: None, proved: None });
                self.soon(Within::Call(id));
            }
            Do::Effect(Effect::GiveUp(step)) => {
                let under_way = self.life().jobs.iter().find(|(_, run)| run.job.operation.id == step);
                if let Some(id) = under_way.map(|(id, _)| *id) {
                    self.called(id, Called::GivenUp);
                }
            }
            Do::Effect(Effect::BroughtUp(began)) => self.life_mut().memory.brought_up(began),
            Do::Effect(Effect::Wake | Effect::Nudge) => self.wake(),
            Do::Accept(file, changes) => self.accept(*file, changes, now)?,
        }
        Ok(Carried::Out)
    }

    /// Makes changes durable, and then known.
    fn write(&mut self, by: By, changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.transaction(|conn| disk::write(conn, &changes, now).map(drop))?;
        let before = Arc::clone(&self.life().records);
        let known = Arc::make_mut(&mut self.life_mut().records);
        changes.iter().cloned().for_each(|change| known.apply(change));
        self.recorded(by, before, changes, now);
        Ok(())
    }

    fn accept(&mut self, file: NewFile, mut changes: Vec<Change>, now: Timestamp) -> Result<(), StoreError> {
        changes.extend(self.life().records.protections(&file.fleet));
        let (revision, _) = self.transaction(|conn| disk::accept(conn, &file, &changes, now))?;
        let before = Arc::clone(&self.life().records);
        let known = Arc::make_mut(&mut self.life_mut().records);
        known.accept(file, revision, now);
        changes.iter().cloned().for_each(|change| known.apply(change));
        self.recorded(By::Person, before, changes, now);
        Ok(())
    }

    fn recorded(&mut self, by: By, before: Arc<Records>, changes: Vec<Change>, at: Timestamp) {
        for change in &changes {
            self.trace(|| match change {
                Change::Event(event) => {
                    let agent = event.agent.as_ref().map(ToString::to_string).unwrap_or_default();
                    format!("event {:?} {agent}: {}", event.kind, event.message)
                }
                Change::Open(operation) => format!("open {} {}", operation.action, operation.agent),
                Change::Close(operation, _) => format!("close {} {}", operation.action, operation.agent),
                Change::Claim(claim) => format!("claim {} incarnation {}", claim.agent, claim.incarnation),
                Change::Learnt(agent, learnt) => format!(
                    "learnt {agent} proof {:?} standing {:?} protect {:?} mass {:?}",
                    learnt.proof, learnt.standing, learnt.protect, learnt.left_in_mass
                ),
                Change::Override(entry) => format!("override {} {:?}", entry.agent, entry.change.path()),
                other => {
                    let text = format!("{other:?}");
                    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
                }
            });
        }
        let after = Arc::clone(&self.life().records);
        self.tell(&Deed::Recorded { by, before, after, changes: Arc::new(changes), at });
    }

    /// Writes, all or nothing.
    fn transaction<T>(
        &mut self,
        write: impl FnOnce(&rusqlite::Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if self.disk_full_until > self.clock.mono {
            return Err(StoreError::Panicked);
        }
        let run = |sql: &str| self.disk.execute_batch(sql).expect("the database in memory keeps transactions");
        run("BEGIN");
        let written = write(&self.disk);
        run(if written.is_ok() { "COMMIT" } else { "ROLLBACK" });
        written
    }

    /// What is seen and planned now.
    #[must_use]
    pub fn present(&mut self) -> Option<(Arc<Inputs>, Arc<vm_agent_schemas::plan::Plan>)> {
        let records = Arc::clone(&self.life.as_ref()?.records);
        let inputs = self.inputs(&records);
        let plan = plan(&inputs);
        Some((Arc::new(inputs), Arc::new(plan)))
    }

    /// Whether a file is being accepted: one is after the other.
    pub(crate) fn is_accepting(&self) -> bool {
        let accepts = |strand: &Strand| strand.todo.iter().flatten().any(|it| matches!(it, Do::Accept(..)));
        self.life.as_ref().is_some_and(|life| life.strands.values().any(accepts))
    }

    /// Whether anything is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.life.as_ref().is_some_and(|life| {
            life.jobs.is_empty() && life.held.is_empty() && life.strands.is_empty() && matches!(life.pass, Pass::Asleep)
        })
    }
}

fn hub_address() -> HubAddress {
    HubAddress { url: "ws://127.0.0.1:9090/v1/runtime".to_owned(), pin: None, loopback: None }
}
