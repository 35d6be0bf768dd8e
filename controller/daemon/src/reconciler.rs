//! The loop. A pass reads everything anew, plans from nothing, keeps the records up and begins what
//! may begin. What wakes it says only when to look: many wakings are one pass.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use vm_agent_plan::{Inputs, Listing, Mode, Upkeep, after_failure, configuration_for, plan, upkeep, wake_at};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::ids::{Nonce, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Action;
use vm_agent_schemas::plan::{Fuse, Plan, Step, StepAction};
use vm_agent_schemas::task::{Task, TaskSource, TaskState};
use vm_agent_schemas::wire::Run;
use vm_agent_store::StoreError;

use crate::core::Core;
use crate::engine::job::{Job, Unprepared, prepare, settle};
use crate::engine::records::Change;
use crate::observer::Observer;

/// A pass is due after this even when nothing happens and time alone changes nothing: the net under
/// everything that should have told and did not.
const PASS_EVERY: Duration = Duration::from_secs(30);

/// The pause after a pass that the store refused: a full disk does not become empty in a millisecond.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Runs passes until the controller goes down, or the fleet has.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let pause = match pass(&core).await {
            Ok(Next::At(at)) => wait_until(at),
            Ok(Next::Down) => {
                // The next life begins with the fleet up, as whoever starts it wants it.
                if let Err(error) = core.ledger.record(vec![Change::Mode(Mode::Up)], Timestamp::now()).await {
                    tracing::error!(error = %Chain(&error), "The end of going down could not be recorded");
                }
                core.stop.cancel();
                return;
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "A pass could not be recorded; trying again");
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = core.trigger.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = core.stop.cancelled() => return,
        }
    }
}

enum Next {
    /// Another pass is due then.
    At(Option<Timestamp>),
    /// The fleet is down, and the controller is to follow.
    Down,
}

fn wait_until(at: Option<Timestamp>) -> Duration {
    // What fell due during the pass is due now. Else a little late rather than a little early: early
    // would be a pass for nothing.
    let until = |at: Timestamp| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    at.map_or(PASS_EVERY, |at| (until(at) + Duration::from_millis(1)).min(PASS_EVERY))
}

async fn pass(core: &Arc<Core>) -> Result<Next, StoreError> {
    let begun = Instant::now();
    let (inputs, planned) = caught_up(core).await?;
    let now = inputs.now;
    let told = core.driver_events().into_iter().map(Change::Event).collect();
    core.ledger.record(told, now).await?;
    begin(core, &planned, &inputs, now).await?;
    let done = is_down(&inputs, &planned);
    let next = wake_at(&inputs);
    core.conditions.note(&planned, &core.observers, inputs.revision, now);
    core.metrics.pass(begun.elapsed());
    core.passes.fetch_add(1, Ordering::Relaxed);
    core.acted_on.store(inputs.revision.unwrap_or_default().0, Ordering::Relaxed);
    Ok(if done { Next::Down } else { Next::At(next) })
}

/// What is seen, once the records say all that follows from it, and the plan for it. Writing takes
/// time, in which more may be seen: a crash that came in meanwhile has to be noted before anything is
/// done about it, or it would be mended without its pause.
async fn caught_up(core: &Core) -> Result<(Inputs, Plan), StoreError> {
    loop {
        let inputs = core.inputs().await;
        let planned = plan(&inputs);
        let changes = keep_up(&inputs, &planned, inputs.now);
        if changes.is_empty() {
            return Ok((inputs, planned));
        }
        core.ledger.record(changes, inputs.now).await?;
    }
}

fn is_down(inputs: &Inputs, planned: &Plan) -> bool {
    // Drift, not steps: a machine of which nothing is known has no step and may well run.
    let settled = planned.agents.iter().all(|agent| agent.drift.is_empty());
    inputs.mode != Mode::Up && settled && inputs.operations.is_empty()
}

