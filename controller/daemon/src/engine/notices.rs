//! What the hub tells, and what follows from it.

use vm_agent_hub::Notice;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource};

/// Whether a notice may change the plan.
#[must_use]
pub const fn matters(notice: &Notice) -> bool {
    !matches!(notice, Notice::Health { .. } | Notice::Log { .. } | Notice::TaskOutput { .. } | Notice::Refused { .. })
}

/// The agent whose machine is to be looked at: a runtime that went away may have taken it with it.
#[must_use]
pub const fn looks_at(notice: &Notice) -> Option<&AgentName> {
    match notice {
        Notice::SessionClosed { agent, .. } => Some(agent),
        _ => None,
    }
}

/// What there is to tell people, if anything.
#[must_use]
pub fn event_of(notice: &Notice) -> Option<NewEvent> {
    let (agent, kind, message) = match notice {
        Notice::Joined { agent, incarnation } => {
            (agent, EventKind::RuntimeJoined, format!("its runtime joined as incarnation {incarnation}"))
        }
        Notice::SessionOpened { agent, epoch } => {
            (agent, EventKind::RuntimeConnected, format!("its runtime connected (epoch {epoch})"))
        }
        Notice::SessionClosed { agent, why, .. } => (agent, EventKind::RuntimeLost, why.to_string()),
        Notice::SessionSilent { agent, last_seen } => {
            (agent, EventKind::RuntimeLost, format!("its runtime has not been heard since {last_seen:.0}"))
        }
        Notice::SessionHeard { agent } => (agent, EventKind::RuntimeConnected, "its runtime is heard again".to_owned()),
        Notice::Refused { agent, code, message, peer } => {
            let message = format!("a runtime at {peer} was refused ({code}): {message}");
            return Some(NewEvent { kind: EventKind::RuntimeRefused, agent: agent.clone(), message });
        }
        Notice::TaskStarted(task) => (&task.agent, EventKind::TaskStarted, format!("{} began", title(task))),
        Notice::TaskEnded(task) => {
            let outcome = task.outcome().map_or_else(String::new, ToString::to_string);
            (&task.agent, EventKind::TaskEnded, format!("{} {outcome}", title(task)))
        }
        Notice::Health { .. }
        | Notice::Configured { .. }
        | Notice::Activity { .. }
        | Notice::Log { .. }
        | Notice::TaskOutput { .. }
        | Notice::TaskUnknown { .. } => return None,
    };
    Some(NewEvent::of(agent, kind, message))
}

fn title(task: &Task) -> String {
    match &task.source {
        TaskSource::File { name, .. } => format!("task {name}"),
        TaskSource::Request { author } => format!("task {} of {author}", task.id),
    }
}
