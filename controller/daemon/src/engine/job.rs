//! Jobs: steps on instances. What a step needs is gathered before its operation is stored
//! ([`prepare`]), then the driver is asked for its [`Work`], and what the call and a fresh look at the
//! instance come to is decided by [`settle`].

use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_drivers::{Base, CreateOrder, DriverError, Mounts, Target};
use vm_agent_plan::{DriverView, Learnt, Listing, Observed, after_failure, configuration_for};
use vm_agent_schemas::credential::{Credential, JoinToken};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{CloneOf, DeclaredAgent};
use vm_agent_schemas::ids::{Boot, ClaimId, Digest, Epoch, Nonce, OperationId, Secret};
use vm_agent_schemas::names::{AgentName, InstanceName, InvalidName, SnapshotName};
use vm_agent_schemas::observe::{
    Action, Backoff, Birth, Capabilities, Claim, CloneSupport, History, InstanceState, Operation, Proof, Restoring,
    Sizes, Standing,
};
use vm_agent_schemas::plan::{Plan, Step, StepAction};
use vm_agent_schemas::snapshot::Errand;
use vm_agent_schemas::wire::{Configuration, HUB_PATH, Seed};

use super::records::{Change, Records};
use super::{Effect, HubCall, Sequence, errand};

/// Where runtimes find the hub.
#[derive(Debug, Clone)]
pub struct HubAddress {
    /// The URL that goes into seeds.
    pub url: String,
    /// The pin of its certificate, off loopback.
    pub pin: Option<Digest>,
    /// Its port and its pin, for machines that reach this host's loopback under an address of their own;
    /// nothing where the hub is not to be found there.
    pub loopback: Option<(u16, Digest)>,
}

impl HubAddress {
    /// What the seeds of a driver's machines say: the URL, and the pin unless it stays on this host's loopback.
    pub(crate) fn seen_from(&self, capabilities: &Capabilities) -> (String, Option<Digest>) {
        match (capabilities.host_address, &self.loopback) {
            (Some(host), Some((port, pin))) => {
                (format!("wss://{}{HUB_PATH}", SocketAddr::new(host, *port)), Some(pin.clone()))
            }
            _ => (self.url.clone(), self.pin.clone()),
        }
    }
}

/// A step on an instance that is about to begin.
#[derive(Debug)]
pub struct Job {
    pub operation: Operation,
    pub claim: Claim,
    /// The credential that the runtime is going to need, where it needs a new one.
    pub enroll: Option<(Credential, Option<Configuration>)>,
    /// The agent whose machine is copied as it is, with its key: that opens nothing any more.
    pub copied: Option<AgentName>,
    /// Whether no instance had the name when the step was planned.
    name_was_free: bool,
    /// Whether it ran when the step was planned.
    pub ran: bool,
    /// Whether it was suspended then.
    pub slept: bool,
    /// What is to be done with snapshots, where the step is of that.
    pub errand: Option<Errand>,
    /// What the driver is asked for.
    pub work: Work,
    /// How long that may take.
    pub deadline: Duration,
}

/// What a driver is asked for.
#[derive(Debug)]
pub enum Work {
    /// To make an instance.
    Create(Box<CreateOrder>),
    /// To start it, with this seed and these mounts.
    Start(Box<Seed>, Mounts),
    /// To stop it.
    Stop,
    /// To give it these sizes.
    Resize(Sizes),
    /// To delete it.
    Destroy,
    /// To take a snapshot of it.
    Snapshot(SnapshotName),
    /// To delete a snapshot of it.
    DeleteSnapshot(SnapshotName),
    /// To bring it back to a snapshot, with this seed; and to start it with these mounts, if it is to run.
    Restore(SnapshotName, Box<Seed>, Option<Mounts>),
    /// To save its memory and stop it.
    Suspend,
}

/// How a driver's call ended.
#[derive(Debug)]
pub enum Called {
    Done,
    Failed(DriverError),
    TimedOut(Duration),
    /// It was given up, because nobody wants any more what it was to bring about.
    GivenUp,
}

