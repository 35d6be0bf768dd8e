//! A pass: what the records should say that they don't say yet, and else what may begin.

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_plan::{Inputs, Mode, SetBack, Upkeep, after_failure, configuration_for, plan, upkeep, wake_at};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{DeclaredAgent, DriftPolicy};
use vm_agent_schemas::ids::TaskId;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Action;
use vm_agent_schemas::plan::{Fuse, Plan, Step, StepAction};
use vm_agent_schemas::task::{Task, TaskSource};

use super::job::{HubAddress, Unprepared, prepare};
use super::records::{Change, Records};
use super::{Effect, HubCall, Sequence, accept, errand, intent};

/// A pass is due after this even when nothing happens and time alone changes nothing: the net under
/// everything that should have told and did not.
pub const PASS_EVERY: Duration = Duration::from_secs(30);

/// What a pass comes to.
#[derive(Debug)]
pub enum Turn {
    /// The records should say this first; then look again. Writing takes time, in which more may be
    /// seen: a crash that came in meanwhile has to be noted before anything is done about it, or it
    /// would be mended without its pause.
    Note(Vec<Change>),
    /// The records say all that follows from what is seen, and this may begin.
    Act(Box<Act>),
}

/// What may begin, and what is known.
#[derive(Debug)]
pub struct Act {
    /// The plan.
    pub plan: Plan,
    /// What may begin. No sequence depends on another, but none begins after one that failed.
    pub sequences: Vec<Sequence>,
    /// When time alone may change the plan.
    pub wake_at: Option<Timestamp>,
    /// The fleet is down, and the controller is to follow. The next life begins with the fleet up, as
    /// whoever starts it wants it: [`at_rest`].
    pub down: bool,
}

/// What a pass comes to. `records` are those of now, which may be ahead of those of the inputs; `jitter`
/// gives numbers between 0 and 1, which spread what failed together.
pub fn turn(inputs: &Inputs, records: &Records, hub: &HubAddress, jitter: &mut dyn FnMut() -> f64) -> Turn {
    let plan = plan(inputs);
    let changes = keep_up(inputs, &plan, jitter);
    if !changes.is_empty() {
        return Turn::Note(changes);
    }
    let cordoned = plan.agents.iter().filter(|agent| agent.cordoned).map(|agent| agent.name.clone()).collect();
    let mut told = vec![Effect::Declare, Effect::Hub(HubCall::Cordon(cordoned))];
    told.extend(plan.agents.iter().filter_map(|agent| agent.moot).map(Effect::GiveUp));
    let mut sequences = vec![told, steps(&plan, inputs, records, hub, jitter)];
    sequences.extend(tasks(&plan, records, inputs.now));
    let (wake_at, down) = (wake_at(inputs), is_down(inputs, &plan));
    Turn::Act(Box::new(Act { plan, sequences, wake_at, down }))
}

/// What the last change of a life says that has taken the fleet down.
#[must_use]
pub const fn at_rest() -> Change {
    Change::Mode(Mode::Up)
}

fn is_down(inputs: &Inputs, planned: &Plan) -> bool {
    // Drift, not steps: a machine of which nothing is known has no step and may well run.
    let settled =
        planned.agents.iter().all(|agent| agent.drift.iter().all(|drift| drift.policy != DriftPolicy::Correct));
    inputs.mode != Mode::Up && settled && inputs.operations.is_empty()
}

