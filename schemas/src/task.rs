//! Tasks: units of work for a runtime, each with exactly one outcome.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{ClaimId, Digest, Incarnation, TaskId};
use crate::names::{AgentName, TaskName};
use crate::units::Span;
use crate::wire::{Run, TaskOutcome};

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The task's id.
    pub id: TaskId,
    /// The agent that does it.
    pub agent: AgentName,
    /// Where it comes from.
    pub source: TaskSource,
    /// What to run.
    pub run: Run,
    /// How long it may run.
    pub timeout: Span,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How far it is.
    pub state: TaskState,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it was last heard to be running.
    pub started_at: Option<Timestamp>,
    /// When its end was stored.
    pub ended_at: Option<Timestamp>,
    /// The last of what it wrote, at most 64 KiB.
    pub output: String,
}

/// Where a task comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "from")]
pub enum TaskSource {
    /// The fleet file.
    File {
        /// Its name there.
        name: TaskName,
        /// The digest of its wording.
        digest: Digest,
        /// The machine that it is for.
        claim: ClaimId,
        /// The moment that it is for; nothing for a task that runs once.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        due: Option<Timestamp>,
    },
    /// A person or a program, through the API.
    Request {
        /// Who.
        author: String,
    },
}

/// How far a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum TaskState {
    /// Accepted, and handed to nobody yet.
    Queued,
    /// Handed to the runtime of this incarnation, or about to be: it may have begun.
    Sent {
        /// The incarnation: with its end the task is Interrupted.
        incarnation: Incarnation,
    },
    /// Running in this incarnation.
    Running {
        /// The incarnation: with its end the task is Interrupted.
        incarnation: Incarnation,
    },
    /// Over. This never changes again.
    Ended {
        /// How.
        outcome: TaskOutcome,
    },
}

impl Task {
    /// How the task ended; nothing while it has not.
    #[must_use]
    pub const fn outcome(&self) -> Option<&TaskOutcome> {
        match &self.state {
            TaskState::Ended { outcome } => Some(outcome),
            TaskState::Queued | TaskState::Sent { .. } | TaskState::Running { .. } => None,
        }
    }

    /// The incarnation that it was handed to, while it is not over: it may have begun there, and can be
    /// done nowhere else.
    #[must_use]
    pub const fn handed_to(&self) -> Option<Incarnation> {
        match self.state {
            TaskState::Sent { incarnation } | TaskState::Running { incarnation } => Some(incarnation),
            TaskState::Queued | TaskState::Ended { .. } => None,
        }
    }
}
