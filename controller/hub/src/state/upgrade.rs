//! How a runtime is replaced by another version.

use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::UpgradeFailed;

use super::handshake::Refusal;
use super::{Hub, StreamKey};

impl Hub {
    /// A client has another version for an agent's runtime.
    pub(super) fn offer_upgrade(
        &mut self,
        _key: StreamKey,
        _agent: &AgentName,
        _version: String,
        _size: ByteSize,
        _sha256: Digest,
    ) {
    }

    /// A runtime can't be replaced.
    pub(super) fn upgrade_failed(&mut self, _agent: &AgentName, _failed: UpgradeFailed) -> Result<(), Refusal> {
        Ok(())
    }
}
