//! Snapshots of machines, the way back to them, and new agents made from them.

use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, patch_with, post_with};
use axum::Extension;
use axum::extract::State;
use vm_agent_schemas::api::{
    Changed, CloneRequest, List, RestoreRequest, SnapshotChange, SnapshotDeletion, SnapshotRequest, SnapshotView,
};
use vm_agent_schemas::ids::ErrandId;
use vm_agent_schemas::names::{AgentName, SnapshotName};
use vm_agent_schemas::snapshot::{Errand, Snapshot};

use super::{Asked, By};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc};
use crate::http::extract::{Body, OptionalBody, Segment};
use crate::http::openapi::{described, operation};

pub(super) fn routes() -> ApiRouter<Controller> {
    const TAG: &str = "snapshots";
    ApiRouter::new()
        .api_route("/snapshots", get_with(list_all, operation("listAllSnapshots", TAG, "List the snapshots of every agent")))
        .api_route(
            "/agents/{name}/snapshots",
            get_with(list, operation("listSnapshots", TAG, "List an agent's snapshots")).post_with(
                take,
                described(
                    "takeSnapshot",
                    TAG,
                    "Take a snapshot of an agent's machine",
                    "With its memory where it runs and its driver can; else the machine is stopped for it, and started \
                     again. The answer is the errand, which is over when the snapshot is there: ask for it by its id.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/snapshots/{snapshot}",
            patch_with(change, operation("changeSnapshot", TAG, "Protect a snapshot, or say something about it"))
                .delete_with(delete, operation("deleteSnapshot", TAG, "Delete a snapshot that nobody protects")),
        )
        .api_route(
            "/agents/{name}/restore",
            post_with(
                restore,
                described(
                    "restoreAgent",
                    TAG,
                    "Bring an agent's machine back to a snapshot",
                    "What runs in it ends, and what it wrote since is gone from it; it is kept in a snapshot that is \
                     taken before. The machine is a new incarnation: its runtime joins anew, and nobody can take it for \
                     the one of before. One \
                     that should not run stays down.",
                ),
            ),
        )
        .api_route(
            "/agents/{name}/clone",
            post_with(
                clone,
                described(
                    "cloneAgent",
                    TAG,
                    "Make a new agent from an agent's snapshot",
                    "It is an agent made by hand, with the spec of the other and a machine that goes on from the \
                     snapshot as somebody else. Without a snapshot one is taken.",
                ),
            ),
        )
        .api_route(
            "/errands/{id}",
            get_with(errand, operation("showErrand", TAG, "Show how far something is that was asked of snapshots")),
        )
}

async fn list_all(State(controller): Asked) -> Answer<List<SnapshotView>> {
    Ok(Doc(List { items: controller.snapshots(None).await? }))
}

async fn list(State(controller): Asked, Segment(name): Segment<AgentName>) -> Answer<List<SnapshotView>> {
    Ok(Doc(List { items: controller.snapshots(Some(&name)).await? }))
}

async fn take(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    OptionalBody(request): OptionalBody<SnapshotRequest>,
) -> Answer<Errand> {
    Ok(Doc(controller.take_snapshot(&name, request, &actor).await?))
}

async fn change(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Segment(snapshot): Segment<SnapshotName>,
    Body(request): Body<SnapshotChange>,
) -> Answer<Snapshot> {
    Ok(Doc(controller.change_snapshot(&name, &snapshot, request, &actor).await?))
}

async fn delete(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Segment(snapshot): Segment<SnapshotName>,
    OptionalBody(request): OptionalBody<SnapshotDeletion>,
) -> Answer<Errand> {
    Ok(Doc(controller.delete_snapshot(&name, &snapshot, request, &actor).await?))
}

async fn restore(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Body(request): Body<RestoreRequest>,
) -> Answer<Errand> {
    Ok(Doc(controller.restore(&name, request, &actor).await?))
}

async fn clone(
    State(controller): Asked,
    Extension(actor): By,
    Segment(name): Segment<AgentName>,
    Body(request): Body<CloneRequest>,
) -> Answer<Changed> {
    Ok(Doc(controller.clone_agent(&name, request, &actor).await?))
}

async fn errand(State(controller): Asked, Segment(id): Segment<ErrandId>) -> Answer<Errand> {
    Ok(Doc(controller.errand(id).await?))
}
