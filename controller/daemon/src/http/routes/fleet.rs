//! The fleet file, what differs from it, and what would be done.

use aide::axum::ApiRouter;
use aide::axum::routing::{get_with, post_with};
use axum::Extension;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{
    AgentDrift, Applied, ApplyRequest, Approval, ApproveRequest, ChangeRequest, DownRequest, FleetView, List,
    PlanRequest, PlanView, Resumable, RevisionView, RollbackRequest,
};
use vm_agent_schemas::ids::Revision;
use vm_agent_schemas::intent::Override;
use vm_agent_schemas::plan::Plan;

use super::{Asked, By, at_most, usual_page};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc};
use crate::http::extract::{ApprovalPrefix, Body, OptionalBody, Query, Segment};
use crate::http::openapi::{described, operation};

pub(super) fn routes() -> ApiRouter<Controller> {
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
