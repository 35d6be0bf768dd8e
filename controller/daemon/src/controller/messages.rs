//! Messages of the host, and those that agents sent.

use jiff::Timestamp;
use vm_agent_hub::PostError;
use vm_agent_schemas::api::{MessageRequest, MessageTo, Problem, ProblemCode};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::{Message, MessageState, Post, RefusedCode, TTL};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::Address;
use vm_agent_store::tasks::Filter;
use vm_agent_store::{self as store};

use super::{Actor, Controller};
use crate::engine::directory::{directory, matching};

impl Controller {
    /// Sends a message to agents. Asking twice with one id is asking once. One that goes nowhere is told as a
    /// dead letter among the others, unless all do.
    ///
    /// # Errors
    /// When nobody is meant, the message goes nowhere at all, or the store fails.
    pub async fn send_message(&self, request: MessageRequest, actor: &Actor) -> Result<Vec<Message>, Problem> {
        let now = Timestamp::now();
        let receivers = self.receivers(&request.to, now)?;
        let id = request.id.unwrap_or_else(MessageId::generate);
        let known = self.read(move |conn| store::messages::get(conn, id, Some(&Address::Host))).await?;
        if !known.is_empty() {
            return same(known, &request.post, id);
        }
        let messages = receivers.into_iter().map(|to| message(id, to, request.post.clone(), actor, now));
        self.post_all(messages.collect(), now).await
    }

    fn receivers(&self, to: &MessageTo, now: Timestamp) -> Result<Vec<AgentName>, Problem> {
        let records = self.core.ledger.records();
        let nobody = |reason: String| Err(Problem::new(ProblemCode::NotFound, reason));
        match to {
            MessageTo::Agent(name) => self.known(name).map(|()| vec![name.clone()]),
            MessageTo::Each(selector) => match matching(&records, selector, now) {
                agents if agents.is_empty() => nobody(format!("no agent has the labels `{selector}`")),
                agents => Ok(agents),
            },
            MessageTo::All => match directory(&records, now).members {
                members if members.is_empty() => nobody("there are no agents".to_owned()),
                members => Ok(members.into_keys().collect()),
            },
        }
    }

    async fn post_all(&self, messages: Vec<Message>, now: Timestamp) -> Result<Vec<Message>, Problem> {
        let (mut told, mut refusals) = (Vec::new(), Vec::new());
        for message in messages {
            match self.post(&message).await {
                Ok(()) => told.push(message),
                Err(error) => {
                    let state = MessageState::Dead { at: now, reason: error.to_string() };
                    told.push(Message { state, ..message });
                    refusals.push(error);
                }
            }
        }
        match refusals.into_iter().next() {
            Some(error) if told.iter().all(|it| matches!(it.state, MessageState::Dead { .. })) => Err(problem(&error)),
            _ => Ok(told),
        }
    }

    /// The hub hears of a new agent from the next pass. Who writes to it need not wait for that.
    async fn post(&self, message: &Message) -> Result<(), PostError> {
        let posted = self.core.hub.post(message.clone()).await;
        if !matches!(&posted, Err(PostError::Refused(refused)) if refused.code == RefusedCode::Unknown) {
            return posted;
        }
        self.core.declare();
        self.core.hub.post(message.clone()).await
    }

