//! Tasks, what they wrote, and dead letters.

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with};
use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{DeadLetters, List, TaskRequest, TasksRequest};
use vm_agent_schemas::ids::{GroupId, TaskId};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::Channel;
use vm_agent_store::output::{Position, Wanted};
use vm_agent_store::tasks::Filter;

use super::{Asked, By, page_of, usual_page};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc, Done, Refusal};
use crate::http::extract::{Body, LastEventId, Query, Segment};
use crate::http::openapi::{described, operation};
use crate::http::output::{self, Output};
use crate::http::stream::Shutdown;

pub(super) fn routes() -> ApiRouter<Controller> {
    const TAG: &str = "tasks";
    ApiRouter::new()
        .api_route(
            "/agents/{name}/task",
            post_with(
                submit_task,
                described(
                    "submitTask",
                    TAG,
                    "Have an agent do a task",
                    "The task is stored when the answer comes, and then survives every restart. Asking twice with one \
                     `id` or one `key` is asking once; asking for something else with it is a conflict.",
                ),
            ),
        )
        .api_route("/agents/{name}/tasks", get_with(tasks_of, operation("listTasksOf", TAG, "List an agent's tasks")))
        .api_route(
            "/tasks",
            get_with(
                list_tasks,
                described(
                    "listTasks",
                    TAG,
                    "List tasks",
                    "The latest come first. Everything that is asked for has to hold.",
                ),
            )
            .post_with(
                submit_tasks,
                described(
                    "submitTasks",
                    TAG,
                    "Have several agents do a task, or any one of several",
                    "For each of several agents one task is made, all of one `group`; they are stored all or none. A \
                     task for any of several waits until one of these is idle. Asking twice with one `key` is asking \
                     once.",
                ),
            ),
        )
        .api_route("/tasks/{id}", get_with(show_task, operation("showTask", TAG, "Show a task")))
        .api_route(
            "/tasks/{id}/cancel",
            post_with(
                cancel_task,
                described(
                    "cancelTask",
                    TAG,
                    "Cancel a task",
                    "What is queued ends at once. What runs is ended by its runtime: how it ended stands in the task \
                     when that is known. Cancelling twice is cancelling once.",
                ),
            ),
        )
        .api_route(
            "/tasks/{id}/replay",
            post_with(
                replay_task,
                described(
                    "replayTask",
                    TAG,
                    "Do a task again",
                    "It has to be over. The answer is a new task; what was a dead letter is none any more.",
                ),
            ),
        )
        .api_route(
            "/tasks/{id}/dead",
            delete_with(
                drop_dead_task,
                described("dropDeadTask", TAG, "Drop a dead letter", "The task stays, and how it ended."),
            ),
        )
        .api_route(
            "/tasks/{id}/output",
            get_with(
                show_output,
                described(
                    "showOutput",
                    TAG,
                    "Read or follow what a task wrote",
                    "The answer is the bytes as they came. With `follow=true`, or when `text/event-stream` is \
                     accepted, it is a stream of server-sent events, each a piece of output as JSON, until the task is \
                     over; the last event is named `ended` and holds the task. Each piece has a number as id, so a \
                     client that comes back with `Last-Event-ID` goes on where it was.",
                ),
            ),
        )
        .api_route(
            "/dead-letters",
            get_with(
                list_dead,
                described(
                    "listDeadLetters",
                    TAG,
                    "List what could not be delivered, keeps failing, or is of unknown fate",
                    "Tasks and messages, the latest first. Each can be replayed or dropped.",
                ),
            ),
        )
}

async fn submit_task(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Body(request): Body<TaskRequest>,
) -> Answer<Task, 202> {
    Ok(Doc(controller.submit_task(&name, request, &actor).await?))
}

async fn submit_tasks(
    State(controller): Asked,
    Extension(actor): By,
    Body(request): Body<TasksRequest>,
) -> Answer<List<Task>, 202> {
    Ok(Doc(List { items: controller.submit_tasks(&request, &actor).await? }))
}

/// How many things.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    /// How many of the latest, at most 1000.
    #[serde(default = "usual_page")]
    limit: usize,
}

