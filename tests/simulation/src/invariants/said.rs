//! What people said.

use vm_agent_daemon::engine::records::Change;
use vm_agent_plan::{Inputs, Mode, effective};
use vm_agent_schemas::fleet::Reconcile;
use vm_agent_schemas::intent::{Change as Said, Presence};

use crate::deed::{By, Deed};

use super::{Invariant, SAID, hold, invariant, opened};

/// An override holds until it is cleared, expires or is superseded, and not longer.
#[derive(Debug)]
pub(super) struct OverridesWinAndEnd;

impl OverridesWinAndEnd {
    /// Why an override holds no more, if so.
    fn over(entry: &vm_agent_schemas::intent::Override, inputs: &Inputs) -> bool {
        let declared = inputs.fleet.agents.get(&entry.agent);
        let superseded = match &entry.change {
            Said::Power { covers, .. } => declared.is_some_and(|it| it.spec.power != *covers),
            Said::Reconcile { covers, .. } => declared.is_some_and(|it| it.spec.reconcile != *covers),
            Said::Presence(Presence::Present(_)) => declared.is_some(),
            Said::Presence(Presence::Absent) => declared.is_none() && !inputs.claims.contains_key(&entry.agent),
        };
        superseded || entry.expires_at.is_some_and(|end| end <= inputs.now)
    }
}

impl Invariant for OverridesWinAndEnd {
    invariant!(OverridesWinAndEnd, SAID);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Acted { inputs, plan } => inputs.overrides.iter().try_for_each(|entry| {
                let agent = &entry.agent;
                hold(!Self::over(entry, inputs), || format!("an override of {agent} is over, and still there"))?;
                let wanted = plan.agent(agent).and_then(|it| it.wanted.as_ref());
                let wins = match &entry.change {
                    Said::Power { wanted: power, .. } => wanted.is_none_or(|it| it.spec.power == *power),
                    Said::Reconcile { wanted: mode, .. } => wanted.is_none_or(|it| it.spec.reconcile == *mode),
                    Said::Presence(Presence::Present(_)) => wanted.is_some(),
                    Said::Presence(Presence::Absent) => wanted.is_none(),
                };
                hold(wins, || format!("an override of {agent} does not win: {:?}", entry.change))
            }),
            Deed::Recorded { by, before, changes, .. } if !matches!(by, By::Person) => {
                changes.iter().try_for_each(|change| {
                    let Change::DropOverride(agent, path) = change else { return Ok(()) };
                    let entry = before.overrides.iter().find(|it| it.agent == *agent && it.change.path() == *path);
                    let ended = match (by, entry) {
                        (_, None) => true,
                        (By::Pass(inputs), Some(entry)) => Self::over(entry, inputs),
                        _ => false,
                    };
                    hold(ended, || format!("the override of {path:?} of {agent} was dropped before its end"))
                })
            }
            _ => Ok(()),
        }
    }
}

/// No step begins on what is paused.
#[derive(Debug)]
pub(super) struct PausesAreRespected;

impl Invariant for PausesAreRespected {
    invariant!(PausesAreRespected, SAID);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            if records.mode != Mode::Up {
                return Ok(());
            }
            let agent = &operation.agent;
            let fleet = records.pause.as_ref().is_some_and(|it| it.expires_at.is_none_or(|end| inputs.now < end));
            let wanted = effective(&records.fleet, &records.overrides, inputs.now).wanted;
            let paused = fleet || wanted.get(agent).is_some_and(|it| it.spec.reconcile == Reconcile::Paused);
            hold(!paused, || format!("a {} of {agent} began, and it is paused", operation.action))
        })
    }
}
