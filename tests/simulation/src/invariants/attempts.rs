//! Attempts: which may be made, in which order, and how many at a time.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use vm_agent_hub::{Directory, Record};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{ATTEMPTS_KEPT, LOSSES_MAX, RetryOn, Task};
use vm_agent_schemas::wire::{TaskOutcome, TaskRef};

use crate::deed::Deed;

use super::{Invariant, ONCE, hold, invariant};

/// Slots of an agent that nobody declares.
const SLOTS: u32 = 4;

fn tasks(records: &[Record]) -> impl Iterator<Item = &Task> {
    records.iter().filter_map(|record| match record {
        Record::Task(task) => Some(task),
        _ => None,
    })
}

/// Two attempts of a task are made at the same time only if doing it twice is as good as once.
#[derive(Debug, Default)]
pub(super) struct AttemptsFollowEachOther {
    repeatable: BTreeSet<TaskId>,
}

impl Invariant for AttemptsFollowEachOther {
    invariant!(AttemptsFollowEachOther, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Submitted(task) if task.is_idempotent() => {
                self.repeatable.insert(task.id);
                Ok(())
            }
            Deed::Ran { task, others } => hold(others.is_empty() || self.repeatable.contains(&task.task), || {
                format!("attempt {} of a task begins while {others:?} are made", task.attempt)
            }),
            _ => Ok(()),
        }
    }
}

/// Another attempt is made only after an end that is to be tried again, and as often as that is granted.
#[derive(Debug, Default)]
pub(super) struct RepeatsAreGranted {
    terms: BTreeMap<TaskId, Task>,
    ran: BTreeSet<TaskRef>,
    ended: BTreeMap<TaskRef, TaskOutcome>,
}

impl RepeatsAreGranted {
    fn judge(&self, now: TaskRef) -> Result<(), String> {
        let Some(task) = self.terms.get(&now.task) else { return Err("nobody accepted it".to_owned()) };
        let mut losses = 0;
        let earlier = (1..now.attempt).map(|attempt| TaskRef { attempt, ..now });
        for former in earlier {
            let Some(outcome) = self.ended.get(&former) else {
                hold(!self.ran.contains(&former), || {
                    format!("attempt {} is made, and no end of {} is stored", now.attempt, former.attempt)
                })?;
                continue;
            };
            if *outcome == TaskOutcome::Interrupted {
                losses += 1;
                hold(task.is_idempotent(), || "what may have been done is done again".to_owned())?;
                continue;
            }
            let kind = match outcome {
                TaskOutcome::Exited { code: 0 } | TaskOutcome::Canceled | TaskOutcome::Expired => None,
                TaskOutcome::TimedOut => Some(RetryOn::TimedOut),
                TaskOutcome::NotStarted { .. } => Some(RetryOn::NotStarted),
                _ => Some(RetryOn::Failed),
            };
            let granted = kind.is_some_and(|kind| task.terms.retry.as_ref().is_some_and(|it| it.on.contains(&kind)));
            hold(granted, || format!("another attempt is made after one that {outcome}"))?;
        }
        let attempts = task.terms.retry.as_ref().map_or(1, |retry| retry.attempts);
        hold(now.attempt <= attempts + losses && losses <= LOSSES_MAX, || {
            format!("attempt {} of {attempts} is made, with {losses} losses", now.attempt)
        })
    }
}

impl Invariant for RepeatsAreGranted {
    invariant!(RepeatsAreGranted, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Submitted(task) => drop(self.terms.entry(task.id).or_insert_with(|| (**task).clone())),
            Deed::AttemptOver { task, stored, .. } => {
                let lost = stored.former.iter().filter(|former| former.outcome == TaskOutcome::Interrupted).count();
                let is_whole = stored.former.len() < ATTEMPTS_KEPT;
                hold(!is_whole || u32::try_from(lost) == Ok(stored.losses), || {
                    format!("a task was lost {lost} times, and counts {}", stored.losses)
                })?;
                let former = stored.former.iter().find(|former| former.attempt == task.attempt);
                let outcome = former.map(|former| &former.outcome).or(stored.outcome());
                self.ended.extend(outcome.map(|outcome| (*task, outcome.clone())));
            }
            // An end that is stored while nobody is connected to hear of it.
            Deed::Stored(records) => {
                for task in tasks(records) {
                    let over = task
                        .former
                        .iter()
                        .map(|former| (TaskRef { task: task.id, attempt: former.attempt }, former.outcome.clone()));
                    self.ended.extend(over);
                }
            }
            Deed::Ran { task, .. } => {
                self.judge(*task)?;
                self.ran.insert(*task);
            }
            _ => {}
        }
        Ok(())
    }
}

/// What the hub of a life knows of its tasks, as it says itself.
#[derive(Debug, Default)]
struct Book {
    /// By the order in which they were submitted.
    numbers: BTreeMap<TaskId, usize>,
    tasks: BTreeMap<TaskId, Task>,
    directory: Directory,
}

