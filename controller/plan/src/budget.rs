//! The room on the host: what machines take of it, and which of them may still come up.

use std::collections::{BTreeMap, BTreeSet};

use vm_agent_schemas::fleet::Limits;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Claim, Host, InstanceState, Sizes, Standing};
use vm_agent_schemas::plan::{Cost, Resource, StepAction, WaitsFor};

use crate::inputs::{DriverView, Inputs, Listing, Observed};
use crate::moves::Move;
use crate::situation::Situation;

/// The share of the host's memory that is kept for the host where the file does not say.
const RESERVE_SHARE: u64 = 10;

const RESOURCES: [Resource; 3] = [Resource::Cpus, Resource::Memory, Resource::Disk];

/// How much of each of [`RESOURCES`].
type Amounts = [u64; 3];

/// What is left for machines that are to come up. Each that is admitted leaves less for those after it.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    /// What all machines may take together; nothing where that does not matter.
    limits: [Option<u64>; 3],
    /// What each agent's machine takes, or was admitted to take.
    taken: BTreeMap<&'a AgentName, Amounts>,
    /// What all take together, those of others included.
    total: Amounts,
}

impl<'a> Budget<'a> {
    pub(crate) fn new(inputs: &'a Inputs) -> Self {
        let mut budget = Self {
            limits: limits(&inputs.fleet.limits, inputs.host),
            taken: BTreeMap::new(),
            total: Amounts::default(),
        };
        if budget.limits == [None; 3] {
            return budget;
        }
        for (driver, view) in inputs.drivers.iter().filter(|(_, view)| view.capabilities.uses_host) {
            let mut known = BTreeSet::new();
            for claim in inputs.claims.values().filter(|claim| claim.driver == *driver) {
                let ours = view.find(claim);
                known.extend(ours.map(|observed| &observed.instance.name));
                budget.take(&claim.agent, taken_by(inputs, claim, view, ours));
            }
            if let Listing::Seen(instances) = &view.listing {
                let others = instances.values().filter(|observed| !known.contains(&observed.instance.name));
                others.filter_map(taken_by_another).for_each(|amounts| add(&mut budget.total, amounts));
            }
        }
        budget
    }

    /// What a step waits for that takes room on the host. One that waits for nothing has its room from
    /// now on. `sizes` are those that the agent's machine has after its steps.
    pub(crate) fn admit(&mut self, situation: &Situation<'a>, step: &Move, sizes: Sizes) -> Option<WaitsFor> {
        if self.limits == [None; 3] || situation.view.is_none_or(|view| !view.capabilities.uses_host) {
            return None;
        }
        let own = self.taken.get(situation.name).copied().unwrap_or_default();
        // A machine that goes down in order to come up again has to find its room then. One that is given
        // more where it runs, or a bigger disk where it does not, needs room for what is more.
        let (needs, anew) = match (&step.action, step.cost) {
            (StepAction::Create | StepAction::Start | StepAction::Restore { stays_down: false, .. }, _)
            | (StepAction::Stop, Cost::Restart)
            | (StepAction::Destroy, Cost::Replace) => (amounts(sizes), true),
            (StepAction::Resize { .. }, _) if situation.runs() => (amounts(sizes), false),
            (StepAction::Resize { .. }, _) => ([0, 0, sizes.disk.bytes()], false),
            _ => return None,
        };
        for (index, resource) in RESOURCES.into_iter().enumerate() {
            let (needs, own) = (needs[index], own[index]);
            // A machine that exists has its disk already.
            let asks = needs > own || (anew && resource != Resource::Disk);
            let Some(limit) = self.limits[index].filter(|_| asks) else { continue };
            let free = limit.saturating_sub(self.total[index].saturating_sub(own));
            if needs > free {
                return Some(WaitsFor::Capacity { resource, needs, free });
            }
        }
        let more = std::array::from_fn(|index| needs[index].max(own[index]));
        self.take(situation.name, more);
        None
    }

    fn take(&mut self, agent: &'a AgentName, amounts: Amounts) {
        let before = self.taken.insert(agent, amounts).unwrap_or_default();
        for (index, total) in self.total.iter_mut().enumerate() {
            *total = total.saturating_sub(before[index]).saturating_add(amounts[index]);
        }
    }
}

fn limits(limits: &Limits, host: Option<Host>) -> [Option<u64>; 3] {
    let of_host = || {
        let memory = host?.memory.bytes();
        let reserve = limits.reserve.map_or(memory / RESERVE_SHARE, |reserve| reserve.memory.bytes());
        Some(memory.saturating_sub(reserve))
    };
    [
        limits.cpus.map(u64::from),
        limits.memory.map(|memory| memory.bytes()).or_else(of_host),
        limits.disk.map(|disk| disk.bytes()),
    ]
}

fn amounts(sizes: Sizes) -> Amounts {
    [u64::from(sizes.cpus), sizes.memory.bytes(), sizes.disk.bytes()]
}

fn add(total: &mut Amounts, amounts: Amounts) {
    for (total, amount) in total.iter_mut().zip(amounts) {
        *total = total.saturating_add(amount);
    }
}

/// What a claim's instance takes: all where it runs or is coming up, its disk where it exists. Of one
/// that can't be seen, what it was brought to tells.
fn taken_by(inputs: &Inputs, claim: &Claim, view: &DriverView, observed: Option<&Observed>) -> Amounts {
    let under_way = inputs.operation(&claim.agent).map(|operation| operation.action);
    let mut sizes = amounts(observed.and_then(|observed| observed.instance.sizes).unwrap_or(claim.birth.sizes));
    if under_way == Some(Action::Resize)
        && let Some(agent) = inputs.fleet.agents.get(&claim.agent)
    {
        let to = amounts(Sizes::of(&agent.spec));
        sizes = std::array::from_fn(|index| sizes[index].max(to[index]));
    }
    let was_up = claim.standing == Standing::Up;
    let (exists, runs) = match (&view.listing, observed.map(|observed| observed.instance.state)) {
        (Listing::Unanswered { .. }, _) | (_, Some(InstanceState::Unknown)) => (true, was_up),
        (_, Some(state)) => (true, takes_memory(state)),
        (_, None) => (false, false),
    };
    let comes_up = under_way.is_some_and(Action::brings_up);
    let [cpus, memory, disk] = sizes;
    let (cpus, memory) = if runs || comes_up { (cpus, memory) } else { (0, 0) };
    [cpus, memory, if exists || comes_up { disk } else { 0 }]
}

/// What an instance takes that is not ours; nothing where its sizes are not known.
fn taken_by_another(observed: &Observed) -> Option<Amounts> {
    let [cpus, memory, disk] = amounts(observed.instance.sizes?);
    Some(if takes_memory(observed.instance.state) { [cpus, memory, disk] } else { [0, 0, disk] })
}

const fn takes_memory(state: InstanceState) -> bool {
    matches!(state, InstanceState::Starting | InstanceState::Running | InstanceState::Stopping)
}
