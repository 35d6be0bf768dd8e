//! From a state folder to a running controller, and back down in order.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use vm_agent_drivers::Driver;
use vm_agent_hub::Identity;
use vm_agent_plan::{Inputs, Mode, plan};
use vm_agent_schemas::api::{Addresses, ControllerFile};
use vm_agent_schemas::event::{EventKind, NewEvent};
use vm_agent_schemas::fleet::{DriverName, Fleet, HubSettings};
use vm_agent_schemas::ids::Life;
use vm_agent_schemas::names::FleetName;
use vm_agent_schemas::net::{API_PORT, DASHBOARD_PORT, HUB_PORT, HostPort};
use vm_agent_schemas::observe::Host;
use vm_agent_schemas::plan::Plan;
use vm_agent_schemas::wire::HUB_PATH;
use vm_agent_store::{self as store, StateDir, StateDirError, Store, StoreError};

use crate::controller::Controller;
use crate::core::Core;
use crate::disk::LedgerError;
use crate::engine::job::HubAddress;
use crate::engine::life;
use crate::engine::memory::{HEARTBEAT, Memory, silence};

use crate::engine::records::{Change, NEVER_BLOWN};
use crate::host::host;
use crate::http::{self, Door};
use crate::hub_storage::HubStorage;
use crate::ledger::Ledger;
use crate::logs::Logs;
use crate::machines::drivers;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::output::Output;
use crate::under_way::UnderWay;
use crate::watch::Watch;
use crate::{networks, notices, reconciler, retention, watch, webhooks};

/// Notices of the hub that may wait to be told.
const NOTICES: usize = 1024;

/// How long steps under way may go on after the word to stop. Only stops do; all others are found and
/// looked at by the next life.
const GRACE: Duration = Duration::from_secs(10);

/// How long it may take to write down what the hub told last. A disk that hangs holds nothing up for ever.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a life that was started for a file waits for it before it goes on with the one in force.
const EXPECTED: Duration = Duration::from_secs(5);

/// How long a life waits for the first look at the fleet file before it begins to act.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// What a controller is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The state folder.
    pub state_dir: PathBuf,
    /// Where to listen: over what the accepted fleet file says.
    pub hub: HubSettings,
    /// The fleet; nothing where the folder knows it already.
    pub fleet: Option<FleetName>,
    /// This program, which driver `local` runs as `program runtime FOLDER`.
    pub program: PathBuf,
    /// Whether whoever starts it wants the fleet up, even though an earlier life was told to take it
    /// down and did not come to the end of that.
    pub up: bool,
    /// Whether whoever starts it is about to apply a file: nothing is done for the file of an earlier life
    /// before that.
    pub expects_file: bool,
    /// Whether what changes in the fleet file on the disk is applied.
    pub watch: bool,
}

/// What a controller is made of besides its drivers.
#[derive(Debug, Clone)]
pub struct Config {
    /// The state folder.
    pub state_dir: PathBuf,
    /// Where to listen: over what the accepted fleet file says.
    pub hub: HubSettings,
    /// The fleet; nothing where the folder knows it already.
    pub fleet: Option<FleetName>,
    /// Whether the fleet is wanted up, whatever an earlier life was told.
    pub up: bool,
    /// Whether whoever starts it is about to apply a file: nothing is done for the file of an earlier life
    /// before that.
    pub expects_file: bool,
    /// Whether what changes in the fleet file on the disk is applied.
    pub watch: bool,
    /// What this host has that machines take; nothing, and no budget holds but those in the file.
    pub host: Option<Host>,
}

