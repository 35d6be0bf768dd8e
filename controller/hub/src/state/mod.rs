//! The hub as a state machine: events in, effects out. It has no sockets, no disk, no clock and no
//! randomness; what it needs of them comes in with the events.
//!
//! ```text
//!            opened            hello, fit             proof, fit: credential stored
//!  (nothing) ──────▶ AwaitingHello ──────▶ AwaitingProof ──────▶ Live
//!                          │ anything else,      │                 │ another's name, a broken rule,
//!                          │ or too late         │                 │ long silence, a newer session
//!                          ▼                     ▼                 ▼
//!                       refused, closed, forgotten ◀───────────────┘
//! ```
//!
//! A connection that is closed is forgotten at once: whatever still comes from it means nothing.
//!
//! **Durability.** Memory runs ahead of the disk: effects that depend on a record follow its
//! [`Effect::Store`] and are held back until it is durable. What takes something away (the end of an
//! older session) stands before it. So a task is stored as sent before it is sent. If storing fails, the session is closed and the runtime comes
//! back; records are whole, so the next one makes good what the failed one missed, and an ended task
//! is kept here until its end is durable.

mod attempts;
mod delivery;
mod directory;
mod event;
mod handshake;
mod live;
mod log;
mod messages;
mod meter;
mod output;
mod pool;
mod post_office;
mod reports;
mod rotation;
mod sessions;
mod streams;
mod tasks;
#[cfg(test)]
mod tests;
mod upgrade;
mod verification;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::credential::{Binding, Credential, JoinToken};
use vm_agent_schemas::ids::{ClaimId, SessionId, TaskId};
use vm_agent_schemas::names::{AgentName, FleetName};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{Address, Challenge, Configuration, FromHub, Hello};

pub use directory::{Directory, Member};
pub use event::{
    CloseReason, ConnId, Effect, Event, Inbound, Notice, OpenError, OutputKnown, PostError, Record, SessionInfo,
    StreamKey,
};
pub use sessions::configuration_fits;
pub use upgrade::Offer;
pub use verification::{Shown, VerifyError};

use meter::Meter;
use post_office::PostOffice;
use sessions::Session;
use tasks::Tasks;

/// All connections, sessions, streams and unfinished tasks of one fleet.
#[derive(Debug)]
pub struct Hub {
    fleet: FleetName,
    heartbeat: Duration,
    agents: BTreeMap<AgentName, Enrolled>,
    /// Tasks may be accepted for an agent that has no instance yet.
    tasks: Tasks,
    /// Tasks whose records could not be stored, or need not be at once.
    unstored: BTreeSet<TaskId>,
    /// Agents that are given no new task, because their machines are about to go down.
    cordoned: BTreeSet<AgentName>,
    /// The claims of the agents' machines.
    claims: BTreeMap<AgentName, ClaimId>,
    directory: Directory,
    post_office: PostOffice,
    connections: BTreeMap<ConnId, Connection>,
    clients: BTreeMap<StreamKey, (ConnId, u32)>,
    /// When the present event came.
    clock: Timestamp,
    last_tick: Option<Timestamp>,
    /// Nobody is judged by silence before this time.
    grace_until: Timestamp,
    shutting_down: bool,
    effects: Vec<Effect>,
}

/// An agent that may have a session.
#[derive(Debug)]
struct Enrolled {
    credential: Credential,
    /// The join token and the binding that are durable. What was told to nobody because its record failed is
    /// taken back: the machine may be made anew before its runtime comes back.
    durable: (Option<JoinToken>, Option<Binding>),
    /// What its runtime works with; nothing while that is not known, or holds secrets: those go to the
    /// runtime and stay nowhere else.
    configuration: Option<Configuration>,
    /// The connection of its session.
    live: Option<ConnId>,
    /// How often it has had a new one.
    sessions: Meter,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    peer: SocketAddr,
    challenge: Challenge,
    session: SessionId,
    opened_at: Timestamp,
    phase: Phase,
}

/// How far a connection is.
#[derive(Debug)]
enum Phase {
    AwaitingHello,
    AwaitingProof(Box<Hello>),
    Live(Box<Session>),
}

impl Phase {
    /// The agent that the peer says to be.
    fn claimed(&self) -> Option<&AgentName> {
        match self {
            Self::AwaitingHello => None,
            Self::AwaitingProof(hello) => Some(&hello.agent),
            Self::Live(session) => Some(&session.agent),
        }
    }
}

impl Hub {
    /// A hub without agents, whose runtimes are to send a heartbeat that often.
    #[must_use]
    pub fn new(fleet: FleetName, heartbeat: Span) -> Self {
        Self {
            fleet,
            heartbeat: heartbeat.get(),
            agents: BTreeMap::new(),
            tasks: Tasks::default(),
            unstored: BTreeSet::new(),
            cordoned: BTreeSet::new(),
            claims: BTreeMap::new(),
            directory: Directory::default(),
            post_office: PostOffice::default(),
            connections: BTreeMap::new(),
            clients: BTreeMap::new(),
            clock: Timestamp::MIN,
            last_tick: None,
            grace_until: Timestamp::MIN,
            shutting_down: false,
            effects: Vec::new(),
        }
    }

