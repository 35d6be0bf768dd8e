//! Whatever happens in whatever order, some things hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, Nonce, SessionId, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Retry, Task, TaskState, Terms};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{Challenge, Configuration, FromHub, FromRuntime, Hello, TaskOutcome, TaskRef};

use super::world::{HEARTBEAT, at, credential, ended, health, hello, key, message, name, sign, submit, target, task};
use crate::state::{ConnId, Directory, Effect, Event, Hub, Inbound, Member, Notice, Record, StreamKey};

/// What kind of task is submitted.
#[derive(Debug, Clone, Copy)]
struct Kind {
    key: bool,
    idempotent: bool,
    retry: bool,
    deadline: bool,
    pool: bool,
}

fn kinds() -> impl Strategy<Value = Kind> {
    let kind = (any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.3));
    kind.prop_map(|(key, idempotent, retry, deadline, pool)| Kind { key, idempotent, retry, deadline, pool })
}

#[derive(Debug, Clone, Copy)]
enum Move {
    Open(u64),
    /// A whole handshake, as it should be.
    Join {
        conn: u64,
        agent: bool,
        boot: u64,
    },
    Hello {
        conn: u64,
        agent: bool,
        seed: u8,
        boot: u64,
        machine: bool,
    },
    Prove {
        conn: u64,
        seed: u8,
    },
    Started {
        conn: u64,
        task: usize,
    },
    Ended {
        conn: u64,
        task: usize,
        code: i32,
    },
    Garbage(u64),
    Close(u64),
    Submit {
        agent: bool,
        kind: Kind,
    },
    Cancel {
        task: usize,
    },
    Stream {
        agent: bool,
        key: u64,
    },
    Enroll {
        agent: bool,
        incarnation: u64,
    },
    Revoke {
        agent: bool,
    },
    Wait(i64),
    Stored(bool),
    /// The controller ends at once, and begins anew with what is durable.
    Restart {
        enroll_first: bool,
    },
}

fn moves() -> impl Strategy<Value = Move> {
    let conn = 0..5u64;
    prop_oneof![
        2 => conn.clone().prop_map(Move::Open),
        8 => (conn.clone(), any::<bool>(), 1..3u64).prop_map(|(conn, agent, boot)| Move::Join { conn, agent, boot }),
        4 => (conn.clone(), any::<bool>(), 1..3u8, 1..4u64, prop::bool::weighted(0.9))
            .prop_map(|(conn, agent, seed, boot, machine)| Move::Hello { conn, agent, seed, boot, machine }),
        4 => (conn.clone(), 1..3u8).prop_map(|(conn, seed)| Move::Prove { conn, seed }),
        6 => (conn.clone(), 0..8usize).prop_map(|(conn, task)| Move::Started { conn, task }),
        8 => (conn.clone(), 0..8usize, 0..3).prop_map(|(conn, task, code)| Move::Ended { conn, task, code }),
        2 => (0..8usize).prop_map(|task| Move::Cancel { task }),
        1 => conn.clone().prop_map(Move::Garbage),
        1 => conn.prop_map(Move::Close),
        4 => (any::<bool>(), kinds()).prop_map(|(agent, kind)| Move::Submit { agent, kind }),
        1 => (any::<bool>(), 0..9u64).prop_map(|(agent, key)| Move::Stream { agent, key }),
        2 => (any::<bool>(), 1..4u64).prop_map(|(agent, incarnation)| Move::Enroll { agent, incarnation }),
        1 => prop::bool::weighted(0.1).prop_map(|agent| Move::Revoke { agent }),
        2 => (1..10i64).prop_map(Move::Wait),
        8 => prop::bool::weighted(0.8).prop_map(Move::Stored),
        1 => any::<bool>().prop_map(|enroll_first| Move::Restart { enroll_first }),
    ]
}

/// One life of one machine: the agent, its claims so far, and the incarnation in the latest.
type MachineLife = (AgentName, u64, Incarnation);

const SLOTS: u32 = 2;

fn directory() -> Event {
    let member = Member { slots: SLOTS, ..Member::default() };
    let members = ["web", "db"].map(|agent| (name(agent), member.clone())).into();
    Event::Directory(Directory { members, allow: Vec::new() })
}

/// A record that is not durable yet, and the orders that wait for it.
struct Unstored {
    record: Record,
    orders: Vec<(ConnId, TaskRef)>,
    acks: Vec<(ConnId, TaskRef)>,
}

