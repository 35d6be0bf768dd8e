//! What becomes of one task: pure decisions over its record.

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::task::{ATTEMPTS_KEPT, Attempt, LOSSES_MAX, Report, Retry, RetryOn, Task, TaskSource, TaskState};
use vm_agent_schemas::units::Span;
use vm_agent_schemas::wire::{TaskOutcome, TaskRef};

/// How much longer than its timeout a connected runtime may be silent about a task before the attempt
/// counts as interrupted. Ending a process group takes a runtime seconds; a minute means that it
/// has forgotten the task, and those behind it should not wait for ever.
const OVERDUE: Duration = Duration::from_secs(60);

pub(super) const fn reference(task: &Task) -> TaskRef {
    TaskRef { task: task.id, attempt: task.attempt }
}

/// What follows on the end of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    /// Nothing: the task ends as the attempt did. It may be a dead letter.
    End(Option<String>),
    /// Another attempt, not before then.
    Again { not_before: Option<Timestamp>, loss: bool },
}

/// The present attempt has ended. Answers whether the task has.
pub(super) fn conclude(task: &mut Task, outcome: TaskOutcome, report: Option<Report>, now: Timestamp) -> bool {
    match next(task, &outcome, now) {
        Next::End(dead) => {
            end(task, outcome, now);
            task.report = report;
            task.dead = dead;
            true
        }
        Next::Again { not_before, loss } => {
            begin_anew(task, outcome, now);
            task.losses += u32::from(loss);
            task.state = TaskState::Queued { not_before };
            false
        }
    }
}

/// The task can't be done any more: its agent is gone.
pub(super) fn abandon(task: &mut Task, reason: &str, now: Timestamp) {
    let (outcome, dead) = match task.handed_to() {
        Some(_) if task.canceled_by.is_some() => (TaskOutcome::Canceled, None),
        Some(_) => (TaskOutcome::Interrupted, Some(TaskOutcome::Interrupted.to_string())),
        None => (TaskOutcome::NotStarted { reason: reason.to_owned() }, Some(reason.to_owned())),
    };
    end(task, outcome, now);
    // A task of the file is for its machine alone: the next one gets its own.
    task.dead = dead.filter(|_| matches!(task.source, TaskSource::Request { .. }));
}

fn end(task: &mut Task, outcome: TaskOutcome, now: Timestamp) {
    // Nobody wanted it, and its machine took with it whatever had begun.
    let canceled = outcome == TaskOutcome::Interrupted && task.canceled_by.is_some();
    task.state = TaskState::Ended { outcome: if canceled { TaskOutcome::Canceled } else { outcome } };
    task.ended_at = Some(now);
}

fn begin_anew(task: &mut Task, outcome: TaskOutcome, now: Timestamp) {
    if task.former.len() >= ATTEMPTS_KEPT {
        task.former.drain(..=task.former.len() - ATTEMPTS_KEPT);
    }
    let (attempt, agent, started_at) = (task.attempt, task.agent.clone(), task.started_at.take());
    task.former.push(Attempt { attempt, agent, started_at, ended_at: now, outcome });
    task.attempt += 1;
    if task.pool.is_some() {
        task.agent = None;
    }
}

fn next(task: &Task, outcome: &TaskOutcome, now: Timestamp) -> Next {
    if task.canceled_by.is_some() {
        return Next::End(None);
    }
    match outcome {
        TaskOutcome::Interrupted if !task.is_idempotent() => Next::End(Some(outcome.to_string())),
        TaskOutcome::Interrupted if task.losses >= LOSSES_MAX => {
            Next::End(Some(format!("its machine or runtime went away {} times while it ran", task.losses + 1)))
        }
        TaskOutcome::Interrupted => Next::Again { not_before: None, loss: true },
        TaskOutcome::Expired => Next::End(Some(outcome.to_string())),
        _ => match task.terms.retry.as_ref().filter(|retry| kind(outcome).is_some_and(|kind| retry.on.contains(&kind)))
        {
            None => Next::End(None),
            Some(retry) => retried(task, retry, outcome, now),
        },
    }
}

fn retried(task: &Task, retry: &Retry, outcome: &TaskOutcome, now: Timestamp) -> Next {
    let made = task.attempt - task.losses.min(task.attempt - 1);
    if made < retry.attempts {
        let not_before = after(now, backoff(retry, made));
        return Next::Again { not_before: Some(not_before), loss: false };
    }
    let tries = |tries| format!("it was tried {tries} times; the last attempt {outcome}");
    Next::End((task.attempt > 1).then(|| tries(task.attempt)))
}

