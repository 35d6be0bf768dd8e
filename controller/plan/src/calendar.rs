//! Moments of a calendar: whether one of them is now, and when that changes.

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::fleet::{CronWhen, Missed, Overlap};
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
    pub(crate) last: Option<LastRun>,
    /// Up to then no moment was the task's: the machine's claim was not written, or the file did not ask for it.
    pub(crate) begins: Timestamp,
}

/// The last run of a task, which is over.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastRun {
    /// When it was accepted.
    pub(crate) accepted: Timestamp,
    /// When its end was stored.
    pub(crate) ended: Timestamp,
}

impl Rounds<'_> {
    /// The moment for which the task should run now, if there is one. A run that is dated later than now is from before the clock was
    /// set back: until the clock has caught up nothing is due, so that nothing runs twice.
    pub(crate) fn due(self, now: Timestamp) -> Option<Timestamp> {
        moment_between(&self.when.cron, self.since(now), now)
    }

    /// The moment after now at which the task runs next.
    pub(crate) fn next(self, now: Timestamp) -> Option<Timestamp> {
        self.when.cron.next_after(now.max(self.begins).max(self.passed().unwrap_or(now)))
    }

    /// When [`due`](Self::due) may answer otherwise.
    pub(crate) fn turns(self, now: Timestamp) -> impl Iterator<Item = Timestamp> + use<> {
        let missed = self.due(now).map(|moment| after(moment, LATE));
        let queued = self.last.filter(|_| self.when.overlap == Overlap::Queue).map(|last| after(last.ended, LATE));
        missed.into_iter().chain(queued).chain(self.next(now))
    }

    /// Up to when the last run has used up the moments: those that came while it ran pass with it, unless
    /// they wait for its end.
    fn passed(self) -> Option<Timestamp> {
        self.last.map(|last| match self.when.overlap {
            Overlap::Skip => last.accepted.max(last.ended),
            Overlap::Queue => last.accepted,
        })
    }

    /// Moments up to then no longer count.
    fn since(self, now: Timestamp) -> Timestamp {
        let recent = before(now, LATE);
        let since = match (self.when.missed, self.passed()) {
            (Missed::Once, Some(passed)) => passed,
            (Missed::Skip, Some(passed)) if self.ended_after(recent) => passed,
            (Missed::Skip, Some(passed)) => passed.max(recent),
            // Nobody knows which moments a task has missed that never ran.
            (_, None) => recent,
        };
        since.max(self.begins)
    }

    /// Whether the last run ended since then: what waited for its end is not late yet.
    fn ended_after(self, recent: Timestamp) -> bool {
        self.last.is_some_and(|last| last.ended > recent)
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

    fn when(cron: &str, missed: Missed, overlap: Overlap) -> CronWhen {
        CronWhen { cron: cron.parse().unwrap(), missed, overlap }
    }

    fn is_due(missed: Missed, last: Option<&str>, made: &str, now: &str) -> bool {
        let last = last.map(|last| LastRun { accepted: at(last), ended: at(last) });
        let when = when("0 3 * * *", missed, Overlap::Skip);
        Rounds { when: &when, last, begins: at(made) }.due(at(now)).is_some()
    }

    /// The moment of every tenth minute that a task is due for which ran from 03:00 to 03:25.
    fn due_after_run(missed: Missed, overlap: Overlap, now: &str) -> Option<Timestamp> {
        let last = Some(LastRun { accepted: at("03:00:00"), ended: at("03:25:00") });
        Rounds { when: &when("*/10 * * * *", missed, overlap), last, begins: at("00:00:00") }.due(at(now))
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
    fn moments_that_come_while_it_runs_pass_or_wait_for_its_end() {
        for missed in [Missed::Skip, Missed::Once] {
            assert_eq!(due_after_run(missed, Overlap::Skip, "03:25:01"), None);
            assert_eq!(due_after_run(missed, Overlap::Queue, "03:25:01"), Some(at("03:10:00")));
            for overlap in [Overlap::Skip, Overlap::Queue] {
                assert!(due_after_run(missed, overlap, "03:30:00").is_some());
                assert_eq!(due_after_run(missed, overlap, "02:59:00"), None, "the clock was set back");
            }
        }
    }

    #[test]
    fn what_waits_for_the_end_of_a_run_may_be_as_late_as_any_moment() {
        assert!(due_after_run(Missed::Skip, Overlap::Queue, "03:25:59").is_some());
        assert_eq!(due_after_run(Missed::Skip, Overlap::Queue, "03:26:00"), None);
        assert!(due_after_run(Missed::Once, Overlap::Queue, "03:29:00").is_some());
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
            let when = when("0 3 * * *", Missed::Skip, Overlap::Skip);
            Rounds { when: &when, last: None, begins: at("00:00:00") }.turns(at(now)).min().unwrap()
        };
        assert_eq!(turns("01:00:00"), at("03:00:00"));
        assert_eq!(turns("03:00:30"), at("03:01:00"));
    }
}
