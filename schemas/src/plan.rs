//! What a plan says: for each agent what differs, what would be done about it, and what it waits for.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fleet::{DeclaredAgent, DriftPolicy, DriverName, Until};
use crate::ids::{Digest, OperationId, Revision};
use crate::names::{AgentName, FleetName, InstanceName, SnapshotName, TaskName};
use crate::observe::{Action, InstanceState, Sizes};
use crate::units::ByteSize;

/// The ordered steps that would remove the drift, and what each of them waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[must_use = "a plan that nobody reads or carries out changes nothing"]
pub struct Plan {
    /// The digest of what the plan decides: two plans with one id decide the same.
    pub id: Digest,
    /// The fleet.
    pub fleet: FleetName,
    /// The accepted fleet file that it was made for; nothing when none was ever accepted.
    pub revision: Option<Revision>,
    /// Every agent that is declared, overridden or claimed, by name.
    pub agents: Vec<AgentPlan>,
    /// What would be done, in order.
    pub steps: Vec<Step>,
    /// What waits for a person's yes.
    pub approvals: Vec<ApprovalRequest>,
    /// The yeses that steps of this plan rest on.
    pub granted: Vec<Digest>,
    /// Whether the loop may change anything at all.
    pub fuse: Fuse,
}

impl Plan {
    /// Whether there is anything left to do, now or later.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The steps that may begin now.
    pub fn ready(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.waits_for.is_empty())
    }

    /// How many steps of each kind there are.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        for step in &self.steps {
            match step.action {
                StepAction::Create => summary.create += 1,
                StepAction::Destroy | StepAction::Forget => summary.destroy += 1,
                _ => summary.change += 1,
            }
            summary.waiting += u32::from(!step.waits_for.is_empty());
        }
        summary
    }

    /// What the plan says of one agent.
    #[must_use]
    pub fn agent(&self, name: &AgentName) -> Option<&AgentPlan> {
        self.agents.binary_search_by(|agent| agent.name.cmp(name)).ok().map(|index| &self.agents[index])
    }
}

/// How many steps of each kind a plan has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Machines to make.
    pub create: u32,
    /// Steps that change what exists.
    pub change: u32,
    /// Machines to delete.
    pub destroy: u32,
    /// Steps of any kind that wait for something.
    pub waiting: u32,
}

/// What the plan says of one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentPlan {
    /// The agent.
    pub name: AgentName,
    /// Its driver, as resolved; nothing while none can be.
    pub driver: Option<DriverName>,
    /// Its effective spec with origins; nothing for an agent that should not exist.
    pub wanted: Option<Arc<DeclaredAgent>>,
    /// What its instance is seen doing; nothing when it does not exist.
    pub observed: Option<InstanceState>,
    /// Whether it is as wanted.
    pub sync: Sync,
    /// Whether it is well.
    pub health: Health,
    /// Each difference between wanted and seen.
    pub drift: Vec<Drift>,
    /// Why nothing, or not everything, is done about it.
    pub waits_for: Vec<WaitsFor>,
    /// Whether it left the file together with more others than may go unasked.
    pub held_back: bool,
    /// Why its machine is to be down although its spec says that it should run.
    pub rests: Option<Rest>,
    /// Whether it is given no new task, because its machine is about to go down.
    pub cordoned: bool,
    /// The step under way, where it brings up a machine that is to be deleted: it is given up.
    pub moot: Option<OperationId>,
}

/// Why a machine is to be down although its spec says that it should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rest {
    /// Nothing has happened in it for as long as `idle` says. It starts again when there is work.
    Idle,
    /// It is older than `ttl` says. A person starts it again.
    Aged,
}

impl fmt::Display for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Idle => "it is idle",
            Self::Aged => "its time to live is over",
        })
    }
}

/// Whether an agent is as wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Sync {
    /// No difference.
    Synced,
    /// A difference that the next step removes.
    Drifted,
    /// A step is under way.
    Reconciling,
    /// A difference that waits for something.
    Blocked,
    /// Too little is known to say.
    Unknown,
}

/// Whether an agent is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Health {
    /// It runs, and its runtime says that all is well.
    Healthy,
    /// It is being made or coming up.
    Starting,
    /// It runs, and something in it is wrong.
    Degraded,
    /// Its machine runs, and its runtime is not heard.
    Offline,
    /// Its memory is saved, and it does not run.
    Suspended,
    /// It is down because it should be, or was shut down.
    Stopped,
    /// It crashed, or could not be made.
    Failed,
    /// Too little is known to say.
    Unknown,
}

