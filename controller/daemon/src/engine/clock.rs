//! Jumps of the wall clock, told by the monotonic one.
//!
//! A laptop that slept wakes with its wall clock hours ahead of a monotonic clock that stood still; a
//! person or a time server sets the wall clock ahead or back. Either way times that were noted before
//! don't mean what they seem to.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// How far the clocks may part between two observations.
///
/// Slewing after a time server parts them by half a second in a thousand, and two reads of them that
/// the scheduler has pulled apart by less than this. Nothing that we keep times of hangs on as little.
const TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// Watches the wall clock against the monotonic one.
#[derive(Debug, Default)]
pub struct ClockWatch {
    last: Option<Reading>,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    monotonic: Duration,
    wall: Timestamp,
}

/// What a wall clock did beside going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// How far ahead it went, or back when it is negative.
    pub by: SignedDuration,
}

impl ClockWatch {
    /// Takes both clocks as they are now, and tells whether the wall clock has jumped since they were
    /// taken before. `monotonic` counts from any fixed moment.
    pub fn observe(&mut self, monotonic: Duration, wall: Timestamp) -> Option<Jump> {
        let before = self.last.replace(Reading { monotonic, wall })?;
        let passed = SignedDuration::try_from(monotonic.saturating_sub(before.monotonic));
        let by = wall.duration_since(before.wall).checked_sub(passed.ok()?)?;
        (by.abs() > TOLERANCE).then_some(Jump { by })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Jumps seen in these readings: seconds of the monotonic clock, and of the wall clock.
    fn jumps(readings: &[(u64, i64)]) -> Vec<Option<i64>> {
        let mut watch = ClockWatch::default();
        let mut observe = |&(monotonic, wall)| {
            let wall = Timestamp::from_second(wall).unwrap();
            watch.observe(Duration::from_secs(monotonic), wall).map(|jump| jump.by.as_secs())
        };
        readings.iter().map(&mut observe).collect()
    }

    #[test]
    fn clocks_that_go_together_don_t_jump_however_long_between_two_looks() {
        assert_eq!(jumps(&[(7, 1_000), (8, 1_001), (100_000, 100_993), (100_000, 100_993)]), [None; 4]);
    }

    #[test]
    fn a_sleep_is_a_jump_ahead_and_is_told_once() {
        let awake = (70, 1_060 + 8 * 3600);
        assert_eq!(jumps(&[(10, 1_000), awake, (71, awake.1 + 1)]), [None, Some(8 * 3600), None]);
    }

    #[test]
    fn a_clock_that_is_set_back_is_a_jump_below_zero() {
        assert_eq!(jumps(&[(10, 10_000), (20, 6_410), (30, 6_420)]), [None, Some(-3_600), None]);
    }

    #[test]
    fn what_is_within_the_tolerance_is_no_jump() {
        assert_eq!(jumps(&[(0, 0), (10, 15), (20, 20)]), [None; 3]);
        assert_eq!(jumps(&[(0, 0), (10, 16)]), [None, Some(6)]);
        assert_eq!(jumps(&[(0, 0), (10, 4)]), [None, Some(-6)]);
    }

    #[test]
    fn readings_at_the_ends_of_time_don_t_overflow() {
        let mut watch = ClockWatch::default();
        assert_eq!(watch.observe(Duration::MAX, Timestamp::MIN), None);
        assert!(watch.observe(Duration::ZERO, Timestamp::MAX).is_some());
        assert_eq!(watch.observe(Duration::MAX, Timestamp::MAX), None, "no clock counts so far");
    }
}