async fn tasks_of(
    State(controller): Asked,
    Segment(name): Segment<AgentName>,
    Query(query): Query<PageQuery>,
) -> Answer<List<Task>> {
    Ok(Doc(List { items: controller.tasks_of(&name, page_of(query.limit)?).await? }))
}

/// Which tasks.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TasksQuery {
    /// Those that this agent does or did.
    #[schemars(extend("type" = "string"))]
    agent: Option<AgentName>,
    /// Those that are so far.
    #[schemars(extend("type" = "string"))]
    state: Option<StateName>,
    /// Those of this group.
    #[schemars(extend("type" = "string"))]
    group: Option<GroupId>,
    /// Those that are dead letters, or those that are not.
    #[schemars(extend("type" = "boolean"))]
    dead: Option<bool>,
    /// How many of the latest, at most 1000.
    #[serde(default = "usual_page")]
    limit: usize,
}

/// How far a task is, in a word.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum StateName {
    Queued,
    Sent,
    Running,
    Ended,
}

impl StateName {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Sent => "sent",
            Self::Running => "running",
            Self::Ended => "ended",
        }
    }
}

async fn list_tasks(State(controller): Asked, Query(query): Query<TasksQuery>) -> Answer<List<Task>> {
    let limit = page_of(query.limit)?;
    let TasksQuery { agent, state, group, dead, .. } = query;
    let filter = Filter { agent, group, state: state.map(StateName::as_str), dead };
    Ok(Doc(List { items: controller.tasks(filter, limit).await? }))
}

async fn show_task(State(controller): Asked, Segment(id): Segment<TaskId>) -> Answer<Task> {
    Ok(Doc(controller.task(id).await?))
}

async fn cancel_task(State(controller): Asked, Extension(actor): By, Segment(id): Segment<TaskId>) -> Answer<Task> {
    Ok(Doc(controller.cancel_task(id, &actor).await?))
}

async fn replay_task(
    State(controller): Asked,
    Extension(actor): By,
    Segment(id): Segment<TaskId>,
) -> Answer<Task, 202> {
    Ok(Doc(controller.replay_task(id, &actor).await?))
}

async fn drop_dead_task(State(controller): Asked, Segment(id): Segment<TaskId>) -> Result<Done, Refusal> {
    controller.drop_dead_task(id).await?;
    Ok(Done)
}

/// Which output.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OutputQuery {
    /// Of this attempt. Without, of all of them, one after the other.
    #[schemars(extend("type" = "integer"))]
    attempt: Option<u32>,
    /// Of this channel. Without, of both, as it came.
    #[schemars(extend("type" = "string"))]
    channel: Option<OutputChannel>,
    /// Go on with what comes, as server-sent events.
    #[serde(default)]
    follow: bool,
}

/// Where a task writes to.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OutputChannel {
    Stdout,
    Stderr,
}

impl From<OutputChannel> for Channel {
    fn from(channel: OutputChannel) -> Self {
        match channel {
            OutputChannel::Stdout => Self::Stdout,
            OutputChannel::Stderr => Self::Stderr,
        }
    }
}

async fn show_output(
    State(controller): Asked,
    Segment(id): Segment<TaskId>,
    Query(query): Query<OutputQuery>,
    LastEventId(last): LastEventId<u64>,
    headers: HeaderMap,
    shutdown: Shutdown,
) -> Result<Output, Refusal> {
    let wanted = Wanted { task: id, attempt: query.attempt, channel: query.channel.map(Channel::from) };
    if query.follow || accepts_events(&headers) {
        let after = Position::from_number(last.unwrap_or_default());
        return Ok(output::followed(controller, wanted, after, shutdown).await?);
    }
    Ok(output::whole(controller, wanted).await?)
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accepted.split(',').any(|kind| kind.trim().starts_with("text/event-stream"))
}

async fn list_dead(State(controller): Asked, Query(query): Query<PageQuery>) -> Answer<DeadLetters> {
    let (tasks, messages) = controller.dead_letters(page_of(query.limit)?).await?;
    Ok(Doc(DeadLetters { tasks, messages }))
}