impl Book {
    /// Takes note of a deed, and answers with the tasks that it hands over, as they were known before.
    fn note(&mut self, deed: &Deed) -> Vec<(Task, Timestamp)> {
        match deed {
            Deed::Began { .. } => *self = Self::default(),
            Deed::Declared(directory) => self.directory = directory.clone(),
            Deed::Submitted(task) if task.outcome().is_none() && !self.tasks.contains_key(&task.id) => {
                self.numbers.insert(task.id, self.numbers.len());
                self.tasks.insert(task.id, (**task).clone());
            }
            Deed::Meant { records, at } => {
                let mut begun = Vec::new();
                for task in tasks(records) {
                    let before = self.tasks.insert(task.id, task.clone());
                    let same = |it: &Task| it.handed_to().is_some() && it.attempt == task.attempt;
                    if task.handed_to().is_some() && !before.as_ref().is_some_and(same) {
                        begun.push((task.clone(), *at));
                    }
                }
                return begun;
            }
            _ => {}
        }
        Vec::new()
    }

    fn under_way<'a>(&'a self, agent: &'a AgentName) -> impl Iterator<Item = &'a Task> {
        self.tasks.values().filter(move |it| it.agent.as_ref() == Some(agent) && it.handed_to().is_some())
    }
}

/// Tasks of an agent with one key are handed over one after the other, in the order in which they were accepted.
#[derive(Debug, Default)]
pub(super) struct KeysKeepTheirOrder(Book);

impl Invariant for KeysKeepTheirOrder {
    invariant!(KeysKeepTheirOrder, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        for (task, _) in self.0.note(deed) {
            let number = |task: &Task| self.0.numbers.get(&task.id);
            let before = self.0.tasks.values().find(|it| {
                it.id != task.id
                    && it.agent == task.agent
                    && it.terms.key == task.terms.key
                    && it.outcome().is_none()
                    && (it.handed_to().is_some() || number(it) < number(&task))
            });
            hold(before.is_none(), || format!("{:?} is handed a task before {before:?}", task.agent))?;
        }
        Ok(())
    }
}

/// An agent is never at more tasks than it has slots.
#[derive(Debug, Default)]
pub(super) struct SlotsAreKept(Book);

impl Invariant for SlotsAreKept {
    invariant!(SlotsAreKept, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        for (task, _) in self.0.note(deed) {
            let Some(agent) = &task.agent else { return Err("a task is handed to nobody".to_owned()) };
            let slots = self.0.directory.members.get(agent).map_or(SLOTS, |member| member.slots);
            let at = self.0.under_way(agent).count();
            hold(at <= usize::try_from(slots).unwrap_or(usize::MAX), || {
                format!("{agent} is at {at} tasks, and has {slots} slots")
            })?;
        }
        Ok(())
    }
}

/// A deadline that has passed begins nothing.
#[derive(Debug, Default)]
pub(super) struct DeadlinesHold(Book);

impl Invariant for DeadlinesHold {
    invariant!(DeadlinesHold, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        self.0.note(deed).into_iter().try_for_each(|(task, at)| {
            let late = task.terms.deadline.is_some_and(|deadline| at >= deadline);
            hold(!late, || format!("a task of {:?} is handed over after its deadline", task.agent))
        })
    }
}

/// A task of a pool goes to an agent that it is for.
#[derive(Debug, Default)]
pub(super) struct PoolsGoToTheirOwn(Book);

impl Invariant for PoolsGoToTheirOwn {
    invariant!(PoolsGoToTheirOwn, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        self.0.note(deed).into_iter().try_for_each(|(task, _)| {
            let (Some(selector), Some(agent)) = (&task.pool, &task.agent) else { return Ok(()) };
            let fits = self.0.directory.members.get(agent).is_some_and(|member| selector.matches(&member.labels));
            hold(fits, || format!("{agent} is handed a task for {selector}"))
        })
    }
}

/// What somebody has cancelled is never begun after that.
#[derive(Debug, Default)]
pub(super) struct WhatIsCanceledIsNotBegun {
    handed: BTreeMap<TaskId, u32>,
    /// The last attempt that may still begin.
    canceled: BTreeMap<TaskId, u32>,
}

impl Invariant for WhatIsCanceledIsNotBegun {
    invariant!(WhatIsCanceledIsNotBegun, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Stored(records) => {
                for task in tasks(records) {
                    if task.handed_to().is_some() {
                        self.handed.insert(task.id, task.attempt);
                    }
                    if task.canceled_by.is_some() {
                        let last = self.handed.get(&task.id).copied().unwrap_or_default();
                        self.canceled.entry(task.id).or_insert(last);
                    }
                }
                Ok(())
            }
            Deed::Ran { task, .. } => {
                let begins = self.canceled.get(&task.task).is_none_or(|last| task.attempt <= *last);
                hold(begins, || format!("attempt {} of a task begins that was cancelled", task.attempt))
            }
            _ => Ok(()),
        }
    }
}

/// A runtime is told that an attempt is settled only when its end is stored.
#[derive(Debug)]
pub(super) struct EndsAreStoredFirst;

impl Invariant for EndsAreStoredFirst {
    invariant!(EndsAreStoredFirst, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Acknowledged { task, stored } = deed else { return Ok(()) };
        let over = stored.as_ref().is_some_and(|it| it.outcome().is_some() || it.attempt > task.attempt);
        hold(over, || format!("the end of attempt {} is acknowledged, and not stored", task.attempt))
    }
}
