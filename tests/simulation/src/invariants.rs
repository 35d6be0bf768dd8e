//! What must always hold, each with the promise of which it is a part. Every invariant sees every deed,
//! judges by its own lights and not by the product's, and remembers what it needs. A new one is a type
//! and a line in [`all`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use vm_agent_daemon::engine::records::{Change, Records};
use vm_agent_hub::Record;
use vm_agent_plan::{Inputs, Listing, Mode, effective};
use vm_agent_schemas::fleet::{PowerState, Prune, Reconcile};
use vm_agent_schemas::ids::{Boot, ClaimId, Digest, Epoch, Incarnation, Nonce, OperationId, TaskId};
use vm_agent_schemas::intent::{Change as Said, Presence};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Instance, InstanceState, Operation, Proof};
use vm_agent_schemas::plan::{AgentPlan, Health, WaitsFor};
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::TaskRef;

use crate::deed::{By, Deed, Rest};

/// Something that must always hold.
pub trait Invariant {
    /// Its name.
    fn name(&self) -> &'static str;
    /// The promise of DESIGN.md, section 3, of which it is a part.
    fn promise(&self) -> u8;
    /// Judges a deed.
    ///
    /// # Errors
    /// With what was wrong with it.
    fn see(&mut self, deed: &Deed) -> Result<(), String>;
}

/// A promise that was broken.
#[derive(Debug, Clone)]
pub struct Broken {
    /// What did not hold.
    pub invariant: &'static str,
    /// Which promise.
    pub promise: u8,
    /// How.
    pub how: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (promise {}): {}", self.invariant, self.promise, self.how)
    }
}

/// Every invariant.
#[must_use]
pub fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(ClaimsComeFirst::default()),
        Box::new(NothingGoesByAccident::default()),
        Box::new(NothingForeignIsTouched),
        Box::new(AnAgentHasOneMachine),
        Box::new(WhatIsRecordedIsNotForgotten),
        Box::new(APassComesToAnEnd::default()),
        Box::new(RestIsRest::default()),
        Box::new(ItComesToRest),
        Box::new(NothingIsLeftBehind),
        Box::new(IgnoranceActsOnNothing),
        Box::new(OverridesWinAndEnd),
        Box::new(TasksEndOnce::default()),
        Box::new(TasksRunOnce::default()),
        Box::new(OnlyTheNewestSpeaks::default()),
        Box::new(IncarnationsAreNew::default()),
        Box::new(StepsAreAnnounced),
        Box::new(OneStepAtATime::default()),
        Box::new(LanesAreKept),
        Box::new(PausesAreRespected),
        Box::new(BackoffsAreKept),
        Box::new(TheFuseHolds),
        Box::new(DependenciesComeFirst),
    ]
}

macro_rules! invariant {
    ($name:ident, $promise:literal) => {
        fn name(&self) -> &'static str {
            stringify!($name)
        }
        fn promise(&self) -> u8 {
            $promise
        }
    };
}

fn hold(holds: bool, how: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(how()) }
}

/// The steps that a pass has just announced, with what it had seen and the records as they are now.
fn opened(deed: &Deed) -> Vec<(&Operation, &Inputs, &Records)> {
    match deed {
        Deed::Recorded { by: By::Pass(inputs), after, changes, .. } => {
            let open = changes.iter().filter_map(|change| match change {
                Change::Open(operation) => Some((operation, &**inputs, &**after)),
                _ => None,
            });
            open.collect()
        }
        _ => Vec::new(),
    }
}

/// What a listing shows of the instance of an agent that is claimed.
fn shown<'a>(inputs: &'a Inputs, records: &Records, agent: &AgentName) -> Option<&'a Instance> {
    let claim = records.claims.get(agent)?;
    let Listing::Seen(instances) = &inputs.drivers.get(&claim.driver)?.listing else { return None };
    instances.get(&claim.instance).map(|observed| &observed.instance)
}

