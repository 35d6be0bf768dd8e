//! What the hub tells, and what follows from it.

use vm_agent_hub::Notice;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::message::{Message, MessageState};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::{Task, TaskSource};
use vm_agent_schemas::wire::Address;

/// Whether a notice may change the plan.
#[must_use]
pub const fn matters(notice: &Notice) -> bool {
    !matches!(
        notice,
        Notice::Health { .. }
            | Notice::Log { .. }
            | Notice::TaskOutput { .. }
            | Notice::Refused { .. }
            | Notice::Message(_)
            | Notice::MessageRefused { .. }
    )
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
        Notice::TaskStarted(task) => return Some(of_task(task, EventKind::TaskStarted, "began")),
        Notice::TaskRetried(task) => return Some(of_task(task, EventKind::TaskRetried, &retried(task))),
        Notice::TaskEnded(task) => return Some(of_task(task, EventKind::TaskEnded, &ended(task))),
        Notice::Message(message) => return of_message(message),
        Notice::Rotated { agent } => {
            (agent, EventKind::KeyRotated, "its runtime has another key from its next connection on".to_owned())
        }
        Notice::UpgradeFailed { agent, failed } => (
            agent,
            EventKind::UpgradeFailed,
            format!("its runtime stays: version {}: {}", failed.version, failed.reason),
        ),
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
        Notice::Health { .. }
        | Notice::Configured { .. }
        | Notice::Activity { .. }
        | Notice::Log { .. }
        | Notice::TaskOutput { .. }
        | Notice::TaskUnknown { .. }
        | Notice::MessageRefused { .. } => return None,
    };
    Some(NewEvent::of(agent, kind, message))
}

/// An event about a task. One of a pool may have no agent.
fn of_task(task: &Task, kind: EventKind, what: &str) -> NewEvent {
    let title = match &task.source {
        TaskSource::File { name, .. } => format!("task {name}"),
        TaskSource::Request { author, .. } => format!("task {} of {author}", task.id),
    };
    let last = task.former.last().and_then(|attempt| attempt.agent.clone());
    NewEvent { kind, agent: task.agent.clone().or(last), message: format!("{title} {what}") }
}

fn retried(task: &Task) -> String {
    let last = task.former.last().map_or_else(String::new, |attempt| format!("{}: ", attempt.outcome));
    format!("{last}attempt {} follows", task.attempt)
}

fn ended(task: &Task) -> String {
    let outcome = task.outcome().map_or_else(String::new, ToString::to_string);
    match &task.dead {
        Some(reason) => format!("{outcome}, and is a dead letter: {reason}"),
        None => outcome,
    }
}

/// Only what became of a message that was not taken is told: the others are many.
fn of_message(message: &Message) -> Option<NewEvent> {
    let MessageState::Dead { reason, .. } = &message.state else { return None };
    let agent = [&message.to, &message.from].into_iter().find_map(|end| match end {
        Address::Agent(name) => Some(name.clone()),
        Address::Host | Address::Broadcast => None,
    });
    let Message { id, from, to, .. } = message;
    let message = format!("message {id} from {from} to {to} is a dead letter: {reason}");
    Some(NewEvent { kind: EventKind::MessageDead, agent, message })
}
