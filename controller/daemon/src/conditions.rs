//! Conditions: named facts about agents and the fleet, each with the time since when it is so.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use vm_agent_plan::Listing;
use vm_agent_schemas::api::{FileState, FileStatus};
use vm_agent_schemas::fleet::{DriverName, PowerState};
use vm_agent_schemas::ids::Revision;
use vm_agent_schemas::message::WAITING_MAX;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{AgentPlan, Condition, ConditionStatus, Fuse, Health, Plan, Sync};

use crate::observer::Observer;

/// What a condition is about, and what it says of it.
type Subject = (Option<AgentName>, &'static str);

/// Remembers since when each condition has had its status.
#[derive(Debug, Default)]
pub(crate) struct ConditionBook {
    since: Mutex<BTreeMap<Subject, (ConditionStatus, Timestamp)>>,
}

/// A fact, before it is known since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) kind: &'static str,
    pub(crate) status: ConditionStatus,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Fact {
    pub(crate) fn new(kind: &'static str, holds: bool, reason: &'static str, message: impl Into<String>) -> Self {
        let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
        Self { kind, status, reason, message: message.into() }
    }
}

impl ConditionBook {
    /// Notes everything that can be said after a pass, so that the times are right whether or not
    /// somebody looks.
    pub(crate) fn note(
        &self,
        plan: &Plan,
        observers: &BTreeMap<DriverName, Observer>,
        messages_waiting: impl Fn(&AgentName) -> u32,
        isolation: impl Fn(&AgentName) -> Fact,
        revision: Option<Revision>,
        now: Timestamp,
    ) {
        for agent in &plan.agents {
            let facts = facts_of(agent, messages_waiting(&agent.name), isolation(&agent.name));
            self.enter(Some(&agent.name), facts, revision, now);
        }
        self.enter(None, fleet_facts(plan, observers), revision, now);
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|(agent, _), _| agent.as_ref().is_none_or(|agent| plan.agent(agent).is_some()));
    }

    /// The facts as conditions. A fact whose status is another than before is so from now on.
    pub(crate) fn enter(
        &self,
        agent: Option<&AgentName>,
        facts: Vec<Fact>,
        revision: Option<Revision>,
        now: Timestamp,
    ) -> Vec<Condition> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let enter = |fact: Fact| {
            let entry = since.entry((agent.cloned(), fact.kind)).or_insert((fact.status, now));
            if entry.0 != fact.status {
                *entry = (fact.status, now);
            }
            Condition {
                kind: fact.kind.to_owned(),
                status: fact.status,
                reason: fact.reason.to_owned(),
                message: fact.message,
                last_transition_time: entry.1,
                observed_generation: revision,
            }
        };
        facts.into_iter().map(enter).collect()
    }
}

/// What can be said of the fleet.
pub(crate) fn fleet_facts(plan: &Plan, observers: &BTreeMap<DriverName, Observer>) -> Vec<Fact> {
    let silent: Vec<String> = observers.values().filter_map(silence).collect();
    let answer = if silent.is_empty() { "every driver answers".to_owned() } else { silent.join("; ") };
    let reason = if silent.is_empty() { "Answering" } else { "Stalled" };
    let fuse = match &plan.fuse {
        Fuse::Closed { .. } => Fact::new("FuseClosed", true, "AllWell", "no more agents fail than usual"),
        Fuse::Blown { failed, of, .. } => {
            Fact::new("FuseClosed", false, "Blown", format!("{failed} of {of} agents failed at once"))
        }
    };
    vec![Fact::new("DriversAnswer", silent.is_empty(), reason, answer), fuse]
}

/// What can be said of the fleet file.
pub(crate) fn file_facts(file: &FileStatus) -> Vec<Fact> {
    use ConditionStatus::{False, True, Unknown};
    let (reason, valid, applied) = match file.state {
        FileState::InForce => ("InForce", True, True),
        FileState::Unwatched => ("Unwatched", True, True),
        // Of what can't be understood nobody knows whether it says what is in force.
        FileState::Invalid => ("Invalid", False, Unknown),
        FileState::Missing => ("Missing", False, Unknown),
        FileState::Held => ("Held", True, False),
        FileState::Guarded => ("Guarded", True, False),
        FileState::RolledBack => ("RolledBack", True, False),
    };
    let fact = |kind, status| Fact { kind, status, reason, message: file.message.clone() };
    vec![fact("FileValid", valid), fact("FileApplied", applied)]
}

