//! How connections become sessions, and how they end.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::credential::Credential;
use vm_agent_schemas::ids::{Boot, Digest, Epoch, Incarnation, RequestId, SessionId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{
    Address, Challenge, Configuration, Envelope, FromHub, FromRuntime, HANDSHAKE_LIMIT, HealthReport, Hello,
    RefusalCode, Refused, VERIFY, Welcome,
};

use super::handshake::{self, Refusal};
use super::log::LogMeter;
use super::meter::Meter;
use super::streams::Streams;
use super::verification::VerifyError;
use super::{
    CloseReason, ConnId, Connection, Effect, Enrolled, Hub, Inbound, Notice, Phase, Record, SessionInfo, elapsed,
    messages, tasks,
};
use crate::stream::StreamEvent;

/// Heartbeats, in halves, after which a runtime counts as silent: two may be lost, and half of one is
/// room for jitter. The connection is kept, since a runtime that was only suspended goes on with it.
const SILENT_AFTER_HALF_HEARTBEATS: u32 = 5;

/// Heartbeats after which the connection of a silent runtime is closed: by then it is more likely dead
/// than suspended, and a runtime that comes back reconnects at no cost.
const CLOSED_AFTER_HEARTBEATS: u32 = 10;

/// What a new session costs: each is stored and told, so that one runtime that comes and goes would keep the disk
/// busy for all. Two a second are far more than one that waits between its attempts makes in the long run.
const SESSION_COST: SignedDuration = SignedDuration::from_millis(500);

/// How much of that may be owed: 120 sessions at once.
const SESSIONS_OWED: SignedDuration = SignedDuration::from_secs(60);

/// The accepted connection of a runtime.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) agent: AgentName,
    pub(super) incarnation: Incarnation,
    pub(super) epoch: Epoch,
    boot: Boot,
    connected_at: Timestamp,
    last_seen: Timestamp,
    pub(super) runtime_version: String,
    pub(super) health: Option<HealthReport>,
    pub(super) configured: Option<Digest>,
    /// Whether it has said that.
    pub(super) told: bool,
    pub(super) problems: Vec<String>,
    pub(super) log: LogMeter,
    pub(super) streams: Streams,
    /// What its runtime has to sign with a new key, while it is asked for one.
    pub(super) rotating: Option<Challenge>,
    /// Whether its runtime can show where it runs.
    pub(super) verifies: bool,
    /// The question to which it has not answered that.
    pub(super) asked: Option<RequestId>,
    /// Whether the agent was busy at the last look.
    busy: bool,
    active_at: Timestamp,
    /// Whether the record that makes this a session is stored.
    pub(super) durable: bool,
    silent: bool,
}

impl Session {
    fn new(id: SessionId, credential: &Credential, hello: Hello, now: Timestamp) -> Self {
        Self {
            id,
            agent: credential.agent.clone(),
            incarnation: credential.incarnation,
            epoch: credential.epoch,
            boot: credential.boot,
            connected_at: now,
            last_seen: now,
            verifies: hello.abilities.contains(VERIFY),
            asked: None,
            runtime_version: hello.runtime_version,
            health: None,
            configured: None,
            told: false,
            problems: Vec::new(),
            log: LogMeter::default(),
            streams: Streams::default(),
            rotating: None,
            busy: false,
            active_at: now,
            durable: false,
            silent: false,
        }
    }

    /// Takes note that the runtime was heard. Answers whether it had been silent.
    pub(super) fn heard(&mut self, now: Timestamp) -> bool {
        self.last_seen = now;
        std::mem::take(&mut self.silent)
    }

    /// Takes note of whether the agent is busy, with so many tasks that are not over. Answers whether
    /// that has changed.
    fn looked_at(&mut self, tasks: u32, now: Timestamp) -> bool {
        let busy = self.is_busy(tasks);
        if busy || self.busy {
            self.active_at = now;
        }
        std::mem::replace(&mut self.busy, busy) != busy
    }

    fn is_busy(&self, tasks: u32) -> bool {
        tasks > 0 || self.streams.clients().next().is_some()
    }