/// The ends that a person can ask to have tried again.
const fn kind(outcome: &TaskOutcome) -> Option<RetryOn> {
    match outcome {
        TaskOutcome::Exited { code: 0 } | TaskOutcome::Canceled | TaskOutcome::Expired | TaskOutcome::Interrupted => {
            None
        }
        TaskOutcome::Exited { .. } | TaskOutcome::Signaled { .. } | TaskOutcome::Failed { .. } => Some(RetryOn::Failed),
        TaskOutcome::TimedOut => Some(RetryOn::TimedOut),
        TaskOutcome::NotStarted { .. } => Some(RetryOn::NotStarted),
    }
}

/// The pause after so many attempts.
fn backoff(retry: &Retry, attempts: u32) -> Duration {
    let factor = 2_u32.saturating_pow(attempts.saturating_sub(1));
    retry.backoff.get().saturating_mul(factor).min(retry.backoff_max.get())
}

/// How long an attempt that begins now may run: its deadline may come before its timeout.
pub(super) fn time_left(task: &Task, now: Timestamp) -> Span {
    // What was sent may have begun before its deadline: only by an order its runtime can be asked.
    let shortest = Duration::from_millis(1);
    let left = task
        .terms
        .deadline
        .map_or(Duration::MAX, |deadline| Duration::try_from(deadline.duration_since(now)).unwrap_or_default());
    Span::from(task.terms.timeout.get().min(left).max(shortest))
}

/// When the present attempt has been silent for too long, if its runtime has all its time from now on.
pub(super) fn overdue(task: &Task, now: Timestamp) -> Timestamp {
    after(now, time_left(task, now).get().saturating_add(OVERDUE))
}

pub(super) fn after(now: Timestamp, span: Duration) -> Timestamp {
    now.saturating_add(span).unwrap_or(Timestamp::MAX)
}

/// When something is to be looked at though nobody says anything: a pause is over, or the deadline is here.
pub(super) fn wakes_at(task: &Task, now: Timestamp) -> Option<Timestamp> {
    let TaskState::Queued { not_before } = task.state else { return None };
    let pause = not_before.filter(|not_before| *not_before > now);
    pause.into_iter().chain(task.terms.deadline).min()
}

/// Whether the deadline of a task that has not begun is here.
pub(super) fn is_expired(task: &Task, now: Timestamp) -> bool {
    matches!(task.state, TaskState::Queued { .. }) && task.terms.deadline.is_some_and(|deadline| now >= deadline)
}

/// Whether a task could be handed over now.
pub(super) fn is_ready(task: &Task, now: Timestamp) -> bool {
    matches!(task.state, TaskState::Queued { not_before } if not_before.is_none_or(|not_before| not_before <= now))
}

#[cfg(test)]
mod tests {
    use vm_agent_schemas::ids::{Incarnation, TaskId};
    use vm_agent_schemas::task::{Job, Terms};

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn running(terms: Terms) -> Task {
        let source = TaskSource::Request { author: "test".to_owned(), key: None };
        let mut task =
            Task::new(TaskId::generate(), Some("web".parse().unwrap()), source, Job::exec(["true"]), terms, at(0));
        task.state = TaskState::Running { incarnation: Incarnation(1) };
        task
    }

    fn retry(attempts: u32) -> Terms {
        Terms { retry: Some(Retry { attempts, ..Retry::default() }), ..Terms::default() }
    }

    fn fail(task: &mut Task) -> bool {
        task.state = TaskState::Running { incarnation: Incarnation(1) };
        conclude(task, TaskOutcome::Exited { code: 1 }, None, at(0))
    }

