//! From file spec and overrides to effective spec, and which overrides have come to their end.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use vm_agent_schemas::fleet::{CloneOf, DeclaredAgent, Field, Fleet, Origin, PowerState};
use vm_agent_schemas::ids::OverrideId;
use vm_agent_schemas::intent::{Change, Override, Presence};
use vm_agent_schemas::names::{AgentName, SnapshotName};

/// What should be: every agent that should exist, with its effective spec.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effective {
    /// The effective specs.
    pub wanted: BTreeMap<AgentName, Arc<DeclaredAgent>>,
    /// Agents that a person said should go: their deletion needs no further approval.
    pub dismissed: Vec<AgentName>,
    /// What a person said of an agent's power, beside what the file or its maker says.
    pub told: BTreeMap<AgentName, PowerState>,
    /// For each agent those whose machines are to begin as its machine was, and with which snapshot of it.
    pub clones: BTreeMap<AgentName, Vec<(AgentName, SnapshotName)>>,
}

/// Lays the overrides that hold at `now` over the file spec.
#[must_use]
pub fn effective(fleet: &Fleet, overrides: &[Override], now: Timestamp) -> Effective {
    let mut effective = Effective { wanted: fleet.agents.clone(), ..Effective::default() };
    let holding = |o: &&Override| end_of(o, fleet, now).is_none();
    for entry in overrides.iter().filter(holding) {
        match &entry.change {
            Change::Presence(Presence::Present(agent)) => {
                effective.wanted.insert(entry.agent.clone(), Arc::new(agent.clone()));
            }
            Change::Presence(Presence::Absent) => {
                effective.wanted.remove(&entry.agent);
                effective.dismissed.push(entry.agent.clone());
            }
            Change::Power { .. } | Change::Reconcile { .. } => {}
        }
    }
    for entry in overrides.iter().filter(holding) {
        let Some(agent) = effective.wanted.get_mut(&entry.agent) else { continue };
        match entry.change {
            Change::Power { wanted, .. } => {
                let agent = Arc::make_mut(agent);
                agent.spec.power = wanted;
                agent.origins.insert(Field::Power, Origin::Override);
                effective.told.insert(entry.agent.clone(), wanted);
            }
            Change::Reconcile { wanted, .. } => {
                let agent = Arc::make_mut(agent);
                agent.spec.reconcile = wanted;
                agent.origins.insert(Field::Reconcile, Origin::Override);
            }
            Change::Presence(_) => {}
        }
    }
    effective.dismissed.sort();
    for (name, agent) in &effective.wanted {
        if let Some(CloneOf { agent: source, snapshot }) = &agent.clone_of {
            effective.clones.entry(source.clone()).or_default().push((name.clone(), snapshot.clone()));
        }
    }
    effective
}

impl Effective {
    /// Whether a person said that this very agent should go.
    #[must_use]
    pub fn is_dismissed(&self, agent: &AgentName) -> bool {
        self.dismissed.binary_search(agent).is_ok()
    }
}

/// Why an override has come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its time is over.
    Expired,
    /// The file changed what it covers.
    Superseded,
    /// What it asked for has been done, and nothing contradicts it any more.
    Done,
}

/// The overrides that have come to their end, and why. `known` tells whether an agent still has a
/// claim.
#[must_use]
pub fn ended_overrides(
    fleet: &Fleet,
    overrides: &[Override],
    known: impl Fn(&AgentName) -> bool,
    now: Timestamp,
) -> Vec<(OverrideId, End)> {
    let done = |o: &Override| match &o.change {
        Change::Presence(Presence::Absent) => !fleet.agents.contains_key(&o.agent) && !known(&o.agent),
        Change::Presence(Presence::Present(_)) | Change::Power { .. } | Change::Reconcile { .. } => false,
    };
    overrides
        .iter()
        .filter_map(|o| {
            let end = end_of(o, fleet, now).or_else(|| done(o).then_some(End::Done))?;
            Some((o.id, end))
        })
        .collect()
}

fn end_of(entry: &Override, fleet: &Fleet, now: Timestamp) -> Option<End> {
    if !entry.holds_at(now) {
        return Some(End::Expired);
    }
    let declared = fleet.agents.get(&entry.agent);
    let superseded = match &entry.change {
        Change::Power { covers, .. } => declared.is_some_and(|agent| agent.spec.power != *covers),
        Change::Reconcile { covers, .. } => declared.is_some_and(|agent| agent.spec.reconcile != *covers),
        Change::Presence(Presence::Present(_)) => declared.is_some(),
        Change::Presence(Presence::Absent) => false,
    };
    superseded.then_some(End::Superseded)
}
