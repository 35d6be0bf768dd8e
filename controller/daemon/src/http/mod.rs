//! The HTTP API and the dashboard: doors onto a [`Controller`], which does all the work.
//!
//! ```text
//! unix socket ──▶ guard(user) ─────────────────┐
//! TCP ──────────▶ guard(Host, Origin, token) ──┼──▶ routes ──▶ Controller
//! dashboard ──┬─▶ guard(Host, Origin, token) ──┘
//!             └─▶ the page (Host)
//! ```
//!
//! `openapi()` describes the routes, and is made from them.

mod answer;
mod dashboard;
mod door;
mod exec;
mod extract;
mod mailbox;
mod openapi;
mod output;
mod roles;
mod routes;
mod serve;
mod stream;

pub use dashboard::dashboard;
pub use door::Door;
pub use openapi::openapi;
pub use serve::{serve_tcp, serve_unix};

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response};

use crate::controller::Controller;

/// The API of a controller behind a door.
pub fn router(controller: Controller, door: Door) -> Router {
    let (routes, _) = openapi::finish(routes::all());
    let guard = door::Guard { controller: controller.clone(), door };
    routes
        .fallback(answer::unknown_path)
        .method_not_allowed_fallback(answer::wrong_method)
        .with_state(controller)
        .layer(DefaultBodyLimit::max(extract::BODY_MAX))
        .layer(from_fn_with_state(guard, door::guard))
        .layer(map_response(door::harden))
}

#[cfg(test)]
mod tests;
