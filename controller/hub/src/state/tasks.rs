//! The tasks of one agent: first in, first out, one at a time.
//!
//! A task that was sent may have begun, heard of or not. So before it is sent it is stored to which
//! incarnation; it is sent again only to the same one, whose runtime tells by its journal what it has
//! seen; and when that incarnation is over, the task ends as interrupted. None of this depends on what
//! the hub remembers.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use vm_agent_schemas::ids::{ClaimId, Epoch, Incarnation};
use vm_agent_schemas::task::{Report, Task, TaskSource, TaskState};
use vm_agent_schemas::wire::{TEXT_MAX, TaskEnded, TaskOutcome, TaskRef};

use super::elapsed;

/// How much longer than its timeout a connected runtime may be silent about a task before the task
/// counts as interrupted. Ending a process group takes a runtime seconds; a minute means that it
/// has forgotten the task, and those behind it should not wait for ever.
const OVERDUE: Duration = Duration::from_secs(60);

/// Room that a message needs beside what it runs.
const MESSAGE_OVERHEAD: usize = 1024;

/// Whether a message with this can be sent at all.
pub(super) fn fits<T: Serialize>(content: &T) -> bool {
    serde_json::to_vec(content).is_ok_and(|json| json.len() + MESSAGE_OVERHEAD <= TEXT_MAX)
}

#[derive(Debug)]
struct Entry {
    task: Task,
    /// In which session it was last ordered, and when: it is ordered once in each.
    ordered: Option<(Epoch, Timestamp)>,
    /// The session in which it was last heard to be running.
    heard: Option<Epoch>,
    /// Its end could not be stored, and is to be stored again.
    unstored: bool,
}

impl Entry {
    fn reference(&self) -> TaskRef {
        reference(&self.task)
    }

    const fn is_over(&self) -> bool {
        matches!(self.task.state, TaskState::Ended { .. })
    }

    fn is_running(&self) -> bool {
        matches!(self.task.state, TaskState::Running { .. })
    }

    fn ordered_in(&self, epoch: Epoch) -> Option<Timestamp> {
        self.ordered.and_then(|(of, at)| (of == epoch).then_some(at))
    }

    /// Only for a task that is not over: an end never changes.
    fn end(&mut self, outcome: TaskOutcome, report: Option<Report>, now: Timestamp) -> Task {
        self.task.state = TaskState::Ended { outcome };
        self.task.ended_at = Some(now);
        self.task.report = report;
        self.task.clone()
    }
}

/// What the beginning of a task means.
#[derive(Debug, PartialEq)]
pub(super) enum Started {
    /// It runs now.
    Now(Task),
    /// It goes on from before the session.
    StillRunning(Task),
    /// That was said before in this session.
    Known,
    /// It is not under way here.
    Unknown,
}

/// What the end of a task means.
#[derive(Debug, PartialEq)]
pub(super) enum Ended {
    /// It is over now.
    Now(Task),
    /// It was over before, and its end may not be durable yet.
    Before(Task),
    /// It is not under way here.
    Unknown,
}

/// The tasks of one agent that are not over, and those whose end is not durable yet.
#[derive(Debug, Default)]
pub(super) struct TaskQueue {
    entries: Vec<Entry>,
}

pub(super) const fn reference(task: &Task) -> TaskRef {
    TaskRef { task: task.id, attempt: task.attempt }
}

