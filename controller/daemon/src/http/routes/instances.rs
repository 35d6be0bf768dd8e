//! Instances of all drivers, ours or not.

use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, post_with};
use axum::Extension;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{ChangeRequest, Changed, ImportRequest, InstanceInfo, List};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::AgentName;

use super::{Asked, By};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc};
use crate::http::extract::{Body, OptionalBody, Query, Segment};
use crate::http::openapi::described;

pub(super) fn routes() -> ApiRouter<Controller> {
    const TAG: &str = "instances";
    ApiRouter::new()
        .api_route(
            "/instances",
            get_with(
                list,
                described(
                    "listInstances",
                    TAG,
                    "List every instance that the drivers see, ours or not",
                    "Each driver is asked anew, and those that are not ours are described one by one: it may take long.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/import",
            post_with(
                import,
                described(
                    "importAgent",
                    TAG,
                    "Take over an instance that others made",
                    "A runtime is put into it, and from then on it is the agent's. An agent that the file does not \
                     declare is made by hand, as the instance is found, and protected.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/release",
            post_with(
                release,
                described(
                    "releaseAgent",
                    TAG,
                    "Let an agent go, and leave its instance as it is",
                    "Its runtime is not heard any more. One that the file declares is refused: it would be made anew.",
                ),
            ),
        )
}

/// Which instances.
#[derive(Debug, Deserialize, JsonSchema)]
struct Which {
    /// Only those of this driver.
    driver: Option<DriverName>,
}

async fn list(State(controller): Asked, Query(which): Query<Which>) -> Answer<List<InstanceInfo>> {
    Ok(Doc(List { items: controller.instances(which.driver).await? }))
}

async fn import(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Body(request): Body<ImportRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.import(name, request, &actor).await?))
}

async fn release(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<ChangeRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.release(name, request, &actor).await?))
}
