//! What of the declared agents tasks and messages go by: their labels, how many tasks each does at a time,
//! who may write to whom, and which tasks of a pool need an agent to wake.

use std::collections::BTreeSet;

use vm_agent_hub::{Directory, Member};
use vm_agent_plan::{Inputs, Listing, effective};
use vm_agent_schemas::fleet::{AgentSpec, PowerState};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Claim, InstanceState};
use vm_agent_schemas::selector::Selector;

use jiff::Timestamp;

use super::records::Records;

/// The agents as they are declared now.
#[must_use]
pub fn directory(records: &Records, now: Timestamp) -> Directory {
    let wanted = effective(&records.fleet, &records.overrides, now).wanted;
    Directory {
        members: wanted.into_iter().map(|(name, agent)| (name, member(&agent.spec))).collect(),
        allow: records.fleet.messages.allow.clone(),
    }
}

fn member(spec: &AgentSpec) -> Member {
    Member { labels: spec.labels.clone(), slots: spec.slots }
}

/// The declared agents that have such labels.
#[must_use]
pub fn matching(records: &Records, selector: &Selector, now: Timestamp) -> Vec<AgentName> {
    let members = directory(records, now).members.into_iter();
    members.filter(|(_, member)| selector.matches(&member.labels)).map(|(name, _)| name).collect()
}

/// The agents that have to wake for tasks of a pool that nobody has taken: of those that could do one the
/// first that sleeps, unless one is up already.
#[must_use]
pub fn called(records: &Records, inputs: &Inputs) -> BTreeSet<AgentName> {
    if records.pooled.is_empty() {
        return BTreeSet::new();
    }
    let wanted = effective(&inputs.fleet, &inputs.overrides, inputs.now).wanted;
    let selectors: BTreeSet<&Selector> = records.pooled.values().collect();
    let wakes = |selector: &Selector| {
        let mut asleep = None;
        for (name, agent) in &wanted {
            let Some(claim) = inputs.claims.get(name) else { continue };
            if agent.spec.power != PowerState::Running || !selector.matches(&agent.spec.labels) {
                continue;
            }
            if !claim.asleep && is_up(inputs, claim) {
                return None;
            }
            // One that was called before is no longer asleep, and not up yet.
            asleep = asleep.or(Some(name));
        }
        asleep.cloned()
    };
    selectors.into_iter().filter_map(wakes).collect()
}

fn is_up(inputs: &Inputs, claim: &Claim) -> bool {
    let Some(view) = inputs.drivers.get(&claim.driver) else { return false };
    let Listing::Seen(instances) = &view.listing else { return false };
    instances.get(&claim.instance).is_some_and(|seen| seen.instance.state == InstanceState::Running)
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::fleet::parse;

    use super::*;

    #[test]
    fn the_hub_is_told_what_the_file_says_of_labels_slots_and_messages() {
        let text = "agents: {web: {labels: {team: a}, slots: 8}, db: {}}\nmessages: {allow: [{from: web, to: db}]}";
        let records = Records::empty(parse("fleet.yaml", text).unwrap());
        let told = directory(&records, Timestamp::UNIX_EPOCH);
        let web = &told.members["web"];
        assert_eq!((web.labels["team"].as_str(), web.slots, told.members["db"].slots), ("a", 8, 4));
        assert_eq!(told.allow, records.fleet.messages.allow);
        assert_eq!(told.allow.len(), 1);
    }
}
