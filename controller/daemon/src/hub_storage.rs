//! Makes the hub's records durable: what has queued up is written together, in the order it came.
//!
//! Output goes to the output log, everything else into one transaction of the database. The log comes
//! first. It is flushed to the disk (`fdatasync`) when the transaction says that an attempt or a task is
//! over, so that nobody is told of an end whose output may still be lost; output alone is only handed to
//! the operating system, since a runtime keeps what it sent until the end is acknowledged. The
//! transaction is on the disk when it is answered: SQLite runs in WAL mode with `synchronous = FULL`, which
//! flushes the WAL with every commit.

use std::sync::Arc;

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use vm_agent_hub::{Record, Storage};

use crate::disk;
use crate::ledger::Ledger;
use crate::output::Output;
use crate::reconciler::Chain;
use crate::storing::{Holes, Sorted, sorted};

/// Most batches that one transaction takes: enough to use a commit well, and few enough that the
/// first of them does not wait long for the last.
const TOGETHER: usize = 512;

type Batch = (Vec<Record>, oneshot::Sender<Result<(), String>>);

/// The hub's way to the ledger.
pub(crate) struct HubStorage {
    queue: mpsc::UnboundedSender<Batch>,
}

impl HubStorage {
    /// Begins to write. It ends when the hub has dropped it.
    pub(crate) fn start(ledger: Arc<Ledger>, output: Arc<Output>) -> Arc<Self> {
        // The hub bounds what it has under way; the order must be taken without waiting.
        let (queue, mut batches) = mpsc::unbounded_channel::<Batch>();
        tokio::spawn(async move {
            let (mut together, mut holes) = (Vec::new(), Holes::default());
            while batches.recv_many(&mut together, TOGETHER).await > 0 {
                write_together(&ledger, &output, &mut holes, std::mem::take(&mut together)).await;
                output.tell();
            }
        });
        Arc::new(Self { queue })
    }
}

impl Storage for HubStorage {
    fn store(&self, records: Vec<Record>) -> BoxFuture<'static, Result<(), String>> {
        let (answer, written) = oneshot::channel();
        let queued = self.queue.send((records, answer));
        Box::pin(async move {
            queued.map_err(|_| "the store is closed".to_owned())?;
            written.await.unwrap_or_else(|_| Err("the store is closed".to_owned()))
        })
    }
}

async fn write_together(ledger: &Ledger, output: &Output, holes: &mut Holes, batches: Vec<Batch>) {
    let all: Vec<Record> = batches.iter().flat_map(|(records, _)| records.iter().cloned()).collect();
    if write(ledger, output, holes, all).await.is_ok() {
        batches.into_iter().for_each(|(_, answer)| drop(answer.send(Ok(()))));
        return;
    }
    // One of them is refused: find out which, so that it does not take its neighbours with it. Output that
    // was appended before is not appended twice.
    for (records, answer) in batches {
        let pieces = sorted(records.clone()).output;
        let written = write(ledger, output, holes, records).await;
        if written.is_err() {
            holes.failed(&pieces);
        }
        // The hub that asked may be gone; then nobody needs the answer.
        let _ = answer.send(written);
    }
}

