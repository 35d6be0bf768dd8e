//! What people say beside the file: overrides.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fleet::{DeclaredAgent, PowerState, Reconcile};
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
#[expect(clippy::large_enum_variant, reason = "there are few overrides")]
pub enum Change {
    /// Whether the machine should run.
    Power {
        /// What it should do.
        wanted: PowerState,
        /// What the file said when the override was made; when that changes, the override ends.
        covers: PowerState,
    },
    /// Whether the controller removes drift by itself.
    Reconcile {
        /// What it should do.
        wanted: Reconcile,
        /// What the file said when the override was made; when that changes, the override ends.
        covers: Reconcile,
    },
    /// Whether the agent should exist.
    Presence(Presence),
}

/// Whether an agent should exist, beside what the file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::large_enum_variant, reason = "there are few overrides")]
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
    /// Whether the controller removes drift by itself.
    Reconcile,
    /// Whether the agent should exist.
    Presence,
}

impl OverridePath {
    /// All paths.
    pub const ALL: [Self; 3] = [Self::Power, Self::Reconcile, Self::Presence];

    /// The path as it stands in JSON and in commands.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Power => "power",
            Self::Reconcile => "reconcile",
            Self::Presence => "presence",
        }
    }
}

/// A fleet at rest: looked at and planned for, and not touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// Who said it.
    pub author: String,
    /// Why, if they said.
    pub reason: Option<String>,
    /// When it was said.
    pub created_at: Timestamp,
    /// When it ends by itself; nothing means that somebody has to resume the fleet.
    pub expires_at: Option<Timestamp>,
}

impl Change {
    /// The path that the change covers.
    #[must_use]
    pub const fn path(&self) -> OverridePath {
        match self {
            Self::Power { .. } => OverridePath::Power,
            Self::Reconcile { .. } => OverridePath::Reconcile,
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