impl TaskQueue {
    /// Takes a task in. A task that is known already, or over, changes nothing.
    pub(super) fn submit(&mut self, task: Task) {
        let known = self.entries.iter().any(|entry| entry.reference() == reference(&task));
        let entry = Entry { task, ordered: None, heard: None, unstored: false };
        if !known && !entry.is_over() {
            self.entries.push(entry);
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many tasks are not over.
    pub(super) fn open(&self) -> u32 {
        u32::try_from(self.entries.iter().filter(|entry| !entry.is_over()).count()).unwrap_or(u32::MAX)
    }

    /// How many tasks were sent, and are not over: they may be running.
    pub(super) fn under_way(&self) -> u32 {
        let sent = |entry: &&Entry| !entry.is_over() && entry.task.handed_to().is_some();
        u32::try_from(self.entries.iter().filter(sent).count()).unwrap_or(u32::MAX)
    }

    /// The task to send in this session now, if any: none while another may be running, and of those that
    /// were never sent none to a `cordoned` agent. It is to be stored before it is sent, also when it was
    /// sent before, since its first record may have failed.
    pub(super) fn next_to_send(
        &mut self,
        incarnation: Incarnation,
        epoch: Epoch,
        cordoned: bool,
        now: Timestamp,
    ) -> Option<Task> {
        let busy = |entry: &Entry| !entry.is_over() && (entry.is_running() || entry.ordered_in(epoch).is_some());
        if self.entries.iter().any(busy) {
            return None;
        }
        let may_go = |entry: &&mut Entry| !entry.is_over() && (!cordoned || entry.task.handed_to().is_some());
        let open = self.entries.iter_mut().filter(may_go);
        // What was sent before, and may be running, goes before what was not.
        let entry = open.min_by_key(|entry| entry.task.handed_to().is_none())?;
        entry.ordered = Some((epoch, now));
        entry.task.state = TaskState::Sent { incarnation };
        Some(entry.task.clone())
    }

    /// A runtime says that a task runs.
    pub(super) fn started(&mut self, task: TaskRef, incarnation: Incarnation, epoch: Epoch, now: Timestamp) -> Started {
        let mut open = self.entries.iter_mut().filter(|entry| !entry.is_over());
        let Some(entry) = open.find(|entry| entry.reference() == task) else { return Started::Unknown };
        if entry.heard.replace(epoch) == Some(epoch) {
            return Started::Known;
        }
        let was_running = entry.is_running();
        entry.task.state = TaskState::Running { incarnation };
        entry.task.started_at = Some(now);
        let task = entry.task.clone();
        if was_running { Started::StillRunning(task) } else { Started::Now(task) }
    }

    /// A runtime says that a task is over.
    pub(super) fn ended(&mut self, ended: TaskEnded, now: Timestamp) -> Ended {
        match self.entries.iter_mut().find(|entry| entry.reference() == ended.task) {
            None => Ended::Unknown,
            Some(entry) if entry.is_over() => Ended::Before(entry.task.clone()),
            Some(entry) => Ended::Now(entry.end(ended.outcome, Some(ended.report), now)),
        }
    }

    /// Ends a task that could never be sent.
    pub(super) fn reject(&mut self, task: TaskRef, reason: &str, now: Timestamp) -> Option<Task> {
        let entry = self.entries.iter_mut().find(|entry| entry.reference() == task && !entry.is_over())?;
        Some(entry.end(TaskOutcome::NotStarted { reason: reason.to_owned() }, None, now))
    }

    /// The incarnations that tasks were sent to are over, except for this one. Answers with the tasks
    /// that end by that.
    pub(super) fn end_incarnations(&mut self, except: Option<Incarnation>, now: Timestamp) -> Vec<Task> {
        self.end_where(now, |entry| {
            let incarnation = entry.task.handed_to()?;
            (Some(incarnation) != except).then_some(TaskOutcome::Interrupted)
        })
    }

    /// The agent's machine is that of this claim. Answers with the tasks of the file that were for another
    /// one, and end unsent.
    pub(super) fn end_of_other_claims(&mut self, current: ClaimId, now: Timestamp) -> Vec<Task> {
        self.end_where(now, |entry| {
            let TaskSource::File { claim, .. } = &entry.task.source else { return None };
            let stranded = *claim != current && entry.task.handed_to().is_none();
            stranded.then(|| TaskOutcome::NotStarted { reason: "the machine that it was for is no more".to_owned() })
        })
    }

    /// There is no agent any more. Answers with what is over now.
    pub(super) fn end_all(&mut self, reason: &str, now: Timestamp) -> Vec<Task> {
        self.end_where(now, |entry| {
            Some(if entry.task.handed_to().is_some() {
                TaskOutcome::Interrupted
            } else {
                TaskOutcome::NotStarted { reason: reason.to_owned() }
            })
        })
    }

    /// Ends the tasks of which a runtime, connected since then, should have told the end.
    pub(super) fn end_overdue(&mut self, epoch: Epoch, connected_at: Timestamp, now: Timestamp) -> Vec<Task> {
        self.end_where(now, |entry| {
            let since = match entry.task.started_at {
                Some(started_at) if entry.is_running() => started_at.max(connected_at),
                _ if entry.is_running() => connected_at,
                _ => entry.ordered_in(epoch)?,
            };
            let limit = entry.task.terms.timeout.get().saturating_add(OVERDUE);
            (elapsed(now, since) > limit).then_some(TaskOutcome::Interrupted)
        })
    }

    /// The end of a task is durable: it may be forgotten.
    pub(super) fn stored(&mut self, task: TaskRef) {
        self.entries.retain(|entry| entry.reference() != task);
    }

    /// The end of a task could not be stored.
    pub(super) fn not_stored(&mut self, task: TaskRef) {
        for entry in self.entries.iter_mut().filter(|entry| entry.reference() == task) {
            entry.unstored = entry.is_over();
        }
    }

    /// The ended tasks that are to be stored again.
    pub(super) fn take_unstored(&mut self) -> Vec<Task> {
        let unstored = self.entries.iter_mut().filter(|entry| entry.unstored);
        let taken = unstored.map(|entry| {
            entry.unstored = false;
            entry.task.clone()
        });
        taken.collect()
    }

    fn end_where(&mut self, now: Timestamp, outcome: impl Fn(&Entry) -> Option<TaskOutcome>) -> Vec<Task> {
        let open = self.entries.iter_mut().filter(|entry| !entry.is_over());
        open.filter_map(|entry| outcome(entry).map(|outcome| entry.end(outcome, None, now))).collect()
    }
}