async fn write(ledger: &Ledger, output: &Output, holes: &mut Holes, records: Vec<Record>) -> Result<(), String> {
    let Sorted { output: pieces, records, over } = sorted(records);
    if !holes.admit(&pieces) {
        return Err("output before this could not be stored, and has to come again first".to_owned());
    }
    if !pieces.is_empty() || !over.is_empty() {
        let appended = output.append(pieces.clone(), !over.is_empty()).await;
        appended.map_err(|error| Chain(&error).to_string())?;
    }
    if !records.is_empty() {
        let written = records.clone();
        let now = Timestamp::now();
        let stored = ledger.store().write(move |conn| disk::note(conn, &records, now)).await;
        ledger.note(&written, stored.map_err(|error| Chain(&error).to_string())?);
    }
    holes.stored(&pieces, &over);
    over.into_iter().for_each(|task| output.settled(task));
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use vm_agent_schemas::event::EventKind;
    use vm_agent_schemas::ids::TaskId;
    use vm_agent_schemas::task::{Job, Task, TaskSource, TaskState, Terms};
    use vm_agent_schemas::wire::{Channel, TaskOutcome, TaskRef};
    use vm_agent_store::output::{Position, Wanted};
    use vm_agent_store::{self as store, Store};

    use super::*;

    fn task() -> Task {
        let source = TaskSource::Request { author: "ann".to_owned(), key: None };
        let (agent, now) = ("web".parse().unwrap(), Timestamp::UNIX_EPOCH);
        Task::new(TaskId::generate(), Some(agent), source, Job::exec(["make"]), Terms::default(), now)
    }

    fn ended(task: &Task) -> Task {
        Task { state: TaskState::Ended { outcome: TaskOutcome::Exited { code: 0 } }, ..task.clone() }
    }

    fn wrote(task: &Task, offset: u64, data: &'static str) -> Record {
        let task = TaskRef { task: task.id, attempt: task.attempt };
        Record::Output { task, channel: Channel::Stdout, offset, data: Bytes::from_static(data.as_bytes()) }
    }

    #[tokio::test]
    async fn one_batch_that_is_refused_takes_no_neighbour_with_it_and_output_is_kept_once() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(Store::open(&folder.path().join("state.db")).unwrap()).await.unwrap();
        let (ledger, output) = (Arc::new(ledger), Arc::new(Output::open(&folder.path().join("output")).unwrap()));
        let storage = HubStorage::start(Arc::clone(&ledger), Arc::clone(&output));
        let (web, over) = (task(), task());
        storage.store(vec![Record::Task(ended(&over))]).await.unwrap();
        // All of these are there before the first is written.
        let first = storage.store(vec![wrote(&web, 0, "one "), Record::Task(web.clone())]);
        let refused = storage.store(vec![Record::Task(over.clone())]);
        let last = storage.store(vec![wrote(&web, 4, "two"), Record::Task(ended(&web))]);
        let (first, refused, last) = tokio::join!(first, refused, last);
        assert!(first.is_ok() && last.is_ok());
        assert!(refused.unwrap_err().contains("has ended"));
        let id = web.id;
        let stored = ledger.store().read(move |conn| store::tasks::get(conn, id)).await.unwrap();
        assert_eq!(stored, Some(ended(&web)));
        let wanted = Wanted { task: id, attempt: None, channel: None };
        let page = output.read(wanted, Position::default(), usize::MAX).await.unwrap();
        let text: Vec<&[u8]> = page.pieces.iter().map(|piece| &piece.data[..]).collect();
        assert_eq!(text.concat(), b"one two");
    }

    #[tokio::test]
    async fn the_end_of_a_task_is_one_event_however_often_it_is_stored_and_in_however_many_lives() {
        let folder = tempfile::tempdir().unwrap();
        let output = Arc::new(Output::open(&folder.path().join("output")).unwrap());
        let began = task();
        for _ in 0..2 {
            let ledger = Ledger::open(Store::open(&folder.path().join("state.db")).unwrap()).await.unwrap();
            let ledger = Arc::new(ledger);
            let mut heard = ledger.subscribe();
            let storage = HubStorage::start(Arc::clone(&ledger), Arc::clone(&output));
            for _ in 0..2 {
                storage.store(vec![Record::Task(ended(&began))]).await.unwrap();
            }
            let events = ledger.store().read(|conn| store::events::latest(conn, 10)).await.unwrap();
            let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
            assert_eq!(kinds, [EventKind::TaskEnded], "it is stored with what it tells of");
            if let Ok(event) = heard.try_recv() {
                assert_eq!(event, events[0]);
                assert!(heard.try_recv().is_err(), "and told once");
            }
            ledger.store().close().await;
        }
    }

    #[test]
    fn an_attempt_is_over_with_its_task_and_with_the_one_that_follows() {
        let first = task();
        let over = |task: &Task| sorted(vec![Record::Task(task.clone())]).over.first().map(|task| task.attempt);
        assert_eq!(over(&first), None);
        assert_eq!(over(&ended(&first)), Some(1));
        assert_eq!(over(&Task { attempt: 2, ..first.clone() }), Some(1));
        let incarnation = vm_agent_schemas::ids::Incarnation(1);
        assert_eq!(over(&Task { attempt: 2, state: TaskState::Sent { incarnation }, ..first }), None);
    }
}
