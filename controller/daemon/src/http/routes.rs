//! The routes: each handler extracts, does one thing with the controller, and answers.

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with};
use axum::Extension;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::*;
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::event::Event;
use vm_agent_schemas::ids::{Revision, TaskId, TokenId};
use vm_agent_schemas::intent::{Override, OverridePath};
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::plan::Plan;
use vm_agent_schemas::task::Task;
use vm_agent_schemas::wire::PROTOCOL;

use super::answer::{Answer, Doc, Done, Refusal, Text};
use super::exec::exec;
use super::extract::{ApprovalPrefix, Body, LastEventId, OptionalBody, Query, Segment};
use super::openapi::{described, operation, show};
use super::stream::{self, Followed, Shutdown};
use crate::controller::{Actor, Controller};

type Asked = State<Controller>;
type By = Extension<Actor>;

/// How many events or log lines are given when nobody says how many.
const PAGE: usize = 100;
/// Most events or log lines in one answer: enough to fill any screen, and a few hundred KiB.
const PAGE_MAX: usize = 1000;

/// Every route of the API, with its description.
pub(super) fn all() -> ApiRouter<Controller> {
    ApiRouter::new().merge(agents()).merge(fleet()).merge(tasks()).merge(controller()).merge(tokens())
}

fn agents() -> ApiRouter<Controller> {
    const TAG: &str = "agents";
    ApiRouter::new()
        .api_route("/agents", get_with(list_agents, operation("listAgents", TAG, "List every agent")))
        .api_route(
            "/agents/{name}",
            get_with(show_agent, operation("showAgent", TAG, "Show an agent"))
                .put_with(
                    create_agent,
                    described(
                        "createAgent",
                        TAG,
                        "Want an agent beside the file",
                        "Makes a sticky override: an agent made by hand stays until somebody destroys it.",
                    ),
                )
                .delete_with(
                    destroy_agent,
                    described(
                        "destroyAgent",
                        TAG,
                        "Want an agent gone",
                        "Deletes the agent's machine and all that is in it, unless the agent is protected. With \
                         `dryRun=true` in the query or the body nothing is changed.",
                    ),
                ),
        )
        .api_route(
            "/agents/{name}/start",
            post_with(
                start_agent,
                described(
                    "startAgent",
                    TAG,
                    "Want an agent running",
                    "Overrides the file for one hour unless `lasting` or `sticky` say otherwise.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/stop",
            post_with(
                stop_agent,
                described(
                    "stopAgent",
                    TAG,
                    "Want an agent stopped",
                    "Overrides the file for one hour unless `lasting` or `sticky` say otherwise.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/pause",
            post_with(
                pause_agent,
                described(
                    "pauseAgent",
                    TAG,
                    "Let an agent be",
                    "It is looked at and planned for, and not touched, until it is resumed or `lasting` is over.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/resume",
            post_with(resume_agent, operation("resumeAgent", TAG, "Look after an agent again")),
        )
        .api_route(
            "/agents/{name}/overrides/{path}",
            post_with(
                extend_override,
                described("extendOverride", TAG, "Give an override another time to end", "It is counted from now."),
            )
            .delete_with(clear_override, operation("clearOverride", TAG, "End an override before its time")),
        )
        .api_route(
            "/agents/{name}/logs",
            get_with(
                show_log,
                described(
                    "showLog",
                    TAG,
                    "Show or follow an agent's log",
                    "With `follow=true` the answer is a stream of server-sent events, each with a page of lines as \
                     JSON (`{\"lines\":[…]}`): first the last `tail` lines, then what comes. An event named `dropped` \
                     says how many lines were skipped because the client was too slow.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/exec",
            get_with(
                exec,
                described(
                    "exec",
                    TAG,
                    "Run a process in an agent, with its input and output",
                    "A WebSocket. The first text frame of the client is an `ExecRequest` of type `open`; after that \
                     text frames carry `ExecRequest` to the controller and `ExecEvent` to the client. Binary frames \
                     carry data: a header of 14 bytes (stream u32, always 0; channel u8: 0 stdin, 1 stdout, 2 stderr; \
                     flags u8: bit 0 ends the channel; offset u64; all big-endian) and at most 32 KiB of data. Neither \
                     side sends more than 256 KiB beyond the offset that the other has said to have `taken`. The last \
                     text frame is `ended` or `failed`. When the client goes away the process is ended.",
                ),
            ),
        )
}

fn fleet() -> ApiRouter<Controller> {
    const TAG: &str = "fleet";
    ApiRouter::new()
        .api_route("/fleet", get_with(show_fleet, operation("showFleet", TAG, "Show the accepted fleet file")))
        .api_route(
            "/fleet/revisions",
            get_with(
                list_revisions,
                operation("listRevisions", TAG, "List the files that were accepted, newest first"),
            ),
        )
        .api_route(
            "/fleet/revisions/{revision}",
            get_with(show_revision, operation("showRevision", TAG, "Show a file that was accepted, with its text")),
        )
        .api_route(
            "/fleet/rollback",
            post_with(
                rollback,
                described(
                    "rollback",
                    TAG,
                    "Go back to an earlier file",
                    "What it said becomes the newest revision, on the same terms as with `apply`. The file on the \
                     disk stays as it is, and is applied again once it changes.",
                ),
            ),
        )
        .api_route("/plan", post_with(plan, operation("plan", TAG, "Show what would be done")))
        .api_route(
            "/apply",
            post_with(
                apply,
                described(
                    "apply",
                    TAG,
                    "Accept a fleet file",
                    "With `plan` the file is accepted only while that is still the plan. With `approve` as well, \
                     everything in that plan that waits for an approval has it.",
                ),
            ),
        )
        .api_route("/drift", get_with(list_drift, operation("listDrift", TAG, "List what differs from what is wanted")))
        .api_route(
            "/approvals",
            get_with(list_approvals, operation("listApprovals", TAG, "List what waits for a person's yes")),
        )
        .api_route(
            "/approvals/{id}",
            post_with(
                approve,
                described(
                    "approve",
                    TAG,
                    "Say yes to one thing that waits for it",
                    "It is named by the beginning of its id. The yes is to exactly what was shown: when that changes, \
                     it is void.",
                ),
            ),
        )
        .api_route(
            "/pause",
            post_with(
                pause_fleet,
                described("pauseFleet", TAG, "Let the whole fleet be", "Until it is resumed, or `lasting` is over."),
            ),
        )
        .api_route("/resume", post_with(resume_fleet, operation("resumeFleet", TAG, "Look after the fleet again")))
        .api_route("/overrides", get_with(list_overrides, operation("listOverrides", TAG, "List the overrides")))
        .api_route(
            "/down",
            post_with(
                down,
                described(
                    "down",
                    TAG,
                    "Stop every machine, then the controller",
                    "Answers with the plan at once, and carries it out afterwards.",
                ),
            ),
        )
}

fn tasks() -> ApiRouter<Controller> {
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
                     `id` is asking once.",
                ),
            ),
        )
        .api_route("/agents/{name}/tasks", get_with(list_tasks, operation("listTasks", TAG, "List an agent's tasks")))
        .api_route("/tasks/{id}", get_with(show_task, operation("showTask", TAG, "Show a task")))
}

fn controller() -> ApiRouter<Controller> {
    const TAG: &str = "controller";
    ApiRouter::new()
        .api_route("/health", get_with(health, operation("health", TAG, "Say whether the controller answers")))
        .api_route("/version", get_with(version, operation("version", TAG, "Say what is running")))
        .api_route("/status", get_with(status, operation("status", TAG, "Show the controller")))
        .api_route("/stats", get_with(stats, operation("stats", TAG, "Count what happened since the start")))
        .api_route("/metrics", get_with(metrics, operation("metrics", TAG, "The metrics, as Prometheus reads them")))
        .api_route(
            "/events",
            get_with(
                list_events,
                described(
                    "listEvents",
                    TAG,
                    "List or follow what happened",
                    "With `follow=true` the answer is a stream of server-sent events: first those after `since` (or \
                     the latest `limit`), then what comes, without gaps and without repeats. Each has its number as \
                     id, so a client that comes back with `Last-Event-ID` goes on where it was.",
                ),
            ),
        )
        .route("/openapi.json", axum::routing::get(show))
}

fn tokens() -> ApiRouter<Controller> {
    const TAG: &str = "tokens";
    ApiRouter::new()
        .api_route(
            "/tokens",
            get_with(list_tokens, operation("listTokens", TAG, "List the tokens of this API")).post_with(
                create_token,
                described(
                    "createToken",
                    TAG,
                    "Make a token",
                    "The answer is the one time that the token is shown; only its digest is stored.",
                ),
            ),
        )
        .api_route("/tokens/{id}", delete_with(revoke_token, operation("revokeToken", TAG, "Revoke a token")))
}

async fn list_agents(State(controller): Asked) -> Answer<List<AgentView>> {
    Ok(Doc(List { items: controller.agents().await? }))
}

async fn show_agent(State(controller): Asked, Segment(name): Segment<AgentName>) -> Answer<AgentView> {
    Ok(Doc(controller.agent(&name).await?))
}

async fn create_agent(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<CreateRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.create(name, request, &actor).await?))
}

/// How to ask for an agent to go.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DestroyQuery {
    /// Change nothing, and answer as if.
    #[serde(default)]
    dry_run: bool,
}

async fn destroy_agent(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Query(query): Query<DestroyQuery>,
    OptionalBody(mut request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    request.dry_run |= query.dry_run;
    Ok(Doc(controller.destroy(name, request, &actor).await?))
}

async fn start_agent(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.start(name, request, &actor).await?))
}

async fn stop_agent(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.stop(name, request, &actor).await?))
}

