//! When the next pass is due although nothing happens: time alone changes a plan at these moments.

use jiff::Timestamp;
use vm_agent_schemas::fleet::{AgentSpec, TaskWhen};

use crate::clock::{after, silence_ends};
use crate::effective::{Effective, effective};
use crate::fuse::{BACKOFF_FORGOTTEN, probe_at};
use crate::inputs::{Inputs, Listing};
use crate::situation::{Situation, transition};
use crate::{rest, snapshots, standing, windows};

/// The earliest time after `now` at which the same inputs may give another plan.
#[must_use]
pub fn wake_at(inputs: &Inputs) -> Option<Timestamp> {
    let now = inputs.now;
    let all = of_records(inputs).chain(of_the_world(inputs)).chain(windows::changes(&inputs.fleet.windows, now));
    let effective = effective(&inputs.fleet, &inputs.overrides, now);
    all.chain(of_agents(inputs, &effective)).filter(|at| *at > now).min()
}

/// When agents come to rest, and their tasks to their moments.
fn of_agents<'a>(inputs: &'a Inputs, effective: &'a Effective) -> impl Iterator<Item = Timestamp> {
    let timed = |spec: &AgentSpec| {
        spec.idle.is_some()
            || spec.ttl.is_some()
            || !spec.snapshots.schedules.is_empty()
            || spec.tasks.values().any(|task| matches!(task.when, TaskWhen::Cron(_)))
    };
    effective
        .wanted
        .iter()
        .filter(move |(name, agent)| timed(&agent.spec) || effective.clones.contains_key(*name))
        .flat_map(move |(name, _)| {
            let situation = Situation::of(inputs, name, effective);
            rest::turns(situation).chain(standing::turns(situation)).chain(snapshots::turns(situation))
        })
}

/// When what is written down comes to its time.
fn of_records(inputs: &Inputs) -> impl Iterator<Item = Timestamp> {
    let backoffs = inputs.backoffs.values().flat_map(|b| [b.not_before, after(b.failed_at, BACKOFF_FORGOTTEN)]);
    let overrides = inputs.overrides.iter().filter_map(|entry| entry.expires_at);
    let pause = inputs.pause.iter().filter_map(|pause| pause.expires_at);
    let operations = inputs.operations.values().map(|operation| operation.deadline);
    let errands = inputs.errands.values().flatten();
    let tries = errands.flat_map(|errand| errand.tried.iter().map(|tried| tried.not_before).chain([errand.until]));
    backoffs
        .chain(tries)
        .chain(overrides)
        .chain(pause)
        .chain(operations)
        .chain(probe_at(&inputs.fuse, inputs.backoffs.values()))
}

/// When what is seen and heard has been so for too long.
fn of_the_world(inputs: &Inputs) -> impl Iterator<Item = Timestamp> {
    let silences = inputs.sessions.values().flat_map(|session| silence_ends(inputs, session.last_seen, inputs.silence));
    let connects = inputs.drivers.values().flat_map(move |view| {
        let limits = [view.capabilities.deadlines.connect.get(), transition(&view.capabilities)];
        let observed = match &view.listing {
            Listing::Seen(instances) => Some(instances.values()),
            Listing::Unanswered { .. } => None,
        };
        observed
            .into_iter()
            .flatten()
            .flat_map(move |observed| limits.into_iter().flat_map(|limit| silence_ends(inputs, observed.since, limit)))
    });
    silences.chain(connects)
}
