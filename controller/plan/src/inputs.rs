//! Everything that a plan is made from, as plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::fleet::{DriverName, Fleet};
use vm_agent_schemas::ids::{ClaimId, Digest, Incarnation, Life, Revision, TaskId};
use vm_agent_schemas::intent::{Override, Pause};
use vm_agent_schemas::names::{AgentName, InstanceName, ServiceName, SnapshotName, TaskName};
use vm_agent_schemas::observe::{Backoff, Capabilities, Claim, Host, Instance, Operation};
use vm_agent_schemas::plan::Fuse;
use vm_agent_schemas::snapshot::{Errand, Snapshot};
use vm_agent_schemas::wire::{ServiceReport, TaskOutcome};

use crate::shared::Shared;

/// What a plan is made from. Same inputs, same plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    /// The file spec.
    pub fleet: Arc<Fleet>,
    /// Which accepted file it is.
    pub revision: Option<Revision>,
    /// When that file was accepted.
    pub accepted_at: Option<Timestamp>,
    /// What people said beside the file. Those that no longer hold are ignored.
    pub overrides: Vec<Override>,
    /// What is ours.
    pub claims: Shared<BTreeMap<AgentName, Claim>>,
    /// What is under way: one operation for each agent at most.
    pub operations: BTreeMap<AgentName, Operation>,
    /// The drivers that are installed, and what each of them sees.
    pub drivers: BTreeMap<DriverName, DriverView>,
    /// The runtimes heard of, of whatever incarnation.
    pub sessions: BTreeMap<AgentName, SessionSeen>,
    /// The version of the runtime that may be offered to the machines of a driver; none for a driver whose
    /// machines are given theirs in another way.
    pub runtimes: BTreeMap<DriverName, String>,
    /// The tasks of the file that were accepted, in the order in which they were: of each wording of each on
    /// each machine the latest [`RUNS_KNOWN`](crate::RUNS_KNOWN).
    pub tasks: Shared<BTreeMap<AgentName, Vec<FileTask>>>,
    /// Agents with tasks by hand that are not over.
    pub work: BTreeSet<AgentName>,
    /// The snapshots of each agent's machine.
    pub snapshots: Shared<BTreeMap<AgentName, BTreeMap<SnapshotName, Snapshot>>>,
    /// What is to be done with each agent's snapshots and is not over, in order.
    pub errands: BTreeMap<AgentName, Vec<Errand>>,
    /// What people said yes to, and the agent that each yes is about.
    pub approvals: BTreeMap<Digest, AgentName>,
    /// Agents that no runtime has joined for yet, and none can: their join token no longer works.
    pub unjoined: BTreeSet<AgentName>,
    /// Agents that a runtime has joined for, in the present life of their machine: it has shown the claim's nonce.
    pub joined: BTreeSet<AgentName>,
    /// What failed, and when it may be tried again.
    pub backoffs: BTreeMap<AgentName, Backoff>,
    /// The fuse as the last plan left it.
    pub fuse: Fuse,
    /// When the last step began that brought a machine up.
    pub last_success: Option<Timestamp>,
    /// The pause of the whole fleet, if somebody paused it. One that has come to its time is ignored.
    pub pause: Option<Pause>,
    /// Whether the fleet is to run at all.
    pub mode: Mode,
    /// How long a runtime may be silent before it counts as lost.
    pub silence: Duration,
    /// What this host has; nothing where that is not known.
    pub host: Option<Host>,
    /// When the wall clock last jumped, because the host slept or somebody set it: nobody could be heard
    /// while it did.
    pub resumed_at: Option<Timestamp>,
    /// How often people had said something when this was read: what follows from it is not begun once
    /// they have said more.
    pub said: u64,
    /// The controller's life.
    pub life: Life,
    /// The time.
    pub now: Timestamp,
}

/// Whether the fleet is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// As the file and the overrides say.
    #[default]
    Up,
    /// Every machine is to stop, because the controller is about to.
    Down,
    /// Every machine is to be deleted, because a person said so.
    Destroy,
}

/// A driver, as the plan sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct DriverView {
    /// What it can do and bear.
    pub capabilities: Capabilities,
    /// What it sees.
    pub listing: Listing,
    /// When it began to look; nothing before it has looked.
    pub looked_at: Option<Timestamp>,
}

impl DriverView {
    /// The instance of a claim, if it is seen and is the one.
    #[must_use]
    pub fn find(&self, claim: &Claim) -> Option<&Observed> {
        let Listing::Seen(instances) = &self.listing else { return None };
        let observed = instances.get(&claim.instance)?;
        observed.instance.nonce.as_ref().is_none_or(|nonce| claim.is_of(nonce)).then_some(observed)
    }
}

