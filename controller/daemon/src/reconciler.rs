//! The loop. A pass reads everything anew and lets the [engine](crate::engine) decide; here it is
//! carried out. What wakes it says only when to look: many wakings are one pass.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use vm_agent_drivers::{Driver, DriverError};
use vm_agent_hub::HubHandle;
use vm_agent_plan::Listing;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Action;
use vm_agent_store::StoreError;

use crate::configuring::configure;
use crate::core::Core;
use crate::engine::job::{Called, Job, Work, settle};
use crate::engine::pass::{Act, PASS_EVERY, Turn, at_rest, turn};
use crate::engine::records::Change;
use crate::engine::{Effect, HubCall, Sequence};
use crate::observer::Observer;
use crate::upgrading::upgrade;

/// The pause after a pass that the store refused: a full disk does not become empty in a millisecond.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How much longer than a look at the fleet took the loop rests before one for what happens all the time, and how
/// long at most: a look takes the longer the larger the fleet is, and must leave the processors to what happens.
const REST: u32 = 49;
const REST_MAX: Duration = Duration::from_secs(1);

/// Runs passes until the controller goes down, or the fleet has.
pub(crate) async fn run(core: Arc<Core>) {
    loop {
        let mut looked = Duration::ZERO;
        let pause = match pass(&core, &mut looked).await {
            Ok(act) if act.down => {
                if let Err(error) = core.ledger.record(vec![at_rest()], Timestamp::now()).await {
                    tracing::error!(error = %Chain(&error), "The end of going down could not be recorded");
                }
                core.stop.cancel();
                return;
            }
            Ok(act) => wait_until(act.wake_at),
            Err(error) => {
                tracing::error!(error = %Chain(&error), "A pass could not be recorded; trying again");
                STORE_PAUSE
            }
        };
        let rested = async {
            tokio::time::sleep((looked * REST).min(REST_MAX)).await;
            core.nudged.notified().await;
        };
        tokio::select! {
            () = core.trigger.notified() => {}
            () = rested => {}
            () = tokio::time::sleep(pause) => {}
            () = core.stop.cancelled() => return,
        }
    }
}

fn wait_until(at: Option<Timestamp>) -> Duration {
    // What fell due during the pass is due now. Else a little late rather than a little early: early
    // would be a pass for nothing.
    let until = |at: Timestamp| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
    at.map_or(PASS_EVERY, |at| (until(at) + Duration::from_millis(1)).min(PASS_EVERY))
}

/// A pass, and how much of its time it looked at the fleet rather than waited for the disk.
async fn pass(core: &Arc<Core>, looked: &mut Duration) -> Result<Box<Act>, StoreError> {
    let begun = Instant::now();
    'anew: loop {
        let looking = Instant::now();
        let inputs = core.inputs().await;
        let now = inputs.now;
        // Not among what must answer at once: for a large fleet it takes milliseconds.
        let decider = Arc::clone(core);
        let decide = move || {
            let turn = turn(&inputs, &decider.ledger.records(), &decider.hub_address, &mut jitter);
            (inputs, turn)
        };
        let decided = tokio::task::spawn_blocking(decide).await;
        let (inputs, turn) = decided.unwrap_or_else(|ended| std::panic::resume_unwind(ended.into_panic()));
        *looked += looking.elapsed();
        let mut act = match turn {
            Turn::Act(act) => act,
            Turn::Note(changes) => {
                // What people said meanwhile is not to be undone by what followed from before. Either way it
                // is looked at again.
                core.ledger.announce(changes, inputs.said, now).await?;
                continue;
            }
        };
        let upgraded = core.upgrading.upgraded(&inputs.sessions).into_iter().map(Change::Event);
        core.ledger.record(driver_events(core).into_iter().chain(upgraded).collect(), now).await?;
        for sequence in std::mem::take(&mut act.sequences) {
            if carry_out(core, sequence, now).await? == Carried::Overtaken {
                continue 'anew;
            }
        }
        let messages = |agent: &AgentName| core.memory().messages_waiting(agent);
        core.verifying.retain(|agent| act.plan.agent(agent).is_some());
        let isolation = |agent: &AgentName| core.verifying.fact(agent);
        core.conditions.note(&act.plan, &core.observers, messages, isolation, inputs.revision, now);
        core.metrics.pass(begun.elapsed());
        core.passes.fetch_add(1, Ordering::Relaxed);
        core.acted_on.store(inputs.revision.unwrap_or_default().0, Ordering::Relaxed);
        return Ok(act);
    }
}

fn driver_events(core: &Core) -> Vec<Change> {
    let sights: Vec<_> = core.observers.iter().map(|(name, observer)| (*name, observer.sight())).collect();
    let listings = sights.iter().map(|(name, sight)| (*name, sight.listing.as_ref()));
    let mut memory = core.memory();
    let events = memory.driver_events(listings);
    events.into_iter().chain(memory.clock_event()).map(Change::Event).collect()
}

/// What became of a sequence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// All of it is done.
    Out,
    /// People have said something meanwhile: it is to be decided anew.
    Overtaken,
}

