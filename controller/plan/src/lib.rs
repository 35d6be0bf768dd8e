//! Overrides over file spec, effective spec against observation, drift, and the steps that remove it.
//!
//! Everything here is a pure function over plain data: no I/O, no clock, no randomness, no async, and
//! no driver to act with. [`plan`] reads like the question it answers: what is each agent's situation,
//! what differs, what would be done, what may be done now.

mod budget;
mod calendar;
mod clock;
mod dependencies;
mod drift;
mod effective;
mod fuse;
mod guard;
mod inputs;
mod moves;
mod rest;
mod runs;
mod schedule;
mod shared;
mod situation;
mod snapshots;
mod standing;
pub mod table;
mod upkeep;
mod wake;
mod windows;

use std::collections::BTreeSet;

use ring::digest::{Context, SHA256};
use vm_agent_schemas::fleet::{DriftPolicy, Until};
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Action;
use vm_agent_schemas::plan::{AgentPlan, ApprovalRequest, Drift, Health, Plan, Step, StepAction, Sync, WaitsFor};

pub use clock::SetBack;
pub use drift::configuration_for;
pub use effective::{Effective, End, effective, ended_overrides};
pub use fuse::{BACKOFF_FORGOTTEN, FUSE_REST, FUSE_WINDOW, after_failure};
pub use inputs::{DriverView, FileTask, Inputs, Listing, Mode, Observed, SessionSeen};
pub use rest::is_at_work;
pub use runs::{RUNS_KNOWN, note_run};
pub use shared::Shared;
pub use snapshots::{Wish, kept};
pub use upkeep::{Learnt, Upkeep, upkeep};
pub use wake::wake_at;

use guard::Guard;
use moves::{Moves, moves_of};
use schedule::Schedule;
use situation::Situation;
use windows::Windows;

/// The steps that would make everything as wanted, what each of them waits for, and what is known of
/// each agent.
pub fn plan(inputs: &Inputs) -> Plan {
    let effective = effective(&inputs.fleet, &inputs.overrides, inputs.now);
    let situations = situations(inputs, &effective);
    let healths: Vec<Health> = situations.iter().map(Situation::health).collect();

    let fuse = fuse::judge(&inputs.fuse, inputs.backoffs.values(), situations.len(), inputs.last_success, inputs.now);
    let ready = |name: &AgentName, until: Until| {
        let found = situations.binary_search_by(|situation| situation.name.cmp(name));
        found.is_ok_and(|index| dependencies::is_ready(&situations[index], healths[index], until))
    };
    let windows = Windows::at(&inputs.fleet.windows, inputs.now);
    let mut guard = Guard::new(inputs, &situations);
    let mut schedule = Schedule::new(inputs, &fuse, &ready);
    let mut steps = Vec::new();
    let mut agents: Vec<Option<AgentPlan>> = situations.iter().map(|_| None).collect();
    for index in dependencies::order(&situations) {
        let (situation, health) = (&situations[index], healths[index]);
        let drift = drift::drift_of(situation);
        let Moves { steps: moves, waits_for, settling, moot } = moves_of(situation, &drift, &mut guard, windows);
        let from = steps.len();
        if let Some(driver) = situation.driver {
            steps.extend(schedule.steps(situation, driver, moves));
        }
        let planned = agent_plan(situation, health, drift, waits_for, settling, &steps[from..]);
        agents[index] = Some(AgentPlan { moot, ..planned });
    }

    let mass = guard.mass.is_some();
    for agent in agents.iter_mut().flatten().filter(|agent| mass && agent.wanted.is_none()) {
        agent.held_back = true;
    }
    let (approvals, granted) = guard.into_requests();
    Plan {
        id: digest(inputs, &steps, &approvals),
        fleet: inputs.fleet.name.clone(),
        revision: inputs.revision,
        agents: agents.into_iter().flatten().collect(),
        steps,
        approvals,
        granted,
        fuse,
    }
}

