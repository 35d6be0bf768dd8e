//! When steps may begin: dependencies first, within the lanes, not before a backoff is over, and not
//! while the fuse is blown.

use std::collections::{BTreeMap, HashMap};

use vm_agent_schemas::fleet::{DriverName, Reconcile};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::{Cost, Fuse, Health, Step, StepAction, WaitsFor};

use crate::fuse::probe_at;
use crate::inputs::{Inputs, Mode};
use crate::moves::Move;
use crate::situation::Situation;

/// Hands out the places in each driver's lane, and the one that a blown fuse leaves.
pub(crate) struct Schedule<'a> {
    inputs: &'a Inputs,
    fuse: &'a Fuse,
    healthy: &'a dyn Fn(&AgentName) -> bool,
    free: BTreeMap<DriverName, usize>,
    probe_free: bool,
}

impl<'a> Schedule<'a> {
    pub(crate) fn new(inputs: &'a Inputs, fuse: &'a Fuse, healthy: &'a dyn Fn(&AgentName) -> bool) -> Self {
        let mut free: BTreeMap<DriverName, usize> =
            inputs.drivers.iter().map(|(name, view)| (*name, lane(inputs, view.capabilities.lanes))).collect();
        let under_way = inputs.operations.keys().filter_map(|agent| inputs.operation(agent));
        let mut busy = false;
        for operation in under_way {
            busy = true;
            if let Some(places) = free.get_mut(&operation.driver) {
                *places = places.saturating_sub(1);
            }
        }
        let probe_free = !busy && probe_at(fuse, inputs.backoffs.values()).is_some_and(|at| at <= inputs.now);
        Self { inputs, fuse, healthy, free, probe_free }
    }

    /// One step of an agent, with everything that it waits for.
    pub(crate) fn step(&mut self, situation: &Situation<'_>, driver: DriverName, step: Move) -> Step {
        let Move { action, reason, cost, mut waits_for } = step;
        if action != StepAction::Forget {
            waits_for.extend(self.pause(situation));
        }
        if action.on_instance().is_some() {
            // A stop that is there for a start to follow comes down only when it can come up again.
            if brings_up(&action) || cost == Cost::Restart {
                waits_for.extend(self.dependencies(situation));
            }
            if !(self.inputs.mode == Mode::Destroy && action == StepAction::Destroy) {
                waits_for.extend(self.backoff(situation));
            }
            // Only a step that could begin otherwise takes a place from the others.
            if waits_for.is_empty() {
                waits_for.extend(self.fuse(&action, cost));
            }
            if waits_for.is_empty() {
                waits_for.extend(self.place(driver));
            }
        }
        Step { agent: situation.name.clone(), driver, action, reason, cost, disturbs: None, waits_for }
    }

    /// A pause holds everything but what a person says when they take the fleet down.
    fn pause(&self, situation: &Situation<'_>) -> Option<WaitsFor> {
        if self.inputs.mode != Mode::Up {
            return None;
        }
        let fleet = self.inputs.fleet_pause().is_some();
        let agent = situation.wanted.is_some_and(|agent| agent.spec.reconcile == Reconcile::Paused);
        (fleet || agent).then_some(WaitsFor::Paused { fleet })
    }

    fn dependencies(&self, situation: &Situation<'_>) -> impl Iterator<Item = WaitsFor> {
        let wanted = situation.wanted.into_iter().flat_map(|agent| &agent.spec.depends_on.0);
        wanted
            .filter(|(name, _)| !(self.healthy)(name))
            .map(|(agent, until)| WaitsFor::Dependency { agent: agent.clone(), until: *until })
    }

    fn backoff(&self, situation: &Situation<'_>) -> Option<WaitsFor> {
        let backoff = situation.backoff.filter(|backoff| self.inputs.now < backoff.not_before)?;
        let (until, failures) = (backoff.not_before, backoff.failures);
        Some(WaitsFor::Backoff { until, failures, last: backoff.last.clone() })
    }

    /// A blown fuse lets stops through, which can only calm things down, and one probe after its rest.
    fn fuse(&mut self, action: &StepAction, cost: Cost) -> Option<WaitsFor> {
        let calms = *action == StepAction::Stop && cost == Cost::Stop;
        if !self.fuse.is_blown() || calms {
            return None;
        }
        if std::mem::take(&mut self.probe_free) { None } else { Some(WaitsFor::Fuse) }
    }

    fn place(&mut self, driver: DriverName) -> Option<WaitsFor> {
        match self.free.get_mut(&driver) {
            Some(places) if *places > 0 => {
                *places -= 1;
                None
            }
            _ => Some(WaitsFor::Lane { driver }),
        }
    }
}

fn brings_up(action: &StepAction) -> bool {
    action.on_instance().is_some_and(vm_agent_schemas::observe::Action::brings_up)
}

fn lane(inputs: &Inputs, bears: u32) -> usize {
    let wished = inputs.fleet.limits.parallelism.unwrap_or(bears);
    usize::try_from(wished.min(bears)).unwrap_or(usize::MAX)
}

/// The order in which agents come up: each after all that it depends on, else by name. Gives the
/// indices of `situations`.
pub(crate) fn order(situations: &[Situation<'_>]) -> Vec<usize> {
    let depends = |s: &Situation<'_>| s.wanted.is_some_and(|agent| !agent.spec.depends_on.0.is_empty());
    let mut indices: Vec<usize> = (0..situations.len()).collect();
    if situations.iter().any(depends) {
        let by_name: HashMap<&AgentName, usize> = situations.iter().enumerate().map(|(i, s)| (s.name, i)).collect();
        let mut depths = vec![None; situations.len()];
        for index in 0..situations.len() {
            depth(index, situations, &by_name, &mut depths);
        }
        indices.sort_by_key(|index| depths[*index]);
    }
    indices
}

/// How many agents come before one. The fleet file has no cycles; an agent made by hand has no
/// dependencies of its own.
fn depth(
    index: usize,
    situations: &[Situation<'_>],
    by_name: &HashMap<&AgentName, usize>,
    depths: &mut [Option<usize>],
) -> usize {
    if let Some(depth) = depths[index] {
        return depth;
    }
    depths[index] = Some(0);
    let wanted = situations[index].wanted.into_iter().flat_map(|agent| agent.spec.depends_on.0.keys());
    let deepest =
        wanted.filter_map(|name| by_name.get(name)).map(|at| 1 + depth(*at, situations, by_name, depths)).max();
    depths[index] = deepest.or(Some(0));
    deepest.unwrap_or(0)
}

/// Whether an agent that others wait for is ready for them.
pub(crate) const fn is_ready(health: Health) -> bool {
    matches!(health, Health::Healthy)
}