/// Why a controller can't run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state folder can't be had.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The folder is another fleet's.
    #[error(
        "the state folder belongs to fleet `{owner}`, and fleet `{asked}` was asked for; give it a folder of its own"
    )]
    OtherFleet {
        /// Whose it is.
        owner: FleetName,
        /// Who came.
        asked: FleetName,
    },
    /// What tasks wrote can't be had.
    #[error("what tasks wrote can't be read")]
    Output(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The hub can't be served.
    #[error("the hub can't be served")]
    Hub(#[source] vm_agent_hub::ServeError),
    /// The hub's certificate can't be had.
    #[error("the hub's certificate can't be had")]
    Identity(#[from] vm_agent_hub::IdentityError),
    /// An address can't be listened on.
    #[error(
        "can't listen for {what} on {address}; free it, or set another in `hub:` of the fleet file (port 0 takes a free one)"
    )]
    Listen {
        /// Whom for.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The unix socket's path is too long for the system.
    #[error("the path {} is too long for a unix socket; choose a shorter state folder", path.display())]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// A counter can't be made.
    #[error("the metrics can't be made")]
    Metrics(#[from] prometheus::Error),
    /// Signals can't be waited for.
    #[error("signals can't be waited for")]
    Signals(#[source] io::Error),
}

impl From<vm_agent_hub::ServeError> for RunError {
    fn from(error: vm_agent_hub::ServeError) -> Self {
        match error {
            vm_agent_hub::ServeError::Listen { address, source } => Self::Listen { what: "runtimes", address, source },
            error @ vm_agent_hub::ServeError::Certificate(_) => Self::Hub(error),
        }
    }
}

/// Longest path of a unix socket that every system takes: macOS has 104 bytes, one of them for the end.
const SOCKET_PATH_MAX: usize = 103;

/// Runs a controller with the drivers of this build until it is told to go down, by a signal or by
/// [`Controller::down`].
///
/// # Errors
/// When it can't start.
pub async fn run(options: Options) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Signals)?;
    let drivers = drivers(&options.state_dir, options.program.clone());
    let Options { state_dir, hub, fleet, up, expects_file, watch, .. } = options;
    let config = Config { state_dir, hub, fleet, up, expects_file, watch, host: host() };
    let running = Running::start(config, drivers).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = running.stopped() => {}
    }
    running.shut_down().await;
    Ok(())
}

/// What would be done for a fleet, without a controller: by what the state folder knows, if it is one,
/// and by what the drivers see. Changes nothing.
///
/// # Errors
/// When the state folder is in use, is another fleet's or can't be read.
pub async fn plan_offline(options: Options, fleet: Fleet) -> Result<Plan, RunError> {
    let now = Timestamp::now();
    let drivers = drivers(&options.state_dir, options.program);
    let mut inputs = Inputs { fuse: NEVER_BLOWN, ..Inputs::empty(now) };
    let _folder = if options.state_dir.join("state.db").exists() {
        let folder = StateDir::open(&options.state_dir)?;
        let store = Store::open(&folder.database())?;
        let ledger = Ledger::read(store, Life::default()).await?;
        let records = ledger.records();
        ledger.store().close().await;
        if let Some(owner) = records.owner.clone().filter(|owner| *owner != fleet.name) {
            return Err(RunError::OtherFleet { owner, asked: fleet.name });
        }
        inputs = records.inputs(now);
        Some(folder)
    } else {
        None
    };
    inputs.fleet = Arc::new(fleet);
    let stop = CancellationToken::new();
    for driver in drivers {
        let observer = Observer::start(driver, Arc::default(), stop.clone());
        observer.ready().await;
        inputs.drivers.insert(observer.name(), observer.view(now));
    }
    stop.cancel();
    Ok(plan(&inputs))
}

/// A running controller, and what it takes to end it.
pub struct Running {
    controller: Controller,
    core: Arc<Core>,
    folder: StateDir,
    /// The doors and the loop.
    parts: TaskTracker,
    /// Who writes down what the hub tells. The hub tells its last when it goes down.
    tellers: TaskTracker,
    /// The observers end last: a stop under way looks at what it came to.
    observe_stop: CancellationToken,
    expects_file: bool,
}

/// Looks after the fleet; where a file is expected, not before it has come.
async fn look_after(core: Arc<Core>, expects_file: bool) {
    if expects_file {
        tokio::select! {
            _ = tokio::time::timeout(EXPECTED, core.applied.notified()) => {}
            () = core.stop.cancelled() => {}
        }
    }
    reconciler::run(core).await;
}

impl Running {
    /// Starts a controller with these drivers.
    ///
    /// # Errors
    /// When the state folder, the store or an address can't be had.
    pub async fn start(config: Config, drivers: Vec<Arc<dyn Driver>>) -> Result<Self, RunError> {
        let now = Timestamp::now();
        let folder = StateDir::open(&config.state_dir)?;
        let store = Store::open(&folder.database())?;
        let ledger = Arc::new(Ledger::open(store).await?);
        let output = Arc::new(Output::open(&folder.join("output")).map_err(|error| RunError::Output(error.into()))?);
        let fleet = own(&ledger, config.fleet).await?;
        if config.up {
            ledger.record(vec![Change::Mode(Mode::Up)], now).await?;
        }
        let settings = over(&config.hub, &ledger.records().fleet.hub);
        let listeners = Listeners::bind(&ledger, &settings).await?;
        let socket = folder.socket();
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(RunError::SocketPath { path: socket });
        }

