//! The dashboard: a page without secrets that uses the API next to it.

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use super::answer::wrong_method;
use super::door::{Door, harden, same_site};
use crate::controller::Controller;

/// What the page may do: run its own script, wear its own style, speak to its own origin. Nothing
/// else, whatever text an agent may have got into it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page on `/`, and the API of the controller under its own paths, which needs a token.
pub fn dashboard(controller: Controller) -> Router {
    let page = Router::new()
        .route("/", asset("text/html; charset=utf-8", include_str!("../../../../dashboard/index.html")))
        .route("/app.js", asset("text/javascript; charset=utf-8", include_str!("../../../../dashboard/app.js")))
        .route("/style.css", asset("text/css; charset=utf-8", include_str!("../../../../dashboard/style.css")))
        .route("/icon.svg", asset("image/svg+xml", include_str!("../../../../dashboard/icon.svg")))
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(local_only))
        .layer(axum::middleware::map_response(harden));
    page.fallback_service(super::router(controller, Door::Tcp))
}

fn asset(media_type: &'static str, text: &'static str) -> MethodRouter {
    get(async move || {
        let policy = HeaderValue::from_static(POLICY);
        (
            [(header::CONTENT_TYPE, HeaderValue::from_static(media_type)), (header::CONTENT_SECURITY_POLICY, policy)],
            text,
        )
    })
}

async fn local_only(request: Request, next: Next) -> Response {
    match same_site(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}