/// The changes that bring the records up to what is.
fn keep_up(inputs: &Inputs, planned: &Plan, now: Timestamp) -> Vec<Change> {
    let mut changes = Vec::new();
    for item in upkeep(inputs, planned) {
        match item {
            Upkeep::EndOverride(entry, end) => changes.extend(crate::engine::intent::ended(&entry, end)),
            Upkeep::EndPause(pause) => {
                let message = format!("the pause of {} came to its time", pause.author);
                changes.push(Change::Pause(None));
                changes.push(Change::Event(NewEvent::fleet(EventKind::FleetResumed, message)));
            }
            Upkeep::Crashed(agent) => {
                let before = inputs.backoffs.get(&agent);
                let backoff = after_failure(&agent, before, "its instance went down".into(), jitter(), now);
                changes.push(Change::Backoff(backoff));
                let message = "the instance went down, and nobody stopped it";
                changes.push(Change::Event(NewEvent::of(&agent, EventKind::InstanceFailed, message)));
            }
            Upkeep::Learnt(agent, learnt) => changes.push(Change::Learnt(agent, learnt)),
            Upkeep::ForgetBackoff(agent) => changes.push(Change::DropBackoff(agent)),
            Upkeep::Interrupted(operation) => {
                let message = format!("{} was under way when the controller went down", operation.action);
                let event = NewEvent::of(&operation.agent, EventKind::StepInterrupted, message.clone());
                changes.extend([Change::Close(operation, message), Change::Event(event)]);
            }
            Upkeep::DropApproval(id) => changes.push(Change::DropApproval(id)),
        }
    }
    changes.extend(fuse_changes(&inputs.fuse, &planned.fuse));
    changes
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

/// Begins every step that may begin.
async fn begin(core: &Arc<Core>, planned: &Plan, inputs: &Inputs, now: Timestamp) -> Result<(), StoreError> {
    let records = core.ledger.records();
    let mut changes = Vec::new();
    let mut jobs = Vec::new();
    for step in planned.ready() {
        match (&step.action, step.action.on_instance()) {
            (_, Some(action)) => {
                let Some(view) = inputs.drivers.get(&step.driver) else { continue };
                let prepared = prepare(step, action, planned, &records, &view.capabilities, &core.hub_address, now);
                match prepared {
                    Ok((job, needed)) => {
                        changes.extend(needed);
                        jobs.push(job);
                    }
                    Err(why) => changes.extend(unprepared(step, &why, inputs, now)),
                }
            }
            (StepAction::Forget, _) => {
                changes.push(Change::Unclaim(step.agent.clone()));
                let event =
                    NewEvent::of(&step.agent, EventKind::StepSucceeded, "its claim is dropped: the instance is gone");
                changes.push(Change::Event(event));
                core.hub.revoke(step.agent.clone());
                core.wake();
            }
            (StepAction::Configure, _) => configure(core, planned, step),
            (_, None) => {}
        }
    }
    core.ledger.record(changes, now).await?;
    for job in jobs {
        core.metrics.step_began();
        let core = Arc::clone(core);
        core.jobs.clone().spawn(async move { carry_out(&core, job).await });
    }
    accept_tasks(core, planned, &records.claims, now).await
}

/// A step that can't begin is a failure like others: it is told, and tried again after a pause.
fn unprepared(step: &Step, why: &Unprepared, inputs: &Inputs, now: Timestamp) -> [Change; 2] {
    let message = format!("{} can't begin: {why}", step.action);
    let before = inputs.backoffs.get(&step.agent);
    let backoff = after_failure(&step.agent, before, message.clone(), jitter(), now);
    [Change::Backoff(backoff), Change::Event(NewEvent::of(&step.agent, EventKind::StepFailed, message))]
}

fn configure(core: &Core, planned: &Plan, step: &Step) {
    if let Some(agent) = planned.agent(&step.agent).and_then(|agent| agent.wanted.as_ref()) {
        core.hub.configure(step.agent.clone(), configuration_for(agent));
    }
}

/// Carries a step out: from the driver's call to what is known of the instance afterwards.
async fn carry_out(core: &Arc<Core>, job: Job) {
    let Some(observer) = core.observers.get(&job.operation.driver) else { return };
    if let Some((credential, configuration)) = &job.enroll {
        core.hub.enroll(credential.clone(), configuration.clone());
    }
    let called = tokio::select! {
        called = job.call(observer.driver().as_ref()) => called,
        // The operation stays open: the next life finds it, and looks.
        () = core.stop.cancelled(), if job.operation.action != Action::Stop => return,
    };
    let listing = observer.fresh().await.and_then(|sight| sight.listing);
    let proved = prove(observer, &job, listing.as_ref()).await;
    loop {
        let now = Timestamp::now();
        let records = core.ledger.records();
        let before = records.backoffs.get(&job.operation.agent);
        let settled = settle(&job, &called, listing.as_ref(), proved.as_ref(), before, jitter(), now);
        if settled.revoke {
            // Before the claim goes: whatever hung on the machine ends while there is somebody to end it.
            core.hub.revoke(job.operation.agent.clone());
        }
        match core.ledger.record(settled.changes, now).await {
            Ok(()) => {
                if settled.succeeded && job.operation.action.brings_up() {
                    core.brought_up(job.operation.started_at);
                } else if !settled.succeeded {
                    core.metrics.step_failed();
                }
                break;
            }
            Err(error) => {
                tracing::error!(error = %Chain(&error), "A step's end could not be recorded; trying again");
                tokio::select! {
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                    () = core.stop.cancelled() => return,
                }
            }
        }
    }
    core.wake();
}

/// Reads the nonce back from a new instance whose listing does not show it.
async fn prove(observer: &Observer, job: &Job, listing: Option<&Listing>) -> Option<Nonce> {
    let Some(Listing::Seen(instances)) = listing else { return None };
    let observed = instances.get(&job.claim.instance)?;
    if job.operation.action != Action::Create || observed.instance.nonce.is_some() {
        return None;
    }
    let limit = observer.driver().capabilities().deadlines.list.get();
    tokio::time::timeout(limit, observer.driver().prove(&job.claim.instance)).await.ok()?.ok().flatten()
}

/// Accepts the tasks of the file that are due, and hands them to the hub.
async fn accept_tasks(
    core: &Arc<Core>,
    planned: &Plan,
    claims: &BTreeMap<AgentName, vm_agent_schemas::observe::Claim>,
    now: Timestamp,
) -> Result<(), StoreError> {
    for step in planned.ready() {
        let StepAction::Task { task: name } = &step.action else { continue };
        let wanted = planned.agent(&step.agent).and_then(|agent| agent.wanted.as_ref());
        let spec = wanted.and_then(|agent| agent.spec.tasks.get(name));
        let (Some(spec), Some(claim)) = (spec, claims.get(&step.agent)) else { continue };
        let task = Task {
            id: TaskId::generate(),
            agent: step.agent.clone(),
            source: TaskSource::File { name: name.clone(), digest: spec.digest(), claim: claim.id },
            run: Run { argv: spec.exec.argv(), env: spec.env.clone(), cwd: spec.cwd.clone() },
            timeout: spec.timeout,
            attempt: 1,
            state: TaskState::Queued,
            created_at: now,
            started_at: None,
            ended_at: None,
            output: String::new(),
        };
        accept_task(core, task, format!("task {name} of the file is queued"), now).await?;
    }
    Ok(())
}

/// Accepts one task: durable first, then on its way.
pub(crate) async fn accept_task(core: &Core, task: Task, message: String, now: Timestamp) -> Result<(), StoreError> {
    let event = NewEvent::of(&task.agent, EventKind::TaskAccepted, message);
    let changes = vec![Change::Task(Box::new(task.clone())), Change::Event(event)];
    match core.ledger.record(changes, now).await {
        Ok(()) => {
            core.hub.submit(task);
            core.wake();
            Ok(())
        }
        // Accepted before, in a pass whose memory did not learn of it.
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A number between 0 and 1 that differs from time to time, to spread what failed together.
fn jitter() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() >> 96;
    bits as f64 / f64::from(u32::MAX)
}

/// An error with its causes, on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn std::error::Error + 'a));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