    pub(super) fn info(&self, tasks: u32, running: u32, slots: u32, messages: u32) -> SessionInfo {
        SessionInfo {
            agent: self.agent.clone(),
            incarnation: self.incarnation,
            epoch: self.epoch,
            boot: self.boot,
            connected_at: self.connected_at,
            last_seen: self.last_seen,
            runtime_version: self.runtime_version.clone(),
            health: self.health.clone(),
            configured: self.configured.clone(),
            told: self.told,
            problems: self.problems.clone(),
            tasks,
            running,
            slots,
            messages,
            terminals: self.health.as_ref().map(|health| health.terminals.clone()).unwrap_or_default(),
            streams: u32::try_from(self.streams.clients().count()).unwrap_or(u32::MAX),
            busy: self.is_busy(tasks),
            active_at: self.active_at,
        }
    }
}

/// What silence means for a connection.
enum Silence {
    Fine,
    Silent,
    TooLong(&'static str),
}

impl Connection {
    fn silence(&self, heartbeat: Duration, now: Timestamp) -> Silence {
        match &self.phase {
            Phase::AwaitingHello | Phase::AwaitingProof(_) => {
                if elapsed(now, self.opened_at) > HANDSHAKE_LIMIT.get() {
                    return Silence::TooLong("the handshake took too long");
                }
            }
            Phase::Live(session) => {
                let silence = elapsed(now, session.last_seen);
                if silence > heartbeat * CLOSED_AFTER_HEARTBEATS {
                    return Silence::TooLong("the runtime has not been heard for too long");
                }
                if !session.silent && silence > heartbeat * SILENT_AFTER_HALF_HEARTBEATS / 2 {
                    return Silence::Silent;
                }
            }
        }
        Silence::Fine
    }
}

impl Hub {
    pub(super) fn opened(&mut self, conn: ConnId, connection: Connection) {
        self.connections.insert(conn, connection);
        if self.shutting_down {
            self.refuse(conn, going_down());
        }
    }

    pub(super) fn received(&mut self, conn: ConnId, inbound: Inbound, now: Timestamp) {
        let result = match self.connections.get(&conn).map(|connection| &connection.phase) {
            None => Ok(()),
            Some(Phase::AwaitingHello) => self.hello(conn, inbound, now),
            Some(Phase::AwaitingProof(hello)) => {
                let hello = hello.clone();
                self.proof(conn, *hello, inbound, now)
            }
            Some(Phase::Live(_)) => self.heard(conn, inbound, now),
        };
        if let Err(refusal) = result {
            self.refuse(conn, refusal);
        }
    }

    fn hello(&mut self, conn: ConnId, inbound: Inbound, now: Timestamp) -> Result<(), Refusal> {
        let (from, hello) = match inbound {
            Inbound::Message(Envelope { from, body: FromRuntime::Hello(hello), .. }) => (from, hello),
            Inbound::Invalid(why) => return Err(Refusal::protocol(why)),
            Inbound::Message(_) | Inbound::Data(_) => {
                return Err(Refusal::protocol("the first message of a connection is `hello`"));
            }
        };
        check_sender(&from, &hello.agent)?;
        let credential = self.agents.get(&hello.agent).map(|agent| &agent.credential);
        let verdict = handshake::check_hello(&hello, &self.fleet, credential, now);
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        // Also when it is refused: then the refusal names who it said to be.
        connection.phase = Phase::AwaitingProof(Box::new(hello));
        let challenge = connection.challenge.clone();
        verdict?;
        self.send(conn, FromHub::Challenge(challenge));
        Ok(())
    }

