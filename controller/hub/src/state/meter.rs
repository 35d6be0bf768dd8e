//! How often something may be done: a token bucket in one moment.

use jiff::{SignedDuration, Timestamp};

/// What was spent so far.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// When nothing is owed any more for it.
    paid: Timestamp,
}

impl Meter {
    /// Spends once, where each time costs so much time and so much may be owed. Answers whether it was enough.
    pub(super) fn spend(&mut self, cost: SignedDuration, most: SignedDuration, now: Timestamp) -> bool {
        let latest = now.saturating_add(most).unwrap_or(now);
        // Also when the clock was set back no more than that is owed.
        self.paid = self.paid.clamp(now, latest);
        let paid = self.paid.saturating_add(cost).unwrap_or(Timestamp::MAX);
        let fits = paid <= latest;
        if fits {
            self.paid = paid;
        }
        fits
    }
}
