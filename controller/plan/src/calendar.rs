//! Moments of a calendar: whether one of them is now, and when that changes.

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::fleet::{CronWhen, Missed};
use vm_agent_schemas::schedule::Cron;

use crate::clock::{after, before};

/// How late a task may begin for its moment. An agent that could not run for so long has missed it.
pub(crate) const LATE: Duration = Duration::from_secs(60);

/// The first moment of the time of that length which ends now.
pub(crate) fn moment_within(cron: &Cron, length: Duration, now: Timestamp) -> Option<Timestamp> {
    moment_between(cron, before(now, length), now)
}

/// When [`moment_within`] may answer otherwise: a moment comes, or is too long ago.
pub(crate) fn turns(cron: &Cron, length: Duration, now: Timestamp) -> impl Iterator<Item = Timestamp> + use<> {
    let passes = moment_within(cron, length, now).map(|moment| after(moment, length));
    passes.into_iter().chain(cron.next_after(now))
}

/// A task's moments, as they are for one machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounds<'a> {
    pub(crate) when: &'a CronWhen,
    /// When the last run was accepted.
    pub(crate) last: Option<Timestamp>,
    /// When the machine's claim was written.
    pub(crate) made: Timestamp,
}

impl Rounds<'_> {
    /// The moment for which the task should run now, if there is one. A run that is dated later than now is from before the clock was
    /// set back: until the clock has caught up nothing is due, so that nothing runs twice.
    pub(crate) fn due(self, now: Timestamp) -> Option<Timestamp> {
        moment_between(&self.when.cron, self.since(now), now)
    }

    /// The moment after now at which the task runs next.
    pub(crate) fn next(self, now: Timestamp) -> Option<Timestamp> {
        self.when.cron.next_after(now.max(self.made).max(self.last.unwrap_or(now)))
    }

    /// When [`due`](Self::due) may answer otherwise.
    pub(crate) fn turns(self, now: Timestamp) -> impl Iterator<Item = Timestamp> + use<> {
        let missed = self.due(now).map(|moment| after(moment, LATE));
        missed.into_iter().chain(self.next(now))
    }

    /// Moments up to then no longer count.
    fn since(self, now: Timestamp) -> Timestamp {
        let recent = before(now, LATE);
        let since = match (self.when.missed, self.last) {
            (Missed::Once, Some(last)) => last,
            (Missed::Skip, Some(last)) => last.max(recent),
            // Nobody knows which moments a task has missed that never ran.
            (_, None) => recent,
        };
        since.max(self.made)
    }
}

/// The first moment after `since`, up to and including `now`.
fn moment_between(cron: &Cron, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
    if since >= now {
        return None;
    }
    cron.next_after(since).filter(|moment| *moment <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-07-01T{text}Z").parse().unwrap()
    }

    fn when(missed: Missed) -> CronWhen {
        CronWhen { cron: "0 3 * * *".parse().unwrap(), missed }
    }

    fn is_due(missed: Missed, last: Option<&str>, made: &str, now: &str) -> bool {
        Rounds { when: &when(missed), last: last.map(at), made: at(made) }.due(at(now)).is_some()
    }

    #[test]
    fn a_task_is_due_from_its_moment_on_for_as_long_as_it_may_be_late() {
        assert!(!is_due(Missed::Skip, None, "00:00:00", "02:59:59"));
        assert!(is_due(Missed::Skip, None, "00:00:00", "03:00:00"));
        assert!(is_due(Missed::Skip, None, "00:00:00", "03:00:59"));
        assert!(!is_due(Missed::Skip, None, "00:00:00", "03:01:00"));
    }

    #[test]
    fn a_task_that_ran_for_a_moment_is_not_due_for_it_again() {
        assert!(!is_due(Missed::Skip, Some("03:00:00"), "00:00:00", "03:00:01"));
        assert!(!is_due(Missed::Once, Some("03:00:20"), "00:00:00", "23:00:00"));
    }

    #[test]
    fn missed_moments_are_made_up_for_once_where_that_is_asked_for() {
        assert!(!is_due(Missed::Skip, Some("00:30:00"), "00:00:00", "05:00:00"));
        assert!(is_due(Missed::Once, Some("00:30:00"), "00:00:00", "05:00:00"));
        assert!(!is_due(Missed::Once, None, "00:00:00", "05:00:00"), "it never ran before");
    }

    #[test]
    fn moments_before_the_machine_was_made_are_nobodys() {
        assert!(!is_due(Missed::Skip, None, "03:00:10", "03:00:20"));
        assert!(!is_due(Missed::Once, Some("00:30:00"), "03:30:00", "05:00:00"));
    }

    #[test]
    fn nothing_is_due_again_after_the_clock_was_set_back() {
        for missed in [Missed::Skip, Missed::Once] {
            assert!(!is_due(missed, Some("03:00:05"), "00:00:00", "03:00:01"));
            assert!(!is_due(missed, Some("05:00:00"), "00:00:00", "03:00:01"));
            assert!(!is_due(missed, None, "05:00:00", "03:00:01"));
        }
    }

    #[test]
    fn the_next_change_is_the_moment_itself_or_its_passing() {
        let turns = |now: &str| {
            let when = when(Missed::Skip);
            Rounds { when: &when, last: None, made: at("00:00:00") }.turns(at(now)).min().unwrap()
        };
        assert_eq!(turns("01:00:00"), at("03:00:00"));
        assert_eq!(turns("03:00:30"), at("03:01:00"));
    }
}
