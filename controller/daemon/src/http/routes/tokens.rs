//! Tokens of this API, and who did what with them.

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with, post_with};
use axum::Extension;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use vm_agent_schemas::api::{AuditEntry, List, NewToken, TokenRequest, TokenRotation};
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::ids::TokenId;

use super::{Asked, By, page_of, usual_page};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc, Done, Refusal};
use crate::http::extract::{Body, OptionalBody, Query, Segment};
use crate::http::openapi::{described, operation};

pub(super) fn routes() -> ApiRouter<Controller> {
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
        .api_route(
            "/tokens/{id}/rotate",
            post_with(
                rotate_token,
                described(
                    "rotateToken",
                    TAG,
                    "Make a token in the place of another",
                    "The new one has the name and the role of the old one, and works for as long. The old one ends \
                     after `overlap`, a day unless told otherwise. The answer is the one time that the new token is \
                     shown.",
                ),
            ),
        )
        .api_route(
            "/audit",
            get_with(
                list_audit,
                described(
                    "listAudit",
                    TAG,
                    "List who changed what",
                    "Each request that changed something or was refused by the role of who made it, the oldest first: \
                     the first after `after`, or the latest `limit`. Paths are kept, bodies are not.",
                ),
            ),
        )
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

async fn rotate_token(
    State(controller): Asked,
    Segment(id): Segment<TokenId>,
    OptionalBody(request): OptionalBody<TokenRotation>,
) -> Answer<NewToken, 201> {
    Ok(Doc(controller.rotate_token(id, request).await?))
}

/// Which requests.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AuditQuery {
    /// Only requests after the one with this number.
    #[schemars(extend("type" = "integer"))]
    after: Option<u64>,
    /// How many, at most 1000. Without `after`, the latest.
    #[serde(default = "usual_page")]
    limit: usize,
}

async fn list_audit(State(controller): Asked, Query(query): Query<AuditQuery>) -> Answer<List<AuditEntry>> {
    Ok(Doc(List { items: controller.audited(query.after, page_of(query.limit)?).await? }))
}