    /// Messages to the host: the first after the one of that id, or the latest, the oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn host_box(&self, after: Option<MessageId>, limit: u32) -> Result<Vec<Message>, Problem> {
        self.read(move |conn| store::messages::of(conn, &Address::Host, false, after, limit)).await
    }

    /// Messages from and to an agent: the first after the one of that id, or the latest, the oldest first.
    ///
    /// # Errors
    /// When there is no such agent, or the store fails.
    pub async fn messages_of(
        &self,
        name: &AgentName,
        after: Option<MessageId>,
        limit: u32,
    ) -> Result<Vec<Message>, Problem> {
        self.known(name)?;
        let address = Address::Agent(name.clone());
        self.read(move |conn| store::messages::of(conn, &address, true, after, limit)).await
    }

    /// What could not be delivered, kept failing, or is of unknown fate: tasks and messages, the latest first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn dead_letters(&self, limit: u32) -> Result<(Vec<Task>, Vec<Message>), Problem> {
        let filter = Filter { dead: Some(true), ..Filter::default() };
        self.read(move |conn| Ok((store::tasks::list(conn, &filter, limit)?, store::messages::dead(conn, limit)?)))
            .await
    }

    /// Removes a message that is a dead letter: to that receiver, or to all.
    ///
    /// # Errors
    /// When it is none, or the store fails.
    pub async fn drop_dead_message(&self, id: MessageId, to: Option<Address>) -> Result<(), Problem> {
        let dropped = self.write(move |conn| store::messages::drop_dead(conn, id, to.as_ref())).await?;
        if dropped == 0 { Err(no_dead_letter(id)) } else { Ok(()) }
    }

    /// Sends a message again that is a dead letter, to that receiver or to all that did not take it. The dead
    /// letters give way to the new messages.
    ///
    /// # Errors
    /// When it is none, the message goes nowhere at all, or the store fails.
    pub async fn replay_message(&self, id: MessageId, to: Option<Address>) -> Result<Vec<Message>, Problem> {
        let now = Timestamp::now();
        let is_meant = |it: &Message| to.as_ref().is_none_or(|to| *to == it.to);
        let known = self.read(move |conn| store::messages::get(conn, id, None)).await?;
        let dead = known.into_iter().filter(|it| matches!(it.state, MessageState::Dead { .. }) && is_meant(it));
        let anew = MessageId::generate();
        let again = |it: Message| {
            let waits = it.expires_at.duration_since(it.created_at);
            Message {
                id: anew,
                created_at: now,
                expires_at: now.checked_add(waits).unwrap_or(Timestamp::MAX),
                state: MessageState::Waiting,
                ..it
            }
        };
        let messages: Vec<Message> = dead.map(again).collect();
        if messages.is_empty() {
            return Err(no_dead_letter(id));
        }
        let sent = self.post_all(messages, now).await?;
        for message in sent.iter().filter(|it| !matches!(it.state, MessageState::Dead { .. })) {
            let to = message.to.clone();
            self.write(move |conn| store::messages::drop_dead(conn, id, Some(&to))).await?;
        }
        Ok(sent)
    }
}

fn message(id: MessageId, to: AgentName, post: Post, actor: &Actor, now: Timestamp) -> Message {
    let ttl = post.ttl_ms.map_or(TTL, |ms| Span::from(std::time::Duration::from_millis(ms)));
    Message {
        id,
        from: Address::Host,
        to: Address::Agent(to),
        subject: post.subject,
        body: post.body,
        in_reply_to: post.in_reply_to,
        author: Some(actor.name.clone()),
        created_at: now,
        expires_at: now.checked_add(ttl.get()).unwrap_or(Timestamp::MAX),
        state: MessageState::Waiting,
    }
}

/// The messages of an id, if they say the same.
fn same(known: Vec<Message>, post: &Post, id: MessageId) -> Result<Vec<Message>, Problem> {
    let is_same = |it: &Message| it.from == Address::Host && it.subject == post.subject && it.body == post.body;
    let other = || Problem::new(ProblemCode::Conflict, format!("there is another message with the id {id}"));
    known.iter().all(is_same).then_some(known).ok_or_else(other)
}

fn no_dead_letter(id: MessageId) -> Problem {
    Problem::new(ProblemCode::NotFound, format!("message {id} is no dead letter"))
        .remedy("see which there are: vm-agent message dead")
}

fn problem(error: &PostError) -> Problem {
    let code = match error {
        PostError::Refused(refused) => match refused.code {
            RefusedCode::Invalid => ProblemCode::Invalid,
            RefusedCode::Denied => ProblemCode::Blocked,
            RefusedCode::Unknown => ProblemCode::NotFound,
            // What is full now may have room later.
            RefusedCode::Rate | RefusedCode::Full => ProblemCode::Unavailable,
        },
        PostError::NotStored => ProblemCode::Internal,
        PostError::Shutdown => ProblemCode::Unavailable,
    };
    Problem::new(code, error.to_string())
}
