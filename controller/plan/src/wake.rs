//! When the next pass is due although nothing happens: time alone changes a plan at these moments.

use jiff::Timestamp;

use crate::fuse::{BACKOFF_FORGOTTEN, after, probe_at};
use crate::inputs::{Inputs, Listing};

/// The earliest time after `now` at which the same inputs may give another plan.
#[must_use]
pub fn wake_at(inputs: &Inputs) -> Option<Timestamp> {
    let backoffs = inputs.backoffs.values().flat_map(|b| [b.not_before, after(b.failed_at, BACKOFF_FORGOTTEN)]);
    let overrides = inputs.overrides.iter().filter_map(|entry| entry.expires_at);
    let pause = inputs.pause.iter().filter_map(|pause| pause.expires_at);
    let silences = inputs.sessions.values().map(|session| after(session.last_seen, inputs.silence));
    let operations = inputs.operations.values().map(|operation| operation.deadline);
    let connects = inputs.drivers.values().flat_map(|view| {
        let limit = view.capabilities.deadlines.connect.get();
        let observed = match &view.listing {
            Listing::Seen(instances) => Some(instances.values()),
            Listing::Unanswered { .. } => None,
        };
        observed.into_iter().flatten().map(move |observed| after(observed.since, limit))
    });
    let all = backoffs
        .chain(overrides)
        .chain(pause)
        .chain(silences)
        .chain(operations)
        .chain(connects)
        .chain(probe_at(&inputs.fuse, inputs.backoffs.values()));
    all.filter(|at| *at > inputs.now).min()
}
