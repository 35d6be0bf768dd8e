//! The routes: each handler extracts, does one thing with the controller, and answers.

mod agents;
mod controller;
mod fleet;
mod instances;
mod messages;
mod snapshots;
mod tasks;
mod tokens;

use aide::axum::ApiRouter;
use axum::Extension;
use axum::extract::State;
use vm_agent_schemas::api::{Problem, ProblemCode};

use crate::controller::{Actor, Controller};

type Asked = State<Controller>;
type By = Extension<Actor>;

/// How many of many things are given when nobody says how many.
const PAGE: usize = 100;
/// Most things in one answer: enough to fill any screen, and a few hundred KiB.
const PAGE_MAX: usize = 1000;

/// Every route of the API, with its description.
pub(super) fn all() -> ApiRouter<Controller> {
    ApiRouter::new()
        .merge(agents::routes())
        .merge(fleet::routes())
        .merge(instances::routes())
        .merge(snapshots::routes())
        .merge(tasks::routes())
        .merge(messages::routes())
        .merge(controller::routes())
        .merge(tokens::routes())
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

/// The same, for who counts in 32 bits.
fn page_of(limit: usize) -> Result<u32, Problem> {
    at_most("limit", limit).map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
}
