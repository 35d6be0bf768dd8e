//! Rest: machines that are to be down although their agents' specs say that they should run, for want of
//! work or for their age.

use jiff::Timestamp;
use vm_agent_schemas::fleet::{DriftField, DriftPolicy, PowerState};
use vm_agent_schemas::plan::Rest;
use vm_agent_schemas::wire::ServiceReport;

use crate::clock::{after, counted_from};
use crate::inputs::SessionSeen;
use crate::situation::Situation;
use crate::standing::{Standing, standings};
use crate::table::{Link, Seen, Want};

/// A service that takes more of one processor than this, in percent, is at work. What only waits for
/// requests takes less.
const SERVICE_AT_WORK: f32 = 5.0;

/// Whether a service is at work.
#[must_use]
pub fn is_at_work(service: &ServiceReport) -> bool {
    service.cpu_percent > SERVICE_AT_WORK
}

/// Why the machine of an agent that should run is to be down; nothing when it is not. A person's word
/// counts for more.
pub(crate) fn rest_of(situation: &Situation<'_>) -> Option<Rest> {
    if !may_rest(situation) {
        return None;
    }
    if is_aged(situation) {
        return Some(Rest::Aged);
    }
    (sleeps(situation) && !has_task_due(situation)).then_some(Rest::Idle)
}

/// Whether the records should say that the agent sleeps; nothing when they stay as they are.
pub(crate) fn asleep(situation: &Situation<'_>) -> Option<bool> {
    if situation.want_of_spec() != Want::Running || is_gone(situation) {
        return None;
    }
    let was = situation.claim?.asleep;
    let is = match rest_of(situation) {
        Some(Rest::Aged) => was,
        // A task that is due makes it run. Once it is accepted it is under way, and ends the sleep: until
        // then the agent is asleep, and its tasks are accepted without its runtime.
        Some(Rest::Idle) | None => may_rest(situation) && sleeps(situation) && (was || !has_task_due(situation)),
    };
    (is != was).then_some(is)
}

/// When an agent may come to rest because time goes by.
pub(crate) fn turns<'a>(situation: Situation<'a>) -> impl Iterator<Item = Timestamp> + use<'a> {
    let spec = situation.wanted.map(|agent| &agent.spec);
    let ages =
        spec.and_then(|spec| spec.ttl).zip(situation.claim).map(|(ttl, claim)| after(claim.created_at, ttl.get()));
    let idle = spec.and_then(|spec| spec.idle).zip(situation.session);
    let sleeps = idle.map(|(idle, session)| after(counted_from(situation.inputs, session.active_at), idle.after.get()));
    let counts_otherwise = idle.map(|(_, session)| session.active_at);
    ages.into_iter().chain(sleeps).chain(counts_otherwise)
}

fn may_rest(situation: &Situation<'_>) -> bool {
    situation.want_of_spec() == Want::Running
        && situation.told != Some(PowerState::Running)
        && situation.claim.is_some()
        && !is_gone(situation)
}

/// Whether there is no machine that could rest: the next one begins awake, and young.
const fn is_gone(situation: &Situation<'_>) -> bool {
    matches!(situation.seen, Seen::Absent | Seen::Foreign | Seen::Deleted)
}

/// Whether its time to live is over, and nothing that runs in it stands against that.
fn is_aged(situation: &Situation<'_>) -> bool {
    let (Some(agent), Some(claim)) = (situation.wanted, situation.claim) else { return false };
    let over = |ttl| after(claim.created_at, ttl) <= situation.inputs.now;
    agent.spec.ttl.is_some_and(|ttl| over(ttl.get())) && !(situation.seen == Seen::Running && may_be_busy(situation))
}

/// Whether something runs in a machine that is up, or may run, as far as can be known.
fn may_be_busy(situation: &Situation<'_>) -> bool {
    is_occupied(situation)
        || match situation.link {
            // Nobody knows before its runtime is heard again.
            Link::Awaited => true,
            Link::Live => situation.session.is_some_and(|session| session.busy) || has_task_due(situation),
            Link::Lost | Link::Unjoined => false,
        }
}

/// Whether the agent sleeps for want of work, but for tasks that are due. While its runtime is heard that
/// alone tells; else it sleeps if it did. So it does while its machine is on its way down: whoever wakes it
/// then is not to be outvoted by a runtime that is about to go.
fn sleeps(situation: &Situation<'_>) -> bool {
    let (Some(agent), Some(claim)) = (situation.wanted, situation.claim) else { return false };
    let Some(idle) = agent.spec.idle else { return false };
    let heard = situation.session.filter(|_| situation.is_reachable() && situation.operation.is_none());
    let quiet = |session: &SessionSeen| {
        let since = counted_from(situation.inputs, session.active_at);
        !session.busy
            && !session.services.values().any(is_at_work)
            && after(since, idle.after.get()) <= situation.inputs.now
    };
    !is_occupied(situation) && heard.map_or(claim.asleep, quiet)
}

/// Whether there is work for the agent that was accepted and is not over.
pub(crate) fn is_occupied(situation: &Situation<'_>) -> bool {
    let present = |claim| situation.claim.is_some_and(|it| it.id == claim);
    situation.inputs.work.contains(situation.name)
        || situation.tasks.iter().any(|task| task.outcome.is_none() && present(task.claim))
}

/// Whether a task of the file should run now.
pub(crate) fn has_task_due(situation: &Situation<'_>) -> bool {
    situation.policy(DriftField::Tasks) == DriftPolicy::Correct
        && standings(situation).any(|(_, standing)| matches!(standing, Standing::Due(..)))
}