async fn pause_agent(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.pause(name, request, &actor).await?))
}

async fn resume_agent(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.resume(name, request, &actor).await?))
}

async fn clear_override(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Segment(path): Segment<OverridePath>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.clear_override(name, path, request, &actor).await?))
}

async fn extend_override(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Segment(path): Segment<OverridePath>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.extend_override(name, path, request, &actor).await?))
}

/// Which lines of a log.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    /// How many of the last lines, at most 1000.
    #[serde(default = "usual_page")]
    tail: usize,
    /// Go on with the lines that come, as server-sent events.
    #[serde(default)]
    follow: bool,
}

async fn show_log(
    State(controller): Asked,
    Segment(name): Segment<AgentName>,
    Query(query): Query<LogQuery>,
    shutdown: Shutdown,
) -> Result<Followed<LogPage>, Refusal> {
    let tail = at_most("tail", query.tail)?;
    if !query.follow {
        return Ok(Followed::once(LogPage { lines: controller.log(&name, tail).await? }));
    }
    let live = controller.follow_log(&name)?;
    let so_far = controller.log(&name, tail).await?;
    Ok(Followed::live(stream::log(so_far, live), shutdown))
}

const fn usual_page() -> usize {
    PAGE
}

fn at_most(what: &str, count: usize) -> Result<usize, Problem> {
    if count <= PAGE_MAX {
        return Ok(count);
    }
    Err(Problem::new(ProblemCode::Invalid, format!("`{what}` is {count}; at most {PAGE_MAX} are given at a time")))
}