        let heartbeat = settings.heartbeat.unwrap_or(HEARTBEAT);
        let (notices_tx, notices_rx) = mpsc::channel(NOTICES);
        let identity = Identity::load_or_create(folder.path())?;
        let pin = identity.pin();
        let hub = vm_agent_hub::serve(vm_agent_hub::Options {
            fleet: fleet.clone(),
            listen: vec![listeners.hub],
            heartbeat,
            identity,
            storage: HubStorage::start(Arc::clone(&ledger), Arc::clone(&output)),
            notices: notices_tx,
        })
        .await?;
        remember(&ledger, "hub", hub.local_addr()).await?;
        let unfinished = output.known(ledger.store().read(store::tasks::unfinished).await?).await;
        let unfinished = unfinished.map_err(|error| RunError::Output(error.into()))?;
        let messages = ledger.store().read(store::messages::remembered).await?;
        for call in life::first_words(&ledger.records(), unfinished, messages, now) {
            reconciler::tell(&hub, call);
        }

        let stop = CancellationToken::new();
        let trigger = Arc::new(Notify::new());
        let observe_stop = CancellationToken::new();
        let observe = |driver: Arc<dyn Driver>| {
            let observer = Observer::start(driver, Arc::clone(&trigger), observe_stop.clone());
            (observer.name(), observer)
        };
        let observers: BTreeMap<DriverName, Observer> = drivers.into_iter().map(observe).collect();
        let addresses = Addresses {
            socket,
            hub: hub.local_addr(),
            api: listeners.api_address,
            dashboard: listeners.dashboard_address,
        };
        let core = Arc::new(Core {
            hub_address: hub_address(hub.local_addr(), settings.advertise.as_ref(), pin),
            ledger,
            output,
            hub,
            observers,
            trigger,
            nudged: Notify::new(),
            jobs: TaskTracker::new(),
            under_way: UnderWay::default(),
            stop,
            logs: Logs::new(folder.join("logs")),
            metrics: Metrics::new()?,
            memory: Mutex::new(Memory::of(config.host)),
            silence: silence(heartbeat),
            state_dir: folder.path().to_owned(),
            addresses,
            started_at: now,
            begun: Instant::now(),
            passes: AtomicU64::new(0),
            acted_on: AtomicU64::new(0),
            conditions: Default::default(),
            configuring: Default::default(),
            upgrading: Default::default(),
            verifying: Default::default(),
            networks: Default::default(),
            webhooks: Default::default(),
            applied: Notify::new(),
            watch: Watch::new(config.watch),
            tokens: Default::default(),
        });
        let controller = Controller::new(Arc::clone(&core));
        let expects_file = config.expects_file;
        let running = Self {
            controller,
            core,
            folder,
            parts: TaskTracker::new(),
            tellers: TaskTracker::new(),
            observe_stop,
            expects_file,
        };
        if settings.advertise.is_none() {
            let listening = networks::run(Arc::clone(&running.core), settings.listen.unwrap_or_default());
            running.parts.spawn(running.core.stop.clone().run_until_cancelled_owned(listening));
        }
        running.serve(listeners, notices_rx).await?;
        Ok(running)
    }

    /// Opens the doors, tells where they are, and begins to look after the fleet.
    async fn serve(&self, listeners: Listeners, notices: mpsc::Receiver<vm_agent_hub::Notice>) -> Result<(), RunError> {
        let core = &self.core;
        let user = std::env::var("USER").unwrap_or_else(|_| "local".to_owned());
        let (stop, addresses) = (core.stop.clone(), core.addresses.clone());
        let socket_router = http::router(self.controller.clone(), Door::Socket { user });
        let api_router = http::router(self.controller.clone(), Door::Tcp);
        let dashboard_router = http::dashboard(self.controller.clone());
        let socket_stop = stop.clone();
        self.parts.spawn(async move {
            told("the unix socket", http::serve_unix(&addresses.socket, socket_router, socket_stop).await);
        });
        let api_stop = stop.clone();
        self.parts.spawn(async move { told("the API", http::serve_tcp(listeners.api, api_router, api_stop).await) });
        self.parts.spawn(async move {
            told("the dashboard", http::serve_tcp(listeners.dashboard, dashboard_router, stop).await);
        });

        let records = core.ledger.records();
        core.ledger.record(vec![life::began(&records)], Timestamp::now()).await?;
        // Runtimes may be back already; that is told after the beginning of the life that they came to.
        self.tellers.spawn(notices::run(Arc::clone(core), notices));
        self.parts.spawn(retention::run(Arc::clone(core)));
        self.folder.write_controller_file(&ControllerFile {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            fleet: records.owner.clone().unwrap_or_default(),
            life: records.life,
            addresses: core.addresses.clone(),
        })?;
        let (looked_tx, looked) = oneshot::channel();
        self.parts.spawn(watch::run(Arc::clone(core), looked_tx));
        // What changed in the file while no controller ran comes before what it said then. A disk that does
        // not answer holds nothing up for long.
        let _ = tokio::time::timeout(FIRST_LOOK, looked).await;
        self.parts.spawn(look_after(Arc::clone(core), self.expects_file));
        self.parts.spawn(core.stop.clone().run_until_cancelled_owned(webhooks::run(Arc::clone(core))));
        Ok(())
    }

    /// The controller.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Waits until the controller has decided to go down.
    pub async fn stopped(&self) {
        self.core.stop.cancelled().await;
    }

    /// Goes down in order. Machines stay as they are.
    pub async fn shut_down(self) {
        let core = &self.core;
        core.stop.cancel();
        core.jobs.close();
        self.parts.close();
        let quiet = async {
            core.jobs.wait().await;
            self.parts.wait().await;
        };
        if tokio::time::timeout(GRACE, quiet).await.is_err() {
            tracing::warn!("Something was still under way; the next life looks at it");
        }
        self.observe_stop.cancel();
        core.hub.shutdown().await;
        self.tellers.close();
        if tokio::time::timeout(LAST_WORDS, self.tellers.wait()).await.is_err() {
            tracing::warn!("What the hub told last could not be written down in time");
        }
        let event = NewEvent::fleet(EventKind::ControllerStopped, "the controller went down in order");
        if let Err(error) = core.ledger.record(vec![Change::Event(event)], Timestamp::now()).await {
            tracing::error!(error = %reconciler::Chain(&error), "The end could not be recorded");
        }
        core.ledger.store().close().await;
        if let Err(error) = self.folder.remove_controller_file() {
            tracing::warn!(%error, "controller.json could not be removed");
        }
    }
}

