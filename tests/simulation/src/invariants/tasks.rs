//! Tasks, and who may speak.

use std::collections::{BTreeMap, BTreeSet};

use vm_agent_hub::Record;
use vm_agent_schemas::ids::{Boot, Epoch, Incarnation, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource, TaskState};
use vm_agent_schemas::wire::TaskRef;

use crate::deed::Deed;

use super::{Invariant, ONCE, hold, invariant};

/// A task that has ended never changes again.
#[derive(Debug, Default)]
pub(super) struct TasksEndOnce {
    ended: BTreeMap<TaskId, Task>,
}

impl Invariant for TasksEndOnce {
    invariant!(TasksEndOnce, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Stored(records) = deed else { return Ok(()) };
        for record in records {
            let Record::Task(task) = record else { continue };
            if let Some(before) = self.ended.get(&task.id) {
                hold(before == task, || format!("an ended task of {:?} changed", task.agent))?;
            } else if task.outcome().is_some() {
                self.ended.insert(task.id, task.clone());
            }
        }
        Ok(())
    }
}

/// No attempt of a task runs twice, wherever.
#[derive(Debug, Default)]
pub(super) struct TasksRunOnce {
    ran: BTreeSet<TaskRef>,
}

impl Invariant for TasksRunOnce {
    invariant!(TasksRunOnce, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Ran { task, .. } = deed else { return Ok(()) };
        hold(self.ran.insert(*task), || "a task runs a second time".to_owned())
    }
}

/// A task is stored as sent before it is sent: after that nobody can take it for one that never was.
#[derive(Debug)]
pub(super) struct TasksAreStoredFirst;

impl Invariant for TasksAreStoredFirst {
    invariant!(TasksAreStoredFirst, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Ordered { stored, claim } = deed else { return Ok(()) };
        let Some(task) = stored else { return Err("a task was sent, and never accepted".to_owned()) };
        let is_queued = matches!(task.state, TaskState::Queued { .. });
        hold(!is_queued, || format!("a task of {:?} was sent, and still stands as queued", task.agent))?;
        let TaskSource::File { claim: meant, .. } = &task.source else { return Ok(()) };
        let fits = claim.is_none_or(|claim| claim == *meant);
        hold(fits, || format!("a task of the file was sent to another machine of {:?} than it is for", task.agent))
    }
}

/// Each session fences all before it, and no earlier life of machine or runtime is let in again.
#[derive(Debug, Default)]
pub(super) struct OnlyTheNewestSpeaks {
    latest: BTreeMap<AgentName, (Incarnation, Boot, Epoch)>,
}

impl Invariant for OnlyTheNewestSpeaks {
    invariant!(OnlyTheNewestSpeaks, ONCE);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Welcomed { agent, incarnation, boot, epoch, .. } = deed else { return Ok(()) };
        let now = (*incarnation, *boot, *epoch);
        if let Some((of, start, latest)) = self.latest.insert(agent.clone(), now) {
            // A new claim counts its epochs anew, and fences by its incarnation.
            hold((*incarnation, *epoch) > (of, latest), || {
                format!("epoch {incarnation}/{epoch} of {agent} came after epoch {of}/{latest}")
            })?;
            hold((*incarnation, *boot) >= (of, start), || {
                format!("{agent} {incarnation}/{boot} was let in after {of}/{start}")
            })?;
        }
        Ok(())
    }
}
