//! What the hub tells: into events, logs and counters, and into a pass where it may change the plan.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use vm_agent_hub::Notice;
use vm_agent_schemas::event::NewEvent;
use vm_agent_schemas::names::AgentName;

use crate::core::Core;
use crate::engine::notices::{event_of, looks_at, matters};
use crate::engine::records::Change;
use crate::reconciler::Chain;

/// Most notices that are told in one transaction.
const TOGETHER: usize = 256;

/// Takes notices until the hub is gone.
pub(crate) async fn run(core: Arc<Core>, mut notices: mpsc::Receiver<Notice>) {
    let mut together = Vec::new();
    while notices.recv_many(&mut together, TOGETHER).await > 0 {
        let mut events = Vec::new();
        let mut wake = false;
        for notice in together.drain(..) {
            wake |= matters(&notice);
            events.extend(take(&core, notice));
        }
        let changes = events.into_iter().map(Change::Event).collect();
        if let Err(error) = core.ledger.record(changes, Timestamp::now()).await {
            tracing::error!(error = %Chain(&error), "Events could not be recorded");
        }
        if wake {
            core.wake();
        }
    }
}

/// Logs and counts what a notice says, and gives what there is to tell.
fn take(core: &Core, notice: Notice) -> Option<NewEvent> {
    if let Some(agent) = looks_at(&notice) {
        look_at(core, agent);
    }
    core.metrics.told(&notice);
    let event = event_of(&notice);
    match notice {
        Notice::Log { agent, lines, dropped } => {
            let missing = (dropped > 0).then(|| format!("… {dropped} lines are missing here …"));
            log(core, &agent, &missing.into_iter().chain(lines).collect::<Vec<_>>());
        }
        Notice::UpgradeFailed { agent, failed } => core.upgrading.failed(&agent, failed.reason),
        Notice::TaskUnknown { agent, task } => {
            tracing::warn!(agent.name = %agent, task.id = %task.task, "A runtime spoke of a task that is not under way");
        }
        _ => {}
    }
    event
}

fn look_at(core: &Core, agent: &AgentName) {
    if let Some(claim) = core.ledger.records().claims.get(agent)
        && let Some(observer) = core.observers.get(&claim.driver)
    {
        observer.ask();
    }
}

fn log(core: &Core, agent: &AgentName, lines: &[String]) {
    if let Err(error) = core.logs.append(agent, lines, Timestamp::now()) {
        tracing::warn!(agent.name = %agent, %error, "An agent's log can't be written");
    }
}