/// What a restart leaves.
#[derive(Default)]
struct Disk {
    credentials: BTreeMap<AgentName, Credential>,
    /// In the order in which they were accepted.
    tasks: Vec<Task>,
}

impl Disk {
    fn task(&self, id: TaskId) -> &Task {
        self.tasks.iter().find(|task| task.id == id).expect("tasks are stored before they are submitted")
    }

    fn put(&mut self, record: Record) {
        match record {
            Record::Task(task) => {
                let known = self.tasks.iter_mut().find(|known| known.id == task.id);
                *known.expect("tasks are stored before they are submitted") = task;
            }
            Record::Output { .. } | Record::Message(_) => {}
            // The controller may have removed or replaced it meanwhile.
            Record::Credential(credential) => {
                if let Some(known) = self.credentials.get_mut(&credential.agent)
                    && known.incarnation == credential.incarnation
                {
                    *known = credential;
                }
            }
        }
    }
}

/// The hub, and what a watcher from outside knows of it.
struct Watch {
    hub: Hub,
    now: i64,
    next_conn: u64,
    conns: BTreeMap<u64, ConnId>,
    hellos: BTreeMap<ConnId, Hello>,
    challenges: BTreeMap<ConnId, Challenge>,
    incarnations: BTreeMap<AgentName, u64>,
    claims: BTreeMap<AgentName, u64>,
    /// Those that were accepted, in order, as the hub knows them.
    tasks: Vec<Task>,
    /// Attempts that runtimes were told of, in order.
    attempts: Vec<TaskRef>,
    unstored: Vec<Unstored>,
    disk: Disk,
    sent_to: BTreeMap<TaskRef, MachineLife>,
    machines: BTreeMap<ConnId, MachineLife>,
    live: BTreeMap<AgentName, ConnId>,
    epochs: BTreeMap<AgentName, Epoch>,
    ended: BTreeMap<TaskId, TaskOutcome>,
    closed: BTreeSet<ConnId>,
}

impl Watch {
    fn new() -> Self {
        let mut watch = Self {
            hub: Hub::new("default".parse().unwrap(), HEARTBEAT),
            now: 0,
            next_conn: 0,
            conns: BTreeMap::new(),
            hellos: BTreeMap::new(),
            challenges: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            claims: BTreeMap::new(),
            tasks: Vec::new(),
            attempts: Vec::new(),
            unstored: Vec::new(),
            disk: Disk::default(),
            sent_to: BTreeMap::new(),
            machines: BTreeMap::new(),
            live: BTreeMap::new(),
            epochs: BTreeMap::new(),
            ended: BTreeMap::new(),
            closed: BTreeSet::new(),
        };
        for agent in [false, true] {
            watch.make(Move::Enroll { agent, incarnation: 1 });
        }
        watch.tell(directory());
        watch
    }

