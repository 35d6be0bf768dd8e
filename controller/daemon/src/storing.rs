//! What the hub's records come to on the disk: pure decisions about what goes where, what has to be durable
//! when, and what must not be stored because something before it is missing.

use std::collections::BTreeMap;

use vm_agent_hub::Record;
use vm_agent_schemas::task::{Task, TaskState};
use vm_agent_schemas::wire::{Channel, TaskRef};
use vm_agent_store::output::OutputRecord;

/// What of some records goes into the output log, and when. All others go into the database, in one
/// transaction.
#[derive(Debug, Default)]
pub struct Sorted {
    /// Into the output log, which comes first.
    pub output: Vec<OutputRecord>,
    /// How many go into the database.
    pub others: usize,
    /// The attempts that those say are over: then the log has to be durable before them.
    pub over: Vec<TaskRef>,
}

/// Sorts records by where they go.
#[must_use]
pub fn sorted<'a>(all: impl IntoIterator<Item = &'a Record>) -> Sorted {
    let mut sorted = Sorted::default();
    for record in all {
        sorted.over.extend(ended_by(record));
        match record {
            Record::Output { task, channel, offset, data } => {
                let (task, channel, offset, data) = (*task, *channel, *offset, data.clone());
                sorted.output.push(OutputRecord { task, channel, offset, data });
            }
            Record::Credential(_) | Record::Task(_) | Record::Message(_) => sorted.others += 1,
        }
    }
    sorted
}

/// The attempt that a record says is over: the last one of a task that has ended, or the one before that
/// which is to come.
fn ended_by(record: &Record) -> Option<TaskRef> {
    let Record::Task(Task { id, attempt, state, .. }) = record else { return None };
    let attempt = match state {
        TaskState::Ended { .. } => *attempt,
        TaskState::Queued { .. } if *attempt > 1 => attempt - 1,
        TaskState::Queued { .. } | TaskState::Sent { .. } | TaskState::Running { .. } => return None,
    };
    Some(TaskRef { task: *id, attempt })
}

/// Where output could not be stored. What a runtime sent after that is refused until it has come again from
/// there: a jump of the offset says that something was left out, and that must not be said of what was lost.
#[derive(Debug, Default)]
pub struct Holes(BTreeMap<(TaskRef, u8), u64>);

impl Holes {
    /// Whether nothing is missing before these.
    #[must_use]
    pub fn admit(&self, output: &[OutputRecord]) -> bool {
        output.iter().all(|piece| self.0.get(&key(piece)).is_none_or(|hole| piece.offset <= *hole))
    }

    /// These could not be stored.
    pub fn failed(&mut self, output: &[OutputRecord]) {
        for piece in output {
            let hole = self.0.entry(key(piece)).or_insert(piece.offset);
            *hole = piece.offset.min(*hole);
        }
    }

    /// These are stored, and nothing more comes of those attempts.
    pub fn stored(&mut self, output: &[OutputRecord], over: &[TaskRef]) {
        if !self.0.is_empty() {
            for piece in output {
                self.0.remove(&key(piece));
            }
            self.0.retain(|(task, _), _| !over.contains(task));
        }
    }
}

fn key(piece: &OutputRecord) -> (TaskRef, u8) {
    (piece.task, u8::from(piece.channel == Channel::Stderr))
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::ids::TaskId;

    use super::*;

    fn piece(task: TaskRef, offset: u64) -> OutputRecord {
        OutputRecord { task, channel: Channel::Stdout, offset, data: "abc".into() }
    }

    #[test]
    fn what_follows_on_lost_output_is_refused_until_that_has_come_again() {
        let [task, other] = [1, 2].map(|attempt| TaskRef { task: TaskId::generate(), attempt });
        let mut holes = Holes::default();
        assert!(holes.admit(&[piece(task, 6)]));
        holes.failed(&[piece(task, 3)]);
        holes.failed(&[piece(task, 6)]);
        assert!(!holes.admit(&[piece(task, 6)]), "something is missing before it");
        assert!(holes.admit(&[piece(other, 6)]), "of another attempt nothing is missing");
        assert!(holes.admit(&[piece(task, 3)]));
        holes.stored(&[piece(task, 3)], &[]);
        assert!(holes.admit(&[piece(task, 6)]));
    }

    #[test]
    fn nothing_is_remembered_of_an_attempt_that_is_over() {
        let task = TaskRef { task: TaskId::generate(), attempt: 1 };
        let mut holes = Holes::default();
        holes.failed(&[piece(task, 3)]);
        holes.stored(&[], &[task]);
        assert!(holes.0.is_empty());
    }
}