/// A claim is written before a launch.
#[derive(Debug, Default)]
struct ClaimsComeFirst {
    claimed: BTreeSet<Nonce>,
}

impl Invariant for ClaimsComeFirst {
    invariant!(ClaimsComeFirst, 1);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Recorded { changes, .. } => {
                let claims = changes.iter().filter_map(|change| match change {
                    Change::Claim(claim) => Some(claim.nonce.clone()),
                    _ => None,
                });
                self.claimed.extend(claims);
                Ok(())
            }
            Deed::Called { agent, instance, nonce, action, records, .. } => {
                let claim = records.claims.get(agent);
                let fits = claim.is_some_and(|claim| claim.nonce == *nonce && claim.instance == *instance);
                hold(fits, || format!("a {action} of {instance} rests on no claim"))
            }
            Deed::Made { instance, nonce, .. } => {
                hold(self.claimed.contains(nonce), || format!("{instance} was made, and never claimed"))
            }
            _ => Ok(()),
        }
    }
}

/// What a person said yes to.
#[derive(Debug)]
struct Yes {
    agent: AgentName,
    claim: Option<ClaimId>,
    /// Whether it was a replacement and not a removal.
    replace: bool,
}

/// A machine is deleted only on proof, when nothing protects it, and when somebody wants that.
#[derive(Debug, Default)]
struct NothingGoesByAccident {
    yes: BTreeMap<Digest, Yes>,
}

impl NothingGoesByAccident {
    fn judge(&self, operation: &Operation, inputs: &Inputs, records: &Records) -> Result<(), String> {
        let agent = &operation.agent;
        let Some(claim) = records.claims.get(agent) else { return Err(format!("{agent} is not claimed")) };
        let declared = records.fleet.agents.get(agent);
        let protected = claim.protect || declared.is_some_and(|it| it.spec.protect);
        hold(!protected, || format!("{agent} is protected"))?;
        let read_back = shown(inputs, records, agent).and_then(|it| it.nonce.as_ref()) == Some(&claim.nonce);
        let proven = match claim.proof {
            Proof::Pending => false,
            Proof::Watched { life } => life == records.life,
            Proof::Confirmed => true,
        };
        hold(read_back || proven, || format!("nothing proves that the instance of {agent} is ours"))?;
        let wanted = effective(&records.fleet, &records.overrides, inputs.now).wanted;
        if told(records, agent) {
            return Ok(());
        }
        let yes = |replace: bool| {
            let granted = records.approvals.keys().filter_map(|id| self.yes.get(id));
            granted.into_iter().any(|yes| yes.agent == *agent && yes.claim == Some(claim.id) && yes.replace == replace)
        };
        if wanted.contains_key(agent) {
            return hold(yes(true), || format!("nobody said that {agent} may be made anew"));
        }
        match records.fleet.prune {
            Prune::Never => Err(format!("{agent} is deleted under `prune: never`")),
            Prune::Confirm => hold(yes(false), || format!("nobody said that {agent} may go")),
            Prune::Auto => {
                let leaving = records.claims.keys().filter(|it| {
                    let there = shown(inputs, records, it).is_some();
                    !wanted.contains_key(*it) && !told(records, it) && there
                });
                let leaving = leaving.count();
                let mass = leaving > 2 && leaving * 100 > records.claims.len() * 30;
                hold(yes(false) || !(mass || claim.left_in_mass), || format!("{leaving} agents go at once, unasked"))
            }
        }
    }
}

/// Whether a person said that this very agent should go.
fn told(records: &Records, agent: &AgentName) -> bool {
    let absent = |change: &Said| matches!(change, Said::Presence(Presence::Absent));
    records.mode == Mode::Destroy || records.overrides.iter().any(|it| it.agent == *agent && absent(&it.change))
}

