//! The fuse and the backoff: how failures slow the loop down, and when they stop it.

use std::time::Duration;

use jiff::Timestamp;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::{Action, Backoff};
use vm_agent_schemas::plan::Fuse;

use crate::clock::after;

/// Failures this close together count as at once: a sick host shows within a minute, and agents that
/// fail minutes apart have reasons of their own.
pub const FUSE_WINDOW: Duration = Duration::from_secs(60);

/// How long a blown fuse keeps everything still before one step may show whether all is well again.
pub const FUSE_REST: Duration = Duration::from_secs(15);

/// Fewer failures than this never blow the fuse: two of three agents may well be broken themselves.
const FUSE_LEAST: usize = 3;

/// The share of the agents that has to fail at once, in percent.
const FUSE_SHARE: usize = 50;

/// The first pause after a failure; each further one is twice as long.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// The longest pause: a person who mended something waits no longer than this.
const BACKOFF_LONGEST: Duration = Duration::from_secs(300);

/// Failures further apart than this are not in a row.
pub const BACKOFF_FORGOTTEN: Duration = Duration::from_secs(600);

/// The state that the fuse should be in.
#[must_use]
pub(crate) fn judge<'a>(
    fuse: &Fuse,
    backoffs: impl Iterator<Item = &'a Backoff>,
    agents: usize,
    last_success: Option<Timestamp>,
    now: Timestamp,
) -> Fuse {
    match fuse {
        Fuse::Closed { since } => {
            let recent = backoffs.filter(|b| b.failed_at > *since && after(b.failed_at, FUSE_WINDOW) > now).count();
            if recent >= FUSE_LEAST && recent * 100 >= agents * FUSE_SHARE {
                let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
                Fuse::Blown { since: now, failed: count(recent), of: count(agents) }
            } else {
                fuse.clone()
            }
        }
        Fuse::Blown { since, .. } if last_success.is_some_and(|at| at >= after(*since, FUSE_REST)) => {
            Fuse::Closed { since: now }
        }
        Fuse::Blown { .. } => fuse.clone(),
    }
}

/// When a blown fuse lets one step through.
#[must_use]
pub(crate) fn probe_at<'a>(fuse: &Fuse, backoffs: impl Iterator<Item = &'a Backoff>) -> Option<Timestamp> {
    match fuse {
        // A probe that failed is a failure like the others, and gives the host another rest.
        Fuse::Blown { since, .. } => {
            let latest = backoffs.map(|backoff| backoff.failed_at).max();
            Some(after(latest.map_or(*since, |latest| latest.max(*since)), FUSE_REST))
        }
        Fuse::Closed { .. } => None,
    }
}

/// The backoff after one more failure, that of `step` where it was one. `jitter`, between 0 and 1, spreads agents that failed together.
#[must_use]
pub fn after_failure(
    agent: &AgentName,
    before: Option<&Backoff>,
    step: Option<Action>,
    why: String,
    jitter: f64,
    now: Timestamp,
) -> Backoff {
    let before = before.filter(|b| after(b.failed_at, BACKOFF_FORGOTTEN) > now);
    let failures = before.map_or(0, |b| b.failures) + 1;
    let doubled = BACKOFF_FIRST.saturating_mul(1 << (failures - 1).min(16)).min(BACKOFF_LONGEST);
    let pause = doubled.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0));
    Backoff { agent: agent.clone(), failures, failed_at: now, not_before: after(now, pause), step, last: why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn failed(count: i64, when: i64) -> Vec<Backoff> {
        (0..count)
            .map(|n| after_failure(&format!("a{n}").parse().unwrap(), None, None, "died".into(), 0.5, at(when)))
            .collect()
    }

    #[test]
    fn the_fuse_blows_when_most_fail_within_the_window() {
        let closed = Fuse::Closed { since: at(0) };
        let judge = |failures: &[Backoff], agents, now| judge(&closed, failures.iter(), agents, None, at(now));
        assert!(judge(&failed(10, 5), 20, 6).is_blown());
        assert!(!judge(&failed(9, 5), 20, 6).is_blown());
        assert!(!judge(&failed(2, 5), 2, 6).is_blown());
        assert!(!judge(&failed(20, 5), 20, 66).is_blown());
    }

    #[test]
    fn a_blown_fuse_closes_after_a_success_that_came_after_its_rest() {
        let blown = Fuse::Blown { since: at(0), failed: 3, of: 3 };
        let judge = |success| judge(&blown, [].iter(), 3, success, at(100));
        assert!(judge(None).is_blown());
        assert!(judge(Some(at(14))).is_blown());
        assert_eq!(judge(Some(at(16))), Fuse::Closed { since: at(100) });
    }

    #[test]
    fn failures_from_before_the_closing_count_no_more() {
        let closed = Fuse::Closed { since: at(10) };
        assert!(!judge(&closed, failed(20, 5).iter(), 20, None, at(11)).is_blown());
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_are_forgotten() {
        let agent = "web".parse().unwrap();
        let mut backoff = None;
        let mut pauses = Vec::new();
        let mut now = at(0);
        for _ in 0..12 {
            let next = after_failure(&agent, backoff.as_ref(), None, "died".into(), 0.5, now);
            pauses.push(now.duration_until(next.not_before).as_secs());
            now = next.not_before;
            backoff = Some(next);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
        let later = after(now, BACKOFF_FORGOTTEN * 2);
        assert_eq!(after_failure(&agent, backoff.as_ref(), None, "died".into(), 0.5, later).failures, 1);
    }
}