/// Which accepted files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RevisionsQuery {
    /// How many of the newest, at most 1000.
    #[serde(default = "usual_page")]
    limit: usize,
}

async fn list_revisions(State(controller): Asked, Query(query): Query<RevisionsQuery>) -> Answer<List<RevisionView>> {
    let limit = at_most("limit", query.limit)?;
    Ok(Doc(List { items: controller.revisions(limit).await? }))
}

async fn show_revision(State(controller): Asked, Segment(revision): Segment<Revision>) -> Answer<RevisionView> {
    Ok(Doc(controller.revision(revision).await?))
}

async fn rollback(
    State(controller): Asked,
    Extension(actor): By,
    Body(request): Body<RollbackRequest>,
) -> Answer<Applied> {
    Ok(Doc(controller.rollback(request, &actor).await?))
}

async fn show_fleet(State(controller): Asked) -> Answer<FleetView> {
    Ok(Doc(controller.fleet().await?))
}

fn shown(plan: Plan) -> Doc<PlanView> {
    Doc(PlanView { plan, reach: Vec::new() })
}

async fn plan(State(controller): Asked, OptionalBody(request): OptionalBody<PlanRequest>) -> Answer<PlanView> {
    Ok(Doc(controller.plan(request).await?))
}

async fn apply(State(controller): Asked, Extension(actor): By, Body(request): Body<ApplyRequest>) -> Answer<Applied> {
    Ok(Doc(controller.apply(request, &actor).await?))
}