impl Invariant for NothingGoesByAccident {
    invariant!(NothingGoesByAccident, 1);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        if let Deed::Approved { request, records } = deed {
            let claim = records.claims.get(&request.agent).map(|claim| claim.id);
            let replace = request.what.contains("make it anew");
            self.yes.insert(request.id.clone(), Yes { agent: request.agent.clone(), claim, replace });
        }
        let mut destroys = opened(deed).into_iter().filter(|(operation, ..)| operation.action == Action::Destroy);
        destroys.try_for_each(|(operation, inputs, records)| self.judge(operation, inputs, records))
    }
}

/// No step is made on an instance that is seen to be somebody else's.
#[derive(Debug)]
struct NothingForeignIsTouched;

impl Invariant for NothingForeignIsTouched {
    invariant!(NothingForeignIsTouched, 1);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let Some(claim) = records.claims.get(&operation.agent) else { return Err("a step without a claim".into()) };
            let nonce = shown(inputs, records, &operation.agent).and_then(|it| it.nonce.as_ref());
            let foreign = nonce.is_some_and(|nonce| *nonce != claim.nonce);
            hold(!foreign, || format!("a {} of {}, which is not ours", operation.action, claim.instance))
        })
    }
}

/// There are never two machines for one agent.
#[derive(Debug)]
struct AnAgentHasOneMachine;

impl Invariant for AnAgentHasOneMachine {
    invariant!(AnAgentHasOneMachine, 2);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Made { agent, others, .. } = deed else { return Ok(()) };
        hold(others.is_empty(), || format!("{agent} has a machine already, of {others:?}"))
    }
}

/// A life finds all that the one before it knew.
#[derive(Debug)]
struct WhatIsRecordedIsNotForgotten;

impl Invariant for WhatIsRecordedIsNotForgotten {
    invariant!(WhatIsRecordedIsNotForgotten, 2);
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
struct APassComesToAnEnd {
    notes: u32,
}

impl Invariant for APassComesToAnEnd {
    invariant!(APassComesToAnEnd, 2);
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
struct RestIsRest {
    resting: bool,
}

impl Invariant for RestIsRest {
    invariant!(RestIsRest, 2);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Rest(Rest { inputs, .. }) => {
                // What ends by itself may end while somebody watches.
                let ends = inputs.overrides.iter().any(|it| it.expires_at.is_some());
                self.resting = !ends && inputs.pause.as_ref().is_none_or(|pause| pause.expires_at.is_none());
                Ok(())
            }
            Deed::Called { action, agent, .. } => hold(!self.resting, || format!("a {action} of {agent}, at rest")),
            Deed::Recorded { by: By::Pass(_) | By::Step, changes, .. } if self.resting => {
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
struct ItComesToRest;

impl Invariant for ItComesToRest {
    invariant!(ItComesToRest, 2);
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
    for agent in &rest.plan.agents {
        let waits = by_a_person(agent);
        hold(agent.drift.is_empty() || waits, || {
            format!("{} drifts ({:?}) and waits for {:?}", agent.name, agent.drift, agent.waits_for)
        })?;
    }
    hold(rest.inputs.operations.is_empty(), || format!("under way: {:?}", rest.inputs.operations))?;
    rest.unfinished.iter().try_for_each(|name| {
        let agent = rest.plan.agent(name);
        let waits = agent.is_some_and(|agent| agent.health != Health::Healthy || by_a_person(agent));
        hold(waits, || format!("a task of {name} never ends: {agent:?}"))
    })
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
        | WaitsFor::TaskFailed { .. } => true,
        WaitsFor::Dependency { agent, .. } => {
            // It may wait itself, or is meant to be down.
            let other = rest.plan.agent(agent);
            other.is_none_or(|other| {
                other.wanted.as_ref().is_none_or(|it| it.spec.power == PowerState::Stopped)
                    || other.waits_for.iter().any(|reason| waits_for_a_person(reason, rest))
            })
        }
        _ => false,
    }
}

/// Every machine that was made for an agent has its claim.
#[derive(Debug)]
struct NothingIsLeftBehind;

impl Invariant for NothingIsLeftBehind {
    invariant!(NothingIsLeftBehind, 1);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Rest(Rest { inputs, machines, .. }) = deed else { return Ok(()) };
        let claimed = |nonce: &Nonce| inputs.claims.values().any(|claim| claim.nonce == *nonce);
        let orphan = machines.iter().find(|(_, nonce)| !claimed(nonce));
        hold(orphan.is_none(), || format!("a machine that nobody claims any more: {orphan:?}"))
    }
}

/// A driver that does not answer, or does not know, gives nothing to act on.
#[derive(Debug)]
struct IgnoranceActsOnNothing;

impl Invariant for IgnoranceActsOnNothing {
    invariant!(IgnoranceActsOnNothing, 4);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        if let Deed::Recorded { by: By::Pass(inputs), before, changes, .. } = deed {
            for change in changes.iter() {
                let Change::Unclaim(agent) = change else { continue };
                let Some(claim) = before.claims.get(agent) else { continue };
                let view = inputs.drivers.get(&claim.driver);
                let seen = view.is_some_and(|view| matches!(view.listing, Listing::Seen(_)));
                hold(seen, || format!("the claim of {agent} is dropped though its driver does not answer"))?;
            }
        }
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let Operation { agent, action, driver, .. } = operation;
            let Some(Listing::Seen(instances)) = inputs.drivers.get(driver).map(|view| &view.listing) else {
                return Err(format!("a {action} of {agent}, and {driver} does not answer"));
            };
            let Some(claim) = records.claims.get(agent) else { return Ok(()) };
            let seen = instances.get(&claim.instance);
            if *action == Action::Create {
                // What an earlier create left half made is finished by another.
                let free = seen.is_none() || claim.proof == Proof::Pending;
                return hold(free, || format!("a create of {agent}, which is there"));
            }
            let known = seen.is_some_and(|it| it.instance.state != InstanceState::Unknown);
            hold(known, || format!("a {action} of {agent}, of which nothing is known"))
        })
    }
}

