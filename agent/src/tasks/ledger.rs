//! What is known of each task, and what follows from it. Plain data: no disk, no processes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::task::Report;
use vm_agent_schemas::wire::{FromRuntime, TaskEnded, TaskOutcome, TaskRef};

/// How many acknowledged tasks are remembered. An order can come again after its end was acknowledged
/// only if the hub lost its memory (a state put back from a copy); within a connection order and
/// acknowledgement can't overtake each other, and a new connection begins with what is unsettled. So a
/// bounded number is enough.
const REMEMBERED: usize = 1000;

/// What is known of a task: a line of the journal. What was run is not in it, for it may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub(crate) enum Record {
    /// It has begun, or is about to.
    Started(TaskRef),
    /// It has ended, and the hub may not know.
    Ended(TaskEnded),
    /// It has ended, and the hub has stored how.
    Acknowledged {
        /// Which attempt.
        #[serde(flatten)]
        task: TaskRef,
        /// How it ended.
        outcome: TaskOutcome,
    },
}

impl Record {
    /// Which attempt of which task.
    pub(crate) const fn task(&self) -> TaskRef {
        match self {
            Self::Started(task) | Self::Acknowledged { task, .. } => *task,
            Self::Ended(ended) => ended.task,
        }
    }
}

/// What an order leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is new: run it.
    Run,
    /// It is running already.
    Running,
    /// It has ended already, so.
    Ended(TaskEnded),
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
                Record::Started(task) => {
                    let outcome = TaskOutcome::Interrupted;
                    let record = Record::Ended(TaskEnded { task, outcome, report: Report::default() });
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
        let ended = |outcome| Answer::Ended(TaskEnded { task: order, outcome, report: Report::default() });
        match (order.attempt.cmp(&record.task().attempt), record) {
            (std::cmp::Ordering::Less, _) => Answer::Stale,
            (std::cmp::Ordering::Equal, Record::Started(_)) => Answer::Running,
            (std::cmp::Ordering::Equal, Record::Ended(end)) => Answer::Ended(end.clone()),
            (std::cmp::Ordering::Equal, Record::Acknowledged { outcome, .. }) => ended(outcome.clone()),
            (std::cmp::Ordering::Greater, Record::Started(running)) => {
                let reason = format!("attempt {} of this task is still running", running.attempt);
                ended(TaskOutcome::NotStarted { reason })
            }
            // Whoever orders the next attempt knows how the last one ended.
            (std::cmp::Ordering::Greater, Record::Ended(_) | Record::Acknowledged { .. }) => Answer::Run,
        }
    }

    /// What a new session has to be told, oldest task first.
    pub(crate) fn unsettled(&self) -> impl Iterator<Item = FromRuntime> {
        self.records.values().filter_map(|record| match record {
            Record::Started(task) => Some(FromRuntime::TaskStarted(*task)),
            Record::Ended(ended) => Some(FromRuntime::TaskEnded(ended.clone())),
            Record::Acknowledged { .. } => None,
        })
    }

    /// The record of a task whose end the hub has stored; nothing if that changes nothing.
    pub(crate) fn acknowledged(&self, task: TaskRef) -> Option<Record> {
        match self.records.get(&task.task) {
            Some(Record::Ended(ended)) if ended.task == task => {
                Some(Record::Acknowledged { task, outcome: ended.outcome.clone() })
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

    fn attempt(attempt: u32) -> TaskRef {
        TaskRef { task: "0190c5a8-0000-7000-8000-000000000000".parse().unwrap(), attempt }
    }

    fn ended(task: TaskRef, outcome: TaskOutcome) -> TaskEnded {
        TaskEnded { task, outcome, report: Report { stdout: 4, ..Report::default() } }
    }

    fn ledger(record: Record) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.put(record);
        ledger
    }

    const DONE: TaskOutcome = TaskOutcome::Exited { code: 0 };

    #[test]
    fn an_order_is_run_once() {
        assert_eq!(Ledger::default().answer(attempt(1)), Answer::Run);
        assert_eq!(ledger(Record::Started(attempt(1))).answer(attempt(1)), Answer::Running);
        let end = ended(attempt(1), DONE);
        assert_eq!(ledger(Record::Ended(end.clone())).answer(attempt(1)), Answer::Ended(end));
        let settled = Record::Acknowledged { task: attempt(1), outcome: DONE };
        let silent = TaskEnded { task: attempt(1), outcome: DONE, report: Report::default() };
        assert_eq!(ledger(settled).answer(attempt(1)), Answer::Ended(silent));
    }

    #[test]
    fn the_next_attempt_runs_only_when_the_last_has_ended() {
        assert_eq!(ledger(Record::Ended(ended(attempt(1), DONE))).answer(attempt(2)), Answer::Run);
        assert_eq!(ledger(Record::Ended(ended(attempt(2), DONE))).answer(attempt(1)), Answer::Stale);
        let Answer::Ended(refused) = ledger(Record::Started(attempt(1))).answer(attempt(2)) else {
            panic!("two attempts of a task must not run at once");
        };
        assert_eq!(refused.task, attempt(2));
        assert!(matches!(refused.outcome, TaskOutcome::NotStarted { .. }));
    }

    #[test]
    fn what_had_begun_before_a_start_was_interrupted_and_is_told() {
        let (ledger, changed) = Ledger::recover(vec![Record::Started(attempt(1))]);
        let told: Vec<FromRuntime> = ledger.unsettled().collect();
        let [FromRuntime::TaskEnded(end)] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!(end.outcome, TaskOutcome::Interrupted);
        assert_eq!(changed, [Record::Ended(end.clone())]);
    }

    #[test]
    fn what_had_ended_before_a_start_is_told_as_it_was() {
        let end = ended(attempt(1), DONE);
        let (ledger, changed) = Ledger::recover(vec![Record::Ended(end.clone())]);
        assert_eq!(ledger.unsettled().collect::<Vec<_>>(), [FromRuntime::TaskEnded(end)]);
        assert_eq!(changed, []);
    }

    #[test]
    fn an_acknowledgement_settles_exactly_the_attempt_that_it_names() {
        let mut ledger = ledger(Record::Ended(ended(attempt(2), DONE)));
        assert_eq!(ledger.acknowledged(attempt(1)), None);
        let settled = ledger.acknowledged(attempt(2)).unwrap();
        ledger.put(settled);
        assert_eq!(ledger.unsettled().count(), 0);
        assert_eq!(ledger.acknowledged(attempt(2)), None);
    }

    #[test]
    fn only_so_many_acknowledged_tasks_are_remembered_and_the_oldest_go_first() {
        let mut ledger = Ledger::default();
        let tasks: Vec<TaskRef> =
            (0..REMEMBERED + 2).map(|_| TaskRef { task: TaskId::generate(), attempt: 1 }).collect();
        let unsettled = Record::Started(attempt(1));
        ledger.put(unsettled);
        for &task in &tasks {
            ledger.put(Record::Acknowledged { task, outcome: DONE });
        }
        assert_eq!(ledger.forget_oldest(), [tasks[0].task, tasks[1].task]);
        assert_eq!(ledger.forget_oldest(), []);
        assert_eq!(ledger.answer(attempt(1)), Answer::Running);
    }

    #[test]
    fn records_read_back_as_written() {
        let records = [
            Record::Started(attempt(1)),
            Record::Ended(ended(attempt(3), TaskOutcome::NotStarted { reason: "no".to_owned() })),
            Record::Acknowledged { task: attempt(2), outcome: TaskOutcome::Signaled { signal: 9 } },
        ];
        for record in records {
            let text = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record, "{text}");
        }
    }
}
