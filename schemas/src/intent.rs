//! What people say beside the file: overrides.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fleet::{DeclaredAgent, PowerState};
use crate::ids::OverrideId;
use crate::names::AgentName;

/// An imperative change, layered on the file spec. There is one for each agent and path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// The override's own id.
    pub id: OverrideId,
    /// The agent.
    pub agent: AgentName,
    /// What is changed, and to what.
    #[serde(flatten)]
    pub change: Change,
    /// Who said it.
    pub author: String,
    /// Why, if they said.
    pub reason: Option<String>,
    /// When it was said.
    pub created_at: Timestamp,
    /// When it ends by itself; nothing means that it stays until cleared.
    pub expires_at: Option<Timestamp>,
}

/// What an override changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "path", content = "value")]
pub enum Change {
    /// Whether the machine should run.
    Power {
        /// What it should do.
        wanted: PowerState,
        /// What the file said when the override was made; when that changes, the override ends.
        covers: PowerState,
    },
    /// Whether the agent should exist.
    Presence(Presence),
}

/// Whether an agent should exist, beside what the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Presence {
    /// It should, with this spec: an agent made by hand.
    Present(DeclaredAgent),
    /// It should not, though the file declares it.
    Absent,
}

/// The path that an override covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OverridePath {
    /// Whether the machine should run.
    Power,
    /// Whether the agent should exist.
    Presence,
}

impl Change {
    /// The path that the change covers.
    #[must_use]
    pub const fn path(&self) -> OverridePath {
        match self {
            Self::Power { .. } => OverridePath::Power,
            Self::Presence(_) => OverridePath::Presence,
        }
    }
}

impl Override {
    /// Whether the override still holds at that time.
    #[must_use]
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}
