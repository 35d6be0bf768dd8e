//! Keeps one service: starts it, watches it, starts it again, ends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vm_agent_schemas::fleet::{CommandLine, RestartPolicy, ServiceEntry};
use vm_agent_schemas::names::ServiceName;
use vm_agent_schemas::wire::{Run, ServiceState, TaskOutcome};

use super::lines::forward;
use super::probe::{self, Verdict};
use super::{Pace, SERVICE_VARIABLE, Wanted};
use crate::backoff::Backoff;
use crate::log_forward::LogSender;
use crate::process::{Drain, Leader, Process, Surroundings, end_group, kill_marked};
use crate::redact::Redaction;
use crate::sentence::sentence;

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) state: ServiceState,
    /// How often it was started again.
    pub(super) restarts: u32,
    /// Why it is not as it should be.
    pub(super) problem: Option<String>,
    /// The process that leads its group, while there is one.
    pub(super) leader: Option<u32>,
}

impl Default for Status {
    /// About to be started.
    fn default() -> Self {
        Self { state: ServiceState::Starting, restarts: 0, problem: None, leader: None }
    }
}

/// When and how a service is ended.
#[derive(Debug, Clone)]
pub(super) struct Stops {
    /// Ends this service; also cancelled by `shutdown`.
    pub(super) stop: CancellationToken,
    /// The runtime goes down.
    pub(super) shutdown: CancellationToken,
    /// How long things take.
    pub(super) pace: Pace,
}

impl Stops {
    /// Returns when processes that were asked to end have had their time.
    async fn grace(&self) {
        tokio::select! {
            () = sleep(self.pace.grace) => {}
            () = async {
                self.shutdown.cancelled().await;
                sleep(self.pace.shutdown_grace).await;
            } => {}
        }
    }
}

/// How one life of a service ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    NotStarted(String),
    Over(TaskOutcome),
    /// Its probe failed, and it was ended.
    GivenUp(String),
}

impl End {
    const fn is_success(&self) -> bool {
        matches!(self, Self::Over(outcome) if outcome.is_success())
    }

    fn sentence(&self) -> String {
        sentence(&match self {
            Self::NotStarted(why) => format!("it could not be started: {why}"),
            Self::Over(outcome) => format!("it {}", ended(outcome)),
            Self::GivenUp(why) => why.clone(),
        })
    }
}

/// How a process ended, behind "it". A program that is meant to go on has not succeeded by ending.
pub(super) fn ended(outcome: &TaskOutcome) -> String {
    match outcome {
        TaskOutcome::Exited { code } => format!("ended with exit code {code}"),
        other => other.to_string(),
    }
}

/// Whether a service that ended is started again.
const fn again(policy: RestartPolicy, success: bool) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => !success,
        RestartPolicy::Never => false,
    }
}

/// Keeps one service.
pub(super) struct Keeper {
    name: ServiceName,
    mark: String,
    entry: ServiceEntry,
    surroundings: Arc<Surroundings>,
    stops: Stops,
    status: watch::Sender<Status>,
    changed: Arc<Notify>,
    log: LogSender,
}

impl Keeper {
    pub(super) fn new(
        name: &ServiceName,
        wanted: &Wanted,
        stops: Stops,
        status: watch::Sender<Status>,
        changed: Arc<Notify>,
        log: LogSender,
    ) -> Self {
        let Wanted { entry, surroundings } = wanted.clone();
        let mark = format!("{}/{name}", surroundings.nonce);
        Self { name: name.clone(), mark, entry, surroundings, stops, status, changed, log }
    }

    /// Keeps the service until it is stopped or has ended for good, beginning when its predecessor has ended.
    pub(super) async fn run(self, predecessor: Option<JoinHandle<()>>) {
        if let Some(predecessor) = predecessor {
            // That it failed means that it is over.
            let _ = predecessor.await;
        }
        let pace = self.stops.pace;
        let mut pauses = Backoff::new(pace.first_pause, pace.longest_pause);
        while !self.stops.stop.is_cancelled() {
            let began = Instant::now();
            let Some(end) = self.live().await else { break };
            if began.elapsed() >= pace.well {
                pauses.reset();
            }
            let why = end.sentence();
            if !again(self.entry.restart, end.is_success()) {
                tracing::info!("service {} has ended: {why}", self.name);
                let problem = (!end.is_success()).then_some(why);
                self.tell(|status| Status { state: ServiceState::Ended, problem, leader: None, ..status });
                return;
            }
            // Whole seconds of waiting are not jittered: services do not share what they wait for.
            let pause = pauses.next(1.0);
            tracing::warn!("service {}: {why}; it is started again in {} s", self.name, pause.as_secs_f64());
            let problem = Some(why);
            self.tell(|status| Status { state: ServiceState::Failing, problem, leader: None, ..status });
            if self.stops.stop.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
            self.status.send_modify(|status| status.restarts = status.restarts.saturating_add(1));
        }
        tracing::info!("service {} is stopped", self.name);
    }