impl fmt::Display for Sync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Synced => "Synced",
            Self::Drifted => "Drifted",
            Self::Reconciling => "Reconciling",
            Self::Blocked => "Blocked",
            Self::Unknown => "Unknown",
        })
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Healthy => "Healthy",
            Self::Starting => "Starting",
            Self::Degraded => "Degraded",
            Self::Offline => "Offline",
            Self::Suspended => "Suspended",
            Self::Stopped => "Stopped",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        })
    }
}

/// One difference between what is wanted and what is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// What kind of difference.
    pub class: DriftClass,
    /// What differs, as the fleet file names it: `power`, `memory`, `tasks.setup`.
    pub path: String,
    /// The value wanted.
    pub wanted: Value,
    /// The value seen.
    pub observed: Value,
    /// What removing it takes.
    pub cost: Cost,
    /// Whether it is removed or only shown.
    #[serde(default)]
    pub policy: DriftPolicy,
}

/// Kinds of drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DriftClass {
    /// Wanted, and does not exist.
    Missing,
    /// Ours, and not wanted.
    Unexpected,
    /// Runs and should not, or the other way round.
    Power,
    /// Other processors than wanted.
    Cpus,
    /// Other memory than wanted.
    Memory,
    /// Other disk than wanted.
    Disk,
    /// Made from another image than wanted.
    Image,
    /// Made by another driver than wanted.
    Driver,
    /// Environment, labels, files, secrets or services that the runtime has not been given yet, or could
    /// not bring about.
    Provisioning,
    /// Folders of the host other than wanted.
    Mounts,
    /// A service that does not work.
    Service,
    /// A task of the file that has not come to its end.
    Task,
    /// The machine runs, and its runtime is not heard.
    RuntimeOffline,
    /// The runtime is of another version than the one that belongs to the controller.
    RuntimeVersion,
    /// Too little is known to say.
    Unknown,
}

/// What removing a difference takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// Nothing stops.
    Live,
    /// The machine comes up.
    Start,
    /// The machine stops and stays down.
    Stop,
    /// The machine stops, and starts again.
    Restart,
    /// A machine is made.
    Create,
    /// The machine is deleted, with all that is in it.
    Destroy,
    /// The machine is deleted with all that is in it, and made anew.
    Replace,
    /// Nothing can be done: it is waited for.
    Wait,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Live => "in place",
            Self::Start => "starts the machine",
            Self::Stop => "stops the machine",
            Self::Restart => "needs a stop",
            Self::Create => "makes a machine",
            Self::Destroy => "deletes the machine and its data",
            Self::Replace => "deletes the machine and its data, and makes a new one",
            Self::Wait => "waits",
        })
    }
}

/// One action on one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The agent.
    pub agent: AgentName,
    /// The driver that acts, or whose instance it is about.
    pub driver: DriverName,
    /// What is done.
    #[serde(flatten)]
    pub action: StepAction,
    /// Why.
    pub reason: String,
    /// What it takes.
    pub cost: Cost,
    /// What it would end; nothing for a step that takes no running machine down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbs: Option<Disturbance>,
    /// The snapshots that go with the machine; nothing for a step that deletes none with any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loses: Option<SnapshotLoss>,
    /// What has to happen first. A step that waits for nothing may begin now.
    pub waits_for: Vec<WaitsFor>,
}

/// What a step ends that takes a running machine down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disturbance {
    /// Tasks that run in the machine, or were sent to it.
    pub tasks: u32,
    /// Whether the step waits until these have ended by themselves. What a person asks for now does not.
    pub drains: bool,
    /// Open sessions: shells and commands that somebody runs in it.
    pub sessions: u32,
}

/// The snapshots that go with a machine which is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotLoss {
    /// All of them.
    pub snapshots: u32,
    /// Those of them that somebody protects: that keeps them only as long as there is the machine.
    pub protected: u32,
}

