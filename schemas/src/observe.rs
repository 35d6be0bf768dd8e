//! What is known of the world: instances as drivers see them, what drivers can do, and the claims
//! and operations that say what of it is ours.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::fleet::{AgentSpec, DriverName, Mount, Provision};
use crate::ids::{ClaimId, Incarnation, Life, Nonce, OperationId};
use crate::names::{AgentName, FleetName, InstanceName, ScheduleName, SnapshotName};
use crate::snapshot::Point;
use crate::units::{ByteSize, Span};

/// An instance as its driver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// The name that the driver knows it by.
    pub name: InstanceName,
    /// What it is doing.
    pub state: InstanceState,
    /// The nonce that the driver read back from the instance. Nothing means that this driver can't
    /// read it without the runtime's help.
    pub nonce: Option<Nonce>,
    /// Its sizes, where the driver can tell.
    pub sizes: Option<Sizes>,
    /// Its snapshots, where this listing tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<BTreeSet<SnapshotName>>,
}

/// What a driver tells of an instance that somebody thinks of taking over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// What it was made from, in the driver's own terms, where the driver still knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The sizes that it was given, where the driver can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Sizes>,
    /// The folders of the host in it, by the path that they have there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, Mount>,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InstanceState {
    /// It is coming up.
    Starting,
    /// It runs.
    Running,
    /// It is going down.
    Stopping,
    /// It is down because it was stopped or shut down.
    Stopped,
    /// It is down, and nobody stopped it: it crashed.
    Failed,
    /// Its memory is saved, and it does not run.
    Suspended,
    /// It is deleted and still holds its name.
    Deleted,
    /// The driver knows it and can't say what it is doing.
    Unknown,
}

/// The sizes of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Sizes {
    /// Virtual processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory: ByteSize,
    /// Disk, in bytes.
    pub disk: ByteSize,
}

impl Sizes {
    /// The sizes that a spec asks for.
    #[must_use]
    pub fn of(spec: &AgentSpec) -> Self {
        Self { cpus: spec.cpus, memory: spec.memory, disk: spec.disk }
    }
}

/// What a driver can do and bear, as data, so that a plan can be made without the driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capabilities {
    /// Whether the driver gives its machines the sizes asked for.
    pub sizes: bool,
    /// Whether the driver makes machines from images.
    pub images: bool,
    /// Whether sizes change while a machine runs.
    pub resize_running: bool,
    /// Whether a machine can be suspended.
    pub suspend: bool,
    /// Of what snapshots can be taken.
    pub snapshots: SnapshotSupport,
    /// Of what machines can be made that begin as another was.
    #[serde(default)]
    pub clones: CloneSupport,
    /// Whether a machine can begin as a copy of one like it that has booted already.
    #[serde(default)]
    pub warm: bool,
    /// Whether instances carry labels.
    pub labels: bool,
    /// Which folders of the host can be mounted.
    pub mounts: MountSupport,
    /// Whether the machines take memory, processors and disk of this host.
    pub uses_host: bool,
    /// Whether a call goes on when the controller that made it is gone. Then an open operation of
    /// an earlier life may still be making its instance.
    pub calls_outlive_controller: bool,
    /// Steps that the driver bears at a time.
    pub lanes: u32,
    /// The address at which the driver's machines see this host, where they can't use any that the host has
    /// itself. Behind it is the host's loopback, or the host's end of a network of the driver's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<IpAddr>,
    /// How long each step may take.
    pub deadlines: Deadlines,
}

/// Which folders of the host a driver can mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MountSupport {
    /// None.
    None,
    /// Those that machines may write to.
    Writable,
    /// Any.
    Any,
}

/// Of what a driver can take snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotSupport {
    /// Of nothing.
    None,
    /// Of the disk of a machine that is down.
    Down,
    /// Of a machine as it is, with its memory while it runs.
    Live,
}

/// Of what a driver can make machines that begin as another was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CloneSupport {
    /// Of nothing.
    #[default]
    None,
    /// Of a machine that is down, as it is then: of its latest snapshot, for as long as it has not run since.
    Down,
    /// Of any snapshot.
    Snapshots,
}

/// How long each kind of step may take before it counts as timed out and the instance is looked at
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deadlines {
    /// A listing of all instances.
    pub list: Span,
    /// A create, up to the machine running.
    pub create: Span,
    /// A start.
    pub start: Span,
    /// A stop, the hard means included.
    pub stop: Span,
    /// A change of sizes.
    pub resize: Span,
    /// A deletion.
    pub destroy: Span,
    /// A snapshot, or the deletion of one.
    pub snapshot: Span,
    /// Back to a snapshot, up to the machine running.
    pub restore: Span,
    /// From a running machine to a runtime that has said hello.
    pub connect: Span,
}

/// The record, written before a launch, that proves an instance is ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// The claim's own id.
    pub id: ClaimId,
    /// The fleet.
    pub fleet: FleetName,
    /// The agent.
    pub agent: AgentName,
    /// The driver, resolved once.
    pub driver: DriverName,
    /// The instance's name.
    pub instance: InstanceName,
    /// What ties the instance to this claim.
    pub nonce: Nonce,
    /// Which life of the instance this is.
    pub incarnation: Incarnation,
    /// When the claim was written.
    pub created_at: Timestamp,
    /// How far it is proven that the instance is ours.
    pub proof: Proof,
    /// What the instance was last known to be brought to: one that is down although this says `up`
    /// went down by itself.
    pub standing: Standing,
    /// Whether the agent was protected when it was last declared. It outlives the declaration, so
    /// that taking an agent out of the file does not take its protection away too.
    pub protect: bool,
    /// Whether the agent left the file together with more others than may go unasked. It goes with a
    /// yes of its own, however few of them are left by then.
    pub left_in_mass: bool,
    /// Whether its machine was stopped for want of work: it starts again when there is some.
    #[serde(default)]
    pub asleep: bool,
    /// What the instance was made from: the fields that only birth can change.
    pub birth: Birth,
    /// What became of the instance between its birth and now.
    #[serde(default)]
    pub history: History,
}

