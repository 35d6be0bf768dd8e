//! Tokens of this API.

use aide::axum::ApiRouter;
use aide::axum::routing::{delete_with, get_with};
use axum::Extension;
use axum::extract::State;
use vm_agent_schemas::api::{List, NewToken, TokenRequest};
use vm_agent_schemas::credential::ApiToken;
use vm_agent_schemas::ids::TokenId;

use super::{Asked, By};
use crate::controller::Controller;
use crate::http::answer::{Answer, Doc, Done, Refusal};
use crate::http::extract::{Body, Segment};
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