    fn proof(&mut self, conn: ConnId, hello: Hello, inbound: Inbound, now: Timestamp) -> Result<(), Refusal> {
        let (from, proof) = match inbound {
            Inbound::Message(Envelope { from, body: FromRuntime::Proof(proof), .. }) => (from, proof),
            Inbound::Invalid(why) => return Err(Refusal::protocol(why)),
            Inbound::Message(_) | Inbound::Data(_) => {
                return Err(Refusal::protocol("the answer to a challenge is `proof`"));
            }
        };
        check_sender(&from, &hello.agent)?;
        let (Some(agent), Some(connection)) = (self.agents.get_mut(&hello.agent), self.connections.get(&conn)) else {
            return Err(Refusal::new(RefusalCode::UnknownAgent, "the agent was removed meanwhile"));
        };
        let version = handshake::check_hello(&hello, &self.fleet, Some(&agent.credential), now)?;
        handshake::check_proof(&hello, &connection.challenge, &proof)?;
        // Only now: nobody else can use up what is the runtime's.
        if !agent.sessions.spend(SESSION_COST, SESSIONS_OWED, now) {
            return Err(Refusal::flow("the runtime connects again and again, far more often than it may"));
        }
        self.accept(conn, hello, version, now);
        Ok(())
    }

    fn accept(&mut self, conn: ConnId, hello: Hello, protocol: u32, now: Timestamp) {
        if let Some(older) = self.live(&hello.agent) {
            let message = "a newer session of the same runtime has taken the place of this one";
            self.refuse(older, Refusal::new(RefusalCode::Superseded, message));
        }
        let (Some(agent), Some(connection)) = (self.agents.get_mut(&hello.agent), self.connections.get_mut(&conn))
        else {
            return;
        };
        // Of one whose record is under way nobody may ever hear.
        let joined = agent.durable.1.is_none();
        let credential = handshake::accepted(&agent.credential, &hello);
        agent.credential = credential.clone();
        agent.live = Some(conn);
        let name = hello.agent.clone();
        connection.phase = Phase::Live(Box::new(Session::new(connection.session, &credential, hello, now)));
        let welcome = Welcome {
            protocol,
            session: connection.session,
            epoch: credential.epoch,
            heartbeat_ms: u64::try_from(self.heartbeat.as_millis()).unwrap_or(u64::MAX),
            configuration: agent.configuration.clone(),
        };
        let (incarnation, epoch) = (credential.incarnation, credential.epoch);
        self.effects.push(Effect::Store(Record::Credential(credential)));
        self.send(conn, FromHub::Welcome(welcome));
        if joined {
            self.notify(Notice::Joined { agent: name.clone(), incarnation });
        }
        self.notify(Notice::SessionOpened { agent: name.clone(), epoch });
        self.store_again(now);
        self.watch(&name, now);
        self.look_at(&name, now);
    }

    /// Tells the peer why, closes the connection and forgets it.
    pub(super) fn refuse(&mut self, conn: ConnId, refusal: Refusal) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let (peer, claimed) = (connection.peer, connection.phase.claimed().cloned());
        let live = matches!(connection.phase, Phase::Live(_));
        let Refusal { code, message } = refusal;
        self.send(conn, FromHub::Refused(Refused { code, message: message.clone(), retry: code.retry() }));
        self.effects.push(Effect::Close { conn });
        if !live {
            self.notify(Notice::Refused { agent: claimed, code, message: message.clone(), peer });
        }
        self.forget(conn, &CloseReason::Refused { code, message });
    }

    /// A connection is no more, and with it its session and the streams of that.
    pub(super) fn forget(&mut self, conn: ConnId, why: &CloseReason) {
        let Some(Connection { phase: Phase::Live(mut session), .. }) = self.connections.remove(&conn) else {
            return;
        };
        if let Some(agent) = self.agents.get_mut(&session.agent) {
            agent.live = None;
        }
        for key in session.streams.clients() {
            self.clients.remove(&key);
            self.effects.push(Effect::Client { key, event: StreamEvent::Lost(why.to_string()) });
        }
        if let Some(request) = session.asked {
            self.shown(request, Err(VerifyError::Offline));
        }
        let left_out = session.log.rest();
        let (agent, epoch) = (session.agent, session.epoch);
        self.watch(&agent, self.clock);
        self.tell_left_out(left_out.map(|lines| (agent.clone(), lines)));
        self.notify(Notice::SessionClosed { agent, epoch, why: why.clone() });
    }

    pub(super) fn overflowed(&mut self, conn: ConnId) {
        self.refuse(conn, Refusal::flow("the runtime does not read what it is sent"));
    }

