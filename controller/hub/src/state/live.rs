//! What goes on in a session: health, log, tasks and streams.

use std::collections::BTreeSet;

use jiff::Timestamp;
use vm_agent_schemas::ids::ClaimId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::{
    Address, Envelope, Frame, FromHub, FromRuntime, MessageRef, TaskEnded, TaskOrder, TaskRef,
};

use super::handshake::Refusal;
use super::reports::{check_configured, check_health, services_differ};
use super::sessions::check_sender;
use super::streams::{Kind, Owner};
use super::tasks::{Ended, Started, fits, reference};
use super::{ConnId, Effect, Hub, Inbound, Notice, Record};
use crate::stream::StreamEvent;

const TOO_LARGE: &str = "arguments and environment are larger than one message can be";

impl Hub {
    /// A frame came in a session.
    pub(super) fn heard(&mut self, conn: ConnId, inbound: Inbound, now: Timestamp) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        let agent = session.agent.clone();
        if session.heard(now) {
            self.notify(Notice::SessionHeard { agent: agent.clone() });
        }
        match inbound {
            Inbound::Invalid(why) => Err(Refusal::protocol(why)),
            Inbound::Data(frame) => self.output(conn, agent, frame),
            Inbound::Message(envelope) => {
                check_sender(&envelope.from, &agent)?;
                self.said(conn, agent, envelope, now)
            }
        }
    }

    fn said(
        &mut self,
        conn: ConnId,
        agent: AgentName,
        envelope: Envelope<FromRuntime>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Envelope { id, to, body, .. } = envelope;
        if to != Address::Host && !matches!(body, FromRuntime::Message(_)) {
            return Err(Refusal::protocol(format!(
                "what is no message between programs is for the host, not for `{to}`"
            )));
        }
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        match body {
            FromRuntime::Hello(_) | FromRuntime::Proof(_) => {
                return Err(Refusal::protocol("the handshake is over: a session has one hello"));
            }
            FromRuntime::Health(report) => {
                check_health(&report)?;
                let news = services_differ(session.health.replace(report.clone()).as_ref(), &report);
                self.notify(Notice::Health { agent: agent.clone(), report });
                if news {
                    self.notify(Notice::Activity { agent });
                }
            }
            FromRuntime::Log(log) => self.notify(Notice::Log { agent, lines: log.lines, dropped: log.dropped }),
            FromRuntime::Configured(configured) => {
                check_configured(&configured)?;
                session.told = true;
                session.configured.clone_from(&configured.digest);
                session.problems.clone_from(&configured.problems);
                let notice = Notice::Configured {
                    agent: agent.clone(),
                    digest: configured.digest,
                    problems: configured.problems,
                };
                self.notify(notice);
                self.deliver(&agent, now);
                self.deliver_messages(&agent);
            }
            FromRuntime::TaskStarted(task) => self.task_started(conn, agent, task, now),
            FromRuntime::TaskEnded(ended) => self.task_ended(conn, &agent, ended, now),
            FromRuntime::StreamOpened(opened) => self.stream_opened(conn, opened)?,
            FromRuntime::StreamEnded(ended) => self.stream_ended(conn, &agent, ended, now)?,
            FromRuntime::StreamTaken(taken) => self.stream_input_taken(conn, taken)?,
            FromRuntime::Message(post) => self.message_sent(conn, &agent, id, to, post, now),
            FromRuntime::MessageTaken(MessageRef { message }) => self.message_taken(&agent, message, now),
            FromRuntime::Rotated(rotated) => self.rotated(conn, &agent, rotated)?,
            FromRuntime::UpgradeFailed(failed) => self.upgrade_failed(conn, &agent, failed, now)?,
        }
        Ok(())
    }

    // Tasks.

    pub(super) fn submit(&mut self, task: Task, now: Timestamp) {
        let Some(agent) = task.agent.clone() else { return };
        let queue = self.tasks.entry(agent.clone()).or_default();
        queue.submit(task);
        let mut over = Vec::new();
        if let Some(enrolled) = self.agents.get(&agent) {
            over.extend(queue.end_incarnations(Some(enrolled.credential.incarnation), now));
        }
        if let Some(claim) = self.claims.get(&agent) {
            over.extend(queue.end_of_other_claims(*claim, now));
        }
        self.finish(over);
        self.deliver(&agent, now);
        self.look_at(&agent, now);
    }

    /// A task of the file is for one machine: the next one gets its own.
    pub(super) fn claimed(&mut self, agent: AgentName, claim: ClaimId, now: Timestamp) {
        let queue = self.tasks.get_mut(&agent);
        let over = queue.map(|queue| queue.end_of_other_claims(claim, now)).unwrap_or_default();
        self.claims.insert(agent, claim);
        self.finish(over);
    }

    /// Keeps new tasks from these agents, whose machines are about to go down, and from no others.
    pub(super) fn cordon(&mut self, agents: BTreeSet<AgentName>, now: Timestamp) {
        let before = std::mem::replace(&mut self.cordoned, agents);
        let freed: Vec<AgentName> = before.difference(&self.cordoned).cloned().collect();
        for agent in freed {
            self.deliver(&agent, now);
        }
    }

    /// Sends the agent's next task, when it is its turn and the agent is there and ready for it.
    pub(super) fn deliver(&mut self, agent: &AgentName, now: Timestamp) {
        let Some(conn) = self.live(agent).filter(|conn| self.is_equipped(*conn)) else { return };
        loop {
            let Some(session) = self.session(conn) else { return };
            let (incarnation, epoch) = (session.incarnation, session.epoch);
            let Some(queue) = self.tasks.get_mut(agent) else { return };
            let cordoned = self.cordoned.contains(agent);
            let Some(task) = queue.next_to_send(incarnation, epoch, cordoned, now) else { return };
            if fits(&task.job) {
                return self.order(conn, task);
            }
            let rejected = queue.reject(reference(&task), TOO_LARGE, now);
            self.finish(rejected.into_iter().collect());
        }
    }

    /// Whether the runtime has what its tasks need. One whose configuration holds secrets gets it only after
    /// its welcome, unless it has one from before.
    fn is_equipped(&self, conn: ConnId) -> bool {
        self.session(conn).is_some_and(|session| {
            let known = self.agents.get(&session.agent).is_some_and(|enrolled| enrolled.configuration.is_some());
            known || session.configured.is_some()
        })
    }

    /// That it is sent is stored first: after that nobody can take it for one that never was.
    fn order(&mut self, conn: ConnId, task: Task) {
        let Some(session) = self.session_mut(conn) else { return };
        let stream = session.streams.open(Owner::Task(reference(&task)), Kind::Plain, false);
        self.effects.push(Effect::Store(Record::Task(task.clone())));
        let timeout_ms = u64::try_from(task.terms.timeout.get().as_millis()).unwrap_or(u64::MAX);
        let order = TaskOrder { task: reference(&task), stream, job: task.job, timeout_ms };
        self.send(conn, FromHub::Task(order));
    }

    /// What goes on from before the session is stored again: its first record may have failed.
    fn task_started(&mut self, conn: ConnId, agent: AgentName, task: TaskRef, now: Timestamp) {
        let Some(session) = self.session(conn) else { return };
        let (incarnation, epoch) = (session.incarnation, session.epoch);
        let queue = self.tasks.get_mut(&agent);
        match queue.map_or(Started::Unknown, |queue| queue.started(task, incarnation, epoch, now)) {
            Started::Now(task) => {
                self.effects.push(Effect::Store(Record::Task(task.clone())));
                self.notify(Notice::TaskStarted(task));
            }
            Started::StillRunning(task) => self.effects.push(Effect::Store(Record::Task(task))),
            Started::Known => {}
            Started::Unknown => self.notify(Notice::TaskUnknown { agent, task }),
        }
    }

    /// The end is stored, then acknowledged. An end that is known is acknowledged again, and stored
    /// again before that, since its first record may have failed. An end of what is not under way here
    /// is acknowledged too, else the runtime would repeat it for ever.
    fn task_ended(&mut self, conn: ConnId, agent: &AgentName, ended: TaskEnded, now: Timestamp) {
        let task = ended.task;
        let known = self.tasks.get_mut(agent).map_or(Ended::Unknown, |queue| queue.ended(ended, now));
        if let Some(session) = self.session_mut(conn) {
            session.streams.close_task(task);
        }
        match known {
            Ended::Now(task) => self.finish(vec![task]),
            Ended::Before(task) => self.effects.push(Effect::Store(Record::Task(task))),
            Ended::Unknown => self.notify(Notice::TaskUnknown { agent: agent.clone(), task }),
        }
        self.send(conn, FromHub::TaskAck(task));
        self.deliver(agent, now);
        self.look_at(agent, now);
    }

    /// Stores the ends again that could not be stored.
    pub(super) fn store_again(&mut self) {
        let unstored = self.tasks.values_mut().flat_map(super::TaskQueue::take_unstored);
        let unstored: Vec<_> = unstored.collect();
        self.finish(unstored);
    }

    // Streams, from the runtime.

    fn output(&mut self, conn: ConnId, agent: AgentName, frame: Frame) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        match session.streams.output(&frame)? {
            None => {}
            Some(Owner::Client(key)) => {
                let Frame { channel, offset, end, data, .. } = frame;
                self.effects.push(Effect::Client { key, event: StreamEvent::Data { channel, offset, end, data } });
            }
            Some(Owner::Task(task)) => {
                let Frame { stream, channel, offset, data, .. } = frame;
                let taken = session.streams.output_taken(stream, channel, offset + data.len() as u64);
                if !data.is_empty() {
                    self.notify(Notice::TaskOutput { agent, task, channel, data });
                }
                if let Some(taken) = taken {
                    self.send(conn, FromHub::StreamTaken(taken));
                }
            }
        }
        Ok(())
    }
}