/// Carries effects out in order.
///
/// # Errors
/// When the store fails; then nothing after that is done.
pub(crate) async fn carry_out(core: &Arc<Core>, sequence: Sequence, now: Timestamp) -> Result<Carried, StoreError> {
    for effect in sequence {
        match effect {
            Effect::Record(changes) => core.ledger.record(changes, now).await?,
            Effect::Announce(changes, said) => {
                if !core.ledger.announce(changes, said, now).await? {
                    return Ok(Carried::Overtaken);
                }
            }
            Effect::Accept(changes) => {
                let tasks = changes.iter().filter(|change| matches!(change, Change::Task(_))).count();
                match core.ledger.record(changes, now).await {
                    // In a pass whose memory did not learn of it.
                    Err(StoreError::AlreadyExists { .. }) => return Ok(Carried::Out),
                    recorded => recorded?,
                }
                core.metrics.tasks_accepted(tasks);
            }
            Effect::Hub(call) => tell(&core.hub, call),
            Effect::Declare => core.declare(),
            Effect::Configure(agent, configuration, secrets) => {
                core.jobs.spawn(core.stop.clone().run_until_cancelled_owned(configure(
                    Arc::clone(core),
                    agent,
                    *configuration,
                    secrets,
                )));
            }
            Effect::Upgrade(agent, driver) => {
                let upgrading = upgrade(Arc::clone(core), agent, driver);
                core.jobs.spawn(core.stop.clone().run_until_cancelled_owned(upgrading));
            }
            Effect::Begin(job) => {
                core.metrics.step_began();
                let (core, step) = (Arc::clone(core), job.operation.id);
                let given_up = core.under_way.begin(step);
                core.jobs.clone().spawn(async move {
                    carry_out_job(Arc::clone(&core), job, given_up).await;
                    core.under_way.end(step);
                });
            }
            Effect::GiveUp(step) => core.under_way.give_up(step),
            Effect::BroughtUp(began) => core.memory().brought_up(began),
            Effect::Wake => core.wake(),
            Effect::Nudge => core.nudge(),
        }
    }
    Ok(Carried::Out)
}

/// Tells the hub.
pub(crate) fn tell(hub: &HubHandle, call: HubCall) {
    match call {
        HubCall::Enroll(credential, configuration) => hub.enroll(*credential, configuration),
        HubCall::Claimed(agent, claim) => hub.claimed(agent, claim),
        HubCall::Revoke(agent) => hub.revoke(agent),
        HubCall::Unbind(agent) => hub.unbind(agent),
        HubCall::Configure(agent, configuration) => hub.configure(agent, configuration),
        HubCall::Directory(directory) => hub.directory(directory),
        HubCall::Submit(task, known) => hub.submit(*task, known),
        HubCall::Cancel(task, by) => hub.cancel(task, by),
        HubCall::Restore(message) => hub.restore(*message),
        HubCall::Cordon(agents) => hub.cordon(agents),
    }
}

/// Carries a step out: from the driver's call to what is known of the instance afterwards.
fn carry_out_job(core: Arc<Core>, job: Box<Job>, given_up: CancellationToken) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let Some(observer) = core.observers.get(&job.operation.driver) else { return };
        let called = tokio::select! {
            called = call(&job, observer.driver().as_ref()) => called,
            () = given_up.cancelled() => Called::GivenUp,
            // The operation stays open: the next life finds it, and looks.
            () = core.stop.cancelled(), if job.operation.action != Action::Stop => return,
        };
        let sight = observer.fresh().await;
        let listing = sight.as_ref().and_then(|sight| sight.listing.as_ref());
        let proved = prove(observer, &job, listing).await;
        loop {
            let now = Timestamp::now();
            // Not kept while it is recorded: each of many jobs that end at once would keep all records of its moment.
            let before = core.ledger.look(|records| records.backoffs.get(&job.operation.agent).cloned());
            let settled = settle(&job, &called, listing, proved.as_ref(), before.as_ref(), jitter(), now);
            let succeeded = settled.succeeded;
            let Err(error) = carry_out(&core, settled.into_effects(&job), now).await else {
                if !succeeded {
                    core.metrics.step_failed();
                }
                return;
            };
            tracing::error!(error = %Chain(&error), "A step's end could not be recorded; trying again");
            tokio::select! {
                () = tokio::time::sleep(STORE_PAUSE) => {}
                () = core.stop.cancelled() => return,
            }
        }
    })
}

/// Calls the driver, for as long as the step may take.
async fn call(job: &Job, driver: &dyn Driver) -> Called {
    if job.is_late(Timestamp::now()) {
        return Called::TimedOut(job.deadline);
    }
    let target = job.target();
    let call = std::panic::AssertUnwindSafe(async {
        match &job.work {
            Work::Create(order) => driver.create(order).await,
            Work::Start(seed, mounts) => driver.start(&target, seed, mounts).await,
            Work::Stop => driver.stop(&target).await,
            Work::Resize(sizes) => driver.resize(&target, sizes).await,
            Work::Snapshot(name) => driver.snapshot(&target, name).await,
            Work::DeleteSnapshot(name) => driver.delete_snapshot(&target, name).await,
            Work::Restore(name, seed, Some(mounts)) => driver.restore(&target, name, seed, mounts).await,
            Work::Restore(name, seed, None) => driver.go_back(&target, name, seed).await,
            Work::Suspend => driver.suspend(&target).await,
            Work::Destroy => driver.destroy(&target).await,
        }
    });
    // A driver that panics has failed; the instance is looked at as after any failure.
    match tokio::time::timeout(job.deadline, call.catch_unwind()).await {
        Ok(Ok(Ok(()))) => Called::Done,
        Ok(Ok(Err(error))) => Called::Failed(error),
        Ok(Err(_)) => Called::Failed(DriverError::Failed {
            action: job.operation.action.as_str(),
            instance: job.claim.instance.clone(),
            reason: "the driver panicked".to_owned(),
        }),
        Err(_) => Called::TimedOut(job.deadline),
    }
}

/// Reads the nonce back from a new instance whose listing does not show it.
async fn prove(observer: &Observer, job: &Job, listing: Option<&Listing>) -> Option<Nonce> {
    if !job.asks_for_proof(listing) {
        return None;
    }
    let limit = observer.driver().capabilities().deadlines.list.get();
    tokio::time::timeout(limit, observer.driver().prove(&job.claim.instance)).await.ok()?.ok().flatten()
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
