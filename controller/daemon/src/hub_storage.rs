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
use tokio::sync::{mpsc, oneshot};
use vm_agent_hub::{Record, Storage};
use vm_agent_schemas::task::{Task, TaskState};
use vm_agent_schemas::wire::TaskRef;
use vm_agent_store::output::OutputRecord;

use crate::disk;
use crate::ledger::Ledger;
use crate::output::Output;
use crate::reconciler::Chain;

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
            let mut together = Vec::new();
            while batches.recv_many(&mut together, TOGETHER).await > 0 {
                write_together(&ledger, &output, std::mem::take(&mut together)).await;
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

async fn write_together(ledger: &Ledger, output: &Output, batches: Vec<Batch>) {
    let all: Vec<Record> = batches.iter().flat_map(|(records, _)| records.iter().cloned()).collect();
    if write(ledger, output, all).await.is_ok() {
        batches.into_iter().for_each(|(_, answer)| drop(answer.send(Ok(()))));
        return;
    }
    // One of them is refused: find out which, so that it does not take its neighbours with it. Output that
    // was appended before is not appended twice.
    for (records, answer) in batches {
        // The hub that asked may be gone; then nobody needs the answer.
        let _ = answer.send(write(ledger, output, records).await);
    }
}

async fn write(ledger: &Ledger, output: &Output, records: Vec<Record>) -> Result<(), String> {
    let (pieces, records): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|record| matches!(record, Record::Output { .. }));
    let pieces: Vec<OutputRecord> = pieces.into_iter().filter_map(output_of).collect();
    let over: Vec<TaskRef> = records.iter().filter_map(ended_by).collect();
    if !pieces.is_empty() || !over.is_empty() {
        output.append(pieces, !over.is_empty()).await.map_err(|error| Chain(&error).to_string())?;
    }
    if !records.is_empty() {
        let written = records.clone();
        let stored = ledger.store().write(move |conn| disk::note(conn, &records)).await;
        stored.map_err(|error| Chain(&error).to_string())?;
        ledger.note(&written);
    }
    over.into_iter().for_each(|task| output.settled(task));
    Ok(())
}

fn output_of(record: Record) -> Option<OutputRecord> {
    match record {
        Record::Output { task, channel, offset, data } => Some(OutputRecord { task, channel, offset, data }),
        Record::Credential(_) | Record::Task(_) | Record::Message(_) => None,
    }
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
