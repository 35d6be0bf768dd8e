//! What lasts, and how things come to rest.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use vm_agent_daemon::engine::records::{Change, Records};
use vm_agent_schemas::fleet::{DriftPolicy, PowerState, TaskWhen};
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::InstanceState;
use vm_agent_schemas::plan::{AgentPlan, DriftClass, Health, WaitsFor};
use vm_agent_schemas::wire::Address;

use crate::deed::{By, Deed, Rest};

use super::{ACCIDENT, Invariant, LEVEL, hold, invariant};

/// How long a task may take when nothing goes wrong any more: all its attempts, and all before it.
const TASK_WITHIN: SignedDuration = SignedDuration::from_mins(20);

/// How long a snapshot may take when nothing goes wrong any more, with what comes before and after it.
const SNAPSHOT_WITHIN: SignedDuration = SignedDuration::from_mins(4);

/// A life finds all that the one before it knew.
#[derive(Debug)]
pub(super) struct WhatIsRecordedIsNotForgotten;

impl Invariant for WhatIsRecordedIsNotForgotten {
    invariant!(WhatIsRecordedIsNotForgotten, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Began { left: Some(left), found } = deed else { return Ok(()) };
        let overrides = |records: &Records| {
            let all = records.overrides.iter().map(|it| ((it.agent.clone(), it.change.path()), it.clone()));
            all.collect::<BTreeMap<_, _>>()
        };
        // Of machines that are no more nobody has to know them.
        let tasks = |records: &Records| {
            let all = records.claims.values().flat_map(|claim| {
                let known = records.tasks.get(&claim.agent).into_iter().flatten();
                known.filter(|task| task.claim == claim.id).map(|task| (claim.agent.clone(), format!("{task:?}")))
            });
            all.collect::<BTreeSet<_>>()
        };
        for (what, same) in [
            ("claims", left.claims == found.claims),
            ("credentials", left.credentials == found.credentials),
            ("operations", left.operations == found.operations),
            ("overrides", overrides(left) == overrides(found)),
            ("approvals", left.approvals == found.approvals),
            ("incarnations", left.incarnations == found.incarnations),
            ("backoffs", left.backoffs == found.backoffs),
            ("pause", left.pause == found.pause),
            ("fuse", left.fuse == found.fuse),
            ("mode", left.mode == found.mode),
            ("work", left.work == found.work),
            ("snapshots", left.snapshots == found.snapshots),
            ("errands", left.errands == found.errands),
            ("tasks", tasks(left) == tasks(found)),
            ("file", left.file == found.file),
            ("fleet", left.fleet == found.fleet),
        ] {
            hold(same, || {
                format!("the {what} that life {} knew are not those that life {} found", left.life, found.life)
            })?;
        }
        Ok(())
    }
}

/// What follows from what is seen is written down, and then nothing more follows from it.
#[derive(Debug, Default)]
pub(super) struct APassComesToAnEnd {
    notes: u32,
}

impl Invariant for APassComesToAnEnd {
    invariant!(APassComesToAnEnd, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Acted { .. } => self.notes = 0,
            Deed::Recorded { by: By::Pass(_), .. } => self.notes += 1,
            // More was seen or said meanwhile.
            Deed::Recorded { .. } | Deed::Stored(_) | Deed::Began { .. } => self.notes = 0,
            _ => {}
        }
        hold(self.notes < 200, || "a pass writes again and again, and never acts".to_owned())
    }
}

/// Without drift a pass makes no call that changes anything.
#[derive(Debug, Default)]
pub(super) struct RestIsRest {
    resting: bool,
    /// Whether nobody wants anything that is not there.
    quiet: bool,
}

