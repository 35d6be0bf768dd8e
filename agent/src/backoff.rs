//! How long to wait before the next attempt.

use std::time::Duration;

/// Upper end of the first wait. Short: on the same machine a controller is back within a second.
const FIRST: Duration = Duration::from_millis(100);
/// Upper end of every later wait. It bounds how long an agent is missing after its hub came back.
const CAP: Duration = Duration::from_secs(5);
/// A session that lasted this long was a good one: the next attempt begins anew. Shorter, and a hub
/// that accepts and drops at once would be called without pause.
pub(crate) const LIVED: Duration = CAP;
/// The wait after a refusal that trying again can't help. The runtime stays: whoever starts it would
/// only start it again, and a controller that is set right is found again without a hand.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// Exponential backoff with full jitter: many runtimes that lost the same hub come back spread out.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// Between attempts to connect.
    fn default() -> Self {
        Self::new(FIRST, CAP)
    }
}

impl Backoff {
    /// Waits of up to `first`, then up to twice that, and so on up to `cap`.
    pub(crate) const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, failures: 0 }
    }

    /// The next wait. `random` lies between 0 and 1 and is drawn anew for each call.
    pub(crate) fn next(&mut self, random: f64) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = self.first.saturating_mul(factor).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random.clamp(0.0, 1.0))
    }

    /// Begins anew.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_begin_anew_after_a_reset() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next(1.0), FIRST);
    }

    #[test]
    fn the_whole_wait_is_jitter() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0.0), Duration::ZERO);
        assert_eq!(backoff.next(0.5), FIRST);
    }

    #[test]
    fn a_thousand_failures_still_wait_the_cap() {
        let mut backoff = Backoff { failures: 1000, ..Backoff::default() };
        assert_eq!(backoff.next(1.0), CAP);
    }
}