    /// Takes in one event and answers with what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Effect> {
        self.clock = now;
        match event {
            Event::Opened { conn, peer, since, challenge, session } => {
                let challenge = Challenge { challenge };
                let phase = Phase::AwaitingHello;
                self.opened(conn, Connection { peer, challenge, session, opened_at: since, phase });
            }
            Event::Received { conn, inbound } => self.received(conn, inbound, now),
            Event::Overflowed { conn } => self.overflowed(conn),
            Event::Crowded { conn } => self.crowded(conn),
            Event::Closed { conn } => self.forget(conn, &CloseReason::Disconnected),
            Event::Tick => self.tick(now),
            Event::Stored(records) => self.stored(&records),
            Event::StoreFailed(records) => self.store_failed(&records),
            Event::Enroll(credential, configuration) => self.enroll(credential, configuration, now),
            Event::Claimed(agent, claim) => self.claimed(agent, claim, now),
            Event::Revoke(agent) => self.revoke(&agent, now),
            Event::Unbind(agent) => self.unbind(&agent),
            Event::Configure(agent, configuration) => self.configure(&agent, configuration),
            Event::Submit(task, known) => self.submit(task, known, now),
            Event::CancelTask { task, by } => self.cancel(task, by, now),
            Event::Directory(directory) => {
                self.directory = directory;
                self.end_messages(now);
                self.look_at_all(now);
            }
            Event::Cordon(agents) => self.cordon(agents, now),
            Event::OpenStream { key, agent, target, stdin } => self.open_stream(key, &agent, target, stdin, now),
            Event::Resize { key, size } => self.resize(key, size),
            Event::Input { key, offset, end, data } => self.input(key, offset, end, data, now),
            Event::Taken { key, channel, offset } => self.taken(key, channel, offset),
            Event::Signal { key, signal } => self.signal(key, signal),
            Event::CloseStream { key } => self.close_stream(key, now),
            Event::Post(message) => self.post(message, now),
            Event::Restore(message) => self.restore(message),
            Event::Rotate { agent, challenge } => self.rotate(&agent, challenge),
            Event::Verify { question, agent, epoch } => self.verify(question, &agent, epoch),
            Event::Trust { agent, epoch } => self.trust(&agent, epoch),
            Event::Distrust { request, agent, epoch, why } => self.distrust(request, &agent, epoch, why),
            Event::OfferUpgrade { key, agent, offer } => self.offer_upgrade(key, &agent, offer, now),
            Event::Shutdown => self.shutdown(),
        }
        std::mem::take(&mut self.effects)
    }

    /// The sessions as they are now. One counts from when its credential is durable.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionInfo> {
        let live = self.agents.values().filter_map(|agent| self.session(agent.live?));
        let info = |session: &Session| {
            let running = self.tasks.running(&session.agent);
            let slots = self.directory.slots(&session.agent);
            let mut info =
                session.info(self.tasks.open(&session.agent), running, slots, self.messages_waiting(&session.agent));
            if info.busy {
                info.active_at = info.active_at.max(self.last_tick.unwrap_or(info.active_at));
            }
            info
        };
        live.filter(|session| session.durable).map(info).collect()
    }

    fn session(&self, conn: ConnId) -> Option<&Session> {
        match &self.connections.get(&conn)?.phase {
            Phase::Live(session) => Some(session),
            Phase::AwaitingHello | Phase::AwaitingProof(_) => None,
        }
    }

    fn session_mut(&mut self, conn: ConnId) -> Option<&mut Session> {
        match &mut self.connections.get_mut(&conn)?.phase {
            Phase::Live(session) => Some(session),
            Phase::AwaitingHello | Phase::AwaitingProof(_) => None,
        }
    }

    fn live(&self, agent: &AgentName) -> Option<ConnId> {
        self.agents.get(agent)?.live
    }

    fn send(&mut self, conn: ConnId, body: FromHub) {
        let claimed = self.connections.get(&conn).and_then(|connection| connection.phase.claimed());
        // A peer that has not said who it is can only be meant as anyone.
        let to = claimed.map_or(Address::Broadcast, |agent| Address::Agent(agent.clone()));
        self.effects.push(Effect::Send { conn, to, body });
    }

    fn notify(&mut self, notice: Notice) {
        self.effects.push(Effect::Notify(notice));
    }

    fn stored(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::Task(task) => self.task_stored(task),
                Record::Output { task, channel, data, .. } => self.output_stored(*task, *channel, data),
                Record::Message(message) => self.message_stored(message),
                Record::Credential(credential) => {
                    if let Some(agent) = self.agents.get_mut(&credential.agent)
                        && agent.credential.nonce == credential.nonce
                    {
                        agent.durable = (credential.join.clone(), credential.binding.clone());
                    }
                    let conn = self.live(&credential.agent);
                    let session = conn.and_then(|conn| self.session_mut(conn));
                    if let Some(session) = session.filter(|session| session.epoch == credential.epoch) {
                        session.durable = true;
                    }
                }
            }
        }
    }
}

/// How long ago that was; nothing when the clock was set back meanwhile.
fn elapsed(now: Timestamp, since: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// What a session takes, in bytes, beside what it is told.
#[cfg(test)]
pub(crate) const fn session_size() -> usize {
    size_of::<Session>() + size_of::<Connection>() + size_of::<Enrolled>()
}