    fn agent(first: bool) -> &'static str {
        if first { "web" } else { "db" }
    }

    fn make(&mut self, step: Move) {
        if let Move::Join { conn, agent, boot } = step {
            self.make(Move::Open(conn));
            self.make(Move::Hello { conn, agent, seed: 1, boot, machine: true });
            return self.make(Move::Prove { conn, seed: 1 });
        }
        if let Move::Restart { enroll_first } = step {
            return self.restart(enroll_first);
        }
        if let Move::Enroll { agent, .. } = step
            && !self.incarnations.contains_key(&name(Self::agent(agent)))
        {
            // A machine takes far longer to make than records take to become durable, be it the second time.
            self.make(Move::Wait(1));
            self.make(Move::Stored(true));
        }
        if let Some(event) = self.event(step) {
            self.tell(event);
        }
    }

    fn tell(&mut self, event: Event) {
        let effects = self.hub.handle(event, at(self.now));
        self.check(&effects);
    }

    /// What is not durable is lost, and what waited for it was never sent.
    fn restart(&mut self, enroll_first: bool) {
        self.hub = Hub::new("default".parse().unwrap(), HEARTBEAT);
        self.unstored.clear();
        self.tell(directory());
        self.tasks.clone_from(&self.disk.tasks);
        self.closed.extend(std::mem::take(&mut self.conns).into_values());
        self.live.clear();
        self.epochs = self.disk.credentials.iter().map(|(agent, it)| (agent.clone(), it.epoch)).collect();
        let ends = self.disk.tasks.iter().filter_map(|task| Some((task.id, task.outcome()?.clone())));
        self.ended = ends.collect();
        let enrolls = self.disk.credentials.values().cloned();
        let mut enrolls = enrolls.map(|it| Event::Enroll(it, Some(Configuration::default()))).collect::<Vec<_>>();
        let open = self.disk.tasks.iter().filter(|task| task.outcome().is_none()).cloned().collect::<Vec<_>>();
        let removed = |task: &&Task| {
            task.handed_to().is_some()
                && task.agent.as_ref().is_some_and(|agent| !self.disk.credentials.contains_key(agent))
        };
        let revokes =
            open.iter().filter(removed).filter_map(|task| task.agent.clone().map(Event::Revoke)).collect::<Vec<_>>();
        let mut events = open.iter().map(submit).collect::<Vec<_>>();
        if enroll_first {
            enrolls.append(&mut events);
            events = enrolls;
        } else {
            events.append(&mut enrolls);
        }
        events.into_iter().chain(revokes).for_each(|event| self.tell(event));
    }

    /// Whether the records could be stored. If so, what waited for them is sent.
    fn settle(&mut self, well: bool) -> Event {
        let unstored = std::mem::take(&mut self.unstored);
        let records = unstored.iter().map(|it| it.record.clone()).collect();
        if !well {
            return Event::StoreFailed(records);
        }
        for Unstored { record, orders, acks } in unstored {
            self.disk.put(record);
            for (conn, task) in orders {
                self.check_order(conn, task);
            }
            for (conn, ack) in acks {
                self.check_ack(conn, ack);
            }
        }
        Event::Stored(records)
    }

    /// An attempt goes only to the incarnation that its durable record names, and never to two.
    fn check_order(&mut self, conn: ConnId, attempt: TaskRef) {
        let machine = self.machines[&conn].clone();
        let task = self.disk.task(attempt.task);
        assert_eq!((task.attempt, &task.state), (attempt.attempt, &TaskState::Sent { incarnation: machine.2 }));
        assert_eq!(task.agent.as_ref(), Some(&machine.0));
        let former = self.sent_to.insert(attempt, machine.clone());
        assert!(former.as_ref().is_none_or(|former| *former == machine), "sent to {former:?} and to {machine:?}");
        self.attempts.push(attempt);
    }

    /// What is acknowledged to the machine that did it is durably over, whatever became of the task.
    fn check_ack(&self, conn: ConnId, ack: TaskRef) {
        let Some(task) = self.disk.tasks.iter().find(|task| task.id == ack.task) else { return };
        let is_over = task.outcome().is_some() || task.attempt > ack.attempt;
        assert!(
            is_over || self.sent_to.get(&ack) != self.machines.get(&conn),
            "{ack:?} is acknowledged, and the disk has {task:?}"
        );
    }

    /// Of one key and agent one task is under way at a time, and no agent has more of them than slots.
    fn check_lines(&self) {
        let mut lines = BTreeSet::new();
        let mut under_way = BTreeMap::new();
        for task in self.tasks.iter().filter(|task| task.handed_to().is_some()) {
            assert!(lines.insert((task.agent.clone(), task.terms.key.clone())), "two of a key: {task:?}");
            *under_way.entry(task.agent.clone()).or_insert(0) += 1;
        }
        assert!(under_way.values().all(|under_way| *under_way <= SLOTS), "{under_way:?}");
    }

    /// No task of an agent overtakes one of its key that was accepted before.
    fn check_turn(&self, ordered: &Task) {
        let before =
            self.tasks.iter().take_while(|task| task.id != ordered.id).filter(|task| {
                task.pool.is_none() && task.agent == ordered.agent && task.terms.key == ordered.terms.key
            });
        let waiting = before.filter(|task| task.outcome().is_none()).collect::<Vec<_>>();
        assert!(ordered.pool.is_some() || waiting.is_empty(), "{ordered:?} overtakes {waiting:?}");
    }

    fn note(&mut self, task: &Task) {
        let known = self.tasks.iter_mut().find(|known| known.id == task.id);
        known.expect("tasks are submitted before they are stored again").clone_from(task);
    }

    fn from(&self, conn: u64, body: FromRuntime) -> Option<Event> {
        let conn = *self.conns.get(&conn)?;
        let agent = self.hellos.get(&conn).map_or(name("web"), |hello| hello.agent.clone());
        Some(Event::Received { conn, inbound: message(agent.as_str(), body) })
    }

    /// One of the attempts that were told last.
    fn recent(&self, number: usize) -> Option<TaskRef> {
        self.attempts.iter().rev().nth(number).copied()
    }

    fn task(&self, agent: bool, kind: Kind) -> Task {
        let retry = Retry { attempts: 2, ..Retry::default() };
        let terms = Terms {
            timeout: Span::from_secs(60),
            deadline: kind.deadline.then(|| at(self.now + 20)),
            idempotent: Some(kind.idempotent),
            retry: kind.retry.then_some(retry),
            key: kind.key.then(|| "key".to_owned()),
        };
        let task = Task { terms, ..task(Self::agent(agent)) };
        if kind.pool { Task { agent: None, pool: Some("!none".parse().unwrap()), ..task } } else { task }
    }

    /// From now on everything goes well: every task that was accepted comes to its end.
    fn come_to_rest(&mut self) {
        for agent in [false, true] {
            self.make(Move::Enroll { agent, incarnation: 10 });
            self.make(Move::Join { conn: u64::from(agent), agent, boot: 1 });
        }
        for _ in 0..200 {
            self.make(Move::Stored(true));
            for attempt in std::mem::take(&mut self.attempts) {
                for conn in [0, 1] {
                    self.make_event(|watch| watch.from(conn, ended(attempt, 0)));
                }
            }
            self.make(Move::Stored(true));
            if self.disk.tasks.iter().all(|task| task.outcome().is_some()) {
                return;
            }
            for conn in [0, 1] {
                self.make_event(|watch| watch.from(conn, FromRuntime::Health(health())));
            }
            self.make(Move::Wait(10));
        }
        panic!("these never end: {:?}", self.disk.tasks.iter().filter(|it| it.outcome().is_none()).collect::<Vec<_>>());
    }

    fn make_event(&mut self, event: impl FnOnce(&Self) -> Option<Event>) {
        if let Some(event) = event(self) {
            self.tell(event);
        }
    }

    fn event(&mut self, step: Move) -> Option<Event> {
        match step {
            Move::Join { .. } | Move::Restart { .. } => None,
            Move::Open(conn) => {
                self.next_conn += 1;
                let id = ConnId(self.next_conn);
                self.conns.insert(conn, id);
                let challenge = Nonce::from_text(format!("challenge {}", self.next_conn));
                self.challenges.insert(id, Challenge { challenge: challenge.clone() });
                let (peer, session) = ("127.0.0.1:1".parse().unwrap(), SessionId::generate());
                Some(Event::Opened { conn: id, peer, since: at(self.now), challenge, session })
            }
            Move::Hello { conn, agent, seed, boot, machine } => {
                let id = *self.conns.get(&conn)?;
                let agent = Self::agent(agent);
                let incarnation = Incarnation(*self.incarnations.get(&name(agent)).unwrap_or(&1));
                let machine_id = Digest::of(if machine { b"one" } else { b"two" });
                let hello = Hello { incarnation, machine_id, boot: Boot(boot), ..hello(agent, seed) };
                self.hellos.entry(id).or_insert_with(|| hello.clone());
                Some(Event::Received { conn: id, inbound: message(agent, FromRuntime::Hello(hello)) })
            }
            Move::Prove { conn, seed } => {
                let id = self.conns.get(&conn)?;
                let proof = sign(&key(seed), self.challenges.get(id)?, self.hellos.get(id)?);
                self.from(conn, proof)
            }
            Move::Started { conn, task } => self.from(conn, FromRuntime::TaskStarted(self.recent(task)?)),
            Move::Ended { conn, task, code } => self.from(conn, ended(self.recent(task)?, code)),
            Move::Garbage(conn) => {
                let inbound = Inbound::Invalid("garbage".to_owned());
                Some(Event::Received { conn: *self.conns.get(&conn)?, inbound })
            }
            Move::Close(conn) => Some(Event::Closed { conn: self.conns.remove(&conn)? }),
            Move::Submit { agent, kind } => {
                let task = self.task(agent, kind);
                self.tasks.push(task.clone());
                self.disk.tasks.push(task.clone());
                Some(submit(&task))
            }
            Move::Cancel { task } => {
                Some(Event::CancelTask { task: self.tasks.get(task)?.id, by: "somebody".to_owned() })
            }
            Move::Stream { agent, key } => {
                let agent = name(Self::agent(agent));
                Some(Event::OpenStream { key: StreamKey(key), agent, target: target(), stdin: true })
            }
            Move::Enroll { agent, incarnation } => {
                let agent = Self::agent(agent);
                let credential = credential(agent, incarnation);
                let known = self.incarnations.entry(name(agent)).or_default();
                if incarnation > *known {
                    *known = incarnation;
                    self.disk.credentials.insert(name(agent), credential.clone());
                }
                Some(Event::Enroll(credential, Some(Configuration::default())))
            }
            Move::Revoke { agent } => {
                let agent = name(Self::agent(agent));
                // A machine that is made anew has a new claim, with epochs of its own.
                self.epochs.remove(&agent);
                self.incarnations.remove(&agent);
                self.disk.credentials.remove(&agent);
                *self.claims.entry(agent.clone()).or_default() += 1;
                Some(Event::Revoke(agent))
            }
            Move::Wait(seconds) => {
                self.now += seconds;
                Some(Event::Tick)
            }
            Move::Stored(well) => Some(self.settle(well)),
        }
    }

    fn check(&mut self, effects: &[Effect]) {
        let mut stores = false;
        for effect in effects {
            match effect {
                Effect::Send { conn, body, .. } => {
                    self.check_send(*conn, body);
                    if let FromHub::Task(order) = body {
                        assert!(stores, "a task is sent, and not stored before");
                        let last = self.unstored.last_mut().expect("it was stored just now");
                        last.orders.push((*conn, order.task));
                        let task = self.tasks.iter().find(|task| task.id == order.task.task);
                        self.check_turn(task.expect("it was submitted"));
                    }
                    if let (FromHub::TaskAck(ack), true, Some(last)) = (body, stores, self.unstored.last_mut()) {
                        last.acks.push((*conn, *ack));
                    }
                }
                Effect::SendData { conn, .. } | Effect::Deliver { conn, .. } => {
                    assert!(self.live.values().any(|live| live == conn));
                }
                Effect::Close { conn } => {
                    assert!(self.closed.insert(*conn), "closed twice");
                    self.live.retain(|_, live| live != conn);
                }
                Effect::Store(record) => {
                    stores = true;
                    self.unstored.push(Unstored { record: record.clone(), orders: Vec::new(), acks: Vec::new() });
                    self.check_record(record);
                }
                Effect::Notify(Notice::SessionClosed { agent, .. }) => {
                    self.live.remove(agent);
                }
                Effect::Shown { .. } | Effect::Distrusted { .. } => panic!("nobody asks where anything runs"),
                Effect::Notify(_) | Effect::Opening { .. } | Effect::Posted { .. } | Effect::Client { .. } => {}
            }
        }
        self.check_lines();
        let sessions = self.hub.sessions();
        assert!(sessions.iter().all(|session| self.live.contains_key(&session.agent)));
    }

    fn check_send(&mut self, conn: ConnId, body: &FromHub) {
        assert!(!self.closed.contains(&conn), "nothing is sent on a closed connection");
        match body {
            FromHub::Challenge(_) | FromHub::Refused(_) => {}
            FromHub::Welcome(_) => {
                let agent = self.hellos[&conn].agent.clone();
                let claim = self.claims.get(&agent).copied().unwrap_or_default();
                self.machines.insert(conn, (agent.clone(), claim, self.hellos[&conn].incarnation));
                assert_eq!(self.live.insert(agent, conn), None, "one session of an agent at a time");
            }
            other => assert!(self.live.values().any(|live| *live == conn), "{other:?} without a session"),
        }
    }

    fn check_record(&mut self, record: &Record) {
        match record {
            Record::Credential(credential) => {
                let former = self.epochs.insert(credential.agent.clone(), credential.epoch);
                assert!(former.is_none_or(|former| former < credential.epoch), "epochs grow");
                assert!(credential.binding.is_some() && credential.join.is_none());
            }
            Record::Task(task) => self.check_task(task),
            Record::Output { .. } | Record::Message(_) => {}
        }
    }

    fn check_task(&mut self, task: &Task) {
        self.note(task);
        match (self.ended.get(&task.id), task.outcome()) {
            (Some(former), now) => assert_eq!(Some(former), now, "an ended task never changes"),
            (None, Some(outcome)) => {
                self.ended.insert(task.id, outcome.clone());
            }
            (None, None) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_must_hold_holds_in_every_order(moves in prop::collection::vec(moves(), 1..120)) {
        let mut watch = Watch::new();
        for step in moves {
            watch.make(step);
        }
        watch.come_to_rest();
    }
}