/// Gathers what a step needs, and the changes that must be durable before it begins. Nothing where
/// the plan and the records no longer fit together; the next pass plans anew.
pub fn prepare(
    step: &Step,
    action: Action,
    plan: &Plan,
    records: &Records,
    view: &DriverView,
    hub: &HubAddress,
    now: Timestamp,
) -> Result<(Job, Vec<Change>), Unprepared> {
    let capabilities = &view.capabilities;
    let wanted = plan.agent(&step.agent).and_then(|agent| agent.wanted.as_deref()).ok_or(Unprepared::NotWanted);
    let limit = action.deadline(&capabilities.deadlines).get();
    let deadline = later(now, limit);
    let operation = Operation {
        id: OperationId::generate(),
        agent: step.agent.clone(),
        driver: step.driver,
        action,
        snapshot: step.action.snapshot().cloned(),
        started_at: now,
        deadline,
        life: records.life,
    };
    // A runtime may be late by as long as it is given to connect.
    let join_until = later(deadline, capabilities.deadlines.connect.get());
    let known = records.claims.get(&step.agent).ok_or(Unprepared::NotClaimed);
    let (mut changes, mut copied) = (Vec::new(), None);
    let (claim, work, enroll) = match action {
        Action::Create => {
            let agent = wanted?;
            let unbound = source(agent, records, view).map(unbound);
            copied = unbound.as_ref().map(|credential| credential.agent.clone());
            changes.extend(unbound.map(|credential| Change::Credential(Box::new(credential))));
            let claim = claim_for_create(step, agent, known.ok(), records, now)?;
            let (seed, credential) = seed(&claim, records, hub.seen_from(capabilities), join_until);
            let (instance, birth) = (claim.instance.clone(), claim.birth.clone());
            let base = if claim.history.adopting { Base::Existing } else { base(agent, records)? };
            let Birth { sizes, mounts, provision, .. } = birth;
            let order = CreateOrder { instance, base, sizes, seed, mounts, provision, warm: agent.spec.warm };
            let enroll = credential.map(|credential| (credential, first_configuration(agent)));
            (claim, Work::Create(Box::new(order)), enroll)
        }
        Action::Start => {
            let (agent, claim) = (wanted?, known?.clone());
            let (seed, credential) = seed(&claim, records, hub.seen_from(capabilities), join_until);
            let enroll = credential.map(|credential| (credential, first_configuration(agent)));
            // Before the start: should this life end in the middle of it, the next one must know what the
            // machine may have got.
            let mounts = agent.spec.mounts.clone();
            let learnt = Learnt { mounts: Some(mounts.clone()), ..Learnt::of(&claim) };
            changes.push(Change::Learnt(step.agent.clone(), learnt));
            (claim, Work::Start(Box::new(seed), mounts), enroll)
        }
        Action::Stop | Action::Suspend => {
            // Before the stop: should this life end in the middle of it, the next one must not
            // believe that the machine went down by itself.
            let claim = known?.clone();
            let learnt = Learnt { standing: Some(Standing::Down), ..Learnt::of(&claim) };
            changes.push(Change::Learnt(step.agent.clone(), learnt));
            (claim, if action == Action::Suspend { Work::Suspend } else { Work::Stop }, None)
        }
        Action::Resize => {
            let StepAction::Resize { to } = step.action else { return Err(Unprepared::NotWanted) };
            (known?.clone(), Work::Resize(to), None)
        }
        Action::Destroy => (known?.clone(), Work::Destroy, None),
        Action::Snapshot => (known?.clone(), Work::Snapshot(name_in(step)?), None),
        Action::DropSnapshot => (known?.clone(), Work::DeleteSnapshot(name_in(step)?), None),
        Action::Restore => {
            let (agent, name) = (wanted?, name_in(step)?);
            let claim = claim_for_restore(known?, &name, view, records)?;
            let (seed, credential) = seed(&claim, records, hub.seen_from(capabilities), join_until);
            let enroll = credential.map(|credential| (credential, first_configuration(agent)));
            let mounts = step.action.brings_up().then(|| agent.spec.mounts.clone());
            (claim, Work::Restore(name, Box::new(seed), mounts), enroll)
        }
    };
    if matches!(action, Action::Create | Action::Restore) {
        changes.push(Change::Claim(Box::new(claim.clone())));
    }
    changes.extend(enroll.as_ref().map(|(credential, _)| Change::Credential(Box::new(credential.clone()))));
    changes.push(Change::Open(operation.clone()));
    let message = format!("{action} began: {}", step.reason);
    changes.push(Change::Event(NewEvent::of(&step.agent, EventKind::StepStarted, message)));
    let name_was_free = plan.agent(&step.agent).is_none_or(|agent| agent.observed.is_none());
    let observed = view.find(&claim).map(|observed| &observed.instance);
    let was = |state| observed.is_some_and(|instance| instance.state == state);
    let (ran, slept) = (was(InstanceState::Running), was(InstanceState::Suspended));
    let errand = errand::of_step(&step.agent, &step.action, records).cloned();
    Ok((Job { operation, claim, enroll, copied, name_was_free, ran, slept, errand, work, deadline: limit }, changes))
}

/// The configuration that a runtime gets with its welcome. One with secrets comes later: nothing that
/// the hub keeps has their values.
#[must_use]
pub fn first_configuration(agent: &DeclaredAgent) -> Option<Configuration> {
    agent.spec.secrets.is_empty().then(|| configuration_for(agent))
}

/// Why a step can't begin although the plan has it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unprepared {
    /// The plan and the records no longer fit together; the next pass plans anew.
    #[error("the agent is no longer wanted")]
    NotWanted,
    /// The same.
    #[error("the agent has no claim")]
    NotClaimed,
    /// The snapshot is gone that the instance was to be made from, or to go back to.
    #[error("there is no snapshot `{0}` any more")]
    NoSnapshot(SnapshotName),
    /// The instance can't have a name.
    #[error("its instance can't be named")]
    Unnamed(#[from] InvalidName),
}