impl Invariant for RestIsRest {
    invariant!(RestIsRest, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Rest(Rest { inputs, plan, unfinished, .. }) => {
                // What ends by itself may end while somebody watches, and so may the time in which a
                // runtime can still join.
                let ends = inputs.overrides.iter().any(|it| it.expires_at.is_some())
                    || inputs.pause.iter().any(|pause| pause.expires_at.is_some())
                    || !inputs.errands.is_empty();
                let awaits = plan.agents.iter().any(|agent| agent.waits_for.contains(&WaitsFor::Runtime));
                let timed = plan.agents.iter().filter_map(|agent| agent.wanted.as_ref());
                let timed = timed
                    .map(|agent| &agent.spec)
                    .any(|spec| spec.idle.is_some() || spec.ttl.is_some() || !spec.snapshots.schedules.is_empty());
                let tasks = inputs.fleet.agents.values().flat_map(|agent| agent.spec.tasks.values());
                let recurs = tasks.map(|task| &task.when).any(|when| !matches!(when, TaskWhen::Once));
                self.quiet = !ends && !awaits && !recurs && unfinished.is_empty();
                self.resting = self.quiet && !timed && inputs.fleet.windows.is_empty();
                Ok(())
            }
            Deed::Called { action, agent, .. } => hold(!self.resting, || format!("a {action} of {agent}, at rest")),
            Deed::Recorded { by: By::Pass(_) | By::Step, changes, .. } if self.quiet => {
                let woken = changes.iter().find_map(|change| match change {
                    Change::Learnt(agent, learnt) if learnt.asleep == Some(false) => Some(agent),
                    _ => None,
                });
                hold(woken.is_none(), || format!("{woken:?} wakes, and nobody asked for it"))?;
                if !self.resting {
                    return Ok(());
                }
                let meant = |it: &&Change| !matches!(it, Change::Event(_) | Change::DropBackoff(_));
                let stray = changes.iter().find(meant);
                hold(stray.is_none(), || format!("something is written down at rest: {stray:?}"))
            }
            _ => Ok(()),
        }
    }
}

/// When nothing goes wrong any more, the fleet becomes as wanted, or every difference waits for a
/// person; and every task ends.
#[derive(Debug)]
pub(super) struct ItComesToRest;

impl Invariant for ItComesToRest {
    invariant!(ItComesToRest, LEVEL);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Rest(rest) = deed else { return Ok(()) };
        is_at_rest(rest)
    }
}

/// Whether nothing is left to be done but by people.
///
/// # Errors
/// With what is.
pub fn is_at_rest(rest: &Rest) -> Result<(), String> {
    let by_a_person = |agent: &AgentPlan| {
        let passes = agent.waits_for.iter().any(passes);
        !passes && agent.waits_for.iter().any(|reason| waits_for_a_person(reason, rest))
    };
    // The moment of a snapshot has just come, and a machine may be down for it.
    let in_a_moment = |name: &AgentName| {
        let moments = rest.inputs.claims.get(name).into_iter().flat_map(|claim| claim.history.schedules.values());
        moments.copied().any(|at| rest.inputs.now.duration_since(at) < SNAPSHOT_WITHIN)
    };
    for agent in rest.plan.agents.iter().filter(|agent| !in_a_moment(&agent.name)) {
        // A machine that is down, and that the file says to leave alone, has no runtime to be heard.
        let left_down = agent.observed.is_some_and(|state| state != InstanceState::Running)
            && agent.drift.iter().any(|drift| drift.class == DriftClass::Power && drift.policy != DriftPolicy::Correct);
        let waits = left_down || by_a_person(agent);
        // What the file says to leave alone is left alone.
        // A task that comes again and again may be under way: whether it ends is asked below.
        let at_work = agent.waits_for.iter().any(|reason| matches!(reason, WaitsFor::TaskRunning { .. }));
        let corrected = agent
            .drift
            .iter()
            .any(|drift| drift.policy == DriftPolicy::Correct && !(at_work && drift.class == DriftClass::Task));
        hold(!corrected || waits, || {
            format!("{} drifts ({:?}) and waits for {:?}", agent.name, agent.drift, agent.waits_for)
        })?;
    }
    let stray = rest.inputs.operations.values().find(|operation| !in_a_moment(&operation.agent));
    hold(stray.is_none(), || format!("under way: {stray:?}"))?;
    let can_work = |name: &AgentName| {
        let agent = rest.plan.agent(name);
        agent.is_some_and(|agent| agent.health == Health::Healthy && !by_a_person(agent))
    };
    rest.unfinished.iter().try_for_each(|task| {
        // What comes again and again may have come just now.
        let is_new = rest.inputs.now.duration_since(task.created_at) < TASK_WITHIN;
        let stuck = match (&task.agent, &task.pool) {
            (Some(name), _) => can_work(name),
            (None, Some(selector)) => rest.inputs.fleet.agents.iter().any(|(name, agent)| {
                let is_at_work = rest.unfinished.iter().any(|other| other.agent.as_ref() == Some(name));
                selector.matches(&agent.spec.labels) && can_work(name) && !is_at_work
            }),
            (None, None) => true,
        };
        hold(is_new || !stuck, || format!("a task never ends: {task:?}"))
    })?;
    let waiting = rest.waiting.iter().filter_map(|message| match &message.to {
        Address::Agent(name) => Some((name, message)),
        Address::Host | Address::Broadcast => None,
    });
    for (name, message) in waiting {
        let has_left = rest.plan.agent(name).is_none();
        hold(!has_left && !can_work(name), || format!("a message waits for ever: {message:?}"))?;
    }
    let unanswered = rest.unsent.iter().find(|name| can_work(name));
    hold(unanswered.is_none(), || format!("nobody says to {unanswered:?} what became of its message"))
}

