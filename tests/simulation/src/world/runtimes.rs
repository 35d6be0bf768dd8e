//! What runtimes say and do.

use std::sync::Arc;

use jiff::Timestamp;
use vm_agent_hub::state::ConnId;
use vm_agent_schemas::ids::{Epoch, MessageId};
use vm_agent_schemas::message::{Message, MessageState, Post};
use vm_agent_schemas::task::Work;
use vm_agent_schemas::wire::{
    Address, Envelope, FromHub, FromRuntime, MessageRef, Refused, TaskFollow, TaskOrder, TaskOutcome, TaskRef,
};

use crate::clock::SECOND;
use crate::deed::Deed;
use crate::net::{Peer, Wire};
use crate::runtime::{Attempt, Known, Runtime, Told, health};
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

    pub(super) fn runtime_hears(&mut self, conn: ConnId, envelope: Envelope<FromHub>) {
        let Some(peer) = self.net.open(conn).map(|conn| conn.peer.clone()) else { return };
        let Some(runtime) = self.peer(&peer).filter(|it| it.wire.is_some_and(|wire| wire.conn == conn)) else { return };
        let Envelope { id, from, body, .. } = envelope;
        match body {
            FromHub::Challenge(challenge) => {
                let proof = runtime.prove(&challenge);
                self.send_to_hub(conn, proof);
            }
            FromHub::Welcome(welcome) => {
                runtime.welcome();
                runtime.wire = Some(Wire { conn, welcomed: true });
                if let Some(configuration) = welcome.configuration {
                    runtime.configuration = Some(configuration);
                }
                let mut words = vec![runtime.configured()];
                words.extend(runtime.unsettled());
                let outbox = runtime.boxes.outbox.clone();
                words.into_iter().for_each(|word| self.send_to_hub(conn, word));
                outbox.into_iter().for_each(|outbound| self.send_letter(conn, outbound));
                self.after(SECOND, Event::Program(peer.clone()));
                self.after(30 * SECOND, Event::Heartbeat(peer));
            }
            FromHub::Configure(configuration) => {
                runtime.configuration = Some(configuration);
                let word = runtime.configured();
                self.send_to_hub(conn, word);
            }
            FromHub::Refused(Refused { retry, code, .. }) => {
                runtime.given_up = !retry;
                let joined = runtime.joined;
                self.trace(|| format!("{peer:?} is refused ({code})"));
                if joined && matches!(peer, Peer::Machine { .. }) {
                    self.tell(&Deed::Refused(code));
                }
            }
            FromHub::Rotate(challenge) if matches!(peer, Peer::Machine { .. }) => {
                let mut rng = self.rng.fork();
                let Some(runtime) = self.peer(&peer) else { return };
                let word = runtime.rotate(&challenge, &mut rng);
                self.send_to_hub(conn, word);
            }
            FromHub::RotateAck(ack) => {
                runtime.rotated(&ack.public_key);
                self.trace(|| format!("{peer:?} has another key"));
            }
            body => self.runtime_hears_of_work(conn, &peer, id, from, body),
        }
    }

    fn runtime_hears_of_work(&mut self, conn: ConnId, peer: &Peer, id: MessageId, from: Address, body: FromHub) {
        let Some(runtime) = self.peer(peer) else { return };
        match body {
            FromHub::Task(order) => self.ordered(conn, peer, &order),
            FromHub::TaskFollow(TaskFollow { task, stream, stdout, stderr }) => {
                if let Some(attempt) = runtime.attempt(task) {
                    attempt.follow(stream, [stdout, stderr]);
                    self.tell_of(peer, task);
                }
            }
            FromHub::TaskCancel(task) => {
                if let Some(attempt) = runtime.attempt(task).filter(|it| matches!(it.known, Known::Started)) {
                    attempt.known = Known::Ended(TaskOutcome::Canceled);
                    self.tell_of(peer, task);
                }
            }
            FromHub::TaskAck(task) => {
                if let Some(attempt) = runtime.attempt(task).filter(|it| matches!(it.known, Known::Ended(_))) {
                    attempt.known = Known::Settled;
                }
            }
            FromHub::Message(Post { subject, body, in_reply_to, .. }) => {
                let to = Address::Agent(runtime.seed.agent.clone());
                let (created_at, expires_at) = (Timestamp::MIN, Timestamp::MAX);
                let (author, state) = (None, MessageState::Waiting);
                let message =
                    Message { id, from, to, subject, body, in_reply_to, author, created_at, expires_at, state };
                let is_new = runtime.boxes.come(message);
                self.send_to_hub(conn, FromRuntime::MessageTaken(MessageRef { message: id }));
                if is_new {
                    let soon = self.rng.u64(1..2 * SECOND);
                    self.after(soon, Event::Program(peer.clone()));
                }
            }
            FromHub::MessageAccepted(MessageRef { message }) => {
                runtime.boxes.answered(message);
            }
            FromHub::MessageRefused(refused) => {
                runtime.boxes.answered(refused.message);
                self.trace(|| format!("{peer:?}: a message is refused ({:?})", refused.code));
            }
            _ => {}
        }
    }

    /// An order is carried out once, by what the journal knows.
    fn ordered(&mut self, conn: ConnId, peer: &Peer, order: &TaskOrder) {
        let task = order.task;
        let Some(runtime) = self.peer(peer) else { return };
        if let Some(attempt) = runtime.attempt(task) {
            attempt.follow(Some(order.stream), [0, 0]);
            self.send_to_hub(conn, FromRuntime::TaskStarted(task));
            return self.tell_of(peer, task);
        }
        let bound = order.job.output.bytes();
        let mut attempt = Attempt::new(task, Known::Started, bound);
        attempt.follow(Some(order.stream), [0, 0]);
        if self.rng.u8(..20) == 0 {
            attempt.known = Known::Ended(TaskOutcome::NotStarted { reason: "there is no such program".to_owned() });
            self.peer(peer).expect("it was just looked at").journal.push(attempt);
            return self.tell_of(peer, task);
        }
        self.peer(peer).expect("it was just looked at").journal.push(attempt);
        let Work::Exec { argv } = &order.job.work else { unreachable!("people here only run programs") };
        let number = |index: usize| argv.get(index).and_then(|text| text.parse::<u64>().ok());
        let code = i32::try_from(number(1).unwrap_or(0)).unwrap_or(1);
        let (mut takes, mut outcome) = (number(2).unwrap_or(SECOND), TaskOutcome::Exited { code });
        if takes > order.timeout_ms {
            (takes, outcome) = (order.timeout_ms, TaskOutcome::TimedOut);
        }
        self.trace(|| format!("{peer:?} runs a task (attempt {})", task.attempt));
        let others = self.running(task);
        self.tell(&Deed::Ran { task, others });
        for (index, most) in [number(3), number(4)].into_iter().enumerate() {
            for _ in 0..self.rng.u8(..4) {
                let (at, len) = (self.rng.u64(..=takes), self.rng.u64(..=most.unwrap_or(0)));
                self.after(at, Event::Writes(peer.clone(), task, index, len));
            }
        }
        self.after(takes, Event::TaskOver(peer.clone(), task, outcome));
        self.send_to_hub(conn, FromRuntime::TaskStarted(task));
    }

    /// The other attempts of a task that are being made anywhere.
    fn running(&self, task: TaskRef) -> Vec<TaskRef> {
        let machines = self.drivers.values().flat_map(|driver| driver.machines.values());
        let up = machines.filter_map(|machine| machine.runtime.as_ref()).filter(|runtime| runtime.up);
        up.flat_map(Runtime::running).filter(|it| it.task == task.task && it.attempt != task.attempt).collect()
    }

    /// What is kept of an attempt in some machine: how much it has written, and how much of that is kept.
    pub(crate) fn spooled(&self, task: TaskRef) -> Option<[u64; 2]> {
        let machines = self.drivers.values().flat_map(|driver| driver.machines.values());
        let mut attempts = machines.filter_map(|machine| machine.runtime.as_ref()).flat_map(|it| &it.journal);
        attempts.find(|attempt| attempt.task == task).map(|attempt| attempt.written)
    }

    pub(super) fn writes(&mut self, peer: &Peer, task: TaskRef, channel: usize, len: u64) {
        let attempt = self.peer(peer).and_then(|runtime| runtime.attempt(task));
        let Some(attempt) = attempt.filter(|it| matches!(it.known, Known::Started)) else { return };
        attempt.written[channel] += len;
        self.tell_of(peer, task);
    }

    pub(super) fn task_over(&mut self, peer: &Peer, task: TaskRef, outcome: TaskOutcome) {
        let attempt = self.peer(peer).and_then(|runtime| runtime.attempt(task));
        let Some(attempt) = attempt.filter(|it| matches!(it.known, Known::Started)) else { return };
        attempt.known = Known::Ended(outcome);
        self.tell_of(peer, task);
    }

    /// Tells the hub what it is to know of an attempt now.
    fn tell_of(&mut self, peer: &Peer, task: TaskRef) {
        let mut rng = self.rng.fork();
        let Some(runtime) = self.peer(peer) else { return };
        let Some(wire) = runtime.wire.filter(|wire| wire.welcomed) else { return };
        let Some(attempt) = runtime.attempt(task) else { return };
        for told in attempt.tell(&mut rng) {
            match told {
                Told::Data(frame) => self.send_data(wire.conn, frame),
                Told::End(word) => self.send_to_hub(wire.conn, word),
            }
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
