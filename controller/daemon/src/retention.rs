//! What the controller forgets, so that its folder does not grow for ever.

use std::sync::Arc;
use std::time::Duration;

use vm_agent_store::{self as store, StoreError};

use crate::core::Core;
use crate::reconciler::Chain;

/// How often it is looked at. What comes in between is bounded by what a controller can do in that time.
const EVERY: Duration = Duration::from_secs(600);

/// Events for people who look later: about a month of an ordinary fleet.
const EVENTS: u64 = 100_000;

/// Tasks that have ended, by hand or of machines that are gone.
const TASKS: u32 = 10_000;

/// Messages that were taken. They are also what is known when one is sent again.
const MESSAGES: u32 = 10_000;

/// Dead letters of each kind: more than a person goes through one by one.
const DEAD: u32 = 1_000;

/// Operations that are closed: what was done to machines, and what came of it.
const OPERATIONS: u32 = 10_000;

/// What was to be done with snapshots, and is over.
const ERRANDS: u32 = 1_000;

/// Requests in the audit.
const AUDIT: u32 = 100_000;

/// Forgets what is beyond that, again and again, until the controller goes down.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        if let Err(error) = forget(&core).await {
            tracing::error!(error = %Chain(&error), "What is old could not be removed from the store");
        }
        if let Err(error) = core.output.prune().await {
            tracing::error!(error = %Chain(&error), "What is old could not be removed from the output log");
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = core.stop.cancelled() => return,
        }
    }
}

async fn forget(core: &Core) -> Result<(), StoreError> {
    let prune = |conn: &rusqlite::Connection| {
        store::events::prune(conn, EVENTS)?;
        store::tasks::prune(conn, TASKS, DEAD)?;
        store::messages::prune(conn, MESSAGES, DEAD)?;
        store::operations::prune(conn, OPERATIONS)?;
        store::errands::prune(conn, ERRANDS)?;
        store::audit::prune(conn, AUDIT).map(drop)
    };
    core.ledger.store().write(prune).await
}
