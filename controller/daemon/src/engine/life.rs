//! How a life of the controller begins: by what those before it left.

use std::collections::BTreeSet;

use jiff::Timestamp;
use vm_agent_hub::OutputKnown;
use vm_agent_plan::effective;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::message::Message;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;

use super::HubCall;
use super::directory::directory;
use super::job::first_configuration;
use super::records::{Change, Records};

/// What the hub is told first: who is declared, whose machine is whose, which accepted tasks are not over and how
/// much of their output is stored, which messages wait or were taken lately, both in the order in which they
/// were accepted; and then who may speak.
#[must_use]
pub fn first_words(
    records: &Records,
    unfinished: Vec<(Task, OutputKnown)>,
    messages: Vec<Message>,
    now: Timestamp,
) -> Vec<HubCall> {
    let wanted = effective(&records.fleet, &records.overrides, now).wanted;
    let enroll = records.credentials.values().map(|credential| {
        let configuration = wanted.get(&credential.agent).and_then(|agent| first_configuration(agent));
        HubCall::Enroll(Box::new(credential.clone()), configuration)
    });
    let stranded = stranded(unfinished.iter().map(|(task, _)| task), |agent| records.claims.contains_key(agent));
    let submit = unfinished.into_iter().map(|(task, known)| HubCall::Submit(Box::new(task), known));
    let restore = messages.into_iter().map(|message| HubCall::Restore(Box::new(message)));
    let directory = HubCall::Directory(directory(records, now));
    let claimed = records.claims.values().map(|claim| HubCall::Claimed(claim.agent.clone(), claim.id));
    let revoke = stranded.into_iter().map(HubCall::Revoke);
    // Who may speak comes after what there is to speak of: a runtime that tells of a task which the hub does
    // not know is told to forget it.
    let known = std::iter::once(directory).chain(claimed).chain(submit).chain(restore);
    known.chain(enroll).chain(revoke).collect()
}

/// The word that a life has begun.
#[must_use]
pub fn began(records: &Records) -> Change {
    Change::Event(NewEvent::fleet(EventKind::ControllerStarted, format!("the controller began life {}", records.life)))
}

/// The agents that were removed while their tasks were under way, when a former life of the controller
/// ended before it could end those. A machine that is made for such an agent must not pass for the one
/// that the tasks were sent to.
fn stranded<'a>(
    unfinished: impl Iterator<Item = &'a Task>,
    claimed: impl Fn(&AgentName) -> bool,
) -> BTreeSet<AgentName> {
    let sent = unfinished.filter(|task| task.handed_to().is_some());
    sent.filter_map(|task| task.agent.clone()).filter(|agent| !claimed(agent)).collect()
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::ids::{Incarnation, TaskId};
    use vm_agent_schemas::task::{Job, TaskSource, TaskState, Terms};

    use super::*;

    fn task(agent: &str, state: TaskState) -> Task {
        let source = TaskSource::Request { author: "test".to_owned(), key: None };
        let (agent, now) = (agent.parse().unwrap(), Timestamp::UNIX_EPOCH);
        let job = Job::exec(["true"]);
        Task { state, ..Task::new(TaskId::generate(), Some(agent), source, job, Terms::default(), now) }
    }

    #[test]
    fn only_an_agent_without_a_claim_whose_task_may_have_begun_is_stranded() {
        let incarnation = Incarnation(1);
        let tasks = [
            task("sent", TaskState::Sent { incarnation }),
            task("running", TaskState::Running { incarnation }),
            task("queued", TaskState::QUEUED),
            task("claimed", TaskState::Sent { incarnation }),
        ];
        let found = stranded(tasks.iter(), |agent| agent.as_str() == "claimed");
        assert_eq!(found.iter().map(AgentName::as_str).collect::<Vec<_>>(), ["running", "sent"]);
    }
}
