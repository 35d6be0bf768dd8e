//! What is known of each task, and what follows from it. Plain data: no disk, no processes.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::task::Report;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{TaskEnded, TaskOutcome, TaskRef};

/// How many acknowledged tasks are remembered. An order can come again after its end was acknowledged
/// only if the hub lost its memory (a state put back from a copy); within a connection order and
/// acknowledgement can't overtake each other, and a new connection begins with what is unsettled. So a
/// bounded number is enough.
const REMEMBERED: usize = 1000;

/// What is known of a task: a file of the journal. What was run is not in it, for it may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(crate) enum Record {
    /// It has begun, or is about to.
    Started {
        /// Which attempt.
        #[serde(flatten)]
        task: TaskRef,
        /// How much of its output is kept.
        output: ByteSize,
    },
    /// It has ended, and the hub may not know.
    Ended {
        /// How.
        #[serde(flatten)]
        end: TaskEnded,
        /// How much of its output is kept.
        output: ByteSize,
    },
    /// It has ended, and the hub has stored how. Its output and what is known of its artifacts are forgotten.
    Acknowledged {
        /// How.
        #[serde(flatten)]
        end: TaskEnded,
    },
}

impl Record {
    /// Which attempt of which task.
    pub(crate) const fn task(&self) -> TaskRef {
        match self {
            Self::Started { task, .. } => *task,
            Self::Ended { end, .. } | Self::Acknowledged { end } => end.task,
        }
    }
}

/// What an order leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is new: run it.
    Run,
    /// It runs, or has ended and the hub has not acknowledged that.
    Known,
    /// It has ended so, and the hub has acknowledged it once.
    Settled(TaskEnded),
    /// An attempt before it still runs. Nobody wants that any more.
    After(TaskRef),
    /// A later attempt has run.
    Stale,
}

/// All tasks that are known.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Task ids grow with time, so the first is the oldest.
    records: BTreeMap<TaskId, Record>,
}

impl Ledger {
    /// The ledger at a start, and the records that the start has changed: nothing runs yet, so whatever
    /// has begun was interrupted.
    pub(crate) fn recover(records: Vec<Record>) -> (Self, Vec<Record>) {
        let mut ledger = Self::default();
        let mut interrupted = Vec::new();
        for record in records {
            let record = match record {
                Record::Started { task, output } => {
                    let end = TaskEnded { task, outcome: TaskOutcome::Interrupted, report: Report::default() };
                    let record = Record::Ended { end, output };
                    interrupted.push(record.clone());
                    record
                }
                settled => settled,
            };
            ledger.put(record);
        }
        (ledger, interrupted)
    }

    /// Notes what is known of a task now.
    pub(crate) fn put(&mut self, record: Record) {
        self.records.insert(record.task().task, record);
    }

    /// What an order leads to.
    pub(crate) fn answer(&self, order: TaskRef) -> Answer {
        let Some(record) = self.records.get(&order.task) else { return Answer::Run };
        match (order.attempt.cmp(&record.task().attempt), record) {
            (Ordering::Less, _) => Answer::Stale,
            (Ordering::Equal, Record::Started { .. } | Record::Ended { .. }) => Answer::Known,
            (Ordering::Equal, Record::Acknowledged { end }) => Answer::Settled(end.clone()),
            (Ordering::Greater, Record::Started { task, .. }) => Answer::After(*task),
            // Whoever orders the next attempt knows how the last one ended, or does not care.
            (Ordering::Greater, Record::Ended { .. } | Record::Acknowledged { .. }) => Answer::Run,
        }
    }