fn told(what: &str, served: io::Result<()>) {
    if let Err(error) = served {
        tracing::error!(%error, "Serving {what} failed");
    }
}

/// Settles which fleet the folder belongs to.
async fn own(ledger: &Ledger, asked: Option<FleetName>) -> Result<FleetName, RunError> {
    match (ledger.records().owner.clone(), asked) {
        (Some(owner), Some(asked)) if owner != asked => Err(RunError::OtherFleet { owner, asked }),
        (Some(owner), _) => Ok(owner),
        (None, asked) => {
            let fleet = asked.unwrap_or_default();
            ledger.belong_to(fleet.clone()).await?;
            Ok(fleet)
        }
    }
}

fn over(flags: &HubSettings, file: &HubSettings) -> HubSettings {
    HubSettings {
        listen: flags.listen.or(file.listen),
        advertise: flags.advertise.clone().or_else(|| file.advertise.clone()),
        api_listen: flags.api_listen.or(file.api_listen),
        dashboard_listen: flags.dashboard_listen.or(file.dashboard_listen),
        heartbeat: flags.heartbeat.or(file.heartbeat),
    }
}

struct Listeners {
    hub: SocketAddr,
    api: TcpListener,
    api_address: SocketAddr,
    dashboard: TcpListener,
    dashboard_address: SocketAddr,
}

impl Listeners {
    async fn bind(ledger: &Ledger, settings: &HubSettings) -> Result<Self, RunError> {
        let hub = settings.listen.unwrap_or_default().address(HUB_PORT);
        let api = settings.api_listen.unwrap_or_default().address(API_PORT);
        let dashboard = settings.dashboard_listen.unwrap_or_default().address(DASHBOARD_PORT);
        let api = listen(ledger, "api", api).await?;
        let dashboard = listen(ledger, "dashboard", dashboard).await?;
        Ok(Self {
            hub: remembered(ledger, "hub", hub).await?,
            api_address: address_of(&api, "the API")?,
            api,
            dashboard_address: address_of(&dashboard, "the dashboard")?,
            dashboard,
        })
    }
}

