//! Whatever happens in whatever order, some things hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, Nonce, SessionId, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::TaskState;
use vm_agent_schemas::wire::{Challenge, Configuration, FromHub, FromRuntime, Hello, TaskOutcome, TaskRef};

use super::world::{HEARTBEAT, at, credential, ended, hello, key, message, name, run, sign, task};
use crate::state::{ConnId, Effect, Event, Hub, Inbound, Notice, Record, StreamKey};

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
}

fn moves() -> impl Strategy<Value = Move> {
    let conn = 0..5u64;
    prop_oneof![
        2 => conn.clone().prop_map(Move::Open),
        8 => (conn.clone(), any::<bool>(), 1..3u64).prop_map(|(conn, agent, boot)| Move::Join { conn, agent, boot }),
        4 => (conn.clone(), any::<bool>(), 1..3u8, 1..4u64, prop::bool::weighted(0.9))
            .prop_map(|(conn, agent, seed, boot, machine)| Move::Hello { conn, agent, seed, boot, machine }),
        4 => (conn.clone(), 1..3u8).prop_map(|(conn, seed)| Move::Prove { conn, seed }),
        6 => (conn.clone(), 0..6usize).prop_map(|(conn, task)| Move::Started { conn, task }),
        6 => (conn.clone(), 0..6usize, 0..3).prop_map(|(conn, task, code)| Move::Ended { conn, task, code }),
        1 => conn.clone().prop_map(Move::Garbage),
        1 => conn.prop_map(Move::Close),
        4 => any::<bool>().prop_map(|agent| Move::Submit { agent }),
        1 => (any::<bool>(), 0..9u64).prop_map(|(agent, key)| Move::Stream { agent, key }),
        2 => (any::<bool>(), 1..4u64).prop_map(|(agent, incarnation)| Move::Enroll { agent, incarnation }),
        1 => prop::bool::weighted(0.1).prop_map(|agent| Move::Revoke { agent }),
        2 => (1..10i64).prop_map(Move::Wait),
        8 => prop::bool::weighted(0.8).prop_map(Move::Stored),
    ]
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
    tasks: Vec<TaskRef>,
    unstored: Vec<Record>,
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
            tasks: Vec::new(),
            unstored: Vec::new(),
            live: BTreeMap::new(),
            epochs: BTreeMap::new(),
            ended: BTreeMap::new(),
            closed: BTreeSet::new(),
        };
        for agent in [false, true] {
            watch.make(Move::Enroll { agent, incarnation: 1 });
        }
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
        if let Some(event) = self.event(step) {
            let effects = self.hub.handle(event, at(self.now));
            self.check(&effects);
        }
    }

    fn from(&self, conn: u64, body: FromRuntime) -> Option<Event> {
        let conn = *self.conns.get(&conn)?;
        let agent = self.hellos.get(&conn).map_or(name("web"), |hello| hello.agent.clone());
        Some(Event::Received { conn, inbound: message(agent.as_str(), body) })
    }

    fn event(&mut self, step: Move) -> Option<Event> {
        match step {
            Move::Join { .. } => None,
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
            Move::Started { conn, task } => self.from(conn, FromRuntime::TaskStarted(*self.tasks.get(task)?)),
            Move::Ended { conn, task, code } => self.from(conn, ended(*self.tasks.get(task)?, code)),
            Move::Garbage(conn) => {
                let inbound = Inbound::Invalid("garbage".to_owned());
                Some(Event::Received { conn: *self.conns.get(&conn)?, inbound })
            }
            Move::Close(conn) => Some(Event::Closed { conn: self.conns.remove(&conn)? }),
            Move::Submit { agent } => {
                let task = task(Self::agent(agent));
                self.tasks.push(super::world::of(&task));
                Some(Event::Submit(task))
            }
            Move::Stream { agent, key } => {
                let agent = name(Self::agent(agent));
                Some(Event::OpenStream { key: StreamKey(key), agent, run: run(), stdin: true })
            }
            Move::Enroll { agent, incarnation } => {
                let agent = Self::agent(agent);
                let known = self.incarnations.entry(name(agent)).or_default();
                *known = incarnation.max(*known);
                Some(Event::Enroll(credential(agent, incarnation), Configuration::default()))
            }
            Move::Revoke { agent } => {
                let agent = name(Self::agent(agent));
                // A machine that is made anew has a new claim, with epochs of its own.
                self.epochs.remove(&agent);
                self.incarnations.remove(&agent);
                Some(Event::Revoke(agent))
            }
            Move::Wait(seconds) => {
                self.now += seconds;
                Some(Event::Tick)
            }
            Move::Stored(well) => {
                let records = std::mem::take(&mut self.unstored);
                Some(if well { Event::Stored(records) } else { Event::StoreFailed(records) })
            }
        }
    }

    fn check(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Send { conn, body, .. } => self.check_send(*conn, body),
                Effect::SendData { conn, .. } => assert!(self.live.values().any(|live| live == conn)),
                Effect::Close { conn } => {
                    assert!(self.closed.insert(*conn), "closed twice");
                    self.live.retain(|_, live| live != conn);
                }
                Effect::Store(record) => {
                    self.unstored.push(record.clone());
                    self.check_record(record);
                }
                Effect::Notify(Notice::SessionClosed { agent, .. }) => {
                    self.live.remove(agent);
                }
                Effect::Notify(_) | Effect::Opening { .. } | Effect::Client { .. } => {}
            }
        }
        let sessions = self.hub.sessions();
        assert!(sessions.iter().all(|session| self.live.contains_key(&session.agent)));
    }

    fn check_send(&mut self, conn: ConnId, body: &FromHub) {
        assert!(!self.closed.contains(&conn), "nothing is sent on a closed connection");
        match body {
            FromHub::Challenge(_) | FromHub::Refused(_) => {}
            FromHub::Welcome(_) => {
                let agent = self.hellos[&conn].agent.clone();
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
            Record::Task(task) => {
                let state = match &task.state {
                    TaskState::Ended { outcome } => Some(outcome),
                    TaskState::Queued | TaskState::Running { .. } => None,
                };
                match (self.ended.get(&task.id), state) {
                    (Some(former), now) => assert_eq!(Some(former), now, "an ended task never changes"),
                    (None, Some(outcome)) => {
                        self.ended.insert(task.id, outcome.clone());
                    }
                    (None, None) => {}
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_must_hold_holds_in_every_order(moves in prop::collection::vec(moves(), 1..120)) {
        let mut watch = Watch::new();
        for step in moves {
            watch.make(step);
        }
    }
}
