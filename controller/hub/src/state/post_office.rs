//! The post office: the messages that wait for their receivers, and what new ones are judged by.
//!
//! Every receiver has a mailbox, first in, first out, in which a message stays until its end (taken, or a
//! dead letter) is durable. A message for the host is taken as soon as it is accepted; its mailbox only
//! holds what is not durable yet.
//!
//! What is delivered twice is known by its id where it arrives, so nothing here has to be certain that a
//! delivery failed before it is made again. What must never happen is that an accepted message leaves its
//! mailbox in any other way than by its end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{
    BODY_MAX, BURST, Message, MessageState, Post, RATE, RefusedCode, SUBJECT_MAX, TTL, WAITING_MAX,
};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Address;

use super::{ConnId, Directory};

/// Most messages that are sent to a runtime and not taken: enough that a runtime which takes them at once is
/// never kept waiting, and few enough that one which takes none holds no more than a mebibyte of them.
pub(super) const IN_FLIGHT_MAX: usize = 16;

/// Most that waits for one receiver, in bytes of JSON. Parsed, JSON can take a dozen times its length, so
/// the number of messages alone would let an agent fill the controller's memory.
pub(super) const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many of a sender's latest messages are remembered once they are over, to know them when they are
/// sent again and when they are answered. A runtime sends again only what it has no answer for, which is
/// less than a mailbox.
pub(super) const REMEMBERED_MAX: usize = 2 * WAITING_MAX;

/// Why a message goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial {
    pub(super) code: RefusedCode,
    pub(super) reason: String,
}

impl Denial {
    fn new(code: RefusedCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// A message that an agent wants to send.
#[derive(Debug)]
pub(super) struct Letter<'a> {
    pub(super) id: MessageId,
    pub(super) from: &'a AgentName,
    pub(super) to: Address,
    /// Whether there is such a receiver: an agent that is declared, or has a machine.
    pub(super) exists: bool,
    pub(super) post: Post,
}

/// All mailboxes, and what is known of those who fill them.
#[derive(Debug, Default)]
pub(super) struct PostOffice {
    mailboxes: BTreeMap<Address, Mailbox>,
    senders: BTreeMap<Address, Sender>,
}

/// What waits for one receiver, oldest first, and those of its messages whose end is not durable yet.
#[derive(Debug, Default)]
struct Mailbox {
    entries: VecDeque<Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    message: Message,
    size: usize,
    /// On which connection it was sent last: once on each.
    sent: Option<ConnId>,
    /// A record of it is durable.
    durable: bool,
    /// Its record could not be stored, and is to be stored again.
    unstored: bool,
}

impl Entry {
    const fn waits(&self) -> bool {
        matches!(self.message.state, MessageState::Waiting)
    }

    fn is(&self, id: MessageId, from: &Address) -> bool {
        self.message.id == id && self.message.from == *from
    }
}

/// What is known of a sender.
#[derive(Debug, Default)]
struct Sender {
    allowance: Option<Allowance>,
    /// Its latest messages.
    remembered: BTreeMap<MessageId, Remembered>,
    /// The same messages, the one to be forgotten first in front.
    order: BTreeMap<u64, MessageId>,
    /// How often something was remembered.
    count: u64,
}

#[derive(Debug, Default)]
struct Remembered {
    receivers: BTreeSet<Address>,
    /// Its place in the order.
    place: u64,
}

/// How much a sender may send: a message costs a fixed time, time that goes by is earned, and as much as a
/// burst costs is kept. It may go below zero by what has many receivers.
#[derive(Debug)]
struct Allowance {
    left: SignedDuration,
    counted: Timestamp,
}

impl PostOffice {
    /// Judges a message of an agent. Answers with its records, one for each receiver, which are to be stored
    /// before it is told as accepted; with those that could not be stored, if it is known already; with
    /// nothing, if that is under way, and then its sender will be told.
    pub(super) fn judge(
        &mut self,
        letter: Letter<'_>,
        directory: &Directory,
        now: Timestamp,
    ) -> Result<Option<Vec<Message>>, Denial> {
        let Letter { id, from, to, exists, post } = letter;
        let sender = Address::Agent(from.clone());
        let size = check_form(&post.subject, &post.body)?;
        if let Some(receivers) = self.known(id, &sender, &to) {
            return Ok(self.unstored_of(id, &sender, &receivers));
        }
        self.allowance(&sender, now).spend()?;
        if !exists {
            return Err(unknown(&to));
        }
        let receivers = self.receivers(from, to, post.in_reply_to, directory)?;
        self.check_id(id, &sender, &receivers)?;
        self.allowance(&sender, now).charge(receivers.len() - 1);
        let full = |receiver: &Address| self.mailboxes.get(receiver).is_some_and(|mailbox| mailbox.is_full(size));
        let (full, free): (Vec<_>, Vec<_>) = receivers.into_iter().partition(full);
        if let (Some(receiver), true) = (full.first(), free.is_empty()) {
            return Err(is_full(receiver));
        }
        let addressed = |to: Address| letter_to(to, id, &sender, &post, now);
        let lost = |to: Address| Message {
            state: MessageState::Dead { at: now, reason: is_full(&to).reason },
            ..addressed(to)
        };
        let messages = full.into_iter().map(lost).chain(free.into_iter().map(addressed));
        Ok(Some(messages.map(|message| self.accept(message, size, now)).collect()))
    }

