//! Steps: when they may begin.

use std::collections::BTreeMap;

use vm_agent_daemon::engine::records::Records;
use vm_agent_plan::{Inputs, Mode, effective};
use vm_agent_schemas::fleet::Until;
use vm_agent_schemas::ids::OperationId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Backoff, InstanceState, Operation};

use crate::deed::Deed;

use super::{Invariant, LEVEL, LOOP, ORDER, hold, invariant, opened, shown};

/// A step is durable before its side effect.
#[derive(Debug)]
pub(super) struct StepsAreAnnounced;

impl Invariant for StepsAreAnnounced {
    invariant!(StepsAreAnnounced, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Called { operation, agent, action, records, .. } = deed else { return Ok(()) };
        let known = records.operations.get(agent);
        let announced = known.is_some_and(|it| it.id == *operation && it.action == *action);
        hold(announced, || format!("a {action} of {agent} began, and was not announced"))
    }
}

/// An agent has at most one step under way, also across lives.
#[derive(Debug, Default)]
pub(super) struct OneStepAtATime {
    calls: BTreeMap<OperationId, AgentName>,
}

impl Invariant for OneStepAtATime {
    invariant!(OneStepAtATime, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Called { operation, agent, action, still, .. } => {
                let busy = *still || self.calls.values().any(|other| other == agent);
                self.calls.insert(*operation, agent.clone());
                hold(!busy, || format!("a {action} of {agent} began while another step on it was under way"))
            }
            Deed::CallOver(operation) => {
                self.calls.remove(operation);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A driver has no more steps at a time than it bears, and than the file wants.
#[derive(Debug)]
pub(super) struct LanesAreKept;

impl Invariant for LanesAreKept {
    invariant!(LanesAreKept, LOOP);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let Some(view) = inputs.drivers.get(&operation.driver) else { return Ok(()) };
            let bears = view.capabilities.lanes;
            let lane = records.fleet.limits.parallelism.unwrap_or(bears).min(bears);
            let now = records.operations.values().filter(|it| it.driver == operation.driver && it.life == records.life);
            let now = now.count();
            hold(now <= usize::try_from(lane).unwrap_or(usize::MAX), || {
                format!("{now} steps at a time in the lane of {}, which bears {lane}", operation.driver)
            })
        })
    }
}

/// A step that failed is not tried again before its pause is over.
#[derive(Debug)]
pub(super) struct BackoffsAreKept;

impl Invariant for BackoffsAreKept {
    invariant!(BackoffsAreKept, LOOP);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            // Only a destroy that failed says something of a destroy.
            let concerns = |it: &Backoff| operation.action != Action::Destroy || it.step == Some(Action::Destroy);
            let backoff = records.backoffs.get(&operation.agent).filter(|it| concerns(it));
            let early = backoff.is_some_and(|it| inputs.now < it.not_before);
            hold(!early, || format!("a {} of {} before its pause is over", operation.action, operation.agent))
        })
    }
}

/// While the fuse is blown, one step at a time shows whether all is well again, but for what calms things down.
#[derive(Debug)]
pub(super) struct TheFuseHolds;

impl Invariant for TheFuseHolds {
    invariant!(TheFuseHolds, LOOP);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Recorded { before, .. } = deed else { return Ok(()) };
        let probes = opened(deed);
        let calms = |operation: &Operation, inputs: &Inputs, records: &Records| match operation.action {
            Action::Stop => true,
            Action::Destroy => {
                let effective = effective(&records.fleet, &records.overrides, inputs.now);
                records.mode == Mode::Destroy || effective.dismissed.contains(&operation.agent)
            }
            _ => false,
        };
        let probes: Vec<_> =
            probes.iter().filter(|(operation, inputs, records)| !calms(operation, inputs, records)).collect();
        if probes.is_empty() || !before.fuse.is_blown() {
            return Ok(());
        }
        let busy = before.operations.values().any(|operation| operation.life == before.life);
        hold(probes.len() == 1 && !busy, || format!("{} steps at a time under a blown fuse", probes.len()))
    }
}

/// An agent is brought up when those that it depends on are.
#[derive(Debug)]
pub(super) struct DependenciesComeFirst;

impl Invariant for DependenciesComeFirst {
    invariant!(DependenciesComeFirst, ORDER);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().filter(|(operation, ..)| operation.action.brings_up()).try_for_each(
            |(operation, inputs, records)| {
                let wanted = effective(&records.fleet, &records.overrides, inputs.now).wanted;
                let mut needs = wanted.get(&operation.agent).into_iter().flat_map(|it| &it.spec.depends_on.0);
                needs.try_for_each(|(other, until)| {
                    let heard = inputs.sessions.get(other).is_some_and(|session| session.connected);
                    let runs = shown(inputs, records, other).is_some_and(|it| it.state == InstanceState::Running);
                    let is_so_far = match until {
                        Until::Started => runs,
                        Until::Healthy => heard,
                        // Its tasks may have succeeded, and it may rest since.
                        Until::Completed => inputs.claims.contains_key(other),
                    };
                    hold(is_so_far, || format!("{} comes up before {other}, on which it depends", operation.agent))
                })
            },
        )
    }
}