/// The changes that bring the records up to what is.
fn keep_up(inputs: &Inputs, planned: &Plan, jitter: &mut dyn FnMut() -> f64) -> Vec<Change> {
    let mut changes = Vec::new();
    for item in upkeep(inputs, planned) {
        match item {
            Upkeep::EndOverride(entry, end) => changes.extend(intent::ended(&entry, end)),
            Upkeep::EndPause(pause) => {
                let message = format!("the pause of {} came to its time", pause.author);
                changes.push(Change::Pause(None));
                changes.push(Change::Event(NewEvent::fleet(EventKind::FleetResumed, message)));
            }
            Upkeep::Crashed(agent) => {
                let before = inputs.backoffs.get(&agent);
                let backoff =
                    after_failure(&agent, before, None, "its instance went down".into(), jitter(), inputs.now);
                changes.push(Change::Backoff(backoff));
                let message = "the instance went down, and nobody stopped it";
                changes.push(Change::Event(NewEvent::of(&agent, EventKind::InstanceFailed, message)));
            }
            Upkeep::Learnt(agent, learnt) => {
                changes.extend(sleep_event(&agent, learnt.asleep).map(Change::Event));
                changes.push(Change::Learnt(agent, learnt));
            }
            Upkeep::ForgetBackoff(agent) => changes.push(Change::DropBackoff(agent)),
            Upkeep::Interrupted(operation) => {
                let message = format!("{} was under way when the controller went down", operation.action);
                let event = NewEvent::of(&operation.agent, EventKind::StepInterrupted, message.clone());
                changes.extend([Change::Close(operation, message), Change::Event(event)]);
            }
            Upkeep::DropApproval(id) => changes.push(Change::DropApproval(id)),
            Upkeep::Ask(agent, claim, wish) => changes.push(errand::of_file(agent, claim, wish, inputs.now)),
            Upkeep::EndErrand(errand, end) => changes.extend(errand::ended(&errand, end, inputs.now)),
            Upkeep::SetBack(anew) => changes.push(match anew {
                SetBack::Backoff(backoff) => Change::Backoff(backoff),
                SetBack::Fuse(fuse) => Change::Fuse(fuse),
                SetBack::Override(entry) => Change::Override(entry),
                SetBack::Pause(pause) => Change::Pause(Some(pause)),
            }),
        }
    }
    changes.extend(fuse_changes(&inputs.fuse, &planned.fuse));
    changes
}

/// What there is to tell when an agent falls asleep, or wakes.
fn sleep_event(agent: &AgentName, asleep: Option<bool>) -> Option<NewEvent> {
    Some(match asleep? {
        true => {
            NewEvent::of(agent, EventKind::AgentAsleep, "it has nothing to do: its machine stops until there is work")
        }
        false => NewEvent::of(agent, EventKind::AgentAwake, "there is work for it: its machine starts"),
    })
}

fn fuse_changes(before: &Fuse, after: &Fuse) -> Vec<Change> {
    let event = match (before, after) {
        (Fuse::Closed { .. }, Fuse::Blown { failed, of, .. }) => NewEvent::fleet(
            EventKind::FuseBlown,
            format!("{failed} of {of} agents failed at once: nothing is changed until one step shows that all is well"),
        ),
        (Fuse::Blown { .. }, Fuse::Closed { .. }) => {
            NewEvent::fleet(EventKind::FuseClosed, "a step succeeded: the fleet is looked after again")
        }
        _ => return Vec::new(),
    };
    vec![Change::Fuse(after.clone()), Change::Event(event)]
}

/// Every step that may begin, but for tasks. What they need is durable before the first of them begins.
fn steps(
    planned: &Plan,
    inputs: &Inputs,
    records: &Records,
    hub: &HubAddress,
    jitter: &mut dyn FnMut() -> f64,
) -> Sequence {
    // What somebody asked of an agent that there is no more ends, and says so.
    let is_gone = |agent: &AgentName| {
        !inputs.claims.contains_key(agent) && planned.agent(agent).is_none_or(|it| it.wanted.is_none())
    };
    let orphaned = inputs.work.iter().filter(|agent| is_gone(agent));
    let mut first: Vec<Effect> = orphaned.cloned().map(HubCall::Revoke).map(Effect::Hub).collect();
    let (mut changes, mut jobs) = (Vec::new(), Vec::new());
    for step in planned.ready() {
        match (&step.action, step.action.on_instance()) {
            (_, Some(action)) => {
                let Some(view) = inputs.drivers.get(&step.driver) else { continue };
                match prepare(step, action, planned, records, view, hub, inputs.now) {
                    Ok((job, needed)) => {
                        changes.extend(needed);
                        jobs.push(job);
                    }
                    Err(why) => changes.extend(unprepared(step, &why, inputs, jitter())),
                }
            }
            (StepAction::Forget, _) => {
                // Before the claim goes: whatever hung on the machine ends while there is somebody to
                // end it.
                first.push(Effect::Hub(HubCall::Revoke(step.agent.clone())));
                changes.push(Change::Unclaim(step.agent.clone()));
                let message = "its claim is dropped: the instance is gone";
                changes.push(Change::Event(NewEvent::of(&step.agent, EventKind::StepSucceeded, message)));
            }
            (StepAction::Configure, _) => {
                let wanted = planned.agent(&step.agent).and_then(|agent| agent.wanted.as_ref());
                first.extend(wanted.map(|agent| configure(&step.agent, agent)));
            }
            (StepAction::Upgrade, _) => first.push(Effect::Upgrade(step.agent.clone(), step.driver)),
            (_, None) => {}
        }
    }
    let forgets = changes.iter().any(|change| matches!(change, Change::Unclaim(_)));
    let mut sequence = first;
    if !changes.is_empty() {
        sequence.push(Effect::Announce(changes, inputs.said));
    }
    if forgets {
        sequence.push(Effect::Wake);
    }
    for mut job in jobs {
        if job.operation.action == Action::Create {
            sequence.push(Effect::Hub(HubCall::Claimed(job.operation.agent.clone(), job.claim.id)));
        }
        sequence.extend(job.copied.take().map(HubCall::Unbind).map(Effect::Hub));
        let enroll = job.enroll.take();
        sequence.extend(
            enroll.map(|(credential, configuration)| Effect::Hub(HubCall::Enroll(Box::new(credential), configuration))),
        );
        sequence.push(Effect::Begin(Box::new(job)));
    }
    sequence
}

