//! What the loop, the doors and the hub's notices share, and how a moment of it becomes the inputs of
//! a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_hub::{HubHandle, SessionInfo};
use vm_agent_plan::{DriverView, Inputs, Listing, SessionSeen};
use vm_agent_schemas::api::Addresses;
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::AgentName;
use vm_agent_schemas::observe::Claim;
use vm_agent_schemas::wire::HealthReport;

use crate::conditions::ConditionBook;
use crate::engine::job::HubAddress;
use crate::engine::records::Records;
use crate::ledger::Ledger;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::observer::Observer;

/// A file system this full, in percent, makes an agent Degraded: builds begin to fail for want of room
/// some time before the last byte.
const DISK_FULL: u64 = 95;

/// Everything that the parts of the controller share.
pub(crate) struct Core {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) hub: HubHandle,
    pub(crate) hub_address: HubAddress,
    pub(crate) observers: BTreeMap<DriverName, Observer>,
    /// Something happened that may change the plan. Many tellings are one pass.
    pub(crate) trigger: Arc<Notify>,
    /// Steps and deliveries under way.
    pub(crate) jobs: TaskTracker,
    /// The controller is to go down.
    pub(crate) stop: CancellationToken,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) heard: Mutex<BTreeMap<AgentName, SessionSeen>>,
    pub(crate) last_success: Mutex<Option<Timestamp>>,
    /// The drivers that did not answer when the latest pass looked.
    pub(crate) silent: Mutex<BTreeSet<DriverName>>,
    pub(crate) silence: Duration,
    pub(crate) state_dir: PathBuf,
    pub(crate) addresses: Addresses,
    pub(crate) started_at: Timestamp,
    /// Passes of the loop.
    pub(crate) passes: AtomicU64,
    /// The accepted fleet file that the latest pass acted on; 0 before the first.
    pub(crate) acted_on: AtomicU64,
    pub(crate) conditions: ConditionBook,
}

impl Core {
    /// Asks for a pass.
    pub(crate) fn wake(&self) {
        self.trigger.notify_one();
    }

    /// Everything that a plan is made from, as it is now.
    pub(crate) async fn inputs(&self) -> Inputs {
        self.inputs_with(&self.ledger.records()).await
    }

    /// Everything that a plan is made from, were the records these.
    pub(crate) async fn inputs_with(&self, records: &Records) -> Inputs {
        let sessions = self.hear(&self.hub.sessions().await, &records.claims);
        let drivers = self.observers.iter().map(|(name, o)| (*name, o.view(self.started_at))).collect();
        // Not before anything that is seen, even by a clock that was set back: else a crash would be
        // newer than the backoff that was set for it, and count again and again.
        let now = latest(&drivers).map_or_else(Timestamp::now, |seen| seen.max(Timestamp::now()));
        Inputs {
            drivers,
            sessions,
            last_success: *self.last_success.lock().unwrap_or_else(PoisonError::into_inner),
            silence: self.silence,
            ..records.inputs(now)
        }
    }

    /// The runtimes heard of: those connected now, and when the others were last heard.
    fn hear(&self, sessions: &[SessionInfo], claims: &BTreeMap<AgentName, Claim>) -> BTreeMap<AgentName, SessionSeen> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        for seen in heard.values_mut() {
            seen.connected = false;
        }
        for session in sessions {
            let seen = SessionSeen {
                incarnation: session.incarnation,
                connected: true,
                last_seen: session.last_seen,
                configured: session.configured.clone(),
                ailing: session.health.as_ref().is_some_and(is_ailing),
            };
            heard.insert(session.agent.clone(), seen);
        }
        // Who spoke for an earlier machine of that name is of no interest any more.
        heard.retain(|agent, seen| claims.get(agent).is_some_and(|claim| seen.incarnation == claim.incarnation));
        heard.clone()
    }

    /// What there is to tell of drivers: who stopped answering, and who answers again.
    pub(crate) fn driver_events(&self) -> Vec<NewEvent> {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        for (name, observer) in &self.observers {
            match observer.sight().listing {
                Some(Listing::Unanswered { reason, .. }) if silent.insert(*name) => {
                    let message = format!("driver {name} does not answer: {reason}");
                    events.push(NewEvent::fleet(EventKind::DriverLost, message));
                }
                Some(Listing::Seen(_)) if silent.remove(name) => {
                    events.push(NewEvent::fleet(EventKind::DriverBack, format!("driver {name} answers again")));
                }
                _ => {}
            }
        }
        events
    }

    /// Notes that a step that began then brought a machine up.
    pub(crate) fn brought_up(&self, began: Timestamp) {
        *self.last_success.lock().unwrap_or_else(PoisonError::into_inner) = Some(began);
    }
}

/// When the youngest state that any driver shows was first seen.
fn latest(drivers: &BTreeMap<DriverName, DriverView>) -> Option<Timestamp> {
    let seen = drivers.values().filter_map(|view| match &view.listing {
        Listing::Seen(instances) => Some(instances.values()),
        Listing::Unanswered { .. } => None,
    });
    seen.flatten().map(|observed| observed.since).max()
}

fn is_ailing(report: &HealthReport) -> bool {
    let (used, total) = (report.disk_used.bytes(), report.disk_total.bytes());
    total > 0 && used.saturating_mul(100) >= total.saturating_mul(DISK_FULL)
}
