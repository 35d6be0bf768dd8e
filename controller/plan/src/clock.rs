//! Times, and what a jump of the wall clock does to them.

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::intent::{Override, Pause};
use vm_agent_schemas::observe::Backoff;
use vm_agent_schemas::plan::Fuse;

use crate::fuse::FUSE_WINDOW;
use crate::inputs::Inputs;

/// A time of the records may be ahead of a plan's by this much without a jump of the clock: what people
/// say is dated while the world is being looked at, and clocks are set by moments all the time.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Something of the records that is dated later than now, because the clock was set back since: here it
/// is dated anew, so that it holds for as long as it was to hold, and not until the clock has caught up.
#[derive(Debug, Clone, PartialEq)]
pub enum SetBack {
    /// A failure.
    Backoff(Backoff),
    /// The fuse.
    Fuse(Fuse),
    /// What a person said of an agent, for a time.
    Override(Box<Override>),
    /// What a person said of the fleet, for a time.
    Pause(Pause),
}

/// A time that much later.
pub(crate) fn after(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// A time that much earlier.
pub(crate) fn before(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_sub(span).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// From when on a silence counts that began then. While the clock jumped nobody could be heard, and what
/// was heard at a time that has not come yet was heard before the clock was set back.
pub(crate) fn counted_from(inputs: &Inputs, at: Timestamp) -> Timestamp {
    match inputs.resumed_at {
        Some(resumed) if at > inputs.now => resumed,
        Some(resumed) => at.max(resumed),
        None => at,
    }
}

/// When a silence that counts from [`counted_from`] is over, and when that begins to count otherwise.
pub(crate) fn silence_ends(inputs: &Inputs, at: Timestamp, limit: Duration) -> [Timestamp; 2] {
    [after(counted_from(inputs, at), limit), at]
}

/// The backoff as if its failure had been now, where it is dated later.
pub(crate) fn backoff_set_back(inputs: &Inputs, backoff: &Backoff) -> Option<SetBack> {
    is_ahead(inputs, backoff.failed_at).then(|| {
        SetBack::Backoff(Backoff {
            // Many of them at once are no many failures at once: none counts for the fuse.
            failed_at: before(inputs.now, FUSE_WINDOW),
            not_before: shifted(inputs, backoff.failed_at, backoff.not_before),
            ..backoff.clone()
        })
    })
}

/// The fuse as if it had changed now, where it is dated later.
pub(crate) fn fuse_set_back(inputs: &Inputs) -> Option<SetBack> {
    let now = inputs.now;
    let (since, anew) = match inputs.fuse {
        Fuse::Closed { since } => (since, Fuse::Closed { since: now }),
        Fuse::Blown { since, failed, of } => (since, Fuse::Blown { since: now, failed, of }),
    };
    is_ahead(inputs, since).then_some(SetBack::Fuse(anew))
}

/// The override as if it had been said now, where it is dated later.
pub(crate) fn override_set_back(inputs: &Inputs, entry: &Override) -> Option<SetBack> {
    let end = entry.expires_at.filter(|_| is_ahead(inputs, entry.created_at))?;
    let expires_at = Some(shifted(inputs, entry.created_at, end));
    Some(SetBack::Override(Box::new(Override { created_at: inputs.now, expires_at, ..entry.clone() })))
}

/// The pause as if it had been said now, where it is dated later.
pub(crate) fn pause_set_back(inputs: &Inputs, pause: &Pause) -> Option<SetBack> {
    let end = pause.expires_at.filter(|_| is_ahead(inputs, pause.created_at))?;
    let expires_at = Some(shifted(inputs, pause.created_at, end));
    Some(SetBack::Pause(Pause { created_at: inputs.now, expires_at, ..pause.clone() }))
}

fn is_ahead(inputs: &Inputs, at: Timestamp) -> bool {
    at > after(inputs.now, TOLERANCE)
}

/// The end of something that began then, had it begun now.
fn shifted(inputs: &Inputs, began: Timestamp, ends: Timestamp) -> Timestamp {
    after(inputs.now, Duration::try_from(began.duration_until(ends)).unwrap_or_default())
}