/// An override holds until it is cleared, expires or is superseded, and not longer.
#[derive(Debug)]
struct OverridesWinAndEnd;

impl OverridesWinAndEnd {
    /// Why an override holds no more, if so.
    fn over(entry: &vm_agent_schemas::intent::Override, inputs: &Inputs) -> bool {
        let declared = inputs.fleet.agents.get(&entry.agent);
        let superseded = match &entry.change {
            Said::Power { covers, .. } => declared.is_some_and(|it| it.spec.power != *covers),
            Said::Reconcile { covers, .. } => declared.is_some_and(|it| it.spec.reconcile != *covers),
            Said::Presence(Presence::Present(_)) => declared.is_some(),
            Said::Presence(Presence::Absent) => declared.is_none() && !inputs.claims.contains_key(&entry.agent),
        };
        superseded || entry.expires_at.is_some_and(|end| end <= inputs.now)
    }
}

impl Invariant for OverridesWinAndEnd {
    invariant!(OverridesWinAndEnd, 5);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Acted { inputs, plan } => inputs.overrides.iter().try_for_each(|entry| {
                let agent = &entry.agent;
                hold(!Self::over(entry, inputs), || format!("an override of {agent} is over, and still there"))?;
                let wanted = plan.agent(agent).and_then(|it| it.wanted.as_ref());
                let wins = match &entry.change {
                    Said::Power { wanted: power, .. } => wanted.is_none_or(|it| it.spec.power == *power),
                    Said::Reconcile { wanted: mode, .. } => wanted.is_none_or(|it| it.spec.reconcile == *mode),
                    Said::Presence(Presence::Present(_)) => wanted.is_some(),
                    Said::Presence(Presence::Absent) => wanted.is_none(),
                };
                hold(wins, || format!("an override of {agent} does not win: {:?}", entry.change))
            }),
            Deed::Recorded { by, before, changes, .. } if !matches!(by, By::Person) => {
                changes.iter().try_for_each(|change| {
                    let Change::DropOverride(agent, path) = change else { return Ok(()) };
                    let entry = before.overrides.iter().find(|it| it.agent == *agent && it.change.path() == *path);
                    let ended = match (by, entry) {
                        (_, None) => true,
                        (By::Pass(inputs), Some(entry)) => Self::over(entry, inputs),
                        _ => false,
                    };
                    hold(ended, || format!("the override of {path:?} of {agent} was dropped before its end"))
                })
            }
            _ => Ok(()),
        }
    }
}

