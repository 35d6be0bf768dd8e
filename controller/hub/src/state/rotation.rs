//! How a runtime comes by another key.
//!
//! ```text
//!  hub ── rotate ──▶ runtime: makes a key, keeps it beside the old one
//!  hub ◀── rotated ── runtime: proves that it holds the new one
//!  hub: stores it as the next one ── rotate.ack ──▶ runtime: uses it from its next hello on
//! ```
//!
//! Until a hello with the new key is accepted the old one holds as well, so it does not matter where this
//! is cut off: a runtime that did not hear the acknowledgement comes with the old key, one that did with the
//! new one.

use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Challenge, FromHub, RotateAck, Rotated};

use super::handshake::{Refusal, check_rotated};
use super::{ConnId, Effect, Hub, Notice, Record};

impl Hub {
    /// A runtime is to have another key. Without a session, or while it is asked already, nothing happens.
    pub(super) fn rotate(&mut self, agent: &AgentName, challenge: Nonce) {
        let Some(conn) = self.live(agent) else { return };
        let Some(session) = self.session_mut(conn).filter(|session| session.rotating.is_none()) else { return };
        let challenge = Challenge { challenge };
        session.rotating = Some(challenge.clone());
        self.send(conn, FromHub::Rotate(challenge));
    }

    /// A runtime has made itself another key.
    pub(super) fn rotated(&mut self, conn: ConnId, agent: &AgentName, rotated: Rotated) -> Result<(), Refusal> {
        let Some(session) = self.session_mut(conn) else { return Ok(()) };
        let Some(challenge) = session.rotating.take() else {
            return Err(Refusal::protocol("a new key came that nobody asked for"));
        };
        check_rotated(&challenge, agent, session.incarnation, &rotated)?;
        let Some(enrolled) = self.agents.get_mut(agent) else { return Ok(()) };
        let Some(binding) = &mut enrolled.credential.binding else { return Ok(()) };
        if binding.public_key == rotated.public_key {
            return Err(Refusal::protocol("the new key is the old one"));
        }
        binding.next_key = Some(rotated.public_key.clone());
        self.effects.push(Effect::Store(Record::Credential(enrolled.credential.clone())));
        self.send(conn, FromHub::RotateAck(RotateAck { public_key: rotated.public_key }));
        self.notify(Notice::Rotated { agent: agent.clone() });
        Ok(())
    }
}