/// The claim that a create is made on. One whose instance nobody ever saw is used again, so that
/// whatever an earlier attempt left behind is finished and not taken for a stranger's; after a life
/// that was seen a new one begins.
fn claim_for_create(
    step: &Step,
    agent: &DeclaredAgent,
    known: Option<&Claim>,
    records: &Records,
    now: Timestamp,
) -> Result<Claim, Unprepared> {
    let incarnation = records.incarnations.get(&step.agent).copied().unwrap_or_default().next();
    let new = |instance: InstanceName| Claim {
        id: ClaimId::generate(),
        fleet: records.fleet.name.clone(),
        agent: step.agent.clone(),
        driver: step.driver,
        instance,
        nonce: Nonce::generate(),
        incarnation,
        created_at: now,
        proof: Proof::Pending,
        standing: Standing::Up,
        left_in_mass: false,
        asleep: false,
        protect: agent.spec.protect,
        birth: Birth::of(&agent.spec),
        history: History::default(),
    };
    let joined = records.credentials.get(&step.agent).is_some_and(|credential| credential.binding.is_some());
    Ok(match known {
        // What it was made from, and how, is as it was found.
        Some(claim) if claim.history.adopting => claim.clone(),
        Some(claim) if claim.proof == Proof::Pending && !joined => {
            Claim { birth: Birth::of(&agent.spec), created_at: now, ..claim.clone() }
        }
        Some(claim) => new(claim.instance.clone()),
        None => new(records.fleet.name.instance_of(&step.agent)?),
    })
}

/// What an agent's instance is made from.
fn base(agent: &DeclaredAgent, records: &Records) -> Result<Base, Unprepared> {
    let Some(CloneOf { agent: source, snapshot }) = &agent.clone_of else {
        return Ok(Base::Image(agent.spec.image.clone()));
    };
    let known = records.snapshots.get(source).is_some_and(|known| known.contains_key(snapshot));
    let claim = records.claims.get(source).filter(|_| known);
    let claim = claim.ok_or_else(|| Unprepared::NoSnapshot(snapshot.clone()))?;
    Ok(Base::Snapshot(target(claim), snapshot.clone()))
}

/// The credential of the machine that is down, and that an agent's machine is made of as it is.
fn source<'a>(agent: &DeclaredAgent, records: &'a Records, view: &DriverView) -> Option<&'a Credential> {
    let CloneOf { agent: source, .. } =
        agent.clone_of.as_ref().filter(|_| view.capabilities.clones == CloneSupport::Down)?;
    let observed = view.find(records.claims.get(source)?)?;
    records.credentials.get(source).filter(|_| observed.instance.state == InstanceState::Stopped)
}

/// A credential whose key opens nothing any more. The next start brings the means to join with another.
fn unbound(known: &Credential) -> Credential {
    Credential { join: None, binding: None, boot: Boot::default(), ..known.clone() }
}

/// The instance of a claim.
pub(crate) fn target(claim: &Claim) -> Target {
    let former = claim.history.restoring.as_ref().map(|way| way.from.clone());
    Target { instance: claim.instance.clone(), nonce: claim.nonce.clone(), former }
}

/// The snapshot that a step is about.
fn name_in(step: &Step) -> Result<SnapshotName, Unprepared> {
    step.action.snapshot().cloned().ok_or(Unprepared::NotWanted)
}

/// The claim on an instance that goes back to a snapshot: its next incarnation, with a nonce of its own. Once it
/// is on its way there it stays the same.
fn claim_for_restore(
    known: &Claim,
    to: &SnapshotName,
    view: &DriverView,
    records: &Records,
) -> Result<Claim, Unprepared> {
    if known.history.restoring.as_ref().is_some_and(|way| way.snapshot == *to) {
        return Ok(known.clone());
    }
    let snapshot = records.snapshots.get(&known.agent).and_then(|snapshots| snapshots.get(to));
    let taken_at = snapshot.ok_or_else(|| Unprepared::NoSnapshot(to.clone()))?.taken_at;
    let shown = view.find(known).and_then(|observed| observed.instance.nonce.clone());
    let way = Restoring { snapshot: to.clone(), taken_at, from: shown.unwrap_or_else(|| known.nonce.clone()) };
    let incarnation = records.incarnations.get(&known.agent).copied().unwrap_or_default().next();
    let mut claim = Claim { nonce: Nonce::generate(), incarnation, asleep: false, ..known.clone() };
    claim.history.restoring = Some(way);
    Ok(claim)
}

/// The seed of an instance, and its credential where no runtime has joined yet: then the seed's join
/// token is the way in.
fn seed(
    claim: &Claim,
    records: &Records,
    hub: (String, Option<Digest>),
    until: Timestamp,
) -> (Seed, Option<Credential>) {
    let token = Secret::generate();
    let known = records.credentials.get(&claim.agent).filter(|c| c.incarnation == claim.incarnation);
    let joined = known.is_some_and(|credential| credential.binding.is_some());
    let credential = (!joined).then(|| Credential {
        agent: claim.agent.clone(),
        incarnation: claim.incarnation,
        nonce: claim.nonce.clone(),
        join: Some(JoinToken { digest: token.digest(), expires_at: until }),
        binding: None,
        boot: Boot::default(),
        epoch: records.credentials.get(&claim.agent).map_or_else(Epoch::default, |credential| credential.epoch),
    });
    (seed_of(claim, hub, token), credential)
}

