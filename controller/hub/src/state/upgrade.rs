//! How a runtime is replaced by another version.
//!
//! An offer is a stream of a client like any other: the program goes in as its input, under the same windows,
//! and the stream ends when the runtime has it, or says that it can't be replaced. When it takes the new
//! version into use is its own affair.

use jiff::Timestamp;
use vm_agent_schemas::ids::Digest;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::units::ByteSize;
use vm_agent_schemas::wire::{FromHub, TaskOutcome, Upgrade, UpgradeFailed};

use super::handshake::Refusal;
use super::reports::check_upgrade_failed;
use super::streams::{Kind, Owner};
use super::{ConnId, Effect, Hub, Notice, StreamKey};
use crate::stream::StreamEvent;

/// Another version of the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The version.
    pub version: String,
    /// The program's size.
    pub size: ByteSize,
    /// The SHA-256 of the program.
    pub sha256: Digest,
}

impl Hub {
    /// A client has another version for an agent's runtime.
    pub(super) fn offer_upgrade(&mut self, key: StreamKey, agent: &AgentName, offer: Offer, now: Timestamp) {
        let Offer { version, size, sha256 } = offer;
        if let Some((conn, stream)) = self.begin_stream(key, agent, Kind::Offer(sha256.clone()), true) {
            self.send(conn, FromHub::Upgrade(Upgrade { version, size, sha256, stream }));
            self.look_at(agent, now);
        }
    }

    /// A runtime can't be replaced: at once, and then the program need not come; or after it has tried.
    pub(super) fn upgrade_failed(
        &mut self,
        conn: ConnId,
        agent: &AgentName,
        failed: UpgradeFailed,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        check_upgrade_failed(&failed)?;
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        for owner in session.streams.close_offers(&failed.sha256) {
            if let Owner::Client(key) = owner {
                self.clients.remove(&key);
                let outcome = TaskOutcome::Failed { reason: failed.reason.clone() };
                self.effects.push(Effect::Client { key, event: StreamEvent::Ended(outcome) });
            }
        }
        self.notify(Notice::UpgradeFailed { agent: agent.clone(), failed });
        self.look_at(agent, now);
        Ok(())
    }
}
