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
    use std::collections::BTreeMap;

    use vm_agent_plan::{DriverView, Observed};
    use vm_agent_schemas::fleet::{DriverName, parse};
    use vm_agent_schemas::ids::{ClaimId, Incarnation, Nonce, TaskId};
    use vm_agent_schemas::observe::{Birth, Instance, Proof, Standing};

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// Agents of team a by whether they are asleep, all of them with machines that run unless they sleep, and a
    /// task for any of them.
    fn world(agents: &[(&str, bool)]) -> (Records, Inputs) {
        let entries: Vec<String> = agents.iter().map(|(name, _)| format!("{name}: {{labels: {{team: a}}}}")).collect();
        let fleet = parse("fleet.yaml", &format!("agents: {{{}}}", entries.join(", "))).unwrap();
        let mut records = Records::empty(fleet);
        let mut seen = BTreeMap::new();
        for (name, asleep) in agents {
            let agent: AgentName = name.parse().unwrap();
            let claim = claim(&records, &agent, *asleep);
            let state = if *asleep { InstanceState::Stopped } else { InstanceState::Running };
            let instance = Instance { name: claim.instance.clone(), state, nonce: None, sizes: None, snapshots: None };
            seen.insert(claim.instance.clone(), Observed { instance, since: NOW });
            records.claims.insert(agent, claim);
        }
        records.pooled.insert(TaskId::generate(), "team=a".parse().unwrap());
        let capabilities = vm_agent_drivers::fake::Fake::capabilities_default();
        let view = DriverView { capabilities, listing: Listing::Seen(seen), looked_at: Some(NOW) };
        let inputs = Inputs { drivers: [(DriverName::Qemu, view)].into(), ..records.inputs(NOW) };
        (records, inputs)
    }

    fn claim(records: &Records, agent: &AgentName, asleep: bool) -> Claim {
        Claim {
            id: ClaimId::generate(),
            fleet: records.fleet.name.clone(),
            agent: agent.clone(),
            driver: DriverName::Qemu,
            instance: records.fleet.name.instance_of(agent).unwrap(),
            nonce: Nonce::generate(),
            incarnation: Incarnation(1),
            created_at: NOW,
            proof: Proof::Confirmed,
            birth: Birth::of(&AgentSpec::default()),
            standing: Standing::Up,
            protect: false,
            left_in_mass: false,
            asleep,
            history: Default::default(),
        }
    }

    fn called_in(agents: &[(&str, bool)]) -> Vec<String> {
        let (records, inputs) = world(agents);
        called(&records, &inputs).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_first_that_sleeps_wakes_for_a_task_that_nobody_is_up_for() {
        assert_eq!(called_in(&[("web", true), ("db", true)]), ["db"]);
        assert_eq!(called_in(&[("web", false), ("db", true)]), Vec::<String>::new());
        assert_eq!(called_in(&[]), Vec::<String>::new());
    }

    #[test]
    fn nobody_wakes_for_no_task_or_for_one_of_others() {
        let (mut records, inputs) = world(&[("web", true)]);
        records.pooled.values_mut().for_each(|selector| *selector = "team=b".parse().unwrap());
        assert!(called(&records, &inputs).is_empty());
        records.pooled.clear();
        assert!(called(&records, &inputs).is_empty());
    }

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