fn silence(observer: &Observer) -> Option<String> {
    let name = observer.name();
    match &observer.sight().listing {
        Some(Listing::Seen(_)) => None,
        Some(Listing::Unanswered { since, reason }) => {
            Some(format!("{name} has not answered since {since:.0}: {reason}"))
        }
        None => Some(format!("{name} has not been asked yet")),
    }
}

/// What can be said of an agent for which so many messages wait, and of whose isolation that is known.
pub(crate) fn facts_of(agent: &AgentPlan, messages_waiting: u32, isolation: Fact) -> Vec<Fact> {
    vec![
        provisioned(agent),
        powered(agent),
        runtime_connected(agent),
        isolation,
        messages_taken(messages_waiting),
        converged(agent),
        ready(agent),
    ]
}

/// Whether its runtime takes the messages for it: told before there is no room for more of them.
fn messages_taken(waiting: u32) -> Fact {
    let fact = |holds, reason, message: String| Fact::new("MessagesTaken", holds, reason, message);
    if waiting as usize > WAITING_MAX / 2 {
        let message = format!("{waiting} messages wait for it, of {WAITING_MAX} that may: it takes none, or too few");
        return fact(false, "Waiting", message);
    }
    fact(true, "Taken", format!("{waiting} messages wait for it"))
}

fn provisioned(agent: &AgentPlan) -> Fact {
    let fact = |holds, reason, message: &str| Fact::new("Provisioned", holds, reason, message);
    match agent.observed {
        Some(_) => fact(true, "Exists", "its instance exists"),
        None if agent.sync == Sync::Unknown => {
            Fact { status: ConditionStatus::Unknown, ..fact(false, "DriverSilent", "its driver does not answer") }
        }
        None => fact(false, "Missing", "its instance does not exist"),
    }
}

fn powered(agent: &AgentPlan) -> Fact {
    let fact = |holds, reason, message: String| Fact::new("Powered", holds, reason, message);
    let rests = agent.rests.map(|_| PowerState::Stopped);
    let wanted = agent.wanted.as_ref().map(|wanted| rests.unwrap_or(wanted.spec.power));
    match (wanted, agent.observed) {
        (None, _) => fact(true, "NotWanted", "it should not exist".into()),
        (Some(PowerState::Running), Some(InstanceState::Running)) => fact(true, "Running", "it runs".into()),
        (
            Some(PowerState::Stopped),
            Some(InstanceState::Stopped | InstanceState::Suspended | InstanceState::Failed),
        ) => fact(true, "Stopped", "it does not run".into()),
        (Some(_), None | Some(InstanceState::Unknown)) => {
            let unknown = fact(false, "Unknown", "it is not known to exist".into());
            Fact { status: ConditionStatus::Unknown, ..unknown }
        }
        (Some(power), Some(state)) => fact(false, "OtherThanWanted", format!("it should be {power} and is {state:?}")),
    }
}

fn runtime_connected(agent: &AgentPlan) -> Fact {
    match agent.health {
        Health::Healthy | Health::Degraded => Fact::new("RuntimeConnected", true, "Heard", "its runtime is heard"),
        health => Fact::new("RuntimeConnected", false, "NotHeard", format!("its runtime is not heard: {health}")),
    }
}

fn converged(agent: &AgentPlan) -> Fact {
    let message = match agent.waits_for.first() {
        Some(reason) => format!("{}; it waits for {reason}", agent.sync),
        None => agent.sync.to_string(),
    };
    let status = match agent.sync {
        Sync::Synced => ConditionStatus::True,
        Sync::Unknown => ConditionStatus::Unknown,
        Sync::Drifted | Sync::Reconciling | Sync::Blocked => ConditionStatus::False,
    };
    let reason = match agent.sync {
        Sync::Synced => "Synced",
        Sync::Drifted => "Drifted",
        Sync::Reconciling => "Reconciling",
        Sync::Blocked => "Blocked",
        Sync::Unknown => "Unknown",
    };
    Fact { kind: "Converged", status, reason, message }
}

fn ready(agent: &AgentPlan) -> Fact {
    let ready = agent.sync == Sync::Synced && agent.health == Health::Healthy;
    let message = format!("{} and {}", agent.sync, agent.health);
    Fact::new("Ready", ready, if ready { "AllWell" } else { "NotYet" }, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_pile_up_are_told_before_there_is_no_room_for_more() {
        let half = u32::try_from(WAITING_MAX / 2).unwrap();
        assert_eq!(messages_taken(half).status, ConditionStatus::True);
        assert_eq!(messages_taken(half + 1).status, ConditionStatus::False);
    }
}