/// A task that has ended never changes again.
#[derive(Debug, Default)]
struct TasksEndOnce {
    ended: BTreeMap<TaskId, Task>,
}

impl Invariant for TasksEndOnce {
    invariant!(TasksEndOnce, 6);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Stored(records) = deed else { return Ok(()) };
        for record in records {
            let Record::Task(task) = record else { continue };
            if let Some(before) = self.ended.get(&task.id) {
                hold(before == task, || format!("an ended task of {} changed", task.agent))?;
            } else if task.outcome().is_some() {
                self.ended.insert(task.id, task.clone());
            }
        }
        Ok(())
    }
}

/// No attempt of a task runs twice, wherever.
#[derive(Debug, Default)]
struct TasksRunOnce {
    ran: BTreeSet<TaskRef>,
}

impl Invariant for TasksRunOnce {
    invariant!(TasksRunOnce, 6);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Ran(task) = deed else { return Ok(()) };
        hold(self.ran.insert(*task), || "a task runs a second time".to_owned())
    }
}

/// Each session fences all before it, and no earlier life of machine or runtime is let in again.
#[derive(Debug, Default)]
struct OnlyTheNewestSpeaks {
    latest: BTreeMap<AgentName, (Incarnation, Boot, Epoch)>,
}

impl Invariant for OnlyTheNewestSpeaks {
    invariant!(OnlyTheNewestSpeaks, 6);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Welcomed { agent, incarnation, boot, epoch, .. } = deed else { return Ok(()) };
        let now = (*incarnation, *boot, *epoch);
        if let Some((of, start, latest)) = self.latest.insert(agent.clone(), now) {
            // A new claim counts its epochs anew, and fences by its incarnation.
            hold((*incarnation, *epoch) > (of, latest), || {
                format!("epoch {incarnation}/{epoch} of {agent} came after epoch {of}/{latest}")
            })?;
            hold((*incarnation, *boot) >= (of, start), || {
                format!("{agent} {incarnation}/{boot} was let in after {of}/{start}")
            })?;
        }
        Ok(())
    }
}

/// A number of an incarnation is never given twice to a name.
#[derive(Debug, Default)]
struct IncarnationsAreNew {
    latest: BTreeMap<AgentName, (ClaimId, Incarnation)>,
}

impl Invariant for IncarnationsAreNew {
    invariant!(IncarnationsAreNew, 6);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Recorded { changes, .. } = deed else { return Ok(()) };
        for change in changes.iter() {
            let Change::Claim(claim) = change else { continue };
            let before = self.latest.insert(claim.agent.clone(), (claim.id, claim.incarnation));
            let new = before.is_none_or(|(id, latest)| {
                if id == claim.id { claim.incarnation == latest } else { claim.incarnation > latest }
            });
            hold(new, || format!("{} has incarnation {} again", claim.agent, claim.incarnation))?;
        }
        Ok(())
    }
}

/// A step is durable before its side effect.
#[derive(Debug)]
struct StepsAreAnnounced;

impl Invariant for StepsAreAnnounced {
    invariant!(StepsAreAnnounced, 2);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Called { operation, agent, action, records, .. } = deed else { return Ok(()) };
        let known = records.operations.get(agent);
        let announced = known.is_some_and(|it| it.id == *operation && it.action == *action);
        hold(announced, || format!("a {action} of {agent} began, and was not announced"))
    }
}

/// An agent has at most one step under way, also across lives.
#[derive(Debug, Default)]
struct OneStepAtATime {
    calls: BTreeMap<OperationId, AgentName>,
}

