//! Bringing a fleet file into force, whoever wants it: a person, or the watcher.

use std::sync::Arc;

use jiff::Timestamp;
use vm_agent_plan::plan;
use vm_agent_schemas::api::{Applied, FleetSource, Problem, ProblemCode};
use vm_agent_schemas::fleet::Fleet;

use crate::core::Core;
use crate::engine::file::{self, Cause, Terms};
use crate::engine::reach::widened;
use crate::engine::records::{NewFile, Records};
use crate::reconciler::Chain;
use crate::watch::Turn;

/// A file that is to get into force.
pub(crate) struct Wish {
    pub(crate) source: FleetSource,
    pub(crate) fleet: Fleet,
    pub(crate) terms: Terms,
    pub(crate) cause: Cause,
    /// Change nothing, and answer as if.
    pub(crate) dry_run: bool,
}

/// Brings a file into force.
///
/// # Errors
/// When the plan is no longer the one that was shown, and when the store fails.
pub(crate) async fn accept(core: &Core, wish: Wish, _turn: &Turn<'_>) -> Result<Applied, Problem> {
    let Wish { source, fleet, terms, cause, dry_run } = wish;
    core.first_listings().await;
    let records = core.ledger.records();
    let hypothetical = Records { fleet: Arc::new(fleet.clone()), ..records.as_ref().clone() };
    let planned = plan(&core.inputs_with(&hypothetical).await);
    let reach = widened(&records.fleet, &fleet).iter().map(ToString::to_string).collect();
    let changes = file::accept(&records, &source, &fleet, &planned, &terms, &cause)?;
    if dry_run {
        let revision = records.file.as_ref().map(|file| file.revision);
        return Ok(Applied { revision, plan: planned, reach, dry_run });
    }
    let by_hand = !matches!(cause, Cause::Changed);
    let file = NewFile { source, fleet, author: cause.author().to_owned(), summary: cause.summary(&planned) };
    let accepted = core.ledger.accept(file, changes, Timestamp::now()).await;
    let revision = accepted.map_err(|error| Problem::new(ProblemCode::Internal, Chain(&error).to_string()))?;
    if by_hand {
        core.applied.notify_one();
    }
    core.watch.look_again();
    core.wake();
    Ok(Applied { revision: Some(revision), plan: plan(&core.inputs().await), reach, dry_run })
}
