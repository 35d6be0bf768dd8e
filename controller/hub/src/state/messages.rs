//! Messages between programs: who may write to whom, what waits for whom, and what was given up.

use jiff::Timestamp;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Message, Post};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Address;

use super::handshake::Refusal;
use super::{ConnId, Hub};

impl Hub {
    /// A runtime has a message for somebody.
    pub(super) fn message_sent(
        &mut self,
        _conn: ConnId,
        _agent: &AgentName,
        _message: MessageId,
        _to: Address,
        _post: Post,
        _now: Timestamp,
    ) -> Result<(), Refusal> {
        Ok(())
    }

    /// A runtime keeps a message.
    pub(super) fn message_taken(&mut self, _agent: &AgentName, _message: MessageId, _now: Timestamp) {}

    /// The host has a message for an agent.
    pub(super) fn post(&mut self, _message: Message, _now: Timestamp) {}

    /// A message was accepted before.
    pub(super) fn restore(&mut self, _message: Message, _now: Timestamp) {}

    /// An agent has a session, and is ready.
    pub(super) fn deliver_messages(&mut self, _agent: &AgentName, _now: Timestamp) {}

    /// A message's record is durable.
    pub(super) fn message_stored(&mut self, _message: &Message) {}

    /// A message's record could not be stored.
    pub(super) fn message_not_stored(&mut self, _message: &Message) {}

    /// The agent is no more.
    pub(super) fn end_messages(&mut self, _agent: &AgentName, _now: Timestamp) {}

    /// Time has passed.
    pub(super) fn tick_messages(&mut self, _now: Timestamp) {}

    /// How many messages wait for an agent.
    pub(super) fn messages_waiting(&self, _agent: &AgentName) -> u32 {
        0
    }
}
