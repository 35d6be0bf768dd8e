//! All tasks that are not over, and where each of them waits.
//!
//! A task that was sent may have begun, heard of or not. So before it is sent it is stored to which
//! incarnation; that attempt is sent again only to the same one, whose runtime tells by its journal what it
//! has seen; and when that incarnation is over, the attempt ends as interrupted. None of this depends on
//! what the hub remembers.
//!
//! ```text
//!                     ┌──────────── a pause, or none ◀──── ended, and tried again ───┐
//!                     ▼                                                              │
//!  accepted ──▶ first of its key ──▶ ready ──▶ a slot is free ──▶ under way ─────────┴──▶ over ──▶ forgotten
//!           └▶ in the pool ──▶ an agent that is free ──────────────▲                   stored
//! ```
//!
//! Every change takes a task out of the indexes, changes it and puts it back where it belongs, so that the
//! indexes never disagree with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use vm_agent_schemas::ids::{Epoch, Incarnation, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::selector::Selector;
use vm_agent_schemas::task::{Report, Task, TaskState};
use vm_agent_schemas::wire::{TEXT_MAX, TaskOutcome};

use super::attempts;
use super::output::Output;
use super::pool::{Place, Pool};

/// Room that a message needs beside what it runs.
const MESSAGE_OVERHEAD: usize = 1024;

/// Whether a message with this can be sent at all.
pub(super) fn fits<T: Serialize>(content: &T) -> bool {
    serde_json::to_vec(content).is_ok_and(|json| json.len() + MESSAGE_OVERHEAD <= TEXT_MAX)
}

/// A task, and what the hub knows of it beside its record.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) task: Task,
    /// Which one it was among all that were accepted.
    number: u64,
    /// The session in which the present attempt was last ordered: it is ordered once in each.
    pub(super) ordered: Option<Epoch>,
    /// The session in which it was last heard to have begun.
    pub(super) heard: Option<Epoch>,
    /// When the present attempt counts as interrupted if nothing is heard of it.
    pub(super) limit: Option<Timestamp>,
    pub(super) output: Output,
    /// Under which time it stands in the calendar.
    due: Option<Timestamp>,
}

impl Entry {
    const fn place(&self) -> Place {
        (self.number, self.task.id)
    }

    const fn is_over(&self) -> bool {
        matches!(self.task.state, TaskState::Ended { .. })
    }
}

/// The tasks of one agent.
#[derive(Debug, Default)]
struct Queue {
    lines: BTreeMap<Option<String>, Line>,
    /// Those that could be handed over now: the first of their lines.
    ready: BTreeSet<Place>,
    /// Those that were handed over.
    under_way: BTreeSet<Place>,
    open: u32,
}

/// The tasks of one agent with one ordering key that are not over, in the order in which they were accepted.
/// They are handed over one after the other.
#[derive(Debug, Default)]
struct Line {
    places: BTreeSet<Place>,
    under_way: u32,
    /// The one of them that is ready.
    ready: Option<Place>,
}

/// What has become of a task.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// It is over.
    Over(Task),
    /// It will be tried again.
    Again(Task),
    /// It could be handed over now.
    Ready(Task),
}

impl Change {
    pub(super) const fn task(&self) -> &Task {
        match self {
            Self::Over(task) | Self::Again(task) | Self::Ready(task) => task,
        }
    }
}

/// The tasks of a fleet that are not over, and those whose end is not durable yet.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    entries: BTreeMap<TaskId, Entry>,
    queues: BTreeMap<AgentName, Queue>,
    pub(super) pool: Pool,
    /// When to look at which task.
    calendar: BTreeSet<(Timestamp, TaskId)>,
    accepted: u64,
}

