//! What the loop, the doors and the hub's notices share.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_hub::HubHandle;
use vm_agent_plan::{Inputs, configuration_for, effective};
use vm_agent_schemas::api::Addresses;
use vm_agent_schemas::fleet::DriverName;
use vm_agent_schemas::names::AgentName;

use crate::conditions::ConditionBook;
use crate::configuring::Configuring;
use crate::engine::directory::directory;
use crate::engine::job::HubAddress;
use crate::engine::memory::{Memory, Moment};
use crate::engine::records::Records;
use crate::ledger::Ledger;
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::networks::Networks;
use crate::observer::Observer;
use crate::output::Output;
use crate::under_way::UnderWay;
use crate::upgrading::{self, Upgrading};
use crate::verifying::Verifying;
use crate::watch::Watch;
use crate::webhooks::Outages;

/// How long a plan waits for the drivers' first listings. A driver that answers takes a part of this.
const LISTINGS: Duration = Duration::from_secs(5);

/// Everything that the parts of the controller share.
pub(crate) struct Core {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) output: Arc<Output>,
    pub(crate) hub: HubHandle,
    pub(crate) hub_address: HubAddress,
    pub(crate) observers: BTreeMap<DriverName, Observer>,
    /// Something happened that may change the plan. Many tellings are one pass.
    pub(crate) trigger: Arc<Notify>,
    /// The same for what happens all the time where there is much to do: it waits until the loop has rested.
    pub(crate) nudged: Notify,
    /// Steps and deliveries under way.
    pub(crate) jobs: TaskTracker,
    /// Which steps are.
    pub(crate) under_way: UnderWay,
    /// The controller is to go down.
    pub(crate) stop: CancellationToken,
    pub(crate) logs: Logs,
    pub(crate) metrics: Metrics,
    pub(crate) memory: Mutex<Memory>,
    pub(crate) silence: Duration,
    pub(crate) state_dir: PathBuf,
    pub(crate) addresses: Addresses,
    pub(crate) started_at: Timestamp,
    /// The same on a clock that nobody sets.
    pub(crate) begun: Instant,
    /// Passes of the loop.
    pub(crate) passes: AtomicU64,
    /// The accepted fleet file that the latest pass acted on; 0 before the first.
    pub(crate) acted_on: AtomicU64,
    pub(crate) conditions: ConditionBook,
    pub(crate) configuring: Configuring,
    pub(crate) upgrading: Upgrading,
    pub(crate) verifying: Verifying,
    /// Where machines find the hub that don't reach this host's loopback.
    pub(crate) networks: Networks,
    /// Webhooks that can't be told.
    pub(crate) webhooks: Outages,
    /// A person has applied a file.
    pub(crate) applied: Notify,
    pub(crate) watch: Watch,
    /// Tokens have ended, or will at another time.
    pub(crate) tokens: watch::Sender<()>,
}

impl Core {
    /// Asks for a pass.
    pub(crate) fn wake(&self) {
        self.trigger.notify_one();
    }

    /// Asks for a pass once the loop has rested.
    pub(crate) fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Tells the hub of the agents as they are declared now. The records stand still meanwhile, so what the
    /// hub hears last is never older than what it heard before.
    pub(crate) fn declare(&self) {
        self.ledger.look(|records| self.hub.directory(directory(records, Timestamp::now())));
    }

    /// Waits for the drivers' first listings, without which a plan says nothing; after a while it says what is known.
    pub(crate) async fn first_listings(&self) {
        let _ = timeout(LISTINGS, join_all(self.observers.values().map(Observer::ready))).await;
    }

    /// Everything that a plan is made from, as it is now.
    pub(crate) async fn inputs(&self) -> Inputs {
        self.inputs_with(&self.ledger.records()).await
    }

    /// Everything that a plan is made from, were the records these.
    pub(crate) async fn inputs_with(&self, records: &Records) -> Inputs {
        let moment = Moment {
            sessions: self.hub.sessions().await,
            drivers: self.observers.iter().map(|(name, o)| (*name, o.view(self.started_at))).collect(),
            silence: self.silence,
            clock: Timestamp::now(),
            monotonic: self.begun.elapsed(),
            unread: self.unread(records),
        };
        let mut inputs = self.memory().inputs(records, moment);
        let offers = self.observers.iter().filter(|(_, observer)| observer.driver().runtime().is_some());
        inputs.runtimes = offers.map(|(name, _)| (*name, upgrading::VERSION.to_owned())).collect();
        for (agent, reason) in self.upgrading.failures() {
            if let Some(seen) = inputs.sessions.get_mut(&agent) {
                seen.stays = Some(reason);
            }
        }
        inputs
    }

    /// Agents that lack the secrets that these records want for them, and why.
    fn unread(&self, records: &Records) -> BTreeMap<AgentName, String> {
        // Mostly nobody asks.
        let wanted = LazyCell::new(|| effective(&records.fleet, &records.overrides, Timestamp::now()).wanted);
        self.configuring.problems(|name| wanted.get(name).map(|agent| configuration_for(agent).digest))
    }

    /// What this life remembers.
    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
