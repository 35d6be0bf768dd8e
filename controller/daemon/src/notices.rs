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
use crate::seldom::Seldom;
use crate::verifying::session_opened;

/// Most notices that are told in one transaction.
const TOGETHER: usize = 256;

/// Takes notices until the hub is gone.
pub(crate) async fn run(core: Arc<Core>, mut notices: mpsc::Receiver<Notice>) {
    let (mut together, mut seldom) = (Vec::new(), Seldom::default());
    while notices.recv_many(&mut together, TOGETHER).await > 0 {
        let mut events = Vec::new();
        let mut wake = false;
        for notice in together.drain(..) {
            wake |= matters(&notice);
            events.extend(take(&core, notice, &mut seldom));
        }
        let changes = events.into_iter().map(Change::Event).collect();
        if let Err(error) = core.ledger.record(changes, Timestamp::now()).await {
            tracing::error!(error = %Chain(&error), "Events could not be recorded");
        }
        if wake {
            core.nudge();
        }
    }
}

/// Logs and counts what a notice says, and gives what there is to tell.
fn take(core: &Arc<Core>, notice: Notice, seldom: &mut Seldom) -> Option<NewEvent> {
    if let Some(agent) = looks_at(&notice) {
        look_at(core, agent);
    }
    core.metrics.told(&notice);
    let mut event = event_of(&notice);
    match notice {
        Notice::Refused { agent, .. } => {
            // Whoever is no agent of ours may say any name.
            let agent = agent.filter(|agent| core.ledger.records().claims.contains_key(agent));
            let untold = seldom.may_tell(agent.as_ref(), Timestamp::now());
            event = event.filter(|_| untold.is_some()).map(|event| with_untold(event, untold.unwrap_or_default()));
        }
        Notice::Log { agent, lines, dropped } => {
            let missing = (dropped > 0).then(|| format!("… {dropped} lines are missing here …"));
            log(core, &agent, &missing.into_iter().chain(lines).collect::<Vec<_>>());
        }
        Notice::SessionOpened { agent, epoch } => session_opened(core, &agent, epoch),
        Notice::SessionClosed { agent, epoch, .. } => core.verifying.closed(&agent, epoch),
        Notice::UpgradeFailed { agent, failed } => core.upgrading.failed(&agent, failed.reason),
        Notice::TaskUnknown { agent, task } => {
            tracing::debug!(agent.name = %agent, task.id = %task.task, "A runtime spoke of a task that is not under way");
        }
        _ => {}
    }
    event
}

/// An event that tells as well how many like it were not told.
fn with_untold(event: NewEvent, untold: u64) -> NewEvent {
    if untold == 0 {
        return event;
    }
    NewEvent { message: format!("{} ({untold} before it were not told)", event.message), ..event }
}

fn look_at(core: &Core, agent: &AgentName) {
    let driver = core.ledger.look(|records| records.claims.get(agent).map(|claim| claim.driver));
    if let Some(observer) = driver.and_then(|driver| core.observers.get(&driver)) {
        observer.ask();
    }
}

fn log(core: &Core, agent: &AgentName, lines: &[String]) {
    if let Err(error) = core.logs.append(agent, lines, Timestamp::now()) {
        tracing::warn!(agent.name = %agent, %error, "An agent's log can't be written");
    }
}