    /// Judges a message of the host's for one agent. Answers as [`judge`](Self::judge) does.
    pub(super) fn judge_post(
        &mut self,
        message: Message,
        exists: bool,
        now: Timestamp,
    ) -> Result<Option<Vec<Message>>, Denial> {
        let size = check_form(&message.subject, &message.body)?;
        let known = self.known(message.id, &message.from, &message.to);
        if known.is_some_and(|receivers| receivers.contains(&message.to)) {
            let receivers = BTreeSet::from([message.to.clone()]);
            return Ok(self.unstored_of(message.id, &message.from, &receivers));
        }
        if !exists {
            return Err(unknown(&message.to));
        }
        self.check_id(message.id, &message.from, std::slice::from_ref(&message.to))?;
        if self.mailboxes.get(&message.to).is_some_and(|mailbox| mailbox.is_full(size)) {
            return Err(is_full(&message.to));
        }
        Ok(Some(vec![self.accept(message, size, now)]))
    }

    /// Takes in a message that was accepted in an earlier life. One that is over is only remembered, so that
    /// it is known when it is sent again, and may be answered.
    pub(super) fn restore(&mut self, message: Message) {
        self.remember(&message);
        let mailbox = self.mailboxes.entry(message.to.clone()).or_default();
        let known = mailbox.entries.iter().any(|entry| entry.is(message.id, &message.from));
        if !known && message.state == MessageState::Waiting {
            let size = json_len(&message.body);
            mailbox.push(message, size, true);
        }
    }

    /// The messages to send to a receiver on its connection now, oldest first. One whose time is over is not
    /// sent any more, even where a controller that died had no time to store that: what was written after it
    /// may have been taken since.
    pub(super) fn next(&mut self, receiver: &AgentName, conn: ConnId, now: Timestamp) -> Vec<Message> {
        let Some(mailbox) = self.mailboxes.get_mut(&Address::Agent(receiver.clone())) else { return Vec::new() };
        let to_send = |entry: &&mut Entry| entry.waits() && now < entry.message.expires_at;
        let in_flight = mailbox.entries.iter_mut().filter(to_send).take(IN_FLIGHT_MAX);
        in_flight.filter_map(|entry| entry.send(conn)).collect()
    }

    /// A receiver keeps a message. Answers with its record, if it waited.
    pub(super) fn taken(&mut self, receiver: &AgentName, id: MessageId, now: Timestamp) -> Option<Message> {
        let mailbox = self.mailboxes.get_mut(&Address::Agent(receiver.clone()))?;
        let entry = mailbox.entries.iter_mut().find(|entry| entry.message.id == id && entry.waits())?;
        entry.message.state = MessageState::Taken { at: now };
        let message = entry.message.clone();
        // Only from now on can it be answered by what has read it.
        self.remember(&message);
        Some(message)
    }

