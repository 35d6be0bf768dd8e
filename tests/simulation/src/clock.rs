//! A clock on the wall, and one that only ever goes on.

use jiff::{SignedDuration, Timestamp};

/// Milliseconds since the simulation began, on the clock that only ever goes on.
pub type Millis = u64;

/// One second.
pub const SECOND: Millis = 1000;
/// One minute.
pub const MINUTE: Millis = 60 * SECOND;

/// When every simulation begins, on the wall.
const BEGIN: i64 = 1_800_000_000;

/// Both clocks.
#[derive(Debug, Default)]
pub struct Clock {
    /// The one that only ever goes on. It stands still while the host sleeps.
    pub mono: Millis,
    /// How often the one on the wall has jumped.
    pub jumps: u64,
    /// How far the one on the wall is ahead of it, in milliseconds.
    ahead: i64,
}

impl Clock {
    /// What the clock on the wall says.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        let since = i64::try_from(self.mono).unwrap_or(i64::MAX).saturating_add(self.ahead);
        Timestamp::from_second(BEGIN)
            .and_then(|begin| begin.checked_add(SignedDuration::from_millis(since)))
            .unwrap_or(Timestamp::MAX)
    }

    /// Moves the clock on the wall: a host that slept, or somebody who set it.
    pub fn jump(&mut self, millis: i64) {
        self.ahead += millis;
        self.jumps += 1;
    }
}