impl Tasks {
    /// Takes a task in. One that is known already, or over, changes nothing.
    pub(super) fn accept(&mut self, task: Task, output: Output, now: Timestamp) -> bool {
        if task.outcome().is_some() || self.entries.contains_key(&task.id) {
            return false;
        }
        let id = task.id;
        self.accepted += 1;
        let number = self.accepted;
        self.entries.insert(id, Entry { task, number, ordered: None, heard: None, limit: None, output, due: None });
        self.put(id, now);
        true
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    /// The output of a task's present attempt.
    pub(super) fn output_mut(&mut self, id: TaskId) -> Option<&mut Output> {
        self.entries.get_mut(&id).map(|entry| &mut entry.output)
    }

    /// How many tasks of an agent are not over.
    pub(super) fn open(&self, agent: &AgentName) -> u32 {
        self.queues.get(agent).map_or(0, |queue| queue.open)
    }

    /// The tasks that an agent may be at.
    pub(super) fn under_way(&self, agent: &AgentName) -> impl Iterator<Item = &Entry> {
        let queue = self.queues.get(agent).into_iter();
        queue.flat_map(|queue| &queue.under_way).filter_map(|(_, id)| self.entries.get(id))
    }

    /// How many tasks an agent may be at.
    pub(super) fn running(&self, agent: &AgentName) -> u32 {
        self.queues.get(agent).map_or(0, |queue| u32::try_from(queue.under_way.len()).unwrap_or(u32::MAX))
    }

    /// All tasks of an agent that are not over, in the order in which they were accepted.
    pub(super) fn of(&self, agent: &AgentName) -> Vec<TaskId> {
        let queue = self.queues.get(agent).into_iter();
        let places: BTreeSet<Place> =
            queue.flat_map(|queue| queue.lines.values().flat_map(|line| &line.places).copied()).collect();
        places.into_iter().map(|(_, id)| id).collect()
    }

    /// The agent's task to hand over next, if it has a slot free.
    pub(super) fn next(&self, agent: &AgentName, slots: u32) -> Option<TaskId> {
        let queue = self.queues.get(agent)?;
        let free = queue.under_way.len() < usize::try_from(slots).unwrap_or(usize::MAX);
        queue.ready.first().filter(|_| free).map(|(_, id)| *id)
    }

    /// Gives a task of the pool to an agent: the oldest of those that are for agents like this.
    pub(super) fn assign(
        &mut self,
        agent: &AgentName,
        matches: impl Fn(&Selector) -> bool,
        now: Timestamp,
    ) -> Option<TaskId> {
        let id = self.pool.oldest(matches)?;
        self.change(id, now, |entry| entry.task.agent = Some(agent.clone()));
        Some(id)
    }

    /// A task is handed over in this session. Answers with its record.
    pub(super) fn hand_over(
        &mut self,
        id: TaskId,
        incarnation: Incarnation,
        epoch: Epoch,
        now: Timestamp,
    ) -> Option<&Entry> {
        self.change(id, now, |entry| {
            entry.task.state = TaskState::Sent { incarnation };
            entry.ordered = Some(epoch);
            entry.limit = Some(attempts::overdue(&entry.task, now));
            entry.output.begin();
        });
        self.get(id)
    }

    /// A task has begun, as is heard in this session. Answers whether that was not known before, in any.
    pub(super) fn begun(&mut self, id: TaskId, epoch: Epoch, now: Timestamp) -> bool {
        let mut news = false;
        self.change(id, now, |entry| {
            entry.heard = Some(epoch);
            entry.limit = Some(attempts::overdue(&entry.task, now));
            if let TaskState::Sent { incarnation } = entry.task.state {
                entry.task.state = TaskState::Running { incarnation };
                entry.task.started_at = Some(now);
                news = true;
            }
        });
        news
    }

    /// Until when something is to be heard of what is under way; nothing means for ever.
    pub(super) fn limit(&mut self, id: TaskId, limit: Option<Timestamp>, now: Timestamp) {
        self.change(id, now, |entry| entry.limit = limit);
    }

    /// Somebody wants a task cancelled. Answers with its record, unless it is over, or that was wanted before.
    pub(super) fn mark_canceled(&mut self, id: TaskId, by: String) -> Option<Task> {
        let entry = self.entries.get_mut(&id)?;
        if entry.is_over() || entry.task.canceled_by.is_some() {
            return None;
        }
        entry.task.canceled_by = Some(by);
        Some(entry.task.clone())
    }

    /// A task's present attempt has ended.
    pub(super) fn conclude(
        &mut self,
        id: TaskId,
        outcome: TaskOutcome,
        report: Option<Report>,
        now: Timestamp,
    ) -> Option<Change> {
        let over = self.settle(id, now, |task| attempts::conclude(task, outcome, report, now))?;
        let task = self.entries.get(&id)?.task.clone();
        Some(if over { Change::Over(task) } else { Change::Again(task) })
    }

    /// A task's agent is gone.
    pub(super) fn abandon(&mut self, id: TaskId, reason: &str, now: Timestamp) -> Option<Change> {
        self.settle(id, now, |task| {
            attempts::abandon(task, reason, now);
            true
        })?;
        self.entries.get(&id).map(|entry| Change::Over(entry.task.clone()))
    }

    /// The attempt ends by this. Only for a task that is not over: an end never changes.
    fn settle(&mut self, id: TaskId, now: Timestamp, end: impl FnOnce(&mut Task) -> bool) -> Option<bool> {
        if self.entries.get(&id)?.is_over() {
            return None;
        }
        let mut over = false;
        self.change(id, now, |entry| {
            over = end(&mut entry.task);
            (entry.ordered, entry.heard, entry.limit) = (None, None, None);
            entry.output = Output::default();
        });
        Some(over)
    }

    /// The times that have come.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(&(_, id)) = self.calendar.first().filter(|(at, _)| *at <= now) {
            let Some(entry) = self.entries.get(&id) else { break };
            let change = if entry.task.handed_to().is_some() {
                self.conclude(id, TaskOutcome::Interrupted, None, now)
            } else if attempts::is_expired(&entry.task, now) {
                self.conclude(id, TaskOutcome::Expired, None, now)
            } else {
                self.change(id, now, |_| {});
                self.entries.get(&id).map(|entry| Change::Ready(entry.task.clone()))
            };
            changes.extend(change);
        }
        changes
    }

    /// The end of a task is durable: it may be forgotten.
    pub(super) fn forget(&mut self, id: TaskId) {
        if self.entries.get(&id).is_some_and(Entry::is_over) {
            self.entries.remove(&id);
        }
    }

    /// The host slept for so long, and so may have its machines: nothing is to be heard of what is under way
    /// until that much later.
    pub(super) fn postpone(&mut self, gap: Duration, now: Timestamp) {
        let limited = self.entries.iter().filter_map(|(id, entry)| Some((*id, entry.limit?)));
        for (id, limit) in limited.collect::<Vec<_>>() {
            self.limit(id, Some(limit.saturating_add(gap).unwrap_or(limit)), now);
        }
    }

    fn change(&mut self, id: TaskId, now: Timestamp, change: impl FnOnce(&mut Entry)) {
        self.take(id, now);
        if let Some(entry) = self.entries.get_mut(&id) {
            change(entry);
        }
        self.put(id, now);
    }

    /// Takes a task out of all indexes.
    fn take(&mut self, id: TaskId, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(due) = entry.due.take() {
            self.calendar.remove(&(due, id));
        }
        let place = entry.place();
        match (&entry.task.agent, &entry.task.pool) {
            _ if entry.is_over() => {}
            (Some(agent), _) => {
                let (agent, key) = (agent.clone(), entry.task.terms.key.clone());
                self.leave_queue(&agent, &key, place, now);
            }
            (None, Some(selector)) => self.pool.leave(selector, place),
            (None, None) => {}
        }
    }

    /// Puts a task where it belongs.
    fn put(&mut self, id: TaskId, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| !entry.is_over()) else { return };
        entry.due = if entry.task.handed_to().is_some() { entry.limit } else { attempts::wakes_at(&entry.task, now) };
        self.calendar.extend(entry.due.map(|due| (due, id)));
        let place = entry.place();
        match (&entry.task.agent, &entry.task.pool) {
            (Some(agent), _) => {
                let (agent, key) = (agent.clone(), entry.task.terms.key.clone());
                self.join_queue(agent, key, place, now);
            }
            (None, Some(selector)) if attempts::is_ready(&entry.task, now) => {
                self.pool.wait(selector, place);
            }
            (None, _) => {}
        }
    }

    fn join_queue(&mut self, agent: AgentName, key: Option<String>, place: Place, now: Timestamp) {
        let queue = self.queues.entry(agent).or_default();
        let line = queue.lines.entry(key).or_default();
        queue.open += 1;
        line.places.insert(place);
        if self.entries.get(&place.1).is_some_and(|entry| entry.task.handed_to().is_some()) {
            queue.under_way.insert(place);
            line.under_way += 1;
        }
        advance(line, &mut queue.ready, &self.entries, now);
    }

    fn leave_queue(&mut self, agent: &AgentName, key: &Option<String>, place: Place, now: Timestamp) {
        let Some(queue) = self.queues.get_mut(agent) else { return };
        let Some(line) = queue.lines.get_mut(key) else { return };
        queue.open -= 1;
        line.places.remove(&place);
        line.under_way -= u32::from(queue.under_way.remove(&place));
        advance(line, &mut queue.ready, &self.entries, now);
        if line.places.is_empty() {
            queue.lines.remove(key);
        }
        if queue.open == 0 {
            self.queues.remove(agent);
        }
    }
}

/// Looks anew who of a line is ready.
fn advance(line: &mut Line, ready: &mut BTreeSet<Place>, entries: &BTreeMap<TaskId, Entry>, now: Timestamp) {
    if let Some(former) = line.ready.take() {
        ready.remove(&former);
    }
    let first = line.places.first().filter(|_| line.under_way == 0);
    line.ready = first.filter(|(_, id)| entries.get(id).is_some_and(|it| attempts::is_ready(&it.task, now))).copied();
    ready.extend(line.ready);
}
