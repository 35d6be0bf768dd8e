//! Probes: whether a service works, by a command that is run again and again beside it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::fleet::Probe;
use vm_agent_schemas::wire::Run;

use super::keeper::ended;
use crate::process::Surroundings;

/// How long the processes of a probe may take to end.
const PROBE_GRACE: Duration = Duration::from_millis(500);
/// The shortest pause between two probes that is obeyed: a mistake must not keep the machine busy.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// What the probes of a service come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It works.
    Up,
    /// It does not, and why.
    Down(String),
}

/// What is known of a service by its probes.
#[derive(Debug)]
struct Standing {
    every: Duration,
    startup: Duration,
    failures: u32,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No probe has succeeded yet.
    Starting,
    /// It worked, and so many probes have failed since.
    Up(u32),
    /// It has been given up.
    Down,
}

impl Standing {
    fn new(probe: &Probe, startup: Duration) -> Self {
        let every = probe.every.get().max(PAUSE_MIN);
        Self { every, startup: startup.min(every), failures: probe.failures.max(1), phase: Phase::Starting }
    }

    /// How long to wait before the next probe.
    const fn pause(&self) -> Duration {
        match self.phase {
            Phase::Starting => self.startup,
            Phase::Up(_) | Phase::Down => self.every,
        }
    }

    /// Takes in how a probe went, so long after the service's start; answers when that changes the verdict.
    fn note(&mut self, result: Result<(), String>, since_start: Duration) -> Option<Verdict> {
        let why = match (result, self.phase) {
            (Ok(()), Phase::Up(_)) => {
                self.phase = Phase::Up(0);
                return None;
            }
            (Ok(()), Phase::Starting | Phase::Down) => {
                self.phase = Phase::Up(0);
                return Some(Verdict::Up);
            }
            (Err(_), Phase::Down) => return None,
            (Err(why), _) => why,
        };
        let text = match self.phase {
            Phase::Up(failed) if failed + 1 < self.failures => {
                self.phase = Phase::Up(failed + 1);
                return None;
            }
            Phase::Starting if since_start < self.every.saturating_mul(self.failures) => return None,
            Phase::Starting | Phase::Down => format!("its probe never succeeded: {why}"),
            Phase::Up(failed) => format!("its probe failed {} times in a row: {why}", failed + 1),
        };
        self.phase = Phase::Down;
        Some(Verdict::Down(text))
    }
}

/// Probes a service that starts now, until `over`, and tells each change of the verdict.
pub(super) async fn watch(
    probe: Probe,
    startup: Duration,
    run: Run,
    surroundings: &Surroundings,
    verdicts: mpsc::Sender<Verdict>,
    over: CancellationToken,
) {
    let began = Instant::now();
    let mut standing = Standing::new(&probe, startup);
    while over.run_until_cancelled(sleep(standing.pause())).await.is_some() {
        let Some(result) = once(&run, surroundings, probe.timeout.get(), &over).await else { return };
        if let Some(verdict) = standing.note(result, began.elapsed()) {
            // Nobody listens when it is over.
            let _ = verdicts.send(verdict).await;
        }
    }
}

/// One probe; nothing if it is over meanwhile.
async fn once(
    run: &Run,
    surroundings: &Surroundings,
    limit: Duration,
    over: &CancellationToken,
) -> Option<Result<(), String>> {
    let mut leader = match surroundings.spawn_silent(run) {
        Ok(leader) => leader,
        Err(error) => return Some(Err(format!("the probe could not be started: {error}"))),
    };
    tokio::select! {
        outcome = leader.wait() => Some(if outcome.is_success() { Ok(()) } else { Err(format!("it {}", ended(&outcome))) }),
        () = sleep(limit) => {
            leader.end(PROBE_GRACE).await;
            Some(Err(format!("it took longer than {} s", limit.as_secs_f64())))
        }
        () = over.cancelled() => {
            leader.end(PROBE_GRACE).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::units::Span;

    const SECOND: Duration = Duration::from_secs(1);

    fn standing() -> Standing {
        let probe = serde_json::from_value(serde_json::json!({"exec": "true", "every": "10s", "failures": 3})).unwrap();
        Standing::new(&probe, SECOND)
    }

    fn failed() -> Result<(), String> {
        Err("it ended with exit code 1".to_owned())
    }

    fn down(text: &str) -> Option<Verdict> {
        Some(Verdict::Down(format!("{text}: it ended with exit code 1")))
    }

    #[test]
    fn a_service_has_as_long_to_come_up_as_its_failures_would_take() {
        let mut it = standing();
        assert_eq!(it.pause(), SECOND);
        assert_eq!(it.note(failed(), SECOND), None);
        assert_eq!(it.note(failed(), 29 * SECOND), None);
        assert_eq!(it.note(failed(), 30 * SECOND), down("its probe never succeeded"));
        assert_eq!(it.note(failed(), 40 * SECOND), None, "that is known");
    }

    #[test]
    fn one_that_was_up_may_fail_some_times_in_a_row() {
        let mut it = standing();
        assert_eq!(it.note(Ok(()), 2 * SECOND), Some(Verdict::Up));
        assert_eq!(it.pause(), 10 * SECOND);
        for _ in 0..3 {
            assert_eq!((it.note(failed(), SECOND), it.note(failed(), SECOND)), (None, None));
            assert_eq!(it.note(Ok(()), SECOND), None, "that counts anew");
        }
        assert_eq!((it.note(failed(), SECOND), it.note(failed(), SECOND)), (None, None));
        assert_eq!(it.note(failed(), SECOND), down("its probe failed 3 times in a row"));
        assert_eq!(it.note(Ok(()), SECOND), Some(Verdict::Up), "it has come round");
    }

    #[test]
    fn probes_without_pause_get_one() {
        let probe =
            Probe { every: Span::from_secs(0), ..serde_json::from_value(serde_json::json!({"exec": "x"})).unwrap() };
        assert_eq!(Standing::new(&probe, SECOND).pause(), PAUSE_MIN);
    }
}