fn configure(name: &AgentName, agent: &DeclaredAgent) -> Effect {
    let (configuration, secrets) = (configuration_for(agent), &agent.spec.secrets);
    if secrets.is_empty() {
        Effect::Hub(HubCall::Configure(name.clone(), configuration))
    } else {
        Effect::Configure(name.clone(), Box::new(configuration), secrets.clone())
    }
}

/// A step that can't begin is a failure like others: it is told, and tried again after a pause.
fn unprepared(step: &Step, why: &Unprepared, inputs: &Inputs, jitter: f64) -> [Change; 2] {
    let message = format!("{} can't begin: {why}", step.action);
    let before = inputs.backoffs.get(&step.agent);
    let backoff = after_failure(&step.agent, before, None, message.clone(), jitter, inputs.now);
    [Change::Backoff(backoff), Change::Event(NewEvent::of(&step.agent, EventKind::StepFailed, message))]
}

/// The tasks of the file that are due, each to be accepted.
fn tasks<'a>(planned: &'a Plan, records: &'a Records, now: Timestamp) -> impl Iterator<Item = Sequence> + 'a {
    planned.ready().filter_map(move |step| {
        let StepAction::Task { task: name, due } = &step.action else { return None };
        let wanted = planned.agent(&step.agent).and_then(|agent| agent.wanted.as_ref());
        let spec = wanted.and_then(|agent| agent.spec.tasks.get(name))?;
        let claim = records.claims.get(&step.agent)?;
        let source = TaskSource::File { name: name.clone(), digest: spec.digest(), claim: claim.id, due: *due };
        let (agent, job, terms) = (step.agent.clone(), spec.job.clone(), spec.terms.clone());
        let task = Task::new(TaskId::generate(), Some(agent), source, job, terms, now);
        Some(accept(task, format!("task {name} of the file is queued")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use vm_agent_schemas::fleet::parse;

    #[test]
    fn work_of_an_agent_that_there_is_no_more_ends() {
        let records = Records::empty(parse("fleet.yaml", "agents: {web: {}}").unwrap());
        let inputs = Inputs {
            work: BTreeSet::from(["web".parse().unwrap(), "gone".parse().unwrap()]),
            ..records.inputs(Timestamp::UNIX_EPOCH)
        };
        let hub = HubAddress { url: String::new(), pin: None, loopback: None };
        let Turn::Act(act) = turn(&inputs, &records, &hub, &mut || 0.5) else { panic!("there is nothing to note") };
        let calls: Vec<&Effect> = act.sequences.iter().flatten().collect();
        let [Effect::Declare, Effect::Hub(HubCall::Cordon(_)), Effect::Hub(HubCall::Revoke(agent))] = calls.as_slice()
        else {
            panic!("{calls:?}");
        };
        assert_eq!(agent.as_str(), "gone");
    }
}