    /// Who has proven who it is stays.
    pub(super) fn crowded(&mut self, conn: ConnId) {
        if self.session(conn).is_none() {
            let message = "the handshake took longest of all, and others wait at the door";
            self.refuse(conn, Refusal::new(RefusalCode::Silence, message));
        }
    }

    /// Tells how many lines of logs were left out, where no other line follows that tells it.
    fn tell_left_out(&mut self, left_out: impl IntoIterator<Item = (AgentName, u64)>) {
        for (agent, dropped) in left_out {
            self.notify(Notice::Log { agent, lines: Vec::new(), dropped });
        }
    }

    pub(super) fn tick(&mut self, now: Timestamp) {
        // Ticks come far more often than heartbeats. A gap means that the host slept or its clock was
        // set: then no runtime is to blame for its silence.
        let gap = self.last_tick.map(|last| elapsed(now, last)).filter(|gap| *gap > self.heartbeat);
        if let Some(gap) = gap {
            let grace = self.heartbeat * SILENT_AFTER_HALF_HEARTBEATS / 2;
            self.grace_until = now.saturating_add(grace).unwrap_or(now);
            self.tasks.postpone(gap, now);
        }
        self.last_tick = Some(now);
        if now >= self.grace_until {
            self.judge_silence(now);
        }
        let untold = self.connections.values_mut().filter_map(|connection| match &mut connection.phase {
            Phase::Live(session) => Some((session.agent.clone(), session.log.untold(now)?)),
            Phase::AwaitingHello | Phase::AwaitingProof(_) => None,
        });
        let untold: Vec<_> = untold.collect();
        self.tell_left_out(untold);
        self.tick_tasks(now);
        self.tick_messages(now);
    }

    /// Hands over what can be, takes note of whether an agent with a session is busy, and tells when that has
    /// changed. Whatever begins or ends a task or a stream of a client ends with this.
    pub(super) fn look_at(&mut self, agent: &AgentName, now: Timestamp) {
        self.deliver(agent, now);
        let tasks = self.tasks.open(agent);
        let session = self.live(agent).and_then(|conn| self.session_mut(conn));
        if session.is_some_and(|session| session.looked_at(tasks, now)) {
            self.notify(Notice::Activity { agent: agent.clone() });
        }
    }

    fn judge_silence(&mut self, now: Timestamp) {
        let silences: Vec<_> =
            self.connections.iter().map(|(conn, it)| (*conn, it.silence(self.heartbeat, now))).collect();
        for (conn, silence) in silences {
            match silence {
                Silence::Fine => {}
                Silence::TooLong(message) => self.refuse(conn, Refusal::new(RefusalCode::Silence, message)),
                Silence::Silent => {
                    if let Some(session) = self.session_mut(conn) {
                        session.silent = true;
                        let (agent, last_seen) = (session.agent.clone(), session.last_seen);
                        self.notify(Notice::SessionSilent { agent, last_seen });
                    }
                }
            }
        }
    }

    pub(super) fn store_failed(&mut self, records: &[Record]) {
        let mut agents = BTreeSet::new();
        for record in records {
            agents.extend(self.depends_on(record));
            match record {
                Record::Task(task) => self.task_not_stored(task),
                Record::Output { task, channel, offset, data } => {
                    self.output_not_stored(*task, *channel, *offset, data);
                }
                Record::Message(message) => self.message_not_stored(message),
                Record::Credential(credential) => self.credential_not_stored(credential),
            }
        }
        for conn in agents.into_iter().filter_map(|agent| self.live(&agent)).collect::<Vec<_>>() {
            self.refuse(conn, Refusal::new(RefusalCode::Internal, "the controller could not store what it must"));
        }
    }

    /// The epoch and the start stay: they only ever rise. A later record, if there is one, is whole.
    fn credential_not_stored(&mut self, credential: &Credential) {
        if let Some(agent) = self.agents.get_mut(&credential.agent).filter(|agent| agent.credential == *credential) {
            (agent.credential.join, agent.credential.binding) = agent.durable.clone();
        }
    }

