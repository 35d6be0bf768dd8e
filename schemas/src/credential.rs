//! Who may speak as which agent, and with which token the API may be used. Tokens stand here only as
//! digests.

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
    /// The machine that it joined from.
    pub machine_id: Digest,
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
    /// When it was made.
    pub created_at: Timestamp,
}

fn no_digest() -> Digest {
    Digest::from(String::new())
}
