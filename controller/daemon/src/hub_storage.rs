//! Makes the hub's records durable: what has queued up is written together, in the order it came.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use vm_agent_hub::{Record, Storage};
use vm_agent_store::StoreError;

use crate::disk;
use crate::ledger::Ledger;

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
    pub(crate) fn start(ledger: Arc<Ledger>) -> Arc<Self> {
        // The hub bounds what it has under way; the order must be taken without waiting.
        let (queue, mut batches) = mpsc::unbounded_channel::<Batch>();
        tokio::spawn(async move {
            let mut together = Vec::new();
            while batches.recv_many(&mut together, TOGETHER).await > 0 {
                write_together(&ledger, std::mem::take(&mut together)).await;
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

async fn write_together(ledger: &Ledger, batches: Vec<Batch>) {
    let all: Vec<Record> = batches.iter().flat_map(|(records, _)| records.iter().cloned()).collect();
    if write(ledger, all).await.is_ok() {
        batches.into_iter().for_each(|(_, answer)| drop(answer.send(Ok(()))));
        return;
    }
    // One of them is refused: find out which, so that it does not take its neighbours with it.
    for (records, answer) in batches {
        // The hub that asked may be gone; then nobody needs the answer.
        let _ = answer.send(write(ledger, records).await.map_err(|error| error.to_string()));
    }
}

async fn write(ledger: &Ledger, records: Vec<Record>) -> Result<(), StoreError> {
    let written = records.clone();
    ledger.store().write(move |conn| disk::note(conn, &records)).await?;
    ledger.note(&written);
    Ok(())
}