/// What a driver sees.
#[derive(Debug, Clone, PartialEq)]
pub enum Listing {
    /// Its latest answer, all of it.
    Seen(BTreeMap<InstanceName, Observed>),
    /// It does not answer: nothing is known.
    Unanswered {
        /// Since when.
        since: Timestamp,
        /// What it said, or that it said nothing.
        reason: String,
    },
}

/// An instance, and since when it has been in its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The instance.
    pub instance: Instance,
    /// When this controller first saw it in its present state.
    pub since: Timestamp,
}

/// A runtime heard of.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSeen {
    /// The incarnation that it speaks for.
    pub incarnation: Incarnation,
    /// Whether its connection is open.
    pub connected: bool,
    /// When that connection was accepted: the moment by which tasks tell this session from another.
    pub connected_at: Timestamp,
    /// When it was last heard.
    pub last_seen: Timestamp,
    /// Its version.
    pub version: String,
    /// Why it can't be replaced by the version that it was offered.
    pub stays: Option<String>,
    /// The digest of the configuration that it said it works with.
    pub configured: Option<Digest>,
    /// What of its configuration it could not bring about, in sentences.
    pub problems: Vec<String>,
    /// Whether its last report says that something is wrong in the machine.
    pub ailing: bool,
    /// Whether anything is done in the machine for somebody: a task runs or a stream is open.
    pub busy: bool,
    /// When it was last busy, or one of its services [at work](crate::is_at_work), and at the earliest
    /// when it connected.
    pub active_at: Timestamp,
    /// Tasks for it that are not over.
    pub tasks: u32,
    /// Those of them that were sent, and may be running.
    pub running: u32,
    /// Streams that are open to it.
    pub streams: u32,
    /// Its services, as its last report tells them.
    pub services: BTreeMap<ServiceName, ServiceReport>,
}

/// A task of the file that was accepted: one run of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTask {
    /// The run's id.
    pub id: TaskId,
    /// Its name in the file.
    pub name: TaskName,
    /// The digest of its wording.
    pub digest: Digest,
    /// The machine that it is for.
    pub claim: ClaimId,
    /// The moment that it is for; nothing for a task that runs once.
    pub due: Option<Timestamp>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// When its end was stored.
    pub ended_at: Option<Timestamp>,
    /// How it ended; nothing while it has not, or is to be tried again.
    pub outcome: Option<TaskOutcome>,
}

impl Inputs {
    /// The inputs of a controller that has seen nothing yet.
    #[must_use]
    pub fn empty(now: Timestamp) -> Self {
        Self {
            fleet: Arc::default(),
            revision: None,
            accepted_at: None,
            overrides: Vec::new(),
            claims: Shared::default(),
            operations: BTreeMap::new(),
            drivers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            runtimes: BTreeMap::new(),
            tasks: Shared::default(),
            work: BTreeSet::new(),
            snapshots: Shared::default(),
            errands: BTreeMap::new(),
            approvals: BTreeMap::new(),
            unjoined: BTreeSet::new(),
            joined: BTreeSet::new(),
            backoffs: BTreeMap::new(),
            fuse: Fuse::Closed { since: now },
            last_success: None,
            pause: None,
            mode: Mode::Up,
            silence: Duration::from_secs(75),
            host: None,
            resumed_at: None,
            said: 0,
            life: Life(1),
            now,
        }
    }

    /// The pause of the whole fleet, while it holds.
    #[must_use]
    pub fn fleet_pause(&self) -> Option<&Pause> {
        self.pause.as_ref().filter(|pause| pause.expires_at.is_none_or(|end| self.now < end))
    }

    /// The operation under way on an agent, if it may still have an effect. One of this life has an end
    /// of its own, which is not to be judged by a wall clock: that jumps when the host has slept, and the
    /// call goes on. One of an earlier life counts only where the driver's calls outlive a controller, and
    /// until it has been looked at after the deadline: what was seen before may be of no machine, or of
    /// half of one.
    #[must_use]
    pub fn operation(&self, agent: &AgentName) -> Option<&Operation> {
        self.operations.get(agent).filter(|operation| {
            let goes_on = |view: &DriverView| {
                let seen_since = view.looked_at.is_some_and(|at| at >= operation.deadline);
                view.capabilities.calls_outlive_controller && !seen_since
            };
            operation.life == self.life || self.drivers.get(&operation.driver).is_none_or(goes_on)
        })
    }
}