    /// The agent whose session depends on a record.
    fn depends_on(&self, record: &Record) -> Option<AgentName> {
        match record {
            Record::Credential(credential) => Some(credential.agent.clone()),
            Record::Task(task) => task.agent.clone(),
            Record::Output { task, .. } => self.tasks.get(task.task)?.task.agent.clone(),
            Record::Message(message) => messages::waits_for(message).cloned(),
        }
    }

    pub(super) fn enroll(&mut self, credential: Credential, configuration: Option<Configuration>, now: Timestamp) {
        let agent = credential.agent.clone();
        if let Some(Enrolled { credential: known, durable, .. }) = self.agents.get_mut(&agent)
            && known.nonce == credential.nonce
            && known.incarnation >= credential.incarnation
        {
            // What is known here is ahead of what the caller read; only the join token can be newer.
            if known.incarnation == credential.incarnation && known.binding.is_none() {
                known.join = credential.join;
                durable.0.clone_from(&known.join);
            }
            return configuration.into_iter().for_each(|configuration| self.configure(&agent, configuration));
        }
        if let Some(conn) = self.live(&agent) {
            let message = format!("the incarnation was replaced by incarnation {}", credential.incarnation);
            self.refuse(conn, Refusal::new(RefusalCode::Incarnation, message));
        }
        let incarnation = credential.incarnation;
        // Epochs go on growing through incarnations: each fences all before it.
        let former = self.agents.get(&agent).map_or(Epoch(0), |known| known.credential.epoch);
        let credential = Credential { epoch: credential.epoch.max(former), ..credential };
        let configuration = configuration.filter(may_be_kept);
        let durable = (credential.join.clone(), credential.binding.clone());
        let replaced = self.agents.insert(
            agent.clone(),
            Enrolled { credential, durable, configuration, live: None, sessions: Meter::default() },
        );
        // Numbers of incarnations begin anew with a new claim: what took another's place is new whatever its
        // number.
        self.end_incarnations(&agent, replaced.is_none().then_some(incarnation), now);
    }

    pub(super) fn revoke(&mut self, agent: &AgentName, now: Timestamp) {
        if let Some(conn) = self.live(agent) {
            self.refuse(conn, Refusal::new(RefusalCode::Revoked, format!("agent `{agent}` was removed")));
        }
        self.agents.remove(agent);
        self.claims.remove(agent);
        self.end_tasks(agent, now);
        self.end_messages(now);
    }

    pub(super) fn configure(&mut self, agent: &AgentName, configuration: Configuration) {
        let Some(enrolled) = self.agents.get_mut(agent) else { return };
        if enrolled.configuration.as_ref() == Some(&configuration) || !configuration_fits(&configuration) {
            return;
        }
        enrolled.configuration = Some(&configuration).filter(|it| may_be_kept(it)).cloned();
        if let Some(conn) = enrolled.live {
            self.send(conn, FromHub::Configure(configuration));
        }
    }

    pub(super) fn shutdown(&mut self) {
        self.shutting_down = true;
        for conn in self.connections.keys().copied().collect::<Vec<_>>() {
            self.refuse(conn, going_down());
        }
    }
}

/// Whether a configuration can be sent at all: a message has its limit, and secrets can be of any size.
#[must_use]
pub fn configuration_fits(configuration: &Configuration) -> bool {
    tasks::fits(configuration)
}

/// Secrets go to the runtime and stay nowhere else.
fn may_be_kept(configuration: &Configuration) -> bool {
    configuration.secrets.is_empty() && configuration_fits(configuration)
}

fn going_down() -> Refusal {
    Refusal::new(RefusalCode::Shutdown, "the controller is going down")
}

/// A message comes from the agent that its connection belongs to.
pub(super) fn check_sender(from: &Address, agent: &AgentName) -> Result<(), Refusal> {
    match from {
        Address::Agent(name) if name == agent => Ok(()),
        other => {
            let message = format!("the runtime of agent `{agent}` sent a message in the name of `{other}`");
            Err(Refusal::new(RefusalCode::Impersonation, message))
        }
    }
}
