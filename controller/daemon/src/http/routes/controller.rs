//! The controller itself.

use aide::axum::ApiRouter;
use aide::axum::routing::get_with;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{Alive, ControllerStatus, List, Stats, Version};
use vm_agent_schemas::event::Event;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::wire::PROTOCOL;

use super::{Asked, at_most, usual_page};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc, Refusal, Text};
use crate::http::extract::{LastEventId, Query};
use crate::http::openapi::{described, operation, show};
use crate::http::stream::{self, Followed, Shutdown};

pub(super) fn routes() -> ApiRouter<Controller> {
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
    /// Only events of this agent.
    agent: Option<AgentName>,
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
    LastEventId(last): LastEventId<u64>,
    shutdown: Shutdown,
) -> Result<Followed<List<Event>>, Refusal> {
    let limit = at_most("limit", query.limit)?;
    if !query.follow {
        return Ok(Followed::once(List { items: controller.events(query.since, query.agent, limit).await? }));
    }
    let events = stream::events(controller, last.or(query.since), query.agent, limit).await?;
    Ok(Followed::live(events, shutdown))
}
