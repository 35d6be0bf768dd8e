//! Services: programs that run for as long as the configuration names them.
//!
//! A task of the event loop keeps each of them ([`keeper`]). What a new configuration means for those that run
//! is decided here, by comparing; the rest is handing over.

mod cpu;
mod keeper;
mod lines;
mod probe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_schemas::fleet::ServiceEntry;
use vm_agent_schemas::ids::Nonce;
use vm_agent_schemas::names::ServiceName;
use vm_agent_schemas::wire::ServiceReport;

use crate::log_forward::LogSender;
use crate::process::{Surroundings, kill_marked};
use cpu::Meter;
use keeper::{Keeper, Status, Stops};

/// The environment variable that every process of a service carries, with the instance's nonce and the
/// service's name: by it what escaped from its group is found, and what a killed runtime left running.
const SERVICE_VARIABLE: &str = "VM_AGENT_SERVICE";
/// Most services that the hub takes in a report.
const REPORTED_MAX: usize = 256;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// The pause before a service is first started again; later ones double.
    first_pause: Duration,
    /// The longest pause.
    longest_pause: Duration,
    /// A service that ran this long was well: the next pause is the first again.
    well: Duration,
    /// The pause between probes as long as none has succeeded, unless the probe's own is shorter.
    startup_probe: Duration,
    /// How long the processes of a service may take to end.
    grace: Duration,
    /// The same when the runtime goes down.
    shutdown_grace: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            well: Duration::from_secs(60),
            startup_probe: Duration::from_secs(1),
            grace: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(2),
        }
    }
}

/// What makes a service this one: if anything of it changes, it is another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    entry: ServiceEntry,
    surroundings: Arc<Surroundings>,
}

/// All services of this instance.
#[derive(Debug)]
pub(crate) struct Services {
    pace: Pace,
    running: BTreeMap<ServiceName, Running>,
    /// Those that are named no more, until they have ended.
    ending: BTreeMap<ServiceName, JoinHandle<()>>,
    changed: Arc<Notify>,
    shutdown: CancellationToken,
    log: LogSender,
    meter: Meter,
}

/// A service that is kept.
#[derive(Debug)]
struct Running {
    wanted: Wanted,
    stop: CancellationToken,
    kept: JoinHandle<()>,
    status: watch::Receiver<Status>,
}

/// What a configuration means for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It is new.
    Start,
    /// It is another now.
    Restart,
    /// It is named no more.
    End,
}

/// What a configuration means for each service, given those that are kept; those that stay as they are are
/// not among the answers.
fn changes<'a, W: PartialEq + 'a>(
    kept: impl IntoIterator<Item = (&'a ServiceName, &'a W)>,
    wanted: &BTreeMap<ServiceName, W>,
) -> BTreeMap<ServiceName, Change> {
    let mut new: BTreeSet<&ServiceName> = wanted.keys().collect();
    let mut changes = BTreeMap::new();
    for (name, kept) in kept {
        new.remove(name);
        match wanted.get(name) {
            None => drop(changes.insert(name.clone(), Change::End)),
            Some(wanted) if wanted != kept => drop(changes.insert(name.clone(), Change::Restart)),
            Some(_) => {}
        }
    }
    changes.extend(new.into_iter().map(|name| (name.clone(), Change::Start)));
    changes
}

impl Services {
    /// No services yet. What an earlier start of this instance left of its own is ended.
    pub(crate) fn new(nonce: &Nonce, log: LogSender, pace: Pace) -> Self {
        kill_marked(SERVICE_VARIABLE, |value| value.strip_prefix(nonce.as_str()).is_some_and(|it| it.starts_with('/')));
        Self {
            pace,
            running: BTreeMap::new(),
            ending: BTreeMap::new(),
            changed: Arc::default(),
            shutdown: CancellationToken::new(),
            log,
            meter: Meter::default(),
        }
    }

    /// Keeps these services from now on, and no others.
    pub(crate) fn configure(
        &mut self,
        services: BTreeMap<ServiceName, ServiceEntry>,
        surroundings: &Arc<Surroundings>,
        tracker: &TaskTracker,
    ) {
        let wanted = |entry| Wanted { entry, surroundings: Arc::clone(surroundings) };
        let mut wanted: BTreeMap<_, _> = services.into_iter().map(|(name, entry)| (name, wanted(entry))).collect();
        let changes = changes(self.running.iter().map(|(name, running)| (name, &running.wanted)), &wanted);
        self.ending.retain(|_, ending| !ending.is_finished());
        for (name, change) in changes {
            if let Some(Running { stop, kept, .. }) = self.running.remove(&name) {
                stop.cancel();
                self.ending.insert(name.clone(), kept);
            }
            match (change, wanted.remove(&name)) {
                (Change::Start | Change::Restart, Some(wanted)) => self.keep(name, wanted, tracker),
                _ => tracing::info!("service {name} is to run no more"),
            }
            self.changed.notify_one();
        }
    }

    /// Returns when a service has changed its state since the last return.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// How each service is.
    pub(crate) fn report(&mut self) -> BTreeMap<ServiceName, ServiceReport> {
        let leaders = self.running.iter().filter_map(|(name, it)| Some((name.clone(), it.status.borrow().leader?)));
        let percent = self.meter.measure(&leaders.collect());
        let report = |(name, running): (&ServiceName, &Running)| {
            let Status { state, restarts, problem, .. } = running.status.borrow().clone();
            let cpu_percent = percent.get(name).copied().unwrap_or_default();
            (name.clone(), ServiceReport { state, restarts, cpu_percent, problem })
        };
        self.running.iter().take(REPORTED_MAX).map(report).collect()
    }

    /// Ends all services, because the runtime goes down.
    pub(crate) fn stop(&self) {
        self.shutdown.cancel();
    }

    /// Starts to keep a service. One of this name that is ending ends before.
    fn keep(&mut self, name: ServiceName, wanted: Wanted, tracker: &TaskTracker) {
        let (status, seen) = watch::channel(Status::default());
        let stop = self.shutdown.child_token();
        let stops = Stops { stop: stop.clone(), shutdown: self.shutdown.clone(), pace: self.pace };
        let keeper = Keeper::new(&name, &wanted, stops, status, Arc::clone(&self.changed), self.log.clone());
        let kept = tracker.spawn(keeper.run(self.ending.remove(&name)));
        self.running.insert(name, Running { wanted, stop, kept, status: seen });
    }
}

#[cfg(test)]
mod tests;
