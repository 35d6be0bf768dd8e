//! How a life of the controller begins: by what those before it left.

use std::collections::BTreeSet;

use jiff::Timestamp;
use vm_agent_plan::effective;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;

use super::HubCall;
use super::job::first_configuration;
use super::records::{Change, Records};

/// What the hub is told first: who may speak, whose machine is whose, and which accepted tasks are not over, in the order in
/// which they were accepted.
#[must_use]
pub fn first_words(records: &Records, unfinished: Vec<Task>, now: Timestamp) -> Vec<HubCall> {
    let wanted = effective(&records.fleet, &records.overrides, now).wanted;
    let enroll = records.credentials.values().map(|credential| {
        let configuration = wanted.get(&credential.agent).and_then(|agent| first_configuration(agent));
        HubCall::Enroll(Box::new(credential.clone()), configuration)
    });
    let stranded = stranded(&unfinished, |agent| records.claims.contains_key(agent));
    let submit = unfinished.into_iter().map(|task| HubCall::Submit(Box::new(task)));
    let claimed = records.claims.values().map(|claim| HubCall::Claimed(claim.agent.clone(), claim.id));
    enroll.chain(claimed).chain(submit).chain(stranded.into_iter().map(HubCall::Revoke)).collect()
}

/// The word that a life has begun.
#[must_use]
pub fn began(records: &Records) -> Change {
    Change::Event(NewEvent::fleet(EventKind::ControllerStarted, format!("the controller began life {}", records.life)))
}

/// The agents that were removed while their tasks were under way, when a former life of the controller
/// ended before it could end those. A machine that is made for such an agent must not pass for the one
/// that the tasks were sent to.
fn stranded(unfinished: &[Task], claimed: impl Fn(&AgentName) -> bool) -> BTreeSet<AgentName> {
    let sent = unfinished.iter().filter(|task| task.handed_to().is_some());
    sent.map(|task| task.agent.clone()).filter(|agent| !claimed(agent)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vm_agent_schemas::ids::{Incarnation, TaskId};
    use vm_agent_schemas::task::{TaskSource, TaskState};
    use vm_agent_schemas::units::Span;
    use vm_agent_schemas::wire::Run;

    use super::*;

    fn task(agent: &str, state: TaskState) -> Task {
        Task {
            id: TaskId::generate(),
            agent: agent.parse().unwrap(),
            source: TaskSource::Request { author: "test".to_owned() },
            run: Run { argv: vec!["true".to_owned()], env: BTreeMap::new(), cwd: None },
            timeout: Span::from_secs(60),
            attempt: 1,
            state,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            ended_at: None,
            output: String::new(),
        }
    }

    #[test]
    fn only_an_agent_without_a_claim_whose_task_may_have_begun_is_stranded() {
        let incarnation = Incarnation(1);
        let tasks = [
            task("sent", TaskState::Sent { incarnation }),
            task("running", TaskState::Running { incarnation }),
            task("queued", TaskState::Queued),
            task("claimed", TaskState::Sent { incarnation }),
        ];
        let found = stranded(&tasks, |agent| agent.as_str() == "claimed");
        assert_eq!(found.iter().map(AgentName::as_str).collect::<Vec<_>>(), ["running", "sent"]);
    }
}
