//! Agents, and imperative changes to them.

use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, post_with};
use axum::Extension;
use axum::extract::State;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{AgentView, ChangeRequest, Changed, CreateRequest, List, LogPage};
use vm_agent_schemas::intent::OverridePath;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::verification::Verification;

use super::{Asked, By, at_most, usual_page};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc, Done, Refusal};
use crate::http::exec::exec;
use crate::http::extract::{OptionalBody, Query, Segment};
use crate::http::openapi::{described, operation};
use crate::http::stream::{self, Followed, Shutdown};

pub(super) fn routes() -> ApiRouter<Controller> {
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
            "/agents/{name}/rotate",
            post_with(
                rotate_key,
                described(
                    "rotateKey",
                    TAG,
                    "Give an agent's runtime another key",
                    "Answers when the new key is stored: the runtime uses it from its next connection on. The session \
                     goes on.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/verify",
            post_with(
                verify_agent,
                described(
                    "verifyAgent",
                    TAG,
                    "Find out whether an agent's runtime runs in its machine",
                    "A challenge goes into the machine through its driver, and the runtime has to answer by means of \
                     it. The answer to the request says `verified`, `not-in-machine` or `unable`, and why. A runtime that \
                     does not run in its machine is refused from then on, and the machine gets another seed.",
                ),
            ),
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
                    "Each line begins with the time at which it came, as RFC 3339 writes it, and a space. With \
                     `follow=true` the answer is a stream of server-sent events, each with a page of lines as JSON \
                     (`{\"lines\":[…]}`): first the last `tail` lines, then what comes. An event named `dropped` says \
                     how many lines were skipped because the client was too slow.",
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
                    "Open a stream to an agent: a process, a terminal, a copy or a TCP connection",
                    "A WebSocket. The first text frame of the client is an `ExecRequest` of type `open`. Its `target` \
                     is what is at the agent's end: `run`, a process with pipes; `terminal`, a process with a terminal, \
                     which with `keep` outlives the stream; `attach`, a terminal that is kept, from an offset of its \
                     output on; `upload`, a tar archive to unpack, on stdin; `download`, a tar archive of a file or \
                     folder, on stdout; `connect`, a TCP connection that the runtime makes, stdin to it and stdout from \
                     it. After that text frames carry `ExecRequest` to the controller and `ExecEvent` to the client. Binary frames \
                     carry data: a header of 14 bytes (stream u32, always 0; channel u8: 0 stdin, 1 stdout, 2 stderr; \
                     flags u8: bit 0 ends the channel; offset u64; all big-endian) and at most 32 KiB of data. Neither \
                     side sends more than 256 KiB beyond the offset that the other has said to have `taken`. The last \
                     text frame is `ended` or `failed`. When the client goes away the process is ended.",
                ),
            ),
        )
}

async fn rotate_key(State(controller): Asked, Segment(name): Segment<AgentName>) -> Result<Done, Refusal> {
    controller.rotate_key(&name).await?;
    Ok(Done)
}

async fn verify_agent(State(controller): Asked, Segment(name): Segment<AgentName>) -> Answer<Verification> {
    Ok(Doc(controller.verify(&name).await?))
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
    /// Only lines that came at this time or later.
    #[schemars(extend("type" = "string"))]
    since: Option<Timestamp>,
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
        return Ok(Followed::once(LogPage { lines: controller.log(&name, tail, query.since).await? }));
    }
    let live = controller.follow_log(&name)?;
    let so_far = controller.log(&name, tail, query.since).await?;
    Ok(Followed::live(stream::log(so_far, live), shutdown))
}
