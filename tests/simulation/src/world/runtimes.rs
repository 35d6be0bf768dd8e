//! What runtimes say and do.

use std::sync::Arc;

use vm_agent_hub::state::ConnId;
use vm_agent_schemas::ids::Epoch;
use vm_agent_schemas::task::Work;
use vm_agent_schemas::wire::{FromHub, FromRuntime, Refused, TaskFollow, TaskOrder, TaskOutcome, TaskRef};

use crate::clock::SECOND;
use crate::deed::Deed;
use crate::net::{Peer, Wire};
use crate::runtime::{Known, Runtime, ended, health};
use crate::world::{Event, World};

impl World {
    /// The runtime at the far end, if it is still the same run of it.
    pub(super) fn peer(&mut self, peer: &Peer) -> Option<&mut Runtime> {
        match peer {
            Peer::Machine { driver, instance, run } => {
                self.runtime_in(*driver, instance).filter(|runtime| runtime.up && runtime.run == *run)
            }
            Peer::Ghost(index) => self.ghosts.get_mut(*index),
        }
    }

    /// Whether a connection leads to the life that goes on.
    pub(super) fn leads_here(&self, conn: ConnId) -> bool {
        let number = self.life.as_ref().map(|life| life.number);
        self.net.conns.get(&conn).is_some_and(|conn| Some(conn.life) == number)
    }

    pub(super) fn connect(&mut self, peer: Peer) {
        let now = self.clock.mono;
        if self.peer(&peer).is_none_or(|it| it.wire.is_some() || it.given_up) {
            return;
        }
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
    pub(super) fn reconnect(&mut self, peer: Peer) {
        let delay = self.rng.u64(100..4 * SECOND);
        if matches!(peer, Peer::Machine { .. }) {
            self.after(delay, Event::Connect(peer));
        }
    }

    pub(super) fn heartbeat(&mut self, peer: Peer) {
        let Some(runtime) = self.peer(&peer) else { return };
        let (wire, silent) = (runtime.wire.filter(|wire| wire.welcomed), runtime.silent);
        let Some(wire) = wire else { return };
        if !silent {
            self.send_to_hub(wire.conn, health());
        }
        self.after(30 * SECOND, Event::Heartbeat(peer));
    }

    pub(super) fn task_over(&mut self, peer: &Peer, task: TaskRef, outcome: TaskOutcome) {
        let Some(runtime) = self.peer(peer) else { return };
        let Some(known @ Known::Started) = runtime.known(task) else { return };
        *known = Known::Ended(outcome.clone());
        let wire = runtime.wire.filter(|wire| wire.welcomed);
        if let Some(wire) = wire {
            self.send_to_hub(wire.conn, ended(task, outcome));
        }
    }

    pub(super) fn runtime_hears(&mut self, conn: ConnId, body: FromHub) {
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
            FromHub::TaskFollow(TaskFollow { task, .. }) => {
                if let Some(Known::Ended(outcome) | Known::Settled(outcome)) = runtime.known(task).cloned() {
                    self.send_to_hub(conn, ended(task, outcome));
                }
            }
            FromHub::TaskCancel(task) => {
                if let Some(known @ Known::Started) = runtime.known(task) {
                    *known = Known::Ended(TaskOutcome::Canceled);
                    self.send_to_hub(conn, ended(task, TaskOutcome::Canceled));
                }
            }
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
    pub(super) fn ordered(&mut self, conn: ConnId, peer: &Peer, order: &TaskOrder) {
        let task = order.task;
        let runtime = self.peer(peer).expect("it was just looked at");
        let end = match runtime.known(task).cloned() {
            Some(Known::Started) => None,
            Some(Known::Ended(outcome) | Known::Settled(outcome)) => Some(outcome),
            None => {
                runtime.journal.push((task, Known::Started));
                let Work::Exec { argv } = &order.job.work else { unreachable!("people here only run programs") };
                let number = |index: usize| argv.get(index).and_then(|text| text.parse().ok());
                let (code, takes) =
                    (number(1).unwrap_or(0), number(2).map_or(SECOND, |it: i32| it.unsigned_abs().into()));
                let (takes, outcome) = if takes > order.timeout_ms {
                    (order.timeout_ms, TaskOutcome::TimedOut)
                } else {
                    (takes, TaskOutcome::Exited { code })
                };
                self.trace(|| format!("{peer:?} runs a task"));
                self.tell(&Deed::Ran(task));
                self.after(takes, Event::TaskOver(peer.clone(), task, outcome));
                None
            }
        };
        self.send_to_hub(conn, FromRuntime::TaskStarted(task));
        if let Some(outcome) = end {
            self.send_to_hub(conn, ended(task, outcome));
        }
    }

    /// A session was accepted.
    pub(crate) fn welcomed(&mut self, conn: ConnId, epoch: Epoch) {
        let Some(peer) = self.net.conns.get(&conn).map(|conn| conn.peer.clone()) else { return };
        let records = self.life.as_ref().map(|life| Arc::clone(&life.records));
        let (Some(runtime), Some(records)) = (self.peer(&peer), records) else { return };
        let (agent, incarnation, boot) = (runtime.seed.agent.clone(), runtime.seed.incarnation, runtime.boot);
        self.trace(|| format!("{peer:?} is welcome (epoch {epoch}, boot {boot})"));
        self.tell(&Deed::Welcomed { agent, incarnation, boot, epoch, records });
    }
}