async fn listen(ledger: &Ledger, what: &'static str, wanted: SocketAddr) -> Result<TcpListener, RunError> {
    let address = remembered(ledger, what, wanted).await?;
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { what, address, source })?;
    remember(ledger, what, address_of(&listener, what)?).await?;
    Ok(listener)
}

fn address_of(listener: &TcpListener, what: &'static str) -> Result<SocketAddr, RunError> {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    listener.local_addr().map_err(|source| RunError::Listen { what, address: nowhere, source })
}

/// For port 0, the port that an earlier life got: machines and people were told that one.
async fn remembered(ledger: &Ledger, what: &str, wanted: SocketAddr) -> Result<SocketAddr, StoreError> {
    if wanted.port() != 0 {
        return Ok(wanted);
    }
    let key = format!("listen.{what}");
    let known: Option<SocketAddr> = ledger.store().read(move |conn| store::meta::get_json(conn, &key)).await?;
    Ok(known.filter(|known| known.ip() == wanted.ip()).unwrap_or(wanted))
}

async fn remember(ledger: &Ledger, what: &str, address: SocketAddr) -> Result<(), StoreError> {
    let key = format!("listen.{what}");
    ledger.store().write(move |conn| store::meta::set_json(conn, &key, &address)).await
}

/// What seeds say of the hub. On loopback nobody listens in, and no certificate is needed.
fn hub_address(listening: SocketAddr, advertised: Option<&HostPort>, pin: vm_agent_schemas::ids::Digest) -> HubAddress {
    let (address, plain) = match advertised {
        Some(advertised) => (advertised.to_string(), advertised.is_loopback()),
        None if listening.ip().is_unspecified() => {
            (SocketAddr::from(([127, 0, 0, 1], listening.port())).to_string(), true)
        }
        None => (listening.to_string(), listening.ip().is_loopback()),
    };
    let scheme = if plain { "ws" } else { "wss" };
    let url = format!("{scheme}://{address}{HUB_PATH}");
    // What machines take for this host is its loopback.
    let on_loopback = listening.ip().is_loopback() || listening.ip().is_unspecified();
    let loopback = (on_loopback && (plain || advertised.is_none())).then(|| (listening.port(), pin.clone()));
    HubAddress { url, pin: (!plain).then_some(pin), loopback }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_agent_schemas::ids::Digest;

    #[test]
    fn machines_are_told_the_advertised_address_and_plain_text_stays_on_loopback() {
        let told = |listening: &str, advertised: Option<&str>| {
            let advertised: Option<HostPort> = advertised.map(|text| text.parse().unwrap());
            let address = hub_address(listening.parse().unwrap(), advertised.as_ref(), Digest::of(b"it"));
            assert_eq!(address.pin.is_none(), address.url.starts_with("ws://"));
            address.url.trim_end_matches(HUB_PATH).to_owned()
        };
        assert_eq!(told("127.0.0.1:9090", None), "ws://127.0.0.1:9090");
        assert_eq!(told("0.0.0.0:9090", None), "ws://127.0.0.1:9090");
        assert_eq!(told("192.0.2.7:9090", None), "wss://192.0.2.7:9090");
        assert_eq!(told("127.0.0.1:9090", Some("127.0.0.1:9")), "ws://127.0.0.1:9");
        assert_eq!(told("127.0.0.1:9090", Some("hub.example:443")), "wss://hub.example:443");
        assert_eq!(told("192.0.2.7:9090", Some("127.0.0.1:9")), "ws://127.0.0.1:9");
    }

    #[test]
    fn machines_with_a_loopback_of_their_own_find_the_hub_on_ours_unless_it_is_elsewhere() {
        let pin = Digest::of(b"it");
        let port = |listening: &str, advertised: Option<&str>| {
            let advertised: Option<HostPort> = advertised.map(|text| text.parse().unwrap());
            let address = hub_address(listening.parse().unwrap(), advertised.as_ref(), pin.clone());
            address.loopback.map(|(port, _)| port)
        };
        assert_eq!(port("127.0.0.1:9090", None), Some(9090));
        assert_eq!(port("0.0.0.0:9090", None), Some(9090));
        assert_eq!(port("192.0.2.7:9090", None), None);
        assert_eq!(port("127.0.0.1:9090", Some("127.0.0.1:9")), Some(9090));
        assert_eq!(port("127.0.0.1:9090", Some("hub.example:443")), None);
    }
}