impl Claim {
    /// Whether a nonce read back from an instance shows that it is this claim's. One on its way back to a
    /// snapshot has that of its former incarnation until it is there.
    #[must_use]
    pub fn is_of(&self, nonce: &Nonce) -> bool {
        *nonce == self.nonce || self.history.restoring.as_ref().is_some_and(|way| *nonce == way.from)
    }
}

/// What becomes of an instance in the course of its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct History {
    /// Somebody else made it, and it is to be taken over: until it is, nothing else is done with it.
    pub adopting: bool,
    /// The way back to a snapshot that it is on: until it is there, nothing else is done with it.
    pub restoring: Option<Restoring>,
    /// The last way back that it went: what was done in the machine meanwhile is undone.
    pub undone: Option<Undone>,
    /// The latest moment of each schedule for which a snapshot was asked for.
    pub schedules: BTreeMap<ScheduleName, Timestamp>,
    /// The points of its life at which a snapshot was asked for.
    pub points: BTreeSet<Point>,
}

/// An instance's way back to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Restoring {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// When that was taken.
    pub taken_at: Timestamp,
    /// The nonce that the instance had before.
    pub from: Nonce,
}

/// The time that a restore took back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Undone {
    /// When the snapshot was taken.
    pub since: Timestamp,
    /// When the machine went back to it.
    pub until: Timestamp,
}

/// What an instance was last known to be brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Standing {
    /// Our last step brought it up, or it was seen running since.
    Up,
    /// We stopped it, or a person said that it may start again.
    Down,
    /// It went down by itself, and that has been noted as a failure.
    Fell,
}

/// How far it is proven that an instance is the one that its claim speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Proof {
    /// Not yet: the launch is not over, or nobody has read the nonce back.
    Pending,
    /// The name was free in a healthy listing just before our create, and the instance has been
    /// watched ever since by this life of the controller. A later life has not.
    Watched {
        /// The life that watches.
        life: Life,
    },
    /// The runtime, or the driver, read the nonce back.
    Confirmed,
}

/// What an instance was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Birth {
    /// The image as it was asked for.
    pub image: String,
    /// The sizes that the instance was given, or last resized to.
    pub sizes: Sizes,
    /// The folders of the host that it was last started with, by the path that they have in it.
    #[serde(default)]
    pub mounts: BTreeMap<String, Mount>,
    /// What it got besides the runtime.
    #[serde(default)]
    pub provision: Provision,
}

impl Birth {
    /// What an instance made from this spec is made from.
    #[must_use]
    pub fn of(spec: &AgentSpec) -> Self {
        Self {
            image: spec.image.clone(),
            sizes: Sizes::of(spec),
            mounts: spec.mounts.clone(),
            provision: Provision::of(spec),
        }
    }
}

/// One step under way: stored before its side effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// The operation's own id.
    pub id: OperationId,
    /// The agent that it acts on.
    pub agent: AgentName,
    /// The driver whose lane it takes.
    pub driver: DriverName,
    /// What it does.
    pub action: Action,
    /// The snapshot that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotName>,
    /// When it began.
    pub started_at: Timestamp,
    /// When it counts as timed out.
    pub deadline: Timestamp,
    /// The life of the controller that began it.
    pub life: Life,
}

/// What went wrong with an agent, and when it may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// The agent.
    pub agent: AgentName,
    /// Failures in a row.
    pub failures: u32,
    /// When the last one was.
    pub failed_at: Timestamp,
    /// No step before this, but for a destroy, which waits for failures of a destroy alone.
    pub not_before: Timestamp,
    /// The step that failed last; nothing where the instance went down by itself, or the step could not even begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Action>,
    /// What the last failure was, in a sentence.
    pub last: String,
}

/// What a step does to an agent's instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Make the instance and start it.
    Create,
    /// Start it.
    Start,
    /// Stop it.
    Stop,
    /// Give it other sizes.
    Resize,
    /// Delete it.
    Destroy,
    /// Take a snapshot of it.
    Snapshot,
    /// Delete a snapshot of it.
    DropSnapshot,
    /// Bring it back to a snapshot, and start it.
    Restore,
    /// Save its memory, and stop it.
    Suspend,
}

impl Action {
    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Resize => "resize",
            Self::Destroy => "destroy",
            Self::Snapshot => "snapshot",
            Self::DropSnapshot => "delete a snapshot of",
            Self::Restore => "restore",
            Self::Suspend => "suspend",
        }
    }

    /// Whether the machine runs when the action has done what it should.
    #[must_use]
    pub const fn brings_up(self) -> bool {
        matches!(self, Self::Create | Self::Start | Self::Restore)
    }

    /// How long the action may take on a driver with these deadlines.
    #[must_use]
    pub const fn deadline(self, deadlines: &Deadlines) -> Span {
        match self {
            Self::Create => deadlines.create,
            Self::Start => deadlines.start,
            Self::Stop => deadlines.stop,
            Self::Resize => deadlines.resize,
            Self::Destroy => deadlines.destroy,
            Self::Snapshot | Self::DropSnapshot | Self::Suspend => deadlines.snapshot,
            Self::Restore => deadlines.restore,
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What the host has that machines take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory: ByteSize,
}