    /// One life of the service; nothing if it was stopped.
    async fn live(&self) -> Option<End> {
        let process = match self.surroundings.spawn(&self.run_of(&self.entry.exec), false) {
            Ok(process) => process,
            Err(error) => return Some(End::NotStarted(error.to_string())),
        };
        let Process { mut leader, stdout, stderr, .. } = process;
        let id = leader.group().map(|group| group.as_raw_nonzero().get().unsigned_abs());
        let state = if self.entry.probe.is_some() { ServiceState::Starting } else { ServiceState::Running };
        tracing::info!("service {} has been started", self.name);
        self.tell(|status| Status { state, problem: None, leader: id, ..status });
        let over = CancellationToken::new();
        let (verdicts, told) = mpsc::channel(1);
        let watching = async {
            let end = self.watch(&mut leader, told).await;
            kill_marked(SERVICE_VARIABLE, |value| value == self.mark);
            over.cancel();
            end
        };
        let redaction = Redaction::new(&self.surroundings.secrets);
        let mark = |sign| format!("service {} {sign} ", self.name);
        let log = || self.log.clone();
        let out = forward(mark('|'), Drain::new(stdout, over.clone()), redaction.stream(), log());
        let err = forward(mark('!'), Drain::new(stderr, over.clone()), redaction.stream(), log());
        let probing = async {
            if let Some(probe) = self.entry.probe.clone() {
                let run = self.run_of(&probe.exec);
                let startup = self.stops.pace.startup_probe;
                probe::watch(probe, startup, run, &self.surroundings, verdicts, over.clone()).await;
            }
        };
        let (end, (), (), ()) = tokio::join!(watching, out, err, probing);
        end
    }

    /// Watches the process until it has ended with its group; nothing if the service was stopped.
    async fn watch(&self, leader: &mut Leader, mut verdicts: mpsc::Receiver<Verdict>) -> Option<End> {
        let group = leader.group();
        loop {
            tokio::select! {
                outcome = leader.wait() => {
                    if let Some(group) = group {
                        end_group(group, self.stops.grace()).await;
                    }
                    return Some(End::Over(outcome));
                }
                Some(verdict) = verdicts.recv() => match verdict {
                    Verdict::Up => {
                        self.tell(|status| Status { state: ServiceState::Running, problem: None, ..status });
                    }
                    // Nothing would start it again, so it is left as it is.
                    Verdict::Down(why) if self.entry.restart == RestartPolicy::Never => {
                        let problem = Some(sentence(&why));
                        self.tell(|status| Status { state: ServiceState::Failing, problem, ..status });
                    }
                    Verdict::Down(why) => {
                        let problem = Some(sentence(&why));
                        self.tell(|status| Status { state: ServiceState::Failing, problem, ..status });
                        leader.end_within(self.stops.grace()).await;
                        return Some(End::GivenUp(why));
                    }
                },
                () = self.stops.stop.cancelled() => {
                    leader.end_within(self.stops.grace()).await;
                    return None;
                }
            }
        }
    }

    /// A command in the service's environment.
    fn run_of(&self, exec: &CommandLine) -> Run {
        let mut env: BTreeMap<String, String> = self.entry.env.clone();
        env.insert(SERVICE_VARIABLE.to_owned(), self.mark.clone());
        Run { argv: exec.argv(), env, cwd: self.entry.cwd.clone(), user: None }
    }

    /// Changes the status, and wakes whoever reports it when what it shows is another.
    fn tell(&self, change: impl FnOnce(Status) -> Status) {
        let mut news = false;
        self.status.send_modify(|status| {
            let now = change(status.clone());
            news = (now.state, &now.problem) != (status.state, &status.problem);
            *status = now;
        });
        if news {
            self.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_says_whether_a_service_is_started_again() {
        use RestartPolicy::{Always, Never, OnFailure};
        let table = [(Always, true, true), (OnFailure, false, true), (Never, false, false)];
        for (policy, after_success, after_failure) in table {
            assert_eq!((again(policy, true), again(policy, false)), (after_success, after_failure), "{policy}");
        }
    }

    #[test]
    fn an_end_says_what_it_was() {
        assert_eq!(End::Over(TaskOutcome::Exited { code: 0 }).sentence(), "it ended with exit code 0");
        assert_eq!(End::Over(TaskOutcome::Signaled { signal: 9 }).sentence(), "it was ended by signal 9");
        let missing = End::NotStarted("there is no program `x`".to_owned());
        assert_eq!(
            (missing.is_success(), missing.sentence()),
            (false, "it could not be started: there is no program `x`".to_owned())
        );
    }
}
