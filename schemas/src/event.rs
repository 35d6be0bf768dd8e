//! Events: what happened, kept in order.

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::AgentName;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Its place in the order of all events.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What kind of thing.
    pub kind: EventKind,
    /// The agent that it is about; nothing when it is about the fleet.
    pub agent: Option<AgentName>,
    /// What happened, in a sentence.
    pub message: String,
}

/// Something that happened, before it has its place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// What kind of thing.
    pub kind: EventKind,
    /// The agent that it is about.
    pub agent: Option<AgentName>,
    /// What happened, in a sentence.
    pub message: String,
}

impl NewEvent {
    /// An event about one agent.
    pub fn of(agent: &AgentName, kind: EventKind, message: impl Into<String>) -> Self {
        Self { kind, agent: Some(agent.clone()), message: message.into() }
    }

    /// An event about the fleet.
    pub fn fleet(kind: EventKind, message: impl Into<String>) -> Self {
        Self { kind, agent: None, message: message.into() }
    }
}

macro_rules! event_kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal),+ $(,)?) => {
        /// Kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $text)] $variant),+
        }

        impl EventKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The kind as it stands in JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text),+
                }
            }
        }
    };
}

event_kinds! {
    /// The controller began its life.
    ControllerStarted = "ControllerStarted",
    /// The controller ended its life in order.
    ControllerStopped = "ControllerStopped",
    /// A fleet file was accepted.
    FleetApplied = "FleetApplied",
    /// A file on the disk can't be used: the accepted one stays in force.
    FileRejected = "FileRejected",
    /// A file on the disk waits for an approval: the accepted one stays in force.
    FileHeld = "FileHeld",
    /// A file on the disk is gone or can't be read: the accepted one stays in force.
    FileLost = "FileLost",
    /// A file on the disk that was none says again what is in force.
    FileRestored = "FileRestored",
    /// A person went back to an earlier file.
    FleetRolledBack = "FleetRolledBack",
    /// The clock jumped: the machine slept, or somebody set the clock.
    ClockJumped = "ClockJumped",
    /// A step began.
    StepStarted = "StepStarted",
    /// A step did what it should.
    StepSucceeded = "StepSucceeded",
    /// A step failed.
    StepFailed = "StepFailed",
    /// A step took too long; the instance is looked at again.
    StepTimedOut = "StepTimedOut",
    /// A step was given up: it would have brought up what is to be deleted.
    StepGivenUp = "StepGivenUp",
    /// A step was under way when the controller went down.
    StepInterrupted = "StepInterrupted",
    /// An instance went down, and nobody stopped it.
    InstanceFailed = "InstanceFailed",
    /// A snapshot of a machine was taken.
    SnapshotTaken = "SnapshotTaken",
    /// A snapshot of a machine was deleted.
    SnapshotDeleted = "SnapshotDeleted",
    /// What was to be done with a machine's snapshots was not done.
    SnapshotFailed = "SnapshotFailed",
    /// A machine went back to a snapshot.
    Restored = "Restored",
    /// Somebody wants an instance taken over that others made.
    Imported = "Imported",
    /// Somebody let an agent go, and its instance stays.
    Released = "Released",
    /// An agent has nothing to do, and its machine is to stop.
    AgentAsleep = "AgentAsleep",
    /// There is work for an agent that was asleep.
    AgentAwake = "AgentAwake",
    /// A runtime said hello for the first time in its incarnation.
    RuntimeJoined = "RuntimeJoined",
    /// A runtime connected.
    RuntimeConnected = "RuntimeConnected",
    /// A runtime is no longer heard.
    RuntimeLost = "RuntimeLost",
    /// Somebody who said to be a runtime was refused.
    RuntimeRefused = "RuntimeRefused",
    /// A runtime was found to run elsewhere than in the machine that it spoke for.
    IsolationBroken = "IsolationBroken",
    /// A task was accepted.
    TaskAccepted = "TaskAccepted",
    /// A task began.
    TaskStarted = "TaskStarted",
    /// An attempt of a task ended, and another one follows.
    TaskRetried = "TaskRetried",
    /// A task ended.
    TaskEnded = "TaskEnded",
    /// A message was not taken.
    MessageDead = "MessageDead",
    /// A runtime has another key.
    KeyRotated = "KeyRotated",
    /// A runtime was replaced by another version.
    RuntimeUpgraded = "RuntimeUpgraded",
    /// A runtime can't be replaced by another version.
    UpgradeFailed = "UpgradeFailed",
    /// A person overrode the file.
    OverrideSet = "OverrideSet",
    /// A person ended an override.
    OverrideCleared = "OverrideCleared",
    /// An override came to its time.
    OverrideExpired = "OverrideExpired",
    /// The file changed what an override covered.
    OverrideSuperseded = "OverrideSuperseded",
    /// A person said yes.
    Approved = "Approved",
    /// A person paused the fleet.
    FleetPaused = "FleetPaused",
    /// The fleet is looked after again, because a person said so or the pause came to its time.
    FleetResumed = "FleetResumed",
    /// Too many agents failed at once.
    FuseBlown = "FuseBlown",
    /// The fuse closed again.
    FuseClosed = "FuseClosed",
    /// A driver stopped answering.
    DriverLost = "DriverLost",
    /// A driver answers again.
    DriverBack = "DriverBack",
    /// A webhook could not be told of an event.
    WebhookFailed = "WebhookFailed",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
