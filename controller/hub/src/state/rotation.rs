//! How a runtime comes by another key.

use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Rotated;

use super::handshake::Refusal;
use super::{ConnId, Hub};

impl Hub {
    /// A runtime is to have another key.
    pub(super) fn rotate(&mut self, _agent: &AgentName, _challenge: Nonce) {}

    /// A runtime has made itself another key.
    pub(super) fn rotated(&mut self, _conn: ConnId, _agent: &AgentName, _rotated: Rotated) -> Result<(), Refusal> {
        Ok(())
    }
}
