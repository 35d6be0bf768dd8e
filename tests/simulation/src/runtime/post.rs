//! A runtime's boxes: what its programs want sent, until it is accepted or refused, and what has come, until a
//! program takes it. Both lie on its disk.

use std::collections::{BTreeSet, VecDeque};

use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Message, Post};
use vm_agent_schemas::wire::Address;

/// A message that is to be sent.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Its id.
    pub id: MessageId,
    /// Whom it is for.
    pub to: Address,
    /// What it says.
    pub post: Post,
}

/// Both boxes.
#[derive(Debug, Clone, Default)]
pub struct Boxes {
    /// What is not answered, in the order in which it was sent.
    pub outbox: Vec<Outbound>,
    /// What no program has taken.
    pub inbox: VecDeque<Message>,
    /// What has come at all.
    come: BTreeSet<MessageId>,
}

impl Boxes {
    /// A message comes. Answers whether it is new.
    pub fn come(&mut self, message: Message) -> bool {
        let is_new = self.come.insert(message.id);
        if is_new {
            self.inbox.push_back(message);
        }
        is_new
    }

    /// The hub has answered.
    pub fn answered(&mut self, id: MessageId) {
        self.outbox.retain(|outbound| outbound.id != id);
    }
}