impl fmt::Display for SnapshotLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.snapshots, self.protected) {
            (1, 0) => f.write_str("its snapshot goes with it"),
            (1, _) => f.write_str("its snapshot goes with it, which is protected"),
            (all, 0) => write!(f, "{all} snapshots go with it"),
            (all, protected) => write!(f, "{all} snapshots go with it, {protected} of them protected"),
        }
    }
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "action")]
pub enum StepAction {
    /// Make the instance and start it.
    Create,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Give it other sizes.
    Resize {
        /// The sizes.
        to: Sizes,
    },
    /// Delete it.
    Destroy,
    /// Take a snapshot of it.
    Snapshot {
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Delete a snapshot of it.
    DropSnapshot {
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// Bring it back to a snapshot, and start it.
    Restore {
        /// The snapshot's name.
        to: SnapshotName,
        /// Whether it is not started, because it should not run.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stays_down: bool,
    },
    /// Save its memory, and stop it.
    Suspend,
    /// Drop the claim of an instance that is gone.
    Forget,
    /// Hand the runtime its environment and labels.
    Configure,
    /// Offer the runtime the version that belongs to the controller. It changes over when it has nothing to do.
    Upgrade,
    /// Run a task of the file.
    Task {
        /// The task.
        task: TaskName,
        /// The moment that it is for; nothing for a task that runs once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
    },
}

impl StepAction {
    /// What the step does to the instance; nothing when it does not touch it.
    #[must_use]
    pub const fn on_instance(&self) -> Option<Action> {
        match self {
            Self::Create => Some(Action::Create),
            Self::Start => Some(Action::Start),
            Self::Stop => Some(Action::Stop),
            Self::Resize { .. } => Some(Action::Resize),
            Self::Destroy => Some(Action::Destroy),
            Self::Snapshot { .. } => Some(Action::Snapshot),
            Self::DropSnapshot { .. } => Some(Action::DropSnapshot),
            Self::Restore { .. } => Some(Action::Restore),
            Self::Suspend => Some(Action::Suspend),
            Self::Forget | Self::Configure | Self::Upgrade | Self::Task { .. } => None,
        }
    }

    /// Whether the machine runs once the step has done what it should.
    #[must_use]
    pub fn brings_up(&self) -> bool {
        let stays_down = matches!(self, Self::Restore { stays_down: true, .. });
        !stays_down && self.on_instance().is_some_and(Action::brings_up)
    }

    /// The snapshot that the step is about.
    #[must_use]
    pub const fn snapshot(&self) -> Option<&SnapshotName> {
        match self {
            Self::Snapshot { name } | Self::DropSnapshot { name } | Self::Restore { to: name, .. } => Some(name),
            _ => None,
        }
    }

    /// The action as it stands in JSON.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Resize { .. } => "resize",
            Self::Destroy => "destroy",
            Self::Snapshot { .. } => "snapshot",
            Self::DropSnapshot { .. } => "dropSnapshot",
            Self::Restore { .. } => "restore",
            Self::Suspend => "suspend",
            Self::Forget => "forget",
            Self::Configure => "configure",
            Self::Upgrade => "upgrade",
            Self::Task { .. } => "task",
        }
    }

    /// The sign in front of the step in a printed plan.
    #[must_use]
    pub const fn symbol(&self) -> &'static str {
        match self {
            Self::Create | Self::Snapshot { .. } => "+",
            Self::Destroy | Self::DropSnapshot { .. } | Self::Forget => "-",
            Self::Start => "^",
            Self::Stop | Self::Suspend => "v",
            Self::Resize { .. } | Self::Restore { .. } => "*",
            Self::Configure | Self::Upgrade | Self::Task { .. } => "~",
        }
    }
}

impl fmt::Display for StepAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Task { task, .. } => write!(f, "run task {task}"),
            Self::Upgrade => f.write_str("upgrade the runtime"),
            Self::Snapshot { name } => write!(f, "take snapshot {name}"),
            Self::DropSnapshot { name } => write!(f, "delete snapshot {name}"),
            Self::Restore { to, .. } => write!(f, "restore snapshot {to}"),
            other => f.write_str(other.word()),
        }
    }
}

