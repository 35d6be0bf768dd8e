//! Which life of which instance the machine leads, as far as its guest program has been told.

use serde::{Deserialize, Serialize};
use vm_agent_schemas::guest::MachineId;
use vm_agent_schemas::ids::{Digest, Incarnation, Nonce};
use vm_agent_schemas::names::{AgentName, FleetName};
use vm_agent_schemas::wire::Seed;

/// What is remembered of a seed. It lies where only root writes, and proves which instance this is: the seed
/// itself lies in the runtime's folder, which tasks may write, and is never read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Life {
    /// The fleet.
    pub(super) fleet: FleetName,
    /// The agent.
    pub(super) agent: AgentName,
    /// The incarnation.
    pub(super) incarnation: Incarnation,
    /// The nonce.
    pub(super) nonce: Nonce,
    /// The digest of the whole seed.
    pub(super) seed: Digest,
    /// The id of the hardware that the seed was given on; nothing where it has none.
    pub(super) hardware: Option<String>,
    /// The machine id that came with the seed.
    #[serde(default)]
    pub(super) machine_id: Option<MachineId>,
}

impl Life {
    /// What is to be remembered of a seed that is given on some hardware.
    pub(super) fn of(seed: &Seed, hardware: Option<String>, machine_id: &MachineId) -> Self {
        Self {
            fleet: seed.fleet.clone(),
            agent: seed.agent.clone(),
            incarnation: seed.incarnation,
            nonce: seed.nonce.clone(),
            seed: Digest::of_json(seed),
            hardware,
            machine_id: Some(machine_id.clone()),
        }
    }

    /// Whether it is the life of a machine that boots on this hardware. Drivers that can, give machines their id
    /// as that of their hardware. One that went on from the memory of another sees that other's until it boots.
    pub(super) fn is_of(&self, hardware: Option<&str>) -> bool {
        let own = self.machine_id.as_ref().map(MachineId::hyphenated);
        hardware.is_some() && [self.hardware.as_deref(), own.as_deref()].contains(&hardware)
    }
}
