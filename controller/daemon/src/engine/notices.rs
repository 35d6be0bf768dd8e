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

/// What there is to tell people, if anything. What becomes of a task is told with its record: see [`news_of`].
#[must_use]
pub fn event_of(notice: &Notice) -> Option<NewEvent> {
    let (agent, kind, message) = match notice {
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
        | Notice::TaskStarted(_)
        | Notice::TaskRetried(_)
        | Notice::TaskEnded(_)
        | Notice::TaskOutput { .. }
        | Notice::TaskUnknown { .. }
        | Notice::MessageRefused { .. } => return None,
    };
    Some(NewEvent::of(agent, kind, message))
}

/// What there is to tell people of a task that is to be stored, beside what was stored of it before: that an
/// attempt began, that it is followed by another, and how the task ended. That something began may be stored
/// only with its end.
#[must_use]
pub fn news_of(before: Option<&Task>, task: &Task) -> Vec<NewEvent> {
    let told = before.map_or((1, false, false), |it| (it.attempt, it.started_at.is_some(), it.outcome().is_some()));
    let (attempt, begun, over) = told;
    if over {
        return Vec::new();
    }
    let retried_now = task.attempt > attempt;
    let begins = if retried_now {
        let former = task.former.iter().find(|former| former.attempt == attempt);
        former.is_some_and(|former| former.started_at.is_some())
    } else {
        task.started_at.is_some()
    };
    let began = (begins && !begun).then(|| of_task(task, EventKind::TaskStarted, "began"));
    let again = retried_now.then(|| of_task(task, EventKind::TaskRetried, &retried(task)));
    let end = task.outcome().map(|_| of_task(task, EventKind::TaskEnded, &ended(task)));
    [began, again, end].into_iter().flatten().collect()
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
        // Most reasons tell the outcome as well.
        Some(reason) if reason.contains(&outcome) => format!("is a dead letter: {reason}"),
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

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use vm_agent_schemas::ids::{Incarnation, TaskId};
    use vm_agent_schemas::task::{Attempt, Job, TaskState, Terms};
    use vm_agent_schemas::wire::TaskOutcome;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn kinds(before: Option<&Task>, task: &Task) -> Vec<EventKind> {
        news_of(before, task).into_iter().map(|event| event.kind).collect()
    }

    #[test]
    fn each_thing_that_becomes_of_a_task_is_told_once_and_in_order() {
        let source = TaskSource::Request { author: "ann".to_owned(), key: None };
        let queued = Task::new(
            TaskId::generate(),
            Some("web".parse().unwrap()),
            source,
            Job::exec(["true"]),
            Terms::default(),
            NOW,
        );
        let incarnation = Incarnation(1);
        let sent = Task { state: TaskState::Sent { incarnation }, ..queued.clone() };
        let running = Task { state: TaskState::Running { incarnation }, started_at: Some(NOW), ..queued.clone() };
        let outcome = TaskOutcome::Exited { code: 1 };
        let former =
            |started_at| Attempt { attempt: 1, agent: None, started_at, ended_at: NOW, outcome: outcome.clone() };
        let again = |started_at| Task { attempt: 2, former: vec![former(started_at)], ..queued.clone() };
        let ended = |task: &Task| Task { state: TaskState::Ended { outcome: outcome.clone() }, ..task.clone() };
        let [began, retried, over] = [EventKind::TaskStarted, EventKind::TaskRetried, EventKind::TaskEnded];

        assert_eq!(kinds(Some(&queued), &sent), []);
        assert_eq!(kinds(Some(&sent), &running), [began]);
        assert_eq!(kinds(Some(&running), &running), []);
        assert_eq!(kinds(Some(&running), &ended(&running)), [over]);
        assert_eq!(kinds(Some(&sent), &ended(&running)), [began, over], "its record was not stored in between");
        assert_eq!(kinds(Some(&ended(&running)), &ended(&running)), [], "its end is stored again");
        assert_eq!(kinds(Some(&running), &again(Some(NOW))), [retried]);
        assert_eq!(kinds(Some(&sent), &again(Some(NOW))), [began, retried]);
        assert_eq!(kinds(Some(&sent), &again(None)), [retried], "it never began");
        assert_eq!(kinds(Some(&again(None)), &again(None)), []);
        assert_eq!(kinds(None, &ended(&queued)), [over]);
    }

    #[test]
    fn a_dead_letter_gives_its_reason_once() {
        let source = TaskSource::File {
            name: "build".parse().unwrap(),
            digest: vm_agent_schemas::ids::Digest::of(b"build"),
            claim: vm_agent_schemas::ids::ClaimId::generate(),
            due: None,
        };
        let task = Task::new(TaskId::generate(), None, source, Job::exec(["true"]), Terms::default(), NOW);
        let state = TaskState::Ended { outcome: TaskOutcome::Exited { code: 1 } };
        let told = |dead: &str| {
            let task = Task { state: state.clone(), dead: Some(dead.to_owned()), ..task.clone() };
            news_of(None, &task).pop().unwrap().message
        };
        let tried = "it was tried 3 times; the last attempt ended with exit code 1";
        assert_eq!(told(tried), format!("task build is a dead letter: {tried}"));
        let lost = "its machine went away";
        assert_eq!(told(lost), format!("task build ended with exit code 1, and is a dead letter: {lost}"));
    }
}