/// Whether what is waited for comes by itself.
const fn passes(reason: &WaitsFor) -> bool {
    matches!(
        reason,
        WaitsFor::Backoff { .. }
            | WaitsFor::Driver { .. }
            | WaitsFor::Fuse
            | WaitsFor::Lane { .. }
            | WaitsFor::Operation { .. }
            | WaitsFor::Transition { .. }
            | WaitsFor::UnknownState
    )
}

fn waits_for_a_person(reason: &WaitsFor, rest: &Rest) -> bool {
    match reason {
        WaitsFor::Approval { .. }
        | WaitsFor::Paused { .. }
        | WaitsFor::Protected
        | WaitsFor::PruneNever
        | WaitsFor::ForeignInstance { .. }
        | WaitsFor::Tombstone { .. }
        | WaitsFor::Proof
        | WaitsFor::RestartPolicy
        | WaitsFor::NoDriver
        | WaitsFor::DriverMissing { .. }
        | WaitsFor::Unsupported { .. }
        | WaitsFor::Problem { .. }
        | WaitsFor::Capacity { .. }
        // It opens at its time, or never again.
        | WaitsFor::Window { .. }
        | WaitsFor::TaskFailed { .. } => true,
        WaitsFor::Dependency { agent, .. } => {
            // It may wait itself, or is meant to be down.
            let other = rest.plan.agent(agent);
            other.is_none_or(|other| {
                // It rests by what the file says: it is asleep, or past its age.
                other.rests.is_some() || other.wanted.as_ref().is_none_or(|it| it.spec.power == PowerState::Stopped)
                    || other.waits_for.iter().any(|reason| waits_for_a_person(reason, rest))
            })
        }
        _ => false,
    }
}

/// Every machine that was made for an agent has its claim.
#[derive(Debug)]
pub(super) struct NothingIsLeftBehind;

impl Invariant for NothingIsLeftBehind {
    invariant!(NothingIsLeftBehind, ACCIDENT);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Rest(Rest { inputs, machines, .. }) = deed else { return Ok(()) };
        let claimed = |nonce: &Nonce| inputs.claims.values().any(|claim| claim.nonce == *nonce);
        let orphan = machines.iter().find(|(_, nonce)| !claimed(nonce));
        hold(orphan.is_none(), || format!("a machine that nobody claims any more: {orphan:?}"))
    }
}