impl Invariant for OneStepAtATime {
    invariant!(OneStepAtATime, 2);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        match deed {
            Deed::Called { operation, agent, action, still, .. } => {
                let busy = *still || self.calls.values().any(|other| other == agent);
                self.calls.insert(*operation, agent.clone());
                hold(!busy, || format!("a {action} of {agent} began while another step on it was under way"))
            }
            Deed::CallOver(operation) => {
                self.calls.remove(operation);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// A driver has no more steps at a time than it bears, and than the file wants.
#[derive(Debug)]
struct LanesAreKept;

impl Invariant for LanesAreKept {
    invariant!(LanesAreKept, 10);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let Some(view) = inputs.drivers.get(&operation.driver) else { return Ok(()) };
            let bears = view.capabilities.lanes;
            let lane = records.fleet.limits.parallelism.unwrap_or(bears).min(bears);
            let now = records.operations.values().filter(|it| it.driver == operation.driver && it.life == records.life);
            let now = now.count();
            hold(now <= usize::try_from(lane).unwrap_or(usize::MAX), || {
                format!("{now} steps at a time in the lane of {}, which bears {lane}", operation.driver)
            })
        })
    }
}

/// No step begins on what is paused.
#[derive(Debug)]
struct PausesAreRespected;

impl Invariant for PausesAreRespected {
    invariant!(PausesAreRespected, 5);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            if records.mode != Mode::Up {
                return Ok(());
            }
            let agent = &operation.agent;
            let fleet = records.pause.as_ref().is_some_and(|it| it.expires_at.is_none_or(|end| inputs.now < end));
            let wanted = effective(&records.fleet, &records.overrides, inputs.now).wanted;
            let paused = fleet || wanted.get(agent).is_some_and(|it| it.spec.reconcile == Reconcile::Paused);
            hold(!paused, || format!("a {} of {agent} began, and it is paused", operation.action))
        })
    }
}

/// A step that failed is not tried again before its pause is over.
#[derive(Debug)]
struct BackoffsAreKept;

impl Invariant for BackoffsAreKept {
    invariant!(BackoffsAreKept, 10);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().try_for_each(|(operation, inputs, records)| {
            let told = records.mode == Mode::Destroy && operation.action == Action::Destroy;
            let early = records.backoffs.get(&operation.agent).is_some_and(|it| inputs.now < it.not_before);
            hold(told || !early, || format!("a {} of {} before its pause is over", operation.action, operation.agent))
        })
    }
}

/// While the fuse is blown, one step at a time shows whether all is well again.
#[derive(Debug)]
struct TheFuseHolds;

impl Invariant for TheFuseHolds {
    invariant!(TheFuseHolds, 10);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        let Deed::Recorded { before, .. } = deed else { return Ok(()) };
        let probes = opened(deed);
        let probes: Vec<_> = probes.iter().filter(|(operation, ..)| operation.action != Action::Stop).collect();
        if probes.is_empty() || !before.fuse.is_blown() {
            return Ok(());
        }
        let busy = before.operations.values().any(|operation| operation.life == before.life);
        hold(probes.len() == 1 && !busy, || format!("{} steps at a time under a blown fuse", probes.len()))
    }
}

/// An agent is brought up when those that it depends on are.
#[derive(Debug)]
struct DependenciesComeFirst;

impl Invariant for DependenciesComeFirst {
    invariant!(DependenciesComeFirst, 3);
    fn see(&mut self, deed: &Deed) -> Result<(), String> {
        opened(deed).into_iter().filter(|(operation, ..)| operation.action.brings_up()).try_for_each(
            |(operation, inputs, records)| {
                let wanted = effective(&records.fleet, &records.overrides, inputs.now).wanted;
                let mut needs = wanted.get(&operation.agent).into_iter().flat_map(|it| it.spec.depends_on.0.keys());
                needs.try_for_each(|other| {
                    let heard = inputs.sessions.get(other).is_some_and(|session| session.connected);
                    hold(heard, || format!("{} comes up before {other}, on which it depends", operation.agent))
                })
            },
        )
    }
}