/// The seed of an instance that finds the hub there, with this join token.
pub(crate) fn seed_of(claim: &Claim, (hub, hub_pin): (String, Option<Digest>), join_token: Secret) -> Seed {
    Seed {
        fleet: claim.fleet.clone(),
        agent: claim.agent.clone(),
        incarnation: claim.incarnation,
        nonce: claim.nonce.clone(),
        hub,
        hub_pin,
        join_token,
    }
}

impl Job {
    /// What the step acts on.
    #[must_use]
    pub fn target(&self) -> Target {
        target(&self.claim)
    }

    /// Whether the nonce of the new instance is to be read back by other means than this listing, which
    /// does not show it.
    #[must_use]
    pub fn asks_for_proof(&self, listing: Option<&Listing>) -> bool {
        let Some(Listing::Seen(instances)) = listing else { return false };
        let unshown = instances.get(&self.claim.instance).is_some_and(|observed| observed.instance.nonce.is_none());
        self.operation.action == Action::Create && unshown
    }

    /// Whether the step's time was over before it began, because the host slept in between. A later life
    /// would not believe in it any more, and must not find it at work.
    #[must_use]
    pub fn is_late(&self, now: Timestamp) -> bool {
        self.operation.deadline <= now
    }

    /// The folders of the host that the instance runs with once the step is done.
    fn mounted(&self) -> Option<&Mounts> {
        match &self.work {
            Work::Create(order) => Some(&order.mounts),
            Work::Start(_, mounts) | Work::Restore(_, _, Some(mounts)) => Some(mounts),
            _ => None,
        }
    }

    /// Whether the instance runs once the step is done.
    fn brings_up(&self) -> bool {
        self.operation.action.brings_up() && !self.stays_down()
    }

    /// Whether it goes back to a snapshot, and is not started.
    const fn stays_down(&self) -> bool {
        matches!(self.work, Work::Restore(_, _, None))
    }

    fn resized_to(&self) -> Option<Sizes> {
        match &self.work {
            Work::Resize(sizes) => Some(*sizes),
            _ => None,
        }
    }
}

/// What a step came to.
#[derive(Debug)]
pub struct Settled {
    pub changes: Vec<Change>,
    pub succeeded: bool,
    /// The instance is gone, and with it whoever spoke for it.
    pub revoke: bool,
}

impl Settled {
    /// What is to be done about it.
    #[must_use]
    pub fn into_effects(self, job: &Job) -> Sequence {
        let mut sequence = Vec::new();
        if self.revoke {
            // Before the claim goes: whatever hung on the machine ends while there is somebody to end it.
            sequence.push(Effect::Hub(HubCall::Revoke(job.operation.agent.clone())));
        }
        sequence.push(Effect::Record(self.changes));
        if self.succeeded && job.brings_up() {
            sequence.push(Effect::BroughtUp(job.operation.started_at));
        }
        sequence.push(Effect::Wake);
        sequence
    }
}

/// Decides what a step came to: by the call's own answer, and more so by what is seen afterwards.
/// `proved` is the nonce that the driver read back by other means than a listing.
pub fn settle(
    job: &Job,
    called: &Called,
    listing: Option<&Listing>,
    proved: Option<&Nonce>,
    before: Option<&Backoff>,
    jitter: f64,
    now: Timestamp,
) -> Settled {
    let (agent, action) = (&job.operation.agent, job.operation.action);
    let seen = look(listing, &job.claim);
    let foreign = proved.is_some_and(|nonce| *nonce != job.claim.nonce);
    let seen = if foreign { Look::Foreign } else { seen };
    let reached = has_reached(job, called, &seen);
    let mut changes = Vec::new();
    let backs_off = !matches!(action, Action::Snapshot | Action::DropSnapshot);
    let gone = action == Action::Destroy && matches!(seen, Look::Gone);
    if gone {
        changes.extend([Change::Unclaim(agent.clone()), Change::DropBackoff(agent.clone())]);
    } else {
        changes.push(Change::Learnt(agent.clone(), learn(job, called, &seen, proved, reached, now)));
    }
    let (kind, message) = if reached {
        changes.extend(match &job.work {
            Work::Snapshot(name) => errand::taken(job, name, now),
            Work::DeleteSnapshot(name) => errand::deleted(job, name, now),
            Work::Restore(name, ..) => errand::restored(job, name, now),
            _ => Vec::new(),
        });
        (EventKind::StepSucceeded, format!("{action} succeeded"))
    } else {
        let why = explain(job, called, &seen);
        // What nobody wants any more did not fail.
        if matches!(called, Called::GivenUp) {
            changes.push(Change::DropBackoff(agent.clone()));
        } else if backs_off {
            let backoff = after_failure(agent, before, Some(action), format!("{action}: {why}"), jitter, now);
            changes.push(Change::Backoff(backoff));
        } else {
            changes.extend(job.errand.iter().flat_map(|errand| errand::failed(errand, &why, now)));
        }
        match called {
            Called::TimedOut(_) => (EventKind::StepTimedOut, format!("{action} failed: {why}")),
            Called::GivenUp => (EventKind::StepGivenUp, format!("{action} was given up: {why}")),
            Called::Done | Called::Failed(_) => (EventKind::StepFailed, format!("{action} failed: {why}")),
        }
    };
    changes.push(Change::Close(job.operation.clone(), message.clone()));
    changes.push(Change::Event(NewEvent::of(agent, kind, message)));
    Settled { changes, succeeded: reached, revoke: gone }
}

