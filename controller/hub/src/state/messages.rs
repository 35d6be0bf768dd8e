//! Messages between programs: what is said of them, stored of them and sent.
//!
//! A message is stored before it is told as accepted, and its end before it is forgotten; the rest the
//! [post office](super::post_office) decides. A delivery needs no record: what reaches its receiver and is
//! lost here is sent again by its sender, and known by its id where it arrives.

use jiff::Timestamp;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Message, MessageRefused, MessageState, Post};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::{Address, FromHub, MessageRef};

use super::post_office::{Denial, Letter};
use super::{ConnId, Effect, Hub, Notice, PostError, Record};

impl Hub {
    /// A runtime has a message for somebody.
    pub(super) fn message_sent(
        &mut self,
        conn: ConnId,
        from: &AgentName,
        id: MessageId,
        to: Address,
        post: Post,
        now: Timestamp,
    ) {
        let letter = Letter { id, from, to: to.clone(), exists: self.exists(&to), post };
        match self.post_office.judge(letter, &self.directory, now) {
            Ok(None) => {}
            Ok(Some(messages)) => {
                self.keep(&messages);
                self.send(conn, FromHub::MessageAccepted(MessageRef { message: id }));
                self.pass_on(messages);
            }
            Err(denial) => {
                let refused = refused(id, denial);
                self.notify(Notice::MessageRefused { agent: from.clone(), to, refused: refused.clone() });
                self.send(conn, FromHub::MessageRefused(refused));
            }
        }
    }

    /// The host has a message for an agent.
    pub(super) fn post(&mut self, message: Message, now: Timestamp) {
        let (id, to) = (message.id, message.to.clone());
        let posted = |answer| Effect::Posted { message: id, to: to.clone(), answer };
        match self.post_office.judge_post(message, self.exists(&to), now) {
            Ok(None) => {}
            Ok(Some(messages)) => {
                self.keep(&messages);
                self.effects.push(posted(Ok(())));
                self.pass_on(messages);
            }
            Err(denial) => self.effects.push(posted(Err(PostError::Refused(refused(id, denial))))),
        }
    }

    /// A message was accepted before.
    pub(super) fn restore(&mut self, message: Message) {
        let to = message.to.clone();
        self.post_office.restore(message);
        if let Address::Agent(agent) = to {
            self.deliver_messages(&agent);
        }
    }

    /// A runtime keeps a message.
    pub(super) fn message_taken(&mut self, agent: &AgentName, message: MessageId, now: Timestamp) {
        if let Some(message) = self.post_office.taken(agent, message, now) {
            self.keep(std::slice::from_ref(&message));
            self.pass_on(vec![message]);
        }
    }

    /// Sends what waits for an agent, as far as its runtime has room, once it has said that it is ready.
    pub(super) fn deliver_messages(&mut self, agent: &AgentName) {
        let Some(conn) = self.live(agent) else { return };
        if self.session(conn).is_some_and(|session| session.told) {
            let messages = self.post_office.next(agent, conn, self.clock).into_iter();
            self.effects.extend(messages.map(|message| Effect::Deliver { conn, message }));
        }
    }

    /// A message's record is durable.
    pub(super) fn message_stored(&mut self, message: &Message) {
        self.post_office.stored(message);
    }

    /// A message's record could not be stored.
    pub(super) fn message_not_stored(&mut self, message: &Message) {
        self.post_office.not_stored(message);
        if let (Address::Host, MessageState::Waiting) = (&message.from, &message.state) {
            let answer = Err(PostError::NotStored);
            self.effects.push(Effect::Posted { message: message.id, to: message.to.clone(), answer });
        }
    }

    /// Gives up what waits for those that are no more: nobody declares them, and they have no machine.
    pub(super) fn end_messages(&mut self, now: Timestamp) {
        for agent in self.post_office.agents() {
            if !self.exists(&Address::Agent(agent.clone())) {
                let dead = self.post_office.remove(&agent, now);
                self.keep(&dead);
                self.pass_on(dead);
            }
        }
    }

    /// Time has passed: gives up what has waited too long, and stores again what could not be stored.
    pub(super) fn tick_messages(&mut self, now: Timestamp) {
        let mut messages = self.post_office.expire(now);
        messages.extend(self.post_office.take_unstored());
        self.keep(&messages);
        self.pass_on(messages);
    }

    /// How many messages wait for an agent.
    pub(super) fn messages_waiting(&self, agent: &AgentName) -> u32 {
        u32::try_from(self.post_office.waiting(agent)).unwrap_or(u32::MAX)
    }

    /// Whether there is such a receiver.
    fn exists(&self, to: &Address) -> bool {
        match to {
            Address::Host | Address::Broadcast => true,
            Address::Agent(agent) => self.directory.members.contains_key(agent) || self.agents.contains_key(agent),
        }
    }

    fn keep(&mut self, messages: &[Message]) {
        self.effects.extend(messages.iter().cloned().map(Record::Message).map(Effect::Store));
    }

    /// Tells how far messages are, and sends what there is room for now.
    fn pass_on(&mut self, messages: Vec<Message>) {
        for message in messages {
            let to = message.to.clone();
            self.notify(Notice::Message(message));
            if let Address::Agent(agent) = to {
                self.deliver_messages(&agent);
            }
        }
    }
}

/// The agent that waits to hear that a message is accepted, which depends on this record.
pub(super) const fn waits_for(record: &Message) -> Option<&AgentName> {
    match (&record.from, &record.to, &record.state) {
        (Address::Agent(sender), _, MessageState::Waiting) | (Address::Agent(sender), Address::Host, _) => Some(sender),
        _ => None,
    }
}

fn refused(message: MessageId, Denial { code, reason }: Denial) -> MessageRefused {
    MessageRefused { message, code, reason }
}