    #[test]
    fn a_failure_is_tried_again_with_growing_pauses_and_then_is_a_dead_letter() {
        let mut task = running(retry(3));
        for (attempt, pause) in [(2, 1), (3, 2)] {
            assert!(!fail(&mut task));
            assert_eq!((task.attempt, &task.state), (attempt, &TaskState::Queued { not_before: Some(at(pause)) }));
        }
        assert!(fail(&mut task));
        assert_eq!(task.outcome(), Some(&TaskOutcome::Exited { code: 1 }));
        assert_eq!(task.dead.as_deref(), Some("it was tried 3 times; the last attempt ended with exit code 1"));
        assert_eq!(task.former.iter().map(|former| former.attempt).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_task_of_the_file_that_keeps_failing_is_a_dead_letter_as_one_by_hand_is_and_not_when_its_machine_goes() {
        let of_file = || {
            let (name, digest) = ("setup".parse().unwrap(), vm_agent_schemas::ids::Digest::of(b"setup"));
            let claim = vm_agent_schemas::ids::ClaimId::generate();
            Task { source: TaskSource::File { name, digest, claim, due: None }, ..running(retry(2)) }
        };
        let (mut failing, mut gone) = (of_file(), of_file());
        assert!(!fail(&mut failing) && fail(&mut failing));
        assert_eq!(failing.dead.as_deref(), Some("it was tried 2 times; the last attempt ended with exit code 1"));
        abandon(&mut gone, "its machine is gone", at(0));
        assert_eq!((gone.outcome(), &gone.dead), (Some(&TaskOutcome::Interrupted), &None));
    }

    #[test]
    fn a_failure_that_nobody_wants_tried_again_is_no_dead_letter() {
        let mut task = running(Terms::default());
        assert!(fail(&mut task));
        assert_eq!(task.dead, None);
        let mut task = running(retry(3));
        task.canceled_by = Some("me".to_owned());
        assert!(fail(&mut task));
        assert_eq!(task.dead, None);
        let mut timed_out = running(retry(3));
        assert!(conclude(&mut timed_out, TaskOutcome::TimedOut, None, at(0)), "only failures are retried by default");
    }

    #[test]
    fn pauses_have_a_longest() {
        let retry = Retry { attempts: 100, ..Retry::default() };
        assert_eq!(backoff(&retry, 9), Duration::from_secs(256));
        assert_eq!([10, 40, u32::MAX].map(|attempts| backoff(&retry, attempts).as_secs()), [300; 3]);
    }

    #[test]
    fn what_may_be_repeated_is_done_again_after_a_loss_and_not_for_ever() {
        let mut task = running(Terms { idempotent: Some(true), ..retry(2) });
        for losses in 1..=LOSSES_MAX {
            task.state = TaskState::Running { incarnation: Incarnation(1) };
            assert!(!conclude(&mut task, TaskOutcome::Interrupted, None, at(0)));
            assert_eq!((task.losses, &task.state), (losses, &TaskState::QUEUED));
        }
        assert!(!fail(&mut task), "losses do not count as attempts");
        task.state = TaskState::Running { incarnation: Incarnation(1) };
        assert!(conclude(&mut task, TaskOutcome::Interrupted, None, at(0)));
        assert_eq!(task.outcome(), Some(&TaskOutcome::Interrupted));
        assert!(task.dead.is_some());
    }

    #[test]
    fn what_may_not_be_repeated_ends_with_its_fate_unknown() {
        let mut task = running(retry(3));
        assert!(conclude(&mut task, TaskOutcome::Interrupted, None, at(0)));
        assert_eq!(task.dead.as_deref(), Some("was interrupted, and may have done its work or not"));
        let mut canceled = running(retry(3));
        canceled.canceled_by = Some("me".to_owned());
        assert!(conclude(&mut canceled, TaskOutcome::Interrupted, None, at(0)));
        assert_eq!((canceled.outcome(), &canceled.dead), (Some(&TaskOutcome::Canceled), &None));
    }

    #[test]
    fn only_the_latest_attempts_are_remembered() {
        let mut task = running(retry(100));
        for _ in 0..ATTEMPTS_KEPT + 3 {
            assert!(!fail(&mut task));
        }
        assert_eq!(task.former.len(), ATTEMPTS_KEPT);
        assert_eq!(task.former.first().map(|former| former.attempt), Some(4));
        assert_eq!(task.former.last().map(|former| former.attempt), Some(task.attempt - 1));
    }

    #[test]
    fn an_attempt_has_no_more_time_than_its_deadline_leaves() {
        let task = running(Terms { timeout: Span::from_secs(60), deadline: Some(at(100)), ..Terms::default() });
        assert_eq!([0, 70, 200].map(|now| time_left(&task, at(now)).get().as_millis()), [60_000, 30_000, 1]);
    }
}