    /// Gives up what has waited too long. Answers with the records of the dead letters.
    pub(super) fn expire(&mut self, now: Timestamp) -> Vec<Message> {
        let waiting = self.mailboxes.values_mut().flat_map(|mailbox| &mut mailbox.entries).filter(|it| it.waits());
        let expired = waiting.filter(|entry| entry.message.expires_at <= now);
        let give_up = |entry: &mut Entry| {
            let reason = if entry.sent.is_some() {
                "it was sent to the agent's runtime, which did not say in time that it keeps it"
            } else {
                "the agent's runtime was not there in time, or had no room"
            };
            entry.end(reason, now)
        };
        expired.map(give_up).collect()
    }

    /// An agent is no more: what waits for it is given up, and what it has sent can't be answered. Answers
    /// with the records of the dead letters.
    pub(super) fn remove(&mut self, agent: &AgentName, now: Timestamp) -> Vec<Message> {
        let agent = Address::Agent(agent.clone());
        self.senders.remove(&agent);
        let Some(mailbox) = self.mailboxes.get_mut(&agent) else { return Vec::new() };
        let waiting = mailbox.entries.iter_mut().filter(|entry| entry.waits());
        waiting.map(|entry| entry.end("the agent was removed before it took the message", now)).collect()
    }

    /// A record is durable.
    pub(super) fn stored(&mut self, record: &Message) {
        let Some(mailbox) = self.mailboxes.get_mut(&record.to) else { return };
        if record.state != MessageState::Waiting {
            mailbox.remove(record.id, &record.from);
        } else if let Some(entry) = mailbox.entries.iter_mut().find(|entry| entry.is(record.id, &record.from)) {
            entry.durable = true;
        }
        if mailbox.entries.is_empty() {
            self.mailboxes.remove(&record.to);
        }
    }

    /// A record could not be stored. A later one of the same message makes it good.
    pub(super) fn not_stored(&mut self, record: &Message) {
        let mailbox = self.mailboxes.get_mut(&record.to);
        let entry = mailbox.and_then(|it| it.entries.iter_mut().find(|entry| entry.is(record.id, &record.from)));
        if let Some(entry) = entry.filter(|entry| entry.message.state == record.state) {
            entry.unstored = true;
        }
    }

    /// The records that are to be stored again.
    pub(super) fn take_unstored(&mut self) -> Vec<Message> {
        self.mailboxes.values_mut().flat_map(|mailbox| &mut mailbox.entries).filter_map(Entry::take_unstored).collect()
    }

    /// How many messages wait for an agent.
    pub(super) fn waiting(&self, agent: &AgentName) -> usize {
        let mailbox = self.mailboxes.get(&Address::Agent(agent.clone()));
        mailbox.map_or(0, |mailbox| mailbox.entries.iter().filter(|entry| entry.waits()).count())
    }

    /// The agents that something is known of here.
    pub(super) fn agents(&self) -> BTreeSet<AgentName> {
        let agents = self.mailboxes.keys().chain(self.senders.keys()).filter_map(|address| match address {
            Address::Agent(agent) => Some(agent.clone()),
            Address::Host | Address::Broadcast => None,
        });
        agents.collect()
    }

    /// Whom a message that is known already went to: it is remembered, or waits for `to`.
    fn known(&self, id: MessageId, from: &Address, to: &Address) -> Option<BTreeSet<Address>> {
        let remembered = self.senders.get(from).and_then(|sender| sender.receivers_of(id));
        let waits = || self.mailboxes.get(to).is_some_and(|it| it.entries.iter().any(|entry| entry.is(id, from)));
        remembered.cloned().or_else(|| waits().then(|| BTreeSet::from([to.clone()])))
    }