enum Look<'a> {
    Unknown,
    Gone,
    Foreign,
    There(&'a Observed),
}

fn look<'a>(listing: Option<&'a Listing>, claim: &Claim) -> Look<'a> {
    let Some(Listing::Seen(instances)) = listing else { return Look::Unknown };
    match instances.get(&claim.instance) {
        None => Look::Gone,
        Some(observed) if observed.instance.nonce.as_ref().is_some_and(|nonce| !claim.is_of(nonce)) => Look::Foreign,
        Some(observed) => Look::There(observed),
    }
}

/// Whether the instance is what the action was to make of it. What is seen counts; only where nothing
/// can be seen does the call's own word.
fn has_reached(job: &Job, called: &Called, seen: &Look<'_>) -> bool {
    let done = matches!(called, Called::Done);
    match (job.operation.action, seen) {
        // The driver itself says that what is there is not ours.
        _ if matches!(called, Called::Failed(DriverError::Foreign { .. })) => false,
        (_, Look::Unknown) => done,
        // That it runs shows nothing: it may have run before.
        (Action::Create, Look::There(observed)) if job.claim.history.adopting => {
            done || observed.instance.nonce.as_ref() == Some(&job.claim.nonce)
        }
        (Action::Destroy, Look::Gone | Look::Foreign) => true,
        (_, Look::Gone | Look::Foreign) => false,
        (Action::Create | Action::Start, Look::There(observed)) => match observed.instance.state {
            InstanceState::Running => true,
            InstanceState::Starting => done,
            _ => false,
        },
        (Action::Stop, Look::There(observed)) => {
            !matches!(observed.instance.state, InstanceState::Running | InstanceState::Unknown)
        }
        (Action::Resize, Look::There(observed)) => {
            let as_told = |sizes: Sizes| job.resized_to().is_none_or(|to| to == sizes);
            done && observed.instance.sizes.is_none_or(as_told)
        }
        (Action::Destroy, Look::There(_)) => false,
        (Action::Snapshot, Look::There(observed)) => shows_snapshot(job, observed).unwrap_or(done),
        (Action::DropSnapshot, Look::There(observed)) => shows_snapshot(job, observed).map_or(done, |there| !there),
        (Action::Restore, Look::There(observed)) => {
            let arrived = observed.instance.nonce.as_ref().map_or(done, |nonce| *nonce == job.claim.nonce);
            arrived && (job.stays_down() || observed.instance.state == InstanceState::Running || done)
        }
        (Action::Suspend, Look::There(observed)) => {
            matches!(observed.instance.state, InstanceState::Suspended | InstanceState::Stopped)
        }
    }
}

/// Whether the instance shows the snapshot that the step is about; nothing where it shows none at all.
fn shows_snapshot(job: &Job, observed: &Observed) -> Option<bool> {
    let (shown, name) = (observed.instance.snapshots.as_ref()?, job.operation.snapshot.as_ref()?);
    Some(shown.contains(name))
}

fn learn(job: &Job, called: &Called, seen: &Look<'_>, proved: Option<&Nonce>, reached: bool, now: Timestamp) -> Learnt {
    let mut learnt = Learnt::of(&job.claim);
    if let Look::There(observed) = seen {
        let made = job.operation.action == Action::Create && job.claim.proof == Proof::Pending;
        if observed.instance.nonce.is_some() || proved.is_some() {
            learnt.proof = Some(Proof::Confirmed);
        } else if made && job.name_was_free && matches!(called, Called::Done) {
            // Its name was free when the create was planned, the driver says that it made this one,
            // and nobody has looked away since.
            learnt.proof = Some(Proof::Watched { life: job.operation.life });
        }
    }
    if job.operation.action.brings_up() {
        learnt.standing = match seen {
            _ if reached => Some(if job.stays_down() { Standing::Down } else { Standing::Up }),
            // What did not come up did not go down by itself either.
            Look::There(observed) if is_down(observed.instance.state) => Some(Standing::Down),
            _ => None,
        };
    }
    if reached {
        learnt.sizes = job.resized_to();
        learnt.mounts = job.mounted().cloned();
        learnt.restored = (job.operation.action == Action::Restore).then_some(now);
        learnt.adopted = job.operation.action == Action::Create;
    }
    learnt
}

const fn is_down(state: InstanceState) -> bool {
    matches!(state, InstanceState::Stopped | InstanceState::Failed)
}

fn explain(job: &Job, called: &Called, seen: &Look<'_>) -> String {
    match (called, seen) {
        (Called::Failed(error), _) => error.to_string(),
        (Called::TimedOut(limit), _) => format!("it took longer than {} s", limit.as_secs()),
        (Called::GivenUp, _) => "its machine is to be deleted".into(),
        (Called::Done, Look::Gone) => "the driver says that it is done, and the instance is gone".into(),
        (Called::Done, Look::Foreign) => "an instance that is not ours has its name".into(),
        (Called::Done, Look::There(observed)) if job.operation.action == Action::Resize => {
            format!("the driver says that it is done, and the sizes are {:?}", observed.instance.sizes)
        }
        (Called::Done, Look::There(observed)) => {
            format!("the driver says that it is done, and the instance is {:?}", observed.instance.state)
        }
        (Called::Done, Look::Unknown) => "nothing is known".into(),
    }
}

fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use vm_agent_drivers::fake::Fake;
    use vm_agent_plan::{Inputs, Upkeep};
    use vm_agent_schemas::fleet::{DriverName, parse};
    use vm_agent_schemas::ids::{Digest, ErrandId, Incarnation, Life};
    use vm_agent_schemas::observe::Instance;
    use vm_agent_schemas::plan::Cost;
    use vm_agent_schemas::snapshot::{Ask, Cause, Snapshot};
    use vm_agent_schemas::units::ByteSize;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn records() -> Records {
        let fleet = parse("fleet.yaml", "agents: {web: {driver: qemu}}").unwrap();
        Records { life: Life(2), ..Records::empty(fleet) }
    }

    fn step(action: StepAction) -> Step {
        let agent = "web".parse().unwrap();
        Step {
            agent,
            driver: DriverName::Qemu,
            action,
            reason: "a test".into(),
            cost: Cost::Live,
            disturbs: None,
            loses: None,
            waits_for: vec![],
        }
    }

    /// Prepares a step for `web` and carries its changes out on the records.
    fn prepared(records: &mut Records, action: StepAction) -> Job {
        prepared_seeing(records, action, Listing::Seen(BTreeMap::new()))
    }

    fn prepared_seeing(records: &mut Records, action: StepAction, listing: Listing) -> Job {
        let on_instance = action.on_instance().unwrap();
        let inputs = records.inputs(NOW);
        let plan = vm_agent_plan::plan(&inputs);
        let hub = HubAddress { url: "ws://127.0.0.1:9/v1/runtime".into(), pin: None, loopback: None };
        let view = DriverView { capabilities: Fake::capabilities_default(), listing, looked_at: None };
        let (job, changes) = prepare(&step(action), on_instance, &plan, records, &view, &hub, NOW).unwrap();
        changes.into_iter().for_each(|change| records.apply(change));
        job
    }

    /// The runtime of `web` joins.
    fn join(records: &mut Records) {
        let credential = records.credentials.get_mut("web").unwrap();
        credential.binding = Some(vm_agent_schemas::credential::Binding {
            next_key: None,
            public_key: "key".into(),
            machine_id: Digest::of(b"machine"),
            verified: false,
        });
    }

    /// The snapshot `one` of `web`, as it is recorded once it was taken of an instance in that state.
    fn taken_of(records: &mut Records, state: InstanceState) -> Snapshot {
        let claim = records.claims["web"].clone();
        let name: SnapshotName = "one".parse().unwrap();
        let cause = Cause::Person { by: "ann".into() };
        let errand = Errand {
            id: ErrandId::generate(),
            agent: claim.agent.clone(),
            claim: claim.id,
            ask: Ask::Take { name: name.clone(), cause, comment: None },
            by: "ann".into(),
            asked_at: NOW,
            until: NOW,
            tried: None,
            end: None,
        };
        records.apply(Change::Errand(Box::new(errand)));
        let seen = listing(vec![instance(state, Some(claim.nonce))]);
        let job = prepared_seeing(records, StepAction::Snapshot { name }, seen.clone());
        settled(&job, &Called::Done, &seen).changes.into_iter().for_each(|change| records.apply(change));
        records.snapshots["web"]["one"].clone()
    }

    #[test]
    fn the_snapshot_of_what_runs_or_is_suspended_has_its_memory() {
        let mut records = records();
        prepared(&mut records, StepAction::Create);
        let mut taken = |state| {
            let snapshot = taken_of(&mut records, state);
            (snapshot.running, snapshot.has_memory())
        };
        assert_eq!(taken(InstanceState::Running), (true, true));
        assert_eq!(taken(InstanceState::Suspended), (false, true));
        assert_eq!(taken(InstanceState::Stopped), (false, false));
    }

    #[test]
    fn what_goes_back_and_should_not_run_is_down_and_nothing_came_up() {
        for stays_down in [false, true] {
            let mut records = records();
            prepared(&mut records, StepAction::Create);
            taken_of(&mut records, InstanceState::Stopped);
            let to = "one".parse().unwrap();
            let job = prepared(&mut records, StepAction::Restore { to, stays_down });
            let seen = listing(vec![instance(InstanceState::Stopped, Some(job.claim.nonce.clone()))]);
            let timed_out = settled(&job, &Called::TimedOut(Duration::from_secs(1)), &seen);
            assert_eq!(timed_out.succeeded, stays_down, "it is at it, and there is no more to it");
            let done = settled(&job, &Called::Done, &seen);
            let standing = if stays_down { Standing::Down } else { Standing::Up };
            assert_eq!((done.succeeded, learnt(&done).standing), (true, Some(standing)));
            let came_up = |effect: &Effect| matches!(effect, Effect::BroughtUp(_));
            assert_eq!(done.into_effects(&job).iter().any(came_up), !stays_down);
        }
    }

    #[test]
    fn machines_that_see_this_host_elsewhere_are_told_that_address_with_the_pin() {
        let pin = Digest::of(b"it");
        let hub = HubAddress { url: "ws://127.0.0.1:9/v1/runtime".into(), pin: None, loopback: Some((9, pin.clone())) };
        let near = Fake::capabilities_default();
        let far = Capabilities { host_address: Some([10, 0, 2, 2].into()), ..near.clone() };
        assert_eq!(hub.seen_from(&near), (hub.url.clone(), None));
        assert_eq!(hub.seen_from(&far), ("wss://10.0.2.2:9/v1/runtime".to_owned(), Some(pin)));
        let elsewhere = HubAddress { loopback: None, ..hub.clone() };
        assert_eq!(elsewhere.seen_from(&far), (hub.url, None));
    }

    fn listing(instances: Vec<Instance>) -> Listing {
        let observed = instances.into_iter().map(|i| (i.name.clone(), Observed { instance: i, since: NOW }));
        Listing::Seen(observed.collect::<BTreeMap<_, _>>())
    }

    fn instance(state: InstanceState, nonce: Option<Nonce>) -> Instance {
        Instance { name: "web".parse().unwrap(), state, nonce, sizes: None, snapshots: None }
    }

    fn foreign() -> Called {
        Called::Failed(DriverError::Foreign { instance: "web".parse().unwrap() })
    }

    fn learnt(settled: &Settled) -> &Learnt {
        let found = settled.changes.iter().find_map(|change| match change {
            Change::Learnt(_, learnt) => Some(learnt),
            _ => None,
        });
        found.expect("something is said of the claim")
    }

    fn settled(job: &Job, called: &Called, seen: &Listing) -> Settled {
        settle(job, called, Some(seen), None, None, 0.5, NOW)
    }

    #[test]
    fn a_create_that_met_a_stranger_neither_succeeds_nor_proves_anything() {
        let job = prepared(&mut records(), StepAction::Create);
        let settled = settled(&job, &foreign(), &listing(vec![instance(InstanceState::Running, None)]));
        assert!(!settled.succeeded);
        assert_eq!(learnt(&settled).proof, None);
    }

    #[test]
    fn a_create_that_timed_out_yet_runs_succeeds_but_is_not_watched() {
        let job = prepared(&mut records(), StepAction::Create);
        let timed_out = Called::TimedOut(Duration::from_secs(1));
        let settled = settled(&job, &timed_out, &listing(vec![instance(InstanceState::Running, None)]));
        assert!(settled.succeeded);
        assert_eq!(learnt(&settled).proof, None);
    }

    #[test]
    fn a_create_is_confirmed_by_its_nonce_and_watched_without_one() {
        let job = prepared(&mut records(), StepAction::Create);
        let nonce = Some(job.claim.nonce.clone());
        let shown = settled(&job, &Called::Done, &listing(vec![instance(InstanceState::Running, nonce.clone())]));
        assert_eq!(learnt(&shown).proof, Some(Proof::Confirmed));
        let unshown = listing(vec![instance(InstanceState::Running, None)]);
        assert_eq!(learnt(&settled(&job, &Called::Done, &unshown)).proof, Some(Proof::Watched { life: Life(2) }));
        let read = settle(&job, &Called::Done, Some(&unshown), nonce.as_ref(), None, 0.5, NOW);
        assert_eq!(learnt(&read).proof, Some(Proof::Confirmed));
        let other = Nonce::generate();
        let wrong = settle(&job, &Called::Done, Some(&unshown), Some(&other), None, 0.5, NOW);
        assert!(!wrong.succeeded);
    }

    #[test]
    fn what_was_not_brought_up_did_not_go_down_by_itself() {
        let mut records = records();
        let job = prepared(&mut records, StepAction::Create);
        let timed_out = Called::TimedOut(Duration::from_secs(1));
        let seen = |state| listing(vec![instance(state, Some(job.claim.nonce.clone()))]);
        for state in [InstanceState::Stopped, InstanceState::Failed] {
            let settled = settled(&job, &timed_out, &seen(state));
            assert_eq!((settled.succeeded, learnt(&settled).standing), (false, Some(Standing::Down)));
            settled.changes.into_iter().for_each(|change| records.apply(change));
            // The next look takes it for no crash.
            let (capabilities, listing) = (Fake::capabilities_default(), seen(state));
            let view = DriverView { capabilities, listing, looked_at: None };
            let inputs = Inputs { drivers: [(job.claim.driver, view)].into(), ..records.inputs(NOW) };
            let upkeep = vm_agent_plan::upkeep(&inputs, &vm_agent_plan::plan(&inputs));
            assert!(!upkeep.iter().any(|item| matches!(item, Upkeep::Crashed(_))), "{upkeep:?}");
        }
        // It may yet come up.
        assert_eq!(learnt(&settled(&job, &timed_out, &seen(InstanceState::Starting))).standing, None);
    }

    #[test]
    fn the_key_of_a_machine_that_is_copied_as_it_is_opens_nothing_any_more() {
        let mut records = records();
        prepared(&mut records, StepAction::Create);
        taken_of(&mut records, InstanceState::Stopped);
        let (web, twin) = ("web".parse::<AgentName>().unwrap(), "twin".parse::<AgentName>().unwrap());
        let clone_of = Some(CloneOf { agent: web.clone(), snapshot: "one".parse().unwrap() });
        let agent = DeclaredAgent { clone_of, ..records.fleet.agents["web"].as_ref().clone() };
        std::sync::Arc::make_mut(&mut records.fleet).agents.insert(twin.clone(), agent.into());
        let (down, any) = (CloneSupport::Down, CloneSupport::Snapshots);
        let (stopped, running) = (InstanceState::Stopped, InstanceState::Running);
        for (clones, state, is_copied) in [(any, stopped, false), (down, running, false), (down, stopped, true)] {
            join(&mut records);
            let seen = listing(vec![instance(state, Some(records.claims["web"].nonce.clone()))]);
            let capabilities = Capabilities { clones, ..Fake::capabilities_default() };
            let view = DriverView { capabilities, listing: seen, looked_at: None };
            let plan = vm_agent_plan::plan(&records.inputs(NOW));
            let hub = HubAddress { url: "ws://127.0.0.1:9/v1/runtime".into(), pin: None, loopback: None };
            let step = Step { agent: twin.clone(), ..step(StepAction::Create) };
            let (job, changes) = prepare(&step, Action::Create, &plan, &records, &view, &hub, NOW).unwrap();
            changes.into_iter().for_each(|change| records.apply(change));
            assert_eq!(job.copied, is_copied.then(|| web.clone()));
            assert_eq!(records.credentials["web"].binding.is_some(), !is_copied);
            records.apply(Change::Unclaim(twin.clone()));
        }
        let again = prepared(&mut records, StepAction::Start);
        assert!(again.enroll.is_some_and(|(credential, _)| credential.join.is_some()), "it joins anew");
    }

    #[test]
    fn what_can_not_be_seen_is_as_the_driver_says() {
        let job = prepared(&mut records(), StepAction::Create);
        assert!(settle(&job, &Called::Done, None, None, None, 0.5, NOW).succeeded);
        let hung = Called::TimedOut(Duration::from_secs(1));
        assert!(!settle(&job, &hung, None, None, None, 0.5, NOW).succeeded);
    }

    #[test]
    fn a_failed_create_is_tried_again_on_the_same_claim_until_a_runtime_has_joined() {
        let mut records = records();
        let first = prepared(&mut records, StepAction::Create);
        let again = prepared(&mut records, StepAction::Create);
        assert_eq!(again.claim.nonce, first.claim.nonce);
        join(&mut records);
        let next = prepared(&mut records, StepAction::Create);
        assert_ne!(next.claim.nonce, first.claim.nonce);
        assert!(next.enroll.is_some());
    }

    #[test]
    fn an_incarnation_is_never_given_twice() {
        let mut records = records();
        let first = prepared(&mut records, StepAction::Create);
        records.apply(Change::Unclaim("web".parse().unwrap()));
        let second = prepared(&mut records, StepAction::Create);
        assert_eq!((first.claim.incarnation, second.claim.incarnation), (Incarnation(1), Incarnation(2)));
    }

    #[test]
    fn a_destroy_ends_the_claim_only_when_the_instance_is_gone() {
        let mut records = records();
        prepared(&mut records, StepAction::Create);
        let job = prepared(&mut records, StepAction::Destroy);
        let there = settled(&job, &Called::Done, &listing(vec![instance(InstanceState::Stopped, None)]));
        assert!(!there.succeeded && !there.revoke);
        let gone = settled(&job, &Called::TimedOut(Duration::from_secs(1)), &listing(vec![]));
        assert!(gone.succeeded && gone.revoke);
        gone.changes.into_iter().for_each(|change| records.apply(change));
        assert!(records.claims.is_empty() && records.operations.is_empty());
    }

    #[test]
    fn a_resize_without_effect_is_a_failure() {
        let mut records = records();
        prepared(&mut records, StepAction::Create);
        let to = Sizes { cpus: 2, memory: ByteSize::from_gib(4), disk: ByteSize::from_gib(5) };
        let job = prepared(&mut records, StepAction::Resize { to });
        let with = |sizes| listing(vec![Instance { sizes, ..instance(InstanceState::Stopped, None) }]);
        assert!(settled(&job, &Called::Done, &with(Some(to))).succeeded);
        assert!(settled(&job, &Called::Done, &with(None)).succeeded);
        let other = Sizes { memory: ByteSize::from_mib(3800), ..to };
        let refused = settled(&job, &Called::Done, &with(Some(other)));
        assert!(!refused.succeeded);
        assert_eq!(learnt(&refused).sizes, None);
    }

    #[test]
    fn a_stop_is_written_down_before_it_begins() {
        let mut records = records();
        prepared(&mut records, StepAction::Create);
        prepared(&mut records, StepAction::Stop);
        assert_eq!(records.claims["web"].standing, Standing::Down);
    }

    #[test]
    fn every_end_closes_the_operation_and_every_failure_has_its_pause() {
        let mut records = records();
        let job = prepared(&mut records, StepAction::Create);
        let failed = settled(&job, &foreign(), &listing(vec![]));
        failed.changes.into_iter().for_each(|change| records.apply(change));
        assert!(records.operations.is_empty());
        assert_eq!(records.backoffs["web"].failures, 1);
        assert!(records.backoffs["web"].last.contains("not ours"), "{}", records.backoffs["web"].last);
    }
}