/// Every agent that should exist, that has a claim, or that a person said should go, by name.
fn situations<'a>(inputs: &'a Inputs, effective: &'a Effective) -> Vec<Situation<'a>> {
    let names: BTreeSet<&AgentName> =
        effective.wanted.keys().chain(inputs.claims.keys()).chain(&effective.dismissed).collect();
    names.into_iter().map(|name| Situation::of(inputs, name, effective)).collect()
}

fn agent_plan(
    situation: &Situation<'_>,
    health: Health,
    drift: Vec<Drift>,
    mut waits_for: Vec<WaitsFor>,
    settling: bool,
    steps: &[Step],
) -> AgentPlan {
    let sync = sync(situation, &drift, settling, steps);
    for reason in steps.iter().flat_map(|step| &step.waits_for) {
        if *reason != WaitsFor::EarlierStep && !waits_for.contains(reason) {
            waits_for.push(reason.clone());
        }
    }
    AgentPlan {
        name: situation.name.clone(),
        driver: situation.driver,
        wanted: situation.wanted.cloned(),
        observed: situation.observed.map(|observed| observed.instance.state),
        sync,
        health,
        drift,
        waits_for,
        held_back: false,
        rests: situation.rests,
        cordoned: is_cordoned(situation, steps),
        moot: None,
    }
}

/// Whether the machine is about to go down, as soon as what runs in it has ended: a task that began now
/// would be cut off.
fn is_cordoned(situation: &Situation<'_>, steps: &[Step]) -> bool {
    let takes_down =
        |action: Action| matches!(action, Action::Stop | Action::Suspend | Action::Restore | Action::Destroy);
    let next = steps.iter().find(|step| step.action.on_instance().is_some());
    let about_to = next.is_some_and(|step| {
        step.action.on_instance().is_some_and(takes_down)
            && step.waits_for.iter().all(|reason| matches!(reason, WaitsFor::Drain { .. }))
    });
    about_to || situation.operation.is_some_and(|operation| takes_down(operation.action))
}

fn sync(situation: &Situation<'_>, drift: &[Drift], settling: bool, steps: &[Step]) -> Sync {
    let soon =
        |reason: &WaitsFor| matches!(reason, WaitsFor::EarlierStep | WaitsFor::Lane { .. } | WaitsFor::Drain { .. });
    if situation.operation.is_some() {
        Sync::Reconciling
    } else if situation.seen == table::Seen::Unknown {
        Sync::Unknown
    } else if drift.iter().all(|difference| difference.policy != DriftPolicy::Correct) {
        Sync::Synced
    } else if steps.first().is_some_and(|step| step.waits_for.iter().all(soon)) {
        Sync::Drifted
    } else if settling {
        Sync::Reconciling
    } else {
        Sync::Blocked
    }
}

/// The digest of what a plan decides, without what is only told about it.
fn digest(inputs: &Inputs, steps: &[Step], approvals: &[ApprovalRequest]) -> Digest {
    let mut context = Context::new(&SHA256);
    let mut part = |text: &str| {
        context.update(text.as_bytes());
        context.update(b"\0");
    };
    part(inputs.fleet.name.as_str());
    // What a step would make is in the file and in the overrides.
    part(inputs.fleet.digest.as_ref().map(Digest::as_str).unwrap_or_default());
    inputs.overrides.iter().for_each(|entry| part(&entry.id.to_string()));
    for step in steps {
        part(step.agent.as_str());
        part(step.driver.as_str());
        part(step.action.word());
        if let StepAction::Task { task, .. } = &step.action {
            part(task.as_str());
        }
        part(&step.reason);
        if let Some(loss) = step.loses.filter(|loss| loss.protected > 0) {
            part(&loss.protected.to_string());
        }
    }
    for approval in approvals {
        part(approval.id.as_str());
    }
    Digest::of_sha256(&context.finish())
}
