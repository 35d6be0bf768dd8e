//! Makes the hub's records durable, in the order in which they come.
//!
//! Output goes to the output log, everything else into the database, each batch whole or not at all. The log
//! comes first: what has queued up goes into it together, and it is flushed to the disk (`fdatasync`) when one
//! of the batches says that an attempt or a task is over, so that nobody is told of an end whose output may
//! still be lost. Output alone is only handed to the operating system, since a runtime keeps what it sent until
//! the end is acknowledged. The database's writer puts what it is asked for meanwhile into one transaction. That
//! is on the disk when it is answered: SQLite runs in WAL mode with `synchronous = FULL`, which flushes the WAL
//! with every commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use vm_agent_hub::{Record, Storage};
use vm_agent_schemas::wire::TaskRef;
use vm_agent_store::output::OutputRecord;

use crate::ledger::Ledger;
use crate::output::Output;
use crate::reconciler::Chain;
use crate::storing::{Holes, Sorted, sorted};

/// Most batches whose output is written together: enough to use a flush well, and few enough that the first of
/// them does not wait long for the last.
const TOGETHER: usize = 512;

/// What becomes of a batch once it has its place in the order.
type Written = BoxFuture<'static, Result<(), String>>;

struct Batch {
    records: Arc<Vec<Record>>,
    answer: oneshot::Sender<Written>,
}

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
            let (mut together, holes) = (Vec::new(), Arc::<Mutex<Holes>>::default());
            while batches.recv_many(&mut together, TOGETHER).await > 0 {
                let kept = keep_output(&output, &holes, &together).await;
                for (Batch { records, answer }, kept) in together.drain(..).zip(kept) {
                    let written = match kept {
                        Ok(sorted) => write(&ledger, over(&output, &holes, sorted.over), records, sorted.others).await,
                        Err(error) => Box::pin(std::future::ready(Err(error))),
                    };
                    // The hub that asked may be gone; then nobody needs the answer.
                    let _ = answer.send(written);
                }
            }
        });
        Arc::new(Self { queue })
    }
}

impl Storage for HubStorage {
    fn store(&self, records: Arc<Vec<Record>>) -> BoxFuture<'static, Result<(), String>> {
        let (answer, written) = oneshot::channel();
        let queued = self.queue.send(Batch { records, answer });
        Box::pin(async move {
            queued.map_err(|_| CLOSED)?;
            written.await.map_err(|_| CLOSED)?.await
        })
    }
}

const CLOSED: &str = "the store is closed";

/// Puts what of the batches is output into the log, and tells for each whether it is there.
async fn keep_output(output: &Output, holes: &Mutex<Holes>, batches: &[Batch]) -> Vec<Result<Sorted, String>> {
    let sorted: Vec<Sorted> = batches.iter().map(|batch| sorted(batch.records.iter())).collect();
    let all: Vec<OutputRecord> = sorted.iter().flat_map(|sorted| sorted.output.iter().cloned()).collect();
    let is_over = sorted.iter().any(|sorted| !sorted.over.is_empty());
    let admitted = lock(holes).admit(&all);
    if admitted && output.append(all, is_over).await.is_ok() {
        sorted.iter().for_each(|sorted| lock(holes).stored(&sorted.output, &[]));
        return sorted.into_iter().map(Ok).collect();
    }
    // One of them is refused: find out which, so that it does not take its neighbours with it. Output that
    // was appended before is not appended twice.
    let mut kept = Vec::with_capacity(sorted.len());
    for sorted in sorted {
        kept.push(keep_alone(output, holes, sorted).await);
    }
    kept
}

async fn keep_alone(output: &Output, holes: &Mutex<Holes>, sorted: Sorted) -> Result<Sorted, String> {
    let admitted = lock(holes).admit(&sorted.output);
    let kept = if admitted {
        let appended = output.append(sorted.output.clone(), !sorted.over.is_empty()).await;
        appended.map_err(|error| Chain(&error).to_string())
    } else {
        Err("output before this could not be stored, and has to come again first".to_owned())
    };
    match kept {
        Ok(()) => lock(holes).stored(&sorted.output, &[]),
        Err(_) => lock(holes).failed(&sorted.output),
    }
    kept.map(|()| sorted)
}

/// What is to be done once it is stored that these attempts are over.
fn over(output: &Arc<Output>, holes: &Arc<Mutex<Holes>>, over: Vec<TaskRef>) -> impl FnOnce() + Send + 'static {
    let (output, holes) = (Arc::clone(output), Arc::clone(holes));
    move || {
        if !over.is_empty() {
            lock(&holes).stored(&[], &over);
        }
        over.into_iter().for_each(|task| output.settled(task));
        output.tell();
    }
}

fn lock(holes: &Mutex<Holes>) -> MutexGuard<'_, Holes> {
    // What is done under the lock leaves nothing half done.
    holes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives what of a batch is for the database its place there.
async fn write(
    ledger: &Ledger,
    then: impl FnOnce() + Send + 'static,
    records: Arc<Vec<Record>>,
    others: usize,
) -> Written {
    if others == 0 {
        then();
        return Box::pin(std::future::ready(Ok(())));
    }
    let written = ledger.note(records, Timestamp::now(), then).await;
    Box::pin(async move {
        match written {
            Ok(written) => written.await,
            Err(error) => Err(error),
        }
        .map_err(|error| Chain(&error).to_string())
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use vm_agent_schemas::event::EventKind;
    use vm_agent_schemas::ids::TaskId;
    use vm_agent_schemas::task::{Job, Task, TaskSource, TaskState, Terms};
    use vm_agent_schemas::wire::{Channel, TaskOutcome};
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
        storage.store(Arc::new(vec![Record::Task(ended(&over))])).await.unwrap();
        // All of these are there before the first is written.
        let first = storage.store(Arc::new(vec![wrote(&web, 0, "one "), Record::Task(web.clone())]));
        let refused = storage.store(Arc::new(vec![Record::Task(over.clone())]));
        let last = storage.store(Arc::new(vec![wrote(&web, 4, "two"), Record::Task(ended(&web))]));
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
                storage.store(Arc::new(vec![Record::Task(ended(&began))])).await.unwrap();
            }
            let events = ledger.store().read(|conn| store::events::latest(conn, None, 10)).await.unwrap();
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
        let over = |task: &Task| sorted(&[Record::Task(task.clone())]).over.first().map(|task| task.attempt);
        assert_eq!(over(&first), None);
        assert_eq!(over(&ended(&first)), Some(1));
        assert_eq!(over(&Task { attempt: 2, ..first.clone() }), Some(1));
        let incarnation = vm_agent_schemas::ids::Incarnation(1);
        assert_eq!(over(&Task { attempt: 2, state: TaskState::Sent { incarnation }, ..first }), None);
    }
}
