//! Looks at what drivers see. Each driver has a task of its own that lists its instances on a timer
//! and on demand, one listing at a time, each within its deadline: a hung driver delays no other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt as _;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use vm_agent_drivers::Driver;
use vm_agent_plan::{DriverView, Listing};
use vm_agent_schemas::fleet::DriverName;

use crate::engine::sight::{OBSERVE_EVERY, Sight};

/// A driver under observation.
#[derive(Clone)]
pub(crate) struct Observer {
    driver: Arc<dyn Driver>,
    asked: Arc<Notify>,
    begun: watch::Receiver<u64>,
    sight: watch::Receiver<Arc<Sight>>,
}

impl Observer {
    /// Begins to look at a driver. `changed` is told after each listing that differs from the one
    /// before.
    pub(crate) fn start(driver: Arc<dyn Driver>, changed: Arc<Notify>, stop: CancellationToken) -> Self {
        let asked = Arc::new(Notify::new());
        let (begun_tx, begun) = watch::channel(0);
        let (sight_tx, sight) = watch::channel(Arc::new(Sight::default()));
        let watcher = Watcher { driver: Arc::clone(&driver), begun: begun_tx, sight: sight_tx, changed };
        let wake = Arc::clone(&asked);
        tokio::spawn(async move {
            tokio::select! {
                () = watcher.run(&wake) => {}
                () = stop.cancelled() => {}
            }
        });
        Self { driver, asked, begun, sight }
    }

    /// The driver.
    #[must_use]
    pub(crate) fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// The driver's name.
    #[must_use]
    pub(crate) fn name(&self) -> DriverName {
        self.driver.name()
    }

    /// What the driver sees, as last listed.
    #[must_use]
    pub(crate) fn sight(&self) -> Arc<Sight> {
        Arc::clone(&self.sight.borrow())
    }

    /// The driver as a plan sees it. Before its first listing has ended nothing is known.
    #[must_use]
    pub(crate) fn view(&self, since: Timestamp) -> DriverView {
        match self.sight.has_changed() {
            Ok(_) => self.sight.borrow().view(self.driver.capabilities(), since),
            Err(_) => {
                let listing = Listing::Unanswered { since, reason: "nobody looks any more".into() };
                DriverView { capabilities: self.driver.capabilities(), listing, looked_at: None }
            }
        }
    }

    /// Asks for a look soon.
    pub(crate) fn ask(&self) {
        self.asked.notify_one();
    }

    /// Waits for a listing that begins after this call, and gives what it saw; nothing when nobody
    /// looks any more.
    pub(crate) async fn fresh(&self) -> Option<Arc<Sight>> {
        let wanted = *self.begun.borrow() + 1;
        let mut sight = self.sight.clone();
        self.asked.notify_one();
        sight.wait_for(|sight| sight.round >= wanted).await.ok().map(|sight| Arc::clone(&sight))
    }

    /// Waits until the driver has been listed once, or has failed to answer once.
    pub(crate) async fn ready(&self) {
        let mut sight = self.sight.clone();
        // An observer that has ended gives nothing to wait for.
        let _ = sight.wait_for(|sight| sight.listing.is_some()).await;
    }
}

struct Watcher {
    driver: Arc<dyn Driver>,
    begun: watch::Sender<u64>,
    sight: watch::Sender<Arc<Sight>>,
    changed: Arc<Notify>,
}

impl Watcher {
    async fn run(self, asked: &Notify) {
        loop {
            self.look().await;
            tokio::select! {
                () = asked.notified() => {}
                () = tokio::time::sleep(OBSERVE_EVERY) => {}
            }
        }
    }

    async fn look(&self) {
        self.begun.send_modify(|round| *round += 1);
        let round = *self.begun.borrow();
        let begun_at = Timestamp::now();
        let deadline = self.driver.capabilities().deadlines.list.get();
        let list = AssertUnwindSafe(self.driver.list()).catch_unwind();
        let answer = match tokio::time::timeout(deadline, list).await {
            Ok(Ok(Ok(instances))) => Ok(instances),
            Ok(Ok(Err(error))) => Err(error.to_string()),
            Ok(Err(_)) => Err("the driver panicked".to_owned()),
            Err(_) => Err(format!("a listing took longer than {} s", deadline.as_secs())),
        };
        let before = Arc::clone(&self.sight.borrow());
        let sight = before.after(round, begun_at, answer, Timestamp::now());
        let differs = before.listing != sight.listing;
        self.sight.send_replace(Arc::new(sight));
        if differs {
            self.changed.notify_one();
        }
    }
}
