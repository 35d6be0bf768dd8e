//! Messages, read and followed.

use std::collections::VecDeque;

use axum::response::sse::Event;
use futures::{Stream, stream};
use tokio::sync::watch;
use vm_agent_schemas::api::Problem;
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::Message;
use vm_agent_schemas::names::AgentName;

use crate::controller::Controller;

/// Most messages that are read at a time.
const PAGE: u32 = 500;

/// Whose messages.
#[derive(Debug, Clone)]
pub(super) enum Mailbox {
    /// Those to the host.
    Host,
    /// Those from and to an agent.
    Agent(AgentName),
}

impl Mailbox {
    /// The first messages after the one of that id, or the latest, the oldest first.
    pub(super) async fn read(
        &self,
        controller: &Controller,
        after: Option<MessageId>,
        limit: u32,
    ) -> Result<Vec<Message>, Problem> {
        match self {
            Self::Host => controller.host_box(after, limit).await,
            Self::Agent(name) => controller.messages_of(name, after, limit).await,
        }
    }
}

struct Follower {
    controller: Controller,
    mailbox: Mailbox,
    after: Option<MessageId>,
    news: watch::Receiver<()>,
    ready: VecDeque<Message>,
}

impl Follower {
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                self.after = Some(message.id);
                return Some(message);
            }
            // Marked before it is read: what comes in between is news again.
            self.news.borrow_and_update();
            match self.mailbox.read(&self.controller, self.after, PAGE).await {
                Ok(messages) if messages.is_empty() => self.news.changed().await.ok()?,
                Ok(messages) => self.ready.extend(messages),
                Err(problem) => {
                    // The client comes back with `Last-Event-ID`, and misses nothing.
                    tracing::warn!(%problem, "a stream of messages ends, because they can't be read");
                    return None;
                }
            }
        }
    }
}

/// Messages after the one of that id, or the latest `limit`, and then what comes.
pub(super) async fn followed(
    controller: Controller,
    mailbox: Mailbox,
    after: Option<MessageId>,
    limit: u32,
) -> Result<impl Stream<Item = Event> + Send, Problem> {
    let news = controller.news();
    let ready = mailbox.read(&controller, after, limit).await?.into();
    let follower = Follower { controller, mailbox, after, news, ready };
    Ok(stream::unfold(follower, async |mut follower| {
        let message = follower.next().await?;
        let event = Event::default().id(message.id.to_string());
        Some((event.json_data(&message).expect("a message is JSON with texts as keys"), follower))
    }))
}
