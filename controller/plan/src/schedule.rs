//! When steps may begin: dependencies first, within the host's room and the lanes, not before a backoff
//! is over, and not while the fuse is blown.

use std::collections::BTreeMap;

use vm_agent_schemas::fleet::{DriverName, Reconcile, Until};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Sizes};
use vm_agent_schemas::plan::{Cost, Fuse, Step, StepAction, WaitsFor};

use crate::budget::Budget;
use crate::fuse::probe_at;
use crate::inputs::{Inputs, Mode};
use crate::moves::Move;
use crate::situation::Situation;
use crate::snapshots::loss;
use crate::windows::is_disruptive;

/// Hands out the room on the host, the places in each driver's lane, and the one that a blown fuse leaves.
pub(crate) struct Schedule<'a> {
    inputs: &'a Inputs,
    fuse: &'a Fuse,
    /// Whether an agent is so far.
    ready: &'a dyn Fn(&AgentName, Until) -> bool,
    budget: Budget<'a>,
    free: BTreeMap<DriverName, usize>,
    probe_free: bool,
}

impl<'a> Schedule<'a> {
    pub(crate) fn new(inputs: &'a Inputs, fuse: &'a Fuse, ready: &'a dyn Fn(&AgentName, Until) -> bool) -> Self {
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
        Self { inputs, fuse, ready, budget: Budget::new(inputs), free, probe_free }
    }

    /// The steps of one agent, each with everything that it waits for.
    pub(crate) fn steps(&mut self, situation: &Situation<'a>, driver: DriverName, moves: Vec<Move>) -> Vec<Step> {
        let sizes = sizes_after(situation, &moves);
        moves.into_iter().map(|step| self.step(situation, driver, step, sizes)).collect()
    }

    fn step(&mut self, situation: &Situation<'a>, driver: DriverName, mut step: Move, sizes: Option<Sizes>) -> Step {
        let mut waits_for = std::mem::take(&mut step.waits_for);
        if step.action != StepAction::Forget {
            waits_for.extend(self.pause(situation));
        }
        if step.action.on_instance().is_some() {
            // A stop that is there for a start to follow comes down only when it can come up again.
            if step.action.brings_up() || matches!(step.cost, Cost::Restart | Cost::Replace) {
                waits_for.extend(self.dependencies(situation));
                waits_for.extend(situation.unsupported().map(|what| WaitsFor::Unsupported { what: what.to_owned() }));
            }
            waits_for.extend(self.backoff(situation, &step.action));
            if waits_for.is_empty() && is_disruptive(situation, &step) {
                waits_for.extend(situation.drain());
            }
            // Only a step that could begin otherwise takes room or a place from the others.
            if waits_for.is_empty() {
                waits_for.extend(sizes.and_then(|sizes| self.budget.admit(situation, &step, sizes)));
            }
            if waits_for.is_empty() {
                waits_for.extend(self.fuse(situation, &step));
            }
            if waits_for.is_empty() {
                waits_for.extend(self.place(driver));
            }
        }
        let disturbs = situation.disturbance(&step.action, is_disruptive(situation, &step));
        let loses = (step.action == StepAction::Destroy).then(|| loss(situation)).flatten();
        let Move { action, reason, cost, .. } = step;
        Step { agent: situation.name.clone(), driver, action, reason, cost, disturbs, loses, waits_for }
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
            .filter(|(name, until)| !(self.ready)(name, **until))
            .map(|(agent, until)| WaitsFor::Dependency { agent: agent.clone(), until: *until })
    }

    /// What went wrong with a machine says nothing of how it can be deleted.
    fn backoff(&self, situation: &Situation<'_>, action: &StepAction) -> Option<WaitsFor> {
        let backoff = situation.backoff.filter(|backoff| self.inputs.now < backoff.not_before)?;
        if *action == StepAction::Destroy && backoff.step != Some(Action::Destroy) {
            return None;
        }
        let (until, failures) = (backoff.not_before, backoff.failures);
        Some(WaitsFor::Backoff { until, failures, last: backoff.last.clone() })
    }

    /// A blown fuse lets stops and what a person wants deleted through, which can only calm things down, and one
    /// probe after its rest.
    fn fuse(&mut self, situation: &Situation<'_>, step: &Move) -> Option<WaitsFor> {
        let calms = match step.action {
            StepAction::Stop | StepAction::Suspend => step.cost == Cost::Stop,
            StepAction::Destroy => situation.dismissed,
            _ => false,
        };
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

/// The sizes that the agent's machine has once its steps are over.
fn sizes_after(situation: &Situation<'_>, moves: &[Move]) -> Option<Sizes> {
    let made_anew = matches!(moves.first()?.action, StepAction::Create | StepAction::Destroy);
    let spec = situation.wanted.filter(|_| made_anew).map(|agent| Sizes::of(&agent.spec));
    let resized = moves.iter().find_map(|step| match step.action {
        StepAction::Resize { to } => Some(to),
        _ => None,
    });
    spec.or(resized).or_else(|| situation.sizes())
}

fn lane(inputs: &Inputs, bears: u32) -> usize {
    let wished = inputs.fleet.limits.parallelism.unwrap_or(bears);
    usize::try_from(wished.min(bears)).unwrap_or(usize::MAX)
}