/// What a step, or an agent without one, waits for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "on")]
pub enum WaitsFor {
    /// The agent's step before this one.
    EarlierStep,
    /// A step that is under way on this agent.
    Operation {
        /// The operation.
        id: OperationId,
        /// What it does.
        action: Action,
    },
    /// An agent that comes first.
    Dependency {
        /// That agent.
        agent: AgentName,
        /// How far it has to be.
        until: Until,
    },
    /// The tasks under way in the machine, which end before it goes down.
    Drain {
        /// How many.
        tasks: u32,
    },
    /// The time in which what runs may be disturbed.
    Window {
        /// When it opens; nothing when it never does again.
        opens: Option<Timestamp>,
    },
    /// Room on the host.
    Capacity {
        /// What there is too little of.
        resource: Resource,
        /// How much the agent needs: processors, or bytes.
        needs: u64,
        /// How much is free.
        free: u64,
    },
    /// A free place in the driver's lane.
    Lane {
        /// The driver.
        driver: DriverName,
    },
    /// The time before the next attempt.
    Backoff {
        /// When it ends.
        until: Timestamp,
        /// Failures in a row.
        failures: u32,
        /// What went wrong the last time.
        last: String,
    },
    /// A person's yes.
    Approval {
        /// What to approve.
        id: Digest,
    },
    /// Somebody to resume the agent, or the fleet.
    Paused {
        /// Whether it is the whole fleet that is paused.
        fleet: bool,
    },
    /// The fuse, which is blown.
    Fuse,
    /// A driver that answers.
    Driver {
        /// The driver.
        driver: DriverName,
        /// Since when it has not answered.
        since: Timestamp,
        /// What it said, or that it said nothing.
        reason: String,
    },
    /// A driver: none is written, and none of the usual ones is installed.
    NoDriver,
    /// A driver that is written, and that this controller does not have.
    DriverMissing {
        /// The driver.
        driver: DriverName,
    },
    /// A driver that can do what the agent needs.
    Unsupported {
        /// What its driver can't do.
        what: String,
    },
    /// The end of the agent's protection.
    Protected,
    /// A change of `prune`, which is `never`.
    PruneNever,
    /// Somebody to move away an instance that is not ours and has the agent's name.
    ForeignInstance {
        /// The instance.
        instance: InstanceName,
    },
    /// Somebody to purge a deleted instance that still holds the agent's name.
    Tombstone {
        /// The instance.
        instance: InstanceName,
    },
    /// Proof that the instance is ours.
    Proof,
    /// The snapshot that it is to be made from.
    Snapshot {
        /// The agent that it is of.
        agent: AgentName,
        /// The snapshot.
        name: SnapshotName,
    },
    /// The machine of this agent to be made as a copy of this one.
    Clone {
        /// The agent.
        agent: AgentName,
    },
    /// A person to start it: the restart policy says that the controller does not.
    RestartPolicy,
    /// The instance to become what it is on its way to.
    Transition {
        /// What it is doing.
        state: InstanceState,
    },
    /// The instance's state to become known.
    UnknownState,
    /// The runtime to connect.
    Runtime,
    /// A task under way.
    TaskRunning {
        /// The task.
        task: TaskName,
    },
    /// Somebody to look at a task that did not succeed.
    TaskFailed {
        /// The task.
        task: TaskName,
        /// How it ended.
        outcome: String,
        /// When it runs again as it is; nothing when it does not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next: Option<Timestamp>,
    },
    /// Somebody to look at something in the machine that does not work.
    Problem {
        /// What, in a sentence without its full stop.
        what: String,
    },
}

