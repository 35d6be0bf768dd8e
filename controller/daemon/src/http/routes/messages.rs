//! Messages to agents, and those that agents sent.

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with};
use axum::Extension;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{List, MessageRequest, Problem, ProblemCode};
use vm_agent_schemas::ids::MessageId;
use vm_agent_schemas::message::Message;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::Address;

use super::{Asked, By, page_of, usual_page};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc, Done, Refusal};
use crate::http::extract::{Body, LastEventId, Query, Segment};
use crate::http::mailbox::{Mailbox, followed};
use crate::http::openapi::{described, operation};
use crate::http::stream::{Followed, Shutdown};

pub(super) fn routes() -> ApiRouter<Controller> {
    const TAG: &str = "messages";
    ApiRouter::new()
        .api_route(
            "/messages",
            get_with(
                list_messages,
                described(
                    "listMessages",
                    TAG,
                    "List or follow messages",
                    "Those to the host (`box=host`), or those from and to an agent; the oldest first: the first after \
                     `after`, or the latest `limit`. With `follow=true` the answer is a stream of server-sent events, \
                     each a message as JSON with its id as id, so a client that comes back with `Last-Event-ID` goes \
                     on where it was.",
                ),
            )
            .post_with(
                send_message,
                described(
                    "sendMessage",
                    TAG,
                    "Send a message to agents",
                    "A message that is accepted is stored, and waits for its receiver until its time is over. One \
                     that goes nowhere stands in the answer as a dead letter, unless all do: then that is the error. \
                     Asking twice with one `id` is asking once.",
                ),
            ),
        )
        .api_route(
            "/messages/{id}/dead",
            delete_with(drop_dead_message, operation("dropDeadMessage", TAG, "Drop a dead letter")),
        )
        .api_route(
            "/messages/{id}/replay",
            post_with(
                replay_message,
                described(
                    "replayMessage",
                    TAG,
                    "Send a message again that is a dead letter",
                    "It has as much time as it had, and a new id. The dead letter gives way to it.",
                ),
            ),
        )
}

async fn send_message(
    State(controller): Asked,
    Extension(actor): By,
    Body(request): Body<MessageRequest>,
) -> Answer<List<Message>, 202> {
    Ok(Doc(List { items: controller.send_message(request, &actor).await? }))
}

/// Which messages.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct MessagesQuery {
    /// Those from and to this agent.
    #[schemars(extend("type" = "string"))]
    agent: Option<AgentName>,
    /// Those to the host, which is what is given when nobody says whose.
    #[schemars(extend("type" = "string"))]
    r#box: Option<BoxName>,
    /// Only those after the one with this id.
    #[schemars(extend("type" = "string"))]
    after: Option<MessageId>,
    /// How many, at most 1000. Without `after`, the latest.
    #[serde(default = "usual_page")]
    limit: usize,
    /// Go on with the messages that come, as server-sent events.
    #[serde(default)]
    follow: bool,
}

/// A mailbox that is nobody's machine.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum BoxName {
    Host,
}

async fn list_messages(
    State(controller): Asked,
    Query(query): Query<MessagesQuery>,
    LastEventId(last): LastEventId<MessageId>,
    shutdown: Shutdown,
) -> Result<Followed<List<Message>>, Refusal> {
    let limit = page_of(query.limit)?;
    let mailbox = match (query.agent, query.r#box) {
        (Some(_), Some(BoxName::Host)) => {
            return Err(Problem::new(ProblemCode::Invalid, "name an agent or a box, not both").into());
        }
        (Some(agent), None) => Mailbox::Agent(agent),
        (None, _) => Mailbox::Host,
    };
    if query.follow {
        let messages = followed(controller, mailbox, last.or(query.after), limit).await?;
        return Ok(Followed::live(messages, shutdown));
    }
    Ok(Followed::once(List { items: mailbox.read(&controller, query.after, limit).await? }))
}

/// Whose dead letter.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReceiverQuery {
    /// Only the one to this receiver: an agent, or `host`. Without, those to all.
    #[schemars(extend("type" = "string"))]
    to: Option<Address>,
}

async fn drop_dead_message(
    State(controller): Asked,
    Segment(id): Segment<MessageId>,
    Query(query): Query<ReceiverQuery>,
) -> Result<Done, Refusal> {
    controller.drop_dead_message(id, query.to).await?;
    Ok(Done)
}

async fn replay_message(
    State(controller): Asked,
    Segment(id): Segment<MessageId>,
    Query(query): Query<ReceiverQuery>,
) -> Answer<List<Message>, 202> {
    Ok(Doc(List { items: controller.replay_message(id, query.to).await? }))
}