async fn list_drift(State(controller): Asked) -> Answer<List<AgentDrift>> {
    Ok(Doc(List { items: controller.drift().await? }))
}

async fn list_approvals(State(controller): Asked) -> Answer<List<Approval>> {
    Ok(Doc(List { items: controller.approvals().await? }))
}

async fn approve(
    State(controller): Asked,
    Extension(actor): By,
    Segment(ApprovalPrefix(id)): Segment<ApprovalPrefix>,
    OptionalBody(request): OptionalBody<ApproveRequest>,
) -> Answer<Approval> {
    Ok(Doc(controller.approve(&id, request, &actor).await?))
}

async fn pause_fleet(
    State(controller): Asked,
    Extension(actor): By,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Resumable> {
    Ok(Doc(controller.pause_fleet(true, request, &actor).await?))
}

async fn resume_fleet(
    State(controller): Asked,
    Extension(actor): By,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Resumable> {
    Ok(Doc(controller.pause_fleet(false, request, &actor).await?))
}

async fn list_overrides(State(controller): Asked) -> Answer<List<Override>> {
    Ok(Doc(List { items: controller.overrides().await? }))
}

async fn down(
    State(controller): Asked,
    Extension(actor): By,
    OptionalBody(request): OptionalBody<DownRequest>,
) -> Answer<PlanView> {
    Ok(shown(controller.down(request, &actor).await?))
}

async fn submit_task(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Body(request): Body<TaskRequest>,
) -> Answer<Task, 202> {
    Ok(Doc(controller.submit_task(&name, request, &actor).await?))
}

async fn list_tasks(State(controller): Asked, Segment(name): Segment<AgentName>) -> Answer<List<Task>> {
    Ok(Doc(List { items: controller.tasks_of(&name, 1000).await? }))
}

async fn show_task(State(controller): Asked, Segment(id): Segment<TaskId>) -> Answer<Task> {
    Ok(Doc(controller.task(id).await?))
}

async fn health() -> Answer<Alive> {
    Ok(Doc(Alive { status: "ok".to_owned() }))
}

async fn version() -> Answer<Version> {
    Ok(Doc(Version { version: env!("CARGO_PKG_VERSION").to_owned(), protocol: PROTOCOL }))
}

async fn status(State(controller): Asked) -> Answer<ControllerStatus> {
    Ok(Doc(controller.status().await?))
}

async fn stats(State(controller): Asked) -> Answer<Stats> {
    Ok(Doc(controller.stats().await?))
}

async fn metrics(State(controller): Asked) -> Result<Text, Refusal> {
    Ok(Text { media_type: prometheus::TEXT_FORMAT, text: controller.metrics().await? })
}

/// Which events.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// Only events after the one with this number.
    #[schemars(extend("type" = "integer"))]
    since: Option<u64>,
    /// How many, at most 1000. Without `since`, the latest.
    #[serde(default = "usual_page")]
    limit: usize,
    /// Go on with the events that come, as server-sent events.
    #[serde(default)]
    follow: bool,
}

async fn list_events(
    State(controller): Asked,
    Query(query): Query<EventsQuery>,
    LastEventId(last): LastEventId,
    shutdown: Shutdown,
) -> Result<Followed<List<Event>>, Refusal> {
    let limit = at_most("limit", query.limit)?;
    if !query.follow {
        return Ok(Followed::once(List { items: controller.events(query.since, limit).await? }));
    }
    let events = stream::events(controller, last.or(query.since), limit).await?;
    Ok(Followed::live(events, shutdown))
}

async fn list_tokens(State(controller): Asked) -> Answer<List<ApiToken>> {
    Ok(Doc(List { items: controller.tokens().await? }))
}

async fn create_token(
    State(controller): Asked,
    Extension(actor): By,
    Body(request): Body<TokenRequest>,
) -> Answer<NewToken, 201> {
    Ok(Doc(controller.create_token(request, &actor).await?))
}

async fn revoke_token(
    State(controller): Asked,
    Extension(actor): By,
    Segment(id): Segment<TokenId>,
) -> Result<Done, Refusal> {
    controller.revoke_token(id, &actor).await?;
    Ok(Done)
}
