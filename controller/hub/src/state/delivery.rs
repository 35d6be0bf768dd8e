//! How tasks come to their agents, and what is heard of them.

use std::collections::BTreeSet;

use bytes::Bytes;
use jiff::Timestamp;
use vm_agent_schemas::ids::{ClaimId, Incarnation, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::task::{Task, TaskSource, TaskState};
use vm_agent_schemas::wire::{
    Channel, Frame, FromHub, StreamTaken, TaskEnded, TaskFollow, TaskOrder, TaskOutcome, TaskRef,
};

use super::attempts::{after, is_expired, is_ready, overdue, reference, time_left};
use super::handshake::Refusal;
use super::output::{Output, Taken};
use super::pool::LEASE;
use super::streams::{Kind, Owner};
use super::tasks::{Change, Entry, fits};
use super::{ConnId, Effect, Hub, Notice, OutputKnown, Record};

const TOO_LARGE: &str = "the job is larger than one message can be";
const MACHINE_GONE: &str = "the machine that it was for is no more";
const AGENT_GONE: &str = "the agent was removed before the task was delivered";

// What the controller says of tasks.
impl Hub {
    pub(super) fn submit(&mut self, task: Task, known: OutputKnown, now: Timestamp) {
        let (id, agent, pool) = (task.id, task.agent.clone(), task.pool.clone());
        let output = Output::of(&task, known);
        if !self.tasks.accept(task, output, now) {
            return;
        }
        let Some(agent) = agent else {
            return match pool {
                Some(selector) => self.offer(&selector, now),
                None => {
                    let over = self.tasks.abandon(id, "it is for no agent", now);
                    self.finish(over, now);
                }
            };
        };
        if let Some(incarnation) = self.agents.get(&agent).map(|enrolled| enrolled.credential.incarnation) {
            self.end_incarnations(&agent, Some(incarnation), now);
        }
        if let Some(claim) = self.claims.get(&agent).copied() {
            self.end_if_stranded(id, claim, now);
        }
        self.watch_task(id, self.live(&agent).is_some(), now);
        self.look_at(&agent, now);
    }

    pub(super) fn cancel(&mut self, id: TaskId, by: String, now: Timestamp) {
        let Some(task) = self.tasks.mark_canceled(id, by) else { return };
        let agent = task.agent.clone();
        if task.handed_to().is_none() {
            let over = self.tasks.conclude(id, TaskOutcome::Canceled, None, now);
            self.finish(over, now);
            if let Some(agent) = agent {
                self.look_at(&agent, now);
            }
            return;
        }
        let attempt = reference(&task);
        self.effects.push(Effect::Store(Record::Task(task)));
        let Some(conn) = agent.and_then(|agent| self.live(&agent)) else { return };
        let epoch = self.session(conn).map(|session| session.epoch);
        if self.tasks.get(id).is_some_and(|entry| entry.ordered == epoch || entry.heard == epoch) {
            self.send(conn, FromHub::TaskCancel(attempt));
        }
    }

    /// A task of the file is for one machine: the next one gets its own.
    pub(super) fn claimed(&mut self, agent: AgentName, claim: ClaimId, now: Timestamp) {
        for id in self.tasks.of(&agent) {
            self.end_if_stranded(id, claim, now);
        }
        self.look_at(&agent, now);
        self.claims.insert(agent, claim);
    }

    fn end_if_stranded(&mut self, id: TaskId, present: ClaimId, now: Timestamp) {
        let Some(Entry { task, .. }) = self.tasks.get(id) else { return };
        if is_for_another(&task.source, present) && task.handed_to().is_none() {
            let over = self.tasks.abandon(id, MACHINE_GONE, now);
            self.finish(over, now);
        }
    }

    /// Keeps new tasks from these agents, whose machines are about to go down, and from no others.
    pub(super) fn cordon(&mut self, agents: BTreeSet<AgentName>, now: Timestamp) {
        let before = std::mem::replace(&mut self.cordoned, agents);
        let freed: Vec<AgentName> = before.difference(&self.cordoned).cloned().collect();
        for agent in freed {
            self.look_at(&agent, now);
        }
    }

    /// Labels and slots have changed: other tasks may fit now.
    pub(super) fn look_at_all(&mut self, now: Timestamp) {
        let live: Vec<AgentName> =
            self.agents.iter().filter(|(_, agent)| agent.live.is_some()).map(|(name, _)| name.clone()).collect();
        for agent in live {
            self.look_at(&agent, now);
        }
    }

    /// The incarnations that an agent's tasks were sent to are over, except for this one.
    pub(super) fn end_incarnations(&mut self, agent: &AgentName, except: Option<Incarnation>, now: Timestamp) {
        let ended = self.tasks.under_way(agent).filter(|entry| entry.task.handed_to() != except);
        for Task { id, source, .. } in ended.map(|entry| entry.task.clone()).collect::<Vec<_>>() {
            let present = self.claims.get(agent);
            let change = if present.is_some_and(|present| is_for_another(&source, *present)) {
                self.tasks.abandon(id, MACHINE_GONE, now)
            } else {
                self.tasks.conclude(id, TaskOutcome::Interrupted, None, now)
            };
            self.finish(change, now);
        }
    }

    /// There is no such agent any more. What it took from the pool may go on elsewhere.
    pub(super) fn end_tasks(&mut self, agent: &AgentName, now: Timestamp) {
        for id in self.tasks.of(agent) {
            let of_pool = self.tasks.get(id).is_some_and(|entry| entry.task.pool.is_some());
            let change = if of_pool {
                self.tasks.conclude(id, TaskOutcome::Interrupted, None, now)
            } else {
                self.tasks.abandon(id, AGENT_GONE, now)
            };
            self.finish(change, now);
        }
    }
}

// How tasks are handed over.
impl Hub {
    /// Hands over what of an agent's tasks can be, when it is there and ready.
    pub(super) fn deliver(&mut self, agent: &AgentName, now: Timestamp) {
        let Some(conn) = self.live(agent).filter(|conn| self.is_equipped(*conn)) else { return };
        self.order_again(conn, agent, now);
        if self.cordoned.contains(agent) {
            return;
        }
        let slots = self.directory.slots(agent);
        while let Some(id) = self.tasks.next(agent, slots) {
            self.hand_over(conn, id, now);
        }
        while self.tasks.open(agent) == 0 && self.takes_from_pool(conn) {
            let directory = &self.directory;
            let Some(id) = self.tasks.assign(agent, |selector| directory.matches(agent, selector), now) else {
                return self.tasks.pool.rest(agent);
            };
            self.hand_over(conn, id, now);
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

    fn takes_from_pool(&self, conn: ConnId) -> bool {
        !self.shutting_down && self.session(conn).is_some_and(|session| session.streams.clients().next().is_none())
    }

    /// Agents that have nothing to do are asked to take a task of the pool. Where others like it wait
    /// already, nobody has to be asked: they would have been taken.
    fn offer(&mut self, selector: &Selector, now: Timestamp) {
        if self.tasks.pool.waiting(selector) != 1 {
            return;
        }
        let free = self.tasks.pool.free().filter(|agent| self.directory.matches(agent, selector));
        for agent in free.cloned().collect::<Vec<_>>() {
            // If it has nothing to do after that, it says so again.
            self.tasks.pool.wake(&agent);
            self.look_at(&agent, now);
            if self.tasks.pool.waiting(selector) == 0 {
                return;
            }
        }
    }

    /// What was sent in an earlier session and never heard of may not have arrived.
    fn order_again(&mut self, conn: ConnId, agent: &AgentName, now: Timestamp) {
        let Some(session) = self.session(conn) else { return };
        let (incarnation, epoch) = (session.incarnation, session.epoch);
        let is_lost =
            |entry: &&Entry| entry.task.state == TaskState::Sent { incarnation } && entry.ordered != Some(epoch);
        for id in self.tasks.under_way(agent).filter(is_lost).map(|entry| entry.task.id).collect::<Vec<_>>() {
            self.order(conn, id, now);
        }
    }

    fn hand_over(&mut self, conn: ConnId, id: TaskId, now: Timestamp) {
        let Some(Entry { task, .. }) = self.tasks.get(id) else { return };
        let over = if is_expired(task, now) {
            self.tasks.conclude(id, TaskOutcome::Expired, None, now)
        } else if fits(&task.job) {
            return self.order(conn, id, now);
        } else {
            // However often it is tried.
            self.tasks.abandon(id, TOO_LARGE, now)
        };
        self.finish(over, now);
    }

    /// That it is sent is stored first: after that nobody can take it for one that never was.
    fn order(&mut self, conn: ConnId, id: TaskId, now: Timestamp) {
        let Some(session) = self.session(conn) else { return };
        let (incarnation, epoch) = (session.incarnation, session.epoch);
        let Some(entry) = self.tasks.hand_over(id, incarnation, epoch, now) else { return };
        let task = entry.task.clone();
        let attempt = reference(&task);
        let Some(session) = self.session_mut(conn) else { return };
        let stream = session.streams.open(Owner::Task(attempt), Kind::Plain, false);
        let timeout_ms = u64::try_from(time_left(&task, now).get().as_millis()).unwrap_or(u64::MAX);
        let order = TaskOrder { task: attempt, stream, job: task.job.clone(), timeout_ms };
        let canceled = task.canceled_by.is_some();
        self.effects.push(Effect::Store(Record::Task(task)));
        self.send(conn, FromHub::Task(order));
        if canceled {
            // Only a runtime that has the order can tell whether it had begun.
            self.send(conn, FromHub::TaskCancel(attempt));
        }
    }
}

// What runtimes say of tasks.
impl Hub {
    /// The entry of an attempt that was handed to the incarnation that speaks, and is not over.
    fn attempt(&self, conn: ConnId, attempt: TaskRef) -> Option<&Entry> {
        let session = self.session(conn)?;
        let entry = self.tasks.get(attempt.task)?;
        let is_own = entry.task.agent.as_ref() == Some(&session.agent)
            && entry.task.handed_to() == Some(session.incarnation)
            && entry.task.attempt == attempt.attempt;
        is_own.then_some(entry)
    }

    /// Where an attempt was begun before the session, the runtime is told where to go on with its output. Of
    /// one that is over for the hub only the end is wanted, and soon.
    pub(super) fn task_started(&mut self, conn: ConnId, agent: AgentName, attempt: TaskRef, now: Timestamp) {
        let Some(epoch) = self.session(conn).map(|session| session.epoch) else { return };
        let Some(entry) = self.attempt(conn, attempt) else {
            let OutputKnown { stdout, stderr } = OutputKnown::default();
            self.notify(Notice::TaskUnknown { agent, task: attempt });
            self.send(conn, FromHub::TaskFollow(TaskFollow { task: attempt, stream: None, stdout, stderr }));
            return self.send(conn, FromHub::TaskCancel(attempt));
        };
        if entry.heard == Some(epoch) {
            return;
        }
        let (is_ordered, canceled) = (entry.ordered == Some(epoch), entry.task.canceled_by.is_some());
        let news = self.tasks.begun(attempt.task, epoch, now);
        if !is_ordered {
            self.follow(conn, attempt);
        }
        if canceled {
            self.send(conn, FromHub::TaskCancel(attempt));
        }
        if news && let Some(entry) = self.tasks.get(attempt.task) {
            let task = entry.task.clone();
            self.unstored.insert(attempt.task);
            self.notify(Notice::TaskStarted(task));
        }
    }

    fn follow(&mut self, conn: ConnId, task: TaskRef) {
        let Some(output) = self.tasks.output_mut(task.task) else { return };
        let OutputKnown { stdout, stderr } = output.resume();
        let Some(session) = self.session_mut(conn) else { return };
        let stream = Some(session.streams.open(Owner::Task(task), Kind::Plain, false));
        self.send(conn, FromHub::TaskFollow(TaskFollow { task, stream, stdout, stderr }));
    }

    /// The end is stored, then acknowledged. An end that is known is acknowledged again, and what has become
    /// of the task stored again before that, since its first record may have failed. An end of what is not
    /// under way here is acknowledged too, else the runtime would repeat it for ever.
    pub(super) fn task_ended(&mut self, conn: ConnId, agent: &AgentName, ended: TaskEnded, now: Timestamp) {
        let TaskEnded { task, outcome, report } = ended;
        if self.attempt(conn, task).is_some() {
            let change = self.tasks.conclude(task.task, outcome, Some(report), now);
            self.finish(change, now);
        } else {
            let known = self.tasks.get(task.task).filter(|entry| was_at(&entry.task, agent));
            match known.map(|entry| entry.task.clone()) {
                Some(task) => self.effects.push(Effect::Store(Record::Task(task))),
                None => self.notify(Notice::TaskUnknown { agent: agent.clone(), task }),
            }
        }
        if let Some(session) = self.session_mut(conn) {
            session.streams.close_task(task);
        }
        self.send(conn, FromHub::TaskAck(task));
        self.look_at(agent, now);
    }

    /// Output is stored, then taken. What belongs to no attempt that is under way is dropped.
    pub(super) fn task_output(
        &mut self,
        conn: ConnId,
        agent: AgentName,
        task: TaskRef,
        frame: &Frame,
    ) -> Result<(), Refusal> {
        let Some(bound) = self.attempt(conn, task).map(|entry| entry.task.job.output.bytes()) else { return Ok(()) };
        let Some(output) = self.tasks.output_mut(task.task) else { return Ok(()) };
        let Taken { news, tell } = output.receive(frame, bound)?;
        let channel = frame.channel;
        if let Some((offset, data)) = news {
            let record = Record::Output { task, channel, offset, data: data.clone() };
            self.effects.push(Effect::Store(record));
            self.notify(Notice::TaskOutput { agent, task, channel, offset, data });
        }
        if let Some(offset) = tell {
            self.send(conn, FromHub::StreamTaken(StreamTaken { stream: frame.stream, channel, offset }));
        }
        Ok(())
    }
}

// What time and the storage say of tasks.
impl Hub {
    /// An agent's session has begun, or has ended.
    pub(super) fn watch(&mut self, agent: &AgentName, now: Timestamp) {
        let is_live = self.live(agent).is_some();
        for id in self.tasks.under_way(agent).map(|entry| entry.task.id).collect::<Vec<_>>() {
            self.watch_task(id, is_live, now);
        }
        if !is_live {
            self.tasks.pool.wake(agent);
        }
    }

    /// A runtime that is there has time to speak of what is under way. Without one, it is waited for as long
    /// as it takes; but what may be repeated, and was taken from the pool, goes on elsewhere by and by.
    fn watch_task(&mut self, id: TaskId, is_live: bool, now: Timestamp) {
        let Some(Entry { task, .. }) = self.tasks.get(id).filter(|entry| entry.task.handed_to().is_some()) else {
            return;
        };
        let has_lease = task.pool.is_some() && task.is_idempotent();
        let limit = if is_live { Some(overdue(task, now)) } else { has_lease.then(|| after(now, LEASE)) };
        self.tasks.limit(id, limit, now);
    }

    /// Stores what could not be stored, and what nobody waits for. Nothing is handed over in a session before
    /// that: else a record could say that a task is under way, and none that the one before it is over.
    pub(super) fn store_again(&mut self, now: Timestamp) {
        for id in std::mem::take(&mut self.unstored) {
            let Some(Entry { task, .. }) = self.tasks.get(id) else { continue };
            let task = task.clone();
            match task.state {
                TaskState::Ended { .. } => self.finish([Change::Over(task)], now),
                TaskState::Queued { .. } if !task.former.is_empty() => self.finish([Change::Again(task)], now),
                _ => self.effects.push(Effect::Store(Record::Task(task))),
            }
        }
    }

    /// Does what is due.
    pub(super) fn tick_tasks(&mut self, now: Timestamp) {
        self.store_again(now);
        for change in self.tasks.due(now) {
            let agent = self.give_up(&change);
            self.finish([change], now);
            if let Some(agent) = agent {
                self.look_at(&agent, now);
            }
        }
    }

    /// Answers which agent the change concerns, and tells its runtime, if it has a session, that nobody
    /// waits any more for what it was silent about.
    fn give_up(&mut self, change: &Change) -> Option<AgentName> {
        let task = change.task();
        let (agent, attempt) = match (change, task.former.last()) {
            (Change::Again(_), Some(former)) => (former.agent.clone(), former.attempt),
            _ => (task.agent.clone(), task.attempt),
        };
        let lost = matches!(change, Change::Again(_)) || task.outcome() == Some(&TaskOutcome::Interrupted);
        if lost && let Some(conn) = agent.as_ref().and_then(|agent| self.live(agent)) {
            self.send(conn, FromHub::TaskCancel(TaskRef { task: task.id, attempt }));
        }
        agent
    }

    /// Stores what has become of tasks, and tells of it.
    pub(super) fn finish(&mut self, changes: impl IntoIterator<Item = Change>, now: Timestamp) {
        for change in changes {
            let task = change.task();
            if !matches!(change, Change::Ready(_)) {
                // Whatever of it was still to be stored is in this record.
                self.unstored.remove(&task.id);
                self.effects.push(Effect::Store(Record::Task(task.clone())));
            }
            let waits = task.agent.is_none() && is_ready(task, now);
            let selector = task.pool.clone().filter(|_| waits);
            match change {
                Change::Over(task) => self.notify(Notice::TaskEnded(task)),
                Change::Again(task) => self.notify(Notice::TaskRetried(task)),
                Change::Ready(_) => {}
            }
            if let Some(selector) = selector {
                self.offer(&selector, now);
            }
        }
    }

    pub(super) fn task_stored(&mut self, task: &Task) {
        if task.outcome().is_some() {
            self.tasks.forget(task.id);
        }
    }

    /// Whatever it said: the record is stored again by and by, as it is then.
    pub(super) fn task_not_stored(&mut self, task: &Task) {
        self.unstored.insert(task.id);
    }

    pub(super) fn output_stored(&mut self, task: TaskRef, channel: Channel, data: &Bytes) {
        if let Some(output) = self.present_output(task) {
            output.stored(channel, data.len() as u64);
        }
    }

    pub(super) fn output_not_stored(&mut self, task: TaskRef, channel: Channel, offset: u64, data: &Bytes) {
        if let Some(output) = self.present_output(task) {
            output.not_stored(channel, offset, data.len() as u64);
        }
    }

    fn present_output(&mut self, task: TaskRef) -> Option<&mut Output> {
        self.tasks.get(task.task).filter(|entry| entry.task.attempt == task.attempt)?;
        self.tasks.output_mut(task.task)
    }
}

/// Whether a task of the file is for another machine than that of the present claim.
fn is_for_another(source: &TaskSource, present: ClaimId) -> bool {
    matches!(source, TaskSource::File { claim, .. } if *claim != present)
}

/// Whether an agent makes the present attempt of a task, or made a former one.
fn was_at(task: &Task, agent: &AgentName) -> bool {
    let former = task.former.iter().filter_map(|former| former.agent.as_ref());
    former.chain(&task.agent).any(|it| it == agent)
}
