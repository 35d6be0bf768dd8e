//! Who may speak as which agent, and with which token the API may be used. Tokens stand here only as
//! digests.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{Boot, Digest, Epoch, Incarnation, Nonce, TokenId};
use crate::names::AgentName;

/// Who may speak as an agent: the hub's record of one incarnation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// The agent.
    pub agent: AgentName,
    /// The incarnation that alone may speak.
    pub incarnation: Incarnation,
    /// The nonce of the agent's claim.
    pub nonce: Nonce,
    /// The join token that may still be used, once.
    pub join: Option<JoinToken>,
    /// The key and the machine that the credential is bound to, once a runtime has joined.
    pub binding: Option<Binding>,
    /// The latest start of the runtime that was seen.
    pub boot: Boot,
    /// The epoch of the latest session.
    pub epoch: Epoch,
}

/// A join token, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinToken {
    /// The token's digest.
    pub digest: Digest,
    /// When it stops working, used or not.
    pub expires_at: Timestamp,
}

/// What a credential is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Binding {
    /// The runtime's Ed25519 public key, base64 (URL alphabet, no padding).
    pub public_key: String,
    /// The key that takes its place at the next hello that uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<String>,
    /// The machine that it joined from.
    pub machine_id: Digest,
    /// Whether its runtime has shown that it runs in its machine. From then on it has to be able to.
    #[serde(default)]
    pub verified: bool,
}

/// A token of the HTTP API, as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiToken {
    /// The token's id.
    pub id: TokenId,
    /// Who it is for.
    pub name: String,
    /// The token's digest.
    #[serde(skip_serializing, default = "no_digest")]
    #[schemars(skip)]
    pub digest: Digest,
    /// What it may do. One that was made before there were roles may do everything.
    #[serde(default)]
    pub role: Role,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working; nothing means when it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// What a token of the HTTP API may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// See everything but what others wrote in a terminal.
    Read,
    /// Run things in agents: tasks, exec, shells, copies, forwards, messages.
    Exec,
    /// Change what is wanted: apply, start, stop, create, destroy, approve, pause.
    Lifecycle,
    /// Everything, tokens and the controller itself included.
    #[default]
    Admin,
}

impl Role {
    /// All roles, the least first.
    pub const ALL: [Self; 4] = [Self::Read, Self::Exec, Self::Lifecycle, Self::Admin];

    /// The role as it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Exec => "exec",
            Self::Lifecycle => "lifecycle",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is no role: write read, exec, lifecycle or admin"))
    }
}

fn no_digest() -> Digest {
    Digest::from(String::new())
}