    /// The attempts of which a new session has to be told, oldest task first.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = &Record> {
        self.records.values().filter(|record| !matches!(record, Record::Acknowledged { .. }))
    }

    /// The record of a task whose end the hub has stored; nothing if that changes nothing.
    pub(crate) fn acknowledged(&self, task: TaskRef) -> Option<Record> {
        match self.records.get(&task.task) {
            Some(Record::Ended { end, .. }) if end.task == task => {
                let report = Report { artifacts: Vec::new(), ..end.report.clone() };
                Some(Record::Acknowledged { end: TaskEnded { report, ..end.clone() } })
            }
            _ => None,
        }
    }

    /// Forgets the oldest acknowledged tasks beyond [`REMEMBERED`], and says which.
    pub(crate) fn forget_oldest(&mut self) -> Vec<TaskId> {
        let settled = self.records.iter().filter(|(_, record)| matches!(record, Record::Acknowledged { .. }));
        let settled: Vec<TaskId> = settled.map(|(id, _)| *id).collect();
        let forgotten = settled[..settled.len().saturating_sub(REMEMBERED)].to_vec();
        for id in &forgotten {
            self.records.remove(id);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: ByteSize = ByteSize::from_mib(1);
    const DONE: TaskOutcome = TaskOutcome::Exited { code: 0 };

    fn attempt(attempt: u32) -> TaskRef {
        TaskRef { task: "0190c5a8-0000-7000-8000-000000000000".parse().unwrap(), attempt }
    }

    fn end(task: TaskRef) -> TaskEnded {
        TaskEnded { task, outcome: DONE, report: Report { stdout: 4, ..Report::default() } }
    }

    fn started(number: u32) -> Record {
        Record::Started { task: attempt(number), output: OUTPUT }
    }

    fn ended(number: u32) -> Record {
        Record::Ended { end: end(attempt(number)), output: OUTPUT }
    }

    fn acknowledged(number: u32) -> Record {
        Record::Acknowledged { end: end(attempt(number)) }
    }

    fn ledger(record: Record) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.put(record);
        ledger
    }

    #[test]
    fn an_order_is_run_once() {
        assert_eq!(Ledger::default().answer(attempt(1)), Answer::Run);
        assert_eq!(ledger(started(1)).answer(attempt(1)), Answer::Known);
        assert_eq!(ledger(ended(1)).answer(attempt(1)), Answer::Known);
        assert_eq!(ledger(acknowledged(1)).answer(attempt(1)), Answer::Settled(end(attempt(1))));
    }

    #[test]
    fn the_next_attempt_runs_only_when_the_last_has_ended() {
        assert_eq!(ledger(started(1)).answer(attempt(2)), Answer::After(attempt(1)));
        assert_eq!(ledger(ended(1)).answer(attempt(2)), Answer::Run);
        assert_eq!(ledger(acknowledged(1)).answer(attempt(2)), Answer::Run);
        assert_eq!(ledger(ended(2)).answer(attempt(1)), Answer::Stale);
    }

    #[test]
    fn what_had_begun_before_a_start_was_interrupted_and_is_told() {
        let (ledger, changed) = Ledger::recover(vec![started(1)]);
        let [Record::Ended { end, output: OUTPUT }] = changed.as_slice() else { panic!("{changed:?}") };
        assert_eq!((end.task, &end.outcome), (attempt(1), &TaskOutcome::Interrupted));
        assert_eq!(ledger.unsettled().collect::<Vec<_>>(), [&changed[0]]);
        assert_eq!(ledger.answer(attempt(1)), Answer::Known, "it is not run again");
    }

    #[test]
    fn what_had_ended_before_a_start_stays_as_it_was() {
        let (ledger, changed) = Ledger::recover(vec![ended(1)]);
        assert_eq!(ledger.unsettled().collect::<Vec<_>>(), [&ended(1)]);
        assert_eq!(changed, []);
        let (ledger, changed) = Ledger::recover(vec![acknowledged(1)]);
        assert_eq!((ledger.unsettled().count(), changed), (0, vec![]));
    }

    #[test]
    fn an_acknowledgement_settles_exactly_the_attempt_that_it_names() {
        let mut ledger = ledger(ended(2));
        assert_eq!(ledger.acknowledged(attempt(1)), None);
        let settled = ledger.acknowledged(attempt(2)).unwrap();
        ledger.put(settled);
        assert_eq!(ledger.unsettled().count(), 0);
        assert_eq!(ledger.acknowledged(attempt(2)), None);
    }

    #[test]
    fn only_so_many_acknowledged_tasks_are_remembered_and_the_oldest_go_first() {
        let mut ledger = ledger(started(1));
        let tasks: Vec<TaskRef> =
            (0..REMEMBERED + 2).map(|_| TaskRef { task: TaskId::generate(), attempt: 1 }).collect();
        for &task in &tasks {
            ledger.put(Record::Acknowledged { end: end(task) });
        }
        assert_eq!(ledger.forget_oldest(), [tasks[0].task, tasks[1].task]);
        assert_eq!(ledger.forget_oldest(), []);
        assert_eq!(ledger.answer(attempt(1)), Answer::Known);
    }

    #[test]
    fn records_read_back_as_written() {
        let reason = "no".to_owned();
        let refused = TaskEnded { outcome: TaskOutcome::NotStarted { reason }, ..end(attempt(3)) };
        for record in [started(1), Record::Ended { end: refused, output: OUTPUT }, acknowledged(2)] {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
        }
    }
}