impl fmt::Display for WaitsFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EarlierStep => f.write_str("the step before it"),
            Self::Operation { action, .. } => write!(f, "a {action} that is under way"),
            Self::Dependency { agent, until } => write!(f, "agent `{agent}`, which is not {until} yet"),
            Self::Drain { tasks: 1 } => f.write_str("the task under way in it, which ends first"),
            Self::Drain { tasks } => write!(f, "the {tasks} tasks under way in it, which end first"),
            Self::Window { opens: Some(opens) } => write!(f, "the next window for disruptive steps, at {opens:.0}"),
            Self::Window { opens: None } => f.write_str("a window for disruptive steps, and none opens any more"),
            Self::Capacity { resource, needs, free } => {
                let (needs, free) = (resource.amount(*needs), resource.amount(*free));
                write!(f, "room on the host: it needs {needs} of {resource}, and {free} is free")
            }
            Self::Lane { driver } => write!(f, "a free place in the lane of driver {driver}"),
            Self::Backoff { until, failures, last } => {
                write!(
                    f,
                    "the next attempt at {until:.0} after {failures} {}; the last: {last}",
                    if *failures == 1 { "failure" } else { "failures" }
                )
            }
            Self::Approval { id } => write!(f, "an approval ({})", id.short()),
            Self::Paused { fleet: true } => f.write_str("somebody to resume the fleet, which is paused"),
            Self::Paused { fleet: false } => f.write_str("somebody to resume the agent, which is paused"),
            Self::Fuse => f.write_str("the fuse, which is blown: too many agents failed at once"),
            Self::Driver { driver, since, reason } => {
                write!(f, "driver {driver}, which has not answered since {since:.0}: {reason}")
            }
            Self::NoDriver => f.write_str(
                "a driver: multipass and qemu are not installed; install one, or write `driver: local` \
                 for processes without isolation",
            ),
            Self::DriverMissing { driver } => write!(f, "driver {driver}, which this controller does not have"),
            Self::Unsupported { what } => write!(f, "another driver, or no such wish: its driver can't {what}"),
            Self::Protected => f.write_str("the end of its protection: `protect: true` refuses every deletion"),
            Self::PruneNever => f.write_str("a person: with `prune: never` it is not deleted; use `destroy`"),
            Self::ForeignInstance { instance } => write!(
                f,
                "somebody to rename or delete instance `{instance}`, which has this agent's name and is not ours, or to \
                 take it over with `vm-agent import`"
            ),
            Self::Tombstone { instance } => {
                write!(
                    f,
                    "somebody to free the name of the deleted instance `{instance}`: `multipass recover {instance}` \
                     brings it back, `multipass delete --purge {instance}` deletes it for good"
                )
            }
            Self::Proof => f.write_str("proof that the instance is ours: its runtime has never said so"),
            Self::Snapshot { agent, name } => write!(f, "snapshot `{name}` of agent `{agent}`"),
            Self::Clone { agent } => write!(f, "the machine of agent `{agent}` to be made as a copy of it"),
            Self::RestartPolicy => f.write_str("a person to start it: its restart policy says so"),
            Self::Transition { state } => write!(f, "the instance, which is {state:?}"),
            Self::UnknownState => f.write_str("the instance's state to become known"),
            Self::Runtime => f.write_str("the runtime to connect"),
            Self::TaskRunning { task } => write!(f, "task `{task}`, which is running"),
            Self::TaskFailed { task, outcome, next } => {
                write!(f, "somebody to look at task `{task}`, which {outcome}; it runs again ")?;
                match next {
                    Some(next) => write!(f, "at {next:.0}"),
                    None => f.write_str("when its text changes, or when it is replayed"),
                }
            }
            Self::Problem { what } => write!(f, "somebody to look at it: {what}"),
        }
    }
}

/// What machines take of their host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Processors.
    Cpus,
    /// Memory.
    Memory,
    /// Disk.
    Disk,
}

impl Resource {
    /// An amount of it, for people.
    fn amount(self, amount: u64) -> String {
        match self {
            Self::Cpus => amount.to_string(),
            Self::Memory | Self::Disk => ByteSize::from_bytes(amount).rounded(),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cpus => "processors",
            Self::Memory => "memory",
            Self::Disk => "disk",
        })
    }
}

/// Something that waits for a person's yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalRequest {
    /// The digest of what is shown: another thing has another id, so a yes can't slip onto it.
    pub id: Digest,
    /// The agent that it is about.
    pub agent: AgentName,
    /// What would happen.
    pub what: String,
}

/// Whether the loop may change anything: too many failures at once mean that the host or a driver is
/// sick, and not the agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum Fuse {
    /// It may.
    Closed {
        /// Failures up to this time no longer count.
        since: Timestamp,
    },
    /// It may not, but for one agent at a time to see whether all is well again.
    Blown {
        /// When it blew.
        since: Timestamp,
        /// How many agents had failed.
        failed: u32,
        /// How many agents there are.
        of: u32,
    },
}

impl Fuse {
    /// Whether the fuse is blown.
    #[must_use]
    pub const fn is_blown(&self) -> bool {
        matches!(self, Self::Blown { .. })
    }
}

/// A named fact about an agent or the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the fact is about.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word for machines.
    pub reason: String,
    /// Why, in a sentence for people.
    pub message: String,
    /// When the status last changed.
    pub last_transition_time: Timestamp,
    /// The accepted fleet file that it was found under.
    pub observed_generation: Option<Revision>,
}

/// Whether a fact holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Too little is known to say.
    Unknown,
}
