//! What the hub tells: into events, logs and counters, and into a pass where it may change the plan.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use vm_agent_hub::Notice;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource};
use vm_agent_schemas::wire::Channel;

use crate::core::Core;
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

/// Whether a notice may change the plan.
const fn matters(notice: &Notice) -> bool {
    !matches!(notice, Notice::Health { .. } | Notice::Log { .. } | Notice::TaskOutput { .. } | Notice::Refused { .. })
}

fn take(core: &Core, notice: Notice) -> Option<NewEvent> {
    match notice {
        Notice::Joined { agent, incarnation } => Some(NewEvent::of(
            &agent,
            EventKind::RuntimeJoined,
            format!("its runtime joined as incarnation {incarnation}"),
        )),
        Notice::SessionOpened { agent, epoch } => {
            Some(NewEvent::of(&agent, EventKind::RuntimeConnected, format!("its runtime connected (epoch {epoch})")))
        }
        Notice::SessionClosed { agent, why, .. } => {
            // A runtime that went away may have taken its machine with it.
            look_at(core, &agent);
            Some(NewEvent::of(&agent, EventKind::RuntimeLost, why.to_string()))
        }
        Notice::SessionSilent { agent, last_seen } => Some(NewEvent::of(
            &agent,
            EventKind::RuntimeLost,
            format!("its runtime has not been heard since {last_seen}"),
        )),
        Notice::SessionHeard { agent } => {
            Some(NewEvent::of(&agent, EventKind::RuntimeConnected, "its runtime is heard again"))
        }
        Notice::Refused { agent, code, message, peer } => {
            core.metrics.refused();
            let message = format!("a runtime at {peer} was refused ({code}): {message}");
            Some(NewEvent { kind: EventKind::RuntimeRefused, agent, message })
        }
        Notice::Health { .. } | Notice::Configured { .. } => None,
        Notice::Log { agent, lines, dropped } => {
            let missing = (dropped > 0).then(|| format!("… {dropped} lines are missing here …"));
            log(core, &agent, &missing.into_iter().chain(lines).collect::<Vec<_>>());
            None
        }
        Notice::TaskStarted(task) => {
            Some(NewEvent::of(&task.agent, EventKind::TaskStarted, format!("{} began", title(&task))))
        }
        Notice::TaskEnded(task) => {
            let outcome = task.outcome().map_or_else(String::new, ToString::to_string);
            Some(NewEvent::of(&task.agent, EventKind::TaskEnded, format!("{} {outcome}", title(&task))))
        }
        Notice::TaskOutput { agent, task, channel, data } => {
            let mark = if channel == Channel::Stderr { "!" } else { "|" };
            let text = String::from_utf8_lossy(&data);
            let id = task.task.to_string();
            // The end of a time-ordered id is what tells two of the same moment apart.
            let short = id.rsplit('-').next().unwrap_or(&id);
            log(core, &agent, &text.lines().map(|line| format!("task {short} {mark} {line}")).collect::<Vec<_>>());
            None
        }
        Notice::TaskUnknown { agent, task } => {
            tracing::warn!(agent.name = %agent, task.id = %task.task, "A runtime spoke of a task that is not under way");
            None
        }
    }
}

fn look_at(core: &Core, agent: &AgentName) {
    if let Some(claim) = core.ledger.records().claims.get(agent)
        && let Some(observer) = core.observers.get(&claim.driver)
    {
        observer.ask();
    }
}

fn log(core: &Core, agent: &AgentName, lines: &[String]) {
    if let Err(error) = core.logs.append(agent, lines) {
        tracing::warn!(agent.name = %agent, %error, "An agent's log can't be written");
    }
}

fn title(task: &Task) -> String {
    match &task.source {
        TaskSource::File { name, .. } => format!("task {name}"),
        TaskSource::Request { author } => format!("task {} of {author}", task.id),
    }
}