    /// Whom a message goes to, if its sender may write to them.
    fn receivers(
        &self,
        from: &AgentName,
        to: Address,
        in_reply_to: Option<MessageId>,
        directory: &Directory,
    ) -> Result<Vec<Address>, Denial> {
        match to {
            Address::Host => Ok(vec![Address::Host]),
            Address::Agent(ref agent) => {
                let sender = Address::Agent(from.clone());
                let question = in_reply_to.and_then(|question| self.known(question, &to, &sender));
                let answers = question.is_some_and(|receivers| receivers.contains(&sender));
                if !answers && !directory.allows(from, agent) {
                    let reason = format!("the fleet file does not allow {from} to write to {agent}");
                    return Err(Denial::new(RefusedCode::Denied, reason));
                }
                Ok(vec![to])
            }
            Address::Broadcast => {
                let others = directory.members.keys().filter(|agent| *agent != from);
                let allowed: Vec<_> = others.filter(|agent| directory.allows(from, agent)).collect();
                if allowed.is_empty() {
                    let reason = format!("the fleet file does not allow {from} to write to any agent");
                    return Err(Denial::new(RefusedCode::Denied, reason));
                }
                Ok(allowed.into_iter().cloned().map(Address::Agent).collect())
            }
        }
    }

    fn allowance(&mut self, sender: &Address, now: Timestamp) -> &mut Allowance {
        self.senders.entry(sender.clone()).or_default().allowance(now)
    }

    /// An id that another sender has used would let one message pass for the other.
    fn check_id(&self, id: MessageId, from: &Address, receivers: &[Address]) -> Result<(), Denial> {
        let mut others = self.senders.iter().filter(|(sender, _)| *sender != from);
        let mut entries = receivers.iter().filter_map(|it| self.mailboxes.get(it)).flat_map(|it| &it.entries);
        if others.any(|(_, sender)| sender.remembered.contains_key(&id))
            || entries.any(|it| it.message.id == id && it.message.from != *from)
        {
            return Err(Denial::new(RefusedCode::Invalid, "the id is that of another sender's message"));
        }
        Ok(())
    }

    /// Takes in a message, and answers with its record.
    fn accept(&mut self, message: Message, size: usize, now: Timestamp) -> Message {
        let state = match (&message.to, message.state) {
            (Address::Host, _) => MessageState::Taken { at: now },
            (_, state) => state,
        };
        let message = Message { state, ..message };
        self.remember(&message);
        self.mailboxes.entry(message.to.clone()).or_default().push(message.clone(), size, false);
        message
    }

    fn remember(&mut self, message: &Message) {
        self.senders.entry(message.from.clone()).or_default().remember(message.id, message.to.clone());
    }

    /// The records of a known message that could not be stored; nothing while others of it are under way.
    fn unstored_of(&mut self, id: MessageId, from: &Address, receivers: &BTreeSet<Address>) -> Option<Vec<Message>> {
        let mailboxes = self.mailboxes.iter_mut().filter(|(receiver, _)| receivers.contains(receiver));
        let entries = mailboxes.flat_map(|(_, mailbox)| &mut mailbox.entries).filter(|entry| entry.is(id, from));
        let mut entries: Vec<_> = entries.filter(|entry| !entry.durable).collect();
        let under_way = entries.iter().any(|entry| !entry.unstored);
        (!under_way).then(|| entries.iter_mut().filter_map(|entry| entry.take_unstored()).collect())
    }
}

impl Mailbox {
    /// Whether there is no room for a message of that size. What is over counts until that is durable, so
    /// that a storage which does not keep up bounds what is accepted.
    fn is_full(&self, size: usize) -> bool {
        self.entries.len() >= WAITING_MAX || self.bytes + size > WAITING_BYTES_MAX
    }

    fn push(&mut self, message: Message, size: usize, durable: bool) {
        self.bytes += size;
        self.entries.push_back(Entry { message, size, sent: None, durable, unstored: false });
    }

    fn remove(&mut self, id: MessageId, from: &Address) {
        if let Some(index) = self.entries.iter().position(|entry| entry.is(id, from))
            && let Some(entry) = self.entries.remove(index)
        {
            self.bytes -= entry.size;
        }
    }
}

impl Entry {
    /// What to send on this connection, if it was not sent on it yet.
    fn send(&mut self, conn: ConnId) -> Option<Message> {
        (self.sent.replace(conn) != Some(conn)).then(|| self.message.clone())
    }

    /// What to store again.
    fn take_unstored(&mut self) -> Option<Message> {
        std::mem::take(&mut self.unstored).then(|| self.message.clone())
    }

    fn end(&mut self, reason: &str, now: Timestamp) -> Message {
        self.message.state = MessageState::Dead { at: now, reason: reason.to_owned() };
        self.message.clone()
    }
}

impl Sender {
    fn allowance(&mut self, now: Timestamp) -> &mut Allowance {
        let allowance = self.allowance.get_or_insert(Allowance { left: Allowance::MAX, counted: now });
        allowance.earn(now);
        allowance
    }

    fn remember(&mut self, id: MessageId, to: Address) {
        self.count += 1;
        let remembered = self.remembered.entry(id).or_default();
        remembered.receivers.insert(to);
        let former = std::mem::replace(&mut remembered.place, self.count);
        self.order.remove(&former);
        self.order.insert(self.count, id);
        if self.order.len() > REMEMBERED_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.remembered.remove(&oldest);
        }
    }

    fn receivers_of(&self, id: MessageId) -> Option<&BTreeSet<Address>> {
        self.remembered.get(&id).map(|remembered| &remembered.receivers)
    }
}

impl Allowance {
    const COST: SignedDuration = SignedDuration::from_nanos(1_000_000_000 / RATE as i64);
    const MAX: SignedDuration = SignedDuration::from_nanos(1_000_000_000 / RATE as i64 * BURST as i64);

    /// A clock that was set back earns nothing, and costs nothing.
    fn earn(&mut self, now: Timestamp) {
        let earned = now.duration_since(self.counted).max(SignedDuration::ZERO);
        self.left = self.left.saturating_add(earned).min(Self::MAX);
        self.counted = now;
    }

    /// Lets one message through, if there is enough left for it.
    fn spend(&mut self) -> Result<(), Denial> {
        if self.left < Self::COST {
            let reason = format!("more than {BURST} messages at once, or {RATE} a second in the long run");
            return Err(Denial::new(RefusedCode::Rate, reason));
        }
        self.charge(1);
        Ok(())
    }

    fn charge(&mut self, messages: usize) {
        let messages = i32::try_from(messages).unwrap_or(i32::MAX);
        self.left = self.left.saturating_sub(Self::COST * messages);
    }
}

/// What is accepted of an agent's message for one receiver.
fn letter_to(to: Address, id: MessageId, from: &Address, post: &Post, now: Timestamp) -> Message {
    let ttl = post.ttl_ms.map_or(TTL.get(), Duration::from_millis);
    Message {
        id,
        from: from.clone(),
        to,
        subject: post.subject.clone(),
        body: post.body.clone(),
        in_reply_to: post.in_reply_to,
        author: None,
        created_at: now,
        expires_at: now.saturating_add(ttl).unwrap_or(Timestamp::MAX),
        state: MessageState::Waiting,
    }
}

/// Whether a message may be like that. Answers with the size of its body.
fn check_form(subject: &str, body: &serde_json::Value) -> Result<usize, Denial> {
    let invalid = |reason: String| Err(Denial::new(RefusedCode::Invalid, reason));
    if subject.chars().count() > SUBJECT_MAX {
        return invalid(format!("the subject is longer than {SUBJECT_MAX} characters"));
    }
    if subject.chars().any(char::is_control) {
        return invalid("the subject has control characters".to_owned());
    }
    let size = json_len(body);
    if size > BODY_MAX {
        return invalid(format!("the body is {size} bytes of JSON; at most {BODY_MAX} are allowed"));
    }
    Ok(size)
}

fn unknown(receiver: &Address) -> Denial {
    Denial::new(RefusedCode::Unknown, format!("there is no agent `{receiver}`"))
}

fn is_full(receiver: &Address) -> Denial {
    let reason = format!("{WAITING_MAX} messages, or {WAITING_BYTES_MAX} bytes of them, wait for {receiver}");
    Denial::new(RefusedCode::Full, reason)
}

/// The length of a value's JSON, in bytes.
fn json_len(value: &serde_json::Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value)
        .expect("a JSON value has no keys that are not texts, and counting never fails");
    count.0
}
